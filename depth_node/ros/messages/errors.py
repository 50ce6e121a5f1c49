# SPDX-License-Identifier: Apache-2.0
"""Why a message cannot be used: one sentence with cause and cure, and where that was found."""

from __future__ import annotations


class MessageError(ValueError):
    """A message that contradicts itself or cannot be read; one sentence with cause and cure."""


class RefusedScanError(MessageError):
    """A scan that could not be read before; place: where that was found."""

    def __init__(self, sentence: str, place: str) -> None:
        super().__init__(sentence)
        self.place = place


class OtherSizeError(MessageError):
    """An image that is not of the size of its camera_info, in pixels."""

    def __init__(self, sentence: str, width: int, height: int) -> None:
        super().__init__(sentence)
        self.width, self.height = width, height


def place(error: BaseException) -> str:
    """Where an exception was raised, file:line: the kind of it, whatever its sentence says."""
    if isinstance(error, RefusedScanError):
        return error.place
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"
    return f"{type(error).__name__} at {where}"


def brief(text: str, length: int = 80) -> str:
    """A text of somebody else's for a sentence of ours, cut where it is too long."""
    return text if len(text) <= length else f"{text[:length]}..."
