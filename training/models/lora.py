# SPDX-License-Identifier: Apache-2.0
"""Which part of a network learns: all, decoder, or low-rank updates (LoRA)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depth_node import config
from training.checkpoints import TrainingError
from training.models.hub import DepthAnything, initialise_decoder
from training.models.unet import SmallUNet

TUNE_MODES = ("lora", "full", "encoder", "decoder")
STATISTICS = ("source", "place", "both")
# The names of the same four matrices: transformers 5, transformers 4, and one fused matrix for the
# first three (timm, the original DINOv2), of which no part can be had alone.
_LAYERS = {
    "q": ("q_proj", "query", "qkv"),
    "k": ("k_proj", "key", "qkv"),
    "v": ("v_proj", "value", "qkv"),
    "o": ("o_proj", r"attention\.output\.dense", r"attn\.proj"),
}


@dataclass(frozen=True)
class TuneConfig:
    """Which weights learn. WeSTAR does not state which of q, k, v, o; q and v are WeSAM's."""

    mode: str = config.option(
        "lora", "low-rank updates of the encoder, or whole parts.", choices=TUNE_MODES
    )
    rank: int = config.option(8, "Rank of the updates.", minimum=1)
    alpha: int = config.option(16, "Updates are scaled by alpha / rank.", minimum=0)
    targets: tuple[str, ...] = config.option(
        ("q", "v"), "Matrices of the attention layers that get one.", choices=tuple(_LAYERS)
    )
    pattern: str = config.option(
        "",
        "Instead of `targets`: regular expression of the whole names of linear layers and"
        " convolutions. A U-Net has no attention: by default its encoder's layers. Convolutions of"
        " each channel by itself (MobileNetV2's) get none.",
    )
    statistics: str = config.option(
        "source",
        "Batch normalisations use the source's statistics; those of images of the new place,"
        " measured before the first step; or of as many of the place that the source knows (both)."
        " They are held from then on.",
        choices=STATISTICS,
    )
    statistics_share: float = config.option(
        1.0,
        "How far the statistics move, from the source's (0) to those that were measured (1).",
        minimum=0,
        maximum=1,
    )
    merge_scale: float = config.option(
        1.0,
        "Factor on the low-rank updates with which a trained run is opened: a point on"
        " the line from the source to what was learnt (Wortsman et al. 2022, arXiv 2109.01903)."
        " Less forgets less.",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        config.validate(self)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise config.ConfigError(f"pattern is no regular expression: {error}") from error

    def regex(self) -> str:
        """What the names of the updated layers match."""
        if self.pattern:
            return self.pattern
        names = dict.fromkeys(name for target in self.targets for name in _LAYERS[target])
        return rf"(.*\.)?(backbone|blocks|encoder)\..*({'|'.join(names)})"


ENCODER = re.compile(r"(^|\.)(backbone|blocks|stem|stages|context)(\.|$)")


def in_encoder(name: str) -> bool:
    """Whether a parameter of that name belongs to the encoder of a U-Net or Depth Anything."""
    return bool(ENCODER.search(name))


@torch.no_grad()
def fresh_decoder(network: nn.Module) -> None:
    """Random weights for all but the encoder, in place."""
    if isinstance(network, DepthAnything):
        initialise_decoder(network.network)
        return
    for name, layer in network.named_modules():
        if name and not in_encoder(name) and hasattr(layer, "reset_parameters"):
            layer.reset_parameters()


def tune(model: nn.Module, cfg: TuneConfig) -> nn.Module:
    """The same model, in place, with gradients for the weights of cfg.mode, and low-rank updates.

    Raises TrainingError where no layer fits.
    """
    if cfg.mode != "lora":
        for name, parameter in model.named_parameters():
            inside = in_encoder(name)
            learns = cfg.mode == "full" or inside == (cfg.mode == "encoder")
            # The mask token is of masked image modelling and takes no part in the output.
            parameter.requires_grad_(learns and not name.endswith("mask_token"))
        return model
    from peft import LoraConfig, inject_adapter_in_model

    unet = isinstance(model, SmallUNet) and not cfg.pattern
    regex = r"(encoder|stem|stages|context)\..*" if unet else cfg.regex()
    layer_names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and getattr(layer, "groups", 1) == 1  # peft's updates of others are in groups themselves
        and re.fullmatch(regex, name)
    ]
    if not layer_names:
        raise TrainingError(
            f"No layer of this network is called like {regex!r}: set tune.pattern to the names of"
            " its linear layers or convolutions (not of each channel by itself), or tune.mode to"
            " full, encoder or decoder."
        )
    updates = LoraConfig(
        r=cfg.rank, lora_alpha=cfg.alpha, target_modules=layer_names, lora_dropout=0.0, bias="none"
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(updates, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def low_rank(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, float]]:
    """(A (r, in), B (out, r), scale) of every low-rank update: W + scale B A.

    Of a convolution, in counts the kernel's places too: A is a convolution and B is 1x1.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "lora_A") and hasattr(layer, "scaling"):
            for name, a in layer.lora_A.items():
                b = layer.lora_B[name].weight
                yield a.weight.flatten(1), b.flatten(1), float(layer.scaling[name])


def hold_statistics(model: nn.Module) -> None:
    """All batch normalisations use their statistics as they are, whether their weights learn or
    not. Call it after train().

    Otherwise a network would drift by its statistics, which no pull to the source holds back; and
    one that comes from an exported file, whose statistics are folded into its convolutions, would
    not begin as its source at all.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def merged(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """The same model, in place, with its low-rank updates, times `scale`, added to the weights."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            child: Any = module
            if hasattr(child, "lora_A") and hasattr(child, "merge"):
                child.scale_layer(scale)
                child.merge(safe_merge=True)
                setattr(parent, name, child.get_base_layer())
    return model
