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
    """Stack images (H, W, C) of one size to a batch (N, C, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def input_rows(default: int) -> int:
    """Return the setting `height` of recipes that train several kinds of network."""
    rows: int = config.option(
        default, "Rows of the network's input; fit for the network.", unit="px", minimum=PATCH_PX
    )
    return rows


def input_columns(default: int) -> int:
    """Return the setting `width` of recipes that train several kinds of network."""
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
        """Normalise images (N, 3, H, W) in 0..1 for the network."""
        mean, std = (images.new_tensor(x).view(1, 3, 1, 1) for x in (self.mean, self.std))
        return (images - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """Invert `normalise`: normalised images (N, 3, H, W) to 0..1."""
        mean, std = (images.new_tensor(x).view(1, 3, 1, 1) for x in (self.mean, self.std))
        return images * std + mean

    def fitting(self, height: int, width: int) -> tuple[int, int]:
        """Return the nearest height and width that the network takes, px."""
        m = self.multiple_px
        return max(round(height / m), 1) * m, max(round(width / m), 1) * m

    def require(self, height: int, width: int) -> None:
        """Raise ConfigError, naming the nearest size that fits, if the network cannot take this."""
        fitting = self.fitting(height, width)
        if fitting != (height, width):
            raise config.ConfigError(
                f"height and width {height}x{width} do not fit this network: use"
                f" {fitting[0]}x{fitting[1]}"
            )


@dataclass(frozen=True)
class NetworkOutput:
    """Output of a network for a batch.

    disparity (N, 1, H, W). before (N, 1, H, W): the input of a final ReLU; None without one.
    features (N, C, h, w): the encoder's last, at its stride.
    """

    disparity: Tensor
    before: Tensor | None
    features: Tensor
