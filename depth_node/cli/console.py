# SPDX-License-Identifier: Apache-2.0
"""Output of the command line: tables, progress bars, files, and errors of the user."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_node.benchmarks.tables import Table, markdown
from depth_node.sentences import one_line, quoted

if TYPE_CHECKING:
    from rich.console import Console

_HEAD_LINES = 2  # most lines of a heading; a column is not made wider than its numbers for fewer


class UsageError(ValueError):
    """A request of the user cannot be carried out; one sentence with cause and cure."""


class CommandParser(argparse.ArgumentParser):
    """A parser of a command line that refuses an empty path.

    A shell's unset variable gives one, and Path("") would be the current folder.
    """

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.register("type", Path, _named_path)


def _named_path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "the path is empty: is a variable of the shell unset? Name a file or folder, . for here"
        )
    return Path(text)


def run_command(
    program: str,
    command: Callable[[], int],
    errors: tuple[type[Exception], ...],
    status: int = 2,
) -> int:
    """Run a command and return its exit status, or `status` after one sentence on standard error.

    program: the name before the sentence, "" for none. errors: the user errors; an OSError, such as
    a file that may not be read or a full disk, counts as one. A character that an output cannot
    encode is written as its escape. A closed output is replaced by the null device.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        # In the locale C Python opens them with surrogateescape, which fails as well.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = command()
        sys.stdout.flush()
        return result
    except errors as error:
        sentence = one_line(error, 4000)
    except BrokenPipeError:  # `depth_tools ... | head`
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        what = quoted(error.filename) if error.filename else "an output or input"
        sentence = (
            f"{what} cannot be read or written ({one_line(error.strerror or error)}):"
            " check that it exists, its permissions and the room on the disk"
        )
    except KeyboardInterrupt:
        sentence, status = "interrupted", 130
    print(f"{program}: {sentence}" if program else sentence, file=sys.stderr)
    return status


def _drop_output() -> None:
    """Send unwritten output to the null device: Python would fail again when it flushes at exit."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError):  # a stream without a file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(bare: bool = False) -> Console:
    """Return a rich console for the terminal. Raises UsageError if rich is not installed.

    bare: return a console for plain text instead if rich is missing, because doctor must report
    that. Names in brackets are not read as markup, and control characters in texts of others are
    escaped, so that the terminal does not execute them.
    """
    try:
        from rich.console import Console
    except ImportError:
        if not bare:
            raise UsageError("depth_tools needs rich for its tables: pip install rich") from None
        plain: Any = _PlainConsole()
        return plain

    class SafeConsole(Console):
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(_visible(text), **options)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for run_command; rich would end the program with status 1

    return SafeConsole(highlight=False, soft_wrap=True, markup=False, emoji=False)


class _PlainConsole:
    """The part of rich's Console that doctor uses, without rich."""

    def print(self, text: str = "", *, style: str | None = None, markup: bool = True) -> None:
        """Print a text; without rich it has neither style nor markup."""
        print(_visible(text))


def _visible(text: str) -> str:
    """Escape control characters and lone surrogates in a text, except line ends and tabs."""
    return "".join(
        char
        if char.isprintable() or char in "\n\t\xa0"
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


@contextmanager
def progress(terminal: Console, label: str, total: int | None) -> Iterator[Callable[[str], None]]:
    """Show a progress bar; calling the value with a short text advances it by one."""
    if isinstance(terminal, _PlainConsole):
        print(f"{_visible(label)} ...", file=sys.stderr)
        yield lambda text: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()]
    if total is not None:
        columns += [MofNCompleteColumn(), TimeRemainingColumn()]
        columns.append(TextColumn("{task.fields[text]}", markup=False))
    with Progress(*columns, console=terminal) as bar:
        task = bar.add_task(_visible(label), total=total, text="")
        yield lambda text: bar.update(task, advance=1, text=_visible(text))


def print_table(
    terminal: Console,
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    highlight: set[str],
    left: int = 1,
) -> None:
    """Print a table; its first `left` columns are texts, the others numbers.

    Rows whose first cell is in `highlight` are highlighted.
    """
    if isinstance(terminal, _PlainConsole):
        _print_plain_table(title, head, rows, left)
        return
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for number, name in enumerate(head):
        if number < left:
            table.add_column(name, overflow="fold")
            continue
        # Texts fold in a narrow terminal; numbers do not, because they could not be read.
        words = [*name.split(), *(row[number] for row in rows)]
        width = max((len(word) for word in words), default=0)
        whole = name.replace(" %", "\N{NO-BREAK SPACE}%")
        while len(lines := textwrap.wrap(whole, max(width, 1))) > _HEAD_LINES:
            width += 1
        folded = "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
        table.add_column(folded, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*row, style="bold yellow" if row[0] in highlight else None)
    wide = terminal.measure(table, options=terminal.options.update_width(10_000))
    if wide.minimum > terminal.width:
        table.width = wide.minimum
    terminal.print(table, crop=False)


def _print_plain_table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], left: int
) -> None:
    cells = [[_visible(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{_visible(title)}")
    for row in cells:
        words = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print(f"  {'  '.join(words)}".rstrip())


def write_json(path: Path, content: Any) -> None:
    """Write JSON and make its folder. Raises UsageError if it cannot be written."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str, make_folder: bool = True) -> None:
    """Write a text file. Raises UsageError if it cannot be written.

    make_folder: whether a missing folder is made; otherwise it is an error. A file of that name is
    replaced only by the complete new one; a pipe or device is written to.
    """
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        final = path.resolve()  # a symbolic link stays one
        part = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, final)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): name another, or make room"
        ) from None


def image_size(option: str, text: str) -> tuple[int, int]:
    """Return (height, width) of a text like "640x480". Raises UsageError for another text."""
    width, cross, height = text.lower().partition("x")
    sizes = [int(side) for side in (width, height) if re.fullmatch("[0-9]{1,6}", side)]
    if not cross or len(sizes) != 2 or not all(sizes):
        raise UsageError(f"{option} {quoted(text)} is no image size: write it like 640x480")
    return sizes[1], sizes[0]


def print_tables(terminal: Console, tables: Sequence[Table], out: Path | None = None) -> None:
    """Print tables with their notes and, if `out` is given, write them there as Markdown."""
    for table in tables:
        print_table(terminal, table.title, table.head, table.rows, set())
        for note in table.notes:
            terminal.print(f"  {note}")
    if out:
        write_text(out, markdown(tables))
