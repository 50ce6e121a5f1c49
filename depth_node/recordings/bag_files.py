# SPDX-License-Identifier: Apache-2.0
"""The files of a rosbag2, MCAP and SQLite3: topics and the bytes of their messages, in the order
of recording.

Nothing is believed: what a file says of its own sizes is held against its real size and against
ceilings, what is compressed is decompressed in pieces up to what was announced, checksums are
compared. A part that is damaged is left out and told about (`damage`), the others are read. What
a message means is not known here.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import stat
import struct
import tempfile
import zlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Protocol

from depth_node.recordings.files import FrameError, one_line, open_regular, read_regular, reason_of

LARGEST_MESSAGE = 1 << 28  # bytes: a raw image of 89 Mpx
LARGEST_CHUNK = 1 << 28  # of an MCAP, decompressed
LARGEST_METADATA = 4 << 20
SMALLEST_EXPANSION = 1 << 30  # a compressed file may become this large, or this many times larger
LARGEST_RATIO = 100
ROOM_LEFT = 256 << 20  # bytes that stay free where a compressed file is unpacked
_PIECE = 1 << 20
_MOST_ZSTD_FRAMES = 100_000
_CACHED_CHUNKS = 1 << 28  # bytes
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MCAP_MAGIC = b"\x89MCAP0\r\n"
_SQLITE_MAGIC = b"SQLite format 3\x00"
_SQLITE_CURE = "; copy it again, or let `sqlite3 FILE .recover` write what can be saved"
_SUFFIXES = (".mcap", ".db3")
_PACKED = (".zstd", ".zst")


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
        self.reasons.setdefault(what, one_line(str(why), 400))

    def __bool__(self) -> bool:
        return bool(self.counts)

    def counted(self) -> list[tuple[str, int]]:
        """(kind of thing: why, how often), by kind."""
        return [(f"{what}: {self.reasons[what]}", n) for what, n in sorted(self.counts.items())]


class _Storage(Protocol):
    """One file: its topics with their types, how many messages each has, the messages."""

    topics: dict[str, str]
    counts: Counter[str]

    def messages(self, names: set[str]) -> Iterator[RawMessage]: ...

    def close(self) -> None: ...


class BagFiles:
    """All files of a bag; a context manager.

    topics: name -> type, types that are not in `known` or not in CDR among them (foreign). counts:
    messages of each topic. damage: what could not be read so far.
    """

    def __init__(self, path: Path, known: Iterable[str]) -> None:
        self.path = path
        self.known = frozenset(known)
        self.topics: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.damage = Damage()
        self._storages: list[_Storage] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> BagFiles:
        with contextlib.ExitStack() as stack:
            first = None
            for path in self._files():
                try:
                    storage = self._open(path, stack)
                except DamagedError as error:
                    self.damage.add("files of the bag", f"{path.name}: {error}")
                    first = first or error
                    continue
                stack.callback(storage.close)
                self._storages.append(storage)
                for topic, kind in storage.topics.items():
                    if self.topics.get(topic) not in self.known:
                        self.topics[topic] = kind
                self.counts.update(storage.counts)
            if not self._storages:
                raise BagError(
                    f"{self.path} cannot be opened as a rosbag2 ({first}): is the file whole?"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def messages(self, names: Iterable[str]) -> Iterator[RawMessage]:
        """The messages of these topics, file by file in the order of their recording."""
        chosen = set(names)
        for storage in self._storages:
            yield from storage.messages(chosen)

    # --- which files -------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        path = self.path
        if path.suffix == ".bag":
            raise BagError(
                f"{path} is a ROS 1 bag: convert it with `rosbags-convert --src {path} --dst NEW`."
            )
        if not path.exists():
            raise BagError(f"{path} cannot be opened as a rosbag2 (it is missing): check the path.")
        if not path.is_dir():
            return [path]
        metadata = path / "metadata.yaml"
        listed = self._listed(metadata) if metadata.is_file() else None
        if listed is None:
            files = sorted(
                (f for f in path.iterdir() if _storage_name(f) and not f.name.startswith(".")),
                key=lambda file: _natural(file.name),
            )
            if not files:
                raise BagError(
                    f"{path} cannot be opened as a rosbag2 (no .mcap or .db3 in it): give the"
                    " folder of a bag."
                )
            return files
        missing = [file for file in listed if not file.exists()]
        if len(missing) == len(listed):
            names = ", ".join(file.name for file in missing[:4]) or "none named"
            raise BagError(
                f"{path} cannot be opened as a rosbag2 (its files are missing: {names}): copy it"
                " again, or repair it with `ros2 bag reindex`."
            )
        for file in missing:
            self.damage.add("files of the bag", f"{file.name} is missing: copy the bag again")
        return [file for file in listed if file not in missing]

    def _listed(self, metadata: Path) -> list[Path] | None:
        """The files in their order, by metadata.yaml; None where it cannot be read."""
        import yaml

        try:
            content = read_regular(metadata, LARGEST_METADATA)
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            depth = 0
            for event in yaml.parse(content, loader):  # deep nesting would crash the C loader
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if depth > 50 or isinstance(event, yaml.AliasEvent):
                    raise ValueError("it has aliases or is nested too deep")
            information = yaml.load(content, loader)["rosbag2_bagfile_information"]
            names = [PurePath(str(name)).name for name in information["relative_file_paths"]]
            fmt = str(information.get("compression_format") or "")
            mode = str(information.get("compression_mode") or "none").lower()
        except (Exception, RecursionError, MemoryError) as error:
            self.damage.add("metadata.yaml", f"files are read by their names ({reason_of(error)})")
            return None
        if mode != "none" and fmt and fmt != "zstd":
            raise BagError(
                f"{self.path} cannot be opened as a rosbag2 (compression format"
                f" {one_line(fmt, 40)!r}): write it again without compression, `ros2 bag convert`"
                " does that."
            )
        return [self.path / name for name in dict.fromkeys(names) if name]

    def _open(self, path: Path, stack: contextlib.ExitStack) -> _Storage:
        name = _storage_name(path)
        if not name:
            raise DamagedError(f"{path.name} is neither .mcap nor .db3")
        try:
            if not path.is_file() or not stat.S_ISREG(os.stat(path).st_mode):
                raise DamagedError("it is no regular file")
            if path.suffix in _PACKED:
                path = self._unpacked(path, stack)
            if _begins(path, _MCAP_MAGIC) or (
                name.endswith(".mcap") and not _begins(path, _SQLITE_MAGIC)
            ):
                return _Mcap(path, self.known, self.damage)
            return _Sqlite(path, self.known, self.damage)
        except (DamagedError, BagError):
            raise
        except FrameError as error:
            raise DamagedError(str(error)) from None
        except (Exception, RecursionError, MemoryError) as error:
            raise DamagedError(reason_of(error)) from None

    def _unpacked(self, path: Path, stack: contextlib.ExitStack) -> Path:
        """A compressed file in a temporary folder, as far as there is room."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="depth_tools_bag_")))
        target = folder / path.stem
        magic = _MCAP_MAGIC if target.suffix == ".mcap" else _SQLITE_MAGIC
        packed = path.stat().st_size
        ceiling = max(SMALLEST_EXPANSION, LARGEST_RATIO * packed)
        room = shutil.disk_usage(folder).free - ROOM_LEFT
        written = 0
        with open_regular(path) as source, target.open("wb") as out:
            head = source.read(64)
            source.seek(0)
            announced = _announced(head)
            if announced is not None and announced > min(room, ceiling):
                self._no_room(path, announced, room, ceiling)
            for piece in zstd_pieces(source.read, min(room, ceiling)):
                if not written and not piece.startswith(magic[: len(piece)]):
                    raise DamagedError(f"what is compressed in it is no {target.suffix}")
                written += len(piece)
                if written > min(room, ceiling):
                    self._no_room(path, written, room, ceiling)
                out.write(piece)
        return target

    def _no_room(self, path: Path, size: int, room: int, ceiling: int) -> None:
        if size > ceiling:
            raise DamagedError(
                f"{path.stat().st_size} bytes that become {size} or more are no recording"
            )
        raise BagError(
            f"{path} needs {size / 1e9:.1f} GB in {tempfile.gettempdir()}, where {room / 1e9:.1f}"
            " GB may be used: free some, or set TMPDIR to a larger disk."
        )


