# SPDX-License-Identifier: Apache-2.0
"""Metres without a LiDAR: what the last scans said of the network's values, and how far it holds.

While points come, a robust line from the network's values to metres is kept (the base of method
`field`), with the 95 % bound of what it leaves at the points. When they stay away, or fewer come
than determine a line, that line gives the metres. Its error has two parts, which add in squares:
what the network's shape is wrong by, pixel by pixel (the bound at the points), and by how much the
line is out of date: from second to second a network's scale wanders like a random walk, most of it
as a whole.
That drift is watched while there are points, by trying the line of a second ago on those of now.
Few points correct the line as a whole, in the proportion of both parts (a Kalman update).

Where there was never a scan, a metric network's own metres are all there is, within a wide bound;
of another network never a metre. docs/unanchored.md has the numbers.
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

FEW_POINTS = 5  # so many, or fewer, determine no line that is better than one that is remembered
_MOST_POINTS = 256  # of a frame that a line and its error are taken from
DRIFT = 0.18  # 95 % bound of the wandering of the scale in a second, relative; grows with sqrt(t)
_DRIFT_OF_PIXELS = (
    0.05  # of its square, what differs from place to place: points correct it nowhere
)
_DRIFT_FRAMES = 30  # that the drift is watched over
_TRIED_S = 1.0  # age of the line that is tried on the points of now
_LEAST_ERROR = 0.02  # of a line: a network that is better than this in a frame is so by chance
_FEW_GROWTH, _FEW_GROWTH_SQUARED = 8.0, 40.0  # as of the field's interval
PRIOR_FACTOR = 1.25**3
"""Within which the own metres of a metric network are taken to be in 95 % of the pixels: the factor
of delta 3, the widest that papers judge by (Eigen et al. 2014, arXiv 1406.2283, section 4.2)."""
_PRIOR_OF_PIXELS = 0.3  # of its logarithm, what no correction as a whole takes away


@dataclass(frozen=True)
class _Anchor:
    """A line at its time. error: 95 % bound of the log residual at its points."""

    stamp_ns: int
    prediction_kind: str
    line: BaseLine
    middle: float
    error: float

    def log_metres(self, values: Map) -> NDArray[np.floating]:
        return self.line.log_metres(values) + self.middle


@dataclass(frozen=True)
class Unanchored:
    """Depth by a line that is remembered.

    depth, std: (H, W) float32 m, NaN where the network gave nothing; depth ± 1.96 std is meant to
    hold 95 %. residual: (n,) log of measured over remembered depth. age_s: of the line, NaN of
    a network's own metres. bound: of the relative error, 95 %.
    """

    depth: Map
    std: Map
    residual: Floats
    age_s: float
    bound: float


class MetricAnchor:
    """The memory of one camera and its network."""

    def __init__(self) -> None:
        self._last: _Anchor | None = None
        self._tried: deque[_Anchor] = deque(maxlen=64)
        self._drift: deque[float] = deque(maxlen=_DRIFT_FRAMES)

    def learn(
        self, stamp_ns: int, prediction: Prediction, v: NDArray[np.floating], z: Floats
    ) -> None:
        """Take in a frame with more than FEW_POINTS points: the network's values and m, (n,) each,
        of those that the fit believes."""
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
        """By how much the line of a second ago is out of date, per second of a random walk."""
        assert self._last is not None
        now_ns = self._last.stamp_ns
        while len(self._tried) > 1 and now_ns - self._tried[1].stamp_ns >= _TRIED_S * 1e9:
            self._tried.popleft()
        if self._tried and now_ns - self._tried[0].stamp_ns >= 0.5 * _TRIED_S * 1e9:
            old = self._tried[0]
            shift = float(np.median(log_z - old.log_metres(v)))
            self._drift.append(shift**2 / ((now_ns - old.stamp_ns) * 1e-9))

    def drift(self) -> float:
        """95 % bound of the wandering of the scale in a second: what was seen, or usual."""
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
        """Depth with at most FEW_POINTS points: the network's values and m, (n,) each.

        None where no line is remembered, or it is older than longest_s.
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
    """Depth by a metric network's own metres, with at most FEW_POINTS points: pixels, m, (n,) each.

    What it may be wrong by is not known; taken is PRIOR_FACTOR, which a few points narrow.
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
    """A remembered depth (H, W) m, which is changed, corrected as a whole by a few points.

    residual: (n,) log of measured over remembered depth. of_pixels, of_scale: squared 95 % bounds
    of the log depth, pixel by pixel and as a whole.
    """
    shift = 0.0
    # Points beyond what both parts allow are wrong, or beside an edge: they correct nothing.
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
