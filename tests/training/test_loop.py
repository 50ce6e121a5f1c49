# SPDX-License-Identifier: Apache-2.0
"""The training loop by a toy recipe: resumption, processes, checkpoints, logs, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from torch import nn

from depth_node import config
from tests.helpers.toy import Toy, nearly_full_disk, rows, settings, train
from training import checkpoints, loop
from training.data.samples import DataError
from training.recipe import Batch, BatchPart, LoopConfig, generators

TOY = REPO / "tests" / "helpers" / "toy.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def child(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launcher, str(TOY), *(str(argument) for argument in arguments)]
    return subprocess.run(
        command,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a run's last checkpoint, by name."""
    folder = checkpoints.find(run)
    by_name = {}
    for file in sorted(folder.glob("*.safetensors")):
        by_name.update({f"{file.stem}.{k}": v for k, v in checkpoints.weights(file).items()})
    for number, moments in checkpoints.read_state(folder)["optimiser"]["state"].items():
        by_name.update({f"{number}.{name}": value for name, value in moments.items()})
    return by_name


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [3, 5])
def test_killed_in_mid_save_then_resumed_equals_uninterrupted(tmp_path: Path, save: int) -> None:
    """SIGKILL while a file of weights is half written, in the first or in the second checkpoint."""
    whole = train(settings("loop.log_every=2"), tmp_path / "whole")
    killed = child(tmp_path / "parts", "loop.log_every=2", "--kill-in-save", save)
    assert killed.returncode == -signal.SIGKILL
    left = list((tmp_path / "parts" / "checkpoints").glob("*.partial"))
    assert len(left) == 1
    assert (tmp_path / "parts" / "last").exists() == (save > 3)
    if save > 3:
        assert checkpoints.read(tmp_path / "parts")["step"] == 3
    with (tmp_path / "parts" / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')  # a line that a crash left incomplete
    train(settings("loop.log_every=2"), tmp_path / "parts")
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert whole.step == 8
    assert rows(tmp_path / "whole", "step", "loss") == rows(tmp_path / "parts", "step", "loss")
    assert not list((tmp_path / "parts" / "checkpoints").glob("*.partial"))


def test_every_point_of_interruption_resumes_to_the_bit(tmp_path: Path) -> None:
    train(settings(), tmp_path / "whole")
    train(settings(), tmp_path / "parts", stop=lambda step: step == 1)
    train(settings(), tmp_path / "parts", stop=lambda step: step == 3)
    train(settings(), tmp_path / "parts", stop=lambda step: step == 7)
    train(settings(), tmp_path / "parts")
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    train(settings("loop.steps=8"), tmp_path / "parts")  # nothing left to do
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


def test_a_setting_that_a_run_did_not_have_is_at_its_default(tmp_path: Path) -> None:
    train(settings("loop.steps=3"), tmp_path)
    about = checkpoints.find(tmp_path) / "about.json"
    content = json.loads(about.read_text())
    del content["settings"]["loop"]["clip"]  # as if the option were newer
    about.write_text(json.dumps(content))
    with pytest.raises(loop.TrainingError, match=r"loop\.clip \(was 1\.0, is 2\.0\)"):
        train(settings("loop.clip=2.0"), tmp_path)
    assert train(settings(), tmp_path).step == 8


def test_ctrl_c_with_workers_ends_between_steps(tmp_path: Path) -> None:
    """The signal reaches the workers too; they continue until the training process stops."""
    arguments = ("loop.workers=2", "loop.steps=400", "--interrupt-at", 30)
    stopped = child(tmp_path / "parts", *arguments)
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("Interrupted at step")
    assert "Traceback" not in stopped.stderr
    step = checkpoints.read(tmp_path / "parts")["step"]
    assert 1 < step < 400
    train(settings(f"loop.steps={step}"), tmp_path / "parts")  # nothing left to do
    train(settings("loop.steps=1"), tmp_path / "parts")  # less than that
    assert checkpoints.read(tmp_path / "parts")["step"] == step


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings("loop.steps=3"), run)
    before = tensors(run)
    sentence = r"The checkpoint of step 6 could not be written .*make room"
    with nearly_full_disk(2500), pytest.raises(loop.TrainingError, match=sentence):
        train(settings(), run)
    assert same(tensors(run), before)
    assert not list((run / "checkpoints").glob("*.partial"))
    train(settings(), run)
    train(settings(), tmp_path / "whole")
    assert same(tensors(tmp_path / "whole"), tensors(run))


