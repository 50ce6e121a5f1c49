# SPDX-License-Identifier: Apache-2.0
"""Means over images and sources, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from training.evaluation import score, statistics


def test_means_are_over_frames_then_over_sources() -> None:
    rows = [
        score.Row("a", "x", "1", 0.1, 1.0),
        score.Row("a", "x", "2", 0.3, 0.0),
        score.Row("a", "y", "3", 0.6, 0.5),
    ]
    assert statistics.mean(rows, "a", "x") == pytest.approx((0.2, 0.5))
    assert statistics.mean(rows, "a") == pytest.approx((0.4, 0.5))
    pooled = statistics.bootstrap(statistics.gather(rows, ["a"], "abs_rel"), pooled=True)
    assert pooled.value == pytest.approx(1 / 3)
    assert math.isnan(statistics.mean(rows, "b")[0])


def test_the_interval_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.2, (400, 1))
    interval = statistics.bootstrap({"x": values}, pooled=True)
    half = 1.96 * values.std() / 20
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )
    assert interval == statistics.bootstrap({"x": values}, pooled=True)


def test_a_comparison_is_paired() -> None:
    """b is always 10 % above a: their ratio has no spread, although both means have."""
    a = np.random.default_rng(1).uniform(0.1, 0.9, (30, 1))
    both = {"x": np.concatenate([a, 1.1 * a], axis=1)}
    interval = statistics.bootstrap(both, statistics.ratio, pooled=True)
    assert (interval.low, interval.value, interval.high) == pytest.approx((1 / 1.1,) * 3)
    alone = statistics.bootstrap(both, pooled=True)
    assert alone.high - alone.low > 0.1


def test_sources_that_differ_widen_the_interval_by_source() -> None:
    rng = np.random.default_rng(2)
    values = {str(k): k / 10 + rng.normal(0, 0.01, (20, 1)) for k in range(5)}
    by_frame, by_source = (statistics.bootstrap(values, by=by) for by in ("frame", "source"))
    assert by_frame.value == by_source.value == pytest.approx(0.2, abs=0.01)
    # Means of five draws of 0, .1, .2, .3, .4: standard deviation .1414 / sqrt 5.
    assert by_source.high - by_source.low == pytest.approx(2 * 1.96 * 0.0632, rel=0.1)
    assert by_frame.high - by_frame.low < 0.01
    with pytest.raises(ValueError, match="by frame or by source"):
        statistics.bootstrap(values, by="room")


def test_only_frames_that_all_methods_have_are_compared() -> None:
    rows = [
        score.Row("a", "x", "1", 0.1, 1.0),
        score.Row("b", "x", "1", 0.2, 1.0),
        score.Row("a", "x", "2", 0.9, 1.0),
        score.Row("b", "x", "2", math.nan, 1.0),
    ]
    assert statistics.gather(rows, ["a", "b"], "abs_rel")["x"].tolist() == [[0.1, 0.2]]


def test_an_interval_of_nothing_to_draw_says_so() -> None:
    one_a_style = {
        name: np.array([[value]]) for name, value in (("a", 0.1), ("b", 0.4), ("c", 0.2))
    }
    assert str(statistics.bootstrap(one_a_style)).endswith("[too few]")
    assert str(statistics.bootstrap({"a": np.array([[0.1]])}, by="source")).endswith("[too few]")
    pooled = statistics.bootstrap(one_a_style, pooled=True)
    assert pooled.low < pooled.value < pooled.high, "drawn from all three together"


def test_runs_and_scenes_are_drawn_together() -> None:
    """With five runs that differ by 8 % the interval is Student's, not that of the scenes."""
    rng = np.random.default_rng(3)
    scenes = rng.uniform(0.9, 1.1, 60)
    groups = [str(k // 3) for k in range(60)]
    factors = np.array([0.9, 1.1, 0.95, 1.05, 1.0])
    first, other = np.tile(scenes, (5, 1)), 0.8 * factors[:, None] * scenes
    interval = statistics.change_of_runs(first, other, groups)
    assert interval.value == pytest.approx(-0.2)
    half = 2.776 * 0.8 * factors.std(ddof=1) / math.sqrt(5)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.15)
    alone = statistics.change_of_runs(first[:1], other[4:], groups)
    assert (alone.low, alone.high) == pytest.approx((-0.2, -0.2)), "paired by scene"
    two = statistics.change_of_runs(first[:2], other[:2], groups)
    assert two.high - two.low > 1.0, "two runs that differ by a fifth say next to nothing"


def test_what_varies_with_the_seed_of_both_rows_cancels() -> None:
    base = np.random.default_rng(4).uniform(0.1, 0.3, (5, 30))
    groups = [str(k) for k in range(30)]
    paired = statistics.change_of_runs(base, 1.1 * base, groups)
    assert (paired.low, paired.high) == pytest.approx((0.1, 0.1))
    apart = statistics.change_of_runs(base, 1.1 * base, groups, paired=False)
    assert apart.high - apart.low > 0.01
    with pytest.raises(ValueError, match="2 and 5 seeds"):
        statistics.change_of_runs(base[:2], base, groups)
    floor = statistics.change_of_runs(base, np.full((1, 30), 0.4), groups)
    assert floor.low < 0.4 / base.mean() - 1 < floor.high, "one run beside each of the others"


def test_scenes_weigh_alike_or_by_their_images() -> None:
    first = np.array([[1.0, 1.0, 1.0, 1.0]])
    other = np.array([[2.0, 2.0, 2.0, math.nan]])
    groups = ["a", "a", "b", "b"]
    other[0, 2] = 1.0
    assert statistics.change_of_runs(first, other, groups).value == pytest.approx(2 / 3)
    assert statistics.change_of_runs(first, other, groups, pooled=False).value == pytest.approx(0.5)
    single = statistics.change_of_runs(first, other, ["a"] * 4)
    assert single.value == pytest.approx(2 / 3) and math.isnan(single.low)
