# SPDX-License-Identifier: Apache-2.0
"""Obstacles on the ground, found in exact and in fitted depth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.benchmarks import obstacles as benchmark
from depth_node.config import ConfigError
from depth_node.gates import Gates
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth, project_points
from depth_node.obstacles import (
    SCAN_STEP_RAD,
    ObstacleConfig,
    ObstacleFinder,
    Obstacles,
    camera_above_ground,
    ground_below,
    scan_ranges,
)
from depth_node.simulation.floors import FloorWorld

CAMERA = Camera(320, 240, 230.0, 230.0, 159.5, 119.5)
HEIGHT_M, PITCH_DEG = 0.5, 15.0
T_BASE_CAMERA = camera_above_ground(HEIGHT_M, PITCH_DEG)
F32 = NDArray[np.float32]


def scene(
    box: tuple[float, float, float, float] | None = None,
    T_base_camera: NDArray[np.float64] = T_BASE_CAMERA,
    wall_m: float = 20.0,
) -> F32:
    """Return depth (240, 320), m: a floor, a far wall, a box's front (x, y, width, height)."""
    rays = CAMERA.rays() @ T_base_camera[:3, :3].T
    start = T_base_camera[:3, 3]
    with np.errstate(divide="ignore"):
        depth = np.where(rays[..., 2] < 0, -start[2] / rays[..., 2], np.inf)
        depth = np.minimum(depth, (wall_m - start[0]) / rays[..., 0])
        if box is not None:
            x, y, width, height = box
            front = (x - start[0]) / rays[..., 0]
            side, top = front * rays[..., 1] + start[1], front * rays[..., 2] + start[2]
            hit = (np.abs(side - y) < width / 2) & (top > 0) & (top < height) & (front < depth)
            depth = np.where(hit, front, depth)
    return depth.astype(np.float32)


def find(
    depth: F32,
    config: ObstacleConfig | None = None,
    relative_std: float = 0.01,
    measured: SparseDepth | None = None,
) -> Obstacles:
    gates = Gates(depth, np.asarray(relative_std * depth, np.float32))
    return ObstacleFinder().find(gates, CAMERA, T_BASE_CAMERA, config or ObstacleConfig(), measured)


def test_a_floor_is_no_obstacle_and_a_box_on_it_is() -> None:
    assert len(find(scene()).points) == 0
    found = find(scene((3.0, 0.5, 0.3, 0.3)))
    assert len(found.points) > 50
    assert found.in_base[:, 0] == pytest.approx(3.0, abs=1e-3)
    assert np.abs(found.in_base[:, 1] - 0.5).max() < 0.16
    assert found.height.min() > 0.04 and found.height.max() == pytest.approx(0.3, abs=0.02)
    seen = found.points @ T_BASE_CAMERA[:3, :3].T + T_BASE_CAMERA[:3, 3]
    assert np.allclose(seen[:, :2], found.in_base, atol=1e-3), "the points are the camera's"


def test_height_and_range_are_limits() -> None:
    tall = scene((3.0, 0.0, 0.6, 0.45))
    config = ObstacleConfig(min_height_m=0.1, max_height_m=0.3)
    height = find(tall, config).height
    assert 0.1 < height.min() < 0.13 and 0.27 < height.max() < 0.3
    assert len(find(tall, ObstacleConfig(max_range_m=2.9)).points) == 0
    assert len(find(scene(wall_m=7.0)).points) > 100, "a wall within range is one"


def test_a_floor_whose_depth_is_a_few_percent_wrong_is_no_obstacle() -> None:
    """Smooth errors, of networks between the measured points, lift the floor by their share of the
    camera's height."""
    rows, cols = np.mgrid[:240, :320]
    wave = 1 + 0.07 * np.sin(rows / 25) * np.sin(cols / 30)
    assert len(find(np.asarray(scene() * wave, np.float32)).points) == 0


def test_far_away_a_low_thing_takes_the_lidar() -> None:
    """Between rows of points that are far apart a network may lift the floor."""
    assert len(find(scene((6.0, 0.0, 0.6, 0.12))).points) == 0
    assert len(find(scene((6.0, 0.0, 0.6, 0.6))).points) > 50
    rows, cols = np.full(4, 74), np.arange(158, 162)
    rays = CAMERA.rays()[rows, cols] @ T_BASE_CAMERA[:3, :3].T
    depth = (0.1 - HEIGHT_M) / rays[:, 2]  # they hit something 0.1 m high
    measured = SparseDepth.from_arrays(rows, cols, depth)
    assert len(find(scene(), ObstacleConfig(max_range_m=20.0), measured=measured).points) == 4


