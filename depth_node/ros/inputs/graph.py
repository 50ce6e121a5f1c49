# SPDX-License-Identifier: Apache-2.0
"""The topics of a ROS 2 graph that the node could subscribe to, for `depth_tools doctor`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import rclpy
from rclpy.context import Context

WANTED = {
    "image": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "camera_info": ("sensor_msgs/msg/CameraInfo",),
    "LiDAR": ("sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/LaserScan"),
}


@dataclass(frozen=True)
class SeenTopic:
    """A published topic: the input that it could serve, its name, type and number of publishers."""

    role: str
    name: str
    type: str
    publishers: int


def seen_topics(seconds: float) -> list[SeenTopic]:
    """Return the topics that the node could subscribe to, after `seconds` of discovery."""
    context = Context()
    rclpy.init(context=context, args=[])
    try:
        node = rclpy.create_node(
            f"depth_tools_doctor_{os.getpid()}",
            context=context,
            enable_rosout=False,
            start_parameter_services=False,
        )
        time.sleep(seconds)  # discovery runs in the middleware's own threads
        names: Sequence[tuple[str, list[str]]] = node.get_topic_names_and_types()
        found = [
            SeenTopic(role, name, kind, node.count_publishers(name))
            for name, kinds in names
            for kind in kinds
            for role, wanted in WANTED.items()
            if kind in wanted
        ]
        node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)
    order = list(WANTED)
    return sorted(
        (topic for topic in found if topic.publishers),
        key=lambda topic: (order.index(topic.role), topic.name),
    )


def middleware() -> str:
    """Return the name of the RMW in use, such as rmw_fastrtps_cpp."""
    from rclpy.utilities import get_rmw_implementation_identifier

    return str(get_rmw_implementation_identifier())
