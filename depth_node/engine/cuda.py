# SPDX-License-Identifier: Apache-2.0
"""The GPU through cuda-python: memory, one stream, graphs and our own kernels.

Needs cuda-python (cuda.bindings) 12.6 or later, or 13. Kernels are compiled by NVRTC when they are
loaded. One :class:`Gpu` owns all that was taken from the device, and gives it back when closed.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings import driver, nvrtc, runtime

from depth_node.engine import EngineError, gpu_kernels
from depth_node.engine.protocol import Closeable

# All that this file uses of cuda.bindings: functions with the number of their parameters and of the
# values that they return, enum members, constants. Tests hold it against this file and the real
# bindings of several versions.
USED: dict[str, tuple[str, ...]] = {
    "runtime": (
        "cudaDriverGetVersion(0) -> 2", "cudaRuntimeGetVersion(0) -> 2",
        "cudaGetDeviceCount(0) -> 2", "cudaGetDeviceProperties(1) -> 2", "cudaSetDevice(1) -> 1",
        "cudaGetErrorString(1) -> 2", "cudaGetLastError(0) -> 1", "cudaMemGetInfo(0) -> 3",
        "cudaMalloc(1) -> 2", "cudaFree(1) -> 1", "cudaHostAlloc(2) -> 2", "cudaFreeHost(1) -> 1",
        "cudaMemcpyAsync(5) -> 1", "cudaStreamCreateWithFlags(1) -> 2", "cudaStreamNonBlocking",
        "cudaStreamSynchronize(1) -> 1", "cudaStreamDestroy(1) -> 1",
        "cudaStreamBeginCapture(2) -> 1", "cudaStreamEndCapture(1) -> 2",
        "cudaGraphInstantiate(2) -> 2", "cudaGraphLaunch(2) -> 1", "cudaGraphDestroy(1) -> 1",
        "cudaGraphExecDestroy(1) -> 1", "cudaEventCreate(0) -> 2", "cudaEventRecord(2) -> 1",
        "cudaEventSynchronize(1) -> 1", "cudaEventElapsedTime(2) -> 2", "cudaEventDestroy(1) -> 1",
        "cudaError_t.cudaSuccess", "cudaError_t.cudaErrorMemoryAllocation",
        "cudaError_t.cudaErrorInsufficientDriver", "cudaError_t.cudaErrorNoDevice",
        "cudaMemcpyKind.cudaMemcpyHostToDevice", "cudaMemcpyKind.cudaMemcpyDeviceToHost",
        "cudaMemcpyKind.cudaMemcpyDeviceToDevice",
        "cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal",
        "cudaDeviceProp.name", "cudaDeviceProp.major", "cudaDeviceProp.minor",
    ),
    "driver": (
        "cuModuleLoadData(1) -> 2", "cuModuleGetFunction(2) -> 2", "cuModuleUnload(1) -> 1",
        "cuLaunchKernel(11) -> 1", "CUresult.CUDA_SUCCESS",
    ),
    "nvrtc": (
        "nvrtcGetSupportedArchs(0) -> 2", "nvrtcCreateProgram(5) -> 2",
        "nvrtcCompileProgram(3) -> 1", "nvrtcGetProgramLogSize(1) -> 2",
        "nvrtcGetProgramLog(2) -> 1", "nvrtcGetCUBINSize(1) -> 2", "nvrtcGetCUBIN(2) -> 1",
        "nvrtcGetPTXSize(1) -> 2", "nvrtcGetPTX(2) -> 1", "nvrtcDestroyProgram(1) -> 1",
        "nvrtcResult.NVRTC_SUCCESS",
    ),
}  # fmt: skip

Launch = Callable[[], None]
Argument = ctypes.c_void_p | ctypes.c_int | ctypes.c_float | ctypes.c_double

_DEVICE = 0
_MB = 1e6


def missing() -> str:
    """Why no GPU can be used here, with the cure; "" if one can."""
    driver_version, runtime_version = _versions()
    error, count = runtime.cudaGetDeviceCount()
    if error == runtime.cudaError_t.cudaSuccess and count:
        return ""
    if driver_version == 0:
        return "no NVIDIA driver: install one that nvidia-smi (or tegrastats) finds"
    if error == runtime.cudaError_t.cudaErrorInsufficientDriver:
        return (
            f"the NVIDIA driver knows CUDA {_dotted(driver_version)}, too old for the CUDA"
            f" {_dotted(runtime_version)} of cuda-python: update the driver, or"
            f" pip install 'cuda-python=={driver_version // 1000}.*'"
        )
    if error in (runtime.cudaError_t.cudaErrorNoDevice, runtime.cudaError_t.cudaSuccess):
        return "the NVIDIA driver finds no GPU: check CUDA_VISIBLE_DEVICES and the container's GPUs"
    return f"the GPU cannot be used ({_told(error)}): try nvidia-smi"


def _versions() -> tuple[int, int]:
    """CUDA version that the driver knows (0: no driver) and that of the runtime, as 12040."""
    return int(runtime.cudaDriverGetVersion()[1] or 0), int(runtime.cudaRuntimeGetVersion()[1])


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _told(error: Any) -> str:
    """Name and words of a cudaError_t."""
    words = runtime.cudaGetErrorString(error)[1]
    return f"{error.name}: {words.decode() if isinstance(words, bytes) else words}"


def _taken(result: Sequence[Any], what: str) -> Any:
    """The value of a call of the runtime (error, value...), or EngineError."""
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        raise EngineError(
            f"{what} failed on the GPU ({_told(error)}): the node must be started again if this"
            " goes on, as a GPU error stays"
        )
    return values[0] if values else None


def _driven(result: Sequence[Any], what: str) -> Any:
    """The same for a call of the driver."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise EngineError(f"{what} failed on the GPU ({error.name}): update the NVIDIA driver")
    return values[0] if values else None


