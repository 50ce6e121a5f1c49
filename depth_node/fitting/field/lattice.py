# SPDX-License-Identifier: Apache-2.0
"""Lattices of cells that divide an image; resizing and sampling of maps on them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

REFERENCE_PX = 640.0  # larger side of the image for which sizes in pixels are given


@dataclass(frozen=True)
class Lattice:
    """Cells that divide an image evenly; the lattice of a mirrored image is the mirrored lattice.

    shape: (h, w) cells. image: (H, W) pixels.
    """

    shape: tuple[int, int]
    image: tuple[int, int]

    @classmethod
    def of(cls, image: tuple[int, int], cell_px: float) -> Lattice:
        """Return the lattice of an (H, W) image with cells about `cell_px` wide, at least 2 x 2."""
        return cls((max(2, round(image[0] / cell_px)), max(2, round(image[1] / cell_px))), image)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in cells, in OpenCV's order."""
        return self.shape[1], self.shape[0]

    @property
    def cell_px(self) -> float:
        """Width of a cell in pixels."""
        return self.image[1] / self.shape[1]

    def coordinates(self, rows: NDArray[Any], cols: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return rows and columns on the lattice of pixels (n,); cell centres are whole numbers."""
        (height, width), (lattice_height, lattice_width) = self.image, self.shape
        return (
            (rows + 0.5) * (lattice_height / height) - 0.5,
            (cols + 0.5) * (lattice_width / width) - 0.5,
        )

    def cell(self, rows: NDArray[Any], cols: NDArray[Any]) -> Integers:
        """Return the number of the cell, counted row by row, in which each pixel (n,) lies."""
        row, col = self.coordinates(rows, cols)
        return np.asarray(rounded(row) * self.shape[1] + rounded(col), np.int64)

    def centres(self) -> tuple[Floats, Floats]:
        """Return rows and columns in px of the centres of all cells, (cells,) each, read-only."""
        return _centres(self)


@functools.lru_cache(maxsize=16)  # a process sees few image sizes
def _centres(lattice: Lattice) -> tuple[Floats, Floats]:
    (height, width), (lattice_height, lattice_width) = lattice.image, lattice.shape
    rows = (np.arange(lattice_height) + 0.5) * (height / lattice_height) - 0.5
    cols = (np.arange(lattice_width) + 0.5) * (width / lattice_width) - 0.5
    all_rows, all_cols = np.repeat(rows, lattice_width), np.tile(cols, lattice_height)
    all_rows.flags.writeable = all_cols.flags.writeable = False
    return all_rows, all_cols


def rounded(coordinate: Floats) -> Integers:
    """Return the row or column (n,) of the cell that contains each coordinate (n,) >= -0.5."""
    return (coordinate + 0.5).astype(np.int64)


def resized(image: Map, size: tuple[int, int]) -> Map:
    """Resize a map to (width, height), with linear interpolation between its cell centres."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.float32)


def sample(image: Map, rows: Floats, cols: Floats) -> Floats:
    """Return bilinear values (n,) of an (h, w) map, h, w >= 2, at coordinates (n,).

    Coordinates beyond the outermost cell centres get the value at the border.
    """
    height, width = image.shape
    r = np.minimum(np.maximum(rows, 0), height - 1)  # faster than np.clip
    c = np.minimum(np.maximum(cols, 0), width - 1)
    i = np.minimum(r.astype(np.int64), height - 2)
    j = np.minimum(c.astype(np.int64), width - 2)
    a, b = r - i, c - j
    cells, at = image.ravel(), i * width + j
    top = (1 - b) * cells.take(at) + b * cells.take(at + 1)
    at += width
    bottom = (1 - b) * cells.take(at) + b * cells.take(at + 1)
    result: Floats = (1 - a) * top + a * bottom
    return result