def test_what_is_not_sure_to_be_above_the_ground_is_none() -> None:
    box = scene((3.0, 0.0, 0.4, 0.12))
    assert len(find(box, relative_std=0.02).points) > 20
    loose = Gates(box, np.asarray(0.3 * box, np.float32))
    assert len(ObstacleFinder().find(loose, CAMERA, T_BASE_CAMERA, ObstacleConfig()).points) == 0


def test_single_pixels_are_none_but_thin_poles_are() -> None:
    rng = np.random.default_rng(0)
    depth = scene()
    rows, cols = rng.integers(150, 230, 40) // 6 * 6, rng.integers(10, 310, 40) // 6 * 6
    depth[rows, cols] *= 0.6
    assert len(find(depth).points) == 0
    pole = scene((2.0, 0.0, 0.01, 0.4))
    assert len(find(pole).points) > 20


def test_a_pitch_that_is_wrong_by_two_degrees_is_put_right() -> None:
    """A suspension: TF says 15 degrees, the camera looks down 17 and is 3 cm lower."""
    true = camera_above_ground(HEIGHT_M - 0.03, PITCH_DEG + 2)
    assert len(find(scene(T_base_camera=true)).points) == 0
    found = find(scene((3.0, 0.0, 0.3, 0.25), true))
    assert found.height.max() == pytest.approx(0.25, abs=0.03) and found.height.min() > 0.04
    slope = found.ground[1]
    assert slope == pytest.approx(np.tan(np.deg2rad(2)), abs=0.003)


def test_a_ramp_is_no_ground_put_right() -> None:
    ramp = camera_above_ground(HEIGHT_M, PITCH_DEG + 9)  # the floor rises by 9 degrees
    found = find(scene(T_base_camera=ramp), ObstacleConfig(max_range_m=3.0))
    assert len(found.points) > 100 and not found.ground.any()


def test_measured_points_count_where_the_depth_map_sees_nothing() -> None:
    low = np.array([[2.0, 0.02 * k, 0.07] for k in range(4)])
    alone = np.array([[2.5, 0.8, 0.2]])
    floor = np.array([[2.0, 0.02 * k, 0.005] for k in range(-40, 40)])
    in_base = np.concatenate([low, alone, floor])
    seen = (in_base - T_BASE_CAMERA[:3, 3]) @ T_BASE_CAMERA[:3, :3]
    pixels = np.rint(CAMERA.project(seen)).astype(np.int32)
    measured = SparseDepth.from_arrays(pixels[:, 1], pixels[:, 0], seen[:, 2])
    found = find(scene(), measured=measured)
    assert len(found.points) == 4
    assert found.in_base[:, 0] == pytest.approx(2.0, abs=0.01)
    assert found.height == pytest.approx(0.07, abs=0.01)


def rows_of_points(noise_m: float, thing: float = 0.0, rows_deg: float = 2.0) -> SparseDepth:
    """Return points of a LiDAR at the camera: the floor, and an object of a height at 3 m."""
    rng = np.random.default_rng(3)
    azimuth, down = np.meshgrid(np.linspace(-30, 30, 400), np.arange(5.0, 30.0, rows_deg))
    azimuth, down = np.deg2rad(azimuth.ravel()), np.deg2rad(down.ravel())
    ray = np.stack([np.cos(down) * np.cos(azimuth), np.cos(down) * np.sin(azimuth), -np.sin(down)])
    reach = HEIGHT_M / np.sin(down)
    if thing:
        at = 2.95 / ray[0]
        height = HEIGHT_M + at * ray[2]
        met = (np.abs(at * ray[1]) < 0.15) & (height > 0) & (height < thing)
        reach = np.where(met, at, reach)
    in_base = (ray * (reach + noise_m * rng.standard_normal(len(reach)))).T
    in_base[:, 2] += HEIGHT_M
    seen = (in_base - T_BASE_CAMERA[:3, 3]) @ T_BASE_CAMERA[:3, :3]
    pixels = CAMERA.project(seen)
    inside = (pixels > 0).all(1) & (pixels < (CAMERA.width - 1, CAMERA.height - 1)).all(1)
    rounded = np.rint(pixels[inside]).astype(np.int32)
    return SparseDepth.from_arrays(rounded[:, 1], rounded[:, 0], seen[inside, 2])


