# SPDX-License-Identifier: Apache-2.0
"""Metres without a LiDAR: the remembered line from the network's values to metres, and its error.

While points arrive, a robust line from the network's values to metres is kept (the base of method
`field`), with the 95 % bound of its residuals at the points. If no points arrive, or too few to fit
a line, the remembered line gives the metres. Its error has two parts, whose squares add up: the
error of the network's shape, which differs from pixel to pixel (the bound at the points), and the
drift of the line since it was fitted: over seconds, a network's scale changes like a random walk,
mostly by the same factor in the whole image.
The drift is measured while there are points, by applying the line of a second ago to the current
ones. A few points correct the line as a whole, with a gain from both parts (a Kalman update).

If there was never a scan, a metric network's own metres are used, with a wide bound; another
network gives no metres then. docs/unanchored.md has the numbers.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.base import BaseLine, fit_line
from depth_node.fitting.field.lattice import Floats, Map
from depth_node.fitting.robust import median, quantile
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction

FEW_POINTS = 5  # a line fitted to so many points, or fewer, is not better than a remembered one
_MOST_POINTS = 256  # points of a frame that are used for a line and its error
DRIFT = 0.18  # 95 % bound of the drift of the scale in a second, relative; grows with sqrt(t)
# Fraction of the squared drift that differs from place to place: points do not correct it.
_DRIFT_OF_PIXELS = 0.05
_DRIFT_FRAMES = 30  # frames over which the measured drift is averaged
_TRIED_S = 1.0  # age of the line that is applied to the current points
_LEAST_ERROR = 0.02  # least error of a line: a smaller one in a single frame is chance
_FEW_GROWTH, _FEW_GROWTH_SQUARED = 8.0, 40.0  # as in the field's interval
PRIOR_FACTOR = 1.25**3
"""Factor of the true depth within which the own metres of a metric network are assumed to be in
95 % of the pixels: that of delta 3, the widest in use (Eigen et al. 2014, arXiv 1406.2283, section
4.2)."""
_PRIOR_OF_PIXELS = 0.3  # log of depth: the part of that error that differs between pixels


@dataclass(frozen=True)
class _Anchor:
    """A line with its time stamp.

    middle: median log residual at its points, which is added to the line. error: 95 % bound of the
    remaining log residual at its points.
    """

    stamp_ns: int
    prediction_kind: str
    line: BaseLine
    middle: float
    error: float

    def log_metres(self, values: Map) -> NDArray[np.floating]:
        return self.line.log_metres(values) + self.middle


@dataclass(frozen=True)
class Unanchored:
    """Depth from a remembered line, or from a network's own metres.

    depth, std: (H, W) float32 m, NaN where the network gave no value; depth ± 1.96 std is meant to
    contain the true depth in 95 % of the pixels. residual: (n,) log of the measured over the
    corrected depth. age_s: s, age of the line, NaN for a network's own metres. bound: 95 % bound of
    the relative error.
    """

    depth: Map
    std: Map
    residual: Floats
    age_s: float
    bound: float


class MetricAnchor:
    """The remembered line of one camera and its network, and its measured drift."""

    def __init__(self) -> None:
        self._last: _Anchor | None = None
        self._tried: deque[_Anchor] = deque(maxlen=64)
        self._drift: deque[float] = deque(maxlen=_DRIFT_FRAMES)

    def learn(
        self, stamp_ns: int, prediction: Prediction, v: NDArray[np.floating], z: Floats
    ) -> None:
        """Remember the line of a frame with more than FEW_POINTS points.

        v: (n,) the network's values at the points that the fit accepts. z: (n,) their depth in m.
        A step back in time, or another kind of prediction, clears the memory first.
        """
        if self._last is not None and (
            stamp_ns <= self._last.stamp_ns or prediction.kind != self._last.prediction_kind
        ):
            self._last = None
            self._tried.clear()
            self._drift.clear()
        every = slice(None, None, 1 + len(z) // _MOST_POINTS)
        values, z = v[every].astype(np.float32), z[every]
        line = fit_line(prediction.kind, values.astype(np.float64), z)
        residual = np.log(z) - line.log_metres(values)
        middle = median(residual)
        error = quantile(np.abs(residual - middle), 0.95)
        error *= 1 + _FEW_GROWTH / len(z) + _FEW_GROWTH_SQUARED / len(z) ** 2
        self._last = _Anchor(stamp_ns, prediction.kind, line, middle, max(error, _LEAST_ERROR))
        self._watch(values, np.log(z))
        self._tried.append(self._last)

    def _watch(self, v: Map, log_z: Floats) -> None:
        """Apply the line of a second ago to the current points; keep its squared drift per s."""
        assert self._last is not None
        now_ns = self._last.stamp_ns
        while len(self._tried) > 1 and now_ns - self._tried[1].stamp_ns >= _TRIED_S * 1e9:
            self._tried.popleft()
        if self._tried and now_ns - self._tried[0].stamp_ns >= 0.5 * _TRIED_S * 1e9:
            old = self._tried[0]
            shift = float(np.median(log_z - old.log_metres(v)))
            self._drift.append(shift**2 / ((now_ns - old.stamp_ns) * 1e-9))

    def drift(self) -> float:
        """Return the 95 % bound of the scale's drift in a second: as measured, at least DRIFT."""
        seen = NORMAL_95 * math.sqrt(sum(self._drift) / len(self._drift)) if self._drift else 0.0
        return max(seen, DRIFT)

    def answer(
        self,
        stamp_ns: int,
        prediction: Prediction,
        v: NDArray[np.floating],
        z: Floats,
        longest_s: float,
    ) -> Unanchored | None:
        """Return the depth of a frame with at most FEW_POINTS points, from the remembered line.

        v: (n,) the network's values at the points. z: (n,) their depth in m. Returns None if no
        line is remembered, the kind of prediction is another, or the line is older than longest_s
        or newer than the frame.
        """
        last = self._last
        if last is None or prediction.kind != last.prediction_kind:
            return None
        age_s = (stamp_ns - last.stamp_ns) * 1e-9
        if not 0 <= age_s <= longest_s:
            return None
        residual = np.log(z) - last.log_metres(v.astype(np.float32)) if len(z) else np.empty(0)
        depth = last.line.metres(prediction.values)
        depth *= np.float32(math.exp(last.middle))
        drifted = self.drift() ** 2 * age_s
        of_pixels = last.error**2 + _DRIFT_OF_PIXELS * drifted
        of_scale = (1 - _DRIFT_OF_PIXELS) * drifted
        return _corrected(prediction, depth, residual, of_pixels, of_scale, age_s)


