# SPDX-License-Identifier: Apache-2.0
"""The measured points of a frame, merged to one per pixel and sorted by cells of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from depth_node.fitting.field.lattice import Floats, Integers, Lattice
from depth_node.geometry.sparse_depth import SparseDepth

MIN_POINTS = 4  # with fewer points only a scale can be estimated
POINTS_PER_CELL = 1.7  # on average; the 3 x 3 cells around a node hold its candidate neighbours


@dataclass(frozen=True)
class MergedPoints:
    """n points at different pixels, sorted by cell and pixel, whatever order they were given in.

    rows, cols: (n,) pixels. z: (n,) m. age_s: (n,) s. noise: (n,) declared standard deviation of
    log z, 0 if none is declared. cells: the lattice by which they are sorted. cell: (n,) number of
    each point's cell. start: (cells + 1,), cell c holds the points start[c]:start[c + 1].
    """

    rows: Integers
    cols: Integers
    z: Floats
    age_s: Floats
    noise: Floats
    cells: Lattice
    cell: Integers
    start: Integers

    def __len__(self) -> int:
        return len(self.z)


def merge_points(points: SparseDepth, image: tuple[int, int]) -> tuple[MergedPoints, Integers]:
    """Merge the points of each pixel into one; return the n merged points, and indices (N,).

    The indices give the merged point of each given point. Of several points at a pixel the newest
    counts, of equally new ones the one with the least declared noise; if several remain, their
    mean log depth is taken. image: (H, W); all N >= 1 points lie inside it.
    """
    height, width = image
    rows, cols = points.rows, points.cols
    pixel = np.sort(rows.astype(np.int64) * width + cols)
    pixels = 1 + np.count_nonzero(pixel[1:] != pixel[:-1])
    spacing = math.sqrt(height * width / pixels)
    cells = Lattice.of(image, math.sqrt(POINTS_PER_CELL) * spacing)
    cell = cells.cell(rows, cols)
    key = (cell * height + rows) * width + cols
    # If no two points share a pixel, no keys are equal and the faster unstable sort is enough.
    order = np.argsort(key, kind=None if len(key) == pixels else "stable")
    age, z = np.asarray(points.age_s, np.float64)[order], points.depth[order].astype(np.float64)
    noise: Floats = np.zeros(len(z))
    if points.noise_m.any():
        noise = points.noise_m[order] / z
    merged: Integers = np.empty(len(rows), np.int64)
    if len(key) == pixels:
        merged[order] = np.arange(pixels)
    else:
        key = key[order]
        first = np.concatenate([[True], key[1:] != key[:-1]])
        merged[order] = np.cumsum(first) - 1
        group = merged[order]
        newest_age = np.minimum.reduceat(age, np.flatnonzero(first))
        newest = age <= newest_age[group]
        begins = np.flatnonzero(first)
        least = np.minimum.reduceat(np.where(newest, noise, np.inf), begins)
        newest &= noise <= least[group]
        noise = least
        log_z = np.bincount(group[newest], np.log(z[newest])) / np.bincount(group[newest])
        age, z, order = newest_age, np.exp(log_z), order[first]
    row, col, cell = rows[order].astype(np.int64), cols[order].astype(np.int64), cell[order]
    start: Integers = np.zeros(cells.shape[0] * cells.shape[1] + 1, np.int64)
    np.cumsum(np.bincount(cell, minlength=len(start) - 1), out=start[1:])
    return MergedPoints(row, col, z, age, noise, cells, cell, start), merged
