# SPDX-License-Identifier: Apache-2.0
"""The inner loops of the residual field, compiled with numba or as NumPy array code.

Both forms give the same numbers (to 1e-5; a test holds them together). The loops are plain Python
functions that numba compiles when it is there: numba keeps the machine code beside this file, or in
the user's cache folder where that is read-only, so only the first start on a machine compiles.

Shapes used throughout: N points, M queries (lattice nodes or points), F features, k neighbours.
The F = 6 features are row, column, logarithm of the base map and three of colour, each in units of
its correlation length.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

COMPILERS = ("auto", "numba", "numpy")
STUDENT_PEAK = 0.3675526  # density at 0 of Student's distribution with 3 degrees of freedom
_CHUNK = 4096  # queries that the NumPy forms work on at a time


@dataclass(frozen=True)
class Kernels:
    """One form of the loops. `name` is numba or numpy."""

    name: str
    nearest: Callable[..., None]
    krige: Callable[..., None]
    agree: Callable[..., None]
    spread: Callable[..., None]


@functools.cache
def kernels(compiler: str = "auto") -> Kernels:
    """The loops as asked: numba, numpy, or auto (numba where it is installed).

    Raises RuntimeError when numba is asked for and not installed.
    """
    if compiler not in COMPILERS:
        raise ValueError(f"the compiler {compiler!r} is unknown: use {', '.join(COMPILERS)}.")
    if compiler == "numpy" or (compiler == "auto" and find_spec("numba") is None):
        return Kernels("numpy", nearest_numpy, krige_numpy, agree_numpy, spread_numpy)
    try:
        import numba
    except ImportError as error:
        raise RuntimeError(
            "The field is to be compiled by numba, which is not installed: "
            "pip install numba, or set fit.field.compiler to auto or numpy."
        ) from error

    def compiled(loop: Callable[..., None], types: str) -> Callable[..., None]:
        # Inputs hold no NaN and no infinity, so reassociation is the only effect of fastmath.
        # The types are told, so all is compiled here and no frame ever waits for a compiler.
        make = numba.njit(
            f"void({types})", cache=True, fastmath=True, nogil=True, error_model="numpy"
        )
        fast: Callable[..., None] = make(loop)
        return fast

    return Kernels("numba", *(compiled(loop, types) for loop, types in _TYPES.items()))


# --- neighbours ----------------------------------------------------------------------------------


def _nearest(
    query: Floats,
    query_label: NDArray[np.int32],
    query_cell: Integers,
    hole: Floats,
    shape: Floats,
    point: Floats,
    label: NDArray[np.int32],
    start: Integers,
    cell_rows: int,
    cell_cols: int,
    candidates: int,
    label_gap: float,
    index: Integers,
    square: Floats,
) -> None:
    """The k points nearest to every query in feature distance, among those around it.

    Points are sorted by cell of a (cell_rows, cell_cols) partition of the picture; cell c holds
    points start[c] to start[c + 1]. Around a query means: the smallest square of cells about its
    own, at least 3 x 3, with `candidates` points. Points nearer than hole (M,) do not count,
    measured by d0^2 shape[0] + 2 d0 d1 shape[1] + d1^2 shape[2] < hole. Another label adds
    label_gap to the squared feature distance. Written: index (M, k) int64, -1 where there are
    fewer, and square (M, k), ascending.
    """
    k = index.shape[1]
    best: Integers = np.empty(k, np.int64)
    least: Floats = np.empty(k)
    for m in range(len(query)):
        q0, q1, q2 = query[m, 0], query[m, 1], query[m, 2]
        q3, q4, q5 = query[m, 3], query[m, 4], query[m, 5]
        row = query_cell[m] // cell_cols
        col = query_cell[m] - row * cell_cols
        seen = 0
        ring = -1
        while ring < 1 or (seen < candidates and (ring < cell_rows or ring < cell_cols)):
            ring += 1
            left, right = max(0, col - ring), min(cell_cols - 1, col + ring)
            for i in range(max(0, row - ring), min(cell_rows - 1, row + ring) + 1):
                if seen >= candidates:
                    break  # enough, whatever else is there
                whole = i == row - ring or i == row + ring
                for side in range(1 if whole else 2):
                    # A whole row of cells, or its two ends.
                    first, last = left, right
                    if not whole:
                        first = last = col - ring if side == 0 else col + ring
                        if first < 0 or first >= cell_cols:
                            continue
                    begin, end = start[i * cell_cols + first], start[i * cell_cols + last + 1]
                    if hole[m] <= 0.0:
                        seen += end - begin
                        continue
                    for p in range(begin, end):
                        d0, d1 = q0 - point[p, 0], q1 - point[p, 1]
                        measure = d0 * d0 * shape[0] + 2.0 * d0 * d1 * shape[1]
                        if measure + d1 * d1 * shape[2] >= hole[m]:
                            seen += 1
        holed = hole[m] > 0.0
        found = 0
        worst = np.inf
        left, right = max(0, col - ring), min(cell_cols - 1, col + ring)
        for turn in range(2 * ring + 1):
            # The query's own row of cells first: what it holds rules most others out.
            i = row + ((turn + 1) // 2 if turn % 2 else -(turn // 2))
            if i < 0 or i >= cell_rows:
                continue
            for p in range(start[i * cell_cols + left], start[i * cell_cols + right + 1]):
                d0, d1 = q0 - point[p, 0], q1 - point[p, 1]
                d = d0 * d0 + d1 * d1
                if d > worst:
                    continue
                if holed:
                    measure = d0 * d0 * shape[0] + 2.0 * d0 * d1 * shape[1]
                    if measure + d1 * d1 * shape[2] < hole[m]:
                        continue
                d2, d3, d4, d5 = (
                    q2 - point[p, 2],
                    q3 - point[p, 3],
                    q4 - point[p, 4],
                    q5 - point[p, 5],
                )
                d += d2 * d2 + d3 * d3 + d4 * d4 + d5 * d5
                if query_label[m] != label[p]:
                    d += label_gap
                if d > worst or (d == worst and p > best[k - 1]):
                    continue
                slot = min(found, k - 1)
                found = min(found + 1, k)
                while slot > 0 and (
                    least[slot - 1] > d or (least[slot - 1] == d and best[slot - 1] > p)
                ):
                    least[slot] = least[slot - 1]
                    best[slot] = best[slot - 1]
                    slot -= 1
                least[slot] = d
                best[slot] = p
                if found == k:
                    worst = least[k - 1]
        for slot in range(k):
            index[m, slot] = best[slot] if slot < found else -1
            square[m, slot] = least[slot] if slot < found else 0.0


def nearest_numpy(
    query: Floats,
    query_label: NDArray[np.int32],
    query_cell: Integers,
    hole: Floats,
    shape: Floats,
    point: Floats,
    label: NDArray[np.int32],
    start: Integers,
    cell_rows: int,
    cell_cols: int,
    candidates: int,
    label_gap: float,
    index: Integers,
    square: Floats,
) -> None:
    """As :func:`_nearest`."""
    k = index.shape[1]
    cell_of_point = np.repeat(np.arange(cell_rows * cell_cols), np.diff(start))
    rows, cols = cell_of_point // cell_cols, cell_of_point % cell_cols
    for begin in range(0, len(query), max(1, _CHUNK * 256 // max(len(point), 1))):
        part = slice(begin, begin + max(1, _CHUNK * 256 // max(len(point), 1)))
        q, cell = query[part], query_cell[part]
        d0, d1 = q[:, None, 0] - point[None, :, 0], q[:, None, 1] - point[None, :, 1]
        place = d0 * d0 + d1 * d1
        measure = d0 * d0 * shape[0] + 2 * d0 * d1 * shape[1] + d1 * d1 * shape[2]
        allowed = ~(measure < hole[part, None])
        # The ring of cells about the query's own in which a point lies.
        ring = np.maximum(
            np.abs(rows[None, :] - (cell // cell_cols)[:, None]),
            np.abs(cols[None, :] - (cell % cell_cols)[:, None]),
        )
        ring = np.where(allowed, ring, cell_rows + cell_cols)
        if len(point) > candidates:
            reach = np.partition(ring, candidates - 1, axis=1)[:, candidates - 1]
        else:
            reach = np.full(len(q), cell_rows + cell_cols)
        allowed &= ring <= np.maximum(reach, 1)[:, None]
        distance = place + ((q[:, None, 2:] - point[None, :, 2:]) ** 2).sum(axis=2)
        distance += label_gap * (query_label[part, None] != label[None, :])
        distance[~allowed] = np.inf
        best = np.argsort(distance, axis=1, kind="stable")[:, :k]
        value = np.take_along_axis(distance, best, axis=1)
        missing = ~np.isfinite(value)
        index[part, : best.shape[1]] = np.where(missing, -1, best)
        square[part, : best.shape[1]] = np.where(missing, 0.0, value)
        index[part, best.shape[1] :] = -1
        square[part, best.shape[1] :] = 0.0


# --- kriging -------------------------------------------------------------------------------------


def _krige(
    query: Floats,
    index: Integers,
    square: Floats,
    point: Floats,
    label: NDArray[np.int32],
    value: Floats,
    noise: Floats,
    doubt: Floats,
    levels: Floats,
    long_share: float,
    long_scale: float,
    label_gap: float,
    mean: Floats,
    variance: Floats,
    sill: Floats,
) -> None:
    """Simple kriging of point values at the queries from their neighbours (index, square).

    Correlation of squared feature distance D and squared distance S in features 0 and 1:
    (1 - long_share) / (1 + D) + long_share / (1 + long_scale S), two rational quadratic parts.
    On the diagonal comes the nugget level noise + doubt, (N,) each, for each of the G levels.
    Written, (G, M): mean, variance (of a unit prior, at least 1e-4) and sill, the prior variance
    that the neighbours' values speak for: y' K^-1 y / n.
    """
    k = index.shape[1]
    alike: Floats = np.empty((k, k))
    towards: Floats = np.empty(k)
    matrix: Floats = np.empty((k, k))
    weight: Floats = np.empty(k)
    white: Floats = np.empty(k)
    for m in range(len(index)):
        n = 0
        while n < k and index[m, n] >= 0:
            n += 1
        for a in range(n):
            p = index[m, a]
            for b in range(a):
                q = index[m, b]
                d0, d1 = point[p, 0] - point[q, 0], point[p, 1] - point[q, 1]
                d2, d3 = point[p, 2] - point[q, 2], point[p, 3] - point[q, 3]
                d4, d5 = point[p, 4] - point[q, 4], point[p, 5] - point[q, 5]
                near = d0 * d0 + d1 * d1
                d = near + d2 * d2 + d3 * d3 + d4 * d4 + d5 * d5
                if label[p] != label[q]:
                    d += label_gap
                alike[a, b] = (1.0 - long_share) / (1.0 + d) + long_share / (
                    1.0 + long_scale * near
                )
            dr = point[p, 0] - query[m, 0]
            dc = point[p, 1] - query[m, 1]
            towards[a] = (1.0 - long_share) / (1.0 + square[m, a]) + long_share / (
                1.0 + long_scale * (dr * dr + dc * dc)
            )
        for g in range(len(levels)):
            explained = 0.0
            estimate = 0.0
            energy = 0.0
            for a in range(n):
                p = index[m, a]
                for b in range(a):
                    entry = alike[a, b]
                    for c in range(b):
                        entry -= matrix[a, c] * matrix[b, c]
                    matrix[a, b] = entry * matrix[b, b]
                entry = 1.0 + levels[g] * noise[p] + doubt[p]
                x = towards[a]
                y = value[p]
                for c in range(a):
                    entry -= matrix[a, c] * matrix[a, c]
                    x -= matrix[a, c] * weight[c]
                    y -= matrix[a, c] * white[c]
                # The diagonal holds its inverse: everything is divided by it.
                inverse = 1.0 / math.sqrt(max(entry, 1e-9))
                matrix[a, a] = inverse
                weight[a] = x * inverse
                white[a] = y * inverse
                explained += weight[a] * weight[a]
                estimate += weight[a] * white[a]
                energy += white[a] * white[a]
            mean[g, m] = estimate
            variance[g, m] = max(1.0 - explained, 1e-4)
            sill[g, m] = energy / max(n, 1)


def krige_numpy(
    query: Floats,
    index: Integers,
    square: Floats,
    point: Floats,
    label: NDArray[np.int32],
    value: Floats,
    noise: Floats,
    doubt: Floats,
    levels: Floats,
    long_share: float,
    long_scale: float,
    label_gap: float,
    mean: Floats,
    variance: Floats,
    sill: Floats,
) -> None:
    """As :func:`_krige`."""

    def correlation(d: Floats, near: Floats) -> Floats:
        result: Floats = (1 - long_share) / (1 + d) + long_share / (1 + long_scale * near)
        return result

    k = index.shape[1]
    for begin in range(0, len(index), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        chosen, missing = np.maximum(index[part], 0), index[part] < 0
        x = point[chosen]  # (m, k, F)
        near = ((x[:, :, None, :2] - x[:, None, :, :2]) ** 2).sum(axis=3)
        d = near + ((x[:, :, None, 2:] - x[:, None, :, 2:]) ** 2).sum(axis=3)
        d += label_gap * (label[chosen][:, :, None] != label[chosen][:, None, :])
        alike = correlation(d, near)
        towards = correlation(
            square[part], ((x[:, :, :2] - query[part, None, :2]) ** 2).sum(axis=2)
        )
        y = value[chosen]
        # A missing neighbour becomes an independent one that says nothing.
        alike[missing[:, :, None] | missing[:, None, :]] = 0.0
        towards[missing], y[missing] = 0.0, 0.0
        count = np.maximum(k - missing.sum(axis=1), 1)
        for g, level in enumerate(levels):
            nugget = np.where(missing, 0.0, level * noise[chosen] + doubt[chosen])
            alike[:, np.arange(k), np.arange(k)] = 1.0 + nugget
            factor = np.linalg.cholesky(alike)
            white = np.linalg.solve(factor, np.stack([towards, y], axis=2))
            mean[g, part] = (white[:, :, 0] * white[:, :, 1]).sum(axis=1)
            variance[g, part] = np.maximum(1.0 - (white[:, :, 0] ** 2).sum(axis=1), 1e-4)
            sill[g, part] = (white[:, :, 1] ** 2).sum(axis=1) / count


# --- agreement -----------------------------------------------------------------------------------


def _agree(
    index: Integers,
    square: Floats,
    point: Floats,
    value: Floats,
    suspect: Floats,
    scale: float,
    nugget: float,
    long_share: float,
    long_scale: float,
    density: Floats,
) -> None:
    """How likely each point's value is if one of its neighbours is right about it.

    A mixture over the neighbours (index, square) of Student's densities (3 degrees of freedom) of
    the difference, in units of scale sqrt(2 (1 - correlation) + 2 nugget); the weights are the
    squared correlation times the trust in the neighbour, 1 - suspect (N,). Written: density (N,).
    """
    k = index.shape[1]
    for n in range(len(index)):
        mass = 0.0
        likely = 0.0
        for a in range(k):
            p = index[n, a]
            if p < 0:
                break
            dr = point[n, 0] - point[p, 0]
            dc = point[n, 1] - point[p, 1]
            alike = (1.0 - long_share) / (1.0 + square[n, a]) + long_share / (
                1.0 + long_scale * (dr * dr + dc * dc)
            )
            step = 1.0 / (scale * math.sqrt(2.0 * (1.0 - alike) + 2.0 * nugget))
            off = (value[n] - value[p]) * step
            tail = 1.0 + off * off / 3.0
            weight = alike * alike * (1.0 - suspect[p]) + 1e-9
            mass += weight
            likely += weight * step / (tail * tail)
        density[n] = STUDENT_PEAK * likely / max(mass, 1e-9)


def agree_numpy(
    index: Integers,
    square: Floats,
    point: Floats,
    value: Floats,
    suspect: Floats,
    scale: float,
    nugget: float,
    long_share: float,
    long_scale: float,
    density: Floats,
) -> None:
    """As :func:`_agree`."""
    chosen = np.maximum(index, 0)
    near = ((point[:, None, :2] - point[chosen, :2]) ** 2).sum(axis=2)
    alike = (1 - long_share) / (1 + square) + long_share / (1 + long_scale * near)
    step = 1 / (scale * np.sqrt(2 * (1 - alike) + 2 * nugget))
    off = (value[:, None] - value[chosen]) * step
    weight = np.where(index < 0, 0.0, alike**2 * (1 - suspect[chosen]) + 1e-9)
    likely = (weight * step / (1 + off * off / 3) ** 2).sum(axis=1)
    density[:] = STUDENT_PEAK * likely / np.maximum(weight.sum(axis=1), 1e-9)


# --- detail --------------------------------------------------------------------------------------


def _spread(
    row: NDArray[np.float32],
    col: NDArray[np.float32],
    rest: NDArray[np.float32],
    surface_at: NDArray[np.float32],
    colour_at: NDArray[np.float32],
    weight: NDArray[np.float32],
    surface: NDArray[np.float32],
    colour: NDArray[np.float32],
    radius: float,
    softening: float,
    surface_gain: float,
    colour_gain: float,
    clip: float,
    total: NDArray[np.float32],
    sum_: NDArray[np.float32],
) -> None:
    """What the points still disagree with a surface is handed to the cells about them.

    row, col (N,): places on the (H, W) lattice of `surface` (log depth) and `colour` (3, H, W).
    rest (N,): measured log depth minus surface_at (N,). A cell within `radius` at squared distance
    r2, whose surface differs by s and whose colour by c, has the weight
    weight (1 - r2 / radius^2) / ((softening + r2) (1 + surface_gain s^2 + colour_gain c^2)^2), and
    takes the point's depth plus s, no more than `clip` of it. Added to total and sum_, (H, W).
    """
    height, width = surface.shape
    one = np.float32(1.0)
    r2_inverse = np.float32(1.0 / (radius * radius))
    soft = np.float32(softening)
    gain_s = np.float32(surface_gain)
    gain_c = np.float32(colour_gain)
    limit = np.float32(clip)
    for n in range(len(row)):
        top = max(0, math.ceil(row[n] - radius))
        bottom = min(height - 1, math.floor(row[n] + radius))
        for i in range(top, bottom + 1):
            dr = np.float32(i) - row[n]
            half = math.sqrt(max(radius * radius - dr * dr, 0.0))
            left = max(0, math.ceil(col[n] - half))
            right = min(width - 1, math.floor(col[n] + half))
            for j in range(left, right + 1):
                dc = np.float32(j) - col[n]
                r2 = dr * dr + dc * dc
                s = surface[i, j] - surface_at[n]
                c0 = colour[0, i, j] - colour_at[n, 0]
                c1 = colour[1, i, j] - colour_at[n, 1]
                c2 = colour[2, i, j] - colour_at[n, 2]
                unlike = one + gain_s * s * s + gain_c * (c0 * c0 + c1 * c1 + c2 * c2)
                share = weight[n] * (one - r2 * r2_inverse) / ((soft + r2) * unlike * unlike)
                total[i, j] += share
                sum_[i, j] += share * (rest[n] + min(max(s, -limit), limit) - s)


def spread_numpy(
    row: NDArray[np.float32],
    col: NDArray[np.float32],
    rest: NDArray[np.float32],
    surface_at: NDArray[np.float32],
    colour_at: NDArray[np.float32],
    weight: NDArray[np.float32],
    surface: NDArray[np.float32],
    colour: NDArray[np.float32],
    radius: float,
    softening: float,
    surface_gain: float,
    colour_gain: float,
    clip: float,
    total: NDArray[np.float32],
    sum_: NDArray[np.float32],
) -> None:
    """As :func:`_spread`; every offset from the cell of a point for all points at once."""
    height, width = surface.shape
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
            share = weight[use] * (1 - r2 / (radius * radius)) / ((softening + r2) * unlike**2)
            cell = i * width + j
            size = height * width
            total += np.bincount(cell, share, size).reshape(height, width).astype(np.float32)
            given = share * (rest[use] + np.clip(s, -clip, clip) - s)
            sum_ += np.bincount(cell, given, size).reshape(height, width).astype(np.float32)


_MAP, _VECTOR, _INDEX = "f8[:,::1]", "f8[::1]", "i8[:,::1]"  # numba's names, contiguous arrays
_PLACES, _LABELS, _PICTURE = "i8[::1]", "i4[::1]", "f4[:,::1]"
_TYPES: dict[Callable[..., None], str] = {
    _nearest: (
        f"{_MAP}, {_LABELS}, {_PLACES}, {_VECTOR}, {_VECTOR}, {_MAP}, {_LABELS}, {_PLACES}, "
        f"i8, i8, i8, f8, {_INDEX}, {_MAP}"
    ),
    _krige: (
        f"{_MAP}, {_INDEX}, {_MAP}, {_MAP}, {_LABELS}, {_VECTOR}, {_VECTOR}, {_VECTOR}, {_VECTOR}, "
        f"f8, f8, f8, {_MAP}, {_MAP}, {_MAP}"
    ),
    _agree: f"{_INDEX}, {_MAP}, {_MAP}, {_VECTOR}, {_VECTOR}, f8, f8, f8, f8, {_VECTOR}",
    _spread: (
        f"f4[::1], f4[::1], f4[::1], f4[::1], {_PICTURE}, f4[::1], {_PICTURE}, f4[:,:,::1], "
        f"f8, f8, f8, f8, f8, {_PICTURE}, {_PICTURE}"
    ),
}
