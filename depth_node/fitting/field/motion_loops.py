# SPDX-License-Identifier: Apache-2.0
"""Loops of the memory: how far the image moved, and the average of new and old log depth.

Each loop has two forms, numba's and NumPy's, with the same results, as in kernels.py.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from depth_node.fitting.field.lattice import Map

NEAR, FAR = 2, 4  # cells on each side from which displacement (near) and noise (far) are estimated
# Noise differs from cell to cell. The change by a motion is smooth, at least along the object's
# edges. Therefore the least of the second differences in four directions is noise.
DIRECTIONS = np.array([(0, 1), (1, 0), (1, 1), (1, -1)])  # rows and columns of a step
SECOND_DIFFERENCE_VARIANCE = 6.0  # of white noise of variance 1
MIN_GRADIENT = 0.02  # correlation lengths of lightness per cell: less shows no displacement
QUIET = 0.08  # cells of displacement that remaining noise may cause
MAX_DISPLACEMENT = 3.0  # cells
NOISE_GAIN = 8.0  # relative to white noise: the image is averaged, so its noise is not white

_ROWS = 2 * FAR + 1
_SHARE = np.float32(1 / (2 * NEAR + 1) ** 2)
_NOISE_SHARE = np.float32(NOISE_GAIN / SECOND_DIFFERENCE_VARIANCE / _ROWS**2)


def motion(
    changed: Map,
    light: Map,
    moved: Map,
    begin: int,
    end: int,
) -> None:
    """Estimate by how many cells the content of each cell of a map (h, w) moved.

    It is the root of the mean squared change around the cell, minus that of noise, over the mean
    squared gradient; 0 where the image is uniform. changed: new minus old lightness. light: new
    lightness. Beyond the border the maps are mirrored; h and w must be larger than FAR. Writes rows
    begin:end of moved.

    The sums along each row are kept until the last output row that needs them.
    """
    height, width = changed.shape
    kept = np.empty((_ROWS, 6, width), np.float32)  # four directions, change and gradient
    wide, along = np.empty((3, width + 2), np.float32), np.empty(width + _ROWS, np.float32)
    excess, gradient = np.empty(width, np.float32), np.empty(width, np.float32)
    zero, two, half = np.float32(0.0), np.float32(2.0), np.float32(0.5)
    least_gradient, most = np.float32(MIN_GRADIENT**2), np.float32(MAX_DISPLACEMENT**2)
    for r in range(begin - FAR, end + FAR):
        row = height - 1 - abs(height - 1 - abs(r))
        above, below = abs(row - 1), height - 1 - abs(height - 2 - row)
        for k in range(3):
            i = above if k == 0 else (row if k == 1 else below)
            for j in range(width):
                wide[k, j + 1] = changed[i, j]
            wide[k, 0], wide[k, width + 1] = changed[i, 1], changed[i, width - 2]
        slot = (r - begin + FAR) % _ROWS
        for d in range(6):
            if d < 4:
                down, right = DIRECTIONS[d, 0], DIRECTIONS[d, 1]
                one, other = wide[1 - down, 1 - right :], wide[1 + down, 1 + right :]
                for j in range(width):
                    second = one[j] - two * wide[1, j + 1] + other[j]
                    along[j + FAR] = second * second
            elif d == 4:
                for j in range(width):
                    along[j + FAR] = changed[row, j] * changed[row, j]
            else:
                for j in range(width):
                    y = half * (light[below, j] - light[above, j])
                    along[j + FAR] = y * y
                for j in range(1, width - 1):
                    x = half * (light[row, j + 1] - light[row, j - 1])
                    along[j + FAR] += x * x
            for k in range(1, FAR + 1):
                along[FAR - k] = along[FAR + k]
                along[FAR + width - 1 + k] = along[FAR + width - 1 - k]
            for j in range(width):
                total = along[j + FAR - NEAR]
                for k in range(1, 2 * NEAR + 1):
                    total += along[j + FAR - NEAR + k]
                kept[slot, d, j] = total
            if d < 4:
                for j in range(width):
                    for k in range(FAR - NEAR):
                        kept[slot, d, j] += along[j + k] + along[j + _ROWS - 1 - k]
        out = r - FAR  # the sums of all rows around it are known now
        if out < begin:
            continue
        for j in range(width):
            least = np.float32(np.inf)
            for d in range(4):
                total = kept[0, d, j]
                for k in range(1, _ROWS):
                    total += kept[k, d, j]
                least = min(least, total)
            excess[j] = -least * _NOISE_SHARE
            gradient[j] = least_gradient
        for i in range(out - NEAR, out + NEAR + 1):
            slot = (i - begin + FAR) % _ROWS
            for j in range(width):
                excess[j] += kept[slot, 4, j] * _SHARE
                gradient[j] += kept[slot, 5, j] * _SHARE
        for j in range(width):
            square = min(max(excess[j] / gradient[j], zero), most)
            moved[out, j] = max(np.sqrt(square) - np.float32(QUIET), zero)


def motion_numpy(changed: Map, light: Map, moved: Map) -> None:
    """See :func:`motion`; of all rows of a map (h, w) of any size."""
    noise: Map = np.full(changed.shape, np.inf, np.float32)
    for down, right in DIRECTIONS:
        kernel: Map = np.zeros((3, 3), np.float32)
        kernel[1 - down, 1 - right] = kernel[1 + down, 1 + right] = 1
        kernel[1, 1] = -2
        second = np.asarray(cv2.filter2D(changed, cv2.CV_32F, kernel), np.float32)
        second *= second
        np.minimum(noise, cv2.blur(second, (_ROWS, _ROWS)), out=noise)
    steep: Map = np.zeros(light.shape, np.float32)
    for x, y in ((1, 0), (0, 1)):
        slope = np.asarray(cv2.Sobel(light, cv2.CV_32F, x, y, ksize=1, scale=0.5), np.float32)
        slope *= slope
        steep += slope
    moved[:] = cv2.blur(changed * changed, (2 * NEAR + 1, 2 * NEAR + 1))
    moved -= np.float32(NOISE_GAIN / SECOND_DIFFERENCE_VARIANCE) * noise
    moved /= cv2.blur(steep, (2 * NEAR + 1, 2 * NEAR + 1)) + np.float32(MIN_GRADIENT**2)
    np.clip(moved, 0, MAX_DISPLACEMENT**2, out=moved)
    np.sqrt(moved, out=moved)
    moved -= np.float32(QUIET)
    np.maximum(moved, 0, out=moved)


def drawn(old: Map, new: Map, shift: np.float32, largest: Map, weight: Map, out: Map,
          begin: int, end: int) -> None:  # fmt: skip
    """Move new log depth (h, w) towards old log depth plus shift.

    The difference is limited to ± largest (h, w) and multiplied by weight (h, w), 0 to 1. Where old
    is NaN, the new log depth stays. Writes rows begin:end of out (h, w).
    """
    for i in range(begin, end):
        for j in range(old.shape[1]):
            step = old[i, j] + shift - new[i, j]
            step = min(max(step, -largest[i, j]), largest[i, j]) * weight[i, j]
            out[i, j] = new[i, j] + (step if old[i, j] == old[i, j] else np.float32(0.0))


def drawn_numpy(old: Map, new: Map, shift: np.float32, largest: Map, weight: Map, out: Map) -> None:
    """See :func:`drawn`; of all rows (h, w)."""
    step = old + shift
    step -= new
    np.minimum(step, largest, out=step)
    np.maximum(step, -largest, out=step)
    step *= weight
    np.add(new, np.nan_to_num(step, copy=False), out=out)


def signatures(types: Any) -> dict[Any, Any]:
    """Return numba's signatures of the loops, all arrays contiguous. types: numba.types."""
    plane, whole = types.float32[:, ::1], types.int64
    maps = plane, plane, plane
    return {
        motion: types.void(*maps, whole, whole),
        drawn: types.void(plane, plane, types.float32, *maps, whole, whole),
    }
