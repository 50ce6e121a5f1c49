# SPDX-License-Identifier: Apache-2.0
"""Networks that say more than depth: the focal length, sky, masks, confidence, point maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.preprocess import InputSpec, input_focal_px
from depth_node.fitting import FitConfig, FitStatus
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import DepthModel, ModelConfig
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.prediction import Prediction

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.refusals import refusal
from tests.helpers.role_models import save_channels, save_points

HEIGHT, WIDTH = 56, 84
CAMERA = Camera(168, 112, 150.0, 140.0, 83.5, 55.5)


def channels(folder: Path, meaning: str, **facts: Any) -> DepthModel:
    path = save_channels(folder / "net.onnx", HEIGHT, WIDTH)
    write_manifest(path, meaning, output_name="red", **facts)
    return DepthModel.open(ModelConfig(str(path), threads=1))


def picture(red: float = 200, green: float = 0, blue: float = 255) -> np.ndarray:
    """Twice the network's size."""
    image = np.empty((2 * HEIGHT, 2 * WIDTH, 3), np.uint8)
    image[...] = (red, green, blue)
    return image


# --- metres by the focal length


def test_metres_are_the_output_times_the_focal_length_of_the_input(tmp_path: Path) -> None:
    """Of Depth Anything 3's metric network: focal / 300 x output, focal after resizing."""
    with channels(tmp_path, "depth_metric_focal", focal_px=300, scale=1.0) as model:
        assert model.gives_metres
        found = model.predict(picture(200), CAMERA)
        unknown = model.predict(picture(200))
    focal = (150.0 * WIDTH / 168 + 140.0 * HEIGHT / 112) / 2
    assert found.kind == "depth_metric"
    np.testing.assert_allclose(found.metric_depth(), 200 * focal / 300, rtol=1e-6)
    assert unknown.kind == "depth_affine_invariant"  # up to scale: no metres are made up
    np.testing.assert_allclose(unknown.values, 200)


def test_the_pipeline_gives_the_network_its_camera(tmp_path: Path) -> None:
    path = save_channels(tmp_path / "net.onnx", HEIGHT, WIDTH)
    write_manifest(path, "depth_metric_focal", output_name="red", focal_px=300, scale=0.01)
    config = PipelineConfig(model=ModelConfig(str(path), threads=1))
    with DepthPipeline(config) as pipeline:
        near = pipeline.process(FrameInput(picture(200), CAMERA))
        tele = Camera(168, 112, 300.0, 280.0, 83.5, 55.5)
        far = pipeline.process(FrameInput(picture(200), tele))
    assert near.fit.status == FitStatus.UNANCHORED
    assert np.isfinite(near.std).all() and (near.std > 0.3 * near.depth).all()
    np.testing.assert_allclose(far.depth, 2 * near.depth, rtol=1e-5)


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ("stretch", (100 * 280 / 640 + 200 * 280 / 480) / 2),
        ("letterbox", (100 + 200) / 2 * 280 / 640),
        ("corner", (100 + 200) / 2 * 280 / 640),
        ("crop", (100 + 200) / 2 * 280 / 480),
        ("longest_side", (100 * 280 / 640 + 200 * 210 / 480) / 2),
    ],
)
def test_focal_length_of_the_input(resize: str, expected: float) -> None:
    spec = InputSpec(280, 280, resize=resize, multiple=14)
    assert input_focal_px(spec, 480, 640, 100.0, 200.0) == pytest.approx(expected)


def test_focal_px_and_its_meaning_belong_together(tmp_path: Path) -> None:
    path = save_channels(tmp_path / "net.onnx", HEIGHT, WIDTH)
    for meaning, focal in (("depth_metric_focal", 0.0), ("depth_metric", 300.0)):
        told = refusal(
            lambda m=meaning, f=focal: write_manifest(path, m, output_name="red", focal_px=f)
        )
        assert "needs the focal length of the input" in told
    for focal in (-1.0, float("nan"), float("inf")):
        told = refusal(
            lambda f=focal: write_manifest(
                path, "depth_metric_focal", output_name="red", focal_px=f
            )
        )
        assert "pixels above 0" in told


# --- sky, mask, confidence


