# SPDX-License-Identifier: Apache-2.0
"""A simulated GPU for tests of engine/cuda.py and engine/trt.py on a machine without one.

The GPU's memory is the host's, its kernels are the real source compiled as C++ and run thread by
thread, and ONNX Runtime runs TensorRT's network. Simulated is what the tables USED of those modules
name, with the same numbers of parameters; test_trt_bindings.py compares the tables with the real
bindings. Like the real ones, it records work that is captured into a graph instead of doing it. It
counts resources that are not released.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import hashlib
import importlib.machinery
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from depth_node.engine import BackendError, gpu_kernels

_SHIM = r"""
#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>
struct Dim { unsigned x, y, z; };
static Dim blockIdx, blockDim, threadIdx;
#define __device__
#define __global__
"""

_DISPATCH = r"""
template <class... T, std::size_t... I>
static void call(void (*f)(T...), void** a, std::index_sequence<I...>)
{
    f(*static_cast<T*>(a[I])...);
}
template <class... T>
static void launch_all(
    void (*f)(T...), unsigned gx, unsigned gy, unsigned bx, unsigned by, void** a)
{
    blockDim = {bx, by, 1};
    for (unsigned j = 0; j < gy; ++j) for (unsigned i = 0; i < gx; ++i)
        for (unsigned v = 0; v < by; ++v) for (unsigned u = 0; u < bx; ++u) {
            blockIdx = {i, j, 0};
            threadIdx = {u, v, 0};
            call(f, a, std::index_sequence_for<T...>());
        }
}
extern "C" int launch(
    const char* name, unsigned gx, unsigned gy, unsigned bx, unsigned by, void** a)
{
#define CASE(f) if (!std::strcmp(name, #f)) { launch_all(f, gx, gy, bx, by, a); return 0; }
    CASE(image_to_tensor) CASE(apply_table) CASE(apply_grid)
    return 1;
}
"""


@functools.cache
def compiled_kernels() -> ctypes.CDLL:
    """Return the kernels' source compiled as a library of this machine; skip without a compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (g++) to run the kernels on the CPU")
    source = _SHIM + gpu_kernels.SOURCE + _DISPATCH
    name = f"depth_node_kernels_{hashlib.sha256(source.encode()).hexdigest()[:16]}.so"
    folder = Path(tempfile.mkdtemp(prefix="depth_node_kernels_"))
    command = [compiler, "-O1", "-std=c++17", "-Wall", "-Werror", "-Wno-unused-variable"]
    command += ["-shared", "-fPIC", "-x", "c++", "-", "-o", str(folder / name)]
    try:
        subprocess.run(command, input=source.encode(), check=True)
        return ctypes.CDLL(str(folder / name))
    finally:
        shutil.rmtree(folder)


# Names and numbers are those of CUDA.
Error = enum.IntEnum(
    "Error",
    {
        "cudaSuccess": 0,
        "cudaErrorInvalidValue": 1,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorIllegalAddress": 700,
        "cudaErrorStreamCaptureUnsupported": 900,
    },
)


class Result(enum.IntEnum):
    """Results of the driver's functions."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_IMAGE = 200


class Compiled(enum.IntEnum):
    """Results of NVRTC's functions."""

    NVRTC_SUCCESS = 0
    NVRTC_ERROR_COMPILATION = 6


