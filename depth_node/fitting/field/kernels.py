# SPDX-License-Identifier: Apache-2.0
"""The inner loops of the residual field, compiled with numba or as NumPy array code.

Both forms give the same results (to 1e-5; a test compares them). The loops are plain Python
functions that numba compiles if it is installed. numba keeps the machine code beside this file, or
in the user's cache folder if that is read-only, so only the first start on a machine compiles.

Arrays that belong together are passed as named tuples, which numba supports. The innermost loops
run over neighbours in memory, so that the compiler makes vector instructions of them: candidates of
a query, queries of a block, cells of a row. Indices of an unsigned type show the compiler that no
index counts from the end (a variable must not hold both signed and unsigned ones).

Shapes used throughout: N points, M queries (lattice nodes or points), F features, k neighbours,
G nugget levels. The F = 6 features are row, column, logarithm of the base map and three of colour,
each in units of its correlation length.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field import detail_loops, image_loops, motion_loops, refine_loops
from depth_node.fitting.field.lattice import Floats, Integers
from depth_node.fitting.field.threads import SharedLoop, usual_threads
from depth_node.fitting.numba_support import LANES, compiled, find_numba, tuple_of

COMPILERS = ("auto", "numba", "numpy")
STUDENT_PEAK = 0.3675526  # density at 0 of Student's distribution with 3 degrees of freedom
CIRCLE = (1.0, 0.0, 1.0)  # shape of a hole that is equally wide in every direction
_CHUNK = 4096  # queries that the NumPy forms process at a time
_BLOCK = 64  # queries that are kriged together, one per vector element
_FLOATS = 2 * LANES  # float32 numbers in a vector
_RANKED = 56  # up to so many candidates are sorted by counting, more by insertion


class Points(NamedTuple):
    """The N points among which neighbours are searched, sorted by cell.

    feature: (N, F). label: (N,) int32 region. The image is divided into cell_rows x cell_cols
    cells; cell c holds the points start[c]:start[c + 1], start has cell_rows cell_cols + 1 entries.
    columns: (F + 1, N + 2 LANES) features and label, one row for each, zeros behind the N points.
    """

    feature: Floats
    label: NDArray[np.int32]
    start: Integers
    cell_rows: int
    cell_cols: int
    columns: Floats

    @classmethod
    def of(
        cls,
        feature: Floats,
        label: NDArray[np.int32],
        start: Integers,
        cell_rows: int,
        cell_cols: int,
    ) -> Points:
        """Return the points with their columns filled in."""
        count, features = feature.shape
        # Loops read whole vectors, even from the last point on.
        columns: Floats = np.zeros((features + 1, count + 2 * LANES))
        columns[:features, :count], columns[features, :count] = feature.T, label
        return cls(feature, label, start, cell_rows, cell_cols, columns)


class Queries(NamedTuple):
    """The M places whose neighbours are searched.

    feature: (M, F). label: (M,) int32 region. cell: (M,) cell of each query. hole: (M,) squared
    size, in features 0 and 1, of the ellipse around a query inside which no point counts. shape:
    (3,) of that ellipse: d0^2 shape[0] + 2 d0 d1 shape[1] + d1^2 shape[2] < hole is inside.
    """

    feature: Floats
    label: NDArray[np.int32]
    cell: Integers
    hole: Floats
    shape: Floats


class Neighbours(NamedTuple):
    """The k points nearest to each query, in ascending order of distance.

    indices: (M, k) int64 points, -1 where there are fewer. square: (M, k) squared feature distance.
    """

    indices: Integers
    square: Floats

    @classmethod
    def empty(cls, queries: int, count: int) -> Neighbours:
        """Return uninitialised arrays for `count` neighbours of each of the queries."""
        return cls(np.empty((queries, count), np.int64), np.empty((queries, count)))


class Correlation(NamedTuple):
    """Correlation of the residual over squared feature distance D and its part of position S.

        (1 - long_weight) / (1 + D) + long_weight / (1 + long_scale S)

    These are two rational quadratic functions; the second changes slowly, with position alone. D of
    two points of different regions includes label_gap.
    """

    long_weight: float
    long_scale: float
    label_gap: float

    def at(self, square: Floats, position_square: Floats) -> Floats:
        """Return the correlation (M,) at squared distances D, label_gap included, and S, (M,)."""
        result: Floats = (1 - self.long_weight) / (1 + square) + self.long_weight / (
            1 + self.long_scale * position_square
        )
        return result


class Observations(NamedTuple):
    """The observations that kriging interpolates, (N,) each.

    value: log residual. noise: factor of the nugget level, 1 for a fresh point. extra_nugget: added
    to noise times level.
    """

    value: Floats
    noise: Floats
    extra_nugget: Floats


class Kriged(NamedTuple):
    """The results of simple kriging at M queries for G nugget levels, (G, M) each.

    mean: estimated log residual. variance: for a prior variance of 1, at least 1e-4. sill: prior
    variance estimated from the n neighbours' values, y' K^-1 y / n.
    """

    mean: Floats
    variance: Floats
    sill: Floats

    @classmethod
    def empty(cls, levels: int, queries: int) -> Kriged:
        """Return uninitialised arrays for the results at `levels` levels and `queries` queries."""
        mean, variance, sill = (np.empty((levels, queries)) for _ in range(3))
        return cls(mean, variance, sill)


@dataclass(frozen=True)
class FieldKernels:
    """One form of all loops.

    name: numba or numpy. threads: number of threads that share a loop, 1 for numpy.
    """

    name: str
    threads: int
    nearest: Callable[..., None]
    krige: Callable[..., None]
    agree: Callable[..., None]
    spread: Callable[..., None]
    predict: Callable[..., None]
    mean: Callable[..., None]
    distances: Callable[..., None]
    extremes: Callable[..., None]
    edges: Callable[..., None]
    answer: Callable[..., None]
    motion: Callable[..., None]
    drawn: Callable[..., None]
    nearest_point: Callable[..., None]
    differences: Callable[..., None]


@functools.cache
def kernels(compiler: str = "auto", threads: int = 1) -> FieldKernels:
    """Return the loops of a compiler: numba, numpy, or auto (numba if it is installed).

    threads: number of threads that share a loop of numba; 0: one for each core that the process may
    use, at most 4. Raises ValueError for another compiler, and RuntimeError for numba if it cannot
    be used.
    """
    if compiler not in COMPILERS:
        raise ValueError(f"the compiler {compiler!r} is unknown: use {', '.join(COMPILERS)}.")
    numba, why_not = (None, "") if compiler == "numpy" else find_numba()
    if numba is None:
        if compiler == "numba":
            raise RuntimeError(
                f"fit.field.compiler is numba, but {why_not}: pip install --upgrade numba, or set"
                " the compiler to auto or numpy."
            )
        if why_not:
            logging.getLogger(__name__).warning(
                f"{why_not}: method field runs as NumPy code, 40 times slower or worse (0.2 to 6 s"
                " an image). pip install --upgrade numba, take another fit.method, or set"
                " fit.field.compiler to numpy to silence this warning."
            )
        return FieldKernels(
            "numpy", 1, nearest_numpy, krige_numpy, agree_numpy,
            detail_loops.spread_numpy, detail_loops.predict_numpy,
            image_loops.mean_numpy, image_loops.distances_numpy, image_loops.extremes_numpy,
            image_loops.edges_numpy, image_loops.answer_numpy,
            motion_loops.motion_numpy, motion_loops.drawn_numpy,
            refine_loops.nearest_point_numpy, refine_loops.differences_numpy,
        )  # fmt: skip
    threads = threads or usual_threads()
    loops = (
        SharedLoop(loop, total, least, threads)
        for loop, (total, least) in zip(_compiled(), _SHARES, strict=True)
    )
    return FieldKernels("numba", threads, *loops)


# For each loop: how many items it has, from its arguments, and how many items are worth a thread.
_SHARES: tuple[tuple[Callable[..., int], int], ...] = (
    (lambda queries, *_: len(queries.feature), 256),
    (lambda query, *_: len(query), 4 * _BLOCK),
    (lambda neighbours, *_: len(neighbours.indices), 1024),
    (lambda points, surface, *_: len(surface), 24),
    (lambda points, left_out, *_: len(left_out.which), 1024),
    (lambda image, line, channels, rows, *_: len(rows.first), 16),
    (lambda *_: 1, 1),
    (lambda plane, rows, *_: len(rows), 1024),
    (lambda plane, *_: len(plane), 128),
    (lambda values, *_: len(values), 64),
    (lambda changed, *_: len(changed), 64),
    (lambda old, *_: len(old), 128),
    (lambda *_: 1, 1),
    (lambda plane, less, limit, out: out.shape[1], 128),
)


@functools.cache
def _compiled() -> tuple[Callable[..., None], ...]:
    """Return the loops as machine code of numba, which must be installed."""
    types = find_numba()[0].types
    # The types are given, so everything is compiled here and no frame waits for the compiler.
    # Points contain no NaN and no infinity, so reassociation is the only effect of fastmath; images
    # may contain both.
    of_points = [
        compiled(
            loop,
            signature,
            distinct=loop is detail_loops.spread,
            fastmath=True,
            error_model="numpy",
        )
        for loop, signature in (_signatures(types) | detail_loops.signatures(types)).items()
    ]
    of_images = [
        compiled(loop, signature, fastmath=set(image_loops.FAST_MATH), error_model="numpy")
        for module in (image_loops, motion_loops, refine_loops)
        for loop, signature in module.signatures(types).items()
    ]
    return (*of_points, *of_images)


def _signatures(types: Any) -> dict[Callable[..., None], Any]:
    """Return numba's signatures of the loops here, all arrays contiguous. types: numba.types."""
    real, whole = types.float64, types.int64
    vector, matrix = real[::1], real[:, ::1]
    indices, index_matrix, labels = whole[::1], whole[:, ::1], types.int32[::1]

    group = functools.partial(tuple_of, types)
    points = group(Points, matrix, labels, indices, whole, whole, matrix)
    queries = group(Queries, matrix, labels, indices, vector, vector)
    neighbours = group(Neighbours, index_matrix, matrix)
    correlation = group(Correlation, real, real, real)
    observations = group(Observations, vector, vector, vector)
    kriged = group(Kriged, matrix, matrix, matrix)
    part = whole, whole
    return {
        _nearest: types.void(queries, points, whole, real, neighbours, *part),
        _krige: types.void(
            matrix, neighbours, points, observations, vector, correlation, kriged, *part
        ),
        _agree: types.void(
            neighbours, points, vector, vector, real, real, correlation, vector, *part
        ),
    }


