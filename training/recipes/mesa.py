# SPDX-License-Identifier: Apache-2.0
"""MeSa (arXiv 2310.04551): masked, geometric and supervised pre-training of one encoder.

Only the paper's abstract was available: three kinds of pre-training of one encoder, and that the
last layers benefit. Everything else is ours and a setting: the encoder (a Depth Anything's or the
U-Net's), the masked loss (SimMIM or MAE), the geometric one (Monodepth2), the supervised one
(scale-invariant logarithm), their weights, and which terms a step has.

    jointly    the weights masked, geometric and supervised are above 0
    staged     one weight above 0 per run; `start`: the run before; `take: all`
    fine-tune  supervised alone; `start`: the pre-training; `take: encoder`; layer_decay, drop_path
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from depth_node.metrics import evaluate
from training import checkpoints
from training.checkpoints import TrainingError
from training.data.augmentation import ViewConfig, Window
from training.data.mixed import Mixture, MixtureConfig
from training.data.open import DataConfig, open_samples
from training.data.samples import Sample
from training.data.sequences import SequenceConfig, Triplets, open_triplets
from training.losses.photometric import (
    GeometricConfig,
    PoseNetwork,
    bounded_depth,
    geometric_loss,
    silog,
)
from training.models.hub import DepthAnything
from training.models.masked import (
    MaskingConfig,
    PixelHead,
    cells,
    check_unit,
    drop_paths,
    random_mask,
    replaced,
)
from training.models.network_io import NetworkInput
from training.models.networks import Network, NetworkConfig, open_network
from training.models.unet import SmallUNet, unfold
from training.recipe import Batch, BatchPart, LoopConfig, Recipe, generators

ENCODER = re.compile(r"^(network\.backbone|encoder|stem|stages|context|detail\.encoder)\.")
LAYER = re.compile(r"(?:encoder\.layer|^stages|^(?:detail\.)?encoder\.blocks)\.(\d+)\.")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; a weight of 0 switches a term off, and its data is not read."""

    masked: float = config.option(1.0, "Weight of masked image modelling.", minimum=0)
    geometric: float = config.option(
        1.0, "Weight of the photometric error between frames.", minimum=0
    )
    supervised: float = config.option(
        1.0, "Weight of the scale-invariant logarithm against depth.", minimum=0
    )
    variance_focus: float = config.option(
        0.5, "Weight of the squared mean; 1 ignores a common factor of depth.", minimum=0,
        maximum=1,
    )  # fmt: skip
    hide: bool = config.option(
        False, "Geometric and supervised terms see masked images too (tokens only)."
    )
    alternate: bool = config.option(
        False,
        "One term a step in turn, instead of all of them in every step; several processes then need"
        " loop.find_unused.",
    )

    def __post_init__(self) -> None:
        config.validate(self)


@dataclass(frozen=True)
class CheckConfig:
    """Data sets with depth that score the exported weights, without any alignment."""

    inside: DataConfig = config.section(
        DataConfig, "Of the kind that is learnt from (limit 0: none).", kind="procedural"
    )
    outside: DataConfig = config.section(
        DataConfig, "Of another kind (limit 0: none).", kind="procedural"
    )


