# SPDX-License-Identifier: Apache-2.0
"""Benchmark of loop.run: its images per second compared with the shortest possible PyTorch loop.

Both train a model of the same recipe on the same batches in one process. They alternate after a few
steps, so that other work on the machine affects both. The bare loop has no averaged weights, no
log, no checkpoints and no progress bar. Peak memory is measured in two further processes, one for
each loop.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from rich.console import Console

from depth_node import config
from training import recipes, renamed_settings
from training.checkpoints import TrainingError
from training.loop import run
from training.recipe import LoopConfig, Recipe

WARM_STEPS = 3


class Bare:
    """The bare loop: a model of the recipe and the few lines that train it."""

    def __init__(self, recipe: Recipe, cfg: LoopConfig) -> None:
        self.recipe, self.cfg, self.step = recipe, cfg, 0
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(cfg.seed)
        self.model = recipe.model().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        extra = recipe.extra()
        modules = [self.model] if extra is None else [self.model, extra.to(self.device)]
        # A recipe whose loss uses averaged weights gets a copy, which is not updated here.
        self.averaged = copy.deepcopy(self.model).eval() if cfg.ema > 0 else None
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay
        )

    def steps(self, count: int) -> None:
        """Train for `count` more steps."""
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.cfg.precision)
        for _ in range(count):
            batch = send_to_device(self.recipe.batch(self.step, (0, 1)), self.device)
            self.model.train()
            with torch.autocast(self.device, precision, enabled=precision is not None):
                loss = self.recipe.loss(self.model, batch, self.averaged)["loss"]
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip or math.inf)
            self.optimiser.step()
            self.step += 1


def compare(
    build: Callable[[], Recipe], cfg: LoopConfig, settings: dict[str, Any], steps: int, turn: int
) -> tuple[list[float], list[float]]:
    """Return the seconds of each turn of `turn` steps, of loop.run and of the bare loop."""
    bare = Bare(build(), cfg)
    bare.steps(WARM_STEPS)
    ours: list[float] = []
    theirs: list[float] = []
    mark = 0.0

    def clock() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def between(step: int) -> bool:
        """Run a turn of the bare loop where one is due; loop.run calls this before each step."""
        nonlocal mark
        if step < WARM_STEPS or (step - WARM_STEPS) % turn:
            return False
        if step > WARM_STEPS:
            ours.append(clock() - mark)
        begin = clock()
        bare.steps(turn)
        theirs.append(clock() - begin)
        mark = clock()
        return step - WARM_STEPS >= steps

    with tempfile.TemporaryDirectory() as folder:
        run(build(), cfg, Path(folder), settings, stop=between, console=Console(quiet=True))
    return ours, theirs[: len(ours)]


def peak_mb(
    which: str, build: Callable[[], Recipe], cfg: LoopConfig, settings: dict[str, Any]
) -> float:
    """Return this process's peak memory, MB, after a few steps of the loop `which`.

    It is the memory that torch allocated on the GPU where there is one, else the resident memory.
    """
    if which == "bare":
        torch.set_num_threads(cfg.threads)
        Bare(build(), cfg).steps(2 * WARM_STEPS)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(
                build(),
                cfg,
                Path(folder),
                settings,
                stop=lambda step: step >= 2 * WARM_STEPS,
                console=Console(quiet=True),
            )
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m training benchmark`."""
    parser.add_argument("recipe", help=f"one of {', '.join(recipes.RECIPES)}")
    parser.add_argument("--config", required=True, type=Path, help="YAML file of that recipe")
    parser.add_argument("--steps", type=int, default=60, help="steps of each loop")
    parser.add_argument("--turn", type=int, default=2, help="steps of a turn")
    parser.add_argument("--peak", choices=("loop", "bare"), help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Print images per second and peak memory of both loops, and the ratio of their speeds.

    Raises TrainingError if no turn can be timed.
    """
    if min(args.turn, args.steps) < 1:
        raise TrainingError(
            f"--turn is {args.turn} and --steps {args.steps}: give 1 or more for both."
        )
    module = recipes.find(args.recipe)
    cfg = renamed_settings.load(module.Config, args.config, args.overrides)
    least = WARM_STEPS + args.turn + 1  # a turn ends where the next step begins
    if cfg.loop.steps < least:
        raise TrainingError(
            f"loop.steps is {cfg.loop.steps}, in which no turn of {args.turn} steps can be timed:"
            f" set it to {least} or more."
        )
    settings = config.to_dict(cfg)

    def build() -> Recipe:
        return module.build(cfg, Console(quiet=True))

    if args.peak:
        print(json.dumps(peak_mb(args.peak, build, cfg.loop, settings)))
        return
    torch.set_num_threads(cfg.loop.threads)
    ours, theirs = (np.array(s) for s in compare(build, cfg.loop, settings, args.steps, args.turn))
    images = cfg.loop.batch * args.turn
    quartiles = np.percentile(theirs / ours, [25, 50, 75])
    console.print(
        f"{args.recipe}, batch {cfg.loop.batch}, {cfg.loop.precision}, {cfg.loop.threads} threads:"
        f" {len(ours)} turns of {args.turn} steps"
    )
    for name, seconds in (("loop", ours), ("bare", theirs)):
        again = [sys.executable, "-m", "training", "benchmark", args.recipe, *args.overrides]
        again += ["--config", str(args.config), "--peak", name]
        done = subprocess.run(again, capture_output=True, text=True, check=True)
        console.print(
            f"  {name}  {images / np.median(seconds):8.1f} images/s"
            f"   {json.loads(done.stdout):6.0f} MB at peak"
        )
    console.print(
        f"  ratio {theirs.sum() / ours.sum():.3f} of all turns together; a turn's median"
        f" {quartiles[1]:.3f} (quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f})"
    )
