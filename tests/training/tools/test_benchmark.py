# SPDX-License-Identifier: Apache-2.0
"""The training loop compared with the shortest loop of PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from depth_node import config
from tests.helpers import REPO
from tests.helpers.toy import Toy, settings, train
from training.__main__ import main
from training.tools import benchmark


def test_the_rival_of_the_benchmark_learns_the_same(tmp_path: Path) -> None:
    """Without the features that only the loop has (schedule, groups) both get the same weights."""
    cfg = settings("loop.schedule=constant", "loop.warmup=0", "loop.weight_decay=0")
    bare = benchmark.Bare(Toy(cfg), cfg.loop)
    bare.steps(8)
    ours = train(cfg, tmp_path).model.state_dict()
    for name, value in bare.model.state_dict().items():
        torch.testing.assert_close(ours[name], value)


def test_the_benchmark_takes_turns() -> None:
    cfg = settings("loop.steps=20")
    made: list[Toy] = []

    def build() -> Toy:
        made.append(Toy(cfg))
        return made[-1]

    ours, theirs = benchmark.compare(build, cfg.loop, config.to_dict(cfg), steps=6, turn=2)
    assert len(ours) == len(theirs) == 3
    assert min(ours + theirs) > 0
    assert len(made) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--turn", "0"], "--turn is 0"),
        (["--steps", "0"], "--steps 0"),
        (["loop.steps=5"], "loop.steps is 5, in which no turn of 2 steps can be timed"),
    ],
)
def test_a_benchmark_without_a_turn_is_refused(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file = REPO / "training" / "configs" / "debug.yaml"
    words = ["benchmark", "supervised", "--config", str(config_file)]
    assert main([*words, *more]) == 1
    assert message in capsys.readouterr().err
