# SPDX-License-Identifier: Apache-2.0
"""A small student from images with depth: the normalised disparity of the truth, regressed.

The target is (disparity - median) / mean absolute deviation of each image; the prediction is left
as it is. Normalising the prediction too (a fully scale-and-shift-invariant loss) stalled at a
vertical ramp in our runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from depth_node import config
from training.checkpoints import load, starting_weights
from training.data.augmentation import RENDERED, ViewConfig
from training.data.mixed import batched, drawn, open_first
from training.data.open import DataConfig
from training.data.pool import PoolConfig
from training.data.samples import Images
from training.loop import Batch, BatchPart, LoopConfig, Recipe, generators
from training.losses.depth import gradient_matching, normalised_l1, relative_error
from training.losses.diffusion import directional_gradient
from training.losses.normalization import LEVELS, normalise
from training.models.diffusion import Alignment, root, student_target
from training.models.networks import NetworkConfig, open_dino
from training.models.unet import Residual, SmallUNet, StudentConfig


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
    relative: float = config.option(
        0.0,
        "Weight of the relative error of depth after scale and shift are fitted, the score of a"
        " network; for a run that starts from a trained one.",
        minimum=0,
    )
    space: str = config.option(
        "disparity",
        "Compare disparity, or its square root as DepthMaster scales it (quantiles); `norm` is then"
        " best left at none.",
        choices=("disparity", "sqrt_disparity"),
    )
    directional: float = config.option(
        0.0, "Weight of DepthMaster's multi-directional gradient loss; the paper's is 0.001.",
        minimum=0,
    )  # fmt: skip
    align: float = config.option(
        0.0, "Weight of the divergence of the encoder's features from DINOv2's tokens.", minimum=0
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
    start: str = config.option(
        "",
        "Run, checkpoint or file of weights that the network starts from, of this student or of one"
        " with fewer blocks; empty = random.",
    )
    trust_pickle: bool = config.option(
        False, "Open `start` even if it is a pickle that could run code; only if you made it."
    )
    source: str = config.option("pool", "What it learns from.", choices=("pool", "images"))
    pool: PoolConfig = config.section(PoolConfig, "The rendered scenes.")
    images: DataConfig = config.section(DataConfig, "The data set.", kind="frames")
    augment: ViewConfig = config.section(ViewConfig, "How they are varied.", **RENDERED)
    external: NetworkConfig = config.section(
        NetworkConfig, "loss.align: the DINOv2 whose tokens are compared with.", kind="small"
    )
    loss: LossConfig = config.section(LossConfig, "What is minimised.")
    loop: LoopConfig = config.section(LoopConfig, "How long and how fast.")

    def __post_init__(self) -> None:
        config.validate(self)
        if self.height % 32 or self.width % 32:
            raise config.ConfigError(
                "height and width must be multiples of 32, the network's coarsest stride"
            )


def disparity_loss(prediction: Tensor, depth: Tensor, cfg: LossConfig) -> dict[str, Tensor]:
    """Scalars of a batch: prediction (N, 1, H, W), depth (N, 1, H, W) m, not finite or <= 0 where
    unknown.
    """
    mask = torch.isfinite(depth) & (depth > 0)
    safe = torch.where(mask, depth, torch.ones_like(depth))
    compared = prediction
    if cfg.space == "sqrt_disparity":
        compared, (target, mask) = root(prediction), student_target(depth, mask)
    else:
        target = normalise(1.0 / safe, mask)
    residual = compared - target
    middle = (
        torch.where(mask, depth, torch.full_like(depth, torch.nan))
        .flatten(1)
        .nanmedian(dim=1)
        .values
    )
    weight = (safe / middle.nan_to_num(1.0).view(-1, 1, 1, 1)).clamp(0.2, 5.0) ** cfg.far
    level = normalised_l1(compared, target, mask, cfg.norm, weight)
    shape = gradient_matching(residual, mask)
    scalars = {"loss": level + cfg.gradient * shape, "level": level, "shape": shape}
    if cfg.directional:
        # The paper's maps span 2 from end to end, the student's roots 1.
        scale = 2.0 if cfg.space == "sqrt_disparity" else 1.0
        scalars["directional"] = directional_gradient(scale * compared, scale * target, mask)
        scalars["loss"] = scalars["loss"] + cfg.directional * scalars["directional"]
    if cfg.relative:
        scalars["relative"] = relative_error(prediction, safe, mask)
        scalars["loss"] = scalars["loss"] + cfg.relative * scalars["relative"]
    return scalars


def with_new_blocks(model: SmallUNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a student with fewer residual blocks, completed: the new ones are identities."""
    own = model.state_dict()
    complete = dict(weights)
    for name, module in model.stages.named_modules():
        prefix = f"stages.{name}."
        if isinstance(module, Residual) and not any(key.startswith(prefix) for key in weights):
            complete |= {key: value for key, value in own.items() if key.startswith(prefix)}
            # Nothing is added to what passes; the gradient of this scale wakes the block up.
            last = f"{prefix}body.1.1.weight"
            complete[last] = torch.zeros_like(own[last])
    return complete


