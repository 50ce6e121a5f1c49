# SPDX-License-Identifier: Apache-2.0
"""Masked image modelling: an encoder learns to predict the hidden parts of an image.

Two variants. SimMIM (Xie et al. 2022): hidden patches are replaced by a learnt token, one
convolution predicts their pixels, the loss is the mean |difference| over hidden pixels. MAE (He et
al. 2022): hidden patches do not enter the encoder, a small transformer predicts their pixels, each
patch normalised; the loss is the mean squared difference over hidden patches. Written from the
papers; images are (N, 3, H, W), normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from training.checkpoints import TrainingError
from training.models.hub import DepthAnything
from training.models.network_io import PATCH_PX
from training.models.networks import Network

VARIANTS = ("simmim", "mae")


@dataclass(frozen=True)
class MaskingConfig:
    """What is hidden. SimMIM's 32 px are for a Swin encoder; for patches of 14 px ours are 28."""

    variant: str = config.option("simmim", "Kind of masked image modelling.", choices=VARIANTS)
    unit_px: int = config.option(
        28,
        "Side of a hidden square; a multiple of the encoder's patch, where it has patches.",
        unit="px",
        minimum=1,
    )
    ratio: float = config.option(
        0.6, "Fraction of the squares that is hidden; MAE: 0.75.", minimum=0.01, maximum=0.99
    )
    decoder_width: int = config.option(64, "MAE: width of the decoder.", minimum=8)
    decoder_layers: int = config.option(2, "MAE: layers of the decoder.", minimum=1)

    def __post_init__(self) -> None:
        config.validate(self)


def random_mask(
    count: int, height: int, width: int, unit_px: int, ratio: float, device: Any = None
) -> Tensor:
    """Draw masks (count, 1, height, width) bool, True = hidden.

    In each image round(ratio * squares), but at least one, are hidden. Drawn from torch's
    generator. Raises TrainingError if height or width is not a multiple of unit_px.
    """
    rows, columns = height // unit_px, width // unit_px
    if not rows or not columns or height % unit_px or width % unit_px:
        raise TrainingError(
            f"An image of {height}x{width} cannot be cut into squares of {unit_px} px: set height"
            " and width to multiples of masking.unit_px."
        )
    hidden = min(max(round(ratio * rows * columns), 1), rows * columns)
    order = torch.rand(count, rows * columns, device=device).argsort(dim=1)
    units = (order.argsort(dim=1) < hidden).view(count, 1, rows, columns)
    return units.repeat_interleave(unit_px, 2).repeat_interleave(unit_px, 3)


def cells(mask: Tensor, patch_px: int) -> Tensor:
    """Reduce a mask (N, 1, H, W) to one value per patch (N, 1, H / patch, W / patch)."""
    return mask[..., ::patch_px, ::patch_px]


