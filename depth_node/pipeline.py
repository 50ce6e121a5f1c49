# SPDX-License-Identifier: Apache-2.0
"""The method on one screen: image and LiDAR points in, dense metric depth out.

A network predicts relative depth and sparse measured points turn it into metres: by the residual
field (fitting/field/solve.py), or by Region-aware Depth Scale Adaptation (arXiv 2507.14879): the
points fall into the regions of a segmentation, and each region is fitted to its own points, or to
those of its neighbours when it has too few. The node, the replay and the benchmarks all use this
one class.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.config import ConfigError, section, validate
from depth_node.engine import EngineError
from depth_node.engine.options import EngineConfig
from depth_node.engine.preprocess import resize_map
from depth_node.engine.refinement import refiner_for
from depth_node.engine.sharing import Opener
from depth_node.fitting import NETWORK, REGION_METHODS, FitConfig, FitResult, fit, fit_in_sequence
from depth_node.fitting.anchor import MetricAnchor
from depth_node.fitting.field.memory import FieldState, Pose
from depth_node.fitting.methods import usable_points
from depth_node.fitting.result import too_few_points
from depth_node.frame import FrameInput
from depth_node.gates import GateConfig, Gates
from depth_node.geometry.camera import Camera
from depth_node.geometry.echoes import echo_pixels
from depth_node.geometry.rigid import check_rigid
from depth_node.geometry.sparse_depth import ProjectionConfig, SparseDepth, project_points
from depth_node.inference import (
    CompletionModel,
    DepthModel,
    ModelConfig,
    RegionModel,
    open_configured,
)
from depth_node.prediction import Prediction
from depth_node.regions.label_maps import Labels
from depth_node.regions.propagation import RegionMemory
from depth_node.regions.segmentation import segment
from depth_node.regions.settings import SegmentationConfig

_SKY_REACH = 0.0125  # of the image's larger side (8 pixels at 640): around a point there is no sky


@dataclass(frozen=True)
class PipelineConfig:
    """All settings of the method."""

    model: ModelConfig = section(ModelConfig, "the network that predicts depth")
    region_model: ModelConfig = section(
        ModelConfig, "the network that finds regions; empty path: none, classical", path=""
    )
    projection: ProjectionConfig = section(ProjectionConfig, "LiDAR points into the image")
    segmentation: SegmentationConfig = section(SegmentationConfig, "the image into regions")
    engine: EngineConfig = section(EngineConfig, "how engines are opened, built and kept")
    fit: FitConfig = section(FitConfig, "metres from relative depth, region by region")
    publish: GateConfig = section(GateConfig, "what may be believed of the depth, and by whom")

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class DepthResult:
    """Metric depth of one image and everything it was computed from.

    depth, std: (H, W) float32 metres, NaN unknown (see FitResult on std). labels: (H, W) int32,
    None if the method needs no regions. stage_ms: wall time of every stage of this frame.
    segmentation: where the labels come from: "given", "network", "classical", "carried" from an
    earlier frame, "" for none. message: a sentence if the network found no regions, else empty.
    config: the settings of this frame.
    """

    depth: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32] | None
    prediction: Prediction
    sparse: SparseDepth
    fit: FitResult
    stage_ms: dict[str, float]
    segmentation: str = ""
    message: str = ""
    config: PipelineConfig = field(default_factory=PipelineConfig)

    @cached_property
    def gates(self) -> Gates:
        """The gates, which decide what depth is reliable; each of their maps is computed on use."""
        depth_range_m = self.config.projection.depth_range_m
        return Gates(self.depth, self.std, self.config.publish, depth_range_m, self.prediction.sky)

    @property
    def rejected(self) -> npt.NDArray[np.bool_]:
        """Mask (N,) of the points of `sparse` that could be used but that the fit rejected."""
        return ~self.fit.point_inlier & np.isfinite(self.fit.point_residual)


class DepthPipeline:
    """Owns the networks, the settings and the memory; process() handles one frame.

    Frames with a stamp are kept in memory for method field (fit.field.temporal) and, if
    segmentation.every asks for it, for their regions. Each frame without a stamp is processed
    independently.
    """

    def __init__(
        self,
        config: PipelineConfig | None = None,
        depth_model: DepthModel | None = None,
        region_model: RegionModel | None = None,
        opener: Opener = open_configured,
    ) -> None:
        """Open the networks that the settings name, unless they are given. Raises EngineError.

        With an empty ``config.model.path`` there is no depth network: every frame must contain its
        prediction. opener: opens the engines; several pipelines may use SharedEngines.open.
        """
        self._config = config = config or PipelineConfig()
        self.depth_model = depth_model
        self.region_model = region_model
        self._memory, self._regions, self._anchor = FieldState(), RegionMemory(), MetricAnchor()
        try:
            if depth_model is None and config.model.path:
                self.depth_model = DepthModel.open(config.model, config.engine, opener)
            if region_model is None and config.region_model.path:
                self.region_model = RegionModel.open(
                    config.region_model, config.segmentation, config.engine, opener
                )
            _check_method(config, self.depth_model)
            refiner_for(config.fit)  # a damaged file must fail now, not at the first frame
        except EngineError:
            self.close()
            raise

    @property
    def config(self) -> PipelineConfig:
        """The settings in force."""
        return self._config

    def reconfigure(self, config: PipelineConfig) -> None:
        """Use other settings from the next frame on.

        May be called while another thread is in process(): a frame ends with the settings with
        which it began. Raises ValueError if the settings need other networks, ConfigError if the
        depth network cannot serve them.
        """
        now = self._config
        if (config.model, config.region_model, config.engine) != (
            now.model, now.region_model, now.engine
        ):  # fmt: skip
            raise ValueError("another model needs a new pipeline: close this one and open it anew")
        try:
            _check_method(config, self.depth_model)
            refiner_for(config.fit)
        except EngineError as error:
            raise ConfigError(str(error)) from error
        if self.region_model is not None:
            self.region_model.config = config.segmentation
        if config.segmentation != self._config.segmentation:
            self._regions = RegionMemory()
        self._config = config

    def warm_up(self) -> None:
        """Process one synthetic frame.

        Code that compiles or allocates at its first use does so now and not at the first image, and
        a method that cannot run on this machine fails now.
        """
        height, width = 480, 640
        rows, cols = np.mgrid[0:height, 0:width]
        image = np.repeat((cols[..., None] * 255 // (width - 1)).astype(np.uint8), 3, axis=2)
        prediction = None
        if self.depth_model is None:
            values = (1.0 + cols / width).astype(np.float32)
            # Smaller than the image, so that the code that enlarges it is warmed up too.
            prediction = Prediction(values[::2, ::2], "depth_affine_invariant")
        camera = Camera(width, height, 600.0, 600.0, (width - 1) / 2, (height - 1) / 2)
        # Points on waves, which the prediction does not contain, so that every step of the fit has
        # something to do.
        waves = (2 + np.sin(cols / 32) * np.cos(rows / 24)).astype(np.float32)
        points = camera.backproject(waves)[::24, ::24].reshape(-1, 3)
        self.process(FrameInput(image, camera, points, np.eye(4), prediction=prediction))

    def process(self, frame: FrameInput) -> DepthResult:
        """Return the metric depth of one frame.

        If the frame cannot be given metres, ``result.fit.status`` says why. Raises ValueError for
        inputs that contradict each other, EngineError for a network that fails.
        """
        frame.check()
        config = self._config
        stage_ms: dict[str, float] = {}
        with _timed(stage_ms, "total"):
            completing = frame.prediction is None and isinstance(self.depth_model, CompletionModel)
            prediction = None if completing else self._predict(frame, stage_ms)
            sparse = frame.sparse
            if sparse is None:
                with _timed(stage_ms, "project"):
                    sparse = _project(frame, config.projection)
            if prediction is None:
                return self._complete(frame, sparse, config, stage_ms)
            if frame.echoes:
                sparse = sparse.with_more(
                    echo_pixels(frame.echoes, prediction.nearness, frame.camera)
                )
            prediction = _with_believed_sky(prediction, sparse)
            labels, source, message = self._segment(frame, prediction, config, stage_ms)
            with _timed(stage_ms, "fit"):
                result = self._fit(frame, prediction, sparse, labels, config)
        return DepthResult(
            result.depth, result.std, labels, prediction, sparse, result, stage_ms, source,
            message, config,
        )  # fmt: skip

    def reset(self) -> None:
        """Forget earlier frames. A frame in progress in another thread keeps the old memory."""
        self._memory, self._regions, self._anchor = FieldState(), RegionMemory(), MetricAnchor()

    def close(self) -> None:
        """Free the networks, including those that were given."""
        for model in (self.depth_model, self.region_model):
            if model is not None:
                model.close()

    def __enter__(self) -> DepthPipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(
        self,
        frame: FrameInput,
        sparse: SparseDepth,
        config: PipelineConfig,
        stage_ms: dict[str, float],
    ) -> DepthResult:
        """Process a frame with a completion network, whose input includes the points."""
        model, size = self.depth_model, (frame.image.shape[0], frame.image.shape[1])
        assert isinstance(model, CompletionModel) and model.engine.manifest.sparse is not None
        depth_range_m = config.projection.depth_range_m
        usable = usable_points(sparse, size, depth_range_m)
        prediction, left_out = model.complete(frame.image, sparse, usable)
        stage_ms.update(model.stage_ms)
        with _timed(stage_ms, "fit"):
            if prediction is None:
                needed = model.engine.manifest.sparse.min_points
                result = too_few_points(size, sparse, needed)
                prediction = Prediction(result.depth, "depth_metric")
            else:
                prediction = _with_believed_sky(prediction, sparse)
                result = fit(
                    prediction,
                    sparse,
                    refiner=None,
                    config=config.fit,
                    depth_range_m=depth_range_m,
                    left_out=left_out,
                )
        return DepthResult(
            result.depth, result.std, None, prediction, sparse, result, stage_ms, config=config
        )

    def _predict(self, frame: FrameInput, stage_ms: dict[str, float]) -> Prediction:
        """Return the network's prediction, or the one that is given, at the image's size."""
        given = frame.prediction
        if given is None:
            if self.depth_model is None:
                raise ValueError(
                    "there is no depth network (model.path is empty) and no prediction was given:"
                    " set model.path, or give a prediction with every frame"
                )
            prediction = self.depth_model.predict(frame.image, frame.camera)
            stage_ms.update(self.depth_model.stage_ms)
            return prediction
        if given.shape != frame.image.shape[:2]:
            return _resized(given, frame.image)
        return given

    def _fit(
        self,
        frame: FrameInput,
        prediction: Prediction,
        sparse: SparseDepth,
        labels: Labels | None,
        config: PipelineConfig,
    ) -> FitResult:
        return fit_in_sequence(
            prediction,
            sparse,
            labels,
            image=frame.image,
            config=config.fit,
            state=self._remember(frame),
            anchor=self._anchor,
            stamp_ns=frame.stamp_ns,
            depth_range_m=config.projection.depth_range_m,
            refiner=refiner_for(config.fit),
        )

    def _remember(self, frame: FrameInput) -> FieldState | None:
        """Return the memory, advanced to this frame; None for a frame without a stamp."""
        if frame.stamp_ns is None:
            return None
        pose = None
        if frame.T_world_camera is not None:
            T_world_camera = check_rigid(frame.T_world_camera, "T_world_camera")
            pose = Pose(frame.camera.matrix, T_world_camera)
        self._memory.at(frame.stamp_ns, pose)
        return self._memory

    def _segment(
        self,
        frame: FrameInput,
        prediction: Prediction,
        config: PipelineConfig,
        stage_ms: dict[str, float],
    ) -> tuple[Labels | None, str, str]:
        """Return labels, where they come from, and a message on a failed region network.

        The labels are None and the texts empty if the fit needs no regions.
        """
        if config.fit.method not in REGION_METHODS:
            return None, "", ""
        if frame.labels is not None:
            return frame.labels, "given", ""
        with _timed(stage_ms, "segment"):
            memory = None if frame.stamp_ns is None else self._regions
            if memory is not None:
                carried = memory.carried(frame.image, config.segmentation)
                if carried is not None:
                    return carried, "carried", ""
            labels, source, message = None, "classical", ""
            if self.region_model is not None:
                labels, source = self.region_model.predict(frame.image), "network"
                if self.region_model.message:
                    labels, source = None, "classical"
                    message = (
                        f"{self.region_model.message}: the image's own regions are used instead"
                    )
            if labels is None:
                labels = segment(frame.image, prediction.values, config.segmentation)
            if memory is not None and config.segmentation.every != 1:
                memory.keep(frame.image, labels)
            return labels, source, message


def _check_method(config: PipelineConfig, model: DepthModel | None) -> None:
    """Raise EngineError for a method that the depth network cannot serve."""
    method = config.fit.method
    if model is None or (method != NETWORK and not isinstance(model, CompletionModel)):
        return
    name = model.engine.manifest.name
    if isinstance(model, CompletionModel) and method != NETWORK:
        raise EngineError(
            f"{name} completes the measured points, so these cannot judge a fit of method {method}:"
            " set fit.method: network, or use a network that is not given the points"
        )
    if method == NETWORK and not model.gives_metres:
        raise EngineError(
            f"fit.method: network publishes the network's own metres and {name} gives"
            f" {model.engine.manifest.meaning}: use another fit.method, or a metric network"
        )


def _resized(prediction: Prediction, image: npt.NDArray[np.uint8]) -> Prediction:
    """Return a prediction resized to its image (H, W, 3)."""
    sky, confidence, size = prediction.sky, prediction.confidence, image.shape[:2]
    return Prediction(
        resize_map(prediction.values, *size, image=image),
        prediction.kind,
        None if sky is None else resize_map(sky, *size) >= 0.5,
        None if confidence is None else resize_map(confidence, *size),
    )


def _with_believed_sky(prediction: Prediction, points: SparseDepth) -> Prediction:
    """Remove the sky around measured points: where a point was measured, there is no sky.

    Those pixels become unknown. For a planner sky is free space, so that a network's mistake would
    clear an obstacle.
    """
    sky = prediction.sky
    if sky is None:
        return prediction
    height, width = sky.shape
    rows, cols = points.rows, points.cols
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    measured: npt.NDArray[np.uint8] = np.ones(sky.shape, np.uint8)
    measured[rows[inside], cols[inside]] = 0
    if not (sky & (measured == 0)).any():
        return prediction
    reach_px = _SKY_REACH * max(height, width)
    near = cv2.distanceTransform(measured, cv2.DIST_L2, 3) <= reach_px
    return replace(prediction, sky=sky & ~near)


def _project(frame: FrameInput, config: ProjectionConfig) -> SparseDepth:
    """Project the points of a frame to pixels with a measured depth."""
    if frame.points is None or len(frame.points) == 0:
        return SparseDepth.from_arrays([], [], [])
    if frame.T_camera_lidar is None:
        raise ValueError(
            "there are LiDAR points but no T_camera_lidar: give the LiDAR's pose in the camera"
        )
    pose = check_rigid(frame.T_camera_lidar, "T_camera_lidar")
    return project_points(frame.points, pose, frame.camera, config, frame.age_s, frame.noise_m)


@contextmanager
def _timed(stage_ms: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stage_ms[name] = (time.perf_counter() - start) * 1e3