def _storage_name(path: Path) -> str:
    """The name without the suffix of compression where it is one of a bag's file, or nothing."""
    name = path.stem if path.suffix in _PACKED else path.name
    return name if name.endswith(_SUFFIXES) else ""


def _begins(path: Path, magic: bytes) -> bool:
    with open_regular(path) as file:
        return file.read(len(magic)) == magic


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sorts bag_2 before bag_10."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"(\d{1,18})", name)
        if part
    ]


# --- compression -----------------------------------------------------------------------------


def _zstd() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from backports import zstd  # type: ignore[no-redef,unused-ignore]
        except ImportError:
            raise BagError("Reading a compressed bag needs zstd: pip install rosbags.") from None
    return zstd


def _announced(head: bytes) -> int | None:
    """What the first frame says of its size, None where it says nothing."""
    try:
        size = _zstd().get_frame_info(head).decompressed_size
    except BagError:
        raise
    except Exception as error:
        raise DamagedError(f"zstd: {reason_of(error)}") from None
    return None if size is None else int(size)


def zstd_pieces(read: Callable[[int], bytes], ceiling: int) -> Iterator[bytes]:
    """What is compressed, in pieces of at most a megabyte; DamagedError beyond the ceiling, after
    damage and at a cut end, when all before it has been given.
    """
    zstd = _zstd()
    decoder, waiting, total, frames = None, b"", 0, 0
    while True:
        compressed = waiting or read(1 << 16)
        waiting = b""
        if not compressed:
            if decoder is None or not decoder.eof:
                raise DamagedError("its zstd data is cut off")
            return
        if decoder is None or decoder.eof:
            decoder, frames = zstd.ZstdDecompressor(), frames + 1
            if frames > _MOST_ZSTD_FRAMES:
                raise DamagedError(f"more than {_MOST_ZSTD_FRAMES} zstd frames")
        while True:
            piece = _next_piece(decoder, compressed, "zstd", total, ceiling)
            total += len(piece)
            if piece:
                yield piece
            if decoder.eof or decoder.needs_input:
                break
            compressed = b""
        if decoder.eof:
            waiting = decoder.unused_data


