# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels: source, NumPy twins, and the code on the CPU that does the same.

Every test of a kernel runs twice: its source compiled for this CPU, through the whole of
engine/cuda.py (gpu_on_cpu.py), and on the GPU where there is one.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.engine import EngineError, gpu_kernels
from depth_node.engine.gpu_kernels import Line, Resampling
from depth_node.engine.preprocess import InputSpec

pytest.importorskip("onnxruntime")
from tests.helpers.gpu_on_cpu import Error, Machine


def played(machine: Machine) -> Any:
    return importlib.import_module("depth_node.engine.cuda")


def test_all_is_given_back(machine: Machine) -> None:
    cuda = played(machine)
    for _ in range(10):
        with cuda.Gpu() as gpu:
            loaded = cuda.CompiledKernels(gpu)
            array = gpu.pinned((4, 5), "float32", "numbers")
            place = gpu.allocate(array.nbytes, "numbers")
            launch = gpu.capture(lambda gpu=gpu, a=array, p=place: gpu.upload(p, a))
            launch()
            values = np.ones((8, 9), np.float32)
            line = Line("depth", 1, 0, 0.1, 9, 0.1, 9)
            cuda.prepare_grid(loaded, values, values, line)
        gpu.close()
        assert machine.leaks == {}


def test_a_failure_half_way_gives_back_what_was_taken(machine: Machine) -> None:
    cuda = played(machine)
    spec = InputSpec(8, 12)
    how = Resampling.of(20, 30, spec)
    with cuda.Gpu() as gpu:
        loaded = cuda.CompiledKernels(gpu)
        place = gpu.allocate(4 * 3 * 8 * 12, "the tensor")
        before = {kind: len(held) for kind, held in machine.live.items()}
        machine.memory = machine.used() + 2000  # enough for the image, not for the tables
        with pytest.raises(EngineError, match=r"resizing tables|the image"):
            cuda.ImageInput(loaded, 20, 30, how, place)
        assert {kind: len(held) for kind, held in machine.live.items()} == before
        machine.memory = 10**9
        cuda.ImageInput(loaded, 20, 30, how, place).close()
        assert {kind: len(held) for kind, held in machine.live.items()} == before
    assert machine.leaks == {}


def test_a_graph_replays_and_a_failed_capture_ends(machine: Machine) -> None:
    cuda = played(machine)
    with cuda.Gpu() as gpu:
        array = gpu.pinned((3,), "float32", "numbers")
        back = gpu.pinned((3,), "float32", "numbers")
        place = gpu.allocate(array.nbytes, "numbers")

        def work() -> None:
            gpu.upload(place, array)
            gpu.download(back, place)

        array[...], back[...] = 1, 0
        launch = gpu.capture(work)
        np.testing.assert_array_equal(back, 0)  # captured, not executed
        array[...] = 2
        launch()
        np.testing.assert_array_equal(back, 2)
        machine.fail["cudaGraphInstantiate"] = Error.cudaErrorStreamCaptureUnsupported
        with pytest.raises(EngineError, match="making a graph failed"):
            gpu.capture(work)
        assert machine.recording is None and not machine.live["graph"]

        def broken() -> None:
            work()
            raise EngineError("it failed while it was recorded")

        with pytest.raises(EngineError, match="while it was recorded"):
            gpu.capture(broken)
        assert machine.recording is None and not machine.live["graph"]
    assert machine.leaks == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"driver_version": 0}, "no NVIDIA driver: install one"),
        ({"driver_version": 12040}, "knows CUDA 12.4, too old for the CUDA 13.0 of cuda-python"),
        ({"driver_version": 12040}, r"pip install 'cuda-python==12.\*'"),
        ({"devices": 0}, "finds no GPU: check CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_there_is_no_gpu(machine: Machine, changes: dict, told: str) -> None:
    for name, value in changes.items():
        setattr(machine, name, value)
    cuda = played(machine)
    with pytest.raises(EngineError, match=told):
        cuda.Gpu()
    assert machine.leaks == {}


def test_out_of_memory_says_how_much(machine: Machine) -> None:
    machine.memory = 100_000_000
    cuda = played(machine)
    with cuda.Gpu() as gpu:
        gpu.allocate(60_000_000, "the first")
        with pytest.raises(EngineError, match=r"the second .GPU memory. needs 60 MB and 40 of the"):
            gpu.allocate(60_000_000, "the second")
        gpu.allocate(30_000_000, "a third")  # the error was cleared


def test_an_error_of_the_device_has_its_name(machine: Machine) -> None:
    cuda = played(machine)
    with cuda.Gpu() as gpu:
        machine.fail["cudaStreamSynchronize"] = Error.cudaErrorIllegalAddress
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress: words for 700"):
            gpu.wait()
        machine.fail.clear()
    with pytest.raises(EngineError, match="given back"):
        gpu.begin()


def test_a_gpu_newer_than_nvrtc_and_one_too_old(machine: Machine) -> None:
    cuda = played(machine)
    cuda.compile_source("12.0")
    assert "nvrtcGetPTX" in machine.calls and "nvrtcGetCUBIN" not in machine.calls
    with pytest.raises(EngineError, match=r"capability 7.5 and later, not 5.0"):
        cuda.compile_source("5.0")


def test_the_played_machine_is_as_large_as_the_tables(machine: Machine) -> None:
    """It has everything that USED names, so the tables list all that is needed."""
    import ast

    source = Path(gpu_kernels.__file__).with_name("cuda.py").read_text()
    used = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "USED"
    )
    for module, entries in used.items():
        real = sys.modules[f"cuda.bindings.{module}"]
        for entry in entries:
            place: Any = real
            for part in entry.split("(")[0].split("."):
                assert hasattr(place, part), entry
                place = getattr(place, part)
