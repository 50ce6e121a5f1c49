# SPDX-License-Identifier: Apache-2.0
"""Back end for TensorRT 10 and 11: strongly typed networks made from typed ONNX files.

The types in the ONNX file decide the precision (``depth_tools models convert``), because TensorRT
11 has no other way to set it. Built engines are stored by their identity (cache.py). USED lists
everything that this file uses of TensorRT; tests compare it with this file and with the real
bindings of several versions.

An engine is built in a child process, which runs this file as its main module: a crash inside the
library ends that process and not the node, and a build can be ended at any time.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorrt as trt

from depth_node.engine import BackendError, EngineError, cuda, depth_tools
from depth_node.engine.build_process import BuildError, build_apart, serve
from depth_node.engine.cache import CachedEngine, Identity
from depth_node.engine.gpu_kernels import Resampling
from depth_node.engine.manifest import PROMPT_DECODER, Manifest
from depth_node.engine.model_file import fault_of
from depth_node.engine.options import OpenRequest
from depth_node.engine.preprocess import to_tensor
from depth_node.engine.protocol import Closeable, Progress, check_tensor, check_tensors
from depth_node.prediction import DEPTH_MEANINGS
from depth_node.sentences import one_line

# What this file uses of every class: properties, enum members, methods with their parameters.
USED: dict[str, tuple[str, ...]] = {
    "tensorrt": (
        "__version__", "Builder", "ILogger", "IProgressMonitor", "MemoryPoolType",
        "NetworkDefinitionCreationFlag", "OnnxParser", "Runtime", "TensorIOMode",
        "nptype(trt_type)",
    ),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "MemoryPoolType": ("WORKSPACE",),
    "TensorIOMode": ("INPUT",),
    "ILogger": ("Severity", "ERROR", "__init__()"),
    "IProgressMonitor": ("__init__()",),
    "Builder": (
        "__init__(logger)", "create_network(flags)", "create_builder_config()",
        "create_optimization_profile()", "build_serialized_network(network, config)",
    ),
    "INetworkDefinition": ("num_inputs", "get_input(index)"),
    "ITensor": ("name", "shape"),
    "IOptimizationProfile": ("set_shape(input, min, opt, max)",),
    "IBuilderConfig": (
        "progress_monitor", "set_memory_pool_limit(pool, pool_size)",
        "add_optimization_profile(profile)",
    ),
    "OnnxParser": (
        "__init__(network, logger)", "parse_from_file(model)", "num_errors", "get_error(index)",
    ),
    "ParserError": ("desc()", "node_name()", "node_operator()"),
    "Runtime": ("__init__(logger)", "deserialize_cuda_engine(serialized_engine)"),
    "ICudaEngine": (
        "num_io_tensors", "get_tensor_name(index)", "get_tensor_mode(name)",
        "get_tensor_shape(name)", "get_tensor_dtype(name)", "create_execution_context()",
        "device_memory_size_v2",
    ),
    "IExecutionContext": (
        "set_input_shape(name, shape)", "get_tensor_shape(name)",
        "set_tensor_address(name, memory)", "execute_async_v3(stream_handle)",
    ),
}  # fmt: skip

MAJORS = (10, 11)


def _wrong_version(version: str) -> str:
    if version.split(".")[0] in map(str, MAJORS):
        return ""
    return (
        f"TensorRT {version} is installed, but 10 or 11 is needed: pip install 'tensorrt>=10,<12'"
    )


# Classes below derive from these, and TensorRT 8 does not have both.
if not (hasattr(trt, "ILogger") and hasattr(trt, "IProgressMonitor")):
    raise BackendError(
        _wrong_version(trt.__version__)
        or f"TensorRT {trt.__version__} is installed without parts of it: install it again"
    )

_LOG_INTERVAL_S = 10.0
_LARGE_PART = 0.1  # fraction of the GPU's memory; a decoder that needs more gets a warning
_log = logging.getLogger("depth_node.engine")


def missing() -> str:
    """Return the reason why TensorRT cannot be used here, with the cure; "" if it can.

    A TensorRT that lacks what this module derives from is a BackendError when it is imported.
    """
    return _wrong_version(trt.__version__) or cuda.missing()


def known_trouble(version: str, manifest: Manifest) -> str:
    """Describe a known fault of this TensorRT version with this model; "" if none is known."""
    if (
        version.split(".")[:2] == ["10", "3"]
        and manifest.patch_size
        and manifest.meaning in DEPTH_MEANINGS
    ):
        return (
            f"TensorRT {version} is known to give wrong depth for transformers such as"
            f" {manifest.name} without an error: use a later one (docs/engines.md)"
        )
    return ""


def open_tensorrt(request: OpenRequest) -> TrtEngine:
    """Open the engine of a model; build it if the cache does not have it.

    Raises EngineError if TensorRT or the GPU cannot be used, if the engine is missing and must not
    or cannot be built, or if it contradicts the manifest.
    """
    version = trt.__version__
    reason = _wrong_version(version)
    if reason:
        raise EngineError(f"back end tensorrt cannot be used here: {reason}")
    trouble = known_trouble(version, request.manifest)
    if trouble:
        _log.warning("%s", trouble)
    gpu = cuda.Gpu()
    try:
        identity = Identity(
            model_sha256=request.manifest.sha256,
            builder=f"TensorRT {version}",
            gpu=gpu.name,
            compute_capability=gpu.capability,
            precision=f"as typed, input {request.manifest.input.dtype}",
            shapes=request.manifest.input_shapes,
            options={"strongly_typed": True, "workspace_mb": request.engine.workspace_mb},
        )
        cached = _cached_engine(request, identity, gpu)
        try:
            engine = TrtEngine(cached.plan, request.manifest, gpu)
        except PlanError:
            # The file is intact, but this TensorRT cannot load it, so it must be built again.
            request.cache.discard(identity)
            if cached.built:
                raise
            cached = _cached_engine(request, identity, gpu)
            engine = TrtEngine(cached.plan, request.manifest, gpu)
    except BaseException:
        gpu.close()
        raise
    warnings = [text for text in (trouble, engine.details.get("warning", "")) if text]
    if warnings:
        engine.details["warning"] = "; ".join(warnings)
    engine.details |= {
        "key": identity.key,
        "engine file": str(cached.path),
        "built": f"{cached.metadata['built']} in {cached.metadata['build_seconds']:g} s",
        "model": str(request.model),
        "sha256": request.manifest.sha256,
    }
    return engine


def _cached_engine(request: OpenRequest, identity: Identity, gpu: cuda.Gpu) -> CachedEngine:
    """Return the engine from the cache; if it is missing, build it and store it there."""
    config = request.config
    command = depth_tools(f"models build {config.path}")
    for option, value, default in (
        ("--manifest", config.manifest, ""),
        ("--precision", config.precision, "file"),
        ("--workspace-mb", request.engine.workspace_mb, 0),
        ("--cache-dir", request.engine.cache_dir, ""),
    ):
        if value != default:
            command += f" {option} {value}"
    return request.cache.obtain(
        identity,
        lambda: build_plan(
            request.model, request.manifest, request.engine.workspace_mb, gpu, request.progress
        ),
        may_build=request.engine.build,
        command=command,
        metadata={"model": request.model.name, "driver": gpu.driver, "cuda": gpu.runtime},
    )


# --- building ------------------------------------------------------------------------------------


class _Logger(trt.ILogger):
    """Logger that stores TensorRT's last errors: its calls return only that they failed."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=5)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if int(severity) <= int(trt.ILogger.ERROR):  # INTERNAL_ERROR is 0, ERROR 1
            self.errors.append(one_line(msg, 2000))
        elif int(severity) == 2:  # WARNING
            _log.info("TensorRT warns: %s", one_line(msg, 2000))
        else:
            _log.debug("TensorRT: %s", msg)  # not shortened: a dump of all layers is one message

    def error_text(self) -> str:
        """Return the last errors as part of a sentence."""
        text = "; ".join(self.errors) or "TensorRT gives no reason"
        return text if len(text) <= 400 else text[:400] + "…"

    def is_out_of_memory(self) -> bool:
        """Return whether the last errors say that memory ran out."""
        text = " ".join(self.errors).lower().replace(" ", "")
        return "outofmemory" in text or "out_of_memory" in text or "cudamalloc" in text

    def needs_workspace(self) -> bool:
        """Return whether the last errors mention the workspace, which was then too small."""
        return "workspace" in " ".join(self.errors).lower()


