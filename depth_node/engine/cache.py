# SPDX-License-Identifier: Apache-2.0
"""Cache of built engines on disk, keyed by everything that an engine depends on.

An engine runs only with the TensorRT version and on the kind of GPU that it was built with, and the
engine of another model would give wrong outputs without an error. So its file name is a hash of all
of these (:class:`Identity`), and a JSON file beside it repeats them in plain text. An engine whose
JSON file does not agree is not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from depth_node.engine import EngineError
from depth_node.regular_files import read_bytes
from depth_node.sentences import one_line

REFERENCE_ENDING = ".reference.npz"

_MAX_JSON_BYTES = 1_000_000
_LOCK_TIMEOUT_S = 3600.0
_LEFTOVER_S = 86400.0  # an older temporary file was left by a process that died

_log = logging.getLogger("depth_node.engine")


@dataclass(frozen=True)
class Identity:
    """Everything that a built engine depends on.

    model_sha256: hash of the ONNX file and its external weights. builder: name and version of the
    builder. shapes: shape of every input by name. options: options of the builder.
    """

    model_sha256: str
    builder: str
    gpu: str
    compute_capability: str
    precision: str
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def json_values(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), sort_keys=True))
        return values

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(self.json_values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CachedEngine:
    """An engine in the cache: its file, content and metadata (the JSON file beside it).

    built: whether it has just been built, not read from the cache.
    """

    path: Path
    plan: bytes
    metadata: dict[str, Any]
    built: bool


class EngineCache:
    """A folder of built engines that several processes may use at once."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes

    @classmethod
    def of(cls, folder: str, limit_bytes: int) -> EngineCache:
        """Return the cache in a folder; "": the user's cache folder (XDG base directories).

        Raises EngineError if the folder begins with ~USER and that user has no home.
        """
        if folder:
            try:
                return cls(Path(folder).expanduser(), limit_bytes)
            except RuntimeError:
                raise EngineError(
                    f"engine.cache_dir is {folder}, and that user has no home here: correct it"
                ) from None
        base = os.environ.get("XDG_CACHE_HOME", "")
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
        return cls(root / "depth_node" / "engines", limit_bytes)

    def obtain(
        self,
        identity: Identity,
        build: Callable[[], bytes],
        *,
        may_build: bool = True,
        command: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> CachedEngine:
        """Return the engine of this identity; build it if it is missing or damaged.

        Only one process builds; others wait and take its result. `metadata` is added to the JSON
        file. Raises EngineError if the engine must not be built (`may_build`; the message names
        `command`, which builds it), if the folder cannot be written, or if another process builds
        for more than an hour, and every exception of `build`.
        """
        cached, reason = self._read(identity)
        if cached is not None:
            return cached
        if not may_build:
            raise EngineError(
                f"{reason} in {self.folder}, and engine.build is false: build it ahead with"
                f" `{command}`, or set engine.build to true"
            )
        with self._locked(identity.key):
            cached, reason = self._read(identity)  # another process may just have built it
            if cached is not None:
                return cached
            _log.info("%s in %s: building it, which takes minutes", reason, self.folder)
            start = time.monotonic()
            plan = build()
            seconds = round(time.monotonic() - start, 1)
            entry = self._write(identity, plan, {**(metadata or {}), "build_seconds": seconds})
        self._shrink(keep=identity.key)
        return entry

    def discard(self, identity: Identity) -> None:
        """Delete an engine that turned out to be unusable."""
        for path in self._files(identity.key):
            with contextlib.suppress(OSError):  # not there, or a folder in its place
                path.unlink()

    def entries(self) -> list[dict[str, Any]]:
        """Return the contents of all valid JSON files, the most recently used engine first."""
        entries = []
        for path in reversed(self._by_age()):
            with contextlib.suppress(Exception):  # missing, or damaged in any way: not listed
                entry = _read_json(path.with_suffix(".json"))
                if _is_entry(entry):
                    entries.append(entry)
        return entries

    def _files(self, key: str) -> tuple[Path, Path]:
        # The plan is written last: if it exists, its JSON file exists too.
        return self.folder / f"{key[:32]}.json", self.folder / f"{key[:32]}.engine"

    def _read(self, identity: Identity) -> tuple[CachedEngine | None, str]:
        """Return the engine and "", or None and the reason why it cannot be used."""
        metadata_path, path = self._files(identity.key)
        name = f"the engine of model {identity.model_sha256[:12]}…"
        try:
            metadata = _read_json(metadata_path)
            plan = read_bytes(path)
        except FileNotFoundError:
            return None, f"{name} for {identity.gpu} and {identity.builder} is not"
        except Exception as error:  # any kind: JSON of 100,000 brackets raises RecursionError
            return None, f"{name} cannot be read ({one_line(error)}) from its place"
        if not isinstance(metadata, dict) or metadata.get("identity") != identity.json_values:
            return None, f"{name} was built for something else than its name says"
        if metadata.get("engine_sha256") != hashlib.sha256(plan).hexdigest():
            return None, f"{name} is damaged"
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used engine is deleted first
        return CachedEngine(path, plan, metadata, built=False), ""

    def _write(self, identity: Identity, plan: bytes, more: Mapping[str, Any]) -> CachedEngine:
        metadata_path, path = self._files(identity.key)
        metadata = {
            "key": identity.key,
            "identity": identity.json_values,
            "engine_sha256": hashlib.sha256(plan).hexdigest(),
            "bytes": len(plan),
            "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **more,
        }
        text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
        try:
            for target, content in ((metadata_path, text.encode()), (path, plan)):
                # Written by a rename: a reader sees the old file or the complete new one.
                write_private(target, content)
        except OSError as error:
            raise EngineError(
                f"the engine cannot be kept in {self.folder} ({error.strerror}): make room or set"
                " engine.cache_dir to a folder that can be written"
            ) from error
        return CachedEngine(path, plan, metadata, built=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Let one process build at a time. The system releases the lock when the process ends."""
        lock = self.folder / f"{key[:32]}.lock"
        try:
            make_private(self.folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            number = os.open(lock, flags, 0o600)
        except OSError as error:
            raise EngineError(
                f"the cache {self.folder} cannot be used ({error.strerror}): set"
                " engine.cache_dir to a folder that can be written"
            ) from error
        with open(number, "r+") as file:
            start = time.monotonic()
            is_logged = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not is_logged:
                        _log.info("another process is building this engine: waiting for it")
                        is_logged = True
                    if time.monotonic() - start > _LOCK_TIMEOUT_S:
                        raise EngineError(
                            f"another process has been building this engine for more than"
                            f" {_LOCK_TIMEOUT_S / 60:.0f} minutes (lock {lock}): end it"
                        ) from None
                    time.sleep(0.1)
            yield

    def _by_age(self) -> dict[Path, int]:
        """Return engines and reference outputs (self_check.py), and the bytes of each.

        The least recently used one is the first.
        """
        by_age = []
        for pattern in ("*.engine", f"*{REFERENCE_ENDING}"):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    about = path.stat()  # once: another process may delete it at any time
                    if stat.S_ISREG(about.st_mode):
                        by_age.append((about.st_mtime, path, about.st_size))
        return {path: size for _, path, size in sorted(by_age)}

    def _shrink(self, keep: str) -> None:
        """Delete least recently used files until the cache is within its limit."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*.tmp"):
                if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                    path.unlink()
        sizes = self._by_age()
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._limit_bytes:
                return
            if path.stem == keep[:32]:
                continue
            _log.info(
                "engine cache is above its limit of %d MB: deleting %s",
                self._limit_bytes // 10**6,
                path,
            )
            for file in (path, path.with_suffix(".json")):
                with contextlib.suppress(OSError):
                    file.unlink()
            total -= size


def make_private(folder: Path) -> None:
    """Make a folder for its owner alone, because engines contain code that will be run."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def write_private(target: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file of an unpredictable name, then by a rename.

    So a reader never sees a part of it, and nobody can prepare a link at the temporary name. Raises
    OSError.
    """
    number, temporary = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.", suffix=".tmp")
    try:
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _read_json(path: Path) -> Any:
    return json.loads(read_bytes(path, _MAX_JSON_BYTES))


def _is_entry(entry: Any) -> bool:
    """Return whether the content of a JSON file has the keys that the list of the cache shows."""
    if not isinstance(entry, dict) or not isinstance(entry.get("identity"), dict):
        return False
    texts = (entry.get("key"), entry.get("built"), entry.get("model", ""))
    identity = (entry["identity"].get("builder"), entry["identity"].get("gpu"))
    return type(entry.get("bytes")) is int and all(
        isinstance(text, str) for text in (*texts, *identity)
    )
