# SPDX-License-Identifier: Apache-2.0
"""Opening of networks: choice of the back end, fallback settings, self-check.

`model.backend` is tried first, then each of `engine.fallback` in order; a back end that this
machine cannot use is skipped. `engine.on_failure` applies if a back end can be used but its engine
cannot be built or gives wrong outputs. Skipped back ends and their reasons are logged and are in
the engine's details.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from depth_node.engine import BackendError, EngineError, depth_tools
from depth_node.engine.cache import EngineCache
from depth_node.engine.manifest import Manifest, converted_path, verified_manifest
from depth_node.engine.options import REFERENCE, EngineConfig, ModelConfig, OpenRequest
from depth_node.engine.protocol import Engine, Progress, warn_if_slow
from depth_node.engine.self_check import Limits, Reference, check
from depth_node.sentences import nearest

_log = logging.getLogger("depth_node.engine")


@dataclass(frozen=True)
class _Backend:
    """A back end: open() makes an engine; missing() returns why it cannot be used here, else ""."""

    open: Callable[[OpenRequest], Engine]
    missing: Callable[[], str]


def _ort(provider: str) -> _Backend:
    def open_engine(request: OpenRequest) -> Engine:
        from depth_node.engine import ort

        return ort.OrtEngine(request.model, request.manifest, request.config.threads, provider)

    def missing() -> str:
        package = "onnxruntime" if provider == "cpu" else "onnxruntime-gpu"
        if find_spec("onnxruntime") is None:
            return f"no module onnxruntime: pip install {package}"
        from depth_node.engine import ort

        return ort.missing(provider)

    return _Backend(open_engine, missing)


def _open_tensorrt(request: OpenRequest) -> Engine:
    from depth_node.engine import trt

    return trt.open_tensorrt(request)


def _tensorrt_missing() -> str:
    for module, cure in (
        ("tensorrt", "pip install tensorrt (on a Jetson: apt install python3-libnvinfer)"),
        ("cuda.bindings", "pip install 'cuda-python>=12.6'"),
    ):
        if not _is_installed(module):
            return f"no module {module}: {cure}"
    from depth_node.engine import trt

    return trt.missing()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is not installed
        return False


_BACKENDS: dict[str, _Backend] = {
    "tensorrt": _Backend(_open_tensorrt, _tensorrt_missing),
    "onnxruntime-cuda": _ort("cuda"),
    "onnxruntime-tensorrt": _ort("tensorrt"),
    REFERENCE: _ort("cpu"),
}
AUTO = ("tensorrt", "onnxruntime-cuda", REFERENCE)


def backends() -> dict[str, str]:
    """Return for every known back end "" if it can be used here, else the cause and the cure."""
    return {name: _missing(backend) for name, backend in _BACKENDS.items()}


def _missing(backend: _Backend) -> str:
    try:
        return backend.missing()
    except BackendError as error:  # a version that cannot be used
        return str(error)
    except Exception as error:  # blocked, partly installed, or without its library
        return f"it cannot be imported ({' '.join(str(error).split())}): install it again"


def summary(engine: Engine) -> dict[str, str]:
    """Return the few of an engine's details that diagnostics show, as text in a fixed order."""
    details = engine.details
    shown = ("version", "precision", "check", "check of images", "key", "engine file", "built",
             "cuda graph", "image to tensor", "warning", "replaced")  # fmt: skip
    values = {key: str(details[key]) for key in shown if key in details}
    return values | {key: str(value) for key, value in details.items() if key.startswith("not ")}


