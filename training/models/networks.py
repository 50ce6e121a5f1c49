# SPDX-License-Identifier: Apache-2.0
"""Networks from image to relative disparity, opened from the hub, a folder, a run or an ONNX file.

Every network takes images normalised by its own `spec` and returns (N, 1, H, W) float32 of its
`meaning`: disparity (large = near), or metres for a published metric network. `answer` returns
disparity whatever the meaning, and what losses need: the encoder's features and, if the network
ends in a ReLU, the input of that. Without a source the weights are random. Nothing is downloaded
unless `allow_download` is set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from depth_node import config
from depth_node.engine import EngineError
from depth_node.engine.manifest import PACKAGED
from depth_node.model_zoo.registry import locate
from training import checkpoints
from training.checkpoints import TrainingError
from training.models.hub import (
    SIZES,
    DepthAnything,
    Dino,
    HubSource,
    depth_anything_config,
    from_pretrained,
    initialise_decoder,
)
from training.models.lora import TuneConfig, merged, tune
from training.models.mobilenet import ImageNetFeatures
from training.models.unet import SmallUNet, StudentConfig

KINDS = ("unet", *SIZES)
MEANING = "disparity_affine_invariant"  # of the networks that are trained here


@dataclass(frozen=True)
class NetworkConfig(HubSource):
    """The network and the source of its weights."""

    source: str = config.option(
        "",
        "Folder (config.json, model.safetensors) or id on the Hugging Face hub of a Depth Anything"
        " or Distill Any Depth; a run folder of ours; `embedded` or an .onnx file exported from a"
        " U-Net of ours; empty: random weights.",
    )
    kind: str = config.option(
        "unet",
        "unet: the small residual U-Net; else a Depth Anything of that size. With `source`, the"
        " size is the source's.",
        choices=KINDS,
    )
    unet: StudentConfig = config.section(StudentConfig, "The U-Net, where kind is unet.")


Network = SmallUNet | DepthAnything


def open_network(cfg: NetworkConfig, weights: bool = True) -> Network:
    """Open the network of the settings.

    weights=False: only its architecture, to load a checkpoint into. Raises TrainingError if the
    weights are missing or do not fit, and for a source whose output is not disparity.
    """
    if cfg.source in PACKAGED or cfg.source.endswith(".onnx"):
        return _from_onnx(cfg) if weights else SmallUNet(_student_of(cfg))
    if cfg.source and checkpoints.is_run(Path(cfg.source)):
        _require_disparity(Path(cfg.source))
        return open_run(Path(cfg.source), weights)
    if cfg.kind == "unet":
        if cfg.source:
            raise TrainingError(
                f"There is no checkpoint of ours in {cfg.source!r}; correct the source, or set kind"
                " to the size of a Depth Anything if it is one."
            )
        return SmallUNet(cfg.unet)
    from transformers import DepthAnythingForDepthEstimation

    if not cfg.source:
        return DepthAnything(
            initialise_decoder(DepthAnythingForDepthEstimation(depth_anything_config(cfg.kind)))
        )
    if weights:
        return DepthAnything(from_pretrained(DepthAnythingForDepthEstimation, cfg))
    shape = from_pretrained(DepthAnythingForDepthEstimation.config_class, cfg)
    return DepthAnything(DepthAnythingForDepthEstimation(shape))


def _student_of(cfg: NetworkConfig) -> StudentConfig:
    """Return the architecture of an exported U-Net from its manifest, else cfg.unet."""
    try:
        _, manifest = locate(cfg.source)
    except EngineError:
        return cfg.unet
    student = manifest.training.get("student")
    return config.build(StudentConfig, student) if student else cfg.unet


def _from_onnx(cfg: NetworkConfig) -> SmallUNet:
    """Load a U-Net that we exported back into torch, so that a shipped one can be trained further.

    The export folded the batch normalisations into the convolutions; here they become ones that
    only add the bias. Raises TrainingError for a file that is missing, damaged or of another
    network or meaning.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import numpy_helper

    network = SmallUNet(_student_of(cfg)).eval()
    try:
        path, manifest = locate(cfg.source)
        if manifest.meaning != MEANING:
            raise TrainingError(
                f"The network {cfg.source!r} gives {manifest.meaning}, and training starts from"
                f" {MEANING}: give one that `python -m training export` wrote of a U-Net, or"
                " correct `meaning` in its manifest."
            )
        stored = {
            item.name.removesuffix("_half"): torch.from_numpy(numpy_helper.to_array(item).copy())
            for item in onnx.load(str(path)).graph.initializer
        }
    except (EngineError, DecodeError) as error:
        raise TrainingError(
            f"The network {cfg.source!r} cannot be opened ({error}); give `embedded` or an .onnx"
            " file that `python -m training export` wrote."
        ) from error
    layers = dict(network.named_modules())
    content = {}
    for name, own in network.state_dict().items():
        layer, _, part = name.rpartition(".")
        if isinstance(layers[layer], nn.BatchNorm2d):
            before = re.sub(r"1$", "0", layer)  # name of the convolution that it was folded into
            bias = stored.get(f"{before}.bias", own)
            neutral = {"weight": torch.sqrt(1 + torch.tensor(layers[layer].eps)).expand_as(own)}
            neutral |= {"running_mean": own * 0, "running_var": own * 0 + 1, "bias": bias}
            content[name] = neutral.get(part, own).to(own.dtype)
        elif name in stored:
            content[name] = stored[name].to(own.dtype)
    checkpoints.load(network, content, cfg.source)
    return network


