# SPDX-License-Identifier: Apache-2.0
"""The ground below the camera, from TF or parameters, and the obstacles on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from depth_node.geometry.camera import Camera
from depth_node.obstacles import ObstacleConfig, ObstacleFinder, Obstacles, ground_below
from depth_node.pipeline import DepthResult
from depth_node.ros.transforms.lookup import StampedLookup
from depth_node.ros.transforms.tf import NoTransformError, Transform, TransformSource

_GROUND_LOOKS = 15  # images by which the height of the ground is judged
_LARGEST_TRAVEL_M = 1.5  # of a camera within its robot, on a mast or an arm that turns


@dataclass(frozen=True)
class ObstacleView:
    """The obstacles of one image. base_frame: the TF frame of the ground, "" if from parameters."""

    obstacles: Obstacles
    base_frame: str
    max_range_m: float


class Ground:
    """Finds the obstacles of results. source: TF, if config.base_frame is given.

    warn: is called with kind and sentence if there are none, and why.
    """

    def __init__(
        self,
        config: ObstacleConfig,
        source: TransformSource | None,
        tolerance_s: float,
        warn: Callable[[str, str], None],
    ) -> None:
        self._config, self._warn = config, warn
        self._lookup = StampedLookup(source, tolerance_s) if source is not None else None
        self._finder = ObstacleFinder()
        self._below_m: list[float] = []
        self._low_ground = ""
        self._first: npt.NDArray[np.float64] | None = None  # (2,) first position over the ground, m

    def view(
        self, result: DepthResult, camera: Camera, frame: str, stamp_ns: int
    ) -> ObstacleView | None:
        """Return the obstacles of an image with this TF frame; None if the ground is not known."""
        T_base_camera, base_frame = self._config.fixed_ground(), ""
        if self._lookup is not None:
            try:
                T_base_camera = self._by_tf(self._lookup, frame, stamp_ns)
                base_frame = self._config.base_frame
            except NoTransformError as error:
                self._warn("ground", str(error))
        elif T_base_camera is None:
            self._warn(
                "ground",
                "the position of the ground is unknown, so there are no obstacles: set"
                " obstacles.base_frame, or obstacles.camera_height_m and camera_pitch_deg",
            )
        if T_base_camera is None:
            return None
        self._look_at(T_base_camera, base_frame)
        if len(self._below_m) < _GROUND_LOOKS:
            self.look_below(ground_below(result.sparse, camera, T_base_camera), base_frame)
        if self._low_ground:
            self._warn("low ground", self._low_ground)
        found = self._finder.find(
            result.gates,
            camera,
            T_base_camera,
            self._config,
            result.sparse,
            result.fit.point_inlier,
        )
        return ObstacleView(found, base_frame, self._config.max_range_m)

    def _look_at(self, T_base_camera: Transform, base_frame: str) -> None:
        """Warn if the camera travels within its base frame: it is then a fixed one such as odom."""
        here = T_base_camera[:2, 3]
        self._first = here if self._first is None else self._first
        away_m = float(np.hypot(*(here - self._first)))
        if base_frame and away_m > _LARGEST_TRAVEL_M:
            self._warn(
                "base frame",
                f"the camera has moved by {away_m:.1f} m in obstacles.base_frame {base_frame!r}, so"
                " this frame does not move with the robot, and obstacles are searched in the wrong"
                " place: use one on the ground that does, such as base_footprint",
            )

    def look_below(self, below_m: float, base_frame: str) -> None:
        """Judge whether the ground is measured below the expected one, by the median of the first
        images.

        below_m: of one image, as ground_below() returns it; NaN is ignored.
        """
        if np.isnan(below_m):
            return
        self._below_m.append(below_m)
        usual_m = float(np.median(self._below_m))
        if len(self._below_m) < _GROUND_LOOKS or usual_m == 0:
            return
        place = (
            f"obstacles.base_frame {base_frame!r}, so anything lower than that is no obstacle:"
            " use the frame on the ground, such as base_footprint"
            if base_frame
            else "where obstacles.camera_height_m and camera_pitch_deg put it, so anything lower"
            " than that is no obstacle: correct them"
        )
        self._low_ground = f"the ground is seen {usual_m:.2f} m below {place}"

    def forget(self) -> None:
        """Look static transforms up again, and judge the ground's height anew."""
        if self._lookup is not None:
            self._lookup.forget()
        self._below_m.clear()
        self._low_ground = ""
        self._first = None

    def close(self) -> None:
        """End the hold on the source of transforms."""
        if self._lookup is not None:
            self._lookup.close()

    def _by_tf(self, lookup: StampedLookup, frame: str, stamp_ns: int) -> Transform:
        """T_base_camera (4, 4). Raises NoTransformError with cause and cure."""
        base = self._config.base_frame
        try:
            return lookup.find(base, frame, stamp_ns)
        except NoTransformError as error:
            raise NoTransformError(
                f"TF does not tell where the ground is, from {frame or 'an image without frame_id'}"
                f" to {base} ({error}): start what publishes it, or set obstacles.base_frame"
            ) from error