@functools.cache
def _logger() -> _Logger:
    """Return the one logger of this process: TensorRT keeps using the first one that it gets."""
    return _Logger()


class _Monitor(trt.IProgressMonitor):
    """Progress monitor that forwards a build's progress and can end the build.

    The build ends when `stop` returns true or the progress callback raises. TensorRT swallows
    exceptions, so none may pass through it: signal handlers only record a signal, which `stop`
    reports, and an exception of the callback is kept in `stopped`.
    """

    def __init__(self, progress: Progress | None, stop: Callable[[], bool] = lambda: False) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress, self._stop = progress, stop
        self._phases: dict[str, list[int]] = {}
        self.stopped: BaseException | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT."""
        self._phases[phase_name] = [0, num_steps]
        self._report(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False ends the build."""
        self._phases.setdefault(phase_name, [0, 0])[0] = step + 1
        self._report(phase_name)
        return self.stopped is None and not self._stop()

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT."""
        self._phases.pop(phase_name, None)

    def _report(self, phase: str) -> None:
        if self._progress is None or self.stopped is not None:
            return
        try:
            self._progress(phase, *self._phases[phase])
        except BaseException as error:
            self.stopped = error


def build_plan(
    model: Path, manifest: Manifest, workspace_mb: int, gpu: cuda.Gpu, progress: Progress | None
) -> bytes:
    """Build the serialised engine of an ONNX file for this GPU, which takes minutes.

    In the main thread SIGINT and SIGTERM end the build within seconds. Raises EngineError if
    TensorRT cannot read or build the file, if memory runs out or if the child process ends early,
    and every exception of the progress callback.
    """
    fault = fault_of(model)
    if fault:
        raise EngineError(fault)
    given = {
        "model": str(model),
        "shapes": {name: list(shape) for name, shape in manifest.input_shapes.items()},
        "workspace_mb": workspace_mb,
    }
    version = f"TensorRT {trt.__version__}"
    try:
        return build_apart(__name__, given, progress or _LogProgress())
    except BuildError as failure:
        kind, reason = failure.args
    if kind == "memory":
        raise gpu.out_of_memory_error(gpu.memory()[1], f"building the engine of {manifest.name}")
    sentences = {
        "start": f"the engine of {model} is built by a process of its own, which cannot be started:"
        f" {reason}; end other programs, or install Python there again",
        "read": f"{version} cannot read {model} ({reason}): export it with opset 17 to 20, or use"
        " another back end",
        "workspace": f"{version} cannot build an engine of {model} with engine.workspace_mb:"
        f" {workspace_mb} ({reason}): raise engine.workspace_mb (--workspace-mb), or set it"
        " to 0 for all of the GPU's memory; if that is full, end other programs on the GPU",
        "build": f"{version} cannot build an engine of {model} ({reason}): use another version,"
        " model.precision or back end",
        "ended": f"{version} ended its process with {reason} while it built an engine of {model}:"
        " use another version or back end, or export the model with opset 17 to 20",
        "stopped": f"the build of {model} was stopped: start it again",
    }
    raise EngineError(sentences[kind])


class _LogProgress:
    """Progress callback that logs at most once every _LOG_INTERVAL_S seconds."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if time.monotonic() - self._last_s > _LOG_INTERVAL_S:
            self._last_s = time.monotonic()
            _log.info("building the engine: %s, %d of %d", phase, done, total)


