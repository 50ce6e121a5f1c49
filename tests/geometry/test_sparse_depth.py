# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from depth_node.config import ConfigError
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import check_rigid, invert_rigid, rigid_transform, transform
from depth_node.geometry.sparse_depth import (
    ProjectionConfig,
    SparseDepth,
    project_points,
    scan_to_points,
)
from tests.helpers.cameras import CAMERAS, PINHOLE, points_in_view

# LiDAR axes (x forward, y left, z up) in the optical frame
T_OPTICAL_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)

EVERY_POINT = ProjectionConfig(drop_occluded=False)


def test_backproject_and_project_points_are_inverse() -> None:
    depth = np.random.default_rng(1).uniform(1, 5, (480, 640)).astype(np.float32)
    depth[100:120] = np.nan
    points = PINHOLE.backproject(depth)
    assert points.dtype == np.float32
    assert np.isnan(points[100:120]).all()
    sparse = project_points(points.reshape(-1, 3), np.eye(4), PINHOLE, EVERY_POINT)
    np.testing.assert_array_equal(sparse.to_map(480, 640), depth)
    assert sparse.counts.invalid == 20 * 640


def test_scan_to_points() -> None:
    ranges = np.array([1.0, np.inf, np.nan, 2.0, 0.05, 50.0, -np.inf, 0.0])
    points = scan_to_points(ranges, -np.pi / 2, np.pi / 6, 0.1, 30.0)
    expected = [[0.0, -1.0, 0.0], [2.0, 0.0, 0.0]]
    np.testing.assert_allclose(points, expected, atol=1e-6)
    assert points.dtype == np.float32
    assert scan_to_points(np.array([]), 0, 0.1, 0.1, 30).shape == (0, 3)


# --- sparse depth


def test_rounding_and_border() -> None:
    camera = Camera(4, 3, 1.0, 1.0, 0.0, 0.0)
    u = np.array([-0.5001, -0.5, 0.4999, 0.5, 3.4999, 3.5])
    points = np.column_stack((u, np.full(6, 2.4999), np.ones(6)))
    sparse = project_points(points, np.eye(4), camera, EVERY_POINT)
    assert sparse.cols.tolist() == [0, 1, 3]
    assert sparse.rows.tolist() == [2, 2, 2]
    assert (sparse.counts.outside, sparse.counts.duplicate) == (2, 1)


