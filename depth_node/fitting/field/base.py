# SPDX-License-Identifier: Apache-2.0
"""The base B: a robust line from the network's declared space to metres, for the whole image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.image_loops import UNCHANGED, MetresLine, reduced
from depth_node.fitting.field.kernels import FieldKernels
from depth_node.fitting.field.lattice import Floats, Integers, Map, resized
from depth_node.fitting.field.points import MergedPoints
from depth_node.fitting.robust import HUBER, MAD_TO_STD, TUKEY, median, quantile
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction

ROBUST_STEPS = 6
MAX_LINE_POINTS = 2000  # more points determine two numbers no better
MISFIT_SHARES = np.geomspace(1.0, 1 / 64, 13).astype(np.float64)  # 3 dB apart
RANGE_FACTOR = 3.0  # B stays within the points' 2 to 98 % range widened by this factor


@dataclass(frozen=True)
class BaseLine:
    """z, 1/z or log z = scale v + shift of a network's values v, within nearest to farthest m.

    kind: depth, disparity or log.
    """

    kind: str
    scale: float
    shift: float
    nearest: float
    farthest: float

    def metres_line(self) -> MetresLine:
        """The line in the space of metres or of their reciprocal; of log metres it gives these."""
        bottom, top = self.nearest, self.farthest
        if self.kind == "disparity":
            bottom, top = 1 / self.farthest, 1 / self.nearest
        elif self.kind == "log":
            bottom, top = math.log(self.nearest), math.log(self.farthest)
        scale, shift, low, high = np.array([self.scale, self.shift, bottom, top], np.float32)
        return MetresLine(scale, shift, low, high, inverse=self.kind == "disparity")

    def metres(self, values: Map) -> Map:
        """(h, w) m of a network's values."""
        out = self.metres_line().metres(values)
        return np.exp(out, out=out) if self.kind == "log" else out

    def log_metres(self, values: Map) -> Map:
        """(h, w) log m of a network's values."""
        return np.log(self.metres(values))


@dataclass(frozen=True)
class Base:
    """The network's map in metres by one line.

    values: (H, W) float32, finite everywhere: the network's, or metres already where it gives log
    depth. to_metres: makes metres of these values. unknown: (H, W) bool where the network gave
    nothing, or None.
    """

    line: BaseLine
    values: Map
    to_metres: MetresLine
    unknown: NDArray[np.bool_] | None

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def map(self) -> Map:
        """(H, W) m. It is computed anew."""
        return self.to_metres.metres(self.values)

    def at(self, rows: Integers, cols: Integers) -> Map:
        """(n,) m at pixels (n,)."""
        return self.to_metres.metres(self.values[rows, cols])

    def reduced(self, size: tuple[int, int], kernels: FieldKernels) -> Map:
        """(h, w) m on a lattice of so many columns and rows (w, h), averaged over its cells."""
        return reduced(self.values, size, kernels.mean, self.to_metres)

    def enlarged(
        self,
        factor: Map,
        relative: Map,
        depth_range_m: tuple[float, float],
        kernels: FieldKernels,
    ) -> tuple[Map, Map]:
        """Depth, kept within a range, and std (H, W), m, of a lattice's factor and relative error
        (h, w)."""
        size = (self.shape[1], self.shape[0])
        depth, std = resized(factor, size), resized(relative, size)
        nearest, farthest = np.array(depth_range_m, np.float32)
        kernels.answer(self.values, self.to_metres, nearest, farthest, depth, std)
        return depth, std

    def details(self) -> dict[str, Any]:
        """The line, for an operator."""
        line = self.line
        return {"base": line.kind, "scale": line.scale, "shift": line.shift}

    def blank_unknown(self, *maps: Map) -> None:
        """NaN in (H, W) maps where the network gave nothing, in place."""
        if self.unknown is not None:
            for each in maps:
                each[self.unknown] = np.nan


