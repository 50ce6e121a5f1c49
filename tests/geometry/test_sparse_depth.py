# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.config import ConfigError
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import check_rigid, invert_rigid, rigid_transform, transform
from depth_node.geometry.scan_buffer import ScanBuffer
from depth_node.geometry.sparse_depth import (
    ProjectionConfig,
    SparseDepth,
    project_points,
    scan_to_points,
)

PINHOLE = Camera(640, 480, 520.0, 510.0, 318.2, 241.7)
PLUMB_BOB = {
    4: (-0.28, 0.09, 0.0011, -0.0007),
    5: (-0.31, 0.12, 0.0009, -0.0011, -0.02),
    8: (0.45, -0.2, 0.0003, -0.0004, 0.05, 0.7, -0.15, 0.03),
}
FISHEYE = (-0.021, 0.006, -0.004, 0.0009)
# LiDAR axes (x forward, y left, z up) in the optical frame
T_OPTICAL_LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)
EVERY_POINT = ProjectionConfig(drop_occluded=False)


def points_in_view(n: int, seed: int = 0, spread: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.5, 20.0, n)
    return np.column_stack((rng.uniform(-spread, spread, (n, 2)) * z[:, None], z))


def distorted(coefficients: tuple[float, ...], model: str = "plumb_bob") -> Camera:
    return replace(PINHOLE, model=model, distortion=coefficients)


CAMERAS = {
    "pinhole": PINHOLE,
    **{f"plumb_bob{n}": distorted(d) for n, d in PLUMB_BOB.items()},
    "equidistant": Camera(640, 480, 270.0, 272.0, 318.2, 241.7, "equidistant", FISHEYE),
}


# --- cameras


@pytest.mark.parametrize("name", CAMERAS)
def test_project_agrees_with_opencv(name: str) -> None:
    camera = CAMERAS[name]
    points = points_in_view(500)
    no_turn = np.zeros(3)
    if camera.model == "equidistant":
        expected, _ = cv2.fisheye.projectPoints(
            points[None], no_turn, no_turn, camera.matrix, np.array(camera.distortion)
        )
    else:
        expected, _ = cv2.projectPoints(
            points, no_turn, no_turn, camera.matrix, np.array(camera.distortion)
        )
    np.testing.assert_allclose(camera.project(points), expected.reshape(-1, 2), atol=1e-8)


@pytest.mark.parametrize("name", CAMERAS)
def test_rays_are_the_inverse_of_project(name: str) -> None:
    camera = CAMERAS[name]
    rays = camera.rays()
    assert rays.shape == (480, 640, 3)
    assert rays.dtype == np.float32
    known = np.isfinite(rays[..., 0])
    assert known.mean() > 0.95
    rows, cols = np.nonzero(known)
    pixels = camera.project(3.0 * rays[known])
    # float32 rays: a fisheye's outermost are long, and rounding there moves a pixel by a hundredth
    np.testing.assert_allclose(pixels, np.column_stack((cols, rows)), atol=2e-2)
    near_axis = np.hypot(rays[known][:, 0], rays[known][:, 1]) < 1
    error = np.abs(pixels - np.column_stack((cols, rows)))[near_axis]
    assert error.max() < 1e-3


def test_rays_agree_with_opencv_undistort() -> None:
    camera = CAMERAS["plumb_bob5"]
    pixels = np.random.default_rng(0).integers((0, 0), (640, 480), (200, 2)).astype(np.float64)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    expected = cv2.undistortPointsIter(
        pixels[:, None], camera.matrix, np.array(camera.distortion), None, None, criteria
    ).reshape(-1, 2)
    found = camera.rays()[pixels[:, 1].astype(int), pixels[:, 0].astype(int), :2]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_distorted_point_beyond_the_monotonic_range_is_not_folded_into_the_picture() -> None:
    camera = distorted((-0.3, 0.0, 0.0, 0.0))  # r (1 - 0.3 r^2) turns back at r = 1.054
    inside, beyond = np.array([[1.0, 0.0, 1.0]]), np.array([[1.75, 0.0, 1.0]])
    folded, _ = cv2.projectPoints(
        beyond, np.zeros(3), np.zeros(3), camera.matrix, np.array(camera.distortion)
    )
    assert 0 <= folded[0, 0, 0] < camera.width  # what a plain formula makes of it
    assert np.isfinite(camera.project(inside)).all()
    assert np.isnan(camera.project(beyond)).all()
    sparse = project_points(beyond, np.eye(4), camera)
    assert len(sparse) == 0
    assert sparse.counts.outside == 1


