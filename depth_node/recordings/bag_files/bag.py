# SPDX-License-Identifier: Apache-2.0
"""A bag as one source of messages: its files in their order."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Protocol

from depth_node.recordings.bag_files import mcap, sqlite
from depth_node.recordings.bag_files.compression import announced_size, zstd_pieces
from depth_node.recordings.bag_files.damage import BagError, Damage, DamagedError, RawMessage
from depth_node.recordings.files import FrameError, open_regular, read_regular, reason_of
from depth_node.sentences import both_ends

LARGEST_METADATA = 4 << 20  # bytes
# A compressed file may expand to the larger of these: bytes, and times its own size.
SMALLEST_EXPANSION = 1 << 30
LARGEST_RATIO = 100
ROOM_LEFT = 256 << 20  # bytes that stay free on the disk where a compressed file is unpacked
_SUFFIXES = (".mcap", ".db3")
_PACKED = (".zstd", ".zst")


class _Storage(Protocol):
    """One file of a bag: its topics with their types, their numbers of messages, the messages."""

    topics: dict[str, str]
    counts: Counter[str]

    def messages(self, names: set[str]) -> Iterator[RawMessage]: ...

    def close(self) -> None: ...


class BagFiles:
    """All files of a bag; a context manager.

    known: the types of messages that are read. topics: name -> type, also of topics that are not
    read because their type is not in `known` or not in CDR. counts: messages of each topic.
    damage: what could not be read so far. Entering raises BagError if no file can be opened.
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
        """Yield the messages of these topics, file by file in the order of their recording."""
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
        """Return the files in the order of metadata.yaml; None if it cannot be read."""
        import yaml

        try:
            content = read_regular(metadata, LARGEST_METADATA)
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            depth = 0
            for event in yaml.parse(content, loader):  # the C loader crashes on deep nesting
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
                f" {both_ends(fmt, 40)!r}): write it again without compression, `ros2 bag convert`"
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
            if _begins(path, mcap.MAGIC) or (
                name.endswith(".mcap") and not _begins(path, sqlite.MAGIC)
            ):
                return mcap.McapFile(path, self.known, self.damage)
            return sqlite.SqliteFile(path, self.known, self.damage)
        except (DamagedError, BagError):
            raise
        except FrameError as error:
            raise DamagedError(str(error)) from None
        except (Exception, RecursionError, MemoryError) as error:
            raise DamagedError(reason_of(error)) from None

    def _unpacked(self, path: Path, stack: contextlib.ExitStack) -> Path:
        """Unpack a compressed file into a temporary folder and return its path.

        Raises BagError without enough room, DamagedError if the data is not what it should be.
        """
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="depth_tools_bag_")))
        target = folder / path.stem
        magic = mcap.MAGIC if target.suffix == ".mcap" else sqlite.MAGIC
        packed = path.stat().st_size
        ceiling = max(SMALLEST_EXPANSION, LARGEST_RATIO * packed)
        room = shutil.disk_usage(folder).free - ROOM_LEFT
        written = 0
        with open_regular(path) as source, target.open("wb") as out:
            head = source.read(64)
            source.seek(0)
            announced = announced_size(head)
            if announced is not None and announced > min(room, ceiling):
                self._no_room(path, announced, room, ceiling)
            for piece in zstd_pieces(source.read, ceiling):
                if not written and not piece.startswith(magic[: len(piece)]):
                    raise DamagedError(f"what is compressed in it is no {target.suffix}")
                written += len(piece)
                if written > room:
                    self._no_room(path, written, room, ceiling)
                out.write(piece)
        return target

    def _no_room(self, path: Path, size: int, room: int, ceiling: int) -> None:
        if size > ceiling:
            raise DamagedError(
                f"{path.stat().st_size} bytes that become {size} or more are no recording"
            )
        raise BagError(
            f"{path} needs {size / 1e9:.2f} GB or more in {tempfile.gettempdir()}, where"
            f" {max(room, 0) / 1e9:.2f} GB may be used: free some, or set TMPDIR to a larger disk."
        )


def _storage_name(path: Path) -> str:
    """Return the name of a bag's file without the suffix of compression, "" for other files."""
    name = path.stem if path.suffix in _PACKED else path.name
    return name if name.endswith(_SUFFIXES) else ""


def _begins(path: Path, magic: bytes) -> bool:
    with open_regular(path) as file:
        return file.read(len(magic)) == magic


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key that puts bag_2 before bag_10."""
    return [
        (0, int(part)) if part.isdecimal() else (1, part)
        for part in re.split(r"(\d{1,18})", name)
        if part
    ]