def build_here(
    given: Mapping[str, Any],
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bytes:
    """Build an engine in this process. Raises BuildError and every exception of `progress`.

    given: "model" (path of the file), "shapes" of the inputs by name, and "workspace_mb". stop:
    returns whether the build should end.
    """
    logger = _logger()
    logger.errors.clear()
    builder = trt.Builder(logger)
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(given["model"]):
        reasons = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            text = " ".join(error.desc().split())
            named = " ".join(part for part in (error.node_operator(), error.node_name()) if part)
            reasons.append(f"operator {named}: {text}" if named else text)
        raise BuildError("read", "; ".join(reasons[:3]) or logger.error_text())
    config = builder.create_builder_config()
    monitor = _Monitor(progress, stop)
    config.progress_monitor = monitor
    if given["workspace_mb"]:
        pool_size = given["workspace_mb"] * 1_000_000
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, pool_size)
    _fix_shapes(builder, network, config, given["shapes"])
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped is not None:
        raise monitor.stopped
    if stop():
        raise BuildError("stopped", "")
    if plan is None:
        kind = "build"
        if given["workspace_mb"] and (logger.needs_workspace() or logger.is_out_of_memory()):
            # TensorRT reports a workspace that is too small as a lack of memory, however much
            # memory the GPU has.
            kind = "workspace"
        elif logger.is_out_of_memory():
            kind = "memory"
        raise BuildError(kind, logger.error_text())
    return bytes(plan)


