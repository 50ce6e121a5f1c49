# SPDX-License-Identifier: Apache-2.0
"""Order of the back ends, skipped back ends, and no silent fallback to the CPU.

ONNX Runtime on the CPU stands in for every engine here.
"""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.engine import BackendError, EngineError, opening
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.opening import AUTO
from depth_node.engine.options import REFERENCE, OpenRequest
from depth_node.inference import open_engine

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from depth_node.engine import ort
from tests.helpers.tiny_models import save_model, save_nodes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = save_model(tmp_path / "tiny.onnx")
    write_manifest(path, "depth_metric")
    return path


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Every back end except the CPU is "not here"; tests replace the ones that they need."""
    table = dict(opening._BACKENDS)
    for name in table:
        if name != REFERENCE:
            table[name] = opening._Backend(_never, lambda name=name: f"{name} is not here")
    monkeypatch.setattr(opening, "_BACKENDS", table)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return table


def _never(job: OpenRequest) -> Any:
    raise AssertionError("it was opened")


class Played(ort.OrtEngine):
    """ONNX Runtime on the CPU under another name; its outputs are multiplied by 1 + bend."""

    def __init__(self, job: OpenRequest, backend: str, bend: float = 0.0) -> None:
        self._bend = bend
        super().__init__(job.model, job.manifest)
        self.backend = backend
        self.closed = False

    def run_named(self, tensors: Any) -> dict[str, np.ndarray]:
        found = super().run_named(tensors)
        return {name: value * (1 + self._bend) for name, value in found.items()}

    def close(self) -> None:
        self.closed = True
        super().close()


def usable(name: str, bend: float = 0.0, opened: list | None = None) -> Any:
    def make(job: OpenRequest) -> Played:
        engine = Played(job, name, bend)
        if opened is not None:
            opened.append(engine)
        return engine

    return opening._Backend(make, lambda: "")


def test_auto_takes_the_first_that_can_be_used(played: dict, model: Path) -> None:
    with open_engine(model) as engine:
        assert engine.backend == "onnxruntime-cpu"
        assert engine.details["not tensorrt"] == "tensorrt is not here"
        assert engine.details["not onnxruntime-cuda"] == "onnxruntime-cuda is not here"
        assert engine.details["check"] == "is the reference"
    played["onnxruntime-cuda"] = usable("onnxruntime-cuda")
    with open_engine(model) as engine:
        assert engine.backend == "onnxruntime-cuda"
        assert engine.details["check"].startswith("finite 100.00%, correlation 1.0")
    played["tensorrt"] = usable("tensorrt")
    with open_engine(model) as engine:
        assert engine.backend == "tensorrt"
        assert not [key for key in engine.details if key.startswith("not ")]
    assert AUTO == ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")


def test_the_fallback_order_is_kept_and_logged(
    played: dict, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = ("onnxruntime-tensorrt", "onnxruntime-cpu", "onnxruntime-cuda")
    played["onnxruntime-cuda"] = opening._Backend(_never, lambda: "")
    with (
        caplog.at_level(logging.WARNING, "depth_node.engine"),
        open_engine(model, backend="tensorrt", fallback=order) as engine,
    ):
        assert engine.backend == "onnxruntime-cpu"
    told = [record.message for record in caplog.records]
    assert told == [
        "back end tensorrt cannot be used here: tensorrt is not here",
        "back end onnxruntime-tensorrt cannot be used here: onnxruntime-tensorrt is not here",
    ]


def test_without_a_fallback_nothing_else_runs(played: dict, model: Path) -> None:
    with pytest.raises(EngineError, match=r"tensorrt is not here, or use onnxruntime-cpu"):
        open_engine(model, backend="tensorrt")
    with pytest.raises(EngineError, match=r"tensorrt: tensorrt is not here; onnxruntime-cuda:"):
        open_engine(model, backend="tensorrt", fallback=("onnxruntime-cuda",))
    with pytest.raises(EngineError, match="did you mean onnxruntime-cuda"):
        open_engine(model, backend="tensorrt", fallback=("onnxruntime-cud",))
    with open_engine(model, backend="tensorrt", on_failure="cpu") as engine:
        assert engine.backend == "onnxruntime-cpu"
        assert engine.details["not tensorrt"] == "tensorrt is not here"


def test_a_back_end_that_fails_to_start_is_passed_over(played: dict, model: Path) -> None:
    def broken(job: OpenRequest) -> Any:
        raise BackendError("its libraries are missing")

    played["onnxruntime-cuda"] = opening._Backend(broken, lambda: "")
    with open_engine(model) as engine:
        assert engine.backend == "onnxruntime-cpu"
        assert engine.details["not onnxruntime-cuda"] == "its libraries are missing"
    with pytest.raises(EngineError, match="its libraries are missing, or use"):
        open_engine(model, backend="onnxruntime-cuda")


def test_an_engine_that_is_wrong_is_no_reason_for_the_next_back_end(
    played: dict, model: Path
) -> None:
    """Wrong outputs do not make a back end missing: only on_failure decides what is done."""
    opened: list[Played] = []
    played["tensorrt"] = usable("tensorrt", bend=0.1, opened=opened)
    with pytest.raises(EngineError, match=r"relative error 10.00% is above 0.50%"):
        open_engine(model)
    with pytest.raises(EngineError, match="does not answer as"):
        open_engine(model, backend="tensorrt", fallback=("onnxruntime-cpu",))
    with open_engine(model, on_failure="cpu") as engine:
        assert engine.backend == "onnxruntime-cpu"
        assert "relative error 10.00%" in engine.details["replaced"]
    assert all(engine.closed for engine in opened)


def test_an_engine_is_closed_whatever_ends_its_check(
    played: dict, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if Ctrl-C ends it, which is not an EngineError; the engine would keep GPU memory."""
    opened: list[Played] = []
    played["tensorrt"] = usable("tensorrt", opened=opened)

    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_engine(model, backend="tensorrt")
    assert [engine.closed for engine in opened] == [True]


