# SPDX-License-Identifier: Apache-2.0
"""The study of normalisations: the effect of a teacher's wrong region on the rest of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from training.__main__ import main
from training.studies import common
from training.studies import normalisations as study


def test_the_teacher_is_wrong_in_one_rectangle_of_that_share() -> None:
    depth = torch.rand(4, 1, 64, 96, generator=torch.Generator().manual_seed(0)) + 1
    rng = np.random.default_rng(0)
    right, known, none = study.teacher_map(depth, 0.0, rng)
    assert bool(known.all()) and not bool(none.any())
    for share in study.SHARES[1:]:
        teacher, _, wrong = study.teacher_map(depth, share, rng)
        assert wrong.float().mean((1, 2, 3)).tolist() == pytest.approx([share] * 4, rel=0.05)
        assert bool((teacher == right)[~wrong].all()) and bool((teacher != right)[wrong].all())
    assert float(right.median()) == pytest.approx(0, abs=0.1), "median and deviation taken out"


def test_what_is_wrong_in_a_part_pulls_a_perfect_student_by_the_normalisation(
    tmp_path: Path,
) -> None:
    judge = common.samples(common.pool(tmp_path, "judge", 6, "mixed", 1, (64, 96)))
    pulls = {norm: study.teacher_errors(judge, norm, 0.3, 0).mean() for norm in study.NORMS}
    assert pulls["none"] == 0 < 0.02 < min(pulls["global"], pulls["hybrid"], pulls["local"])
    less = study.teacher_errors(judge, "global", 0.1, 0).mean()
    assert less < pulls["global"]


def test_the_study_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [study.name_of("hybrid", 0.3), study.name_of("global", 0.0), "start", "plane"]
    command = ["study", "normalisations", "--out", str(tmp_path), "--images", "3", "--rooms", "1"]
    command += ["--steps", "1", "--only", *names]
    assert main([*command, "--jobs", "2"]) == 0
    printed = capsys.readouterr().out
    assert "'global, 0% wrong' is at most 0.95 of 'start'" in printed and "No table" in printed
    assert "| 30% | 0.000 -100.0% [too few] |" in printed, "the targets need no network"
    runs = sorted((tmp_path / "normalisations").rglob("about.json"))
    assert len(runs) == 3, "the start and two students"
    before = [path.stat().st_mtime_ns for path in runs]
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    assert [path.stat().st_mtime_ns for path in runs] == before
