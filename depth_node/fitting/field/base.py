# SPDX-License-Identifier: Apache-2.0
"""The base B: one robust line for the whole image, from the network's declared space to metres."""

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
MAX_LINE_POINTS = 2000  # more points do not determine the two parameters better
MISFIT_SHARES = np.geomspace(1.0, 1 / 64, 13).astype(np.float64)  # in steps of 3 dB
RANGE_FACTOR = 3.0  # B is limited to the points' 2 to 98 % range, widened by this factor


@dataclass(frozen=True)
class BaseLine:
    """The line z, 1/z or log z = scale v + shift of a network's values v.

    kind: depth, disparity or log, which selects z, 1/z or log z. nearest, farthest: m, limits of z.
    """

    kind: str
    scale: float
    shift: float
    nearest: float
    farthest: float

    def metres_line(self) -> MetresLine:
        """Return the line for loops over pixels: it gives metres, or log metres if kind is log."""
        bottom, top = self.nearest, self.farthest
        if self.kind == "disparity":
            bottom, top = 1 / self.farthest, 1 / self.nearest
        elif self.kind == "log":
            bottom, top = math.log(self.nearest), math.log(self.farthest)
        scale, shift, low, high = np.array([self.scale, self.shift, bottom, top], np.float32)
        return MetresLine(scale, shift, low, high, inverse=self.kind == "disparity")

    def metres(self, values: Map) -> Map:
        """Return metres (h, w) of a network's values (h, w)."""
        out = self.metres_line().metres(values)
        return np.exp(out, out=out) if self.kind == "log" else out

    def log_metres(self, values: Map) -> Map:
        """Return log metres (h, w) of a network's values (h, w)."""
        return np.log(self.metres(values))


@dataclass(frozen=True)
class Base:
    """The network's map, converted to metres by one line.

    values: (H, W) float32, finite everywhere: the network's values, or metres if it gives log
    depth. to_metres: converts these values to metres. unknown: (H, W) bool, pixels at which the
    network gave no finite value; None if there are none.
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
        """(H, W) m, computed at each access."""
        return self.to_metres.metres(self.values)

    def at(self, rows: Integers, cols: Integers) -> Map:
        """Return metres (n,) at pixels (n,)."""
        return self.to_metres.metres(self.values[rows, cols])

    def reduced(self, size: tuple[int, int], kernels: FieldKernels) -> Map:
        """Return metres (h, w) averaged over the cells of a lattice. size: (w, h) of it."""
        return reduced(self.values, size, kernels.mean, self.to_metres)

    def enlarged(
        self,
        factor: Map,
        relative: Map,
        depth_range_m: tuple[float, float],
        kernels: FieldKernels,
    ) -> tuple[Map, Map]:
        """Return depth and std (H, W) in m from factor and relative error (h, w) on a lattice.

        factor: the depth over the base. relative: std over the depth. depth_range_m: limits of the
        depth; std belongs to the depth before it was limited.
        """
        size = (self.shape[1], self.shape[0])
        depth, std = resized(factor, size), resized(relative, size)
        nearest, farthest = np.array(depth_range_m, np.float32)
        kernels.answer(self.values, self.to_metres, nearest, farthest, depth, std)
        return depth, std

    def details(self) -> dict[str, Any]:
        """Return the line's parameters, for an operator."""
        line = self.line
        return {"base": line.kind, "scale": line.scale, "shift": line.shift}

    def blank_unknown(self, *maps: Map) -> None:
        """Set (H, W) maps to NaN in place where the network gave no finite value."""
        if self.unknown is not None:
            for each in maps:
                each[self.unknown] = np.nan


def fit_base(prediction: Prediction, points: MergedPoints) -> Base:
    """Fit the robust line in the space that the network declares, and apply it to the image.

    The network must have given a finite value at every point.
    """
    every = slice(None, None, 1 + len(points) // MAX_LINE_POINTS)
    v = prediction.values[points.rows[every], points.cols[every]].astype(np.float64)
    line = fit_line(prediction.kind, v, points.z[every], points.noise[every])
    unknown = None
    values = prediction.values
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if not np.isfinite(total):  # a value is not finite, or the sum overflows
        unknown = ~np.isfinite(values)
        values = np.where(unknown, np.float32(median(v)), values)
    if line.kind == "log":
        return Base(line, line.metres(values), UNCHANGED, unknown)
    return Base(line, np.ascontiguousarray(values), line.metres_line(), unknown)


def fit_line(prediction_kind: str, v: Floats, z: Floats, noise: Floats | None = None) -> BaseLine:
    """Fit the robust line from a network's values v (n,) to measured depths z (n,) in m.

    prediction_kind: one of prediction.KINDS. noise: (n,) declared standard deviation of log z, 0
    where none is declared; None: none is declared at all.
    """
    low, high = quantile(z, 0.02), quantile(z, 0.98)
    kind = prediction_kind.split("_", 1)[0]
    # The weights make residuals of depth and disparity relative ones.
    if kind == "disparity":
        target, weight = 1 / z, z * z
    elif kind == "log":
        target, weight = np.log(z), np.ones(len(z))
    else:
        target, weight = z, 1 / (z * z)
    scale, shift = robust_line(v, target, weight, noise)
    if scale <= 0:  # the network swaps near and far, so it is ignored
        scale, shift = 0.0, median(target)
    return BaseLine(kind, scale, shift, low / RANGE_FACTOR, high * RANGE_FACTOR)


def base_alone(base: Base, points: MergedPoints) -> tuple[Map, Map]:
    """Return depth and std (H, W) in m of the base without a residual field."""
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
    """Return slope and intercept of y over x, (n,) each, by iteratively reweighted least squares.

    The loss is Huber's in the first half of the steps and Tukey's biweight in the second, of
    residuals times sqrt(weight). The slope is 0 if all x are equal. noise: (n,) declared standard
    deviation of these residuals. The variance of a point is the square of its noise plus the
    variance of the line's own misfit, so that points much more exact than the line get no more
    weight than others.
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
    """Return the spread of a line's misfit without the declared noise (n,) of its residuals (n,).

    It is the most likely of MISFIT_SHARES times the whole spread, if the sum of misfit and noise is
    Student-t distributed with 3 degrees of freedom.
    """
    sigma = np.sqrt((spread * MISFIT_SHARES[:, None]) ** 2 + noise**2)
    likelihood = (-np.log(sigma) - 2 * np.log1p((residual / sigma) ** 2 / 3)).sum(axis=1)
    return float(spread * MISFIT_SHARES[np.argmax(likelihood)])
