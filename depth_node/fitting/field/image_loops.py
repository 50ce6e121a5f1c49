# SPDX-License-Identifier: Apache-2.0
"""Loops over whole images: reduction of values or colours to a lattice, and the result's pixels.

With few points, most of the time is spent in passes over the image. Therefore values are converted
to metres where they are read, and no map of the base is ever written. OpenCV does what it is fast
at. Each loop also has a form in NumPy and OpenCV, as in kernels.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.lattice import Integers, Map
from depth_node.fitting.numba_support import tuple_of

# numba's fastmath without the flags that assume no NaN and no infinity: a network may give both.
FAST_MATH = frozenset({"contract", "reassoc", "nsz", "arcp"})


class MetresLine(NamedTuple):
    """The line from a network's values v to metres: w = scale v + shift, limited to low..high.

    Metres are w, or 1 / w if `inverse`. All numbers are float32, so that loops compute what NumPy
    computes.
    """

    scale: np.float32
    shift: np.float32
    low: np.float32
    high: np.float32
    inverse: bool

    def metres(self, values: Map) -> Map:
        """Return metres, float32, of values (H, W) or (n,)."""
        out: Map = values * self.scale
        out += self.shift
        np.clip(out, self.low, self.high, out=out)
        return np.reciprocal(out, out=out) if self.inverse else out


UNCHANGED = MetresLine(
    np.float32(1), np.float32(0), np.float32(-np.inf), np.float32(np.inf), inverse=False
)


class Shares(NamedTuple):
    """Which rows (or columns) of an image make up each row (or column) of a smaller lattice.

    first, last: (m,) int64, lattice row i consists of the image rows first[i]:last[i]. head, tail:
    (m,) float32, fractions of the first and, if there are several, of the last of them; those
    between count whole. scale: lattice rows per image row. halvings: number of halvings of the
    image that give the lattice's rows, -1 if no number does.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    head: Map
    tail: Map
    scale: float
    halvings: int


