# SPDX-License-Identifier: Apache-2.0
"""Constants and small statistics of robust estimation that several fits share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Tuning constants of Huber's loss and Tukey's biweight in robust standard deviations, for the usual
# 95 % efficiency (P. J. Huber, Robust Statistics, 1981).
HUBER, TUKEY = 1.345, 4.685
MAD_TO_STD = 1.4826  # standard deviation over median absolute deviation of a normal variable


def weighted_quantile(
    values: NDArray[np.float64], weight: NDArray[np.float64], probability: float
) -> float:
    """The smallest value whose cumulative weight reaches `probability` (0 to 1) of the total.

    values: (n,), n >= 1. weight: (n,), not negative.
    """
    order = np.argsort(values)
    cumulative_weight = np.cumsum(weight[order])
    rank = np.searchsorted(cumulative_weight, probability * cumulative_weight[-1])
    return float(values[order][min(rank, len(values) - 1)])