def test_rational_model_ends_before_its_pole() -> None:
    camera = distorted((0.1, 0.0, 0.0, 0.0, 0.0, -0.25, 0.0, 0.0))  # 1 - 0.25 r^2 = 0 at r = 2
    points = np.array([[1.9, 0.0, 1.0], [2.1, 0.0, 1.0], [4.0, 0.0, 1.0]])
    assert np.isfinite(camera.project(points)[:, 0]).tolist() == [True, False, False]


def test_fisheye_beyond_its_turning_point_is_dropped() -> None:
    camera = Camera(640, 480, 190, 190, 320, 240, "equidistant", (-0.25, 0.0, 0.0, 0.0))
    # theta (1 - 0.25 theta^2) turns at theta = 1.1547
    angles = np.array([1.1, 1.2])
    points = np.column_stack((np.tan(angles), np.zeros(2), np.ones(2)))
    assert np.isfinite(camera.project(points)[:, 0]).tolist() == [True, False]


def test_rays_are_nan_where_no_direction_arrives() -> None:
    camera = Camera(640, 480, 190, 190, 320, 240, "equidistant", (-0.25, 0.0, 0.0, 0.0))
    rays = camera.rays()
    assert np.isnan(rays[0, 0]).all()
    assert np.isfinite(rays[240, 320]).all()
    assert np.isnan(camera.backproject(np.ones((480, 640), np.float32))[0, 0]).all()


def test_nothing_behind_the_camera_is_projected() -> None:
    points = points_in_view(100)
    points[:, 2] *= -1
    points[0, 2] = 0.0
    for camera in CAMERAS.values():
        assert np.isnan(camera.project(points)).all()


@pytest.mark.parametrize("name", CAMERAS)
def test_resized_camera_sees_the_same_picture(name: str) -> None:
    camera = CAMERAS[name]
    points = points_in_view(50)
    large = camera.resized(1280, 1440)
    expected = (camera.project(points) + 0.5) * (2.0, 3.0) - 0.5
    np.testing.assert_allclose(large.project(points), expected, atol=1e-9)
    back = large.resized(640, 480)
    np.testing.assert_allclose(back.matrix, camera.matrix, atol=1e-9)


def test_backproject_and_project_points_are_inverse() -> None:
    depth = np.random.default_rng(1).uniform(1, 5, (480, 640)).astype(np.float32)
    depth[100:120] = np.nan
    points = PINHOLE.backproject(depth)
    assert points.dtype == np.float32
    assert np.isnan(points[100:120]).all()
    sparse = project_points(points.reshape(-1, 3), np.eye(4), PINHOLE, EVERY_POINT)
    np.testing.assert_array_equal(sparse.to_map(480, 640), depth)
    assert sparse.counts.invalid == 20 * 640


def test_backproject_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="resized"):
        PINHOLE.backproject(np.ones((240, 320), np.float32))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fx": 0.0}, "not calibrated"),
        ({"fy": float("nan")}, "not calibrated"),
        ({"cx": float("inf")}, "principal point"),
        ({"width": 0}, "whole number"),
        ({"height": 479.5}, "whole number"),
        ({"model": "mei"}, "not known"),
        ({"model": "plumb_bob", "distortion": (0.1, 0.2, 0.3)}, "4 or 5 or 8"),
        ({"model": "equidistant", "distortion": ()}, "takes 4"),
        ({"model": "equidistant", "distortion": (0, 0, 0, float("nan"))}, "not finite"),
    ],
)
def test_unusable_calibration_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(PINHOLE, **change)


