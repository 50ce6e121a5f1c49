# SPDX-License-Identifier: Apache-2.0
"""The 95 % interval: kriging's spread, calibrated in each frame on the left-out errors.

docs/method.md gives the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from depth_node.fitting.field.detail import DetailParameters
from depth_node.fitting.field.features import FieldFeatures
from depth_node.fitting.field.image_loops import edges_numpy
from depth_node.fitting.field.kernels import FieldKernels, Kriged
from depth_node.fitting.field.lattice import Floats, Integers, Map, resized, rounded, sample
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.fitting.robust import weighted_mean, weighted_quantile
from depth_node.metrics import NORMAL_95

COVERAGE = 0.945  # of left-out points, which have noise: of the pixels it is 0.95 to 0.96
SILL_PRIOR = 5.0  # the image's prior variance counts as much as so many neighbours
# More than 1: with the standard deviation itself, wide intervals are too narrow and narrow ones
# too wide.
VARIANCE_POWER, SILL_POWER = 1.4, 1.35
MIN_SPREAD = 1e-3
FAR_GROWTH = 8.0  # per correlation length of position beyond the points' spacing
EDGE_GROWTH, EDGE_CAP = 12.0, 0.5  # per unit of a step of log depth, and the largest step counted
EDGE_CELLS = 4  # cells of the grid by which an edge may be displaced
MIN_EDGE_POINTS = 100  # with fewer points, points beside edges and wrong points look the same
QUANTILE_POINTS = 20  # the largest of fewer errors is no 95 % quantile and has less of the noise
FEW_GROWTH, FEW_GROWTH_SQUARED = 8.0, 40.0  # over n and n^2, n the number of points
MIN_BOUND_FRACTION = 0.1  # of a squared bound: declared noise is subtracted down to this


@dataclass(frozen=True)
class Spread:
    """Relative standard deviations, up to a common factor.

    nodes: (M,) at the nodes. points: (m,) at the left-out points.
    """

    nodes: Floats
    points: Floats

    @classmethod
    def of(cls, features: FieldFeatures, left_out: LeaveOut, kriged: Kriged) -> Spread:
        """Compute the spread from kriging's variances. kriged: (1, M) at the nodes."""
        far = resized(left_out.far_px, features.nodes.size).reshape(-1) / features.length_px
        return cls(
            _spread(kriged.variance[0], kriged.sill[0], far.astype(np.float64), left_out),
            _spread(left_out.variance, left_out.sill, left_out.distance, left_out),
        )


@dataclass(frozen=True)
class Bound:
    """The interval on the grid.

    relative: (h, w) 95 % bound of the relative error. factor: by which the spread is multiplied to
    get it. coverage: fraction of the left-out points inside their intervals.
    """

    relative: Map
    factor: float
    coverage: float

    def details(self) -> dict[str, Any]:
        """Return the interval's coverage at the left-out points and its factor, for an operator."""
        return {"coverage": self.coverage, "interval_factor": self.factor}


def relative_bound(
    features: FieldFeatures,
    left_out: LeaveOut,
    parameters: DetailParameters,
    log_depth: Map,
    spread: Spread,
    range_noise_m: float,
    kernels: FieldKernels,
) -> Bound:
    """Compute the bound of every cell: the spread times the factor that the left-out points need.

    log_depth: (h, w) of the result: at its steps an edge that is displaced by a pixel is wrong by
    the height of the step. range_noise_m: m, declared standard deviation of the points, 0: unknown.
    """
    edge = edge_factor(log_depth, kernels.edges)
    which = left_out.which
    own = spread.points * sample(edge, features.grid_row[which], features.grid_col[which])
    probability = min(COVERAGE + 0.8 / len(own), 1.0)
    # The largest of a few errors is too small as a bound of the next one.
    factor = 1 + FEW_GROWTH / left_out.points + FEW_GROWTH_SQUARED / left_out.points**2
    weight = left_out.weight
    if left_out.points >= MIN_EDGE_POINTS:
        weight = np.maximum(weight, beside_edges(features, which, log_depth, kernels))
    declared = min(left_out.points / QUANTILE_POINTS, 1.0) * features.declared[which]
    error = without_declared_noise(parameters.error, declared)
    factor *= weighted_quantile(error / own, weight, probability)
    bound = features.nodes_on_grid(factor * spread.nodes)
    bound *= edge
    if range_noise_m > 0:
        # A point has measurement noise, a pixel has not. (The nugget is no measure of the noise:
        # with a good network it is structure for which the points are too sparse.)
        noise = np.square(np.float32(NORMAL_95 * range_noise_m) * np.exp(-log_depth))
        squared = np.square(bound)
        bound = np.sqrt(np.maximum(squared - noise, np.float32(MIN_BOUND_FRACTION) * squared))
    coverage = weighted_mean(error <= factor * own, weight)
    return Bound(bound, factor, coverage)


