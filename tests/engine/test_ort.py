# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, manifest_path, model_sha256
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.opening import backends
from depth_node.engine.protocol import Engine
from depth_node.inference import open_engine
from depth_node.model_zoo import registry

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.tiny_models import save_model, save_nodes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = save_model(tmp_path / "tiny.onnx")
    write_manifest(path, "disparity_affine_invariant", licence="Apache-2.0")
    return path


def rewrite(model: Path, **changes: Any) -> None:
    """Change entries of a manifest as a hand that edits it would; input.* by that dotted name."""
    import yaml

    path = manifest_path(model)
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        target = values
        for parent in parents:
            target = target[parent]
        if value is ...:
            del target[leaf]
        else:
            target[leaf] = value
    path.write_text(yaml.safe_dump(values))


# --- what works


def test_engine_runs_the_model_as_the_manifest_says(model: Path) -> None:
    with open_engine(model, threads=1) as engine:
        assert engine.backend == "onnxruntime-cpu"
        assert engine.details["providers"] == ["CPUExecutionProvider"]
        assert engine.details["threads"] == 1
        assert engine.manifest.meaning == "disparity_affine_invariant"
        tensor = np.random.default_rng(0).random((1, 3, 8, 12), np.float32)
        output = engine.run(tensor)
        np.testing.assert_allclose(output, 2 * tensor.mean(axis=1), rtol=1e-6)
        kept = output.copy()
        engine.run(np.zeros_like(tensor))
        np.testing.assert_array_equal(output, kept)  # the array is the caller's


def test_closed_engine_says_so(model: Path) -> None:
    engine = open_engine(model)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(np.zeros((1, 3, 8, 12), np.float32))


@pytest.mark.parametrize(
    "tensor",
    [
        np.zeros((1, 3, 8, 11), np.float32),
        np.zeros((3, 8, 12), np.float32),
        np.zeros((1, 3, 8, 12), np.float64),
    ],
)
def test_wrong_tensor_is_refused(model: Path, tensor: np.ndarray) -> None:
    with open_engine(model) as engine, pytest.raises(EngineError, match="to_tensor"):
        engine.run(tensor)


def test_manifest_elsewhere_and_manifest_round_trip(model: Path, tmp_path: Path) -> None:
    read = Manifest.load(manifest_path(model))
    elsewhere = tmp_path / "other" / "facts.yaml"
    elsewhere.parent.mkdir()
    changed = dataclasses.replace(read, training={"steps": 10, "data": ["rooms"]}, patch_size=4)
    changed.save(elsewhere)
    manifest_path(model).unlink()
    with open_engine(model, manifest=elsewhere) as engine:
        assert engine.manifest == changed
    assert Manifest.load(elsewhere) == changed


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


def test_uint8_model(tmp_path: Path) -> None:
    path = save_model(tmp_path / "bytes.onnx", dtype=onnx.TensorProto.UINT8)
    written = write_manifest(path, "depth_affine_invariant", scale=1.0)
    assert written.input.dtype == "uint8"
    with open_engine(path) as engine:
        assert engine.run(np.full((1, 3, 8, 12), 3, np.uint8)).max() == 6


def test_external_weights_count_in_the_hash(model: Path) -> None:
    before = model_sha256(model)
    model.with_name("tiny.onnx.data").write_bytes(b"weights")
    assert model_sha256(model) != before
    with pytest.raises(EngineError, match="sha256"):
        open_engine(model)


# --- what does not: every sentence names the file and the cure


def refusal(model: Path | str, **options: Any) -> str:
    with pytest.raises(EngineError) as caught:
        open_engine(model, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_missing_model(tmp_path: Path) -> None:
    sentence = refusal(tmp_path / "none.onnx")
    assert re.search(r"none\.onnx does not exist.*check the path", sentence)
    assert "folder" in refusal(tmp_path)


def test_missing_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_EMBEDDED_FILE", tmp_path / "embedded.onnx")
    assert "install the package again" in refusal("embedded")


def test_embedded_name_opens_the_packages_network(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_EMBEDDED_FILE", model)
    with open_engine("embedded") as engine:
        assert engine.manifest.name == "tiny"


def test_missing_manifest(model: Path) -> None:
    manifest_path(model).unlink()
    sentence = refusal(model)
    assert "tiny.manifest.yaml" in sentence
    assert f"depth_tools models manifest {model}" in sentence
    assert "check the path" in refusal(model, manifest=model.with_name("gone.yaml"))


def test_damaged_model_is_told_by_its_hash(model: Path) -> None:
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    sentence = refusal(model)
    assert "sha256" in sentence
    assert "damaged or another version" in sentence


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"%PDF-1.4 no", None])
def test_not_onnx(model: Path, content: bytes | None) -> None:
    """Damaged files whose hash was written into the manifest all the same; None: truncated."""
    whole = model.read_bytes()
    model.write_bytes(whole[:-40] if content is None else content)
    rewrite(model, sha256=model_sha256(model))
    sentence = refusal(model)
    assert "cannot be read as an ONNX model" in sentence
    assert "fetch or export it again" in sentence
    with pytest.raises(EngineError, match="ONNX model"):
        write_manifest(model, "depth_metric")


