# SPDX-License-Identifier: Apache-2.0
"""How far the memory's old answer is out of date: from the image, from the points, from the test.

- The image tells where it still moves, though the camera's motion is taken into account where it is
  known: edges of the old answer are out of place by as much.
- The points of the frame about a place miss the old answer to one side.
- The points that were left out in turn tell which fraction of all steps towards it is right.
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

# What the points say, on every fourth cell of the grid
POINT_CELLS = 4
MAX_REACH = 6.0  # cells about a place within which points count for it
CLIP = 3.0  # standard deviations beyond which a miss counts as so many
CHANCE = 3.0  # squared standard errors of a local mean that are chance
USUAL_POINTS = 2.0  # that the usual spread counts as in the local one
CONTRADICTION = 4.0  # standard deviations of a miss that contradicts the old answer
MIN_CONTRADICTION = 0.02  # log depth
CONTRADICTING_FRACTION = 1 / 3  # of the points about a place, enough: an edge may run through it

# What left-out points say
MIN_WITNESSES = 4  # fewer points agree by chance
KEPT_EVIDENCE = 0.7  # of what earlier frames said
PRIOR_ERROR = 0.15  # standard error at which they are weight by half
NO_STEP = 1e-5  # log depth that makes no difference


@dataclass(frozen=True)
class Evidence:
    """What left-out points say of steps towards the old answer: a regression of misses on steps.

    It is not biased by the points' own noise, which is in the misses alone. agreement, information,
    doubt: weighted sums of step times miss, of squared steps, and the variance of agreement.
    """

    agreement: float = 0.0
    information: float = 0.0
    doubt: float = 0.0

    @classmethod
    def of(cls, step: Floats, miss: Floats) -> Evidence:
        """Of one frame. step, miss: (k,) log depth from the answer without the point."""
        size = np.abs(step)
        if len(step) < MIN_WITNESSES or float(size.max()) <= NO_STEP:
            return cls()
        usual = median(size) + NO_STEP
        weight = 1 / (usual * (size + usual))  # an edge counts no more than what lies about it
        weighted = weight * step
        agreement, information = float(weighted @ miss), float(weighted @ step)
        rest = weighted * (miss - agreement / information * step)
        rest *= len(step) / (len(step) - 1)
        return cls(agreement, information, float(rest @ rest))

    def and_then(self, later: Evidence) -> Evidence:
        """With that of the next frame."""
        return Evidence(
            KEPT_EVIDENCE * self.agreement + later.agreement,
            KEPT_EVIDENCE * self.information + later.information,
            KEPT_EVIDENCE**2 * self.doubt + later.doubt,
        )

    def fraction(self, prior: float, errors: float) -> float:
        """Fraction of the steps that is right, `errors` standard errors added.

        Little evidence draws it away from `prior` by little.
        """
        if self.information <= 0:
            return prior
        error = math.sqrt(self.doubt) / self.information
        weight = PRIOR_ERROR**2 / (PRIOR_ERROR**2 + error**2)
        return prior + weight * (self.agreement / self.information + errors * error - prior)


def displacement(old: Map, new: Map, kernels: FieldKernels) -> Map:
    """(h, w) cells by which two lightnesses (h, w) differ in place; where both are even, 0.

    The ratio of temporal and spatial differences, as in the method of Lucas and Kanade, without its
    direction. A change of brightness alone is none. NaN in `old` counts as moved.
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
    """Squared mean by which points about a place miss the old answer, and trust 0 to 1 in it.

    Both on every POINT_CELLS-th cell of a grid of this shape. miss: (k,) at the cells (rows, cols).
    spread: its usual standard deviation; of the squared mean what exceeds chance is given.
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
