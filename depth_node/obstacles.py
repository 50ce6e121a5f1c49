# SPDX-License-Identifier: Apache-2.0
"""Obstacles: what of a depth map stands on the ground, for a robot's costmap.

The ground is the plane z = 0 of the robot's base frame, put right in every frame by a robust plane
through what lies near it (a suspension, a wrong pitch). A pixel is an obstacle where it passes the
gates, is higher than the least height, than the standard deviation of its height and than a seventh
of the camera's height (beyond 3 m more, as the square of the distance), and where its neighbours
say so too: one false cell blocks a path. Measured points that the fit believes count by themselves,
where they are higher than their noise, which the ground shows: of a low thing that the LiDAR meets
and the network does not see they are all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.config import ConfigError, option, validate
from depth_node.fitting.robust import MAD_TO_STD
from depth_node.gates import Gates
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import transform
from depth_node.geometry.sparse_depth import SparseDepth

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

GRID_PX = 320  # larger side of the grid of pixels that are judged
GROUND_BAND_M = 0.15  # what is nearer to the expected ground may be ground
GROUND_SCALE_M = 0.03  # Tukey's biweight: farther from the plane counts nothing
GROUND_STEPS = 4  # of reweighting
GROUND_EVERY = 6  # of the grid's rows and columns take part in the fit of the ground
MIN_GROUND_POINTS = 100  # fewer do not put the ground right
MAX_TILT, MAX_OFFSET_M = math.tan(math.radians(5)), 0.1  # more is no ground put right
FLOOR_ERROR = 1 / 7  # of the camera's height: what such an error of a floor's depth lifts it by
# Rows of LiDAR points on the floor lie apart as the square of the distance. From so far on their
# share of it, FAR_ERROR of the camera's height there, may be more.
NEAR_M, FAR_ERROR = 3.0, 0.1
SUPPORT_WINDOW, MIN_SUPPORT = 5, 5  # of the grid: a thin pole, one pixel wide, has just that
NOISE_POINTS, MIN_NOISE_POINTS = 1000, 30  # of the measured points tell their noise
USUAL_NOISE_M = 0.03  # of a LiDAR's range, where too few of its points hit the ground
SIGMAS = 4.0  # of a point's noise that are no height
FLATNESS = 1 / 150  # 2 cm in 3 m: so far a floor, and the plane through it, may be off
CELL_M, MIN_MEASURED = 0.15, 3  # so many measured points in a cube support each other
# The least share of the rays through a cube that a thing takes; a drop of rain takes one of them.
MIN_SHARE = 0.05
DENSITY_PX = 32  # squares in which the density of rays is counted
# Of a slope: of so many points, so many planes are tried; how near to it they lie, from how low on,
# over how far uphill, in steps, and across it, and which share of what is there.
SLOPE_POINTS, SLOPE_TRIES, MIN_SLOPE_POINTS = 600, 300, 60
SLOPE_NEAR_M, SLOPE_FOOT_M = 0.03, 0.06
SLOPE_LENGTH_M, SLOPE_STEP_M, SLOPE_GAP = 0.8, 0.2, 2
SLOPE_WIDTH_M, SLOPE_SHARE = 0.5, 0.8
MIN_SLOPE = math.tan(math.radians(1.0))
SCAN_STEP_RAD = math.radians(0.5)


@dataclass(frozen=True)
class ObstacleConfig:
    """Where the ground is and what stands on it, for `~/obstacles` and `~/obstacles/scan`."""

    base_frame: str = option(
        "",
        "The robot's TF frame on the ground, z up, such as base_footprint. Empty: TF is not asked;"
        " camera_height_m and camera_pitch_deg tell where the ground is.",
    )
    camera_height_m: float = option(
        0.0,
        "Height of the camera above the ground, where base_frame is empty; 0 = unknown, no"
        " obstacles.",
        unit="m",
        minimum=0.0,
        maximum=100.0,
    )
    camera_pitch_deg: float = option(
        0.0,
        "How far the camera looks down from level, where base_frame is empty.",
        unit="deg",
        minimum=-90.0,
        maximum=90.0,
    )
    min_height_m: float = option(
        0.02,
        "What is lower above the ground is no obstacle. Pixels between the measured points must be"
        " higher than a seventh of the camera's height too, measured points than four times their"
        " noise.",
        unit="m",
        minimum=0.0,
        maximum=10.0,
    )
    max_height_m: float = option(
        2.0,
        "What is higher above the ground is no obstacle: the robot passes below it.",
        unit="m",
        minimum=0.01,
        maximum=100.0,
    )
    max_slope_deg: float = option(
        0.0,
        "A slope that begins at the ground and is no steeper than this against it is ground too: a"
        " ramp ahead. It must be seen over 0.8 m uphill and 0.5 m across, its foot by the LiDAR."
        " 0 = what rises above the ground is an obstacle, however flat.",
        unit="deg",
        minimum=0.0,
        maximum=30.0,
    )
    max_drop_m: float = option(
        0.0,
        "What is seen deeper below the ground, such as stairs down, is marked min_height_m above"
        " where the ground should be, with a negative height; pixels between the measured points"
        " from a seventh of the camera's height on. 0 = a drop is no obstacle.",
        unit="m",
        minimum=0.0,
        maximum=100.0,
    )
    min_range_m: float = option(
        0.0,
        "What is nearer to the base frame's origin, over the ground, is left out: the robot's own"
        " body.",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
    )
    max_range_m: float = option(
        8.0,
        "What is farther from the base frame's origin, over the ground, is left out.",
        unit="m",
        minimum=0.1,
        maximum=1000.0,
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.min_height_m >= self.max_height_m:
            raise ConfigError(
                f"min_height_m is {self.min_height_m:g} and max_height_m {self.max_height_m:g}: the"
                " first must be smaller"
            )
        if self.min_range_m >= self.max_range_m:
            raise ConfigError(
                f"min_range_m is {self.min_range_m:g} and max_range_m {self.max_range_m:g}: the"
                " first must be smaller"
            )

    def fixed_ground(self) -> F64 | None:
        """T_base_camera (4, 4) of the parameters, the base frame below the camera; None without."""
        if self.camera_height_m <= 0:
            return None
        return camera_above_ground(self.camera_height_m, self.camera_pitch_deg)


def camera_above_ground(height_m: float, pitch_deg: float) -> F64:
    """T_base_camera (4, 4) of a camera so high above the base frame that looks ahead and down.

    Base frame: on the ground, x ahead, y left, z up.
    """
    pitch = math.radians(pitch_deg)
    T = np.eye(4)
    T[:3, :3] = [
        [0.0, -math.sin(pitch), math.cos(pitch)],
        [-1.0, 0.0, 0.0],
        [0.0, -math.cos(pitch), -math.sin(pitch)],
    ]
    T[2, 3] = height_m
    return T


@dataclass(frozen=True)
class Obstacles:
    """The obstacles of one frame.

    points: (N, 3) float32 m in the camera's frame. height: (N,) float32 m above the ground; of a
    drop negative, and the point is min_height_m above where the ground should be. ground: (3,) a,
    b, c of the ground's height a + b x + c y in the base frame. T_base_camera: (4, 4).
    level: gives (M, 3) float32 m, believed pixels on the ground in the camera's frame.
    """

    points: F32
    height: F32
    ground: F64
    T_base_camera: F64
    level: Callable[[], F32]

    @cached_property
    def in_base(self) -> F32:
        """(N, 2) float32 m, x and y of the points in the base frame."""
        return _over_ground(self.points, self.T_base_camera)

    @cached_property
    def free(self) -> F32:
        """(M, 2) float32 m, x and y in the base frame of believed pixels on the ground."""
        return _over_ground(self.level(), self.T_base_camera)


def _over_ground(points: F32, T_base_camera: F64) -> F32:
    T = T_base_camera.astype(np.float32)
    return points @ T[:2, :3].T + T[:2, 3]


class ObstacleFinder:
    """Finds obstacles in one frame after another; what depends on the camera alone is kept."""

    def __init__(self) -> None:
        self._key: tuple[Camera, int, bytes, float] | None = None
        self._grid: _Grid | None = None

    def find(
        self,
        gates: Gates,
        camera: Camera,
        T_base_camera: F64,
        config: ObstacleConfig,
        sparse: SparseDepth | None = None,
        inlier: NDArray[np.bool_] | None = None,
    ) -> Obstacles:
        """What stands on the ground. gates: of the depth map that this camera saw.

        sparse, inlier: the points that were measured, and (N,) which of them are believed.
        """
        every = max(1, round(max(gates.depth.shape) / GRID_PX))
        grid = self._prepare(camera, every, T_base_camera, config.max_range_m)
        depth, std = gates.thinned(every)
        within = gates.believed(every) & (depth < grid.reach)
        ground = _ground(depth, within, grid)
        a, b, c = ground.astype(np.float32)
        x0, y0, z0 = grid.start
        # The height over the ground is linear in the depth along each ray.
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
        found = [(grid.rays[stands] * depth[stands][:, None], height[stands])]
        if config.max_drop_m > 0:
            least = _least_height(config.max_drop_m, depth, unsure, camera_height, grid)
            deep = gates.believed(every) & (height < -least) & (offset < -rise * grid.reach)
            deep &= _support(deep)
            # Depth at which a ray comes to the least height: a costmap's band begins at the ground.
            to_ground = np.float32(config.min_height_m - offset) / rise[deep]
            found.append((grid.rays[deep] * to_ground[:, None], height[deep]))
        if sparse is not None and len(sparse):
            believed = np.ones(len(sparse), bool) if inlier is None else inlier
            found.append(_measured(sparse, believed, camera, grid, every, ground, config))
        points, heights = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if config.max_slope_deg > 0:
            over_slope = without_slope(
                _over_ground(points, T_base_camera), heights, config.max_slope_deg
            )
            kept = ~np.isnan(over_slope)
            points, heights = points[kept], over_slope[kept]
        if config.min_range_m > 0:
            outside = np.hypot(*_over_ground(points, T_base_camera).T) >= config.min_range_m
            points, heights = points[outside], heights[outside]

        def level() -> F32:
            low = within & (np.abs(height) < np.float32(lowest))
            return grid.rays[low] * depth[low][:, None]

        return Obstacles(points, heights, ground, T_base_camera, level)

    def _prepare(self, camera: Camera, every: int, T_base_camera: F64, max_range_m: float) -> _Grid:
        key = (camera, every, T_base_camera.tobytes(), max_range_m)
        if self._grid is None or key != self._key:
            self._grid = _Grid.of(camera, every, T_base_camera, max_range_m)
            self._key = key
        return self._grid


@dataclass(frozen=True)
class _Grid:
    """What depends on the camera alone, for a grid of h x w pixels.

    rays: (h, w, 3) of the camera. x, y, up: (h, w) the same in the base frame. reach: (h, w)
    m, the depth at which a ray leaves the range. flat_square: (h, w) squared length of a ray over
    the ground. start: (3,) m, the camera in the base frame. T_base_camera: (4, 4).
    """

    rays: F32
    x: F32
    y: F32
    up: F32
    reach: F32
    flat_square: F32
    start: F32
    T_base_camera: F64

    @classmethod
    def of(cls, camera: Camera, every: int, T_base_camera: F64, max_range_m: float) -> _Grid:
        rays = np.ascontiguousarray(camera.rays()[::every, ::every])
        base_rays = rays @ T_base_camera[:3, :3].T.astype(np.float32)
        start = T_base_camera[:3, 3].astype(np.float32)
        # |start + d ray| = range over the ground, a quadratic equation in d
        over = base_rays[..., :2].astype(np.float64)
        square, along = (over**2).sum(-1), over @ start[:2].astype(np.float64)
        inside = max_range_m**2 - float(start[:2] @ start[:2])
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = (np.sqrt(along**2 + square * inside) - along) / square
        reach = np.where(square > 0, reach, np.inf if inside > 0 else 0.0)
        x, y, up = (np.ascontiguousarray(base_rays[..., axis]) for axis in range(3))
        square = square.astype(np.float32)
        return cls(rays, x, y, up, reach.astype(np.float32), square, start, T_base_camera)


def _least_height(
    configured_m: float, depth: F32, unsure: F32, camera_height: float, grid: _Grid
) -> F32:
    """(h, w) m off the ground from which on a pixel counts. unsure: (h, w) m, of its height."""
    least = depth * depth
    least *= grid.flat_square
    least *= np.float32(max(configured_m, FAR_ERROR * camera_height) / NEAR_M**2)
    np.maximum(least, np.float32(max(configured_m, FLOOR_ERROR * camera_height)), out=least)
    return np.maximum(least, unsure, out=least)


def _support(stands: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(h, w): whether enough pixels stand around each."""
    window = (SUPPORT_WINDOW, SUPPORT_WINDOW)
    count = cv2.boxFilter(
        stands.view(np.uint8), -1, window, normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    return np.asarray(count >= MIN_SUPPORT, bool)


def _ground(depth: F32, within: NDArray[np.bool_], grid: _Grid) -> F64:
    """fit_ground() of some of the grid's pixels near the expected ground."""
    some = (slice(None, None, GROUND_EVERY),) * 2
    d = depth[some]
    height = d * grid.up[some] + grid.start[2]
    near = within[some] & (np.abs(height) < np.float32(GROUND_BAND_M))
    d = d[near]
    x, y = d * grid.x[some][near] + grid.start[0], d * grid.y[some][near] + grid.start[1]
    return fit_ground(np.stack([x, y, height[near]], axis=1))


def fit_ground(points: NDArray[np.floating]) -> F64:
    """(3,) a, b, c: the ground's height a + b x + c y, m; zeros where it cannot be put right.

    points: (N, 3) m in the base frame, near the expected ground. Reweighted least squares with
    Tukey's biweight.
    """
    if len(points) < MIN_GROUND_POINTS:
        return np.zeros(3)
    x, y, height = points.T.astype(np.float64)
    design = np.stack([np.ones(len(x)), x, y])
    plane, scale = np.zeros(3), 3 * GROUND_SCALE_M
    for _ in range(GROUND_STEPS):
        off = (height - plane @ design) / scale
        weighted = design * np.square(np.maximum(1 - off * off, 0.0))
        # A little of the expected ground: points in a line do not tell a plane.
        normal = weighted @ design.T + np.diag([1e-3, 1.0, 1.0])
        plane = np.linalg.solve(normal, weighted @ height)
        scale = max(scale / 2, GROUND_SCALE_M)
    is_ground = math.hypot(plane[1], plane[2]) <= MAX_TILT and abs(plane[0]) <= MAX_OFFSET_M
    return plane if is_ground else np.zeros(3)


def without_slope(xy: F32, height: F32, max_slope_deg: float) -> F32:
    """(n,) m, heights over a slope where there is one, NaN for what is the slope itself.

    xy: (n, 2) m over the ground. height: (n,) m above it, of what would be obstacles; drops have
    negative ones. A slope is a plane, no steeper than max_slope_deg, that begins at the ground and
    is what most of the points in its place are: so a step is none, however a network smears it.
    Found by RANSAC (Fischler and Bolles 1981).
    """
    high = np.flatnonzero(height > 0)
    some = high[np.linspace(0, len(high) - 1, min(len(high), SLOPE_POINTS)).astype(np.intp)]
    plane = _slope_plane(
        xy[some].astype(np.float64), height[some], math.tan(math.radians(max_slope_deg))
    )
    if plane is None:
        return height
    uphill = plane[1:] / np.hypot(plane[1], plane[2])
    along, across = xy @ uphill, xy @ np.array([-uphill[1], uphill[0]])
    above = height - (plane[0] + xy @ plane[1:])
    sample_near = np.abs(above[some]) < SLOPE_NEAR_M
    near = some[sample_near]
    left, right = float(across[near].min()), float(across[near].max())
    beside = (across > left - SLOPE_STEP_M) & (across < right + SLOPE_STEP_M)
    foot = float(along[near].min())
    place = np.column_stack([along[some] - foot, across[some] - left])[beside[some]]
    end = foot + _length_of_slope(place, sample_near[beside[some]])
    if (
        height[near].min() > SLOPE_FOOT_M
        or end - foot < SLOPE_LENGTH_M
        or right - left < SLOPE_WIDTH_M
    ):
        return height
    inside = beside & (along > foot - SLOPE_STEP_M) & (along < end) & (height > 0)
    over = np.where(inside & (above > 0), above, height).astype(np.float32)
    far = np.maximum(1, (xy**2).sum(axis=1) / NEAR_M**2)  # as the heights that count on the ground
    over[inside & (above < SLOPE_NEAR_M * far)] = np.nan
    return over


def _slope_plane(xy: F64, height: F32, steepest: float) -> F64 | None:
    """(3,) a, b, c of the plane a + b x + c y, in the slope allowed, that most points (n, 2) and
    (n,) lie near; None without enough."""
    if len(xy) < MIN_SLOPE_POINTS:
        return None
    design = np.column_stack([np.ones(len(xy)), xy])
    three = np.random.default_rng(0).integers(len(xy), size=(SLOPE_TRIES, 3))
    three = three[np.abs(np.linalg.det(design[three])) > SLOPE_WIDTH_M * SLOPE_STEP_M]
    planes = np.linalg.solve(design[three], height[three].astype(np.float64)[..., None])[..., 0]
    slope = np.hypot(planes[:, 1], planes[:, 2])
    planes = planes[(slope > MIN_SLOPE) & (slope < steepest)]
    if not len(planes):
        return None
    near = np.abs(height - planes @ design.T) < SLOPE_NEAR_M
    best = near[near.sum(axis=1).argmax()]
    if np.count_nonzero(best) < MIN_SLOPE_POINTS:
        return None
    plane: F64 = np.linalg.lstsq(design[best], height[best].astype(np.float64), rcond=None)[0]
    return plane if MIN_SLOPE < math.hypot(plane[1], plane[2]) < steepest else None


def _length_of_slope(place: F64, near: NDArray[np.bool_]) -> float:
    """m uphill over which the plane of a slope is met nearly everywhere across it.

    place: (n, 2) m uphill from its foot, and across. near: (n,) whether they lie near the plane.
    """
    row, col = np.floor(place / SLOPE_STEP_M).astype(np.intp).T
    shape = (max(int(row.max(initial=0)) + 1, 1), max(int(col.max(initial=0)) + 2, 1))
    seen, met = np.zeros(shape, bool), np.zeros(shape, bool)
    uphill = row >= 0
    seen[row[uphill], col[uphill] + 1] = True  # across from -1 on
    met[row[uphill & near], col[uphill & near] + 1] = True
    length, gap = 0, 0
    for number, (there, on) in enumerate(zip(seen.sum(axis=1), met.sum(axis=1), strict=True)):
        if there and on < SLOPE_SHARE * there:
            break
        gap = 0 if there else gap + 1
        if gap > SLOPE_GAP:
            break
        if there:
            length = number + 1
    return length * SLOPE_STEP_M


def _measured(
    sparse: SparseDepth,
    believed: NDArray[np.bool_],
    camera: Camera,
    grid: _Grid,
    every: int,
    ground: F64,
    config: ObstacleConfig,
) -> tuple[F32, F32]:
    """Those of the believed points (N,) that are obstacles: (n, 3) m in the camera's frame, and
    (n,) m of height.

    Their ground is the plane through those of them that lie near the expected one, because the
    depth map between them may be heaved; where they are few it is that of the depth map.
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

    # A pixel of the grid is so high; it is not where the point is, but nearly.
    rise = grid.up.copy()
    rise -= np.float32(b) * grid.x
    rise -= np.float32(c) * grid.y
    pixel = sparse.rows // every * rise.shape[1] + sparse.cols // every
    slack = np.float32(every / camera.fy)
    rise = rise.ravel().take(pixel)
    off_ground = sparse.depth * (rise + slack) > np.float32(config.min_height_m) - start
    if config.max_drop_m > 0:
        off_ground |= sparse.depth * (rise - slack) < -np.float32(config.max_drop_m) - start
    which = np.flatnonzero(off_ground & believed)
    points = seen(which)
    above = points @ up
    height = above + start
    noise_height = np.float32(SIGMAS * noise_m) * _steepness(points, above)
    xy = _over_ground(points, T_base_camera)
    range_m = np.hypot(xy[:, 0], xy[:, 1])
    np.maximum(noise_height, np.float32(FLATNESS) * range_m, out=noise_height)
    stands = height > np.maximum(noise_height, np.float32(config.min_height_m))
    stands &= (height < np.float32(config.max_height_m)) & (range_m < config.max_range_m)
    through = _rays_through(sparse, which, camera)
    stands[stands] = _supported(xy[stands], height[stands], through[stands])
    if config.max_drop_m == 0:
        return points[stands], height[stands].astype(np.float32)
    deep = height < -np.maximum(noise_height, np.float32(config.max_drop_m))
    # Where their rays come to the least height.
    to_edge = (start - np.float32(config.min_height_m)) / (start - height[deep])
    edge = points[deep] * to_edge[:, None]
    xy = _over_ground(edge, T_base_camera)
    kept = np.hypot(xy[:, 0], xy[:, 1]) < config.max_range_m
    kept &= _supported(xy, np.zeros(len(xy), np.float32), through[deep])
    return (
        np.concatenate([points[stands], edge[kept]]),
        np.concatenate([height[stands], height[deep][kept]]).astype(np.float32),
    )


def _rays_through(sparse: SparseDepth, which: NDArray[np.intp], camera: Camera) -> F32:
    """(n,) how many measured rays a cube of CELL_M takes in the image, at the points `which`."""
    down, across = -(-camera.height // DENSITY_PX), -(-camera.width // DENSITY_PX)
    square = sparse.rows // DENSITY_PX * across + sparse.cols // DENSITY_PX
    number = np.bincount(square, minlength=down * across).reshape(down, across)
    # What the LiDAR's field of view cuts is as dense as the square beside it.
    densest = cv2.dilate(number.astype(np.float32), np.ones((3, 3), np.uint8)).ravel()
    side_px = np.float32(CELL_M * camera.fx) / sparse.depth[which]
    return np.asarray(densest[square[which]] * (side_px / DENSITY_PX) ** 2, np.float32)


def _supported(xy: F32, height: F32, rays: F32) -> NDArray[np.bool_]:
    """(n,) whether enough points lie in the cube of each, of the rays (n,) that pass through it.

    xy: (n, 2) m over the ground. height: (n,) m above it.
    """
    least = np.maximum(np.float32(MIN_MEASURED), np.float32(MIN_SHARE) * rays)
    place = np.column_stack([xy, height])
    kept: NDArray[np.bool_] = np.zeros(len(xy), bool)
    for shift in (0.0, 0.5):  # what a border of cubes divides lies within one of the other grid
        x, y, z = np.floor(place / np.float32(CELL_M) + np.float32(shift)).astype(np.int64).T
        _, group, counts = np.unique(
            (x * 1_000_003 + y) * 10_007 + z, return_inverse=True, return_counts=True
        )
        kept |= counts[group] >= least
    return kept


def _steepness(points: F32, above: F32) -> F32:
    """(n,) sine at which rays to points (n, 3) meet the ground; above: (n,) m along its normal."""
    sine: F32 = np.abs(above) / np.sqrt((points * points).sum(1))
    return sine


def _range_noise(height: F32, steepness: F32) -> float:
    """m, one sigma along the ray of the points that hit the ground, as their heights show it.

    height: (n,) m over the ground, steepness: (n,) sine at which the rays meet it. A floor that is
    not even counts as noise, which it is here.
    """
    floor = (np.abs(height) < np.float32(GROUND_BAND_M)) & (steepness > 0.2)
    if np.count_nonzero(floor) < MIN_NOISE_POINTS:
        return USUAL_NOISE_M
    off = height[floor] / steepness[floor]
    return float(MAD_TO_STD * np.median(np.abs(off - np.median(off))))


def scan_ranges(found: Obstacles, max_range_m: float) -> F32:
    """(720,) m from -pi in steps of half a degree about the base frame's z: the nearest obstacle.

    +Inf where ground was seen and no obstacle, NaN where nothing was.
    """
    count = round(2 * math.pi / SCAN_STEP_RAD)
    ranges: F32 = np.full(count, np.nan, np.float32)
    ranges[_beams(found.free, count)] = np.inf
    nearest: F32 = np.full(count, np.inf, np.float32)
    beams = _beams(found.in_base, count)
    distance = np.hypot(found.in_base[:, 0], found.in_base[:, 1])
    np.minimum.at(nearest, beams, distance)
    hit = nearest <= max_range_m
    ranges[hit] = nearest[hit]
    return ranges


def _beams(xy: F32, count: int) -> NDArray[np.int64]:
    angle = np.arctan2(xy[:, 1], xy[:, 0]) + np.float32(math.pi)
    return (np.floor(angle / SCAN_STEP_RAD + 0.5).astype(np.int64)) % count
