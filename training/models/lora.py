# SPDX-License-Identifier: Apache-2.0
"""Which part of a network learns: all, encoder, decoder, or low-rank updates (LoRA)."""

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
# The names of the four matrices in transformers 5, in transformers 4, and in timm and the original
# DINOv2, which fuse the first three into one (then all three get the update).
_LAYERS = {
    "q": ("q_proj", "query", "qkv"),
    "k": ("k_proj", "key", "qkv"),
    "v": ("v_proj", "value", "qkv"),
    "o": ("o_proj", r"attention\.output\.dense", r"attn\.proj"),
}


@dataclass(frozen=True)
class TuneConfig:
    """Which weights learn. WeSTAR does not say which of q, k, v, o; q and v are WeSAM's choice."""

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
        """Return the regular expression that the names of the updated layers match."""
        if self.pattern:
            return self.pattern
        names = dict.fromkeys(name for target in self.targets for name in _LAYERS[target])
        return rf"(.*\.)?(backbone|blocks|encoder)\..*({'|'.join(names)})"


ENCODER = re.compile(r"(^|\.)(backbone|blocks|stem|stages|context)(\.|$)")


def in_encoder(name: str) -> bool:
    """Return whether a parameter of that name is in the encoder of a U-Net or Depth Anything."""
    return bool(ENCODER.search(name))


@torch.no_grad()
def fresh_decoder(network: nn.Module) -> None:
    """Give all weights but the encoder's random values, in place."""
    if isinstance(network, DepthAnything):
        initialise_decoder(network.network)
        return
    for name, layer in network.named_modules():
        if name and not in_encoder(name) and hasattr(layer, "reset_parameters"):
            layer.reset_parameters()


def tune(model: nn.Module, cfg: TuneConfig) -> nn.Module:
    """Set which weights of the model learn, in place, and return it.

    Mode lora adds low-rank updates, which alone learn. Raises TrainingError if no layer matches.
    """
    if cfg.mode != "lora":
        for name, parameter in model.named_parameters():
            inside = in_encoder(name)
            learns = cfg.mode == "full" or inside == (cfg.mode == "encoder")
            # The mask token is for masked image modelling and does not affect the output.
            parameter.requires_grad_(learns and not name.endswith("mask_token"))
        return model
    from peft import LoraConfig, inject_adapter_in_model

    unet = isinstance(model, SmallUNet) and not cfg.pattern
    regex = r"(encoder|stem|stages|context)\..*" if unet else cfg.regex()
    layer_names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and getattr(layer, "groups", 1) == 1  # for others peft's updates would be grouped too
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
    """Yield (A (r, in), B (out, r), scale) of every low-rank update W + scale B A.

    For a convolution A is a convolution with its kernel, flattened to (r, channels * kernel area),
    and B is a 1x1 one.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "lora_A") and hasattr(layer, "scaling"):
            for name, a in layer.lora_A.items():
                b = layer.lora_B[name].weight
                yield a.weight.flatten(1), b.flatten(1), float(layer.scaling[name])


def hold_statistics(model: nn.Module) -> None:
    """Keep the statistics of all batch normalisations fixed; call it after train().

    Otherwise a network would drift by its statistics, which no regularisation towards the source
    limits; and one from an exported file, whose statistics are folded into its convolutions, would
    not start with the source's function. Weights of the normalisations may still learn.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


def merged(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Add the low-rank updates, times `scale`, to the weights, in place, and return the model."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            child: Any = module
            if hasattr(child, "lora_A") and hasattr(child, "merge"):
                child.scale_layer(scale)
                child.merge(safe_merge=True)
                setattr(parent, name, child.get_base_layer())
    return model
