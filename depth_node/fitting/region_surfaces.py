# SPDX-License-Identifier: Apache-2.0
"""One surface per region: weighted least squares of all regions at once.

All groups of points (region_groups.py) are solved together as sums over (group, point) pairs, so
that no step loops over regions. Input: points and a label map. Output: one row of parameters,
limits and spread per label. The method is SSF of Region-aware Depth Scale Adaptation (arXiv
2507.14879, section 3); robust weights, guards and intervals are additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from depth_node.fitting.region_groups import TINY, Groups, Regions, group_points
from depth_node.fitting.robust import HUBER, MAD_TO_STD
from depth_node.metrics import NORMAL_95

RANGE_FLOOR = 0.1  # the range of a region's points is at least this fraction of their median depth
HUBER_ITERATIONS = 5  # reweighted solutions after the first
INLIER_STDS = 3.0  # a point farther than this from its region's fit is an outlier

# A column is used if the columns before it leave at least this fraction of its variance
# unexplained. Float32 rounding alone leaves about 1e-13 of an exactly flat surface.
RANK_TOLERANCE = 1e-10
_CONSTANT_RATIO = 1e-6  # relative depth is constant if its spread is below this ratio to its mean

# The interval (see _predictive_spread). The growths were measured on held-out pixels of real
# frames; the factor of each frame corrects their mean error.
PRIOR_POINTS = 4.0
RING_GROWTH = 0.3  # per ring of neighbours borrowed
MAX_GROWTH_RINGS = 4
UNSEEN_GROWTH = 1.7  # of a region without points of its own
MAX_LEVERAGE = 0.95  # at 1 the left-out residual would be infinite
MIN_JUDGE_WEIGHT = 0.1  # points of lower weight do not calibrate the interval
MIN_RELATIVE_STD = 1e-4  # no sensor and no float32 map is more accurate

REGION_FIT_DTYPE = np.dtype(
    [
        ("label", np.int32),
        ("status", np.int32),  # RegionStatus
        ("points", np.int32),  # measured in the region itself
        ("inliers", np.int32),  # of all points used, including borrowed ones
        ("rings", np.int32),  # rings of neighbours borrowed; -1 = every point of the image
        # s: metres per unit of relative depth (global_disparity: 1/m per unit of disparity)
        ("scale", np.float32),
        ("slope_x", np.float32),  # a: metres per half image width
        ("slope_y", np.float32),  # b: metres per half image height
        ("shift", np.float32),  # t: metres (global_disparity: 1/m)
        ("residual", np.float32),  # standard deviation of the points about the fit, m
    ]
)

PARAMETERS = ("scale", "slope_x", "slope_y", "shift")


class RegionStatus(IntEnum):
    """How the parameters of a region were estimated."""

    OK = 0  # fitted to its own points
    EXPANDED = 1  # fitted with borrowed points of neighbours
    GLOBAL = 2  # uses the fit to all points of the image
    # The points did not determine all parameters: columns were dropped (y, x, then d).
    REDUCED = 3
    MEDIAN_SCALE = 4  # too few points in the image: one scale, no shift
    UNKNOWN = 5  # no depth


@dataclass(frozen=True)
class Rules:
    """Rules of the fit of surfaces.

    columns: number of d, x, y that are fitted besides the constant. in_disparity: fit 1/z, not z.
    enough: number of points with which a region does not borrow. robust: guard against outliers and
    extrapolation with the rules that follow (described in FitConfig). Depths in m.
    """

    columns: int
    in_disparity: bool
    enough: int
    min_depth_m: float
    max_depth_m: float
    robust: bool
    range_guard: float
    polarity_guard: bool


@dataclass(frozen=True)
class SurfaceTable:
    """The result of all fits for each label 0..K, NaN where there is none.

    parameters: (K+1, 4) of d, x, y, 1. limits: (K+1, 2) lowest and highest depth, m. basis:
    (K+1, C, 4) and weight: (K+1,) as in _Surfaces. spread: (K+1,) standard deviation of a new
    measurement if the parameters were exact, in m / depth ** spread_power. rows: (K+1,)
    REGION_FIT_DTYPE.
    """

    parameters: NDArray[np.float64]
    limits: NDArray[np.float64]
    basis: NDArray[np.float64]
    weight: NDArray[np.float64]
    spread: NDArray[np.float64]
    spread_power: int
    rows: NDArray[np.void]


@dataclass(frozen=True)
class RegionSamples:
    """The n usable points, (n,) each.

    d: relative depth or disparity. x, y: position in the image, -1..1. z: measured depth, m.
    """

    d: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    z: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.z)


def fit_surfaces(samples: RegionSamples, regions: Regions, rules: Rules) -> SurfaceTable:
    """Fit a surface to every region, or to the whole image if there are no regions."""
    groups, own = group_points(regions, rules.enough)
    d, z = samples.d[groups.point], samples.z[groups.point]
    target = 1 / z if rules.in_disparity else z
    columns = [d, samples.x[groups.point], samples.y[groups.point]][: rules.columns]
    if not columns:
        surfaces = _scale_only(groups, d, target)
        parameters, reduced = surfaces.parameters, surfaces.rank == 0
    else:
        surfaces = _regress(groups, columns, target, rules)
        parameters, reduced = _guarded(groups, columns, target, surfaces, rules)
    known = np.isfinite(parameters[:, 0])
    fitted = _evaluate(parameters[groups.group], [d, *columns[1:]])
    residual = np.where(known[groups.group], target - fitted, 0)  # set to unknown below
    inlier, spread = _inliers(groups, residual, surfaces, rules)

    # Each label takes its own group or, if it has none, the last one: all points of the image.
    count = len(regions.present)
    source = np.full(count, len(groups.label) - 1)
    source[groups.label[:-1]] = np.arange(len(groups.label) - 1)
    applied = source[regions.of_point][groups.point] == groups.group
    # Errors of a scale grow with depth, those of a disparity with its square.
    power = 2 if rules.in_disparity else 0 if columns else 1
    error = residual
    if power:
        metres = 1 / np.maximum(fitted, 1 / rules.max_depth_m) if rules.in_disparity else fitted
        error = (
            np.where(known[groups.group], z - metres, 0) / np.where(metres > 0, metres, 1) ** power
        )
    predictive = _predictive_spread(groups, error, surfaces, applied, z ** (1.0 - power))[source]
    predictive *= np.where((own == 0) & (source < len(groups.label) - 1), UNSEEN_GROWTH, 1)

    rows = np.zeros(count, REGION_FIT_DTYPE)
    rows["label"] = np.arange(count)
    rows["points"] = own
    rows["inliers"] = groups.sum(inlier.astype(np.float64))[source]
    rows["rings"] = 0 if regions.labels is None else groups.rings[source]
    for name, column in zip(PARAMETERS, parameters.T, strict=True):
        rows[name] = column[source]
    middle = groups.median(z)
    spread[~known] = np.nan
    predictive[~known[source]] = np.nan
    rows["residual"] = (spread * middle**2 if rules.in_disparity else spread)[source]
    status = np.where(rows["rings"] > 0, RegionStatus.EXPANDED, RegionStatus.OK)
    status[reduced[source]] = RegionStatus.REDUCED
    status[rows["rings"] < 0] = RegionStatus.GLOBAL
    status[~known[source]] = RegionStatus.UNKNOWN
    rows["status"] = status

    limits = np.tile([rules.min_depth_m, rules.max_depth_m], (count, 1))
    if rules.robust and rules.range_guard > 0:
        low = np.minimum.reduceat(np.where(inlier, z, np.inf), groups.start)
        high = np.maximum.reduceat(np.where(inlier, z, -np.inf), groups.start)
        room = rules.range_guard * np.maximum(high - low, RANGE_FLOOR * middle)
        guarded = np.stack([low - room, high + room], axis=1)[source]
        limits = np.clip(guarded, rules.min_depth_m, rules.max_depth_m)
    return SurfaceTable(
        parameters[source],
        limits,
        surfaces.basis[source],
        surfaces.weight[source],
        predictive,
        power,
        rows,
    )


def median_scale(samples: RegionSamples, regions: Regions, rules: Rules) -> SurfaceTable:
    """Fit z = s d with s = median(z / d) to the whole image, if points are too few for a method."""
    count = len(regions.present)
    positive = samples.d > 0
    ratios = samples.z[positive] / samples.d[positive]
    scale = float(np.median(ratios)) if ratios.size else np.nan
    # One point gives no spread; a few points get the interval of Student's distribution.
    spread = np.nan
    if ratios.size > 1:
        std = float(np.sqrt(np.sum((ratios / scale - 1) ** 2) / (ratios.size - 1)))
        spread = max(std, MIN_RELATIVE_STD) * float(stdtrit(ratios.size - 1, 0.975)) / NORMAL_95
    rows = np.zeros(count, REGION_FIT_DTYPE)
    rows["label"] = np.arange(count)
    rows["status"] = RegionStatus.MEDIAN_SCALE if ratios.size else RegionStatus.UNKNOWN
    rows["points"] = np.bincount(regions.of_point, minlength=count)
    rows["inliers"] = ratios.size
    rows["rings"] = 0 if regions.labels is None else -1
    rows["scale"] = scale
    if not ratios.size:
        for name in PARAMETERS:
            rows[name] = np.nan
    rows["residual"] = np.nan
    if ratios.size > 1:
        error = samples.z[positive] - scale * samples.d[positive]
        rows["residual"] = np.sqrt(np.sum(error**2) / (ratios.size - 1))
    parameters = np.tile([scale, 0.0, 0.0, 0.0 if ratios.size else np.nan], (count, 1))
    return SurfaceTable(
        parameters=parameters,
        limits=np.tile([rules.min_depth_m, rules.max_depth_m], (count, 1)),
        basis=np.zeros((count, 0, 4)),
        weight=np.full(count, max(ratios.size, 1), np.float64),
        spread=np.full(count, spread),
        spread_power=1,
        rows=rows,
    )


@dataclass(frozen=True)
class _Surfaces:
    """One fitted surface per group.

    parameters: (S, 4) of d, x, y, 1. rank: (S,) number of columns not dropped. basis: (S, C, 4)
    linear functionals of (d, x, y, 1), orthonormal over the weighted points of the group: a pixel's
    leverage is 1/weight + the sum of their squares. weight: (S,) sum of weights. residual, weights,
    leverage: (M,). orthonormal: values of the functionals at the points, C times (M,).
    """

    parameters: NDArray[np.float64]
    rank: NDArray[np.intp]
    basis: NDArray[np.float64]
    weight: NDArray[np.float64]
    residual: NDArray[np.float64]
    weights: NDArray[np.float64]
    leverage: NDArray[np.float64]
    orthonormal: list[NDArray[np.float64]]


def _least_squares(
    groups: Groups,
    columns: Sequence[NDArray[np.float64]],
    target: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> _Surfaces:
    """Solve the weighted least squares of all groups at once, by Gram-Schmidt on scaled columns.

    columns: d, x, y (the first one or all) of the pairs, (M,) each. They are orthogonalised in this
    order. The first column that depends linearly on those before it is dropped, with all after it.
    """
    group, total = groups.group, groups.sum
    weight = total(weights)
    mean_target = total(weights * target) / weight
    residual = target - mean_target[group]
    alive = np.ones(len(weight), dtype=bool)
    rank = np.zeros(len(weight), np.intp)
    leverage = weights / weight[group]
    parameters = np.zeros((len(weight), 4))
    parameters[:, 3] = mean_target
    basis = np.zeros((len(weight), len(columns), 4))
    orthogonal: list[NDArray[np.float64]] = []
    for k, column in enumerate(columns):
        mean = total(weights * column) / weight
        q = column - mean[group]
        spread = np.sqrt(total(weights * q * q) / weight)
        alive &= spread > _CONSTANT_RATIO * np.abs(mean) + TINY
        scale = np.where(alive, 1 / np.where(alive, spread, 1), 0)
        q *= scale[group]
        functional = basis[:, k]
        functional[:, k] = scale
        functional[:, 3] = -mean * scale
        for j, other in enumerate(orthogonal):
            overlap = total(weights * q * other)
            q -= overlap[group] * other
            functional -= overlap[:, None] * basis[:, j]
        square = total(weights * q * q)
        alive &= square > RANK_TOLERANCE * weight
        norm = np.where(alive, 1 / np.sqrt(np.where(alive, square, 1)), 0)
        q *= norm[group]
        functional *= norm[:, None]
        coefficient = total(weights * q * residual)
        residual -= coefficient[group] * q
        parameters += coefficient[:, None] * functional
        leverage += weights * q * q
        rank += alive
        orthogonal.append(q)
    return _Surfaces(parameters, rank, basis, weight, residual, weights, leverage, orthogonal)


def _regress(
    groups: Groups,
    columns: Sequence[NDArray[np.float64]],
    target: NDArray[np.float64],
    rules: Rules,
) -> _Surfaces:
    """Solve the least squares of all groups, in sensor mode with Huber's weights.

    The weights are 1 up to a threshold of the residual r, and fall as 1/|r| beyond it.
    """
    plain = _least_squares(groups, columns, target, np.ones(len(target)))
    if not rules.robust:
        return plain
    # The loop uses the orthonormal columns of the plain solution: their weighted normal equations
    # are well conditioned and cheaper than another orthogonalisation.
    q = np.stack([np.ones(len(target)), *plain.orthonormal])
    count = len(q)
    one, other = np.triu_indices(count)
    products = np.concatenate([q[one] * q[other], q * target])
    normal = np.empty((len(plain.weight), count, count))
    dropped = np.zeros((len(plain.weight), count))
    dropped[:, 1:] = np.arange(count - 1) >= plain.rank[:, None]
    residual = plain.residual
    tiny = 1e-6 * groups.sum(np.abs(target)) / plain.weight  # exact data must not divide by 0
    for _ in range(HUBER_ITERATIONS):
        size = np.abs(residual)
        limit = HUBER * MAD_TO_STD * groups.median(size)
        limit = np.maximum(limit, np.maximum(tiny, 1e-12))[groups.group]
        weights = limit / np.maximum(size, limit)
        sums = np.add.reduceat(products * weights, groups.start, axis=1)
        normal[:, one, other] = normal[:, other, one] = sums[: len(one)].T
        normal[:, range(count), range(count)] += dropped
        solution = np.linalg.solve(normal, sums[len(one) :].T[:, :, None])[:, :, 0]
        residual = target - np.einsum("km,mk->m", q, solution.take(groups.group, axis=0))
    return _least_squares(groups, columns, target, weights)


def _scale_only(groups: Groups, d: NDArray[np.float64], target: NDArray[np.float64]) -> _Surfaces:
    """Fit z = s d with s = median(z) / median(d) to every group (the median methods).

    A group whose scale is not above zero takes the scale of the image, if there is one.
    """
    middle = groups.median(d - d.min()) + d.min()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = groups.median(target) / middle
    valid = np.isfinite(scale) & (scale > 0)
    if not valid[-1]:
        scale[-1] = np.nan
    parameters = np.zeros((len(scale), 4))
    parameters[:, 0] = np.where(valid, scale, scale[-1])
    size = groups.sum(np.ones(len(d)))
    return _Surfaces(
        parameters=parameters,
        rank=valid.astype(np.intp),
        basis=np.zeros((len(scale), 0, 4)),
        weight=size,
        residual=target - parameters[groups.group, 0] * d,
        weights=np.ones(len(d)),
        leverage=1 / size[groups.group],
        orthonormal=[],
    )


def _guarded(
    groups: Groups,
    columns: Sequence[NDArray[np.float64]],
    target: NDArray[np.float64],
    surfaces: _Surfaces,
    rules: Rules,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return guarded parameters (S, 4) of every group, and which were reduced or guarded (S,).

    If d was dropped too, only a shift is left: the median in paper mode; in sensor mode a median
    shift, with the image's scale. With the polarity guard, in sensor mode, a surface that swaps
    near and far is fitted again with the image's scale.
    """
    parameters = surfaces.parameters.copy()
    reduced = surfaces.rank < len(columns)
    image_scale = surfaces.parameters[-1, 0] if rules.robust else 0.0
    flat = surfaces.rank == 0
    if flat.any():
        offset = target - image_scale * columns[0]
        low = offset.min()
        shift = groups.median(offset - low) + low
        parameters[flat] = 0
        parameters[flat, 0] = image_scale
        parameters[flat, 3] = shift[flat]
    if rules.robust and rules.polarity_guard and image_scale > 0:
        turned = ~flat & (parameters[:, 0] <= 0)
        turned[-1] = False
        if turned.any():
            some = groups.only(turned)
            pairs = turned[groups.group]
            rest = _least_squares(
                some,
                [column[pairs] for column in columns[1:]],
                (target - image_scale * columns[0])[pairs],
                surfaces.weights[pairs],
            )
            fixed = np.zeros((np.count_nonzero(turned), 4))
            fixed[:, 0] = image_scale
            # the first column of this fit is x
            fixed[:, 1 : len(columns)] = rest.parameters[:, : len(columns) - 1]
            fixed[:, 3] = rest.parameters[:, 3]
            parameters[turned] = fixed
            reduced |= turned
    return parameters, reduced


