# SPDX-License-Identifier: Apache-2.0
"""Maps of fitted surfaces: depth and standard deviation of every pixel from the row of its label.

A row of the table is looked up for every pixel, in bands of image rows whose intermediate results
fit in the processor's cache. With numba, depth is computed by one compiled loop: four times as
fast, with identical results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.numba_support import compiled, find_numba
from depth_node.fitting.region_surfaces import SurfaceTable

MAX_FEATHER_STEP = 0.05  # relative step of depth; larger steps are edges of the scene

_BLOCK_PX = 65536  # pixels of a band
_FULL_STD_PX = 100_000  # larger images get their standard deviation at every second pixel


@dataclass(frozen=True)
class ImageGrid:
    """A relative map and the positions of its pixels.

    relative: (H, W) float32. x: (W,), y: (H,), positions of columns and rows, -1..1.
    """

    relative: NDArray[np.float32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]

    @classmethod
    def of(cls, relative: NDArray[np.float32]) -> ImageGrid:
        """Return the grid of a map (H, W)."""
        height, width = relative.shape
        return cls(relative, _axis(width), _axis(height))


def depth_map(
    grid: ImageGrid,
    labels: NDArray[np.integer] | None,
    table: SurfaceTable,
    *,
    in_disparity: bool,
    max_depth_m: float,
) -> NDArray[np.float32]:
    """Return the depth of every pixel, (H, W) float32 m; NaN where a label has no surface.

    It is computed in float64: if s d and t are large and nearly cancel, float32 loses millimetres.
    """
    depth = np.empty(grid.relative.shape, np.float32)
    paint = _compiled_paint() if labels is not None else None
    if paint is not None:
        rows = np.concatenate([table.parameters, table.limits], axis=1)
        min_disparity = 1 / max_depth_m if in_disparity else 0.0
        paint(grid.relative, labels, grid.x, grid.y, rows, min_disparity, depth)
        return depth
    scale, slope_x, slope_y, shift = table.parameters.T
    low, high = table.limits.T
    same_limits = bool((table.limits == table.limits[0]).all())
    sloped = bool(slope_x.any() or slope_y.any())
    buffer: NDArray[Any] = np.empty((_block_rows(depth.shape), depth.shape[1]))
    for block, look in _blocks(labels, table, depth.shape, np.float64):
        out = buffer[: block.stop - block.start]
        np.copyto(out, grid.relative[block])
        out *= look(scale)
        if sloped:
            part = look(slope_x)
            out += np.multiply(part, grid.x, out=look.buffer)
            part = look(slope_y)
            out += np.multiply(part, grid.y[block, None], out=look.buffer)
        out += look(shift)
        if in_disparity:
            np.maximum(out, 1 / max_depth_m, out=out)
            np.reciprocal(out, out=out)
        np.maximum(out, low[0] if same_limits else look(low), out=out)
        np.minimum(out, high[0] if same_limits else look(high), out=out)
        np.copyto(depth[block], out, casting="same_kind")
    return depth


@functools.cache
def _compiled_paint() -> Callable[..., None] | None:
    """Return the loop of depth_map as machine code, cached on disk; None without numba."""
    return compiled(_paint) if find_numba()[0] else None


def _paint(
    relative: NDArray[np.float32],
    labels: NDArray[np.integer],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    rows: NDArray[np.float64],
    min_disparity: float,
    depth: NDArray[np.float32],
) -> None:
    """Fill depth (H, W). rows: (K+1, 6) s, a, b, t, lowest, highest; min_disparity: 1/m, or 0."""
    height, width = relative.shape
    for row in range(height):
        last = -1
        s = a = b = t = low = high = 0.0
        for col in range(width):
            label = labels[row, col]
            if label != last:
                last = label
                s, a, b = rows[label, 0], rows[label, 1], rows[label, 2] * y[row]
                t, low, high = rows[label, 3], rows[label, 4], rows[label, 5]
            value = s * relative[row, col] + a * x[col] + b + t
            if min_disparity > 0:
                if value < min_disparity:
                    value = min_disparity
                value = 1 / value
            # Comparisons with NaN are false, so NaN stays.
            if value < low:
                value = low
            if value > high:
                value = high
            depth[row, col] = value


def std_map(
    grid: ImageGrid,
    labels: NDArray[np.integer] | None,
    table: SurfaceTable,
    depth: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the standard deviation of every pixel, (H, W) float32 m, NaN where depth is NaN.

    It is spread sqrt(1 + leverage) depth^spread_power. The leverage of a pixel is 1 / weight + the
    sum of its squared basis functionals, so it grows away from the fitted points. For large images
    it is computed at every second pixel, because the leverage is smooth.
    """
    step = 2 if depth.size > _FULL_STD_PX else 1
    relative = np.ascontiguousarray(grid.relative[::step, ::step])
    x = grid.x[::step].astype(np.float32)[None, :]
    y = grid.y[::step].astype(np.float32)[:, None]
    some_labels = None if labels is None else np.ascontiguousarray(labels[::step, ::step])
    functionals = (table.spread[:, None, None] * table.basis).astype(np.float32)
    constant = (table.spread**2 * (1 + 1 / table.weight)).astype(np.float32)
    coarse = np.empty(relative.shape, np.float32)
    for block, look in _blocks(some_labels, table, coarse.shape, np.float32):
        variance = coarse[block]
        variance[...] = look(constant)
        for k in range(functionals.shape[1]):
            value = relative[block] * look(functionals[:, k, 0])
            if k > 0:
                value += look(functionals[:, k, 1]) * x
            if k > 1:
                value += look(functionals[:, k, 2]) * y[block]
            value += look(functionals[:, k, 3])
            variance += np.multiply(value, value, out=value)
        np.sqrt(variance, out=variance)
    std: NDArray[Any] = coarse
    if step > 1:
        height, width = depth.shape
        std = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    for _ in range(table.spread_power):
        std *= depth
    if np.isnan(std.min() + depth.min()):
        # Depth and standard deviation must be unknown at the same pixels, also at those between the
        # computed ones.
        worst = np.float32(np.nanmax(std, initial=0))
        std[np.isnan(std) & np.isfinite(table.spread).any()] = worst
        std[np.isnan(depth)] = np.nan
    return std


