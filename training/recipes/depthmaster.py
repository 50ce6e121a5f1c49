# SPDX-License-Identifier: Apache-2.0
"""DepthMaster (arXiv 2501.02576): a diffusion network predicts depth in one step, in two stages.

    learn: autoencoder   small networks only; a Stable Diffusion brings its own autoencoder
    learn: unet          stage 1: loss.latent, loss.align            (structure)
                         stage 2: loss.pixel, loss.gradient, diffusion.fourier; start: stage 1's run

Every term of the paper's ablations is a weight or a switch of its own (tables II to VI).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from depth_node.metrics import boundary_f1, evaluate
from depth_node.prediction import Prediction
from training import checkpoints
from training.batch_images import sheet
from training.data.augmentation import ViewConfig, Window
from training.data.mixed import Mixture, MixtureConfig
from training.data.open import DataConfig, open_samples
from training.data.samples import Sample
from training.evaluation import protocols
from training.losses.diffusion import FORMS, directional_gradient, masked_mse, pooled_mask
from training.losses.targets import Target, target
from training.models.alignment import Alignment, external_size
from training.models.diffusion import (
    FEATURE_LAYERS,
    DiffusionConfig,
    SingleStep,
    from_checkpoint,
    memory,
    open_diffusion,
    unscaled,
)
from training.models.network_io import NetworkInput
from training.models.networks import NetworkConfig, open_dino
from training.recipe import Batch, BatchPart, LoopConfig, Recipe, generators

LEARN = ("unet", "autoencoder")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss. The defaults are those of the paper's stage 1.

    Its stage 2 has latent 0, align 0, pixel 1 and gradient 0.001.
    """

    latent: float = config.option(1.0, "Weight of the latents' squared difference.", minimum=0)
    align: float = config.option(
        1.0, "Weight of the divergence from the external encoder's tokens.", minimum=0
    )
    pixel: float = config.option(0.0, "Weight of the decoded maps' squared difference.", minimum=0)
    gradient: float = config.option(
        0.0, "Weight of the multi-directional gradient loss of decoded maps.", minimum=0
    )
    delta: float = config.option(
        0.2, "Where the gradient loss turns from linear to square.", minimum=1e-6
    )
    form: str = config.option(
        "paper", "The gradient loss as the paper or as its code has it.", choices=FORMS
    )
    align_layer: str = config.option(
        "mid", "Where the U-Net's features are aligned (table V).", choices=FEATURE_LAYERS
    )
    tails: float = config.option(
        0.02, "Fraction of an image's pixels beyond each end of the target.", minimum=0, maximum=0.4
    )
    far: float = config.option(80.0, "Depth beyond this is not known.", unit="m", minimum=0.1)
    kl: float = config.option(
        1e-4, "learn: autoencoder: weight of the divergence from a normal latent.", minimum=0
    )

    def __post_init__(self) -> None:
        config.validate(self)


@dataclass(frozen=True)
class Config:
    """Settings of a run of DepthMaster."""

    height: int = config.option(480, "Rows of the images.", unit="px", minimum=8)
    width: int = config.option(640, "Columns of the images.", unit="px", minimum=8)
    learn: str = config.option("unet", "What is learnt; the other part is frozen.", choices=LEARN)
    start: str = config.option(
        "", "Run of this recipe that the weights come from (the stage before)."
    )
    diffusion: DiffusionConfig = config.section(DiffusionConfig, "The network.")
    fourier_rate: float = config.option(
        1.0,
        "Learning rate of the Fourier block over the loop's: it begins as nothing in a stage whose"
        " rate is a tenth.",
        minimum=0,
    )
    external: NetworkConfig = config.section(
        NetworkConfig,
        "The DINOv2 that features are aligned with; the paper's is facebook/dinov2-giant. Or"
        " torchvision's mobilenet_v2-b0353104.pth (ours).",
        kind="small",
    )
    loss: LossConfig = config.section(LossConfig, "What is minimised.")
    images: MixtureConfig = config.section(MixtureConfig, "What it learns from.")
    augment: ViewConfig = config.section(ViewConfig, "How images are varied.", flip=0.5)
    check: DataConfig = config.section(
        DataConfig, "The data set that scores every checkpoint (limit 0: none).",
        kind="procedural",
    )  # fmt: skip
    loop: LoopConfig = config.section(LoopConfig, "How long and how fast.")

    def __post_init__(self) -> None:
        config.validate(self)
        loss, paradigm = self.loss, self.diffusion.paradigm
        if self.learn == "autoencoder" and self.diffusion.source:
            raise config.ConfigError(
                "learn: autoencoder is for the small networks; a Stable Diffusion brings its own,"
                " which stays frozen"
            )
        if paradigm == "denoising" and (loss.align or loss.pixel or loss.gradient):
            raise config.ConfigError(
                "the denoising paradigm has a latent loss only: set loss.align, loss.pixel and"
                " loss.gradient to 0"
            )
        if not (loss.latent or loss.align or loss.pixel or loss.gradient):
            raise config.ConfigError("every weight of loss is 0: nothing would be learnt")


