# SPDX-License-Identifier: Apache-2.0
"""Back ends of ONNX Runtime: the CPU, reference for all other back ends, and its GPU providers."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from depth_node.engine import BackendError, EngineError
from depth_node.engine.manifest import Manifest
from depth_node.engine.model_file import fault_of, reader_fault
from depth_node.engine.protocol import Closeable, check_tensor, check_tensors
from depth_node.sentences import one_line

# Since 1.31 ONNX Runtime writes a device id and events into the user's cache folder and sends them.
# It reads this variable when it is loaded; a user's own setting is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

# Back end -> providers of ONNX Runtime; each runs the operators that the earlier ones cannot run.
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS = {
    "cpu": [_CPU],
    "cuda": [_CUDA, _CPU],
    "tensorrt": ["TensorrtExecutionProvider", _CUDA, _CPU],
}
_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class TensorInfo(NamedTuple):
    """Name, shape (None: open) and NumPy type ("": not supported) of an input or output."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def probe(model: Path) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """Read the inputs and outputs of an ONNX file. Raises EngineError if it cannot be read."""
    session = open_session(model, threads=1)
    return _infos(session.get_inputs()), _infos(session.get_outputs())


def missing(provider: str) -> str:
    """Return why this ONNX Runtime lacks cpu, cuda or tensorrt, with the cure; "" if it has it."""
    name = _PROVIDERS[provider][0]
    if name in onnxruntime.get_available_providers():
        return ""
    return (
        f"this onnxruntime {onnxruntime.__version__} has no {name}: pip uninstall onnxruntime,"
        " then pip install 'onnxruntime-gpu[cuda,cudnn]'"
    )


def check_manifest(model: Path, manifest: Manifest) -> None:
    """Compare an ONNX file with its manifest without running it.

    Raises EngineError if the file cannot be read or contradicts its manifest.
    """
    _check_signature(open_session(model, threads=1), model, manifest)


class OrtEngine(Closeable):
    """Engine on a provider of ONNX Runtime.

    The constructor compares the file with the manifest and runs it once. It raises EngineError if
    the file cannot be read, contradicts its manifest or does not run, and BackendError if the
    provider cannot be used. frugal: see open_session().
    """

    def __init__(
        self,
        model: Path,
        manifest: Manifest,
        threads: int = 0,
        provider: str = "cpu",
        *,
        frugal: bool = False,
    ) -> None:
        self.backend = f"onnxruntime-{provider}"
        session = open_session(model, threads, provider, frugal)
        _check_signature(session, model, manifest)
        self.manifest = manifest
        self.details: dict[str, Any] = {
            "backend": self.backend,
            "version": onnxruntime.__version__,
            "providers": list(session.get_providers()),
            "threads": threads,
            "model": str(model),
            "sha256": manifest.sha256,
        }
        self._session: onnxruntime.InferenceSession | None = session
        # The first run allocates memory, and fails here if the manifest gives a wrong size for one
        # that the file leaves open.
        dtype = "float32" if manifest.inputs else manifest.input.dtype
        self.run_named({key: np.zeros(n, dtype) for key, n in manifest.input_shapes.items()})

    def run(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See Engine.run: (1, 3, height, width) -> usually (1, h, w)."""
        check_tensor(tensor, self.manifest)
        output: npt.NDArray[Any] = self._run({self.manifest.input_name: tensor}, 1)[0]
        return output

    def run_named(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See Engine.run_named: tensors of shapes such as (n, 2) by name."""
        check_tensors(tensors, self.manifest)
        names = self.manifest.output_names
        return dict(zip(names, self._run(tensors, len(names)), strict=True))

    def _run(self, tensors: Mapping[str, npt.NDArray[Any]], outputs: int) -> list[npt.NDArray[Any]]:
        if self._session is None:
            raise EngineError(f"model {self.manifest.name} is closed: open it again")
        try:
            arrays: list[npt.NDArray[Any]] = self._session.run(
                list(self.manifest.output_names[:outputs]), dict(tensors)
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise EngineError(
                f"model {self.manifest.name} failed to run with an input of"
                f" {self.manifest.input.width}x{self.manifest.input.height}: if the manifest gives"
                f" the right size, the model itself is broken ({one_line(error)})"
            ) from error
        return arrays

    def close(self) -> None:
        """See Engine.close."""
        self._session = None


def open_session(
    model: Path, threads: int, provider: str = "cpu", frugal: bool = False
) -> onnxruntime.InferenceSession:
    """Open a plain session of ONNX Runtime on a provider.

    frugal: use little memory. Nodes then run in the order of the file, and memory is freed after a
    run. (In ONNX Runtime's default order, nodes whose results are only outputs of the graph run
    last, so that their inputs stay in memory until then.)

    Raises EngineError if the file cannot be read, BackendError if the provider cannot be used.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that spin while they wait would slow down the fit that follows, and other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = (
        3  # errors, which are also raised as exceptions; not warnings, which would go to stderr
    )
    if frugal:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    requested = _PROVIDERS[provider]
    fault = fault_of(model)
    if fault:
        raise EngineError(fault)
    if provider != "cpu":
        _load_gpu_libraries()
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=requested)
    except Exception as error:  # onnxruntime's exceptions share no base class
        reader = f"onnxruntime {onnxruntime.__version__}"
        raise EngineError(reader_fault(model, reader, error)) from error
    # ONNX Runtime drops a provider that cannot start without raising an error.
    started = session.get_providers()
    if started[:1] != requested[:1]:
        raise BackendError(
            f"onnxruntime runs {model} on {', '.join(started)} instead of {requested[0]}: "
            + (
                "install the plain onnxruntime package"
                if provider == "cpu"
                else "its GPU libraries (CUDA, cuDNN, TensorRT) are missing or do not fit the"
                f" driver; install those that onnxruntime-gpu {onnxruntime.__version__} names, or"
                " use another back end"
            )
        )
    return session


