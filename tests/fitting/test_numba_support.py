# SPDX-License-Identifier: Apache-2.0
"""numba if it can be used, else the reason why not."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from depth_node.fitting import numba_support
from depth_node.fitting.numba_support import compiled, find_numba
from tests.helpers import REPO


@pytest.fixture
def _fresh() -> Iterator[None]:
    """Clear the look-up, which is otherwise cached for the life of a process."""
    find_numba.cache_clear()
    yield
    find_numba.cache_clear()


def double(values: np.ndarray, out: np.ndarray) -> None:
    for index in range(len(values)):
        out[index] = 2 * values[index]


def test_a_compiled_loop_gives_what_the_loop_gives() -> None:
    if find_numba()[0] is None:
        pytest.skip("numba is not installed")
    values, out = np.arange(5.0), np.zeros(5)
    compiled(double)(values, out)
    np.testing.assert_array_equal(out, 2 * values)


@pytest.mark.usefixtures("_fresh")
def test_numba_that_is_missing_or_broken_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_support, "find_spec", lambda name: None)
    assert find_numba() == (None, "numba is not installed")
    with pytest.raises(RuntimeError, match="numba is not installed"):
        compiled(double)
    find_numba.cache_clear()
    monkeypatch.setattr(numba_support, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "numba", None)
    module, reason = find_numba()
    assert module is None and "cannot be loaded" in reason


# --- the cache on disk


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of numba's, in which the loop `double` has been kept."""
    numba = find_numba()[0]
    if numba is None:
        pytest.skip("numba is not installed")
    folder = tmp_path_factory.mktemp("kept") / "numba"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "CACHE_DIR", str(folder))
        patch.setattr(numba_support, "_warned", set())
        assert runs() == 0, "there is no cache yet"
        assert runs() == 1, "the second time it is loaded"
    return folder


@pytest.fixture
def cache(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which numba now looks."""
    folder = tmp_path / "numba"
    shutil.copytree(filled, folder)
    monkeypatch.setattr(find_numba()[0].config, "CACHE_DIR", str(folder))
    monkeypatch.setattr(numba_support, "_warned", set())
    return next(folder.iterdir())


def runs(lazily: bool = False) -> int:
    """Compile and run the loop as a new process does -> how often it came out of the cache."""
    types = find_numba()[0].types
    signature = None if lazily else types.void(types.float64[::1], types.float64[::1])
    fast = compiled(double, signature)
    values, out = np.arange(5.0), np.zeros(5)
    fast(values, out)
    np.testing.assert_array_equal(out, 2 * values)
    return sum(fast.stats.cache_hits.values())  # type: ignore[attr-defined]


def file_of(cache: Path, ending: str) -> Path:
    (path,) = cache.glob(f"*.{ending}")
    return path


def flip(content: bytes) -> bytes:
    """One bit in the machine code: unpickles, and might crash or compute something else."""
    middle = max(content.rfind(b"\xc3"), len(content) // 2)  # a return instruction
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:60],
    "half": lambda content: content[: len(content) // 2],
    "noise": lambda content: np.random.default_rng(0).bytes(len(content)),
    "zeros": lambda content: bytes(len(content)),
    "zeros at the end": lambda content: content[:-400] + bytes(400),
    "a bit": flip,
    "another pickle": lambda content: b"\x80\x04N.",
}


@pytest.mark.parametrize(
    ("damage", "ending", "lazily"),
    [
        *((damage, ending, False) for damage in DAMAGES for ending in ("nbi", "nbc")),
        ("cut", "sums", False),
        ("noise", "sums", False),
        ("empty", "nbi", True),  # compiled at the first call
    ],
)
def test_a_damaged_cache_costs_a_compilation_and_a_warning(
    cache: Path, damage: str, ending: str, lazily: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_of(cache, ending)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert runs(lazily) == 0
        assert file_of(cache, "nbi").name.removesuffix(".nbi") in caplog.text
        assert len(caplog.records) == 1 and "\n" not in caplog.records[0].getMessage()
        assert runs(lazily) == 1, "the damaged file was replaced"
        assert len(caplog.records) == 1


def test_files_without_checksums_are_not_trusted(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept by an earlier version, or the power went between the files and their checksums."""
    file_of(cache, "sums").unlink()
    assert runs() == 0 and "no checksums" in caplog.text
    assert runs() == 1


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
@pytest.mark.parametrize("ending", ["nbi", "nbc", "sums"])
def test_what_is_no_file_does_not_stop_the_start(
    cache: Path, kind: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = file_of(cache, ending)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    assert runs() == 0
    assert runs() == (0 if kind == "folder" else 1)
    assert path.name.split(".")[0] in caplog.text or str(cache) in caplog.text


def test_a_folder_of_ours_is_for_us_and_one_open_to_all_is_not_used(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    before = sorted(cache.iterdir())
    assert runs() == 0 and "everybody can write" in caplog.text and "NUMBA_CACHE_DIR" in caplog.text
    assert sorted(cache.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_that_cannot_be_read(cache: Path) -> None:
    for mode in (0o000, 0o500):
        cache.chmod(mode)
        try:
            runs()
        finally:
            cache.chmod(0o700)


@pytest.mark.slow
def test_a_full_disk_costs_a_warning(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: every byte written is an OSError."""
    pytest.importorskip("numba", reason="numba is not installed")
    script = """
import logging, resource, signal
from tests.fitting.test_numba_support import runs
from depth_node.fitting import numba_support
numba_support.find_numba()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
print(runs(), runs(lazily=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPO)},
        cwd=REPO, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 0\n"
    assert done.stderr.count("make room") == 1 and "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
