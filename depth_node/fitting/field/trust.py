# SPDX-License-Identifier: Apache-2.0
"""How outdated the memory's old result is: from the image, the points and the left-out points.

- The image shows what still moves after the camera's known motion is compensated: edges of the old
  result are displaced by as much.
- The frame's points near a place miss the old result to one side.
- The left-out points show which fraction of all steps towards the old result is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from depth_node.fitting.field.kernels import FieldKernels
from depth_node.fitting.field.lattice import Floats, Integers, Map
from depth_node.fitting.field.motion_loops import FAR, MAX_DISPLACEMENT, motion_numpy
from depth_node.fitting.robust import median

# Evidence of the points, computed on every fourth cell of the grid
POINT_CELLS = 4
MAX_REACH = 6.0  # of these cells, within which points count for a place
CLIP = 3.0  # standard deviations to which misses are limited
CHANCE = 3.0  # squared standard errors of a local mean that chance explains
USUAL_POINTS = 2.0  # the usual spread counts as much as so many points in the local one
CONTRADICTION = 4.0  # standard deviations of a miss that contradicts the old result
MIN_CONTRADICTION = 0.02  # log depth
CONTRADICTING_FRACTION = 1 / 3  # of the points near a place; few, as an edge may divide them

# Evidence of left-out points
MIN_WITNESSES = 4  # fewer points agree by chance
KEPT_EVIDENCE = 0.7  # weight of earlier frames' evidence
PRIOR_ERROR = 0.15  # standard error at which evidence and prior have equal weights
NO_STEP = 1e-5  # steps up to this log depth are no evidence


@dataclass(frozen=True)
class Evidence:
    """Evidence of left-out points on steps towards the old result: a regression of misses on steps.

    The points' own noise does not bias it, because only the misses contain it. agreement: weighted
    sum of step times miss. information: weighted sum of squared steps. doubt: variance of
    agreement.
    """

    agreement: float = 0.0
    information: float = 0.0
    doubt: float = 0.0

    @classmethod
    def of(cls, step: Floats, miss: Floats) -> Evidence:
        """Return the evidence of one frame.

        step, miss: (k,) log depth of the old result, and of the point, minus the log depth that was
        predicted without the point.
        """
        size = np.abs(step)
        if len(step) < MIN_WITNESSES or float(size.max()) <= NO_STEP:
            return cls()
        usual = median(size) + NO_STEP
        weight = 1 / (usual * (size + usual))  # limits the influence of large steps, as at edges
        weighted = weight * step
        agreement, information = float(weighted @ miss), float(weighted @ step)
        rest = weighted * (miss - agreement / information * step)
        rest *= len(step) / (len(step) - 1)
        return cls(agreement, information, float(rest @ rest))

    def and_then(self, later: Evidence) -> Evidence:
        """Return this evidence, weighted down, combined with that of the next frame."""
        return Evidence(
            KEPT_EVIDENCE * self.agreement + later.agreement,
            KEPT_EVIDENCE * self.information + later.information,
            KEPT_EVIDENCE**2 * self.doubt + later.doubt,
        )

    def fraction(self, prior: float, errors: float) -> float:
        """Return the fraction of the steps that is right, plus `errors` standard errors.

        It is shrunk towards `prior`, the more the larger its standard error is.
        """
        if self.information <= 0:
            return prior
        error = math.sqrt(self.doubt) / self.information
        weight = PRIOR_ERROR**2 / (PRIOR_ERROR**2 + error**2)
        return prior + weight * (self.agreement / self.information + errors * error - prior)


def displacement(old: Map, new: Map, kernels: FieldKernels) -> Map:
    """Return the displacement (h, w), in cells, between two maps of lightness (h, w).

    It is the ratio of temporal and spatial differences, as in the method of Lucas and Kanade,
    without the direction; 0 where both maps are uniform. A change of the overall brightness does
    not count. Where `old` is NaN, it is MAX_DISPLACEMENT.
    """
    changed = new - old
    unseen = np.isnan(changed)
    seen = changed[3::8, 3::8][~unseen[3::8, 3::8]]
    changed -= np.float32(median(seen) if len(seen) else 0)
    changed[unseen] = 1
    moved: Map = np.empty(new.shape, np.float32)
    loop = kernels.motion if min(new.shape) > FAR else motion_numpy
    loop(changed, np.ascontiguousarray(new), moved)
    moved[unseen] = MAX_DISPLACEMENT
    return moved


def local_bias(
    rows: Integers, cols: Integers, miss: Floats, spread: float, shape: tuple[int, int]
) -> tuple[Map, Map]:
    """Return the squared mean miss of the old result near each place, and the trust 0 to 1 in it.

    Both are maps of every POINT_CELLS-th cell of a grid of this shape. miss: (k,) log depth of the
    points minus the old result's, at the cells rows, cols (k,). spread: usual standard deviation of
    a miss. The part of the squared mean that chance explains is subtracted.
    """
    height, width = math.ceil(shape[0] / POINT_CELLS), math.ceil(shape[1] / POINT_CELLS)
    cell = (rows // POINT_CELLS) * width + cols // POINT_CELLS
    spacing = math.sqrt(height * width / len(rows))
    reach = 2 * round(min(max(spacing, 1.0), MAX_REACH)) + 1

    def around(values: Floats | None) -> Map:
        total = np.bincount(cell, values, minlength=height * width).reshape(height, width)
        summed = cv2.boxFilter(
            total.astype(np.float32),
            -1,
            (reach, reach),
            normalize=False,
            borderType=cv2.BORDER_CONSTANT,
        )
        return np.asarray(summed, np.float32)

    count = np.maximum(around(None), np.float32(0.5))
    clipped = np.clip(miss, -CLIP * spread, CLIP * spread)
    mean = around(clipped) / count
    square = mean * mean
    variance = around(clipped * clipped) - count * square + np.float32(USUAL_POINTS * spread**2)
    square -= np.float32(CHANCE) * variance / (count * (count + np.float32(USUAL_POINTS)))
    np.maximum(square, 0, out=square)
    limit = max(CONTRADICTION * spread, MIN_CONTRADICTION)
    against = around((np.abs(miss) > limit).astype(np.float64)) / count
    trust = 1 - np.minimum(against / np.float32(CONTRADICTING_FRACTION), 1)
    return square, trust
