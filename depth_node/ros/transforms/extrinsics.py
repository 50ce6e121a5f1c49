# SPDX-License-Identifier: Apache-2.0
"""The pose of the LiDAR relative to the camera, from a parameter or from TF."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from depth_node.ros.messages import brief
from depth_node.ros.transforms.lookup import StaleTransformError, StampedLookup
from depth_node.ros.transforms.tf import NoTransformError, Transform, TransformSource

_FRAMES_NAMED = 5
_LONGEST_ROBOT_M = 25.0


class Extrinsics:
    """Returns T_camera_lidar of a frame, from a fixed matrix or from TF."""

    def __init__(
        self,
        fixed: Transform | None = None,
        source: TransformSource | None = None,
        tolerance_s: float = 0.1,
    ) -> None:
        if fixed is None and source is None:
            raise ValueError("extrinsics need a fixed transform or a source of transforms")
        self._fixed = fixed
        self._lookup = StampedLookup(source, tolerance_s) if source is not None else None

    @property
    def is_fixed(self) -> bool:
        """Whether one matrix applies to every frame."""
        return self._fixed is not None

    def set_tolerance(self, tolerance_s: float) -> None:
        """Set how far from an image's stamp the newest moving transform may be, s."""
        if self._lookup is not None:
            self._lookup.tolerance_s = tolerance_s

    def find(self, camera_frame: str, lidar_frame: str, stamp_ns: int) -> Transform:
        """Return T_camera_lidar (4, 4) at the image's stamp. Raises NoTransformError with cause and
        cure."""
        if self._fixed is not None:
            return self._fixed
        assert self._lookup is not None
        if not camera_frame or not lidar_frame:
            raise NoTransformError(
                f"the image's frame_id is {camera_frame!r} and the points' {lidar_frame!r}: TF"
                " needs both; let the drivers set them or set the parameter T_camera_lidar"
            )
        try:
            return self._lookup.find(camera_frame, lidar_frame, stamp_ns)
        except StaleTransformError as error:
            raise NoTransformError(
                f"the newest transform from {lidar_frame} to {camera_frame} is"
                f" {abs(error.behind_s):.2f} s {'older' if error.behind_s > 0 else 'newer'} than"
                " the image, and TF has none for its time: check what publishes it and the clocks,"
                " or raise tf_tolerance_s"
            ) from error
        except NoTransformError as error:
            raise NoTransformError(
                f"TF has no transform from {lidar_frame} to {camera_frame} ({error}): start what"
                " publishes it or set the parameter T_camera_lidar"
            ) from error

    def forget(self) -> None:
        """Look static transforms up again, after a new calibration for instance."""
        if self._lookup is not None:
            self._lookup.forget()

    def close(self) -> None:
        """End the hold on the source of transforms."""
        if self._lookup is not None:
            self._lookup.close()


def one_pose_for_all(frames: Sequence[str], cure: str) -> str:
    """Return the warning that one matrix is used for sensors of several frames."""
    named = ", ".join(repr(brief(frame)) for frame in frames[:_FRAMES_NAMED])
    return (
        f"T_camera_lidar is set and applies to points of all frames ({named}), but several sensors"
        f" cannot have one pose: {cure}, or use one LiDAR alone"
    )


def far_apart(T_camera_lidar: npt.NDArray[np.float64], lidar_frame: str) -> str:
    """Return a sentence if the LiDAR is farther from the camera than a robot is long; or ""."""
    away_m = float(np.linalg.norm(T_camera_lidar[:3, 3]))
    if not away_m > _LONGEST_ROBOT_M:
        return ""
    return (
        f"the LiDAR (frame {lidar_frame!r}) is {away_m:.4g} m from the camera, by T_camera_lidar or"
        " TF: if these are millimetres all depth is wrong; give transforms in metres"
    )
