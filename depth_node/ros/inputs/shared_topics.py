# SPDX-License-Identifier: Apache-2.0
"""LiDAR topics shared by several nodes of a process: each message is received and read once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions

from depth_node.ros.inputs.lidar import UnreadScan
from depth_node.ros.process.guarded_node import GuardedNode

Receiver: TypeAlias = Callable[[UnreadScan], None]


class SharedTopics:
    """Subscribes once to each topic for several receivers, which run in the thread of its node."""

    def __init__(self, node: GuardedNode) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._receivers: dict[tuple[type, str], dict[int, Receiver]] = {}
        self._subscriptions: dict[tuple[type, str], Any] = {}
        self._count = 0

    def subscribe(self, kind: type, topic: str, receive: Receiver) -> Callable[[], None]:
        """Add a receiver for all messages of a topic (its full name); return what removes it again.

        An exception of a receiver is reported, and the others still get the message.
        """
        key = (kind, topic)
        with self._lock:
            if key not in self._subscriptions:
                self._receivers[key] = {}  # before a message can come
                self._subscriptions[key] = self._node.create_subscription(
                    kind,
                    topic,
                    lambda message: self._hand_on(key, message),
                    copy.copy(qos_profile_sensor_data),  # rclpy writes overrides into it
                    qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                )
            self._count += 1
            number = self._count
            self._receivers[key][number] = receive
        return lambda: self._unsubscribe(key, number)

    def _unsubscribe(self, key: tuple[type, str], number: int) -> None:
        with self._lock:
            self._receivers[key].pop(number, None)
            if not self._receivers[key] and key in self._subscriptions:
                self._node.destroy_subscription(self._subscriptions.pop(key))

    def _hand_on(self, key: tuple[type, str], message: Any) -> None:
        with self._lock:
            receivers = list(self._receivers[key].values())
        scan = UnreadScan(message)
        for receive in receivers:
            try:
                receive(scan)
            except Exception as error:  # a camera that is faulty or being closed
                self._node.report_exception("a LiDAR message for one camera", error)
