# SPDX-License-Identifier: Apache-2.0
"""The speed benchmark of the field: its problem, and the ways to fit it."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.benchmarks.field_speed import FIELD, SpeedProblem, threads_table
from depth_node.benchmarks.speed import fit_problem


@pytest.mark.slow
def test_the_problem_has_its_size_and_its_points() -> None:
    prediction, _, labels = fit_problem()
    problem = SpeedProblem.of(prediction, labels, 60, 80, 50)
    assert problem.prediction.values.shape == problem.labels.shape == (60, 80)
    assert problem.image.shape == (60, 80, 3) and len(problem.points) == 50
    assert np.isfinite(problem.fit(FIELD).depth).all()


@pytest.mark.slow
def test_every_way_to_fit_is_timed() -> None:
    prediction, _, labels = fit_problem()
    medians = SpeedProblem.of(prediction, labels, 60, 80, 50).medians(1)
    assert {"field", "with memory", "ssf", "memory floor", "NumPy form"} <= set(medians)
    assert all(value >= 0 for value in medians.values())


@pytest.mark.slow
def test_threads_are_timed_beside_frames_that_share_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr("depth_node.benchmarks.field_speed.THREAD_PROBLEMS", [(120, 160, 500)])
    prediction, _, labels = fit_problem()
    table = threads_table(prediction, labels, 2, threads=2)
    (row,) = table.rows
    assert len(row) == len(table.head)
    assert row[:2] == ["160x120", "500"]
    assert float(row[-1]) > 0


def test_faults_of_a_fit_are_counted() -> None:
    prediction, _, labels = fit_problem()
    problem = SpeedProblem.of(prediction, labels, 60, 80, 50)
    assert 0 <= problem.page_faults() < 1000
