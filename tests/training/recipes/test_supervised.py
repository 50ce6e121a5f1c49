# SPDX-License-Identifier: Apache-2.0
"""The recipe supervised: its losses, and students that start from smaller ones."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

import dataclasses
import json
import os
import shutil
import signal
from typing import Any

import numpy as np
from rich.console import Console

from depth_node import config
from tests.helpers import REPO
from tests.helpers.torch_networks import parameter_count
from training import loop
from training.__main__ import main
from training.checkpoints import TrainingError
from training.data.pool import open_pool
from training.data.samples import Sample
from training.models.networks import NetworkConfig, open_network
from training.models.unet import OFFSET, SmallUNet, StudentConfig
from training.recipe import Batch, BatchPart
from training.recipes import supervised

SMALL = StudentConfig(widths=(4, 6, 8, 8, 8), depths=(0, 1, 1, 1, 1), decoder=(8, 6, 6, 4))


def test_a_grown_student_begins_as_the_smaller_one() -> None:
    torch.manual_seed(0)
    small = SmallUNet(SMALL)
    small.train()(torch.randn(2, 3, 64, 96))
    large = SmallUNet(StudentConfig(SMALL.widths, (1, 1, 3, 2, 1), SMALL.decoder))
    large.load_state_dict(supervised.with_new_blocks(large, small.state_dict()))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(large.eval()(x), small.eval()(x))
    large.train()
    parameters = dict(large.named_parameters())
    scale = parameters["stages.2.2.body.1.1.weight"]
    (gradient,) = torch.autograd.grad(large(x).square().sum(), scale)
    assert float(gradient.abs().max()) > 0


def test_a_run_starts_from_a_smaller_student_and_refuses_another_one(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = tmp_path / "small.safetensors"
    torch.manual_seed(0)
    save_file(SmallUNet(SMALL).state_dict(), str(weights))
    grown = StudentConfig(SMALL.widths, (0, 1, 2, 1, 1), SMALL.decoder)
    cfg = supervised.Config(student=grown, start=str(weights))
    model = supervised.Supervised(cfg, []).model()
    assert len(model.stages[2]) == 2
    wider = StudentConfig((4, 6, 8, 8, 16), SMALL.depths, SMALL.decoder)
    cfg = supervised.Config(student=wider, start=str(weights))
    with pytest.raises(TrainingError, match="another network"):
        supervised.Supervised(cfg, []).model()


DEBUG = REPO / "training" / "configs" / "debug.yaml"


@pytest.fixture(scope="module")
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the pool that every test of this file reads."""
    folder = tmp_path_factory.mktemp("pool")
    open_pool(settings(folder).pool)
    return folder


def settings(folder: Path, *overrides: str) -> supervised.Config:
    return config.load(supervised.Config, DEBUG, [f"pool.folder={folder}", *overrides])


def train(cfg: supervised.Config, folder: Path, **more: Any) -> loop.State:
    recipe = supervised.build(cfg, Console())
    return loop.run(recipe, cfg.loop, folder, config.to_dict(cfg), **more)


