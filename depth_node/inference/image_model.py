# SPDX-License-Identifier: Apache-2.0
"""Base of all networks of images: running them, timing, checks of the outputs' shapes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.preprocess import to_tensor
from depth_node.engine.protocol import Closeable, Engine, ImageEngine
from depth_node.prediction import POINTS

Tensors = dict[str, npt.NDArray[Any]]

# Meaning or role of an output -> its number of axes, and its shape as error messages name it. All
# others are one (height, width) map.
_SHAPES = {
    "region_masks": (3, "(masks, height, width)"),
    POINTS: (3, "(height, width, 3)"),
    "scale": (0, "one number"),
}


class ImageModel(Closeable):
    """Base class of networks whose output is a map of the image.

    meanings: those that a subclass accepts. output_kind: what it gives, for error messages.
    ``stage_ms``: times of the last call in ms, by stage. The constructor raises EngineError if the
    engine's manifest has another meaning or an output has a wrong shape.
    """

    meanings: tuple[str, ...] = ()
    output_kind = ""

    def __init__(self, engine: Engine) -> None:
        meaning = engine.manifest.meaning
        if meaning not in self.meanings:
            raise EngineError(
                f"model {engine.manifest.name} gives {meaning}: that is no {self.output_kind}; give"
                f" a model whose manifest says one of {', '.join(self.meanings)}"
            )
        self.engine = engine
        self.stage_ms: dict[str, float] = {}
        spec = engine.manifest.input
        self._check_outputs(np.zeros((spec.height, spec.width, 3), np.uint8))

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _check_outputs(self, image: npt.NDArray[np.uint8]) -> None:
        """Run the network once, so that opening it fails if an output has a wrong shape."""
        self._infer(image)

    def _infer(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Return the main output without leading axes of size 1; store the times in stage_ms."""
        return self.outputs(image)[self.engine.manifest.output_name]

    def outputs(
        self,
        image: npt.NDArray[np.uint8],
        more: Callable[[], Tensors] | None = None,
    ) -> Tensors:
        """Run the network on an (H, W, 3) uint8 RGB image; return its outputs by name.

        The outputs have no leading axes of size 1. more: function that returns the model's inputs
        besides the image, if it has any. Stores the times in stage_ms. Raises EngineError if the
        run fails or an output has a wrong shape.
        """
        manifest = self.engine.manifest
        start = time.perf_counter()
        ready = start
        if isinstance(self.engine, ImageEngine) and more is None:  # converts images on its device
            if manifest.roles:
                outputs = self.engine.run_image_named(image)
            else:
                outputs = {manifest.output_name: self.engine.run_image(image)}
        else:
            tensors = {manifest.input_name: to_tensor(image, manifest.input)}
            if more is not None:
                tensors |= more()
            ready = time.perf_counter()
            if manifest.roles or more is not None:
                outputs = self.engine.run_named(tensors)
            else:
                tensor = tensors[manifest.input_name]
                outputs = {manifest.output_name: self.engine.run(tensor)}
        end = time.perf_counter()
        self.stage_ms = {"preprocess": (ready - start) * 1e3, "engine": (end - ready) * 1e3}
        roles = {of: role for role, of in manifest.roles.items()}
        flat: Tensors = {}
        for name, output in outputs.items():
            what = roles.get(name, manifest.meaning)
            axes, needed = _SHAPES.get(what, (2, "(height, width)"))
            flat[name] = output
            while flat[name].ndim > axes and flat[name].shape[0] == 1:
                flat[name] = flat[name][0]
            fits = flat[name].ndim == axes and 0 not in flat[name].shape[-2:]
            if name != manifest.output_name and name not in roles:
                continue
            if not fits or (what == POINTS and flat[name].shape[2] != 3):
                raise EngineError(
                    f"output {name} of model {manifest.name} has shape {output.shape}, but {what}"
                    f" needs {needed}: correct output_name or meaning in the manifest, or export"
                    " the model so"
                )
        return flat
