# SPDX-License-Identifier: Apache-2.0
"""Constants and statistics of robust estimation that several fits share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Tuning constants of Huber's loss and Tukey's biweight in robust standard deviations, for the usual
# 95 % efficiency (P. J. Huber, Robust Statistics, 1981).
HUBER, TUKEY = 1.345, 4.685
MAD_TO_STD = 1.4826  # standard deviation over median absolute deviation of a normal variable


def median(values: NDArray[Any]) -> float:
    """Return the median of values of any shape, (n,) or (h, w), without NaN, faster than NumPy."""
    flat = values.ravel()
    middle = len(flat) // 2
    parted = np.partition(flat, middle)
    if len(flat) % 2:
        return float(parted[middle])
    return (float(parted[:middle].max()) + float(parted[middle])) / 2


def quantile(values: NDArray[np.floating], probability: float) -> float:
    """Return the quantile of values (n,) without NaN, with linear interpolation, as np.quantile."""
    place = probability * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    parted = np.partition(values, (below, above))
    low, high = float(parted[below]), float(parted[above])
    return low + (place - below) * (high - low)


def weighted_mean(values: NDArray[Any], weight: NDArray[np.float64]) -> float:
    """Return the weighted mean of values (n,), as np.average."""
    return float(values @ weight / weight.sum())


def weighted_quantile(
    values: NDArray[np.float64], weight: NDArray[np.float64], probability: float
) -> float:
    """Return the smallest value whose cumulative weight is at least `probability` of the total.

    values: (n,), n >= 1. weight: (n,), not negative. probability: 0 to 1.
    """
    order = np.argsort(values)
    cumulative_weight = np.cumsum(weight[order])
    rank = np.searchsorted(cumulative_weight, probability * cumulative_weight[-1])
    return float(values[order[min(rank, len(values) - 1)]])
