# SPDX-License-Identifier: Apache-2.0
"""By how many cells an image moved, and new log depth drawn towards old where it did not.

Both forms of each loop give the same numbers, as those of kernels.py do.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from depth_node.fitting.field.lattice import Map

NEAR, FAR = 2, 4  # cells about a place over which a displacement, and noise, are estimated
# Noise changes from cell to cell. What moves changes smoothly, or at least along its edges: of four
# directions the least second difference is noise.
DIRECTIONS = np.array([(0, 1), (1, 0), (1, 1), (1, -1)])  # rows and columns of a step
SECOND_DIFFERENCE_VARIANCE = 6.0  # of white noise of variance 1
MIN_GRADIENT = 0.02  # correlation lengths of lightness a cell: less shows no displacement
QUIET = 0.08  # cells of displacement that noise may show beyond that
MAX_DISPLACEMENT = 3.0  # cells
NOISE_GAIN = 8.0  # over white noise: the image is averaged, so that its noise is not quite white

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
    """Cells by which what is seen in each cell of a map (h, w) moved: the root of the mean squared
    change about it beyond its noise, over the mean squared gradient; where both are even, 0.

    changed: new less old. light: new. Beyond the border all is mirrored; h and w are larger than
    FAR. Written: rows `begin` up to, not with, `end` of moved.

    What is needed of a row is summed along it and kept until the last row that needs it.
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
        out = r - FAR  # all rows about it are known now
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
    """As :func:`motion`, of all rows of a map (h, w) of any size."""
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
    """New log depth (h, w) drawn towards old, which is nearer by the factor exp(shift).

    largest: (h, w) step, of which weight (h, w) is taken. Where old is NaN, the new one stays.
    Written: rows `begin` up to, not with, `end` of out (h, w).
    """
    for i in range(begin, end):
        for j in range(old.shape[1]):
            step = old[i, j] + shift - new[i, j]
            step = min(max(step, -largest[i, j]), largest[i, j]) * weight[i, j]
            out[i, j] = new[i, j] + (step if old[i, j] == old[i, j] else np.float32(0.0))


def drawn_numpy(old: Map, new: Map, shift: np.float32, largest: Map, weight: Map, out: Map) -> None:
    """As :func:`drawn`, of all rows (h, w)."""
    step = old + shift
    step -= new
    np.minimum(step, largest, out=step)
    np.maximum(step, -largest, out=step)
    step *= weight
    np.add(new, np.nan_to_num(step, copy=False), out=out)


def signatures(types: Any) -> dict[Any, Any]:
    """The loops and the types of its arguments (`types` is numba.types), contiguous arrays."""
    plane, whole = types.float32[:, ::1], types.int64
    maps = plane, plane, plane
    return {
        motion: types.void(*maps, whole, whole),
        drawn: types.void(plane, plane, types.float32, *maps, whole, whole),
    }
