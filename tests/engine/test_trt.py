# SPDX-License-Identifier: Apache-2.0
"""engine/trt.py from the settings to the outputs, on a simulated machine (gpu_on_cpu.py).

ONNX Runtime runs the network, and the kernels are the real ones; build, cache, deserialisation,
buffers, graph, self-check and all refusals use the same code as on a robot.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest import converted_path, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.opening import backends
from depth_node.engine.options import ModelConfig, configured
from depth_node.engine.preprocess import to_tensor
from depth_node.engine.self_check import Reference
from depth_node.inference import DepthModel, build_engine, open_engine

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.gpu_on_cpu import Error, Machine
from tests.helpers.manifests import refusal
from tests.helpers.tiny_models import save_model, save_nodes
from tests.helpers.views import sample_image


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = save_model(tmp_path / "tiny.onnx", inputs={"image": [1, 3, 24, 36]})
    write_manifest(path, "disparity_affine_invariant")
    return path


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"backend": "tensorrt", "cache_dir": str(tmp_path / "cache")}


# --- what works


def test_it_answers_as_onnx_runtime_does(machine: Machine, model: Path, options: dict) -> None:
    rng = np.random.default_rng(0)
    with (
        open_engine(model, **options) as engine,
        open_engine(model, backend="onnxruntime-cpu") as r,
    ):
        assert engine.backend == "tensorrt"
        first = engine.run(np.zeros((1, 3, 24, 36), np.float32))
        for _ in range(3):
            tensor = rng.random((1, 3, 24, 36), np.float32)
            np.testing.assert_allclose(engine.run(tensor), r.run(tensor), rtol=1e-6)
            named = engine.run_named({"image": tensor})
            np.testing.assert_allclose(named["depth"], r.run(tensor), rtol=1e-6)
        np.testing.assert_array_equal(first, 0)  # the next run does not change the output
        details = engine.details
        assert details["version"] == "10.13.3.9"
        assert details["cuda graph"] == "yes"
        assert details["image to tensor"] == "on the GPU"
        assert details["check"] == "finite 100.00%, correlation 1.000000, relative error 0.000%"
        assert re.match(r"finite 100.00%, correlation 0.9999", details["check of images"])
        assert len(details["key"]) == 64
        assert "Played GPU (compute capability 8.7)" in details["gpu"]
    assert machine.calls.count("build") == 1
    assert "cudaGraphLaunch" in machine.calls


def test_pictures_go_through_the_kernel(machine: Machine, model: Path, options: dict) -> None:
    """Images of changing sizes; the outputs equal those with resizing on the CPU."""
    with (
        open_engine(model, **options) as engine,
        open_engine(model, backend="onnxruntime-cpu") as r,
    ):
        for size in ((48, 72), (48, 72), (31, 40), (48, 72)):
            image = sample_image(*size, seed=size[0])
            expected = r.run(to_tensor(image, engine.manifest.input))
            found = engine.run_image(image)  # type: ignore[attr-defined]
            assert np.abs(found - expected).max() < 2.1 / 255
        with pytest.raises(EngineError, match=r"give .H, W, 3. uint8 RGB"):
            engine.run_image(image[..., 0])  # type: ignore[attr-defined]
    assert machine.leaks == {}


def test_depth_model_takes_the_picture_there(machine: Machine, model: Path, options: dict) -> None:
    image = sample_image(48, 72)
    reference = DepthModel.open(ModelConfig(str(model), backend="onnxruntime-cpu"))
    with DepthModel.open(*configured(model, None, options)) as network, reference:
        machine.calls.clear()
        found = network.predict(image)
        assert machine.calls.count("cuLaunchKernel") == 1
        assert set(network.stage_ms) == {"preprocess", "engine", "postprocess"}
        assert np.abs(found.values - reference.predict(image).values).max() < 2.1 / 255
    assert machine.leaks == {}


def test_ten_cycles_leave_nothing(machine: Machine, model: Path, options: dict) -> None:
    for _ in range(10):
        with open_engine(model, **options) as engine:
            engine.run(np.zeros((1, 3, 24, 36), np.float32))
        assert machine.leaks == {}
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.run(np.zeros((1, 3, 24, 36), np.float32))
        with pytest.raises(EngineError, match="closed"):
            engine.run_image(sample_image(9, 9))  # type: ignore[attr-defined]
    assert machine.calls.count("build") == 1


def test_sizes_left_open_become_the_manifests(
    machine: Machine, tmp_path: Path, options: dict
) -> None:
    path = save_model(tmp_path / "open.onnx", inputs={"image": ["n", 3, "h", "w"]})
    write_manifest(path, "depth_metric", height=28, width=42)
    with open_engine(path, **options) as engine:
        assert engine.run(np.ones((1, 3, 28, 42), np.float32)).shape == (1, 28, 42)


def test_several_outputs(machine: Machine, tmp_path: Path, options: dict) -> None:
    path = save_model(tmp_path / "two.onnx", extra_output=True)
    write_manifest(path, "depth_metric", outputs=("depth", "features"))
    with open_engine(path, **options) as engine:
        found = engine.run_named({"image": np.ones((1, 3, 8, 12), np.float32)})
        assert list(found) == ["depth", "features"]
        np.testing.assert_allclose(found["depth"], 2 * found["features"])


def test_without_a_graph_it_runs_all_the_same(machine: Machine, model: Path, options: dict) -> None:
    machine.fail["cudaStreamEndCapture"] = Error.cudaErrorStreamCaptureUnsupported
    with open_engine(model, **options) as engine:
        assert "no: capturing a graph failed" in engine.details["cuda graph"]
        assert engine.run(np.ones((1, 3, 24, 36), np.float32)).max() == 2


def test_without_nvrtc_pictures_are_resized_on_the_cpu(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cuda.bindings.nvrtc

    def lacking() -> None:
        raise RuntimeError("Failed to dlopen\n libnvrtc.so.13")

    monkeypatch.setattr(cuda.bindings.nvrtc, "nvrtcGetSupportedArchs", lacking)
    with open_engine(model, **options) as engine:
        assert "on the CPU: NVRTC" in engine.details["image to tensor"]
        assert "pip install nvidia-cuda-nvrtc" in engine.details["image to tensor"]
        image = sample_image(48, 72)
        np.testing.assert_array_equal(
            engine.run_image(image),  # type: ignore[attr-defined]
            engine.run(to_tensor(image, engine.manifest.input)),
        )


def test_build_ahead_then_open_without_building(
    machine: Machine, model: Path, options: dict
) -> None:
    told: list[tuple[str, int, int]] = []
    facts = build_engine(
        model, cache_dir=options["cache_dir"], progress=lambda *step: told.append(step)
    )
    assert told == [("tactics", 0, 2), ("tactics", 1, 2), ("tactics", 2, 2)]
    assert machine.leaks == {}
    beside = json.loads(Path(facts["engine file"]).with_suffix(".json").read_text())
    assert beside["key"] == facts["key"]
    identity = beside["identity"]
    assert identity["builder"] == "TensorRT 10.13.3.9"
    assert identity["gpu"] == "Played GPU" and identity["compute_capability"] == "8.7"
    assert identity["shapes"] == {"image": [1, 3, 24, 36]}
    with open_engine(model, build=False, **options) as engine:
        assert engine.details["key"] == facts["key"]
    assert machine.calls.count("build") == 1


def test_an_interrupted_build_ends_and_leaves_nothing(
    machine: Machine, model: Path, options: dict
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(model, cache_dir=options["cache_dir"], progress=stop)
    assert machine.leaks == {}
    assert not list(Path(options["cache_dir"]).glob("*.engine"))


# --- what must be built again


def test_another_tensorrt_gpu_model_or_option_is_another_engine(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = set()

    def opened(**more: Any) -> None:
        with open_engine(model, **options, **more) as engine:
            keys.add(engine.details["key"])

    opened()
    opened()
    assert len(keys) == 1
    opened(workspace_mb=64)
    machine.tensorrt_version = "10.14.1.48"
    machine.install(monkeypatch)
    opened()
    machine.capability = (9, 0)
    machine.install(monkeypatch)
    opened()
    content = model.read_bytes()
    model.write_bytes(content.replace(b"tiny", b"othr"))
    write_manifest(model, "disparity_affine_invariant")
    opened()
    assert len(keys) == 5
    assert machine.calls.count("build") == 5


@pytest.mark.parametrize("harm", ["cut", "flip", "json", "gone", "other"])
def test_a_broken_engine_is_built_anew_or_refused(
    machine: Machine, model: Path, options: dict, harm: str
) -> None:
    plan = Path(build_engine(model, cache_dir=options["cache_dir"])["engine file"])
    about = plan.with_suffix(".json")
    if harm == "cut":
        plan.write_bytes(plan.read_bytes()[:-9])
    elif harm == "flip":
        plan.write_bytes(b"X" + plan.read_bytes()[1:])
    elif harm == "json":
        about.write_text("{")
    elif harm == "gone":
        about.unlink()
    else:
        facts = json.loads(about.read_text())
        facts["identity"]["gpu"] = "Another GPU"
        about.write_text(json.dumps(facts))
    sentence = refusal(model, build=False, **options)
    assert "engine.build is false" in sentence
    assert f"`depth_tools models build {model} --cache-dir {options['cache_dir']}`" in sentence
    with open_engine(model, **options) as engine:
        assert engine.run(np.ones((1, 3, 24, 36), np.float32)).max() == 2
    assert machine.calls.count("build") == 2
    open_engine(model, build=False, **options).close()
    assert machine.leaks == {}


def test_a_whole_engine_that_tensorrt_does_not_take(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version in its key is right, but TensorRT refuses it: it is deleted and built again."""
    build_engine(model, cache_dir=options["cache_dir"])
    import tensorrt

    monkeypatch.setattr(machine, "tensorrt_version", "10.13.3.10")  # what runs; __version__ stays
    assert tensorrt.__version__ == "10.13.3.9"
    sentence = refusal(model, build=False, **options)
    assert "engine.build is false" in sentence
    build_engine(model, cache_dir=options["cache_dir"])
    monkeypatch.setattr(machine, "tensorrt_version", "10.13.3.11")
    with open_engine(model, **options) as engine:
        assert engine.run(np.ones((1, 3, 24, 36), np.float32)).max() == 2
    assert machine.calls.count("build") == 3
    assert machine.leaks == {}


