# SPDX-License-Identifier: Apache-2.0
"""Settings of the C library's allocator for a process that allocates and frees images all the time.

By default glibc maps the memory of large arrays anew for each of them, returns it at once, and
keeps an arena for every thread. A frame then takes thousands of page faults of some microseconds
each, and the thread of every worker holds memory that only one needs at a time.

The kept memory must not become the sum of all past peaks: an hour of changed parameters and hostile
messages left twice of what frames need. So the largest arrays are mapped as before, there is one
arena, and Memory returns free memory once it has grown.
"""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_SETTINGS = {
    # From this size on NumPy requests huge pages. Fresh ones are cheap; in the heap a single byte
    # that is touched after its page was returned would map 2 MB.
    _M_MMAP_THRESHOLD: 4 << 20,
    _M_TRIM_THRESHOLD: 1 << 30,
    _M_ARENA_MAX: 1,
}
_GROWTH = 32 << 20  # bytes above what frames need, some frames, before free memory is returned
_FIRST_S, _LAST_S = 60.0, 240.0  # between two trims: while they gain, and once they do not
_USERS = ("MALLOC_", "GLIBC_TUNABLES")  # environment variables of a user's own settings


def keep_memory() -> bool:
    """Keep freed memory for the next frame, in one arena; return whether that was done.

    Nothing is done with another C library than glibc, or if the user has set the allocator. To be
    called before threads are started (the import of rclpy starts two), because existing arenas stay
    in use.
    """
    if any(name.startswith(_USERS) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in _SETTINGS.items())


class Memory:
    """Returns the resident memory of this process to the system when a peak is over.

    The caller calls look() every few seconds. A trim takes some 10 ms, in which no thread can
    allocate, and the next frame maps its pages anew. So it is done if the process has grown by more
    than frames differ, or after an interval that is doubled as long as trims gain nothing.
    """

    def __init__(self) -> None:
        kept = keep_memory()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if kept else None
        self._before: int | None = None  # bytes resident before the last trim
        self._needed = 0  # bytes resident at the first look after it
        self._wait_s, self._due_s = _FIRST_S, 0.0

    def look(self, now_s: float) -> bool:
        """Return free memory if it is time to, and whether that was done. now_s: steady clock."""
        if self._trim is None or (resident := _resident()) is None:
            return False
        if self._before is not None:
            in_vain = self._before - resident < _GROWTH // 2
            self._wait_s = min(2 * self._wait_s, _LAST_S) if in_vain else _FIRST_S
            self._before, self._needed, self._due_s = None, resident, now_s + self._wait_s
        if resident <= self._needed + _GROWTH and now_s < self._due_s:
            return False
        self._trim(0)
        self._before = resident
        return True


def _resident() -> int | None:
    """Return the resident memory of the process in bytes; None if the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None
