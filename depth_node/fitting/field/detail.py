# SPDX-License-Identifier: Apache-2.0
"""Detail C: residuals that kriging leaves at the points, spread to similar cells around them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from depth_node.fitting.field.detail_loops import (
    DetailPoints,
    DetailWeights,
    LeftOutPoints,
    Predicted,
)
from depth_node.fitting.field.features import FieldFeatures
from depth_node.fitting.field.kernels import FieldKernels
from depth_node.fitting.field.lattice import REFERENCE_PX, Floats, Map, resized, sample
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.fitting.robust import weighted_mean

# Reach
DETAIL_SPACINGS = 1.25  # spacings of the points
MIN_DETAIL_CELLS = 1.5
MAX_DETAIL_PX = 64.0  # of an image of REFERENCE_PX
# Reach across dense scan lines: in median distances of a pixel from its nearest point, and the
# limit in cells.
LINE_GAPS, LINE_CELLS = 4.0, 4.0

# Weight of a point
SURFACE_GAIN, COLOUR_GAIN = 100.0, 5.0
SOFTENING = 0.5  # squared cells

# Choices
PRIOR_WEIGHTS = (0.05, 0.5, 4.0, math.inf)  # of U against the points around a cell
CLIPS = (0.005, 0.02, 0.06, 9.0)  # log depth up to which a step of the surface is trusted
USUAL_CHOICE = (1, 2)  # indices into PRIOR_WEIGHTS and CLIPS
CHOICE_PENALTY = 0.3  # relative loss over sqrt(n), per step away from the usual choice
ERROR_CAP = 0.5  # log depth


@dataclass(frozen=True)
class Surface:
    """Log depth after kriging, without the median m: on the grid and at the points.

    log: (h, w) log B + U. at_point: (n,) the same at the points. rest: (n,) measured log depth,
    less m, minus at_point. update_at_point: (n,) U at the points.
    """

    log: Map
    at_point: Floats
    rest: Floats
    update_at_point: Floats

    @classmethod
    def of(cls, features: FieldFeatures, mean: Floats) -> Surface:
        """Return the surface of a kriged residual (M,) at the nodes."""
        lattice = mean.reshape(features.nodes.shape).astype(np.float32)
        log = resized(lattice, features.grid.size)
        log += features.grid_log
        at_point = sample(lattice, features.node_row, features.node_col)
        return cls(
            log,
            features.log_base + at_point,
            features.y - at_point,
            at_point,
        )


@dataclass(frozen=True)
class DetailParameters:
    """The chosen parameters of the detail, and the left-out errors with them.

    prior_weight: of U against the points around a cell, inf: no detail. clip: log depth up to which
    a step of the surface is trusted. radius: cells. prior: weight of a point at the usual distance,
    which prior_weight multiplies. miss: (m,) log depth of the left-out points minus the prediction
    without them; error: (m,) the same as a relative error; mean_error: its mean, weighted by trust
    in the points.
    """

    prior_weight: float
    clip: float
    radius: float
    prior: float
    miss: Floats
    error: Floats
    mean_error: float

    def details(self) -> dict[str, Any]:
        """Return the choice and its error, for an operator."""
        return {"leave_one_out": self.mean_error, "detail": self.prior_weight, "clip": self.clip}


def detail_points(features: FieldFeatures, surface: Surface, outlier: Floats) -> DetailPoints:
    """Return the points as input of the loops. outlier: (n,) probability of being an outlier."""
    return DetailPoints(
        row=features.grid_row.astype(np.float32),
        col=features.grid_col.astype(np.float32),
        rest=surface.rest.astype(np.float32),
        surface=surface.at_point.astype(np.float32),
        colour=features.colour.astype(np.float32),
        weight=((1 - outlier) ** 2).astype(np.float32),
    )


def choose_detail(
    features: FieldFeatures,
    left_out: LeaveOut,
    surface: Surface,
    points: DetailPoints,
    kernels: FieldKernels,
    detail: bool = True,
) -> DetailParameters:
    """Choose the prior weight and the clip that predict left-out points best.

    detail: False: the choice is no detail (an infinite prior weight).
    """
    spacing, radius = _reach(features, left_out)
    prior = 1 / (SOFTENING + spacing * spacing)
    which = left_out.which
    # The surface at a left-out point is kriging's prediction without the point. If the lattice of
    # nodes is too coarse to follow the points, the surface with the point is even worse: then that
    # one is taken.
    worse = np.abs(surface.rest[which]) > np.abs(features.y[which] - left_out.mean)
    update = np.where(worse, surface.update_at_point[which], left_out.mean)
    start = features.log_base[which] + update
    # A left-out point's neighbours on the next scan line are farther than any pixel is from its
    # nearest point; they are weighted as from the distance of such a pixel.
    pixels = left_out.distance * features.length_px / features.grid.cell_px
    total, rest, beside = np.empty((3, len(which)))
    copied = np.empty((len(CLIPS), len(which)))
    kernels.predict(
        points, LeftOutPoints(which, start, pixels, features.grid_row, features.grid_col),
        left_out.neighbours.indices,
        DetailWeights(radius, SOFTENING, SURFACE_GAIN, COLOUR_GAIN, math.inf), np.array(CLIPS),
        Predicted(total, rest, beside, copied),
    )  # fmt: skip
    priors = PRIOR_WEIGHTS if detail else (math.inf,)
    of_surface = np.array(priors)[:, None] * prior  # (priors, 1)
    truth = features.log_base[which] + features.y[which]
    miss = truth - start - copied[:, None] / (beside + of_surface)  # (clips, priors, m)
    miss -= rest / (total + of_surface)
    error = np.minimum(np.abs(miss), ERROR_CAP)
    away = np.abs(np.arange(len(priors)) - USUAL_CHOICE[0])
    away = away + np.abs(np.arange(len(CLIPS)) - USUAL_CHOICE[1])[:, None]
    loss = (error @ left_out.weight) * (1 + CHOICE_PENALTY / math.sqrt(len(features)) * away)
    b, a = divmod(int(loss.argmin()), len(priors))
    relative = np.abs(np.expm1(miss[b, a]))
    mean_error = weighted_mean(relative, left_out.weight)
    return DetailParameters(priors[a], CLIPS[b], radius, prior, miss[b, a], relative, mean_error)


def _reach(features: FieldFeatures, left_out: LeaveOut) -> tuple[float, float]:
    """Return the spacing of the points and the radius of their details, in cells of the grid."""
    height, width = features.image
    cell_px = features.grid.cell_px
    spacing = math.sqrt(height * width / len(features)) / cell_px
    unit = max(height, width) / REFERENCE_PX
    radius = max(DETAIL_SPACINGS * spacing, MIN_DETAIL_CELLS)
    radius = min(radius, MAX_DETAIL_PX * unit / cell_px)
    between_lines = LINE_GAPS * left_out.usual_far_px / cell_px
    if between_lines > 2 * radius:
        radius = max(radius, min(between_lines, LINE_CELLS))
    return spacing, radius


def detail_correction(
    features: FieldFeatures,
    surface: Surface,
    points: DetailPoints,
    parameters: DetailParameters,
    kernels: FieldKernels,
) -> Map:
    """Return C, the correction (h, w) of log depth on the grid."""
    if not math.isfinite(parameters.prior_weight):
        return np.zeros(features.grid.shape, np.float32)
    correction: Map = np.empty(features.grid.shape, np.float32)
    weights = DetailWeights(
        parameters.radius, SOFTENING, SURFACE_GAIN, COLOUR_GAIN, parameters.clip
    )
    prior = parameters.prior_weight * parameters.prior
    kernels.spread(points, surface.log, features.grid_colour, weights, prior, correction)
    return correction
