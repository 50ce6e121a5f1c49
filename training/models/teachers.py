# SPDX-License-Identifier: Apache-2.0
"""Teachers: networks of torch, exported engines and diffusion networks behind one interface.

A teacher declares what its maps mean (`kind`, of depth_node.prediction.KINDS); `ask` converts them
to disparity, large = near, with a mask of known pixels. The conversion is depth_node's: inverses no
closer to zero than a fraction of the median. For affine depth (Marigold) that is a choice of ours,
because its shift is unknown.
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
    """Images (N, 3, H, W) float32 in 0..1, any size -> maps (N, 1, H, W) of its `kind`."""

    name: str
    revision: str
    kind: str

    def __call__(self, images: Tensor) -> Tensor:
        """The maps."""


def ask(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    """Disparity (N, 1, H, W) float32, 0 where unknown, and the mask of known pixels.

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
    """A teacher."""

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
    """A torch network, frozen. It moves to the device of the images it predicts for."""

    def __init__(
        self, network: Network, name: str, size: tuple[int, int] = (0, 0), shift: float = 0.0
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.size = name, size
        self.kind = getattr(network, "meaning", "disparity_affine_invariant")
        # Whatever is added, affine depth stays what it is; only its inverse is another.
        self.shift = shift if self.kind == "depth_affine_invariant" else 0.0
        self.revision = fingerprint(network) + (f"+{self.shift:g}" if self.shift else "")

    def __call__(self, images: Tensor) -> Tensor:
        """Maps (N, 1, H, W) of the images' size; images are resized to the network's input."""
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
    """A shipped network: an ONNX file with its manifest, through depth_node's engine."""

    def __init__(self, path: str, backend: str = REFERENCE) -> None:
        try:
            self.model = DepthModel.open(ModelConfig(path=path, backend=backend, threads=1))
        except EngineError as error:
            raise TrainingError(f"The teacher {path!r} cannot be opened: {error}") from error
        manifest = self.model.engine.manifest
        self.name = manifest.name
        # A teacher's images have no camera.
        self.kind = NEEDS_FOCAL.get(manifest.meaning, manifest.meaning)
        self.revision = model_digest(self.model)[:16]

    def __call__(self, images: Tensor) -> Tensor:
        """Maps of the images' size, as the engine gives them in image coordinates."""
        pixels = (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu()
        maps = [self.model.predict(image.contiguous().numpy()).values for image in pixels]
        return torch.from_numpy(np.stack(maps))[:, None].to(images.device)


def fingerprint(network: nn.Module) -> str:
    """A digest of a network's weights, as a short name."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def open_teacher(cfg: TeacherConfig) -> Teacher:
    """The teacher that the settings name. Raises TrainingError with a sentence."""
    if cfg.source == "engine":
        return EngineTeacher(cfg.path or "embedded", cfg.backend)
    if cfg.source == "diffusion":
        from training.models import assistants  # needs diffusers

        assistant: Any = assistants.open_assistant(
            cfg.path, cfg.network.allow_download, cfg.network.revision, cfg.genpercept
        )
        return NetworkTeacher(assistant, cfg.path, (cfg.height, cfg.width), cfg.shift)
    generator = torch.random.get_rng_state()
    try:  # random weights of a teacher must not depend on what was drawn before
        torch.manual_seed(cfg.seed)
        network = open_network(cfg.network)
    finally:
        torch.random.set_rng_state(generator)
    name = cfg.network.source or f"random {cfg.network.kind} {cfg.seed}"
    return NetworkTeacher(network, name, (cfg.height, cfg.width), cfg.shift)
