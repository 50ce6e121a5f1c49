# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from depth_node import config as settings
from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.preprocess import InputSpec
from depth_node.fitting import FitStatus
from depth_node.fitting.field.kernels import kernels
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import rigid_transform, transform
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import DepthModel, RegionModel
from depth_node.metrics import evaluate
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.prediction import Prediction
from depth_node.regions.label_maps import labels_from_ids

CAMERA = Camera(160, 120, 130.0, 130.0, 79.5, 59.5)
T_CAMERA_LIDAR = rigid_transform((0.02, -0.1, 0.0), (0.5, -0.5, 0.5, -0.5))


class FixedEngine:
    """An engine that returns its given output and counts its runs."""

    backend = "fixed"

    def __init__(self, output: np.ndarray, meaning: str) -> None:
        spec = InputSpec(*output.shape[-2:])
        self.manifest = Manifest("fixed", "none", "0", "image", spec, "output", meaning)
        self.details: dict[str, Any] = {}
        self.output = output
        self.runs = 0
        self.closed = False

    def run(self, tensor: np.ndarray) -> np.ndarray:
        self.runs += 1
        return self.output

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FixedEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def room() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image, exact depth in metres and labels of a wall, a floor and a box before them."""
    rows, cols = np.mgrid[0:120, 0:160]
    depth = np.full((120, 160), 4.0, np.float32)
    labels = np.ones((120, 160), np.int32)
    floor = 130.0 * 1.0 / np.maximum(rows - 59.5, 1e-3)  # one metre below the camera
    on_floor = floor < depth
    depth[on_floor], labels[on_floor] = floor[on_floor], 2
    box = (rows > 40) & (rows < 90) & (cols > 50) & (cols < 100)
    depth[box], labels[box] = 1.5, 3
    image = np.array([[0, 0, 0], [90, 90, 160], [120, 90, 60], [30, 160, 60]], np.uint8)[labels]
    return image, depth, labels


def lidar_points(depth: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Return points (n, 3) of the depth map in the LiDAR frame."""
    chosen = np.random.default_rng(seed).choice(depth.size, n, replace=False)
    points = CAMERA.backproject(depth).reshape(-1, 3)[chosen]
    return transform(np.linalg.inv(T_CAMERA_LIDAR), points).astype(np.float32)


def relative(depth: np.ndarray) -> np.ndarray:
    """Return an affine-invariant prediction with another scale and shift for each region."""
    _, _, labels = room()
    scale = np.array([0, 0.3, 0.7, 0.2])[labels]
    shift = np.array([0, 1.0, -0.4, 2.0])[labels]
    return (scale * depth + shift).astype(np.float32)


def pipeline(method: str = "ssf", mode: str = "paper", **changes: Any) -> DepthPipeline:
    """Return a pipeline with a network that knows the room up to scale and shift per region."""
    _, depth, _ = room()
    values = {"model.path": "", "fit.method": method, "fit.mode": mode, **changes}
    chosen = settings.replace(PipelineConfig(), values)
    return DepthPipeline(
        chosen, DepthModel(FixedEngine(relative(depth)[None], "depth_affine_invariant"))
    )


# --- what works


@pytest.mark.parametrize("mode", ["paper", "sensor"])
def test_metres_are_recovered_region_by_region(mode: str) -> None:
    image, depth, labels = room()
    points = lidar_points(depth, 1000)
    result = pipeline("ssf", mode).process(
        FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, labels=labels)
    )
    assert result.fit.status == FitStatus.OK
    assert result.sparse.counts.used > 900
    np.testing.assert_allclose(result.depth, depth, rtol=2e-3)
    one = pipeline("global_depth", mode).process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR))
    assert evaluate(one.depth, depth).abs_rel > 0.05  # one scale cannot serve all three


def test_stages_are_timed_and_evidence_is_kept() -> None:
    image, depth, _ = room()
    points = lidar_points(depth, 500)
    result = pipeline().process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, age_s=0.05))
    stages = ["preprocess", "engine", "postprocess", "project", "segment", "fit"]
    assert list(result.stage_ms) == [*stages, "total"]
    assert sum(result.stage_ms[name] for name in stages) <= result.stage_ms["total"]
    assert result.labels is not None
    assert result.labels.shape == (120, 160)
    assert result.labels.dtype == np.int32
    assert result.prediction.kind == "depth_affine_invariant"
    assert result.depth is result.fit.depth
    assert result.std is result.fit.std
    np.testing.assert_allclose(result.sparse.age_s, 0.05)


