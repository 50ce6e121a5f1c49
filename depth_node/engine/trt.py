# SPDX-License-Identifier: Apache-2.0
"""TensorRT 10 and 11 by one path: a strongly typed network from a typed ONNX file.

Precision is that of the types in the ONNX file (``depth_tools models convert``), since TensorRT 11
has no other way. Built engines are kept by their identity (cache.py). USED names all that this file
uses of TensorRT; tests hold it against this file and against the real bindings of several versions.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorrt as trt

from depth_node.engine import EngineError, cuda
from depth_node.engine.cache import CachedEngine, Identity
from depth_node.engine.gpu_kernels import Resampling
from depth_node.engine.manifest import Manifest
from depth_node.engine.options import OpenRequest
from depth_node.engine.preprocess import to_tensor
from depth_node.engine.protocol import Closeable, Progress, check_tensor, check_tensors
from depth_node.prediction import KINDS

# Of every class what this file uses: properties, enum members, methods with their parameters.
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
    "ParserError": ("desc()",),
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

_SAY_AGAIN_S = 10.0
_log = logging.getLogger("depth_node.engine")


def missing() -> str:
    """Why TensorRT cannot be used here, with the cure; "" if it can."""
    return _wrong_version(trt.__version__) or cuda.missing()


def _wrong_version(version: str) -> str:
    if version.split(".")[0] in map(str, MAJORS):
        return ""
    return (
        f"TensorRT {version} is installed, but 10 or 11 is needed: pip install 'tensorrt>=10,<12'"
    )


def known_trouble(version: str, manifest: Manifest) -> str:
    """What is known to go wrong with this version and model; "" if nothing."""
    if version.split(".")[:2] == ["10", "3"] and manifest.patch_size and manifest.meaning in KINDS:
        return (
            f"TensorRT {version} is known to give wrong depth for transformers such as"
            f" {manifest.name} without an error: use a later one (docs/engines.md)"
        )
    return ""


def open_tensorrt(request: OpenRequest) -> TrtEngine:
    """The engine of a model: from the cache, or built into it. Raises EngineError."""
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
            options={"strongly_typed": True, "workspace_mb": request.config.workspace_mb},
        )
        entry = _obtain(request, identity, gpu)
        try:
            engine = TrtEngine(entry.plan, request.manifest, gpu)
        except PlanError:
            # It was whole, but this TensorRT does not take it: only a new one helps.
            request.cache.discard(identity)
            if entry.built:
                raise
            entry = _obtain(request, identity, gpu)
            engine = TrtEngine(entry.plan, request.manifest, gpu)
    except BaseException:
        gpu.close()
        raise
    engine.details |= {
        "key": identity.key,
        "engine file": str(entry.path),
        "built": f"{entry.facts['built']} in {entry.facts['build_seconds']:g} s",
        "model": str(request.model),
        "sha256": request.manifest.sha256,
    }
    if trouble:
        engine.details["warning"] = trouble
    return engine


def _obtain(request: OpenRequest, identity: Identity, gpu: cuda.Gpu) -> CachedEngine:
    config = request.config
    command = f"depth_tools models build {config.path}"
    for option, value, usual in (
        ("--manifest", config.manifest, ""),
        ("--precision", config.precision, "file"),
        ("--workspace-mb", config.workspace_mb, 0),
        ("--cache-dir", config.cache_dir, ""),
    ):
        if value != usual:
            command += f" {option} {value}"
    return request.cache.obtain(
        identity,
        lambda: build_plan(
            request.model, request.manifest, config.workspace_mb, gpu, request.progress
        ),
        may_build=config.build_engines,
        command=command,
        facts={"model": request.model.name, "driver": gpu.driver, "cuda": gpu.runtime},
    )


# --- building ------------------------------------------------------------------------------------


class _Logger(trt.ILogger):
    """Keeps TensorRT's last errors, as its calls say only that they failed."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=5)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if int(severity) <= int(trt.ILogger.ERROR):  # INTERNAL_ERROR is 0, ERROR 1
            self.errors.append(" ".join(str(msg).split()))
        else:
            _log.debug("TensorRT: %s", msg)

    def told(self) -> str:
        """The last errors as part of a sentence."""
        text = "; ".join(self.errors) or "TensorRT says no more"
        return text if len(text) <= 400 else text[:400] + "…"

    def full(self) -> bool:
        """Whether memory ran out."""
        text = " ".join(self.errors).lower().replace(" ", "")
        return "outofmemory" in text or "out_of_memory" in text or "cudamalloc" in text


@functools.cache
def _logger() -> _Logger:
    """The only one: TensorRT keeps the first that it is given for good, so it must never go."""
    return _Logger()


