# SPDX-License-Identifier: Apache-2.0
"""The studies of MeSa and DepthMaster: a step of two variants each, their table, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")

from training import study_pretraining as study
from training.__main__ import main


@pytest.mark.parametrize(
    ("what", "names", "columns"),
    [
        ("mesa", ["masked", "from scratch"], ["rooms: RMSE (m)", "desks: AbsRel"]),
        ("depthmaster", ["sqrt-disparity", "two stages"], ["rooms: 1 - boundary F1"]),
    ],
)
def test_a_study_makes_a_table_and_repeats_nothing(
    what: str,
    names: list[str],
    columns: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for base in (study.MESA_BASE, study.MASTER_BASE):
        monkeypatch.setitem(base["loop"], "steps", 1)
        monkeypatch.setitem(base["loop"], "batch", 2)
    monkeypatch.setitem(study.MESA_TUNE, "loop.steps", 1)
    second = next(v.settings for v in study.MASTER if v.name == "two stages")
    monkeypatch.setitem(second, "loop.steps", 1)
    widths = {"unet_widths": [8, 8], "vae_widths": [8, 8]}
    monkeypatch.setitem(study.MASTER_BASE, "diffusion", widths)
    words = ["study", what, "--out", str(tmp_path), "--rooms", "1", "--pictures", "3", "--only"]
    assert main([*words, *names]) == 0
    found = (tmp_path / what / "table.md").read_text()
    assert all(column in found for column in columns)
    assert [line.split(" | ")[0].strip("| ") for line in found.splitlines()[2:]] == names
    runs = sorted(path.stat().st_mtime_ns for path in (tmp_path / what / "runs").iterdir())
    assert main([*words, *names]) == 0
    assert runs == sorted(path.stat().st_mtime_ns for path in (tmp_path / what / "runs").iterdir())
    assert found.strip() in capsys.readouterr().out
