# SPDX-License-Identifier: Apache-2.0
"""The study of distillation: its tables by hand, and at toy scale through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from training.__main__ import main
from training.data.samples import Sample
from training.studies import distill as study


def test_every_published_pair_is_a_claim_about_rows_of_the_study() -> None:
    names = {variant.name for variant in study.VARIANTS}
    assert {name for _, better, worse, *_ in study.PUBLISHED for name in (better, worse)} <= names
    assert all(a < b for _, _, _, *sets in study.PUBLISHED for a, b in zip(*sets, strict=True))
    assert study.DESIGN.claims[0].note == "published -10.9%, -9.7%, table 3"
    assert {number for number, *_ in study.PUBLISHED} == {1, 2, 3, 4}


def test_what_cannot_be_studied_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in ((["--only", "hybrid"], "No row is called 'hybrid': there are both"),
                        (["--images", "3"], "--images 3 is too few")):  # fmt: skip
        few = ["study", "distill", "--out", str(tmp_path), "--rooms", "1", "--images", "9"]
        assert main([*few, *words]) == 1
        assert capsys.readouterr().err.startswith(message)


def test_the_assistant_answers_from_0_to_1(tmp_path: Path) -> None:
    primary = study.DistillStudy(tmp_path, 9, 2).primary
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    maps = study.UnitRangeTeacher(primary)(images)
    for scaled, plain in zip(maps, primary(images), strict=True):
        assert (float(scaled.min()), float(scaled.max())) == pytest.approx((0, 1))
        assert bool((scaled.flatten().argsort() == plain.flatten().argsort()).all())
    assert study.UnitRangeTeacher(primary).revision != primary.revision


def test_a_teacher_that_sees_more_in_a_part_is_better_there(tmp_path: Path) -> None:
    """A teacher that outputs brightness: in its map of the whole view small things are blurred."""

    class Bright:
        name, revision, kind = "bright", "1", "disparity_affine_invariant"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=1, keepdim=True)

    rng = np.random.default_rng(0)
    fine = rng.uniform(0.2, 1, (96, 144)).astype(np.float32)
    image = np.repeat((255 * fine).round().astype(np.uint8)[..., None], 3, axis=2)
    errors = study.part_errors(Bright(), [Sample("a", image, 1 / fine, source="room")])
    assert errors[study.ALONE][0] < 0.02 < 0.2 < errors[study.CUT][0]


def test_the_study_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        study.AGREED,
        f"{study.BASE_ROW}{study.WIDER}",
        "taught by the truth",
        "start",
        "plane",
    ]
    command = ["study", "distill", "--out", str(tmp_path), "--steps", "1", "--images", "9"]
    command += ["--rooms", "1", "--only", *names, study.ALONE, study.CUT]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "'taught by the truth' is at most 0.95 of 'start'" in printed
    assert f"{study.ALONE!r} is at most 0.85 of {study.CUT!r}" in printed
    folder = tmp_path / "distill" / "9-1"
    assert (folder / "table.md").read_text() == printed
    runs = sorted(folder.rglob("about.json"))
    folders = {path.relative_to(folder / "runs").parts[0] for path in runs}
    assert {"start", "start-wider", "assistant", "taught-by-the-truth-1"} < folders
    before = [path.stat().st_mtime_ns for path in runs]
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    assert [path.stat().st_mtime_ns for path in runs] == before