def fit_base(prediction: Prediction, points: MergedPoints) -> Base:
    """The robust line in the space that the network declares, and its map kept within reason."""
    every = slice(None, None, 1 + len(points) // MAX_LINE_POINTS)
    v = prediction.values[points.rows[every], points.cols[every]].astype(np.float64)
    line = fit_line(prediction.kind, v, points.z[every], points.noise[every])
    unknown = None
    values = prediction.values
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if not np.isfinite(total):  # or the sum is too large: then nothing is unknown
        unknown = ~np.isfinite(values)
        values = np.where(unknown, np.float32(median(v)), values)
    if line.kind == "log":
        return Base(line, line.metres(values), UNCHANGED, unknown)
    return Base(line, np.ascontiguousarray(values), line.metres_line(), unknown)


def fit_line(prediction_kind: str, v: Floats, z: Floats, noise: Floats | None = None) -> BaseLine:
    """The robust line from a network's values (n,) to measured depths (n,) in m.

    prediction_kind: one of prediction.KINDS. noise: (n,) declared standard deviation of log z, 0
    where none is; None: nowhere.
    """
    low, high = quantile(z, 0.02), quantile(z, 0.98)
    kind = prediction_kind.split("_", 1)[0]
    # Weights turn residuals of depth and disparity into relative ones.
    if kind == "disparity":
        target, weight = 1 / z, z * z
    elif kind == "log":
        target, weight = np.log(z), np.ones(len(z))
    else:
        target, weight = z, 1 / (z * z)
    scale, shift = robust_line(v, target, weight, noise)
    if scale <= 0:  # the network has near and far the wrong way round: it says nothing
        scale, shift = 0.0, median(target)
    return BaseLine(kind, scale, shift, low / RANGE_FACTOR, high * RANGE_FACTOR)


def base_alone(base: Base, points: MergedPoints) -> tuple[Map, Map]:
    """Depth and std (H, W), m, of the base without a residual field."""
    residual = np.log(points.z) - np.log(base.at(points.rows, points.cols).astype(np.float64))
    middle = median(residual)
    depth = base.map * np.float32(math.exp(middle))
    relative = float(np.quantile(np.abs(np.expm1(residual - middle)), 0.95)) / NORMAL_95
    std = depth * np.float32(relative)
    base.blank_unknown(depth, std)
    return depth, std


def robust_line(
    x: Floats, y: Floats, weight: Floats, noise: Floats | None = None
) -> tuple[float, float]:
    """Slope and intercept of y over x, (n,) each, by reweighted least squares.

    Huber's loss first, then Tukey's biweight, of residuals times sqrt(weight). The slope is 0 where
    all x are alike. noise: (n,) declared standard deviation of these residuals: the variance of a
    point is its square and that of what the line misses, so that points much more exact than the
    line count no more than others.
    """
    slope, shift = 0.0, median(y)
    now, root = weight, np.sqrt(weight)
    declared = noise is not None and bool(noise.any())
    for step in range(ROBUST_STEPS):
        total = now.sum()
        middle_x, middle_y = now @ x / total, now @ y / total
        away = x - middle_x
        pull = now * away
        width = pull @ away / total
        flat = width <= 1e-14 * max(middle_x * middle_x, 1e-12)
        slope = 0.0 if flat else pull @ (y - middle_y) / total / width
        shift = middle_y - slope * middle_x
        residual = np.abs(y - slope * x - shift) * root
        spread = MAD_TO_STD * median(residual) + 1e-9
        now = weight
        if declared and noise is not None:
            spread = _misfit(residual, noise, spread)
            trust = 1 / (1 + (noise / spread) ** 2)
            residual, now = residual * np.sqrt(trust), weight * trust
        if step < ROBUST_STEPS // 2:
            now = now * np.minimum(1, HUBER * spread / np.maximum(residual, 1e-12))
        else:
            now = now * np.maximum(1 - (residual / (TUKEY * spread)) ** 2, 0) ** 2
    return float(slope), float(shift)


def _misfit(residual: Floats, noise: Floats, spread: float) -> float:
    """The spread of what a line misses, without the declared noise (n,) of its residuals (n,).

    The most likely of a few shares of the whole spread, the sum of both being Student-t with 3
    degrees of freedom.
    """
    sigma = np.sqrt((spread * MISFIT_SHARES[:, None]) ** 2 + noise**2)
    likelihood = (-np.log(sigma) - 2 * np.log1p((residual / sigma) ** 2 / 3)).sum(axis=1)
    return float(spread * MISFIT_SHARES[np.argmax(likelihood)])
