# SPDX-License-Identifier: Apache-2.0
"""The interface between a recipe and the training loop, and the settings of the loop.

The images of step k depend on the seed and k alone (`generators`), whichever process makes them.
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
    """The interface of a recipe to the loop; `model`, `batch` and `loss` are required."""

    name: str = ""
    """Key in RECIPES of training/recipes; stored in checkpoints for the export."""
    free_to_change: tuple[str, ...] = ()
    """Dotted names of its own settings that may differ between a checkpoint and a resumed run."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a fresh model on the CPU; the loop seeds torch's generator before the call.

        Only parameters that require a gradient are learnt.
        """

    @abstractmethod
    def batch(self, step: int, part: BatchPart) -> Batch:
        """Return one part of the images of a step, on the CPU, drawn with `generators`.

        It must depend on seed, step and part alone. It may run in another process (loop.workers),
        so networks are not called here but in `loss`.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Return the scalars of a part by name; the one called "loss" is minimised.

        Called under autocast, with batch on the model's device. averaged: the copy with averaged
        weights (the teacher of self-training), in eval mode and without gradients; None if loop.ema
        is 0.
        """

    def extra(self) -> nn.Module | None:
        """Return a module that is learnt beside the model and not exported (a projection), or None.

        It is part of the checkpoints. Called once, after model(); the recipe keeps it for `loss`.
        """
        return None

    def rate(self, name: str) -> float:
        """Return the factor on the loop's learning rate of a parameter of model or extra."""
        return 1.0

    def shown(self) -> dict[str, str]:
        """Return name in the log -> label, for numbers shown beside loss and score ("": hidden)."""
        return {}

    def next_step(self, run: Path) -> str:
        """Return the command that uses the result of a run."""
        return f"python -m training export {run} --out {run.name}.onnx"

    def batch_images(
        self, model: nn.Module, batch: Batch, averaged: nn.Module | None
    ) -> dict[str, NDArray[np.uint8]]:
        """Return images (H, W, 3) uint8 RGB of a batch by name, for the log.

        Called with the model in eval mode and without gradients.
        """
        return {}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return numbers about the weights that would be exported, at every checkpoint.

        The one called "score" (lower is better) decides which checkpoint is best; without it the
        mean loss since the last checkpoint does.
        """
        return {}


def generators(cfg: LoopConfig, step: int, part: BatchPart) -> list[np.random.Generator]:
    """Return a generator for each image of a part, seeded by run seed, step and image number."""
    index, count = part
    each = cfg.batch // count
    return [np.random.default_rng([cfg.seed, step, index * each + k]) for k in range(each)]
