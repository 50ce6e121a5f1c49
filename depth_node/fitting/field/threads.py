# SPDX-License-Identifier: Apache-2.0
"""Rows or queries of a loop shared between a few threads.

numba's own parallel loops are not used: the threading layer that is always there (workqueue) ends
the process where two threads call it at once, as the workers of two cameras do.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

MAX_THREADS = 16
USUAL_THREADS = (
    4  # at most, where none are asked for: more wait longer for each other than they work
)
PARTS_PER_THREAD = 4  # a thread that the system interrupts leaves the rest to the others


def usual_threads() -> int:
    """Threads for a fit on this machine: one for each core that this process may use, up to 4."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return min(cores, USUAL_THREADS)


@functools.cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """So many threads, used by all who ask for as many: they end with the process."""
    return ThreadPoolExecutor(count, thread_name_prefix="fit")


@dataclass(frozen=True)
class SharedLoop:
    """A compiled loop over `begin` up to, not with, `end`, its last arguments; it holds no lock.

    What it writes for one number depends on no other, so that the result is the same, to the bit,
    however many threads share it. total: how far to count, from the other arguments. least: numbers
    that are worth a thread.
    """

    loop: Callable[..., None]
    total: Callable[..., int]
    least: int
    threads: int

    def __call__(self, *arguments: Any) -> None:
        """Run the loop over all numbers. The caller's thread takes part: where all helpers are at
        the frame of another camera, it does everything itself."""
        total = self.total(*arguments)
        parts = min(PARTS_PER_THREAD * self.threads, total // self.least)
        if self.threads == 1 or parts < 2:
            self.loop(*arguments, 0, total)
            return
        edges = [total * part // parts for part in range(parts + 1)]
        waiting = list(itertools.pairwise(edges))

        def work() -> None:
            while waiting:
                try:
                    part = waiting.pop()
                except IndexError:  # another thread has just taken the last
                    return
                self.loop(*arguments, *part)

        pool = _helpers(self.threads - 1)
        helpers = [pool.submit(work) for _ in range(min(self.threads, parts) - 1)]
        try:
            work()
        finally:
            waiting.clear()
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