def without_declared_noise(error: Floats, declared: Floats) -> Floats:
    """Subtract the points' declared deviations (m,) from relative errors (m,) at the points.

    At the interval's quantile variances subtract: |error| reaches 1.96 times the root of the sum of
    both variances. MIN_BOUND_FRACTION of each squared error stays, as with range_noise_m.
    """
    if not declared.any():
        return error
    squared = np.square(error)
    freed = squared - np.square(NORMAL_95 * declared)
    result: Floats = np.sqrt(np.maximum(freed, MIN_BOUND_FRACTION * squared))
    return result


def edge_factor(log_depth: Map, loop: Callable[..., None] = edges_numpy) -> Map:
    """Return the factor (h, w), 1 or more, that widens the interval at steps of the depth (h, w).

    A step is the range of log depth within one cell to every side. loop: a form of
    image_loops.edges.
    """
    result: Map = np.empty_like(log_depth)
    loop(log_depth, np.float32(EDGE_GROWTH), np.float32(EDGE_CAP), result)
    return result


def beside_edges(
    features: FieldFeatures, which: Integers, log_depth: Map, kernels: FieldKernels
) -> Floats:
    """Return 1 for points (m,) whose depth lies in the range of the cells around them, else 0.

    A network with soft edges puts correct points beside them on the wrong side, where they look
    like outliers. The interval must contain them; a wrong point is seldom as deep as anything near
    it. log_depth: (h, w).
    """
    rows, cols = rounded(features.grid_row[which]), rounded(features.grid_col[which])
    low, high = np.empty((2, len(which)), np.float32)
    kernels.extremes(log_depth, rows, cols, EDGE_CELLS, low, high)
    log_z = features.y[which] + features.log_base[which] + features.middle
    return ((low <= log_z) & (log_z <= high)).astype(np.float64)


def _local_sill(sill: Floats, left_out: LeaveOut) -> Floats:
    """Return the prior variance (m,) of each neighbourhood, shrunk towards the image's mean."""
    count = left_out.neighbours.indices.shape[1]
    middle = weighted_mean(left_out.sill, left_out.weight)
    result: Floats = (count * sill + SILL_PRIOR * middle) / (count + SILL_PRIOR)
    return result


def _spread(variance: Floats, sill: Floats, distance: Floats, left_out: LeaveOut) -> Floats:
    """Return the relative standard deviation (m,) up to a common factor.

    (variance + nugget)^0.7 sill^0.675, with the local prior variance as sill. It grows with the
    distance (m,) from the nearest point, in units of features 0 and 1, beyond the points' spacing:
    differences between the points say little about what is farther away.
    """
    result = (variance + left_out.nugget) ** (0.5 * VARIANCE_POWER)
    result *= _local_sill(sill, left_out) ** (0.5 * SILL_POWER)
    beyond = np.maximum(distance - left_out.spacing, 0)
    spread: Floats = np.maximum(result, MIN_SPREAD**SILL_POWER) * (1 + FAR_GROWTH * beyond)
    return spread


def forget_far(std: Map, far_px: Map, max_extrapolation: float) -> None:
    """Set std (H, W) to NaN in place where no point is near enough to estimate it.

    far_px: (h, w) px, distance from the nearest point. max_extrapolation: largest distance, as a
    fraction of the image's larger side.
    """
    height, width = std.shape
    limit_px = max_extrapolation * max(height, width)
    if far_px.max() > limit_px:
        std[resized(far_px, (width, height)) > limit_px] = np.nan
