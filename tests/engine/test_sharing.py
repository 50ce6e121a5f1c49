# SPDX-License-Identifier: Apache-2.0
"""Engines shared by several users: one in memory, serialised runs, closed by the last user."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from depth_node.engine import EngineError
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.options import EngineConfig, ModelConfig
from depth_node.engine.protocol import Closeable, Engine, ImageEngine
from depth_node.engine.sharing import SharedEngines
from depth_node.inference import open_configured
from depth_node.pipeline import DepthPipeline, PipelineConfig

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.tiny_models import save_model


@pytest.fixture
def settings(tmp_path: Path) -> ModelConfig:
    path = save_model(tmp_path / "tiny.onnx")
    write_manifest(path, "depth_metric")
    return ModelConfig(str(path), backend="onnxruntime-cpu")


class Watched(Closeable):
    """An engine whose runs wait for an event, and which fails if two run at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.manifest, self.backend, self.details = engine.manifest, engine.backend, engine.details
        self.go_on = threading.Event()
        self.go_on.set()
        self.order: list[float] = []
        self.busy = threading.Lock()
        self.closed = False

    def run(self, tensor: np.ndarray) -> np.ndarray:
        assert self.busy.acquire(blocking=False), "two runs at once"
        try:
            self.order.append(float(tensor.flat[0]))
            assert self.go_on.wait(20)
            return self._engine.run(tensor)
        finally:
            self.busy.release()

    def run_named(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._engine.run_named(tensors)

    def close(self) -> None:
        self.closed = True
        self._engine.close()


class Opened:
    """An opener that keeps all engines that it opened."""

    def __init__(self) -> None:
        self.engines: list[Watched] = []

    def __call__(self, config: ModelConfig, engine: EngineConfig) -> Engine:
        time.sleep(0.05)  # long enough for others to ask meanwhile
        self.engines.append(Watched(open_configured(config, engine)))
        return self.engines[-1]


def tensor_of(engine: Engine, value: float) -> np.ndarray:
    return np.full(engine.manifest.input.shape, value, np.float32)


def test_who_asks_for_the_same_gets_the_same_network(settings: ModelConfig) -> None:
    opened, users = Opened(), []
    shared = SharedEngines(opened)
    threads = [
        threading.Thread(target=lambda: users.append(shared.open(settings, EngineConfig())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(users) == 4 and len(opened.engines) == 1
    other = shared.open(
        ModelConfig(settings.path, backend=settings.backend, threads=1), EngineConfig()
    )
    assert len(opened.engines) == 2, "other settings are another network"
    for user in (*users, other):
        with open_configured(settings) as alone:
            tensor = tensor_of(user, 0.3)
            np.testing.assert_array_equal(user.run(tensor), alone.run(tensor))


def test_a_network_is_freed_by_its_last_user_and_read_anew_after(settings: ModelConfig) -> None:
    opened = Opened()
    shared = SharedEngines(opened)
    one, two = shared.open(settings, EngineConfig()), shared.open(settings, EngineConfig())
    one.close()
    one.close()  # a second call does nothing
    assert not opened.engines[0].closed
    with pytest.raises(EngineError, match="is closed"):
        one.run(tensor_of(one, 0.0))
    two.run(tensor_of(two, 0.0))
    two.close()
    assert opened.engines[0].closed
    with shared.open(settings, EngineConfig()):
        assert len(opened.engines) == 2


def test_runs_take_turns_in_the_order_of_asking(settings: ModelConfig) -> None:
    """A user that asks again comes after those that were waiting."""
    opened = Opened()
    shared = SharedEngines(opened)
    users = [shared.open(settings, EngineConfig()) for _ in range(3)]
    opened.engines[0].go_on.clear()

    def use(number: int) -> None:
        users[number].run(tensor_of(users[number], number))

    threads: list[threading.Thread] = []
    for position, number in enumerate((0, 1, 2, 0)):
        threads.append(threading.Thread(target=use, args=(number,)))
        threads[-1].start()
        network = next(iter(shared._networks.values()))
        end = time.monotonic() + 20  # each asks before the next one does
        while len(network.turns._waiting) < position + 1:
            assert time.monotonic() < end
            time.sleep(0.001)
    opened.engines[0].go_on.set()
    for thread in threads:
        thread.join(20)
    assert opened.engines[0].order == [0.0, 1.0, 2.0, 0.0]


def test_who_is_interrupted_in_waiting_keeps_nobody_out(settings: ModelConfig) -> None:
    """Ctrl-C raises in the main thread, also while it waits for its turn."""
    opened = Opened()
    shared = SharedEngines(opened)
    users = [shared.open(settings, EngineConfig()) for _ in range(2)]
    engine = opened.engines[0]
    engine.go_on.clear()
    running = threading.Thread(target=lambda: users[0].run(tensor_of(users[0], 0)))
    running.start()

    def interrupt(received: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            users[1].run(tensor_of(users[1], 1))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    engine.go_on.set()
    running.join(20)
    closing = threading.Thread(target=lambda: [user.close() for user in users], daemon=True)
    closing.start()
    closing.join(5)
    assert engine.closed, "close() still waits for the turn of the interrupted run"
    assert engine.order == [0.0]


def test_a_failure_reaches_who_asked_and_keeps_nobody_out(
    settings: ModelConfig, tmp_path: Path
) -> None:
    shared = SharedEngines(open_configured)
    broken = ModelConfig(str(tmp_path / "nothing.onnx"), backend=settings.backend)
    for _ in range(2):
        with pytest.raises(EngineError):
            shared.open(broken, EngineConfig())
    with shared.open(settings, EngineConfig()) as one, shared.open(settings, EngineConfig()) as two:
        with pytest.raises(EngineError, match="its manifest asks for"):
            one.run(np.zeros((1, 3, 2, 2), np.float32))
        two.run(tensor_of(two, 0.0))
    assert not shared._networks


def test_an_engine_that_takes_images_still_does(settings: ModelConfig) -> None:
    class Images(Watched):
        def run_image(self, image: np.ndarray) -> np.ndarray:
            return self.run(tensor_of(self, image.flat[0] / 255))

        def run_image_named(self, image: np.ndarray) -> dict[str, np.ndarray]:
            return {self.manifest.output_name: self.run_image(image)}

    shared = SharedEngines(lambda config, engine: Images(open_configured(config, engine)))
    with shared.open(settings, EngineConfig()) as one:
        assert isinstance(one, ImageEngine)
        image = np.full((4, 4, 3), 51, np.uint8)
        expected = one.run(tensor_of(one, 0.2))
        np.testing.assert_array_equal(one.run_image(image), expected)
        (named,) = one.run_image_named(image).values()
        np.testing.assert_array_equal(named, expected)
    plain = SharedEngines(open_configured).open(settings, EngineConfig())
    assert not isinstance(plain, ImageEngine)


def test_pipelines_of_one_network(settings: ModelConfig) -> None:
    opened = Opened()
    config = PipelineConfig(model=settings)
    shared = SharedEngines(opened)
    with DepthPipeline(config, opener=shared.open), DepthPipeline(config, opener=shared.open):
        assert len(opened.engines) == 1
    assert opened.engines[0].closed
