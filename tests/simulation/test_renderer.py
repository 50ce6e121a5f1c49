# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms: exact depth against independent geometry, labels, LiDAR, light, cameras."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import transform
from depth_node.simulation.primitives import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    Lamp,
    Material,
    Primitive,
    Room,
)
from depth_node.simulation.renderer import LidarPattern, Scene
from depth_node.simulation.viewpoints import camera_path, look_at, random_view

GREY = Material(0, 1.0, ((0.3, 0.3, 0.3),) * 3)

ROOM_HALF = np.array([4.0, 3.0, 1.5])

CAMERA = Camera(80, 60, 55.0, 55.0, 39.5, 29.5)


def plan(*parts: Primitive, lamps: tuple[Lamp, ...] = (), ambient: float = 0.5) -> Room:
    focus = np.array([0.0, 0.0, 1.0])
    return Room(ROOM_HALF, (GREY,) * 6, parts, lamps, np.full(3, ambient), 0, "room", focus)


def turned(yaw: float) -> NDArray[np.float64]:
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def part(
    kind: int, centre: tuple[float, ...], half: tuple[float, ...], yaw: float = 0.0
) -> Primitive:
    return Primitive(kind, np.array(centre), turned(yaw), np.array(half), GREY)


def world_rays(camera: Camera, pose: NDArray[np.float64]) -> NDArray[np.float64]:
    return camera.rays().reshape(-1, 3).astype(np.float64) @ pose[:3, :3].T


