# SPDX-License-Identifier: Apache-2.0
"""Which back end runs a network, what happens where it cannot, and the check before it is trusted.

The order is explicit: `backend`, then `fallback`, are tried for whether they can be used on this
machine at all; `on_engine_failure` says what to do where one can, and its engine is wrong. What was
passed over and why is logged and stands in the engine's details.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from depth_node.config import nearest
from depth_node.engine import BackendError, EngineError
from depth_node.engine.cache import EngineCache
from depth_node.engine.manifest import Manifest, converted_path, verified_manifest
from depth_node.engine.options import REFERENCE, ModelConfig, OpenRequest
from depth_node.engine.protocol import Engine, Progress
from depth_node.engine.self_check import Limits, Reference, check

_log = logging.getLogger("depth_node.engine")


@dataclass(frozen=True)
class _Backend:
    """How a back end is opened, and "" or what this machine lacks for it."""

    open: Callable[[OpenRequest], Engine]
    missing: Callable[[], str]


def _ort(provider: str) -> _Backend:
    def opened(request: OpenRequest) -> Engine:
        from depth_node.engine import ort

        return ort.OrtEngine(request.model, request.manifest, request.config.threads, provider)

    def missing() -> str:
        package = "onnxruntime" if provider == "cpu" else "onnxruntime-gpu"
        if find_spec("onnxruntime") is None:
            return f"no module onnxruntime: pip install {package}"
        from depth_node.engine import ort

        return ort.missing(provider)

    return _Backend(opened, missing)


def _open_tensorrt(request: OpenRequest) -> Engine:
    from depth_node.engine import trt

    return trt.open_tensorrt(request)


def _tensorrt_missing() -> str:
    for module, cure in (
        ("tensorrt", "pip install tensorrt (on a Jetson: apt install python3-libnvinfer)"),
        ("cuda.bindings", "pip install 'cuda-python>=12.6'"),
    ):
        if not _has(module):
            return f"no module {module}: {cure}"
    from depth_node.engine import trt

    return trt.missing()


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


_BACKENDS: dict[str, _Backend] = {
    "tensorrt": _Backend(_open_tensorrt, _tensorrt_missing),
    "onnxruntime-cuda": _ort("cuda"),
    "onnxruntime-tensorrt": _ort("tensorrt"),
    REFERENCE: _ort("cpu"),
}
AUTO = ("tensorrt", "onnxruntime-cuda", REFERENCE)


def backends() -> dict[str, str]:
    """Every known back end -> "" if it can be used here, else what is missing and the cure."""
    return {name: _missing(backend) for name, backend in _BACKENDS.items()}


def _missing(backend: _Backend) -> str:
    try:
        return backend.missing()
    except (ImportError, ValueError, OSError) as error:  # poisoned, half installed, no library
        return f"it cannot be imported ({' '.join(str(error).split())}): install it again"


def summary(engine: Engine) -> dict[str, str]:
    """What an operator should see of an engine, for diagnostics: few, short and in fixed order."""
    details = engine.details
    shown = ("version", "precision", "check", "check of images", "key", "engine file", "built",
             "cuda graph", "image to tensor", "warning", "replaced")  # fmt: skip
    found = {key: str(details[key]) for key in shown if key in details}
    return found | {key: str(value) for key, value in details.items() if key.startswith("not ")}


def open_model(
    model: Path, manifest: Manifest, config: ModelConfig, progress: Progress | None = None
) -> Engine:
    """The engine of a model file as the settings ask, checked and warm. Raises EngineError."""
    order = _order(config)
    cache = EngineCache.of(config.cache_dir, config.cache_mb * 1_000_000)
    request = OpenRequest(model, manifest, config, cache, progress)
    passed: dict[str, str] = {}
    engine = None
    for name in order:
        reason = _missing(_BACKENDS[name])
        if not reason:
            try:
                engine = _tried(name, request)
                break
            except BackendError as error:  # seen only when it was to start
                reason = str(error)
        passed[name] = reason
        say = _log.info if config.backend == "auto" else _log.warning
        say("back end %s cannot be used here: %s", name, reason)
    if engine is None:
        if config.on_engine_failure != "cpu" or REFERENCE in passed:
            raise EngineError(_none(passed))
        engine = _opened(REFERENCE, request, "file")
    for other, why in passed.items():
        engine.details[f"not {other}"] = why
    _log.info("model %s runs on %s", manifest.name, engine.backend)
    return engine


def _order(config: ModelConfig) -> tuple[str, ...]:
    """The back ends to try. EngineError for a name that is none."""
    order = AUTO if config.backend == "auto" else (config.backend, *config.fallback)
    for name in order:
        if name not in _BACKENDS:
            guess = nearest(name, [*_BACKENDS, "auto"])
            hint = f" (did you mean {guess}?)" if guess else ""
            raise EngineError(
                f"back end {name!r} is not known{hint}: use auto or one of {', '.join(_usable())}"
            )
    return order


def _usable() -> list[str]:
    return [name for name, why in backends().items() if not why]


def _none(passed: Mapping[str, str]) -> str:
    """The sentence for an order of which nothing can be used."""
    if len(passed) == 1:
        ((name, reason),) = passed.items()
        usable = _usable()
        others = f", or use {', '.join(usable)}" if usable else ""
        return f"back end {name} cannot be used here: {reason}{others}"
    reasons = "; ".join(f"{name}: {why}" for name, why in passed.items())
    return f"no back end can run a network here: {reasons}"


def _tried(name: str, request: OpenRequest) -> Engine:
    """The engine of a back end, or what `on_engine_failure` says instead."""
    config = request.config
    try:
        return _opened(name, request, config.precision)
    except BackendError:
        raise
    except EngineError as error:
        kind = config.on_engine_failure
        # Where the reference fails with the file itself there is nothing left to fall back to.
        last = name == REFERENCE and config.precision == "file"
        if kind == "error" or last or (kind == "fp32" and config.precision == "file"):
            raise
        _log.warning("%s, so on_engine_failure: %s", error, kind)
        engine = _opened(REFERENCE if kind == "cpu" else name, request, "file")
        engine.details["replaced"] = f"{name} {config.precision}: {error}"
        return engine


def _opened(name: str, request: OpenRequest, precision: str) -> Engine:
    """The engine of one back end, its answers compared with the reference's."""
    limits = Limits.of(request.manifest)
    typed = request
    if precision != "file":
        path = converted_path(request.model, precision)
        if not path.is_file():
            raise EngineError(
                f"model {request.model.name} has no copy in {precision} ({path.name} beside it):"
                f" make one with `depth_tools models convert {request.model} --precision"
                f" {precision}`, or set model.precision to file"
            )
        typed = OpenRequest(
            path, verified_manifest(path), request.config, request.cache, request.progress
        )
    engine = _BACKENDS[name].open(typed)
    engine.details["precision"] = precision
    if name == REFERENCE and precision == "file":
        engine.details["check"] = "is the reference"
        return engine
    try:
        check(engine, Reference.of(request.model, request.manifest, request.cache.folder), limits)
    except EngineError:
        engine.close()
        raise
    return engine