@pytest.mark.parametrize("method", ["global_depth", "global_disparity", "median"])
def test_no_regions_are_sought_for_a_method_without_them(method: str) -> None:
    image, depth, labels = room()
    points = lidar_points(depth, 300)
    result = pipeline(method).process(
        FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, labels=labels)
    )
    assert result.labels is None
    assert "segment" not in result.stage_ms
    assert np.isfinite(result.depth).all()


def test_what_is_given_is_not_computed() -> None:
    image, depth, labels = room()
    sparse = SparseDepth.from_map(np.where(np.arange(160) % 4 == 0, depth, np.nan))
    prediction = Prediction(relative(depth), "depth_affine_invariant")
    pipe = pipeline()
    runs = pipe.depth_model.engine.runs
    result = pipe.process(
        FrameInput(image, CAMERA, None, None, labels=labels, prediction=prediction, sparse=sparse)
    )
    assert pipe.depth_model.engine.runs == runs
    assert result.prediction is prediction
    assert result.sparse is sparse
    assert result.labels is labels
    assert set(result.stage_ms) == {"fit", "total"}
    np.testing.assert_allclose(result.depth, depth, rtol=2e-3)


def test_prediction_of_another_size_is_brought_to_the_pictures() -> None:
    image, depth, labels = room()
    small = Prediction(relative(depth)[::2, ::2], "depth_affine_invariant")
    points = lidar_points(depth, 500)
    result = pipeline().process(
        FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, labels=labels, prediction=small)
    )
    assert result.prediction.shape == (120, 160)
    assert result.prediction.kind == small.kind
    assert evaluate(result.depth, depth).abs_rel < 0.05


def test_scaling_the_lidar_scales_the_depth() -> None:
    image, depth, labels = room()
    points, pose = lidar_points(depth, 400), T_CAMERA_LIDAR.copy()
    one = pipeline().process(FrameInput(image, CAMERA, points, pose, labels=labels))
    pose[:3, 3] *= 3
    two = pipeline().process(FrameInput(image, CAMERA, 3 * points, pose, labels=labels))
    np.testing.assert_allclose(two.depth, 3 * one.depth, rtol=1e-3)


def test_frames_do_not_depend_on_each_other() -> None:
    image, depth, labels = room()
    pipe, points = pipeline(mode="sensor"), lidar_points(depth, 300)
    first = pipe.process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, labels=labels))
    kept = first.depth.copy()
    pipe.process(FrameInput(image, CAMERA, 2 * points, T_CAMERA_LIDAR, labels=labels))
    pipe.process(FrameInput(image, CAMERA, None, None))
    again = pipe.process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, labels=labels))
    np.testing.assert_array_equal(first.depth, kept)
    np.testing.assert_array_equal(again.depth, kept)


def test_region_network_is_used() -> None:
    image, depth, labels = room()
    regions = FixedEngine(labels[None], "region_labels")
    pipe = pipeline(**{"segmentation.min_region_px": 0})
    pipe.region_model = RegionModel(regions)
    result = pipe.process(FrameInput(image, CAMERA, lidar_points(depth, 1000), T_CAMERA_LIDAR))
    assert regions.runs == 2  # once when made, once for the frame
    np.testing.assert_allclose(result.depth, depth, rtol=2e-3)
    pipe.close()
    assert regions.closed
    assert pipe.depth_model.engine.closed


def test_settings_change_from_the_next_frame_on() -> None:
    image, depth, labels = room()
    pipe, points = pipeline("global_depth"), lidar_points(depth, 500)
    assert pipe.process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR)).labels is None
    pipe.reconfigure(settings.replace(pipe.config, {"fit.method": "slf"}))
    result = pipe.process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, labels=labels))
    np.testing.assert_allclose(result.depth, depth, rtol=2e-3)
    with pytest.raises(ValueError, match="new pipeline"):
        pipe.reconfigure(settings.replace(pipe.config, {"model.threads": 3}))


