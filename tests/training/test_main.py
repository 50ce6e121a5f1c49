# SPDX-License-Identifier: Apache-2.0
"""Commands end with one sentence; a recipe prints its settings."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from tests.helpers.data_sets import cut, frame, noise
from training.__main__ import main
from training.recipes import RECIPES, find

DEBUG = REPO / "training" / "configs" / "debug.yaml"


def run(folder: Path, out: Path, *more: str) -> int:
    """The recipe `supervised` on RGB-D frames, by the command line."""
    settings = ["source=images", f"images.folder={folder}", "loop.steps=3", *more]
    return main(["supervised", "--config", str(DEBUG), "--run", str(out), *settings])


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_the_command_ends_with_the_sentence_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    cut(frame(tmp_path / "a" / "0001") / "depth.png")
    assert run(tmp_path / "a", tmp_path / "run", f"loop.workers={workers}") == 1
    error = capfd.readouterr().err
    assert "depth.png cannot be decoded (a PNG that is cut off): the file is damaged" in error
    assert "Traceback" not in error


def test_pictures_without_depth_cannot_supervise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), noise())
    assert run(tmp_path, tmp_path / "run", "images.kind=images") == 1
    assert "a.png has no depth" in capsys.readouterr().err


def test_foreign_names_are_one_line_without_control_letters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(frame(tmp_path / "frames" / "a\x1b[31m\nb") / "depth.png")
    assert run(tmp_path / "frames", tmp_path / "run", "loop.workers=0") == 1
    error = capsys.readouterr().err
    assert "a\\x1b[31m" in error and "\x1b" not in error
    assert len(error.splitlines()) == 1


def test_an_unknown_recipe_or_setting_is_named_with_its_neighbour(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="did you mean 'supervised'"):
        find("supervise")
    assert main(["supervised", "--config", str(DEBUG), "--dry-run", "loop.bach=3"]) == 1
    assert "did you mean 'loop.batch'?" in capsys.readouterr().err
    assert main(["supervised", "--config", "absent.yaml", "--dry-run"]) == 1
    assert "cannot read the config file absent.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["supervised", "--config", str(DEBUG), "--dryrun"])


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_prints_its_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = REPO / "training" / "configs" / f"{name}_debug.yaml"
    path = own if own.is_file() else DEBUG
    assert main([name, "--config", str(path), "loop.batch=8", "--dry-run", "loop.steps=9"]) == 0
    printed = capsys.readouterr().out
    assert "batch: 8" in printed and "steps: 9" in printed
