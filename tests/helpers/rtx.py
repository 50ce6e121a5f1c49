# SPDX-License-Identifier: Apache-2.0
"""A real TensorRT on a machine without a GPU: TensorRT-RTX, whose libraries are on PyPI.

Its parser, type checks, optimiser and memory planner are those that a robot uses; kernels are
chosen only on a GPU, so nothing here shows how fast or how accurate an engine is. The wheels
(230 MB, NVIDIA's licence, never shipped) are fetched once into a cache folder, and every call runs
in a fresh interpreter, because the library sometimes ends its process.

``python -m tests.helpers.rtx traffic`` prints the table of docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPO
from tests.helpers.bindings import CUDA, PATHFINDER, _fetched, cache_folder, tensorrt_problems

VERSION = "1.7.1.116"
LIBRARIES = f"tensorrt-rtx-cu13-libs=={VERSION}"
BINDINGS = f"tensorrt-rtx-cu13-bindings=={VERSION}"
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
FUSED_ATTENTION = "_gemm_mha"  # prefix of TensorRT's name for the kernel of a whole attention


def missing(reason: str) -> None:
    """Skip, or fail if the environment promises the part (REQUIRE_TENSORRT_RTX=1)."""
    if os.environ.get("REQUIRE_TENSORRT_RTX") == "1":
        pytest.fail(f"{reason} (REQUIRE_TENSORRT_RTX=1 promises it)")
    pytest.skip(reason)


@functools.cache
def folders() -> tuple[Path, ...]:
    """Return the folders of the fetched wheels; skip if they cannot be had."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        missing(f"TensorRT-RTX has no wheels for {sys.platform} on {os.uname().machine}")
    found = []
    for requirement in (LIBRARIES, BINDINGS, CUDA[-1], PATHFINDER):
        folder, reason = _fetched(requirement)
        if reason:
            missing(f"{requirement} cannot be fetched ({reason})")
        found.append(folder)
    return tuple(found)


def environment() -> dict[str, str]:
    """Return the environment of an interpreter that imports the wheels as `tensorrt`, and this
    project.
    """
    named = cache_folder() / "rtx-as-tensorrt"
    named.mkdir(parents=True, exist_ok=True)
    text = "from tests.helpers.rtx import tensorrt_module\n\ntensorrt_module()\n"
    if not (named / "tensorrt.py").is_file() or (named / "tensorrt.py").read_text() != text:
        (named / "tensorrt.py").write_text(text)
    paths = [str(REPO), str(named), *map(str, folders())]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def started(question: str, given: Any) -> subprocess.Popen[str]:
    """Start a function of this file in a fresh interpreter with the library; return the process."""
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.helpers.rtx", question],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=REPO,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(given))
    child.stdin.close()
    child.stdin = None
    return child


def ask(question: str, given: Any, timeout_s: float = 300) -> Any:
    """Call a function of this file in a fresh interpreter with the library; JSON in and out."""
    child = started(question, given)
    try:
        output, errors = child.communicate(timeout=timeout_s)
    finally:
        child.kill()
    assert child.returncode == 0, errors[-2000:]
    return json.loads(output.splitlines()[-1])


def built(model: Path, **options: Any) -> dict[str, Any]:
    """Run :func:`build` in a fresh interpreter."""
    found: dict[str, Any] = ask("build", {"model": str(model), **options})
    return found


# --- in the fresh interpreter --------------------------------------------------------------------


def tensorrt_module() -> Any:
    """Import the bindings under the full package's name and let them build for a stated GPU.

    The full TensorRT builds for the machine's GPU, this one for any: the environment variable
    DEPTH_NODE_TEST_CAPABILITY gives the compute capability.
    """
    import tensorrt_rtx_bindings as module

    builder = module.Builder

    class Builder(builder):  # type: ignore[misc, valid-type]
        def create_builder_config(self) -> Any:
            config = builder.create_builder_config(self)
            capability = os.environ.get("DEPTH_NODE_TEST_CAPABILITY", "8.6").replace(".", "")
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(module.ComputeCapability, f"SM{capability}"), 0)
            config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
            return config

    module.Builder = Builder
    sys.modules["tensorrt"] = module
    return module


