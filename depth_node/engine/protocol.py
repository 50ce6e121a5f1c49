# SPDX-License-Identifier: Apache-2.0
"""The Engine protocol that every back end implements, and the check of its input tensors."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest

_SLOW_S = 20.0

_Self = TypeVar("_Self")


@contextlib.contextmanager
def warn_if_slow(doing: str) -> Iterator[None]:
    """Log a warning if the block runs longer than 20 s: a network may contain an endless loop.

    doing: what the block does, as the warning says it. A run inside a library can be ended only by
    ending the process, so the warning gives the process id.
    """

    def warn() -> None:
        logging.getLogger("depth_node.engine").warning(
            "still %s after %.0f s: it is large, or never comes to an end; `kill -9 %d` ends it",
            doing, _SLOW_S, os.getpid(),
        )  # fmt: skip

    timer = threading.Timer(_SLOW_S, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # cancel() wakes the thread; after join() no thread is left


class Closeable:
    """Base class of objects that a `with` statement closes at its end."""

    def close(self) -> None:
        """Free all resources. May be called twice."""
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
    """A network that is ready to run on some back end. Not safe for several threads at once."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the model."""

    @property
    def backend(self) -> str:
        """Name of the back end, such as "onnxruntime-cpu"."""

    @property
    def details(self) -> dict[str, Any]:
        """Information for the operator: versions, providers, threads, self-check results."""

    def run(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Run the network on a (1, 3, height, width) tensor; return ``manifest.output_name``.

        The tensor must have the shape and type that the manifest gives. The output, usually
        (1, h, w), is a copy that later runs do not change. Raises EngineError if the tensor has
        another shape or type, or if the run fails.
        """

    def run_named(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run a network that has several inputs or outputs; both are given by name.

        ``tensors`` must hold every input of ``manifest.input_shapes``, such as (n, 2). Returns a
        copy of every output of ``manifest.output_names``. Raises EngineError as run() does.
        """

    def close(self) -> None:
        """Free all resources; run() raises EngineError afterwards."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class ImageEngine(Engine, Protocol):
    """An engine that also converts the image to the input tensor, on its own device."""

    def run_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Convert an (H, W, 3) uint8 RGB image as preprocess.to_tensor does, and return run()."""

    def run_image_named(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Convert an (H, W, 3) uint8 RGB image likewise, and return the outputs of run_named()."""


Progress = Callable[[str, int, int], None]
"""Callback of an engine build; arguments: name of the phase, steps done, total number of steps."""


def check_tensor(tensor: npt.NDArray[Any], manifest: Manifest) -> None:
    """Raise EngineError if a tensor has not the manifest's (1, 3, height, width) shape and type."""
    if tensor.shape != manifest.input.shape or tensor.dtype != np.dtype(manifest.input.dtype):
        raise EngineError(
            f"tensor of shape {tensor.shape} and type {tensor.dtype} for model {manifest.name}:"
            f" its manifest asks for {manifest.input.shape} and {manifest.input.dtype};"
            " make it with preprocess.to_tensor"
        )


def check_tensors(tensors: Mapping[str, npt.NDArray[Any]], manifest: Manifest) -> None:
    """Compare named tensors with ``manifest.input_shapes``, such as {"points": (n, 2)}.

    Raises EngineError if a name, shape or type differs.
    """
    shapes = manifest.input_shapes
    if set(tensors) != set(shapes):
        raise EngineError(
            f"model {manifest.name} takes {', '.join(shapes)}, not"
            f" {', '.join(tensors) or 'nothing'}: give the tensors that its manifest names"
        )
    dtype = np.dtype("float32" if manifest.inputs else manifest.input.dtype)
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name] or tensor.dtype != dtype:
            raise EngineError(
                f"{name} of model {manifest.name} has shape {tensor.shape} and type {tensor.dtype},"
                f" its manifest asks for {shapes[name]} and {dtype}: give a model or a decoder that"
                " fits"
            )