@pytest.mark.parametrize("noise_m", [0.0, 0.01, 0.03, 0.05])
def test_the_noise_of_a_lidar_is_no_obstacle(noise_m: float) -> None:
    """Noise of five centimetres along a steep ray raises a point by three."""
    assert len(find(scene(), measured=rows_of_points(noise_m)).points) == 0


def test_the_one_row_that_meets_a_low_thing_tells_of_it() -> None:
    """At 2.95 m a row lies 3.8 cm above the floor; the next one passes above the box."""
    found = find(scene(), measured=rows_of_points(0.01, thing=0.1))
    assert len(found.points) >= 3
    assert found.in_base[:, 0] == pytest.approx(2.95, abs=0.1)
    assert np.abs(found.in_base[:, 1]).max() < 0.2
    assert found.height.min() > 0.02 and found.height.max() < 0.08


def test_drops_of_rain_are_none_and_a_post_in_the_rain_is_one() -> None:
    """Near the LiDAR many rays pass through a cube, and each cube contains some drops."""
    rng = np.random.default_rng(5)
    for thing, marked in ((0.0, False), (0.3, True)):
        dry = rows_of_points(0.01, thing, rows_deg=0.5)
        wet = rng.random(len(dry)) < 0.03
        depth = np.where(wet, rng.uniform(0.4, np.maximum(dry.depth, 0.5)), dry.depth)
        found = find(scene(), measured=SparseDepth.from_arrays(dry.rows, dry.cols, depth))
        assert (len(found.points) > 0) == marked
        assert np.all(np.abs(found.in_base[:, 0] - 2.95) < 0.1)


def test_points_on_the_ground_tell_it_where_the_depth_map_is_heaved() -> None:
    """The map's floor rises by 1.2 cm per metre, which would hide the points on the object."""
    heaved = scene(T_base_camera=camera_above_ground(HEIGHT_M, PITCH_DEG + 0.7))
    found = find(heaved, measured=rows_of_points(0.01, thing=0.1))
    assert len(found.points) >= 3
    assert found.in_base[:, 0] == pytest.approx(2.95, abs=0.1)


def drop_scene(edge_m: float, drop_m: float) -> F32:
    """Return depth (240, 320), m: a floor up to a distance, a lower one behind, a wall at 20 m."""
    upper, lower = scene(), scene(T_base_camera=camera_above_ground(HEIGHT_M + drop_m, PITCH_DEG))
    rays = CAMERA.rays() @ T_BASE_CAMERA[:3, :3].T
    beyond = (upper * rays[..., 0] > edge_m) & (rays[..., 2] < 0)
    return np.where(beyond, lower, upper).astype(np.float32)


def test_a_drop_is_marked_at_the_edge_of_the_ground_where_it_is_asked_for() -> None:
    stairs = drop_scene(2.0, 0.4)
    assert len(find(stairs).points) == 0
    config = ObstacleConfig(max_drop_m=0.1)
    found = find(stairs, config)
    assert len(found.points) > 100
    assert 2.0 < found.in_base[:, 0].min() < 2.3
    assert found.height == pytest.approx(-0.4, abs=0.02)
    level = found.points @ T_BASE_CAMERA[2, :3].astype(np.float32) + HEIGHT_M
    assert level == pytest.approx(config.min_height_m, abs=0.01), "in a costmap's band of heights"
    assert np.hypot(*found.in_base.T).max() < config.max_range_m
    ranges = scan_ranges(found, 8.0)
    assert ranges[360] < 2.3
    assert len(find(stairs, ObstacleConfig(max_drop_m=0.5)).points) == 0


@pytest.mark.parametrize("min_height_m", [0.02, 0.3, 0.8])
def test_a_drop_is_marked_where_it_is_however_high_an_obstacle_must_be(
    min_height_m: float,
) -> None:
    """At 2 m, the camera is 0.5 m high."""
    config = ObstacleConfig(min_height_m=min_height_m, max_drop_m=0.1)
    stairs = drop_scene(2.0, 0.4)
    floor = rows_of_points(0.005)
    rays = CAMERA.rays()[floor.rows, floor.cols] @ T_BASE_CAMERA[:3, :3].T
    beyond = floor.depth * rays[:, 0] > 2.0
    depth = np.where(beyond, floor.depth * (1 + 0.4 / HEIGHT_M), floor.depth)
    measured = SparseDepth.from_arrays(floor.rows, floor.cols, depth)
    for found in (find(stairs, config), find(scene(), config, measured=measured)):
        assert len(found.points) > 50
        assert found.points[:, 2].min() > 0, "ahead of the camera"
        assert 1.9 < found.in_base[:, 0].min() < 2.4
        level = found.points @ T_BASE_CAMERA[2, :3].astype(np.float32) + HEIGHT_M
        assert level == pytest.approx(min_height_m, abs=0.03)


