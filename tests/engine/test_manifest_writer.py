# SPDX-License-Identifier: Apache-2.0
"""Writing manifests: names, sizes and types are read from the ONNX file."""

from __future__ import annotations

from pathlib import Path

import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, SparseSpec, manifest_path, model_sha256
from depth_node.engine.manifest_writer import write_manifest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.tiny_models import save_model, save_nodes


def test_write_manifest_reads_the_facts_from_the_file(tmp_path: Path) -> None:
    path = save_model(tmp_path / "net.onnx", inputs={"pixels": [1, 3, 16, 24]}, output="inverse")
    written = write_manifest(
        path, "disparity_affine_invariant", channel_order="bgr", mean=(0.5, 0.5, 0.5), name="net 1"
    )
    assert (written.input_name, written.output_name) == ("pixels", "inverse")
    assert written.input.shape == (1, 3, 16, 24)
    assert written.sha256 == model_sha256(path)
    assert Manifest.load(manifest_path(path)) == written


def test_write_manifest_asks_for_what_the_file_leaves_open(tmp_path: Path) -> None:
    path = save_model(tmp_path / "open.onnx", inputs={"image": ["n", 3, "h", "w"]})
    with pytest.raises(EngineError, match="height open"):
        write_manifest(path, "depth_metric")
    written = write_manifest(path, "depth_metric", height=28, width=42, patch_size=14)
    assert written.input.shape == (1, 3, 28, 42)
    two = save_model(tmp_path / "two.onnx", extra_output=True)
    with pytest.raises(EngineError, match=r"features, depth.*which one"):
        write_manifest(two, "depth_metric")
    assert write_manifest(two, "depth_metric", output_name="depth").output_name == "depth"


def test_write_manifest_leaves_nothing_behind_when_it_refuses(tmp_path: Path) -> None:
    path = save_model(tmp_path / "tiny.onnx")
    for bad in ({"meaning": "depth"}, {"meaning": "depth_metric", "resize": "squash"}):
        with pytest.raises(EngineError):
            write_manifest(path, **bad)
    with pytest.raises(EngineError, match="output"):
        write_manifest(path, "depth_metric", output_name="deth")
    with pytest.raises(EngineError, match="colour"):
        write_manifest(path, "depth_metric", colour="rgb")
    assert not manifest_path(path).exists()


def test_models_with_other_inputs_than_one_picture(tmp_path: Path) -> None:
    two = save_model(tmp_path / "two.onnx", inputs={"image": [1, 3, 8, 12], "prompt": [1, 4]})
    with pytest.raises(EngineError, match=r"2 inputs \(image, prompt\)"):
        write_manifest(two, "depth_metric")
    grey = save_model(tmp_path / "grey.onnx", inputs={"image": [1, 1, 8, 12]})
    with pytest.raises(EngineError, match=r"\(1, 3, height, width\)"):
        write_manifest(grey, "depth_metric")
    wide = save_model(tmp_path / "wide.onnx", dtype=onnx.TensorProto.DOUBLE)
    with pytest.raises(EngineError, match="float32"):
        write_manifest(wide, "depth_metric")


def test_networks_whose_inputs_cannot_be_used(tmp_path: Path) -> None:
    """One sentence each, for what no exporter of ours writes."""
    without = save_nodes(tmp_path / "without.onnx", [("Identity", ["w"], ["output"])],
                         constants={"w": [1, 2]})  # fmt: skip
    model = onnx.load(str(without))
    del model.graph.input[:]
    onnx.save(model, str(without))
    for meaning in ("depth_metric", "prompt_masks"):
        with pytest.raises(EngineError, match="inputs"):
            write_manifest(without, meaning, height=8, width=12)
    five = save_model(
        tmp_path / "five.onnx", inputs={"image": [1, 3, 8, 12], "points": ["a", "b", "c", "d", "e"]}
    )
    with pytest.raises(
        EngineError, match=r"points of shape .*export it with \(1, 1, height, width"
    ):
        write_manifest(five, "depth_metric", sparse=SparseSpec("points"))


def test_a_completion_network_may_leave_the_channels_of_its_image_open(tmp_path: Path) -> None:
    """As a network of one image may."""
    path = save_model(
        tmp_path / "net.onnx", inputs={"image": [1, "c", 8, 12], "points": [1, 1, "h", "w"]}
    )
    written = write_manifest(path, "depth_metric", sparse=SparseSpec("points"))
    assert written.inputs == {"image": (1, 3, 8, 12), "points": (1, 1, 8, 12)}


def test_a_place_that_cannot_be_written_has_a_sentence(tmp_path: Path) -> None:
    path = save_model(tmp_path / "tiny.onnx")
    for run in (True, False):
        with pytest.raises(EngineError, match=r"cannot be written \(No such file .*name another"):
            write_manifest(path, "depth_metric", manifest=tmp_path / "nowhere" / "a.yaml", run=run)


def test_open_shape_that_the_network_cannot_run_is_found_when_opened(tmp_path: Path) -> None:
    path = save_nodes(
        tmp_path / "fixed.onnx",
        [("Reshape", ["image", "size"], ["output"])],
        shape=(1, 3, "h", "w"),
        whole={"size": [24, 12]},
    )
    write_manifest(path, "depth_metric", height=8, width=12)
    with pytest.raises(EngineError, match="failed to run with an input of 12x16"):
        write_manifest(path, "depth_metric", height=16, width=12)
