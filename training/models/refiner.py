# SPDX-License-Identifier: Apache-2.0
"""The network that refines the field: a U-Net of separable convolutions with a convex head.

It works on the half grid (half the size of the field's grid, a quarter of an image of 640 px) and
at a half, a quarter and an eighth of that, and gives weights of the candidates for every cell of
the field's grid.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from depth_node.fitting.field.refine import CANDIDATES, CHANNELS, WHOLE

GAIN = 5.0  # factor on log ratios at the input
KEEP = 5.0  # initial logit of the unchanged field
LOGIT = 12.0  # limit of |logit|


class Block(nn.Module):
    """x + a depthwise 3 x 3 and a pointwise convolution."""

    def __init__(self, channels: int, size: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, C, h, w) of features of the same shape."""
        return x + self.body(x)


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class RefinerNet(nn.Module):
    """From maps (N, CHANNELS, h, w) to corrections (N, 4, h, w) of log depth.

    h and w are multiples of 8.
    """

    def __init__(self, widths: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.start = _pointwise(CHANNELS, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 2, stride=2, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.encode = nn.ModuleList(
            nn.Sequential(*(Block(width, 5 if level else 3) for _ in range(count)))
            for level, (width, count) in enumerate(zip(widths, blocks, strict=True))
        )
        self.up = nn.ModuleList(
            _pointwise(after, before) for before, after in itertools.pairwise(widths)
        )
        self.decode = nn.ModuleList(Block(width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 4 * (len(CANDIDATES) + 1), 1)
        nn.init.zeros_(self.head.weight)
        bias = torch.zeros(len(CANDIDATES) + 1, 4)
        bias[-1] = KEEP
        self.head.bias = nn.Parameter(bias.reshape(-1))
        scale = torch.ones(CHANNELS)
        scale[: 4 * len(WHOLE) - 4] = GAIN
        scale[4 * len(WHOLE)] = GAIN
        self.scale: Tensor
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """See the class."""
        x = self.start(maps * self.scale)
        skips: list[Tensor] = []
        for level, encode in enumerate(self.encode):
            if level:
                skips.append(x)
                x = self.down[level - 1](x)
            x = encode(x)
        for level in reversed(range(len(self.up))):
            larger = functional.interpolate(self.up[level](x), scale_factor=2.0, mode="nearest")
            x = self.decode[level](skips[level] + larger)
        return convex_mix(self.head(x), maps[:, : 4 * len(CANDIDATES)])


def convex_mix(logits: Tensor, candidates: Tensor) -> Tensor:
    """Mix candidates convexly: sum_k softmax_k candidate_k, the last candidate being 0.

    logits (N, 4 (K + 1), h, w), clamped to LOGIT; candidates (N, 4 K, h, w). Returns (N, 4, h, w).
    """
    weight = logits.clamp(-LOGIT, LOGIT).exp()
    shape = weight.shape[0], len(CANDIDATES) + 1, 4, *weight.shape[2:]
    each = weight.reshape(shape)
    total = each.sum(1)
    mixed = (each[:, :-1] * candidates.reshape(shape[0], -1, *shape[2:])).sum(1)
    return mixed / total
