# SPDX-License-Identifier: Apache-2.0
"""Opening of a running engine from a model's name or settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from depth_node.engine.opening import open_model
from depth_node.engine.options import EngineConfig, ModelConfig, configured
from depth_node.engine.protocol import Engine, Progress
from depth_node.model_zoo.registry import locate


def open_engine(model: str | Path, *, manifest: str | Path | None = None, **options: Any) -> Engine:
    """Open a model, verify it, and warm it up.

    model: path of a file, name of a fetched network, or "embedded". The manifest beside the model
    is used unless ``manifest`` is given. ``options`` are those of ModelConfig and EngineConfig:
    backend, threads, precision, on_failure and so on. Takes seconds for a large model, minutes if
    an engine is built. Raises EngineError with cause and cure.
    """
    return open_configured(*configured(model, manifest, options))


def build_engine(
    model: str | Path,
    *,
    manifest: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Build the TensorRT engine of a model into the cache in advance, and self-check it.

    ``options`` as in open_engine. Returns the engine's details: key, file, check and so on. If the
    cache has the engine already, it is only checked. Raises EngineError with cause and cure.
    """
    settings = {"backend": "tensorrt", **options, "build": True}
    with open_configured(*configured(model, manifest, settings), progress) as engine:
        return dict(engine.details)


def open_configured(
    config: ModelConfig, engine: EngineConfig | None = None, progress: Progress | None = None
) -> Engine:
    """Open the engine that the settings describe. Raises EngineError with cause and cure."""
    model, manifest = locate(config.path, config.manifest or None)
    return open_model(model, manifest, config, engine or EngineConfig(), progress)