def test_a_run_whose_last_checkpoint_was_deleted_does_not_begin_again(tmp_path: Path) -> None:
    train(settings("loop.steps=3"), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(loop.TrainingError, match="There is no checkpoint in"):
        train(settings(), tmp_path)


# --- sharing out ----------------------------------------------------------------------------------


def test_accumulated_parts_equal_one_batch(tmp_path: Path) -> None:
    train(settings(), tmp_path / "whole")
    train(settings("loop.accumulate=4"), tmp_path / "parts")
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)


ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="made for CPUs: each process wants its GPU")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Two processes, with half of a step's images each, learn the same as a single one."""
    train(settings(), tmp_path / "one")
    done = child(tmp_path / "two", launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    np.testing.assert_allclose(
        rows(tmp_path / "two", "step", "loss", "gradient_norm"),
        rows(tmp_path / "one", "step", "loss", "gradient_norm"),
        rtol=1e-4,
    )
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(loop.TrainingError, match="a multiple of 3"):
        train(settings("loop.accumulate=3"), tmp_path)


def test_generators_do_not_depend_on_the_shares() -> None:
    cfg = settings("loop.batch=6").loop
    whole = [rng.random() for rng in generators(cfg, 5, (0, 1))]
    parts = [rng.random() for k in range(3) for rng in generators(cfg, 5, (k, 3))]
    assert whole == parts
    assert len(set(whole)) == 6
    assert whole != [rng.random() for rng in generators(cfg, 6, (0, 1))]


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_batches_made_ahead_are_the_same(tmp_path: Path) -> None:
    train(settings(), tmp_path / "here")
    train(settings("loop.workers=2", "loop.accumulate=1"), tmp_path / "ahead")
    assert same(tensors(tmp_path / "here"), tensors(tmp_path / "ahead"))


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_data_is_one_sentence_wherever_it_is_read(tmp_path: Path, workers: int) -> None:
    class Missing(Toy):
        def batch(self, step: int, part: BatchPart) -> Batch:
            if step == 2:
                raise DataError("image 7 is cut: fetch it again")
            return super().batch(step, part)

    cfg = settings(f"loop.workers={workers}")
    with pytest.raises(DataError, match=r"^image 7 is cut: fetch it again$"):
        train(cfg, tmp_path, Missing(cfg))


# --- averaged weights, extra modules, panels ------------------------------------------------------


def test_the_average_holds_only_what_is_learnt(tmp_path: Path) -> None:
    state = train(settings("loop.ema=0.9"), tmp_path)
    assert state.averaged is not None
    model, averaged = dict(state.model.named_parameters()), dict(state.averaged.named_parameters())
    assert averaged["0.weight"] is model["0.weight"]  # frozen weights are shared
    assert not torch.equal(averaged["2.weight"], model["2.weight"])
    assert not any(p.requires_grad for p in averaged.values())
    learnt = checkpoints.weights(checkpoints.find(tmp_path) / "model.safetensors")
    assert set(learnt) == {"2.weight", "2.bias", "4.weight", "4.bias"}
    assert set(checkpoints.read(tmp_path)["averaged"]) == set(model)


def test_the_average_follows_its_formula(tmp_path: Path) -> None:
    weights: list[torch.Tensor] = []

    class Watching(Toy):
        def loss(self, model: nn.Module, batch: Batch, averaged: Any) -> dict[str, Any]:
            assert averaged is not None and not averaged.training
            weights.append(model.state_dict()["2.weight"].clone())
            return super().loss(model, batch, averaged)

    cfg = settings("loop.ema=0.75", "loop.ema_warmup=false", "loop.steps=3")
    state = train(cfg, tmp_path, Watching(cfg))
    expected = weights[0]
    for now in [*weights[1:], state.model.state_dict()["2.weight"]]:
        expected = 0.75 * expected + 0.25 * now
    torch.testing.assert_close(state.product.state_dict()["2.weight"], expected)


def test_without_an_average_the_model_is_the_product(tmp_path: Path) -> None:
    state = train(settings("loop.ema=0"), tmp_path)
    assert state.product is state.model
    averaged = checkpoints.read(tmp_path)["averaged"]
    assert torch.equal(averaged["2.weight"], state.model.state_dict()["2.weight"])


def test_extra_modules_learn_and_are_kept(tmp_path: Path) -> None:
    cfg = settings()
    recipe = Toy(cfg)
    state = train(cfg, tmp_path, recipe)
    assert state.extra is recipe.projection
    extra = checkpoints.weights(checkpoints.find(tmp_path) / "extra.safetensors")
    assert torch.equal(extra["weight"], recipe.projection.weight)
    fresh = loop.start(Toy(cfg), cfg.loop)
    assert fresh.extra is not None
    assert not torch.equal(extra["weight"], fresh.extra.state_dict()["weight"])
    loop.restore(fresh, tmp_path, config.to_dict(cfg))
    assert torch.equal(extra["weight"], fresh.extra.state_dict()["weight"])


def test_a_part_of_the_network_learns_slower(tmp_path: Path) -> None:
    class Slow(Toy):
        def rate(self, name: str) -> float:
            return 0.0 if name.startswith("2.") else 1.0

    cfg = settings("loop.weight_decay=0", "loop.steps=2")
    before = loop.start(Slow(cfg), cfg.loop).model.state_dict()
    after = train(cfg, tmp_path, Slow(cfg)).model.state_dict()
    assert torch.equal(before["2.weight"], after["2.weight"])
    assert not torch.equal(before["4.weight"], after["4.weight"])


def test_panels_and_validation_change_nothing_that_is_learnt(tmp_path: Path) -> None:
    class Watched(Toy):
        def batch_images(self, model: nn.Module, batch: Batch, averaged: Any) -> dict[str, Any]:
            torch.rand(3)
            return {"a": np.zeros((4, 4, 3), np.uint8)}

        def validate(self, model: nn.Module) -> dict[str, float]:
            torch.rand(3)
            return {"score": 1.0}

    cfg = settings("loop.images_every=1", "loop.checkpoint_every=1")
    train(cfg, tmp_path / "watched", Watched(cfg))
    train(settings(), tmp_path / "plain")
    assert same(tensors(tmp_path / "watched"), tensors(tmp_path / "plain"))


# --- checkpoints ----------------------------------------------------------------------------------


def test_best_last_and_kept_ones(tmp_path: Path) -> None:
    scores = {2: 0.5, 4: 0.2, 6: 0.3, 8: 0.9}

    class Scored(Toy):
        def validate(self, model: nn.Module) -> dict[str, float]:
            assert not torch.is_grad_enabled()
            return {"score": scores[len(steps) * 2 + 2], "steps": steps.append(1) or 0.0}

    steps: list[int] = []
    cfg = settings("loop.checkpoint_every=2", "loop.keep_every=6")
    train(cfg, tmp_path, Scored(cfg))
    assert checkpoints.read(tmp_path / "best")["step"] == 4
    assert checkpoints.read(tmp_path / "last")["step"] == 8
    assert checkpoints.read(tmp_path)["step"] == 8
    folders = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert folders == ["step_0000004", "step_0000006", "step_0000008"]
    assert checkpoints.read(tmp_path)["recipe"] == "toy"


# --- refusals -------------------------------------------------------------------------------------


def test_no_seed_no_run(tmp_path: Path) -> None:
    with pytest.raises(loop.TrainingError, match="has no seed"):
        train(settings("loop.seed=-1"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, where fp16 works")
def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(loop.TrainingError, match="needs a GPU"):
        train(settings("loop.precision=fp16"), tmp_path)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_with_its_batch(tmp_path: Path, bad: str) -> None:
    class Broken(Toy):
        def batch(self, step: int, part: BatchPart) -> Batch:
            made = super().batch(step, part)
            if step == 5:
                made["image"][0, 0, 0, 0] = float("nan") if bad == "loss" else 1e30
            return made

        def loss(self, model: nn.Module, batch: Batch, averaged: Any) -> dict[str, Any]:
            scalars = super().loss(model, batch, averaged)
            if bad == "gradient" and float(batch["image"].max()) > 1:  # finite, its slope is not
                weight = model.state_dict(keep_vars=True)["2.weight"]
                scalars["loss"] = scalars["loss"].detach() + (weight * 0).abs().sqrt().sum()
            return scalars

    cfg = settings()
    with pytest.raises(loop.TrainingError, match=r"of step 5 is not finite.*bad_batch"):
        train(cfg, tmp_path, Broken(cfg))
    stored = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    expected = Broken(cfg).batch(5, (0, 1))["image"]
    torch.testing.assert_close(stored["image"], expected, equal_nan=True)
    assert checkpoints.read(tmp_path)["step"] == 3
    assert all(torch.isfinite(value).all() for value in tensors(tmp_path).values())


def test_a_frozen_model_is_refused(tmp_path: Path) -> None:
    class Frozen(Toy):
        def model(self) -> nn.Module:
            return super().model().requires_grad_(False)

        def extra(self) -> Any:
            return None

    with pytest.raises(loop.TrainingError, match="requires a gradient"):
        train(settings(), tmp_path, Frozen(settings()))


def test_schedules() -> None:
    cfg = LoopConfig(steps=110, warmup=10, learning_rate=2.0, final_rate=0.0, schedule="poly")
    assert loop.learning_rate(cfg, 0) == pytest.approx(0.2)
    assert loop.learning_rate(cfg, 60) == pytest.approx(2.0 * 0.5**0.9)
    assert loop.learning_rate(cfg, 110) == 0.0
    constant = config.replace(cfg, {"schedule": "constant"})
    assert loop.learning_rate(constant, 100) == 2.0
    falling = config.replace(cfg, {"schedule": "exponential", "final_rate": 0.01})
    assert loop.learning_rate(falling, 60) == pytest.approx(2.0 * 0.1)
    cosine = config.replace(cfg, {"schedule": "cosine", "final_rate": 0.1})
    assert loop.learning_rate(cosine, 60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))


def test_the_schedule_rises_and_falls() -> None:
    cfg = LoopConfig(steps=100, warmup=10, learning_rate=1.0, final_rate=0.1)
    rates = [loop.learning_rate(cfg, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0, abs=0.02)
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_a_term_of_some_steps_is_the_mean_of_those_and_the_norm_has_its_own_name(
    tmp_path: Path,
) -> None:
    class Sometimes(Toy):
        def loss(self, model: Any, batch: Any, averaged: Any) -> Any:
            terms = super().loss(model, batch, averaged)
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls % 4 == 1:
                terms["anchor"] = torch.tensor(8.0)
            return {**terms, "gradient": torch.tensor(0.25)}

    cfg = settings("loop.steps=8", "loop.log_every=4", "loop.accumulate=2")
    train(cfg, tmp_path, Sometimes(cfg))
    logged = rows(tmp_path, "anchor", "gradient", "gradient_norm")
    assert [row[:2] for row in logged] == [(8.0, 0.25)] * 2
    assert all(row[2] not in (0.0, 0.25) for row in logged)


@pytest.mark.parametrize("name", ["gradient_norm", "rate", "images_per_s"])
def test_a_term_may_not_hide_a_number_of_the_loop(tmp_path: Path, name: str) -> None:
    class Hiding(Toy):
        def loss(self, model: Any, batch: Any, averaged: Any) -> Any:
            return {**super().loss(model, batch, averaged), name: torch.ones(())}

    cfg = settings("loop.steps=2")
    with pytest.raises(ValueError, match=name):
        train(cfg, tmp_path, Hiding(cfg))


def test_a_run_says_where_its_result_is_and_what_comes_next(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    def said(*overrides: str) -> str:
        out = io.StringIO()
        train(settings(*overrides), tmp_path / "run", console=Console(file=out, width=200))
        return out.getvalue()

    first = said("loop.steps=4")
    assert f"The result is in {tmp_path / 'run'}/last (step 4)" in first
    assert f"Next: python -m training export {tmp_path / 'run'} --out run.onnx" in first
    again = said("loop.steps=4")
    assert "has all its 4 steps" in again and "Raise loop.steps" in again and "Next:" in again
