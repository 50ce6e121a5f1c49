# SPDX-License-Identifier: Apache-2.0
"""Depth metrics, used by the whole package.

All metrics are computed in float64 over the valid pixels of one image; mean_over_sources() averages
over images afterwards. A pixel is valid if its truth is finite and above zero (and the mask is
True). It is answered if its prediction is finite and above zero too. The errors are means over the
answered pixels; ``answered`` is their fraction of the valid pixels, so that a method cannot look
better by leaving pixels out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORMAL_95 = 1.959964  # standard deviations within which 95 % of a normal variable lie

_BOUNDARY_RATIOS = np.linspace(1.05, 1.25, 10)


@dataclass(frozen=True)
class Metrics:
    """Errors of one depth map p against the truth g, float; NaN if no pixel is answered."""

    abs_rel: float
    """mean |p - g| / g"""
    sq_rel: float
    """mean (p - g)² / g, m"""
    rmse: float
    """sqrt mean (p - g)², m"""
    rmse_log: float
    """sqrt mean (ln p - ln g)²"""
    log10: float
    """mean |log10 p - log10 g|"""
    delta1: float
    """fraction of pixels with max(p/g, g/p) < 1.25"""
    delta2: float
    """the same for 1.25²"""
    delta3: float
    """the same for 1.25³"""
    irmse: float
    """sqrt mean (1/p - 1/g)², 1/m"""
    silog: float
    """100 sqrt(mean e² - (mean e)²) with e = ln p - ln g"""
    pixels: float
    """number of answered pixels, over which the errors are averaged"""
    answered: float
    """fraction of the valid pixels that are answered; NaN if no pixel is valid"""

    def as_dict(self) -> dict[str, float]:
        """Return name -> value, in the order above."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def evaluate(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> Metrics:
    """Compute the metrics of a depth map in metres against the truth in metres.

    All arrays have the same shape, usually (H, W); ``mask`` is True at pixels that count (default:
    all). NaN, Inf and values not above zero mean "unknown" in both maps. Raises ValueError if the
    shapes differ.
    """
    predicted, true, counted = _same_shape(prediction, truth, mask)
    valid = counted & _known(true)
    answered = valid & _known(predicted)
    valid_count = int(np.count_nonzero(valid))
    p = predicted[answered].astype(np.float64)
    g = true[answered].astype(np.float64)
    answered_fraction = p.size / valid_count if valid_count else math.nan
    if p.size == 0:
        unknown = dict.fromkeys((field.name for field in fields(Metrics)), math.nan)
        return Metrics(**{**unknown, "pixels": 0.0, "answered": answered_fraction})
    error = p - g
    log_error = np.log(p) - np.log(g)
    ratio = np.exp(np.abs(log_error))
    mean_square_log = float(np.mean(log_error**2))
    variance_log = max(mean_square_log - float(np.mean(log_error)) ** 2, 0.0)
    return Metrics(
        abs_rel=float(np.mean(np.abs(error) / g)),
        sq_rel=float(np.mean(error**2 / g)),
        rmse=math.sqrt(float(np.mean(error**2))),
        rmse_log=math.sqrt(mean_square_log),
        log10=float(np.mean(np.abs(log_error))) / math.log(10),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
        irmse=math.sqrt(float(np.mean((1 / p - 1 / g) ** 2))),
        silog=100 * math.sqrt(variance_log),
        pixels=float(p.size),
        answered=answered_fraction,
    )


