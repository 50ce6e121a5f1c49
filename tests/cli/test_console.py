# SPDX-License-Identifier: Apache-2.0
"""What the command lines print and write."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from depth_node.benchmarks.tables import Table
from depth_node.cli.console import (
    UsageError,
    console,
    image_size,
    print_tables,
    progress,
    write_json,
    write_text,
)

pytest.importorskip("rich", reason="rich is not installed")


def test_image_size_is_height_and_width() -> None:
    assert image_size("--size", "640x480") == (480, 640)
    for text in ("640", "0x480", "640x", "axb", "-1x4"):
        with pytest.raises(UsageError, match="write it like 640x480"):
            image_size("--size", text)


def test_tables_are_printed_whole_and_written_as_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("Depths", ["method", "AbsRel"], [["ssf", "0.0123456789"]], ["one frame"])
    print_tables(console(), [table], tmp_path / "new" / "page.md")
    shown = capsys.readouterr().out
    assert "0.0123456789" in shown and "one frame" in shown
    page = (tmp_path / "new" / "page.md").read_text()
    assert page.startswith("### Depths\n") and "| ssf | 0.0123456789 |" in page


def test_a_heading_takes_two_lines_at_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    head = ["method", "AbsRel", "in 95 % band"]
    print_tables(console(), [Table("Depths", head, [["ssf", "0.01", "98.1%"]], [])])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["in", "95", "%"] in [words[-3:] for words in lines]
    assert ["band"] in [words[-1:] for words in lines]


def test_progress_advances_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(console(), "scoring", 2) as advance:
        advance("a")
        advance("b")
    assert "2/2" in capsys.readouterr().out


def test_files_are_written_into_new_folders_or_refused_in_a_sentence(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": 1}
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_text(tmp_path / "file" / "c.txt", "text")


def test_foreign_names_are_shown_and_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Markup of rich, emoji codes and control characters in names of files and topics."""
    name = "/cam[/red]/:warning:\x1b[31m\udcff"
    shown_name = r"/cam[/red]/:warning:\x1b[31m\udcff"
    monkeypatch.setenv("COLUMNS", "200")
    for rich in (True, False):
        if not rich:
            monkeypatch.setitem(sys.modules, "rich.console", None)
        terminal = console(bare=True)
        terminal.print(name, style="red")
        print_tables(terminal, [Table(name, [name, "x"], [[name, "1"]], [name])])
        with progress(terminal, name, 1) as advance:
            advance(name)
        shown = capsys.readouterr()
        text = shown.out + shown.err
        assert text.count(shown_name) >= 5 and "\x1b[31m" not in text.replace(shown_name, "")
