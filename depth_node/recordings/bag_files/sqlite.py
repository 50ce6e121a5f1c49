# SPDX-License-Identifier: Apache-2.0
"""One SQLite3 database of rosbag2: topics and the bytes of their messages."""

from __future__ import annotations

import contextlib
import sqlite3
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depth_node.recordings.bag_files.compression import ZSTD_MAGIC, zstd_pieces_of
from depth_node.recordings.bag_files.damage import (
    LARGEST_MESSAGE,
    BagError,
    Damage,
    DamagedError,
    RawMessage,
)
from depth_node.recordings.files import open_regular, reason_of
from depth_node.sentences import both_ends

MAGIC = b"SQLite format 3\x00"
_CURE = "; copy it again, or let `sqlite3 FILE .recover` write what can be saved"


class SqliteFile:
    """One database of rosbag2, opened so that nothing is written and no code in it is executed."""

    def __init__(self, path: Path, known: frozenset[str], damage: Damage) -> None:
        self.path, self._known, self._damage = path, known, damage
        self.topics: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._names: dict[int, tuple[str, str]] = {}
        self._rows = tuple(array("q") for _ in range(3))  # time, row, topic
        with open_regular(path) as file:
            if file.read(16) != MAGIC:
                raise DamagedError("it does not begin like an SQLite3 database")
        # A recorder that was killed leaves its write-ahead log, which must be read too.
        write_ahead_log = path.with_name(f"{path.name}-wal")
        live = write_ahead_log.is_file() and write_ahead_log.stat().st_size > 0
        options = "mode=ro" if live else "mode=ro&immutable=1"
        self._base = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True)
        try:
            self._base.text_factory = lambda raw: raw.decode("utf-8", "replace")
            with contextlib.suppress(sqlite3.Error):
                self._base.execute("PRAGMA trusted_schema=OFF")
            try:
                self._check_tables()
            except sqlite3.DatabaseError as error:
                # With this a database that is cut off can still be opened.
                self._damage.add("parts of databases", f"{path.name}: {reason_of(error)}{_CURE}")
                self._base.execute("PRAGMA writable_schema=ON")
                self._check_tables()
            self._read_topics()
            self._read_index()
        except BaseException:
            self._base.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def _check_tables(self) -> None:
        """Require plain tables: a view, virtual table or computed column could compute for ever.

        `table_info` does not list computed columns, so that they count as missing. Raises
        DamagedError.
        """
        rows = self._base.execute(
            "SELECT name, type, sql FROM sqlite_master WHERE name IN ('messages', 'topics')"
        ).fetchall()
        kinds = {str(name): (kind, str(sql)) for name, kind, sql in rows}
        for table, needed in (
            ("topics", {"id", "name", "type", "serialization_format"}),
            ("messages", {"id", "topic_id", "timestamp", "data"}),
        ):
            kind, sql = kinds.get(table, ("", ""))
            if kind != "table" or "virtual" in sql[:40].lower():
                raise DamagedError(f"it has no table `{table}`: no database of rosbag2")
            columns = {str(row[1]) for row in self._base.execute(f"PRAGMA table_info({table})")}
            if not needed <= columns:
                raise DamagedError(f"its table `{table}` has no {', '.join(needed - columns)}")

    def _read_topics(self) -> None:
        query = "SELECT id, name, type, serialization_format FROM topics LIMIT 100000"
        for number, name, kind, fmt in self._base.execute(query):
            if not isinstance(number, int) or not isinstance(name, str):
                self._damage.add("topics", "their names are damaged")
                continue
            kind = str(kind)
            if fmt != "cdr":
                kind = f"{kind} in {both_ends(str(fmt), 40)}"
            if kind in self._known:
                self._names[number] = (name, kind)
            if self.topics.get(name) not in self._known:
                self.topics[name] = kind

    def _read_index(self) -> None:
        """Index the messages; from both ends if a page between them is damaged."""
        query = "SELECT rowid, topic_id, timestamp, typeof(data), length(data) FROM messages"
        last, why = None, ""
        try:
            for row in self._base.execute(f"{query} ORDER BY rowid"):
                last = row[0]
                self._add(*row)
            return
        except (sqlite3.Error, MemoryError, OverflowError) as error:
            why = reason_of(error)
        with contextlib.suppress(sqlite3.Error, MemoryError, OverflowError):
            for row in self._base.execute(f"{query} ORDER BY rowid DESC"):
                if last is not None and row[0] <= last:
                    break
                self._add(*row)
        self._damage.add("parts of databases", f"{self.path.name}: {why}{_CURE}")

    def _add(self, row: int, topic: Any, time: Any, kind: str, length: Any) -> None:
        if topic not in self._names:
            return
        name = self._names[topic][0]
        if kind != "blob" or not isinstance(time, int):
            self._damage.add("messages", f"{name}: data of type {kind} at time {time!r:.40}")
        elif length > LARGEST_MESSAGE:
            self._damage.add("messages", f"{name}: {length} bytes, more than {LARGEST_MESSAGE}")
        else:
            self.counts[name] += 1
            for column, value in zip(self._rows, (time, row, topic), strict=True):
                column.append(value)

    def messages(self, names: set[str]) -> Iterator[RawMessage]:
        """Yield the messages of these topics, in the order of their recording."""
        numbers = {number for number, (name, _) in self._names.items() if name in names}
        times, rows, topics = self._rows
        chosen = [k for k in range(len(times)) if topics[k] in numbers]
        chosen.sort(key=lambda k: (times[k], rows[k]))
        for k in chosen:
            topic, kind = self._names[topics[k]]
            try:
                (data,) = self._base.execute(
                    "SELECT data FROM messages WHERE rowid = ?", (rows[k],)
                ).fetchone()
                if data[:4] == ZSTD_MAGIC:  # CDR begins with a zero
                    data = b"".join(zstd_pieces_of(data, LARGEST_MESSAGE))
            except BagError:
                raise
            except (DamagedError, sqlite3.Error, TypeError, MemoryError) as error:
                self._damage.add("messages", f"{topic}: {reason_of(error)}")
                continue
            yield RawMessage(topic, kind, times[k], data)
