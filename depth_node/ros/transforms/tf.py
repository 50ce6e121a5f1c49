# SPDX-License-Identifier: Apache-2.0
"""TF: one buffer and one listener for everything in the process that needs transforms."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import rigid_transform
from depth_node.sentences import one_line

if TYPE_CHECKING:
    from rclpy.node import Node

Transform: TypeAlias = npt.NDArray[np.float64]

INSTALL_TF = "install tf2_ros (apt install ros-$ROS_DISTRO-tf2-ros-py)"
_JUMP_NS = 500_000_000  # a frame's stamps that go back by less are two publishers or a late message


class NoTransformError(LookupError):
    """TF has no such transform, or none for that time; the message says why."""


class TransformSource(Protocol):
    """The part of a TF buffer that is needed here."""

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        """Return T_target_source at a time (None: the newest) and its stamp in ns.

        The stamp of the newest is 0 if every link of the chain is static. Raises NoTransformError.
        """

    def forget_moving(self) -> None:
        """Forget the moving transforms of the time before a jump back (a bag that loops)."""

    def close(self) -> None:
        """Stop listening."""


class TfSource:
    """The TransformSource of a running system. Raises ImportError where tf2_ros is absent."""

    def __init__(self, node: Node) -> None:
        import tf2_ros
        from rclpy.time import Time

        self._time = Time
        self._error = tf2_ros.TransformException
        self._jumps = _Jumps()
        self._buffer = _watched_buffer(tf2_ros.Buffer, self._jumps)
        self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        """See TransformSource."""
        try:
            # Time 0 asks tf2 for the newest transform common to the chain.
            found = self._buffer.lookup_transform(
                target.lstrip("/"),  # tf2 refuses the leading slash of ROS 1
                source.lstrip("/"),
                self._time(nanoseconds=stamp_ns or 0),
            )
            move, turn = found.transform.translation, found.transform.rotation
            T = rigid_transform((move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w))
        except (self._error, ValueError, TypeError, OverflowError) as error:
            # tf2's own, and those of a stamp before 1970 or of an invalid frame or quaternion
            raise NoTransformError(one_line(error, 300)) from error
        stamp = found.header.stamp
        return T, stamp.sec * 1_000_000_000 + stamp.nanosec

    def forget_moving(self) -> None:
        """Clear moving transforms as soon as the stamps on /tf have gone back too, now or later.

        tf2 ignores transforms that are ten seconds older than its newest, so it must be cleared
        after a jump back. A camera whose own stamps jump, or that is reset, must not remove the
        transforms of the others: without a jump on /tf nothing is cleared.
        """
        if self._jumps.ask():
            self._buffer.clear()  # static transforms stay

    def close(self) -> None:
        """Unsubscribe from /tf and /tf_static."""
        self._listener.unregister()


class SharedTransforms:
    """One TransformSource for several users: opened for the first, closed with the last."""

    def __init__(self, open_source: Callable[[], TransformSource]) -> None:
        self._open = open_source
        self._lock = threading.Lock()
        self._source: TransformSource | None = None
        self._users = 0

    def join(self) -> TransformSource:
        """Return the source for one more user, which closes it when it needs no more transforms.

        Raises what opening the source raises; nothing is held then.
        """
        with self._lock:
            if self._source is None:
                self._source = self._open()
            self._users += 1
            return _User(self._source, self._leave)

    def forget_moving(self) -> None:
        """See TransformSource; nothing is done where nobody needs transforms."""
        with self._lock:
            source = self._source
        if source is not None:
            source.forget_moving()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            source, self._source = self._source, None
            if source is not None:
                source.close()


class _User:
    """One user's hold on a shared source. Lookups still work after close, for a frame at work."""

    def __init__(self, source: TransformSource, leave: Callable[[], None]) -> None:
        self.lookup = source.lookup
        self.forget_moving = source.forget_moving
        self._leave: Callable[[], None] | None = leave

    def close(self) -> None:
        """Give up the hold; a second call does nothing."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class _Jumps:
    """Decides when the moving transforms of a buffer belong to a time that is over.

    Both must have happened, in either order: somebody asked, and the stamps of a frame on /tf went
    back by more than _JUMP_NS.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # /tf comes in one thread, who asks is in another
        self._newest_ns: dict[str, int] = {}  # by child frame
        self._behind: set[str] = set()  # child frames whose stamps went back
        self._asked = False

    def ask(self) -> bool:
        """Whether to clear the buffer now; otherwise the next jump on /tf clears it."""
        with self._lock:
            if self._behind:
                self._begin()
                return True
            self._asked = True
            return False

    def came(self, child: str, stamp_ns: int) -> bool:
        """Whether to clear the buffer before it takes this transform."""
        with self._lock:
            newest_ns = self._newest_ns.get(child, stamp_ns)
            if stamp_ns >= newest_ns - _JUMP_NS:
                self._newest_ns[child] = max(newest_ns, stamp_ns)
                self._behind.discard(child)
                return False
            if not self._asked:
                self._behind.add(child)
                return False
            self._begin()
            self._newest_ns[child] = stamp_ns
            return True

    def _begin(self) -> None:
        self._newest_ns.clear()
        self._behind.clear()
        self._asked = False


def _watched_buffer(kind: Any, jumps: _Jumps) -> Any:
    """A tf2_ros.Buffer that clears itself at a jump back of /tf that was asked about."""

    class WatchedBuffer(kind):
        def set_transform(self, transform: Any, authority: str) -> Any:
            stamp = transform.header.stamp
            if jumps.came(transform.child_frame_id, stamp.sec * 1_000_000_000 + stamp.nanosec):
                self.clear()
            return super().set_transform(transform, authority)

    return WatchedBuffer()
