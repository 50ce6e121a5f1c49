# SPDX-License-Identifier: Apache-2.0
"""Only regular files are read: no pipe, device or folder, nothing beyond a limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from depth_node.recordings.files import FrameError
from depth_node.recordings.files import open_regular as open_recorded
from depth_node.regular_files import FileTooLargeError, NotRegularError, open_regular, read_bytes


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_refused_is_closed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    before = descriptors()
    for path, why in (
        (tmp_path, "Is a directory"),
        (pipe, "no regular file"),
        (Path("/dev/zero"), "no regular file"),
    ):
        with pytest.raises(NotRegularError, match=why), open_regular(path):
            pass
        with pytest.raises(FrameError, match=why), open_recorded(path):
            pass
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "missing")
    with pytest.raises(ValueError, match="null"):
        read_bytes(Path("a\0b"))
    assert descriptors() == before


def test_a_limit_is_inclusive(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for size in (0, 1, 10, 100_000):
        path.write_bytes(b"x" * size)
        assert (
            read_bytes(path) == read_bytes(path, size) == read_bytes(path, 1 << 40) == b"x" * size
        )
        if size:
            with pytest.raises(FileTooLargeError, match=f"has {size} bytes, more than {size - 1}"):
                read_bytes(path, size - 1)


def test_a_file_that_announces_no_size_is_read() -> None:
    """As those of /proc do."""
    path = Path("/proc/self/status")
    assert path.stat().st_size == 0
    assert b"VmRSS" in read_bytes(path, 100_000)
    with pytest.raises(FileTooLargeError, match="more than 10"):
        read_bytes(path, 10)
