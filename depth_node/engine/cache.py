# SPDX-License-Identifier: Apache-2.0
"""Built engines on disk, each kept under all that it depends on.

An engine runs only with the TensorRT version and on the kind of GPU that it was built with, and is
silently wrong for another model. So its name is a hash of all of that (:class:`Identity`), and a
JSON file beside it says the same in words. What does not agree is not used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from depth_node.engine import EngineError

REFERENCE_ENDING = ".reference.npz"

_LOCK_TIMEOUT_S = 3600.0
_LEFTOVER_S = 86400.0  # a temporary file of that age was left by a process that died

_log = logging.getLogger("depth_node.engine")


@dataclass(frozen=True)
class Identity:
    """All that a built engine depends on.

    model_sha256: of the ONNX file and its external weights. builder: name and version of what built
    it. shapes: of every input. options: of the builder.
    """

    model_sha256: str
    builder: str
    gpu: str
    compute_capability: str
    precision: str
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        facts: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), sort_keys=True))
        return facts

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 over all of it."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CachedEngine:
    """An engine in the cache: its file, its content, and what the JSON beside it says."""

    path: Path
    plan: bytes
    facts: dict[str, Any]
    built: bool


class EngineCache:
    """A folder of built engines that several processes may use at once."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes

    @classmethod
    def of(cls, folder: str, limit_bytes: int) -> EngineCache:
        """The cache in a folder; empty: in the user's own, as the XDG base directories say."""
        if folder:
            return cls(Path(folder).expanduser(), limit_bytes)
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
        facts: Mapping[str, Any] | None = None,
    ) -> CachedEngine:
        """The engine of this identity, built if it is not there or broken.

        Only one process builds it; others wait and take what it made. `facts` join the JSON.
        Raises EngineError where it may not be built (naming `command`, which builds it), what
        `build` raises, and where the folder cannot be written.
        """
        found, reason = self._read(identity)
        if found is not None:
            return found
        if not may_build:
            raise EngineError(
                f"{reason} in {self.folder}, and build_engines is false: build it ahead with"
                f" `{command}`, or set model.build_engines to true"
            )
        with self._locked(identity.key):
            found, reason = self._read(identity)  # another process may just have built it
            if found is not None:
                return found
            _log.info("%s in %s: building it, which takes minutes", reason, self.folder)
            start = time.monotonic()
            plan = build()
            seconds = round(time.monotonic() - start, 1)
            made = {**(facts or {}), "build_seconds": seconds}
            entry = self._write(identity, plan, made)
        self._shrink(keep=identity.key)
        return entry

    def discard(self, identity: Identity) -> None:
        """Forget an engine that turned out not to be usable."""
        for path in self._files(identity.key):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def entries(self) -> list[dict[str, Any]]:
        """What the JSON files say, newest use first; for people."""
        found = []
        for path in self._by_age()[::-1]:
            with contextlib.suppress(OSError, ValueError):
                found.append(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        return found

    def _files(self, key: str) -> tuple[Path, Path]:
        # The plan goes last: where it lies, its JSON lies too.
        return self.folder / f"{key[:32]}.json", self.folder / f"{key[:32]}.engine"

    def _read(self, identity: Identity) -> tuple[CachedEngine | None, str]:
        """The engine, or None and why not."""
        about, path = self._files(identity.key)
        name = f"the engine of model {identity.model_sha256[:12]}…"
        try:
            facts = json.loads(about.read_text(encoding="utf-8"))
            plan = path.read_bytes()
        except FileNotFoundError:
            return None, f"{name} for {identity.gpu} and {identity.builder} is not"
        except (OSError, ValueError) as error:
            return None, f"{name} cannot be read ({' '.join(str(error).split())}) from its place"
        if not isinstance(facts, dict) or facts.get("identity") != identity.facts:
            return None, f"{name} was built for something else than its name says"
        if facts.get("engine_sha256") != hashlib.sha256(plan).hexdigest():
            return None, f"{name} is damaged"
        with contextlib.suppress(OSError):
            os.utime(path)  # its age counts from its last use
        return CachedEngine(path, plan, facts, built=False), ""

    def _write(self, identity: Identity, plan: bytes, made: Mapping[str, Any]) -> CachedEngine:
        about, path = self._files(identity.key)
        facts = {
            "key": identity.key,
            "identity": identity.facts,
            "engine_sha256": hashlib.sha256(plan).hexdigest(),
            "bytes": len(plan),
            "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **made,
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        try:
            for target, content in ((about, text.encode()), (path, plan)):
                # A reader sees the old file or the whole new one, never half of it.
                half = target.with_name(f"{target.name}.{os.getpid()}.tmp")
                with half.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(half, target)
        except OSError as error:
            raise EngineError(
                f"the engine cannot be kept in {self.folder} ({error.strerror}): make room or set"
                " model.cache_dir to a folder that can be written"
            ) from error
        return CachedEngine(path, plan, facts, built=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """One builder at a time. The lock goes with its process, however that ends."""
        lock = self.folder / f"{key[:32]}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = lock.open("a+")
        except OSError as error:
            raise EngineError(
                f"the cache {self.folder} cannot be used ({error.strerror}): set model.cache_dir to"
                " a folder that can be written"
            ) from error
        with file:
            start = time.monotonic()
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        _log.info("another process builds this engine: waiting for it")
                        told = True
                    if time.monotonic() - start > _LOCK_TIMEOUT_S:
                        raise EngineError(
                            f"another process has been building this engine for more than"
                            f" {_LOCK_TIMEOUT_S / 60:.0f} minutes (lock {lock}): end it"
                        ) from None
                    time.sleep(0.1)
            yield

    def _by_age(self) -> list[Path]:
        """Engines and references (check.py), that which was not used for longest first."""
        aged = []
        for pattern in ("*.engine", f"*{REFERENCE_ENDING}"):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(FileNotFoundError):
                    aged.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(aged)]

    def _shrink(self, keep: str) -> None:
        """Remove what was not used for longest until the cache is small enough."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*.tmp"):
                if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                    path.unlink()
        files = self._by_age()
        sizes = {path: path.stat().st_size for path in files if path.exists()}
        total = sum(sizes.values())
        for path in files:
            if total <= self._limit_bytes:
                return
            if path.stem == keep[:32]:
                continue
            _log.info("engine cache above its %d MB: %s goes", self._limit_bytes // 10**6, path)
            for gone in (path, path.with_suffix(".json")):
                with contextlib.suppress(FileNotFoundError):
                    gone.unlink()
            total -= sizes.get(path, 0)