# --- neighbours ----------------------------------------------------------------------------------


def _nearest(
    queries: Queries,
    points: Points,
    candidates: int,
    label_gap: float,
    neighbours: Neighbours,
    begin: int,
    end: int,
) -> None:
    """Find the k points nearest to every query in feature distance, among those around it.

    The points around a query are those in the smallest square of cells around its own, at least
    3 x 3, that has `candidates` points outside the query's hole. Another label adds label_gap to
    the squared feature distance. Distances are compared as float32, so that those which differ only
    by rounding are equal; of equal ones the first point is taken. Writes the neighbours of the
    queries begin:end.
    """
    query, query_label, query_cell = queries.feature, queries.label, queries.cell
    hole, shape = queries.hole, queries.shape
    f, start = points.columns, points.start
    cell_rows, cell_cols = points.cell_rows, points.cell_cols
    index, square = neighbours.indices, neighbours.square
    k, capacity = index.shape[1], f.shape[1]
    distance, which = np.empty(capacity, np.float32), np.empty(capacity, np.int64)
    rank, order = np.empty(capacity, np.int32), np.empty(capacity, np.int64)
    for m in range(begin, end):
        q0, q1, q2 = query[m, 0], query[m, 1], query[m, 2]
        q3, q4, q5 = query[m, 3], query[m, 4], query[m, 5]
        q6 = float(query_label[m])
        row = query_cell[m] // cell_cols
        col = query_cell[m] - row * cell_cols
        # Find the square of cells, and if there is a hole, the candidates in ascending order.
        size = ring = left = right = 0
        while ring < 1 or (size < candidates and (ring < cell_rows or ring < cell_cols)):
            ring += 1
            size = 0
            left, right = max(0, col - ring), min(cell_cols - 1, col + ring)
            for i in range(max(0, row - ring), min(cell_rows - 1, row + ring) + 1):
                here, there = start[i * cell_cols + left], start[i * cell_cols + right + 1]
                if hole[m] > 0.0:
                    for p in range(here, there):
                        d0, d1 = q0 - f[0, p], q1 - f[1, p]
                        measure = d0 * d0 * shape[0] + 2.0 * d0 * d1 * shape[1]
                        if measure + d1 * d1 * shape[2] >= hole[m]:
                            which[size] = p
                            size += 1
                else:
                    size += there - here
        if hole[m] > 0.0:
            for a in range(size):
                p = which[a]
                d0, d1, d2 = q0 - f[0, p], q1 - f[1, p], q2 - f[2, p]
                d3, d4, d5 = q3 - f[3, p], q4 - f[4, p], q5 - f[5, p]
                d = d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3 + d4 * d4 + d5 * d5
                distance[a] = np.float32(d + (label_gap if f[6, p] != q6 else 0.0))
        else:
            size = 0
            for i in range(max(0, row - ring), min(cell_rows - 1, row + ring) + 1):
                here, there = start[i * cell_cols + left], start[i * cell_cols + right + 1]
                first, at = np.uint64(here), np.uint64(size)
                whole = (there - here + LANES - 1) // LANES * LANES
                for j in range(whole):
                    u, to = first + np.uint64(j), at + np.uint64(j)
                    d0, d1, d2 = q0 - f[0, u], q1 - f[1, u], q2 - f[2, u]
                    d3, d4, d5 = q3 - f[3, u], q4 - f[4, u], q5 - f[5, u]
                    d = d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3 + d4 * d4 + d5 * d5
                    distance[to] = np.float32(d + (label_gap if f[6, u] != q6 else 0.0))
                for j in range(whole):
                    which[at + np.uint64(j)] = here + j
                size += there - here
        for a in range(_FLOATS):
            distance[size + a] = np.float32(1e30)
        filled = min(k, size)
        if size <= _RANKED:
            # The rank of a candidate is the number of nearer ones: computed without branches.
            whole = (size + _FLOATS - 1) // _FLOATS * _FLOATS
            for a in range(whole):
                rank[a] = 0
            for b in range(0, size, 8):  # eight at a time, as each sum needs the one before
                b0, b1, b2, b3 = distance[b], distance[b + 1], distance[b + 2], distance[b + 3]
                b4, b5, b6, b7 = distance[b + 4], distance[b + 5], distance[b + 6], distance[b + 7]
                for a in range(whole):
                    own = distance[a]
                    nearer = np.int32(b0 < own) + np.int32(b1 < own) + np.int32(b2 < own)
                    nearer += np.int32(b3 < own) + np.int32(b4 < own) + np.int32(b5 < own)
                    rank[a] += nearer + np.int32(b6 < own) + np.int32(b7 < own)
            total = 0
            for a in range(size):
                total += rank[a]
            if 2 * total != size * (size - 1):  # some are equal: the first of these gets ahead
                for b in range(size):
                    for a in range(b + 1, size):
                        rank[a] += np.int32(distance[a] == distance[b])
            for a in range(size):
                order[rank[a]] = a
        else:
            for a in range(size):
                slot = min(a, k - 1)
                if a >= k and distance[a] >= distance[order[slot]]:
                    continue
                while slot > 0 and distance[order[slot - 1]] > distance[a]:
                    order[slot] = order[slot - 1]
                    slot -= 1
                order[slot] = a
        for slot in range(k):
            index[m, slot] = which[order[slot]] if slot < filled else -1
            square[m, slot] = distance[order[slot]] if slot < filled else 0.0


