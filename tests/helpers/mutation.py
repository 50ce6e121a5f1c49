# SPDX-License-Identifier: Apache-2.0
"""Seeded damage to files, such as disks, editors, transfers and attackers leave."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# Text that readers fail on, inserted anywhere: YAML, JSON, numbers, control characters, encodings.
SPLICES = (
    b"", b"\0", b"\xff\xfe", b"\xc3(", "\u2028\u202e".encode(), b"\x1b[31m", b"\r\n", b"\t", b"- ",
    b": ", b"{", b"[" * 400, b"]", b"}", b"{" * 400, b'"', b"'", b"&a ", b"*a", b"<<: *a",
    b"!!int x",
    b"!!python/object:os.system ", b"!!binary x", b"!!set {a}", b"? [a]\n: b\n", b"2001-99-99",
    b"1e999", b"-1", b"0", b"9" * 500, b"9" * 5000, b"0x" + b"f" * 5000, b".nan", b"-.inf", b"NaN",
    b"null", b"~", b"true", b"1_000", b"1:2:3", b"../../etc/passwd", b"/dev/zero", b"#",
    b"%YAML 9.9\n",
    b"---\n", b"...\n", b"|\n  a\n  b\n", b"x" * 3000, b"5", b"5.0", b"[]", b"{}",
)  # fmt: skip

MUCH_MB = 50.0


def put(path: Path, content: bytes) -> None:
    """Write the content as a new file.

    A file that is truncated and rewritten is flushed to the disk at once (ext4, auto_da_alloc),
    which takes a hundred times as long.
    """
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def mutants(content: bytes, count: int, seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield (number, damaged copy) `count` times: cuts, flips, noise, moved lines, splices."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield number, _mutant(content, rng)


def _mutant(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(data) + 1))
        kind = int(rng.integers(0, 8))
        if kind == 0:
            del data[at:]
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            data[at:at] = rng.bytes(int(rng.integers(1, 20)))
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 4:
            lines = bytes(data).split(b"\n")
            one, other = rng.integers(0, len(lines), 2)
            lines[one], lines[other] = lines[other], lines[one]
            data = bytearray(b"\n".join(lines))
        elif kind == 5:  # a value of another type
            lines = bytes(data).split(b"\n")
            one = int(rng.integers(0, len(lines)))
            head, colon, _ = lines[one].partition(b":")
            lines[one] = head + colon + b" " + SPLICES[int(rng.integers(0, len(SPLICES)))]
            data = bytearray(b"\n".join(lines))
        else:
            data[at:at] = SPLICES[int(rng.integers(0, len(SPLICES)))]
    return bytes(data)


@contextmanager
def bounded(seconds: float, megabytes: float) -> Iterator[None]:
    """Fail if the block takes more processor time or memory.

    From MUCH_MB on the system's count of resident memory is used, which is coarse but costs no
    time; below, tracemalloc is exact, but the block takes three times as long.
    """
    with _resident() if megabytes >= MUCH_MB else _traced() as peak_mb:
        start = time.process_time()
        yield
        taken, peak = time.process_time() - start, peak_mb()
    assert taken < seconds and peak < megabytes, f"{taken:.1f} s, {peak:.0f} MB"


@contextmanager
def _traced() -> Iterator[Callable[[], float]]:
    """Context that gives a function for the peak of Python's memory, MB, by tracemalloc."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@contextmanager
def _resident() -> Iterator[Callable[[], float]]:
    """Context that gives a function for the peak growth of this process's resident memory, MB
    (proc(5): clear_refs, VmHWM).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:  # another system, or not permitted
        with _traced() as peak_mb:
            yield peak_mb
        return

    def kilobytes(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0])

    before = kilobytes("VmRSS")
    yield lambda: (kilobytes("VmHWM") - before) / 1e3


def assert_sentence(error: BaseException) -> None:
    """Assert that an error's text is one line, not long and without control characters."""
    text = str(error)
    assert text.isprintable() and 0 < len(text) < 2000, repr(text[:500])
