# SPDX-License-Identifier: Apache-2.0
"""The benchmark of several cameras, without ROS: how long it waits for its processes."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from depth_node.benchmarks import cameras
from depth_node.live import DemoError


class Process:
    """A process that is ready at once; the load reports `late_s` after it was told to begin."""

    late_s = 0.0

    def __init__(self, name: str, *_: Any, **__: Any) -> None:
        self.name, self.process = name, SimpleNamespace(pid=1)

    def events(self, events: queue.Queue[tuple[str, dict[str, Any]]]) -> None:
        self._events = events
        if self.name == "load":
            events.put((self.name, {"event": "ready"}))

    def tell(self, word: str) -> None:
        if word == "go":
            report = {"event": "report", "seconds": 1.0, "latency_ms": {"camera0": [5.0, 6.0]}}
            threading.Timer(self.late_s, self._events.put, [(self.name, report)]).start()

    def tail(self) -> str:
        return ""

    def end(self) -> None:
        pass


@pytest.mark.parametrize(("seconds", "late_s"), [(0.8, 0.5), (0.1, 1.2)])
def test_a_turn_may_last_longer_than_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, late_s: float
) -> None:
    monkeypatch.setattr(cameras, "PATIENCE_S", 0.2)
    monkeypatch.setattr(cameras, "Child", Process)
    monkeypatch.setattr(Process, "late_s", late_s)
    monkeypatch.setattr(cameras, "environment", lambda _: {})
    monkeypatch.setattr(cameras, "find_frames", lambda _: [tmp_path])
    monkeypatch.setattr(cameras, "read_frame", lambda _: SimpleNamespace(T_camera_lidar=np.eye(4)))
    monkeypatch.setattr(cameras, "_cpu_s", lambda _: 0.0)
    monkeypatch.setattr(cameras, "_memory_mib", lambda _: (1.0, 1.0))
    one = cameras.Arrangement("1 camera", [["camera0"]])
    if late_s > seconds + 0.2:
        with pytest.raises(DemoError, match=r"no process said report within 0\.3 s"):
            cameras._turn(one, tmp_path, tmp_path, seconds, {})
        return
    cameras._turn(one, tmp_path, tmp_path, seconds, {})
    assert one.rate == [2.0] and one.latency_ms == [5.0, 6.0]
