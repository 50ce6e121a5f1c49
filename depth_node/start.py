# SPDX-License-Identifier: Apache-2.0
"""Entry points of depth_tools, depth_node and depth_cameras.

An interrupt among imports is a traceback, or is taken for a failed import. So the signals are set
here, before the first import that takes time. What runs is named by text for the same reason.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

INTERRUPTED = 130  # exit status of a program that Ctrl-C ended, as shells report it


def tools() -> int:
    """Run depth_tools and return its exit status."""
    return run("depth_node.cli.main")


def node() -> int:
    """Run the node and return its exit status."""
    _end_on_stop()
    return _call("depth_node.ros.main")


def cameras() -> int:
    """Run several cameras in one process and return its exit status."""
    _end_on_stop()
    return _call("depth_node.ros.main", "main_cameras")


def run(module: str) -> int:
    """Import a module, run its `main` and return its exit status.

    While it is imported there is nothing to end properly: SIGINT has the system's action and ends
    the process without output. A program that returns INTERRUPTED ends the process by SIGINT too,
    so that a shell stops the loop or script in which it runs. SIGINT stays ignored where it was
    (under nohup, or in the background of a script).
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return _call(module)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = importlib.import_module(module).main
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


def _call(module: str, function: str = "main") -> int:
    status: int = getattr(importlib.import_module(module), function)()
    return status


def _end_on_stop() -> None:
    """End the process with status 0 at SIGINT and SIGTERM, until the node handles them itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))


if __name__ == "__main__":
    sys.exit(tools())