def problems(used: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what the library lacks, or takes with other parameters, of trt.USED."""
    import tensorrt_rtx_bindings

    sys.modules["tensorrt_bindings"] = tensorrt_rtx_bindings
    return tensorrt_problems(used)


class PlayedGpu:
    """The part of a GPU that build_plan uses."""

    name = "no GPU"

    def memory(self) -> tuple[int, int]:
        return 8_000_000_000, 8_000_000_000

    def out_of_memory_error(self, size: int, purpose: str) -> Exception:
        from depth_node.engine import EngineError

        return EngineError(f"{purpose} needs {size / 1e6:.0f} MB")


class _Lines(logging.Handler):
    """Log handler that keeps TensorRT's lines."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def build(given: Mapping[str, Any]) -> dict[str, Any]:
    """Build a model's engine by engine/trt.py; return its layers, messages and build time.

    given: model; capability ("8.6"); workspace_mb; manifest (a path; default: beside the model);
    apart: build in a process of its own, as a robot does; its layers are then unknown.
    """
    os.environ["DEPTH_NODE_TEST_CAPABILITY"] = given.get("capability", "8.6")
    tensorrt_module()
    from depth_node.engine import EngineError, trt
    from depth_node.engine.manifest import Manifest, manifest_path

    model = Path(given["model"])
    manifest = Manifest.load(given.get("manifest") or manifest_path(model))
    handler = _Lines()
    log = logging.getLogger("depth_node.engine")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if not given.get("apart"):
        trt.build_apart = lambda _, *rest: trt.build_here(*rest)  # so that we receive its log
    start = time.monotonic()
    plan, sentence = b"", ""
    try:
        plan = trt.build_plan(model, manifest, given.get("workspace_mb", 0), PlayedGpu(), None)
    except EngineError as error:
        sentence = str(error)
    layers = _layers(handler.lines)
    return {
        "bytes": len(plan),
        "sentence": sentence,
        "warnings": [line for line in handler.lines if line.startswith("TensorRT warns")],
        "layers": layers,
        "traffic": sum(size for layer in layers for _, _, size in layer["tensors"]),
        "scratch": _scratch(handler.lines),
        "seconds": round(time.monotonic() - start, 1),
    }


_WIDTH = {"Float": 4, "Half": 2, "Int64": 8, "Int32": 4, "Int8": 1, "UInt8": 1, "Bool": 1}


def _layers(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Return the layers of an engine from the detailed log: name, kind, ONNX nodes, tensors.

    A tensor is ("in" or "out", type, bytes); constants are left out.
    """
    found = []
    for line in "\n".join(lines).splitlines():
        match = re.match(r"(?:TensorRT: )?Name: (\S+), LayerType: (\w+), (Inputs: .*)$", line)
        if not match:
            continue
        parts = re.match(r"Inputs: (.*?), Constants: .*?, Outputs: (.*?), TacticName", match[3])
        tensors = []
        for side, text in zip(("in", "out"), parts.groups() if parts else (), strict=False):
            for dims, kind in re.findall(r"Dimensions: \[([\d,]*)\].*?Datatype: (\w+)", text):
                count = math.prod(int(n) for n in dims.split(",") if n)
                tensors.append((side, kind, count * _WIDTH.get(kind, 4)))
        nodes = re.findall(r"\[ONNX Layer: ([^\]]*)\]", line)
        found.append({"name": match[1], "kind": match[2], "nodes": nodes, "tensors": tensors})
    return found


def _scratch(lines: Sequence[str]) -> int:
    """Return the bytes that a run of the engine needs on the GPU besides weights, from the log."""
    return sum(int(n) for n in re.findall(r"Scratch Memory: (\d+) bytes", "\n".join(lines)))


def children_of(process: int) -> list[int]:
    """Return the ids of engine builds whose command line names this parent process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = status.read_bytes().split(b"\0")
            if b"depth_node.engine.trt" in words and str(process).encode() in words:
                found.append(int(status.parent.name))
    return found


def _plan(given: Mapping[str, Any], progress: Any = None) -> bytes:
    """Build the engine in a process of its own and return it."""
    from depth_node.engine import trt
    from depth_node.engine.manifest import Manifest, manifest_path

    model = Path(given["model"])
    return trt.build_plan(model, Manifest.load(manifest_path(model)), 0, PlayedGpu(), progress)


def interrupted(given: Mapping[str, Any]) -> str:
    """Build until a signal arrives; print a line for every step, then the name of the exception."""
    try:
        _plan(given, lambda *step: print("step", *step, flush=True))
    except BaseException as error:
        print(type(error).__name__, flush=True)
        if not isinstance(error, KeyboardInterrupt):
            raise
        raise SystemExit(0) from None
    return "built"


def stopped(given: Mapping[str, Any]) -> dict[str, Any]:
    """Build, and stop it by an exception from the progress callback or by the cancel function.

    given: how, "raises" or another; model.
    """
    from depth_node.engine import trt
    from depth_node.engine.build_process import BuildError

    class TiredError(Exception):
        pass

    def tired(phase: str, done: int, total: int) -> None:
        raise TiredError

    start = time.monotonic()
    ended = ""
    try:
        if given["how"] == "raises":
            _plan(given, tired)
        else:
            trt.build_here({**given, "shapes": {}, "workspace_mb": 0}, None, lambda: True)
    except TiredError:
        ended = "Tired"
    except BuildError as error:
        ended = error.args[0]
    return {"ended": ended, "seconds": time.monotonic() - start}


def crashed(given: Mapping[str, Any]) -> str:
    """Return the error message if SIGSEGV ends the process of a build at its first step."""
    from depth_node.engine import EngineError

    def crash(phase: str, done: int, total: int) -> None:
        for process in children_of(os.getpid()):
            os.kill(process, signal.SIGSEGV)

    try:
        _plan(given, crash)
    except EngineError as error:
        return str(error)
    return "built"


def peak_of_conversion(given: Mapping[str, Any]) -> float:
    """Return the peak memory of converting a file to FP16, GB."""
    from tests.helpers.rtx_networks import fp16_file

    fp16_file(Path(given["model"]), 1)
    # Not getrusage, because a process inherits its parent's maximum.
    status = Path("/proc/self/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1e6


def damaged(given: Mapping[str, Any]) -> list[str]:
    """Return the library's errors for an intact plan, one with its first byte flipped and one with
    a byte in the middle flipped.
    """
    from depth_node.engine import trt

    plan = _plan(given)
    runtime = trt.trt.Runtime(trt._logger())
    found = []
    for place in (None, 0, len(plan) // 2):
        content = bytearray(plan)
        if place is not None:
            content[place] ^= 0xFF
        trt._logger().errors.clear()
        assert runtime.deserialize_cuda_engine(bytes(content)) is None  # there is no GPU
        found.append(trt._logger().error_text())
    return found


if __name__ == "__main__":
    if sys.argv[1] == "traffic":
        from tests.helpers import rtx_networks

        rtx_networks.print_traffic(sys.argv[2:])
    else:
        print(json.dumps(globals()[sys.argv[1]](json.load(sys.stdin))))