# --- error messages


def test_no_driver(machine: Machine, model: Path, options: dict) -> None:
    machine.driver_version = 0
    assert "no NVIDIA driver: install one" in refusal(model, **options)
    machine.driver_version = 12040
    assert "too old for the CUDA 13.0" in refusal(model, **options)


@pytest.mark.parametrize("version", ["8.6.1.6", "9.3.0", "12.0.0"])
def test_wrong_tensorrt(
    machine: Machine, model: Path, options: dict, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.tensorrt_version = version
    machine.install(monkeypatch)
    sentence = refusal(model, **options)
    assert f"TensorRT {version} is installed, but 10 or 11 is needed" in sentence


def test_tensorrt_8_lacks_what_we_derive_from(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bindings of TensorRT 8.6, that of JetPack 5, have no IProgressMonitor."""
    import depth_node.engine as package

    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.6.1")
    monkeypatch.delattr(sys.modules["tensorrt"], "IProgressMonitor")
    monkeypatch.delitem(sys.modules, "depth_node.engine.trt")
    monkeypatch.delattr(package, "trt")
    assert "TensorRT 8.6.1 is installed, but 10 or 11 is needed" in refusal(model, **options)
    with open_engine(model) as engine:
        assert engine.backend == "onnxruntime-cpu"
        assert "TensorRT 8.6.1 is installed" in engine.details["not tensorrt"]


def test_a_build_process_that_cannot_start(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from depth_node.engine import build_process, trt

    monkeypatch.setattr(trt, "build_apart", build_process.build_apart)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    sentence = refusal(model, **options)
    assert "/nowhere/python (No such file or directory)" in sentence
    assert not machine.leaks


def test_tensorrt_11_takes_the_same_path(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.tensorrt_version = "11.4.0.106"
    machine.install(monkeypatch)
    with open_engine(model, **options) as engine:
        assert engine.details["version"] == "11.4.0.106"


def test_out_of_memory(machine: Machine, model: Path, options: dict) -> None:
    machine.memory = 3000
    sentence = refusal(model, **options)
    assert re.search(
        r"image of tiny \(GPU memory\) needs 0 MB and 0 of the 0 MB of Played", sentence
    )
    assert machine.leaks == {}
    machine.memory = 8_000_000_000
    machine.fail["create_execution_context"] = Error.cudaErrorMemoryAllocation
    sentence = refusal(model, **options)
    assert "cannot be started" in sentence and "memory could not be allocated" in sentence
    machine.fail.clear()
    machine.tensorrt_errors = ["[defaultAllocator.cpp] OutOfMemory (Requested size was 9 GB)"]
    sentence = refusal(model, **options, workspace_mb=512)
    assert "with engine.workspace_mb: 512" in sentence and "Requested size was 9 GB" in sentence
    assert "raise engine.workspace_mb" in sentence
    elsewhere = {**options, "cache_dir": options["cache_dir"] + "2"}
    sentence = refusal(model, **elsewhere)
    assert "building the engine of tiny needs 8000 MB and 8000 of the 8000 MB" in sentence
    assert machine.leaks == {}


def test_a_decoder_that_takes_much_of_a_small_gpu_is_told(
    machine: Machine, tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model(tmp_path / "decoder.onnx", inputs={"points": [64, 3, 4, 4]})
    write_manifest(path, "prompt_masks", height=24, width=36, outputs=("depth",))
    with open_engine(path, **options) as engine:
        assert "warning" not in engine.details
    machine.memory = 5_000_000
    with open_engine(path, **options) as engine:
        assert "decoder takes 1 of the GPU's 5 MB while it runs" in engine.details["warning"]
        assert "fewer than 64 points" in engine.details["warning"]
        assert "--batch 16" in engine.details["warning"]
    machine.fail["create_execution_context"] = Error.cudaErrorMemoryAllocation
    machine.memory = 900_000
    assert "--batch 16" in refusal(path, **options)


def test_a_model_that_cannot_be_built(machine: Machine, model: Path, options: dict) -> None:
    machine.tensorrt_errors = ["Could not find any implementation for node {ForeignNode}"]
    sentence = refusal(model, **options)
    assert "cannot build an engine" in sentence and "ForeignNode" in sentence
    assert machine.leaks == {}


def test_a_file_that_tensorrt_cannot_read(machine: Machine, model: Path, options: dict) -> None:
    from depth_node.engine.manifest import model_sha256

    model.write_bytes(model.read_bytes()[:-40])
    facts = manifest_path(model).read_text()
    facts = re.sub("sha256: .*", f"sha256: {model_sha256(model)}", facts)
    manifest_path(model).write_text(facts)
    sentence = refusal(model, **options)
    assert "cannot read" in sentence and "importModel" in sentence


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "input_name: image",
            "input_name: pixels",
            "takes image and gives depth, its manifest says",
        ),
        ("output_name: depth", "output_name: deep", r"manifest says image and deep: correct"),
        ("height: 24", "height: 48", r"takes image of shape \(1, 3, 24, 36\).*\(1, 3, 48, 36\)"),
        ("dtype: float32", "dtype: float16", "type float32, its manifest says .* and float16"),
    ],
)
def test_names_that_differ_from_the_manifest(
    machine: Machine, model: Path, options: dict, old: str, new: str, told: str
) -> None:
    text = manifest_path(model).read_text()
    assert old in text
    manifest_path(model).write_text(text.replace(old, new))
    sentence = refusal(model, **options)
    assert re.search(told, sentence)
    assert machine.leaks == {}


def test_a_run_that_fails(machine: Machine, model: Path, options: dict) -> None:
    with open_engine(model, **options) as engine:
        machine.fail["cudaStreamSynchronize"] = Error.cudaErrorIllegalAddress
        with pytest.raises(EngineError, match="running the network failed on the GPU"):
            engine.run(np.ones((1, 3, 24, 36), np.float32))
        machine.fail.clear()
    assert machine.leaks == {}
    machine.fail["execute_async_v3"] = Error.cudaErrorIllegalAddress
    assert "failed to run on TensorRT (Cask convolution execution)" in refusal(model, **options)
    assert machine.leaks == {}


@pytest.mark.parametrize(
    "call", ["cudaStreamCreateWithFlags", "cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync"]
)
def test_nothing_is_kept_after_a_partial_failure(
    machine: Machine, model: Path, options: dict, call: str
) -> None:
    build_engine(model, cache_dir=options["cache_dir"])
    machine.fail[call] = Error.cudaErrorInvalidValue
    assert "cudaErrorInvalidValue" in refusal(model, **options)
    assert machine.leaks == {}


# --- the check, and what happens when it fails


def spoiled(machine: Machine, monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    """Let the simulated TensorRT give wrong outputs, as 10.3 does."""
    import tensorrt

    runtime = tensorrt.Runtime

    class Wrong(runtime):  # type: ignore[misc, valid-type]
        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            engine = super().deserialize_cuda_engine(serialized_engine)
            session = engine._session

            class Session:
                def run(self, names: Any, given: Any) -> list[np.ndarray]:
                    return [spoil(output) for output in session.run(names, given)]

            engine._session = Session()
            return engine

    monkeypatch.setattr(tensorrt, "Runtime", Wrong)


def bent(output: np.ndarray) -> np.ndarray:
    rows = np.linspace(0, 1, output.shape[-2], dtype=np.float32)[:, None]
    return output + rows * output.std()


def holed(output: np.ndarray) -> np.ndarray:
    output = output.copy()
    output[..., 0, 0] = np.nan
    return output


@pytest.mark.parametrize(
    ("spoil", "told"), [(bent, "correlation"), (holed, "values are finite"), (lambda o: -o, "corr")]
)
def test_a_wrong_engine_is_refused(
    machine: Machine,
    model: Path,
    options: dict,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Any,
    told: str,
) -> None:
    spoiled(machine, monkeypatch, spoil)
    sentence = refusal(model, **options)
    assert "does not answer as ONNX Runtime on the CPU does" in sentence and told in sentence
    assert "engine.on_failure" in sentence
    assert machine.leaks == {}


def test_scale_and_shift_alone_are_no_fault_of_a_relative_network(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoiled(machine, monkeypatch, lambda output: 3 * output + 1)
    open_engine(model, **options).close()
    metric = save_model(tmp_path / "metric.onnx")
    write_manifest(metric, "depth_metric")
    assert "relative error" in refusal(metric, **options)


def test_limits_of_the_manifest_hold(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(machine, monkeypatch, bent)
    text = manifest_path(model).read_text()
    manifest_path(model).write_text(text + "limits: {correlation: 0.5, relative_error: 0.9}\n")
    open_engine(model, **options).close()
    manifest_path(model).write_text(text + "limits: {corelation: 0.5}\n")
    assert "unknown key limits.corelation; did you mean limits.correlation?" in refusal(
        model, **options
    )
    manifest_path(model).write_text(text + "limits: {correlation: high}\n")
    assert "limits.correlation is 'high': give a number" in refusal(model, **options)


def test_on_engine_failure_cpu(
    machine: Machine,
    model: Path,
    options: dict,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoiled(machine, monkeypatch, bent)
    with caplog.at_level(logging.WARNING, "depth_node.engine"):
        engine = open_engine(model, on_failure="cpu", **options)
    with engine:
        assert engine.backend == "onnxruntime-cpu"
        assert "tensorrt file: the engine of model tiny" in engine.details["replaced"]
    assert "so engine.on_failure: cpu" in caplog.text
    assert machine.leaks == {}


def half_copy(model: Path, factor: float = 1.0) -> Path:
    """A copy beside the model, as `models convert` makes it; `factor` changes its outputs."""
    path = converted_path(model, "fp16")
    save_nodes(
        path,
        [
            ("ReduceMean", ["image", "axes"], ["mean"]),
            ("Squeeze", ["mean", "axes"], ["flat"]),
            ("Mul", ["flat", "two"], ["scaled"]),
            ("Pow", ["scaled", "power"], ["output"]),
        ],
        shape=(1, 3, 24, 36),
        constants={"two": [2.0], "power": [factor]},
        whole={"axes": [1]},
    )
    write_manifest(path, "disparity_affine_invariant")
    return path


def test_precision_fp16_takes_the_copy_and_checks_it_against_the_file(
    machine: Machine, model: Path, options: dict
) -> None:
    sentence = refusal(model, precision="fp16", **options)
    assert f"`depth_tools models convert {model} --precision fp16`" in sentence
    half_copy(model)
    with open_engine(model, precision="fp16", **options) as engine:
        assert engine.details["model"].endswith("tiny.fp16.onnx")
        assert engine.details["precision"] == "fp16"
        assert "correlation 1.0" in engine.details["check"]
    sentence = refusal(model, precision="fp16", build=False, **options, workspace_mb=9)
    assert f"models build {model} --precision fp16 --workspace-mb 9" in sentence


def test_on_engine_failure_fp32(machine: Machine, model: Path, options: dict) -> None:
    half_copy(model, factor=3.0)
    assert "correlation" in refusal(model, precision="fp16", **options)
    with open_engine(model, precision="fp16", on_failure="fp32", **options) as engine:
        assert engine.backend == "tensorrt"
        assert engine.details["precision"] == "file"
        assert engine.details["replaced"].startswith("tensorrt fp16: the engine of model tiny.fp16")
    with open_engine(model, precision="fp16", on_failure="cpu", **options) as engine:
        assert engine.backend == "onnxruntime-cpu"
    assert machine.leaks == {}


def test_fp32_has_nothing_to_fall_back_to_where_the_file_itself_fails(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled(machine, monkeypatch, bent)
    assert "does not answer" in refusal(model, on_failure="fp32", **options)


def test_known_bad_versions_warn_by_name(
    machine: Machine,
    model: Path,
    options: dict,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine.tensorrt_version = "10.3.0"
    machine.install(monkeypatch)
    open_engine(model, **options).close()
    assert "TensorRT 10.3" not in caplog.text  # its known fault concerns transformers only
    write_manifest(model, "disparity_affine_invariant", patch_size=12)
    with open_engine(model, **options) as engine:
        assert "TensorRT 10.3.0 is known to give wrong depth" in engine.details["warning"]
    assert (
        "TensorRT 10.3.0 is known to give wrong depth for transformers such as tiny" in caplog.text
    )


def test_the_references_answer_is_kept(
    machine: Machine, model: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_engine(model, **options).close()
    (kept,) = Path(options["cache_dir"]).glob("*.reference.npz")
    asked: list[int] = []
    from depth_node.engine import ort

    def noted(self: Any, tensors: Any) -> Any:
        asked.append(1)
        raise EngineError("the reference is asked again")

    monkeypatch.setattr(ort.OrtEngine, "run_named", noted)
    open_engine(model, **options).close()
    assert not asked
    kept.write_bytes(b"broken")
    with pytest.raises(EngineError, match="asked again"):
        open_engine(model, **options)
    assert machine.leaks == {}


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "depth_node" / "engines"


def test_the_users_cache_folder_is_the_default(
    machine: Machine, model: Path, no_cache: Path
) -> None:
    with open_engine(model, backend="tensorrt") as engine:
        assert Path(engine.details["engine file"]).parent == no_cache
    # The stored outputs of the reference and the engine are in one folder.
    reference = Reference.of(model, engine.manifest, no_cache)
    assert reference.image.shape[2] == 3
    assert list(no_cache.glob("*.reference.npz"))


# --- on a real machine


@pytest.mark.gpu
def test_ten_cycles_on_the_real_gpu_leave_its_memory_where_it_was(tmp_path: Path) -> None:
    why = backends()["tensorrt"]
    if why:
        pytest.skip(f"no TensorRT: {why}")
    from depth_node.engine import cuda

    def once() -> None:
        with open_engine("embedded", backend="tensorrt", cache_dir=str(tmp_path)) as engine:
            engine.run_image(sample_image(480, 640))  # type: ignore[attr-defined]

    def free() -> int:
        with cuda.Gpu() as gpu:
            return int(gpu.memory()[0])

    once()
    before = free()
    for _ in range(10):
        once()
    assert before - free() < 5_000_000
