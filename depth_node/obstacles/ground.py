# SPDX-License-Identifier: Apache-2.0
"""The ground as the depth map shows it, and the slopes on it that a robot can drive."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from depth_node.obstacles.grid import Grid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

GROUND_BAND_M = 0.15  # what is nearer to the expected ground may be ground
GROUND_SCALE_M = 0.03  # Tukey's biweight: farther from the plane counts nothing
GROUND_STEPS = 4  # of reweighting
GROUND_EVERY = 6  # of the grid's rows and columns take part in the fit of the ground
MIN_GROUND_POINTS = 100  # fewer do not put the ground right
# Rows of LiDAR points on the floor lie apart as the square of the distance, which counts from here.
NEAR_M = 3.0
MAX_TILT, MAX_OFFSET_M = math.tan(math.radians(5)), 0.1  # more is no ground put right
# Of a slope: of so many points, so many planes are tried; how near to it they lie, from how low on,
# over how far uphill, in steps, and across it, and which share of what is there.
SLOPE_POINTS, SLOPE_TRIES, MIN_SLOPE_POINTS = 600, 300, 60
SLOPE_NEAR_M, SLOPE_FOOT_M = 0.03, 0.06
SLOPE_LENGTH_M, SLOPE_STEP_M, SLOPE_GAP = 0.8, 0.2, 2
SLOPE_WIDTH_M, SLOPE_SHARE = 0.5, 0.8
MIN_SLOPE = math.tan(math.radians(1.0))


def ground_of_pixels(depth: F32, within: NDArray[np.bool_], grid: Grid) -> F64:
    """fit_ground(), (3,), of some pixels near the expected ground: those within, (h, w), the gates'
    range. depth: (h, w) m."""
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
