# SPDX-License-Identifier: Apache-2.0
"""Untrusted files: only regular files are opened, up to a size limit, and errors are sentences in
one line of bounded length.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from depth_node import regular_files
from depth_node.sentences import both_ends, one_line

LARGEST_FILE = 1 << 30  # bytes of an image or of an array
LARGEST_JSON = 1 << 20


class FrameError(ValueError):
    """A frame on disk cannot be used; the sentence names the file, the cause and the cure."""

    def __init__(self, sentence: object) -> None:
        super().__init__(both_ends(str(sentence)))


def reason_of(error: BaseException) -> str:
    """Return the message of a library's exception, in one short line without a full stop."""
    return one_line(error).rstrip(".")


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; FrameError for a pipe, a device, a folder or a missing file."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(regular_files.open_regular(path))
        except (OSError, ValueError) as error:
            raise _refusal(path, error) from None
        yield file


def read_regular(path: Path, ceiling: int = LARGEST_FILE) -> bytes:
    """Return the content of a regular file. Raises FrameError if it is larger than `ceiling`."""
    try:
        return regular_files.read_bytes(path, ceiling)
    except (OSError, ValueError, MemoryError) as error:
        raise _refusal(path, error) from None


def _refusal(path: Path, error: Exception) -> FrameError:
    """Return why a file cannot be opened or read, with the cure."""
    why = getattr(error, "strerror", None) or reason_of(error)
    if isinstance(error, regular_files.NotRegularError):
        return FrameError(f"{path} is no regular file ({why}): put a file in its place.")
    if isinstance(error, regular_files.FileTooLargeError):
        return FrameError(f"{path} is too large ({why}): it is refused.")
    if isinstance(error, MemoryError):
        return FrameError(f"{path} cannot be read ({why}): free memory.")
    return FrameError(f"{path} cannot be opened ({why}): check path, permissions and disk.")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Its numbers are not checked: JSON may hold any size.

    Raises FrameError if the file is not a JSON object.
    """
    content = read_regular(path, LARGEST_JSON)
    try:
        value = json.loads(content.decode("utf-8"))
    except (Exception, RecursionError, MemoryError) as error:
        raise FrameError(f"{path} is not JSON ({reason_of(error)}): write it again.") from None
    if not isinstance(value, dict):
        raise FrameError(f"{path} holds a {type(value).__name__}: write a JSON object.")
    return value


def new_folder(chosen: Path | None, usual: Path, option: str = "--out") -> Path:
    """Return a folder for the results of a run that holds nothing yet, so that no runs are mixed.

    chosen: the user's folder. None: `usual`, or usual_2, usual_3, ... if those before hold files.
    option: of the command, for the sentence. The folder is not made. Raises FrameError if the
    chosen folder holds something or is a file.
    """
    if chosen is None:
        numbered = (usual.with_name(f"{usual.name}_{number}") for number in itertools.count(2))
        return next(folder for folder in itertools.chain([usual], numbered) if is_new(folder))
    if not is_new(chosen):
        what = "holds files already" if chosen.is_dir() else "is a file"
        raise FrameError(f"{chosen} {what}: name a new folder with {option}, or remove it first.")
    return chosen


def is_new(folder: Path) -> bool:
    """Return whether nothing has this name, or an empty folder. Raises FrameError if unreadable."""
    if not os.path.lexists(folder):
        return True
    try:
        return folder.is_dir() and not any(folder.iterdir())
    except OSError as error:
        raise FrameError(
            f"{folder} cannot be read ({error.strerror}): check its permissions, or name another."
        ) from None


class UnfinishedFile:
    """A file or folder that gets its name only when it is complete.

    It is made in a temporary folder beside it, so that the rename is atomic. option: of the
    command, for the error sentence. Raises FrameError if the name exists already.
    """

    def __init__(self, path: Path, option: str) -> None:
        self.path, self._option = path, option
        self._folder: Path | None = None
        if os.path.lexists(path):
            raise FrameError(f"{path} is there already: remove it, or name another with {option}.")

    def __enter__(self) -> Path:
        """Create and return the temporary folder to write in."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        except OSError as error:
            raise FrameError(
                f"{self.path} cannot be written ({error.strerror}): name another with"
                f" {self._option}."
            ) from None
        self._folder = Path(folder)
        return self._folder

    def finish(self, made: Path | None) -> None:
        """Rename what was made to its final name (None: keep nothing) and remove the folder."""
        try:
            if made is not None:
                if os.path.lexists(self.path):
                    raise FileExistsError(17, "there is something of that name by now")
                os.replace(made, self.path)
        except OSError as error:
            raise FrameError(
                f"{self.path} cannot be written ({error.strerror}): name another with"
                f" {self._option}."
            ) from None
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
