# SPDX-License-Identifier: Apache-2.0
"""Foreign text in a sentence of ours, in one line of bounded length; the name that was meant."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

LONGEST_SENTENCE = 1000
_MAX_NAME = 200  # a longer name is no slip of the pen


def one_line(text: object, limit: int = 200) -> str:
    """Foreign text (of a library, a file, a message) as part of a sentence.

    One line of at most about `limit` characters: white space becomes one blank, control characters
    are escaped, so that no terminal and no log obeys them.
    """
    try:
        whole = str(text)
    except Exception:  # an integer of too many digits, an object that fails to describe itself
        whole = f"<{type(text).__name__}>"
    if isinstance(text, BaseException) and not whole:
        whole = type(text).__name__
    cut = whole[: 4 * limit]  # before the work, which a text of 300 MB would make long
    words = " ".join(cut.split())
    safe = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in words
    )
    if len(safe) <= limit and len(cut) == len(whole):
        return safe
    return safe[:limit] + "…"


def both_ends(text: str, longest: int = LONGEST_SENTENCE) -> str:
    """Foreign text as one line without control characters; the middle of a long one is left out,
    as the cause stands at the beginning of a sentence and the cure at its end.
    """
    text = _shortened(text, longest)  # before it is gone through letter by letter
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
    """repr() of a value from outside, of bounded length and time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80
        self.maxlevel = 3

    def repr_int(self, value: int, level: int) -> str:
        """An integer; Python refuses to write one of more than 4300 digits."""
        if value.bit_length() > 300:
            return f"<an integer of {value.bit_length()} bits>"
        return repr(value)


def quoted(value: object) -> str:
    """A value from outside as a sentence shows it: repr(), shortened, in one line."""
    try:
        return one_line(_Quote().repr(value))
    except Exception:  # an object whose repr() fails
        return f"<{type(value).__name__}>"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most similar to `name`, or "" if none is similar.

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
