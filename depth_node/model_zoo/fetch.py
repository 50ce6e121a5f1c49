# SPDX-License-Identifier: Apache-2.0
"""Download of a registered network by explicit command, and verification of its files."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from depth_node.config import read_text
from depth_node.engine import depth_tools
from depth_node.engine.manifest import Manifest, manifest_path, model_sha256
from depth_node.engine.manifest_writer import write_manifest
from depth_node.model_zoo.download import BLOCK, Download, check_disk_space
from depth_node.model_zoo.registry import HUB, FetchError, RegistryEntry
from depth_node.sentences import one_line

RECORD = "fetched.json"
_CURE = "pip install huggingface_hub"
_MAX_RECORD = 1_000_000
# Callback of a download; arguments: file, bytes received, total bytes (None: unknown).
OnBytes = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True)
class FetchedFile:
    """A downloaded file: its hash, its size, and ``basis``: what the hash was compared with."""

    sha256: str
    bytes: int
    basis: str


@dataclass(frozen=True)
class Record:
    """Origin, licence and files of a fetched network, stored as the file RECORD in its folder."""

    name: str
    repo: str
    revision: str
    licence: str
    files: Mapping[str, FetchedFile] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Record | None:
        """Return the record in a folder; None if it is missing or damaged."""
        try:
            values = json.loads(read_text(folder / RECORD, _MAX_RECORD))
            files = {name: FetchedFile(**entry) for name, entry in values.pop("files").items()}
            record = cls(files=files, **values)
        except Exception:  # missing, or damaged in any way
            return None
        texts = [record.name, record.repo, record.revision, record.licence]
        texts += [text for file in files.values() for text in (file.sha256, file.basis)]
        sizes = [file.bytes for file in files.values()]
        sound = all(isinstance(text, str) and text.isprintable() for text in texts)
        return record if sound and all(type(size) is int for size in sizes) else None

    def save(self, folder: Path) -> None:
        """Write the record by a rename, so that it is never incomplete. Raises OSError."""
        number, part = tempfile.mkstemp(dir=folder, prefix=f".{RECORD}.")
        try:
            with open(number, "w", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
            os.replace(part, folder / RECORD)
        except OSError:
            os.unlink(part)
            raise


@dataclass(frozen=True)
class FileVerdict:
    """Result of the check of one file; ``problem`` is "" if the file is intact."""

    name: str
    file: str
    basis: str
    problem: str


def verify(entry: RegistryEntry) -> list[FileVerdict]:
    """Compare the files of a network with their hashes; empty if the network was not fetched."""
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
            try:
                same = sha256_of(folder / name) == expected
                problem = "" if same else "DAMAGED or another version"
            except OSError as error:
                problem = f"cannot be read ({error.strerror})"
        verdicts.append(FileVerdict(entry.name, name, basis, problem))
    return verdicts


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Fetched:
    """Result of fetch(): model file, manifest (None: weights that must be exported), record."""

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
    hash is right, or if no hash is known. ``size``: (height, width) for files that leave it open.
    ``output_name``: output to use instead of the registry's. The caller must have shown the licence
    to the user. Raises FetchError, and EngineError if the file is not a usable ONNX file.
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
        if target.exists() and not target.is_file():
            raise FetchError(f"{target} is no file: delete it and fetch again")
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
        raise FetchError(
            f"{folder / RECORD} cannot be written ({error.strerror}): make room, and fetch again"
        ) from error
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
        if manifest.sha256 == model_sha256(path):  # kept, because the user may have edited it
            return manifest
    from depth_node.engine import ort

    (tensor, *_), outputs = ort.probe(path)
    given = {item.name for item in outputs}
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
        focal_px=entry.focal_px,
        # Another conversion of the network can lack an output, and so cannot have its role.
        roles={role: name for role, name in entry.roles.items() if name in given},
        **entry.input,
    )


def _adopt(
    entry: RegistryEntry, target: Path, registered: str, recorded: FetchedFile | None
) -> FetchedFile:
    """Check a file that exists already, because it was fetched before or put there by hand.

    Raises FetchError if it cannot be read or its hash is wrong.
    """
    try:
        digest, size = sha256_of(target), target.stat().st_size
    except OSError as error:
        raise FetchError(
            f"{target} cannot be read ({error.strerror}): give yourself the right to, or delete it"
        ) from error
    expected = registered or (recorded.sha256 if recorded else "")
    if expected and digest != expected:
        raise FetchError(
            f"{target} is damaged or another version (sha256 {digest[:12]}… instead of"
            f" {expected[:12]}…): delete it and fetch again"
        )
    basis = "registry" if registered else recorded.basis if recorded else "put there by hand"
    return FetchedFile(digest, size, basis)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        number = os.open(folder / ".lock", flags, 0o600)
    except OSError as error:
        raise FetchError(
            f"{folder} cannot be written ({error.strerror}): set XDG_DATA_HOME to another place"
        ) from error
    with open(number, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(
                f"another process is fetching into {folder}: wait until it is done"
            ) from None
        yield


def _download(
    entry: RegistryEntry, path: str, target: Path, registered: str, on_bytes: OnBytes | None
) -> tuple[FetchedFile, str]:
    """Download one file with huggingface_hub and check its hash; return the file and its commit."""
    hub = _hub(entry, target)
    with _sentences(hub, entry, path, target):
        metadata = hub.get_hf_file_metadata(
            hub.hf_hub_url(entry.repo, path, revision=entry.revision, endpoint=_endpoint()),
            library_name="depth_node",
        )
    etag, total = str(metadata.etag or ""), metadata.size
    if total is not None and total < 0:
        raise FetchError(
            f"the hub says that {path} of {entry.repo} has {total} bytes, so it was not downloaded:"
            f" try again later, or {_by_hand(entry, target)}"
        )
    published = etag if re.fullmatch("[0-9a-f]{64}", etag) else ""
    if registered and published and published != registered:
        raise FetchError(
            f"the hub now has another {path} in {entry.repo} (sha256 {published[:12]}… instead of"
            f" {registered[:12]}…), so it was not downloaded: install a newer depth_node, or fetch"
            " the file by hand and write its manifest with"
            f" `{depth_tools('models manifest')}`"
        )
    # The name contains a hash of the content, so that no part of another version is continued.
    content = hashlib.sha256(etag.encode()).hexdigest()[:16]
    part = target.with_name(f".{target.name}.{content}.part")
    # A part is continued unless it is a link, has an unknown total size, or is too large.
    if part.is_file() and (part.is_symlink() or total is None or part.stat().st_size > total):
        part.unlink()
    done = part.stat().st_size if part.is_file() else 0
    check_disk_space(target, (total or 0) - done)
    headers = hub.utils.build_hf_headers(library_name="depth_node")
    if urlsplit(metadata.location).netloc != urlsplit(_endpoint() or HUB).netloc:
        headers.pop("authorization", None)  # another server must not get the user's token
    with _sentences(hub, entry, path, target):
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(part, flags, 0o644), "r+b", buffering=0) as file:
            download = Download(hub, metadata.location, headers, total, file, target)
            try:
                download.run(lambda size: _report(on_bytes, target.name, size, total))
            except FetchError:
                part.unlink()
                raise
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
    commit = str(metadata.commit_hash or "")
    return FetchedFile(digest, size, basis), (
        commit if re.fullmatch("[0-9a-f]{7,64}", commit) else entry.revision
    )


def _report(on_bytes: OnBytes | None, name: str, received: int, total: int | None) -> None:
    if on_bytes is not None:
        on_bytes(name, received, total)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _hub(entry: RegistryEntry, target: Path) -> Any:
    """Import huggingface_hub with all submodules that are used, and switch off its own output."""
    try:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
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
        f"put {url} from another machine to {target} and run"
        f" `{depth_tools(f'models fetch {entry.name}')}` again"
    )


@contextmanager
def _sentences(hub: Any, entry: RegistryEntry, path: str, target: Path) -> Iterator[None]:
    """Convert every exception of huggingface_hub to a FetchError with one sentence."""
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
    except FetchError:
        raise
    except Exception as error:  # the exceptions of its HTTP library differ between versions
        of_network = isinstance(error, (ConnectionError, TimeoutError))
        if isinstance(error, OSError) and error.errno and not of_network:
            raise FetchError(
                f"{path} of {entry.repo} cannot be stored in {target.parent} ({error.strerror}):"
                " make room, or set XDG_DATA_HOME to another place, and fetch again"
            ) from error
        raise _unreachable(entry, target, error) from error


def _unreachable(entry: RegistryEntry, target: Path, error: Exception) -> FetchError:
    return FetchError(
        f"the hub at {_endpoint() or HUB} cannot be reached or failed"
        f" ({one_line(error, 160)}): try again,"
        f" what has arrived is kept; without a network, {_by_hand(entry, target)}"
    )