def test_nearest_of_a_pixel_wins_and_keeps_its_age() -> None:
    points = np.array([[0.0, 0.0, 3.0], [0.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    sparse = project_points(points, np.eye(4), PINHOLE, EVERY_POINT, np.array([0.3, 0.1, 0.2]))
    assert sparse.depth.tolist() == [1.0]
    assert sparse.age_s.tolist() == pytest.approx([0.1])
    assert sparse.counts.duplicate == 2


def test_every_point_is_accounted_for() -> None:
    points = np.array(
        [
            [0, 0, 2],  # used
            [0.001, 0, 3],  # same pixel, farther
            [np.nan, 0, 2],
            [0, np.inf, 2],
            [0, 0, -np.inf],
            [0, 0, 0],
            [0, 0, -1],
            [0, 0, 0.01],  # nearer than min_depth_m
            [0, 0, 300],
            [100, 0, 1],
        ],
        np.float32,
    )
    with np.errstate(all="raise"):
        sparse = project_points(points, np.eye(4), PINHOLE)
    counts = sparse.counts
    assert (counts.given, counts.used, counts.duplicate) == (10, 1, 1)
    assert (counts.invalid, counts.behind, counts.out_of_range, counts.outside) == (4, 1, 2, 1)


@pytest.mark.parametrize("name", CAMERAS)
def test_counts_add_up_for_any_points(name: str) -> None:
    rng = np.random.default_rng(7)
    points = rng.normal(size=(5000, 3)) * rng.choice([0.1, 1, 10, 1e3, 1e20], (5000, 1))
    points[rng.random((5000, 3)) < 0.01] = np.nan
    points[rng.random((5000, 3)) < 0.01] = np.inf
    sparse = project_points(points.astype(np.float32), T_OPTICAL_LIDAR, CAMERAS[name])
    c = sparse.counts
    lost = c.invalid + c.behind + c.out_of_range + c.outside + c.duplicate + c.occluded
    assert c.given == 5000 == lost + c.used
    assert c.used == len(sparse) > 0
    assert sparse.rows.min() >= 0
    assert sparse.rows.max() < 480
    assert sparse.cols.min() >= 0
    assert sparse.cols.max() < 640
    assert (sparse.depth > 0).all()


def test_order_of_points_changes_nothing() -> None:
    points = points_in_view(4000, spread=0.7)
    one = project_points(points, np.eye(4), PINHOLE)
    two = project_points(points[np.random.default_rng(0).permutation(4000)], np.eye(4), PINHOLE)
    for name in ("rows", "cols", "depth"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_scaling_the_world_scales_the_depth() -> None:
    points, pose = points_in_view(2000), rigid_transform((0.1, -0.2, 0.05), (0, 0, 0, 1))
    larger = pose.copy()
    larger[:3, 3] *= 4
    one = project_points(points, pose, PINHOLE)
    two = project_points(4 * points, larger, PINHOLE)
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.cols, two.cols)
    np.testing.assert_allclose(two.depth, 4 * one.depth, rtol=1e-6)


def test_moving_the_lidar_changes_nothing() -> None:
    """The same world points given in another frame."""
    points = points_in_view(2000)
    pose = rigid_transform((0.3, 0.1, -0.2), (0.1, -0.2, 0.3, np.sqrt(1 - 0.14)))
    one = project_points(points, np.eye(4), PINHOLE)
    two = project_points(transform(invert_rigid(pose), points), pose, PINHOLE)
    assert (one.counts.used, one.counts.occluded) == (two.counts.used, two.counts.occluded)
    np.testing.assert_allclose(one.depth, two.depth, rtol=1e-6)


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.full((7, 3), np.nan), -np.ones((3, 3))])
def test_no_usable_point_gives_an_empty_result(points: np.ndarray) -> None:
    sparse = project_points(points, np.eye(4), PINHOLE)
    assert len(sparse) == 0
    assert sparse.counts.given == len(points)
    assert np.isnan(sparse.to_map(480, 640)).all()


def test_organised_cloud_is_taken_and_flat_array_refused() -> None:
    points = points_in_view(60, spread=0.4)
    assert len(project_points(points.reshape(6, 10, 3), np.eye(4), PINHOLE, EVERY_POINT)) == 60
    with pytest.raises(ValueError, match="shape"):
        project_points(points.ravel(), np.eye(4), PINHOLE)


# --- occlusion

BOX_Z, WALL_Z, BOX_HALF = 1.5, 4.0, 0.35  # a box's front face before a wall, metres

FLOOR_Y = 1.2


def scan_of_room(T_camera_lidar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of a 64-beam LiDAR (camera axes, another place) on box, wall and floor, and what of
    these the camera sees: (N, 3) in the LiDAR frame, (N,) bool."""
    elevation = np.deg2rad(np.linspace(-25, 25, 64))[:, None]
    azimuth = np.deg2rad(np.arange(-45, 45, 0.2))[None]
    rays = np.stack(
        (
            np.cos(elevation) * np.sin(azimuth),
            np.broadcast_to(np.sin(elevation), (64, azimuth.shape[1])),
            np.cos(elevation) * np.cos(azimuth),
        ),
        -1,
    ).reshape(-1, 3)
    origin = T_camera_lidar[:3, 3]
    hits = origin + rays * cast(origin, rays)[:, None]
    # From the camera, the ray to a visible point ends at the point.
    reach = cast(np.zeros(3), hits)
    return transform(invert_rigid(T_camera_lidar), hits), reach > 0.999


def cast(origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Multiples of the rays at which they first hit box, wall or floor."""
    with np.errstate(divide="ignore"):
        box = (BOX_Z - origin[2]) / rays[:, 2]
        wall = (WALL_Z - origin[2]) / rays[:, 2]
        floor = (FLOOR_Y - origin[1]) / rays[:, 1]
    at = origin + rays * box[:, None]
    box[(np.abs(at[:, 0]) > BOX_HALF) | (np.abs(at[:, 1]) > BOX_HALF)] = np.inf
    floor[floor <= 0] = np.inf
    return np.minimum(np.minimum(box, wall), floor)


def test_points_that_the_camera_cannot_see_are_dropped_and_the_others_stay() -> None:
    pose = rigid_transform((0.15, -0.3, 0.0), (0, 0, 0, 1))
    points, visible = scan_of_room(pose)
    every = project_points(points, pose, PINHOLE, EVERY_POINT)
    seen = project_points(points, pose, PINHOLE)
    # A point is hidden if the camera sees the box at its pixel.
    hidden_world = transform(pose, points[~visible])
    behind_box = project_points(hidden_world, np.eye(4), PINHOLE, EVERY_POINT)
    assert len(behind_box) > 100
    kept = seen.to_map(480, 640)
    was = every.to_map(480, 640)
    hidden = np.zeros((480, 640), bool)
    hidden[behind_box.rows, behind_box.cols] = was[behind_box.rows, behind_box.cols] > 1.01 * BOX_Z
    assert (np.isnan(kept) & hidden).sum() > 0.7 * hidden.sum()
    lost = np.isnan(kept) & ~np.isnan(was) & ~hidden
    assert lost.sum() < 0.005 * len(every)
    assert seen.counts.occluded == len(every) - len(seen)


def test_nothing_is_hidden_from_a_camera_at_the_lidar() -> None:
    points, visible = scan_of_room(np.eye(4))
    assert visible.all()
    sparse = project_points(points, np.eye(4), PINHOLE)
    assert sparse.counts.occluded == 0


def test_a_floor_up_to_the_horizon_stays() -> None:
    """Below each of its points there are nearer ones, above it none."""
    rng = np.random.default_rng(0)
    z = 1.0 / rng.uniform(1 / 80, 1 / 1.5, 8000)
    points = np.column_stack((rng.uniform(-0.6, 0.6, 8000) * z, np.full(8000, 1.4), z))
    for radius in (4, 16, 40):
        config = ProjectionConfig(occlusion_radius_px=radius)
        assert project_points(points, np.eye(4), PINHOLE, config).counts.occluded == 0


def test_occlusion_at_the_picture_border() -> None:
    """The windows reach beyond the image on every side."""
    camera = Camera(20, 20, 10.0, 10.0, 9.5, 9.5)
    depth = np.full((20, 20), np.nan, np.float32)
    depth[::2, ::2] = 1.0
    depth[1, 1] = depth[18, 17] = depth[9, 9] = 3.0
    depth[19, 19] = 3.0  # in the corner: nothing nearer on three sides of it
    points = camera.backproject(depth).reshape(-1, 3)
    sparse = project_points(points, np.eye(4), camera, ProjectionConfig(occlusion_radius_px=5))
    assert sparse.counts.occluded == 3
    assert sparse.to_map(20, 20)[19, 19] == 3.0


def test_real_sweep_gives_the_depth_map_that_came_with_it(shared: Path) -> None:
    for folder in sorted((shared / "data" / "opencalib_road").iterdir()):
        facts = json.loads((folder / "intrinsics.json").read_text())
        camera = Camera(*(facts[k] for k in ("width", "height", "fx", "fy", "cx", "cy")))
        pose = check_rigid(json.loads((folder / "calib.json").read_text())["T_cam_lidar"])
        points = np.load(folder / "lidar.npy")
        expected = np.load(folder / "depth.npz")["depth"]
        sparse = project_points(points, pose, camera, EVERY_POINT)
        found = sparse.to_map(camera.height, camera.width)
        both = np.isfinite(found) & np.isfinite(expected) & (expected > 0)
        assert both.sum() > 0.99 * (np.isfinite(expected) & (expected > 0)).sum()
        assert np.median(np.abs(found - expected)[both]) < 1e-3
        seen = project_points(points, pose, camera)
        assert 0 < seen.counts.occluded < 0.15 * len(sparse)


# --- sparse depth as a value


def test_sparse_depth_from_map_and_back() -> None:
    depth = np.full((6, 8), np.nan, np.float32)
    depth[2, 3], depth[5, 7], depth[0, 0] = 1.5, 2.5, 0.0
    sparse = SparseDepth.from_map(depth)
    assert (sparse.rows.tolist(), sparse.cols.tolist()) == ([2, 5], [3, 7])
    depth[0, 0] = np.nan
    np.testing.assert_array_equal(sparse.to_map(6, 8), depth)
    assert sparse.subset(sparse.depth > 2).cols.tolist() == [7]


def test_sparse_depth_from_arrays_drops_what_is_no_depth() -> None:
    sparse = SparseDepth.from_arrays(range(5), range(5), [1.0, np.nan, 0.0, -1.0, np.inf], 0.5)
    assert sparse.depth.tolist() == [1.0]
    assert sparse.age_s.tolist() == [0.5]
    assert (sparse.counts.given, sparse.counts.invalid, sparse.counts.used) == (5, 4, 1)
    with pytest.raises(ValueError, match="one length"):
        SparseDepth.from_arrays([1, 2], [1], [1.0])


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_depth_m"):
        ProjectionConfig(min_depth_m=5.0, max_depth_m=2.0)
    with pytest.raises(ConfigError, match="occlusion_radius_px"):
        ProjectionConfig(occlusion_radius_px=0)


def test_points_from_5_cm_to_200_m_are_projected_by_default() -> None:
    depth = [0.03, 0.045, 0.055, 0.09, 120.0, 190.0, 210.0, 390.0]
    points = np.array([[0.1 * z * place, 0, z] for place, z in enumerate(depth)])
    camera = Camera(640, 480, 300.0, 300.0, 319.5, 239.5)
    found = project_points(points, np.eye(4), camera)
    np.testing.assert_allclose(np.sort(found.depth), depth[2:6], rtol=1e-6)
