# SPDX-License-Identifier: Apache-2.0
"""Depth networks: prediction from an image, and for completion networks also from points."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.options import EngineConfig, ModelConfig
from depth_node.engine.preprocess import image_box, input_focal_px, tensor_box, to_image
from depth_node.engine.protocol import Engine
from depth_node.engine.sharing import Opener
from depth_node.engine.sparse_input import pattern_tensors, sparse_tensors
from depth_node.engine.upsampling import sharpener
from depth_node.fitting.network import AnswerWithout, left_out_blocks
from depth_node.geometry.camera import Camera
from depth_node.geometry.point_map import point_map_shift
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference.image_model import ImageModel, Tensors
from depth_node.inference.opening import open_configured
from depth_node.prediction import DEPTH_MEANINGS, NEEDS_FOCAL, POINTS, Prediction


class DepthModel(ImageModel):
    """A network that gives relative or metric depth or disparity.

    The constructor runs it once and raises EngineError if the engine's manifest has another meaning
    or an output has a wrong shape. ``stage_ms``: times of the last call in ms, by stage:
    preprocess, engine, postprocess.
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
        sharpener()  # compiled now, so that the first image does not wait for it

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
        except BaseException:
            engine.close()
            raise

    @property
    def gives_metres(self) -> bool:
        """Whether predictions are metric for images whose camera is known."""
        manifest = self.engine.manifest
        if manifest.meaning == POINTS:
            return "scale" in manifest.roles
        return manifest.meaning in NEEDS_FOCAL or manifest.meaning.endswith("_metric")

    def predict(self, image: npt.NDArray[np.uint8], camera: Camera | None = None) -> Prediction:
        """Return the prediction for an (H, W, 3) uint8 RGB image, at the image's size.

        camera: the image's, if known. A network whose output needs the focal length gives only
        relative depth without it. Raises EngineError if the run fails.
        """
        return self._prediction(self.outputs(image), image, camera)

    def _prediction(
        self, outputs: Tensors, image: npt.NDArray[np.uint8], camera: Camera | None
    ) -> Prediction:
        """Combine the outputs to one prediction at the image's size."""
        start = time.perf_counter()
        manifest = self.engine.manifest
        spec, size = manifest.input, image.shape[:2]
        output, kind = outputs[manifest.output_name], manifest.meaning
        if kind in NEEDS_FOCAL:
            output, kind = self._with_focal(outputs, size, camera)
        # Resized in the network's own space: resizing, which is nearly linear, keeps an affine
        # relation to depth or disparity only there.
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
        """Return the depth of a network that needs the focal length, and its kind.

        The depth is metric if the camera and the outputs allow it. Depth Anything 3 (arXiv
        2511.10647): metres = focal / focal_px x output, with the focal length of the network's own
        input. MoGe-2 (arXiv 2507.02546): metres = scale (z + shift).
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
        """Return X / Z and Y / Z, (h, w) each, of the rays through an output's pixels.

        shape: (h, w, ...) of the output. size: (H, W) of the image. Lens distortion is ignored.
        """
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
    """A network that computes metric depth from the image and the measured points.

    Its manifest has a section ``sparse``. The constructor raises EngineError as DepthModel's does.
    """

    output_kind = "completed depth"

    def _check_outputs(self, image: npt.NDArray[np.uint8]) -> None:
        manifest = self.engine.manifest
        points = pattern_tensors(manifest, image, 0)
        del points[manifest.input_name]
        self.outputs(image, lambda: points)

    def predict(self, image: npt.NDArray[np.uint8], camera: Camera | None = None) -> Prediction:
        """Raise EngineError, because the network needs points."""
        raise EngineError(
            f"model {self.engine.manifest.name} completes measured points and has no answer without"
            " them: use it with points (fit.method: network), or another network"
        )

    def complete(
        self, image: npt.NDArray[np.uint8], points: SparseDepth, usable: npt.NDArray[np.bool_]
    ) -> tuple[Prediction | None, AnswerWithout | None]:
        """Return the prediction from all usable points, and one without a part of them.

        image: (H, W, 3) uint8 RGB. points: N points. usable: (N,). The second run leaves out the
        points of fitting.network.left_out_blocks, so that its result can be compared with them.
        Returns None, None if the points lie in fewer pixels than the network needs
        (manifest.sparse.min_points). ``stage_ms`` is the sum of both runs.
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
        prediction = self._prediction(self.outputs(image, lambda: given), image, None)
        spent = dict(self.stage_ms)
        without = self._prediction(self.outputs(image, lambda: inputs(usable & ~held)), image, None)
        self.stage_ms = {name: spent[name] + ms for name, ms in self.stage_ms.items()}
        return prediction, AnswerWithout(without, held, usable)
