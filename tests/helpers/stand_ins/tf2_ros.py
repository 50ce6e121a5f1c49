# SPDX-License-Identifier: Apache-2.0
"""tf2_ros as far as the node uses it, for machines where no wheel has it (put on PYTHONPATH).

The transforms come as TransformStamped, one a message, on /tf and /tf_static: tf2_msgs has no
wheel either. As in tf2 a moving transform is known for the last ten seconds, and one that is older
than those is ignored, until somebody clears the buffer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import TransformStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from scipy.spatial.transform import Rotation

from depth_node.geometry.rigid import rigid_transform
from depth_node.geometry.transform_tree import TransformError, TransformTree

_CACHE_NS = 10_000_000_000


class TransformException(Exception):  # noqa: N818 - tf2's name
    pass


class Buffer:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moving: dict[str, dict[int, tuple[str, Any]]] = {}
        self._newest: dict[str, int] = {}
        self._static: dict[str, tuple[str, Any]] = {}

    def set_transform(self, message: TransformStamped, authority: str) -> None:
        parent, child, T = _link(message)
        stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
        with self._lock:
            times = self._moving.setdefault(child, {})
            newest = max(stamp, self._newest.get(child, stamp))
            if stamp < newest - _CACHE_NS:
                return
            times[stamp], self._newest[child] = (parent, T), newest
            while (oldest := next(iter(times))) < newest - _CACHE_NS:  # as they came
                del times[oldest]

    def set_transform_static(self, message: TransformStamped, authority: str) -> None:
        parent, child, T = _link(message)
        with self._lock:
            self._static[child] = (parent, T)

    def clear(self) -> None:
        """Forget moving transforms; static ones stay, as in tf2."""
        with self._lock:
            self._moving.clear()
            self._newest.clear()

    def lookup_transform(self, target: str, source: str, time: Time) -> TransformStamped:
        if target.startswith("/") or source.startswith("/"):
            raise TransformException("in tf2 frame_ids cannot start with a '/'")
        tree, newest = TransformTree(tolerance_s=0.0), []
        with self._lock:
            chains = {name: self._parents(name) for name in (target, source)}
            shared = set(chains[target]) & set(chains[source])
            for child in (set(chains[target]) | set(chains[source])) - shared:
                if child in self._static:
                    tree.add(*(self._static[child][0], child, self._static[child][1]))
                for stamp, (parent, T) in sorted(self._moving.get(child, {}).items()):
                    tree.add(parent, child, T, stamp)
                if child in self._moving and child not in self._static:
                    newest.append(max(self._moving[child], default=0))
        stamp = time.nanoseconds or min(newest, default=0)
        try:
            T = tree.look_up(target, source, stamp)
        except TransformError as error:
            raise TransformException(str(error)) from error
        found = TransformStamped()
        found.header.stamp = Time(nanoseconds=stamp if newest else 0).to_msg()
        turn, move = found.transform.rotation, found.transform.translation
        turn.x, turn.y, turn.z, turn.w = map(float, Rotation.from_matrix(T[:3, :3]).as_quat())
        move.x, move.y, move.z = map(float, T[:3, 3])
        return found

    def _parents(self, frame: str) -> list[str]:
        chain = [frame]
        while True:
            if chain[-1] in self._static:
                parent = self._static[chain[-1]][0]
            elif self._moving.get(chain[-1]):
                times = self._moving[chain[-1]]
                parent = times[max(times)][0]
            else:
                return chain
            if parent in chain:
                raise TransformException(f"the transforms go round in a circle at {parent}")
            chain.append(parent)


def _link(message: TransformStamped) -> tuple[str, str, Any]:
    move, turn = message.transform.translation, message.transform.rotation
    T = rigid_transform((move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w))
    parent, child = message.header.frame_id, message.child_frame_id
    if not parent or not child or parent == child:
        raise ValueError("a transform needs two frames")
    return parent, child, T


class TransformListener:
    def __init__(self, buffer: Buffer, node: Any, spin_thread: bool = False) -> None:
        self._node = node
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._subscriptions = [
            node.create_subscription(
                TransformStamped, "/tf", self._take(buffer.set_transform), 100
            ),
            node.create_subscription(
                TransformStamped, "/tf_static", self._take(buffer.set_transform_static), latched
            ),
        ]

    def _take(self, keep: Callable[[TransformStamped, str], None]) -> Any:
        def callback(message: TransformStamped) -> None:
            try:
                keep(message, "default_authority")
            except ValueError:  # tf2 leaves out what is no transform, too
                self._node.get_logger().warning("a transform that is none was left out", once=True)

        return callback

    def unregister(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