def own_metres(
    prediction: Prediction, rows: NDArray[np.integer], cols: NDArray[np.integer], z: Floats
) -> Unanchored:
    """Return a metric network's own metres, corrected by at most FEW_POINTS points.

    rows, cols: (n,) pixels of the points. z: (n,) m. The network's error is not known; PRIOR_FACTOR
    is assumed, which a few points reduce.
    """
    depth = np.array(prediction.metric_depth(), np.float32)
    residual = np.log(z) - np.log(depth[rows, cols])
    of_pixels = _PRIOR_OF_PIXELS**2
    of_scale = math.log(PRIOR_FACTOR) ** 2 - of_pixels
    return _corrected(prediction, depth, residual, of_pixels, of_scale, math.nan)


def _corrected(
    prediction: Prediction,
    depth: Map,
    residual: Floats,
    of_pixels: float,
    of_scale: float,
    age_s: float,
) -> Unanchored:
    """Correct a depth (H, W) in m by one factor from a few points, in place, and bound its error.

    residual: (n,) log of the measured over this depth. of_pixels, of_scale: squared 95 % bounds of
    the log depth's error: of the part that differs between pixels and of the common factor.
    """
    shift = 0.0
    # Points outside the bound of both parts are wrong, or beside an edge: they are not used.
    fits = residual[np.abs(residual) <= math.sqrt(of_pixels + of_scale)]
    if len(fits):
        gain = of_scale / (of_scale + of_pixels / len(fits))
        shift = gain * float(np.median(fits))
        of_scale *= 1 - gain
    bound = math.sqrt(of_pixels + of_scale)
    depth *= np.float32(math.exp(shift))
    depth[~np.isfinite(prediction.values)] = np.nan
    std = depth * np.float32(math.expm1(bound) / NORMAL_95)
    return Unanchored(depth, std, residual - shift, age_s, math.expm1(bound))
