# SPDX-License-Identifier: Apache-2.0
"""Download of a registered network by explicit command, and verification of its files."""

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
# Callback of a download: file, bytes received, bytes in all (None: unknown).
OnBytes = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class FetchedFile:
    """A downloaded file. ``basis``: what its hash was compared with."""

    sha256: str
    bytes: int
    basis: str


@dataclass(frozen=True)
class Record:
    """Origin, licence and files of a fetched network; the file RECORD in its folder."""

    name: str
    repo: str
    revision: str
    licence: str
    files: Mapping[str, FetchedFile] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """The record in a folder; None if there is none that can be read."""
        try:
            values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            files = {name: FetchedFile(**entry) for name, entry in values.pop("files").items()}
            return cls(files=files, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def save(self, folder: Path) -> None:
        """Write the record by a rename, so that it is never incomplete."""
        part = folder / f".{RECORD}.{os.getpid()}"
        part.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(part, folder / RECORD)


@dataclass(frozen=True)
class Verdict:
    """Result of the check of one file; ``problem`` is "" if the file is intact."""

    name: str
    file: str
    basis: str
    problem: str


def verify(entry: RegistryEntry) -> list[Verdict]:
    """Compare the files of a fetched network with their hashes; empty if it was not fetched."""
    folder = entry.folder
    record = Record.load(folder)
    present = [path for path in entry.files if (folder / PurePosixPath(path).name).is_file()]
    if record is None and not present:
        return []
    verdicts = []
    for path, registered in entry.files.items():
        name = PurePosixPath(path).name
        recorded = record.files.get(name) if record else None
        basis = "none"
        if registered:
            basis = "registry"
        elif recorded:
            basis = f"first download ({recorded.basis})"
        expected = registered or (recorded.sha256 if recorded else "")
        if not (folder / name).is_file():
            problem = "missing"
        elif not expected:
            problem = "no hash to compare with"
        else:
            problem = "" if sha256_of(folder / name) == expected else "DAMAGED or another version"
        verdicts.append(Verdict(entry.name, name, basis, problem))
    return verdicts


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Fetched:
    """Result of fetch(): file, manifest (None: weights that must be exported), record."""

    path: Path
    manifest: Manifest | None
    record: Record


def fetch(
    entry: RegistryEntry,
    on_bytes: OnBytes | None = None,
    size: Sequence[int] = (),
    output_name: str = "",
) -> Fetched:
    """Download the missing files of a network, check them, and write the manifest.

    An interrupted download is continued. A file that was put into the folder by hand is used if its
    hash is right. ``size`` (height, width) is for files that leave it open. The caller must have
    shown the licence. Raises FetchError, and EngineError if the file is not a usable ONNX file.
    """
    folder = entry.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(
            f"the folder {folder} cannot be made ({error.strerror}): set XDG_DATA_HOME to a place"
            " that can be written"
        ) from error
    previous = Record.load(folder)
    files: dict[str, FetchedFile] = {}
    commit = previous.revision if previous else entry.revision
    for path, registered in entry.files.items():
        target = folder / PurePosixPath(path).name
        recorded = previous.files.get(target.name) if previous else None
        if target.is_file():
            files[target.name] = _adopt(entry, target, registered, recorded)
        else:
            with _one_at_a_time(folder):
                files[target.name], commit = _download(entry, path, target, registered, on_bytes)
    record = Record(entry.name, entry.repo, commit, entry.licence, files)
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
    existing = manifest_path(path)
    if existing.is_file() and not size and not output_name:
        manifest = Manifest.load(existing)
        if manifest.sha256 == sha256_of(path):  # unchanged, with the user's own changes
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


def _adopt(
    entry: RegistryEntry, target: Path, registered: str, recorded: FetchedFile | None
) -> FetchedFile:
    """Check a file that exists already: fetched before, or put there by hand."""
    digest = sha256_of(target)
    expected = registered or (recorded.sha256 if recorded else "")
    if expected and digest != expected:
        raise FetchError(
            f"{target} is damaged or another version (sha256 {digest[:12]}… instead of"
            f" {expected[:12]}…): delete it and fetch again"
        )
    basis = "registry" if registered else recorded.basis if recorded else "put there by hand"
    return FetchedFile(digest, target.stat().st_size, basis)


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


class _CountingFile:
    """A file that reports the bytes written; has the methods that huggingface_hub uses."""

    def __init__(self, file: IO[bytes], report: Callable[[int], None]) -> None:
        self._file, self._report = file, report

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._file.flush()  # the data survives the end of this process
        self._report(self._file.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _download(
    entry: RegistryEntry, path: str, target: Path, registered: str, on_bytes: OnBytes | None
) -> tuple[FetchedFile, str]:
    """Download one file by huggingface_hub and check its hash -> the file and its commit."""
    hub = _hub(entry, target)
    with _sentences(hub, entry, path, target):
        metadata = hub.get_hf_file_metadata(
            hub.hf_hub_url(entry.repo, path, revision=entry.revision, endpoint=_endpoint()),
            library_name="depth_node",
        )
    etag, total = str(metadata.etag or ""), metadata.size
    published = etag if re.fullmatch("[0-9a-f]{64}", etag) else ""
    if registered and published and published != registered:
        raise FetchError(
            f"the hub now has another {path} in {entry.repo} (sha256 {published[:12]}… instead of"
            f" {registered[:12]}…), so it was not downloaded: install a newer depth_node, or fetch"
            " the file by hand and write its manifest with `depth_tools models manifest`"
        )
    # Named after the content, so that a part of an older version is not continued.
    content = hashlib.sha256(etag.encode()).hexdigest()[:16]
    part = target.with_name(f".{target.name}.{content}.part")
    done = part.stat().st_size if part.is_file() else 0
    if total is not None and done > total:
        part.unlink()
        done = 0
    _check_disk_space(target, (total or 0) - done)
    headers = hub.utils.build_hf_headers(library_name="depth_node")
    if urlsplit(metadata.location).netloc != urlsplit(_endpoint() or HUB).netloc:
        headers.pop("authorization", None)  # a storage server must not get the user's token
    with _sentences(hub, entry, path, target), part.open("ab") as file:
        counted: Any = _CountingFile(file, lambda size: _report(on_bytes, target.name, size, total))
        _report(on_bytes, target.name, done, total)
        hub.file_download.http_get(
            metadata.location, counted, resume_size=done, headers=headers, expected_size=total
        )
    digest = sha256_of(part)
    expected = registered or published
    if expected and digest != expected:
        part.unlink()
        raise FetchError(
            f"{path} of {entry.repo} arrived damaged (sha256 {digest[:12]}… instead of"
            f" {expected[:12]}…) and was deleted: fetch it again"
        )
    basis = "registry" if registered else "the hub's own hash" if published else "first use"
    size = part.stat().st_size
    os.replace(part, target)
    return FetchedFile(digest, size, basis), str(metadata.commit_hash or entry.revision)


def _report(on_bytes: OnBytes | None, name: str, received: int, total: int | None) -> None:
    if on_bytes is not None:
        on_bytes(name, received, total)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _hub(entry: RegistryEntry, target: Path) -> Any:
    """huggingface_hub without its own output; the modules that are used are loaded."""
    try:
        import huggingface_hub
        from huggingface_hub import errors, file_download, utils  # noqa: F401 - attributes of hub
    except ImportError:
        raise FetchError(
            f"huggingface_hub, which downloads, is missing: {_CURE}; or {_by_hand(entry, target)}"
        ) from None
    utils.disable_progress_bars()  # the command line shows its own
    utils.logging.set_verbosity_error()
    return huggingface_hub


def _by_hand(entry: RegistryEntry, target: Path) -> str:
    path = next(path for path in entry.files if PurePosixPath(path).name == target.name)
    url = f"{entry.page}/resolve/{entry.revision}/{path}".replace(" ", "%20")
    return (
        f"put {url} from another machine to {target} and run `depth_tools models fetch"
        f" {entry.name}` again"
    )


def _check_disk_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise FetchError(
            f"{target.name} needs {needed / 1e6:.0f} MB more, and {target.parent} has only"
            f" {free / 1e6:.0f} MB free: make room, or set XDG_DATA_HOME to another disk"
        )


@contextmanager
def _sentences(hub: Any, entry: RegistryEntry, path: str, target: Path) -> Iterator[None]:
    """Turn every exception of huggingface_hub into one sentence."""
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
            f" look at {entry.page}, or {_by_hand(entry, target)}"
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
                f"{path} of {entry.repo} cannot be stored in {target.parent} ({error.strerror}):"
                " make room, or set XDG_DATA_HOME to another place, and fetch again"
            ) from error
        raise _unreachable(entry, target, error) from error


def _unreachable(entry: RegistryEntry, target: Path, error: Exception) -> FetchError:
    return FetchError(
        f"the hub at {_endpoint() or HUB} cannot be reached or failed ({_short(error)}): try again,"
        f" what has arrived is kept; without a network, {_by_hand(entry, target)}"
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:160] + "…"
