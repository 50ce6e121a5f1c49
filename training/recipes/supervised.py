# SPDX-License-Identifier: Apache-2.0
"""Supervised training of a small student: regression of the true, normalised disparity.

The target is (disparity - median) / mean absolute deviation of each image; the prediction is not
normalised. With a normalised prediction (a fully scale-and-shift-invariant loss) our runs stopped
learning at a vertical ramp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from depth_node.engine.manifest import PACKAGED
from training.batch_images import sheet
from training.checkpoints import load, starting_weights
from training.data.augmentation import RENDERED, ViewConfig
from training.data.mixed import batched, drawn, open_first
from training.data.on_device import HeldPools
from training.data.open import DataConfig
from training.data.pool import Pool, PoolConfig, open_pool
from training.data.samples import F32, Images
from training.losses.depth import (
    boundary_error,
    farthest,
    gradient_matching,
    normalised_l1,
    relative_error,
)
from training.losses.diffusion import directional_gradient
from training.losses.normalization import LEVELS, normalised_by
from training.losses.targets import root, student_target
from training.models.alignment import Alignment
from training.models.networks import NetworkConfig, open_dino, open_network
from training.models.unet import (
    OFFSET,
    STATISTICS_OF,
    Residual,
    SmallUNet,
    StudentConfig,
    restore_statistics,
)
from training.recipe import Batch, BatchPart, LoopConfig, Recipe, generators


@dataclass(frozen=True)
class LossConfig:
    """What is compared, and the weights of the terms."""

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
    boundary: float = config.option(
        0.0,
        "Weight of the error of depth's ratios between neighbours, after the same fit; ratios at"
        " occluding edges weigh more.",
        minimum=0,
    )
    align: float = config.option(
        0.0, "Weight of the divergence of the encoder's features from DINOv2's tokens.", minimum=0
    )

    def __post_init__(self) -> None:
        config.validate(self)


@dataclass(frozen=True)
class Config:
    """Settings of a supervised run."""

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
        " with fewer blocks, `embedded` or `embedded-small`; empty = random.",
    )
    freeze_encoder: bool = config.option(
        False, "The U-Net's encoder stays as it starts: only its decoder and what is new learn."
    )
    imagenet: str = config.option(
        "",
        "A student with encoder mobilenet, or with detail: torchvision's file of MobileNetV2"
        " (mobilenet_v2-b0353104.pth) that it starts from; empty = random.",
    )
    imagenet_rate: float = config.option(
        1.0,
        "Learning rate of that encoder over the loop's; 0 freezes it, and is quicker.",
        minimum=0,
    )
    trust_pickle: bool = config.option(
        False, "Open `start` even if it is a pickle that could run code; only if you made it."
    )
    source: str = config.option("pool", "What it learns from.", choices=("pool", "images"))
    pool: PoolConfig = config.section(PoolConfig, "The rendered scenes.")
    outdoors: PoolConfig = config.section(
        PoolConfig, "A second pool, of outdoor scenes.", folder="pool_outdoors", style="outdoors"
    )
    outdoors_share: float = config.option(
        0.0, "Share of images from the second pool.", minimum=0, maximum=1
    )
    on_device: bool = config.option(
        False,
        "Hold the pools in the memory of the GPU, all of pool.samples x height x width x 5 bytes,"
        " and vary their images there: for a GPU that the CPU's cores could not feed.",
    )
    images: DataConfig = config.section(DataConfig, "The data set.", kind="frames")
    augment: ViewConfig = config.section(ViewConfig, "How they are varied.", **RENDERED)
    external: NetworkConfig = config.section(
        NetworkConfig, "loss.align: the DINOv2 whose tokens are compared with.", kind="small"
    )
    loss: LossConfig = config.section(LossConfig, "What is minimised.")
    loop: LoopConfig = config.section(LoopConfig, "How long and how fast.")

    def __post_init__(self) -> None:
        config.validate(self)
        coarsest = 64 if self.student.detail else 32
        if self.height % coarsest or self.width % coarsest:
            raise config.ConfigError(
                f"height and width must be multiples of {coarsest}, the network's coarsest stride"
            )
        if self.on_device and self.source != "pool":
            raise config.ConfigError("on_device holds pools: set source to pool, or on_device off")


def disparity_loss(prediction: Tensor, depth: Tensor, cfg: LossConfig) -> dict[str, Tensor]:
    """Return the terms of a batch and their weighted sum.

    prediction (N, 1, H, W) disparity; depth (N, 1, H, W) m, not finite or <= 0 where unknown.
    """
    mask = torch.isfinite(depth) & (depth > 0)
    safe = torch.where(mask, depth, torch.ones_like(depth))
    near = mask & (safe <= farthest(safe, mask))
    compared = prediction
    if cfg.space == "sqrt_disparity":
        compared, (target, mask) = root(prediction), student_target(depth, mask)
    else:
        target = normalised_by(1.0 / safe, mask, near)
    residual = compared - target
    middle = (
        torch.where(near, depth, torch.full_like(depth, torch.nan))
        .flatten(1)
        .nanmedian(dim=1)
        .values
    )
    weight = (safe / middle.nan_to_num(1.0).view(-1, 1, 1, 1)).clamp(0.2, 5.0) ** cfg.far
    level = normalised_l1(compared, target, mask, cfg.norm, weight)
    shape = gradient_matching(residual, mask)
    scalars = {"loss": level + cfg.gradient * shape, "level": level, "shape": shape}
    if cfg.directional:
        # The range of the paper's maps is 2 (-1..1), that of the student's roots is 1.
        scale = 2.0 if cfg.space == "sqrt_disparity" else 1.0
        scalars["directional"] = directional_gradient(scale * compared, scale * target, mask)
        scalars["loss"] = scalars["loss"] + cfg.directional * scalars["directional"]
    if cfg.relative:
        scalars["relative"] = relative_error(prediction, safe, mask)
        scalars["loss"] = scalars["loss"] + cfg.relative * scalars["relative"]
    if cfg.boundary:
        scalars["boundary"] = boundary_error(prediction, safe, mask)
        scalars["loss"] = scalars["loss"] + cfg.boundary * scalars["boundary"]
    return scalars


def with_new_blocks(model: SmallUNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Complete weights of a student with fewer residual blocks or without detail.

    The new blocks start as identities, and the new decoder levels start by adding 0.
    """
    own = model.state_dict()
    complete = dict(weights)
    if not any(key.startswith("detail.") for key in weights):
        complete |= {key: value for key, value in own.items() if key.startswith("detail.")}
    for name, module in model.stages.named_modules():
        prefix = f"stages.{name}."
        if isinstance(module, Residual) and not any(key.startswith(prefix) for key in weights):
            complete |= {key: value for key, value in own.items() if key.startswith(prefix)}
            # With this scale at 0 the block adds nothing; its gradient lets the block learn.
            last = f"{prefix}body.1.1.weight"
            complete[last] = torch.zeros_like(own[last])
    return complete


