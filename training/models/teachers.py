# SPDX-License-Identifier: Apache-2.0
"""Teachers: networks of torch, exported engines and diffusion networks behind one interface.

A teacher declares the meaning of its maps (`kind`, of depth_node.prediction.KINDS); `ask` converts
them to disparity, large = near, with a mask of known pixels. The conversion is depth_node's, which
clamps depth to a fraction of its median before inversion. For affine depth (Marigold) the inverse
is a choice of ours, because its shift is unknown.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from depth_node.engine import EngineError
from depth_node.engine.options import REFERENCE
from depth_node.inference import DepthModel, ModelConfig
from depth_node.prediction import NEEDS_FOCAL, Prediction
from training.checkpoints import TrainingError
from training.data.cache import model_digest
from training.models.networks import Network, NetworkConfig, open_network

SOURCES = ("network", "engine", "diffusion")


class Teacher(Protocol):
    """A network that teaches: images (N, 3, H, W) float32 in 0..1 to maps (N, 1, H, W) of `kind`.

    Images may have any size. revision: changes with all that the maps depend on, for caches.
    """

    name: str
    revision: str
    kind: str

    def __call__(self, images: Tensor) -> Tensor:
        """Return the maps (N, 1, H, W)."""


def ask(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a teacher's disparity (N, 1, H, W) float32, 0 where unknown, and the mask of known.

    images (N, 3, H, W) in 0..1. Raises TrainingError for maps of another size.
    """
    with torch.no_grad():
        maps = teacher(images).float()
    if maps.shape != (len(images), 1, *images.shape[-2:]):
        raise TrainingError(
            f"Teacher {teacher.name} answers {tuple(maps.shape)} to images of"
            f" {tuple(images.shape)}; it must give one map of their size each."
        )
    if teacher.kind.startswith("disparity"):
        disparity = maps
    else:
        disparities = [Prediction(m[0], teacher.kind).disparity() for m in maps.cpu().numpy()]
        disparity = torch.from_numpy(np.stack(disparities))[:, None].to(maps.device)
    known = torch.isfinite(disparity)
    return torch.where(known, disparity, torch.zeros_like(disparity)), known


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of a teacher."""

    source: str = config.option(
        "network",
        "network: of torch, on the training device; engine: an ONNX file with manifest, through"
        " depth_node; diffusion: a run of depthmaster, a Marigold of diffusers, or a GenPercept.",
        choices=SOURCES,
    )
    path: str = config.option(
        "", "Of an engine: the .onnx file, or `embedded`; of a diffusion network: its folder."
    )
    genpercept: str = config.option(
        "",
        "`path` is a GenPercept, a Stable Diffusion 2.1 with its U-Net in unet/, that gives this,"
        " which no file states; empty: it is none.",
        choices=("", "depth", "disparity"),
    )
    backend: str = config.option(
        REFERENCE,
        "What runs an engine, as the node's model.backend. The CPU's outputs are the reference:"
        " others may differ in the last bits, and are cached apart.",
    )
    height: int = config.option(
        0, "Rows that a network works in; 0: those of the images.", unit="px", minimum=0
    )
    width: int = config.option(
        0, "Columns that a network works in; 0: those of the images.", unit="px", minimum=0
    )
    shift: float = config.option(
        0.1,
        "Of a network that gives affine depth (Marigold: 0..1, the nearest is 0): added before it"
        " is inverted, as the true shift is unknown. Ours.",
        minimum=0,
    )
    seed: int = config.option(0, "Of a network without source: seed of its random weights.")
    network: NetworkConfig = config.section(NetworkConfig, "The network.")

    def __post_init__(self) -> None:
        config.validate(self)


class NetworkTeacher:
    """A frozen network of torch; it moves to the device of the images.

    size: rows and columns that it works in; 0: those of the images. shift: added to affine depth.
    """

    def __init__(
        self, network: Network, name: str, size: tuple[int, int] = (0, 0), shift: float = 0.0
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.size = name, size
        self.kind = getattr(network, "meaning", "disparity_affine_invariant")
        # A constant does not change the meaning of affine depth, only of its inverse.
        self.shift = shift if self.kind == "depth_affine_invariant" else 0.0
        # It names cached maps, which depend on more than the weights.
        self.revision = fingerprint(network)
        if self.kind != "disparity_affine_invariant":
            self.revision += f"+{self.kind}"
        if self.shift:
            self.revision += f"+{self.shift:g}"
        if any(size):
            self.revision += f"+{size[0]}x{size[1]}"

    def __call__(self, images: Tensor) -> Tensor:
        """Return maps (N, 1, H, W) at the size of the images, which are resized for the network."""
        return self._maps(images) + self.shift

    def _maps(self, images: Tensor) -> Tensor:
        self.network.to(images.device)
        height, width = images.shape[-2:]
        inner = self.network.spec.fitting(self.size[0] or height, self.size[1] or width)
        x = images
        if inner != (height, width):
            shrinks = inner[0] < height or inner[1] < width
            x = functional.interpolate(
                x, inner, mode="bilinear", align_corners=False, antialias=shrinks
            )
        maps: Tensor = self.network(self.network.spec.normalise(x))
        if inner == (height, width):
            return maps
        return functional.interpolate(
            maps.float(), (height, width), mode="bilinear", align_corners=False
        )


class EngineTeacher:
    """An ONNX file with manifest as a teacher, run by depth_node's engine.

    Raises TrainingError if it cannot be opened.
    """

    def __init__(self, path: str, backend: str = REFERENCE) -> None:
        try:
            self.model = DepthModel.open(ModelConfig(path=path, backend=backend, threads=1))
        except EngineError as error:
            raise TrainingError(f"The teacher {path!r} cannot be opened: {error}") from error
        manifest = self.model.engine.manifest
        self.name = manifest.name
        # A teacher's images have no camera, so an output that needs a focal length stays relative.
        self.kind = NEEDS_FOCAL.get(manifest.meaning, manifest.meaning)
        self.revision = model_digest(self.model)[:16]

    def __call__(self, images: Tensor) -> Tensor:
        """Return maps (N, 1, H, W) at the size of the images."""
        pixels = (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu()
        maps = [self.model.predict(image.contiguous().numpy()).values for image in pixels]
        return torch.from_numpy(np.stack(maps))[:, None].to(images.device)


def fingerprint(network: nn.Module) -> str:
    """Return a short hexadecimal digest of a network's weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def open_teacher(cfg: TeacherConfig) -> Teacher:
    """Open the teacher of the settings. Raises TrainingError if it cannot be opened."""
    if cfg.source == "engine":
        return EngineTeacher(cfg.path or "embedded", cfg.backend)
    if cfg.source == "diffusion":
        from training.models import assistants  # needs diffusers

        assistant: Any = assistants.open_assistant(
            cfg.path, cfg.network.allow_download, cfg.network.revision, cfg.genpercept
        )
        return NetworkTeacher(assistant, cfg.path, (cfg.height, cfg.width), cfg.shift)
    generator = torch.random.get_rng_state()
    try:  # a teacher's random weights must depend on its seed alone
        torch.manual_seed(cfg.seed)
        network = open_network(cfg.network)
    finally:
        torch.random.set_rng_state(generator)
    name = cfg.network.source or f"random {cfg.network.kind} {cfg.seed}"
    return NetworkTeacher(network, name, (cfg.height, cfg.width), cfg.shift)