def weights(state: loop.State) -> dict[str, torch.Tensor]:
    models = {**state.model.state_dict(prefix="model."), **state.averaged.state_dict(prefix="ema.")}
    return {name: tensor.clone() for name, tensor in models.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_gives_the_same_weights(pool_folder: Path, tmp_path: Path) -> None:
    cfg = settings(pool_folder, "loop.steps=3")
    first = train(cfg, tmp_path / "a")
    again = train(cfg, tmp_path / "b")
    other = train(settings(pool_folder, "loop.steps=3", "loop.seed=4"), tmp_path / "c")
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_equals_uninterrupted(pool_folder: Path, tmp_path: Path, precision: str) -> None:
    cfg = settings(pool_folder, f"loop.precision={precision}", "loop.checkpoint_every=3")
    whole = train(cfg, tmp_path / "whole")
    stopped = train(cfg, tmp_path / "parts", stop=lambda step: step == 5)
    assert stopped.step == 5
    resumed = train(cfg, tmp_path / "parts")
    assert resumed.step == cfg.loop.steps
    assert same(weights(whole), weights(resumed))


def test_a_run_on_held_pools_learns_resumes_and_shows_its_images(
    pool_folder: Path, tmp_path: Path
) -> None:
    cfg = settings(
        pool_folder,
        "on_device=true",
        "outdoors_share=0.3",
        f"outdoors.folder={pool_folder}/outdoors",
        "outdoors.samples=12", "outdoors.height=48", "outdoors.width=64", "outdoors.seed=4",
        "outdoors.wait_for=12", "outdoors.fill=true",
        "loop.checkpoint_every=3", "loop.images_every=2",
    )  # fmt: skip
    whole = train(cfg, tmp_path / "whole")
    assert list((tmp_path / "whole" / "images").glob("*.png"))
    train(cfg, tmp_path / "parts", stop=lambda step: step == 4)
    resumed = train(cfg, tmp_path / "parts")
    assert same(weights(whole), weights(resumed))
    with pytest.raises(config.ConfigError, match="on_device holds pools"):
        settings(pool_folder, "on_device=true", "source=images")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_between_steps_and_can_go_on(
    pool_folder: Path, tmp_path: Path, number: int
) -> None:
    cfg = settings(pool_folder, "loop.steps=5")
    recipe = supervised.Supervised(cfg, open_pool(cfg.pool))
    real = recipe.batch

    def interrupted(step: int, part: BatchPart) -> Batch:
        if step == 2:
            os.kill(os.getpid(), number)
        return real(step, part)

    recipe.batch = interrupted  # type: ignore[method-assign]
    before = signal.getsignal(number)
    with pytest.raises(loop.TrainingError, match="Interrupted at step 2"):
        loop.run(recipe, cfg.loop, tmp_path / "parts", config.to_dict(cfg))
    assert signal.getsignal(number) is before
    resumed = train(cfg, tmp_path / "parts")
    assert same(weights(train(cfg, tmp_path / "whole")), weights(resumed))


def test_learning_happens(pool_folder: Path, tmp_path: Path) -> None:
    """The student can memorise twenty-four images that are not augmented."""
    plain = [f"augment.{name}=0" for name in ("flip", "colour", "gamma", "blur", "noise", "grey")]
    cfg = settings(
        pool_folder,
        "loop.steps=60",
        "loop.log_every=15",
        "loop.batch=8",
        "loop.learning_rate=0.01",
        "augment.smallest_crop=1.0",
        *plain,
    )
    train(cfg, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [15, 30, 45, 60]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_a_run_may_start_from_another_ones_weights(
    pool_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = train(settings(pool_folder, "loop.steps=2"), tmp_path / "before")
    cfg = settings(pool_folder, f"start={tmp_path / 'before'}")
    model = loop.start(supervised.build(cfg, Console()), cfg.loop).model
    assert before.averaged is not None
    assert same(model.state_dict(), before.averaged.state_dict())
    torch.save(before.averaged, tmp_path / "whole.pt")  # a pickled module
    arguments = ["supervised", "--config", str(DEBUG), "--run", str(tmp_path / "run")]
    arguments += [f"pool.folder={pool_folder}", f"start={tmp_path / 'whole.pt'}"]
    assert main(arguments) == 1
    assert "could run any code" in capsys.readouterr().err.replace("\n", " ")
    torch.save(before.averaged.state_dict(), tmp_path / "weights.pt")
    plain = settings(pool_folder, f"start={tmp_path / 'weights.pt'}")
    model = loop.start(supervised.build(plain, Console()), plain.loop).model
    assert same(model.state_dict(), before.averaged.state_dict())


def test_a_student_with_detail_begins_as_the_embedded_network_at_half_its_size(
    pool_folder: Path,
) -> None:
    cfg = settings(
        pool_folder, "start=embedded-small", "height=128", "width=192", "freeze_encoder=true",
        "imagenet_rate=0",
    )  # fmt: skip
    cfg = dataclasses.replace(cfg, student=StudentConfig(detail=(8, 4)))
    recipe = supervised.build(cfg, Console())
    model = recipe.model()
    shipped = open_network(NetworkConfig(source="embedded-small")).eval()
    x = recipe.batch(0, (0, 4))["image"]
    with torch.no_grad():
        expected = shipped(torch.nn.functional.avg_pool2d(x, 2)) - OFFSET
        coarse = torch.nn.functional.avg_pool2d(model.eval()(x), 8)
    apart = (coarse - torch.nn.functional.avg_pool2d(expected, 4))[..., 1:-1, 1:-1].abs()
    assert float(apart.max()) < 0.05 * float(expected.max() - expected.min())
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {"up", "head", "detail"}
    assert not any(p.requires_grad for p in model.detail.encoder.parameters())
    model.train()
    assert not model.stages.training and model.up.training


@pytest.mark.parametrize("frozen", ["freeze_encoder=true", "imagenet_rate=0"])
def test_a_mobilenet_as_the_encoder_may_stay_as_it_is(pool_folder: Path, frozen: str) -> None:
    student = dataclasses.replace(SMALL, encoder="mobilenet")
    cfg = dataclasses.replace(settings(pool_folder, "imagenet_rate=0.1"), student=student)
    rates = [
        supervised.build(cfg, Console()).rate(f"{n}.weight") for n in ("encoder.blocks.3", "up")
    ]
    assert rates == [0.1, 1]
    recipe = supervised.build(
        dataclasses.replace(settings(pool_folder, frozen), student=student), Console()
    )
    learns = {n.split(".")[0] for n, p in recipe.model().named_parameters() if p.requires_grad}
    assert learns == {"up", "head", "context"} - ({"context"} if "true" in frozen else set())


def test_a_share_of_the_images_is_of_outdoor_scenes(pool_folder: Path) -> None:
    cfg = settings(pool_folder, "outdoors_share=0.25", "loop.batch=400")
    near, far = (Sample(n, np.zeros((80, 120, 3), np.uint8), np.full((80, 120), d, np.float32))
                 for n, d in (("room", 2.0), ("street", 60.0)))  # fmt: skip
    recipe = supervised.Supervised(cfg, [near], [far])
    depth = recipe.batch(0, (0, 1))["depth"]
    assert float((depth > 50).float().mean()) == pytest.approx(0.25, abs=0.08)


def test_detail_needs_sides_that_the_half_size_can_be_divided_by() -> None:
    with pytest.raises(config.ConfigError, match="multiples of 64"):
        supervised.Config(height=96, width=128, student=StudentConfig(detail=(8, 4)))


def test_the_boundary_term_is_added(pool_folder: Path) -> None:
    recipe = supervised.build(settings(pool_folder), Console())
    batch = recipe.batch(0, (0, 1))
    prediction = torch.randn(batch["depth"].shape, generator=torch.Generator().manual_seed(1))
    plain = supervised.disparity_loss(prediction, batch["depth"], supervised.LossConfig())
    more = supervised.disparity_loss(prediction, batch["depth"], supervised.LossConfig(boundary=2))
    assert float(more["loss"]) == pytest.approx(float(plain["loss"] + 2 * more["boundary"]))
    assert float(more["boundary"]) > 0


def test_the_shipped_student_fits_its_budget() -> None:
    assert parameter_count(SmallUNet(StudentConfig())) * 2 < 4_000_000  # bytes as float16
    with pytest.raises(config.ConfigError, match="five values"):
        StudentConfig(widths=(8, 8))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--config", str(DEBUG)]
    assert main(["supervised", *common, "--dry-run", "loop.batch=7"]) == 0
    resolved = capsys.readouterr().out
    assert "batch: 7" in resolved
    assert main(["supervised", *common, "loop.bach=7"]) == 1
    assert "loop.batch" in capsys.readouterr().err
    run = tmp_path / "run"
    pool = f"pool.folder={tmp_path / 'pool'}"
    assert main(["supervised", *common, "--run", str(run), pool, "loop.steps=2"]) == 0
    assert {"config.yaml", "environment.json", "last"} <= {p.name for p in run.iterdir()}
    shutil.rmtree(tmp_path / "pool")
    assert main(["render", *common, pool, "pool.samples=12", "--count", "6"]) == 0
