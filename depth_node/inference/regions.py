# SPDX-License-Identifier: Apache-2.0
"""Region networks: label map from an image, in one pass or by point prompts."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.manifest import PROMPT_DECODER, PROMPTS, REGION_MEANINGS
from depth_node.engine.options import EngineConfig, ModelConfig
from depth_node.engine.preprocess import tensor_box, to_image, to_tensor
from depth_node.engine.protocol import Engine
from depth_node.engine.sharing import Opener
from depth_node.inference.image_model import ImageModel
from depth_node.inference.opening import open_configured
from depth_node.regions.label_maps import (
    REFERENCE_AREA_PX,
    Labels,
    labels_from_ids,
    labels_from_masks,
    labels_from_painting,
    scaled_px,
)
from depth_node.regions.prompted_masks import batches, edges_to_ids, paint, point_grid, select
from depth_node.regions.settings import SegmentationConfig

EDGE_GAP_PX = 4.0  # gaps in edges up to this width are closed; at 640x480, scaled with the image
_ANSWERS = ("masks", "iou", "stability", "boxes")


class RegionModel(ImageModel):
    """A network that segments the image into regions in one pass.

    Its manifest's meaning is one of: region_masks, (masks, h, w), above 0 inside a mask;
    region_labels, (h, w), one number per region and 0 for none; region_edges, (h, w), strength of
    an edge, 0 to 1. The constructor raises EngineError for other meanings. ``stage_ms`` as in
    DepthModel. ``message``: a sentence if the last image has no regions, else ""; region_edges
    never sets it, because an image without edges is one region.
    """

    meanings: tuple[str, ...] = tuple(name for name in REGION_MEANINGS if name != PROMPTS)
    output_kind = "region map"

    def __init__(self, engine: Engine, config: SegmentationConfig | None = None) -> None:
        self.config = config or SegmentationConfig()
        self.message = ""
        super().__init__(engine)

    @classmethod
    def open(
        cls,
        config: ModelConfig,
        segmentation: SegmentationConfig | None = None,
        engine_config: EngineConfig | None = None,
        opener: Opener = open_configured,
    ) -> RegionModel:
        """Open the model that the settings name, and its decoder if the manifest names one.

        Raises EngineError with cause and cure.
        """
        engine_config = engine_config or EngineConfig()
        engine = opener(config, engine_config)
        decoder: Engine | None = None
        try:
            if engine.manifest.meaning != PROMPTS:
                return cls(engine, segmentation)
            decoder = _opened_decoder(config, engine_config, engine, opener)
            return PromptedRegionModel(engine, decoder, segmentation)
        except BaseException:
            engine.close()
            if decoder is not None:
                decoder.close()
            raise

    def predict(self, image: npt.NDArray[np.uint8]) -> Labels:
        """Return (H, W) int32 labels, 0 = unassigned, 1..K, of an (H, W, 3) uint8 RGB image."""
        output = self._infer(image)
        start = time.perf_counter()
        spec, meaning = self.engine.manifest.input, self.engine.manifest.meaning
        height, width = image.shape[:2]
        if meaning == "region_masks":
            # Resized before the threshold, so that borders are smooth.
            masks = np.zeros((len(output), height, width), bool)
            for mask, scores in zip(masks, output, strict=True):
                np.greater(to_image(scores, spec, height, width), 0, out=mask)
            labels = labels_from_masks(masks, self.config)
            self.message = "" if masks.any() else "the network found no mask in the image"
        elif meaning == "region_edges":
            edges = to_image(output, spec, height, width)
            gap_px = EDGE_GAP_PX * np.sqrt(height * width / REFERENCE_AREA_PX)
            ids = edges_to_ids(edges, self.config.edge_level, gap_px / 2)
            labels = labels_from_ids(np.where(np.isfinite(edges), ids, 0), self.config)
        else:
            ids = _whole_numbers(output)
            ids = to_image(ids, spec, height, width, nearest=True)
            labels = labels_from_ids(ids, self.config)
            self.message = "" if ids.any() else "the network found no region in the image"
        self.stage_ms["postprocess"] = (time.perf_counter() - start) * 1e3
        return labels


class PromptedRegionModel(RegionModel):
    """Segment Anything and similar networks: an image encoder and a decoder for point prompts.

    The encoder runs once per image. Its outputs are inputs of the decoder, by the same names; the
    decoder's other inputs are `points` (n, 2), x and y in pixels of the encoder's input, and
    `extent` (2,), the number of rows and columns of that input that the image fills. For every
    point the decoder gives m `masks` (n, m, h, w), above 0 inside, their predicted `iou` and their
    `stability` (n, m), and their `boxes` (n, m, 4): first column, first row, last column and last
    row inside the mask (x0, y0, x1, y1). RegionModel.open opens both. The constructor raises
    EngineError if the two do not belong together.
    """

    meanings = (PROMPTS,)

    def __init__(
        self, engine: Engine, decoder: Engine, config: SegmentationConfig | None = None
    ) -> None:
        encoder, prompted = engine.manifest, decoder.manifest
        needed = {*prompted.inputs} - {"points", "extent"}
        if prompted.meaning != PROMPT_DECODER or prompted.output_names != _ANSWERS:
            raise EngineError(
                f"{prompted.name} gives {prompted.meaning} ({', '.join(prompted.output_names)}), a"
                f" prompt decoder gives {PROMPT_DECODER} ({', '.join(_ANSWERS)}): name the decoder"
                f" of {encoder.name} in its manifest"
            )
        if needed != {*encoder.output_names} or len(prompted.inputs) != len(needed) + 2:
            raise EngineError(
                f"prompt decoder {prompted.name} takes {', '.join(prompted.inputs)} and the encoder"
                f" {encoder.name} gives {', '.join(encoder.output_names)}: it belongs to another"
                " encoder; export both together"
            )
        if encoder.input.resize not in ("stretch", "corner"):
            raise EngineError(
                f"the encoder {encoder.name} has resize {encoder.input.resize}: its points would be"
                " out of place; use corner or stretch in its manifest"
            )
        self.decoder = decoder
        super().__init__(engine, config)

    def close(self) -> None:
        """Free both engines."""
        super().close()
        self.decoder.close()

    def predict(self, image: npt.NDArray[np.uint8]) -> Labels:
        """Return (H, W) int32 labels, 0 = unassigned, 1..K, of an (H, W, 3) uint8 RGB image."""
        height, width = image.shape[:2]
        maps, boxes, extent = self._selected_masks(image)
        start = time.perf_counter()
        min_px = scaled_px(self.config.min_region_px, height, width)
        painted = paint(maps, boxes, extent, height, width, min_px)
        labels = labels_from_painting(painted, self.config)
        if maps and not painted.any():
            self.message = f"all {len(maps)} masks are smaller than segmentation.min_region_px"
        self.stage_ms["postprocess"] += (time.perf_counter() - start) * 1e3
        return labels

    def masks(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return the (n, H, W) bool masks of an (H, W, 3) uint8 RGB image, best first.

        These are the masks that predict() paints.
        """
        height, width = image.shape[:2]
        maps, boxes, extent = self._selected_masks(image)
        masks = np.zeros((len(maps), height, width), bool)
        for mask, scores, box in zip(masks, maps, boxes, strict=True):
            mask |= paint([scores], box[None], extent, height, width) > 0
        return masks

    def _selected_masks(
        self, image: npt.NDArray[np.uint8]
    ) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any], tuple[float, float]]:
        """Return maps (h, w) and boxes (n, 4) of the selected masks, best first, and the extent.

        The extent is the number of rows and columns of a map that the image fills.
        """
        prompts, spec = self.config.prompts, self.engine.manifest.input
        _, _, rows, cols = tensor_box(image.shape[0], image.shape[1], spec)
        points = point_grid(prompts.points_per_side, rows, cols)
        answers = self._decode(image, points)
        start = time.perf_counter()
        count = len(points) * answers[0]["masks"].shape[1]  # the last batch may be padded
        maps = [mask for answer in answers for one in answer["masks"] for mask in one][:count]
        iou, stability, boxes = (
            np.concatenate(
                [answer[name].reshape(-1, *answer[name].shape[2:]) for answer in answers]
            )
            for name in ("iou", "stability", "boxes")
        )
        selected = select(iou[:count], stability[:count], boxes[:count], maps, prompts)
        self.message = ""
        if not len(selected):
            self.message = (
                f"none of {count} masks passed segmentation.prompts: min_iou {prompts.min_iou:g}"
                f" (best {float(iou.max()):.2f}), min_stability {prompts.min_stability:g}"
                f" (best {float(stability.max()):.2f})"
            )
        self.stage_ms["postprocess"] = (time.perf_counter() - start) * 1e3
        height, width = maps[0].shape
        extent = rows * height / spec.height, cols * width / spec.width
        return [maps[index] for index in selected], boxes[selected], extent

    def _decode(
        self, image: npt.NDArray[np.uint8], points: npt.NDArray[np.float32]
    ) -> list[dict[str, npt.NDArray[Any]]]:
        """Return the decoder's outputs for points (n, 2), one dictionary per batch.

        Stores the times in stage_ms.
        """
        start = time.perf_counter()
        spec = self.engine.manifest.input
        tensor = to_tensor(image, spec)
        extent = np.array(tensor_box(image.shape[0], image.shape[1], spec)[2:], np.float32)
        ready = time.perf_counter()
        features = self.engine.run_named({self.engine.manifest.input_name: tensor})
        answers = [
            self.decoder.run_named({"points": batch, "extent": extent, **features})
            for batch in batches(points, self.decoder.manifest.inputs["points"][0])
        ]
        end = time.perf_counter()
        self.stage_ms = {"preprocess": (ready - start) * 1e3, "engine": (end - ready) * 1e3}
        return answers

    def _check_outputs(self, image: npt.NDArray[np.uint8]) -> None:
        try:
            answer = self._decode(image, np.zeros((1, 2), np.float32))[0]
        except EngineError as error:
            raise EngineError(
                f"the encoder {self.engine.manifest.name} and the prompt decoder"
                f" {self.decoder.manifest.name} do not run together: {error}"
            ) from error
        shapes = {name: answer[name].shape for name in _ANSWERS}
        prompts = shapes["masks"][:2]
        needed = {"iou": prompts, "stability": prompts, "boxes": (*prompts, 4)}
        if len(shapes["masks"]) != 4 or any(shapes[name] != needed[name] for name in needed):
            raise EngineError(
                f"prompt decoder {self.decoder.manifest.name} gives {shapes}: it must give masks"
                " (n, m, h, w), iou and stability (n, m) and boxes (n, m, 4); export it with"
                " training.export.segment_anything"
            )


def _opened_decoder(
    config: ModelConfig, engine_config: EngineConfig, encoder: Engine, opener: Opener
) -> Engine:
    """Open the prompt decoder, whose file is beside its encoder's. Raises EngineError."""
    file = Path(encoder.details.get("model", config.path)).expanduser()
    beside = file.with_name(encoder.manifest.decoder)
    if not beside.is_file():
        raise EngineError(
            f"the prompt decoder {beside} of model {encoder.manifest.name} is missing: put both"
            " halves of the export into one folder, or export the model again"
        )
    return opener(replace(config, path=str(beside), manifest=""), engine_config)


def _whole_numbers(output: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Convert a network's (h, w) region numbers to int32; 0 where it gives none.

    NaN, infinity and numbers that are too large become 0 here, because the result of a cast to
    integers depends on the processor for them.
    """
    if output.dtype.kind in "iub":
        return np.clip(output, 0, np.iinfo(np.int32).max).astype(np.int32)
    known = (output >= 0) & (output < 2.0**31 - 128)  # NaN is neither
    return np.rint(np.where(known, output, 0)).astype(np.int32)
