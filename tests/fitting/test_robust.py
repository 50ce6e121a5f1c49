# SPDX-License-Identifier: Apache-2.0
"""Robust constants have the properties that their names claim."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting.robust import MAD_TO_STD, weighted_quantile


def test_scaled_median_deviation_of_a_normal_variable_is_its_standard_deviation() -> None:
    x = np.random.default_rng(0).normal(3, 2, 200_000)
    assert MAD_TO_STD * np.median(np.abs(x - np.median(x))) == pytest.approx(2, rel=0.01)


def test_weights_count_like_repetitions() -> None:
    rng = np.random.default_rng(1)
    values, weight = rng.normal(size=50), rng.integers(1, 6, 50)
    repeated = np.sort(np.repeat(values, weight))
    for probability in (0.1, 0.5, 0.945, 1.0):
        rank = int(np.ceil(probability * len(repeated) - 1e-9)) - 1
        assert weighted_quantile(values, weight.astype(float), probability) == repeated[rank]


def test_values_without_weight_do_not_count() -> None:
    values, weight = np.array([1.0, 2.0, 100.0]), np.array([1.0, 1.0, 0.0])
    assert weighted_quantile(values, weight, 1.0) == 2.0
