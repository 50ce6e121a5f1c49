# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that do not fit, are damaged or carry code are refused."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from torch import nn

from depth_node import config
from tests.helpers.toy import Toy, settings, train
from training import checkpoints, loop


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    cfg = settings("loop.steps=2")
    train(cfg, tmp_path / "run")
    with pytest.raises(loop.TrainingError, match=r"loop\.learning_rate \(was 0\.01, is 0\.1\)"):
        train(settings("loop.learning_rate=0.1"), tmp_path / "run")
    assert train(settings("loop.steps=3"), tmp_path / "run").step == 3

    class Other(Toy):
        name = "other"

    with pytest.raises(loop.TrainingError, match="recipe toy, not other"):
        train(settings("loop.steps=3"), tmp_path / "run", Other(cfg))
    wider = settings("width=9")
    with pytest.raises(loop.TrainingError, match=r"of another network.*there and.*here"):
        loop.restore(loop.start(Toy(wider), wider.loop), tmp_path / "run", config.to_dict(cfg))
    learnt = checkpoints.weights(checkpoints.find(tmp_path / "run") / "model.safetensors")
    with pytest.raises(loop.TrainingError, match="2 tensors are missing, first 'weight'; 4 are"):
        checkpoints.load(nn.Linear(2, 2), learnt, "run")


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(loop.TrainingError, match="no checkpoint in"):
        checkpoints.read(tmp_path / "absent")
    (tmp_path / "old.pt").write_bytes(b"PK")
    with pytest.raises(loop.TrainingError, match="no checkpoint of this loop but a file"):
        checkpoints.read(tmp_path / "old.pt")
    train(settings("loop.steps=2"), tmp_path / "run")
    folder = checkpoints.find(tmp_path / "run")
    state = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(state[: len(state) // 2])
    with pytest.raises(loop.TrainingError, match="cannot be read"):
        train(settings("loop.steps=3"), tmp_path / "run")
    os.truncate(folder / "averaged.safetensors", 100)
    with pytest.raises(loop.TrainingError, match="cannot be read"):
        checkpoints.read(tmp_path / "run")
    (folder / "about.json").write_text('{"format": 1}')
    with pytest.raises(loop.TrainingError, match="no checkpoint of this version"):
        checkpoints.read(tmp_path / "run")


class Dangerous:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


def test_pickled_weights_run_nothing_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.ones(2), "hook": Dangerous()}, tmp_path / "bad.pt")
    with pytest.raises(loop.TrainingError, match=r"any code: convert it to \.safetensors, or set"):
        checkpoints.weights(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(loop.TrainingError, match="no table of tensors"):
        checkpoints.weights(tmp_path / "bad.pt", trust_pickle=True)
    assert (tmp_path / "ran").exists()
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "good.pt")
    assert set(checkpoints.weights(tmp_path / "good.pt")) == {"weight"}
    with pytest.raises(loop.TrainingError, match="no weights"):
        checkpoints.weights(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"optimiser": 1}, torch.ones(2), {"window": {"a": 1}}]
)
def test_a_state_of_another_shape_is_refused(tmp_path: Path, content: Any) -> None:
    train(settings("loop.steps=2"), tmp_path)
    path = checkpoints.find(tmp_path) / "state.pt"
    torch.save(content, path)
    with pytest.raises(loop.TrainingError, match="cannot be read"):
        train(settings("loop.steps=3"), tmp_path)


def test_an_optimiser_of_another_network_is_refused(tmp_path: Path) -> None:
    train(settings("loop.steps=2"), tmp_path)
    path = checkpoints.find(tmp_path) / "state.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "optimiser": {"state": {}, "param_groups": []}}, path)
    with pytest.raises(loop.TrainingError, match="optimiser's state does not fit"):
        train(settings("loop.steps=3"), tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 2, "settings": 3}', '{"format": 2}'])
def test_a_description_of_wrong_types_is_refused(tmp_path: Path, text: str) -> None:
    train(settings("loop.steps=2"), tmp_path)
    (checkpoints.find(tmp_path) / "about.json").write_text(text)
    with pytest.raises(loop.TrainingError, match="cannot be read"):
        checkpoints.read(tmp_path)


def test_a_disk_without_links_trains_resumes_and_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT, SMB and many volumes of containers refuse links; a file with a path replaces them."""
    whole = train(settings("loop.steps=8", "loop.schedule=constant"), tmp_path / "linked")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    run = tmp_path / "run"
    train(settings("loop.steps=4", "loop.schedule=constant"), run)
    assert (run / "last").is_file()
    resumed = train(settings("loop.steps=8", "loop.schedule=constant"), run)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    for name in ("last", "best"):
        assert checkpoints.read(run / name)["recipe"] == "toy"
        assert checkpoints.is_run(run / name) and checkpoints.is_run(run)
        assert set(checkpoints.starting_weights(run / name)) == set(whole.model.state_dict())
    assert checkpoints.read(run)["step"] == 8
    kept = {folder.name for folder in (run / "checkpoints").iterdir()}
    assert kept == {checkpoints.find(run / name).name for name in ("last", "best")}


def test_a_run_below_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of weights is: a shell leaves the ~ of `start=~/runs/mine` as it is."""
    train(settings("loop.steps=2"), tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoints.is_run(Path("~/run"))
    assert checkpoints.read(Path("~/run"))["step"] == 2
    assert checkpoints.starting_weights("~/run/last")


def test_a_file_called_last_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last").write_text("../secret")
    assert checkpoints.pointed(tmp_path / "run" / "last") == tmp_path / "run" / "last"


def test_a_run_copied_with_its_links_followed_goes_on(tmp_path: Path) -> None:
    train(settings("loop.steps=4"), tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=False)
    assert train(settings("loop.steps=6"), tmp_path / "copy").step == 6
    assert checkpoints.read(tmp_path / "copy")["step"] == 6


def test_a_run_copied_without_its_links_goes_on(tmp_path: Path) -> None:
    """rsync without -l and many cloud drives drop links: the checkpoints must not be deleted."""
    cfg = settings("loop.steps=6", "loop.schedule=constant", "loop.checkpoint_every=2")
    train(cfg, tmp_path / "whole")
    run = tmp_path / "run"
    train(cfg, run, stop=lambda step: step == 4)
    best = checkpoints.find(run / "best").name
    for name in ("last", "best"):
        (run / name).unlink()
    assert train(cfg, run, stop=lambda step: True).step == 4
    assert checkpoints.find(run / "best").name == best
    assert train(cfg, run).step == 6
    whole, parts = (checkpoints.read(path)["averaged"] for path in (tmp_path / "whole", run))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_crash_between_the_links_does_not_lose_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = settings("loop.steps=6", "loop.checkpoint_every=2")
    train(cfg, tmp_path / "whole")
    run, point = tmp_path / "run", checkpoints._point
    best = checkpoints.find(tmp_path / "whole" / "best").name
    linked: list[str] = []

    def crash(folder: Path, name: str, target: Path) -> None:
        if target.name == best and linked and linked[-1] == best:
            raise KeyboardInterrupt  # the process ends after the first of two links
        linked.append(target.name)
        point(folder, name, target)

    monkeypatch.setattr(checkpoints, "_point", crash)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, run)
    monkeypatch.undo()
    train(cfg, run)
    assert checkpoints.find(run / "best").name == best