class _Monitor(trt.IProgressMonitor):
    """Tells a build's progress, to a callback or else, from time to time, to the log.

    What the callback raises (an interrupt) must not go through TensorRT: it is kept in `stopped`,
    and the build ends.
    """

    def __init__(self, progress: Progress | None) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._phases: dict[str, list[int]] = {}
        self._said_s = time.monotonic()
        self.stopped: BaseException | None = None

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Called by TensorRT."""
        self._phases[phase_name] = [0, num_steps]
        self._tell(phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Called by TensorRT; False would end the build."""
        self._phases.setdefault(phase_name, [0, 0])[0] = step + 1
        self._tell(phase_name)
        return self.stopped is None

    def phase_finish(self, phase_name: str) -> None:
        """Called by TensorRT."""
        self._phases.pop(phase_name, None)

    def _tell(self, phase: str) -> None:
        done, total = self._phases[phase]
        if self._progress is not None:
            try:
                self._progress(phase, done, total)
            except BaseException as error:
                self.stopped = error
        elif time.monotonic() - self._said_s > _SAY_AGAIN_S:
            self._said_s = time.monotonic()
            _log.info("building the engine: %s, %d of %d", phase, done, total)


def build_plan(
    model: Path, manifest: Manifest, workspace_mb: int, gpu: cuda.Gpu, progress: Progress | None
) -> bytes:
    """The serialised engine of an ONNX file for this GPU. Takes minutes. Raises EngineError."""
    logger = _logger()
    logger.errors.clear()
    builder = trt.Builder(logger)
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        reasons = []
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            reasons.append(" ".join(error.desc().split()))
        raise EngineError(
            f"TensorRT {trt.__version__} cannot read {model}"
            f" ({'; '.join(reasons[:3]) or logger.told()}): export it with opset 17 to 20, or use"
            " another back end"
        )
    config = builder.create_builder_config()
    monitor = _Monitor(progress)
    config.progress_monitor = monitor
    if workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb * 1_000_000)
    _fix_shapes(builder, network, config, manifest)
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped is not None:
        raise monitor.stopped
    if plan is None:
        if logger.full():
            size = workspace_mb * 1_000_000 or gpu.memory()[1]
            raise gpu.out_of_memory_error(size, f"building the engine of {manifest.name}")
        raise EngineError(
            f"TensorRT {trt.__version__} cannot build an engine of {model} ({logger.told()}):"
            " use another version, model.precision or back end"
        )
    return bytes(plan)


def _fix_shapes(builder: Any, network: Any, config: Any, manifest: Manifest) -> None:
    """Sizes that the file leaves open become those of the manifest."""
    profile = None
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = manifest.input_shapes.get(tensor.name)
        if shape is None or -1 not in tuple(tensor.shape):
            continue
        if profile is None:
            profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, shape, shape, shape)
    if profile is not None:
        config.add_optimization_profile(profile)


# --- running -------------------------------------------------------------------------------------


class PlanError(EngineError):
    """A serialised engine that this TensorRT does not take."""


