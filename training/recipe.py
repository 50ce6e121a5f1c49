# SPDX-License-Identifier: Apache-2.0
"""What a recipe is to the training loop: model, batches and loss, and how long and fast to learn.

The images of step k follow from the seed and k alone (`generators`), whoever makes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from depth_node import config

Batch = dict[str, Any]
BatchPart = tuple[int, int]  # (index, count): which of `count` equal parts of a step's images


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to learn."""

    seed: int = config.option(-1, "Seed of weights, batches and augmentation; must be set.")
    steps: int = config.option(10_000, "Optimiser steps in all.", minimum=1)
    batch: int = config.option(
        32, "Images per step, over all processes and accumulated parts together.", minimum=1
    )
    accumulate: int = config.option(
        1, "Parts that a process cuts its images of a step into, to save memory.", minimum=1
    )
    learning_rate: float = config.option(2e-3, "Peak learning rate of AdamW.", minimum=0)
    schedule: str = config.option(
        "cosine",
        "How the rate falls after the warm-up: half a cosine, (1 - done)^power, final_rate^done, or"
        " not at all.",
        choices=("cosine", "poly", "exponential", "constant"),
    )
    power: float = config.option(0.9, "Exponent of the poly schedule.", minimum=0)
    final_rate: float = config.option(
        0.01, "Last learning rate over the peak.", minimum=0, maximum=1
    )
    warmup: int = config.option(300, "Steps of linear warm-up.", minimum=0)
    weight_decay: float = config.option(
        0.02, "AdamW's weight decay, on matrices and kernels only.", minimum=0
    )
    clip: float = config.option(1.0, "Greatest norm of the gradient; 0 = no limit.", minimum=0)
    ema: float = config.option(
        0.999,
        "Decay of the averaged weights at each step; 0 = no averaged copy.",
        minimum=0,
        maximum=1,
    )
    ema_warmup: bool = config.option(
        True, "Forget faster in the first steps; for networks that start from random weights."
    )
    precision: str = config.option(
        "fp32", "Arithmetic of the network; fp16 needs a GPU.", choices=("fp32", "bf16", "fp16")
    )
    find_unused: bool = config.option(
        True,
        "Several processes only: allow steps in which some weights take no part; a little slower.",
    )
    threads: int = config.option(1, "CPU threads of torch.", minimum=1)
    workers: int = config.option(
        0, "Processes that make batches ahead; 0 = the training process itself.", minimum=0
    )
    log_every: int = config.option(50, "Steps between log lines.", minimum=1)
    images_every: int = config.option(0, "Steps between images; 0 = none.", minimum=0)
    checkpoint_every: int = config.option(
        500, "Steps between checkpoints (and the recipe's validation).", minimum=1
    )
    keep_every: int = config.option(
        0, "Steps between checkpoints that are kept beside last and best; 0 = none.", minimum=0
    )
    tensorboard: bool = config.option(True, "Also write TensorBoard's files.")

    def __post_init__(self) -> None:
        config.validate(self)


class Recipe(ABC):
    """The interface of a recipe to the loop. model, batch and loss are required."""

    name: str = ""
    """As in the table of training/recipes; stored in checkpoints for the export."""
    free_to_change: tuple[str, ...] = ()
    """Dotted settings of its own that may change between interruption and resumption"""

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, on the CPU; torch's generator is seeded before the call.

        Only what requires a gradient is learnt and averaged.
        """

    @abstractmethod
    def batch(self, step: int, part: BatchPart) -> Batch:
        """One part of the images of a step, on the CPU: see `generators`.

        A function of seed, step and part alone. It may run in another process (loop.workers):
        networks that it needs belong into `loss`.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Scalars of a part; the one called "loss" is minimised. Called under autocast.

        batch is on the model's device. averaged: the copy with averaged weights (the teacher of
        self-training), in eval mode and without gradients; None where loop.ema is 0.
        """

    def extra(self) -> nn.Module | None:
        """A module learnt beside the model and not exported (a projection); part of checkpoints.

        Called once, after model(); the recipe holds on to it and uses it in `loss`.
        """
        return None

    def rate(self, name: str) -> float:
        """Learning rate of a parameter, by its name in model or extra, over the loop's."""
        return 1.0

    def shown(self) -> dict[str, str]:
        """Names of the log that the console shows beside loss and score -> what it calls them."""
        return {}

    def next_step(self, run: Path) -> str:
        """The command that uses the result of a run."""
        return f"python -m training export {run} --out {run.name}.onnx"

    def batch_images(
        self, model: nn.Module, batch: Batch, averaged: nn.Module | None
    ) -> dict[str, NDArray[np.uint8]]:
        """Images (H, W, 3) uint8 RGB by name; model is in eval mode, no gradients are kept."""
        return {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Numbers about the weights that would be exported, at every checkpoint.

        The one called "score" (lower is better) decides what is best; without it the mean loss
        since the last checkpoint does.
        """
        return {}


def generators(cfg: LoopConfig, step: int, part: BatchPart) -> list[np.random.Generator]:
    """A generator per image of this part of a step: of the seed, the step, and its number."""
    index, count = part
    each = cfg.batch // count
    return [np.random.default_rng([cfg.seed, step, index * each + k]) for k in range(each)]
