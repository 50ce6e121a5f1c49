# SPDX-License-Identifier: Apache-2.0
"""The publishers of the node and their QoS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Header

from depth_node.geometry.camera import Camera
from depth_node.pipeline import DepthResult
from depth_node.ros.outputs.results import OUTPUTS, TRANSPORT, message_makers
from depth_node.ros.settings import NodeConfig
from depth_node.ros.transforms.ground import ObstacleView


def full_name(node: Node, topic: str) -> str:
    """Return the full name of a topic of OUTPUTS.

    A compressed topic stays beside the plain one, also if that is remapped.
    """
    plain = topic.removesuffix(TRANSPORT)
    return str(node.resolve_topic_name(plain)) + topic[len(plain) :]


class Outputs:
    """The publishers of an active node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publishers: dict[str, Publisher] = {}
        for topic, kind in OUTPUTS.items():
            # depth_image_proc requests reliability and gets nothing from a best-effort publisher.
            qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
            self._publishers[topic] = node.create_publisher(
                kind,
                full_name(node, topic),
                qos,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )

    def topics_with_subscribers(self) -> set[str]:
        """Return the topics that have a subscriber."""
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
        obstacle_view: Callable[[], ObstacleView | None],
    ) -> None:
        """Make and publish the messages of these topics only, with the image's stamp and frame.

        obstacle_view: see message_makers().
        """
        make = message_makers(result, image, camera, header, config, obstacle_view)
        for topic, maker in make.items():
            message = maker() if topic in topics else None
            if message is not None:
                self._publishers[topic].publish(message)

    def close(self) -> None:
        """Remove the topics from the graph."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
