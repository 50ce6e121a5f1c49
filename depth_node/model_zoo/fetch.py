# SPDX-License-Identifier: Apache-2.0
"""Getting a network by explicit command, and knowing it again."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.model_zoo.registry import HUB, FetchError, RegistryEntry

RECORD = "fetched.json"
_CURE = "pip install huggingface_hub"
_BLOCK = 1 << 20
# Told of a download: the file, the bytes that are here, the bytes in all (None: unknown).
OnBytes = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class Kept:
    """A file as it was fetched. ``basis``: what its hash was compared with then."""

    sha256: str
    bytes: int
    basis: str


@dataclass(frozen=True)
class Record:
    """What was fetched, from where and under which licence; RECORD in the network's folder."""

    name: str
    repo: str
    revision: str
    licence: str
    files: Mapping[str, Kept] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """The record in a folder; None where there is none that can be read."""
        try:
            values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            files = {name: Kept(**kept) for name, kept in values.pop("files").items()}
            return cls(files=files, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save(self, folder: Path) -> None:
        """Write it, all or nothing."""
        part = folder / f".{RECORD}.{os.getpid()}"
        part.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(part, folder / RECORD)


@dataclass(frozen=True)
class Verdict:
    """A file of a network compared with what it should be; ``problem`` is "" when it is whole."""

    name: str
    file: str
    basis: str
    problem: str


def verify(entry: RegistryEntry) -> list[Verdict]:
    """Hash the files of a fetched network again. No file is changed; empty if it is not here."""
    folder = entry.folder
    record = Record.load(folder)
    present = [path for path in entry.files if (folder / PurePosixPath(path).name).is_file()]
    if record is None and not present:
        return []
    found = []
    for path, registered in entry.files.items():
        name = PurePosixPath(path).name
        kept = record.files.get(name) if record else None
        basis = "registry" if registered else f"first download ({kept.basis})" if kept else "none"
        wanted = registered or (kept.sha256 if kept else "")
        if not (folder / name).is_file():
            problem = "missing"
        elif not wanted:
            problem = "no hash to compare with"
        else:
            problem = "" if sha256_of(folder / name) == wanted else "DAMAGED or another version"
        found.append(Verdict(entry.name, name, basis, problem))
    return found


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Fetched:
    """What fetch() brought: the network, its manifest (None: weights), hashes and their basis."""

    path: Path
    manifest: Manifest | None
    record: Record


def fetch(
    entry: RegistryEntry,
    on_bytes: OnBytes | None = None,
    size: Sequence[int] = (),
    output_name: str = "",
) -> Fetched:
    """Get the files of a network that are not here yet, check them, and write the manifest.

    What a broken download left is continued. A file that somebody put into the folder by hand is
    taken if its hash is right. ``size`` (height, width) is for files that leave it open. The caller
    has shown the licence. Raises FetchError; EngineError if the file is no usable ONNX.
    """
    folder = entry.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"the folder {folder} cannot be made ({error.strerror}): set XDG_DATA_HOME to a place"
            " that can be written"
        ) from error
    before = Record.load(folder)
    kept: dict[str, Kept] = {}
    commit = before.revision if before else entry.revision
    for path, registered in entry.files.items():
        place = folder / PurePosixPath(path).name
        known = before.files.get(place.name) if before else None
        if place.is_file():
            kept[place.name] = _adopt(entry, place, registered, known)
        else:
            with _one_at_a_time(folder):
                kept[place.name], commit = _download(entry, path, place, registered, on_bytes)
    record = Record(entry.name, entry.repo, commit, entry.licence, kept)
    try:
        record.save(folder)
    except OSError as error:
        raise FetchError(f"{folder / RECORD} cannot be written ({error.strerror})") from error
    return Fetched(folder / entry.main, _manifest(entry, folder, commit, size, output_name), record)


def _manifest(
    entry: RegistryEntry, folder: Path, commit: str, size: Sequence[int], output_name: str
) -> Manifest | None:
    if entry.format != "onnx":
        return None
    path = folder / entry.main
    place = manifest_path(path)
    if place.is_file() and not size and not output_name:
        manifest = Manifest.load(place)
        if manifest.sha256 == sha256_of(path):  # as it was, with what the user may have set in it
            return manifest
    from depth_node.engine import ort

    (tensor, *_), _ = ort.probe(path)
    fixed = len(tensor.shape) == 4 and all(tensor.shape[2:])
    height, width = (0, 0) if fixed else (size or entry.size)
    if fixed and size and tuple(size) != tuple(tensor.shape[2:]):
        raise FetchError(
            f"{entry.name} has one size, {tensor.shape[3]}x{tensor.shape[2]}: leave --size out, or"
            " export the network at yours"
        )
    return write_manifest(
        path,
        entry.meaning,
        name=entry.name,
        output_name=output_name or entry.output_name,
        height=height,
        width=width,
        patch_size=entry.patch_size,
        licence=entry.licence,
        source=f"{entry.page} at {commit}, a network of {entry.maker}",
        **entry.input,
    )


def _adopt(entry: RegistryEntry, place: Path, registered: str, known: Kept | None) -> Kept:
    """A file that is already there: fetched before, or put there by hand."""
    found = sha256_of(place)
    wanted = registered or (known.sha256 if known else "")
    if wanted and found != wanted:
        raise FetchError(
            f"{place} is damaged or another version (sha256 {found[:12]}… instead of"
            f" {wanted[:12]}…): delete it and fetch again"
        )
    basis = "registry" if registered else known.basis if known else "put there by hand"
    return Kept(found, place.stat().st_size, basis)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(
                f"another process is fetching into {folder}: wait until it is done"
            ) from None
        yield


