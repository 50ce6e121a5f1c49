# SPDX-License-Identifier: Apache-2.0
"""Distribution of the rows or queries of a loop over a few threads.

numba's own parallel loops are not used: their only threading layer that is always installed
(workqueue) ends the process if two threads call it at once, as the workers of two cameras do.
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
    4  # maximum if no number is given: more threads wait for each other longer than they work
)
PARTS_PER_THREAD = 4  # if the system interrupts a thread, the others do the remaining parts


def usual_threads() -> int:
    """Return the default number of threads: one per core that this process may use, at most 4."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return min(cores, USUAL_THREADS)


@functools.cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """Return the pool of `count` threads, one per number and process; it ends with the process."""
    return ThreadPoolExecutor(count, thread_name_prefix="fit")


@dataclass(frozen=True)
class SharedLoop:
    """A compiled loop over the items begin:end, its last two arguments, shared by threads.

    The loop must release the GIL. What it writes for one item must not depend on the others; then
    the result is the same, to the bit, with any number of threads. total: function that returns the
    number of items from the other arguments. least: number of items that are worth a thread.
    """

    loop: Callable[..., None]
    total: Callable[..., int]
    least: int
    threads: int

    def __call__(self, *arguments: Any) -> None:
        """Run the loop over all items.

        The caller's thread takes part: if all helpers work for another camera's frame, it does
        everything itself.
        """
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
