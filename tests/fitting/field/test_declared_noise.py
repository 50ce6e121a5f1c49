# SPDX-License-Identifier: Apache-2.0
"""Points of several sensors, weighted by their declared noise, in depth and interval."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting import FitResult
from depth_node.fitting.field.interval import without_declared_noise
from depth_node.fitting.field.points import merge_points
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import coverage, evaluate
from depth_node.prediction import Prediction
from tests.helpers.fits import fit

HEIGHT, WIDTH = 120, 160
ROWS, COLS = np.mgrid[:HEIGHT, :WIDTH]
TRUTH = (2 + COLS / 40 + 0.4 * np.sin(ROWS / 15)).astype(np.float32)
NETWORK = Prediction((1 / TRUTH + 0.03 * np.sin(COLS / 25)).astype(np.float32), "disparity_metric")


def sensor(count: int, relative: float, seed: int) -> SparseDepth:
    rng = np.random.default_rng(seed)
    rows, cols = np.divmod(rng.choice(HEIGHT * WIDTH, count, replace=False), WIDTH)
    true = TRUTH[rows, cols]
    z = true * (1 + relative * rng.standard_normal(count))
    return SparseDepth.from_arrays(rows, cols, z, noise_m=relative * true)


def together(*sensors: SparseDepth, declared: bool = True) -> FitResult:
    names = ("rows", "cols", "depth", "noise_m")
    joined = {name: np.concatenate([getattr(s, name) for s in sensors]) for name in names}
    if not declared:
        joined["noise_m"] = np.zeros(len(joined["depth"]), np.float32)
    return fit(NETWORK, SparseDepth.from_arrays(**joined))


def error(result: FitResult) -> float:
    return evaluate(result.depth, TRUTH).abs_rel


def test_a_poor_sensor_does_little_harm_if_it_says_so() -> None:
    good, poor = sensor(150, 0.005, 1), sensor(150, 0.15, 2)
    alone, weighed, alike = together(good), together(good, poor), together(
        good, poor, declared=False
    )  # fmt: skip
    assert error(weighed) < 0.6 * error(alike)
    assert error(weighed) < 2 * error(alone)
    width = [float(np.median(result.std / result.depth)) for result in (weighed, alike)]
    assert width[0] < 0.6 * width[1]
    assert coverage(weighed.depth, weighed.std, TRUTH) > 0.9


def test_without_a_declaration_nothing_changes() -> None:
    points = sensor(100, 0.01, 3)
    bare = SparseDepth.from_arrays(points.rows, points.cols, points.depth)
    explicit = SparseDepth.from_arrays(points.rows, points.cols, points.depth, noise_m=0.0)
    assert np.array_equal(fit(NETWORK, bare).depth, fit(NETWORK, explicit).depth)
    assert np.array_equal(fit(NETWORK, bare).std, fit(NETWORK, explicit).std)


def test_scaled_points_and_noise_scale_the_answer() -> None:
    points = sensor(100, 0.05, 4)
    twice = SparseDepth.from_arrays(
        points.rows, points.cols, 2 * points.depth, noise_m=2 * points.noise_m
    )
    one, two = fit(NETWORK, points), fit(NETWORK, twice)
    assert two.depth == pytest.approx(2 * one.depth, rel=1e-4)
    assert two.std == pytest.approx(2 * one.std, rel=1e-3)


def test_of_one_pixel_the_most_exact_counts() -> None:
    rows, cols = np.array([5, 5, 9]), np.array([7, 7, 9])
    depth, noise_m = np.array([2.0, 3.0, 4.0]), np.array([0.2, 0.03, 0.4])
    given = SparseDepth.from_arrays(rows, cols, depth, noise_m=noise_m)
    points, merged = merge_points(given, (20, 20))
    assert len(points) == 2 and merged[0] == merged[1]
    of = merged[0]
    assert points.z[of] == pytest.approx(3.0) and points.noise[of] == pytest.approx(0.01)
    # The newest counts before the most exact.
    given = SparseDepth.from_arrays(rows, cols, depth, [0.0, 0.1, 0.0], noise_m)
    points, merged = merge_points(given, (20, 20))
    assert points.z[merged[0]] == pytest.approx(2.0)


def test_errors_are_freed_of_the_declared_noise() -> None:
    rng = np.random.default_rng(0)
    own, declared = 0.02, np.full(100_000, 0.05)
    errors = np.abs(np.hypot(own, declared) * rng.standard_normal(len(declared)))
    freed = without_declared_noise(errors, declared)
    assert np.quantile(freed, 0.95) == pytest.approx(1.96 * own, rel=0.1)
    assert np.array_equal(without_declared_noise(errors, 0 * declared), errors)


def test_noise_follows_its_points_through_subset_and_arrays() -> None:
    points = SparseDepth.from_arrays([1, 2, 3], [1, 2, 3], [1.0, np.nan, 3.0], noise_m=[1, 2, 3])
    assert points.noise_m.tolist() == [1, 3] and points.subset([1]).noise_m.tolist() == [3]
    with pytest.raises(ValueError, match="five arrays"):
        SparseDepth(
            points.rows, points.cols, points.depth, points.age_s, noise_m=np.ones(5, np.float32)
        )


def test_the_interval_of_a_few_noisy_points_holds() -> None:
    """The largest error of five points is no 95 % quantile, and has less than their whole noise."""
    results = [together(sensor(5, 0.1, seed)) for seed in range(40)]
    assert np.mean([coverage(r.depth, r.std, TRUTH) for r in results]) > 0.95


def test_no_error_is_taken_for_noise_wholly() -> None:
    """A third of what is smaller than the declared noise stays, and what exceeds it by far."""
    freed = without_declared_noise(np.array([0.01, 1.0]), np.array([0.1, 0.1]))
    np.testing.assert_allclose(freed, [0.01 * 0.316, 0.981], rtol=5e-3)


@pytest.mark.parametrize(("count", "least", "most"), [(24, 0.93, 0.985), (10, 0.955, 0.995)])
def test_interval_of_few_noisy_points(count: int, least: float, most: float) -> None:
    """The whole noise is subtracted with 20 points or more, and less of it with fewer."""
    held = []
    for seed in range(100, 130):
        result = together(sensor(count, 0.08, seed))
        held.append(coverage(result.depth, result.std, TRUTH))
    assert least < np.mean(held) < most
