# SPDX-License-Identifier: Apache-2.0
"""Entry points of depth_tools, depth_node and depth_cameras.

This module is outside the package because importing any module of depth_node imports NumPy first.
An interrupt among imports is a traceback, or is taken for a failed import. So the signals are set
here, before the first import that takes time.
"""

import os
import signal
import sys
from collections.abc import Callable

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended, as shells report it


def tools() -> int:
    """Run depth_tools and return its exit status."""

    def load() -> Callable[[], int]:
        from depth_node.cli.main import main

        return main

    return run(load)


def node() -> int:
    """Run the node and return its exit status."""
    _end_on_stop()
    from depth_node.ros.main import main

    return main()


def cameras() -> int:
    """Run several cameras in one process and return its exit status."""
    _end_on_stop()
    from depth_node.ros.main import main_cameras

    return main_cameras()


def run(load: Callable[[], Callable[[], int]]) -> int:
    """Import a program with `load`, run it and return its exit status.

    While it is imported there is nothing to end properly: SIGINT has the system's action and ends
    the process without output. A program that returns INTERRUPTED ends the process by SIGINT too,
    so that a shell stops the loop or script in which it runs. SIGINT stays ignored where it was
    (under nohup, or in the background of a script).
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return load()()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = load()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = program()
    except KeyboardInterrupt:  # in the few instructions before the program handles it
        status = INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if status == INTERRUPTED:
        # Python then runs its exit handlers, and ends the process by SIGINT.
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt
    return status


def _end_on_stop() -> None:
    """End the process with status 0 at SIGINT and SIGTERM, until the node handles them itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))


if __name__ == "__main__":
    sys.exit(tools())
