# SPDX-License-Identifier: Apache-2.0
"""Settings of a model, and the request with which a back end opens it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depth_node.config import ConfigError, option, validate
from depth_node.engine import EngineError
from depth_node.engine.cache import EngineCache
from depth_node.engine.manifest import EMBEDDED, EMBEDDED_SMALL, Manifest
from depth_node.engine.protocol import Progress

REFERENCE = "onnxruntime-cpu"
PRECISIONS = ("file", "fp16")
ON_FAILURE = ("error", "cpu", "fp32")


@dataclass(frozen=True)
class ModelConfig:
    """The network and the back end that runs it."""

    path: str = option(
        EMBEDDED,
        "Path of an .onnx file with its manifest beside it, or name of a network fetched with"
        f' `depth_tools models fetch`; "{EMBEDDED}": the network of the package;'
        f' "{EMBEDDED_SMALL}": a smaller one that takes a quarter of the time.'
        " Empty region_model.path: regions come from the image itself.",
    )
    manifest: str = option("", "Path of the manifest; empty: the file beside the model.")
    backend: str = option(
        "auto",
        "Back end: tensorrt, onnxruntime-cuda, onnxruntime-tensorrt, onnxruntime-cpu, or auto: the"
        " first of tensorrt, onnxruntime-cuda, onnxruntime-cpu that this machine can use.",
    )
    precision: str = option(
        "file",
        "Precision; file: the types of the model file; fp16: its copy NAME.fp16.onnx, written by"
        " `depth_tools models convert`.",
        choices=PRECISIONS,
    )
    threads: int = option(
        0, "Number of threads of one run of the network; 0: chosen by the back end.", minimum=0
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class EngineConfig:
    """How engines are opened, built and kept: the same for every network of a process."""

    fallback: tuple[str, ...] = option(
        (), "Back ends to try, in this order, if this machine cannot use a network's back end."
    )
    on_failure: str = option(
        "error",
        "Action if an engine cannot be built or its outputs differ from those of ONNX Runtime on"
        " the CPU; error: refuse to start; cpu: run on the CPU; fp32: run the model file instead of"
        " its fp16 copy.",
        choices=ON_FAILURE,
    )
    build: bool = option(
        True,
        "Build a TensorRT engine if the cache has none, which takes minutes; false: refuse.",
    )
    workspace_mb: int = option(
        0, "Maximum GPU memory for building an engine; 0: all of it.", unit="MB", minimum=0
    )
    cache_dir: str = option(
        "", "Folder of built engines; empty: depth_node/engines in the user's cache folder."
    )
    cache_mb: int = option(
        4000,
        "Maximum cache size; least recently used engines are deleted first.",
        unit="MB",
        minimum=1,
    )

    def __post_init__(self) -> None:
        validate(self)


def configured(
    model: str | Path, manifest: str | Path | None, options: Mapping[str, Any]
) -> tuple[ModelConfig, EngineConfig]:
    """Return the settings of a model and of its engine from keyword options of both.

    Raises EngineError if an option is unknown or has an invalid value.
    """
    shared = {item.name for item in dataclasses.fields(EngineConfig)}
    own = {name: value for name, value in options.items() if name not in shared}
    rest = {name: value for name, value in options.items() if name in shared}
    try:
        return ModelConfig(str(model), str(manifest or ""), **own), EngineConfig(**rest)
    except (ConfigError, TypeError) as error:
        raise EngineError(str(error)) from error


@dataclass(frozen=True)
class OpenRequest:
    """A request to open a model: its file, manifest, settings, cache and build callback."""

    model: Path
    manifest: Manifest
    config: ModelConfig
    engine: EngineConfig
    cache: EngineCache
    progress: Progress | None = None