def _require_disparity(path: Path) -> None:
    """Raise TrainingError for a run of mesa whose result is a function of the network's output."""
    content = checkpoints.about(path)
    if content.get("recipe") == "mesa" and content["settings"].get("head") != "inverse":
        raise TrainingError(
            f"{path} is a run of mesa, whose depth is a sigmoid of its network's output, and the"
            " output alone is no disparity: export it and give the .onnx file as a teacher"
            " (source=engine), or train it with head=inverse."
        )


def open_run(path: Path, weights: bool = True) -> Network:
    """Open the network of a run, with averaged weights and merged low-rank updates, in eval mode.

    path: a run folder or a checkpoint in it. A network that gave metres before training gives
    disparity, because our losses do not keep the scale. Raises TrainingError for a run that cannot
    be read, and for a recipe whose network this module does not know.
    """
    content = checkpoints.read(path)
    settings = content["settings"]
    if "network" in settings:
        network = open_network(config.build(NetworkConfig, settings["network"]), weights=False)
    elif "student" in settings:
        network = SmallUNet(config.build(StudentConfig, settings["student"]))
    else:
        raise TrainingError(
            f"The run in {path} is of recipe {content.get('recipe')!r}, whose network is not known"
            " here; give a run of supervised, distill or westar."
        )
    if isinstance(network, DepthAnything):
        network.as_disparity()
    scale = 1.0
    if "tune" in settings:
        tuned = config.build(TuneConfig, settings["tune"])
        tune(network, tuned)
        scale = tuned.merge_scale
    if weights:
        checkpoints.load(network, content["averaged"], path)
    return merged(network, scale).requires_grad_(True).eval()  # type: ignore[return-value]


def open_student(cfg: NetworkConfig) -> Network:
    """Open a network for training with losses on disparity.

    It gives disparity even if its source gives metres. Raises TrainingError as open_network does.
    """
    network = open_network(cfg)
    return network.as_disparity() if isinstance(network, DepthAnything) else network


def open_dino(cfg: NetworkConfig) -> Dino | ImageNetFeatures:
    """Open a frozen DINOv2 from a folder or the hub; with random weights if `source` is empty.

    If `source` is torchvision's file of MobileNetV2 (.pth), the features of that. Raises
    TrainingError if it cannot be opened.
    """
    if cfg.source.endswith(".pth"):
        return ImageNetFeatures(Path(cfg.source))
    from transformers import Dinov2Model

    if cfg.source:
        return Dino(from_pretrained(Dinov2Model, cfg))
    if cfg.kind not in SIZES:
        raise TrainingError(
            f"A DINOv2 of kind {cfg.kind!r} does not exist: use one of {', '.join(SIZES)}."
        )
    return Dino(Dinov2Model(depth_anything_config(cfg.kind).backbone_config))
