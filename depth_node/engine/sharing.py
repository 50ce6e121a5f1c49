# SPDX-License-Identifier: Apache-2.0
"""Sharing of one network in memory by several users, such as the cameras of a robot."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest
from depth_node.engine.options import EngineConfig, ModelConfig
from depth_node.engine.protocol import Closeable, Engine, ImageEngine

Opener: TypeAlias = Callable[[ModelConfig, EngineConfig], Engine]
"""Function that opens the engine that the settings describe. Raises EngineError."""


class _Turns:
    """A fair lock: users get it in the order in which they asked, so no user starves another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()  # tickets in the order of asking; the first has it

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        ticket = object()
        self._waiting.append(ticket)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting[0] is ticket)
            yield
        finally:  # also where KeyboardInterrupt ends the waiting
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()


@dataclass
class _Network:
    """The engine of one combination of settings, its number of users, and its lock."""

    users: int = 0
    engine: Engine | None = None
    turns: _Turns = field(default_factory=_Turns)


class SharedEngines:
    """Opens every network once, however many users ask for it with the same settings.

    Each user gets an Engine object of its own to run and to close. Runs of different users are
    serialised in the order in which they were requested. When the last user closes its object the
    network is freed; a later open() reads the file again. If a network cannot be opened, every
    open() tries again and raises the error. Safe for several threads.
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._networks: dict[tuple[ModelConfig, EngineConfig], _Network] = {}

    def open(self, config: ModelConfig, engine_config: EngineConfig) -> Engine:
        """Return the engine of these settings for one more user (an Opener). Raises EngineError."""
        key = (config, engine_config)
        with self._lock:
            network = self._networks.setdefault(key, _Network())
            network.users += 1
        try:
            with network.turns.turn():  # the first of simultaneous users opens, the others wait
                if network.engine is None:
                    network.engine = self._opener(config, engine_config)
                engine = network.engine
        except BaseException:
            self._leave(key, network)
            raise
        kind = _SharedImageEngine if isinstance(engine, ImageEngine) else _SharedEngine
        return kind(engine, network.turns, lambda: self._leave(key, network))

    def _leave(self, key: tuple[ModelConfig, EngineConfig], network: _Network) -> None:
        with self._lock:
            network.users -= 1
            if network.users:
                return
            del self._networks[key]
        if network.engine is not None:
            network.engine.close()


class _SharedEngine(Closeable):
    """See Engine: one user's handle of a shared engine."""

    def __init__(self, engine: Engine, turns: _Turns, leave: Callable[[], None]) -> None:
        self.manifest: Manifest = engine.manifest
        self.backend: str = engine.backend
        self.details: dict[str, Any] = engine.details
        self._engine: Engine | None = engine
        self._turns = turns
        self._leave = leave

    def run(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """See Engine.run."""
        with self._turns.turn():
            return self._open_engine().run(tensor)

    def run_named(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """See Engine.run_named."""
        with self._turns.turn():
            return self._open_engine().run_named(tensors)

    def close(self) -> None:
        """See Engine.close; the handles of other users stay open."""
        with self._turns.turn():  # after a run of this handle in another thread
            engine, self._engine = self._engine, None
        if engine is not None:
            self._leave()

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise EngineError(f"model {self.manifest.name} is closed: open it again")
        return self._engine


class _SharedImageEngine(_SharedEngine):
    """See ImageEngine."""

    def run_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """See ImageEngine.run_image."""
        with self._turns.turn():
            return self._image_engine().run_image(image)

    def run_image_named(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """See ImageEngine.run_image_named."""
        with self._turns.turn():
            return self._image_engine().run_image_named(image)

    def _image_engine(self) -> ImageEngine:
        engine = self._open_engine()
        assert isinstance(engine, ImageEngine)  # SharedEngines.open chose this class by it
        return engine
