# SPDX-License-Identifier: Apache-2.0
"""An old name of a setting is refused with its new one, and read in old checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")

from depth_node import config
from training import checkpoints, recipes, renamed_settings
from training.__main__ import main
from training.recipes import westar

CONFIGS = REPO / "training" / "configs"


def test_every_new_name_is_a_setting_and_no_old_one_is() -> None:
    known = [set(config.flatten(recipes.find(name).Config())) for name in recipes.RECIPES]
    for old, new in renamed_settings.RENAMED.items():
        assert any(new in names for names in known), new
        assert not any(old in names for names in known), old


def test_an_old_name_is_refused_with_its_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["westar", "--config", str(CONFIGS / "westar_debug.yaml"), "--dry-run"]
    assert main([*command, "tune.what=full"]) == 1
    assert "the setting 'tune.what' was renamed: write 'tune.mode'" in capsys.readouterr().err
    path = tmp_path / "old.yaml"
    path.write_text("loop:\n  panels_every: 2\n")
    assert main(["westar", "--config", str(path), "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert str(path) in error and "write 'loop.images_every'" in error


def test_other_errors_are_those_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["westar", "--config", str(CONFIGS / "westar_debug.yaml"), "--dry-run"]
    assert main([*command, "tune.rnk=3"]) == 1
    assert "did you mean 'tune.rank'?" in capsys.readouterr().err


def test_a_checkpoint_of_before_is_read_with_the_new_names(tmp_path: Path) -> None:
    old = {"tune": {"what": "full", "share": 0.5, "rank": 3}, "loop": {"seed": 1}}
    tensors = {"averaged": {"w": torch.ones(2)}}
    checkpoints.write(tmp_path, 1, {"recipe": "westar", "settings": old}, tensors, {})
    settings = checkpoints.read(tmp_path)["settings"]
    assert settings == {
        "tune": {"rank": 3, "mode": "full", "merge_scale": 0.5},
        "loop": {"seed": 1},
    }
    tune = config.build(westar.Config, settings).tune
    assert (tune.mode, tune.merge_scale, tune.rank) == ("full", 0.5, 3)
