# SPDX-License-Identifier: Apache-2.0
"""The thread that works on images, and the choice of images at a limited rate.

There is a slot of size one: the newest item replaces the one that waits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestWorker(Generic[T]):
    """Runs `work(item)` in its own thread for the newest offered item.

    An exception of `work` is passed to `failed`, and the thread goes on with the next item.
    """

    def __init__(
        self, work: Callable[[T], None], failed: Callable[[Exception], None], name: str
    ) -> None:
        self._work = work
        self._failed = failed
        self._ready = threading.Condition()
        self._slot: list[T] = []
        self._open = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, item: T) -> bool:
        """Put the item into the slot; return True if it replaced one that waited."""
        with self._ready:
            dropped = bool(self._slot)
            self._slot = [item]
            self._ready.notify()
        return dropped

    def clear(self) -> None:
        """Drop the item that waits."""
        with self._ready:
            self._slot = []

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish the current item, drop the one that waits and end the thread; return whether it
        ended."""
        with self._ready:
            self._open = False
            self._slot = []
            self._ready.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._slot or not self._open)
                if not self._open:
                    return
                item = self._slot.pop()
            try:
                self._work(item)
            except Exception as error:
                with contextlib.suppress(Exception):  # the thread must survive it
                    self._failed(error)
            del item  # else its arrays stay in memory until the next item


class Pace:
    """Chooses the images of a camera that are processed at a limited rate."""

    def __init__(self) -> None:
        self._due_ns = 0

    def due(self, stamp_ns: int, rate_hz: float) -> bool:
        """Return whether the image of this stamp is processed, at rate_hz per second; 0: always.

        The rate holds on average for unevenly spaced images: a delay of less than a period is made
        up for.
        """
        if rate_hz <= 0:
            return True
        if stamp_ns < self._due_ns:
            return False
        period_ns = round(1e9 / rate_hz)
        self._due_ns = max(self._due_ns, stamp_ns - period_ns) + period_ns
        return True
