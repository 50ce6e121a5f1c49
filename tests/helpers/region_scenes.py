# SPDX-License-Identifier: Apache-2.0
"""Label maps, relative depth and points with known parameters for each region."""

from __future__ import annotations

import cv2
import numpy as np

from depth_node.benchmarks import speed
from depth_node.fitting import (
    FitConfig,
)
from depth_node.geometry.sparse_depth import SparseDepth

HEIGHT, WIDTH = 120, 160

SSF = FitConfig(method="ssf")

REGION_METHODS = ("region_median", "slf", "ssf")

CLASSIC = ("global_depth", "global_disparity", "median", *REGION_METHODS)


def connected(labels: np.ndarray) -> np.ndarray:
    """Return the 4-connected parts of the regions of a map (H, W), numbered from 1; 0 stays 0.

    Pixels are the even cells of a (2H-1, 2W-1) grid; the cells between equal neighbours link them.
    """
    height, width = labels.shape
    grid = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    grid[::2, ::2] = labels > 0
    grid[::2, 1::2] = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] > 0)
    grid[1::2, ::2] = (labels[1:] == labels[:-1]) & (labels[1:] > 0)
    _, parts = cv2.connectedComponents(grid, connectivity=4, ltype=cv2.CV_32S)
    return np.ascontiguousarray(parts[::2, ::2], dtype=np.int32)


def cells(rows: int = 4, columns: int = 5, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a label map (height, width) of rectangles, numbered from 1 row by row."""
    y = np.arange(height)[:, None] * rows // height
    x = np.arange(width)[None, :] * columns // width
    return (1 + y * columns + x).astype(np.int32)


def bumpy(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a relative depth (height, width) that no plane fits."""
    y, x = np.mgrid[:height, :width]
    return (2 + np.sin(x / 9) * np.cos(y / 7) + 0.5 * np.sin(x * y / 400)).astype(np.float32)


def truth_of(relative: np.ndarray, labels: np.ndarray, seed: int = 0, slopes: bool = True):
    """Return metric depth (H, W) made with one (s, a, b, t) per label, and these (K+1, 4)."""
    rng = np.random.default_rng(seed)
    count = int(labels.max()) + 1
    table = np.stack(
        [
            rng.uniform(0.5, 2, count),
            rng.uniform(-1, 1, count) * slopes,
            rng.uniform(-1, 1, count) * slopes,
            rng.uniform(2, 6, count),
        ],
        axis=1,
    )
    x, y = speed.unit_grid(*labels.shape)
    design = np.stack([relative, x, y, np.ones_like(x)], axis=-1)
    return np.einsum("hwk,hwk->hw", design, table[labels]), table


def sample(depth: np.ndarray, count: int, seed: int = 0) -> SparseDepth:
    rng = np.random.default_rng(seed)
    index = rng.choice(np.flatnonzero(np.isfinite(depth)), count, replace=False)
    rows, cols = np.unravel_index(index, depth.shape)
    return SparseDepth.from_arrays(rows, cols, depth[rows, cols].astype(np.float32))