@dataclass(frozen=True)
class Config:
    """Settings of a run of MeSa."""

    height: int = config.option(224, "Rows of the images.", unit="px", minimum=14)
    width: int = config.option(224, "Columns of the images.", unit="px", minimum=14)
    network: NetworkConfig = config.section(NetworkConfig, "Encoder and decoder.", kind="small")
    start: str = config.option("", "Run of this recipe whose weights it starts from.")
    take: str = config.option("encoder", "What is taken from `start`.", choices=("encoder", "all"))
    imagenet: str = config.option(
        "",
        "A U-Net with encoder mobilenet, or with detail: torchvision's file of MobileNetV2"
        " (mobilenet_v2-b0353104.pth) that it starts from; empty: random.",
    )
    frozen_blocks: int = config.option(
        0,
        "A U-Net with encoder mobilenet: blocks, of 18 from the image on, that stay as they start;"
        " four of them, of strides 2 and 4, cost half of a step.",
        minimum=0,
        maximum=18,
    )
    head: str = config.option(
        "sigmoid",
        "depth from the network's output: between geometric.near and far by a sigmoid, or 1 over it"
        " (then an exported network gives disparity).",
        choices=("sigmoid", "inverse"),
    )
    typical: float = config.option(
        3.0, "sigmoid: the depth of an output of 0.", unit="m", minimum=1e-2
    )
    scales: int = config.option(
        4, "Scales of the geometric term; the U-Net has one.", minimum=1, maximum=4
    )
    poses: str = config.option(
        "given", "From the sequences, or learnt beside the network.", choices=("given", "network")
    )
    layer_decay: float = config.option(
        1.0, "Learning rate of an encoder's layer over that of the next one.", minimum=0.01,
        maximum=1,
    )  # fmt: skip
    drop_path: float = config.option(
        0.0, "Fraction of images that skip the last layer; earlier ones less.", minimum=0,
        maximum=0.9,
    )  # fmt: skip
    masking: MaskingConfig = config.section(MaskingConfig, "The masked term.")
    geometric: GeometricConfig = config.section(GeometricConfig, "The geometric term.")
    loss: LossConfig = config.section(LossConfig, "The weights.")
    images: MixtureConfig = config.section(MixtureConfig, "Masked and supervised: images.")
    sequences: SequenceConfig = config.section(SequenceConfig, "Geometric: videos.")
    augment: ViewConfig = config.section(ViewConfig, "How images are varied.", flip=0.5)
    check: CheckConfig = config.section(CheckConfig, "The data sets that score checkpoints.")
    loop: LoopConfig = config.section(
        LoopConfig, "How long and how fast.", learning_rate=1e-4, weight_decay=0.05
    )

    def __post_init__(self) -> None:
        config.validate(self)
        loss = self.loss
        if loss.masked == loss.geometric == loss.supervised == 0:
            raise config.ConfigError("every weight of loss is 0: nothing would be learnt")
        near, far = self.geometric.near, self.geometric.far
        if not near < self.typical < far:
            raise config.ConfigError(
                f"typical ({self.typical}) must lie between geometric.near ({near}) and far ({far})"
            )


def metres(raw: Tensor, cfg: Config) -> Tensor:
    """Convert the decoder's output (N, 1, H, W) to depth (N, 1, H, W) m, as cfg.head says."""
    near, far = cfg.geometric.near, cfg.geometric.far
    if cfg.head == "inverse":
        return 1.0 / functional.relu(raw.float()).clamp(1 / far, 1 / near)
    relative = (1 / cfg.typical - 1 / far) / (1 / near - 1 / far)
    return bounded_depth(raw + math.log(relative / (1 - relative)), near, far)


class Metric(nn.Module):
    """The network with its output in metres, for export and evaluation."""

    def __init__(self, network: Network, cfg: Config) -> None:
        super().__init__()
        self.network, self.cfg = network, cfg

    def forward(self, x: Tensor) -> Tensor:
        """Return depth (N, 1, H, W) m of images (N, 3, H, W) normalised by the network's spec."""
        answer = self.network.answer(x)
        return metres(answer.before if answer.before is not None else answer.disparity, self.cfg)


class TermModules(nn.Module):
    """Modules learnt beside the network and not exported; None if no term needs one.

    Raises ConfigError for several scales of the U-Net, and TrainingError as PixelHead does.
    """

    def __init__(self, network: Network, cfg: Config) -> None:
        super().__init__()
        loss = cfg.loss
        self.guess = PixelHead(network, cfg.masking, cfg.height, cfg.width) if loss.masked else None
        needs_pose = loss.geometric and cfg.poses == "network"
        self.pose = PoseNetwork() if needs_pose else None
        self.coarse: nn.ModuleList | None = None
        if loss.geometric and cfg.scales > 1:
            if not isinstance(network, DepthAnything):
                raise config.ConfigError("the U-Net has one scale: set scales to 1")
            width = network.network.config.fusion_hidden_size
            self.coarse = nn.ModuleList([nn.Conv2d(width, 1, 1) for _ in range(cfg.scales - 1)])


