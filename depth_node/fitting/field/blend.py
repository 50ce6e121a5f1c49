# SPDX-License-Identifier: Apache-2.0
"""The field of a weak network and the field without one, blended: they err in different places.

The share of the field without a network is, in every cell of the grid,

    u = g / (1 + (s_c / s_f)^2 (e_c / e_f)^4)

with s the calibrated spread of the field with the network (f) and without (c), wider at the edges
of each, and e their mean left-out errors. g is LARGEST where the field without a network predicts
left-out points as well, and 0 where it is clearly worse. Noise of the points makes both look alike
and hides what a good network is worth; so there is nothing to blend where the base explains most of
the points' log depth. That also spares good networks the second field's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from depth_node.fitting.field.detail import DetailParameters
from depth_node.fitting.field.features import FieldFeatures
from depth_node.fitting.field.interval import COVERAGE, Spread, edge_factor
from depth_node.fitting.field.kernels import FieldKernels
from depth_node.fitting.field.lattice import Floats, Map, resized, sample
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.fitting.robust import median, weighted_mean, weighted_quantile

COLOUR_GAIN = 2.0  # of colour in the features of the field without a network
LEAST_POINTS = 100  # that tell which field is better
WEAK = 0.3  # median residual of the base over that of a constant from which a network is weak
LARGEST = 0.8  # of g
USEFUL, USELESS = 1.03, 1.13  # e_c / e_f from which g is less than that, and 0


@dataclass(frozen=True)
class FieldEstimate:
    """Log depth of a frame by one field, and what is known of its errors.

    log_depth: (h, w) on the grid. without_network: mean share of the field without a network.
    """

    log_depth: Map
    features: FieldFeatures
    left_out: LeaveOut
    detail: DetailParameters
    spread: Spread
    without_network: float = 0.0


def may_help(features: FieldFeatures) -> bool:
    """Whether the base explains so little of the points that a field without it may be as good."""
    if len(features) < LEAST_POINTS:
        return False
    log_z = features.y + features.log_base
    constant = median(np.abs(log_z - median(log_z)))
    return median(np.abs(features.y)) > WEAK * constant


def blended(field: FieldEstimate, bare: FieldEstimate, kernels: FieldKernels) -> FieldEstimate:
    """Both as one. bare: without a network, of the same points and left-out points."""
    worse = bare.detail.mean_error / max(field.detail.mean_error, 1e-9)
    gain = LARGEST * min(max((USELESS - worse) / (USELESS - USEFUL), 0.0), 1.0)
    if gain == 0:
        return field
    own, (own_factor, own_points, own_edge) = field.spread, _calibration(field, kernels)
    other_factor, other_points, other_edge = _calibration(bare, kernels)
    wider = other_factor / own_factor
    other = Spread(wider * bare.spread.nodes, wider * bare.spread.points)
    features = field.features
    share = other_edge * features.nodes_on_grid(other.nodes)
    share /= own_edge * features.nodes_on_grid(own.nodes)
    share *= share
    share *= np.float32(worse**4)
    share += 1
    np.divide(np.float32(gain), share, out=share)
    points = gain / (1 + (wider * other_points / own_points) ** 2 * worse**4)
    log_depth = bare.log_depth - field.log_depth
    log_depth *= share
    log_depth += field.log_depth
    miss = field.detail.miss + points * (bare.detail.miss - field.detail.miss)
    error = np.abs(np.expm1(miss))
    detail = replace(
        field.detail,
        miss=miss,
        error=error,
        mean_error=weighted_mean(error, field.left_out.weight),
    )
    nodes = resized(share, features.nodes.size).reshape(-1)
    spread = Spread(
        own.nodes + nodes * (other.nodes - own.nodes),
        own.points + points * (other.points - own.points),
    )
    return replace(
        field,
        log_depth=log_depth,
        detail=detail,
        spread=spread,
        without_network=float(nodes.mean()),
    )


def _calibration(estimate: FieldEstimate, kernels: FieldKernels) -> tuple[float, Floats, Map]:
    """By how much the spread must be widened to hold the left-out points, edges considered.

    Also the spread of the left-out points (m,) beside their edges, and the edges' factor (h, w).
    """
    features, left_out, spread = estimate.features, estimate.left_out, estimate.spread
    which, edge = left_out.which, edge_factor(estimate.log_depth, kernels.edges)
    points = spread.points * sample(edge, features.grid_row[which], features.grid_col[which])
    factor = weighted_quantile(estimate.detail.error / points, left_out.weight, COVERAGE)
    return max(factor, 1e-9), points, edge