def open_model(
    model: Path,
    manifest: Manifest,
    config: ModelConfig,
    engine_config: EngineConfig,
    progress: Progress | None = None,
) -> Engine:
    """Open a model file with the settings' back end; the engine is self-checked and warmed up.

    Raises BackendError if no back end can be used, EngineError if a build or the self-check fails.
    """
    order = _order(config, engine_config)
    cache = EngineCache.of(engine_config.cache_dir, engine_config.cache_mb * 1_000_000)
    request = OpenRequest(model, manifest, config, engine_config, cache, progress)
    skipped: dict[str, str] = {}
    engine = None
    for name in order:
        reason = _missing(_BACKENDS[name])
        if not reason:
            try:
                with warn_if_slow(f"opening model {model} on {name}"):
                    engine = _open_or_fall_back(name, request)
                break
            except BackendError as error:  # some back ends fail only when they start
                reason = str(error)
        skipped[name] = reason
        log = _log.info if config.backend == "auto" else _log.warning
        log("back end %s cannot be used here: %s", name, reason)
    if engine is None:
        if engine_config.on_failure != "cpu" or REFERENCE in skipped:
            raise BackendError(_no_backend_message(skipped))
        with warn_if_slow(f"opening model {model} on {REFERENCE}"):
            engine = _open_checked(REFERENCE, request, "file")
    for other, reason in skipped.items():
        engine.details[f"not {other}"] = reason
    _log.info("model %s runs on %s", manifest.name, engine.backend)
    return engine


def _order(config: ModelConfig, engine_config: EngineConfig) -> tuple[str, ...]:
    """Return the back ends to try, in order. Raises EngineError for an unknown name."""
    order = AUTO if config.backend == "auto" else (config.backend, *engine_config.fallback)
    for name in order:
        if name not in _BACKENDS:
            guess = nearest(name, [*_BACKENDS, "auto"])
            hint = f" (did you mean {guess}?)" if guess else ""
            raise EngineError(
                f"back end {name!r} is not known{hint}: use auto or one of {', '.join(_usable())}"
            )
    return order


def _usable() -> list[str]:
    return [name for name, reason in backends().items() if not reason]


def _no_backend_message(skipped: Mapping[str, str]) -> str:
    """Return the error message for the case that none of the back ends can be used."""
    if len(skipped) == 1:
        ((name, reason),) = skipped.items()
        usable = _usable()
        others = f", or use {', '.join(usable)}" if usable else ""
        return f"back end {name} cannot be used here: {reason}{others}"
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
    return f"no back end can run a network here: {reasons}"


def _open_or_fall_back(name: str, request: OpenRequest) -> Engine:
    """Open a back end's engine; if that fails, open what `engine.on_failure` asks for."""
    config = request.config
    try:
        return _open_checked(name, request, config.precision)
    except BackendError:
        raise
    except EngineError as error:
        action = request.engine.on_failure
        # The reference back end with the model file itself is the last fallback.
        last = name == REFERENCE and config.precision == "file"
        if action == "error" or last or (action == "fp32" and config.precision == "file"):
            raise
        _log.warning("%s, so engine.on_failure: %s", error, action)
        engine = _open_checked(REFERENCE if action == "cpu" else name, request, "file")
        engine.details["replaced"] = f"{name} {config.precision}: {error}"
        return engine


def _open_checked(name: str, request: OpenRequest, precision: str) -> Engine:
    """Open one back end's engine and compare its outputs with those of the reference."""
    limits = Limits.of(request.manifest)
    typed_request = request
    if precision != "file":
        path = converted_path(request.model, precision)
        if not path.is_file():
            command = f"models convert {request.model} --precision {precision}"
            raise EngineError(
                f"model {request.model.name} has no copy in {precision} ({path.name} beside it):"
                f" make one with `{depth_tools(command)}`, or set model.precision to file"
            )
        typed_request = dataclasses.replace(request, model=path, manifest=verified_manifest(path))
    engine = _BACKENDS[name].open(typed_request)
    engine.details["precision"] = precision
    if name == REFERENCE and precision == "file":
        engine.details["check"] = "is the reference"
        return engine
    try:
        check(engine, Reference.of(request.model, request.manifest, request.cache.folder), limits)
    except BaseException:  # also an interruption: the engine may hold GPU memory
        engine.close()
        raise
    return engine
