# SPDX-License-Identifier: Apache-2.0
"""Refinement of the blended field by a small network: a convex mix of candidates in every cell.

The network's inputs are the maps of `refinement_maps`. All of them are logarithms of ratios,
colours or counts, so that the scale of the scene has no influence. Its output is added to the log
depth f of the blended field; it is sum_k w_k (candidate_k - f) with weights w_k >= 0 that sum to 1.
So the result cannot leave the range of the candidates: the field with and without the depth
network, its base, the nearest point, and the extremes of f around a cell. The network is trained on
rendered scenes only (`python -m training refine`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from depth_node.fitting.field.blend import FieldEstimate
from depth_node.fitting.field.kernels import FieldKernels
from depth_node.fitting.field.lattice import Floats, Map, rounded

MULTIPLE = 8  # a refiner's maps are padded to multiples of so many cells of the half grid
LIMIT = 1.0  # log depth by which a candidate may differ from the field
DOUBTED = 0.5  # probability of being an outlier from which a point is left out of the inputs
NEAR_CELLS, FAR_CELLS = 5, 13  # windows of the extremes around a cell
# Sigmas of the blurs; the shape of the field is its difference from them.
FINE_CELLS, COARSE_CELLS = 2.0, 8.0
CANDIDATES = ("without network", "with network", "nearest point", "base",
              "near low", "near high", "far low", "far high")  # fmt: skip
WHOLE = (*CANDIDATES, "fine shape", "point")  # four numbers per cell of the half grid
HALF = ("coarse shape", "lightness", "a", "b", "distance", "spacings", "error",
        "error without network")  # fmt: skip
CHANNELS = 4 * len(WHOLE) + len(HALF)
FIRST_ERROR, ERROR_SCALE = 4.0, 2.0  # (log error + FIRST_ERROR) / ERROR_SCALE is about -1 to 1

Refiner = Callable[[Map], Map]
"""Function of (CHANNELS, h, w) that returns (4, h, w), to add to log depth; h and w are multiples
of MULTIPLE. A cell of the half grid contains four cells of the grid, row by row: channel
4 k + 2 (row % 2) + column % 2."""


def refined(
    blend: FieldEstimate,
    field: FieldEstimate,
    bare: FieldEstimate,
    outlier: Floats,
    refiner: Refiner,
    kernels: FieldKernels,
) -> FieldEstimate:
    """Refine the blended field.

    field, bare: the fields with and without the depth network. outlier: (n,) probability that a
    point is wrong.
    """
    change = in_rows(refiner(refinement_maps(blend, field, bare, outlier, kernels)))
    height, width = blend.log_depth.shape
    log_depth = blend.log_depth + change[:height, :width]
    return replace(blend, log_depth=log_depth)


def in_fours(values: Map) -> Map:
    """Reshape (2 h, 2 w) to (4, h, w): the four cells of each 2 x 2 become channels."""
    height, width = values.shape[0] // 2, values.shape[1] // 2
    split = values.reshape(height, 2, width, 2)
    return split.transpose(1, 3, 0, 2).reshape(4, height, width)


def in_rows(fours: Map) -> Map:
    """Reshape (4, h, w) to (2 h, 2 w): the inverse of in_fours."""
    _, height, width = fours.shape
    split = fours.reshape(2, 2, height, width)
    return split.transpose(2, 0, 3, 1).reshape(2 * height, 2 * width)


def refinement_maps(
    blend: FieldEstimate,
    field: FieldEstimate,
    bare: FieldEstimate,
    outlier: Floats,
    kernels: FieldKernels,
) -> Map:
    """Compute the refiner's inputs (C, h, w), C = CHANNELS, on cells twice as large as the grid's.

    The first 4 len(CANDIDATES) channels are the candidates minus the blended field. outlier: (n,)
    probability that a point is wrong.
    """
    features, f = blend.features, blend.log_depth
    shape = features.grid.shape
    pad = [(0, -size % (2 * MULTIPLE)) for size in shape]
    padded = tuple(size + more for size, (_, more) in zip(shape, pad, strict=True))
    half = padded[0] // 2, padded[1] // 2
    maps: Map = np.empty((CHANNELS, *half), np.float32)
    believed = np.flatnonzero(outlier < DOUBTED)
    rows = rounded(features.grid_row[believed])
    cols = rounded(features.grid_col[believed])
    log_z = features.y[believed] + features.log_base[believed] + features.middle
    nearest, distance = np.empty((2, *shape), np.float32)
    kernels.nearest_point(rows, cols, log_z.astype(np.float32), nearest, distance)
    point: Map = np.zeros(shape, np.float32)
    point[rows, cols] = 1 - outlier[believed]
    near, far = (np.ones((cells, cells), np.uint8) for cells in (NEAR_CELLS, FAR_CELLS))
    whole = (
        bare.log_depth, field.log_depth, nearest, features.grid_log + np.float32(features.middle),
        cv2.erode(f, near), cv2.dilate(f, near), cv2.erode(f, far), cv2.dilate(f, far), f, point,
    )  # fmt: skip
    less = (*[f] * len(CANDIDATES), cv2.GaussianBlur(f, (0, 0), FINE_CELLS), np.zeros_like(f))
    fours = maps[: 4 * len(WHOLE)].reshape(len(WHOLE), 4, *half)
    for out, plane, other in zip(fours, whole, less, strict=True):
        kernels.differences(plane, np.asarray(other, np.float32), np.float32(LIMIT), out)
    spacing = np.float32(np.sqrt(shape[0] * shape[1] / len(features)))
    small = [
        _coarse_shape(f), *features.grid_colour,
        np.minimum(distance * np.float32(1 / 16), 1), np.minimum(distance / (3 * spacing), 1),
        *(features.nodes_on_grid(_level(estimate)) for estimate in (blend, bare)),
    ]  # fmt: skip
    for out, each in zip(maps[4 * len(WHOLE) :], small, strict=True):
        cv2.resize(_padded(each, pad), half[::-1], dst=out, interpolation=cv2.INTER_AREA)
    return maps


def _padded(values: Any, pad: list[tuple[int, int]]) -> Map:
    if any(more for _, more in pad):
        values = np.pad(values, pad, "edge")
    return np.asarray(values, np.float32)


def _level(estimate: FieldEstimate) -> Floats:
    """Return the log of the expected error at the nodes (M,), scaled to about -1 to 1."""
    spread = estimate.spread
    expected = spread.nodes * (estimate.detail.mean_error / spread.points.mean())
    level: Floats = (np.log(np.clip(expected, 1e-4, 1)) + FIRST_ERROR) / ERROR_SCALE
    return level


def _coarse_shape(f: Map) -> Map:
    height, width = f.shape
    if min(height, width) > 2:
        small = cv2.resize(f, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    else:  # a quarter of two cells would be none
        size = max(width // 4, 1), max(height // 4, 1)
        small = cv2.resize(f, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), COARSE_CELLS / 4)
    return np.asarray(np.clip(f - cv2.resize(small, f.shape[::-1]), -LIMIT, LIMIT), np.float32)
