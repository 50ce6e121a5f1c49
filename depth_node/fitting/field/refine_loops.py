# SPDX-License-Identifier: Apache-2.0
"""Loops for the inputs of the refining network: the nearest point of each cell, and differences.

Each loop has two forms, numba's and NumPy's, with the same results, as in kernels.py.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.lattice import Integers, Map

# Lengths of a step along a row or column, a diagonal step, and a knight's move, in 1 / 65536 cells,
# as in OpenCV (G. Borgefors, Distance transformations in digital images, 1986).
_ONE = 65536
_STRAIGHT, _DIAGONAL, _LONG = _ONE, round(1.4 * _ONE), round(2.1969 * _ONE)
_FAR = 1 << 28


def nearest_point(
    rows: Integers,
    cols: Integers,
    values: Map,
    nearest: Map,
    cells: Map,
    begin: int,
    end: int,
) -> None:
    """Find the value of the point nearest to every cell of a grid (h, w), and its distance.

    rows, cols: (n,) cell of each point; of several in one cell the last counts. values: (n,).
    Writes nearest (h, w), the value, and cells (h, w), the distance in cells; without points they
    are 0 and 4096. The distances are those of OpenCV's distanceTransformWithLabels with a 5 x 5
    mask. Each row needs the ones before, so threads cannot share this loop; begin and end are not
    used.
    """
    height, width = nearest.shape
    steps = np.full((height + 4, width + 4), np.int32(_FAR), np.int32)
    point = np.zeros((height + 4, width + 4), np.int32)
    row, own = np.empty(width, np.int32), np.empty(width, np.int32)
    straight, diagonal, long = np.int32(_STRAIGHT), np.int32(_DIAGONAL), np.int32(_LONG)
    for n in range(len(rows)):
        steps[rows[n] + 2, cols[n] + 2], point[rows[n] + 2, cols[n] + 2] = 0, n
    # The cost of the way along the row is subtracted first: then a running minimum is all that
    # depends on the cell before.
    for i in range(2, height + 2):
        two, one = i - 2, i - 1
        for j in range(width):
            best, which = steps[i, j + 2], point[i, j + 2]
            far, other = np.int32(steps[two, j + 1] + long), point[two, j + 1]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[two, j + 3] + long), point[two, j + 3]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j] + long), point[one, j]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j + 1] + diagonal), point[one, j + 1]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j + 2] + straight), point[one, j + 2]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j + 3] + diagonal), point[one, j + 3]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j + 4] + long), point[one, j + 4]
            which = other if far < best else which
            best = min(best, far)
            row[j], own[j] = best - np.int32(j) * straight, which
        least, which = row[0], own[0]
        for j in range(width):
            which = which if least < row[j] else own[j]
            least = min(least, row[j])
            row[j], own[j] = least, which
        for j in range(width):
            steps[i, j + 2], point[i, j + 2] = row[j] + np.int32(j) * straight, own[j]
    for i in range(height + 1, 1, -1):
        two, one = i + 2, i + 1
        for j in range(width):
            best, which = steps[i, j + 2], point[i, j + 2]
            far, other = np.int32(steps[two, j + 3] + long), point[two, j + 3]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[two, j + 1] + long), point[two, j + 1]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j + 4] + long), point[one, j + 4]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j + 3] + diagonal), point[one, j + 3]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j + 2] + straight), point[one, j + 2]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j + 1] + diagonal), point[one, j + 1]
            which = other if far < best else which
            best = min(best, far)
            far, other = np.int32(steps[one, j] + long), point[one, j]
            which = other if far < best else which
            best = min(best, far)
            row[j], own[j] = best + np.int32(j) * straight, which
        least, which = row[width - 1], own[width - 1]
        for j in range(width - 1, -1, -1):
            which = which if least < row[j] else own[j]
            least = min(least, row[j])
            row[j], own[j] = least, which
        for j in range(width):
            steps[i, j + 2], point[i, j + 2] = row[j] - np.int32(j) * straight, own[j]
    for i in range(height):
        for j in range(width):
            cells[i, j] = np.float32(steps[i + 2, j + 2]) * np.float32(1 / _ONE)
            nearest[i, j] = values[point[i + 2, j + 2]] if len(rows) else np.float32(0.0)


def nearest_point_numpy(
    rows: Integers, cols: Integers, values: Map, nearest: Map, cells: Map
) -> None:
    """See :func:`nearest_point`; of a grid (h, w), with at least one point."""
    empty: NDArray[np.uint8] = np.ones(nearest.shape, np.uint8)
    empty[rows, cols] = 0
    cells[:], label = cv2.distanceTransformWithLabels(
        empty, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label: Map = np.zeros(len(rows) + 1, np.float32)
    of_label[label[rows, cols]] = values
    nearest[:] = of_label[label]


def differences(
    plane: Map, less: Map, limit: np.float32, out: NDArray[np.float32], begin: int, end: int
) -> None:
    """Compute plane minus less, (h, w) each, limited to ± limit; 2 x 2 cells become channels.

    Beyond the last row and column these are repeated. Writes rows begin:end of out (4, H, W), H and
    W at least half of h and w.
    """
    height, width = plane.shape
    pairs = width // 2
    for i in range(begin, end):
        for r in range(2):
            row = min(2 * i + r, height - 1)
            for j in range(pairs):
                left = plane[row, 2 * j] - less[row, 2 * j]
                right = plane[row, 2 * j + 1] - less[row, 2 * j + 1]
                out[2 * r, i, j] = min(max(left, -limit), limit)
                out[2 * r + 1, i, j] = min(max(right, -limit), limit)
            for j in range(pairs, out.shape[2]):
                for c in range(2):
                    col = min(2 * j + c, width - 1)
                    value = plane[row, col] - less[row, col]
                    out[2 * r + c, i, j] = min(max(value, -limit), limit)


def differences_numpy(plane: Map, less: Map, limit: np.float32, out: NDArray[np.float32]) -> None:
    """See :func:`differences`; of all rows of out (4, H, W)."""
    _, height, width = out.shape
    more = (2 * height - plane.shape[0], 2 * width - plane.shape[1])
    values = np.pad(plane - less, [(0, rows) for rows in more], "edge")
    values = np.clip(values, -limit, limit).reshape(height, 2, width, 2)
    out[:] = values.transpose(1, 3, 0, 2).reshape(out.shape)


def signatures(types: Any) -> dict[Any, Any]:
    """Return numba's signatures of the loops, all arrays contiguous. types: numba.types."""
    real, whole = types.float32, types.int64
    grid = real[:, ::1]
    return {
        nearest_point: types.void(whole[::1], whole[::1], real[::1], grid, grid, whole, whole),
        differences: types.void(grid, grid, real, real[:, :, ::1], whole, whole),
    }
