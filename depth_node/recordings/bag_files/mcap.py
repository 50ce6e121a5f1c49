# SPDX-License-Identifier: Apache-2.0
"""One MCAP file (https://mcap.dev/spec): topics and the bytes of their messages."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path

from depth_node.recordings.bag_files.compression import CODECS
from depth_node.recordings.bag_files.damage import (
    LARGEST_MESSAGE,
    Damage,
    DamagedError,
    RawMessage,
)
from depth_node.recordings.files import open_regular
from depth_node.sentences import both_ends

MAGIC = b"\x89MCAP0\r\n"
LARGEST_CHUNK = 1 << 28  # bytes, decompressed
_CACHED_CHUNKS = 1 << 28  # bytes


class McapFile:
    """One MCAP file, read from its beginning; the index at its end is used only to get past a
    damaged part.

    Opening the file notes where each message of a known type lies; messages() reads them in the
    order of time. The chunks used last are kept decompressed.
    """

    def __init__(self, path: Path, known: frozenset[str], damage: Damage) -> None:
        self.path, self._known, self._damage = path, known, damage
        self.topics: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._schemas: dict[int, tuple[str, str]] = {}
        self._channels: dict[int, tuple[str, str] | None] = {}
        self._names: list[tuple[str, str]] = []  # (topic, type), by number
        self._number: dict[tuple[str, str], int] = {}
        # For each message: time, number of its topic, chunk or -1, offset there, length in bytes.
        self._index = tuple(array("q") for _ in range(5))
        self._chunks: list[int] = []  # offsets in the file
        self._cut = -1  # the chunk in which the file ends
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._stack = contextlib.ExitStack()
        self._file = self._stack.enter_context(open_regular(path))
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._walk()
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._unpacked.clear()
        self._stack.close()

    def messages(self, names: set[str]) -> Iterator[RawMessage]:
        """Yield the messages of these topics, in the order of their recording."""
        numbers = {number for name, number in self._number.items() if name[0] in names}
        times, topics, chunks, offsets, lengths = self._index
        chosen = [k for k in range(len(times)) if topics[k] in numbers]
        chosen.sort(key=times.__getitem__)  # stable: messages of one time keep the file's order
        for k in chosen:
            data = self._bytes(chunks[k], offsets[k], lengths[k])
            if data is None:
                self._damage.add("messages", f"{self._names[topics[k]][0]}: its chunk is damaged")
                continue
            topic, kind = self._names[topics[k]]
            yield RawMessage(topic, kind, times[k], data)

    def _bytes(self, chunk: int, offset: int, length: int) -> bytes | None:
        if chunk < 0:
            self._file.seek(offset)
            data = self._file.read(length)
            return data if len(data) == length else None
        content = self._unpacked.get(chunk)
        if content is None:
            try:
                content = self._chunk(chunk)
            except DamagedError:  # the file has changed since it was opened
                return None
            self._unpacked[chunk] = content
            while len(self._unpacked) > 1 and (
                sum(len(one) for one in self._unpacked.values()) > _CACHED_CHUNKS
            ):
                self._unpacked.popitem(last=False)
        else:
            self._unpacked.move_to_end(chunk)
        return content[offset : offset + length]

    def _walk(self) -> None:
        if self._read(0, 8) != MAGIC:
            raise DamagedError("it does not begin like an MCAP file")
        try:
            self._records(8, self._size)
        except DamagedError as error:
            self._recover(getattr(error, "place", self._size))
            why = str(error)
            self._damage.add(
                "parts of MCAP files", f"{self.path.name}: {why}; `mcap recover` writes a whole one"
            )
            if not self._index[0] and not self.topics:
                raise DamagedError(f"{why}; try `mcap recover`") from None

    def _records(self, place: int, end: int) -> None:
        """Read every record up to the end of the data. Raises _CutError if the file ends before."""
        while place < end:
            head = self._read(place, 9)
            if len(head) < 9:
                raise _CutError(place, f"the file is cut off at byte {place}")
            op, length = head[0], int.from_bytes(head[1:], "little")
            body, place = place + 9, place + 9 + length
            if op in (0x02, 0x0F):  # footer, end of the data
                return
            if place > self._size:
                if op == 0x06:
                    self._add_chunk(body, self._size - body, cut=True)
                raise _CutError(body - 9, f"the file is cut off at byte {self._size}")
            if not 0 < op <= 0x0F and op < 0x80:
                raise _CutError(body - 9, f"byte {body - 9} begins no record")
            if op == 0x06:
                self._add_chunk(body, length)
            elif op == 0x05:
                self._add_message(self._read(body, 22), -1, body, length)
            elif op in (0x03, 0x04):
                self._add_definition(op, self._read(body, min(length, 1 << 16)))
        raise _CutError(place, "the file ends without its footer")

    def _recover(self, place: int) -> None:
        """After a damaged record at `place`, add the later chunks from the index at the end."""
        with contextlib.suppress(DamagedError, struct.error, IndexError):
            foot = self._read(self._size - 37, 37)
            if foot[-8:] == MAGIC and foot[0] == 0x02:
                (summary,) = struct.unpack_from("<Q", foot, 9)
                known = set(self._chunks)
                while 0 < summary < self._size - 37:
                    head = self._read(summary, 9)
                    op, length = head[0], int.from_bytes(head[1:], "little")
                    body = self._read(summary + 9, min(length, 1 << 16))
                    if op in (0x03, 0x04):
                        self._add_definition(op, body)
                    elif op == 0x08:
                        _, _, start, size = struct.unpack_from("<QQQQ", body)
                        if start >= place and start not in known and start + size <= self._size:
                            self._add_chunk(start + 9, size - 9)
                    summary += 9 + length

    def _read(self, place: int, count: int) -> bytes:
        if place < 0 or place >= self._size:
            return b""
        self._file.seek(place)
        return self._file.read(min(count, self._size - place))

    def _add_definition(self, op: int, body: bytes) -> None:
        try:
            if op == 0x03:
                (number,) = struct.unpack_from("<H", body)
                name, place = _text(body, 2)
                encoding, _ = _text(body, place)
                if encoding.startswith("ros2") and name.count("/") == 1:
                    name = name.replace("/", "/msg/")
                self._schemas.setdefault(number, (name, encoding))
                return
            number, schema = struct.unpack_from("<HH", body)
            topic, place = _text(body, 4)
            encoding, _ = _text(body, place)
        except (struct.error, DamagedError, IndexError):
            self._damage.add("definitions of MCAP files", "they are damaged")
            return
        kind = self._schemas.get(schema, ("?", ""))[0]
        if encoding != "cdr":
            kind = f"{kind} in {encoding or 'no encoding'}"
        if number in self._channels:
            return
        usable = encoding == "cdr" and kind in self._known
        self._channels[number] = (topic, kind) if usable else None
        if self.topics.get(topic) not in self._known:
            self.topics[topic] = kind

    def _add_message(self, head: bytes, chunk: int, offset: int, length: int) -> None:
        """Add a message to the index.

        head: the first 22 bytes of the record's content. offset: where the content begins.
        """
        if length < 22 or len(head) < 22:
            self._damage.add("messages", "shorter than their own head")
            return
        channel, _, time = struct.unpack_from("<HIQ", head)
        named = self._channels.get(channel)
        if named is None:
            return
        if length > LARGEST_MESSAGE or time >= 1 << 63:
            self._damage.add("messages", f"{named[0]}: of {length} bytes, recorded at {time} ns")
            return
        number = self._number.setdefault(named, len(self._names))
        if number == len(self._names):
            self._names.append(named)
        self.counts[named[0]] += 1
        for column, value in zip(
            self._index, (time, number, chunk, offset + 22, length - 22), strict=True
        ):
            column.append(value)

    def _add_chunk(self, body: int, length: int, cut: bool = False) -> None:
        number = len(self._chunks)
        self._chunks.append(body - 9)
        if cut:
            self._cut = number
        try:
            content = self._chunk(number)
        except DamagedError as error:
            self._damage.add("chunks", f"{self.path.name}, byte {body - 9}: {error}")
            return
        place, size = 0, len(content)
        while place + 9 <= size:
            op = content[place]
            (length,) = struct.unpack_from("<Q", content, place + 1)
            start, place = place + 9, place + 9 + length
            if place > size:
                break
            if op == 0x05:
                self._add_message(content[start : start + 22], number, start, length)
            elif op in (0x03, 0x04):
                self._add_definition(op, content[start : min(place, start + (1 << 16))])
        if place != size and not cut:
            self._damage.add("chunks", f"{self.path.name}: a record reaches beyond its chunk")

    def _chunk(self, number: int) -> bytes:
        """Return the decompressed records of a chunk, or what is left of one that is cut off."""
        place, cut = self._chunks[number], number == self._cut
        head = self._read(place, 9 + 32 + 1024)
        try:
            (whole,) = struct.unpack_from("<Q", head, 1)
            _, _, size, checksum = struct.unpack_from("<QQQI", head, 9)
            codec, at = _text(head, 37)
            (packed,) = struct.unpack_from("<Q", head, at)
        except (struct.error, IndexError):
            raise DamagedError("its head is damaged") from None
        start = place + at + 8
        there = min(place + 9 + whole, self._size) - start
        if codec not in CODECS:
            raise DamagedError(f"compression {both_ends(codec, 40)!r} is not known")
        if size > LARGEST_CHUNK:
            raise DamagedError(f"it announces {size} bytes, more than {LARGEST_CHUNK}")
        if packed > there and not cut:
            raise DamagedError("it is longer than its record")
        if packed > LARGEST_CHUNK:
            raise DamagedError(f"it has {packed} bytes, more than {LARGEST_CHUNK}")
        pieces = []
        try:
            for piece in CODECS[codec](self._read(start, min(packed, max(there, 0))), size):
                pieces.append(piece)
        except DamagedError:
            if not cut:
                raise
        content = b"".join(pieces)
        if len(content) == size:
            if checksum and zlib.crc32(content) != checksum:
                raise DamagedError("its checksum is wrong")
        elif not cut:
            raise DamagedError(f"it announces {size} bytes and has {len(content)}")
        return content


class _CutError(DamagedError):
    """The records of a file cannot be followed beyond the byte `place`."""

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place = place


def _text(data: bytes, place: int) -> tuple[str, int]:
    """Return a string of MCAP and the offset behind it. Raises DamagedError, struct.error."""
    (length,) = struct.unpack_from("<I", data, place)
    end = place + 4 + length
    if end > len(data):
        raise DamagedError("a name reaches beyond its record")
    return data[place + 4 : end].decode("utf-8", "replace"), end
