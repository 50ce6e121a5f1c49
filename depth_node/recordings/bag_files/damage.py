# SPDX-License-Identifier: Apache-2.0
"""What a file of a bag gives, and what it says where something of it cannot be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from depth_node.recordings.files import FrameError
from depth_node.sentences import both_ends

LARGEST_MESSAGE = 1 << 28  # bytes: a raw image of 89 Mpx


class BagError(FrameError):
    """A bag that cannot be used; says what is missing and what to do."""


class DamagedError(ValueError):
    """Why a part of a bag cannot be read, in a few words."""


@dataclass(frozen=True)
class RawMessage:
    """A message as it was recorded: CDR bytes of a type, and when, in nanoseconds."""

    topic: str
    kind: str
    recorded_ns: int
    data: bytes


@dataclass
class Damage:
    """What was left out because it could not be read: kind of thing -> how often and why first."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, why: object) -> None:
        """One more; of each kind the first reason is kept."""
        self.counts[what] += 1
        self.reasons.setdefault(what, both_ends(str(why), 400))

    def __bool__(self) -> bool:
        return bool(self.counts)

    def counted(self) -> list[tuple[str, int]]:
        """(kind of thing: why, how often), by kind."""
        return [(f"{what}: {self.reasons[what]}", n) for what, n in sorted(self.counts.items())]
