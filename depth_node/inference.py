# SPDX-License-Identifier: Apache-2.0
"""Picture in, array in picture coordinates out: what the tensors of a network mean."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from depth_node.engine import REGION_MEANINGS, Engine, EngineError, PictureEngine
from depth_node.engine.opening import ModelConfig, open_model
from depth_node.prediction import KINDS, Prediction
from depth_node.preprocess import to_picture, to_tensor
from depth_node.regions import SegmentationConfig, labels_from_ids, labels_from_masks

_Model = TypeVar("_Model", bound="_PictureModel")


class _PictureModel:
    """An engine whose output is a map of the picture: resizing, timing and life are the same."""

    meanings: tuple[str, ...] = ()
    what = ""

    def __init__(self, engine: Engine) -> None:
        meaning = engine.manifest.meaning
        if meaning not in self.meanings:
            raise EngineError(
                f"model {engine.manifest.name} gives {meaning}: that is no {self.what}; give a"
                f" model whose manifest says one of {', '.join(self.meanings)}"
            )
        self.engine = engine
        self.stage_ms: dict[str, float] = {}
        spec = engine.manifest.input
        self._infer(np.zeros((spec.height, spec.width, 3), np.uint8))  # a wrong shape shows now

    @classmethod
    def open(cls: type[_Model], config: ModelConfig) -> _Model:
        """Open the model that the settings name. Raises EngineError."""
        engine = open_model(config)
        try:
            return cls(engine)
        except EngineError:
            engine.close()
            raise

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def __enter__(self: _Model) -> _Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _infer(self, image: npt.NDArray[np.uint8]) -> npt.NDArray:
        """The network's output for a picture, leading axes of size 1 dropped; times are noted."""
        start = time.perf_counter()
        ready = start
        if isinstance(self.engine, PictureEngine):  # it makes the tensor where the network runs
            output = self.engine.run_picture(image)
        else:
            tensor = to_tensor(image, self.engine.manifest.input)
            ready = time.perf_counter()
            output = self.engine.run(tensor)
        end = time.perf_counter()
        self.stage_ms = {"preprocess": (ready - start) * 1e3, "engine": (end - ready) * 1e3}
        shape = output.shape
        axes = 3 if self.engine.manifest.meaning == "region_masks" else 2
        while output.ndim > axes and output.shape[0] == 1:
            output = output[0]
        if output.ndim != axes or 0 in output.shape[-2:]:
            facts = self.engine.manifest
            needed = "(masks, height, width)" if axes == 3 else "(height, width)"
            raise EngineError(
                f"output {facts.output_name} of model {facts.name} has shape {shape}, but"
                f" {facts.meaning} needs {needed}: correct output_name or meaning in"
                " the manifest, or export the model so"
            )
        return output


class DepthModel(_PictureModel):
    """A network that gives relative or metric depth or disparity.

    Raises EngineError if the engine's manifest says that its network gives something else.
    ``stage_ms`` holds the times of the last call: preprocess, engine, postprocess.
    """

    meanings = KINDS
    what = "depth"

    def predict(self, image: npt.NDArray[np.uint8]) -> Prediction:
        """(H, W, 3) uint8 RGB -> the prediction at the picture's size."""
        output = self._infer(image)
        start = time.perf_counter()
        manifest = self.engine.manifest
        # Interpolated in the network's own space: whatever is affine in it stays so.
        values = to_picture(output, manifest.input, image.shape[0], image.shape[1])
        prediction = Prediction(values, manifest.meaning)
        self.stage_ms["postprocess"] = (time.perf_counter() - start) * 1e3
        return prediction


class RegionModel(_PictureModel):
    """A network that cuts the picture into regions.

    "region_masks" is (masks, h, w), above 0 inside a mask; "region_labels" is (h, w), one number
    per region and 0 for none. Raises EngineError for other meanings. ``stage_ms`` as in DepthModel.
    """

    meanings = REGION_MEANINGS
    what = "region map"

    def __init__(self, engine: Engine, config: SegmentationConfig | None = None) -> None:
        self.config = config or SegmentationConfig()
        super().__init__(engine)

    @classmethod
    def open(  # type: ignore[override]
        cls, config: ModelConfig, segmentation: SegmentationConfig | None = None
    ) -> RegionModel:
        """Open the model that the settings name. Raises EngineError."""
        model = super().open(config)
        model.config = segmentation or model.config
        return model

    def predict(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
        """(H, W, 3) uint8 RGB -> (H, W) int32 labels, 0 = unassigned, 1..K."""
        output = self._infer(image)
        start = time.perf_counter()
        spec = self.engine.manifest.input
        height, width = image.shape[:2]
        if self.engine.manifest.meaning == "region_masks":
            # Enlarged before the threshold, so that borders are smooth and not in steps.
            masks = np.zeros((len(output), height, width), bool)
            for mask, scores in zip(masks, output, strict=True):
                np.greater(to_picture(scores, spec, height, width), 0, out=mask)
            labels = labels_from_masks(masks, self.config)
        else:
            ids = np.rint(output).astype(np.int32)
            labels = labels_from_ids(
                to_picture(ids, spec, height, width, nearest=True), self.config
            )
        self.stage_ms["postprocess"] = (time.perf_counter() - start) * 1e3
        return labels
