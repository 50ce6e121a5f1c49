# SPDX-License-Identifier: Apache-2.0
"""The ground plane fitted to a depth map, and slopes on it that a robot can drive."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from depth_node.obstacles.grid import Grid

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

GROUND_BAND_M = 0.15  # points nearer than this to the expected ground may be ground
GROUND_SCALE_M = 0.03  # of Tukey's biweight: points farther from the plane have the weight 0
GROUND_STEPS = 4  # of reweighting
GROUND_EVERY = 6  # every n-th row and column of the grid takes part in the fit of the ground
MIN_GROUND_POINTS = 100  # with fewer the expected ground is not corrected
# The spacing of scan rows on the floor grows with the square of the distance; beyond this distance
# it matters.
NEAR_M = 3.0
MAX_TILT, MAX_OFFSET_M = math.tan(math.radians(5)), 0.1  # a larger correction is not the ground's
# RANSAC of a slope: points in the sample, planes that are tried, fewest points on the plane.
SLOPE_POINTS, SLOPE_TRIES, MIN_SLOPE_POINTS = 600, 300, 60
# Largest distance of a point from the plane; largest height of the slope's lowest point.
SLOPE_NEAR_M, SLOPE_FOOT_M = 0.03, 0.06
# Least length uphill; length of a step in which it is measured; most empty steps in a row.
SLOPE_LENGTH_M, SLOPE_STEP_M, SLOPE_GAP = 0.8, 0.2, 2
# Least width; least fraction of the occupied cells of a step that lie on the plane.
SLOPE_WIDTH_M, SLOPE_SHARE = 0.5, 0.8
MIN_SLOPE = math.tan(math.radians(1.0))


def ground_of_pixels(depth: F32, within: NDArray[np.bool_], grid: Grid) -> F64:
    """Return fit_ground(), (3,), of a subset of the pixels near the expected ground.

    depth: (h, w) m. within: (h, w) bool, the pixels that may be used.
    """
    some = (slice(None, None, GROUND_EVERY),) * 2
    d = depth[some]
    height = d * grid.up[some] + grid.start[2]
    near = within[some] & (np.abs(height) < np.float32(GROUND_BAND_M))
    d = d[near]
    x, y = d * grid.x[some][near] + grid.start[0], d * grid.y[some][near] + grid.start[1]
    return fit_ground(np.stack([x, y, height[near]], axis=1))


def fit_ground(points: NDArray[np.floating]) -> F64:
    """Fit the ground's height a + b x + c y, m, to points; returns a, b, c (3,).

    points: (N, 3) m in the base frame, near the expected ground. Iteratively reweighted least
    squares with Tukey's biweight. Returns zeros, the expected ground, if there are too few points
    or the plane is too far from it.
    """
    if len(points) < MIN_GROUND_POINTS:
        return np.zeros(3)
    x, y, height = points.T.astype(np.float64)
    design = np.stack([np.ones(len(x)), x, y])
    plane, scale = np.zeros(3), 3 * GROUND_SCALE_M
    for _ in range(GROUND_STEPS):
        off = (height - plane @ design) / scale
        weighted = design * np.square(np.maximum(1 - off * off, 0.0))
        # A weak prior of the expected ground: points on one line do not determine a plane.
        normal = weighted @ design.T + np.diag([1e-3, 1.0, 1.0])
        plane = np.linalg.solve(normal, weighted @ height)
        scale = max(scale / 2, GROUND_SCALE_M)
    is_ground = math.hypot(plane[1], plane[2]) <= MAX_TILT and abs(plane[0]) <= MAX_OFFSET_M
    return plane if is_ground else np.zeros(3)


def without_slope(xy: F32, height: F32, max_slope_deg: float) -> F32:
    """Return heights (n,), m, over a slope where there is one, NaN for points of the slope itself.

    xy: (n, 2) m over the ground. height: (n,) m above the ground, of the points that would be
    obstacles; negative for drops. A slope is a plane, no steeper than max_slope_deg, that begins at
    the ground and contains most of the points above its area: so a step is not a slope, however a
    network smears it. The plane is found by RANSAC (Fischler and Bolles 1981).
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
    far = np.maximum(1, (xy**2).sum(axis=1) / NEAR_M**2)  # grows like the least height on the floor
    over[inside & (above < SLOPE_NEAR_M * far)] = np.nan
    return over


def _slope_plane(xy: F64, height: F32, steepest: float) -> F64 | None:
    """Return a, b, c (3,) of the plane a + b x + c y that most points lie near, or None.

    xy: (n, 2) m. height: (n,) m. steepest: largest gradient. None if there are too few points, or
    if no plane has a gradient between MIN_SLOPE and steepest.
    """
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
    """Return how far uphill, m, points across the whole width lie near the plane of a slope.

    place: (n, 2) m uphill from its foot, and across. near: (n,) whether the points lie near the
    plane.
    """
    row, col = np.floor(place / SLOPE_STEP_M).astype(np.intp).T
    shape = (max(int(row.max(initial=0)) + 1, 1), max(int(col.max(initial=0)) + 2, 1))
    seen, met = np.zeros(shape, bool), np.zeros(shape, bool)
    uphill = row >= 0
    seen[row[uphill], col[uphill] + 1] = True  # columns begin at -1
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