class _Counted:
    """A file that tells how much was written; what huggingface_hub needs of a file."""

    def __init__(self, file: IO[bytes], tell: Callable[[int], None]) -> None:
        self._file, self._tell = file, tell

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._file.flush()  # what is here survives the end of this process
        self._tell(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _download(
    entry: RegistryEntry, path: str, place: Path, registered: str, on_bytes: OnBytes | None
) -> tuple[Kept, str]:
    """One file by huggingface_hub, into its place when its hash is right; and the commit."""
    hub = _hub(entry, place)
    with _sentences(hub, entry, path, place):
        facts = hub.get_hf_file_metadata(
            hub.hf_hub_url(entry.repo, path, revision=entry.revision, endpoint=_endpoint()),
            library_name="depth_node",
        )
    etag, total = str(facts.etag or ""), facts.size
    published = etag if re.fullmatch("[0-9a-f]{64}", etag) else ""
    if registered and published and published != registered:
        raise FetchError(
            f"the hub now has another {path} in {entry.repo} (sha256 {published[:12]}… instead of"
            f" {registered[:12]}…), so it was not downloaded: install a newer depth_node, or fetch"
            " the file by hand and write its manifest with `depth_tools models manifest`"
        )
    # Named after the content, so that no part of an older version is continued.
    content = hashlib.sha256(etag.encode()).hexdigest()[:16]
    part = place.with_name(f".{place.name}.{content}.part")
    done = part.stat().st_size if part.is_file() else 0
    if total is not None and done > total:
        part.unlink()
        done = 0
    _room(place, (total or 0) - done)
    headers = hub.utils.build_hf_headers(library_name="depth_node")
    if urlsplit(facts.location).netloc != urlsplit(_endpoint() or HUB).netloc:
        headers.pop("authorization", None)  # a storage server is not to see the user's token
    with _sentences(hub, entry, path, place), part.open("ab") as file:
        counted: Any = _Counted(file, lambda here: _told(on_bytes, place.name, here, total))
        _told(on_bytes, place.name, done, total)
        hub.file_download.http_get(
            facts.location, counted, resume_size=done, headers=headers, expected_size=total
        )
    found = sha256_of(part)
    wanted = registered or published
    if wanted and found != wanted:
        part.unlink()
        raise FetchError(
            f"{path} of {entry.repo} arrived damaged (sha256 {found[:12]}… instead of"
            f" {wanted[:12]}…) and was deleted: fetch it again"
        )
    basis = "registry" if registered else "the hub's own hash" if published else "first use"
    size = part.stat().st_size
    os.replace(part, place)
    return Kept(found, size, basis), str(facts.commit_hash or entry.revision)


def _told(on_bytes: OnBytes | None, name: str, here: int, total: int | None) -> None:
    if on_bytes is not None:
        on_bytes(name, here, total)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _hub(entry: RegistryEntry, place: Path) -> Any:
    """huggingface_hub, silent; its parts that are used are loaded."""
    try:
        import huggingface_hub
        from huggingface_hub import errors, file_download, utils  # noqa: F401 - attributes of hub
    except ImportError:
        raise FetchError(
            f"huggingface_hub, which downloads, is missing: {_CURE}; or {_by_hand(entry, place)}"
        ) from None
    utils.disable_progress_bars()  # ours is shown instead
    utils.logging.set_verbosity_error()
    return huggingface_hub


def _by_hand(entry: RegistryEntry, place: Path) -> str:
    path = next(path for path in entry.files if PurePosixPath(path).name == place.name)
    url = f"{entry.page}/resolve/{entry.revision}/{path}".replace(" ", "%20")
    return (
        f"put {url} from another machine to {place} and run `depth_tools models fetch"
        f" {entry.name}` again"
    )


def _room(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise FetchError(
            f"{place.name} needs {needed / 1e6:.0f} MB more, and {place.parent} has only"
            f" {free / 1e6:.0f} MB free: make room, or set XDG_DATA_HOME to another disk"
        )


@contextmanager
def _sentences(hub: Any, entry: RegistryEntry, path: str, place: Path) -> Iterator[None]:
    """Whatever huggingface_hub raises, as one sentence."""
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise FetchError(
            f"{entry.repo} is given only to those who accepted its terms: accept them at"
            f" {entry.page} and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"the hub has no repository {entry.repo}, or shows it only after `hf auth login`:"
            f" look at {entry.page}, or {_by_hand(entry, place)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FetchError(
            f"{entry.repo} has no revision {entry.revision} any more: install a newer depth_node,"
            f" or look at {entry.page}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise FetchError(
            f"{entry.repo} has no file {path} any more: install a newer depth_node, or look at"
            f" {entry.page}"
        ) from error
    except Exception as error:  # the errors of its HTTP library differ from version to version
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise FetchError(
                f"{path} of {entry.repo} cannot be stored in {place.parent} ({error.strerror}):"
                " make room, or set XDG_DATA_HOME to another place, and fetch again"
            ) from error
        raise _unreachable(entry, place, error) from error


def _unreachable(entry: RegistryEntry, place: Path, error: Exception) -> FetchError:
    return FetchError(
        f"the hub at {_endpoint() or HUB} cannot be reached or failed ({_short(error)}): try again,"
        f" what has arrived is kept; without a network, {_by_hand(entry, place)}"
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:160] + "…"
