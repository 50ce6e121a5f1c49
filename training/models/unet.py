# SPDX-License-Identifier: Apache-2.0
"""The small U-Net: the package's own student, trained from random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from training.models.network_io import NetworkInput, NetworkOutput


@dataclass(frozen=True)
class StudentConfig:
    """A residual U-Net small enough for one CPU core.

    Its 3x3 convolutions are dense: a MobileNet of inverted residuals with as many parameters
    trained at a quarter of the speed here, on one core with bfloat16 (depthwise layers and their
    normalisations move memory, not numbers).
    """

    widths: tuple[int, ...] = config.option(
        (24, 40, 80, 128, 160), "Channels at strides 2, 4, 8, 16, 32.", minimum=4
    )
    depths: tuple[int, ...] = config.option(
        (0, 1, 2, 2, 2), "Residual blocks at these strides.", minimum=0
    )
    decoder: tuple[int, ...] = config.option(
        (80, 56, 40, 24), "Channels of the decoder at strides 16, 8, 4, 2.", minimum=4
    )
    mirror: bool = config.option(
        False,
        "Once trained, predict the mean over the image and its mirror image: twice the time,"
        " a few per cent less error.",
    )

    def __post_init__(self) -> None:
        config.validate(self)
        if len(self.widths) != 5 or len(self.depths) != 5 or len(self.decoder) != 4:
            raise config.ConfigError(
                "widths and depths need five values each (strides 2 to 32), decoder four"
            )
        if min(self.depths[1:]) < 1:
            raise config.ConfigError(
                "depths must be at least 1 from stride 4 on: the first block halves the size"
            )


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs, momentum=0.03),
    ]
    if act:
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity (a 1x1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(inputs, outputs, 3, stride), _conv(outputs, outputs, 3, act=False)
        )
        same = stride == 1 and inputs == outputs
        self.around = nn.Identity() if same else _conv(inputs, outputs, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """What enters, changed a little."""
        return functional.relu(self.body(x) + self.around(x))


class _Context(nn.Module):
    """Global context: the mean feature of the image through two layers, added to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.ReLU(inplace=True),
            nn.Linear(channels // 2, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        context: Tensor = self.body(x.mean(dim=(2, 3)))
        return x + context[:, :, None, None]


class _Up(nn.Module):
    """Twice the size, the encoder's features of that size added, then a 3x3 convolution."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.narrow = _conv(inputs, outputs, 1)
        self.skip = _conv(skip, outputs, 1)
        self.body = _conv(outputs, outputs, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        merged = functional.interpolate(
            self.narrow(x), scale_factor=2.0, mode="nearest"
        ) + self.skip(skip)
        out: Tensor = self.body(merged)
        return out


class SmallUNet(nn.Module):
    """(N, 3, H, W) normalised image, H and W multiples of 32 -> (N, 1, H, W) relative disparity,
    large = near.

    Two planes of pixel coordinates beside the colours let the first layer know where in the image
    it looks: the prior "lower is nearer" then needs no depth of network.
    """

    spec = NetworkInput((0.5,) * 3, (0.25,) * 3, 32)

    def __init__(self, cfg: StudentConfig = StudentConfig()) -> None:
        super().__init__()
        self.cfg = cfg
        self.channels = cfg.widths[4]
        w, d = cfg.widths, cfg.decoder
        self.stem = _conv(5, w[0], 3, 2)
        stages = []
        inputs = w[0]
        for level, (width, depth) in enumerate(zip(w, cfg.depths, strict=True)):
            blocks = []
            for k in range(depth):
                blocks.append(Residual(inputs, width, 2 if level > 0 and k == 0 else 1))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.context = _Context(w[4])
        self.up = nn.ModuleList(
            [
                _Up(w[4], w[3], d[0]),
                _Up(d[0], w[2], d[1]),
                _Up(d[1], w[1], d[2]),
                _Up(d[2], w[0], d[3]),
            ]
        )
        self.head = nn.Conv2d(d[3], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Relative disparity of normalised images."""
        if self.training or not self.cfg.mirror:
            return self.answer(x).disparity
        plain, mirrored = self.answer(torch.cat([x, x.flip(3)])).disparity.chunk(2)
        return (plain + mirrored.flip(3)) / 2

    def answer(self, x: Tensor) -> NetworkOutput:
        """Disparity and the encoder's last features (stride 32) of normalised images."""
        n, _, h, w = x.shape
        ys = torch.linspace(-1, 1, h, dtype=x.dtype, device=x.device).view(1, 1, h, 1)
        xs = torch.linspace(-1, 1, w, dtype=x.dtype, device=x.device).view(1, 1, 1, w)
        coordinates = torch.cat([xs.expand(n, 1, h, w), ys.expand(n, 1, h, w)], dim=1)
        y = self.stem(torch.cat([x, coordinates], dim=1))
        skips = []
        for stage in self.stages:
            y = stage(y)
            skips.append(y)
        y = features = self.context(y)
        for up, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            y = up(y, skip)
        # float32 even under autocast: the last bits of a disparity are the far end of a room.
        y = self.head(y).float()
        y = functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return NetworkOutput(y, None, features)
