# SPDX-License-Identifier: Apache-2.0
"""The shipped network that refines the maps of method `field`; ONNX Runtime runs it on the CPU.

It takes maps of any size and so has no manifest, which would fix one; its file is in the package.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from importlib.util import find_spec
from pathlib import Path

from depth_node.engine import EngineError
from depth_node.fitting import FitConfig
from depth_node.fitting.field.lattice import Map

MODEL = Path(__file__).resolve().parent.parent / "models" / "refine.onnx"
SHA256 = "d95e061f0a0da16fedc78baba4834ab497a00f166daa6736e665a35b86e376ae"
INPUT, OUTPUT = "maps", "change"

_log = logging.getLogger("depth_node.engine")


class FieldRefiner:
    """Implementation of depth_node.fitting.field.refine.Refiner. Safe for several threads."""

    def __init__(self, model: Path = MODEL, threads: int = 1) -> None:
        """Load the network to run on `threads` threads. Raises EngineError for unreadable files."""
        from depth_node.engine import ort

        self._model = model
        self._session = ort.open_session(model, threads)

    def __call__(self, maps: Map) -> Map:
        """Compute from maps (CHANNELS, h, w) the (4, h, w) change that is added to log depth.

        Raises EngineError if the network cannot run.
        """
        try:
            change: Map = self._session.run([OUTPUT], {INPUT: maps[None]})[0][0]
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise EngineError(
                f"{self._model} failed to refine maps of shape {maps.shape}: it is another"
                " version's file; install the package again, or set fit.field.refine to off"
                f" ({' '.join(str(error).split())})"
            ) from error
        return change


def refiner_for(config: FitConfig) -> FieldRefiner | None:
    """Return the shipped network, or None if the settings do not ask for it or it cannot run.

    It is loaded once per process. Raises EngineError if its file is damaged.
    """
    if config.method != "field" or config.field.refine == "off":
        return None
    return shipped_refiner()


def is_whole() -> bool:
    """Return whether the network's file is the one that this version was shipped with."""
    return MODEL.is_file() and hashlib.sha256(MODEL.read_bytes()).hexdigest() == SHA256


@functools.cache
def shipped_refiner() -> FieldRefiner | None:
    """Return the shipped network; None, with a warning in the log, without ONNX Runtime.

    Raises EngineError if its file is damaged.
    """
    if find_spec("onnxruntime") is None:
        _log.warning("no module onnxruntime, so the field is not refined: pip install onnxruntime")
        return None
    if not is_whole():
        raise EngineError(
            f"{MODEL} is not the file that this version came with: install the package again, or"
            " set fit.field.refine to off"
        )
    return FieldRefiner(MODEL)
