# SPDX-License-Identifier: Apache-2.0
"""Left-out points: their errors choose the nugget here, and detail and interval later.

A pixel of the image is farther from its nearest point than the points of a scan line are from each
other. Therefore a point is left out together with all points that are nearer to it than a pixel's
nearest point is to the pixel (a hole).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.features import NUGGETS, OWN_HOLE, FieldFeatures
from depth_node.fitting.field.kernels import CIRCLE, FieldKernels, Neighbours, Queries
from depth_node.fitting.field.lattice import Floats, Integers, Map, rounded
from depth_node.fitting.field.outliers import outlier_nugget

VALIDATION_POINTS = 256
TRIM = 0.97  # fraction of the weight, from the smallest errors, whose mean judges a nugget
MATCH_SLACK = 1.3  # no hole is needed up to this times the distance of the nearest neighbour
MAX_ELONGATION = 4.0  # ratio of the axes of a hole
LINES = 2.0  # elongation from which points count as scan lines


@dataclass(frozen=True)
class LeaveOut:
    """Up to VALIDATION_POINTS points, each predicted without itself and the points in its hole.

    which: (m,) indices among the n points. neighbours: (m, k), from which each is predicted. mean,
    variance, sill: (m,) of kriging with the chosen nugget. weight: (m,) trust in the point itself.
    far_px: (h, w) px, distance of the grid's cells from the nearest point; usual_far_px: its
    median. distance: (m,) from which each is predicted, in units of features 0 and 1. points: n.
    spacing: of n evenly spread points, in units of features 0 and 1. hole: (m,) radius around each
    inside which no point may predict it; shape: (3,) of the hole, see Queries.
    """

    which: Integers
    neighbours: Neighbours
    mean: Floats
    variance: Floats
    sill: Floats
    weight: Floats
    nugget: float
    far_px: Map
    usual_far_px: float
    distance: Floats
    points: int
    spacing: float
    hole: Floats
    shape: Floats

    @classmethod
    def of(
        cls,
        features: FieldFeatures,
        outlier: Floats,
        neighbours: int,
        kernels: FieldKernels,
        like: LeaveOut | None = None,
    ) -> LeaveOut:
        """Predict points from at most `neighbours` others, with the nugget that does it best.

        outlier: (n,) probability of being an outlier. like: left-out points of the same frame with
        other features, whose holes and distances are reused.
        """
        count = len(features)
        tested = min(count, VALIDATION_POINTS)
        which = np.arange(tested) * (count - 1) // max(tested - 1, 1)
        size = max(1, min(neighbours, count - 1))
        queries = features.queries(which)
        if like is None:
            far_px = distance_px(features, kernels)
            some = np.sort(far_px[::4, ::4], axis=None)
            usual_far_px = float(some[(len(some) - 1) // 2] + some[len(some) // 2]) / 2
            nearest = features.nearest(queries, size, kernels)
            hole, shape, distance = matched_hole(features, which, nearest.indices, some)
            holed = np.flatnonzero(hole > 0)
            if len(holed):
                outside = features.nearest(_outside(queries, holed, hole, shape), size, kernels)
                nearest.indices[holed], nearest.square[holed] = outside
        else:
            usual_far_px = like.usual_far_px
            far_px, hole, shape, distance = like.far_px, like.hole, like.shape, like.distance
            every = np.arange(len(which))
            nearest = features.nearest(_outside(queries, every, hole, shape), size, kernels)
        weight = 1 - outlier[which]
        kriged = features.krige(queries.feature, nearest, outlier_nugget(outlier), NUGGETS, kernels)
        best = _best_level(np.abs(features.y[which] - kriged.mean), weight)
        distance[~np.isfinite(distance)] = far_px.max() / features.length_px
        height, width = features.image
        return cls(
            which=which,
            neighbours=nearest,
            mean=kriged.mean[best],
            variance=kriged.variance[best],
            sill=kriged.sill[best],
            weight=weight,
            nugget=NUGGETS[best],
            far_px=far_px,
            usual_far_px=usual_far_px,
            distance=distance,
            points=count,
            spacing=math.sqrt(height * width / count) / features.length_px,
            hole=hole,
            shape=shape,
        )


def distance_px(features: FieldFeatures, kernels: FieldKernels) -> Map:
    """Return the distance (h, w) in px of the grid's cells from the nearest point."""
    near: NDArray[np.uint8] = np.zeros(features.grid.shape, np.uint8)
    near[rounded(features.grid_row), rounded(features.grid_col)] = 1
    cells: Map = np.empty(near.shape, np.float32)
    kernels.distances(near, cells)
    cells *= np.float32(features.grid.cell_px)
    return cells