def _fix_shapes(
    builder: Any, network: Any, config: Any, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Set input sizes that the file leaves open to those of the manifest (`shapes`)."""
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = shapes.get(tensor.name)
        if shape is None or -1 not in tuple(tensor.shape):
            continue
        if profile is None:
            profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, shape, shape, shape)
    if profile is not None:
        config.add_optimization_profile(profile)


# --- running -------------------------------------------------------------------------------------


class PlanError(EngineError):
    """This TensorRT cannot load a serialised engine."""


class TrtEngine(Closeable):
    """A network on TensorRT: fixed buffers, one stream, and a CUDA graph if one can be captured.

    close() also closes the Gpu. The constructor raises EngineError if the engine cannot be made;
    the caller must then close the Gpu.
    """

    backend = "tensorrt"

    def __init__(self, plan: bytes, manifest: Manifest, gpu: cuda.Gpu) -> None:
        self.manifest = manifest
        self.details: dict[str, Any] = {
            "backend": self.backend,
            "version": trt.__version__,
            "gpu": f"{gpu.name} (compute capability {gpu.capability})",
            "driver": f"CUDA {gpu.driver}, cuda-python's runtime {gpu.runtime}",
        }
        self._gpu = gpu
        # TensorRT's objects must be released in this order: context, engine, runtime.
        self._logger = _logger()
        self._logger.errors.clear()
        self._runtime: Any = trt.Runtime(self._logger)
        self._engine: Any = None
        self._context: Any = None
        self._inputs: dict[str, tuple[npt.NDArray[Any], int]] = {}
        self._outputs: dict[str, tuple[npt.NDArray[Any], int]] = {}
        self._kernels: cuda.CompiledKernels | None = None
        self._image: cuda.ImageInput | None = None
        self._launch: cuda.Launch = self._enqueue
        self._open = True
        try:
            self._deserialize(plan)
            self._make_context()
            self._bind()
            self._warm_up()
            self._load_kernels()
        except BaseException:
            self._release()
            raise

    def run(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See Engine.run: (1, 3, height, width) -> usually (1, h, w). Raises EngineError."""
        self._check_open()
        check_tensor(tensor, self.manifest)
        return self._run({self.manifest.input_name: tensor})[self.manifest.output_name]

    def run_named(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See Engine.run_named: tensors of shapes such as (n, 2) by name. Raises EngineError."""
        self._check_open()
        check_tensors(tensors, self.manifest)
        return self._run(tensors)

    def run_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """See ImageEngine.run_image: (H, W, 3) uint8 RGB. Raises EngineError."""
        return self.run_image_named(image)[self.manifest.output_name]

    def run_image_named(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """See ImageEngine.run_image_named: (H, W, 3) uint8 RGB. Raises EngineError."""
        if self._kernels is None:
            return self.run_named({self.manifest.input_name: to_tensor(image, self.manifest.input)})
        self._check_open()
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise EngineError(
                f"image has shape {image.shape} and type {image.dtype}: give (H, W, 3) uint8 RGB"
            )
        self._gpu.begin()
        if self._image is None or self._image.shape != image.shape:
            if self._image is not None:
                self._image.close()
                self._image = None
            height, width = image.shape[:2]
            resampling = Resampling.of(height, width, self.manifest.input)
            address = self._inputs[self.manifest.input_name][1]
            self._image = cuda.ImageInput(self._kernels, height, width, resampling, address)
        self._image.enqueue(image)
        self._launch()
        self._gpu.wait()
        return {name: self._copied_output(name) for name in self.manifest.output_names}

    def close(self) -> None:
        """See Engine.close."""
        self._release()
        self._gpu.close()

    def _check_open(self) -> None:
        if not self._open:
            raise EngineError(f"model {self.manifest.name} is closed: open it again")

    def _run(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        self._gpu.begin()
        for name, tensor in tensors.items():
            pinned, address = self._inputs[name]
            np.copyto(pinned, tensor)
            self._gpu.upload(address, pinned)
        self._launch()
        self._gpu.wait()
        return {name: self._copied_output(name) for name in self.manifest.output_names}

    def _copied_output(self, name: str) -> npt.NDArray[Any]:
        """A copy of an output; FP16 becomes float32."""
        pinned = self._outputs[name][0]
        return pinned.astype(np.float32 if pinned.dtype == np.float16 else pinned.dtype)

    def _enqueue(self) -> None:
        """Enqueue the run of the network and the download of its outputs in the stream."""
        self._logger.errors.clear()
        if not self._context.execute_async_v3(self._gpu.stream):
            raise EngineError(
                f"model {self.manifest.name} failed to run on TensorRT"
                f" ({self._logger.error_text()}): build its engine again, or use another back end"
            )
        for name in self.manifest.output_names:
            self._gpu.download(*self._outputs[name])

    def _deserialize(self, plan: bytes) -> None:
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            if self._logger.is_out_of_memory():
                raise self._gpu.out_of_memory_error(
                    len(plan), f"the engine of {self.manifest.name}"
                )
            raise PlanError(
                f"TensorRT {trt.__version__} does not take the engine of {self.manifest.name}"
                f" ({self._logger.error_text()}): it was built by another version or for another"
                f" GPU; build it again with `{depth_tools('models build')}`"
            )

    def _make_context(self) -> None:
        self._context = self._engine.create_execution_context()
        if self._context is None:
            size = int(self._engine.device_memory_size_v2)
            if self._logger.is_out_of_memory() or size > self._gpu.memory()[0]:
                error = self._gpu.out_of_memory_error(size, f"running {self.manifest.name}")
                if self.manifest.meaning == PROMPT_DECODER:
                    raise EngineError(f"{error}; {self._smaller_batch()}")
                raise error
            raise EngineError(
                f"the engine of {self.manifest.name} cannot be started"
                f" ({self._logger.error_text()}): build it again with"
                f" `{depth_tools('models build')}`"
            )
        size = int(self._engine.device_memory_size_v2)
        total = self._gpu.memory()[1]
        self.details["engine memory [MB]"] = round(size / 1e6)
        if self.manifest.meaning == PROMPT_DECODER and size > _LARGE_PART * total:
            self.details["warning"] = (
                f"{self.manifest.name} takes {size / 1e6:.0f} of the GPU's {total / 1e6:.0f} MB"
                f" while it runs: {self._smaller_batch()}"
            )
            _log.warning("%s", self.details["warning"])

    def _smaller_batch(self) -> str:
        """Return the advice for a prompt decoder that needs too much memory."""
        points = next(iter(self.manifest.inputs.values()))[0]
        return (
            f"export it for fewer than {points} points at once (`python -m training segmentation"
            f" --batch {max(points // 4, 1)}`)"
        )

    def _bind(self) -> None:
        """Compare names, shapes and types with the manifest, and allocate and bind all buffers."""
        manifest, engine, context = self.manifest, self._engine, self._context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        missing_outputs = [name for name in manifest.output_names if name not in outputs]
        if set(inputs) != set(manifest.input_shapes) or missing_outputs:
            raise EngineError(
                f"the engine of {manifest.name} takes {', '.join(inputs)} and gives"
                f" {', '.join(outputs)}, its manifest says {', '.join(manifest.input_shapes)} and"
                f" {', '.join(manifest.output_names)}: correct input_name and output_name"
            )
        input_dtype = np.dtype("float32" if manifest.inputs else manifest.input.dtype)
        for name, shape in manifest.input_shapes.items():
            in_engine, dtype = tuple(engine.get_tensor_shape(name)), self._numpy_type(name)
            fits = len(in_engine) == len(shape) and all(
                size in (-1, asked) for size, asked in zip(in_engine, shape, strict=True)
            )
            if not fits or dtype != input_dtype:
                raise EngineError(
                    f"the engine of {manifest.name} takes {name} of shape {in_engine} and type"
                    f" {dtype}, its manifest says {shape} and {input_dtype}: correct the manifest's"
                    " input, or export the model anew"
                )
            if not context.set_input_shape(name, shape):
                raise EngineError(
                    f"the engine of {manifest.name} refuses {name} of shape {shape}"
                    f" ({self._logger.error_text()}): build it again with"
                    f" `{depth_tools('models build')}`"
                )
            self._inputs[name] = self._buffers(name, shape, dtype)
        for name in outputs:
            shape = tuple(context.get_tensor_shape(name))
            if -1 in shape:
                raise EngineError(
                    f"output {name} of {manifest.name} has a size that depends on the image"
                    f" {shape}: export the model with fixed sizes"
                )
            self._outputs[name] = self._buffers(name, shape, self._numpy_type(name))
        for name, (_, address) in (self._inputs | self._outputs).items():
            context.set_tensor_address(name, address)

    def _numpy_type(self, name: str) -> np.dtype[Any]:
        trt_type = self._engine.get_tensor_dtype(name)
        try:
            return np.dtype(trt.nptype(trt_type))
        except TypeError:
            raise EngineError(
                f"{name} of {self.manifest.name} is of type {trt_type}, which NumPy has not: export"
                " the model with float32 inputs and outputs"
            ) from None

    def _buffers(
        self, name: str, shape: Sequence[int], dtype: npt.DTypeLike
    ) -> tuple[npt.NDArray[Any], int]:
        purpose = f"{name} of {self.manifest.name}"
        pinned = self._gpu.pinned(shape, dtype, purpose)
        return pinned, self._gpu.allocate(pinned.nbytes, purpose)

    def _warm_up(self) -> None:
        """Run once, because the first run allocates memory; then capture a run as a CUDA graph."""
        for pinned, address in self._inputs.values():
            pinned[...] = 0
            self._gpu.upload(address, pinned)
        self._enqueue()
        self._gpu.wait()
        try:
            self._launch = self._gpu.capture(self._enqueue)
            self._launch()
            self._gpu.wait()
            self.details["cuda graph"] = "yes"
        except EngineError as error:  # without a graph runs are slower, their outputs the same
            self._launch = self._enqueue
            self.details["cuda graph"] = f"no: {error}"

    def _load_kernels(self) -> None:
        self.details["image to tensor"] = "on the GPU"
        if self.manifest.inputs:
            self.details["image to tensor"] = "on the CPU, with the model's other inputs"
            return
        if self.manifest.input.resize == "longest_side":
            self.details["image to tensor"] = "on the CPU: longest_side resizes twice"
            return
        try:
            self._kernels = cuda.CompiledKernels(self._gpu)
        except EngineError as error:
            self.details["image to tensor"] = f"on the CPU: {error}"
            _log.warning("images are resized on the CPU: %s", error)

    def _release(self) -> None:
        """Release TensorRT's objects, not the buffers: the Gpu owns them."""
        if self._open and not self._gpu.closed:
            try:
                self._gpu.wait()
            except EngineError as error:
                _log.warning("%s", error)
        self._open = False
        self._launch = _closed
        self._image = None
        self._kernels = None
        self._context = None
        self._engine = None
        self._runtime = None


def _closed() -> None:
    raise EngineError("the model is closed: open it again")


if __name__ == "__main__":
    serve(build_here)
