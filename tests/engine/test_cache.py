# SPDX-License-Identifier: Apache-2.0
"""The cache of built engines: identity, atomic writing, one builder at a time, size."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from depth_node.engine import EngineError
from depth_node.engine.cache import EngineCache, Identity
from tests.helpers.mutation import mutants, put
from tests.helpers.refusals import refusal

IDENTITY = Identity(
    model_sha256="a" * 64,
    builder="TensorRT 10.13",
    gpu="A GPU",
    compute_capability="8.7",
    precision="as typed",
    shapes={"image": (1, 3, 8, 12)},
    options={"workspace_mb": 0},
)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines", 10**9)


def never() -> bytes:
    raise AssertionError("it was built again")


def test_what_was_built_is_found(cache: EngineCache) -> None:
    made = cache.obtain(IDENTITY, lambda: b"plan", metadata={"driver": "CUDA 13.0"})
    assert made.built and made.plan == b"plan"
    found = cache.obtain(IDENTITY, never)
    assert not found.built and found.plan == b"plan" and found.path == made.path
    about = json.loads(made.path.with_suffix(".json").read_text())
    assert about["identity"] == IDENTITY.json_values
    assert about["driver"] == "CUDA 13.0"
    assert about["bytes"] == 4 and about["built"].endswith("+00:00")
    assert cache.entries() == [about]


def test_every_part_of_the_identity_counts() -> None:
    others = {
        "model_sha256": "b" * 64,
        "builder": "TensorRT 10.14",
        "gpu": "Another",
        "compute_capability": "8.9",
        "precision": "fp16",
        "shapes": {"image": (1, 3, 16, 12)},
        "options": {"workspace_mb": 1},
    }
    assert set(others) == {item.name for item in dataclasses.fields(Identity)}
    keys = {IDENTITY.key} | {
        dataclasses.replace(IDENTITY, **{name: value}).key for name, value in others.items()
    }
    assert len(keys) == 1 + len(others)
    again = dataclasses.replace(IDENTITY, shapes={"image": (1, 3, 8, 12)})
    assert again.key == IDENTITY.key


def test_without_leave_to_build_the_command_is_named(cache: EngineCache) -> None:
    with pytest.raises(EngineError) as caught:
        cache.obtain(IDENTITY, never, may_build=False, command="depth_tools models build x.onnx")
    assert "`depth_tools models build x.onnx`" in str(caught.value)
    assert "engine.build is false" in str(caught.value)
    assert not cache.folder.exists()


def test_discarded_is_gone(cache: EngineCache) -> None:
    cache.obtain(IDENTITY, lambda: b"plan")
    cache.discard(IDENTITY)
    cache.discard(IDENTITY)
    assert cache.obtain(IDENTITY, lambda: b"new").plan == b"new"


def test_a_failed_build_leaves_no_engine(cache: EngineCache) -> None:
    def fail() -> bytes:
        raise EngineError("out of memory")

    with pytest.raises(EngineError, match="out of memory"):
        cache.obtain(IDENTITY, fail)
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".lock"]
    assert cache.obtain(IDENTITY, lambda: b"plan").built


def test_another_process_that_shrinks_the_cache_too_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is deleted after it was listed and before its size is read."""
    cache = EngineCache(tmp_path, 250)
    other = cache.obtain(dataclasses.replace(IDENTITY, gpu="Another"), lambda: b"x" * 100)
    exists = Path.exists

    def and_then_it_goes(path: Path, **options: bool) -> bool:
        found = exists(path, **options)
        if path == other.path:
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "exists", and_then_it_goes)
    assert cache.obtain(IDENTITY, lambda: b"x" * 100).built


def test_the_engine_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, 250)
    identities = [dataclasses.replace(IDENTITY, gpu=f"GPU {n}") for n in range(4)]
    for number, identity in enumerate(identities[:3]):
        entry = cache.obtain(identity, lambda: b"x" * 100)
        os.utime(entry.path, (number, number))
        if number == 1:  # used again, so it is now the most recently used
            os.utime(cache.obtain(identities[0], never).path, (9, 9))
    # The third exceeded the limit, so the second, the least recently used, was deleted.
    left = {fact["identity"]["gpu"] for fact in cache.entries()}
    assert left == {"GPU 0", "GPU 2"}
    cache.obtain(identities[3], lambda: b"x" * 1000)  # above the limit by itself, but kept
    assert [fact["identity"]["gpu"] for fact in cache.entries()] == ["GPU 3"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".engine", ".json", ".lock"}


def test_old_references_go_too(tmp_path: Path) -> None:
    old, new = tmp_path / "a.reference.npz", tmp_path / "b.reference.npz"
    for path in (old, new):
        path.write_bytes(b"x" * 100)
    os.utime(old, (1, 1))
    cache = EngineCache(tmp_path, 250)
    cache.obtain(IDENTITY, lambda: b"x" * 100)
    assert not old.exists() and new.exists()
    assert len(cache.entries()) == 1


def test_what_a_dead_process_left_is_removed(cache: EngineCache) -> None:
    cache.folder.mkdir()
    old, fresh = cache.folder / "x.engine.1.tmp", cache.folder / "y.engine.2.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.obtain(IDENTITY, lambda: b"plan")
    assert not old.exists() and fresh.exists()


def rebuilt(cache: EngineCache) -> bytes:
    return cache.obtain(IDENTITY, lambda: b"new").plan


