# SPDX-License-Identifier: Apache-2.0
"""The subscriptions of the node and their QoS."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2, Range

from depth_node.ros.inputs.lidar import UnreadScan
from depth_node.ros.inputs.shared_topics import SharedTopics
from depth_node.ros.outputs.publishers import full_name
from depth_node.ros.outputs.results import OUTPUTS
from depth_node.ros.settings import NodeConfig

INPUTS = ("image", "camera_info", "points", "scan", "landmarks", "depth", "range")


def input_types(config: NodeConfig) -> dict[str, type]:
    """Return the topics that the node subscribes to with these settings: name -> message type."""
    kinds = {
        "camera_info": CameraInfo,
        "points": PointCloud2,
        "scan": LaserScan,
        "landmarks": PointCloud2,
        "depth": Image,
        "range": Range,
    }
    inputs = {"camera_info", *config.lidar_sources}
    image = CompressedImage if config.image_transport == "compressed" else Image
    return {**{name: kind for name, kind in kinds.items() if name in inputs}, "image": image}


def topic_clashes(node: Node, config: NodeConfig) -> list[str]:
    """Return a sentence for each input whose topic is also another input's, or an output."""
    used = ("image", "camera_info", *config.lidar_sources)
    topics = {name: node.resolve_topic_name(name) for name in INPUTS if name in used}
    sentences = [
        f"the inputs {first} and {second} are both {topics[first]}: remap each to a topic of its"
        " own"
        for first, second in itertools.combinations(topics, 2)
        if topics[first] == topics[second]
    ]
    own = {full_name(node, name) for name in OUTPUTS}
    sentences += [
        f"the input {name} is {topic}, an output of this node: remap it to the sensor's topic"
        for name, topic in topics.items()
        if topic in own
    ]
    return sentences


class Inputs:
    """The subscriptions of an active node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._ends: list[Callable[[], object]] = []
        self._latched = False

    def subscribe(self, kind: type, topic: str, callback: Callable[[Any], None]) -> None:
        """Subscribe with the QoS of sensor data: best effort, a short queue."""
        subscription = self._node.create_subscription(
            kind,
            topic,
            callback,
            copy.copy(qos_profile_sensor_data),  # rclpy writes overrides into it
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._ends.append(partial(self._node.destroy_subscription, subscription))

    def share(
        self, shared: SharedTopics, kind: type, topic: str, take: Callable[[UnreadScan], None]
    ) -> None:
        """Take a LiDAR's topic from another node of the process, which subscribes to it for all."""
        self._ends.append(shared.subscribe(kind, self._node.resolve_topic_name(topic), take))

    def subscribe_latched_info(self, callback: Callable[[CameraInfo], None]) -> None:
        """Subscribe also to a camera_info that is published once, transient local.

        This is done at most once, and only if there is such a publisher: any other publisher would
        cause a warning of incompatible QoS.
        """
        if self._latched:
            return
        topic = self._node.resolve_topic_name("camera_info")
        kept = DurabilityPolicy.TRANSIENT_LOCAL
        publishers = self._node.get_publishers_info_by_topic(topic)
        if not any(item.qos_profile.durability == kept for item in publishers):
            return
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=kept)
        subscription = self._node.create_subscription(CameraInfo, "camera_info", callback, qos)
        self._ends.append(partial(self._node.destroy_subscription, subscription))
        self._latched = True

    def close(self) -> None:
        """End all subscriptions, the last one first, even if ending one of them raises."""
        with ExitStack() as steps:
            for end in self._ends:
                steps.callback(end)
            self._ends = []