def _next_piece(decoder: Any, compressed: bytes, kind: str, total: int, ceiling: int) -> bytes:
    """What a decompressor makes of some bytes, after `total` that it made before."""
    try:
        piece: bytes = decoder.decompress(compressed, min(_PIECE, ceiling - total + 1))
    except (Exception, MemoryError) as error:
        raise DamagedError(f"its {kind} data is damaged ({reason_of(error)})") from None
    if total + len(piece) > ceiling:
        raise DamagedError(f"its {kind} data becomes more than {ceiling} bytes")
    return piece


def _reader(data: bytes | memoryview) -> Callable[[int], bytes]:
    view, place = memoryview(data), 0

    def read(count: int) -> bytes:
        nonlocal place
        part = view[place : place + count]
        place += len(part)
        return bytes(part)

    return read


def _zstd_pieces_of(data: bytes, ceiling: int) -> Iterator[bytes]:
    announced = _announced(data[:64])
    if announced is not None and announced > ceiling:
        raise DamagedError(f"its zstd data announces {announced} bytes, more than {ceiling}")
    yield from zstd_pieces(_reader(data), ceiling)


def _lz4_pieces_of(data: bytes, ceiling: int) -> Iterator[bytes]:
    try:
        from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise BagError("Reading this bag needs lz4: pip install lz4.") from None
    decoder, compressed, total = LZ4FrameDecompressor(), data, 0
    while not decoder.eof:
        piece = _next_piece(decoder, compressed, "lz4", total, ceiling)
        total += len(piece)
        if piece:
            yield piece
        elif not decoder.eof:
            raise DamagedError("its lz4 data is cut off")
        compressed = b""


def _plain_pieces(data: bytes, ceiling: int) -> Iterator[bytes]:
    yield data


_CODECS = {"": _plain_pieces, "zstd": _zstd_pieces_of, "lz4": _lz4_pieces_of}


# --- MCAP ------------------------------------------------------------------------------------


