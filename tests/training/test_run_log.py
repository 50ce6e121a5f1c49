# SPDX-License-Identifier: Apache-2.0
"""The log of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from rich.console import Console
from torch import nn

from depth_node import config
from tests.helpers.toy import Config, Toy, nearly_full_disk, rows, settings, train
from training import loop
from training.recipe import Batch
from training.run_log import RunLog


def test_a_log_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The length of environment.json depends on the working tree.
    monkeypatch.setattr(loop, "environment", dict)
    cfg = settings("loop.steps=40", "loop.checkpoint_every=100")
    sentence = r"The run folder .* cannot be written .*make room"
    with nearly_full_disk(1500), pytest.raises(loop.TrainingError, match=sentence):
        train(cfg, tmp_path)
    assert (tmp_path / "log.jsonl").stat().st_size > 1000


def test_a_full_disk_leaves_the_log_of_a_resumed_run(tmp_path: Path) -> None:
    """Rows that a crash left behind are removed without the others being at risk."""
    path = tmp_path / "log.jsonl"
    text = "".join(f'{{"step": {k}, "loss": 0.5}}\n' for k in range(1, 101))
    path.write_text(text + '{"step": 101, "lo')

    def resumed() -> RunLog:
        return RunLog(tmp_path, 100, 200, Console(quiet=True), tensorboard=False)

    with nearly_full_disk(1000), pytest.raises(OSError, match="File too large"):
        resumed()
    assert path.read_text().startswith(text)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with resumed():
        assert path.read_text() == text


def test_logs_and_pictures(tmp_path: Path) -> None:
    class Shown(Toy):
        def batch_images(self, model: nn.Module, batch: Batch, averaged: Any) -> dict[str, Any]:
            assert not model.training and not torch.is_grad_enabled()
            image = (batch["image"][0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            return {"input": image}

    cfg = settings("loop.tensorboard=true", "loop.images_every=4")
    train(cfg, tmp_path, Shown(cfg))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    np.testing.assert_allclose(logged, rows(tmp_path, "step", "loss"), rtol=1e-5)
    assert [event.step for event in events.Images("input")] == [4, 8]
    assert {p.name for p in (tmp_path / "images").iterdir()} == {
        "0000004_input.png",
        "0000008_input.png",
    }
    assert {"images_per_s", "rate", "memory_mb"} <= set(
        json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    )
    about = json.loads((tmp_path / "environment.json").read_text())
    assert about["packages"]["torch"] == torch.__version__.partition("+")[0] or about["packages"]
    assert config.load(Config, tmp_path / "config.yaml") == cfg


def test_the_terms_of_the_loss_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terms(Toy):
        def loss(self, model: nn.Module, batch: Batch, averaged: Any) -> dict[str, torch.Tensor]:
            one = super().loss(model, batch, averaged)["loss"]
            return {"loss": one, "level_term": one, "share": torch.tensor(0.25)}

        def shown(self) -> dict[str, str]:
            return {"share": "share of all"}

    cfg = settings("loop.log_every=4")
    train(cfg, tmp_path, Terms(cfg), console=Console(force_terminal=False, width=200))
    last = capsys.readouterr().out.splitlines()[1]
    value = rows(tmp_path, "loss")[-1][0]
    begin = f"step 8/8  loss {value:.4g} (level {value:.3g})  share of all 0.25  "
    assert last.startswith(begin) and last.endswith(" images/s")


def test_output_off_a_terminal_is_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(settings("loop.log_every=4"), tmp_path, console=Console(force_terminal=False))
    assert "step 8/8" in capsys.readouterr().out
