# SPDX-License-Identifier: Apache-2.0
"""The signals that end a process of nodes, from its start on; nothing of ROS is imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def on_stop(stop: Callable[[], object]) -> None:
    """Call `stop` at SIGINT, SIGTERM and SIGHUP (a terminal that is closed); replaces earlier
    handlers.

    Under nohup, which ignores SIGHUP, it stays ignored.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda *_: stop())


def end_at_once_on_stop() -> None:
    """End the process at a signal while the program loads, which takes seconds on a small computer.

    Nothing has to be released then, and an interrupt during imports would print a traceback.
    """
    on_stop(lambda: os._exit(0))
