# SPDX-License-Identifier: Apache-2.0
"""A small student from rendered rooms: the normalised disparity of the truth, regressed.

The target is (disparity - median) / mean absolute deviation of each picture; the prediction is left
as it is. Normalising the prediction too (a fully scale-and-shift-invariant loss) stalled at a
vertical ramp in our runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from depth_node import config
from training.data import RENDERED, Pool, PoolConfig, ViewConfig, augment, open_pool
from training.loop import Batch, LoopConfig, Recipe, Share, generators
from training.losses import gradient_matching, normalised_l1
from training.models import SmallUNet, StudentConfig
from training.normalization import LEVELS, normalise

MEANING = "disparity_affine_invariant"
# The network sees (pixel / 255 - MEAN) / STD; the export writes both into the manifest.
MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class LossConfig:
    """What is compared, and what counts how much."""

    norm: str = config.option(
        "none",
        "What is done to prediction and normalised target before they are compared.",
        choices=("none", *LEVELS),
    )
    gradient: float = config.option(0.5, "Weight of the multi-scale gradient term.", minimum=0)
    far: float = config.option(
        0.5,
        "Pixels weigh (depth / median depth) to this power; 0: all alike.",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        config.validate(self)


@dataclass(frozen=True)
class Config:
    """Everything that shapes a supervised run."""

    height: int = config.option(
        96, "Rows of the network's input; a multiple of 32.", unit="px", minimum=32
    )
    width: int = config.option(
        128, "Columns of the network's input; a multiple of 32.", unit="px", minimum=32
    )
    student: StudentConfig = config.section(StudentConfig, "The network.")
    pool: PoolConfig = config.section(PoolConfig, "The rendered scenes.")
    augment: ViewConfig = config.section(ViewConfig, "How they are varied.", **RENDERED)
    loss: LossConfig = config.section(LossConfig, "What is minimised.")
    loop: LoopConfig = config.section(LoopConfig, "How long and how fast.")

    def __post_init__(self) -> None:
        config.validate(self)
        if self.height % 32 or self.width % 32:
            raise config.ConfigError(
                "height and width must be multiples of 32, the network's coarsest stride"
            )


SupervisedConfig = Config  # its former name


def disparity_loss(prediction: Tensor, depth: Tensor, cfg: LossConfig) -> dict[str, Tensor]:
    """Scalars of a batch: prediction (N, 1, H, W), depth (N, 1, H, W) m, not finite or <= 0 where
    unknown.
    """
    mask = torch.isfinite(depth) & (depth > 0)
    safe = torch.where(mask, depth, torch.ones_like(depth))
    target = normalise(1.0 / safe, mask)
    residual = prediction - target
    middle = (
        torch.where(mask, depth, torch.full_like(depth, torch.nan))
        .flatten(1)
        .nanmedian(dim=1)
        .values
    )
    weight = (safe / middle.nan_to_num(1.0).view(-1, 1, 1, 1)).clamp(0.2, 5.0) ** cfg.far
    level = normalised_l1(prediction, target, mask, cfg.norm, weight)
    shape = gradient_matching(residual, mask)
    return {"loss": level + cfg.gradient * shape, "level": level, "shape": shape}


class Supervised(Recipe):
    """The recipe: batches from a pool of rendered scenes."""

    name = "supervised"
    free_to_change = ("pool.folder",)

    def __init__(self, cfg: Config, pool: Pool) -> None:
        self.cfg = cfg
        self.pool = pool

    def model(self) -> nn.Module:
        """A fresh student."""
        return SmallUNet(self.cfg.student)

    def batch(self, step: int, share: Share) -> Batch:
        """Pictures (N, 3, h, w) as the network sees them and depth (N, 1, h, w) m."""
        cfg = self.cfg
        pairs = []
        for rng in generators(cfg.loop, step, share):
            i = int(rng.integers(0, len(self.pool)))
            depth = self.pool.depth[i].astype(np.float32)
            pairs.append(
                augment(self.pool.image[i], depth, cfg.height, cfg.width, cfg.augment, rng)
            )
        images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
        depth = torch.from_numpy(np.stack([depth for _, depth in pairs]))[:, None]
        return {
            "image": ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last),
            "depth": depth,
        }

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Normalised-disparity regression."""
        return disparity_loss(model(batch["image"]), batch["depth"], self.cfg.loss)


def build(cfg: Config, console: Console) -> Supervised:
    """The recipe on its pool, once that holds enough."""

    def waiting(found: int) -> None:
        console.print(f"waiting for the renderer: {found} of {cfg.pool.wait_for} pictures")

    return Supervised(cfg, open_pool(cfg.pool, waiting))
