# SPDX-License-Identifier: Apache-2.0
"""Samples for evaluation, and a network's predictions for them, which are stored."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from depth_node.engine.options import REFERENCE
from depth_node.inference import DepthModel, ModelConfig
from depth_node.prediction import Prediction
from depth_node.recordings.frames import find_frames, read_frame
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.data.cache import model_digest
from training.data.corruptions import (
    corrupt,
)
from training.data.samples import Sample


def rendered_rooms(count: int, seed: int, height: int = 240, width: int = 320) -> Iterable[Sample]:
    """Yield one rendered image of each of `count` rooms; image k depends on the seed and k only."""
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        scene = Scene.random(rng, "mixed")
        camera, pose = random_view(scene, rng, width, height)
        view = scene.render(camera, pose)
        source = f"procedural {scene.style}"
        yield Sample(f"{seed}-{k}", view.image, view.depth, source=source)


def recorded(folder: Path) -> Iterable[Sample]:
    """Yield the frames below a folder that have depth."""
    for path in find_frames(folder):
        frame = read_frame(path)
        if frame.depth is not None:
            yield Sample(frame.name, frame.image, frame.depth, source=frame.source)


def corrupted(sample: Sample, name: str, severity: int) -> Sample:
    """Return the sample with its image corrupted; the random seed follows from source and name."""
    seed = zlib.crc32(f"{sample.source}/{sample.name}".encode())
    return replace(sample, image=corrupt(sample.image, name, severity, seed))


class NetworkPredictor(Protocol):
    """Interface of a network that is evaluated; DepthModel has it."""

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the prediction for an image (H, W, 3) uint8 RGB, at the image's size."""


class Cached:
    """Predictor that stores its predictions on disk, so that they can be scored many times.

    identity: digest of everything that a prediction depends on. folder: gets a subfolder per
    network. A stored prediction that cannot be read is computed again.
    """

    def __init__(self, predictor: NetworkPredictor, identity: str, folder: Path) -> None:
        self.predictor = predictor
        self.folder = folder / identity[:24]
        self.folder.mkdir(parents=True, exist_ok=True)

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the prediction for an image (H, W, 3) uint8 RGB, from the disk if it is stored.

        A stored prediction has values and kind, but neither sky nor confidence.
        """
        digest = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        path = self.folder / f"{digest.hexdigest()[:32]}.npz"
        try:
            with path.open("rb") as file, np.load(file) as stored:
                return Prediction(stored["values"], str(stored["kind"]))
        except Exception:  # libraries do not document all errors of damaged files
            pass
        prediction = self.predictor.predict(image)
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
        np.savez(partial, values=prediction.values, kind=np.array(prediction.kind))
        os.replace(partial, path)
        return prediction


def open_model(text: str, backend: str = REFERENCE) -> tuple[str, str, Any]:
    """Open `embedded`, FILE.onnx[=MANIFEST] or a run folder; return name, identity and predictor.

    backend: the back end of an ONNX file; by default the reference, so that scores do not depend on
    the machine. A run is computed by torch on the CPU. Raises EngineError or TrainingError with one
    sentence.
    """
    # A path may contain "=" itself, as folders that are named after settings do.
    path, _, manifest = (text, "", "") if Path(text).exists() else text.partition("=")
    if Path(path).is_dir():
        from training.export.exportable import open_checkpoint  # torch only for a run

        opened = open_checkpoint(Path(path))
        return Path(path).name, opened.identity, opened
    model = DepthModel.open(ModelConfig(path, manifest, backend, threads=1))
    return model.engine.manifest.name, model_digest(model), model