def test_a_floor_that_sinks_by_a_few_percent_is_no_drop() -> None:
    rows, cols = np.mgrid[:240, :320]
    wave = 1 + 0.07 * np.sin(rows / 25) * np.sin(cols / 30)
    config = ObstacleConfig(max_drop_m=0.03)
    assert len(find(np.asarray(scene() * wave, np.float32), config).points) == 0
    for noise_m in (0.01, 0.05):
        assert len(find(scene(), config, measured=rows_of_points(noise_m)).points) == 0


def test_measured_points_tell_a_drop_that_the_depth_map_has_not() -> None:
    floor = rows_of_points(0.005)
    rays = CAMERA.rays()[floor.rows, floor.cols] @ T_BASE_CAMERA[:3, :3].T
    beyond = floor.depth * rays[:, 0] > 2.0
    assert beyond.sum() > 100
    depth = np.where(beyond, floor.depth * (1 + 0.2 / HEIGHT_M), floor.depth)
    measured = SparseDepth.from_arrays(floor.rows, floor.cols, depth)
    assert len(find(scene(), measured=measured).points) == 0
    found = find(scene(), ObstacleConfig(max_drop_m=0.05), measured=measured)
    assert len(found.points) > 50
    assert found.in_base[:, 0].min() > 1.9
    assert found.height == pytest.approx(-0.2, abs=0.05)


def rising(
    profile_m: list[tuple[float, float]], box: tuple[float, float, float] | None = None
) -> tuple[F32, SparseDepth]:
    """Return depth (240, 320), m, and LiDAR points on a floor with a height profile.

    profile_m: distance, height; straight between. box: distance, width, height above the floor.
    """
    rays = CAMERA.rays() @ T_BASE_CAMERA[:3, :3].T
    depth = np.full(rays.shape[:2], 20.0)
    for z in np.arange(8.0, 0.3, -0.004):  # the nearest depth at which a ray is below the floor
        x, y, up = (z * rays[..., axis] + T_BASE_CAMERA[axis, 3] for axis in range(3))
        floor = np.interp(x, *zip(*profile_m, strict=True))
        if box is not None:
            on = (np.abs(x - box[0] - 0.1) < 0.1) & (np.abs(y) < box[1] / 2)
            floor = floor + np.where(on, box[2], 0.0)
        depth = np.where(up < floor, z, depth)
    depth = depth.astype(np.float32)
    rows, cols = np.meshgrid(np.arange(60, 239, 4), np.arange(2, 318, 2), indexing="ij")
    rows, cols = rows.ravel(), cols.ravel()
    return depth, SparseDepth.from_arrays(rows, cols, depth[rows, cols])


RAMP_5, RAMP_12 = ([(2.0, 0.0), (5.0, 3 * np.tan(np.deg2rad(deg)))] for deg in (5, 12))


def test_a_ramp_is_ground_where_slopes_are_allowed() -> None:
    config = ObstacleConfig(max_slope_deg=8.0, max_range_m=4.8)
    depth, measured = rising(RAMP_5)
    assert len(find(depth, measured=measured).points) > 1000, "an obstacle unless it is asked for"
    assert len(find(depth, config, measured=measured).points) == 0
    steep, measured = rising(RAMP_12)
    assert len(find(steep, config, measured=measured).points) > 1000


def test_what_stands_on_a_ramp_stands_on_ground() -> None:
    depth, measured = rising(RAMP_5, box=(3.0, 0.4, 0.2))
    found = find(depth, ObstacleConfig(max_slope_deg=8.0, max_range_m=4.8), measured=measured)
    assert len(found.points) > 50
    assert np.abs(found.in_base[:, 0] - 3.1).max() < 0.25
    assert np.abs(found.in_base[:, 1]).max() < 0.3
    assert found.height.max() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("smeared_m", [0.01, 0.1, 0.25, 0.4])
