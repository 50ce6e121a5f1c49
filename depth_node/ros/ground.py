# SPDX-License-Identifier: Apache-2.0
"""Where the ground is below the camera, by TF or by parameters, and what stands on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from depth_node.geometry.camera import Camera
from depth_node.obstacles import ObstacleConfig, ObstacleFinder, Obstacles
from depth_node.pipeline import DepthResult
from depth_node.ros.extrinsics import NoTransformError, Transform, TransformSource


@dataclass(frozen=True)
class ObstacleView:
    """The obstacles of one image. base_frame: of the TF that told the ground, "" of parameters."""

    obstacles: Obstacles
    base_frame: str
    max_range_m: float


class Ground:
    """Finds the obstacles of results. source: of TF, where config.base_frame is given.

    warn: is told, by kind and sentence, why there are none.
    """

    def __init__(
        self,
        config: ObstacleConfig,
        source: TransformSource | None,
        tolerance_s: float,
        warn: Callable[[str, str], None],
    ) -> None:
        self._config, self._source, self._warn = config, source, warn
        self._tolerance_s = tolerance_s
        self._finder = ObstacleFinder()
        self._static: dict[str, Transform] = {}

    def view(
        self, result: DepthResult, camera: Camera, frame: str, stamp_ns: int
    ) -> ObstacleView | None:
        """What stands on the ground in an image of this TF frame; None where nobody knows where
        the ground is."""
        T_base_camera, base_frame = self._config.fixed_ground(), ""
        if self._source is not None:
            try:
                T_base_camera, base_frame = self._by_tf(frame, stamp_ns), self._config.base_frame
            except NoTransformError as error:
                self._warn("ground", str(error))
        elif T_base_camera is None:
            self._warn(
                "ground",
                "nobody knows where the ground is, so there are no obstacles: set"
                " obstacles.base_frame, or obstacles.camera_height_m and camera_pitch_deg",
            )
        if T_base_camera is None:
            return None
        found = self._finder.find(
            result.gates,
            camera,
            T_base_camera,
            self._config,
            result.sparse,
            result.fit.point_inlier,
        )
        return ObstacleView(found, base_frame, self._config.max_range_m)

    def forget(self) -> None:
        """Look static transforms up again."""
        self._static.clear()

    def close(self) -> None:
        """Stop listening to TF."""
        if self._source is not None:
            self._source.close()

    def _by_tf(self, frame: str, stamp_ns: int) -> Transform:
        """T_base_camera (4, 4). Raises NoTransformError with cause and cure."""
        assert self._source is not None
        base = self._config.base_frame
        if frame in self._static:
            return self._static[frame]
        try:
            newest, newest_ns = self._source.lookup(base, frame, None)
            if newest_ns == 0:
                self._static[frame] = newest
                return newest
            try:
                return self._source.lookup(base, frame, stamp_ns)[0]
            except NoTransformError:
                if abs(stamp_ns - newest_ns) * 1e-9 <= self._tolerance_s:
                    return newest
                raise
        except NoTransformError as error:
            raise NoTransformError(
                f"TF does not tell where the ground is, from {frame or 'an image without frame_id'}"
                f" to {base} ({error}): start what publishes it, or set obstacles.base_frame"
            ) from error