def hidden_l1(prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Return SimMIM's loss: sum |x - x'| over hidden pixels / (their number + 1e-5) / channels."""
    total = ((prediction.float() - images).abs() * mask).sum()
    return total / (mask.sum() + 1e-5) / images.shape[1]


def patch_pixels(images: Tensor, patch_px: int) -> Tensor:
    """Cut images (N, C, H, W) into patches (N, P, C * patch * patch), row by row."""
    return functional.unfold(images, patch_px, stride=patch_px).mT


def hidden_mse(prediction: Tensor, images: Tensor, hidden: Tensor, patch_px: int) -> Tensor:
    """Return MAE's loss: mean squared difference of hidden patches.

    prediction (N, P, C * patch * patch) against the pixels, normalised within each patch; hidden
    (N, P) bool.
    """
    pixels = patch_pixels(images, patch_px)
    truth = (pixels - pixels.mean(2, keepdim=True)) / (pixels.var(2, keepdim=True) + 1e-6).sqrt()
    error = ((prediction.float() - truth) ** 2).mean(dim=2)
    return (error * hidden).sum() / hidden.sum().clamp_min(1)


class PixelHead(nn.Module):
    """The head that predicts hidden pixels; learnt beside the encoder, not exported.

    Raises TrainingError for hidden squares that cut through a patch, and for MAE with a U-Net.
    """

    positions: Tensor

    def __init__(self, network: Network, cfg: MaskingConfig, height: int, width: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch_px = stride(network)
        check_unit(network, cfg)
        pixels = 3 * self.patch_px**2
        if cfg.variant == "simmim":
            self.head = nn.Conv2d(network.channels, pixels, 1)
            if not isinstance(network, DepthAnything):
                # The U-Net has no tokens: hidden squares are filled with this learnt colour.
                self.paint = nn.Parameter(torch.zeros(1, 3, 1, 1))
            return
        if not isinstance(network, DepthAnything):
            raise TrainingError(
                "MAE needs an encoder of tokens: set network.kind to a Depth Anything, or"
                " masking.variant to simmim."
            )
        rows, columns = height // self.patch_px, width // self.patch_px
        self.narrow = nn.Linear(network.channels, cfg.decoder_width)
        self.token = nn.Parameter(torch.zeros(1, 1, cfg.decoder_width))
        sines = _sines(rows, columns, cfg.decoder_width)
        self.register_buffer("positions", sines, persistent=False)
        layer = nn.TransformerEncoderLayer(
            cfg.decoder_width,
            max(cfg.decoder_width // 32, 1),
            4 * cfg.decoder_width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerEncoder(layer, cfg.decoder_layers, enable_nested_tensor=False)
        self.head_patches = nn.Linear(cfg.decoder_width, pixels)

    def loss(self, network: Network, images: Tensor) -> Tensor:
        """Return the loss of predicting hidden squares of images (N, 3, H, W) from the rest."""
        n, _, height, width = images.shape
        mask = random_mask(n, height, width, self.cfg.unit_px, self.cfg.ratio, device=images.device)
        if self.cfg.variant == "mae":
            return self._mae(network, images, mask)
        if isinstance(network, DepthAnything):
            with replaced(network, cells(mask, self.patch_px)):
                features = encode(network, images)
        else:
            features = encode(network, torch.where(mask, self.paint, images))
        pixels = functional.pixel_shuffle(self.head(features), self.patch_px)
        return hidden_l1(pixels, images, mask)

    def _mae(self, network: Network, images: Tensor, mask: Tensor) -> Tensor:
        hidden = cells(mask, self.patch_px).flatten(1)
        # Visible patches first, in their order; every image has the same number of them.
        order = hidden.int().argsort(dim=1, stable=True)
        shown = int((~hidden[0]).sum())
        with _only(network, order[:, :shown]):
            tokens = _tokens(network, images)
        narrow = self.narrow(tokens[:, 1:])
        width = narrow.shape[2]
        all_tokens = self.token.to(narrow.dtype).expand(len(order), order.shape[1], width)
        index = order[:, :shown, None].expand(-1, -1, width)
        placed = all_tokens.scatter(1, index, narrow) + self.positions
        return hidden_mse(self.head_patches(self.decoder(placed)), images, hidden, self.patch_px)


def check_unit(network: Network, cfg: MaskingConfig) -> None:
    """Raise TrainingError if a hidden square would cut through a patch; a U-Net has no patches."""
    if isinstance(network, DepthAnything) and cfg.unit_px % PATCH_PX:
        raise TrainingError(
            f"masking.unit_px {cfg.unit_px} is no multiple of the encoder's patch of"
            f" {PATCH_PX} px: set it to one."
        )


def stride(network: Network) -> int:
    """Return the stride of the encoder's last features, px."""
    return PATCH_PX if isinstance(network, DepthAnything) else network.spec.multiple_px


def encode(network: Network, images: Tensor) -> Tensor:
    """Return the encoder's last features (N, C, h, w); of a Depth Anything without the decoder."""
    if not isinstance(network, DepthAnything):
        return network.answer(images).features
    tokens = _tokens(network, images)[:, 1:]
    rows, columns = images.shape[-2] // PATCH_PX, images.shape[-1] // PATCH_PX
    return tokens.mT.unflatten(2, (rows, columns))


def _tokens(network: Any, images: Tensor) -> Tensor:
    backbone = network.network.backbone
    maps = backbone.forward_with_filtered_kwargs(images).feature_maps
    tokens: Tensor = maps[-1]
    return tokens


@contextmanager
def replaced(network: Any, hidden: Tensor) -> Iterator[None]:
    """Inside, hidden patches (N, 1, h, w) enter the encoder as its mask token.

    They keep their positional embedding.
    """
    embeddings = network.network.backbone.embeddings

    def swap(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        token = embeddings.mask_token.to(output.dtype)
        return torch.where(hidden.flatten(1)[..., None], token, output)

    handle = embeddings.patch_embeddings.register_forward_hook(swap)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _only(network: Any, shown: Tensor) -> Iterator[None]:
    """Inside, only the patches with indices `shown` (N, V) and the first token enter the encoder.

    Positional embeddings are added before.
    """

    def choose(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        index = shown[..., None].expand(-1, -1, output.shape[2])
        return torch.cat([output[:, :1], output[:, 1:].gather(1, index)], dim=1)

    handle = network.network.backbone.embeddings.register_forward_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def _sines(rows: int, columns: int, width: int) -> Tensor:
    """Return sinusoidal positions (1, rows * columns, width), half for rows, half for columns."""
    quarter = width // 4
    rate = torch.exp(-math.log(10_000.0) * torch.arange(quarter) / max(quarter, 1))

    def wave(count: int) -> Tensor:
        phase = torch.arange(count)[:, None] * rate
        return torch.cat([phase.sin(), phase.cos()], dim=1)

    down = wave(rows)[:, None].expand(rows, columns, -1)
    across = wave(columns)[None].expand(rows, columns, -1)
    positions = torch.cat([down, across], dim=2).flatten(0, 1)
    return functional.pad(positions, (0, width - positions.shape[1]))[None]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for some images of a batch.

    The branch of the other images is scaled up, so that its mean does not change.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled branch or 0 for each image; outside of training the branch itself."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        drawn = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < keep
        return x * (drawn / keep).to(x.dtype)


def drop_paths(network: Network, probability: float) -> None:
    """Give a transformer encoder drop paths, with a probability that grows linearly with the layer.

    The first layer has 0, the last one `probability`. Raises TrainingError for a U-Net.
    """
    if probability == 0:
        return
    if not isinstance(network, DepthAnything):
        raise TrainingError(
            "Drop path needs an encoder of residual layers: set drop_path=0 for the U-Net."
        )
    layers = network.network.backbone.encoder.layer
    for k, layer in enumerate(layers):
        layer.drop_path = DropPath(probability * k / max(len(layers) - 1, 1))