def test_from_matrix_reads_ros_models() -> None:
    k = [520.0, 0, 318.2, 0, 510.0, 241.7, 0, 0, 1]
    assert Camera.from_matrix(k, [0.0] * 5, "plumb_bob", 640, 480) == PINHOLE
    assert Camera.from_matrix(np.reshape(k, (3, 3)), (), "", 640, 480) == PINHOLE
    rational = Camera.from_matrix(k, PLUMB_BOB[8], "rational_polynomial", 640, 480)
    assert rational == distorted(PLUMB_BOB[8])
    padded = Camera.from_matrix(k, (*PLUMB_BOB[8], 0, 0, 0, 0), "rational_polynomial", 640, 480)
    assert padded == rational
    fisheye = Camera.from_matrix(k, [0.0] * 4, "fisheye", 640, 480)
    assert fisheye.model == "equidistant"  # no coefficients, but no pinhole


@pytest.mark.parametrize(
    ("k", "d", "model", "sentence"),
    [
        ([1.0] * 8, (), "plumb_bob", "nine"),
        ([5.0, 1.0, 2, 0, 5.0, 2, 0, 0, 1], (), "plumb_bob", "skew"),
        ([5.0, 0, 2, 0, 5.0, 2, 0, 0, 1], (0.1, 0, 0, 0, 0), "", "names no distortion model"),
        ([5.0, 0, 2, 0, 5.0, 2, 0, 0, 1], (0.1,) * 13, "rational_polynomial", "or 12 or 14"),
        ([0.0] * 9, (), "plumb_bob", "not calibrated"),
        ([5.0, 0, 2, 0, 5.0, 2, 0, 0, 1], (0.1,) * 4, "pumb_bob", "not known"),
    ],
)
def test_from_matrix_refuses_in_a_sentence(k: list, d: tuple, model: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Camera.from_matrix(k, d, model, 640, 480)


# --- rigid transforms


def test_rigid_transform_agrees_with_rodrigues() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        angle = rng.uniform(-3, 3)
        quaternion = [*(axis * np.sin(angle / 2)), np.cos(angle / 2)]
        found = rigid_transform((1, 2, 3), quaternion)
        np.testing.assert_allclose(found[:3, :3], cv2.Rodrigues(axis * angle)[0], atol=1e-12)
        np.testing.assert_allclose(found @ invert_rigid(found), np.eye(4), atol=1e-12)
        points = rng.normal(size=(5, 3))
        there = transform(found, points)
        np.testing.assert_allclose(transform(invert_rigid(found), there), points, atol=1e-12)


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (0, 0, 0, 1.2), (np.nan, 0, 0, 1)])
def test_quaternion_that_is_no_rotation_is_refused(quaternion: tuple) -> None:
    with pytest.raises(ValueError, match="unit quaternion"):
        rigid_transform((0, 0, 0), quaternion)