def _load_gpu_libraries() -> None:
    """Load CUDA and cuDNN from where pip installs them (onnxruntime-gpu[cuda,cudnn]).

    The dynamic loader does not look there by itself. Libraries that are missing are reported later,
    when the provider starts.
    """
    preload = getattr(onnxruntime, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the libraries it does not find
            preload()


def _infos(nodes: list[Any]) -> list[TensorInfo]:
    return [
        TensorInfo(
            node.name,
            tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape),
            _TYPES.get(node.type, ""),
        )
        for node in nodes
    ]


def _check_signature(
    session: onnxruntime.InferenceSession, model: Path, manifest: Manifest
) -> None:
    """Raise EngineError if the file and its manifest contradict each other."""
    inputs, outputs = _infos(session.get_inputs()), _infos(session.get_outputs())
    for name in manifest.output_names:
        if name not in [item.name for item in outputs]:
            raise EngineError(
                f"model {model} has the outputs {', '.join(item.name for item in outputs)}, its"
                f" manifest says {name}: correct output_name"
            )
    if manifest.inputs:
        shapes = {item.name: item.shape for item in inputs}
        if not _fit(shapes, manifest.inputs) or {item.dtype for item in inputs} != {"float32"}:
            raise EngineError(
                f"model {model} has the inputs {shapes}, its manifest says"
                f" {dict(manifest.inputs)} of float32: write the manifest anew"
            )
        return
    names = [item.name for item in inputs]
    if names != [manifest.input_name]:
        raise EngineError(
            f"model {model} has the input {', '.join(names)}, its manifest says"
            f" {manifest.input_name}: correct input_name, or write the manifest anew"
        )
    spec, image = manifest.input, inputs[0]
    if len(image.shape) != 4 or any(
        size not in (None, asked) for size, asked in zip(image.shape, spec.shape, strict=False)
    ):
        raise EngineError(
            f"model {model} takes an input of shape {_shape(image.shape)}, its manifest says"
            f" {_shape(spec.shape)}: correct input.height and input.width, or export the model"
            " with a (1, 3, height, width) input"
        )
    if image.dtype != spec.dtype:
        raise EngineError(
            f"model {model} takes {session.get_inputs()[0].type}, its manifest says {spec.dtype}:"
            " correct input.dtype, or export the model with a float32 input"
        )


def _fit(
    in_file: Mapping[str, tuple[int | None, ...]], asked: Mapping[str, tuple[int, ...]]
) -> bool:
    """Return whether a file's shapes, in which sizes can be open, agree with the manifest's."""
    return set(in_file) == set(asked) and all(
        len(shape) == len(asked[name])
        and all(size in (None, want) for size, want in zip(shape, asked[name], strict=True))
        for name, shape in in_file.items()
    )


def _shape(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
