# SPDX-License-Identifier: Apache-2.0
"""Means over sources, and tables as Markdown."""

from __future__ import annotations

import math

from depth_node.benchmarks.tables import Means, Table, markdown


def test_a_source_counts_once_however_many_frames_it_has() -> None:
    means = Means()
    for value in (1.0, 1.0, 1.0, 1.0):
        means.add("ssf", "250", "road", value)
    means.add("ssf", "250", "desk", 3.0)
    means.add("ssf", "50", "desk", math.nan)
    assert means("ssf", "250") == 2.0
    assert means.of_sources("ssf", "250") == {"road": 1.0, "desk": 3.0}
    assert math.isnan(means("ssf", "50")) and math.isnan(means("slf", "250"))
    assert means.rows()[0] == "ssf" and means.columns()[:2] == ["250", "50"]


def test_tables_become_markdown_with_their_notes() -> None:
    page = markdown([Table("One", ["a", "b"], [["1", "2"]], ["a note"]), Table("Two", ["c"], [])])
    assert page.splitlines() == [
        "### One", "", "| a | b |", "|---|---|", "| 1 | 2 |", "", "- a note", "",
        "### Two", "", "| c |", "|---|",
    ]  # fmt: skip
