# SPDX-License-Identifier: Apache-2.0
"""Whether the pose of a LiDAR was given the wrong way round: T_lidar_camera for T_camera_lidar.

A LiDAR that looks all around has points in the image with the inverse too, those beside the robot,
and a fit through them looks like any other. But a network knows which of two pixels is nearer, and
agrees with the points of one of the two poses far better.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from depth_node.frame import FrameInput
from depth_node.geometry.rigid import FloatArray, invert_rigid
from depth_node.geometry.sparse_depth import ProjectionConfig, SparseDepth, project_points
from depth_node.prediction import Prediction

_FRAMES = 8  # that decide
_APART_NS = 250_000_000  # of one image and the next that is looked at
_FEWEST = 50  # points in the image
_MOST = 20_000  # points of a scan
_AGREES = 0.8  # rank correlation of nearness and points with the right pose: .82 to .97
_BETTER = 0.1  # than with the other pose, whose correlation is -.8 to .86
_SMALL_TURN_RAD = 0.35  # a pose that is almost its own inverse
_ALL = ProjectionConfig(drop_occluded=False)


class InvertedPose:
    """Judges the first frames of one LiDAR pose; `sentence` then says what was found, or "".

    From rendered rooms with a LiDAR of 16 lines that looks all around and the embedded network: of
    16 views each, none with the right pose and half to all with the inverse are beyond the limits,
    so the median of some decides.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Judge anew."""
        self.sentence = ""
        self._T: npt.NDArray[np.float64] | None = None
        self._agreement: list[tuple[float, float]] = []
        self._last_ns: int | None = None

    def look(self, frame: FrameInput, prediction: Prediction) -> None:
        """A frame and what the network says of it; of several LiDARs the one with most points.

        Costs nothing once _FRAMES have been looked at, until the stated pose is another one.
        """
        points, T = _most_points(frame)
        if points is None or T is None:
            return
        if self._T is None or not np.array_equal(self._T, T):
            self.forget()
            self._T = T
        if len(self._agreement) >= _FRAMES or turned_by(T @ T) < _SMALL_TURN_RAD:
            return
        now_ns, last_ns = frame.stamp_ns, self._last_ns
        if now_ns is not None and last_ns is not None and abs(now_ns - last_ns) < _APART_NS:
            return
        self._last_ns = now_ns
        some = points[:: 1 + len(points) // _MOST]
        stated, inverse = (
            _agreement(prediction.nearness, project_points(some, pose, frame.camera, _ALL))
            for pose in (T, invert_rigid(T))
        )
        if np.isnan(inverse):
            return
        self._agreement.append((stated, inverse))
        if len(self._agreement) == _FRAMES:
            self.sentence = _judged(self._agreement)


def _most_points(
    frame: FrameInput,
) -> tuple[FloatArray | None, npt.NDArray[np.float64] | None]:
    """(N, 3) m and the stated pose (4, 4) of one LiDAR."""
    if not frame.sources:
        return frame.points, frame.T_camera_lidar
    most = max(frame.sources, key=lambda source: len(source.points))
    return most.points, most.T_camera_lidar


def _judged(agreement: list[tuple[float, float]]) -> str:
    stated, inverse = np.median(np.nan_to_num(np.array(agreement), nan=-1.0), axis=0)
    if not (inverse > _AGREES and inverse > stated + _BETTER):
        return ""
    return (
        f"the pose of the LiDAR looks inverted: network and points agree by {inverse:.2f} (rank"
        f" correlation) if it is turned round, by {stated:.2f} as it is; T_camera_lidar maps LiDAR"
        " coordinates into the camera's optical frame, and in TF the parent is where the child is"
        " told: give the inverse, or depth is wrong"
    )


def turned_by(T: npt.NDArray[np.float64]) -> float:
    """The angle in rad by which a pose (4, 4) turns."""
    return float(np.arccos(np.clip((np.trace(T[:3, :3]) - 1) / 2, -1, 1)))


def _agreement(nearness: npt.NDArray[np.floating], points: SparseDepth) -> float:
    """Rank correlation of what the network says (H, W) and 1 / depth at the points; NaN of few."""
    near = nearness[points.rows, points.cols]
    known = np.isfinite(near)
    if np.count_nonzero(known) < _FEWEST:
        return float("nan")
    near, away = near[known], points.depth[known]
    if np.ptp(near) == 0 or np.ptp(away) == 0:
        return float("nan")
    return -float(spearmanr(near, away)[0])