def _evaluate(
    parameters: NDArray[np.float64], columns: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return values (M,) of surfaces (M, 4) at points given by d, or by d, x and y, (M,) each."""
    value = parameters[:, 3].copy()
    for k, column in enumerate(columns):
        value += parameters[:, k] * column
    return value


def _inliers(
    groups: Groups, residual: NDArray[np.float64], surfaces: _Surfaces, rules: Rules
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return the inliers (M,) and the standard deviation (S,) of their residuals, in its units."""
    inlier = np.ones(len(residual), dtype=bool)
    if rules.robust:
        size = np.abs(residual)
        rough = MAD_TO_STD * groups.median(size)[groups.group]
        inlier = size <= np.maximum(INLIER_STDS * rough, 1e-9 * np.abs(surfaces.residual).max())
    count = groups.sum(inlier.astype(np.float64))
    square = groups.sum(np.where(inlier, residual, 0) ** 2)
    return inlier, np.sqrt(square / np.maximum(count - surfaces.rank - 1, 1))


def _predictive_spread(
    groups: Groups,
    residual: NDArray[np.float64],
    surfaces: _Surfaces,
    applied: NDArray[np.bool_],
    size: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the spread (S,) of new measurements about each fit; ± 1.96 spreads contain 95 %.

    The standard deviation at a pixel is the spread times sqrt(1 + leverage of the pixel). Steps:
    1. variance of the residuals of each group, with the frame's as a prior worth PRIOR_POINTS
       points (in proportion to the typical ``size`` of a group), because regions have few points;
    2. growth with every ring borrowed, because farther points are less similar to the region;
    3. one factor for the frame, so that 95 % of the points lie in the interval of the fit without
       them. Leave-one-out residuals are exact without another fit: r / (1 - leverage). This makes
       the interval valid for errors of any distribution, if the points cover the image evenly.

    applied: (M,) pairs whose group is the one that their point's label takes.
    """
    weights, group = surfaces.weights, groups.group
    leverage = np.minimum(surfaces.leverage, MAX_LEVERAGE)
    typical = groups.median(size)
    square = groups.sum(weights * residual**2)
    freedom = np.maximum(surfaces.weight - surfaces.rank - 1, 0)
    counted = np.ones(len(typical), dtype=bool)
    counted[-1] = len(typical) == 1  # the group of all points would count each point twice
    if freedom[counted].sum() <= 0:
        counted[:] = True
    prior = np.sum((square / typical**2)[counted]) / max(np.sum(freedom[counted]), 1.0)
    prior_square = np.maximum(prior, MIN_RELATIVE_STD**2) * typical**2 * PRIOR_POINTS
    growth = 1 + RING_GROWTH * np.clip(groups.rings, 0, MAX_GROWTH_RINGS)
    spread = growth * np.sqrt((square + prior_square) / (freedom + PRIOR_POINTS))

    # Suspected outliers do not widen the interval: they are no sample of the surfaces' errors.
    judges = applied & (weights > MIN_JUDGE_WEIGHT)
    g, h, w = group[judges], leverage[judges], weights[judges]
    left_out = residual[judges] / (1 - h)
    other_square = np.maximum(square[g] - w * residual[judges] ** 2 / (1 - h), 0)
    other_spread = growth[g] * np.sqrt(
        (other_square + prior_square[g]) / (np.maximum(freedom[g] - w, 0) + PRIOR_POINTS)
    )
    ratio = np.sort(np.abs(left_out) / (other_spread * np.sqrt(1 / (1 - h))))
    # The rank that contains 95 % of new points, not only of these (n + 1 instead of n).
    rank = min(int(np.ceil(0.95 * (len(ratio) + 1))), len(ratio)) - 1
    factor = ratio[rank] / NORMAL_95
    if rank == len(ratio) - 1:  # too few points for a 95 % bound: take that of a normal variable
        factor = max(factor, stdtrit(max(freedom[-1], 1.0), 0.975) / NORMAL_95)
    return np.maximum(factor * spread, MIN_RELATIVE_STD * typical)