class Mesa(Recipe):
    """The recipe: images with depth and triplets of frames, None where no term needs them.

    checks: data sets with depth that score the checkpoints, by name.
    """

    name = "mesa"
    free_to_change = (
        "images.pool.folder",
        "images.data.folder",
        "images.second.folder",
        "sequences.folder",
    )

    def __init__(
        self,
        cfg: Config,
        images: Mixture | None,
        triplets: Triplets | None,
        checks: Mapping[str, Sequence[Sample]] | None = None,
    ) -> None:
        self.cfg, self.images, self.triplets = cfg, images, triplets
        self.checks = checks or {}
        self._network: Network | None = None
        self._beside: TermModules | None = None

    # --- network ---------------------------------------------------------------------------------

    def model(self) -> nn.Module:
        """Return the network, with its encoder (or all of it) from cfg.start.

        Raises TrainingError for a size, settings or weights that do not fit the network.
        """
        cfg = self.cfg
        network = open_network(cfg.network)
        if cfg.imagenet:
            if not isinstance(network, SmallUNet):
                raise TrainingError(
                    "imagenet is for the MobileNetV2 of a U-Net: set network.kind to unet, or leave"
                    " imagenet empty."
                )
            network.start_from_imagenet(Path(cfg.imagenet))
        fitting = network.spec.fitting(cfg.height, cfg.width)
        if fitting != (cfg.height, cfg.width):
            smaller = min(cfg.height, cfg.width) < network.spec.multiple_px
            why = "is smaller than a patch" if smaller else "does not fit the patches"
            raise TrainingError(
                f"An image of {cfg.height}x{cfg.width} {why} of {network.spec.multiple_px} px: set"
                f" height and width to {fitting[0]}x{fitting[1]}."
            )
        unfold(network, self._drawn)
        if cfg.start:
            weights = checkpoints.read(Path(cfg.start))["averaged"]
            if cfg.take == "encoder":
                own = {n: t for n, t in network.state_dict().items() if not ENCODER.match(n)}
                weights = {**own, **{n: t for n, t in weights.items() if ENCODER.match(n)}}
            checkpoints.load(network, weights, cfg.start)
        if cfg.frozen_blocks:
            if not isinstance(network, SmallUNet) or network.encoder is None:
                raise TrainingError(
                    "frozen_blocks are a MobileNetV2's: set network.kind to unet and"
                    " network.unet.encoder to mobilenet, or frozen_blocks to 0."
                )
            network.freeze(*(f"encoder.blocks.{k}" for k in range(cfg.frozen_blocks)))
        drop_paths(network, cfg.drop_path)
        if cfg.loss.hide:
            if not isinstance(network, DepthAnything):
                raise TrainingError("The U-Net has no tokens to hide: set loss.hide=false.")
            check_unit(network, cfg.masking)
        if not cfg.loss.geometric and not cfg.loss.supervised:
            for name, parameter in network.named_parameters():
                if not ENCODER.match(name):  # the masked term does not use the decoder
                    parameter.requires_grad_(False)
        tokens = (cfg.loss.masked and cfg.masking.variant == "simmim") or cfg.loss.hide
        for name, parameter in network.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(bool(tokens))
        self._network = network
        return network

    def extra(self) -> nn.Module | None:
        """Return the heads of the masked and geometric terms and the pose network, or None."""
        assert self._network is not None
        self._beside = TermModules(self._network, self.cfg)
        return self._beside if any(True for _ in self._beside.parameters()) else None

    def rate(self, name: str) -> float:
        """Return layer_decay to the power of the encoder's layers from this parameter on.

        For the last layer it is layer_decay, for the patch embedding or stem layer_decay to the
        number of layers plus 1; for the decoder and what follows the last layer 1.
        """
        decay = self.cfg.layer_decay
        if decay == 1 or not ENCODER.match(name) or self._network is None:
            return 1.0
        beside = name.startswith("detail.")  # this encoder stands beside the U-Net's own
        numbers = [
            int(match.group(1))
            for other in self._network.state_dict()
            if other.startswith("detail.") == beside and (match := LAYER.search(other)) is not None
        ]
        depth = max(numbers) + 1
        here = LAYER.search(name)
        if here is not None:
            return float(decay ** (depth - int(here.group(1))))
        # The embeddings of patches and positions precede the first layer; the final normalisation
        # and the U-Net's global context follow the last one.
        return 1.0 if "layernorm" in name or "context" in name else float(decay ** (depth + 1))

    # --- data ------------------------------------------------------------------------------------

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Return the data of a part; with loss.alternate only what the term of the step needs.

        terms (3,) bool: which of TERMS the step has. Masked and supervised: image (N, 3, h, w) in
        0..1 and depth (N, 1, h, w) m. Geometric: see Mesa._videos.
        """
        cfg, loss = self.cfg, self.cfg.loss
        terms = [name for name in ("masked", "geometric", "supervised") if getattr(loss, name)]
        if loss.alternate:
            terms = [terms[step % len(terms)]]
        batch: Batch = {"terms": torch.tensor([name in terms for name in TERMS])}
        rngs = generators(cfg.loop, step, part)
        if self.images is not None and {"masked", "supervised"} & set(terms):
            batch |= self.images.batch(rngs, cfg.height, cfg.width, cfg.augment)
        if self.triplets is not None and "geometric" in terms:
            batch |= self._videos(rngs)
        return batch

    def _drawn(self, count: int) -> Tensor:
        """Draw images (count, 3, h, w) in 0..1 from the data set of images, or of the videos."""
        cfg = self.cfg
        rngs = [np.random.default_rng([cfg.loop.seed, k]) for k in range(count)]
        if self.images is not None:
            return self.images.batch(rngs, cfg.height, cfg.width, cfg.augment)["image"]
        return self._videos(rngs)["target"]

    def _videos(self, rngs: list[np.random.Generator]) -> Batch:
        """Draw triplets: target (N, 3, h, w) and sources (N, 2, 3, h, w) in 0..1, and K of each.

        With poses=given also T_sources_target (N, 2, 4, 4).
        """
        assert self.triplets is not None
        rows: dict[str, list[Any]] = {}
        for rng in rngs:
            triplet = self.triplets[int(rng.integers(0, len(self.triplets)))]
            views = (triplet.target, *triplet.sources)
            row: dict[str, Any] = {
                "target": triplet.target.image,
                "sources": np.stack([view.image for view in triplet.sources]),
                "K_target": views[0].K,
                "K_sources": np.stack([view.K for view in views[1:]]),
            }
            if self.cfg.poses == "given":
                row["T_sources_target"] = triplet.poses()
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
        batch: Batch = {}
        for name, values in rows.items():
            stacked = torch.from_numpy(np.stack(values)).float()
            if name in ("target", "sources"):  # channels before rows
                stacked = (stacked / 255).movedim(-1, -3).contiguous()
            batch[name] = stacked
        return batch

    # --- losses ----------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Return the terms that the step has and their weighted sum.

        smooth, the smoothness part of the geometric term, is for the log alone.
        """
        weights = self.cfg.loss
        network: Any = model
        active = dict(zip(TERMS, batch["terms"].tolist(), strict=True))
        scalars: dict[str, Tensor] = {}
        if active["masked"] and self._beside is not None and self._beside.guess is not None:
            scalars["masked"] = self._beside.guess.loss(
                network, network.spec.normalise(batch["image"])
            )
        if active["supervised"]:
            depth = batch["depth"]
            known = torch.isfinite(depth) & (depth > 0)
            scalars["supervised"] = silog(
                self.depths(network, batch["image"])[0], depth, known, weights.variance_focus
            )
        if active["geometric"]:
            terms = self._geometric(network, batch)
            scalars["geometric"] = terms["loss"]
            scalars["smooth"] = terms["smooth"].detach()
        total = torch.stack(
            [getattr(weights, name) * scalars[name] for name in TERMS if name in scalars]
        ).sum()
        return {"loss": total, **scalars}

    def _geometric(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        target, sources = batch["target"], batch["sources"]
        poses = batch.get("T_sources_target")
        if poses is None:
            assert self._beside is not None and self._beside.pose is not None
            poses = torch.stack(
                [self._beside.pose(target, sources[:, k]) for k in range(sources.shape[1])], dim=1
            )
        return geometric_loss(
            self.depths(network, target, coarse=True),
            target,
            sources,
            batch["K_target"],
            batch["K_sources"],
            poses,
            self.cfg.geometric,
        )

    def depths(self, network: Any, images: Tensor, coarse: bool = False) -> list[Tensor]:
        """Return depth (N, 1, h, w) m of images (N, 3, h, w) in 0..1.

        With `coarse` the other scales follow, each half as large as the one before. Under loss.hide
        random squares are hidden in training.
        """
        cfg = self.cfg
        fused: list[Sequence[Tensor]] = []
        heads = self._beside.coarse if coarse and self._beside is not None else None
        handle = None
        if heads is not None:
            handle = network.network.neck.register_forward_hook(
                lambda _module, _inputs, output: fused.append(output)
            )
        hidden: Any = nullcontext()
        if cfg.loss.hide and network.training:
            mask = random_mask(
                images.shape[0], images.shape[-2], images.shape[-1],
                cfg.masking.unit_px, cfg.masking.ratio, device=images.device,
            )  # fmt: skip
            hidden = replaced(network, cells(mask, network.spec.multiple_px))
        try:
            with hidden:
                answer = network.answer(network.spec.normalise(images))
        finally:
            if handle is not None:
                handle.remove()
        raw = answer.before if answer.before is not None else answer.disparity
        maps = [raw]
        if heads is not None:
            # The neck's maps are in order from coarse to fine; the network's head uses the last.
            for k, head in enumerate(heads, start=1):
                size = [max(side // 2**k, 1) for side in images.shape[-2:]]
                answered = head(fused[0][-1 - k]).float()
                maps.append(
                    functional.interpolate(answered, size, mode="bilinear", align_corners=False)
                )
        return [metres(m, cfg) for m in maps]

    # --- judging ---------------------------------------------------------------------------------

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return RMSE (m) and AbsRel on the data sets of `check`, without any alignment."""
        numbers: dict[str, float] = {}
        device = next(model.parameters()).device
        for name, samples in self.checks.items():
            rows = []
            for k in range(len(samples)):
                sample = samples[k]
                window = Window.whole(sample.image.shape, self.cfg.height, self.cfg.width)
                x = torch.from_numpy(window.image(sample.image)).permute(2, 0, 1)[None]
                depth = self.depths(model, x.to(device).float() / 255)[0]
                full = functional.interpolate(
                    depth, sample.image.shape[:2], mode="bilinear", align_corners=False
                )
                if sample.depth is not None:
                    rows.append(evaluate(full[0, 0].cpu().numpy(), sample.depth))
            if rows:
                numbers[f"{name}_rmse"] = float(np.mean([row.rmse for row in rows]))
                numbers[f"{name}_abs_rel"] = float(np.mean([row.abs_rel for row in rows]))
        if "inside_rmse" in numbers:
            numbers["score"] = numbers["inside_rmse"]
        return numbers


TERMS = ("masked", "geometric", "supervised")


def build(cfg: Config, console: Console) -> Mesa:
    """Open the data that the terms need and return the recipe."""
    loss = cfg.loss
    images = Mixture(cfg.images, console.print) if loss.masked or loss.supervised else None
    triplets = None
    if loss.geometric:
        triplets = open_triplets(cfg.sequences, cfg.height, cfg.width, cfg.poses == "given")
    checks = {
        name: open_samples(data)
        for name, data in (("inside", cfg.check.inside), ("outside", cfg.check.outside))
        if data.limit
    }
    return Mesa(cfg, images, triplets, checks)


def exportable(payload: Mapping[str, Any]) -> tuple[Metric, NetworkInput, str]:
    """Return the network of a checkpoint, its input and the meaning of its output (metres)."""
    cfg = config.build(Config, payload["settings"])
    network = open_network(cfg.network, weights=False)
    checkpoints.load(network, payload["averaged"], "the checkpoint")
    return Metric(network, cfg), network.spec, "depth_metric"
