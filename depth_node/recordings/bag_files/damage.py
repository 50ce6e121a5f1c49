# SPDX-License-Identifier: Apache-2.0
"""The messages of a bag's files, and the record of what could not be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from depth_node.recordings.files import FrameError
from depth_node.sentences import both_ends

LARGEST_MESSAGE = 1 << 28  # bytes: a raw image of 89 Mpx


class BagError(FrameError):
    """A bag cannot be used; the sentence says what is missing and what to do."""


class DamagedError(ValueError):
    """A part of a bag cannot be read; the message is the reason in a few words."""


@dataclass(frozen=True)
class RawMessage:
    """A recorded message: the CDR bytes of a type (kind), and its time of recording in ns."""

    topic: str
    kind: str
    recorded_ns: int
    data: bytes


@dataclass
class Damage:
    """Counts of what could not be read, by kind, with the first reason of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, why: object) -> None:
        """Count one more of a kind; the first reason of each kind is kept."""
        self.counts[what] += 1
        self.reasons.setdefault(what, both_ends(str(why), 400))

    def __bool__(self) -> bool:
        return bool(self.counts)

    def counted(self) -> list[tuple[str, int]]:
        """Return ("kind: reason", count) of each kind, sorted by kind."""
        return [(f"{what}: {self.reasons[what]}", n) for what, n in sorted(self.counts.items())]
