# SPDX-License-Identifier: Apache-2.0
"""Networks as image functions: an image in, a depth map or a label map in its coordinates out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.manifest import PROMPT_DECODER, PROMPTS, REGION_MEANINGS
from depth_node.engine.opening import open_model
from depth_node.engine.options import EngineConfig, ModelConfig, configured
from depth_node.engine.preprocess import image_box, input_focal_px, tensor_box, to_image, to_tensor
from depth_node.engine.protocol import Closeable, Engine, ImageEngine, Progress
from depth_node.engine.self_check import reference_inputs
from depth_node.engine.sharing import Opener
from depth_node.engine.sparse_input import pattern_tensors, sparse_tensors
from depth_node.engine.upsampling import sharpener
from depth_node.fitting.network import AnswerWithout, left_out_blocks
from depth_node.geometry.camera import Camera
from depth_node.geometry.point_map import point_map_shift
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.model_zoo.registry import locate
from depth_node.prediction import DEPTH_MEANINGS, NEEDS_FOCAL, Prediction
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


def open_engine(model: str | Path, *, manifest: str | Path | None = None, **options: Any) -> Engine:
    """Open a model, verified and warm: a file, the name of a fetched network, or "embedded".

    The manifest beside the model is used unless ``manifest`` is given. ``options`` are those of
    ModelConfig: backend, threads, precision and so on. Takes seconds for a large model, minutes if
    an engine is built. Raises EngineError with cause and cure.
    """
    return open_configured(*configured(model, manifest, options))


def build_engine(
    model: str | Path,
    *,
    manifest: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Build the TensorRT engine of a model into the cache in advance, and check it.

    ``options`` as in open_engine. Returns the engine's details: key, file, check and so on. An
    engine that the cache has already is only checked. Raises EngineError with cause and cure.
    """
    settings = {"backend": "tensorrt", **options, "build": True}
    with open_configured(*configured(model, manifest, settings), progress) as engine:
        return dict(engine.details)


def open_configured(
    config: ModelConfig, engine: EngineConfig | None = None, progress: Progress | None = None
) -> Engine:
    """Open the engine that the settings describe. Raises EngineError with cause and cure."""
    model, manifest = locate(config.path, config.manifest or None)
    return open_model(model, manifest, config, engine or EngineConfig(), progress)


EDGE_GAP_PX = 4.0  # gaps of edges up to this width are closed; at 640x480, scaled with the image

Tensors = dict[str, npt.NDArray[Any]]
POINTS = "points_affine_invariant"
# Axes of an output, and how its shape is told; all others are one map.
_SHAPES = {
    "region_masks": (3, "(masks, height, width)"),
    POINTS: (3, "(height, width, 3)"),
    "scale": (0, "one number"),
}

_ABOVE_0 = ("depth_metric", "disparity_metric", "depth_metric_focal")

_Model = TypeVar("_Model", bound="_ImageModel")


