# SPDX-License-Identifier: Apache-2.0
"""Method `field`: a robust base fit, and the residual of the points spread over the image.

    depth = B exp(m + U + C)

B    base: a robust line from the network's declared space (depth, disparity or log depth) to metres
m    median of the points' log residual; y = log z - log B - m is kriged
U    local kriging of y on a coarse lattice of nodes, in features of position, log B and colour
C    detail: the residuals at the points after U, spread to similar cells around them

The amount of smoothing and the weight of the details are chosen in each frame from left-out points,
which are predicted from distances like those of the image's pixels from their nearest point; the
same left-out errors calibrate the interval. Outliers are points that no neighbour agrees with.
docs/method.md explains the method. The constants are in the file of their step; they were chosen
with one source of frames left out at a time (docs/benchmarks_field.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.base import base_alone, fit_base
from depth_node.fitting.field.blend import COLOUR_GAIN, FieldEstimate, blended, may_help
from depth_node.fitting.field.detail import (
    Surface,
    choose_detail,
    detail_correction,
    detail_points,
)
from depth_node.fitting.field.features import FieldFeatures
from depth_node.fitting.field.interval import Spread, forget_far, relative_bound
from depth_node.fitting.field.kernels import FieldKernels, kernels
from depth_node.fitting.field.lattice import Floats, Map
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.fitting.field.memory import FieldAnswer, FieldState
from depth_node.fitting.field.outliers import outlier_nugget, outlier_probability
from depth_node.fitting.field.points import merge_points
from depth_node.fitting.field.refine import Refiner, refined
from depth_node.fitting.field.settings import WHOLE_METHOD, FieldAblation, FieldConfig
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction


@dataclass(frozen=True)
class Field:
    """The result for a frame with n measured points.

    depth: (H, W) float32 m, NaN where the network gave no value. std: (H, W) float32 m, depth ±
    1.96 std is the 95 % interval, NaN unknown. outlier: (n,) probability that a point is wrong.
    details: parameters and errors, by name, for an operator.
    """

    depth: Map
    std: Map
    outlier: Floats
    details: dict[str, Any]


def solve(
    prediction: Prediction,
    points: SparseDepth,
    labels: NDArray[np.integer] | None,
    image: NDArray[np.uint8] | None,
    config: FieldConfig,
    state: FieldState | None = None,
    *,
    depth_range_m: tuple[float, float] = (0.0, math.inf),
    threads: int = 1,
    ablation: FieldAblation = WHOLE_METHOD,
    refiner: Refiner | None = None,
) -> Field:
    """Compute the field of a frame from n >= 1 points inside the image.

    The network must have given a finite value at every point. labels: (H, W) regions or None, used
    only by an ablation. image: (H, W, 3) uint8 RGB or None. state: memory of earlier frames, after
    its `at` was called for this frame. depth_range_m: limits of the result's depth. threads: number
    of threads that share the loops, 0: one per core, at most 4. refiner: network that refines the
    blend, or None. Raises RuntimeError if config.compiler is numba and cannot be used.
    """
    measured, merged = merge_points(points, prediction.shape)
    loops = kernels(config.compiler, threads)
    base = fit_base(prediction, measured)
    details = base.details() | {"points": len(measured)}
    if not ablation.residual:
        alone, std = base_alone(base, measured)
        return Field(np.clip(alone, *depth_range_m), std, np.zeros(len(merged)), details)
    features = FieldFeatures.of(base, measured, labels, image, config.age_s, ablation, loops)
    outlier = outlier_probability(features, loops, ablation)
    field = _spread_residual(features, outlier, loops, ablation)
    if ablation.blend and may_help(features):
        bare = features.without_network(COLOUR_GAIN)
        without = _spread_residual(bare, outlier, loops, ablation, field.left_out)
        both = blended(field, without, loops)
        if refiner is not None and ablation.refinement:
            both = refined(both, field, without, outlier, refiner, loops)
        field = both
    left_out, detail, log_depth = field.left_out, field.detail, field.log_depth
    if state is not None:
        answer = FieldAnswer.of(
            prediction, base, features, log_depth, left_out, detail, outlier, field.spread, loops
        )
        log_depth = state.blend(answer, config.temporal, loops)
    bound = relative_bound(
        features, left_out, detail, log_depth, field.spread, config.range_noise_m, loops
    )
    factor = log_depth - features.grid_log
    relative = np.divide(bound.relative, np.float32(NORMAL_95), out=bound.relative)
    out, std = base.enlarged(np.exp(factor, out=factor), relative, depth_range_m, loops)
    forget_far(std, left_out.far_px, config.max_extrapolation)
    base.blank_unknown(out, std)
    details |= {"nodes": field.spread.nodes.size, "nugget": left_out.nugget}
    details |= {"without_network": field.without_network, "compiler": loops.name}
    details |= {"outlier_fraction": float(outlier.mean())} | detail.details() | bound.details()
    return Field(out, std, outlier[merged], details | ({} if state is None else state.details()))


def _spread_residual(
    features: FieldFeatures,
    outlier: Floats,
    loops: FieldKernels,
    ablation: FieldAblation,
    like: LeaveOut | None = None,
) -> FieldEstimate:
    """Estimate log B + m + U + C on the grid.

    outlier: (n,) probability of being an outlier. like: left-out points of the same frame with
    other features, which are reused.
    """
    neighbours = ablation.neighbours
    left_out = LeaveOut.of(features, outlier, neighbours, loops, like)
    nodes = features.krige_nodes(outlier_nugget(outlier), left_out.nugget, neighbours, loops)
    surface = Surface.of(features, nodes.mean[0])
    points = detail_points(features, surface, outlier)
    detail = choose_detail(features, left_out, surface, points, loops, ablation.detail)
    log_depth = detail_correction(features, surface, points, detail, loops)
    log_depth += surface.log
    log_depth += np.float32(features.middle)
    spread = Spread.of(features, left_out, nodes)
    return FieldEstimate(log_depth, features, left_out, detail, spread)
