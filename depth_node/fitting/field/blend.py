# SPDX-License-Identifier: Apache-2.0
"""Blend of the field of a weak network and the field without one: they err in different places.

The weight of the field without a network is, in every cell of the grid,

    u = g / (1 + (s_c / s_f)^2 (e_c / e_f)^4)

with s the calibrated spread of the field with the network (f) and without (c), wider at the edges
of each, and e their mean left-out errors. g is LARGEST if the field without a network predicts
left-out points as well as the other, and 0 if it is clearly worse. Noise of the points makes the
two errors similar and hides the advantage of a good network. Therefore nothing is blended if the
base explains most of the points' log depth, which also saves the time of the second field.
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

COLOUR_GAIN = 2.0  # factor of colour in the features of the field without a network
LEAST_POINTS = 100  # fewer points do not show which field is better
WEAK = 0.3  # a network is weak if its base's median residual over that of a constant exceeds this
LARGEST = 0.8  # maximum of g
USEFUL, USELESS = 1.03, 1.13  # e_c / e_f up to which g is LARGEST, and from which it is 0


@dataclass(frozen=True)
class FieldEstimate:
    """Log depth of a frame by one field, with the estimates of its errors.

    log_depth: (h, w) on the grid. without_network: mean weight of the field without a network.
    """

    log_depth: Map
    features: FieldFeatures
    left_out: LeaveOut
    detail: DetailParameters
    spread: Spread
    without_network: float = 0.0


def may_help(features: FieldFeatures) -> bool:
    """Return whether the base explains so little that a field without it may be as good."""
    if len(features) < LEAST_POINTS:
        return False
    log_z = features.y + features.log_base
    constant = median(np.abs(log_z - median(log_z)))
    return median(np.abs(features.y)) > WEAK * constant


def blended(field: FieldEstimate, bare: FieldEstimate, kernels: FieldKernels) -> FieldEstimate:
    """Blend both fields; return `field` itself if the other one is clearly worse.

    bare: the field without a network, of the same points and left-out points.
    """
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
    """Return the factor of the spread that makes intervals contain COVERAGE of the left-out points.

    Also return the spread at the left-out points (m,), widened at edges, and the factor (h, w) by
    which edges widen it.
    """
    features, left_out, spread = estimate.features, estimate.left_out, estimate.spread
    which, edge = left_out.which, edge_factor(estimate.log_depth, kernels.edges)
    points = spread.points * sample(edge, features.grid_row[which], features.grid_col[which])
    factor = weighted_quantile(estimate.detail.error / points, left_out.weight, COVERAGE)
    return max(factor, 1e-9), points, edge
