# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest import manifest_path, model_sha256
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.opening import backends
from depth_node.engine.protocol import Engine
from depth_node.inference import open_engine
from depth_node.model_zoo import registry

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from depth_node.engine import ort
from tests.helpers.manifests import refusal, rewrite
from tests.helpers.tiny_models import save_model

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
        np.testing.assert_array_equal(output, kept)  # the next run does not change the output


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


def test_uint8_model(tmp_path: Path) -> None:
    path = save_model(tmp_path / "bytes.onnx", dtype=onnx.TensorProto.UINT8)
    written = write_manifest(path, "depth_affine_invariant", scale=1.0)
    assert written.input.dtype == "uint8"
    with open_engine(path) as engine:
        assert engine.run(np.full((1, 3, 8, 12), 3, np.uint8)).max() == 6


def test_missing_model(tmp_path: Path) -> None:
    sentence = refusal(tmp_path / "none.onnx")
    assert re.search(r"none\.onnx does not exist.*check the path", sentence)
    assert "folder" in refusal(tmp_path)


def test_missing_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_MODELS", tmp_path)
    assert "install the package again" in refusal("embedded")


def test_embedded_name_opens_the_packages_network(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("embedded", "embedded-small"):
        moved = model.with_name(f"{name}.onnx")
        moved.write_bytes(model.read_bytes())
        write_manifest(moved, "disparity_affine_invariant", licence="Apache-2.0")
        monkeypatch.setattr(registry, "_MODELS", model.parent)
        with open_engine(name) as engine:
            assert engine.manifest.model == f"{name}.onnx"


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"%PDF-1.4 no", None])
def test_not_onnx(model: Path, content: bytes | None) -> None:
    """Damaged files with a manifest that has their hash; None: a truncated file."""
    whole = model.read_bytes()
    model.write_bytes(whole[:-40] if content is None else content)
    rewrite(model, sha256=model_sha256(model))
    sentence = refusal(model)
    told = "is empty: its download" if content == b"" else "cannot be read as an ONNX model"
    assert told in sentence
    assert "fetch or export it again" in sentence
    with pytest.raises(EngineError, match=r"ONNX model|is empty"):
        write_manifest(model, "depth_metric")


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


def test_cuda_and_cudnn_that_pip_installed_are_loaded_first(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dynamic loader does not look into site-packages, so the provider would not start."""
    events: list[str] = []

    def preload() -> None:
        print("Failed to load libcublasLt.so.13")
        events.append("libraries")

    def session(*arguments: object, **options: object) -> object:
        events.append(f"session on {options['providers']}")
        return real(*arguments, **options)

    real = ort.onnxruntime.InferenceSession
    monkeypatch.setattr(ort.onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(ort.onnxruntime, "InferenceSession", session)
    ort.open_session(model, 1)
    assert events == ["session on ['CPUExecutionProvider']"]
    if "CUDAExecutionProvider" not in ort.onnxruntime.get_available_providers():
        with pytest.raises(EngineError):
            ort.open_session(model, 1, "cuda")
        assert events[1:] == [
            "libraries",
            "session on ['CUDAExecutionProvider', 'CPUExecutionProvider']",
        ]
    assert capsys.readouterr().out == ""
