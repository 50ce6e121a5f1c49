# SPDX-License-Identifier: Apache-2.0
"""Comparisons of variants, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from training.studies import common


def test_a_variant_is_compared_picture_by_picture() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.9, 300)
    change = common.compared(base, 0.8 * base)
    assert (change.value, change.low, change.high) == pytest.approx((-0.2, -0.2, -0.2))
    assert common.percent(change) == "-20.0% [-20.0%, -20.0%]"
    change = common.compared(base, base + rng.normal(0, 0.05, 300))
    assert change.low < 0 < change.high
    assert change.low < change.value < change.high


def test_scores_are_computed_once(tmp_path: Path) -> None:
    calls = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"rooms": np.array([[0.1, 0.2]])}

    path = tmp_path / "scores" / "a.json"
    assert common.scored_once(path, make) == common.scored_once(path, make)
    assert common.scored_once(path, make) == {"rooms": [[0.1, 0.2]]} and len(calls) == 1


def test_a_table_compares_the_same_seeds_and_leaves_unseeded_rows_alone() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.9, (30, 2))
    results = {
        "first": {1: {"rooms": base}, 2: {"rooms": 2 * base}},
        "second": {1: {"rooms": 0.5 * base}},
        "reference": {1: {"rooms": base}},
    }
    table = common.table(results, ["rooms"], ["AbsRel", "RMSE"], ["reference"])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[3][:2] == ["second", "1"]
    assert lines[3][3] == "-50.0% [-50.0%, -50.0%]", "against seed 1 of the first row alone"
    assert lines[4][1] == lines[4][3] == "" and lines[2][3] == ""
