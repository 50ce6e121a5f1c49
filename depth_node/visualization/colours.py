# SPDX-License-Identifier: Apache-2.0
"""Colour scales of depth, error and standard deviation, and colours of regions.

Pixels without a known value are hatched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

BACKGROUND = (17, 19, 24)
CARD = (27, 30, 37)
TEXT = (232, 234, 239)
MUTED = (146, 152, 165)
ACCENT = (255, 196, 84)
UNKNOWN = (41, 44, 53)
UNKNOWN_LINE = (52, 56, 67)
REJECTED = (255, 45, 60)
MOST_TICKS = 6
ERROR_STOPS = ((0.0, (58, 118, 221)), (0.5, (240, 241, 244)), (1.0, (214, 69, 65)))


def _table_of_stops(stops: Sequence[tuple[float, tuple[int, int, int]]]) -> npt.NDArray[Any]:
    """Return a piecewise linear table (256, 3) uint8 RGB through stops (position 0..1, colour)."""
    at = np.linspace(0.0, 1.0, 256)
    positions = [position for position, _ in stops]
    channels = [np.interp(at, positions, [colour[c] for _, colour in stops]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


@lru_cache(maxsize=8)
def colour_table(name: str) -> npt.NDArray[Any]:
    """Return the (256, 3) uint8 RGB table of a scale: depth, relative, error or deviation.

    Raises ValueError for another name.
    """
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    if name == "depth":  # near is warm: turbo, reversed and without its darkest ends
        table = cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[:, 0, ::-1]
        positions = np.linspace(0.95, 0.07, 256) * 255
        table = np.stack([np.interp(positions, np.arange(256), table[:, c]) for c in range(3)], 1)
        return table.round().astype(np.uint8)
    if name == "relative":
        return np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_MAGMA)[::-1, 0, ::-1])
    if name == "deviation":
        return np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1])
    if name == "error":
        return _table_of_stops(ERROR_STOPS)
    raise ValueError(f"No colour table is called '{name}'; use depth, relative, deviation or error")


@dataclass(frozen=True)
class Scale:
    """A colour scale: it maps values to colours and labels its bar.

    table: name for colour_table. logarithmic: equal ratios get equal steps, which suits depth: 1 m
    matters at 3 m, not at 80 m. low_word, high_word: labels of the bar's ends. Raises ValueError
    for limits that cannot be drawn.
    """

    table: str
    low: float
    high: float
    logarithmic: bool = False
    unit: str = "m"
    low_word: str = ""
    high_word: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"A scale needs low < high, both finite, not {self.low}..{self.high}")
        if self.logarithmic and self.low <= 0:
            raise ValueError(f"A logarithmic scale needs low > 0, not {self.low}")

    def position(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return each value's position on the bar, 0 at low and 1 at high, clipped; NaN stays NaN.

        values: of any shape, which the result has too.
        """
        values = np.asarray(values, dtype=np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.logarithmic:
                span = math.log(self.high / self.low)
                position = np.log(np.maximum(values, 1e-9) / self.low) / span
            else:
                position = (values - self.low) / (self.high - self.low)
        return np.clip(position, 0.0, 1.0)

    def colours(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the colours (..., 3) uint8 RGB of values (...,).

        NaN takes UNKNOWN; an infinite value takes the colour of its end of the scale.
        """
        position = self.position(values)
        known = np.isfinite(position) & ~np.isnan(np.asarray(values, dtype=np.float32))
        index = np.where(known, position, 0.0) * 255 + 0.5
        painted = colour_table(self.table)[index.astype(np.int32)]
        painted[~known] = UNKNOWN
        return painted

    def ticks(self) -> list[float]:
        """Return round values in [low, high] for the bar, at most MOST_TICKS."""
        if self.logarithmic:
            for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                decades = range(
                    math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
                )
                values = [s * 10.0**d for d in decades for s in steps]
                values = [t for t in values if self.low <= t * (1 + 1e-6) and t <= self.high]
                if len(values) <= MOST_TICKS:
                    break
            if len(values) >= 3:
                return values
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / MOST_TICKS))
        for factor in (1, 2, 2.5, 5, 10, 20):
            first = math.ceil(self.low / (step * factor) - 1e-9)
            last = math.floor(self.high / (step * factor) + 1e-9)
            if last - first + 1 <= MOST_TICKS:
                return [k * step * factor for k in range(first, last + 1)]
        return [self.low, self.high]


def depth_scale(*maps: npt.NDArray[Any]) -> Scale:
    """Return one scale in metres for all given depth maps (H, W) or depth lists (N,) together.

    Its ends are the 2 % and 98 % quantiles, so that single outliers do not stretch it.
    """
    finite = [np.asarray(m)[np.isfinite(m) & (np.asarray(m) > 0)] for m in maps]
    values = np.concatenate(finite) if finite else np.empty(0)
    if values.size == 0:
        return Scale("depth", 0.5, 10.0, logarithmic=True)
    low, high = (float(v) for v in np.quantile(values, (0.02, 0.98)))
    if high < low * 1.2:  # nearly constant depth: widen the scale
        low, high = low / 1.2, high * 1.2
    return Scale("depth", low, high, logarithmic=True)


def relative_scale(values: npt.NDArray[Any]) -> Scale:
    """Return a scale without a unit for a relative depth map (H, W), large = far."""
    finite = values[np.isfinite(values)]
    low, high = (0.0, 1.0) if finite.size == 0 else np.quantile(finite, (0.01, 0.99))
    if not high > low:
        high = low + 1.0
    return Scale(
        "relative", float(low), float(high), unit="", low_word="nearer", high_word="farther"
    )


def error_scale(limit_percent: float = 25.0) -> Scale:
    """Return the scale of the signed relative error in percent: blue too near, red too far."""
    return Scale(
        "error",
        -limit_percent,
        limit_percent,
        unit="%",
        low_word="too near",
        high_word="too far",
    )


def deviation_scale(std: npt.NDArray[Any]) -> Scale:
    """Return a scale in metres for a map (H, W) of standard deviations."""
    finite = std[np.isfinite(std)]
    high = float(np.quantile(finite, 0.9)) if finite.size else 1.0
    return Scale("deviation", 0.0, max(high, 1e-3))


@lru_cache(maxsize=8)
def _hatch(height: int, width: int) -> npt.NDArray[Any]:
    rows, cols = np.ogrid[:height, :width]
    painted = np.empty((height, width, 3), dtype=np.uint8)
    painted[:] = UNKNOWN
    painted[(rows + cols) % 9 == 0] = UNKNOWN_LINE
    return painted


def colour_map(values: npt.NDArray[Any], scale: Scale) -> npt.NDArray[Any]:
    """Return the image (H, W, 3) RGB of values (H, W); pixels that are not finite are hatched."""
    painted = scale.colours(values)
    unknown = ~np.isfinite(values)
    painted[unknown] = _hatch(*values.shape)[unknown]
    return painted


def relative_error_percent(depth: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the signed error in percent of the truth, (H, W) float32; NaN where either (H, W) is
    unknown.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        error = 100.0 * (depth - truth) / truth
    return np.where(np.isfinite(error) & (truth > 0), error, np.nan).astype(np.float32)


def region_palette(count: int) -> npt.NDArray[Any]:
    """Return (count + 1, 3) uint8 RGB in which consecutive labels differ clearly; 0 is UNKNOWN."""
    index = np.arange(count + 1)
    hue = (index * 0.61803398875) % 1.0  # golden ratio: consecutive labels never share a hue
    saturation = np.array([150, 110, 190])[index % 3]
    value = np.array([235, 250, 205])[(index // 3) % 3]
    hsv = np.stack([hue * 179, saturation, value], axis=1).astype(np.uint8)[None]
    palette = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    palette[0] = UNKNOWN
    return palette


def colour_regions(
    labels: npt.NDArray[Any], image: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Draw regions, labels (H, W), in colours with thin dark borders, over the grey image (H, W, 3)
    if one is given -> (H, W, 3) RGB.
    """
    palette = region_palette(int(labels.max(initial=0)))
    painted = palette[labels].astype(np.float32)
    if image is not None:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
        painted = 0.6 * painted * (0.6 + 0.4 * grey / 255.0) + 0.4 * grey
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    painted[border] = 0.25 * painted[border]
    return painted.astype(np.uint8)