def test_sky_has_no_depth_and_is_told(tmp_path: Path) -> None:
    """At .3 and above a pixel is sky, as the makers of Depth Anything 3 have it."""
    with channels(tmp_path, "depth_affine_invariant", roles={"sky": "green"}) as model:
        image = picture(green=0)
        image[:HEIGHT, :, 1] = 255  # the upper half
        found = model.predict(image)
        below = model.predict(picture(green=76))  # .298
        at = model.predict(picture(green=77))  # .302
    assert found.sky is not None
    assert found.sky[: HEIGHT - 2].all() and not found.sky[HEIGHT + 2 :].any()
    assert np.isnan(found.values[found.sky]).all() and np.isfinite(found.values[~found.sky]).all()
    assert not below.sky.any() and at.sky.all()


def test_a_network_without_sky_does_not_say(tmp_path: Path) -> None:
    with channels(tmp_path, "depth_affine_invariant") as model:
        found = model.predict(picture())
    assert found.sky is None and found.confidence is None


def test_mask_and_confidence(tmp_path: Path) -> None:
    roles = {"mask": "blue", "confidence": "green"}
    image = picture(green=128, blue=255)
    image[:, : WIDTH // 2, 2] = 100  # .39: no answer there
    image[:, -WIDTH // 2 :, 1] = 10
    with channels(tmp_path, "depth_metric", roles=roles) as model:
        found = model.predict(image)
    assert np.isnan(found.values[:, : WIDTH // 2 - 3]).all()
    assert np.isfinite(found.values[:, WIDTH // 2 + 3 :]).all()
    np.testing.assert_allclose(found.confidence[:, : -WIDTH // 2 - 3], 128 / 255, atol=1e-3)
    with channels(tmp_path, "depth_metric", roles=roles, levels={"confidence": 0.2}) as model:
        found = model.predict(image)
    assert np.isnan(found.values[:, -WIDTH // 2 + 3 :]).all()  # from a level it is asked
    assert np.isfinite(found.values[:, WIDTH // 2 + 3 : -WIDTH // 2 - 3]).all()


def test_result_of_a_sky_is_no_wall(tmp_path: Path) -> None:
    """With any method the sky has neither depth nor interval, and what lies below has."""
    path = save_channels(tmp_path / "net.onnx", HEIGHT, WIDTH)
    write_manifest(path, "depth_affine_invariant", output_name="red", roles={"sky": "green"})
    image = picture(green=0)
    image[..., 0] = np.linspace(50, 250, 2 * WIDTH).astype(np.uint8)
    image[:HEIGHT, :, 1] = 255
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(HEIGHT + 10, 2 * HEIGHT, 200), rng.integers(0, 2 * WIDTH, 200)
    points = SparseDepth.from_arrays(rows, cols, 2 + 3 * cols / WIDTH)
    for method in ("field", "slf", "median"):
        config = PipelineConfig(
            model=ModelConfig(str(path), threads=1), fit=FitConfig(method=method)
        )
        with DepthPipeline(config) as pipeline:
            result = pipeline.process(FrameInput(image, CAMERA, sparse=points))
        sky = result.prediction.sky
        assert sky[: HEIGHT - 2].all()
        assert np.isnan(result.depth[sky]).all() and np.isnan(result.std[sky]).all()
        assert np.isfinite(result.depth[HEIGHT + 4 :]).all()


def test_where_a_point_was_measured_is_no_sky(tmp_path: Path) -> None:
    """Sky is free space to a planner: a network's mistake must not clear what LiDAR has hit."""
    path = save_channels(tmp_path / "net.onnx", HEIGHT, WIDTH)
    write_manifest(path, "depth_metric", output_name="red", roles={"sky": "green"})
    config = PipelineConfig(model=ModelConfig(str(path), threads=1), fit=FitConfig(method="median"))
    points = SparseDepth.from_arrays([20, 100], [40, 100], [3.0, 3.0])
    with DepthPipeline(config) as pipeline:
        result = pipeline.process(FrameInput(picture(green=255), CAMERA, sparse=points))
    sky = result.prediction.sky
    assert not sky[20, 40] and not sky[21, 41] and not sky[100, 100]
    assert sky[20, 60] and sky[60, 40]
    assert np.isnan(result.depth).all()  # unknown there, not free and not a wall


def test_given_predictions_keep_their_sky_at_another_size() -> None:
    sky = np.zeros((56, 84), bool)
    sky[:28] = True
    values = np.where(sky, np.nan, 2).astype(np.float32)
    given = Prediction(values, "depth_metric", sky, np.ones((56, 84), np.float32))
    config = PipelineConfig(model=ModelConfig(path=""))
    with DepthPipeline(config) as pipeline:
        result = pipeline.process(FrameInput(picture(), CAMERA, prediction=given))
    assert result.prediction.sky.shape == (112, 168)
    assert result.prediction.sky[:55].all() and not result.prediction.sky[57:].any()
    assert result.prediction.confidence.shape == (112, 168)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="a bool map of the same size"):
        Prediction(np.ones((4, 4), np.float32), "depth_metric", np.zeros((4, 5), bool))


# --- point maps (MoGe-2)


def moge(depth: np.ndarray, shift: float, scale: float, camera: Camera) -> np.ndarray:
    """The points that such a network gives of a scene: up to scale, z less a shift."""
    rows, cols = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]]
    x, y = (cols - camera.cx) / camera.fx * depth, (rows - camera.cy) / camera.fy * depth
    return np.stack([x, y, depth - shift], axis=2) / scale


def test_point_map_becomes_metres_with_the_camera(tmp_path: Path) -> None:
    camera = Camera(WIDTH, HEIGHT, 70.0, 72.0, 41.5, 27.5)
    rows, cols = np.mgrid[0:HEIGHT, 0:WIDTH]
    depth = 2 + 0.05 * rows + np.where(cols > 40, 3.0, 0.0)
    path = save_points(tmp_path / "net.onnx", moge(depth, 1.3, 2.5, camera), 2.5)
    roles = {"mask": "mask", "scale": "scale"}
    write_manifest(path, "points_affine_invariant", output_name="points", roles=roles)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with DepthModel.open(ModelConfig(str(path), threads=1)) as model:
        assert model.gives_metres
        found = model.predict(image, camera)
        without = model.predict(image)
    assert found.kind == "depth_metric"
    np.testing.assert_allclose(found.metric_depth(), depth, rtol=1e-3)
    assert without.kind == "depth_affine_invariant"
    np.testing.assert_allclose(without.values, (depth - 1.3) / 2.5, rtol=1e-5)


# --- manifests


def test_manifest_keeps_the_roles(tmp_path: Path) -> None:
    path = save_channels(tmp_path / "net.onnx", HEIGHT, WIDTH)
    written = write_manifest(
        path, "depth_metric_focal", output_name="red", focal_px=300,
        roles={"sky": "green", "confidence": "blue"}, levels={"sky": 0.25},
    )  # fmt: skip
    assert Manifest.load(manifest_path(path)) == written
    assert written.output_names == ("red", "green", "blue")
    assert written.level("sky") == 0.25 and written.level("confidence") is None


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"roles": {"clouds": "green"}}, "roles.clouds: use one of sky"),
        ({"roles": {"sky": 3}}, "roles.sky is 3: give the name"),
        ({"roles": {"sky": "grey"}}, "outputs red, green, blue, scale"),
        ({"levels": {"sky": float("nan")}}, "levels.sky is nan"),
        ({"levels": {"sky": True}}, "levels.sky is True"),
        ({"meaning": "region_labels", "roles": {"sky": "green"}}, "roles belong to networks"),
    ],
)
def test_roles_that_cannot_be(facts: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = save_channels(tmp_path / "net.onnx", HEIGHT, WIDTH)
    values = {"meaning": "depth_metric", "output_name": "red", **facts}
    assert told in refusal(lambda: write_manifest(path, **values))


def test_a_role_of_the_wrong_shape_is_found_when_opened(tmp_path: Path) -> None:
    for roles in ({"sky": "scale"}, {"scale": "green"}):
        with pytest.raises(EngineError, match=r"output (scale|green) of model net has shape"):
            channels(tmp_path, "depth_metric", roles=roles)
