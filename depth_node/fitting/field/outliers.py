# SPDX-License-Identifier: Apache-2.0
"""Outliers: points that neither kriging nor any single neighbour explains.

Deviations of inliers are Student-t with 3 degrees of freedom, those of outliers uniform in log
depth.
"""

from __future__ import annotations

import numpy as np

from depth_node.fitting.field.features import CORRELATION, NUGGETS, FieldFeatures
from depth_node.fitting.field.kernels import STUDENT_PEAK, FieldKernels, Neighbours
from depth_node.fitting.field.lattice import Floats
from depth_node.fitting.field.settings import FieldAblation
from depth_node.fitting.robust import weighted_quantile

MIN_JUDGED_POINTS = 4  # with fewer points none can be found to be wrong
PRIOR_PROBABILITY = 0.02
PRIOR_POINTS = 10.0  # the prior probability counts as much as so many points
OUTLIER_DENSITY = 0.8  # per unit of log depth; 0.6: evenly between 0.4 and 2 times the true range
STUDENT_MEDIAN = 0.765  # median of |t_3|
NUGGET = NUGGETS[1]  # nugget with which outliers are found
AGREEMENT_WEIGHT = 0.4  # of single neighbours in the likelihood; the rest is kriging's
MANY_POINTS = 2000  # from so many on, single neighbours alone are enough to find outliers
# Neighbours by which a point is judged, with fewer than MANY_POINTS, and with more.
FEW_POINT_NEIGHBOURS, MANY_POINT_NEIGHBOURS = 8, 5
OUTLIER_NUGGET = 0.4  # nugget added, times the odds of being an outlier


def outlier_probability(
    features: FieldFeatures, kernels: FieldKernels, ablation: FieldAblation
) -> Floats:
    """Return the probability (n,) that a point is an outlier.

    A point is explained by kriging from its neighbours or by any single one of them (a point beyond
    an edge of the scene agrees with those on its side). With MANY_POINTS or more, only by single
    ones. The frame's fraction of outliers is estimated in the same iterations.
    """
    count = len(features)
    probability: Floats = np.zeros(count)
    if not ablation.outliers or count < MIN_JUDGED_POINTS:
        return probability
    queries = features.queries()
    krige = count < MANY_POINTS
    if krige:
        number = min(ablation.neighbours, FEW_POINT_NEIGHBOURS, count - 1)
        neighbours = features.nearest(queries, number, kernels)
    else:
        neighbours = features.nearest(queries, MANY_POINT_NEIGHBOURS, kernels, 1)
        deviation = _deviation_from_closest(features, neighbours)
    every = slice(None, None, 1 + count // MANY_POINTS)  # enough points to estimate the scale
    prior = PRIOR_PROBABILITY
    likelihood: Floats = np.empty(count)
    for _ in range(2):
        if krige:
            extra = outlier_nugget(probability)
            kriged = features.krige(queries.feature, neighbours, extra, (NUGGET,), kernels)
            spread = np.sqrt(kriged.variance[0] + NUGGET)
            deviation = np.abs(features.y - kriged.mean[0]) / spread
        middle = weighted_quantile(deviation[every], 1 - probability[every], 0.5)
        scale = middle / STUDENT_MEDIAN + 1e-6
        kernels.agree(
            neighbours,
            features.points,
            features.y,
            probability,
            scale,
            NUGGET,
            CORRELATION,
            likelihood,
        )
        if krige:
            likelihood *= AGREEMENT_WEIGHT
            peak = (1 - AGREEMENT_WEIGHT) * STUDENT_PEAK / (scale * spread)
            likelihood += peak / (1 + (deviation / scale) ** 2 / 3) ** 2
        for _ in range(3):
            wrong = prior * OUTLIER_DENSITY
            probability = wrong / (wrong + (1 - prior) * likelihood)
            prior = (PRIOR_POINTS * PRIOR_PROBABILITY + probability.sum()) / (PRIOR_POINTS + count)
    return probability


def _deviation_from_closest(features: FieldFeatures, neighbours: Neighbours) -> Floats:
    """Return each point's deviation (n,) from its closest neighbour, in expected deviations."""
    closest = neighbours.indices[:, 0]
    row, col = features.points.columns[:2, : len(closest)]
    d_row, d_col = row - row[closest], col - col[closest]
    position_square = d_row * d_row + d_col * d_col
    correlation = CORRELATION.at(neighbours.square[:, 0], position_square)
    expected = np.sqrt(2 * (1 - correlation + NUGGET))
    deviation: Floats = np.abs(features.y - features.y[closest]) / expected
    return deviation


def outlier_nugget(probability: Floats) -> Floats:
    """Return the extra nugget (n,) of points with this probability (n,) of being an outlier."""
    result: Floats = OUTLIER_NUGGET * probability / np.maximum(1 - probability, 1e-3)
    return result
