# SPDX-License-Identifier: Apache-2.0
"""The 95 % interval: kriging's spread, calibrated in each frame by the left-out errors.

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

COVERAGE = 0.945  # of left-out points, which have noise: it is 0.95 to 0.96 of the pixels
SILL_PRIOR = 5.0  # neighbours' worth of trust in the image's prior variance
VARIANCE_POWER, SILL_POWER = 1.4, 1.35  # wide intervals are still too narrow, narrow ones too wide
MIN_SPREAD = 1e-3
FAR_GROWTH = 8.0  # per correlation length of position beyond the points' spacing
EDGE_GROWTH, EDGE_CAP = 12.0, 0.5  # per unit of a step of log depth, up to such a step
EDGE_CELLS = 4  # of the grid, within which an edge may be out of place
MIN_EDGE_POINTS = 100  # fewer points do not tell edges from wrong points
QUANTILE_POINTS = 20  # the largest of fewer errors is no 95 % quantile: their noise is less there
FEW_GROWTH, FEW_GROWTH_SQUARED = 8.0, 40.0  # over n and n^2
MIN_BOUND_FRACTION = 0.1  # of a squared bound that stays without the points' declared noise


@dataclass(frozen=True)
class Spread:
    """Relative standard deviations, up to a common factor.

    nodes: (M,) at the nodes. points: (m,) at the left-out points.
    """

    nodes: Floats
    points: Floats

    @classmethod
    def of(cls, features: FieldFeatures, left_out: LeaveOut, kriged: Kriged) -> Spread:
        """From what kriging says. kriged: (1, M) at the nodes."""
        far = resized(left_out.far_px, features.nodes.size).reshape(-1) / features.length_px
        return cls(
            _spread(kriged.variance[0], kriged.sill[0], far.astype(np.float64), left_out),
            _spread(left_out.variance, left_out.sill, left_out.distance, left_out),
        )


@dataclass(frozen=True)
class Bound:
    """The interval on the grid.

    relative: (h, w) 95 % bound of the relative error. factor: by which the spread is widened to it.
    coverage: fraction of the left-out points inside theirs.
    """

    relative: Map
    factor: float
    coverage: float

    def details(self) -> dict[str, Any]:
        """How the interval came out at the left-out points, for an operator."""
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
    """The spread of every cell, widened so that the left-out points lie within theirs.

    log_depth: (h, w) of the answer: at its steps an edge that is out of place by a pixel is wrong
    by the height of the step. range_noise_m: m, declared
    standard deviation of the points, 0: unknown.
    """
    edge = edge_factor(log_depth, kernels.edges)
    which = left_out.which
    own = spread.points * sample(edge, features.grid_row[which], features.grid_col[which])
    probability = min(COVERAGE + 0.8 / len(own), 1.0)
    # The largest of few errors is no bound of the next.
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
        # A point has measurement noise, a pixel has not. (The nugget is no measure of it: where a
        # good network leaves little, it is structure that the points are too sparse for.)
        noise = np.square(np.float32(NORMAL_95 * range_noise_m) * np.exp(-log_depth))
        squared = np.square(bound)
        bound = np.sqrt(np.maximum(squared - noise, np.float32(MIN_BOUND_FRACTION) * squared))
    coverage = weighted_mean(error <= factor * own, weight)
    return Bound(bound, factor, coverage)


def without_declared_noise(error: Floats, declared: Floats) -> Floats:
    """(m,) relative errors at points, freed of the points' declared deviations (m,).

    At the quantile of the interval variances subtract: |error| reaches 1.96 times the root of the
    sum of both. A part of each error stays, as where the noise of all points is declared.
    """
    if not declared.any():
        return error
    squared = np.square(error)
    freed = squared - np.square(NORMAL_95 * declared)
    result: Floats = np.sqrt(np.maximum(freed, MIN_BOUND_FRACTION * squared))
    return result


def edge_factor(log_depth: Map, loop: Callable[..., None] = edges_numpy) -> Map:
    """(h, w) from 1, by which the interval is wider where the depth steps within a cell or two.

    loop: a form of edges.
    """
    result: Map = np.empty_like(log_depth)
    loop(log_depth, np.float32(EDGE_GROWTH), np.float32(EDGE_CAP), result)
    return result


def beside_edges(
    features: FieldFeatures, which: Integers, log_depth: Map, kernels: FieldKernels
) -> Floats:
    """(m,) 1 where a point is as deep as some cell about it, else 0.

    A network with soft edges puts honest points beside them on the wrong side, where they look like
    outliers. The interval must hold them; a wrong point is seldom as deep as anything near it.
    """
    rows, cols = rounded(features.grid_row[which]), rounded(features.grid_col[which])
    low, high = np.empty((2, len(which)), np.float32)
    kernels.extremes(log_depth, rows, cols, EDGE_CELLS, low, high)
    log_z = features.y[which] + features.log_base[which] + features.middle
    return ((low <= log_z) & (log_z <= high)).astype(np.float64)


def _local_sill(sill: Floats, left_out: LeaveOut) -> Floats:
    """(m,) prior variance that the neighbourhoods speak for, drawn towards the image's."""
    count = left_out.neighbours.indices.shape[1]
    middle = weighted_mean(left_out.sill, left_out.weight)
    result: Floats = (count * sill + SILL_PRIOR * middle) / (count + SILL_PRIOR)
    return result


def _spread(variance: Floats, sill: Floats, distance: Floats, left_out: LeaveOut) -> Floats:
    """(m,) relative standard deviation up to a factor.

    Kriging's variance and nugget times the local prior variance. It grows with the distance (m,)
    from the nearest point, in features 0 and 1, beyond the points' usual distance: what the points
    say of each other says little of what lies beyond them.
    """
    result = (variance + left_out.nugget) ** (0.5 * VARIANCE_POWER)
    result *= _local_sill(sill, left_out) ** (0.5 * SILL_POWER)
    beyond = np.maximum(distance - left_out.spacing, 0)
    spread: Floats = np.maximum(result, MIN_SPREAD**SILL_POWER) * (1 + FAR_GROWTH * beyond)
    return spread


def forget_far(std: Map, far_px: Map, max_extrapolation: float) -> None:
    """NaN in std (H, W) where no point is near enough to judge by, in place.

    far_px: (h, w) distance from the nearest point. max_extrapolation: fraction of the larger side.
    """
    height, width = std.shape
    limit_px = max_extrapolation * max(height, width)
    if far_px.max() > limit_px:
        std[resized(far_px, (width, height)) > limit_px] = np.nan
