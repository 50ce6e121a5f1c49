# SPDX-License-Identifier: Apache-2.0
"""The only training loop: optimiser, schedule, averaged weights, checkpoints, resume, log.

A recipe supplies the model, the batch of a step and the loss; the loop alone calls backward() and
step(). The batch of step k follows from the seed and k, so a resumed run goes on as if it had never
stopped.
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from depth_node import config

CHECKPOINT_FORMAT = 1
# What may differ between a checkpoint's settings and those of the run that goes on from it.
FREE_TO_CHANGE = (
    "loop.steps",
    "loop.log_every",
    "loop.checkpoint_every",
    "loop.keep_every",
    "loop.threads",
    "pool.folder",
)


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to learn."""

    seed: int = config.option(-1, "Seed of weights, batches and augmentation; must be set.")
    steps: int = config.option(10_000, "Optimiser steps in all.", minimum=1)
    batch: int = config.option(32, "Pictures per step.", minimum=1)
    learning_rate: float = config.option(2e-3, "Peak learning rate of AdamW.", minimum=0)
    final_rate: float = config.option(
        0.01, "Last learning rate over the peak (cosine).", minimum=0, maximum=1
    )
    warmup: int = config.option(300, "Steps of linear warm-up.", minimum=0)
    weight_decay: float = config.option(
        0.02, "AdamW's weight decay, on matrices and kernels only.", minimum=0
    )
    clip: float = config.option(1.0, "Greatest norm of the gradient; 0 = no limit.", minimum=0)
    ema: float = config.option(
        0.999, "Share that the averaged weights keep at each step.", minimum=0, maximum=1
    )
    precision: str = config.option("fp32", "Arithmetic of the network.", choices=("fp32", "bf16"))
    threads: int = config.option(1, "CPU threads of torch.", minimum=1)
    log_every: int = config.option(50, "Steps between log lines.", minimum=1)
    checkpoint_every: int = config.option(500, "Steps between checkpoints.", minimum=1)
    keep_every: int = config.option(
        0, "Steps between checkpoints that are kept beside the last; 0 = none.", minimum=0
    )

    def __post_init__(self) -> None:
        config.validate(self)


Batch = dict[str, Tensor]


class Recipe(Protocol):
    """What a recipe gives to the loop."""

    def model(self) -> nn.Module:
        """A fresh model; torch's generator is seeded before the call."""

    def batch(self, step: int) -> Batch:
        """The batch of a step, a function of the seed and the step alone."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalars of a step; the one called "loss" is minimised."""


@dataclass
class State:
    """Everything that a run carries from one step to the next."""

    model: nn.Module
    averaged: nn.Module
    optimiser: torch.optim.Optimizer
    step: int = 0


def learning_rate(cfg: LoopConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to final_rate times the peak."""
    if step < cfg.warmup:
        return cfg.learning_rate * (step + 1) / cfg.warmup
    done = (step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1)
    half_wave = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return cfg.learning_rate * (cfg.final_rate + (1 - cfg.final_rate) * half_wave)


def start(recipe: Recipe, cfg: LoopConfig) -> State:
    """Fresh model, averaged copy and optimiser from the seed."""
    if cfg.seed < 0:
        raise TrainingError(
            "The run has no seed: set loop.seed to 0 or more, so that it can be repeated."
        )
    torch.manual_seed(cfg.seed)
    model = recipe.model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return State(model, averaged, torch.optim.AdamW(groups, lr=cfg.learning_rate))


def advance(state: State, recipe: Recipe, cfg: LoopConfig) -> dict[str, float]:
    """One optimiser step; returns the recipe's scalars, the gradient's norm and the rate."""
    batch = recipe.batch(state.step)
    rate = learning_rate(cfg, state.step)
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=cfg.precision == "bf16"):
        scalars = recipe.loss(state.model, batch)
    state.optimiser.zero_grad(set_to_none=True)
    scalars["loss"].backward()
    limit = cfg.clip if cfg.clip > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), limit)
    if not torch.isfinite(norm):
        raise FloatingPointError
    state.optimiser.step()
    state.step += 1
    _average(state, cfg.ema)
    report = {name: float(value.detach()) for name, value in scalars.items()}
    return {**report, "gradient": float(norm), "rate": rate}


@torch.no_grad()
def _average(state: State, keep: float) -> None:
    # Early on the average forgets faster, or it would remember the random weights for a thousand
    # steps.
    keep = min(keep, (1 + state.step) / (10 + state.step))
    current = state.model.state_dict()
    for name, slow in state.averaged.state_dict().items():
        if slow.dtype.is_floating_point:
            slow.lerp_(current[name].to(slow.dtype), 1 - keep)
        else:
            slow.copy_(current[name])


def save(state: State, settings: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all: a crash in between leaves the old one."""
    payload = {
        "format": CHECKPOINT_FORMAT,
        "step": state.step,
        "settings": settings,
        "model": state.model.state_dict(),
        "averaged": state.averaged.state_dict(),
        "optimiser": state.optimiser.state_dict(),
    }
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, tensors and plain values only (no pickled code is run)."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(
            f"There is no checkpoint {path}; check the path or start a new run."
        ) from error
    except Exception as error:
        raise TrainingError(
            f"The checkpoint {path} cannot be read ({error}); use an older one."
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != CHECKPOINT_FORMAT:
        raise TrainingError(
            f"{path} is no checkpoint of this loop; give a file that `python -m training` wrote."
        )
    return payload


def restore(state: State, path: Path, settings: dict[str, Any]) -> None:
    """Bring a fresh state to where a checkpoint left off; settings that shape the result must be
    the same.
    """
    payload = read(path)
    before, now = _flat(payload["settings"]), _flat(settings)
    changed = sorted(
        name
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name) and name not in FREE_TO_CHANGE
    )
    if changed:
        what = ", ".join(
            f"{name} (was {before.get(name)!r}, is {now.get(name)!r})" for name in changed
        )
        raise TrainingError(
            f"The run in {path.parent} was started with other settings: {what};"
            " use another run folder."
        )
    state.model.load_state_dict(payload["model"])
    state.averaged.load_state_dict(payload["averaged"])
    state.optimiser.load_state_dict(payload["optimiser"])
    state.step = int(payload["step"])


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out.update(
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return out


def environment() -> dict[str, Any]:
    """Where a run took place: enough to repeat it."""
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "git": revision,
    }


