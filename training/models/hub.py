# SPDX-License-Identifier: Apache-2.0
"""Networks of the Hugging Face hub: Depth Anything and DINO encoders, from local folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from training.checkpoints import TrainingError
from training.models.network_io import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PATCH_PX,
    NetworkInput,
    NetworkOutput,
)


@dataclass(frozen=True)
class HubSource:
    """A network of the Hugging Face hub; base of every section of settings that names one.

    A subclass redefines `source` if it accepts more than a folder or an id.
    """

    source: str = config.option("", "Folder or id on the Hugging Face hub; empty: none.")
    revision: str = config.option("main", "Revision on the hub.")
    allow_download: bool = config.option(
        False, "Fetch `source` from the hub where it is not on this machine."
    )

    def __post_init__(self) -> None:
        config.validate(self)


@dataclass(frozen=True)
class _Size:
    """Sizes of a Depth Anything: encoder width, layers, heads; decoder channels; tapped layers."""

    hidden: int
    depth: int
    heads: int
    neck: tuple[int, int, int, int]
    fusion: int
    taps: tuple[int, int, int, int]
    head: int = 32


# The metres of a metric network are clamped to this fraction of its max_depth before inversion.
NEAREST_OF_FARTHEST = 1e-3

# small, base and large are those of Depth Anything V2 and of Distill Any Depth. vit_tiny is ours,
# with the encoder of DeiT-Tiny, for edge devices. debug is for tests.
SIZES = {
    "debug": _Size(32, 4, 2, (8, 8, 16, 16), 16, (1, 2, 3, 4), head=8),
    "vit_tiny": _Size(192, 12, 3, (24, 48, 96, 192), 48, (3, 6, 9, 12)),
    "small": _Size(384, 12, 6, (48, 96, 192, 384), 64, (3, 6, 9, 12)),
    "base": _Size(768, 12, 12, (96, 192, 384, 768), 128, (3, 6, 9, 12)),
    "large": _Size(1024, 24, 16, (256, 512, 1024, 1024), 256, (5, 12, 18, 24)),
}


class DepthAnything(nn.Module):
    """DINOv2 encoder and DPT decoder of transformers' DepthAnythingForDepthEstimation.

    (N, 3, H, W) normalised images, H and W multiples of 14 -> (N, 1, H, W). Relative networks
    give disparity; a metric one gives metres (`meaning`) until `as_disparity` is called.
    """

    spec = NetworkInput(IMAGENET_MEAN, IMAGENET_STD, PATCH_PX)

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        settings = network.config
        self.channels: int = settings.backbone_config.hidden_size
        self.relative = settings.depth_estimation_type == "relative"
        self.meaning = "disparity_affine_invariant" if self.relative else "depth_metric"
        if self.relative:  # the ReLU is applied in `answer`, which also returns its input
            network.head.activation2 = nn.Identity()

    def as_disparity(self) -> DepthAnything:
        """Make disparity the output of this network, in place, and return it.

        For training with losses that ignore scale and shift: its metres would become wrong.
        """
        self.meaning = "disparity_affine_invariant"
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return relative disparity, or metres (see `meaning`), (N, 1, H, W) of images."""
        if self.meaning == "depth_metric":
            return self._output(x)[0]
        return self.answer(x).disparity

    def answer(self, x: Tensor) -> NetworkOutput:
        """Return disparity, the input of the final ReLU, and the encoder's patch features.

        The disparity of a metric network is 1 / metres, and it has no final ReLU. Raises ValueError
        if the sides are not multiples of a patch.
        """
        y, features = self._output(x)
        if self.relative:
            return NetworkOutput(functional.relu(y), y, features)
        nearest = NEAREST_OF_FARTHEST * float(self.network.head.max_depth)
        return NetworkOutput(1.0 / y.clamp_min(nearest), None, features)

    def _output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head's output (N, 1, H, W) before a final ReLU, and the encoder's features.

        Raises ValueError if the sides are not multiples of a patch.
        """
        rows, columns = x.shape[-2] // PATCH_PX, x.shape[-1] // PATCH_PX
        if x.shape[-2] % PATCH_PX or x.shape[-1] % PATCH_PX:
            raise ValueError(
                f"An image of {x.shape[-2]}x{x.shape[-1]} does not fit patches of {PATCH_PX} px:"
                " give sides that are multiples of it."
            )
        net = self.network
        maps = net.backbone.forward_with_filtered_kwargs(x).feature_maps
        # The first token is the class token; the others are the patches, row by row.
        features = maps[-1][:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
        y = net.head(net.neck(maps, rows, columns), rows, columns)[:, None].float()
        return y, features


class Dino(nn.Module):
    """A frozen DINOv2, the reference of feature alignment."""

    spec = NetworkInput(IMAGENET_MEAN, IMAGENET_STD, PATCH_PX)

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.channels: int = network.config.hidden_size

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return patch features (N, C, H / 14, W / 14) of normalised images (N, 3, H, W)."""
        rows, columns = x.shape[-2] // PATCH_PX, x.shape[-1] // PATCH_PX
        tokens: Tensor = self.network(pixel_values=x).last_hidden_state
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