class _ImageModel(Closeable):
    """Base class of networks whose output is a map of the image: resizing, timing, closing."""

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

    @classmethod
    def open(
        cls: type[_Model],
        config: ModelConfig,
        engine_config: EngineConfig | None = None,
        opener: Opener = open_configured,
    ) -> _Model:
        """Open the model that the settings name. Raises EngineError with cause and cure."""
        engine = opener(config, engine_config or EngineConfig())
        try:
            return cls(engine)
        except EngineError:
            engine.close()
            raise

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _check_outputs(self, image: npt.NDArray[np.uint8]) -> None:
        """Run the network once, so that a wrong output shape is an error when it is opened."""
        self._infer(image)

    def _infer(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """The network's output without leading axes of size 1; stores the times in stage_ms."""
        return self._run(image)[self.engine.manifest.output_name]

    def _run(
        self,
        image: npt.NDArray[np.uint8],
        more: Callable[[], Tensors] | None = None,
    ) -> Tensors:
        """The outputs by name without leading axes of size 1; stores the times in stage_ms.

        more: makes the inputs beside the image, if the model has others.
        """
        manifest = self.engine.manifest
        start = time.perf_counter()
        ready = start
        if isinstance(self.engine, ImageEngine) and more is None:  # on its own device
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


class DepthModel(_ImageModel):
    """A network that gives relative or metric depth or disparity.

    Raises EngineError if the engine's manifest has another meaning. ``stage_ms``: times of the last
    call, ms: preprocess, engine, postprocess.
    """

    meanings = DEPTH_MEANINGS
    output_kind = "depth"

    def __init__(self, engine: Engine) -> None:
        if (engine.manifest.sparse is not None) != isinstance(self, CompletionModel):
            raise EngineError(
                f"model {engine.manifest.name} takes points if its manifest has a section sparse,"
                " and only then: open it with DepthModel.open"
            )
        super().__init__(engine)
        sharpener()  # compiled now, so that no image waits for it

    @classmethod
    def open(
        cls,
        config: ModelConfig,
        engine_config: EngineConfig | None = None,
        opener: Opener = open_configured,
    ) -> DepthModel:
        """Open the model that the settings name. Raises EngineError with cause and cure."""
        engine = opener(config, engine_config or EngineConfig())
        try:
            return cls(engine) if engine.manifest.sparse is None else CompletionModel(engine)
        except EngineError:
            engine.close()
            raise

    @property
    def gives_metres(self) -> bool:
        """Whether its predictions are metric for an image whose camera is known."""
        manifest = self.engine.manifest
        if manifest.meaning == POINTS:
            return "scale" in manifest.roles
        return manifest.meaning in NEEDS_FOCAL or manifest.meaning.endswith("_metric")

    def predict(self, image: npt.NDArray[np.uint8], camera: Camera | None = None) -> Prediction:
        """(H, W, 3) uint8 RGB and its camera, if known -> the prediction at the image's size.

        A network whose output needs the focal length gives depth up to scale without a camera.
        """
        return self._prediction(self._run(image), image, camera)

    def _prediction(
        self, outputs: Tensors, image: npt.NDArray[np.uint8], camera: Camera | None
    ) -> Prediction:
        """The outputs as one prediction at the image's size."""
        start = time.perf_counter()
        manifest = self.engine.manifest
        spec, size = manifest.input, image.shape[:2]
        output, kind = outputs[manifest.output_name], manifest.meaning
        if kind in NEEDS_FOCAL:
            output, kind = self._with_focal(outputs, size, camera)
        # In the network's own space, so that an affine relation to depth stays affine.
        values = to_image(output, spec, *size, image=image)
        maps = {
            role: to_image(outputs[name], spec, *size)
            for role, name in manifest.roles.items()
            if role != "scale"
        }
        sky = None
        if "sky" in maps:
            sky = maps["sky"] >= manifest.level("sky")
            values[sky] = np.nan
        for role in ("mask", "confidence"):
            level = manifest.level(role)
            if role in maps and level is not None:
                values[~(maps[role] >= level)] = np.nan
        prediction = Prediction(values, kind, sky, maps.get("confidence"))
        self.stage_ms["postprocess"] = (time.perf_counter() - start) * 1e3
        return prediction

    def _with_focal(
        self, outputs: Tensors, size: tuple[int, ...], camera: Camera | None
    ) -> tuple[npt.NDArray[Any], str]:
        """The output of a network that needs the focal length, and its kind: metric if it can be.

        Depth Anything 3 (arXiv 2511.10647): metres = focal / focal_px x output, with the focal
        length of the network's own input. MoGe-2 (arXiv 2507.02546): metres = scale (z + shift).
        """
        manifest = self.engine.manifest
        output, kind = outputs[manifest.output_name], NEEDS_FOCAL[manifest.meaning]
        height, width = size[0], size[1]
        if manifest.meaning != POINTS:
            if camera is None:
                return output, kind
            focal = input_focal_px(manifest.input, height, width, camera.fx, camera.fy)
            return output * np.float32(focal / manifest.focal_px), "depth_metric"
        z = np.ascontiguousarray(output[..., 2], np.float32)
        if camera is None or "scale" not in manifest.roles:
            return z, kind
        valid = None
        if "mask" in manifest.roles:
            valid = outputs[manifest.roles["mask"]] >= manifest.level("mask")
        shift = point_map_shift(output, *self._rays(output.shape, size, camera), valid)
        scale = float(outputs[manifest.roles["scale"]])
        if not (np.isfinite(shift) and np.isfinite(scale) and scale > 0):
            return z, kind
        return np.float32(scale) * (z + np.float32(shift)), "depth_metric"

    def _rays(
        self, shape: tuple[int, ...], size: tuple[int, ...], camera: Camera
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """x / Z and y / Z, (h, w) each, of the rays of an output's pixels; without distortion."""
        spec = self.engine.manifest.input
        image_top, image_left, image_rows, image_cols = image_box(size[0], size[1], spec)
        top, left, rows, cols = tensor_box(size[0], size[1], spec)
        row = (np.arange(shape[0]) + 0.5) / shape[0] * spec.height - top
        col = (np.arange(shape[1]) + 0.5) / shape[1] * spec.width - left
        v = row / rows * image_rows + image_top - 0.5
        u = col / cols * image_cols + image_left - 0.5
        ray_x, ray_y = np.meshgrid((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy)
        return ray_x, ray_y


class CompletionModel(DepthModel):
    """A network that is given the image and the measured points, and gives metric depth.

    Its manifest has a section ``sparse``. Raises EngineError as DepthModel does.
    """

    output_kind = "completed depth"

    def _check_outputs(self, image: npt.NDArray[np.uint8]) -> None:
        manifest = self.engine.manifest
        points = pattern_tensors(manifest, image, 0)
        del points[manifest.input_name]
        self._run(image, lambda: points)

    def predict(self, image: npt.NDArray[np.uint8], camera: Camera | None = None) -> Prediction:
        """Raises EngineError: without points it has no answer."""
        raise EngineError(
            f"model {self.engine.manifest.name} completes measured points and has no answer without"
            " them: use it with points (fit.method: network), or another network"
        )

    def complete(
        self, image: npt.NDArray[np.uint8], points: SparseDepth, usable: npt.NDArray[np.bool_]
    ) -> tuple[Prediction | None, AnswerWithout | None]:
        """The answer to all usable points (N,), and another without every fourth block of them.

        None, None if the points fall into fewer pixels than the network needs
        (manifest.sparse.min_points). ``stage_ms`` is of both runs.
        """
        manifest = self.engine.manifest
        assert manifest.sparse is not None  # DepthModel's constructor has checked it
        size = (image.shape[0], image.shape[1])

        def inputs(which: npt.NDArray[np.bool_]) -> Tensors:
            rows, cols, depth = points.rows[which], points.cols[which], points.depth[which]
            return sparse_tensors(manifest, rows, cols, depth, size)

        given = inputs(usable)
        held = np.zeros(len(points), bool)
        held[usable] = left_out_blocks(points.rows[usable], points.cols[usable], size)
        count = np.count_nonzero(given[manifest.sparse.depth] != np.float32(manifest.sparse.empty))
        if count < manifest.sparse.min_points:
            return None, None
        prediction = self._prediction(self._run(image, lambda: given), image, None)
        spent = dict(self.stage_ms)
        without = self._prediction(self._run(image, lambda: inputs(usable & ~held)), image, None)
        self.stage_ms = {name: spent[name] + ms for name, ms in self.stage_ms.items()}
        return prediction, AnswerWithout(without, held, usable)


def judge_answer(engine: Engine) -> None:
    """Run a network as the node would, on a test pattern, and look at what it answers.

    Raises EngineError for an output of another shape than its meaning has, and for a depth map that
    holds no numbers, is the same everywhere, or is below 0 where its meaning has none such.
    """
    manifest = engine.manifest
    if manifest.meaning in REGION_MEANINGS:
        if manifest.meaning != PROMPTS:  # its answer needs the decoder
            RegionModel(engine)
        return
    if manifest.meaning not in DEPTH_MEANINGS:
        return
    model = DepthModel(engine) if manifest.sparse is None else CompletionModel(engine)
    image, inputs = reference_inputs(manifest)
    del inputs[manifest.input_name]
    values = model._run(image, (lambda: inputs) if inputs else None)[manifest.output_name]
    values = values[..., -1] if manifest.meaning == POINTS else values
    known = values[np.isfinite(values)].astype(np.float64)
    output = f"output {manifest.output_name} of model {manifest.name}, run on a test pattern,"
    cure = "correct output_name, mean, std or scale, or export the model anew"
    if len(known) < 0.5 * values.size:
        raise EngineError(f"{output} has a finite number in {len(known)} of {values.size}: {cure}")
    low, high = float(known.min()), float(known.max())
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        raise EngineError(f"{output} is {known[0]:.6g} everywhere: {cure}")
    if manifest.meaning in _ABOVE_0 and np.median(known) <= 0:
        raise EngineError(
            f"{output} is below 0 in half of the image ({low:.4g} to {high:.4g}), which no"
            f" {manifest.meaning} is: give another --meaning (log_depth_affine_invariant for"
            " logarithms), or another output"
        )


def _whole_numbers(output: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """(h, w) region numbers of a network; 0 where it gives none.

    Which integer a cast makes of NaN, infinity or a number too large depends on the processor.
    """
    if output.dtype.kind in "iub":
        return np.clip(output, 0, np.iinfo(np.int32).max).astype(np.int32)
    known = (output >= 0) & (output < 2.0**31 - 128)  # NaN is neither
    return np.rint(np.where(known, output, 0)).astype(np.int32)


_ANSWERS = ("masks", "iou", "stability", "boxes")


class RegionModel(_ImageModel):
    """A network that segments the image into regions in one pass.

    Its manifest's meaning is one of: region_masks, (masks, h, w), above 0 inside a mask;
    region_labels, (h, w), one number per region and 0 for none; region_edges, (h, w), strength of
    an edge, 0 to 1. Raises EngineError for other meanings. ``stage_ms`` as in DepthModel.
    ``message``: a sentence if the last image has no regions, else empty.
    """

    meanings: tuple[str, ...] = tuple(name for name in REGION_MEANINGS if name != PROMPTS)
    output_kind = "region map"

    def __init__(self, engine: Engine, config: SegmentationConfig | None = None) -> None:
        self.config = config or SegmentationConfig()
        self.message = ""
        super().__init__(engine)

    @classmethod
    def open(  # type: ignore[override]
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
        except EngineError:
            engine.close()
            if decoder is not None:
                decoder.close()
            raise

    def predict(self, image: npt.NDArray[np.uint8]) -> Labels:
        """(H, W, 3) uint8 RGB -> (H, W) int32 labels, 0 = unassigned, 1..K."""
        output = self._infer(image)
        start = time.perf_counter()
        spec, meaning = self.engine.manifest.input, self.engine.manifest.meaning
        height, width = image.shape[:2]
        if meaning == "region_masks":
            # Enlarged before the threshold, so that borders are smooth.
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
    """Segment Anything and similar networks: an image encoder and a decoder of point prompts.

    The encoder runs once per image. Its outputs are inputs of the decoder, by the same names; the
    decoder's other inputs are `points` (n, 2), x and y in pixels of the encoder's input, and
    `extent` (2,), the number of rows and columns of that input that the image fills. For every
    point the decoder gives m `masks` (n, m, h, w), above 0 inside, their predicted `iou` and their
    `stability` (n, m), and their `boxes` (n, m, 4), first and last column and row inside: x0, y0,
    x1, y1. RegionModel.open opens both. Raises EngineError if the two do not belong together.
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
        """(H, W, 3) uint8 RGB -> (H, W) int32 labels, 0 = unassigned, 1..K."""
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
        """(H, W, 3) uint8 RGB -> the masks (n, H, W) bool that predict() paints, best first."""
        height, width = image.shape[:2]
        maps, boxes, extent = self._selected_masks(image)
        masks = np.zeros((len(maps), height, width), bool)
        for mask, scores, box in zip(masks, maps, boxes, strict=True):
            mask |= paint([scores], box[None], extent, height, width) > 0
        return masks

    def _selected_masks(
        self, image: npt.NDArray[np.uint8]
    ) -> tuple[list[npt.NDArray[Any]], npt.NDArray[Any], tuple[float, float]]:
        """Maps (h, w) and boxes (n, 4) of the selected masks, best first, and their extent."""
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
        """The decoder's outputs for points (n, 2), batch by batch; stores the times in stage_ms."""
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
    """Open the prompt decoder that lies beside its encoder."""
    file = Path(encoder.details.get("model", config.path)).expanduser()
    beside = file.with_name(encoder.manifest.decoder)
    if not beside.is_file():
        raise EngineError(
            f"the prompt decoder {beside} of model {encoder.manifest.name} is missing: put both"
            " halves of the export into one folder, or export the model again"
        )
    return opener(replace(config, path=str(beside), manifest=""), engine_config)
