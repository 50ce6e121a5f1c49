# SPDX-License-Identifier: Apache-2.0
"""Measured points that stand on the ground: the only evidence of a low object that the network does
not see."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.robust import MAD_TO_STD
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import transform
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.obstacles.grid import Grid, over_ground
from depth_node.obstacles.ground import GROUND_BAND_M, MIN_GROUND_POINTS, fit_ground
from depth_node.obstacles.settings import ObstacleConfig

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

NOISE_POINTS, MIN_NOISE_POINTS = 1000, 30  # sample, and fewest ground points, to estimate the noise
USUAL_NOISE_M = 0.03  # of a LiDAR's range, used if too few of its points hit the ground
SIGMAS = 4.0  # a height of fewer standard deviations of the noise does not count
FLATNESS = 1 / 150  # 2 cm in 3 m: largest deviation of a floor from the plane fitted to it
CELL_M, MIN_MEASURED = 0.15, 3  # so many measured points in a cube of this side support each other
# Least fraction of the rays through a cube that an object returns; a rain drop returns one ray.
MIN_SHARE = 0.05
# Detection of a ground below the expected one: largest distance of the points used, how far below
# the camera they may be, how many times more there must be than on the expected ground, and the
# least fraction of them at one height.
GROUND_SEEN_M, MOST_BELOW_M, MUCH_MORE, FLAT_SHARE = 5.0, 3.0, 10, 0.7
DENSITY_PX = 32  # squares in which the density of rays is counted


def measured_obstacles(
    sparse: SparseDepth,
    believed: NDArray[np.bool_],
    camera: Camera,
    grid: Grid,
    ground: F64,
    config: ObstacleConfig,
) -> tuple[F32, F32]:
    """Return the measured points that are obstacles: (n, 3) m in the camera's frame.

    The second result is their height (n,), m; a drop has a negative height, and its point is at the
    least height above the place where its ray passes through the ground. believed: (N,) bool, which
    points of `sparse` are used. ground: (3,) that of the depth map. The ground of the measured
    points is a plane fitted to those near the expected ground, because the depth map between them
    may be too high; if there are few, it is `ground`.
    """
    rays, T_base_camera = camera.rays(), grid.T_base_camera

    def seen(some: NDArray[np.intp]) -> F32:
        return rays[sparse.rows[some], sparse.cols[some]] * sparse.depth[some][:, None]

    sample = np.arange(0, len(sparse), 1 + len(sparse) // NOISE_POINTS)
    some = seen(sample[believed[sample]])
    in_base = transform(T_base_camera, some)
    near = np.abs(in_base[:, 2]) < GROUND_BAND_M
    if np.count_nonzero(near) >= MIN_GROUND_POINTS:
        ground = fit_ground(in_base[near])
    a, b, c = ground
    plane = np.array([-b, -c, 1.0])
    up = (plane @ T_base_camera[:3, :3]).astype(np.float32)
    start = np.float32(plane @ T_base_camera[:3, 3] - a)
    above = some @ up
    noise_m = _range_noise(above + start, _steepness(some, above))

    # The height of each point, from the ray of a pixel of the grid near it; `slack` allows for the
    # offset between the two.
    rise = grid.up.copy()
    rise -= np.float32(b) * grid.x
    rise -= np.float32(c) * grid.y
    pixel = sparse.rows // grid.every * rise.shape[1] + sparse.cols // grid.every
    slack = np.float32(grid.every / camera.fy)
    rise = rise.ravel().take(pixel)
    off_ground = sparse.depth * (rise + slack) > np.float32(config.min_height_m) - start
    if config.max_drop_m > 0:
        off_ground |= sparse.depth * (rise - slack) < -np.float32(config.max_drop_m) - start
    which = np.flatnonzero(off_ground & believed)
    points = seen(which)
    above = points @ up
    height = above + start
    noise_height = np.float32(SIGMAS * noise_m) * _steepness(points, above)
    xy = over_ground(points, T_base_camera)
    range_m = np.hypot(xy[:, 0], xy[:, 1])
    np.maximum(noise_height, np.float32(FLATNESS) * range_m, out=noise_height)
    stands = height > np.maximum(noise_height, np.float32(config.min_height_m))
    stands &= (height < np.float32(config.max_height_m)) & (range_m < config.max_range_m)
    through = _rays_through(sparse, which, camera)
    stands[stands] = _supported(xy[stands], height[stands], through[stands])
    if config.max_drop_m == 0:
        return points[stands], height[stands].astype(np.float32)
    deep = height < -np.maximum(noise_height, np.float32(config.max_drop_m))
    # Above the points at which their rays pass through the ground.
    edge = points[deep] * (start / (start - height[deep]))[:, None]
    edge += np.float32(config.min_height_m) * T_base_camera[2, :3].astype(np.float32)
    xy = over_ground(edge, T_base_camera)
    marked = np.hypot(xy[:, 0], xy[:, 1]) < config.max_range_m
    marked &= _supported(xy, np.zeros(len(xy), np.float32), through[deep])
    return (
        np.concatenate([points[stands], edge[marked]]),
        np.concatenate([height[stands], height[deep][marked]]).astype(np.float32),
    )


def ground_below(sparse: SparseDepth, camera: Camera, T_base_camera: F64) -> float:
    """Return how far below the expected ground the measured points (N,) see a ground, m.

    0.0 if they see it about where it is expected, NaN if they do not show it. Nothing below the
    expected ground is ever an obstacle, so a base frame at the height of the axle would hide low
    obstacles.
    """
    sample = np.arange(0, len(sparse), 1 + len(sparse) // NOISE_POINTS)
    rays = camera.rays()[sparse.rows[sample], sparse.cols[sample]]
    in_base = transform(T_base_camera, rays * sparse.depth[sample][:, None])
    away = np.hypot(*(in_base[:, :2] - T_base_camera[:2, 3]).T)
    in_base = in_base[np.isfinite(in_base).all(axis=1) & (away < GROUND_SEEN_M)]
    height = in_base[:, 2]
    as_expected = np.count_nonzero(np.abs(height) < GROUND_BAND_M)
    low = in_base[(height <= -GROUND_BAND_M) & (height > T_base_camera[2, 3] - MOST_BELOW_M)]
    if as_expected >= MIN_NOISE_POINTS and as_expected > len(low):
        return 0.0
    if len(low) < MIN_NOISE_POINTS or len(low) < MUCH_MORE * as_expected:
        return float("nan")
    below = -float(np.median(low[:, 2]))
    flat = np.abs(low[:, 2] + below) < GROUND_BAND_M / 2
    return below if flat.mean() > FLAT_SHARE else float("nan")


def _rays_through(sparse: SparseDepth, which: NDArray[np.intp], camera: Camera) -> F32:
    """Return how many measured rays (n,) pass through a cube of CELL_M at each point `which`."""
    down, across = -(-camera.height // DENSITY_PX), -(-camera.width // DENSITY_PX)
    square = sparse.rows // DENSITY_PX * across + sparse.cols // DENSITY_PX
    number = np.bincount(square, minlength=down * across).reshape(down, across)
    # A square that the border of the LiDAR's field of view crosses counts as dense as its densest
    # neighbour.
    densest = cv2.dilate(number.astype(np.float32), np.ones((3, 3), np.uint8)).ravel()
    side_px = np.float32(CELL_M * camera.fx) / sparse.depth[which]
    return np.asarray(densest[square[which]] * (side_px / DENSITY_PX) ** 2, np.float32)


def _supported(xy: F32, height: F32, rays: F32) -> NDArray[np.bool_]:
    """Return (n,) whether the cube of each point contains enough points.

    xy: (n, 2) m over the ground. height: (n,) m above it. rays: (n,) that pass through the cube.
    """
    least = np.maximum(np.float32(MIN_MEASURED), np.float32(MIN_SHARE) * rays)
    place = np.column_stack([xy, height])
    supported: NDArray[np.bool_] = np.zeros(len(xy), bool)
    for shift in (0.0, 0.5):  # points split by a border of one grid share a cube of the other
        x, y, z = np.floor(place / np.float32(CELL_M) + np.float32(shift)).astype(np.int64).T
        _, group, counts = np.unique(
            (x * 1_000_003 + y) * 10_007 + z, return_inverse=True, return_counts=True
        )
        supported |= counts[group] >= least
    return supported


def _steepness(points: F32, above: F32) -> F32:
    """Return the sine (n,) of the angle between the rays to points (n, 3) and the ground.

    above: (n,) m, the points' component along the ground's normal.
    """
    sine: F32 = np.abs(above) / np.sqrt((points * points).sum(1))
    return sine


def _range_noise(height: F32, steepness: F32) -> float:
    """Return the standard deviation, m, along the ray, estimated from points on the ground.

    height: (n,) m over the ground, steepness: (n,) sine of the angle between ray and ground. An
    uneven floor increases the result, as it should.
    """
    floor = (np.abs(height) < np.float32(GROUND_BAND_M)) & (steepness > 0.2)
    if np.count_nonzero(floor) < MIN_NOISE_POINTS:
        return USUAL_NOISE_M
    off = height[floor] / steepness[floor]
    return float(MAD_TO_STD * np.median(np.abs(off - np.median(off))))
