# SPDX-License-Identifier: Apache-2.0
"""What the node publishes: topics, QoS, and which message each topic makes of a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from depth_node.geometry.camera import Camera
from depth_node.pipeline import DepthResult
from depth_node.ros import messages
from depth_node.ros.parameters import NodeConfig

RECTIFIED = "~/depth/image_rect"
UNRECTIFIED = "~/depth/image"  # depth of an image with distortion must not be called rectified
CAMERA_INFO = "~/depth/camera_info"
POINTS = "~/points"
CONFIDENCE = "~/confidence"
REGIONS = "~/regions"
FIT = "~/fit"
REJECTED = "~/rejected"

OUTPUTS: dict[str, type] = {
    RECTIFIED: Image,
    UNRECTIFIED: Image,
    CAMERA_INFO: CameraInfo,
    POINTS: PointCloud2,
    CONFIDENCE: Image,
    REGIONS: Image,
    FIT: PointCloud2,
    REJECTED: PointCloud2,
}


def depth_topic(camera: Camera) -> str:
    """Where the depth of this camera's images goes."""
    return RECTIFIED if camera.model == "pinhole" else UNRECTIFIED


class Outputs:
    """The publishers of an active node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publishers: dict[str, Publisher] = {}
        for topic, kind in OUTPUTS.items():
            # Reliable: depth_image_proc asks for reliability and gets nothing from best effort.
            qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
            self._publishers[topic] = node.create_publisher(
                kind,
                topic,
                qos,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

    def topics_with_subscribers(self) -> set[str]:
        """The topics that somebody listens to."""
        return {
            topic for topic, out in self._publishers.items() if out.get_subscription_count() > 0
        }

    def publish(
        self,
        topics: set[str],
        result: DepthResult,
        image: npt.NDArray[np.uint8],
        camera: Camera,
        header: Header,
        config: NodeConfig,
    ) -> None:
        """Make and publish these topics and no other; stamp and frame are those of the image."""

        def depth() -> Image:
            metres = result.gates.depth_image()
            if config.depth_encoding == "16UC1":
                pixels = messages.depth_to_millimetres(metres)
                return messages.image_message(pixels, "16UC1", header)
            return messages.image_message(metres, "32FC1", header)

        def points() -> PointCloud2:
            every = config.points_decimation
            believed = result.gates.believed(every)
            rows = messages.colour_points(result.depth, camera, image, every, believed)
            return messages.table_message(rows, header)

        def regions() -> Image:
            labels = result.labels
            if labels is None:  # a method without regions: every pixel is unassigned
                labels = np.zeros(result.depth.shape, np.int32)
            return messages.image_message(messages.labels_to_pixels(labels), "16UC1", header)

        def rejected() -> PointCloud2:
            which, sparse = result.rejected, result.sparse
            pixels = (sparse.rows[which], sparse.cols[which])
            rows = messages.residual_points(
                pixels, sparse.depth[which], result.fit.point_residual[which], camera
            )
            return messages.table_message(rows, header)

        make: dict[str, Callable[[], Any]] = {
            RECTIFIED: depth,
            UNRECTIFIED: depth,
            CAMERA_INFO: lambda: messages.camera_info_message(camera, header),
            POINTS: points,
            CONFIDENCE: lambda: messages.image_message(result.std, "32FC1", header),
            REGIONS: regions,
            FIT: lambda: messages.table_message(result.fit.regions, header),
            REJECTED: rejected,
        }
        for topic, message in make.items():
            if topic in topics:
                self._publishers[topic].publish(message())

    def close(self) -> None:
        """Take the topics off the graph."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