def test_wrong_hash(model: Path) -> None:
    rewrite(model, sha256="0" * 64)
    assert "write a new manifest" in refusal(model)
    rewrite(model, sha256=model_sha256(model).upper())
    open_engine(model).close()


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"input_name": "pixels"}, r"has the input image, its manifest says pixels"),
        ({"output_name": "disparity"}, r"has the outputs depth, its manifest says disparity"),
        ({"input__height": 16}, r"takes an input of shape \(1, 3, 8, 12\).*\(1, 3, 16, 12\)"),
        ({"input__dtype": "float16"}, r"takes tensor\(float\).*float16.*input.dtype"),
        ({"meaning": "depth_metrik"}, r"did you mean depth_metric\?"),
        ({"meaning": 3}, r"meaning 3 is not known"),
        ({"meaning": ...}, r"key meaning is missing"),
        ({"input__height": ...}, r"key input.height is missing"),
        ({"input__heigth": 8}, r"unknown key input.heigth; did you mean input.height"),
        ({"colour": "rgb"}, r"unknown key colour"),
        ({"input": 3}, r"found 3 where keys and values"),
        ({"input": ...}, r"found None where keys and values"),
        ({"input__std": [0, 1, 1]}, r"std must be above 0"),
        ({"input__resize": "squash"}, r"use one of stretch, letterbox, corner, crop"),
        ({"patch_size": 14}, r"no multiple of patch_size 14"),
        ({"patch_size": -1}, r"patch_size is -1"),
        ({"name": 5}, r"name is 5: it must be text"),
        ({"training": [1]}, r"training must be a mapping"),
    ],
)
def test_manifest_that_does_not_fit(model: Path, changes: dict, pattern: str) -> None:
    rewrite(model, **changes)
    sentence = refusal(model)
    assert re.search(pattern, sentence)
    assert str(model.parent) in sentence


@pytest.mark.parametrize("text", ["{", "- a\n- b\n", "", "\x00", "a: b: c"])
def test_manifest_that_is_no_yaml_mapping(model: Path, text: str) -> None:
    manifest_path(model).write_text(text)
    assert "tiny.manifest.yaml" in refusal(model)


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


# --- back ends


def test_unknown_back_end_lists_the_usable_ones(model: Path) -> None:
    assert "use auto or one of onnxruntime-cpu" in refusal(model, backend="tensorflow")
    assert "did you mean onnxruntime-cpu?" in refusal(model, backend="onnxruntime")


def test_back_end_whose_package_is_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnxruntime" in backends()["onnxruntime-cpu"]
    assert "pip install onnxruntime" in refusal(model, backend="onnxruntime-cpu")
    assert "no back end can run" in refusal(model)


def test_usable_back_ends() -> None:
    assert backends()["onnxruntime-cpu"] == ""


def test_threads_below_zero(model: Path) -> None:
    assert "threads must be at least 0, got -1" in refusal(model, threads=-1)


def test_opening_and_closing_leaks_no_threads_or_handles(model: Path) -> None:
    def state() -> tuple[int, int]:
        return len(list(Path("/proc/self/task").iterdir())), len(
            list(Path("/proc/self/fd").iterdir())
        )

    if not Path("/proc/self/task").is_dir():
        pytest.skip("no /proc to count threads and handles in")
    engine: Engine = open_engine(model, threads=2)
    engine.close()
    del engine
    before = state()
    for _ in range(10):
        with open_engine(model, threads=2) as engine:
            engine.run(np.zeros((1, 3, 8, 12), np.float32))
    del engine
    assert state() <= before


# --- a real network


def test_fastdepth_gives_metres(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "fastdepth_nyu_224.onnx"
    facts = tmp_path / "fastdepth.manifest.yaml"
    written = write_manifest(model, "depth_metric", manifest=facts, licence="MIT")
    assert written.input.shape == (1, 3, 224, 224)
    with open_engine(model, manifest=facts, threads=1) as engine:
        output = engine.run(np.full((1, 3, 224, 224), 0.5, np.float32))
    assert output.shape == (1, 224, 224)
    assert 0.1 < np.median(output) < 10
    assert not manifest_path(model).exists()  # nothing is written into the folder of the model
