# SPDX-License-Identifier: Apache-2.0
"""The signals that end a process of nodes, from its first moment on; nothing of ROS is imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def on_stop(stop: Callable[[], object]) -> None:
    """Call `stop` at SIGINT, SIGTERM and at SIGHUP (a terminal that is closed), in place of what
    was called before. Under nohup, which ignores SIGHUP, that stays ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda *_: stop())


def end_at_once_on_stop() -> None:
    """While the program loads, which takes seconds on a small computer: nothing is there yet that
    would have to be ended, and an interrupt among imports would be a traceback."""
    on_stop(lambda: os._exit(0))