class Supervised(Recipe):
    """The recipe: batches from a sequence of images with depth, drawn at random."""

    name = "supervised"
    free_to_change = ("pool.folder", "images.folder")

    def __init__(self, cfg: Config, images: Images) -> None:
        self.cfg = cfg
        self.images = images
        self._alignment: Alignment | None = None

    def model(self) -> nn.Module:
        """A fresh student, or one that has learnt before."""
        model = SmallUNet(self.cfg.student)
        if self.cfg.start:
            weights = starting_weights(self.cfg.start, self.cfg.trust_pickle)
            load(model, with_new_blocks(model, weights), self.cfg.start)
        return model

    def extra(self) -> nn.Module | None:
        """The projector of the feature alignment."""
        if self.cfg.loss.align:
            channels = self.cfg.student.widths[4]
            self._alignment = Alignment(channels, open_dino(self.cfg.external))
        return self._alignment

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Images (N, 3, h, w) normalised for the network and depth (N, 1, h, w) m."""
        cfg = self.cfg
        rngs = generators(cfg.loop, step, part)
        batch = batched(
            [drawn(self.images, rng, cfg.height, cfg.width, cfg.augment) for rng in rngs]
        )
        normalised = SmallUNet.spec.normalise(batch["image"])
        return {**batch, "image": normalised.contiguous(memory_format=torch.channels_last)}

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Normalised-disparity regression, and what the settings add to it."""
        if self._alignment is None:
            return disparity_loss(model(batch["image"]), batch["depth"], self.cfg.loss)
        network: Any = model
        answer = network.answer(batch["image"])
        scalars = disparity_loss(answer.disparity, batch["depth"], self.cfg.loss)
        align = self._alignment(SmallUNet.spec.denormalise(batch["image"]), answer.features)
        return {**scalars, "loss": scalars["loss"] + self.cfg.loss.align * align, "align": align}

    def batch_images(
        self, model: nn.Module, batch: Batch, averaged: nn.Module | None
    ) -> dict[str, NDArray[np.uint8]]:
        """Up to four images above the network's maps and the truth, near bright."""
        shown = batch["image"][:4].float()
        depth = batch["depth"][:4, 0].float()
        maps = [model(shown)[:, 0].float(), 1.0 / depth]
        rows = [(SmallUNet.spec.denormalise(shown).clamp(0, 1) * 255).permute(0, 2, 3, 1)]
        for values in maps:
            known = torch.where(torch.isfinite(values), values, torch.nan).flatten(1)
            low, high = (known.nanquantile(q, dim=1).view(-1, 1, 1) for q in (0.02, 0.98))
            grey = ((values - low) / (high - low).clamp_min(1e-6)).nan_to_num(0).clamp(0, 1) * 255
            rows.append(grey[..., None].expand(-1, -1, -1, 3))
        sheet = torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0)
        return {"predictions": sheet.byte().cpu().numpy()}


def build(cfg: Config, console: Console) -> Supervised:
    """The recipe on its pool, once that holds enough, or on a data set."""

    def waiting(count: int) -> None:
        console.print(f"waiting for the renderer: {count} of {cfg.pool.wait_for} images")

    return Supervised(cfg, open_first(cfg.source, cfg.pool, cfg.images, waiting))
