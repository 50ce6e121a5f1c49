# SPDX-License-Identifier: Apache-2.0
"""A depth map at the image's size with its edges kept: what preprocess enlarges depth with.

Bilinear interpolation turns an edge between two cells into a ramp of a cell's width, on which every
pixel is wrong. Here a pixel stays within the four cells about it, as there, but where they hold an
edge it is drawn to one side:

- where the map is crisp (the step to the next cell is most of the edge), by raising the contrast
  of the interpolated value between the lowest and the highest of the four;
- where the edge is spread over several cells, by the map minus its blur (unsharp masking), clamped
  to the four: no overshoot, and an even slope stays as it is;
- by the image: the four cells' values weighted by how much their colours resemble the pixel's.

The answer is a convex mix of four cells and keeps the network's own space: a scale, a shift or the
opposite sign of the map gives the same of the answer. Edges that are low beside the map's range, or
much wider than a cell, are not touched: what looks so is as often noise, and a network that gives
only such edges puts them elsewhere than they are (docs/studies/upsampling.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.fitting.numba_support import compiled, find_numba, tuple_of
from depth_node.fitting.robust import quantile

Map = npt.NDArray[np.float32]

MIN_FACTOR = 1.25  # a smaller enlargement is bilinear

# Which edges are sharpened: from none to all between the two, of the step within four cells
EDGE_OF_RANGE = (0.02, 0.06)  # over the map's 2 to 98 % range
EDGE_OF_SURROUNDINGS = (0.2, 0.4)  # over the range of the 8 x 8 cells about them
# What is a crisp edge: over the range of the 4 x 4 cells about them
CRISP = (0.6, 0.9)

CONTRAST = 4.0  # of a crisp edge
CORNER = 4.0  # times map minus blur, over the step, at which that contrast is reached
UNSHARP = 3.0  # times map minus blur
UNSHARP_SIGMA = 1.0  # cells
BORDER = 3  # cells at the map's border that stay bilinear: the blur knows nothing beyond it
COLOUR = 1.0  # of the colours' opinion against the interpolated value
COLOUR_STEP = 20.0  # of 255: colours that far apart count half


# Rows are taken in strips whose arrays stay small: fresh large ones cost more than the arithmetic.
STRIP_CELLS = 20_000
MARGIN = 5  # rows about a strip that are looked at


class Cells(NamedTuple):
    """A strip (n, w) of the map (h, w) and what lies about each of its cells; float32.

    step, middle: range of the four cells to the lower right, and its middle. near, far: range of
    the 4 x 4 and of the 8 x 8 cells about them. unsharp: the map minus its blur.
    """

    values: Map
    step: Map
    middle: Map
    near: Map
    far: Map
    unsharp: Map


def enlarged(values: Map, image: npt.NDArray[np.uint8]) -> Map:
    """(h, w) depth map of any meaning -> (H, W) of the (H, W, 3) uint8 image of the same view.

    Bilinear where there is no edge, in maps with values that are not finite, and where the image
    is not larger by MIN_FACTOR on both axes.
    """
    (height, width), (rows, cols) = values.shape, image.shape[:2]
    out = np.asarray(cv2.resize(values, (cols, rows), interpolation=cv2.INTER_LINEAR), np.float32)
    small = min(height, width) < 2 or min(rows / height, cols / width) < MIN_FACTOR
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if small or not np.isfinite(total):
        return out
    some = values[::4, ::4].ravel()
    low, high = quantile(some, 0.02), quantile(some, 0.98)
    if not high - low > 0:
        return out
    image = np.ascontiguousarray(image)
    sharpen, strip = sharpener(), max(1, STRIP_CELLS // width)
    for first in range(BORDER, height - 1 - BORDER, strip):
        last = min(first + strip, height - 1 - BORDER)
        begin = max(first - MARGIN, 0)
        cells = _cells(values[begin : last + MARGIN])
        sharpen(cells, image, (begin, first, last, height), float(high - low), out)
    return out


def _cells(values: Map) -> Cells:
    def extremes(size: int) -> tuple[Map, Map]:
        square, anchor = np.ones((size, size), np.uint8), (size // 2 - 1, size // 2 - 1)
        return (
            np.asarray(cv2.erode(values, square, anchor=anchor), np.float32),
            np.asarray(cv2.dilate(values, square, anchor=anchor), np.float32),
        )

    (low, high), (near_low, near_high), (far_low, far_high) = map(extremes, (2, 4, 8))
    blurred = cv2.GaussianBlur(values, (0, 0), UNSHARP_SIGMA)
    return Cells(
        values,
        high - low,
        np.float32(0.5) * (low + high),
        near_high - near_low,
        far_high - far_low,
        np.asarray(values - blurred, np.float32),
    )


@functools.cache
def sharpener() -> Callable[..., None]:
    """The loop as machine code where numba is installed, else as NumPy array code."""
    numba, _ = find_numba()
    if numba is None:
        return sharpen_numpy
    types = numba.types
    plane = types.float32[:, ::1]
    cells = tuple_of(types, Cells, *(plane,) * 6)
    rows = types.UniTuple(types.int64, 4)
    # Images of a bag cannot be written to.
    image = types.Array(types.uint8, 3, "C", readonly=True)
    signature = types.void(cells, image, rows, types.float64, plane)
    return compiled(_sharpen, signature, fastmath=True, error_model="numpy")


def _sharpen(
    cells: Cells,
    image: npt.NDArray[np.uint8],
    strip: tuple[int, int, int, int],
    map_range: float,
    out: Map,
) -> None:
    """Sharpen the bilinear map `out` (H, W) at the edges of the cells, in place.

    image: (H, W, 3) RGB. strip: first row of `cells`, first and last (excluded) row to work on, and
    number of rows of the map. map_range: of the map's values.
    """
    values, unsharp = cells.values, cells.unsharp
    begin, first, last, height = strip
    width = values.shape[1]
    rows, cols = out.shape
    cell_height, cell_width = rows / height, cols / width
    lowest = EDGE_OF_RANGE[0] * map_range
    colour, value, rest, weight = np.empty((4, 3)), np.empty(4), np.empty(4), np.empty(4)
    for row_of_map in range(first, last):
        i = row_of_map - begin
        top = int(np.ceil((row_of_map + 0.5) * cell_height - 0.5))
        bottom = int(np.ceil((row_of_map + 1.5) * cell_height - 0.5))
        for j in range(BORDER, width - 1 - BORDER):
            step = cells.step[i, j]
            if not step > lowest:
                continue
            crisp = (step / cells.near[i, j] - CRISP[0]) / (CRISP[1] - CRISP[0])
            crisp = max(min(crisp, 1.0), 0.0)
            strength = step / map_range - EDGE_OF_RANGE[0]
            strength = min(strength / (EDGE_OF_RANGE[1] - EDGE_OF_RANGE[0]), 1.0)
            share = step / cells.far[i, j] - EDGE_OF_SURROUNDINGS[0]
            share /= EDGE_OF_SURROUNDINGS[1] - EDGE_OF_SURROUNDINGS[0]
            strength *= max(min(share, 1.0), 0.0)
            if strength <= 0.0:
                continue
            middle, half = cells.middle[i, j], 0.5 * step
            corner = 0.0
            for k in range(4):
                row, col = i + k // 2, j + k % 2
                value[k], rest[k] = values[row, col], unsharp[row, col]
                corner = max(corner, abs(rest[k]))
                # The mean of the two by two pixels about the cell's middle, or of fewer.
                y, x = (row + begin + 0.5) * cell_height - 0.5, (col + 0.5) * cell_width - 0.5
                y0, y1, x0, x1 = int(y), int(np.ceil(y)), int(x), int(np.ceil(x))
                for channel in range(3):
                    upper = float(image[y0, x0, channel]) + float(image[y0, x1, channel])
                    lower = float(image[y1, x0, channel]) + float(image[y1, x1, channel])
                    colour[k, channel] = 0.25 * (upper + lower)
            contrast = crisp * (CONTRAST - 1.0) * min(CORNER * corner / step, 1.0)
            gain = (1.0 - crisp) * UNSHARP
            left = int(np.ceil((j + 0.5) * cell_width - 0.5))
            right = int(np.ceil((j + 1.5) * cell_width - 0.5))
            for out_row in range(top, bottom):
                b = (out_row + 0.5) / cell_height - 0.5 - row_of_map
                for out_col in range(left, right):
                    a = (out_col + 0.5) / cell_width - 0.5 - j
                    weight[0], weight[1] = (1.0 - a) * (1.0 - b), a * (1.0 - b)
                    weight[2], weight[3] = (1.0 - a) * b, a * b
                    plain = other = total = resembling = 0.0
                    for k in range(4):
                        plain += weight[k] * value[k]
                        other += weight[k] * rest[k]
                        away = 0.0
                        for channel in range(3):
                            away += (image[out_row, out_col, channel] - colour[k, channel]) ** 2
                        alike = weight[k] / (1.0 + away / COLOUR_STEP**2) ** 2
                        total += alike
                        resembling += alike * value[k]
                    sharp = plain + contrast * (plain - middle) + gain * other
                    sharp += COLOUR * (resembling / total - plain)
                    sharp = max(min(sharp, middle + half), middle - half)
                    out[out_row, out_col] = plain + strength * (sharp - plain)


def sharpen_numpy(
    cells: Cells,
    image: npt.NDArray[np.uint8],
    strip: tuple[int, int, int, int],
    map_range: float,
    out: Map,
) -> None:
    """As :func:`_sharpen`: image (H, W, 3), out (H, W)."""
    begin, first, last, height = strip
    width = cells.values.shape[1]
    rows, cols = out.shape
    pixels = image.astype(np.float64)
    cell_height, cell_width = rows / height, cols / width
    place_row = (np.arange(rows) + 0.5) / cell_height - 0.5
    place_col = (np.arange(cols) + 0.5) / cell_width - 0.5
    inner_row = np.flatnonzero((place_row >= first) & (place_row < last))
    inner_col = np.flatnonzero((place_col >= BORDER) & (place_col < width - 1 - BORDER))
    cell_row, cell_col = place_row.astype(np.int64) - begin, place_col.astype(np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        crisp = np.nan_to_num(cells.step / cells.near).astype(np.float64)
        share = np.nan_to_num(cells.step / cells.far).astype(np.float64)
    crisp = np.clip((crisp - CRISP[0]) / (CRISP[1] - CRISP[0]), 0, 1)
    strength = cells.step / map_range - EDGE_OF_RANGE[0]
    strength = np.clip(strength / (EDGE_OF_RANGE[1] - EDGE_OF_RANGE[0]), 0, 1)
    share = (share - EDGE_OF_SURROUNDINGS[0]) / (EDGE_OF_SURROUNDINGS[1] - EDGE_OF_SURROUNDINGS[0])
    strength *= np.clip(share, 0, 1)
    y, x = np.nonzero((strength > 0)[np.ix_(cell_row[inner_row], cell_col[inner_col])])
    y, x = inner_row[y], inner_col[x]
    i, j = cell_row[y], cell_col[x]
    step, middle = cells.step[i, j].astype(np.float64), cells.middle[i, j].astype(np.float64)
    a, b = place_col[x] - j, place_row[y] - i - begin
    plain, other, total, resembling, corner = (np.zeros(len(y)) for _ in range(5))
    for k in range(4):
        row, col = i + k // 2, j + k % 2
        weight = (a if k % 2 else 1 - a) * (b if k // 2 else 1 - b)
        value = cells.values[row, col]
        plain += weight * value
        other += weight * cells.unsharp[row, col]
        corner = np.maximum(corner, np.abs(cells.unsharp[row, col]))
        at_row, at_col = (row + begin + 0.5) * cell_height - 0.5, (col + 0.5) * cell_width - 0.5
        y0, y1 = at_row.astype(np.int64), np.ceil(at_row).astype(np.int64)
        x0, x1 = at_col.astype(np.int64), np.ceil(at_col).astype(np.int64)
        about = pixels[y0, x0] + pixels[y0, x1] + pixels[y1, x0] + pixels[y1, x1]
        away = pixels[y, x] - 0.25 * about
        alike = weight / (1 + (away * away).sum(axis=1) / COLOUR_STEP**2) ** 2
        total += alike
        resembling += alike * value
    crisp = crisp[i, j]
    contrast = crisp * (CONTRAST - 1) * np.minimum(CORNER * corner / step, 1)
    sharp = plain + contrast * (plain - middle) + (1 - crisp) * UNSHARP * other
    sharp += COLOUR * (resembling / total - plain)
    sharp = np.clip(sharp, middle - 0.5 * step, middle + 0.5 * step)
    out[y, x] = plain + strength[i, j] * (sharp - plain)