def test_a_step_is_no_slope_however_a_network_smears_it(smeared_m: float) -> None:
    depth, measured = rising([(2.0, 0.0), (2.0 + smeared_m, 0.1), (6.0, 0.1)])
    config = ObstacleConfig(max_slope_deg=10.0, max_range_m=4.8)
    found = find(depth, config, measured=measured)
    without = find(depth, ObstacleConfig(max_range_m=4.8), measured=measured)
    assert len(found.points) == len(without.points) > 1000


def test_the_robot_itself_is_no_obstacle() -> None:
    """Camera and LiDAR see the robot's own bumper."""
    bumper = scene((0.9, 0.0, 0.6, 0.2))
    assert len(find(bumper).points) > 100
    config = ObstacleConfig(min_range_m=1.1)
    assert len(find(bumper, config).points) == 0
    assert len(find(scene((3.0, 0.0, 0.3, 0.3)), config).points) > 50
    with pytest.raises(ConfigError, match="min_range_m is 9"):
        ObstacleConfig(min_range_m=9.0)


@pytest.mark.parametrize(
    ("base_m", "drop_m", "below_m"),
    [(0.0, 0.0, 0.0), (0.2, 0.0, 0.2), (0.35, 0.0, 0.35), (0.0, 0.3, 0.0), (-0.3, 0.0, np.nan)],
)
def test_a_base_frame_above_the_ground_shows(base_m: float, drop_m: float, below_m: float) -> None:
    """base_link at the axle in place of base_footprint is detected; stairs ahead are not that."""
    frame = FloorWorld(100, lines=16, range_noise_m=0.02).frame(30, drop_m=drop_m)
    given, T_base_camera = frame.input, frame.T_base_camera.copy()
    T_base_camera[2, 3] -= base_m
    assert given.points is not None and given.T_camera_lidar is not None
    sparse = project_points(given.points, given.T_camera_lidar, given.camera)
    found = ground_below(sparse, given.camera, T_base_camera)
    np.testing.assert_allclose(found, below_m, atol=0.02)
    assert np.isnan(ground_below(sparse.subset(np.arange(5)), given.camera, T_base_camera))


def test_a_scan_tells_hits_free_ground_and_what_nobody_saw() -> None:
    found = find(scene((3.0, 0.0, 0.4, 0.3)))
    ranges = scan_ranges(found, 8.0)
    assert len(ranges) == 720
    beam = {deg: ranges[round((np.deg2rad(deg) + np.pi) / SCAN_STEP_RAD)] for deg in (0, 20, 90)}
    assert beam[0] == pytest.approx(3.0, abs=0.01)
    assert np.isposinf(beam[20]) and np.isnan(beam[90])


def test_nothing_known_is_no_obstacle_and_no_error() -> None:
    depth = np.full((240, 320), np.nan, np.float32)
    found = find(depth, measured=SparseDepth.from_arrays([], [], []))
    assert found.points.shape == (0, 3) and found.in_base.shape == (0, 2)
    assert np.isnan(scan_ranges(found, 8.0)).all()


def test_heights_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="the first must be smaller"):
        ObstacleConfig(min_height_m=1.0, max_height_m=0.5)


@pytest.mark.slow
def test_rendered_floors_stay_empty_and_boxes_are_found() -> None:
    """Rendering, LiDAR, network and fit as in the node; `depth_tools bench obstacles` does more."""
    robot = benchmark.Robot()
    cases = benchmark.run_floors(robot, frames=18, box=False)
    assert len(cases) == 36 and not any(case.wrong for case in cases)
    boxes = benchmark.run_floors(robot, frames=24, box=True)
    for network in benchmark.NETWORKS:
        marked = [case.marked for case in boxes if case.network == network]
        assert np.mean(marked) >= 0.95


@pytest.mark.slow
def test_rendered_ramps_drops_and_rain() -> None:
    """A frame of each; `depth_tools bench obstacles` does more."""
    table = benchmark.run_terrain(benchmark.Robot(), 1)
    marked = {(name, network): int(hits) for name, network, _, hits, _, _ in table.rows}
    for network in benchmark.NETWORKS:
        assert marked["ramp of 3 degrees", network]
        assert not marked["ramp of 3 degrees, max_slope_deg 10", network]
        assert marked["ramp of 12 degrees, max_slope_deg 10", network]
        assert marked["kerb of 10 cm, max_slope_deg 10", network]
        assert not marked["30 cm down", network]
        assert marked["30 cm down, max_drop_m 0.05", network]
        assert not marked["flat floor, max_slope_deg 10", network]
        assert not marked["flat floor, max_drop_m 0.05", network]
        assert not marked["flat floor, rain, 2 % of the rays", network]
