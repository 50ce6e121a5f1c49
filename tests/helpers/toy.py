# SPDX-License-Identifier: Apache-2.0
"""A recipe of a few hundred weights, and a program that trains it, for tests that need a process.

    python toy.py RUN [key=value ...] [--kill-in-save N] [--interrupt-at STEP]

It has no batch normalisation, because only statistics over a batch depend on how a step's images
are distributed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from depth_node import config
from training import checkpoints, loop
from training.recipe import Batch, BatchPart, LoopConfig, Recipe, generators


@dataclass(frozen=True)
class Config:
    """Eight steps of four images."""

    width: int = config.option(6, "Channels.", minimum=1)
    loop: LoopConfig = config.section(
        LoopConfig,
        "The loop.",
        seed=7,
        steps=8,
        batch=4,
        warmup=2,
        learning_rate=0.01,
        log_every=1,
        checkpoint_every=3,
        tensorboard=False,
    )


class Toy(Recipe):
    """Recipe that predicts the brightness of noise images by one frozen and two trained layers."""

    name = "toy"

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.projection = nn.Linear(cfg.width, 1)

    def model(self) -> nn.Module:
        width = self.cfg.width
        model = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Dropout(0.0),
            nn.Conv2d(width, width, 1),
        )
        model[0].requires_grad_(False)
        return model

    def extra(self) -> nn.Module:
        self.projection = nn.Linear(self.cfg.width, 1)
        # A weight without a gradient, as in recipes where not every weight takes part in each step.
        self.projection.register_parameter("unused", nn.Parameter(torch.ones(2)))
        return self.projection

    def batch(self, step: int, part: BatchPart) -> Batch:
        images = [
            rng.random((3, 8, 8), np.float32) for rng in generators(self.cfg.loop, step, part)
        ]
        return {"image": torch.from_numpy(np.stack(images))}

    def loss(
        self, model: nn.Module, batch: Batch, averaged: nn.Module | None
    ) -> dict[str, torch.Tensor]:
        features = model(batch["image"]).mean(dim=(2, 3))
        answer = self.projection(features)[:, 0]
        return {"loss": (answer - batch["image"].mean(dim=(1, 2, 3))).square().mean()}


def train(cfg: Config, run: Path, recipe: Toy | None = None, **more: Any) -> loop.State:
    return loop.run(recipe or Toy(cfg), cfg.loop, run, config.to_dict(cfg), **more)


def settings(*overrides: str) -> Config:
    return config.override(Config(), overrides)


def rows(run: Path, *names: str) -> list[tuple[float, ...]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [tuple(json.loads(line)[name] for name in names) for line in lines]


@contextmanager
def nearly_full_disk(left: int) -> Iterator[None]:
    """Context in which files cannot grow beyond `left` bytes, as a stand-in for a full disk.

    A write then really fails half way.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--kill-in-save", type=int, default=0)
    parser.add_argument("--interrupt-at", type=int, default=-1)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    cfg = config.override(Config(), args.overrides)
    if args.kill_in_save:
        real, calls = checkpoints.save_file, [0]

        def dies(tensors: dict[str, torch.Tensor], path: str) -> None:
            calls[0] += 1
            real(tensors, path)
            if calls[0] == args.kill_in_save:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.save_file = dies
    recipe = Toy(cfg)
    if args.interrupt_at >= 0:
        usual = recipe.batch

        def interrupted(step: int, part: BatchPart) -> Batch:
            if step == args.interrupt_at:
                os.killpg(0, signal.SIGINT)  # to all processes of the group, as a terminal does
            return usual(step, part)

        recipe.batch = interrupted  # type: ignore[method-assign]
    try:
        train(cfg, args.run, recipe, console=Console(quiet=True))
    except loop.TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