@functools.lru_cache(maxsize=64)
def shares(count: int, cells: int) -> Shares:
    """Divide `count` rows evenly into `cells` cells, at most `count` of them."""
    edge = np.arange(cells + 1) * (count / cells)
    first = np.floor(edge[:-1] + 1e-9).astype(np.int64)
    last = np.minimum(np.ceil(edge[1:] - 1e-9), count).astype(np.int64)
    head = np.minimum(first + 1, edge[1:]) - edge[:-1]
    tail = np.where(last - first > 1, edge[1:] - (last - 1), 0)
    halvings = max(count // cells, 1).bit_length() - 1
    if cells << halvings != count:
        halvings = -1
    return Shares(
        first, last, head.astype(np.float32), tail.astype(np.float32), cells / count, halvings
    )


def reduced(
    values: Map, size: tuple[int, int], loop: Callable[..., None], line: MetresLine = UNCHANGED
) -> Map:
    """Average values (H, W), or the metres of a line, over the cells of a lattice.

    size: (width, height) of the lattice. loop: a form of :func:`mean`.
    """
    return _averaged(values[:, :, None], size, loop, line)[:, :, 0]


def reduced_colour(
    image: NDArray[np.uint8], size: tuple[int, int], loop: Callable[..., None]
) -> NDArray[np.uint8]:
    """Average an image (H, W, 3) over the cells of a lattice, rounded.

    size: (width, height) of the lattice. loop: a form of :func:`mean`.
    """
    return np.rint(_averaged(image, size, loop, UNCHANGED)).astype(np.uint8)


def _averaged(
    image: NDArray[Any], size: tuple[int, int], loop: Callable[..., None], line: MetresLine
) -> Map:
    """Return the averages (height, width, C), float32, of an image (H, W, C)."""
    (rows, cols, channels), (width, height) = image.shape, size
    out: Map = np.empty((height, channels * width), np.float32)
    if rows < height or cols < width:  # an enlargement, which only OpenCV's form can do
        loop = mean_numpy
    beside = np.ascontiguousarray(image).reshape(rows, channels * cols)
    loop(beside, line, channels, shares(rows, height), shares(cols, width), out)
    return out.reshape(height, width, channels)


def mean(
    image: NDArray[Any],
    line: MetresLine,
    channels: int,
    rows: Shares,
    cols: Shares,
    out: Map,
    begin: int,
    end: int,
) -> None:
    """Average the metres of a line, applied to an image (H, W, C), over each cell of a lattice.

    image: (H, C W), out: (h, C w), with the C channels of a pixel beside each other. Writes rows
    begin:end of out.
    """
    slope, shift, low, high = line.scale, line.shift, line.low, line.high
    row, half = np.empty(image.shape[1], np.float32), np.empty(image.shape[1], np.float32)
    one, scale = np.float32(1.0), np.float32(rows.scale * cols.scale)
    for i in range(begin, end):
        width = image.shape[1]
        for j in range(width):  # numba needs a second to compile the assignment of a slice
            row[j] = np.float32(0.0)
        last = rows.last[i] - 1
        for k in range(rows.first[i], last + 1):
            share = one
            if k == rows.first[i]:
                share = rows.head[i]
            elif k == last:
                share = rows.tail[i]
            if line.inverse:
                for j in range(width):
                    row[j] += share / min(max(np.float32(image[k, j]) * slope + shift, low), high)
            else:
                for j in range(width):
                    row[j] += share * min(max(np.float32(image[k, j]) * slope + shift, low), high)
        if cols.halvings >= 0 and channels == 1:  # sums of pairs become vector instructions
            for _ in range(cols.halvings):
                width //= 2
                for j in range(width):
                    half[j] = row[2 * j] + row[2 * j + 1]
                for j in range(width):
                    row[j] = half[j]
            for j in range(width):
                out[i, j] = row[j] * scale
            continue
        for j in range(len(cols.first)):
            a, b = np.uint64(cols.first[j]), np.uint64(cols.last[j] - 1)
            for c in range(np.uint64(channels)):
                step = np.uint64(channels)
                total = np.float32(0.0)
                for k in range(a + np.uint64(1), b):
                    total += row[k * step + c]
                total += row[a * step + c] * cols.head[j]
                if b > a:
                    total += row[b * step + c] * cols.tail[j]
                out[i, np.uint64(j) * step + c] = total * scale


def mean_numpy(
    image: NDArray[Any], line: MetresLine, channels: int, rows: Shares, cols: Shares, out: Map
) -> None:
    """See :func:`mean`; for all cells (h, w)."""
    pixels: NDArray[Any] = image.reshape(len(image), -1, channels)
    if line != UNCHANGED:
        pixels = line.metres(pixels)
    size = (out.shape[1] // channels, out.shape[0])
    out[:] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).reshape(out.shape)


_STRAIGHT, _DIAGONAL = round(0.955 * 65536), round(1.3693 * 65536)  # OpenCV's fixed-point steps


def distances(near: NDArray[np.uint8], cells: Map, begin: int, end: int) -> None:
    """Write the distance of each cell (h, w) from the nearest cell where near is not 0, in cells.

    A step of the path has the length 0.955, a diagonal one 1.3693, as in OpenCV's distanceTransform
    (G. Borgefors, Distance transformations in digital images, 1986). Each row needs the one before,
    so threads cannot share this loop; begin and end are not used.
    """
    height, width = near.shape
    straight, diagonal, far = np.int32(_STRAIGHT), np.int32(_DIAGONAL), np.int32(1 << 28)
    steps = np.full((height + 2, width + 2), far, np.int32)
    # The cost of the way along the row is subtracted first: then a running minimum is all that
    # depends on the cell before.
    row = np.empty(width, np.int32)
    for i in range(1, height + 1):
        for j in range(width):
            best = min(steps[i - 1, j], steps[i - 1, j + 2]) + diagonal
            best = min(best, steps[i - 1, j + 1] + straight) * np.int32(near[i - 1, j] == 0)
            row[j] = best - np.int32(j) * straight
        left = far
        for j in range(width):
            left = min(row[j], left)
            row[j] = left
        for j in range(width):
            steps[i, j + 1] = row[j] + np.int32(j) * straight
    for i in range(height, 0, -1):
        for j in range(width):
            best = min(steps[i + 1, j], steps[i + 1, j + 2]) + diagonal
            best = min(best, steps[i + 1, j + 1] + straight)
            row[j] = min(best, steps[i, j + 1]) + np.int32(j) * straight
        right = far
        for j in range(width - 1, -1, -1):
            right = min(row[j], right)
            row[j] = right
        for j in range(width):
            best = row[j] - np.int32(j) * straight
            steps[i, j + 1] = best
            cells[i - 1, j] = np.float32(best) * np.float32(1 / 65536)


def distances_numpy(near: NDArray[np.uint8], cells: Map) -> None:
    """See :func:`distances`; of a map (h, w)."""
    cells[:] = cv2.distanceTransform((near == 0).astype(np.uint8), cv2.DIST_L2, 3)


def extremes(
    plane: Map,
    rows: Integers,
    cols: Integers,
    reach: int,
    low: Map,
    high: Map,
    begin: int,
    end: int,
) -> None:
    """Find the least and largest value of a map (h, w) within `reach` rows and columns of cells.

    Writes low and high (m,) of the cells (rows, cols), (m,) each, from begin:end.
    """
    height, width = plane.shape
    for m in range(begin, end):
        least = most = plane[rows[m], cols[m]]
        for i in range(max(rows[m] - reach, 0), min(rows[m] + reach, height - 1) + 1):
            for j in range(max(cols[m] - reach, 0), min(cols[m] + reach, width - 1) + 1):
                least, most = min(least, plane[i, j]), max(most, plane[i, j])
        low[m], high[m] = least, most


def extremes_numpy(
    plane: Map, rows: Integers, cols: Integers, reach: int, low: Map, high: Map
) -> None:
    """See :func:`extremes`; of all cells (m,)."""
    around = np.arange(-reach, reach + 1)
    row = np.clip(rows[:, None] + around, 0, plane.shape[0] - 1)
    col = np.clip(cols[:, None] + around, 0, plane.shape[1] - 1)
    about = plane[row[:, :, None], col[:, None, :]]
    low[:], high[:] = about.min(axis=(1, 2)), about.max(axis=(1, 2))


def edges(plane: Map, growth: np.float32, cap: np.float32, out: Map, begin: int, end: int) -> None:
    """Write 1 + growth min(step, cap) of each cell of a map (h, w).

    The step is the largest minus the least value of the 3 x 3 cells around it. Writes rows
    begin:end of out (h, w).
    """
    height, width = plane.shape
    most, least = np.empty(width + 2, np.float32), np.empty(width + 2, np.float32)
    for i in range(begin, end):
        above, below = max(i - 1, 0), min(i + 1, height - 1)
        for j in range(width):
            one, two, three = plane[above, j], plane[i, j], plane[below, j]
            most[j + 1] = max(max(one, two), three)
            least[j + 1] = min(min(one, two), three)
        most[0], most[width + 1] = most[1], most[width]
        least[0], least[width + 1] = least[1], least[width]
        for j in range(width):
            step = max(max(most[j], most[j + 1]), most[j + 2])
            step -= min(min(least[j], least[j + 1]), least[j + 2])
            out[i, j] = np.float32(1.0) + growth * min(step, cap)


def edges_numpy(plane: Map, growth: np.float32, cap: np.float32, out: Map) -> None:
    """See :func:`edges`; of all rows (h, w)."""
    cv2.morphologyEx(plane, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8), dst=out)
    np.minimum(out, cap, out=out)
    out *= growth
    out += 1