def test_a_half_copy_is_checked_on_the_cpu_too(played: dict, model: Path) -> None:
    copy = save_nodes(
        model.with_name("tiny.fp16.onnx"),
        [("ReduceMean", ["image", "axes"], ["mean"]), ("Mul", ["mean", "factor"], ["output"])],
        constants={"factor": [2.2]},
        whole={"axes": [1]},
    )
    write_manifest(copy, "depth_metric")
    options = {"precision": "fp16", "backend": "onnxruntime-cpu"}
    with pytest.raises(EngineError, match=r"shape \(1, 1, 8, 12\), the reference's \(1, 8, 12\)"):
        open_engine(model, **options)
    with open_engine(model, **options, on_failure="fp32") as engine:
        assert engine.details["precision"] == "file"


def test_a_half_installed_back_end_has_a_sentence(
    played: dict, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: Exception = ImportError("libnvinfer.so.10: cannot open shared object file")

    def missing() -> str:
        raise error

    played["tensorrt"] = opening._Backend(_never, missing)
    with pytest.raises(EngineError, match=r"cannot be imported \(libnvinfer.so.10"):
        open_engine(model, backend="tensorrt")
    error = AttributeError("module 'tensorrt' has no attribute 'ILogger'")
    with pytest.raises(EngineError, match=r"cannot be imported \(module 'tensorrt' has no"):
        open_engine(model, backend="tensorrt")


def test_an_old_cuda_python_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 12.6 cuda-python had `cuda` without `cuda.bindings`."""
    asked: list[str] = []

    def found(name: str) -> object | None:
        asked.append(name)
        if name == "cuda.bindings":
            raise ModuleNotFoundError("No module named 'cuda'")
        return object()

    monkeypatch.setattr(opening, "find_spec", found)
    why = opening.backends()["tensorrt"]
    assert why == "no module cuda.bindings: pip install 'cuda-python>=12.6'"
    assert "tensorrt" in asked


def test_options_that_are_none(model: Path) -> None:
    with pytest.raises(EngineError, match="on_failure must be one of error, cpu, fp32"):
        open_engine(model, on_failure="gpu")
    with pytest.raises(EngineError, match="precision must be one of file, fp16"):
        open_engine(model, precision="int8")
    with pytest.raises(EngineError, match="unexpected keyword argument 'colour'"):
        open_engine(model, colour=1)
    with pytest.raises(EngineError, match="cache_mb must be at least 1"):
        open_engine(model, cache_mb=0)


def test_a_home_that_does_not_exist_is_a_sentence(model: Path) -> None:
    nobody = "~no-such-user-here/tiny"
    for given, key in (
        ((f"{nobody}.onnx", {}), "model file ~no-such-user-here/tiny.onnx does not exist"),
        ((model, {"manifest": nobody}), "manifest ~no-such-user-here/tiny does not exist"),
        ((model, {"cache_dir": nobody}), "engine.cache_dir is ~no-such-user-here/tiny"),
    ):
        with pytest.raises(EngineError, match=key):
            open_engine(given[0], **given[1])


# --- ONNX Runtime's GPU providers


def test_a_provider_that_this_onnxruntime_has_not(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"no CUDAExecutionProvider: pip uninstall onnxruntime"):
        open_engine(model, backend="onnxruntime-cuda")
    with pytest.raises(EngineError, match="no TensorrtExecutionProvider"):
        open_engine(model, backend="onnxruntime-tensorrt")


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_provider_is_never_silently_the_cpu(
    model: Path, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real session, for which ONNX Runtime itself falls back to the CPU without an error."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime may really run on a GPU")
    wanted = ort._PROVIDERS[provider][0]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [wanted])
    with pytest.raises(EngineError, match=f"on CPUExecutionProvider instead of {wanted}"):
        open_engine(model, backend=f"onnxruntime-{provider}")


def test_the_job_of_a_back_end_is_the_copy_it_is_to_run(played: dict, model: Path) -> None:
    jobs: list[OpenRequest] = []

    def noted(job: OpenRequest) -> Played:
        jobs.append(job)
        return Played(job, "tensorrt")

    played["tensorrt"] = opening._Backend(noted, lambda: "")
    open_engine(model, workspace_mb=7).close()
    (job,) = jobs
    assert job.model == model and job.engine.workspace_mb == 7
    assert dataclasses.replace(job, progress=None) == job


# --- a network with an endless loop


ENDLESS = """
import sys
from pathlib import Path
import numpy as np, onnx
from onnx import TensorProto, helper
from depth_node.engine import protocol
from depth_node.engine.manifest import Manifest, manifest_path, model_sha256
from depth_node.engine.preprocess import InputSpec
from depth_node.inference import open_engine

INT, BOOL, FLOAT = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT
value = helper.make_tensor_value_info
body = helper.make_graph(
    [helper.make_node("Identity", ["go"], ["on"]),
     helper.make_node("Add", ["x", "x"], ["y"])],
    "body",
    [value("i", INT, []), value("go", BOOL, []), value("x", FLOAT, [1, 3, 8, 12])],
    [value("on", BOOL, []), value("y", FLOAT, [1, 3, 8, 12])],
)
graph = helper.make_graph(
    [helper.make_node("Loop", ["trips", "", "image"], ["depth"], body=body)],
    "endless",
    [value("image", FLOAT, [1, 3, 8, 12])],
    [value("depth", FLOAT, [1, 3, 8, 12])],
    [helper.make_tensor("trips", INT, [], [2**62])],
)
path = Path(sys.argv[1])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
onnx.save(model, str(path))
Manifest("endless", path.name, model_sha256(path), "image", InputSpec(8, 12), "depth",
         "depth_metric").save(manifest_path(path))
protocol._SLOW_S = 0.5
open_engine(path, backend="onnxruntime-cpu")
"""


def test_a_network_that_never_ends_says_what_is_being_tried(tmp_path: Path) -> None:
    """The warning comes while the library runs, and names the command that ends it."""
    path = tmp_path / "endless.onnx"
    command = [sys.executable, "-c", ENDLESS, str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    patience = threading.Timer(60, process.kill)  # without the warning no line would arrive
    patience.start()
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert process.poll() is None, line
        assert f"still opening model {path} on onnxruntime-cpu" in line
        assert f"`kill -9 {process.pid}`" in line
    finally:
        patience.cancel()
        process.kill()
        process.communicate()