def nearest_numpy(
    queries: Queries, points: Points, candidates: int, label_gap: float, neighbours: Neighbours
) -> None:
    """See :func:`_nearest`; for all queries."""
    query, query_label, query_cell = queries.feature, queries.label, queries.cell
    hole, shape = queries.hole, queries.shape
    point, label = points.feature, points.label
    cell_rows, cell_cols = points.cell_rows, points.cell_cols
    index, square = neighbours
    k = index.shape[1]
    cell_of_point = np.repeat(np.arange(cell_rows * cell_cols), np.diff(points.start))
    rows, cols = cell_of_point // cell_cols, cell_of_point % cell_cols
    for begin in range(0, len(query), max(1, _CHUNK * 256 // max(len(point), 1))):
        part = slice(begin, begin + max(1, _CHUNK * 256 // max(len(point), 1)))
        q, cell = query[part], query_cell[part]
        d0, d1 = q[:, None, 0] - point[None, :, 0], q[:, None, 1] - point[None, :, 1]
        position_square = d0 * d0 + d1 * d1
        measure = d0 * d0 * shape[0] + 2 * d0 * d1 * shape[1] + d1 * d1 * shape[2]
        allowed = ~(measure < hole[part, None])
        # The ring of cells around the query's own in which each point lies.
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
        distance = position_square + ((q[:, None, 2:] - point[None, :, 2:]) ** 2).sum(axis=2)
        distance += label_gap * (query_label[part, None] != label[None, :])
        distance = distance.astype(np.float32).astype(np.float64)
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
    neighbours: Neighbours,
    points: Points,
    observations: Observations,
    levels: Floats,
    correlation: Correlation,
    kriged: Kriged,
    begin: int,
    end: int,
) -> None:
    """Krige observations at queries (M, F) from their neighbours, by simple kriging.

    The diagonal of the matrix is 1 + level * noise + extra_nugget, for each nugget level (G,).
    Writes `kriged` of the queries begin:end.
    """
    index, square = neighbours.indices, neighbours.square
    point, label = points.feature, points.label
    value, noise, extra_nugget = observations.value, observations.noise, observations.extra_nugget
    long_weight, long_scale = correlation.long_weight, correlation.long_scale
    label_gap = correlation.label_gap
    mean, variance, sill = kriged.mean, kriged.variance, kriged.sill
    k, short_weight = index.shape[1], 1.0 - long_weight
    x: Floats = np.empty((k, 7, _BLOCK))
    exists: Floats = np.empty((k, _BLOCK))
    y: Floats = np.empty((k, _BLOCK))
    nugget: Floats = np.empty((k, _BLOCK))
    extra: Floats = np.empty((k, _BLOCK))
    towards: Floats = np.empty((k, _BLOCK))
    alike: Floats = np.empty((k, k, _BLOCK))
    matrix: Floats = np.empty((k, k, _BLOCK))
    weight: Floats = np.empty((k, _BLOCK))
    white: Floats = np.empty((k, _BLOCK))
    left: Floats = np.empty((3, _BLOCK))
    for first in range(begin, end, _BLOCK):
        size = min(_BLOCK, end - first)
        for m in range(size):
            for a in range(k):
                # A missing neighbour becomes an uncorrelated one with the value 0: no effect.
                p = max(index[first + m, a], 0)
                present = 1.0 if index[first + m, a] >= 0 else 0.0
                for c in range(6):
                    x[a, c, m] = point[p, c]
                x[a, 6, m] = label[p]
                exists[a, m] = present
                y[a, m] = value[p] * present
                nugget[a, m] = noise[p] * present
                extra[a, m] = extra_nugget[p] * present
                dr, dc = point[p, 0] - query[first + m, 0], point[p, 1] - query[first + m, 1]
                d, s = 1.0 + square[first + m, a], 1.0 + long_scale * (dr * dr + dc * dc)
                towards[a, m] = present * (short_weight * s + long_weight * d) / (d * s)
        for a in range(k):
            for b in range(a):
                for m in range(size):
                    d0, d1 = x[a, 0, m] - x[b, 0, m], x[a, 1, m] - x[b, 1, m]
                    d2, d3 = x[a, 2, m] - x[b, 2, m], x[a, 3, m] - x[b, 3, m]
                    d4, d5 = x[a, 4, m] - x[b, 4, m], x[a, 5, m] - x[b, 5, m]
                    near = d0 * d0 + d1 * d1
                    d = 1.0 + near + d2 * d2 + d3 * d3 + d4 * d4 + d5 * d5
                    d += label_gap if x[a, 6, m] != x[b, 6, m] else 0.0
                    s = 1.0 + long_scale * near
                    both = exists[a, m] * exists[b, m]
                    alike[a, b, m] = both * (short_weight * s + long_weight * d) / (d * s)
        for g in range(len(levels)):
            for a in range(k):
                for b in range(a):
                    for m in range(size):
                        matrix[a, b, m] = alike[a, b, m]
                    for c in range(b):
                        for m in range(size):
                            matrix[a, b, m] -= matrix[a, c, m] * matrix[b, c, m]
                    for m in range(size):
                        matrix[a, b, m] *= matrix[b, b, m]
                for m in range(size):
                    left[0, m] = 1.0 + levels[g] * nugget[a, m] + extra[a, m]
                    left[1, m] = towards[a, m]
                    left[2, m] = y[a, m]
                for c in range(a):
                    for m in range(size):
                        left[0, m] -= matrix[a, c, m] * matrix[a, c, m]
                        left[1, m] -= matrix[a, c, m] * weight[c, m]
                        left[2, m] -= matrix[a, c, m] * white[c, m]
                for m in range(size):
                    # The inverse of the diagonal is stored, because it is only divided by.
                    inverse = 1.0 / math.sqrt(max(left[0, m], 1e-9))
                    matrix[a, a, m] = inverse
                    weight[a, m] = left[1, m] * inverse
                    white[a, m] = left[2, m] * inverse
            for m in range(size):
                explained = estimate = energy = count = 0.0
                for a in range(k):
                    explained += weight[a, m] * weight[a, m]
                    estimate += weight[a, m] * white[a, m]
                    energy += white[a, m] * white[a, m]
                    count += exists[a, m]
                mean[g, first + m] = estimate
                variance[g, first + m] = max(1.0 - explained, 1e-4)
                sill[g, first + m] = energy / max(count, 1.0)


def krige_numpy(
    query: Floats,
    neighbours: Neighbours,
    points: Points,
    observations: Observations,
    levels: Floats,
    correlation: Correlation,
    kriged: Kriged,
) -> None:
    """See :func:`_krige`; for all M queries, from N points, results (G, M)."""
    index, square = neighbours
    point, label = points.feature, points.label
    value, noise, extra_nugget = observations
    mean, variance, sill = kriged
    k = index.shape[1]
    for begin in range(0, len(index), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        chosen, missing = np.maximum(index[part], 0), index[part] < 0
        x = point[chosen]  # (m, k, F)
        near = ((x[:, :, None, :2] - x[:, None, :, :2]) ** 2).sum(axis=3)
        d = near + ((x[:, :, None, 2:] - x[:, None, :, 2:]) ** 2).sum(axis=3)
        d += correlation.label_gap * (label[chosen][:, :, None] != label[chosen][:, None, :])
        alike = correlation.at(d, near)
        towards = correlation.at(
            square[part], ((x[:, :, :2] - query[part, None, :2]) ** 2).sum(axis=2)
        )
        y = value[chosen]
        # A missing neighbour becomes an uncorrelated one with the value 0: no effect.
        alike[missing[:, :, None] | missing[:, None, :]] = 0.0
        towards[missing], y[missing] = 0.0, 0.0
        count = np.maximum(k - missing.sum(axis=1), 1)
        for g, level in enumerate(levels):
            nugget = np.where(missing, 0.0, level * noise[chosen] + extra_nugget[chosen])
            alike[:, np.arange(k), np.arange(k)] = 1.0 + nugget
            factor = np.linalg.cholesky(alike)
            white = np.linalg.solve(factor, np.stack([towards, y], axis=2))
            mean[g, part] = (white[:, :, 0] * white[:, :, 1]).sum(axis=1)
            variance[g, part] = np.maximum(1.0 - (white[:, :, 0] ** 2).sum(axis=1), 1e-4)
            sill[g, part] = (white[:, :, 1] ** 2).sum(axis=1) / count


# --- agreement -----------------------------------------------------------------------------------


def _agree(
    neighbours: Neighbours,
    points: Points,
    value: Floats,
    outlier_probability: Floats,
    scale: float,
    nugget: float,
    correlation: Correlation,
    density: Floats,
    begin: int,
    end: int,
) -> None:
    """Compute the density of each point's value, predicted by single neighbours.

    It is a mixture, over the neighbours, of Student's densities (3 degrees of freedom) of the
    difference of two values (N,) in units of scale sqrt(2 (1 - correlation) + 2 nugget). The
    weights are the squared correlation times the trust in the neighbour, 1 - outlier_probability
    (N,). Writes density (N,) of the points begin:end.
    """
    index, square, f = neighbours.indices, neighbours.square, points.columns
    long_weight, long_scale = correlation.long_weight, correlation.long_scale
    k = index.shape[1]
    for n in range(begin, end):
        mass = 0.0
        likely = 0.0
        for a in range(k):
            present = 1.0 if index[n, a] >= 0 else 0.0
            p = np.uint64(max(index[n, a], 0))
            dr, dc = f[0, n] - f[0, p], f[1, n] - f[1, p]
            alike = (1.0 - long_weight) / (1.0 + square[n, a]) + long_weight / (
                1.0 + long_scale * (dr * dr + dc * dc)
            )
            step = 1.0 / (scale * math.sqrt(2.0 * (1.0 - alike) + 2.0 * nugget))
            off = (value[n] - value[p]) * step
            tail = 1.0 + off * off / 3.0
            weight = present * (alike * alike * (1.0 - outlier_probability[p]) + 1e-9)
            mass += weight
            likely += weight * step / (tail * tail)
        density[n] = STUDENT_PEAK * likely / max(mass, 1e-9)


def agree_numpy(
    neighbours: Neighbours,
    points: Points,
    value: Floats,
    outlier_probability: Floats,
    scale: float,
    nugget: float,
    correlation: Correlation,
    density: Floats,
) -> None:
    """See :func:`_agree`; for all points (N,)."""
    index, square = neighbours
    point = points.feature
    chosen = np.maximum(index, 0)
    near = ((point[:, None, :2] - point[chosen, :2]) ** 2).sum(axis=2)
    alike = correlation.at(square, near)
    step = 1 / (scale * np.sqrt(2 * (1 - alike) + 2 * nugget))
    off = (value[:, None] - value[chosen]) * step
    weight = np.where(index < 0, 0.0, alike**2 * (1 - outlier_probability[chosen]) + 1e-9)
    likely = (weight * step / (1 + off * off / 3) ** 2).sum(axis=1)
    density[:] = STUDENT_PEAK * likely / np.maximum(weight.sum(axis=1), 1e-9)
