# SPDX-License-Identifier: Apache-2.0
"""Loops that spread the residuals at the points to the cells around them and to left-out points.

Each loop has two forms, numba's and NumPy's, with the same results, as in kernels.py.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from depth_node.fitting.field.lattice import Floats, Integers, Map
from depth_node.fitting.numba_support import LANES, tuple_of

_FLOATS = 2 * LANES  # float32 numbers in a vector
_NEARER = 1 - 1e-6  # ratio of squared distances below which one is smaller by more than rounding


class DetailPoints(NamedTuple):
    """Points whose residuals are spread to the cells around them, float32.

    row, col: (N,) coordinates on the lattice. rest: (N,) measured log depth minus `surface`.
    surface: (N,) log depth of the surface at the points. colour: (N, 3) in correlation lengths.
    weight: (N,) trust in the point, 0 to 1.
    """

    row: Map
    col: Map
    rest: Map
    surface: Map
    colour: Map
    weight: Map


class DetailWeights(NamedTuple):
    """Parameters of the weight of a point in the cells around it, see :func:`spread`.

    radius: cells. softening: squared cells. surface_gain: per squared step of log depth.
    colour_gain: per squared step of colour in correlation lengths. clip: log depth up to which a
    step of the surface is trusted.
    """

    radius: float
    softening: float
    surface_gain: float
    colour_gain: float
    clip: float


class LeftOutPoints(NamedTuple):
    """Left-out points (m,): they are predicted without themselves.

    which: (m,) indices among the N points. surface: (m,) log depth predicted without them. pixels:
    (m,) distance in cells of a corresponding pixel from its nearest point; the nearest neighbour of
    the left-out point may be farther. row, col: (N,) coordinates of all points on the lattice.
    """

    which: Integers
    surface: Floats
    pixels: Floats
    row: Floats
    col: Floats


class Predicted(NamedTuple):
    """Sums from which left-out points are predicted.

    total: (m,) sum of the neighbours' weights. rest: (m,) sum of these weights times the
    neighbours' residuals. beside: (m,) sum of the weights at a pixel beside a scan line. copied:
    (c, m) for each of c clips, sum of the latter weights times the clipped step minus the step.
    """

    total: Floats
    rest: Floats
    beside: Floats
    copied: Floats


def spread(
    points: DetailPoints,
    surface: Map,
    colour: Map,
    weights: DetailWeights,
    prior: float,
    correction: Map,
    begin: int,
    end: int,
) -> None:
    """Spread the points' residuals about a surface to the cells around them.

    surface: (H, W) log depth. colour: (3, H, W). In a cell within `radius` at squared distance r2,
    whose surface differs from the point's by s and whose colour by c, a point has the weight
    weight (1 - r2 / radius^2) / ((softening + r2) (1 + surface_gain s^2 + colour_gain c^2)^2).
    It gives the cell its own log depth plus s, with s limited to ± `clip`. The surface itself has
    the weight `prior`. Writes correction (H, W), the weighted mean of what is given minus the
    surface, in rows begin:end.
    """
    row, col, rest, weight = points.row, points.col, points.rest, points.weight
    surface_at, colour_at = points.surface, points.colour
    radius = weights.radius
    width = surface.shape[1]
    zero, one = np.float32(0.0), np.float32(1.0)
    r2_inverse = np.float32(1.0 / (radius * radius))
    soft = np.float32(weights.softening)
    gain_s = np.float32(weights.surface_gain)
    gain_c = np.float32(weights.colour_gain)
    limit = np.float32(weights.clip)
    total = np.empty((end - begin, width), np.float32)
    total[:] = np.float32(prior)
    correction[begin:end] = zero
    for n in range(len(row)):
        top = max(begin, math.ceil(row[n] - radius))
        bottom = min(end - 1, math.floor(row[n] + radius))
        if top > bottom:
            continue
        first = max(0, math.ceil(col[n] - radius))
        last = min(width - 1, math.floor(col[n] + radius))
        # Whole vectors are computed if there is room for them: beyond the radius weights are 0.
        size = min((last - first + _FLOATS) // _FLOATS * _FLOATS, width)
        here = np.uint64(min(first, width - size))
        shift = np.float32(here) - col[n]
        for i in range(np.uint64(top), np.uint64(bottom + 1)):
            dr = np.float32(i) - row[n]
            for j in range(size):
                at = here + np.uint64(j)
                dc = shift + np.float32(j)
                r2 = dr * dr + dc * dc
                s = surface[i, at] - surface_at[n]
                c0 = colour[0, i, at] - colour_at[n, 0]
                c1 = colour[1, i, at] - colour_at[n, 1]
                c2 = colour[2, i, at] - colour_at[n, 2]
                unlike = one + gain_s * s * s + gain_c * (c0 * c0 + c1 * c1 + c2 * c2)
                cell_weight = weight[n] * max(one - r2 * r2_inverse, zero)
                cell_weight /= (soft + r2) * unlike * unlike
                total[i - np.uint64(begin), at] += cell_weight
                correction[i, at] += cell_weight * (rest[n] + min(max(s, -limit), limit) - s)
    for i in range(begin, end):
        for j in range(width):
            correction[i, j] /= total[i - begin, j]


def spread_numpy(
    points: DetailPoints,
    surface: Map,
    colour: Map,
    weights: DetailWeights,
    prior: float,
    correction: Map,
) -> None:
    """See :func:`spread`; writes all of correction (h, w), one offset of all points at a time."""
    row, col, rest, surface_at, colour_at, weight = points
    radius, softening, surface_gain, colour_gain, clip = weights
    height, width = surface.shape
    total: Map = np.full(surface.shape, prior, np.float32)
    correction[:] = 0
    reach = math.ceil(radius) + 1
    base_row, base_col = np.floor(row).astype(np.int64), np.floor(col).astype(np.int64)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            i, j = base_row + dy, base_col + dx
            r2 = ((i - row) ** 2 + (j - col) ** 2).astype(np.float32)
            use = (i >= 0) & (i < height) & (j >= 0) & (j < width) & (r2 <= radius * radius)
            if not use.any():
                continue
            i, j, r2 = i[use], j[use], r2[use]
            s = surface[i, j] - surface_at[use]
            c: Any = colour[:, i, j].T - colour_at[use]
            unlike = 1 + surface_gain * s * s + colour_gain * (c * c).sum(axis=1)
            cell_weight = (
                weight[use] * (1 - r2 / (radius * radius)) / ((softening + r2) * unlike**2)
            )
            cell = i * width + j
            size = height * width
            total += np.bincount(cell, cell_weight, size).reshape(height, width).astype(np.float32)
            given = cell_weight * (rest[use] + np.clip(s, -clip, clip) - s)
            correction += np.bincount(cell, given, size).reshape(height, width).astype(np.float32)
    correction /= total


def predict(
    points: DetailPoints,
    left_out: LeftOutPoints,
    indices: Integers,
    weights: DetailWeights,
    clips: Floats,
    predicted: Predicted,
    begin: int,
    end: int,
) -> None:
    """Spread residuals as :func:`spread` does, but to left-out points (m,) from their neighbours.

    indices: (m, k) neighbours, -1 for none. Distances are scaled to those of a pixel: shorter where
    the nearest neighbour is farther than a pixel's nearest point is. The cost of steps that are
    copied from the points instead of taken from the surface is judged at a pixel beside one of two
    scan lines, with the other line at the rest of the gap: halfway between them, the stairs that
    copied depths make of a floor cancel out. The nearest neighbour determines which line is near;
    of equally near neighbours, as on level lines, the one most similar in all features, which is
    the first in indices. Each of the clips (c,) replaces the clip of the weights. Writes
    `predicted` for the points begin:end.
    """
    row, col, colour = left_out.row, left_out.col, points.colour
    inverse = 1.0 / (weights.radius * weights.radius)
    for m in range(begin, end):
        own = left_out.which[m]
        gap2, gap_down, gap_right = 1e30, 0.0, 0.0
        for a in range(indices.shape[1]):
            p = indices[m, a]
            down, right = row[p] - row[own], col[p] - col[own]
            if p >= 0 and down * down + right * right < gap2 * _NEARER:
                gap2, gap_down, gap_right = down * down + right * right, down, right
        near = min(left_out.pixels[m] / max(math.sqrt(gap2), 1e-5), 1.0)
        far = max(1.0 - near, near) if near < 1.0 else 1.0
        total = rest = beside = 0.0
        for c in range(len(clips)):
            predicted.copied[c, m] = 0.0
        for a in range(indices.shape[1]):
            p = indices[m, a]
            if p < 0:
                continue
            down, right = row[p] - row[own], col[p] - col[own]
            r2 = down * down + right * right
            s = left_out.surface[m] - points.surface[p]
            c0, c1 = colour[own, 0] - colour[p, 0], colour[own, 1] - colour[p, 1]
            c2 = colour[own, 2] - colour[p, 2]
            unlike = 1.0 + weights.surface_gain * s * s
            unlike += weights.colour_gain * float(c0 * c0 + c1 * c1 + c2 * c2)
            trust = points.weight[p] / (unlike * unlike)
            from_pixel = r2 * near * near
            weight = trust * max(1.0 - from_pixel * inverse, 0.0) / (weights.softening + from_pixel)
            total += weight
            rest += weight * points.rest[p]
            part = near if down * gap_down + right * gap_right > 0.0 else far
            beside_line = r2 * part * part
            weight = trust * max(1.0 - beside_line * inverse, 0.0)
            weight /= weights.softening + beside_line
            beside += weight
            for c in range(len(clips)):
                predicted.copied[c, m] += weight * (min(max(s, -clips[c]), clips[c]) - s)
        predicted.total[m], predicted.rest[m], predicted.beside[m] = total, rest, beside


def predict_numpy(
    points: DetailPoints,
    left_out: LeftOutPoints,
    indices: Integers,
    weights: DetailWeights,
    clips: Floats,
    predicted: Predicted,
) -> None:
    """See :func:`predict`; for all left-out points (m,)."""
    row, col, colour = left_out.row, left_out.col, points.colour
    which, missing = left_out.which[:, None], indices < 0
    down, right = row[indices] - row[which], col[indices] - col[which]
    r2 = down * down + right * right
    to_any = np.where(missing, 1e30, r2)
    nearest = (to_any * _NEARER <= to_any.min(axis=1, keepdims=True)).argmax(axis=1)[:, None]
    gap = np.sqrt(np.take_along_axis(to_any, nearest, axis=1))
    near = np.minimum(left_out.pixels[:, None] / np.maximum(gap, 1e-5), 1)
    far = np.where(near < 1, np.maximum(1 - near, near), 1)
    across = down * np.take_along_axis(down, nearest, axis=1)
    across += right * np.take_along_axis(right, nearest, axis=1)
    s = left_out.surface[:, None] - points.surface[indices]
    unlike = 1 + weights.surface_gain * s * s
    unlike += weights.colour_gain * ((colour[which] - colour[indices]) ** 2).sum(axis=2)
    trust = points.weight[indices] / (unlike * unlike)
    trust[missing] = 0

    def weight(r2: Floats) -> Floats:
        falling: Floats = np.maximum(1 - r2 / weights.radius**2, 0) / (weights.softening + r2)
        return trust * falling

    of_pixel, beside = weight(r2 * near**2), weight(r2 * np.where(across > 0, near, far) ** 2)
    predicted.total[:], predicted.beside[:] = of_pixel.sum(axis=1), beside.sum(axis=1)
    predicted.rest[:] = (of_pixel * points.rest[indices]).sum(axis=1)
    for clip, copied in zip(clips, predicted.copied, strict=True):
        copied[:] = (beside * (s.clip(-clip, clip) - s)).sum(axis=1)


def signatures(types: Any) -> dict[Any, Any]:
    """Return numba's signatures of the loops, all arrays contiguous. types: numba.types."""
    real, whole, one, image = types.float64, types.int64, types.float32[::1], types.float32[:, ::1]
    group = functools.partial(tuple_of, types)
    points = group(DetailPoints, one, one, one, one, image, one)
    weights = group(DetailWeights, real, real, real, real, real)
    left_out = group(LeftOutPoints, whole[::1], real[::1], real[::1], real[::1], real[::1])
    one_each = real[::1]
    predicted = group(Predicted, one_each, one_each, one_each, real[:, ::1])
    planes = image, types.float32[:, :, ::1]
    return {
        spread: types.void(points, *planes, weights, real, image, whole, whole),
        predict: types.void(
            points, left_out, whole[:, ::1], weights, one_each, predicted, whole, whole
        ),
    }
