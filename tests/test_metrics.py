# SPDX-License-Identifier: Apache-2.0
"""Depth metrics, compared with published values and with small cases computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depth_node.metrics import (
    boundary_f1,
    coverage,
    evaluate,
    mean_of_known,
    mean_over_sources,
)

P = np.array([1.0, 2.0, 4.0])
G = np.array([1.1, 1.9, 4.4])


def test_golden_values() -> None:
    metrics = evaluate(P, G)
    assert metrics.abs_rel == pytest.approx(0.0781499, abs=5e-8)
    assert metrics.rmse == pytest.approx(0.2449490, abs=5e-8)
    assert metrics.log10 == pytest.approx(0.0350206, abs=5e-8)
    assert metrics.silog == pytest.approx(6.910954, abs=5e-7)
    assert (metrics.delta1, metrics.delta2, metrics.delta3) == (1, 1, 1)
    assert (metrics.pixels, metrics.answered) == (3, 1)


def test_the_remaining_metrics_by_hand() -> None:
    metrics = evaluate([2.0, 3.0], [1.0, 4.0])
    assert metrics.sq_rel == pytest.approx((1 / 1 + 1 / 4) / 2)
    assert metrics.irmse == pytest.approx(math.sqrt((0.5**2 + (1 / 3 - 1 / 4) ** 2) / 2))
    assert metrics.rmse_log == pytest.approx(
        math.sqrt((math.log(2) ** 2 + math.log(0.75) ** 2) / 2)
    )
    # ratios 2 and 4/3: beyond 1.25; 4/3 within 1.5625; 2 beyond 1.953
    assert (metrics.delta1, metrics.delta2, metrics.delta3) == (0, 0.5, 0.5)


def test_negatives_zeros_and_nan_are_no_answer_and_are_counted() -> None:
    prediction = np.array([1.0, -2.0, 0.0, np.nan, np.inf, 2.0, 5.0, 5.0, 5.0])
    truth = np.array([1.0, 2.0, 2.0, 2.0, 2.0, 4.0, np.nan, 0.0, -1.0])
    metrics = evaluate(prediction, truth)
    assert metrics.pixels == 2
    assert metrics.answered == pytest.approx(2 / 6)
    assert metrics.abs_rel == pytest.approx(0.25)
    assert metrics.rmse == pytest.approx(math.sqrt(2))


def test_the_mask_takes_pixels_out_of_every_number() -> None:
    metrics = evaluate([1.0, 9.0, np.nan], [1.0, 1.0, 1.0], mask=[True, False, True])
    assert metrics.abs_rel == 0
    assert metrics.answered == 0.5


def test_nothing_to_score_gives_nan_and_no_warning() -> None:
    silent = evaluate([np.nan, -1.0], [1.0, 2.0])
    assert math.isnan(silent.abs_rel)
    assert math.isnan(silent.silog)
    assert (silent.pixels, silent.answered) == (0, 0)
    assert math.isnan(evaluate([1.0], [np.nan]).answered)
    assert math.isnan(evaluate(np.zeros((0,)), np.zeros((0,))).rmse)


def test_scaling_both_maps_scales_metres_and_leaves_ratios() -> None:
    once, scaled = evaluate(P, G), evaluate(3 * P, 3 * G)
    assert scaled.rmse == pytest.approx(3 * once.rmse)
    assert scaled.irmse == pytest.approx(once.irmse / 3)
    for name in ("abs_rel", "rmse_log", "log10", "delta1", "silog"):
        assert getattr(scaled, name) == pytest.approx(getattr(once, name))
    assert evaluate(7 * G, G).silog == pytest.approx(0, abs=1e-6)


def test_float32_input_is_scored_in_float64() -> None:
    truth = np.full(200_000, 10.0, dtype=np.float32)
    assert evaluate(truth + np.float32(0.5), truth).abs_rel == pytest.approx(0.05, rel=1e-12)


def test_dictionary_has_every_metric() -> None:
    values = evaluate(P, G).as_dict()
    assert list(values)[:3] == ["abs_rel", "sq_rel", "rmse"]
    assert len(values) == 12


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="resize"):
        evaluate(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="mask"):
        evaluate(np.ones((2, 2)), np.ones((2, 2)), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="std"):
        coverage(np.ones(2), np.ones(3), np.ones(2))


def test_coverage_by_hand() -> None:
    depth = np.array([1.0, 2.0, 3.0, 4.0, 5.0, np.nan])
    std = np.array([0.1, 0.1, np.nan, 1.0, 0.0, 1.0])
    truth = np.array([1.1, 2.5, 3.0, 3.0, 5.0, 1.0])
    # inside, outside, no interval, inside, exactly right with no spread, no depth
    assert coverage(depth, std, truth) == pytest.approx(3 / 4)
    assert coverage(depth, std, truth, z=10) == 1
    assert math.isnan(coverage(depth, np.full(6, np.nan), truth))


def test_coverage_of_normal_errors_is_ninety_five_percent() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 5, 200_000)
    assert coverage(truth + rng.normal(0, 0.1, truth.size), np.full(truth.size, 0.1), truth) == (
        pytest.approx(0.95, abs=0.003)
    )


def _step(ratio: float, column: int) -> np.ndarray:
    depth = np.ones((6, 8))
    depth[:, column:] = ratio
    return depth


def test_boundary_of_a_perfect_map_and_of_a_misplaced_edge() -> None:
    truth = _step(2.0, 4)
    # only one of the four directions has an edge: precision = recall = 1/4 there, hence F1 = 1/4
    assert boundary_f1(truth, truth) == pytest.approx(0.25)
    assert boundary_f1(5 * truth, truth) == pytest.approx(0.25)
    assert boundary_f1(1 / truth, 1 / truth) == pytest.approx(0.25)
    assert boundary_f1(_step(2.0, 3), truth) == 0
    assert boundary_f1(np.ones_like(truth), truth) == 0
    square = np.ones((6, 8))
    square[2:4, 3:6] = 2.0
    assert boundary_f1(square, square) == pytest.approx(1)


def test_boundary_weights_grow_with_the_ratio() -> None:
    square = np.ones((6, 8))
    square[2:4, 3:6] = 2.0
    weak = np.where(square > 1, 1.16, 1.0)  # found at 1.05 .. 1.1389, missed at the five above 1.16
    ratios = np.linspace(1.05, 1.25, 10)
    expected = ratios[ratios < 1.16].sum() / ratios.sum()
    assert boundary_f1(weak, square) == pytest.approx(expected)
    assert expected == pytest.approx(0.0913 + 0.0932 + 0.0952 + 0.0971 + 0.0990, abs=3e-4)


def test_boundary_ignores_pairs_without_truth_and_misses_unknown_predictions() -> None:
    square = np.ones((6, 8))
    square[2:4, 3:6] = 2.0
    holes = square.copy()
    holes[:, 7] = np.nan
    wild = square.copy()
    wild[:, 7] = 100.0
    assert boundary_f1(wild, holes) == pytest.approx(1)
    assert boundary_f1(wild, square, np.isfinite(holes)) == pytest.approx(1)
    blind = square.copy()
    blind[2, 3:6] = np.nan
    assert 0 < boundary_f1(blind, square) < 1


def test_mean_over_sources_weighs_sources_alike_and_leaves_unknown_values_out() -> None:
    values = {"a": [1.0, 1.0, 1.0, math.nan], "b": [3.0], "c": [math.nan], "d": []}
    assert mean_over_sources(values) == 2.0
    assert math.isnan(mean_over_sources({"c": [math.nan]}))
    assert math.isnan(mean_of_known([]))
