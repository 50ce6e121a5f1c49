# SPDX-License-Identifier: Apache-2.0
"""Robust constants have the properties that their names claim."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting.robust import MAD_TO_STD, median, quantile, weighted_mean, weighted_quantile


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


@pytest.mark.parametrize("count", [1, 2, 3, 8, 101])
def test_median_quantile_and_mean_are_numpys(count: int) -> None:
    rng = np.random.default_rng(count)
    values, weight = rng.normal(size=count), rng.uniform(0.1, 1, count)
    assert median(values) == pytest.approx(np.median(values))
    for probability in (0.0, 0.02, 0.37, 0.98, 1.0):
        assert quantile(values, probability) == pytest.approx(np.quantile(values, probability))
    assert weighted_mean(values, weight) == pytest.approx(np.average(values, weights=weight))
    assert weighted_mean(values > 0, weight) == pytest.approx(
        np.average(values > 0, weights=weight)
    )


def test_median_is_of_all_numbers_of_a_map() -> None:
    plane = np.arange(24.0, dtype=np.float32).reshape(4, 6)[::2, ::3]
    assert median(plane) == pytest.approx(np.median(plane))