class _Mcap:
    """One MCAP file, read from its beginning on: an index at its end is needed only to get past a
    damaged part.

    The first pass notes where each message of a known type lies; the second reads in the order of
    time. Chunks are kept unpacked as long as they are likely to be needed.
    """

    def __init__(self, path: Path, known: frozenset[str], damage: Damage) -> None:
        self.path, self._known, self._damage = path, known, damage
        self.topics: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._schemas: dict[int, tuple[str, str]] = {}
        self._channels: dict[int, tuple[str, str] | None] = {}
        self._names: list[tuple[str, str]] = []  # (topic, type), by number
        self._number: dict[tuple[str, str], int] = {}
        # A message each: time, number of its topic, chunk or -1, offset there, bytes.
        self._index = tuple(array("q") for _ in range(5))
        self._chunks: list[int] = []  # where they begin
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
        self._unpacked.clear()
        self._stack.close()

    def messages(self, names: set[str]) -> Iterator[RawMessage]:
        numbers = {number for name, number in self._number.items() if name[0] in names}
        times, topics, chunks, offsets, lengths = self._index
        chosen = [k for k in range(len(times)) if topics[k] in numbers]
        chosen.sort(key=times.__getitem__)  # keeps the order in the file of equal times
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
            except DamagedError:  # it could be read a moment ago
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
        if self._read(0, 8) != _MCAP_MAGIC:
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
        """Every record up to the end of the data."""
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
        """After a damaged record: the chunks behind it that the index at the end knows."""
        with contextlib.suppress(DamagedError, struct.error, IndexError):
            foot = self._read(self._size - 37, 37)
            if foot[-8:] == _MCAP_MAGIC and foot[0] == 0x02:
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
        """head: the first 22 bytes of the record. offset: where it begins."""
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
        """The records of a chunk; of the one in which the file ends what is there."""
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
        if codec not in _CODECS:
            raise DamagedError(f"compression {one_line(codec, 40)!r} is not known")
        if size > LARGEST_CHUNK:
            raise DamagedError(f"it announces {size} bytes, more than {LARGEST_CHUNK}")
        if packed > there and not cut:
            raise DamagedError("it is longer than its record")
        if packed > LARGEST_CHUNK:
            raise DamagedError(f"it has {packed} bytes, more than {LARGEST_CHUNK}")
        pieces = []
        try:
            for piece in _CODECS[codec](self._read(start, min(packed, max(there, 0))), size):
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
    """Where the records of a file cannot be followed any more."""

    def __init__(self, place: int, why: str) -> None:
        super().__init__(why)
        self.place = place


def _text(data: bytes, place: int) -> tuple[str, int]:
    """A string of MCAP, shortened, and where it ends."""
    (length,) = struct.unpack_from("<I", data, place)
    end = place + 4 + length
    if end > len(data):
        raise DamagedError("a name reaches beyond its record")
    return data[place + 4 : end].decode("utf-8", "replace"), end


# --- SQLite3 ---------------------------------------------------------------------------------


class _Sqlite:
    """One database of rosbag2; opened so that nothing of it is written or executed."""

    def __init__(self, path: Path, known: frozenset[str], damage: Damage) -> None:
        self.path, self._known, self._damage = path, known, damage
        self.topics: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._names: dict[int, tuple[str, str]] = {}
        self._rows = tuple(array("q") for _ in range(3))  # time, row, topic
        with open_regular(path) as file:
            if file.read(16) != _SQLITE_MAGIC:
                raise DamagedError("it does not begin like an SQLite3 database")
        # A recorder that was killed leaves its log behind.
        write_ahead_log = path.with_name(f"{path.name}-wal")
        live = (
            write_ahead_log.is_file() and write_ahead_log.stat().st_size > 0
        )  # of a killed recorder
        options = "mode=ro" if live else "mode=ro&immutable=1"
        self._base = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True)
        try:
            self._base.text_factory = lambda raw: raw.decode("utf-8", "replace")
            with contextlib.suppress(sqlite3.Error):
                self._base.execute("PRAGMA trusted_schema=OFF")
            try:
                self._check_tables()
            except sqlite3.DatabaseError as error:
                # A database that is cut off is opened only like this.
                self._damage.add(
                    "parts of databases", f"{path.name}: {reason_of(error)}{_SQLITE_CURE}"
                )
                self._base.execute("PRAGMA writable_schema=ON")
                self._check_tables()
            self._read_topics()
            self._read_index()
        except BaseException:
            self._base.close()
            raise

    def close(self) -> None:
        self._base.close()

    def _check_tables(self) -> None:
        """Plain tables only: a view, a virtual table or a computed column may compute for ever."""
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
                kind = f"{kind} in {one_line(str(fmt), 40)}"
            if kind in self._known:
                self._names[number] = (name, kind)
            if self.topics.get(name) not in self._known:
                self.topics[name] = kind

    def _read_index(self) -> None:
        """Where the messages are; from both ends, should a page between them be damaged."""
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
        self._damage.add("parts of databases", f"{self.path.name}: {why}{_SQLITE_CURE}")

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
                if data[:4] == _ZSTD_MAGIC:  # CDR begins with a zero
                    data = b"".join(_zstd_pieces_of(data, LARGEST_MESSAGE))
            except BagError:
                raise
            except (DamagedError, sqlite3.Error, TypeError, MemoryError) as error:
                self._damage.add("messages", f"{topic}: {reason_of(error)}")
                continue
            yield RawMessage(topic, kind, times[k], data)