def coverage(
    depth: ArrayLike,
    std: ArrayLike,
    truth: ArrayLike,
    mask: ArrayLike | None = None,
    z: float = NORMAL_95,
) -> float:
    """Return the fraction of answered pixels with the truth in ``depth ± z std``; NaN if none.

    All arrays have the same shape, usually (H, W), in metres. An answered pixel has a known depth
    and a known standard deviation (not negative). A calibrated interval with z = 1.96 contains the
    truth of 95 % of them. Raises ValueError if the shapes differ.
    """
    predicted, true, counted = _same_shape(depth, truth, mask)
    spread = np.asarray(std)
    if spread.shape != true.shape:
        raise ValueError(f"std is {spread.shape} but the truth {true.shape}: pass one image's.")
    answered = counted & _known(true) & _known(predicted) & np.isfinite(spread) & (spread >= 0)
    if not answered.any():
        return math.nan
    error = np.abs(predicted[answered].astype(np.float64) - true[answered].astype(np.float64))
    return float(np.mean(error <= z * spread[answered].astype(np.float64)))


def boundary_f1(prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None = None) -> float:
    """F1 score of occluding edges, 0..1, of two (H, W) depth maps (Depth Pro, arXiv 2410.02073).

    Independent of a common scale, but not of a shift. An edge lies between two 4-neighbours whose
    depths differ by more than a ratio; precision and recall are averaged over the four directions,
    F1 over the ratios 1.05 to 1.25 with weights that grow with the ratio. Pairs of unknown truth do
    not count; a pair of unknown prediction is not a predicted edge. Raises ValueError if the arrays
    are not maps of one shape.
    """
    predicted, true, counted = _same_shape(prediction, truth, mask)
    if true.ndim != 2:
        raise ValueError(f"boundary_f1 compares (H, W) maps, not arrays of shape {true.shape}.")
    p = np.where(_known(predicted), predicted, np.nan).astype(np.float64)
    g = np.where(counted & _known(true), true, np.nan).astype(np.float64)
    precision = np.zeros((4, _BOUNDARY_RATIOS.size))
    recall = np.zeros_like(precision)
    for axis in (0, 1):
        p_ratio, g_ratio = _neighbour_ratio(p, axis), _neighbour_ratio(g, axis)
        judged = np.isfinite(g_ratio)
        p_step, g_step = p_ratio[judged], g_ratio[judged]
        for sign in (0, 1):
            if sign:  # the same pairs in the opposite direction
                p_step, g_step = 1 / p_step, 1 / g_step
            for k, threshold in enumerate(_BOUNDARY_RATIOS):
                p_edge, g_edge = p_step > threshold, g_step > threshold  # NaN is not an edge
                both = np.count_nonzero(p_edge & g_edge)
                precision[2 * axis + sign, k] = both / max(np.count_nonzero(p_edge), 1)
                recall[2 * axis + sign, k] = both / max(np.count_nonzero(g_edge), 1)
    mean_precision, mean_recall = precision.mean(axis=0), recall.mean(axis=0)
    total = mean_precision + mean_recall
    f1 = 2 * mean_precision * mean_recall / np.where(total > 0, total, 1)
    return float(np.average(f1, weights=_BOUNDARY_RATIOS))


def mean_of_known(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def mean_over_sources(values: Mapping[str, Iterable[float]]) -> float:
    """Return the mean over the images of each source, then over the sources; NaN is unknown.

    A source of many similar images does not outweigh the others.
    """
    return mean_of_known(mean_of_known(of_source) for of_source in values.values())


def _neighbour_ratio(depth: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Return the depth of the next pixel along ``axis`` divided by the depth of this one."""
    nearer, farther = (depth[:-1], depth[1:]) if axis == 0 else (depth[:, :-1], depth[:, 1:])
    return farther / nearer


def _known(depth: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isfinite(depth) & (depth > 0)


def _same_shape(
    prediction: ArrayLike, truth: ArrayLike, mask: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    predicted, true = np.asarray(prediction), np.asarray(truth)
    if predicted.shape != true.shape:
        raise ValueError(
            f"The prediction is {predicted.shape} but the truth {true.shape}: "
            "resize one of them with a rule of your choice first."
        )
    counted = np.ones(true.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if counted.shape != true.shape:
        raise ValueError(f"The mask is {counted.shape} but the truth {true.shape}: cut it alike.")
    return predicted, true, counted