def _best_level(error: Floats, weight: Floats) -> int:
    """Return the index of the level with the least trimmed mean of errors (G, m).

    weight: (m,) trust in the points; the trimmed fraction is one of their weight.
    """
    order = np.argsort(error, axis=1)
    cumulative_weight = np.cumsum(weight[order], axis=1)
    counted = cumulative_weight <= TRIM * cumulative_weight[:, -1:]
    counted[:, 0] = True
    loss = (np.sort(error, axis=1) * counted).sum(axis=1) / counted.sum(axis=1)
    return int(np.argmin(loss))


def _outside(queries: Queries, which: Integers, hole: Floats, shape: Floats) -> Queries:
    """Return the chosen queries, each with its hole (m,) of this shape (3,)."""
    return Queries(
        np.ascontiguousarray(queries.feature[which]),
        queries.label[which],
        queries.cell[which],
        np.maximum(hole[which] ** 2, OWN_HOLE),
        shape,
    )


def matched_hole(
    features: FieldFeatures, which: Integers, indices: Integers, far_px: Map
) -> tuple[Floats, Floats, Floats]:
    """Return the radius (m,) of each left-out point's hole, 0 if none is needed; shape; distance.

    No point inside the hole may predict the left-out point. shape: (3,) of all holes, see Queries.
    distance: (m,) from which each point is then predicted, inf without neighbours. All are in units
    of features 0 and 1. indices: (m, k) neighbours, -1 for none. far_px: sorted distances of cells
    from their nearest point, px.

    Points are matched to pixels without a point by rank: the point at a certain quantile of the
    distances to the nearest neighbour is predicted from the distance at the same quantile of the
    pixels. Along scan lines the hole is longer, because pixels between two lines have their nearest
    points across the lines. For the same reason a hole is also needed where the next point of the
    line is inside the longer hole: along lines the depth of a floor hardly changes. Of
    neighbours that are equally near in the image the first gives the direction: it is the nearest
    in all features, whatever the order of the given points.
    """
    row, col = features.points.columns[:2, : len(features)]
    d_row, d_col = row[which, None] - row[indices], col[which, None] - col[indices]
    square = d_row * d_row + d_col * d_col
    square[indices < 0] = np.inf
    each = np.arange(len(which))
    closest = each, square.argmin(axis=1)
    own = np.sqrt(square[closest])
    rank: Integers = np.empty(len(which), np.int64)
    rank[np.argsort(own, kind="stable")] = each
    circle = np.array(CIRCLE)
    towards = np.column_stack([d_row[closest], d_col[closest]])[np.isfinite(own) & (own > 0)]
    form, elongation = circle, 1.0
    if len(towards):
        towards /= np.sqrt((towards**2).sum(axis=1, keepdims=True))
        # The eigenvalues of the mean outer product of these directions, whose trace is 1, are
        # (1 + unlike) / 2 and (1 - unlike) / 2.
        rows, both = float(towards[:, 0] @ towards[:, 0]), float(towards[:, 0] @ towards[:, 1])
        rows, both = rows / len(towards), both / len(towards)
        unlike = math.hypot(2 * rows - 1, 2 * both)
        elongation = min(math.sqrt((1 + unlike) / max(1 - unlike, 2e-9)), MAX_ELONGATION)
        shorter = (1 - 1 / elongation**2) / max(unlike, 1e-12)
        least = (1 - unlike) / 2
        form = np.array(
            [1 - shorter * (rows - least), -shorter * both, 1 - shorter * (1 - rows - least)]
        )
    far = far_px[np.searchsorted(far_px, 0, "right") :] if far_px[-1] > 0 else far_px
    matched = far[((rank + 0.5) / len(which) * len(far)).astype(np.int64)].astype(np.float64)
    matched /= features.length_px
    along = elongation if elongation >= LINES else 1.0
    needed = along * matched > MATCH_SLACK * own + 0.5 / features.length_px
    hole = np.where(needed, matched, 0.0)
    distance = np.where(hole > 0, hole, own)
    return hole, form if (hole > 0).any() else circle, distance