def test_field_is_refined_unless_it_is_switched_off() -> None:
    """With a prediction without information; a changed setting counts from the next frame on."""
    image, depth, _ = room()
    depth *= np.linspace(1, 1.5, depth.shape[1], dtype=np.float32)
    prediction = Prediction(np.full(depth.shape, 2, np.float32), "depth_affine_invariant")
    frame = FrameInput(
        image, CAMERA, lidar_points(depth, 300), T_CAMERA_LIDAR, prediction=prediction
    )
    pipe = pipeline("field")
    refined = pipe.process(frame).depth
    pipe.reconfigure(settings.replace(pipe.config, {"fit.field.refine": "off"}))
    plain = pipe.process(frame).depth
    assert evaluate(refined, depth).abs_rel < 0.9 * evaluate(plain, depth).abs_rel
    pipe.reconfigure(settings.replace(pipe.config, {"fit.field.refine": "auto"}))
    np.testing.assert_array_equal(pipe.process(frame).depth, refined)


# --- trouble with a frame is a status


NO_VIEW = (
    None,
    np.zeros((0, 3), np.float32),
    np.full((9, 3), np.nan, np.float32),
    np.tile(np.array([[-5.0, 0, 0]], np.float32), (9, 1)),  # behind: LiDAR x is forward
)


@pytest.mark.parametrize("points", NO_VIEW, ids=["none", "empty", "nan", "behind"])
def test_no_usable_points(points: np.ndarray | None) -> None:
    image, depth, _ = room()
    pipe = pipeline(mode="sensor")
    result = pipe.process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR))
    assert result.fit.status == FitStatus.NO_POINTS
    assert result.fit.message
    assert np.isnan(result.depth).all()
    metric = Prediction(depth, "depth_metric")
    result = pipe.process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, prediction=metric))
    assert result.fit.status == FitStatus.UNANCHORED
    np.testing.assert_array_equal(result.depth, depth)
    np.testing.assert_allclose(1.96 * result.std, (1.25**3 - 1) * depth, rtol=1e-3)


def test_fewer_points_than_parameters() -> None:
    image, depth, _ = room()
    for count in (1, 2, 3):
        points = lidar_points(depth, count)
        result = pipeline(mode="sensor").process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR))
        assert result.fit.status == FitStatus.MEDIAN_SCALE
        assert result.fit.message


def test_network_that_gives_nothing() -> None:
    image, depth, _ = room()
    nothing = Prediction(np.full((120, 160), np.nan, np.float32), "disparity_affine_invariant")
    points = lidar_points(depth, 100)
    result = pipeline().process(
        FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, prediction=nothing)
    )
    assert result.fit.status == FitStatus.NO_PREDICTION
    assert np.isnan(result.depth).all()


# --- contradicting arguments raise, in a sentence


def test_image_and_camera_of_different_size() -> None:
    image, _, _ = room()
    with pytest.raises(ValueError, match=r"image is 160x120 .* 320x240.*resized"):
        pipeline().process(FrameInput(image, CAMERA.resized(320, 240), None, None))


def test_other_contradictions() -> None:
    image, depth, labels = room()
    points, pipe = lidar_points(depth, 10), pipeline()
    with pytest.raises(ValueError, match="uint8 RGB"):
        pipe.process(FrameInput(image[..., 0], CAMERA, points, T_CAMERA_LIDAR))
    with pytest.raises(ValueError, match="labels have shape"):
        pipe.process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, labels=labels[::2]))
    with pytest.raises(ValueError, match="no T_camera_lidar"):
        pipe.process(FrameInput(image, CAMERA, points, None))
    with pytest.raises(ValueError, match=r"T_camera_lidar.*no rotation"):
        pipe.process(FrameInput(image, CAMERA, points, np.diag([1.0, 1.0, -1.0, 1.0])))
    for noise in (-0.1, np.append(np.full(9, 0.1), np.nan), np.inf):
        with pytest.raises(ValueError, match="noise_m has values"):
            pipe.process(FrameInput(image, CAMERA, points, T_CAMERA_LIDAR, noise_m=noise))


def test_without_a_network_every_frame_must_bring_its_prediction() -> None:
    image, depth, _ = room()
    with DepthPipeline(settings.replace(PipelineConfig(), {"model.path": ""})) as pipe:
        assert pipe.depth_model is None
        with pytest.raises(ValueError, match=r"model\.path is empty"):
            pipe.process(FrameInput(image, CAMERA, None, None))
        prediction = Prediction(depth, "depth_metric")
        assert np.isfinite(
            pipe.process(FrameInput(image, CAMERA, None, None, prediction=prediction)).depth
        ).all()


def test_first_network_is_freed_when_the_second_cannot_be_opened(tmp_path: Path) -> None:
    depth = FixedEngine(np.ones((1, 8, 8), np.float32), "depth_metric")
    chosen = settings.replace(PipelineConfig(), {"region_model.path": str(tmp_path / "no.onnx")})
    with pytest.raises(EngineError, match="does not exist"):
        DepthPipeline(chosen, DepthModel(depth))
    assert depth.closed