class _Interrupt:
    """Ctrl-C or SIGTERM ends a run between two steps; the second one ends it at once.

    In the middle of a step the weights, their averages and the optimiser disagree.
    """

    def __init__(self) -> None:
        self.seen = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.seen = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()


def run(
    recipe: Recipe,
    cfg: LoopConfig,
    folder: Path,
    settings: dict[str, Any],
    stop: Callable[[int], bool] = lambda step: False,
) -> State:
    """Train to cfg.steps in a run folder, going on from its last checkpoint if there is one.

    settings: the resolved configuration, kept in the checkpoints. stop(step): True ends the run
    early, with a checkpoint. So does Ctrl-C or SIGTERM, and TrainingError then says where.
    """
    torch.set_num_threads(cfg.threads)
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.pt"
    state = start(recipe, cfg)
    if last.exists():
        restore(state, last, settings)
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2), encoding="utf-8")
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        (folder / "log.jsonl").open("a", encoding="utf-8") as log,
        _Interrupt() as interrupt,
    ):
        task = bar.add_task("training", total=cfg.steps, completed=state.step, note="")
        sums: dict[str, float] = {}
        since, first = time.monotonic(), state.step
        while state.step < cfg.steps and not stop(state.step) and not interrupt.seen:
            try:
                report = advance(state, recipe, cfg)
            except FloatingPointError:
                torch.save(recipe.batch(state.step), folder / "bad_batch.pt")
                raise TrainingError(
                    f"The gradient of step {state.step} is not finite; its batch is in"
                    f" {folder / 'bad_batch.pt'}; "
                    f"lower loop.learning_rate or look at that data."
                ) from None
            for name, value in report.items():
                sums[name] = sums.get(name, 0.0) + value
            if state.step % cfg.log_every == 0:
                count, elapsed = state.step - first, time.monotonic() - since
                row: dict[str, float] = {
                    name: round(value / count, 6) for name, value in sums.items()
                }
                row["images_per_s"] = round(count * cfg.batch / elapsed, 1)
                log.write(json.dumps({"step": state.step, **row}) + "\n")
                log.flush()
                note = f"loss {row['loss']:.4f}  {row['images_per_s']:.0f} images/s"
                bar.update(task, note=note)
                if not console.is_terminal:
                    console.print(f"step {state.step}/{cfg.steps}  {note}", highlight=False)
                sums, since, first = {}, time.monotonic(), state.step
            if state.step % cfg.checkpoint_every == 0:
                save(state, settings, last)
            if cfg.keep_every and state.step % cfg.keep_every == 0:
                save(state, settings, folder / f"step_{state.step:07d}.pt")
            bar.update(task, completed=state.step)
    save(state, settings, last)
    if interrupt.seen:
        raise TrainingError(
            f"Interrupted at step {state.step}; the same command goes on from there."
        )
    return state