class Machine:
    """The state of the simulated GPU.

    memory: its size in bytes. fail: names of calls that fail from now on, with the error that they
    return. live: resources taken and not released, by kind. calls: names of calls, in order.
    """

    def __init__(self, memory: int = 8_000_000_000) -> None:
        self.memory = memory
        self.driver_version, self.runtime_version, self.devices = 13000, 13000, 1
        self.capability = (8, 7)
        self.fail: dict[str, enum.IntEnum] = {}
        self.live: dict[str, dict[int, Any]] = {
            name: {} for name in ("device", "pinned", "stream", "graph", "executable", "module")
        }
        self.recording: list[Callable[[], None]] | None = None
        self.calls: list[str] = []
        self.tensorrt_version = "10.13.3.9"
        self.tensorrt_errors: list[str] = []
        self._next = 1000

    @property
    def leaks(self) -> dict[str, int]:
        """Number of resources not released, by kind; kinds without any are left out."""
        return {kind: len(held) for kind, held in self.live.items() if held}

    def used(self) -> int:
        """Return the bytes of the device's memory that are in use."""
        return sum(buffer._length_ for buffer in self.live["device"].values())

    def enqueue(self, work: Callable[[], None]) -> None:
        """Do the work at once, or, during a capture, whenever the graph is launched."""
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def handle(self, kind: str, content: Any) -> int:
        """Return a new handle for a resource of a kind."""
        self._next += 1
        self.live[kind][self._next] = content
        return self._next

    # --- the modules of cuda.bindings

    def runtime(self) -> dict[str, Any]:
        """Return functions and enums of cuda.bindings.runtime."""
        live, ok = self.live, Error.cudaSuccess

        def cudaGetDeviceCount() -> tuple[Any, ...]:
            if not self.driver_version or self.driver_version < self.runtime_version // 1000 * 1000:
                return Error.cudaErrorInsufficientDriver, None
            return (ok, self.devices) if self.devices else (Error.cudaErrorNoDevice, None)

        def taken(kind: str, size: int) -> tuple[Any, ...]:
            if kind == "device" and self.used() + size > self.memory:
                return Error.cudaErrorMemoryAllocation, None
            buffer = (ctypes.c_uint8 * size)()
            live[kind][ctypes.addressof(buffer)] = buffer
            return ok, ctypes.addressof(buffer)

        def freed(kind: str, address: int) -> tuple[Any, ...]:
            known = address == 0 or live[kind].pop(address, None) is not None
            return (ok if known else Error.cudaErrorInvalidValue,)

        def inside(address: int, size: int) -> bool:
            return any(
                start <= address and address + size <= start + buffer._length_
                for kind in ("device", "pinned")
                for start, buffer in live[kind].items()
            )

        def cudaMemcpyAsync(
            target: int, source: int, size: int, kind: int, stream: int
        ) -> tuple[Any, ...]:
            if not (inside(target, size) and inside(source, size) and stream in live["stream"]):
                return (Error.cudaErrorIllegalAddress,)
            self.enqueue(lambda: ctypes.memmove(target, source, size))
            return (ok,)

        def cudaStreamBeginCapture(stream: int, mode: int) -> tuple[Any, ...]:
            self.recording = []
            return (ok,)

        def cudaStreamEndCapture(stream: int) -> tuple[Any, ...]:
            recorded, self.recording = self.recording, None
            return ok, self.handle("graph", recorded)

        def cudaGraphLaunch(made: int, stream: int) -> tuple[Any, ...]:
            for work in live["executable"][made]:
                work()
            return (ok,)

        properties = SimpleNamespace(
            name=b"Played GPU", major=self.capability[0], minor=self.capability[1]
        )
        functions: dict[str, Callable[..., tuple[Any, ...]]] = {
            "cudaDriverGetVersion": lambda: (ok, self.driver_version),
            "cudaRuntimeGetVersion": lambda: (ok, self.runtime_version),
            "cudaGetDeviceCount": cudaGetDeviceCount,
            "cudaGetDeviceProperties": lambda device: (ok, properties),
            "cudaSetDevice": lambda device: (ok,),
            "cudaGetErrorString": lambda error: (ok, f"words for {int(error)}".encode()),
            "cudaGetLastError": lambda: (ok,),
            "cudaMemGetInfo": lambda: (ok, self.memory - self.used(), self.memory),
            "cudaMalloc": lambda size: taken("device", size),
            "cudaFree": lambda address: freed("device", address),
            "cudaHostAlloc": lambda size, flags: taken("pinned", size),
            "cudaFreeHost": lambda address: freed("pinned", address),
            "cudaMemcpyAsync": cudaMemcpyAsync,
            "cudaStreamCreateWithFlags": lambda flags: (ok, self.handle("stream", flags)),
            "cudaStreamSynchronize": lambda stream: (ok,),
            "cudaStreamDestroy": lambda stream: freed("stream", stream),
            "cudaStreamBeginCapture": cudaStreamBeginCapture,
            "cudaStreamEndCapture": cudaStreamEndCapture,
            "cudaGraphInstantiate": lambda graph, flags: (
                ok,
                self.handle("executable", live["graph"][graph]),
            ),
            "cudaGraphLaunch": cudaGraphLaunch,
            "cudaGraphDestroy": lambda graph: freed("graph", graph),
            "cudaGraphExecDestroy": lambda made: freed("executable", made),
            "cudaEventCreate": lambda: (ok, 1),
            "cudaEventRecord": lambda event, stream: (ok,),
            "cudaEventSynchronize": lambda event: (ok,),
            "cudaEventElapsedTime": lambda start, end: (ok, 1.0),
            "cudaEventDestroy": lambda event: (ok,),
        }
        kinds = SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
        modes = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        return {
            **functions,
            "cudaError_t": Error,
            "cudaMemcpyKind": kinds,
            "cudaStreamCaptureMode": modes,
            "cudaDeviceProp": SimpleNamespace(name=b"", major=0, minor=0),
            "cudaStreamNonBlocking": 1,
        }

    def driver(self) -> dict[str, Any]:
        """Return functions and enums of cuda.bindings.driver."""
        ok = Result.CUDA_SUCCESS

        def cuLaunchKernel(name: bytes, *rest: Any) -> tuple[Any, ...]:
            gx, gy, _, bx, by, _, _, stream, parameters, extra = rest
            assert stream in self.live["stream"] and extra == 0
            library = compiled_kernels()

            def work() -> None:
                assert library.launch(name, gx, gy, bx, by, ctypes.c_void_p(parameters)) == 0

            self.enqueue(work)
            return (ok,)

        return {
            "cuModuleLoadData": lambda image: (ok, self.handle("module", image)),
            "cuModuleGetFunction": lambda module, name: (ok, name),
            "cuModuleUnload": lambda module: (self.live["module"].pop(module) and ok,),
            "cuLaunchKernel": cuLaunchKernel,
            "CUresult": Result,
        }

    def nvrtc(self) -> dict[str, Any]:
        """Return functions and enums of cuda.bindings.nvrtc.

        They compile nothing, see compiled_kernels.
        """
        ok = Compiled.NVRTC_SUCCESS
        return {
            "nvrtcGetSupportedArchs": lambda: (ok, [75, 80, 86, 87, 89, 90]),
            "nvrtcCreateProgram": lambda source, name, count, headers, names: (ok, source),
            "nvrtcCompileProgram": lambda program, count, options: (ok,),
            "nvrtcGetProgramLogSize": lambda program: (ok, 16),
            "nvrtcGetProgramLog": lambda program, log: (ok,),
            "nvrtcGetCUBINSize": lambda program: (ok, 8),
            "nvrtcGetCUBIN": lambda program, code: (ok,),
            "nvrtcGetPTXSize": lambda program: (ok, 8),
            "nvrtcGetPTX": lambda program, code: (ok,),
            "nvrtcDestroyProgram": lambda program: (ok,),
            "nvrtcResult": Compiled,
        }

    # --- tensorrt

    def tensorrt(self) -> dict[str, Any]:
        """Return what trt.USED names of the module tensorrt."""
        machine = self

        class ILogger:
            class Severity(enum.IntEnum):
                INTERNAL_ERROR = 0
                ERROR = 1
                WARNING = 2

            ERROR = Severity.ERROR

        def say(logger: Any, text: str) -> None:
            logger.log(ILogger.Severity.ERROR, text)

        class IProgressMonitor:
            pass

        class Flag(enum.IntEnum):
            STRONGLY_TYPED = 1

        class Pool(enum.IntEnum):
            WORKSPACE = 0

        class Mode(enum.IntEnum):
            INPUT = 1
            OUTPUT = 2

        class ParserError:
            def __init__(self, text: str) -> None:
                self._text = text

            def desc(self) -> str:
                return self._text

            def node_name(self) -> str:
                return ""

            def node_operator(self) -> str:
                return "Conv"

        class Network:
            def __init__(self) -> None:
                self.model = b""
                self.inputs: list[Any] = []

            @property
            def num_inputs(self) -> int:
                return len(self.inputs)

            def get_input(self, index: int) -> Any:
                return self.inputs[index]

        class OnnxParser:
            def __init__(self, network: Network, logger: ILogger) -> None:
                self._network, self._errors = network, []

            @property
            def num_errors(self) -> int:
                return len(self._errors)

            def get_error(self, index: int) -> ParserError:
                return self._errors[index]

            def parse_from_file(self, model: str) -> bool:
                content = Path(model).read_bytes()
                try:
                    session = onnxruntime.InferenceSession(
                        content, providers=["CPUExecutionProvider"]
                    )
                except Exception as error:
                    self._errors = [ParserError(f"In node 0 (importModel):\n {error}")]
                    return False
                self._network.model = content
                for node in session.get_inputs():
                    shape = tuple(n if isinstance(n, int) else -1 for n in node.shape)
                    self._network.inputs.append(SimpleNamespace(name=node.name, shape=shape))
                return True

        class Profile:
            def __init__(self) -> None:
                self.shapes: dict[str, tuple[int, ...]] = {}

            def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
                assert low == best == high
                self.shapes[name] = tuple(best)

        class Config:
            def __init__(self) -> None:
                self.progress_monitor: Any = None
                self.workspace = 0
                self.profiles: list[Profile] = []

            def set_memory_pool_limit(self, pool: int, pool_size: int) -> None:
                self.workspace = pool_size

            def add_optimization_profile(self, profile: Profile) -> int:
                self.profiles.append(profile)
                return len(self.profiles) - 1

        class Builder:
            def __init__(self, logger: ILogger) -> None:
                assert hasattr(logger, "log")
                self._logger = logger

            def create_network(self, flags: int) -> Network:
                assert flags == 1 << Flag.STRONGLY_TYPED
                return Network()

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config) -> Any:
                machine.calls.append("build")
                if machine.tensorrt_errors:
                    for text in machine.tensorrt_errors:
                        say(self._logger, text)
                    return None
                open_inputs = [item.name for item in network.inputs if -1 in item.shape]
                shapes = config.profiles[0].shapes if config.profiles else {}
                if open_inputs != list(shapes):
                    say(self._logger, "Network has dynamic inputs, but no profile")
                    return None
                monitor = config.progress_monitor
                monitor.phase_start("tactics", None, 2)
                for step in range(2):
                    if not monitor.step_complete("tactics", step):
                        return None  # cancelled
                monitor.phase_finish("tactics")
                head = f"PLAN {machine.tensorrt_version} {shapes}\n".encode()
                return memoryview(head + network.model)

        class Context:
            def __init__(self, engine: Engine) -> None:
                self._engine = engine
                self._addresses: dict[str, int] = {}

            def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
                return tuple(shape) == self._engine.shapes[name] or -1 in self._engine.shapes[name]

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self._engine.results[name].shape

            def set_tensor_address(self, name: str, memory: int) -> bool:
                self._addresses[name] = memory
                return True

            def execute_async_v3(self, stream_handle: int) -> bool:
                if "execute_async_v3" in machine.fail:
                    say(self._engine.logger, "Cask convolution execution")
                    return False
                assert stream_handle in machine.live["stream"]
                addresses = dict(self._addresses)
                machine.enqueue(lambda: self._engine.compute(addresses))
                return True

        class Engine:
            device_memory_size_v2 = 1_000_000

            def __init__(self, content: bytes, logger: Any) -> None:
                self.logger = logger
                self._session = onnxruntime.InferenceSession(
                    content, providers=["CPUExecutionProvider"]
                )
                self.inputs = {node.name: node for node in self._session.get_inputs()}
                self.shapes = {
                    name: tuple(n if isinstance(n, int) else -1 for n in node.shape)
                    for name, node in self.inputs.items()
                }
                types = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(uint8)": "u1"}
                self.types = {n: np.dtype(types[node.type]) for n, node in self.inputs.items()}
                self.results: dict[str, np.ndarray] = {}

            def prepared(self, shapes: dict[str, tuple[int, ...]]) -> None:
                self.sizes = {n: shapes.get(n, shape) for n, shape in self.shapes.items()}
                zeros = {n: np.zeros(s, self.types[n]) for n, s in self.sizes.items()}
                names = [node.name for node in self._session.get_outputs()]
                found = self._session.run(names, zeros)
                self.results = dict(zip(names, found, strict=True))

            @property
            def num_io_tensors(self) -> int:
                return len(self.inputs) + len(self.results)

            def get_tensor_name(self, index: int) -> str:
                return [*self.inputs, *self.results][index]

            def get_tensor_mode(self, name: str) -> Mode:
                return Mode.INPUT if name in self.inputs else Mode.OUTPUT

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return self.shapes[name] if name in self.shapes else self.results[name].shape

            def get_tensor_dtype(self, name: str) -> np.dtype:
                return self.types[name] if name in self.types else self.results[name].dtype

            def create_execution_context(self) -> Context | None:
                if "create_execution_context" in machine.fail:
                    say(self.logger, "Requested amount of GPU memory could not be allocated")
                    return None
                return Context(self)

            def compute(self, addresses: dict[str, int]) -> None:
                given = {
                    name: _array(addresses[name], shape, self.types[name]).copy()
                    for name, shape in self.sizes.items()
                }
                found = self._session.run(list(self.results), given)
                for name, output in zip(self.results, found, strict=True):
                    _array(addresses[name], output.shape, output.dtype)[...] = output

        class Runtime:
            def __init__(self, logger: ILogger) -> None:
                self._logger = logger

            def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
                head, _, model = bytes(serialized_engine).partition(b"\n")
                match = re.match(rb"PLAN (\S+) (.*)$", head)
                if not match or match[1].decode() != machine.tensorrt_version:
                    say(self._logger, "Serialization assertion plan->header.magicTag == rt failed.")
                    return None
                engine = Engine(model, self._logger)
                engine.prepared(eval(match[2]))
                return engine

        return {
            "__version__": self.tensorrt_version,
            "ILogger": ILogger,
            "IProgressMonitor": IProgressMonitor,
            "NetworkDefinitionCreationFlag": Flag,
            "MemoryPoolType": Pool,
            "TensorIOMode": Mode,
            "Builder": Builder,
            "OnnxParser": OnnxParser,
            "Runtime": Runtime,
            "nptype": lambda kind: kind,
        }

    # --- in place of the real ones

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `import tensorrt` and `from cuda.bindings import ...` find this simulation."""
        import depth_node.engine as package

        cuda = _module("cuda")
        bindings = _module("cuda.bindings")
        cuda.bindings = bindings  # type: ignore[attr-defined]
        modules = {"cuda": cuda, "cuda.bindings": bindings}
        for name, content in (
            ("runtime", self.runtime()),
            ("driver", self.driver()),
            ("nvrtc", self.nvrtc()),
        ):
            module = _module(f"cuda.bindings.{name}")
            for key, value in content.items():
                is_call = callable(value) and not isinstance(value, type)
                setattr(module, key, self._watched(key, value) if is_call else value)
            setattr(bindings, name, module)
            modules[module.__name__] = module
        tensorrt = _module("tensorrt")
        for key, value in self.tensorrt().items():
            setattr(tensorrt, key, value)
        modules["tensorrt"] = tensorrt
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        # Import our modules anew with these bindings; monkeypatch restores the former ones.
        for name in ("cuda", "trt"):
            full = f"depth_node.engine.{name}"
            monkeypatch.setitem(sys.modules, full, None)
            del sys.modules[full]
            monkeypatch.setattr(package, name, None, raising=False)
            delattr(package, name)
        try:
            trt = importlib.import_module("depth_node.engine.trt")
        except BackendError:  # a version that the back end refuses
            return
        # Another process would not find this simulation, so the engine is built in this one;
        # tests/engine/test_tensorrt_rtx.py tests the build in a process of its own.
        monkeypatch.setattr(trt, "build_apart", lambda _, *given: trt.build_here(*given))

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.fail:
                if name == "cudaStreamEndCapture":
                    self.recording = None  # a failed capture has ended too
                return (self.fail[name], *[None] * 2)
            return function(*arguments)

        return call


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    return module


def _array(address: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    content = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(content, np.uint8).view(dtype).reshape(shape)
