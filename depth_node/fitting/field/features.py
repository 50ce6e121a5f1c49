# SPDX-License-Identifier: Apache-2.0
"""Feature vectors of points and nodes, and kriging of the residual by distance between features.

A feature vector has row, column, log B and three components of colour, each in units of its
correlation length: the distance over which the residual changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.base import Base
from depth_node.fitting.field.image_loops import reduced_colour
from depth_node.fitting.field.kernels import (
    CIRCLE,
    Correlation,
    FieldKernels,
    Kriged,
    Neighbours,
    Observations,
    Points,
    Queries,
)
from depth_node.fitting.field.lattice import (
    REFERENCE_PX,
    Floats,
    Integers,
    Lattice,
    Map,
    resized,
)
from depth_node.fitting.field.points import MergedPoints
from depth_node.fitting.field.settings import FieldAblation
from depth_node.fitting.robust import MAD_TO_STD, median

GRID_PX = 2.0  # cell of the grid on which details and result are computed

# Correlation lengths
POSITION_LENGTH = 0.2  # of row and column: fraction of the larger side of the image
LOG_BASE_LENGTH = 0.5
LIGHTNESS_LENGTH, CHROMA_LENGTH = 0.7, 0.4  # of Lab scaled to 0..1
LONG_POSITION_LENGTH = 0.6  # of the slowly changing part: fraction of the larger side
CORRELATION = Correlation(
    long_weight=0.8,  # fraction of the prior variance that changes slowly, with position alone
    long_scale=(POSITION_LENGTH / LONG_POSITION_LENGTH) ** 2 / 2,
    label_gap=0.1,  # squared feature distance between two regions
)

CANDIDATES_PER_NEIGHBOUR = 1.5
OLD_NOISE = 3.0  # a point of age `age_s` has 1 + this times the noise variance of a fresh one
NUGGETS = (0.003, 0.01, 0.03, 0.1, 0.3)  # levels of noise, relative to the prior variance
LEAST_STRUCTURE = 0.1  # fraction of the residuals' variance that declared noise never explains
OWN_HOLE = 1e-12  # squared size of a hole that contains only the queried point


@dataclass(frozen=True)
class FieldFeatures:
    """Everything that is known before the residual is spread; the n points are sorted by cells.

    y: (n,) log residual minus its median `middle`. log_base: (n,) log of B in m. points: feature
    vectors, regions and cells of the points. noise: (n,) factor of the nugget from age. declared:
    (n,) declared standard deviation of y, 0 if none is declared; declared_nugget: (n,) its square
    over the prior variance.
    grid: the fine lattice (h, w); grid_log: (h, w) log of B; grid_colour: (3, h, w) and colour:
    (n, 3), in correlation lengths; grid_row, grid_col: (n,) coordinates of the points on the grid.
    nodes: the coarse lattice; node_queries: its M nodes; node_row, node_col: (n,) coordinates of
    the points on it. cell: (n,) cell of each point. length_px: pixels per unit of features 0 and 1.
    """

    y: Floats
    log_base: Floats
    middle: float
    points: Points
    noise: Floats
    declared: Floats
    declared_nugget: Floats
    cell: Integers
    grid: Lattice
    grid_log: Map
    grid_colour: Map
    grid_row: Floats
    grid_col: Floats
    colour: Floats
    nodes: Lattice
    node_queries: Queries
    node_row: Floats
    node_col: Floats
    length_px: float

    def __len__(self) -> int:
        return len(self.y)

    @property
    def image(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.grid.image

    @classmethod
    def of(
        cls,
        base: Base,
        points: MergedPoints,
        labels: NDArray[np.integer] | None,
        image: NDArray[np.uint8] | None,
        age_s: float,
        ablation: FieldAblation,
        kernels: FieldKernels,
    ) -> FieldFeatures:
        """Compute the features of points and nodes.

        labels: (H, W) regions or None, used only if the ablation says so. image: (H, W, 3) uint8
        RGB or None. age_s: s, FieldConfig.age_s.
        """
        shape = base.shape
        unit = max(shape) / REFERENCE_PX
        grid = Lattice.of(shape, GRID_PX * unit)
        nodes = Lattice.of(shape, ablation.node_px * unit)
        rows, cols = points.rows, points.cols
        # The average is taken before the logarithm: an average of logs mixes near and far at an
        # edge less well.
        grid_log: Map = np.log(base.reduced(grid.size, kernels))
        grid_row, grid_col = grid.coordinates(rows, cols)
        if image is not None and ablation.colour:
            grid_colour = _lab_colour(image, grid, kernels)
        else:
            grid_colour = np.zeros((3, *grid.shape), np.float32)
        at_point = grid_colour.reshape(3, -1)[:, grid.cell(rows, cols)].T
        colour: Floats = at_point.astype(np.float64, order="C")
        node_colour = np.stack([resized(plane, nodes.size) for plane in grid_colour], axis=-1)
        length_px = POSITION_LENGTH * max(shape)
        log_base = np.log(base.at(rows, cols).astype(np.float64))
        y = np.log(points.z) - log_base
        middle = median(y)
        node_rows, node_cols = nodes.centres()
        node_log = resized(grid_log, nodes.size).reshape(-1)
        label: NDArray[np.int32] = np.zeros(len(rows), np.int32)
        node_label: NDArray[np.int32] = np.zeros(len(node_rows), np.int32)
        if labels is not None and ablation.regions:
            label = labels[rows, cols].astype(np.int32)
            node_label = labels[node_rows.astype(int), node_cols.astype(int)].astype(np.int32)
        node_row, node_col = nodes.coordinates(rows, cols)
        return cls(
            y=y - middle,
            log_base=log_base,
            middle=middle,
            points=Points.of(
                _vectors(rows, cols, log_base, colour, length_px),
                label,
                points.start,
                *points.cells.shape,
            ),
            noise=1 + (points.age_s / age_s) ** 2 * OLD_NOISE,
            declared=points.noise,
            declared_nugget=_declared_nugget(y - middle, points.noise),
            cell=points.cell,
            grid=grid,
            grid_log=grid_log,
            grid_colour=grid_colour,
            grid_row=grid_row,
            grid_col=grid_col,
            colour=colour,
            nodes=nodes,
            node_queries=Queries(
                _vectors(node_rows, node_cols, node_log, node_colour.reshape(-1, 3), length_px),
                node_label,
                points.cells.cell(node_rows, node_cols),
                np.zeros(len(node_rows)),
                np.array(CIRCLE),
            ),
            node_row=node_row,
            node_col=node_col,
            length_px=length_px,
        )

    def without_network(self, colour_gain: float) -> FieldFeatures:
        """Return the features of the same frame with a constant base.

        colour_gain: factor of colour in the feature vectors, because then only colour distinguishes
        surfaces.
        """
        log_z = self.y + self.log_base + self.middle
        middle = median(log_z)
        gains = np.array([1.0, 1.0, 0.0, colour_gain, colour_gain, colour_gain])
        points, queries = self.points, self.node_queries
        return replace(
            self,
            y=log_z - middle,
            log_base=np.zeros(len(self)),
            middle=middle,
            points=Points.of(
                points.feature * gains,
                points.label,
                points.start,
                points.cell_rows,
                points.cell_cols,
            ),
            declared_nugget=_declared_nugget(log_z - middle, self.declared),
            grid_log=np.zeros_like(self.grid_log),
            node_queries=queries._replace(feature=queries.feature * gains),
        )

    def queries(self, which: Integers | slice = slice(None)) -> Queries:
        """Return points (all, or some) as queries that do not find themselves."""
        feature = np.ascontiguousarray(self.points.feature[which])
        hole = np.full(len(feature), OWN_HOLE)
        return Queries(feature, self.points.label[which], self.cell[which], hole, np.array(CIRCLE))

    def nearest(
        self,
        queries: Queries,
        count: int,
        kernels: FieldKernels,
        candidates_per_neighbour: float = CANDIDATES_PER_NEIGHBOUR,
    ) -> Neighbours:
        """Find the `count` points nearest to each query in feature distance."""
        neighbours = Neighbours.empty(len(queries.feature), count)
        candidates = math.ceil(candidates_per_neighbour * count)
        kernels.nearest(queries, self.points, candidates, CORRELATION.label_gap, neighbours)
        return neighbours

    def krige(
        self,
        feature: Floats,
        neighbours: Neighbours,
        extra_nugget: Floats,
        levels: Sequence[float],
        kernels: FieldKernels,
    ) -> Kriged:
        """Krige the residual at feature vectors (m, F) from their neighbours, for each level.

        levels: nuggets. extra_nugget: (n,) of the points; declared_nugget is added to it.
        """
        kriged = Kriged.empty(len(levels), len(feature))
        extra = extra_nugget + self.declared_nugget
        observations = Observations(self.y, self.noise, extra)
        kernels.krige(
            feature, neighbours, self.points, observations, np.array(levels), CORRELATION, kriged
        )
        return kriged

    def krige_nodes(
        self, extra_nugget: Floats, nugget: float, neighbours: int, kernels: FieldKernels
    ) -> Kriged:
        """Krige the residual at the M nodes; the results are (1, M) each."""
        nearest = self.nearest(self.node_queries, min(neighbours, len(self)), kernels)
        return self.krige(self.node_queries.feature, nearest, extra_nugget, (nugget,), kernels)

    def nodes_on_grid(self, values: Floats) -> Map:
        """Interpolate values (M,) at the nodes to the grid (h, w)."""
        return resized(values.astype(np.float32).reshape(self.nodes.shape), self.grid.size)


def _declared_nugget(y: Floats, declared: Floats) -> Floats:
    """Return the nugget (n,): squared declared deviations (n,) over the prior variance of y (n,).

    The prior variance is that of the residuals of the more exact half of the points, minus the
    variance of their noise.
    """
    variance = np.square(declared)
    if not variance.any():
        return variance
    exact = variance <= median(variance)
    spread = (MAD_TO_STD * median(np.abs(y[exact]))) ** 2
    structure = max(spread - median(variance[exact]), LEAST_STRUCTURE * spread, 1e-8)
    nugget: Floats = variance / structure
    return nugget


def _vectors(
    rows: NDArray[Any], cols: NDArray[Any], log_base: NDArray[Any], colour: Any, length_px: float
) -> Floats:
    """Return feature vectors (m, F) of pixels (m,)."""
    vectors: Floats = np.empty((len(rows), 6))
    vectors[:, 0], vectors[:, 1] = rows / length_px, cols / length_px
    vectors[:, 2], vectors[:, 3:] = log_base / LOG_BASE_LENGTH, colour
    return vectors


def _lab_colour(image: NDArray[np.uint8], grid: Lattice, kernels: FieldKernels) -> Map:
    """Return the slightly blurred Lab colour (3, h, w) on the grid, in correlation lengths."""
    half = (max(2, grid.size[0] // 2), max(2, grid.size[1] // 2))
    small: NDArray[Any] = image
    if image.shape[:2] == (4 * half[1], 4 * half[0]):  # OpenCV is faster in two halvings
        small = cv2.resize(image, (2 * half[0], 2 * half[1]), interpolation=cv2.INTER_AREA)
    if small.shape[:2] == (2 * half[1], 2 * half[0]):
        small = cv2.resize(small, half, interpolation=cv2.INTER_AREA)
    else:
        small = reduced_colour(small, half, kernels.mean)
    small = cv2.GaussianBlur(small, (0, 0), 0.6)
    planes = cv2.split(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab))
    lengths = (100 * LIGHTNESS_LENGTH, 255 * CHROMA_LENGTH, 255 * CHROMA_LENGTH)
    out: Map = np.empty((3, *grid.shape), np.float32)
    for plane, length, whole in zip(planes, lengths, out, strict=True):
        cv2.resize(
            plane * np.float32(1 / length), grid.size, dst=whole, interpolation=cv2.INTER_LINEAR
        )
    return out
