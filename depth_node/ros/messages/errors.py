# SPDX-License-Identifier: Apache-2.0
"""Errors of messages that cannot be used: one sentence with cause and cure, and where raised."""

from __future__ import annotations


class MessageError(ValueError):
    """A message that contradicts itself or cannot be read; one sentence with cause and cure."""


class RefusedScanError(MessageError):
    """A scan whose reading failed before; place: where that error was raised."""

    def __init__(self, sentence: str, place: str) -> None:
        super().__init__(sentence)
        self.place = place


class OtherSizeError(MessageError):
    """An image whose size differs from that of its camera_info, in pixels."""

    def __init__(self, sentence: str, width: int, height: int) -> None:
        super().__init__(sentence)
        self.width, self.height = width, height


def place(error: BaseException) -> str:
    """Return the type of an exception and where it was raised, file:line.

    This is used as the kind of a warning, because messages contain changing values.
    """
    if isinstance(error, RefusedScanError):
        return error.place
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"
    return f"{type(error).__name__} at {where}"


def brief(text: str, length: int = 80) -> str:
    """Return a text that others wrote, cut to `length` for a sentence."""
    return text if len(text) <= length else f"{text[:length]}..."
