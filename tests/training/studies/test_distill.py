# SPDX-License-Identifier: Apache-2.0
"""The study of distillation: its tables by hand, and at toy scale through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from training.__main__ import main
from training.data.samples import Sample
from training.studies import distill as study


def seed_of(errors: list[list[float]]) -> dict[str, Any]:
    """Scores of one seed: AbsRel of the images of each source."""
    rows = [
        [f"s{k}", str(j), error, 2 * error, 0.5]
        for k, source in enumerate(errors)
        for j, error in enumerate(source)
    ]
    return {"rooms": rows, "frames": rows}


def test_seeds_are_averaged_first_and_sources_weigh_as_they_should() -> None:
    first = [seed_of([[0.1, 0.3], [0.2]])["rooms"], seed_of([[0.3, 0.1], [0.4]])["rooms"]]
    assert study.mean(first, 2, pooled=True) == pytest.approx((0.2 + 0.2 + 0.3) / 3)
    assert study.mean(first, 2, pooled=False) == pytest.approx((0.2 + 0.3) / 2)
    other = [seed_of([[0.1, 0.1], [0.15]])["rooms"]]
    pooled = study.compared(first, other, pooled=True)
    assert pooled.value == pytest.approx((0.35 / 0.7) - 1)
    assert (pooled.low, pooled.high) == pytest.approx((-0.5, -0.5)), "half of it in every source"
    assert study.compared(first, other, pooled=False).value == pytest.approx(0.25 / 0.5 - 1)


def test_a_published_pair_is_confirmed_contradicted_or_open() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.3, (20, 3))
    results = {
        "both contexts, hybrid": [seed_of((0.9 * base).tolist())],
        "shared, hybrid": [seed_of(base.tolist())],
        "local-global, hybrid": [seed_of((0.95 * base).tolist())],
        "average of two": [seed_of((0.9 * base + rng.normal(0, 0.02, base.shape)).tolist())],
    }
    lines = study.orders(results, ["rooms"]).splitlines()[2:]
    verdicts = {tuple(line.split(" | ")[1:3]): line.rsplit(" ", 2)[1] for line in lines}
    assert verdicts == {
        ("both contexts, hybrid", "shared, hybrid"): "yes",
        ("both contexts, hybrid", "local-global, hybrid"): "yes",
        ("shared, hybrid", "local-global, hybrid"): "no",
        ("both contexts, hybrid", "average of two"): "open",
    }
    names = {variant.name for variant in study.VARIANTS}
    assert {name for _, better, worse, *_ in study.PUBLISHED for name in (better, worse)} <= names
    assert all(a < b for _, _, _, *sets in study.PUBLISHED for a, b in zip(*sets, strict=True))


def test_seeds_that_disagree_leave_a_pair_open() -> None:
    base = np.random.default_rng(0).uniform(0.1, 0.3, (20, 3))
    results = {
        "both contexts, hybrid": [seed_of((f * base).tolist()) for f in (0.8, 1.05)],
        "shared, hybrid": [seed_of(base.tolist()), seed_of(base.tolist())],
    }
    line = study.orders(results, ["rooms"]).splitlines()[-1]
    assert "-7.5% [-7.5%, -7.5%] open" in line


def test_what_cannot_be_studied_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in ((["--only", "hybrid"], "No variant is called 'hybrid': there are both"),
                        (["--images", "3"], "--images 3 is too few")):  # fmt: skip
        assert main(["study", "distill", "--out", str(tmp_path), *words]) == 1
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
    """One that answers the brightness it sees: cut from the whole, what is small is washed out."""

    class Bright:
        name, revision, kind = "bright", "1", "disparity_affine_invariant"

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=1, keepdim=True)

    rng = np.random.default_rng(0)
    fine = rng.uniform(0.2, 1, (96, 144)).astype(np.float32)
    image = np.repeat((255 * fine).round().astype(np.uint8)[..., None], 3, axis=2)
    errors = study.part_errors(Bright(), [Sample("a", image, 1 / fine, source="room")])
    assert errors["alone"][0][2] < 0.02 < 0.2 < errors["cut"][0][2]


def test_the_study_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [study.ALIKE, "taught by the truth"]
    command = ["study", "distill", "--out", str(tmp_path), "--steps", "1", "--images", "9"]
    command += ["--rooms", "1", "--only", *names]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for name in (*names, "start", "primary teacher", "assistant"):
        assert f"| {name} | 0." in printed
    folder = tmp_path / "distill" / "9-1"
    assert (folder / "table.md").read_text() == printed
    runs = sorted(folder.rglob("about.json"))
    folders = {path.relative_to(folder / "runs").parts[0] for path in runs}
    assert {"start", "assistant", "taught-by-the-truth-1"} < folders
    before = [path.stat().st_mtime_ns for path in runs]
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    assert [path.stat().st_mtime_ns for path in runs] == before
