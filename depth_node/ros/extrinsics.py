# SPDX-License-Identifier: Apache-2.0
"""Where the LiDAR sits relative to the camera: a parameter, or TF."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import rigid_transform
from depth_node.ros.messages import brief
from depth_node.sentences import one_line

if TYPE_CHECKING:
    from rclpy.node import Node

Transform = npt.NDArray[np.float64]

LOOK_AGAIN_S = 1.0
_FRAMES_NAMED = 5
_LONGEST_ROBOT_M = 25.0


class NoTransformError(LookupError):
    """There is no such transform, or not for that time; the message says why."""


class TransformSource(Protocol):
    """A TF buffer as far as it is needed here."""

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        """T_target_source at a time (None: the newest) and the stamp in ns of what was found.

        The stamp of the newest is 0 if every link of the chain is static. Raises NoTransformError.
        """

    def forget_moving(self) -> None:
        """Forget what moves: time has jumped back, as in a bag that loops."""

    def close(self) -> None:
        """Stop listening."""


class Extrinsics:
    """T_camera_lidar of a frame, from a fixed matrix or from a TransformSource.

    A chain of static transforms is kept, also when its publisher is gone later, and looked up anew
    every LOOK_AGAIN_S: whoever calibrates publishes another one.
    A moving one is looked up at the stamp of the image; where TF is late, the newest transform
    serves if it is at most `tolerance_s` away.
    """

    def __init__(
        self,
        fixed: Transform | None = None,
        source: TransformSource | None = None,
        tolerance_s: float = 0.1,
    ) -> None:
        if fixed is None and source is None:
            raise ValueError("extrinsics need a fixed transform or a source of transforms")
        self.tolerance_s = tolerance_s
        self._fixed = fixed
        self._source = source
        self._static: dict[tuple[str, str], tuple[Transform, float]] = {}  # and when it was found

    @property
    def is_fixed(self) -> bool:
        """Whether one matrix holds for every frame."""
        return self._fixed is not None

    def find(self, camera_frame: str, lidar_frame: str, stamp_ns: int) -> Transform:
        """T_camera_lidar for the image's stamp. Raises NoTransformError with cause and cure."""
        if self._fixed is not None:
            return self._fixed
        assert self._source is not None
        key = (camera_frame, lidar_frame)
        kept, found_s = self._static.get(key, (None, 0.0))
        if kept is not None and time.monotonic() - found_s < LOOK_AGAIN_S:
            return kept
        if not camera_frame or not lidar_frame:
            raise NoTransformError(
                f"the image's frame_id is {camera_frame!r} and the points' {lidar_frame!r}: TF"
                " needs both; let the drivers set them or set the parameter T_camera_lidar"
            )
        try:
            newest, newest_ns = self._source.lookup(camera_frame, lidar_frame, None)
        except NoTransformError as error:
            if kept is not None:
                return kept
            raise NoTransformError(
                f"TF has no transform from {lidar_frame} to {camera_frame} ({error}): start what"
                " publishes it or set the parameter T_camera_lidar"
            ) from error
        if newest_ns == 0:
            self._static[key] = newest, time.monotonic()
            return newest
        self._static.pop(key, None)
        try:
            return self._source.lookup(camera_frame, lidar_frame, stamp_ns)[0]
        except NoTransformError as error:
            behind_s = (stamp_ns - newest_ns) * 1e-9
            if abs(behind_s) <= self.tolerance_s:
                return newest
            raise NoTransformError(
                f"the newest transform from {lidar_frame} to {camera_frame} is"
                f" {abs(behind_s):.2f} s {'older' if behind_s > 0 else 'newer'} than the image, and"
                " TF has none for its time: check what publishes it and the clocks, or raise"
                " tf_tolerance_s"
            ) from error

    def forget(self) -> None:
        """Look static transforms up again, after a new calibration for instance."""
        self._static.clear()


class TfSource:
    """The TransformSource of a running system. Raises ImportError where tf2_ros is absent."""

    def __init__(self, node: Node) -> None:
        import tf2_ros
        from rclpy.time import Time

        self._time = Time
        self._error = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node, spin_thread=False)

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        """See TransformSource."""
        try:
            # Time 0 asks tf2 for the newest transform common to the chain.
            found = self._buffer.lookup_transform(
                target.lstrip("/"),  # tf2 refuses what ROS 1 wrote
                source.lstrip("/"),
                self._time(nanoseconds=stamp_ns or 0),
            )
            move, turn = found.transform.translation, found.transform.rotation
            T = rigid_transform((move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w))
        except (self._error, ValueError, TypeError, OverflowError) as error:
            # tf2's own, and what a stamp before 1970, a frame or a quaternion out of order cause
            raise NoTransformError(one_line(error, 300)) from error
        stamp = found.header.stamp
        return T, stamp.sec * 1_000_000_000 + stamp.nanosec

    def forget_moving(self) -> None:
        """See TransformSource. tf2 ignores what is ten seconds older than what it has."""
        self._buffer.clear()  # static transforms stay

    def close(self) -> None:
        """Unsubscribe from /tf and /tf_static."""
        self._listener.unregister()


def one_pose_for_all(frames: Sequence[str], cure: str) -> str:
    """The sentence on LiDARs of several frames of which one matrix tells the pose."""
    named = ", ".join(repr(brief(frame)) for frame in frames[:_FRAMES_NAMED])
    return (
        f"T_camera_lidar is set and applies to points of all frames ({named}), but several sensors"
        f" cannot have one pose: {cure}, or use one LiDAR alone"
    )


def far_apart(T_camera_lidar: npt.NDArray[np.float64], lidar_frame: str) -> str:
    """A sentence if a LiDAR is farther from the camera than a robot is long; or ""."""
    away_m = float(np.linalg.norm(T_camera_lidar[:3, 3]))
    if not away_m > _LONGEST_ROBOT_M:
        return ""
    return (
        f"the LiDAR (frame {lidar_frame!r}) is {away_m:.4g} m from the camera, by T_camera_lidar or"
        " TF: if these are millimetres all depth is wrong; give transforms in metres"
    )
