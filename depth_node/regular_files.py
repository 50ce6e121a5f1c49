# SPDX-License-Identifier: Apache-2.0
"""Regular files: opened without waiting for the writer of a pipe, and read up to a limit.

A path from outside may lead to a pipe or a device, whose content never ends or never comes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_LEAST_BYTES = 1 << 16  # of files of the kernel, such as those of /proc, which announce 0


class NotRegularError(OSError):
    """A path leads to a folder, a pipe or a device; strerror says so in a few words."""


class FileTooLargeError(OSError):
    """A file is larger than the limit for its kind; strerror gives both sizes."""


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Raises OSError (NotRegularError for a folder, a pipe or a device), and ValueError for an
    impossible path.
    """
    # O_NONBLOCK: opening a pipe does not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise NotRegularError(21, "Is a directory", str(path))
        if not stat.S_ISREG(mode):
            raise NotRegularError(22, "it is no regular file", str(path))
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with file:
        yield file


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return the content of a regular file.

    Raises OSError as open_regular() does and FileTooLargeError beyond `limit` bytes, ValueError for
    an impossible path.
    """
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        # No more than the file has: a buffer of the limit's size would be allocated at once.
        content = b"" if size > limit else file.read(min(max(size, _LEAST_BYTES), limit) + 1)
        size = max(size, len(content))
        if size > limit:
            raise FileTooLargeError(27, f"it has {size} bytes, more than {limit}", str(path))
        return content
