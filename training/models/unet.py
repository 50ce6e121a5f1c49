# SPDX-License-Identifier: Apache-2.0
"""The small U-Net: the package's own student network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from training.checkpoints import TrainingError
from training.models.mobilenet import TAPS, MobileNetV2, imagenet_weights
from training.models.network_io import NetworkInput, NetworkOutput

# Added to the output at export; in training the output is centred on 0. It is the usual median over
# mean deviation of an image's disparity, so that 1 / output is about proportional to depth, for
# methods that need relative DEPTH. The output is affine-invariant, so the offset is allowed.
OFFSET = 3.0


@dataclass(frozen=True)
class StudentConfig:
    """A residual U-Net small enough for one CPU core.

    Its 3x3 convolutions are dense: on one core with bfloat16 a MobileNet of inverted residuals with
    the same number of parameters trained at a quarter of the speed (depthwise layers and their
    normalisations are limited by memory bandwidth).
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
    encoder: str = config.option(
        "residual",
        "residual: stages of `widths` and `depths`; mobilenet: a MobileNetV2 in their place, which"
        " may start from ImageNet's weights.",
        choices=("residual", "mobilenet"),
    )
    detail: tuple[int, ...] = config.option(
        (),
        "Channels of two further levels of the decoder, at half and at full size: then the U-Net"
        " sees the image at half its size, and a MobileNetV2 all of it. Empty: none.",
        minimum=4,
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
        if len(self.detail) not in (0, 2):
            raise config.ConfigError("detail needs two values (strides 2 and 1), or none")
        if self.detail and self.encoder != "residual":
            raise config.ConfigError(
                "detail has a MobileNetV2 of its own: set encoder to residual, or detail to none"
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
        """Return features (N, C', h', w') of features (N, C, h, w); half the size at stride 2."""
        return functional.relu(self.body(x) + self.around(x))


class _Context(nn.Module):
    """Global context: the image's mean features through two layers, added to every pixel."""

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
    """A decoder level: upsampling by 2, addition of the encoder's features, 3x3 convolution."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.narrow = _conv(inputs, outputs, 1)
        self.skip = _conv(skip, outputs, 1)
        self.body = _conv(outputs, outputs, 3)

    def forward(self, x: Tensor, skip: Tensor, extra: Tensor | None = None) -> Tensor:
        merged = functional.interpolate(
            self.narrow(x), scale_factor=2.0, mode="nearest"
        ) + self.skip(skip)
        if extra is not None:
            merged = merged + extra
        out: Tensor = self.body(merged)
        return out


class _Detail(nn.Module):
    """Detail of the map: a MobileNetV2 beside the U-Net and decoder levels at half and full size.

    Their result is added to the U-Net's map. The U-Net sees the image at half size, so that its
    stride s is stride 2 s of the image. Before training this module adds 0, so that training can
    start from a trained U-Net.
    """

    def __init__(self, cfg: StudentConfig, taken: NetworkInput) -> None:
        super().__init__()
        half, full = cfg.detail
        taps = list(TAPS.values())
        self.encoder = MobileNetV2(taken)
        self.into = nn.ModuleList(
            nn.Conv2d(tap, own, 1, bias=False)
            for tap, own in zip(reversed(taps[1:]), cfg.decoder, strict=True)
        )
        self.image = _conv(3, full, 3)
        self.up = nn.ModuleList([_Up(cfg.decoder[3], taps[0], half), _Up(half, full, full)])
        self.head = nn.Conv2d(full, 1, 1)
        for layer in (*self.into, self.head):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, y: Tensor, half: Tensor) -> Tensor:
        """Return what is added to the map, (N, 1, H, W).

        x: image; y: the U-Net decoder's last features; half: the MobileNetV2's features at half
        size.
        """
        y = self.up[1](self.up[0](y, half), self.image(x))
        added: Tensor = self.head(y)
        return added.float()


class SmallUNet(nn.Module):
    """From normalised images (N, 3, H, W) to relative disparity (N, 1, H, W), large = near.

    H and W are multiples of 32, with `detail` of 64. The residual encoder gets two planes of pixel
    coordinates beside the colours, so that a few layers can learn the prior "lower in the image is
    nearer". A MobileNetV2 as encoder gets the colours alone, as on ImageNet.
    """

    spec = NetworkInput((0.5,) * 3, (0.25,) * 3, 32)

    def __init__(self, cfg: StudentConfig = StudentConfig()) -> None:
        super().__init__()
        self.cfg = cfg
        self.frozen: tuple[str, ...] = ()
        if cfg.detail:
            self.spec = replace(self.spec, multiple_px=2 * self.spec.multiple_px)
        own = cfg.encoder == "residual"
        w, d = cfg.widths if own else tuple(TAPS.values()), cfg.decoder
        self.channels = w[4]
        self.encoder = None if own else MobileNetV2(self.spec)
        self.stem = _conv(5, w[0], 3, 2) if own else nn.Identity()
        stages = []
        inputs = w[0]
        for level, (width, depth) in enumerate(zip(w, cfg.depths, strict=True) if own else ()):
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
        self.detail = _Detail(cfg, self.spec) if cfg.detail else None

    @property
    def imagenet(self) -> str:
        """Name of the MobileNetV2, which torchvision's weights fit; empty if there is none."""
        if self.encoder is not None:
            return "encoder"
        return "" if self.detail is None else "detail.encoder"

    def start_from_imagenet(self, path: Path) -> None:
        """Load torchvision's weights into the MobileNetV2.

        Raises TrainingError without a MobileNetV2, and for a file that is not torchvision's.
        """
        if not self.imagenet:
            raise TrainingError(
                "imagenet is for the MobileNetV2 of a U-Net: set its encoder to mobilenet, or"
                " detail, or leave imagenet empty."
            )
        self.get_submodule(self.imagenet).load_state_dict(imagenet_weights(path))

    def freeze(self, *names: str) -> None:
        """Freeze these submodules for good: their weights and their batch statistics."""
        self.frozen = (*self.frozen, *names)
        for name in names:
            self.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SmallUNet:
        """Set the training mode; frozen submodules stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return relative disparity (N, 1, H, W) of normalised images (N, 3, H, W)."""
        if self.training or not self.cfg.mirror:
            return self.answer(x).disparity
        plain, mirrored = self.answer(torch.cat([x, x.flip(3)])).disparity.chunk(2)
        return (plain + mirrored.flip(3)) / 2

    def answer(self, x: Tensor) -> NetworkOutput:
        """Return disparity and the encoder's last features (stride 32) of normalised images."""
        image, taps = x, []
        if self.detail is not None:
            taps = self.detail.encoder(x)
            x = functional.avg_pool2d(x, 2)
        skips = self._encode(x) if self.encoder is None else self.encoder(x)
        y = features = self.context(skips[-1])
        for level, (up, skip) in enumerate(zip(self.up, reversed(skips[:-1]), strict=True)):
            extra = self.detail.into[level](taps[4 - level]) if self.detail is not None else None
            y = up(y, skip, extra)
        decoded = y
        # float32 even under autocast: the small disparities of the far end of a room need the bits.
        y = self.head(y).float()
        scale = 2.0 if self.detail is None else 4.0
        y = functional.interpolate(y, scale_factor=scale, mode="bilinear", align_corners=False)
        if self.detail is not None:
            y = y + self.detail(image, decoded, taps[0])
        return NetworkOutput(y, None, features)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Return the features of the residual stages, at strides 2 to 32."""
        n, _, h, w = x.shape
        ys = torch.linspace(-1, 1, h, dtype=x.dtype, device=x.device).view(1, 1, h, 1)
        xs = torch.linspace(-1, 1, w, dtype=x.dtype, device=x.device).view(1, 1, 1, w)
        coordinates = torch.cat([xs.expand(n, 1, h, w), ys.expand(n, 1, h, w)], dim=1)
        y = self.stem(torch.cat([x, coordinates], dim=1))
        skips = []
        for stage in self.stages:
            y = stage(y)
            skips.append(y)
        return skips


STATISTICS_OF = 96  # images from which statistics of batch normalisations are measured


@torch.no_grad()
def restore_statistics(network: nn.Module, images: Tensor) -> None:
    """Restore the statistics of batch normalisations that only add a bias (see `folded`).

    They are measured on normalised images (N, 3, H, W). In eval mode the network computes the same
    as before, in training mode nearly the same.
    """
    statistics: dict[nn.BatchNorm2d, tuple[Tensor, Tensor]] = {}

    def look(layer: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        statistics[layer] = (mean, variance)

    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    network.eval()(images)
    for hook in hooks:
        hook.remove()
    for layer, (mean, variance) in statistics.items():
        layer.running_mean.copy_(mean)  # type: ignore[union-attr]
        layer.running_var.copy_(variance)  # type: ignore[union-attr]
        layer.weight.copy_(torch.sqrt(variance + layer.eps))
        layer.bias.add_(mean)


def folded(network: nn.Module) -> bool:
    """Return whether all batch normalisations only add a bias, as after loading an exported file.

    Fresh ones, which add zero, are not folded: their first batches give them statistics, and
    weights of 1 suit the optimiser's rate.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    measured = any(bool(layer.running_mean.any()) for layer in layers)  # type: ignore[union-attr]
    return not measured and any(bool(layer.bias.any()) for layer in layers)


def unfold(network: Any, draw: Callable[[int], Tensor]) -> None:
    """Restore the statistics of a network that is `folded`; leave others alone.

    Without them a training step, which normalises by the statistics of the batch, would change the
    function of a network from an exported file. draw(n) returns n images (n, 3, H, W) in 0..1; it
    is called only for a folded network.
    """
    if folded(network):
        restore_statistics(network, network.spec.normalise(draw(STATISTICS_OF)))


@torch.no_grad()
def measure_statistics(network: nn.Module, images: Tensor, share: float = 1.0) -> None:
    """Move the statistics of batch normalisations to those of normalised images (N, 3, H, W).

    AdaBN (Li et al. 2016, arXiv 1603.04779). share: 1 replaces the old statistics, less
    interpolates between old and new.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]  # type: ignore[union-attr]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = 1.0
    network.train()
    network(images)
    for layer, momentum, (mean, variance) in zip(layers, momenta, before, strict=True):
        layer.momentum = momentum
        layer.running_mean.lerp_(mean, 1 - share)  # type: ignore[union-attr]
        layer.running_var.lerp_(variance, 1 - share)  # type: ignore[union-attr]
