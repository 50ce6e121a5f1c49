# SPDX-License-Identifier: Apache-2.0
"""What is exported: the network of a run, its input and meaning, and the origin of its weights.

A recipe whose network models.networks.open_run() does not know has a function
`exportable(payload)`, which gets the result of training.checkpoints.read() and returns (network,
NetworkInput, meaning). Its settings have `height` and `width`, or they are given on the command
line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from depth_node import config
from depth_node.engine import EngineError, preprocess
from depth_node.engine.manifest import PACKAGED
from depth_node.model_zoo.registry import locate
from depth_node.prediction import Prediction
from training import checkpoints, recipes
from training.checkpoints import TrainingError
from training.models import mobilenet, network_io, networks, unet

PATCHED_SIZE = (392, 518)  # 3:4 (height : width), with the width Depth Anything was trained with


@dataclass
class Exportable:
    """A network in eval mode with the content of its manifest; it predicts like the exported file.

    patch_size: of a transformer's encoder, px; 0: none. entries: name, licence, source and training
    of the manifest.
    """

    network: nn.Module
    spec: preprocess.InputSpec
    meaning: str
    patch_size: int = 0
    entries: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Hexadecimal SHA-256 of weights, input specification and meaning."""
        digest = hashlib.sha256(repr((self.spec, self.meaning)).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Predict for an image (H, W, 3) uint8 RGB, at its size, with torch."""
        tensor = torch.from_numpy(preprocess.to_tensor(image, self.spec))
        values = self.network(tensor)[0, 0].float().numpy()
        full = preprocess.to_image(values, self.spec, *image.shape[:2], image=image)
        return Prediction(full, self.meaning)

    def close(self) -> None:
        """Do nothing; other predictors release an engine here."""


def open_checkpoint(path: Path, height: int = 0, width: int = 0) -> Exportable:
    """Open the network to export, of a run or of a folder of transformers' Depth Anything.

    path: RUN, RUN/best, another checkpoint, or a folder with config.json and model.safetensors.
    height, width: of the network's input, px (0: the run's). Raises TrainingError if the network
    cannot be opened or the size does not fit it.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        network: Any = networks.open_network(networks.NetworkConfig(kind="small", source=str(path)))
        return _exportable(network, height, width, {}, {"start": path.name})
    payload = checkpoints.read(path)
    settings = payload["settings"]
    hook = getattr(_recipe(payload), "exportable", None)
    if hook is not None:
        network, spec, meaning = hook(payload)
    else:
        network, spec, meaning = networks.open_run(path), None, ""
    return _exportable(network, height, width, settings, _provenance(payload), spec, meaning)


def _recipe(payload: Mapping[str, Any]) -> Any:
    name = str(payload.get("recipe"))
    return recipes.find(name) if name in recipes.RECIPES else None


def _exportable(
    network: Any,
    height: int,
    width: int,
    settings: Mapping[str, Any],
    provenance: dict[str, Any],
    spec: network_io.NetworkInput | None = None,
    meaning: str = "",
) -> Exportable:
    network = network.eval().requires_grad_(False)
    spec = spec or network.spec
    meaning = meaning or getattr(network, "meaning", "disparity_affine_invariant")
    patched = spec.multiple_px == network_io.PATCH_PX
    default = PATCHED_SIZE if patched else (0, 0)
    height = height or int(settings.get("height", 0)) or default[0]
    width = width or int(settings.get("width", 0)) or default[1]
    if not height or not width:
        raise TrainingError("The run has no input size: give --height and --width.")
    fitting = spec.fitting(height, width)
    if fitting != (height, width):
        raise TrainingError(
            f"An input of {height}x{width} does not fit this network: its sides are multiples of"
            f" {spec.multiple_px}; {fitting[0]}x{fitting[1]} is near."
        )
    if isinstance(network, unet.SmallUNet):
        # models/networks.py needs the architecture to open the exported file again.
        provenance["student"] = config.to_dict(network.cfg)
        if not _has_offset(settings):
            assert network.head.bias is not None
            network.head.bias.add_(unet.OFFSET)  # the upsampling after the head keeps a constant
    return Exportable(
        network,
        preprocess.InputSpec(
            height=height,
            width=width,
            mean=spec.mean,
            std=spec.std,
            resize="stretch",
            # Our networks are trained on area-averaged images, Depth Anything on cubic ones.
            interpolation="area" if settings else "cubic",
        ),
        meaning,
        spec.multiple_px if patched else 0,
        {
            # Weights that began as a third party's keep its licence, which is unknown here.
            "licence": "" if patched and "start" in provenance else _licence(provenance),
            "source": f"trained by this project: python -m training {provenance['recipe']}"
            if "recipe" in provenance
            else "exported by this project",
            "training": provenance,
        },
    )


def _licence(provenance: Mapping[str, Any]) -> str:
    """Return the SPDX expression: our licence, and that of ImageNet weights if they were used."""
    return "Apache-2.0 AND BSD-3-Clause" if "imagenet" in provenance else "Apache-2.0"


def _origin(settings: Mapping[str, Any]) -> str:
    """Return what a run's weights began as: a file, run or packaged network; "" if random."""
    return str(settings.get("network", {}).get("source") or settings.get("start") or "")


def _run_before(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the settings of the run that a run began from, None if it began from none."""
    origin = _origin(settings)
    path = Path(origin).expanduser()
    if not origin or not checkpoints.is_run(path):
        return None
    before: Mapping[str, Any] = checkpoints.about(path)["settings"]
    return before


def _has_offset(settings: Mapping[str, Any]) -> bool:
    """Return whether a run started, directly or through other runs, from an exported file."""
    # A packaged network as `start` does not count: `supervised` removes its offset before training.
    source = str(settings.get("network", {}).get("source") or "")
    if source in PACKAGED or source.endswith(".onnx"):
        return True
    before = _run_before(settings)
    return before is not None and _has_offset(before)


def _imagenet_notice(settings: Mapping[str, Any]) -> str:
    """Return the notice of ImageNet weights that a run started with, directly or not, else ""."""
    if settings.get("imagenet"):
        return mobilenet.NOTICE
    origin = _origin(settings)
    if origin in PACKAGED or origin.endswith(".onnx"):
        try:
            return str(locate(origin)[1].training.get("imagenet", ""))
        except EngineError:  # the file may have been deleted since
            return ""
    before = _run_before(settings)
    return "" if before is None else _imagenet_notice(before)


def _provenance(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return recipe, steps, seeds and source of a network, without paths of this machine."""
    settings = payload["settings"]
    loop = settings.get("loop", {})
    provenance: dict[str, Any] = {
        "recipe": str(payload.get("recipe")),
        "steps": int(payload["step"]),
    }
    provenance.update({key: loop[key] for key in ("batch", "seed") if key in loop})
    start = _origin(settings)
    if start:
        provenance["start"] = Path(start).name
    if "pool" in settings:
        provenance["pool_seed"] = settings["pool"]["seed"]
        outdoors = settings.get("outdoors_share", 0) > 0
        scenes = "rooms and outdoor scenes" if outdoors else "rooms"
        provenance["data"] = (
            f"procedural {scenes} of depth_node.simulation.renderer, no photographs"
        )
        if outdoors:
            provenance["outdoors_seed"] = settings["outdoors"]["seed"]
    notice = _imagenet_notice(settings)
    if notice:
        provenance["imagenet"] = notice
    return provenance