# --- the device ----------------------------------------------------------------------------------


class Gpu(Closeable):
    """The first GPU: one stream, and memory that is given back by close().

    name, capability ("8.7"), driver and runtime (CUDA versions) say which it is. Raises EngineError
    where there is none, or it is too small.
    """

    def __init__(self) -> None:
        reason = missing()
        if reason:
            raise EngineError(f"there is no GPU to run on: {reason}")
        self._held: dict[int, Callable[[], Any]] = {}
        self._thread = 0
        self.closed = False
        self.stream = 0
        self._here()
        _taken(runtime.cudaFree(0), "starting CUDA")  # makes the context
        facts = _taken(runtime.cudaGetDeviceProperties(_DEVICE), "asking for the device")
        name = facts.name.decode() if isinstance(facts.name, bytes) else str(facts.name)
        self.name = name.partition("\0")[0]
        self.capability = f"{facts.major}.{facts.minor}"
        driver_version, runtime_version = _versions()
        self.driver, self.runtime = _dotted(driver_version), _dotted(runtime_version)
        stream = _taken(
            runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking), "making a stream"
        )
        self._stream = stream
        self.stream = int(stream)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        self._here()
        error, free, total = runtime.cudaMemGetInfo()
        _taken((error,), "asking for free memory")
        return int(free), int(total)

    def allocate(self, size: int, what: str) -> int:
        """The address of `size` bytes on the device; `what` for whoever reads that it is full."""
        self._here()
        return self._keep(runtime.cudaMalloc(max(size, 1)), runtime.cudaFree, size, what, "GPU")

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike, what: str) -> npt.NDArray:
        """An array in memory from which the device copies by itself; valid until release()."""
        self._here()
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        result = runtime.cudaHostAlloc(max(size, 1), 0)
        address = self._keep(result, runtime.cudaFreeHost, size, what, "pinned")
        content = (ctypes.c_uint8 * max(size, 1)).from_address(address)
        return np.frombuffer(memoryview(content), np.uint8, size).view(dtype).reshape(tuple(shape))

    def _keep(
        self, result: Sequence[Any], free: Callable[[int], Any], size: int, what: str, kind: str
    ) -> int:
        if result[0] == runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise self.out_of_memory_error(size, f"{what} ({kind} memory)")
        address = int(_taken(result, f"taking memory for {what}"))
        self._held[address] = lambda: free(address)
        return address

    def out_of_memory_error(self, size: int, what: str) -> EngineError:
        """The error for memory that could not be had."""
        runtime.cudaGetLastError()  # this error does not stay: the next call may go well
        free, total = self.memory()
        return EngineError(
            f"{what} needs {size / _MB:.0f} MB and {free / _MB:.0f} of the {total / _MB:.0f} MB of"
            f" {self.name} are free: end other programs on the GPU, or take a smaller model or"
            " input"
        )

    def release(self, held: int | npt.NDArray) -> None:
        """Give an address or a pinned array back before close()."""
        address = held if isinstance(held, int) else held.ctypes.data
        free = self._held.pop(address, None)
        if free is not None:
            free()

    def upload(self, target: int, source: npt.NDArray) -> None:
        """Copy a pinned array to the device, in the stream's order."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        result = runtime.cudaMemcpyAsync(
            target, source.ctypes.data, source.nbytes, kind, self._stream
        )
        _taken(result, "copying to the device")

    def download(self, target: npt.NDArray, source: int) -> None:
        """Copy from the device into a pinned array, in the stream's order."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        result = runtime.cudaMemcpyAsync(
            target.ctypes.data, source, target.nbytes, kind, self._stream
        )
        _taken(result, "copying from the device")

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy on the device, in the stream's order."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        result = runtime.cudaMemcpyAsync(target, source, size, kind, self._stream)
        _taken(result, "copying on the device")

    def begin(self) -> None:
        """Call before the first work of a run: CUDA keeps the device of each thread apart."""
        if self.closed:
            raise EngineError("the GPU was given back: open the model again")
        self._here()

    def wait(self) -> None:
        """Until all work of the stream is done."""
        _taken(runtime.cudaStreamSynchronize(self._stream), "running the network")

    def capture(self, work: Launch) -> Launch:
        """What `work` puts into the stream, as one graph to launch. EngineError if it cannot be."""
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _taken(runtime.cudaStreamBeginCapture(self._stream, mode), "capturing a graph")
        try:
            work()
        except BaseException:
            graph = runtime.cudaStreamEndCapture(self._stream)[1]
            if graph is not None and int(graph):
                runtime.cudaGraphDestroy(graph)
            runtime.cudaGetLastError()  # what failed in the capture does not stay
            raise
        result = runtime.cudaStreamEndCapture(self._stream)
        runtime.cudaGetLastError()
        graph = _taken(result, "capturing a graph")
        try:
            made = _taken(runtime.cudaGraphInstantiate(graph, 0), "making a graph")
        finally:
            runtime.cudaGraphDestroy(graph)
        self._held[int(made)] = lambda: runtime.cudaGraphExecDestroy(made)
        return lambda: _taken(runtime.cudaGraphLaunch(made, self._stream), "launching the graph")

    def milliseconds(self, work: Launch, times: int) -> float:
        """Time on the device of one of `times` works in a row."""
        start, end = (_taken(runtime.cudaEventCreate(), "timing") for _ in range(2))
        try:
            _taken(runtime.cudaEventRecord(start, self._stream), "timing")
            for _ in range(times):
                work()
            _taken(runtime.cudaEventRecord(end, self._stream), "timing")
            _taken(runtime.cudaEventSynchronize(end), "timing")
            return float(_taken(runtime.cudaEventElapsedTime(start, end), "timing")) / times
        finally:
            for event in (start, end):
                runtime.cudaEventDestroy(event)

    def hold(self, address: int, free: Callable[[], Any]) -> None:
        """Let close() call `free` too, in reverse order of all that is held."""
        self._held[address] = free

    def close(self) -> None:
        """Give everything back; safe to call twice and after a failure."""
        if self.closed:
            return
        self.closed = True
        runtime.cudaSetDevice(_DEVICE)
        if self.stream:
            runtime.cudaStreamSynchronize(self._stream)
        for free in list(self._held.values())[::-1]:
            free()
        self._held.clear()
        if self.stream:
            runtime.cudaStreamDestroy(self._stream)
            self.stream = 0

    def _here(self) -> None:
        thread = threading.get_ident()
        if thread != self._thread:
            _taken(runtime.cudaSetDevice(_DEVICE), "choosing the GPU")
            self._thread = thread