def test_check_rigid() -> None:
    given = rigid_transform((1, 2, 3), (0.5, 0.5, 0.5, 0.5))
    np.testing.assert_array_equal(check_rigid(given.ravel().tolist(), "T"), given)
    mirrored = np.diag([1.0, 1.0, -1.0, 1.0])
    for bad, sentence in (
        (np.eye(3), "16"),
        (mirrored, "no rotation"),
        (2 * given, "last row"),
        (np.diag([2.0, 2.0, 2.0, 1.0]), "no rotation"),
        (given.T, "last row"),
        (np.full((4, 4), np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=rf"T_camera_lidar.*{sentence}"):
            check_rigid(bad, "T_camera_lidar")


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
    # Which of the points are hidden, told by their pixel: the camera sees the box there.
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
    """It has ever nearer points below every point, but none above."""
    rng = np.random.default_rng(0)
    z = 1.0 / rng.uniform(1 / 80, 1 / 1.5, 8000)
    points = np.column_stack((rng.uniform(-0.6, 0.6, 8000) * z, np.full(8000, 1.4), z))
    for radius in (4, 16, 40):
        config = ProjectionConfig(occlusion_radius_px=radius)
        assert project_points(points, np.eye(4), PINHOLE, config).counts.occluded == 0


def test_occlusion_at_the_picture_border() -> None:
    """Windows that reach out of the image on every side."""
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


# --- several scans

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def cloud(value: float, n: int = 2) -> np.ndarray:
    return np.full((n, 3), value, np.float32)


def test_scans_within_the_age_are_collected_with_their_ages() -> None:
    buffer = ScanBuffer(0.25)
    for i in range(5):
        buffer.add(START + i * SECOND // 10, cloud(i))
    points, ages = buffer.collect(START + 4 * SECOND // 10)
    assert sorted(set(points[:, 0])) == [2, 3, 4]
    assert dict(zip(points[:, 0].tolist(), ages.tolist(), strict=True)) == pytest.approx(
        {2.0: 0.2, 3.0: 0.1, 4.0: 0.0}, abs=1e-6
    )
    assert buffer.newest_stamp_ns() == START + 4 * SECOND // 10


def test_a_picture_processed_late_finds_the_scans_of_its_time() -> None:
    buffer = ScanBuffer(0.1)
    for i in range(10):
        buffer.add(START + i * SECOND // 10, cloud(i))
    points, ages = buffer.collect(START + SECOND // 2)
    assert sorted(set(points[:, 0])) == [4, 5, 6]  # one before, one at, one after its stamp
    assert ages.min() == 0
    assert (ages >= 0).all()


def test_too_old_scans_are_not_used_and_memory_stays_bounded() -> None:
    buffer = ScanBuffer(0.1)
    for i in range(200):
        buffer.add(START + i * SECOND // 10, cloud(i))
    held = sum(len(scans) for scans in buffer._scans.values())
    assert held <= 13
    points, ages = buffer.collect(START + 1000 * SECOND)
    assert points.shape == (0, 3)
    assert ages.shape == (0,)


def test_several_sources() -> None:
    buffer = ScanBuffer(0.2)
    buffer.add(START, cloud(1), "front")
    buffer.add(START + SECOND // 20, cloud(2, 3), "rear")
    assert len(buffer.collect(START)[0]) == 5
    assert len(buffer.collect(START, "rear")[0]) == 3
    assert len(buffer.collect(START, "left")[0]) == 0
    assert buffer.newest_stamp_ns("front") == START


def test_time_that_jumps_back_clears_and_says_so() -> None:
    buffer = ScanBuffer(0.2)
    assert not buffer.add(START + 60 * SECOND, cloud(1), "front")
    assert not buffer.add(START + 60 * SECOND, cloud(2), "rear")
    assert buffer.add(START, cloud(3), "front")
    assert buffer.jumps_back == 1
    assert len(buffer.collect(START + 60 * SECOND)[0]) == 0
    assert set(buffer.collect(START)[0][:, 0]) == {3}


def test_scan_slightly_out_of_order_or_repeated() -> None:
    buffer = ScanBuffer(0.2)
    buffer.add(START + SECOND // 10, cloud(1))
    assert not buffer.add(START, cloud(2))
    assert len(buffer.collect(START)[0]) == 4
    buffer.add(START, cloud(5))  # the same stamp again: replaced, not doubled
    assert sorted(set(buffer.collect(START)[0][:, 0])) == [1, 5]
    buffer.clear()
    assert buffer.newest_stamp_ns() is None


def test_buffer_filled_and_collected_by_two_threads() -> None:
    buffer = ScanBuffer(0.5)
    errors: list[BaseException] = []

    def fill(key: str) -> None:
        try:
            for i in range(500):
                buffer.add(START + i * SECOND // 100, cloud(i), key)
        except BaseException as error:  # reported to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=fill, args=(key,)) for key in ("a", "b")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        points, ages = buffer.collect(START + SECOND)
        assert len(points) == len(ages)
    for thread in threads:
        thread.join()
    assert not errors


def test_age_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_scan_age_s"):
        ScanBuffer(0.0)
