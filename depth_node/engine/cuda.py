# SPDX-License-Identifier: Apache-2.0
"""Use of the GPU through cuda-python: memory, one stream, graphs and the package's kernels.

Needs cuda-python (cuda.bindings) 12.6 or later, or 13. NVRTC compiles the kernels when they are
loaded. A :class:`Gpu` owns all its resources on the device and frees them when it is closed.
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

# Everything that this file uses of cuda.bindings: functions with the number of their parameters and
# of the values that they return, enum members, constants. Tests compare the table with this file
# and with the real bindings of several versions.
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
    """Return the reason why no GPU can be used here, with the cure; "" if one can be used."""
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
    return f"the GPU cannot be used ({_error_text(error)}): try nvidia-smi"


def _versions() -> tuple[int, int]:
    """Return the CUDA versions of the driver (0: no driver) and of the runtime, such as 12040."""
    return int(runtime.cudaDriverGetVersion()[1] or 0), int(runtime.cudaRuntimeGetVersion()[1])


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _error_text(error: Any) -> str:
    """Return the name and description of a cudaError_t."""
    text = runtime.cudaGetErrorString(error)[1]
    return f"{error.name}: {text.decode() if isinstance(text, bytes) else text}"


def _runtime_value(result: Sequence[Any], operation: str) -> Any:
    """Return the value of a CUDA runtime call from its result (error, value...).

    Raises EngineError if the call failed.
    """
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        raise EngineError(
            f"{operation} failed on the GPU ({_error_text(error)}): the node must be started again"
            " if this goes on, as a GPU error stays"
        )
    return values[0] if values else None


def _driver_value(result: Sequence[Any], operation: str) -> Any:
    """Return the value of a CUDA driver call likewise. Raises EngineError if the call failed."""
    error, *values = result
    if error != driver.CUresult.CUDA_SUCCESS:
        raise EngineError(f"{operation} failed on the GPU ({error.name}): update the NVIDIA driver")
    return values[0] if values else None


# --- the device ----------------------------------------------------------------------------------


class Gpu(Closeable):
    """The first GPU, with one stream and with memory that close() frees.

    name, capability (such as "8.7"), driver and runtime (CUDA versions) identify it. The
    constructor raises EngineError if no GPU can be used.
    """

    def __init__(self) -> None:
        reason = missing()
        if reason:
            raise EngineError(f"there is no GPU to run on: {reason}")
        self._owned: dict[int, Callable[[], Any]] = {}
        self._thread = 0
        self.closed = False
        self.stream = 0
        self._select_device()
        _runtime_value(runtime.cudaFree(0), "starting CUDA")  # creates the context
        properties = _runtime_value(
            runtime.cudaGetDeviceProperties(_DEVICE), "asking for the device"
        )
        name = (
            properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        )
        self.name = name.partition("\0")[0]
        self.capability = f"{properties.major}.{properties.minor}"
        driver_version, runtime_version = _versions()
        self.driver, self.runtime = _dotted(driver_version), _dotted(runtime_version)
        stream = _runtime_value(
            runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking), "making a stream"
        )
        self._stream = stream
        self.stream = int(stream)

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the device."""
        self._select_device()
        error, free, total = runtime.cudaMemGetInfo()
        _runtime_value((error,), "asking for free memory")
        return int(free), int(total)

    def allocate(self, size: int, purpose: str) -> int:
        """Allocate `size` bytes on the device and return the address.

        purpose: what the memory is for, as error messages name it. Raises EngineError.
        """
        self._select_device()
        return self._own(runtime.cudaMalloc(max(size, 1)), runtime.cudaFree, size, purpose, "GPU")

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike, purpose: str) -> npt.NDArray[Any]:
        """Return an array such as (H, W, 3) in page-locked memory, valid until it is released.

        purpose: as in allocate(). Raises EngineError.
        """
        self._select_device()
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        result = runtime.cudaHostAlloc(max(size, 1), 0)
        address = self._own(result, runtime.cudaFreeHost, size, purpose, "pinned")
        content = (ctypes.c_uint8 * max(size, 1)).from_address(address)
        return np.frombuffer(memoryview(content), np.uint8, size).view(dtype).reshape(tuple(shape))

    def _own(
        self, result: Sequence[Any], free: Callable[[int], Any], size: int, purpose: str, kind: str
    ) -> int:
        if result[0] == runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise self.out_of_memory_error(size, f"{purpose} ({kind} memory)")
        address = int(_runtime_value(result, f"taking memory for {purpose}"))
        self._owned[address] = lambda: free(address)
        return address

    def out_of_memory_error(self, size: int, purpose: str) -> EngineError:
        """Return the error to raise for `size` bytes that could not be allocated."""
        runtime.cudaGetLastError()  # clears the error: the next call may succeed
        free, total = self.memory()
        return EngineError(
            f"{purpose} needs {size / _MB:.0f} MB and {free / _MB:.0f} of the {total / _MB:.0f} MB"
            f" of {self.name} are free: end other programs on the GPU, or take a smaller model or"
            " input"
        )

    def release(self, buffer: int | npt.NDArray[Any]) -> None:
        """Free a device address or a pinned array, such as (H, W, 3), before close()."""
        address = buffer if isinstance(buffer, int) else buffer.ctypes.data
        free = self._owned.pop(address, None)
        if free is not None:
            free()

    def upload(self, target: int, source: npt.NDArray[Any]) -> None:
        """Enqueue the copy of a pinned array, such as (H, W, 3), to the device."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        result = runtime.cudaMemcpyAsync(
            target, source.ctypes.data, source.nbytes, kind, self._stream
        )
        _runtime_value(result, "copying to the device")

    def download(self, target: npt.NDArray[Any], source: int) -> None:
        """Enqueue the copy from the device into a pinned array, such as (H, W)."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        result = runtime.cudaMemcpyAsync(
            target.ctypes.data, source, target.nbytes, kind, self._stream
        )
        _runtime_value(result, "copying from the device")

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueue the copy of `size` bytes on the device."""
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        result = runtime.cudaMemcpyAsync(target, source, size, kind, self._stream)
        _runtime_value(result, "copying on the device")

    def begin(self) -> None:
        """Select the device for this thread; must be called before the first operation of a run.

        Raises EngineError if the Gpu is closed.
        """
        if self.closed:
            raise EngineError("the GPU was given back: open the model again")
        self._select_device()

    def wait(self) -> None:
        """Wait until all operations of the stream are done."""
        _runtime_value(runtime.cudaStreamSynchronize(self._stream), "running the network")

    def capture(self, work: Launch) -> Launch:
        """Capture the operations that `work` enqueues as a graph; return a function to launch it.

        Raises EngineError if they cannot be captured.
        """
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _runtime_value(runtime.cudaStreamBeginCapture(self._stream, mode), "capturing a graph")
        try:
            work()
        except BaseException:
            graph = runtime.cudaStreamEndCapture(self._stream)[1]
            if graph is not None and int(graph):
                runtime.cudaGraphDestroy(graph)
            runtime.cudaGetLastError()  # clears the error of the capture
            raise
        result = runtime.cudaStreamEndCapture(self._stream)
        runtime.cudaGetLastError()
        graph = _runtime_value(result, "capturing a graph")
        try:
            instance = _runtime_value(runtime.cudaGraphInstantiate(graph, 0), "making a graph")
        finally:
            runtime.cudaGraphDestroy(graph)
        self._owned[int(instance)] = lambda: runtime.cudaGraphExecDestroy(instance)
        return lambda: _runtime_value(
            runtime.cudaGraphLaunch(instance, self._stream), "launching the graph"
        )

    def milliseconds(self, work: Launch, times: int) -> float:
        """Return the mean device time of `work` in ms over `times` consecutive calls."""
        start, end = (_runtime_value(runtime.cudaEventCreate(), "timing") for _ in range(2))
        try:
            _runtime_value(runtime.cudaEventRecord(start, self._stream), "timing")
            for _ in range(times):
                work()
            _runtime_value(runtime.cudaEventRecord(end, self._stream), "timing")
            _runtime_value(runtime.cudaEventSynchronize(end), "timing")
            return float(_runtime_value(runtime.cudaEventElapsedTime(start, end), "timing")) / times
        finally:
            for event in (start, end):
                runtime.cudaEventDestroy(event)

    def own(self, address: int, free: Callable[[], Any]) -> None:
        """Let close() call `free`. close() frees all resources in reverse order."""
        self._owned[address] = free

    def close(self) -> None:
        """Free all resources. May be called twice, and after a GPU error."""
        if self.closed:
            return
        self.closed = True
        runtime.cudaSetDevice(_DEVICE)
        if self.stream:
            runtime.cudaStreamSynchronize(self._stream)
        for free in list(self._owned.values())[::-1]:
            free()
        self._owned.clear()
        if self.stream:
            runtime.cudaStreamDestroy(self._stream)
            self.stream = 0

    def _select_device(self) -> None:
        """Select the device for this thread: CUDA has a current device per thread."""
        thread = threading.get_ident()
        if thread != self._thread:
            _runtime_value(runtime.cudaSetDevice(_DEVICE), "choosing the GPU")
            self._thread = thread


# --- kernels -------------------------------------------------------------------------------------


def compile_source(capability: str) -> bytes:
    """Compile the kernels to machine code for a compute capability such as "8.7".

    For a GPU that this NVRTC does not know yet the result is PTX, which the driver compiles. Raises
    EngineError if NVRTC is missing or cannot compile.
    """
    try:
        known = [int(arch) for arch in nvrtc.nvrtcGetSupportedArchs()[1]]
    except Exception as error:  # cuda-python raises several kinds where the library is missing
        raise EngineError(
            f"NVRTC, which compiles the kernels, cannot be loaded ({' '.join(str(error).split())}):"
            " pip install nvidia-cuda-nvrtc (CUDA 13) or nvidia-cuda-nvrtc-cu12"
        ) from error
    number = int(capability.replace(".", ""))
    native = number in known
    older = [arch for arch in known if arch <= number]
    if not older:
        raise EngineError(
            f"this NVRTC compiles for GPUs of compute capability {min(known) / 10:g} and later, not"
            f" {capability}: install the CUDA 12 packages"
        )
    arch = f"sm_{number}" if native else f"compute_{max(older)}"
    program = _nvrtc_value(
        nvrtc.nvrtcCreateProgram(gpu_kernels.SOURCE.encode(), b"depth_node.cu", 0, [], [])
    )
    try:
        options = [f"--gpu-architecture={arch}".encode(), b"--std=c++17"]
        (state,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if state != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _nvrtc_value(nvrtc.nvrtcGetProgramLogSize(program))
            nvrtc.nvrtcGetProgramLog(program, log)
            text = " ".join(log.decode(errors="replace").split())
            raise EngineError(
                f"the kernels do not compile for {arch} ({text[:300]}): install a cuda-python that"
                " knows this GPU, or set model.backend to onnxruntime-cpu"
            )
        size, code = (
            (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
            if native
            else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
        )
        binary = b" " * _nvrtc_value(size(program))
        _nvrtc_value(code(program, binary))
        return binary
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc_value(result: Sequence[Any]) -> Any:
    """Return the value of a call of NVRTC. Raises EngineError if the call failed."""
    error, *values = result
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EngineError(f"NVRTC failed ({error.name}): install it again")
    return values[0] if values else None


class CompiledKernels:
    """The kernels, compiled and loaded on a device; closing the Gpu unloads them.

    The constructor raises EngineError as compile_source() does, or if the driver cannot load them.
    """

    def __init__(self, gpu: Gpu) -> None:
        code = compile_source(gpu.capability)
        gpu.begin()
        self.gpu = gpu
        module = _driver_value(driver.cuModuleLoadData(code), "loading the kernels")
        gpu.own(int(module), lambda: driver.cuModuleUnload(module))
        self._functions = {
            name: _driver_value(
                driver.cuModuleGetFunction(module, name.encode()), f"finding {name}"
            )
            for name in ("image_to_tensor", "apply_table", "apply_grid")
        }

    def prepare(self, name: str, height: int, width: int, arguments: Sequence[Argument]) -> Launch:
        """Return a function that launches a kernel with one thread per pixel of height x width."""
        function = self._functions[name]
        block_x, block_y = gpu_kernels.BLOCK
        grid = (-(-width // block_x), -(-height // block_y))
        values = list(arguments)
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        stream = self.gpu.stream

        def launch() -> None:
            assert values  # keeps the values alive: the pointers point to them
            result = driver.cuLaunchKernel(
                function, *grid, 1, block_x, block_y, 1, 0, stream, ctypes.addressof(pointers), 0
            )
            _driver_value(result, f"launching {name}")

        return launch


class ImageInput:
    """Conversion of images (H, W, 3) of one size to the input tensor on the device, by one kernel.

    The constructor raises EngineError if memory runs out.
    """

    def __init__(
        self,
        loaded: CompiledKernels,
        height: int,
        width: int,
        resampling: gpu_kernels.Resampling,
        tensor: int,
    ) -> None:
        """Allocate buffers. tensor: device address of the (1, 3, height, width) input tensor."""
        gpu = loaded.gpu
        self.shape = (height, width, 3)
        self._gpu = gpu
        self._buffers: list[int | npt.NDArray[Any]] = []
        try:
            self._image = gpu.pinned(self.shape, np.uint8, "the image")
            self._buffers.append(self._image)
            self._target = self._allocate(self._image.nbytes)
            rows, cols = resampling.rows, resampling.cols
            tables = [rows.index, rows.weight, cols.index, cols.weight]
            addresses = [self._constant(table) for table in tables]
            gpu.wait()
        except EngineError:
            self.close()
            raise
        pointer, whole, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
        spec = resampling.spec
        channels = (resampling.first_channel, resampling.channel_step)
        numbers = (*resampling.box, spec.height, spec.width, *channels)
        factors = (*resampling.gains, *resampling.offsets)
        self._launch = loaded.prepare(
            "image_to_tensor",
            spec.height,
            spec.width,
            [
                pointer(self._target),
                whole(3 * width),
                pointer(addresses[0]),
                pointer(addresses[1]),
                whole(rows.index.shape[1]),
                pointer(addresses[2]),
                pointer(addresses[3]),
                whole(cols.index.shape[1]),
                *(whole(number) for number in numbers),
                *(real(float(value)) for value in factors),
                whole(resampling.fixed_point),
                whole(gpu_kernels.TENSOR_TYPES[spec.dtype]),
                pointer(tensor),
            ],
        )

    def enqueue(self, image: npt.NDArray[np.uint8]) -> None:
        """Enqueue the copy of an image (H, W, 3) to the device and its conversion to the tensor."""
        np.copyto(self._image, image)
        self._gpu.upload(self._target, self._image)
        self._launch()

    def launch(self) -> None:
        """Enqueue the conversion of the image that is on the device again; for timings."""
        self._launch()

    def close(self) -> None:
        """Free the buffers."""
        for buffer in self._buffers:
            self._gpu.release(buffer)
        self._buffers.clear()

    def _allocate(self, size: int) -> int:
        address = self._gpu.allocate(size, "the image")
        self._buffers.append(address)
        return address

    def _constant(self, table: npt.NDArray[Any]) -> int:
        pinned = self._gpu.pinned(table.shape, table.dtype, "the resizing tables")
        self._buffers.append(pinned)
        np.copyto(pinned, table)
        address = self._allocate(table.nbytes)
        self._gpu.upload(address, pinned)
        return address


@dataclass(frozen=True)
class PreparedKernel:
    """A kernel of the fit with its inputs on the device: launch() runs it, result() downloads."""

    gpu: Gpu
    launch: Launch
    depth: int
    target: npt.NDArray[Any]
    buffers: tuple[int | npt.NDArray[Any], ...]

    def result(self) -> npt.NDArray[np.float32]:
        """Return the (H, W) depths in m of the last launch."""
        self.gpu.download(self.target, self.depth)
        self.gpu.wait()
        return self.target.copy()

    def close(self) -> None:
        """Free the buffers."""
        for buffer in self.buffers:
            self.gpu.release(buffer)


def prepare_table(
    loaded: CompiledKernels,
    relative: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer] | None,
    table: npt.NDArray[np.float64],
    min_disparity: float,
) -> PreparedKernel:
    """Prepare gpu_kernels.apply_table on the device: relative and labels (H, W), table (K+1, 6).

    Raises EngineError if memory runs out.
    """
    arrays: list[npt.NDArray[Any]] = [relative.astype(np.float32), table.astype(np.float64)]
    if labels is not None:
        arrays.append(labels.astype(np.int32))

    def arguments(addresses: Sequence[int], depth: int) -> list[Argument]:
        height, width = relative.shape
        return [
            ctypes.c_void_p(addresses[0]),
            ctypes.c_void_p(addresses[2] if labels is not None else 0),
            ctypes.c_void_p(addresses[1]),
            *(ctypes.c_int(number) for number in (len(table), height, width)),
            ctypes.c_double(min_disparity),
            ctypes.c_void_p(depth),
        ]

    return _prepared(loaded, "apply_table", arrays, relative.shape, arguments)


def prepare_grid(
    loaded: CompiledKernels,
    values: npt.NDArray[np.float32],
    factor: npt.NDArray[np.float32],
    line: gpu_kernels.Line,
) -> PreparedKernel:
    """Prepare gpu_kernels.apply_grid on the device: values (H, W), factor (h, w).

    Raises EngineError if memory runs out.
    """
    arrays: list[npt.NDArray[Any]] = [values.astype(np.float32), factor.astype(np.float32)]
    numbers = (line.scale, line.shift, *line.bounds, line.min_depth_m, line.max_depth_m)

    def arguments(addresses: Sequence[int], depth: int) -> list[Argument]:
        sizes = (*factor.shape, *values.shape, gpu_kernels.SPACES[line.space])
        return [
            *(ctypes.c_void_p(address) for address in addresses),
            *(ctypes.c_int(number) for number in sizes),
            *(ctypes.c_float(number) for number in numbers),
            ctypes.c_void_p(depth),
        ]

    return _prepared(loaded, "apply_grid", arrays, values.shape, arguments)


def _prepared(
    loaded: CompiledKernels,
    name: str,
    arrays: Sequence[npt.NDArray[Any]],
    shape: tuple[int, ...],
    arguments: Callable[[Sequence[int], int], list[Argument]],
) -> PreparedKernel:
    gpu = loaded.gpu
    gpu.begin()
    buffers: list[int | npt.NDArray[Any]] = []
    addresses: list[int] = []
    try:
        for array in arrays:
            pinned = gpu.pinned(array.shape, array.dtype, name)
            buffers.append(pinned)
            np.copyto(pinned, array)
            addresses.append(gpu.allocate(array.nbytes, name))
            buffers.append(addresses[-1])
            gpu.upload(addresses[-1], pinned)
        target = gpu.pinned(shape, np.float32, name)
        buffers.append(target)
        depth = gpu.allocate(target.nbytes, name)
        buffers.append(depth)
        gpu.wait()
    except EngineError:
        for buffer in buffers:
            gpu.release(buffer)
        raise
    launch = loaded.prepare(name, shape[0], shape[1], arguments(addresses, depth))
    return PreparedKernel(gpu, launch, depth, target, tuple(buffers))
