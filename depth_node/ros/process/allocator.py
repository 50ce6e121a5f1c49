# SPDX-License-Identifier: Apache-2.0
"""The C library's allocator, set for a process that takes and frees images all the time.

By default glibc maps memory of large arrays anew for each of them, gives it back at once, and keeps
an arena of its own for every thread. A frame then takes thousands of page faults, each of which a
processor pays in microseconds, and every worker's thread holds what only one at a time needs.

What is kept must not become the sum of all peaks that there ever were: an hour of changed
parameters and hostile messages left twice of what frames need. So the largest arrays are mapped as
before, there is one arena, and Memory gives back what lies free once it has grown.
"""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_SETTINGS = {
    # From here on NumPy asks for huge pages. Fresh ones cost little, and in the heap a single byte
    # that is touched after it was given back would bring 2 MB with it.
    _M_MMAP_THRESHOLD: 4 << 20,
    _M_TRIM_THRESHOLD: 1 << 30,
    _M_ARENA_MAX: 1,
}
_GROWTH = 32 << 20  # bytes above what frames need, before what is free is given back: some frames
_FIRST_S, _LAST_S = 60.0, 240.0  # between two times, as long as they gain and once they do not
_USERS = ("MALLOC_", "GLIBC_TUNABLES")  # environment: whoever sets these knows what for


def keep_memory() -> bool:
    """Keep freed memory for the next frame, in one arena; whether that was done.

    Nothing is done with another C library than glibc, or where the user has set its allocator. To
    be called before threads are started, as arenas that there are stay and are used in turn; the
    import of rclpy starts two.
    """
    if any(name.startswith(_USERS) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in _SETTINGS.items())


class Memory:
    """Resident memory of this process, given back when a peak is over.

    The caller looks every few seconds. Giving back takes some 10 ms, in which no thread gets
    memory, and the next frame maps its pages anew. So it is done when the process has grown by
    more than frames differ, or when its time has come, which is later and later as long as there
    is nothing to gain.
    """

    def __init__(self) -> None:
        kept = keep_memory()
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if kept else None
        self._before: int | None = None  # bytes: resident before the last time; frames ran since
        self._needed = 0  # bytes: resident at the look after it
        self._wait_s, self._due_s = _FIRST_S, 0.0

    def look(self, now_s: float) -> bool:
        """Give back what lies free if it is time to; whether that was done. now_s: steady clock."""
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
    """Bytes of memory that the process holds; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None
