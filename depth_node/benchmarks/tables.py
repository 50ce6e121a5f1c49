# SPDX-License-Identifier: Apache-2.0
"""Tables of benchmarks and studies: means over sources, and Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from depth_node.metrics import mean_of_known, mean_over_sources


@dataclass(frozen=True)
class Table:
    """A table for the terminal or a page, and notes on it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


class Means:
    """Means over the values of each source, then over the sources, by row and column of a table."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def add(self, row: str, column: str, source: str, value: float) -> None:
        """Add a value of a source; NaN means unknown and does not count."""
        self._values[row, column][source].append(value)

    def of_sources(self, row: str, column: str) -> dict[str, float]:
        """Return the mean of every source; NaN for a source without known values."""
        return {name: mean_of_known(values) for name, values in self._values[row, column].items()}

    def __call__(self, row: str, column: str) -> float:
        """Return the mean over sources; NaN without known values."""
        return mean_over_sources(self._values[row, column])

    def rows(self) -> list[str]:
        """Return the rows in the order in which they were added."""
        return list(dict.fromkeys(row for row, _ in self._values))

    def columns(self) -> list[str]:
        """Return the columns in the order in which they were added."""
        return list(dict.fromkeys(column for _, column in self._values))

    def all(self) -> dict[tuple[str, str], float]:
        """Return the mean over sources by (row, column)."""
        return {key: self(*key) for key in list(self._values)}


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown."""
    blocks = []
    for table in tables:
        head = "| " + " | ".join(table.head) + " |"
        rule = "|" + "|".join("---" for _ in table.head) + "|"
        body = ["| " + " | ".join(row) + " |" for row in table.rows]
        notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
        blocks.append("\n".join([f"### {table.title}", "", head, rule, *body, *notes]))
    return "\n\n".join(blocks) + "\n"
