# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest_writer import write_manifest
from depth_node.inference import DepthModel, ModelConfig, RegionModel
from depth_node.inference.regions import _whole_numbers
from depth_node.metrics import evaluate
from depth_node.prediction import KINDS
from depth_node.regions.settings import SegmentationConfig

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.tiny_models import save_model, save_nodes


def ramp_image(height: int, width: int) -> np.ndarray:
    """Grey, brighter to the right and below."""
    across = np.linspace(20, 120, width)[None]
    down = np.linspace(0, 100, height)[:, None]
    return np.repeat((across + down)[..., None], 3, axis=2).astype(np.uint8)


def depth_model(folder: Path, meaning: str = "disparity_affine_invariant", **options) -> DepthModel:
    path = save_model(folder / "tiny.onnx", inputs={"image": [1, 3, 24, 32]})
    write_manifest(path, meaning, **options)
    return DepthModel.open(ModelConfig(str(path), threads=1))


# --- depth


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_has_the_pictures_size_and_the_manifests_meaning(
    tmp_path: Path, kind: str
) -> None:
    with depth_model(tmp_path, kind) as model:
        prediction = model.predict(ramp_image(48, 64))
    assert prediction.kind == kind
    assert prediction.shape == (48, 64)
    assert prediction.values.dtype == np.float32


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(96, 128), (60, 200), (200, 60)])
def test_prediction_lies_where_the_picture_shows_it(
    tmp_path: Path, resize: str, size: tuple
) -> None:
    """The network returns twice its input, so the prediction is twice the image."""
    image = ramp_image(*size)
    with depth_model(tmp_path, scale=1.0, resize=resize) as model:
        values = model.predict(image).values
    inner = (slice(size[0] // 8, -size[0] // 8), slice(size[1] // 8, -size[1] // 8))
    np.testing.assert_allclose(values[inner], 2.0 * image[..., 0][inner], atol=6)


def test_crop_answers_only_where_it_looked(tmp_path: Path) -> None:
    with depth_model(tmp_path, scale=1.0, resize="crop") as model:
        values = model.predict(ramp_image(48, 128)).values
    known = np.isfinite(values)
    assert known[:, 32:96].all()
    assert not known[:, :32].any()
    assert not known[:, 96:].any()


def test_turning_the_picture_turns_the_prediction(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with depth_model(tmp_path) as model:
        one = model.predict(image).values
        two = model.predict(np.ascontiguousarray(image[:, ::-1])).values
        view = model.predict(image[:, ::-1]).values  # not contiguous
    np.testing.assert_allclose(two[:, ::-1], one, atol=1e-5)
    np.testing.assert_array_equal(view, two)


def test_prediction_is_kept_when_the_next_picture_comes(tmp_path: Path) -> None:
    with depth_model(tmp_path) as model:
        first = model.predict(np.full((24, 32, 3), 100, np.uint8))
        kept = first.values.copy()
        model.predict(np.zeros((24, 32, 3), np.uint8))
    np.testing.assert_array_equal(first.values, kept)


def test_times_of_the_last_call(tmp_path: Path) -> None:
    with depth_model(tmp_path) as model:
        model.predict(ramp_image(480, 640))
        assert set(model.stage_ms) == {"preprocess", "engine", "postprocess"}
        assert all(0 < ms < 10_000 for ms in model.stage_ms.values())


def test_what_the_network_does_not_know_stays_unknown(tmp_path: Path) -> None:
    """A network whose output is NaN and Inf on black: no depth there, depth elsewhere."""
    path = save_nodes(
        tmp_path / "holes.onnx",
        [("ReduceMean", ["image", "axes"], ["mean"]), ("Log", ["mean"], ["output"])],
        whole={"axes": [1]},
    )
    write_manifest(path, "disparity_affine_invariant", scale=1.0)
    image = np.full((8, 12, 3), 50, np.uint8)
    image[:, :4] = 0
    with DepthModel.open(ModelConfig(str(path))) as model:
        prediction = model.predict(image)
    depth = prediction.relative_depth()
    assert np.isnan(depth[:, :4]).all()
    np.testing.assert_allclose(depth[:, 4:], 1 / np.log(50), rtol=1e-5)


def test_model_of_another_meaning_is_refused(tmp_path: Path) -> None:
    path = save_model(tmp_path / "tiny.onnx")
    write_manifest(path, "region_labels")
    with pytest.raises(EngineError, match=r"gives region_labels.*no depth.*depth_metric"):
        DepthModel.open(ModelConfig(str(path)))
    write_manifest(path, "depth_metric")
    with pytest.raises(EngineError, match=r"gives depth_metric.*no region map.*region_masks"):
        RegionModel.open(ModelConfig(str(path)))


@pytest.mark.parametrize("meaning", ["depth_metric", "region_labels"])
def test_output_of_a_wrong_shape_is_refused_when_opened(tmp_path: Path, meaning: str) -> None:
    path = save_nodes(tmp_path / "three.onnx", [("Identity", ["image"], ["output"])])
    write_manifest(path, meaning)
    kind = DepthModel if meaning == "depth_metric" else RegionModel
    with pytest.raises(EngineError, match=r"shape \(1, 3, 8, 12\).*needs \(height, width\)"):
        kind.open(ModelConfig(str(path)))


def test_engine_is_closed_when_the_model_is_refused(tmp_path: Path, monkeypatch) -> None:
    from depth_node.engine import ort

    closed = []
    monkeypatch.setattr(ort.OrtEngine, "close", lambda self: closed.append(self))
    path = save_model(tmp_path / "tiny.onnx")
    write_manifest(path, "region_labels")
    closed.clear()
    with pytest.raises(EngineError):
        DepthModel.open(ModelConfig(str(path)))
    assert len(closed) == 1


@pytest.mark.parametrize("meaning", ["depth_metric", "region_labels"])
def test_engine_is_closed_whatever_ends_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meaning: str
) -> None:
    """Also by Ctrl-C in the first run, which is no EngineError."""
    from depth_node.engine import ort

    path = save_model(tmp_path / "tiny.onnx")
    write_manifest(path, meaning)

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    closed: list[object] = []
    monkeypatch.setattr(ort.OrtEngine, "run", interrupted)
    monkeypatch.setattr(ort.OrtEngine, "close", lambda self: closed.append(self))
    kind = DepthModel if meaning == "depth_metric" else RegionModel
    with pytest.raises(KeyboardInterrupt):
        kind.open(ModelConfig(str(path), backend="onnxruntime-cpu"))
    assert len(closed) == 1


def test_closed_model_says_so(tmp_path: Path) -> None:
    model = depth_model(tmp_path)
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.predict(ramp_image(24, 32))


def test_fastdepth_on_real_rooms(shared: Path, tmp_path: Path) -> None:
    """A trained metric network through manifest, resizing and back: metres in the right place."""
    facts = tmp_path / "fastdepth.manifest.yaml"
    path = shared / "models" / "fastdepth_nyu_224.onnx"
    write_manifest(path, "depth_metric", manifest=facts)
    scores, flipped = [], []
    with DepthModel.open(ModelConfig(str(path), str(facts), threads=1)) as model:
        for folder in sorted((shared / "data").glob("tum_rgbd/*")):
            image = cv2.imread(str(folder / "rgb.jpg"))[..., ::-1]
            raw = cv2.imread(str(folder / "depth.png"), cv2.IMREAD_UNCHANGED)
            truth = np.where(raw > 0, raw / 1000.0, np.nan).astype(np.float32)
            depth = model.predict(image).metric_depth()
            scores.append(scaled_error(depth, truth))
            flipped.append(scaled_error(depth[:, ::-1], truth))
    assert np.mean(scores) < 0.18
    assert np.mean(scores) < 0.8 * np.mean(flipped)


def scaled_error(depth: np.ndarray, truth: np.ndarray) -> float:
    return evaluate(depth * np.nanmedian(truth / depth), truth).abs_rel


def test_embedded_network_comes_with_the_package() -> None:
    with DepthModel.open(ModelConfig(threads=1)) as model:
        assert model.engine.manifest.meaning in KINDS
        prediction = model.predict(ramp_image(240, 320))
    assert prediction.shape == (240, 320)
    assert np.isfinite(prediction.values).all()
    assert np.ptp(prediction.values) > 0


# --- regions


def test_region_masks_become_labels(tmp_path: Path) -> None:
    """Two masks, red and green above one half, on an image three times as large."""
    path = save_nodes(
        tmp_path / "masks.onnx",
        [
            ("Slice", ["image", "start", "end", "axis"], ["two"]),
            ("Sub", ["two", "half"], ["output"]),
        ],
        shape=(1, 3, 40, 60),
        constants={"half": [0.5]},
        whole={"start": [0], "end": [2], "axis": [1]},
    )
    write_manifest(path, "region_masks")
    image = np.zeros((120, 180, 3), np.uint8)
    image[30:60, 30:90, 0] = 255
    image[75:105, 120:165, 1] = 255
    with RegionModel.open(ModelConfig(str(path)), SegmentationConfig(min_region_px=0)) as model:
        labels = model.predict(image)
        assert set(model.stage_ms) == {"preprocess", "engine", "postprocess"}
    assert labels.shape == (120, 180)
    assert labels.dtype == np.int32
    assert len(np.unique(labels)) == 3  # two masks and the rest
    for inside in ((slice(33, 57), slice(33, 87)), (slice(78, 102), slice(123, 162))):
        assert len(np.unique(labels[inside])) == 1
        assert labels[inside][0, 0] not in (0, labels[5, 5])
    assert labels[45, 60] != labels[90, 140]


def test_region_labels_network(tmp_path: Path) -> None:
    path = save_nodes(
        tmp_path / "ids.onnx",
        [("ReduceMax", ["image", "axes"], ["output"])],
        shape=(1, 3, 40, 60),
        whole={"axes": [1]},
    )
    write_manifest(path, "region_labels", scale=1.0)
    image = np.full((80, 120, 3), 4, np.uint8)
    image[:, 60:] = 9
    with RegionModel.open(ModelConfig(str(path)), SegmentationConfig(min_region_px=0)) as model:
        labels = model.predict(image)
    assert len(np.unique(labels[:, :58])) == 1
    assert len(np.unique(labels[:, 62:])) == 1
    assert labels[0, 0] != labels[0, -1]


def test_labels_that_are_no_numbers_are_no_region(tmp_path: Path) -> None:
    """What a cast makes of NaN, infinity or -1 depends on the processor: all of them become 0."""
    path = save_nodes(
        tmp_path / "labels.onnx",
        [("ReduceMean", ["image", "axes"], ["grey"]), ("Div", ["grey", "zero"], ["output"])],
        shape=(1, 3, 24, 32),
        constants={"zero": [0.0]},
        whole={"axes": [1]},
    )
    write_manifest(path, "region_labels", scale=1.0, mean=(100.0,) * 3)
    image = np.full((24, 32, 3), 100, np.uint8)  # 0 / 0
    image[:8], image[8:16] = 50, 200  # -1 / 0, 1 / 0
    with RegionModel.open(ModelConfig(str(path), threads=1)) as model:
        labels = model.predict(image)
        assert "no region" in model.message
    assert len(np.unique(labels)) == 1


def test_whole_numbers_of_every_kind() -> None:
    given = np.array([[np.nan, np.inf, -np.inf, -1.0, 3e9, 2.4, 0.6, 7.0]], np.float32)
    expected = [[0, 0, 0, 0, 0, 2, 1, 7]]
    np.testing.assert_array_equal(_whole_numbers(given), expected)
    np.testing.assert_array_equal(_whole_numbers(given.astype(np.float64)), expected)
    wide = np.array([[-3, 5, 2**40]], np.int64)
    np.testing.assert_array_equal(_whole_numbers(wide), [[0, 5, 2**31 - 1]])