@torch.no_grad()
def initialise_decoder(network: Any) -> Any:
    """Initialise the decoder of a Depth Anything, in place, and return the network.

    The library's random weights are so small that the decoder's output is 1e-8 and does not learn.
    """
    for part in (network.neck, network.head):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.reset_parameters()
    network.head.conv3.bias.fill_(1.0)  # otherwise the final ReLU may output 0 everywhere
    return network


def depth_anything_config(kind: str) -> Any:
    """Return the configuration of transformers for a Depth Anything of SIZES[kind]."""
    from transformers import DepthAnythingConfig, Dinov2Config

    size = SIZES[kind]
    taps: dict[str, Any] = {"out_indices": list(size.taps)}
    encoder = Dinov2Config(
        hidden_size=size.hidden,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        image_size=518,
        reshape_hidden_states=False,
        apply_layernorm=True,
        **taps,
    )
    return DepthAnythingConfig(
        backbone_config=encoder,
        neck_hidden_sizes=list(size.neck),
        reassemble_hidden_size=size.hidden,
        fusion_hidden_size=size.fusion,
        head_hidden_size=size.head,
    )


def from_pretrained(cls: Any, cfg: HubSource) -> Any:
    """Return cls.from_pretrained(cfg.source) for a model or configuration class of transformers.

    Reads only local files unless cfg.allow_download, and never pickles. Raises TrainingError if the
    network cannot be opened or lacks weights.
    """
    from transformers.utils import logging

    local = Path(cfg.source).is_dir()
    arguments: dict[str, Any] = {"local_files_only": local or not cfg.allow_download}
    if not local:
        arguments["revision"] = cfg.revision
    is_model = issubclass(cls, nn.Module)
    if is_model:
        arguments |= {"use_safetensors": True, "output_loading_info": True, "dtype": torch.float32}
    talk, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        loaded = cls.from_pretrained(cfg.source, **arguments)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        cure = (
            "check the folder: it needs config.json and model.safetensors of that architecture"
            if local
            else "give a folder that holds it, or set its allow_download to true"
            if not cfg.allow_download
            else "check the name, the revision and the connection"
        )
        raise TrainingError(
            f"The network {cfg.source!r} cannot be opened ({first}); {cure}."
        ) from (error)
    finally:
        logging.set_verbosity(talk)
        if bar:
            logging.enable_progress_bar()
    if not is_model:
        return loaded
    network, info = loaded
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if missing:
        raise TrainingError(
            f"The weights in {cfg.source!r} do not fit a {cls.__name__}: {missing[0]} and"
            f" {len(missing) - 1} more are missing or of another size; give a folder of that"
            " architecture."
        )
    return network