def feather(
    depth: NDArray[np.float32],
    grid: ImageGrid,
    labels: NDArray[np.integer],
    table: SurfaceTable,
    *,
    distance_px: int,
    min_depth_m: float,
    max_depth_m: float,
) -> None:
    """Blend the parameters of neighbouring regions near seams at which their surfaces nearly meet.

    Changes depth (H, W) m in place. If blending would change a pixel's depth by more than
    MAX_FEATHER_STEP of it, the seam is an edge of the scene and the pixel stays. labels: (H, W).
    """
    known: Any = np.isfinite(table.parameters).all(axis=1)
    size = (2 * distance_px + 1,) * 2
    index = labels.astype(np.intp)
    known_fraction: Any = cv2.blur(known.astype(np.float32)[index], size)
    blend: Any = np.zeros_like(depth)
    factors: list[Any] = [grid.relative, grid.x[None, :], grid.y[:, None], 1.0]
    for parameter, factor in zip(table.parameters.T, factors, strict=True):
        values = np.where(known, parameter, 0).astype(np.float32)[index]
        blend += (cv2.blur(values, size) * factor).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        blend /= known_fraction
        meets: Any = np.abs(blend - depth) <= MAX_FEATHER_STEP * depth
    meets &= (blend >= min_depth_m) & (blend <= max_depth_m)
    np.copyto(depth, blend, where=meets)


def _blocks(
    labels: NDArray[np.integer] | None, table: SurfaceTable, shape: tuple[int, ...], dtype: type
) -> Iterator[tuple[slice, _Look]]:
    """Yield bands of rows whose intermediate results fit in the processor's cache."""
    rows = _block_rows(shape)
    buffer: NDArray[Any] = np.empty((rows, shape[1]), dtype)
    for top in range(0, shape[0], rows):
        block = slice(top, min(top + rows, shape[0]))
        band = None if labels is None else labels[block]
        yield block, _Look(band, buffer[: block.stop - top], len(table.rows))


def _block_rows(shape: tuple[int, ...]) -> int:
    return max(_BLOCK_PX // shape[1], 1)


class _Look:
    """Look-up of the value of each pixel's label in a band of rows; valid until the next call."""

    def __init__(self, labels: NDArray[np.integer] | None, buffer: NDArray[Any], count: int):
        self.buffer = buffer
        self._index: NDArray[Any] | None = None
        self._small = count <= 256
        if labels is not None:
            self._index = labels.astype(np.uint8 if self._small else np.intp, copy=False)
            self._table = np.zeros((1, 256), buffer.dtype)

    def __call__(self, values: NDArray[Any]) -> Any:
        """Return the values (rows, W) of the band's pixels from values (K+1,) of the labels.

        Without labels return the only value.
        """
        if self._index is None:
            return values[0]
        if self._small:  # twice as fast as take
            self._table[0, : len(values)] = values
            return cv2.LUT(self._index, self._table, dst=self.buffer)
        # mode="clip" avoids the copy that "raise" needs; labels were checked, so nothing is clipped
        return values.take(self._index, mode="clip", out=self.buffer)


def _axis(size: int) -> NDArray[np.float64]:
    """Return pixel positions 0..size-1 scaled to -1..1 (a single pixel is at 0)."""
    return np.linspace(-1.0, 1.0, num=size, dtype=np.float64) if size > 1 else np.zeros(1)