class TrtEngine(Closeable):
    """A network on TensorRT: buffers taken once, one stream, a CUDA graph where it can be captured.

    close() closes the Gpu too; if the engine cannot be made, that is left to the caller.
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
        # TensorRT's objects go in the reverse order of their making: context, engine, runtime.
        self._logger = _logger()
        self._logger.errors.clear()
        self._runtime: Any = trt.Runtime(self._logger)
        self._engine: Any = None
        self._context: Any = None
        self._inputs: dict[str, tuple[npt.NDArray, int]] = {}
        self._outputs: dict[str, tuple[npt.NDArray, int]] = {}
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
            self._drop()
            raise

    def run(self, tensor: npt.NDArray) -> npt.NDArray:
        """See Engine.run."""
        self._check_open()
        check_tensor(tensor, self.manifest)
        return self._answer({self.manifest.input_name: tensor})[self.manifest.output_name]

    def run_named(self, tensors: Mapping[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        """See Engine.run_named."""
        self._check_open()
        check_tensors(tensors, self.manifest)
        return self._answer(tensors)

    def run_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray:
        """See ImageEngine.run_image."""
        if self._kernels is None:
            return self.run(to_tensor(image, self.manifest.input))
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
            how = Resampling.of(height, width, self.manifest.input)
            place = self._inputs[self.manifest.input_name][1]
            self._image = cuda.ImageInput(self._kernels, height, width, how, place)
        self._image.enqueue(image)
        self._launch()
        self._gpu.wait()
        return self._taken(self.manifest.output_name)

    def close(self) -> None:
        """See Engine.close."""
        self._drop()
        self._gpu.close()

    def _check_open(self) -> None:
        if not self._open:
            raise EngineError(f"model {self.manifest.name} is closed: open it again")

    def _answer(self, tensors: Mapping[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        self._gpu.begin()
        for name, tensor in tensors.items():
            pinned, place = self._inputs[name]
            np.copyto(pinned, tensor)
            self._gpu.upload(place, pinned)
        self._launch()
        self._gpu.wait()
        return {name: self._taken(name) for name in self.manifest.output_names}

    def _taken(self, name: str) -> npt.NDArray:
        """An output that belongs to the caller; half precision is for the network alone."""
        found = self._outputs[name][0]
        return found.astype(np.float32 if found.dtype == np.float16 else found.dtype)

    def _enqueue(self) -> None:
        """Run the network and fetch what is asked for, in the stream's order."""
        self._logger.errors.clear()
        if not self._context.execute_async_v3(self._gpu.stream):
            raise EngineError(
                f"model {self.manifest.name} failed to run on TensorRT ({self._logger.told()}):"
                " build its engine again, or use another back end"
            )
        for name in self.manifest.output_names:
            self._gpu.download(*self._outputs[name])

    def _deserialize(self, plan: bytes) -> None:
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            if self._logger.full():
                raise self._gpu.out_of_memory_error(
                    len(plan), f"the engine of {self.manifest.name}"
                )
            raise PlanError(
                f"TensorRT {trt.__version__} does not take the engine of {self.manifest.name}"
                f" ({self._logger.told()}): it was built by another version or for another GPU;"
                " build it again with `depth_tools models build`"
            )

    def _make_context(self) -> None:
        self._context = self._engine.create_execution_context()
        if self._context is None:
            size = int(self._engine.device_memory_size_v2)
            if self._logger.full() or size > self._gpu.memory()[0]:
                raise self._gpu.out_of_memory_error(size, f"running {self.manifest.name}")
            raise EngineError(
                f"the engine of {self.manifest.name} cannot be started ({self._logger.told()}):"
                " build it again with `depth_tools models build`"
            )
        self.details["engine memory [MB]"] = round(int(self._engine.device_memory_size_v2) / 1e6)

    def _bind(self) -> None:
        """Compare names, shapes and types with the manifest, and take all buffers."""
        facts, engine, context = self.manifest, self._engine, self._context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        lacking = [name for name in facts.output_names if name not in outputs]
        if set(inputs) != set(facts.input_shapes) or lacking:
            raise EngineError(
                f"the engine of {facts.name} takes {', '.join(inputs)} and gives"
                f" {', '.join(outputs)}, its manifest says {', '.join(facts.input_shapes)} and"
                f" {', '.join(facts.output_names)}: correct input_name and output_name"
            )
        wanted = np.dtype("float32" if facts.inputs else facts.input.dtype)
        for name, shape in facts.input_shapes.items():
            found, dtype = tuple(engine.get_tensor_shape(name)), self._numpy_type(name)
            fits = len(found) == len(shape) and all(
                there in (-1, asked) for there, asked in zip(found, shape, strict=True)
            )
            if not fits or dtype != wanted:
                raise EngineError(
                    f"the engine of {facts.name} takes {name} of shape {found} and type {dtype},"
                    f" its manifest says {shape} and {wanted}: correct the manifest's input, or"
                    " export the model anew"
                )
            if not context.set_input_shape(name, shape):
                raise EngineError(
                    f"the engine of {facts.name} refuses {name} of shape {shape}"
                    f" ({self._logger.told()}): build it again with `depth_tools models build`"
                )
            self._inputs[name] = self._buffers(name, shape, dtype)
        for name in outputs:
            shape = tuple(context.get_tensor_shape(name))
            if -1 in shape:
                raise EngineError(
                    f"output {name} of {facts.name} has a size that depends on the image"
                    f" {shape}: export the model with fixed sizes"
                )
            self._outputs[name] = self._buffers(name, shape, self._numpy_type(name))
        for name, (_, place) in (self._inputs | self._outputs).items():
            context.set_tensor_address(name, place)

    def _numpy_type(self, name: str) -> np.dtype:
        kind = self._engine.get_tensor_dtype(name)
        try:
            return np.dtype(trt.nptype(kind))
        except TypeError:
            raise EngineError(
                f"{name} of {self.manifest.name} is of type {kind}, which NumPy has not: export the"
                " model with float32 inputs and outputs"
            ) from None

    def _buffers(
        self, name: str, shape: Sequence[int], dtype: npt.DTypeLike
    ) -> tuple[npt.NDArray, int]:
        what = f"{name} of {self.manifest.name}"
        pinned = self._gpu.pinned(shape, dtype, what)
        return pinned, self._gpu.allocate(pinned.nbytes, what)

    def _warm_up(self) -> None:
        """Run once, which allocates, then capture what such a run does as a graph."""
        for pinned, place in self._inputs.values():
            pinned[...] = 0
            self._gpu.upload(place, pinned)
        self._enqueue()
        self._gpu.wait()
        try:
            self._launch = self._gpu.capture(self._enqueue)
            self._launch()
            self._gpu.wait()
            self.details["cuda graph"] = "yes"
        except EngineError as error:  # slower, and right all the same
            self._launch = self._enqueue
            self.details["cuda graph"] = f"no: {error}"

    def _load_kernels(self) -> None:
        self.details["image to tensor"] = "on the GPU"
        if self.manifest.inputs:
            self.details["image to tensor"] = "takes no image"
            return
        try:
            self._kernels = cuda.CompiledKernels(self._gpu)
        except EngineError as error:
            self.details["image to tensor"] = f"on the CPU: {error}"
            _log.warning("images are resized on the CPU: %s", error)

    def _drop(self) -> None:
        """Let TensorRT's objects go; the buffers belong to the Gpu."""
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
