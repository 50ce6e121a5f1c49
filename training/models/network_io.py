# SPDX-License-Identifier: Apache-2.0
"""Input and output of every network in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depth_node import config

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH_PX = 14  # of DINOv2


def channels_first(images: Sequence[NDArray[np.floating]]) -> Tensor:
    """Images (H, W, C) of one size as a batch (N, C, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def input_rows(default: int) -> int:
    """The setting `height` of a recipe for networks of several kinds."""
    rows: int = config.option(
        default, "Rows of the network's input; fit for the network.", unit="px", minimum=PATCH_PX
    )
    return rows


def input_columns(default: int) -> int:
    """The setting `width` of a recipe for networks of several kinds."""
    columns: int = config.option(
        default, "Columns of the network's input; fit for the network.", unit="px", minimum=PATCH_PX
    )
    return columns


@dataclass(frozen=True)
class NetworkInput:
    """Input of a network: (pixel / 255 - mean) / std, sides a multiple of multiple_px."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    multiple_px: int

    def normalise(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in 0..1 as the network takes them."""
        mean, std = (images.new_tensor(x).view(1, 3, 1, 1) for x in (self.mean, self.std))
        return (images - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`, for (N, 3, H, W)."""
        mean, std = (images.new_tensor(x).view(1, 3, 1, 1) for x in (self.mean, self.std))
        return images * std + mean

    def fitting(self, height: int, width: int) -> tuple[int, int]:
        """The nearest size that the network takes."""
        m = self.multiple_px
        return max(round(height / m), 1) * m, max(round(width / m), 1) * m

    def require(self, height: int, width: int) -> None:
        """Raise ConfigError, with the nearest size that fits, unless the network takes this one."""
        fitting = self.fitting(height, width)
        if fitting != (height, width):
            raise config.ConfigError(
                f"height and width {height}x{width} do not fit this network: use"
                f" {fitting[0]}x{fitting[1]}"
            )


@dataclass(frozen=True)
class NetworkOutput:
    """Output of a network for a batch.

    disparity (N, 1, H, W); before: what entered a final ReLU, or None; features (N, C, h, w): the
    encoder's last, at the stride of the encoder.
    """

    disparity: Tensor
    before: Tensor | None
    features: Tensor
