# SPDX-License-Identifier: Apache-2.0
"""The common parts of the studies that train."""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from training.checkpoints import TrainingError
from training.studies import common, proof


def test_scores_are_computed_once(tmp_path: Path) -> None:
    calls = []

    def make() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"rooms": np.array([[0.1, 0.2]])}

    path = tmp_path / "scores" / "a.json"
    assert common.scored_once(path, make) == common.scored_once(path, make)
    assert common.scored_once(path, make) == {"rooms": [[0.1, 0.2]]} and len(calls) == 1


def a_study(folder: Path, made: list[str]) -> common.Study:
    """Two rows and a floor, of errors that the row's name gives."""
    level = {"good": 0.2, "bad": 0.9, "constant": 1.0}

    def make(name: str, seed: int) -> dict[str, np.ndarray]:
        made.append(f"{name} {seed}")
        return {"rooms": np.full((6, 1), level[name])}

    error = proof.Measure("rooms", "AbsRel")
    design = proof.Design(
        (proof.Claim("good", "bad", 0.0, error),), 2, ("constant",), (), (),
        (proof.Gate("good", "constant", error, most=0.5),),
    )  # fmt: skip
    parts = {"rooms": proof.Part(list("aaabbb"))}
    return common.Study(folder, list(level), ["AbsRel"], parts, make, design, ["constant"])


def test_a_study_runs_what_is_missing_and_reports(tmp_path: Path) -> None:
    made: list[str] = []
    study = a_study(tmp_path, made)
    args = argparse.Namespace(seeds=[1], rooms=2, only=["good"], jobs=1)
    common.run_study(study, args, Console(quiet=True))
    assert made == ["good 1"]
    report = (tmp_path / "table.md").read_text()
    assert "not run, so not passed" in report and "No table" in report
    args = argparse.Namespace(seeds=[1, 2], rooms=2, only=[], jobs=1)
    common.run_study(study, args, Console(quiet=True))
    assert made == ["good 1", "bad 1", "constant 1", "good 2", "bad 2"]
    report = (tmp_path / "table.md").read_text()
    assert "it holds" in report and "| good | 2 | 0.2000 (0.2000 0.2000)" in report
    args.only = ["better"]
    with pytest.raises(TrainingError, match="No row is called 'better': there are good; bad"):
        common.run_study(study, args, Console())


def test_what_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    made: list[str] = []
    study = a_study(tmp_path, made)
    theirs = tmp_path / "scores" / "good-1-2.json"
    args = argparse.Namespace(seeds=[1], rooms=2, only=[], jobs=1)
    with common.locked(theirs) as mine:
        assert mine
        with common.locked(theirs, wait=False) as again:
            assert not again
        other = threading.Thread(target=common.run_study, args=(study, args, Console(quiet=True)))
        other.start()
        while len(made) < 2:
            time.sleep(0.01)
        assert made == ["bad 1", "constant 1"], "first what nobody has begun"
        theirs.write_text(json.dumps({"rooms": [[0.3]] * 6}))
    other.join()
    assert len(made) == 2
    assert "| good | 1 | 0.3000" in (tmp_path / "table.md").read_text()
