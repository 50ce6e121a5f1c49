# SPDX-License-Identifier: Apache-2.0
"""Forwards the package's log records to a node's logger."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SOURCE = "depth_node"


@contextmanager
def forward_logs(logger: Any) -> Iterator[None]:
    """Forward what the package logs meanwhile (a build takes minutes) to the node's logger.

    Records of threads in which another node does the same are that node's alone.
    """
    own = threading.get_ident()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread != own and record.thread in _levels.users:
                return
            # rclpy allows one severity for each place in the source that logs.
            if record.levelno >= logging.WARNING:
                logger.warning(record.getMessage())
            else:
                logger.info(record.getMessage())

    source, handler = logging.getLogger(_SOURCE), Handler(logging.INFO)
    source.addHandler(handler)
    _levels.enter(own)
    try:
        yield
    finally:
        _levels.leave(own)
        source.removeHandler(handler)


class _Levels:
    """Sets the package's log level to INFO for the first user and restores it after the last."""

    def __init__(self) -> None:
        self.users: set[int] = set()  # idents of threads
        self._lock = threading.Lock()
        self._before = logging.NOTSET

    def enter(self, thread: int) -> None:
        source = logging.getLogger(_SOURCE)
        with self._lock:
            if not self.users:
                self._before = source.level
                source.setLevel(logging.INFO)
            self.users.add(thread)

    def leave(self, thread: int) -> None:
        with self._lock:
            self.users.discard(thread)
            if not self.users:
                logging.getLogger(_SOURCE).setLevel(self._before)


_levels = _Levels()