class Supervised(Recipe):
    """The recipe: images with depth, drawn at random; `outdoors`: a second pool."""

    name = "supervised"
    free_to_change = ("pool.folder", "outdoors.folder", "images.folder")

    def __init__(self, cfg: Config, images: Images, outdoors: Images = ()) -> None:
        self.cfg = cfg
        self.images = images
        self.outdoors = outdoors
        self._alignment: Alignment | None = None
        pools = [some for some in (images, outdoors) if isinstance(some, Pool)]
        self._held = HeldPools(pools) if cfg.on_device else None

    def model(self) -> nn.Module:
        """Return the student, fresh or with the weights that `start` and `imagenet` name.

        Raises TrainingError for weights that cannot be read or do not fit.
        """
        cfg = self.cfg
        model = SmallUNet(cfg.student)
        if cfg.imagenet:
            model.start_from_imagenet(Path(cfg.imagenet))
        if cfg.start in PACKAGED:
            load(model, with_new_blocks(model, self._embedded()), cfg.start)
        elif cfg.start:
            weights = starting_weights(cfg.start, cfg.trust_pickle)
            load(model, with_new_blocks(model, weights), cfg.start)
        if cfg.freeze_encoder:
            own = ("encoder",) if model.encoder is not None else ("stem", "stages")
            model.freeze(*own, "context")
        if model.imagenet and cfg.imagenet_rate == 0:
            model.freeze(model.imagenet)
        return model

    def rate(self, name: str) -> float:
        """Return imagenet_rate for the MobileNetV2 encoder and 1 for the rest."""
        pretrained = re.search(r"(^|\.)encoder\.blocks\.", name)
        return self.cfg.imagenet_rate if pretrained else 1.0

    def _embedded(self) -> dict[str, Tensor]:
        """Return the weights of a shipped U-Net as they were before its export.

        Its batch normalisations have statistics again, and its output is centred on 0.
        """
        cfg = self.cfg
        network = open_network(NetworkConfig(source=cfg.start))
        assert isinstance(network, SmallUNet) and network.head.bias is not None
        scale = 2 if cfg.student.detail and not network.cfg.detail else 1
        rngs = [np.random.default_rng([cfg.loop.seed, k]) for k in range(STATISTICS_OF)]
        images = SmallUNet.spec.normalise(batched([self._drawn(rng) for rng in rngs])["image"])
        restore_statistics(network, functional.avg_pool2d(images, scale))
        with torch.no_grad():
            network.head.bias.sub_(OFFSET)
        return network.state_dict()

    def _drawn(self, rng: np.random.Generator) -> tuple[F32, F32]:
        cfg = self.cfg
        outdoors = cfg.outdoors_share > 0 and rng.random() < cfg.outdoors_share
        images = self.outdoors if outdoors else self.images
        return drawn(images, rng, cfg.height, cfg.width, cfg.augment)

    def extra(self) -> nn.Module | None:
        """Return the feature alignment with its projector, or None if it is off."""
        if self.cfg.loss.align:
            channels = self.cfg.student.widths[4]
            self._alignment = Alignment(channels, open_dino(self.cfg.external))
        return self._alignment

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Return images (N, 3, h, w) normalised for the network and depth (N, 1, h, w) m.

        With on_device: the numbers from which `loss` makes these images on the device.
        """
        cfg = self.cfg
        rngs = generators(cfg.loop, step, part)
        if self._held is not None:
            share = cfg.outdoors_share
            return self._held.draw(rngs, share, cfg.augment, cfg.height, cfg.width)
        return _normalised(batched([self._drawn(rng) for rng in rngs]))

    def _made(self, batch: Batch) -> Batch:
        if self._held is None:
            return batch
        return _normalised(self._held.batch(batch, self.cfg.augment))

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Return the terms of disparity_loss and, if it is on, the feature alignment."""
        batch = self._made(batch)
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
        """Draw up to four images above the network's maps and the true disparity."""
        batch = {name: values[:4].float() for name, values in self._made(batch).items()}
        depth = batch["depth"]
        known = torch.isfinite(depth) & (depth > 0)
        truth = torch.where(known, 1.0 / depth, torch.full_like(depth, torch.nan))
        images = {"image": SmallUNet.spec.denormalise(batch["image"])}
        return {"predictions": sheet(images, {"network": model(batch["image"]), "truth": truth})}


def _normalised(batch: Batch) -> Batch:
    """Return the batch with its images normalised for the network."""
    normalised = SmallUNet.spec.normalise(batch["image"])
    return {**batch, "image": normalised.contiguous(memory_format=torch.channels_last)}


def build(cfg: Config, console: Console) -> Supervised:
    """Return the recipe on its pool or data set; waits until a pool holds enough images."""
    outdoors: Images = ()
    if cfg.outdoors_share > 0:
        outdoors = open_pool(cfg.outdoors, console.print)
    return Supervised(cfg, open_first(cfg.source, cfg.pool, cfg.images, console.print), outdoors)
