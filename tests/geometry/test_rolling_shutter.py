# SPDX-License-Identifier: Apache-2.0
"""rolling_shutter: points of a moving LiDAR, at the time of the image row that sees them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import invert_rigid, rigid_transform, transform
from depth_node.geometry.rolling_shutter import RollingShutter

STAMP_NS, READOUT_S = 5_000_000_000, 0.03
CAMERA = Camera(640, 480, 500.0, 500.0, 319.5, 239.5)
WIDE = Camera(640, 480, 250.0, 250.0, 319.5, 239.5, "equidistant", (0.02, -0.01, 0.0, 0.0))
T_CAMERA_LIDAR = rigid_transform(
    (0.1, -0.2, 0.3), Rotation.from_euler("xyz", (80, 10, 95), True).as_quat()
)
AXES = {"yaw": (0, 1.0, 0), "pitch": (1.0, 0, 0), "roll": (0, 0, 1.0), "all": (0.5, 0.7, 0.5)}


def since(turn_rad_s: tuple[float, ...], speed_m_s: float) -> Callable[[int], np.ndarray]:
    """Return T_now_then of a camera that turns and drives along its axis."""

    def pose(then_ns: int) -> np.ndarray:
        time_s = (then_ns - STAMP_NS) * 1e-9
        turn = Rotation.from_rotvec(np.array(turn_rad_s) * time_s)
        return rigid_transform((0.0, 0.0, speed_m_s * time_s), turn.as_quat())

    return pose


@pytest.mark.parametrize("camera", [CAMERA, WIDE], ids=["pinhole", "fisheye"])
@pytest.mark.parametrize("axis", AXES)
def test_each_point_lands_where_its_row_sees_it(axis: str, camera: Camera) -> None:
    """The points are constructed from the expected pixels: ray and depth at the row's time."""
    rng = np.random.default_rng(1)
    rows, cols = rng.integers(5, 475, 3000), rng.integers(5, 635, 3000)
    depth = rng.uniform(1.5, 50.0, 3000)
    in_row = camera.rays()[rows, cols] * depth[:, None]
    motion = since(AXES[axis], 10.0)
    now = np.empty_like(in_row)
    for i, row in enumerate(rows):
        then_ns = STAMP_NS + round(1e9 * READOUT_S * row / 479)
        now[i] = transform(motion(then_ns), in_row[i][None])[0]
    points = transform(invert_rigid(T_CAMERA_LIDAR), now).astype(np.float32)
    seen = RollingShutter(camera, READOUT_S).seen(points, T_CAMERA_LIDAR, STAMP_NS, motion)
    in_camera = transform(T_CAMERA_LIDAR, seen)
    off = np.linalg.norm(camera.project(in_camera) - np.stack([cols, rows], axis=1), axis=1)
    ahead = now[:, 2] > 0
    assert off[ahead].max() < 0.25
    np.testing.assert_allclose(in_camera[ahead, 2], depth[ahead], rtol=2e-4, atol=1e-3)
    at_once = camera.project(now[ahead]) - np.stack([cols, rows], axis=1)[ahead]
    assert np.nanmedian(np.linalg.norm(at_once, axis=1)) > 2


def test_what_no_row_sees_stays() -> None:
    """Points behind the camera and points that are not finite."""
    points = np.array([[0, 0, -5], [np.nan, 0, 5], [0, 0, 5]], np.float32)
    seen = RollingShutter(CAMERA, READOUT_S).seen(
        points, np.eye(4), STAMP_NS, since(AXES["yaw"], 10.0)
    )
    np.testing.assert_array_equal(seen[:2], points[:2])
    assert np.linalg.norm(seen[2] - points[2]) > 0.1
    none = RollingShutter(CAMERA, READOUT_S).seen(
        points[:1], np.eye(4), STAMP_NS, since(AXES["yaw"], 10.0)
    )
    np.testing.assert_array_equal(none, points[:1])


def test_a_motion_that_is_not_known_is_an_error() -> None:
    def lost(then_ns: int) -> np.ndarray:
        raise LookupError("no TF")

    with pytest.raises(LookupError):
        RollingShutter(CAMERA, READOUT_S).seen(
            np.array([[0, 0, 1]], np.float32), np.eye(4), STAMP_NS, lost
        )
