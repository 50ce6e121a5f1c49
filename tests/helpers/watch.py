# SPDX-License-Identifier: Apache-2.0
"""An extrinsics watch that is stuck in its work."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from depth_node.calibration.watch import ExtrinsicsWatch, Seen


def stuck_watch(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Every look waits: the first event says that one has begun, the second lets them go on."""
    begun, released = threading.Event(), threading.Event()
    look = ExtrinsicsWatch.look

    def stuck(self: ExtrinsicsWatch, seen: Seen) -> Iterator[None]:
        begun.set()
        released.wait()
        yield from look(self, seen)

    monkeypatch.setattr(ExtrinsicsWatch, "look", stuck)
    return begun, released
