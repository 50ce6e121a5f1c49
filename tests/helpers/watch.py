# SPDX-License-Identifier: Apache-2.0
"""An extrinsics watch whose work does not end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from depth_node.calibration.watch import ExtrinsicsWatch, Seen


def stuck_watch(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make every ExtrinsicsWatch.look wait; return an event that is set when one has begun, and an
    event to set that lets them continue.
    """
    begun, released = threading.Event(), threading.Event()
    look = ExtrinsicsWatch.look

    def stuck(self: ExtrinsicsWatch, seen: Seen) -> Iterator[None]:
        begun.set()
        released.wait()
        yield from look(self, seen)

    monkeypatch.setattr(ExtrinsicsWatch, "look", stuck)
    return begun, released