# --- real frames, a real network


@pytest.fixture
def fastdepth(shared: Path, tmp_path: Path) -> dict[str, Any]:
    pytest.importorskip("onnxruntime")
    model, facts = shared / "models" / "fastdepth_nyu_224.onnx", tmp_path / "facts.yaml"
    write_manifest(model, "depth_metric", manifest=facts)
    return {"model.path": str(model), "model.manifest": str(facts), "model.threads": 1}


def read_camera(folder: Path) -> Camera:
    facts = json.loads((folder / "intrinsics.json").read_text())
    return Camera(*(facts[key] for key in ("width", "height", "fx", "fy", "cx", "cy")))


def errors_of_methods(
    values: dict[str, Any],
    image: np.ndarray,
    camera: Camera,
    points: np.ndarray,
    pose: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray | None = None,
) -> dict[str, float]:
    errors = {}
    pipe = DepthPipeline(settings.replace(PipelineConfig(), values))
    for method in ("global_depth", "global_disparity", "slf", "ssf"):
        pipe.reconfigure(settings.replace(pipe.config, {"fit.method": method}))
        result = pipe.process(FrameInput(image, camera, points, pose, labels=labels))
        unseen = truth.copy()
        unseen[result.sparse.rows, result.sparse.cols] = np.nan
        errors[method] = evaluate(result.depth, unseen).abs_rel
    pipe.close()
    return errors


def test_regions_beat_one_fit_on_real_desks(shared: Path, fastdepth: dict) -> None:
    for folder in sorted((shared / "data" / "tum_rgbd").iterdir()):
        image = np.ascontiguousarray(cv2.imread(str(folder / "rgb.jpg"))[..., ::-1])
        raw = cv2.imread(str(folder / "depth.png"), cv2.IMREAD_UNCHANGED)
        truth = np.where(raw > 0, raw / 1000.0, np.nan).astype(np.float32)
        camera = read_camera(folder)
        known = np.flatnonzero(np.isfinite(truth))
        chosen = np.random.default_rng(0).choice(known, 250, replace=False)
        points = camera.backproject(truth).reshape(-1, 3)[chosen]
        errors = errors_of_methods(fastdepth, image, camera, points, np.eye(4), truth)
        assert max(errors["slf"], errors["ssf"]) < 0.8 * min(
            errors["global_depth"], errors["global_disparity"]
        )


def test_regions_beat_one_fit_on_real_roads_with_a_real_lidar(
    shared: Path, fastdepth: dict
) -> None:
    for name in ("ours_1", "ours_2"):
        folder = shared / "data" / "opencalib_road" / name
        image = np.ascontiguousarray(cv2.imread(str(folder / "rgb.jpg"))[..., ::-1])
        truth = np.load(folder / "depth.npz")["depth"]
        truth = np.where(truth > 0, truth, np.nan).astype(np.float32)
        masks = cv2.imread(str(folder / "segmentation_sam.png"), cv2.IMREAD_UNCHANGED)
        pose = np.array(json.loads((folder / "calib.json").read_text())["T_cam_lidar"])
        points = np.load(folder / "lidar.npy")
        points = points[np.random.default_rng(0).random(len(points)) < 0.1]
        camera = read_camera(folder)
        for labels in (None, labels_from_ids(masks)):
            errors = errors_of_methods(fastdepth, image, camera, points, pose, truth, labels)
            assert errors["ssf"] < 0.9 * min(errors["global_depth"], errors["global_disparity"])


def test_after_warming_up_nothing_is_left_to_compile() -> None:
    """The loops of the field are compiled for real frames of few and of many points."""
    pytest.importorskip("numba", reason="numba is not installed, so nothing is compiled")
    kernels.cache_clear()
    with pipeline("field", mode="sensor") as warm:
        warm.warm_up()
        names = ("nearest", "krige", "agree", "spread", "mean", "answer")
        loops = [getattr(kernels("auto"), name).loop for name in names]
        compiled = [len(loop.signatures) for loop in loops]
        assert min(compiled) >= 1
        image, depth, _ = room()
        for count in (50, 5000):
            warm.process(FrameInput(image, CAMERA, lidar_points(depth, count), T_CAMERA_LIDAR))
    assert [len(loop.signatures) for loop in loops] == compiled
