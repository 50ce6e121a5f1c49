# SPDX-License-Identifier: Apache-2.0
"""Forwards the package's log records to a node's logger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def forward_logs(logger: Any) -> Iterator[None]:
    """Forward what the package logs meanwhile (a build takes minutes) to the node's logger."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # rclpy allows one severity for each place in the source that logs.
            if record.levelno >= logging.WARNING:
                logger.warning(record.getMessage())
            else:
                logger.info(record.getMessage())

    source, handler = logging.getLogger("depth_node"), Handler(logging.INFO)
    before = source.level
    source.addHandler(handler)
    source.setLevel(logging.INFO)
    try:
        yield
    finally:
        source.removeHandler(handler)
        source.setLevel(before)
