# SPDX-License-Identifier: Apache-2.0
"""The settings of a model, and the request to open it that every back end gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depth_node.config import ConfigError, option, validate
from depth_node.engine import EngineError
from depth_node.engine.cache import EngineCache
from depth_node.engine.manifest import EMBEDDED, Manifest
from depth_node.engine.protocol import Progress

REFERENCE = "onnxruntime-cpu"
PRECISIONS = ("file", "fp16")
ON_FAILURE = ("error", "cpu", "fp32")


@dataclass(frozen=True)
class ModelConfig:
    """Which network runs, and on what."""

    path: str = option(
        EMBEDDED,
        "path of an .onnx file with its manifest beside it, or the name of a network fetched with"
        f' `depth_tools models fetch`; "{EMBEDDED}": the package\'s',
    )
    manifest: str = option("", "path of the manifest if it does not lie beside the model")
    backend: str = option(
        "auto",
        "what runs the network: tensorrt, onnxruntime-cuda, onnxruntime-tensorrt, onnxruntime-cpu,"
        " or auto: the first of tensorrt, onnxruntime-cuda, onnxruntime-cpu that this machine can",
    )
    fallback: tuple[str, ...] = option(
        (), "back ends to try, in this order, where this machine cannot use `backend`"
    )
    precision: str = option(
        "file",
        "file: as the model file is typed; fp16: its copy NAME.fp16.onnx, made by"
        " `depth_tools models convert`",
        choices=PRECISIONS,
    )
    on_engine_failure: str = option(
        "error",
        "where an engine cannot be built or answers otherwise than ONNX Runtime on the CPU: error:"
        " refuse to start; cpu: run on the CPU; fp32: run the model file instead of its fp16 copy",
        choices=ON_FAILURE,
    )
    build_engines: bool = option(
        True,
        "build a TensorRT engine where none is in the cache, which takes minutes; false: refuse",
    )
    workspace_mb: int = option(
        0, "GPU memory that building may use; 0: all of it", unit="MB", minimum=0
    )
    cache_dir: str = option(
        "", "where built engines are kept; empty: depth_node/engines in the user's cache folder"
    )
    cache_mb: int = option(
        4000, "size of that cache; what was not used for longest goes", unit="MB", minimum=1
    )
    threads: int = option(
        0, "cores that one run of the network may use; 0: as the back end likes", minimum=0
    )

    def __post_init__(self) -> None:
        validate(self)


def configured(
    model: str | Path, manifest: str | Path | None, options: Mapping[str, Any]
) -> ModelConfig:
    """The settings of a model that is given by hand. Raises EngineError for what is no option."""
    try:
        return ModelConfig(str(model), str(manifest or ""), **options)
    except (ConfigError, TypeError) as error:
        raise EngineError(str(error)) from error


@dataclass(frozen=True)
class OpenRequest:
    """A model to be opened: its file, what it is, the settings, and who is told of a build."""

    model: Path
    manifest: Manifest
    config: ModelConfig
    cache: EngineCache
    progress: Progress | None = None
