# SPDX-License-Identifier: Apache-2.0
"""Encoder and prompt decoder as two engines, on a pair of models whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.config import replace as settings
from depth_node.engine import EngineError
from depth_node.engine.manifest_writer import write_manifest
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.inference import ModelConfig, PromptedRegionModel, RegionModel
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.prediction import Prediction
from depth_node.regions.prompted_masks import PromptConfig
from depth_node.regions.settings import SegmentationConfig

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import helper, numpy_helper

SIZE, MAP, RADIUS = 128, 32, 14.0  # px of the encoder's input, of the masks; of the discs, in input
FLOAT = onnx.TensorProto.FLOAT


def save(path: Path, nodes: list, given: dict, gives: list[str], constants: dict) -> Path:
    graph = helper.make_graph(
        [
            helper.make_node(kind, i, [o], **(more[0] if more else {}))
            for kind, i, o, *more in nodes
        ],
        "half",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in given.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in gives],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def pair(folder: Path, *, channels: int = 1, resize: str = "corner", batch: int = 5) -> Path:
    """An encoder that averages the colours, and a decoder that answers every point with a disc
    about it. A disc's IoU grows to the right, up to the mean of the encoder's map; its stability is
    the share of the input that the image fills.
    """
    encoder = save(
        folder / "discs.onnx",
        [
            ("AveragePool", ["image"], "small", {"kernel_shape": [4, 4], "strides": [4, 4]}),
            ("ReduceMean", ["small", "one"], "embedding", {"keepdims": 1}),
        ],
        {"image": [1, 3, SIZE, SIZE]},
        ["embedding"],
        {"one": np.array([1])},
    )
    write_manifest(encoder, "region_prompts", decoder="half.onnx", resize=resize)
    place = (np.arange(MAP, dtype=np.float32) + 0.5) * SIZE / MAP
    decoder = save(
        folder / "half.onnx",
        [
            ("Slice", ["points", "zero", "one", "one"], "x"),
            ("Slice", ["points", "one", "two", "one"], "y"),
            ("Reshape", ["x", "four"], "x4"),
            ("Reshape", ["y", "four"], "y4"),
            ("Sub", ["cols", "x4"], "dx"),
            ("Sub", ["rows", "y4"], "dy"),
            ("Mul", ["dx", "dx"], "dx2"),
            ("Mul", ["dy", "dy"], "dy2"),
            ("Add", ["dx2", "dy2"], "d2"),
            ("Sub", ["r2", "d2"], "masks"),
            ("ReduceMean", ["embedding"], "mean", {"keepdims": 0}),
            ("Div", ["x", "size"], "share"),
            ("Mul", ["share", "mean"], "iou"),
            ("ReduceMin", ["extent"], "least", {"keepdims": 0}),
            ("Div", ["least", "size"], "filled"),
            ("Sub", ["iou", "iou"], "nothing"),
            ("Add", ["nothing", "filled"], "stability"),
            ("Concat", ["points", "points"], "centres", {"axis": 1}),
            ("Add", ["centres", "around"], "corners"),
            ("Div", ["corners", "step"], "fine"),
            ("Floor", ["fine"], "whole"),
            ("Clip", ["whole", "low", "high"], "clipped"),
            ("Reshape", ["clipped", "boxed"], "boxes"),
        ],
        {"points": [batch, 2], "extent": [2], "embedding": [1, channels, MAP, MAP]},
        ["masks", "iou", "stability", "boxes"],
        {
            "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]),
            "four": np.array([-1, 1, 1, 1]), "boxed": np.array([-1, 1, 4]),
            "cols": place.reshape(1, 1, 1, -1), "rows": place.reshape(1, 1, -1, 1),
            "r2": np.float32([RADIUS**2]), "size": np.float32([SIZE]),
            "around": np.float32([[-RADIUS, -RADIUS, RADIUS, RADIUS]]),
            "step": np.float32([SIZE / MAP]), "low": np.float32(0), "high": np.float32(MAP - 1),
        },
    )  # fmt: skip
    write_manifest(
        decoder, "prompt_masks", outputs=("masks", "iou", "stability", "boxes"), height=SIZE,
        width=SIZE,
    )  # fmt: skip
    return encoder


def opened(encoder: Path, **prompts: Any) -> RegionModel:
    wanted = {"points_per_side": 4, "min_iou": 0.0, "min_stability": 0.0, **prompts}
    config = SegmentationConfig(min_region_px=0, prompts=PromptConfig(**wanted))
    return RegionModel.open(ModelConfig(str(encoder), threads=1), config)


WHITE = np.full((60, 80, 3), 255, np.uint8)


# --- what works


def test_one_path_opens_both_and_every_point_has_its_mask(tmp_path: Path) -> None:
    with opened(pair(tmp_path)) as model:
        assert isinstance(model, PromptedRegionModel)
        labels = model.predict(WHITE)
        masks = model.masks(WHITE)
        assert model.message == ""
        assert set(model.stage_ms) == {"preprocess", "engine", "postprocess"}
    assert labels.shape == (60, 80)
    assert labels.dtype == np.int32
    assert masks.shape == (16, 60, 80)
    radius = RADIUS * 80 / SIZE  # the image fills 96 x 128 of the input
    rows, cols = np.mgrid[0:60, 0:80] + 0.5
    for k, inside in enumerate(masks):  # best first: from the right
        assert abs(inside.sum() - np.pi * radius**2) < 0.1 * np.pi * radius**2
        assert abs(cols[inside].mean() - (70 - 20 * (k // 4))) < 0.6
    assert sorted({round(rows[mask].mean() / 7.5) for mask in masks}) == [1, 3, 5, 7]
    # Sixteen discs, which touch up and down, and five stripes between them.
    assert len(np.unique(labels)) == 21
    assert labels[7, 10] != labels[7, 30]


def test_size_of_the_batch_changes_nothing(tmp_path: Path) -> None:
    found = []
    for batch in (1, 5, 16, 50):
        folder = tmp_path / str(batch)
        folder.mkdir()
        with opened(pair(folder, batch=batch)) as model:
            found.append(model.predict(WHITE))
    for labels in found[1:]:
        np.testing.assert_array_equal(labels, found[0])


def test_stretched_pictures_have_their_points_in_place(tmp_path: Path) -> None:
    with opened(pair(tmp_path, resize="stretch")) as model:
        masks = model.masks(WHITE)
    _, cols = np.mgrid[0:60, 0:80] + 0.5
    np.testing.assert_allclose([cols[mask].mean() for mask in masks[:4]], 70, atol=0.6)


def test_filters_of_the_settings_hold(tmp_path: Path) -> None:
    with opened(pair(tmp_path), min_iou=0.3) as model:
        assert len(model.masks(WHITE)) == 8  # the right half
        model.config = settings(model.config, {"prompts.min_iou": 0.5})
        assert len(model.masks(WHITE)) == 4
        model.config = settings(model.config, {"prompts.min_stability": 0.7})
        assert len(model.masks(WHITE)) == 4
        model.config = settings(model.config, {"prompts.min_stability": 0.8})
        assert len(model.masks(WHITE)) == 0
        assert "min_stability 0.8 (best 0.75)" in model.message
    with opened(pair(tmp_path), nms_iou=0.0, points_per_side=16) as model:
        kept = model.masks(WHITE)
        assert 8 < len(kept) < 40  # of 256 discs those that do not touch
        assert kept.sum(axis=0).max() == 1


# --- no mask


def test_picture_without_masks_is_one_region_and_says_so(tmp_path: Path) -> None:
    black = np.zeros((60, 80, 3), np.uint8)  # its features are 0, and so every IoU
    with opened(pair(tmp_path), min_iou=0.5) as model:
        np.testing.assert_array_equal(model.predict(black), 1)
        assert "none of 16 masks passed" in model.message
        assert "min_iou 0.5 (best 0.00)" in model.message
        model.predict(WHITE)
        assert model.message == ""
        model.config = settings(model.config, {"min_region_px": 300_000})
        model.predict(WHITE)
        assert "smaller than segmentation.min_region_px" in model.message


def test_pipeline_falls_back_to_the_pictures_own_regions(tmp_path: Path) -> None:
    values = {
        "model.path": "",
        "region_model.path": str(pair(tmp_path)),
        "fit.method": "slf",
        "segmentation.prompts.points_per_side": 4,
        "segmentation.prompts.min_iou": 0.5,
        "segmentation.prompts.min_stability": 0.5,
    }
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, 40:, 2] = 3  # two colours, both next to black
    prediction = Prediction(np.ones((60, 80), np.float32), "depth_metric")
    camera = Camera(80, 60, 70.0, 70.0, 39.5, 29.5)
    with DepthPipeline(settings(PipelineConfig(), values)) as pipe:
        result = pipe.process(FrameInput(image, camera, None, None, prediction=prediction))
        assert result.segmentation == "classical"
        assert "none of 16 masks passed" in result.message
        assert "own regions are used instead" in result.message
        assert result.labels is not None
        result = pipe.process(FrameInput(WHITE, camera, None, None, prediction=prediction))
        assert (result.segmentation, result.message) == ("network", "")


# --- halves that do not fit


def refusal(encoder: Path) -> str:
    with pytest.raises(EngineError) as caught:
        opened(encoder)
    return str(caught.value)


def test_missing_decoder_is_named(tmp_path: Path) -> None:
    encoder = pair(tmp_path)
    (tmp_path / "half.onnx").unlink()
    sentence = refusal(encoder)
    assert "half.onnx of model discs is missing" in sentence
    assert "export the model again" in sentence


def test_decoder_of_another_encoder(tmp_path: Path) -> None:
    sentence = refusal(pair(tmp_path, channels=2))
    assert "discs and the prompt decoder half do not run together" in sentence
    assert "(1, 1, 32, 32)" in sentence
    assert "(1, 2, 32, 32)" in sentence


def test_something_else_as_decoder(tmp_path: Path) -> None:
    encoder = pair(tmp_path)
    other = save(
        tmp_path / "half.onnx",
        [("Add", ["points", "more"], "sum")],
        {"points": [5, 2], "more": [2]},
        ["sum"],
        {},
    )
    write_manifest(other, "prompt_masks", height=SIZE, width=SIZE)
    assert "half gives prompt_masks (sum), a prompt decoder gives" in refusal(encoder)
    write_manifest(encoder, "region_prompts", decoder="discs.onnx")
    assert "discs gives region_prompts" in refusal(encoder)


def test_encoder_whose_picture_would_be_out_of_place(tmp_path: Path) -> None:
    assert "has resize letterbox" in refusal(pair(tmp_path, resize="letterbox"))


def test_both_engines_are_closed_when_they_do_not_fit(tmp_path: Path, monkeypatch: Any) -> None:
    from depth_node.engine import ort

    closed = []
    monkeypatch.setattr(ort.OrtEngine, "close", lambda self: closed.append(self.manifest.name))
    encoder = pair(tmp_path, channels=2)
    closed.clear()
    refusal(encoder)
    assert sorted(closed) == ["discs", "half"]


def test_decoder_alone_is_no_region_model(tmp_path: Path) -> None:
    encoder = pair(tmp_path)
    assert "gives prompt_masks: that is no region map" in refusal(encoder.with_name("half.onnx"))
