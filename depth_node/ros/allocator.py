# SPDX-License-Identifier: Apache-2.0
"""The C library's allocator, set for a process that takes and frees images all the time.

By default glibc maps memory of large arrays anew for each of them, gives it back at once, and keeps
an arena of its own for every thread. A frame then takes thousands of page faults, each of which a
processor pays in microseconds, and every worker's thread holds what only one at a time needs.
"""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_SETTINGS = {
    _M_MMAP_THRESHOLD: 32 << 20,  # the most that glibc takes: an image of 4K is below it
    _M_TRIM_THRESHOLD: 1 << 30,
    _M_ARENA_MAX: 1,
}
_USERS = ("MALLOC_", "GLIBC_TUNABLES")  # environment: whoever sets these knows what for


def keep_memory() -> bool:
    """Keep freed memory for the next frame, in one arena; whether that was done.

    Nothing is done with another C library than glibc, or where the user has set its allocator. To
    be called before threads are started: arenas that there are stay.
    """
    if any(name.startswith(_USERS) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in _SETTINGS.items())