def answer(
    values: Map,
    line: MetresLine,
    nearest: np.float32,
    farthest: np.float32,
    depth: Map,
    std: Map,
    begin: int,
    end: int,
) -> None:
    """Turn factors of the base and relative errors into depth and std in m, in place.

    values: (H, W), which the line converts to the base in m. depth: (H, W), in: factor of the base,
    out: m, limited to nearest..farthest (m). std: (H, W), in: relative to the depth, out: m, of the
    depth before it was limited. Writes rows begin:end.
    """
    scale, shift, low, high = line.scale, line.shift, line.low, line.high
    width = values.shape[1]
    for i in range(begin, end):
        if line.inverse:
            for j in range(width):
                metres = depth[i, j] / min(max(values[i, j] * scale + shift, low), high)
                depth[i, j] = min(max(metres, nearest), farthest)
                std[i, j] *= metres
        else:
            for j in range(width):
                metres = depth[i, j] * min(max(values[i, j] * scale + shift, low), high)
                depth[i, j] = min(max(metres, nearest), farthest)
                std[i, j] *= metres


def answer_numpy(
    values: Map,
    line: MetresLine,
    nearest: np.float32,
    farthest: np.float32,
    depth: Map,
    std: Map,
) -> None:
    """See :func:`answer`; of all rows (H, W)."""
    depth *= line.metres(values)
    std *= depth
    np.clip(depth, nearest, farthest, out=depth)


def signatures(types: Any) -> dict[Any, Any]:
    """Return numba's signatures of the loops, all arrays contiguous. types: numba.types."""
    real, whole = types.float32, types.int64
    values, image = (types.Array(kind, 2, "C", readonly=True) for kind in (real, types.uint8))
    line = tuple_of(types, MetresLine, real, real, real, real, types.boolean)
    some = tuple_of(
        types, Shares, whole[::1], whole[::1], real[::1], real[::1], types.float64, whole
    )
    grid, map_ = real[:, ::1], real[:, ::1]
    return {
        mean: tuple(
            types.void(kind, line, whole, some, some, grid, whole, whole)
            for kind in (values, image)
        ),
        distances: types.void(types.uint8[:, ::1], grid, whole, whole),
        extremes: types.void(
            grid, whole[::1], whole[::1], whole, real[::1], real[::1], whole, whole
        ),
        edges: types.void(grid, real, real, grid, whole, whole),
        answer: types.void(values, line, real, real, map_, map_, whole, whole),
    }
