# SPDX-License-Identifier: Apache-2.0
"""DepthMaster's feature alignment (arXiv 2501.02576): features held near an external encoder's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoints import TrainingError
from training.losses.diffusion import token_divergence
from training.models.hub import Dino
from training.models.mobilenet import ImageNetFeatures

SHRINK = 0.875  # the external encoder sees the image at this scale


class Projector(nn.Module):
    """Features (N, C, h, w) of the U-Net to the channels of the external encoder: three layers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 1),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Projected features."""
        out: Tensor = self.body(features)
        return out


def external_size(height: int, width: int, patch_px: int) -> tuple[int, int]:
    """Height and width of the external encoder's input: whole patches at 0.875 of the image.

    Raises TrainingError for an image smaller than a patch.
    """
    rows, columns = (round(SHRINK * side / patch_px) for side in (height, width))
    if min(rows, columns) < 1:
        raise TrainingError(
            f"An image of {height}x{width} is smaller than a patch of the external encoder"
            f" ({patch_px} px) at {SHRINK} of its size: raise height and width, or switch the"
            " feature alignment off (loss.align=0)."
        )
    return rows * patch_px, columns * patch_px


class Alignment(nn.Module):
    """How far features are from an external encoder's (DINOv2's tokens, ImageNet's features) of the
    same images; the projector is learnt.

    Images enter DINOv2 as its normalisation wants them, 0..1; the published code gives it
    images in -1..1.
    """

    def __init__(self, channels: int, external: Dino | ImageNetFeatures) -> None:
        super().__init__()
        self.projector = Projector(channels, external.channels)
        self._external = (external,)  # in a tuple: frozen, and in no checkpoint

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """token_divergence for images (N, 3, H, W) in 0..1 and features (N, C, h, w)."""
        external = self._external[0].to(images.device)
        size = external_size(images.shape[-2], images.shape[-1], external.spec.multiple_px)
        with torch.no_grad():
            resized = functional.interpolate(
                images, size, mode="bicubic", align_corners=False, antialias=True
            )
            tokens = external(external.spec.normalise(resized.clamp(0, 1))).float()
            tokens = functional.interpolate(
                tokens, features.shape[-2:], mode="bicubic", align_corners=False
            )
        return token_divergence(self.projector(features), tokens)
