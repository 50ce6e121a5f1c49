# SPDX-License-Identifier: Apache-2.0
"""Text from outside in messages: one line of bounded length. Suggestions for misspelt names."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

LONGEST_SENTENCE = 1000
_MAX_NAME = 200  # a longer name is not a spelling mistake


def one_line(text: object, limit: int = 200) -> str:
    """Return text from outside (a library, a file, a message) to be part of a sentence.

    The result is one line of at most about `limit` characters: white space becomes one space, and
    control characters are escaped, so that they have no effect in a terminal or a log.
    """
    try:
        whole = str(text)
    except Exception:  # an integer with too many digits, or an object whose str() fails
        whole = f"<{type(text).__name__}>"
    if isinstance(text, BaseException) and not whole:
        whole = type(text).__name__
    cut = whole[: 4 * limit]  # first, because the text may have 300 MB
    words = " ".join(cut.split())
    safe = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in words
    )
    if len(safe) <= limit and len(cut) == len(whole):
        return safe
    return safe[:limit] + "…"


def both_ends(text: str, longest: int = LONGEST_SENTENCE) -> str:
    """Return text from outside as one line without control characters, shortened in the middle.

    A sentence begins with the cause and ends with the cure, so that both are kept.
    """
    text = _shortened(text, longest)  # first, because the following steps visit every character
    if text.isprintable():
        return text
    plain = "".join(
        " " if c in "\n\r\t" else c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )
    return _shortened(plain, longest)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2 - 3
    return f"{text[:half]} ... {text[-half:]}"


class _Quote(reprlib.Repr):
    """repr() of a value from outside, in bounded length and time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlevel = 3

    def repr_int(self, value: int, level: int) -> str:
        """Return an integer's repr(); Python cannot print one of more than 4300 digits."""
        if value.bit_length() > 300:
            return f"<an integer of {value.bit_length()} bits>"
        return repr(value)


def quoted(value: object) -> str:
    """Return a value from outside for use in a sentence: its repr(), shortened, in one line."""
    try:
        return one_line(_Quote().repr(value))
    except Exception:  # an object whose repr() fails
        return f"<{type(value).__name__}>"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name most similar to `name`, or "" if none is similar.

    A dotted name also matches by its last part: `metod` and `method` both find `fit.method`.
    """
    if len(name) > _MAX_NAME:
        return ""
    names = list(known)
    lower = {candidate.lower(): candidate for candidate in reversed(names)}
    matches = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.65)
    if matches:
        return lower[matches[0]]
    leaves = {candidate.rpartition(".")[2].lower(): candidate for candidate in reversed(names)}
    matches = difflib.get_close_matches(name.rpartition(".")[2].lower(), leaves, n=1, cutoff=0.65)
    return leaves[matches[0]] if matches else ""
