# SPDX-License-Identifier: Apache-2.0
"""scan_motion: points of a moving LiDAR, moved to the time of an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_node.geometry.rigid import invert_rigid, rigid_transform, transform
from depth_node.geometry.scan_buffer import Scan, ScanBuffer
from depth_node.geometry.scan_motion import ages, moved_scan

T_CAMERA_LIDAR = rigid_transform(
    (0.1, -0.2, 0.3), Rotation.from_euler("xyz", (80, 10, 95), True).as_quat()
)
SCAN_NS, IMAGE_NS = 5_000_000_000, 5_060_000_000


def world_camera(stamp_ns: int, turn_rad_s: float = 1.0, speed_m_s: float = 10.0) -> np.ndarray:
    time_s = stamp_ns * 1e-9
    turn = Rotation.from_rotvec(turn_rad_s * time_s * np.array([0.1, 0.9, 0.2]))
    return rigid_transform((0, 0.1 * time_s, speed_m_s * time_s), turn.as_quat())


def since(now_ns: int, **motion: float) -> Callable[[int], np.ndarray]:
    now = invert_rigid(world_camera(now_ns, **motion))
    return lambda then_ns: now @ world_camera(then_ns, **motion)


def measured(
    count: int = 4000, ends_s: tuple[float, float] = (-0.02, 0.1), **motion: float
) -> tuple[np.ndarray, Scan]:
    """Return world points (N, 3) and a scan of them, each measured from the LiDAR's place then."""
    rng = np.random.default_rng(1)
    offset_s = rng.uniform(*ends_s, count).astype(np.float32)
    world = rng.uniform(-50, 50, (count, 3)) + world_camera(SCAN_NS, **motion)[:3, 3]
    points = np.empty((count, 3), np.float32)
    for i, offset in enumerate(offset_s):
        stamp_ns = SCAN_NS + round(1e9 * float(offset))
        T_lidar_world = invert_rigid(world_camera(stamp_ns, **motion) @ T_CAMERA_LIDAR)
        points[i] = transform(T_lidar_world, world[i])
    return world, Scan(SCAN_NS, points, offset_s)


def test_each_point_is_where_it_was_measured() -> None:
    """At 10 m/s and 1 rad/s; a scan moved as a whole would be half a metre off."""
    world, scan = measured()
    want = transform(invert_rigid(world_camera(IMAGE_NS)), world)
    points, T = moved_scan(scan, T_CAMERA_LIDAR, since(IMAGE_NS))
    np.testing.assert_array_equal(T, T_CAMERA_LIDAR)
    assert np.linalg.norm(transform(T, points) - want, axis=1).max() < 0.01
    whole, T = moved_scan(scan._replace(offset_s=None), T_CAMERA_LIDAR, since(IMAGE_NS))
    assert np.median(np.linalg.norm(transform(T, whole) - want, axis=1)) > 0.5


@pytest.mark.parametrize("ends_s", [(-0.02, 0.1), (0.0, 0.5)])
def test_points_a_tenth_of_a_millisecond_apart_move_apart(ends_s: tuple[float, float]) -> None:
    """At 10 m/s the rounding of times is half a millimetre, even in a scan of half a second."""
    motion = {"turn_rad_s": 0.0, "speed_m_s": 10.0}
    world, scan = measured(ends_s=ends_s, **motion)
    want = transform(invert_rigid(world_camera(IMAGE_NS, **motion)), world)
    points, T = moved_scan(scan, T_CAMERA_LIDAR, since(IMAGE_NS, **motion))
    error = np.linalg.norm(transform(T, points) - want, axis=1)
    assert error.max() == pytest.approx(5e-4, rel=0.08)


def test_a_pose_is_asked_for_every_hundredth_of_a_second() -> None:
    """Each pose is a look-up in TF: more of them cost time, fewer are less exact."""
    _, scan = measured(100, ends_s=(0.0, 0.1))
    asked: list[int] = []

    def counted(then_ns: int) -> np.ndarray:
        asked.append(then_ns)
        return since(IMAGE_NS)(then_ns)

    moved_scan(scan, T_CAMERA_LIDAR, counted)
    assert 0.008 < np.diff(sorted(asked)).max() * 1e-9 <= 0.01


def test_a_fast_turn_between_the_poses() -> None:
    """10 rad/s: the chord between two poses leaves the arc by 1.25 mm at 1 m."""
    world, scan = measured(turn_rad_s=10.0)
    want = transform(invert_rigid(world_camera(IMAGE_NS, turn_rad_s=10.0)), world)
    points, T = moved_scan(scan, T_CAMERA_LIDAR, since(IMAGE_NS, turn_rad_s=10.0))
    distance = np.linalg.norm(want, axis=1)
    error = np.linalg.norm(transform(T, points) - want, axis=1)
    assert (error < 0.003 * distance + 0.01).all()


def test_without_times_all_count_as_measured_at_the_stamp() -> None:
    _, scan = measured(100)
    points, T = moved_scan(scan._replace(offset_s=None), T_CAMERA_LIDAR, since(IMAGE_NS))
    assert points is scan.points
    np.testing.assert_array_equal(T, since(IMAGE_NS)(SCAN_NS) @ T_CAMERA_LIDAR)


def test_where_the_motion_does_not_reach_the_scan_moves_as_one() -> None:
    _, scan = measured(100)

    def late(then_ns: int) -> np.ndarray:
        if then_ns > SCAN_NS + 50_000_000:
            raise LookupError("TF is not that far")
        return since(IMAGE_NS)(then_ns)

    points, T = moved_scan(scan, T_CAMERA_LIDAR, late)
    assert points is scan.points
    np.testing.assert_array_equal(T, since(IMAGE_NS)(SCAN_NS) @ T_CAMERA_LIDAR)


def test_points_that_are_not_finite_stay_so() -> None:
    _, scan = measured(100)
    scan.points[3] = np.nan
    points, _ = moved_scan(scan, T_CAMERA_LIDAR, since(IMAGE_NS))
    assert np.isnan(points[3]).all() and np.isfinite(np.delete(points, 3, 0)).all()


@pytest.mark.parametrize("offsets", [None, np.float32([-0.1, 0.0, 0.05, 0.2])])
def test_ages_are_those_of_the_points(offsets: np.ndarray | None) -> None:
    scan = Scan(SCAN_NS, np.zeros((4, 3), np.float32), offsets)
    want = [0.06] * 4 if offsets is None else [0.16, 0.06, 0.01, 0.14]
    np.testing.assert_allclose(ages(scan, IMAGE_NS), want, atol=1e-6)


def test_parts_of_a_scan_keep_their_times() -> None:
    buffer = ScanBuffer(0.3)
    one, other = np.zeros((2, 3), np.float32), np.ones((3, 3), np.float32)
    buffer.add(SCAN_NS, one, "lidar", np.float32([0.01, 0.02]))
    buffer.add(SCAN_NS, other, "lidar")
    (scan,) = buffer.nearest(IMAGE_NS, "lidar", 0)
    assert len(scan.points) == 5 and scan.offset_s is not None
    np.testing.assert_allclose(scan.offset_s, [0.01, 0.02, 0, 0, 0])
