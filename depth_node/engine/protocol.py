# SPDX-License-Identifier: Apache-2.0
"""What every back end offers: the Engine protocol, and the check of its input tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest

_Self = TypeVar("_Self")


class Closeable:
    """Something that is closed at the end of a `with` statement."""

    def close(self) -> None:
        """Free everything; safe to call twice."""
        raise NotImplementedError

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Engine(Protocol):
    """A network ready to run, whatever runs it. Not for use by several threads at once."""

    @property
    def manifest(self) -> Manifest:
        """What the model is."""

    @property
    def backend(self) -> str:
        """What runs it, such as "onnxruntime-cpu"."""

    @property
    def details(self) -> dict[str, Any]:
        """What an operator may want to know: versions, providers really used, threads."""

    def run(self, tensor: npt.NDArray) -> npt.NDArray:
        """Input tensor of the manifest's shape and type -> the output that the manifest names.

        The array belongs to the caller: the next run does not change it. Raises EngineError.
        """

    def run_named(self, tensors: Mapping[str, npt.NDArray]) -> dict[str, npt.NDArray]:
        """Every input of ``manifest.input_shapes`` -> every output of ``manifest.output_names``.

        As run(), for models of several inputs or outputs. Raises EngineError.
        """

    def close(self) -> None:
        """Free everything; run() then raises EngineError."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class ImageEngine(Engine, Protocol):
    """An engine that makes the input tensor itself, where the network runs."""

    def run_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray:
        """(H, W, 3) uint8 RGB -> what run() gives for preprocess.to_tensor of it."""


Progress = Callable[[str, int, int], None]
"""Told of a build: what is being done, how many steps of it are done, of how many."""


def check_tensor(tensor: npt.NDArray, manifest: Manifest) -> None:
    """EngineError unless the tensor has the shape and type that the manifest asks for."""
    if tensor.shape != manifest.input.shape or tensor.dtype != np.dtype(manifest.input.dtype):
        raise EngineError(
            f"tensor of shape {tensor.shape} and type {tensor.dtype} for model {manifest.name}:"
            f" its manifest asks for {manifest.input.shape} and {manifest.input.dtype};"
            " make it with preprocess.to_tensor"
        )


def check_tensors(tensors: Mapping[str, npt.NDArray], manifest: Manifest) -> None:
    """EngineError unless these are the inputs of the manifest, each of its shape."""
    wanted = manifest.input_shapes
    if set(tensors) != set(wanted):
        raise EngineError(
            f"model {manifest.name} takes {', '.join(wanted)}, not"
            f" {', '.join(tensors) or 'nothing'}: give the tensors that its manifest names"
        )
    dtype = np.dtype("float32" if manifest.inputs else manifest.input.dtype)
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name] or tensor.dtype != dtype:
            raise EngineError(
                f"{name} of model {manifest.name} has shape {tensor.shape} and type {tensor.dtype},"
                f" its manifest asks for {wanted[name]} and {dtype}: give a model or a decoder that"
                " fits"
            )
