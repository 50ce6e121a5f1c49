# SPDX-License-Identifier: Apache-2.0
"""The obstacles of each frame, and a planar scan of the nearest of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.gates import Gates
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.obstacles.grid import Grid, over_ground
from depth_node.obstacles.ground import NEAR_M, ground_of_pixels, without_slope
from depth_node.obstacles.measured import measured_obstacles
from depth_node.obstacles.settings import ObstacleConfig

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

GRID_PX = 320  # larger side of the grid of pixels that are judged
FLOOR_ERROR = 1 / 7  # least height, times the camera's height: a usual depth error lifts the floor
FAR_ERROR = 0.1  # the same at the distance NEAR_M, from where it grows with the square of it
SUPPORT_WINDOW, MIN_SUPPORT = 5, 5  # in pixels of the grid: a pole one pixel wide just has so many
SCAN_STEP_RAD = math.radians(0.5)


@dataclass(frozen=True)
class Obstacles:
    """The obstacles of one frame.

    points: (N, 3) float32 m in the camera's frame. height: (N,) float32 m above the ground; for a
    drop it is negative, and the point is min_height_m above where the ground should be. ground:
    (3,) a, b, c of the ground's height a + b x + c y in the base frame. T_base_camera: (4, 4).
    level: returns (M, 3) float32 m in the camera's frame, pixels on the ground that pass the gates.
    """

    points: F32
    height: F32
    ground: F64
    T_base_camera: F64
    level: Callable[[], F32]

    @cached_property
    def in_base(self) -> F32:
        """x and y of the points in the base frame: (N, 2) float32 m."""
        return over_ground(self.points, self.T_base_camera)

    @cached_property
    def free(self) -> F32:
        """x and y in the base frame of pixels on the ground that pass the gates: (M, 2) float32 m.

        There the robot may drive.
        """
        return over_ground(self.level(), self.T_base_camera)


class ObstacleFinder:
    """Finds the obstacles of each frame; the grid of rays is kept while camera and pose stay."""

    def __init__(self) -> None:
        self._key: tuple[Camera, int, bytes, float] | None = None
        self._grid: Grid | None = None

    def find(
        self,
        gates: Gates,
        camera: Camera,
        T_base_camera: F64,
        config: ObstacleConfig,
        sparse: SparseDepth | None = None,
        inlier: NDArray[np.bool_] | None = None,
    ) -> Obstacles:
        """Return what stands on the ground.

        gates: of the depth map of this camera. T_base_camera: (4, 4). sparse: the measured points,
        or None. inlier: (N,) which of them the fit accepts; None for all.
        """
        every = max(1, round(max(gates.depth.shape) / GRID_PX))
        grid = self._prepare(camera, every, T_base_camera, config.max_range_m)
        depth, std = gates.thinned(every)
        within = gates.believed(every) & (depth < grid.reach)
        ground = ground_of_pixels(depth, within, grid)
        a, b, c = ground.astype(np.float32)
        x0, y0, z0 = grid.start
        # Along each ray the height over the ground is linear in the depth.
        rise = grid.x * -b
        rise -= c * grid.y
        rise += grid.up
        height = depth * rise
        offset = z0 - (a + b * x0 + c * y0)
        height += offset
        camera_height = float(z0 - a)
        lowest = max(config.min_height_m, FLOOR_ERROR * camera_height)
        unsure = std * np.abs(rise)
        least = _least_height(config.min_height_m, depth, unsure, camera_height, grid)
        stands = within & (height > least)  # NaN is not above
        stands &= height < np.float32(config.max_height_m)
        stands &= _support(stands)
        groups = [(grid.rays[stands] * depth[stands][:, None], height[stands])]
        if config.max_drop_m > 0:
            least = _least_height(config.max_drop_m, depth, unsure, camera_height, grid)
            deep = gates.believed(every) & (height < -least) & (offset < -rise * grid.reach)
            deep &= _support(deep)
            # A costmap ignores what is below the ground, so a drop is marked above the place where
            # its ray passes through the ground.
            to_ground = -offset / rise[deep]
            edge = grid.rays[deep] * to_ground[:, None]
            edge += np.float32(config.min_height_m) * T_base_camera[2, :3].astype(np.float32)
            groups.append((edge, height[deep]))
        if sparse is not None and len(sparse):
            believed = np.ones(len(sparse), bool) if inlier is None else inlier
            groups.append(measured_obstacles(sparse, believed, camera, grid, ground, config))
        points, heights = (np.concatenate(parts) for parts in zip(*groups, strict=True))
        if config.max_slope_deg > 0:
            over_slope = without_slope(
                over_ground(points, T_base_camera), heights, config.max_slope_deg
            )
            standing = ~np.isnan(over_slope)
            points, heights = points[standing], over_slope[standing]
        if config.min_range_m > 0:
            outside = np.hypot(*over_ground(points, T_base_camera).T) >= config.min_range_m
            points, heights = points[outside], heights[outside]

        def level() -> F32:
            low = within & (np.abs(height) < np.float32(lowest))
            return grid.rays[low] * depth[low][:, None]

        return Obstacles(points, heights, ground, T_base_camera, level)

    def _prepare(self, camera: Camera, every: int, T_base_camera: F64, max_range_m: float) -> Grid:
        key = (camera, every, T_base_camera.tobytes(), max_range_m)
        if self._grid is None or key != self._key:
            self._grid = Grid.of(camera, every, T_base_camera, max_range_m)
            self._key = key
        return self._grid


def _least_height(
    configured_m: float, depth: F32, unsure: F32, camera_height: float, grid: Grid
) -> F32:
    """Return the least height (h, w), m, at which a pixel counts as off the ground.

    depth: (h, w) m. unsure: (h, w) m, the standard deviation of the pixels' heights.
    """
    least = depth * depth
    least *= grid.flat_square
    least *= np.float32(max(configured_m, FAR_ERROR * camera_height) / NEAR_M**2)
    np.maximum(least, np.float32(max(configured_m, FLOOR_ERROR * camera_height)), out=least)
    return np.maximum(least, unsure, out=least)


def _support(stands: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (h, w) whether enough pixels around each one stand too."""
    window = (SUPPORT_WINDOW, SUPPORT_WINDOW)
    count = cv2.boxFilter(
        stands.view(np.uint8), -1, window, normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    return np.asarray(count >= MIN_SUPPORT, bool)


def scan_ranges(obstacles: Obstacles, max_range_m: float) -> F32:
    """Return the distance (720,), m, of the nearest obstacle in each direction from the base frame.

    The directions start at -pi about z and have steps of half a degree. +Inf where ground was seen
    and no obstacle, NaN where nothing was seen.
    """
    count = round(2 * math.pi / SCAN_STEP_RAD)
    ranges: F32 = np.full(count, np.nan, np.float32)
    ranges[_beams(obstacles.free, count)] = np.inf
    nearest: F32 = np.full(count, np.inf, np.float32)
    beams = _beams(obstacles.in_base, count)
    distance = np.hypot(obstacles.in_base[:, 0], obstacles.in_base[:, 1])
    np.minimum.at(nearest, beams, distance)
    hit = nearest <= max_range_m
    ranges[hit] = nearest[hit]
    return ranges


def _beams(xy: F32, count: int) -> NDArray[np.int64]:
    angle = np.arctan2(xy[:, 1], xy[:, 0]) + np.float32(math.pi)
    return (np.floor(angle / SCAN_STEP_RAD + 0.5).astype(np.int64)) % count