# --- our kernels ---------------------------------------------------------------------------------


def compile_source(capability: str) -> bytes:
    """Machine code of the kernels for a compute capability such as "8.7".

    For a GPU that is newer than this NVRTC, code that the driver translates. Raises EngineError if
    NVRTC is missing or refuses.
    """
    try:
        known = [int(number) for number in nvrtc.nvrtcGetSupportedArchs()[1]]
    except Exception as error:  # cuda-python raises several kinds where the library is missing
        raise EngineError(
            f"NVRTC, which compiles the kernels, cannot be loaded ({' '.join(str(error).split())}):"
            " pip install nvidia-cuda-nvrtc (CUDA 13) or nvidia-cuda-nvrtc-cu12"
        ) from error
    wanted = int(capability.replace(".", ""))
    native = wanted in known
    older = [number for number in known if number <= wanted]
    if not older:
        raise EngineError(
            f"this NVRTC compiles for GPUs of compute capability {min(known) / 10:g} and later, not"
            f" {capability}: install the CUDA 12 packages"
        )
    arch = f"sm_{wanted}" if native else f"compute_{max(older)}"
    program = _compiled(
        nvrtc.nvrtcCreateProgram(gpu_kernels.SOURCE.encode(), b"depth_node.cu", 0, [], [])
    )
    try:
        options = [f"--gpu-architecture={arch}".encode(), b"--std=c++17"]
        (state,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if state != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _compiled(nvrtc.nvrtcGetProgramLogSize(program))
            nvrtc.nvrtcGetProgramLog(program, log)
            text = " ".join(log.decode(errors="replace").split())
            raise EngineError(f"the kernels do not compile for {arch} ({text[:300]})")
        size, code = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
            if native
            else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        made = b" " * _compiled(size(program))
        _compiled(code(program, made))
        return made
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _compiled(result: Sequence[Any]) -> Any:
    error, *values = result
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EngineError(f"NVRTC failed ({error.name}): install it again")
    return values[0] if values else None


class CompiledKernels:
    """Our kernels, loaded on a device. Goes with its Gpu."""

    def __init__(self, gpu: Gpu) -> None:
        code = compile_source(gpu.capability)
        gpu.begin()
        self.gpu = gpu
        module = _driven(driver.cuModuleLoadData(code), "loading the kernels")
        gpu.hold(int(module), lambda: driver.cuModuleUnload(module))
        self._functions = {
            name: _driven(driver.cuModuleGetFunction(module, name.encode()), f"finding {name}")
            for name in ("image_to_tensor", "apply_table", "apply_grid")
        }

    def prepare(self, name: str, height: int, width: int, arguments: Sequence[Argument]) -> Launch:
        """A launch with a thread for each of height x width places; arguments are kept."""
        function = self._functions[name]
        block_x, block_y = gpu_kernels.BLOCK
        grid = (-(-width // block_x), -(-height // block_y))
        kept = list(arguments)
        pointers = (ctypes.c_void_p * len(kept))(*[ctypes.addressof(value) for value in kept])
        stream = self.gpu.stream

        def launch() -> None:
            assert kept  # the pointers lead into them
            result = driver.cuLaunchKernel(
                function, *grid, 1, block_x, block_y, 1, 0, stream, ctypes.addressof(pointers), 0
            )
            _driven(result, f"launching {name}")

        return launch


class ImageInput:
    """Images of one size -> the input tensor on the device, by one kernel."""

    def __init__(
        self,
        loaded: CompiledKernels,
        height: int,
        width: int,
        how: gpu_kernels.Resampling,
        tensor: int,
    ) -> None:
        """tensor: address of the (1, 3, height, width) tensor that is written."""
        gpu = loaded.gpu
        self.shape = (height, width, 3)
        self._gpu = gpu
        self._held: list[int | npt.NDArray] = []
        try:
            self._image = gpu.pinned(self.shape, np.uint8, "the image")
            self._held.append(self._image)
            self._target = self._room(self._image.nbytes)
            tables = [how.rows.index, how.rows.weight, how.cols.index, how.cols.weight]
            places = [self._constant(table) for table in tables]
            gpu.wait()
        except EngineError:
            self.close()
            raise
        pointer, whole, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
        spec = how.spec
        numbers = (*how.box, spec.height, spec.width, how.first, how.step)
        self._launch = loaded.prepare(
            "image_to_tensor",
            spec.height,
            spec.width,
            [
                pointer(self._target),
                whole(3 * width),
                pointer(places[0]),
                pointer(places[1]),
                whole(how.rows.index.shape[1]),
                pointer(places[2]),
                pointer(places[3]),
                whole(how.cols.index.shape[1]),
                *(whole(number) for number in numbers),
                *(real(float(value)) for value in (*how.gains, *how.offsets)),
                whole(how.fixed),
                whole(gpu_kernels.TENSOR_TYPES[spec.dtype]),
                pointer(tensor),
            ],
        )

    def enqueue(self, image: npt.NDArray[np.uint8]) -> None:
        """Copy the image and make the tensor, in the stream's order."""
        np.copyto(self._image, image)
        self._gpu.upload(self._target, self._image)
        self._launch()

    def launch(self) -> None:
        """Make the tensor anew from the image that is on the device; for timings."""
        self._launch()

    def close(self) -> None:
        """Give the buffers back."""
        for held in self._held:
            self._gpu.release(held)
        self._held.clear()

    def _room(self, size: int) -> int:
        address = self._gpu.allocate(size, "the image")
        self._held.append(address)
        return address

    def _constant(self, table: npt.NDArray) -> int:
        pinned = self._gpu.pinned(table.shape, table.dtype, "the resizing tables")
        self._held.append(pinned)
        np.copyto(pinned, table)
        address = self._room(table.nbytes)
        self._gpu.upload(address, pinned)
        return address


@dataclass(frozen=True)
class Applied:
    """A kernel of the fit that is ready: launch() computes on the device, result() fetches."""

    gpu: Gpu
    launch: Launch
    depth: int
    target: npt.NDArray
    held: tuple[int | npt.NDArray, ...]

    def result(self) -> npt.NDArray[np.float32]:
        """(H, W) metres of the last launch."""
        self.gpu.download(self.target, self.depth)
        self.gpu.wait()
        return self.target.copy()

    def close(self) -> None:
        """Give the buffers back."""
        for held in self.held:
            self.gpu.release(held)


def table_applied(
    loaded: CompiledKernels,
    relative: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer] | None,
    table: npt.NDArray[np.float64],
    least: float,
) -> Applied:
    """kernels.apply_table on the device."""
    arrays: list[npt.NDArray] = [relative.astype(np.float32), table.astype(np.float64)]
    if labels is not None:
        arrays.append(labels.astype(np.int32))

    def arguments(places: Sequence[int], depth: int) -> list[Argument]:
        height, width = relative.shape
        return [
            ctypes.c_void_p(places[0]),
            ctypes.c_void_p(places[2] if labels is not None else 0),
            ctypes.c_void_p(places[1]),
            *(ctypes.c_int(number) for number in (len(table), height, width)),
            ctypes.c_double(least),
            ctypes.c_void_p(depth),
        ]

    return _applied(loaded, "apply_table", arrays, relative.shape, arguments)


def grid_applied(
    loaded: CompiledKernels,
    values: npt.NDArray[np.float32],
    factor: npt.NDArray[np.float32],
    line: gpu_kernels.Line,
) -> Applied:
    """kernels.apply_grid on the device."""
    arrays: list[npt.NDArray] = [values.astype(np.float32), factor.astype(np.float32)]
    numbers = (line.scale, line.shift, *line.bounds, line.min_depth_m, line.max_depth_m)

    def arguments(places: Sequence[int], depth: int) -> list[Argument]:
        sizes = (*factor.shape, *values.shape, gpu_kernels.SPACES[line.space])
        return [
            *(ctypes.c_void_p(place) for place in places),
            *(ctypes.c_int(number) for number in sizes),
            *(ctypes.c_float(number) for number in numbers),
            ctypes.c_void_p(depth),
        ]

    return _applied(loaded, "apply_grid", arrays, values.shape, arguments)


def _applied(
    loaded: CompiledKernels,
    name: str,
    arrays: Sequence[npt.NDArray],
    shape: tuple[int, ...],
    arguments: Callable[[Sequence[int], int], list[Argument]],
) -> Applied:
    gpu = loaded.gpu
    gpu.begin()
    held: list[int | npt.NDArray] = []
    places: list[int] = []
    try:
        for array in arrays:
            pinned = gpu.pinned(array.shape, array.dtype, name)
            held.append(pinned)
            np.copyto(pinned, array)
            places.append(gpu.allocate(array.nbytes, name))
            held.append(places[-1])
            gpu.upload(places[-1], pinned)
        target = gpu.pinned(shape, np.float32, name)
        held.append(target)
        depth = gpu.allocate(target.nbytes, name)
        held.append(depth)
        gpu.wait()
    except EngineError:
        for one in held:
            gpu.release(one)
        raise
    launch = loaded.prepare(name, shape[0], shape[1], arguments(places, depth))
    return Applied(gpu, launch, depth, target, tuple(held))
