# SPDX-License-Identifier: Apache-2.0
"""Claims, gates and tables of studies, by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from training.studies.proof import Claim, Design, Gate, Judge, Measure, Part, report, table

ERROR = Measure("rooms", "AbsRel")
DESIGN = Design(
    claims=(Claim("new", "base", -0.1, ERROR, "published -17.1%"),),
    seeds=3,
    floor=("constant",),
    control=(),
    ceiling=(),
    gates=(Gate("base", "constant", ERROR, most=0.6),),
)
ROWS = ("base", "new", "constant")


def judge(base: float, new: float, seeds: int = 3) -> Judge:
    """Rows of 20 rooms with three images, errors about those numbers; the constant has 1."""
    rng = np.random.default_rng(0)
    rooms = rng.uniform(0.9, 1.1, (60, 1))
    noise = rng.uniform(0.99, 1.01, (seeds, 2))
    results = {
        "base": {k: {"rooms": base * noise[k, 0] * rooms} for k in range(seeds)},
        "new": {k: {"rooms": new * noise[k, 1] * rooms} for k in range(seeds)},
        "constant": {0: {"rooms": rooms}},
    }
    part = Part([str(k // 3) for k in range(60)])
    return Judge(results, {"rooms": part}, ("AbsRel",), ("constant",))


def test_a_table_is_shown_where_its_networks_passed_their_gate() -> None:
    text = report(judge(0.5, 0.4), DESIGN, ROWS)
    ratio = re.search(r"'base' is at most 0.6 of 'constant': (0.\d+) .* passed", text)
    assert ratio and float(ratio[1]) == pytest.approx(0.5, abs=0.01)
    assert "| base | 3 | 0.4" in text and "| constant |  | 1.0" in text
    claim = text.splitlines()[0]
    assert claim.startswith("- primary claim, 3 seeds: AbsRel on rooms of 'new' is changed by -10%")
    assert "published -17.1%" in claim and claim.endswith("it holds")


def test_a_table_of_networks_that_learnt_nothing_is_not_shown() -> None:
    text = report(judge(0.9, 0.4), DESIGN, ROWS)
    assert "FAILED" in text and "No table" in text and "| base" not in text
    unknown = replace(DESIGN, gates=(Gate("base", "plane", ERROR, most=0.6),))
    text = report(judge(0.5, 0.4), unknown, (*ROWS, "plane"))
    assert "not run, so not passed" in text and "No table" in text


def test_a_gate_may_ask_for_more_instead_of_less() -> None:
    edges = replace(DESIGN, gates=(Gate("new", "base", ERROR, least=0.5),))
    assert "No table" in report(judge(0.5, 0.2), edges, ROWS)
    assert "No table" not in report(judge(0.5, 0.3), edges, ROWS)


@pytest.mark.parametrize(
    ("new", "word"), [(0.4, "it holds"), (0.45, "undecided"), (0.5, "it does not hold")]
)
def test_a_claim_holds_where_the_whole_interval_does(new: float, word: str) -> None:
    claim = report(judge(0.5, new), DESIGN, ROWS).splitlines()[0]
    assert claim.endswith(word)


def test_too_few_seeds_give_no_verdict() -> None:
    text = report(judge(0.5, 0.3, seeds=2), DESIGN, ROWS)
    assert text.splitlines()[0].endswith("no verdict before all seeds")
    assert "incomplete: 2 runs of base, new are missing" in text


def test_a_table_compares_the_same_seeds_and_leaves_what_has_none_to_stand_alone() -> None:
    base = np.random.default_rng(0).uniform(0.1, 0.9, (30, 2))
    results = {
        "first": {1: {"rooms": base}, 2: {"rooms": 2 * base}},
        "second": {1: {"rooms": 0.5 * base}},
        "reference": {1: {"rooms": base}},
    }
    parts = {"rooms": Part([str(k) for k in range(30)])}
    text = table(Judge(results, parts, ["AbsRel", "RMSE"], ["reference"]))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[3][:2] == ["second", "1"]
    assert lines[3][3] == "-50.0% [-50.0%, -50.0%]", "against seed 1 of the first row alone"
    assert lines[4][1] == "" and lines[4][3].startswith("-33.3% ["), "against both of its runs"
    assert lines[2][3] == "" and lines[2][2].endswith(")"), "each run is printed"