def plane_hits(
    origin: NDArray[np.float64],
    rays: NDArray[np.float64],
    centre: NDArray[np.float64],
    axes: NDArray[np.float64],
    half: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return t (n, 6) at the six faces of a box, each a bounded plane; inf where it is missed."""
    hits = np.full((len(rays), 6), np.inf)
    for axis in range(3):
        for k, sign in enumerate((-1.0, 1.0)):
            normal = axes[:, axis]
            with np.errstate(divide="ignore", invalid="ignore"):
                t = ((centre + sign * half[axis] * normal - origin) @ normal) / (rays @ normal)
            local = (origin + t[:, None] * rays - centre) @ axes
            others = [i for i in range(3) if i != axis]
            inside = (np.abs(local[:, others]) <= half[others] + 1e-9).all(1)
            hits[:, 2 * axis + k] = np.where(inside & (t > 1e-6), t, np.inf)
    return hits


def room_depth(origin: NDArray[np.float64], rays: NDArray[np.float64]) -> NDArray[np.float64]:
    centre = np.array([0.0, 0.0, ROOM_HALF[2]])
    return plane_hits(origin, rays, centre, np.eye(3), ROOM_HALF).min(axis=1)


def agree(found: NDArray, expected: NDArray, outliers: int = 0) -> None:
    """Assert equality to float32; `outliers` rays may pass an edge on either side."""
    error = np.abs(found.ravel() - expected) / expected
    assert np.count_nonzero(error > 2e-5) <= outliers


POSES = [
    look_at(np.array([-2.0, 1.0, 1.6]), np.array([1.0, -0.3, 0.4])),
    look_at(np.array([2.5, -2.0, 0.4]), np.array([0.0, 0.2, 0.9]), roll=0.3),
]


@pytest.mark.parametrize("pose", POSES)
def test_empty_room_is_six_planes(pose: NDArray[np.float64]) -> None:
    rays = world_rays(CAMERA, pose)
    agree(Scene(plan()).render(CAMERA, pose).depth, room_depth(pose[:3, 3], rays))


@pytest.mark.parametrize("pose", POSES)
def test_box_is_six_bounded_planes(pose: NDArray[np.float64]) -> None:
    box = part(BOX, (0.3, -0.2, 0.5), (0.6, 0.3, 0.5), yaw=0.7)
    rays = world_rays(CAMERA, pose)
    hits = plane_hits(pose[:3, 3], rays, box.centre, box.axes, box.half).min(axis=1)
    expected = np.minimum(hits, room_depth(pose[:3, 3], rays))
    assert np.count_nonzero(hits < 1e9) > 100
    agree(Scene(plan(box)).render(CAMERA, pose).depth, expected, outliers=3)


@pytest.mark.parametrize("pose", POSES)
def test_sphere_is_a_quadratic(pose: NDArray[np.float64]) -> None:
    ball = part(ELLIPSOID, (0.4, 0.1, 0.7), (0.5, 0.5, 0.5))
    rays, origin = world_rays(CAMERA, pose), pose[:3, 3]
    a = (rays**2).sum(1)
    b = rays @ (origin - ball.centre)
    c = ((origin - ball.centre) ** 2).sum() - 0.25
    with np.errstate(invalid="ignore"):
        hits = (-b - np.sqrt(b * b - a * c)) / a
    expected = np.fmin(hits, room_depth(origin, rays))
    assert np.count_nonzero(np.isfinite(hits)) > 100
    agree(Scene(plan(ball)).render(CAMERA, pose).depth, expected, outliers=3)


@pytest.mark.parametrize("kind", [BOX, CYLINDER, ELLIPSOID])
@pytest.mark.parametrize("height_m", [0.4, 0.5, 0.6])
def test_a_level_ray_hits_what_stands_upright(kind: int, height_m: float) -> None:
    """Its direction has exact zeros, along the axes of the part: a camera's middle row and column,
    and a LiDAR's level line.
    """
    scene = Scene(plan(part(kind, (1.0, 0.0, 0.5), (0.5, 0.5, 0.5))))
    position = np.array([-1.0, 0.0, height_m])
    level = Camera(5, 5, 40.0, 40.0, 2.0, 2.0)
    depth = scene.render(level, look_at(position, np.array([1.0, 0.0, height_m]))).depth
    front = 2.0 - (math.sqrt(0.25 - (height_m - 0.5) ** 2) if kind == ELLIPSOID else 0.5)
    assert depth[2, 2] == pytest.approx(front, rel=1e-5)
    assert np.isfinite(depth).all() and depth.max() < 1.6
    above = scene.render(level, look_at(np.array([1.0, 0.0, 2.5]), np.array([1.0, 0.0, 0.0])))
    assert above.depth[2, 2] == pytest.approx(1.5, rel=1e-5)
    T_world_lidar = np.eye(4)
    T_world_lidar[:3, 3] = position
    ahead = LidarPattern(1, 1, (0.0, 0.0), (0.0, 0.0))
    assert scene.lidar(T_world_lidar, ahead)[0, 0] == pytest.approx(front, rel=1e-5)


@pytest.mark.parametrize("pose", POSES)
def test_points_lie_on_the_part_of_their_label(pose: NDArray[np.float64]) -> None:
    parts = (
        part(BOX, (0.8, -0.6, 0.3), (0.3, 0.4, 0.3), yaw=0.4),
        part(CYLINDER, (0.0, 0.5, 0.5), (0.3, 0.3, 0.5)),
        part(ELLIPSOID, (-0.2, -0.7, 0.6), (0.4, 0.3, 0.2), yaw=1.0),
    )
    scene = Scene(plan(*parts))
    seen = scene.render(CAMERA, pose)
    points = transform(pose, CAMERA.backproject(seen.depth).reshape(-1, 3))
    labels = seen.labels.ravel()
    assert set(np.unique(labels)) <= set(range(1, scene.label_count + 1))
    for index, item in enumerate(parts):
        mine = points[labels == 7 + index]
        assert len(mine) > 20
        unit = ((mine - item.centre) @ item.axes) / item.half
        radius = np.linalg.norm(unit[:, : 3 if item.kind == ELLIPSOID else 2], axis=1)
        reach = {
            BOX: np.abs(unit).max(1),
            CYLINDER: np.maximum(radius, np.abs(unit[:, 2])),
            ELLIPSOID: radius,
        }[item.kind]
        np.testing.assert_allclose(reach, 1.0, atol=2e-4)
    walls = {1: (0, -4.0), 2: (0, 4.0), 3: (1, -3.0), 4: (1, 3.0), 5: (2, 0.0), 6: (2, 3.0)}
    for label, (axis, where) in walls.items():
        np.testing.assert_allclose(points[labels == label][:, axis], where, atol=2e-4)


def test_half_a_turn_of_the_camera_turns_the_picture() -> None:
    scene = Scene.random(4)
    upright = look_at(np.array([0.0, 0.0, 1.4]), np.array([1.0, 0.3, 1.0]))
    upside_down = upright @ np.diag([-1.0, -1.0, 1.0, 1.0])
    a, b = scene.render(CAMERA, upright), scene.render(CAMERA, upside_down)
    np.testing.assert_allclose(b.depth[::-1, ::-1], a.depth, rtol=1e-4)
    np.testing.assert_array_equal(b.labels[::-1, ::-1], a.labels)


@pytest.mark.parametrize(
    "camera",
    [
        Camera(80, 60, 60.0, 60.0, 39.5, 29.5, "plumb_bob", (-0.1, 0.02, 0.001, -0.001)),
        Camera(80, 60, 40.0, 40.0, 39.5, 29.5, "equidistant", (0.01, 0.0, 0.0, 0.0)),
    ],
    ids=lambda c: c.model,
)
def test_distorted_cameras_see_the_same_room(camera: Camera) -> None:
    box = part(BOX, (0.3, -0.2, 0.5), (0.6, 0.3, 0.5), yaw=0.7)
    rays, origin = world_rays(camera, POSES[0]), POSES[0][:3, 3]
    hits = plane_hits(origin, rays, box.centre, box.axes, box.half).min(axis=1)
    expected = np.minimum(hits, room_depth(origin, rays))
    agree(Scene(plan(box)).render(camera, POSES[0]).depth, expected, outliers=3)


def test_pixels_without_a_ray_are_unknown() -> None:
    fisheye = Camera(80, 60, 12.0, 12.0, 39.5, 29.5, "equidistant", (0.0, 0.0, 0.0, 0.0))
    blind = ~np.isfinite(fisheye.rays()).all(-1)
    assert blind.any() and not blind.all()
    seen = Scene(plan()).render(fisheye, POSES[0])
    np.testing.assert_array_equal(np.isnan(seen.depth), blind)
    np.testing.assert_array_equal(seen.labels == 0, blind)
    assert not seen.image[blind].any()


def test_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="castle"):
        Scene.random(0, "castle")


def test_smooth_edges_change_colours_only_and_only_at_edges() -> None:
    scene = Scene.random(8)
    pose = camera_path(scene, 4, seed=1)[0]
    plain = scene.render(CAMERA, pose, antialias=False)
    smooth = scene.render(CAMERA, pose)
    np.testing.assert_array_equal(smooth.depth, plain.depth)
    np.testing.assert_array_equal(smooth.labels, plain.labels)
    inner = np.ones(plain.labels.shape, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(plain.labels, step, axis) == plain.labels
    changed = (smooth.image != plain.image).any(-1)
    assert changed.any()
    assert not (changed & inner)[1:-1, 1:-1].any()


def test_probe_is_the_depth_of_the_picture() -> None:
    scene = Scene.random(9)
    camera, pose = random_view(scene, np.random.default_rng(0), 40, 30)
    np.testing.assert_array_equal(scene.probe(camera, pose)[0], scene.render(camera, pose).depth)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lidar_points_lie_on_the_rendered_depth(seed: int) -> None:
    """From the same place: every point in view falls on a pixel whose ray hits next to it."""
    scene = Scene.random(seed)
    camera = Camera(320, 240, 200.0, 200.0, 159.5, 119.5)
    pose = camera_path(scene, 5, seed)[2]
    lidar_pose = pose.copy()
    lidar_pose[:3, :3] = pose[:3, :3] @ np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    points = scene.lidar(lidar_pose, LidarPattern(azimuth_steps=600))
    seen = transform(np.linalg.inv(pose) @ lidar_pose, points)
    pixels = np.floor(camera.project(seen) + 0.5)
    inside = np.isfinite(pixels).all(1)
    inside &= (pixels >= 0).all(1) & (pixels[:, 0] < 320) & (pixels[:, 1] < 240)
    column, row = pixels[inside].astype(int).T
    depth = scene.render(camera, pose, antialias=False).depth
    assert inside.sum() > 500
    error = np.abs(depth[row, column] / seen[inside, 2] - 1)
    assert np.median(error) < 0.005
    assert np.mean(error < 0.03) > 0.95  # the rest fell beside an edge of a part


def test_lidar_respects_range_and_noise() -> None:
    scene = Scene(plan())
    pose = np.eye(4)
    pose[:3, 3] = [0.0, 0.0, 1.5]
    exact = np.linalg.norm(scene.lidar(pose, LidarPattern(max_range_m=3.5)), axis=1)
    assert exact.max() <= 3.5
    assert len(exact) < 16 * 900
    noisy = scene.lidar(pose, LidarPattern(range_noise_m=0.02, max_range_m=50), seed=1)
    clean = scene.lidar(pose, LidarPattern(max_range_m=50))
    spread = np.linalg.norm(noisy, axis=1) - np.linalg.norm(clean, axis=1)
    assert 0.019 < spread.std() < 0.021
    again = scene.lidar(pose, LidarPattern(range_noise_m=0.02, max_range_m=50), seed=1)
    np.testing.assert_array_equal(noisy, again)


def test_a_table_shades_the_floor_below_it() -> None:
    top = part(BOX, (0.0, 0.0, 0.8), (0.5, 0.5, 0.02))
    lamp = Lamp(np.array([0.0, 0.0, 2.8]), np.full(3, 4.0))
    pose = look_at(np.array([-2.0, 0.0, 0.5]), np.array([0.0, 0.0, 0.0]))
    bare = Scene(plan(lamps=(lamp,))).render(CAMERA, pose)
    shaded = Scene(plan(top, lamps=(lamp,))).render(CAMERA, pose)
    points = transform(pose, CAMERA.backproject(shaded.depth).reshape(-1, 3)).reshape(60, 80, 3)
    radius = np.hypot(points[..., 0], points[..., 1])
    floor = shaded.labels == 5
    below = floor & (radius < 0.3)
    beside = floor & (np.abs(points[..., 1]) > 1.2)
    assert below.sum() > 10 and beside.sum() > 10
    assert shaded.image[below].mean() < 0.8 * bare.image[below].mean()
    dark = Scene(plan(top)).render(CAMERA, pose)  # no lamp at all
    np.testing.assert_array_equal(shaded.image[below], dark.image[below])
    np.testing.assert_allclose(shaded.image[beside].mean(), bare.image[beside].mean(), rtol=0.02)


def test_light_falls_off_with_distance_and_scales_with_the_lamp() -> None:
    pose = look_at(np.array([-3.0, 0.0, 1.5]), np.array([0.0, 0.0, 0.0]))

    def floor_means(power: float) -> tuple[float, float]:
        lamp = Lamp(np.array([-1.0, 0.0, 2.5]), np.full(3, power))
        seen = Scene(plan(lamps=(lamp,), ambient=0.05)).render(CAMERA, pose)
        points = transform(pose, CAMERA.backproject(seen.depth).reshape(-1, 3)).reshape(60, 80, 3)
        floor = seen.labels == 5
        near = floor & (np.hypot(points[..., 0] + 1, points[..., 1]) < 0.7)
        far = floor & (points[..., 0] > 1.5)
        return float(seen.image[near].mean()), float(seen.image[far].mean())

    near, far = floor_means(2.0)
    brighter, _ = floor_means(4.0)
    assert far < 0.8 * near < near < brighter


@pytest.mark.parametrize("seed", range(6))
def test_pictures_are_neither_black_nor_burnt(seed: int) -> None:
    scene = Scene.random(seed, "mixed")
    camera, pose = random_view(scene, np.random.default_rng(seed), 64, 48)
    image = scene.render(camera, pose).image
    assert 25 < image.mean() < 235
    assert image.std() > 8
    assert np.mean(image == 255) < 0.3


def test_camera_path_is_smooth_closed_and_free() -> None:
    scene = Scene.random(1)
    path = camera_path(scene, 60, seed=2)
    assert path.shape == (60, 4, 4)
    np.testing.assert_allclose(
        path[:, :3, :3] @ np.swapaxes(path[:, :3, :3], 1, 2), np.tile(np.eye(3), (60, 1, 1)),
        atol=1e-12,
    )  # fmt: skip
    steps = np.linalg.norm(np.diff(path[:, :3, 3], axis=0, append=path[:1, :3, 3]), axis=1)
    turns = np.einsum("nij,nij->n", path[:, :3, :3], np.roll(path[:, :3, :3], -1, axis=0))
    assert steps.max() < 0.5
    assert np.rad2deg(np.arccos(np.clip((turns - 1) / 2, -1, 1))).max() < 30
    assert scene.contains(path[:, :3, 3]).all()
    with pytest.raises(ValueError, match="at least one"):
        camera_path(scene, 0)


def test_contains_knows_walls_and_parts() -> None:
    scene = Scene(plan(part(BOX, (1.0, 0.0, 0.5), (0.5, 0.5, 0.5), yaw=math.pi / 4)))
    points = np.array([[0.0, 0.0, 1.0], [1.0, 0.6, 0.5], [1.45, 0.45, 0.5], [5.0, 0.0, 1.0]])
    np.testing.assert_array_equal(scene.contains(points), [True, False, True, False])
