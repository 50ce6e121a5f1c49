# SPDX-License-Identifier: Apache-2.0
"""The base line: robust, never inverted, unknown where the network gives no value."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting.field.base import robust_line
from depth_node.fitting.field.settings import FieldAblation
from depth_node.prediction import Prediction
from tests.helpers.field_room import Room, error, measure, network, solved, with_depth


def test_upside_down_network_is_not_believed(room: Room) -> None:
    wrong = Prediction(room.depth, "disparity_affine_invariant")
    result = solved(room, measure(room, 300), prediction=wrong)
    assert result.details["scale"] == 0
    assert error(result, room.depth) < 0.1


def test_base_withstands_three_outliers_in_ten(room: Room) -> None:
    points = measure(room, 400)
    rng = np.random.default_rng(3)
    wrong = rng.random(400) < 0.3
    depth = np.where(wrong, points.depth * rng.uniform(0.4, 2, 400), points.depth)
    exact = Prediction((3.0 / room.depth + 0.4).astype(np.float32), "disparity_affine_invariant")
    alone = FieldAblation(residual=False)
    clean = solved(room, points, prediction=exact, ablation=alone)
    dirty = solved(room, with_depth(points, depth), prediction=exact, ablation=alone)
    assert dirty.details["scale"] == pytest.approx(clean.details["scale"], rel=0.02)
    assert np.median(np.abs(dirty.depth / clean.depth - 1)) < 0.01


def test_infinite_numbers_of_a_network_are_unknown_and_huge_ones_are_not(room: Room) -> None:
    prediction = network(room)
    values = prediction.values.copy()
    values[:20], values[20:40] = np.inf, -np.inf
    result = solved(room, measure(room, 200), prediction=Prediction(values, prediction.kind))
    np.testing.assert_array_equal(np.isnan(result.depth), ~np.isfinite(values))
    huge = Prediction(room.depth * np.float32(1e34), "depth_affine_invariant")
    result = solved(room, measure(room, 200), prediction=huge)
    np.testing.assert_allclose(result.depth, room.depth, rtol=2e-3)


def test_line_without_noise_is_recovered_and_a_constant_has_no_slope() -> None:
    x = np.random.default_rng(0).uniform(-3, 5, 200)
    assert robust_line(x, 2.5 * x - 1.25, np.ones(200)) == pytest.approx((2.5, -1.25))
    slope, shift = np.polyfit(x, x**2, 1, w=np.sqrt(1 / (1 + x**2)))
    near = robust_line(x, slope * x + shift, 1 / (1 + x**2))
    assert near == pytest.approx((slope, shift))
    assert robust_line(np.full(9, 4.0), np.arange(9.0), np.ones(9)) == (0.0, pytest.approx(4.0))


def test_points_count_by_their_declared_noise() -> None:
    """20 exact and 200 noisy points: the exact ones determine the line."""
    rng = np.random.default_rng(5)
    noise = np.where(np.arange(220) < 20, 0.01, 0.3)
    missed = []
    for _ in range(20):
        x = rng.uniform(1, 5, 220)
        y = 2.0 * x + 1.0 + noise * rng.standard_normal(220)
        lines = [robust_line(x, y, np.ones(220), each) for each in (None, noise)]
        missed.append([np.abs(s * x + t - 2.0 * x - 1.0).mean() for s, t in lines])
        assert robust_line(x, y, np.ones(220), np.zeros(220)) == lines[0]
        alike = robust_line(x, y, np.ones(220), np.full(220, 0.1))
        assert alike == pytest.approx(lines[0], rel=0.03), "noise of all alike changes little"
    alike, weighed = np.mean(missed, axis=0)
    assert weighed < 0.3 * alike