DAMAGED_JSON = {
    "a list": "[]",
    "empty": "",
    "nothing in it": "{}",
    "a number as key": '{"key": 5}',
    "a number as identity": '{"key": "a", "identity": 5, "bytes": 1, "built": "now"}',
    "lists": '{"key": [], "identity": {"builder": [], "gpu": {}}, "bytes": "1", "built": 3}',
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "a long number": "1" * 5000,
    "no UTF-8": b"\xff\xfe\x00",
    "long": '"' + "x" * 2_000_000 + '"',
}


@pytest.mark.parametrize("kind", DAMAGED_JSON)
def test_a_damaged_json_file_is_neither_listed_nor_believed(cache: EngineCache, kind: str) -> None:
    made = cache.obtain(IDENTITY, lambda: b"plan")
    content = DAMAGED_JSON[kind]
    about = made.path.with_suffix(".json")
    about.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert cache.entries() == []
    with pytest.raises(EngineError, match=r"engine.build is false") as caught:
        cache.obtain(IDENTITY, never, may_build=False, command="build")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert cache.obtain(IDENTITY, lambda: b"new").plan == b"new"
    assert len(cache.entries()) == 1


@pytest.mark.parametrize("ending", [".json", ".engine", ".lock"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_in_the_cache(
    cache: EngineCache, tmp_path: Path, ending: str, kind: str
) -> None:
    """No hang, no traceback, and no file is written through a link."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = cache.obtain(IDENTITY, lambda: b"plan").path.with_suffix(ending)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim)
    assert len(cache.entries()) <= 1
    if kind == "folder" and ending != ".lock":  # a lock is not needed to read
        assert "engine.cache_dir" in refusal(lambda: rebuilt(cache))
    else:
        assert rebuilt(cache) in (b"new", b"plan")
    cache.discard(IDENTITY)
    other = dataclasses.replace(IDENTITY, gpu="B")
    assert EngineCache(cache.folder, 1).obtain(other, lambda: b"x").plan == b"x"
    assert victim.read_text() == "precious"


def test_the_folder_is_for_its_owner_and_temporary_names_cannot_be_guessed(
    cache: EngineCache, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    made = cache.obtain(IDENTITY, lambda: b"plan")
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert made.path.stat().st_mode & 0o077 == 0
    for target in (made.path, made.path.with_suffix(".json")):
        target.with_name(f"{target.name}.{os.getpid()}.tmp").symlink_to(victim)
        target.unlink()
    assert cache.obtain(IDENTITY, lambda: b"new").plan == b"new"
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutants_of_a_cache_entry(cache: EngineCache, count: int) -> None:
    """With any damage to its two files the cache returns the built engine or builds it again."""
    made = cache.obtain(IDENTITY, lambda: b"plan of the engine" * 20)
    paths = (made.path, made.path.with_suffix(".json"))
    whole = [path.read_bytes() for path in paths]
    for number, content in mutants(whole[1], count):
        put(paths[0], whole[0])
        put(paths[1], content)
        if number % 4 == 0:
            put(paths[0], next(mutants(whole[0], 1, number))[1])
        assert all(type(entry["key"]) is str for entry in cache.entries())
        found, reason = cache._read(IDENTITY)
        assert (found is not None and found.plan == whole[0]) or reason.isprintable(), number


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(EngineError, match=r"set engine.cache_dir to a folder"):
        EngineCache(file / "engines", 10**9).obtain(IDENTITY, lambda: b"plan")


def test_the_folder_by_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert EngineCache.of("", 1).folder == tmp_path / "depth_node" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification says: ignore it
    assert EngineCache.of("", 1).folder == Path.home() / ".cache" / "depth_node" / "engines"
    assert EngineCache.of("~/mine", 1).folder == Path.home() / "mine"


def test_two_threads_build_once(cache: EngineCache) -> None:
    built: list[int] = []
    found: list[bytes] = []

    def build() -> bytes:
        built.append(1)
        time.sleep(0.2)
        return b"plan"

    threads = [
        threading.Thread(target=lambda: found.append(cache.obtain(IDENTITY, build).plan))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"plan"] * 4 and built == [1]


BUILDER = """
import sys, time
from pathlib import Path
from depth_node.engine.cache import EngineCache, Identity
identity = Identity("m", "b", "g", "8.7", "p", {}, {})
def build():
    Path(sys.argv[2]).open("a").write("built\\n")
    time.sleep(float(sys.argv[3]))
    return b"plan"
entry = EngineCache(Path(sys.argv[1]), 10**9).obtain(identity, build)
print(entry.built, entry.plan.decode())
"""


def builder(folder: Path, log: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILDER, str(folder), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def until(log: Path, lines: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if log.is_file() and len(log.read_text().splitlines()) >= lines:
            return
        time.sleep(0.02)
    raise AssertionError("the builder did not begin")


def test_two_processes_build_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "engines", tmp_path / "log"
    first = builder(folder, log, 1.0)
    until(log, 1)
    second = builder(folder, log, 1.0)
    assert first.communicate()[0] == "True plan\n"
    assert second.communicate()[0] == "False plan\n"
    assert log.read_text() == "built\n"


def test_a_builder_that_dies_does_not_block_the_next(tmp_path: Path) -> None:
    folder, log = tmp_path / "engines", tmp_path / "log"
    first = builder(folder, log, 60.0)
    until(log, 1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = builder(folder, log, 0.0)
    assert second.communicate()[0] == "True plan\n"
    assert log.read_text() == "built\nbuilt\n"
