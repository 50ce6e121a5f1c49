# SPDX-License-Identifier: Apache-2.0
"""Detection of common mistakes in a LiDAR's pose: inverted, in other axes, or with the components
of its quaternion in another order.

A LiDAR that scans 360 degrees has points in the image with many wrong poses, namely points beside
or behind the robot, and a fit through them looks like any other. But a network knows which of two
pixels is nearer, and it agrees with the points best if these are projected with the right pose.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from depth_node.frame import FrameInput
from depth_node.geometry.rigid import FloatArray, invert_rigid
from depth_node.geometry.sparse_depth import ProjectionConfig, SparseDepth, project_points
from depth_node.prediction import Prediction

_FRAMES = 8  # frames that decide
_MOST_POSES = 20  # if the pose changes more often, the LiDAR moves relative to the camera
_APART_NS = 250_000_000  # between two images that are used
_FEWEST = 50  # points in the image
_MOST = 8000  # points of a scan that are used
_AGREES = 0.8  # least rank correlation of a correct pose, which was 0.82 to 0.98
_BETTER = 0.1  # least margin over the stated pose; a wrong one had -1 to 0.69
_SMALL_TURN_RAD = 0.35  # mistakes that rotate the pose by less than this are not tested
_ALL = ProjectionConfig(drop_occluded=False)

# Body axes (x forward, y left, z up) to optical ones (x right, y down, z forward).
_OPTICAL_FROM_BODY = np.eye(4)
_OPTICAL_FROM_BODY[:3, :3] = [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]

Pose = npt.NDArray[np.float64]


def usual_mistakes(T_camera_lidar: Pose) -> dict[str, Pose]:
    """Return for each mistake that a pose (4, 4) may contain the pose without this mistake."""

    def rotated_by(quaternion_xyzw: npt.NDArray[np.float64]) -> Pose:
        T = T_camera_lidar.copy()
        T[:3, :3] = Rotation.from_quat(quaternion_xyzw).as_matrix()
        return T

    quaternion = Rotation.from_matrix(T_camera_lidar[:3, :3]).as_quat()
    order = "has the numbers of its quaternion in another order than x, y, z, w"
    mistakes = {
        "is inverted, that of the camera in the LiDAR's frame": invert_rigid(T_camera_lidar),
        "is that of a camera frame with body axes (x forward), not the optical frame":
            _OPTICAL_FROM_BODY @ T_camera_lidar,
        "is that of a LiDAR with optical axes (z forward), not z up":
            T_camera_lidar @ _OPTICAL_FROM_BODY,
        order: rotated_by(np.roll(quaternion, -1)),
        f"{order} (w, x, y, z)": rotated_by(np.roll(quaternion, 1)),
    }  # fmt: skip
    return {
        mistake: T
        for mistake, T in mistakes.items()
        if _turned_by(T_camera_lidar[:3, :3].T @ T[:3, :3]) > _SMALL_TURN_RAD
    }


class MistakenPose:
    """Judges a LiDAR's pose by its first frames; `sentence` then says what was found, or is "".

    In rendered rooms (LiDAR of 16 lines over 360 degrees, embedded network) the right pose has the
    highest median of some views among these poses, whichever of them is stated.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all frames and begin again."""
        self.sentence = ""
        self._T: Pose | None = None
        self._poses = 0
        self._agreement: list[dict[str, float]] = []
        self._last_ns: int | None = None

    def look(self, frame: FrameInput, prediction: Prediction) -> None:
        """Take a frame and the network's prediction for it.

        Of several LiDARs the one with the most points is used. Once _FRAMES have been used, nothing
        is computed until the stated pose changes, and nothing more for a LiDAR that moves relative
        to the camera.
        """
        points, T = _most_points(frame)
        if points is None or T is None:
            return
        if self._T is None or not np.array_equal(self._T, T):
            self.sentence, self._T, self._agreement = "", T, []
            self._poses += 1
        if len(self._agreement) >= _FRAMES or self._poses > _MOST_POSES:
            return
        now_ns, last_ns = frame.stamp_ns, self._last_ns
        if now_ns is not None and last_ns is not None and abs(now_ns - last_ns) < _APART_NS:
            return
        self._last_ns = now_ns
        some = points[:: 1 + len(points) // _MOST]
        agreement = {
            mistake: _agreement(prediction.nearness, project_points(some, pose, frame.camera, _ALL))
            for mistake, pose in {"": T, **usual_mistakes(T)}.items()
        }
        if max(agreement.values()) > -1:
            self._agreement.append(agreement)
            if len(self._agreement) == _FRAMES:
                self.sentence = _judged(self._agreement)


def _most_points(frame: FrameInput) -> tuple[FloatArray | None, Pose | None]:
    """Return the points (N, 3), m, and the stated pose (4, 4) of the LiDAR with the most points."""
    if not frame.sources:
        return frame.points, frame.T_camera_lidar
    most = max(frame.sources, key=lambda source: len(source.points))
    return most.points, most.T_camera_lidar


def _judged(agreement: list[dict[str, float]]) -> str:
    """Return the sentence on the mistake that fits best, or "" if the stated pose may be right.

    agreement: the rank correlation of each frame by mistake, with "" for the stated pose.
    """
    median = {
        mistake: float(np.median([one[mistake] for one in agreement])) for mistake in agreement[0]
    }
    stated = median.pop("")
    mistake = max(median, key=lambda name: median[name], default="")
    if not mistake or not median[mistake] > max(_AGREES, stated + _BETTER):
        return ""
    as_it_is = f"by {stated:.2f} as it is" if stated > -1 else "not at all as it is"
    return (
        f"the pose of the LiDAR looks wrong: network and points agree {as_it_is} (rank"
        f" correlation), by {median[mistake]:.2f} if it {mistake}; correct T_camera_lidar, which"
        " maps LiDAR coordinates into the camera's optical frame, or TF, or all depth is wrong"
    )


def _turned_by(rotation: npt.NDArray[np.float64]) -> float:
    """Return the angle, rad, of a rotation matrix (3, 3)."""
    return float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))


def _agreement(nearness: npt.NDArray[np.floating], points: SparseDepth) -> float:
    """Return the rank correlation of nearness (H, W) and 1 / depth at the points; -1 if too few."""
    near = nearness[points.rows, points.cols]
    known = np.isfinite(near)
    near, away = near[known], points.depth[known]
    if len(near) < _FEWEST:
        return -1.0
    if np.ptp(near) == 0 or np.ptp(away) == 0:
        return 0.0
    return -float(spearmanr(near, away)[0])
