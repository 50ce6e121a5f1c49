# SPDX-License-Identifier: Apache-2.0
"""Edge-preserving enlargement of depth maps to the image's size; preprocess.py uses it.

Bilinear interpolation turns an edge between two cells into a ramp of a cell's width, on which every
pixel is wrong. Here, as there, the value of a pixel lies between those of the four cells around it,
but where these contain an edge the value is moved towards one side of the edge:

- where the edge is crisp (the step to the next cell is most of the edge), the contrast of the
  interpolated value between the lowest and the highest of the four cells is raised;
- where the edge is spread over several cells, the map minus its blur is added (unsharp masking) and
  the result is clamped to the range of the four cells: there is no overshoot, and an even slope
  stays as it is;
- the image contributes the mean of the four cells, weighted by the similarity of their colours to
  the pixel's.

The result is a convex combination of four cells and stays in the network's own space: scaling,
shifting or negating the map does the same to the result. Edges that are low compared with the map's
range, or much wider than a cell, stay bilinear: what looks like one is as often noise, and a
network that gives only such edges places them wrongly (docs/studies/upsampling.md).
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

MIN_FACTOR = 1.25  # smaller enlargements are bilinear

# Edges that are sharpened. The step is the range of the four cells around a pixel; sharpening grows
# from none at the first ratio to full strength at the second.
EDGE_OF_RANGE = (0.02, 0.06)  # step / the map's range (2nd to 98th percentile)
EDGE_OF_SURROUNDINGS = (0.2, 0.4)  # step / range of the 8 x 8 cells around the pixel
# An edge is crisp (from not at all to fully) by step / range of the 4 x 4 cells around the pixel.
CRISP = (0.6, 0.9)

CONTRAST = 4.0  # contrast of a crisp edge; 1: bilinear
CORNER = 4.0  # the full contrast is reached where CORNER * |map - blur| is the step
UNSHARP = 3.0  # gain of (map - blur)
UNSHARP_SIGMA = 1.0  # standard deviation of the blur, cells
BORDER = 3  # cells at the map's border that stay bilinear, because the blur lacks data there
COLOUR = 1.0  # weight of the correction by colours
COLOUR_STEP = 20.0  # grey levels; a cell whose colour differs by this gets a quarter of the weight


# The map is processed in strips of few rows, because allocating large arrays costs more than the
# arithmetic.
STRIP_CELLS = 20_000
MARGIN = 5  # rows around a strip that its filters read


class Cells(NamedTuple):
    """A strip (n, w) of the map (h, w) with local statistics of each cell; all float32.

    step, middle: range and mid-range of the 2 x 2 cells to the lower right, the cell included.
    near, far: range of the 4 x 4 and of the 8 x 8 cells around these. unsharp: map minus blur.
    """

    values: Map
    step: Map
    middle: Map
    near: Map
    far: Map
    unsharp: Map


def enlarged(values: Map, image: npt.NDArray[np.uint8]) -> Map:
    """Enlarge an (h, w) depth map of any meaning to the (H, W) of its (H, W, 3) uint8 image.

    The result is bilinear where there is no edge, in maps with values that are not finite, and if
    the image is not larger by MIN_FACTOR on both axes.
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
    """Return the sharpening function: machine code if numba is installed, else NumPy array code."""
    numba, _ = find_numba()
    if numba is None:
        return sharpen_numpy
    types = numba.types
    plane = types.float32[:, ::1]
    cells = tuple_of(types, Cells, *(plane,) * 6)
    rows = types.UniTuple(types.int64, 4)
    # Images that are read from a bag are read-only arrays.
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
    """Sharpen the bilinear map `out` (H, W) in place, where the cells contain an edge.

    image: (H, W, 3) RGB. strip: row of the map at which `cells` begins, first and last (excluded)
    row of the map to process, and number of rows of the map. map_range: range of the map's values.
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
                # Mean colour of the 2 x 2 pixels around the cell's centre; fewer distinct ones
                # where it coincides with a pixel centre.
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
    """Do the same as :func:`_sharpen` in array code: image (H, W, 3), out (H, W)."""
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
