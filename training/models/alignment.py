# SPDX-License-Identifier: Apache-2.0
"""DepthMaster's feature alignment (arXiv 2501.02576): features pulled to an external encoder's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoints import TrainingError
from training.losses.diffusion import token_divergence
from training.models.hub import Dino
from training.models.mobilenet import ImageNetFeatures

SHRINK = 0.875  # scale of the image for the external encoder


class Projector(nn.Module):
    """Three 1x1 convolutions from the network's channels to those of the external encoder."""

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
        """Project features (N, inputs, h, w) to (N, outputs, h, w)."""
        out: Tensor = self.body(features)
        return out


def external_size(height: int, width: int, patch_px: int) -> tuple[int, int]:
    """Return height and width of the external encoder's input: whole patches at 0.875 of the image.

    Raises TrainingError for an image that is smaller than a patch at that scale.
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
    """The loss between projected features and an external encoder's features of the same images.

    The external encoder (DINOv2, or a MobileNetV2 with ImageNet weights) is frozen, the projector
    is learnt. Images are normalised from 0..1, as DINOv2 expects; the published code normalises
    images in -1..1.
    """

    def __init__(self, channels: int, external: Dino | ImageNetFeatures) -> None:
        super().__init__()
        self.projector = Projector(channels, external.channels)
        self._external = (external,)  # in a tuple, so that no checkpoint contains it

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """Return token_divergence for images (N, 3, H, W) in 0..1 and features (N, C, h, w)."""
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