class DepthMaster(Recipe):
    """The recipe: a one-step diffusion network, trained on images with depth.

    images: to train on. check: images that score every checkpoint. say: receives sentences for the
    user.
    """

    name = "depthmaster"
    free_to_change = ("images.pool.folder", "images.data.folder", "images.second.folder")

    def __init__(
        self,
        cfg: Config,
        images: Mixture,
        check: Sequence[Sample] = (),
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.cfg, self.images, self.check, self.say = cfg, images, check, say
        self._alignment: Alignment | None = None
        self._network: SingleStep | None = None

    def model(self) -> nn.Module:
        """Return the network, fresh or from cfg.start, with the part that is not learnt frozen."""
        cfg = self.cfg
        network = open_diffusion(cfg.diffusion)
        if cfg.start:
            weights = {**unscaled(network), **checkpoints.read(Path(cfg.start))["averaged"]}
            if network.fourier is not None:
                # The run of stage 1 has no Fourier block; a fresh one adds 0 to the features.
                fresh = network.fourier.state_dict(prefix="fourier.")
                weights = {
                    **{name: t for name, t in fresh.items() if name not in weights},
                    **weights,
                }
            checkpoints.load(network, weights, cfg.start)
        if cfg.learn == "autoencoder":
            network.requires_grad_(False)
            network.vae.requires_grad_(True)
        self._network = network
        size = memory(network)
        self.say(
            f"training takes {size['weights']:.3g} GiB of weights, {size['gradients']:.3g} of"
            f" gradients, {size['optimiser']:.3g} of AdamW's moments: {size['total']:.3g} GiB, and"
            " the activations of the images of a part"
        )
        return network

    def rate(self, name: str) -> float:
        """Return fourier_rate for the Fourier block (it is new in stage 2) and 1 for the rest."""
        return self.cfg.fourier_rate if ".fourier." in f".{name}" else 1.0

    def extra(self) -> nn.Module | None:
        """Return the feature alignment with its projector, or None if it is off.

        Raises TrainingError for images that are too small for the external encoder.
        """
        cfg = self.cfg
        if not cfg.loss.align or cfg.learn == "autoencoder" or self._network is None:
            return None
        external = open_dino(cfg.external)
        external_size(cfg.height, cfg.width, external.spec.multiple_px)  # raises if too small
        widths = self._network.unet.config.block_out_channels
        inputs = {"mid": widths[-1], "down1": widths[0], "down2": widths[1]}[cfg.loss.align_layer]
        self._alignment = Alignment(inputs, external)
        return self._alignment

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Return images (N, 3, h, w) in 0..1 and depth (N, 1, h, w) m."""
        cfg = self.cfg
        rngs = generators(cfg.loop, step, part)
        return self.images.batch(rngs, cfg.height, cfg.width, cfg.augment)

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Return the terms whose weights are not 0 and their weighted sum.

        Depth beyond loss.far counts as unknown.
        """
        cfg, weights = self.cfg, self.cfg.loss
        assert isinstance(model, SingleStep)
        depth = batch["depth"]
        known = torch.isfinite(depth) & (depth > 0) & (depth <= weights.far)
        target_map = target(depth, known, cfg.diffusion.space, weights.tails)
        images = model.spec.normalise(batch["image"])
        if cfg.learn == "autoencoder":
            return self._reconstruction(model, images, target_map)
        if model.training:
            model.observe(target_map)
        with torch.no_grad():
            latent = model.encode(images)
            truth = (
                model.encode(target_map.values.expand(-1, 3, -1, -1)) if weights.latent else latent
            )
        cells = pooled_mask(target_map.mask, model.latent_px)
        if cfg.diffusion.paradigm == "denoising":
            cost = model.denoising_loss(latent, truth, cells)
            return {"loss": weights.latent * cost, "latent": cost}
        step = model.predict(latent, weights.align_layer if weights.align else "")
        terms: dict[str, Tensor] = {}
        if weights.latent:
            terms["latent"] = masked_mse(step.latent, truth, cells)
        if self._alignment is not None and step.features is not None:
            terms["align"] = self._alignment(batch["image"], step.features)
        if weights.pixel or weights.gradient:
            decoded = model.decode(step.latent)
            if weights.pixel:
                terms["pixel"] = masked_mse(decoded, target_map.values, target_map.mask)
            if weights.gradient:
                terms["gradient"] = directional_gradient(
                    decoded, target_map.values, target_map.mask, weights.delta, weights.form
                )
        total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        return {"loss": total, **{f"{name}_term": term for name, term in terms.items()}}

    def _reconstruction(
        self, model: SingleStep, images: Tensor, target_map: Target
    ) -> dict[str, Tensor]:
        """Return the autoencoder's loss on the images and on the target maps of a batch.

        Mean |difference| of the reconstruction, plus loss.kl times the KL divergence of the latents
        from a standard normal distribution, per input value.
        """
        x = torch.cat([images, target_map.values.expand(-1, 3, -1, -1)])
        drawn = model.vae.encode(x).latent_dist
        if model.training:
            model.observe_latents(drawn.mean)
        decoded = model.vae.decode(drawn.sample()).sample
        away = (decoded.float() - x).abs().mean()
        divergence = drawn.kl().mean() / x[0].numel()
        return {
            "loss": away + self.cfg.loss.kl * divergence,
            "reconstruction": away,
            "divergence": divergence,
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return mean AbsRel, delta1 and boundary F1 on `check`.

        Scale and shift are fitted in the network's own space, as the paper does. Also AbsRel and F1
        of the truth sent through the autoencoder (table II): the U-Net cannot have sharper edges
        than the autoencoder keeps.
        """
        assert isinstance(model, SingleStep)
        cfg = self.cfg
        device = next(model.parameters()).device
        rows = []
        for k in range(len(self.check)):
            sample = self.check[k]
            if sample.depth is None:
                continue
            window = Window.whole(sample.image.shape, cfg.height, cfg.width)
            x = torch.from_numpy(window.image(sample.image)).permute(2, 0, 1)[None].float() / 255
            depth = torch.from_numpy(window.nearest(sample.depth))[None, None].to(device)
            target_map = target(depth, torch.isfinite(depth), cfg.diffusion.space, cfg.loss.tails)
            through = model.reconstruct(target_map.values)
            maps = [through]
            if cfg.learn == "unet":
                maps.append(model.map(model.spec.normalise(x.to(device))))
            rules = getattr(self.check, "protocol", "indoor")
            scores = [scores_in_space(m, sample.depth, cfg.diffusion.space, rules) for m in maps]
            rows.append([scores[0][0], scores[0][2], *(scores[1] if len(scores) > 1 else ())])
        if not rows:
            return {}
        through_names = ("autoencoder_abs_rel", "autoencoder_boundary_f1")
        names = (*through_names, "abs_rel", "delta1", "boundary_f1")
        means = [float(value) for value in np.mean(rows, axis=0)]
        numbers = dict(zip(names, means, strict=False))
        return {**numbers, "score": numbers.get("abs_rel", numbers["autoencoder_abs_rel"])}

    def batch_images(
        self, model: nn.Module, batch: Batch, averaged: nn.Module | None
    ) -> dict[str, NDArray[np.uint8]]:
        """Draw up to four images above their targets and the network's maps.

        Maps of depth are negated, so that near has the same colours in every space.
        """
        assert isinstance(model, SingleStep)
        image, depth, space = batch["image"][:4], batch["depth"][:4], self.cfg.diffusion.space
        target_map = target(depth, torch.isfinite(depth), space, self.cfg.loss.tails)
        answer = model.map(model.spec.normalise(image))
        near = -1.0 if space == "depth" else 1.0
        maps = {"target": near * target_map.values, "network": near * answer}
        return {"depth": sheet({"image": image}, maps)}


def scores_in_space(
    values: Tensor, truth: NDArray[np.float32], space: str, rules: str = "indoor"
) -> tuple[float, float, float]:
    """Return AbsRel, delta1 and boundary F1 of a map (1, 1, h, w) of `space`.

    truth: depth (H, W) m. rules: a name of protocols.PROTOCOLS. Scale and shift are fitted in the
    space itself.
    """
    full = functional.interpolate(values.float(), truth.shape, mode="bilinear", align_corners=False)
    wide = full[0, 0].cpu().numpy()
    protocol = protocols.find(rules)
    mask = protocols.counted(protocol, truth)
    name = {"depth": "depth_ls", "disparity": "disp_ls", "sqrt_disparity": "sqrt_disp_ls"}[space]
    kind = "depth_affine_invariant" if space == "depth" else "disparity_affine_invariant"
    if space == "sqrt_disparity":
        wide = ((wide + 1) / 2).clip(0) ** 2  # the alignment takes the root of it again
    depth = protocols.align(Prediction(wide, kind), truth, mask, name, protocol)
    scores = evaluate(depth, np.where(mask, truth, np.nan))
    return scores.abs_rel, scores.delta1, boundary_f1(depth, truth, mask)


def build(cfg: Config, console: Console) -> DepthMaster:
    """Return the recipe on its images; waits until a pool holds enough."""
    check = open_samples(cfg.check) if cfg.check.limit else ()
    return DepthMaster(cfg, Mixture(cfg.images, console.print), check, console.print)


def exportable(payload: Mapping[str, Any]) -> tuple[SingleStep, NetworkInput, str]:
    """Return the network of a checkpoint, its input and the meaning of its output.

    For `evaluate`; `export` refuses it, because it is a teacher.
    """
    network = from_checkpoint(payload)
    return network, network.spec, "disparity_affine_invariant"
