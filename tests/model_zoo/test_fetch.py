# SPDX-License-Identifier: Apache-2.0
"""Networks by other authors: fetching with the real huggingface_hub from a local server."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.cli import main
from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.inference import open_engine
from depth_node.model_zoo import download, fetch, registry

pytest.importorskip("onnxruntime")
pytest.importorskip("rich", reason="rich is not installed")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers import hub_server
from tests.helpers.mutation import assert_sentence, bounded, mutants, put
from tests.helpers.networks import install, model_bytes
from tests.helpers.refusals import refusal
from tests.helpers.tiny_models import save_model

# --- fetching


def test_fetch_writes_model_manifest_and_record(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path
) -> None:
    told: list[tuple[str, int, int | None]] = []
    done = fetch.fetch(ready, lambda *facts: told.append(facts))
    content = hub.files["somebody/net/onnx/model.onnx"]
    assert done.path == data / "net" / "model.onnx" and done.path.read_bytes() == content
    assert told[-1] == ("model.onnx", len(content), len(content))
    manifest = Manifest.load(manifest_path(done.path))
    assert manifest == done.manifest and manifest.name == "net"
    assert manifest.input.shape == (1, 3, 28, 42) and manifest.input.mean == (0.485, 0.456, 0.406)
    assert hub_server.COMMIT in manifest.source and manifest.patch_size == 14
    kept = done.record.files["model.onnx"]
    assert kept.sha256 == hashlib.sha256(content).hexdigest()
    assert kept.basis == "the hub's own hash" and done.record.revision == hub_server.COMMIT
    assert fetch.Record.load(data / "net") == done.record
    assert not [path for path in (data / "net").iterdir() if path.suffix == ".part"]
    assert set(hub.tokens) == {""}, "the storage server is another host and gets no token"
    assert registry.resolve("net") == done.path
    with open_engine("net") as engine:
        assert engine.manifest == manifest
    # The second time nothing is downloaded, and the user's changes of the manifest stay.
    asked = len(hub.requests)
    manifest_path(done.path).write_text(
        manifest_path(done.path).read_text().replace("interpolation: cubic", "interpolation: area")
    )
    again = fetch.fetch(ready)
    assert again.record == done.record and len(hub.requests) == asked
    assert again.manifest is not None and again.manifest.input.interpolation == "area"


def test_size_may_be_chosen_where_the_file_leaves_it_open(ready: registry.RegistryEntry) -> None:
    assert fetch.fetch(ready).manifest is not None
    other = fetch.fetch(ready, size=(42, 56)).manifest
    assert other is not None and other.input.shape == (1, 3, 42, 56)
    assert "no multiple of patch_size 14" in refusal(lambda: fetch.fetch(ready, size=(40, 56)))


def test_size_of_a_fixed_file_cannot_be_chosen(
    ready: registry.RegistryEntry, hub: hub_server.Hub, tmp_path: Path
) -> None:
    fixed = model_bytes(tmp_path, inputs={"image": [1, 3, 14, 14]})
    hub.files["somebody/net/onnx/model.onnx"] = fixed
    manifest = fetch.fetch(ready).manifest
    assert manifest is not None and manifest.input.shape == (1, 3, 14, 14)
    assert "has one size, 14x14" in refusal(lambda: fetch.fetch(ready, size=(28, 28)))


def test_several_outputs_need_a_name(
    ready: registry.RegistryEntry, hub: hub_server.Hub, tmp_path: Path, data: Path
) -> None:
    hub.files["somebody/net/onnx/model.onnx"] = model_bytes(
        tmp_path, inputs={"image": [1, 3, 14, 14]}, extra_output=True
    )
    assert "outputs features, depth" in refusal(lambda: fetch.fetch(ready))
    assert (data / "net" / "model.onnx").is_file(), "what was downloaded is not thrown away"
    manifest = fetch.fetch(ready, output_name="depth").manifest
    assert manifest is not None and manifest.output_name == "depth"


def test_weights_of_several_files(
    net: dict[str, dict[str, Any]],
    hub: hub_server.Hub,
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    net["net"].update(format="weights", files={"a b/model.safetensors": "", "config.json": ""})
    net["net"]["export"] = "python -m training export {folder} --out {onnx} --licence {licence}"
    hub.files["somebody/net/a b/model.safetensors"] = b"weights"
    hub.files["somebody/net/config.json"] = b"{}"
    install(net, tmp_path, monkeypatch)
    assert main.main(["models", "fetch", "net"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    folder = data / "net"
    command = f"python -m training export {folder} --out {folder}/net.onnx --licence Apache-2.0"
    assert command in shown
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert set(fetch.fetch(registry.find("net")).record.files) == {
        "model.safetensors",
        "config.json",
    }
    assert f"run `{command}`" in refusal(lambda: registry.resolve("net"))
    save_model(folder / "net.onnx")
    assert registry.resolve("net") == folder / "net.onnx"
    save_model(folder / "net.fp16.onnx")
    assert registry.resolve("net.fp16") == folder / "net.fp16.onnx"


def test_weights_that_only_their_maker_can_export(
    net: dict[str, dict[str, Any]],
    hub: hub_server.Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    net["net"].update(format="weights", files={"model.safetensors": ""})
    hub.files["somebody/net/model.safetensors"] = b"weights"
    install(net, tmp_path, monkeypatch)
    assert main.main(["models", "fetch", "net"]) == 0
    assert "with the package of somebody" in capsys.readouterr().out
    assert "maker's package and put the file at" in refusal(lambda: registry.resolve("net"))


def test_damaged_download_is_deleted(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path
) -> None:
    hub.damage = True
    assert "arrived damaged" in refusal(lambda: fetch.fetch(ready))
    assert not list((data / "net").glob("*model*")) and fetch.Record.load(data / "net") is None
    hub.damage = False
    assert fetch.fetch(ready).path.is_file()


def test_damage_is_found_by_the_registry_where_the_hub_says_nothing(
    net: dict[str, dict[str, Any]],
    hub: hub_server.Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = hashlib.sha256(hub.files["somebody/net/onnx/model.onnx"]).hexdigest()
    net["net"]["files"] = {"onnx/model.onnx": digest}
    install(net, tmp_path, monkeypatch)
    hub.small, hub.damage = True, True
    entry = registry.find("net")
    assert f"instead of {digest[:12]}" in refusal(lambda: fetch.fetch(entry))
    hub.damage = False
    assert fetch.fetch(entry).record.files["model.onnx"].basis == "registry"


def test_another_file_than_the_registered_one_is_not_downloaded(
    net: dict[str, dict[str, Any]],
    hub: hub_server.Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net["net"]["files"] = {"onnx/model.onnx": "a" * 64}
    install(net, tmp_path, monkeypatch)
    assert "the hub now has another" in refusal(lambda: fetch.fetch(registry.find("net")))
    assert not any("GET" in request for request in hub.requests)


@pytest.mark.slow
def test_broken_connection_is_continued(ready: registry.RegistryEntry, hub: hub_server.Hub) -> None:
    content = _large(hub)
    hub.cut_after = 11 << 20
    assert fetch.fetch(_weights(ready)).path.read_bytes() == content
    (resumed,) = hub.ranges
    assert resumed.startswith("bytes=") and int(resumed[6:].split("-")[0]) > 0


def test_download_that_was_killed_is_continued(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path
) -> None:
    """Another process is killed during the download; only the missing bytes are requested then."""
    content = _large(hub)
    hub.hold_after = 12 << 20
    script = f"""
import dataclasses
from pathlib import Path
from depth_node.model_zoo import fetch, registry
registry.REGISTRY = Path({str(registry.REGISTRY)!r})
fetch.fetch(dataclasses.replace(registry.find("net"), format="weights"))
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        assert hub.held.wait(60)
        part = _wait_for_part(data / "net")
        sentence = refusal(lambda: fetch.fetch(_weights(ready)))
        assert "another process is fetching" in sentence
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    hub.hold_after = 0
    here = part.stat().st_size
    assert here > 0
    told: list[int] = []
    done = fetch.fetch(_weights(ready), lambda name, size, total: told.append(size))
    assert done.path.read_bytes() == content
    assert hub.ranges == [f"bytes={here}-"] and told[0] == here


def _weights(entry: registry.RegistryEntry) -> registry.RegistryEntry:
    return fetch.dataclasses.replace(entry, format="weights")


def _large(hub: hub_server.Hub) -> bytes:
    """A file that is larger than what huggingface_hub writes at once."""
    content = np.random.default_rng(0).bytes(13 << 20)
    hub.files["somebody/net/onnx/model.onnx"] = content
    return content


def _wait_for_part(folder: Path) -> Path:
    for _ in range(600):
        for part in folder.glob(".*.part"):
            if part.stat().st_size:
                return part
        threading.Event().wait(0.05)
    raise AssertionError("nothing was written")


# --- failures: every error message names the cure


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "EntryNotFound", "no file onnx/model.onnx any more"),
        (404, "RevisionNotFound", "no revision main any more"),
        (401, "RepoNotFound", "no repository somebody/net"),
        (403, "GatedRepo", "hf auth login"),
        (500, "", "cannot be reached or failed"),
    ],
)
def test_answers_of_the_hub(
    ready: registry.RegistryEntry, hub: hub_server.Hub, status: int, code: str, words: str
) -> None:
    hub.errors["somebody/net/onnx/model.onnx"] = (status, code)
    assert words in refusal(lambda: fetch.fetch(ready))


def test_without_a_network_the_place_of_the_file_is_said(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    sentence = refusal(lambda: fetch.fetch(ready))
    place = data / "net" / "model.onnx"
    assert f"put {registry.HUB}/somebody/net/resolve/main/onnx/model.onnx" in sentence
    assert f"to {place} and run `depth_tools models fetch net` again" in sentence
    # The user does what the message says.
    place.write_bytes(hub.files["somebody/net/onnx/model.onnx"])
    done = fetch.fetch(ready)
    assert done.manifest is not None and manifest_path(place).is_file()
    assert done.record.files["model.onnx"].basis == "put there by hand"


def test_the_manifest_of_a_network_with_external_weights_is_kept(
    net: dict[str, dict[str, Any]], hub: hub_server.Hub, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The manifest's hash covers the weights too; the user's changes of the manifest stay."""
    model = onnx.load_from_string(hub.files["somebody/net/onnx/model.onnx"])
    weights = onnx.numpy_helper.from_array(np.ones(10, np.float32), "weights")
    model.graph.initializer.append(weights)
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, size_threshold=0,
              location="model.onnx_data")  # fmt: skip
    hub.files["somebody/net/onnx/model.onnx"] = (tmp_path / "m.onnx").read_bytes()
    hub.files["somebody/net/onnx/model.onnx_data"] = (tmp_path / "model.onnx_data").read_bytes()
    net["net"]["files"] = {"onnx/model.onnx": "", "onnx/model.onnx_data": ""}
    install(net, tmp_path, monkeypatch)
    done = fetch.fetch(registry.find("net"))
    facts = manifest_path(done.path)
    facts.write_text(facts.read_text().replace("interpolation: cubic", "interpolation: area"))
    again = fetch.fetch(registry.find("net"))
    assert again.manifest is not None and again.manifest.input.interpolation == "area"


def test_a_wrong_file_put_there_by_hand_is_refused(
    net: dict[str, dict[str, Any]], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net["net"]["files"] = {"onnx/model.onnx": "a" * 64}
    install(net, tmp_path, monkeypatch)
    (data / "net").mkdir(parents=True)
    (data / "net" / "model.onnx").write_bytes(b"something else")
    assert "delete it and fetch again" in refusal(lambda: fetch.fetch(registry.find("net")))


def test_what_is_no_onnx_is_refused(ready: registry.RegistryEntry, hub: hub_server.Hub) -> None:
    hub.files["somebody/net/onnx/model.onnx"] = b"<html>log in first</html>"
    assert "is a web page and no network" in refusal(lambda: fetch.fetch(ready))


def test_full_disk(ready: registry.RegistryEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=10))
    assert "make room, or set XDG_DATA_HOME" in refusal(lambda: fetch.fetch(ready))


def test_disk_that_fills_up_on_the_way(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path
) -> None:
    """/dev/full stands in for a full disk: it accepts no byte."""
    content = hub.files["somebody/net/onnx/model.onnx"]
    etag = hashlib.sha256(content).hexdigest()
    part = data / "net" / f".model.onnx.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    assert "cannot be stored" in refusal(lambda: fetch.fetch(ready))


# --- a server that sends something else than it announced


def endless(block: bytes = bytes(1 << 16), pause: float = 0.0) -> Iterator[bytes]:
    while True:
        yield block
        time.sleep(pause)


def packed_zeros(wbits: int) -> Iterator[bytes]:
    """A gigabyte of zeros in a megabyte."""
    pack = zlib.compressobj(wbits=wbits)
    for _ in range(1 << 10):
        yield pack.compress(bytes(1 << 20))
    yield pack.flush()


WAYS: dict[str, tuple[dict[str, str], Callable[[], Iterable[bytes]]]] = {
    "until it closes": ({}, endless),
    "in chunks": ({"Transfer-Encoding": "chunked"}, endless),
    "with a length": ({"Content-Length": str(10**12)}, endless),
    "a byte now and then": ({}, lambda: endless(b"x", 0.001)),
    "as gzip": ({"Content-Encoding": "gzip"}, lambda: packed_zeros(31)),
    "as deflate": ({"Content-Encoding": "deflate"}, lambda: packed_zeros(15)),
    "as gzip in chunks": (
        {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"},
        lambda: (block for block in packed_zeros(31) if block),
    ),
}


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_more_than_was_announced_is_neither_received_nor_kept(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path, way: str, announced: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hub.body = WAYS[way]
    if not announced:
        hub.size = None
        monkeypatch.setattr(download, "_MAX_BYTES", 500)
    largest = 0

    def watch(name: str, received: int, total: int | None) -> None:
        nonlocal largest
        largest = max(largest, received)

    sentence = refusal(lambda: fetch.fetch(ready, watch))
    assert "more comes for model.onnx than the" in sentence and "deleted" in sentence
    size = len(hub.files["somebody/net/onnx/model.onnx"]) if announced else 500
    assert str(size) in sentence and largest <= size
    assert hub.sent < 64 << 20, "the connection was closed, whatever the system had buffered"
    assert not list((data / "net").glob("*model*"))


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "\x1b[31m"])
def test_other_packings_are_refused_before_they_are_unpacked(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path, encoding: str
) -> None:
    hub.body = ({"Content-Encoding": encoding}, endless)
    sentence = refusal(lambda: fetch.fetch(ready))
    assert "sent packed" in sentence and "\x1b" not in sentence
    assert not list((data / "net").glob("*model*"))


@pytest.mark.parametrize(("encoding", "wbits"), [("gzip", 31), ("deflate", 15), ("identity", 0)])
def test_a_file_packed_on_the_way_is_the_file(
    ready: registry.RegistryEntry, hub: hub_server.Hub, encoding: str, wbits: int
) -> None:
    content = hub.files["somebody/net/onnx/model.onnx"]
    sent = content
    if wbits:
        pack = zlib.compressobj(wbits=wbits)
        sent = pack.compress(content) + pack.flush()
    hub.body = ({"Content-Encoding": encoding}, lambda: [sent[:50], sent[50:]])
    assert fetch.fetch(ready).path.read_bytes() == content


def test_a_connection_that_times_out_is_not_a_full_disk(
    ready: registry.RegistryEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: object, report: object) -> None:
        raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr(download.Download, "run", run)
    sentence = refusal(lambda: fetch.fetch(ready))
    assert "cannot be reached or failed" in sentence and "make room" not in sentence


def test_packed_garbage_is_a_sentence(ready: registry.RegistryEntry, hub: hub_server.Hub) -> None:
    hub.body = ({"Content-Encoding": "gzip"}, lambda: [b"no gzip at all"])
    assert "cannot be reached or failed" in refusal(lambda: fetch.fetch(ready))


def test_a_file_of_unknown_size_is_received_as_long_as_there_is_room(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.size = None
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=10**8))
    assert "make room" in refusal(lambda: fetch.fetch(ready))
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(data.parent.parent))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert fetch.fetch(ready).path.read_bytes() == hub.files["somebody/net/onnx/model.onnx"]


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("-1", "says that"),
        (str(10**30), "make room"),
        ("9" * 5000, ""),
        ("many", ""),
        ("0", "arrived damaged"),
    ],
)
def test_impossible_sizes(
    ready: registry.RegistryEntry, hub: hub_server.Hub, size: str, words: str
) -> None:
    hub.size = size
    if words:
        assert words in refusal(lambda: fetch.fetch(ready))
    else:  # as if none was sent
        assert fetch.fetch(ready).path.is_file()


def test_links_and_folders_in_the_way(
    ready: registry.RegistryEntry, data: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (data / "net").mkdir(parents=True)
    (data / "net" / ".lock").symlink_to(victim)
    assert "cannot be written" in refusal(lambda: fetch.fetch(ready))
    (data / "net" / ".lock").unlink()
    (data / "net" / "model.onnx").mkdir()
    assert "is no file: delete it" in refusal(lambda: fetch.fetch(ready))
    assert victim.read_text() == "precious"


def test_record_that_cannot_be_written(ready: registry.RegistryEntry, data: Path) -> None:
    (data / "net" / fetch.RECORD).mkdir(parents=True)
    assert "fetched.json cannot be written" in refusal(lambda: fetch.fetch(ready))


def test_folder_that_cannot_be_made(ready: registry.RegistryEntry, data: Path) -> None:
    data.parent.parent.mkdir(parents=True)
    data.parent.write_text("a file where the folder should be")
    assert "set XDG_DATA_HOME" in refusal(lambda: fetch.fetch(ready))


def test_without_huggingface_hub(
    ready: registry.RegistryEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    sentence = refusal(lambda: fetch.fetch(ready))
    assert "pip install huggingface_hub" in sentence and "from another machine" in sentence


def test_a_packed_file_that_ends_early_is_not_taken_for_whole() -> None:
    """If neither size nor hash were announced, only the compressed stream shows it."""
    content = np.random.default_rng(0).bytes(3 * download.BLOCK)
    packed = zlib.compress(content)
    blocks = [packed[start : start + 999] for start in range(0, len(packed), 999)]
    assert b"".join(download._unpacked(iter(blocks))) == content
    with pytest.raises(ConnectionError, match="before their end"):
        list(download._unpacked(iter(blocks[:-1])))


# --- the record


@pytest.mark.parametrize("count", [100, pytest.param(5000, marks=pytest.mark.slow)])
def test_mutants_of_a_record(ready: registry.RegistryEntry, data: Path, count: int) -> None:
    """With any damage the record is read right, or as if the file had been put there by hand."""
    fetch.fetch(ready)
    path = data / "net" / fetch.RECORD
    content = path.read_bytes()
    with bounded(seconds=30 * count / 300, megabytes=60):
        for number, mutant in mutants(content, count):
            put(path, mutant)
            record = fetch.Record.load(data / "net")
            assert record is None or all(
                type(file.bytes) is int and isinstance(file.sha256, str)
                for file in record.files.values()
            ), number
            if number % 20 == 0:
                assert fetch.verify(ready)[0].problem in (
                    "", "no hash to compare with", "DAMAGED or another version"
                )  # fmt: skip
    path.write_text("[" * 100_000)
    assert fetch.Record.load(data / "net") is None
    path.unlink()
    os.mkfifo(path)
    assert fetch.Record.load(data / "net") is None
    path.unlink()
    victim = data / "victim"
    victim.write_text("precious")
    (path.parent / f".{fetch.RECORD}.{os.getpid()}").symlink_to(victim)
    fetch.fetch(ready)
    assert fetch.Record.load(data / "net") is not None and victim.read_text() == "precious"


@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_mutants_of_a_download(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path, count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With any damage of the body, compressed or not: the right file, or an error and no file."""
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    content = hub.files["somebody/net/onnx/model.onnx"]
    pack = zlib.compressobj(wbits=31)
    forms = {"identity": content, "gzip": pack.compress(content) + pack.flush()}
    for number, mutant in mutants(b"", count):
        encoding = ("identity", "gzip")[number % 2]
        mutant = next(mutants(forms[encoding], 1, number))[1]
        hub.body = ({"Content-Encoding": encoding}, lambda body=mutant: [body])  # type: ignore[misc]
        try:
            assert fetch.fetch(ready).path.read_bytes() == content
        except fetch.FetchError as error:
            assert_sentence(error)
            assert not (data / "net" / "model.onnx").exists()
        for path in (data / "net").glob("*model*"):
            path.unlink()
        for path in (data / "net").glob(".*.part"):
            assert path.stat().st_size <= len(content)
            path.unlink()


# --- verify


def test_verify(ready: registry.RegistryEntry, data: Path) -> None:
    assert fetch.verify(ready) == []
    done = fetch.fetch(ready)
    (verdict,) = fetch.verify(ready)
    assert verdict.problem == "" and "first download" in verdict.basis
    done.path.write_bytes(done.path.read_bytes() + b" ")
    assert "DAMAGED" in fetch.verify(ready)[0].problem
    done.path.unlink()
    assert fetch.verify(ready)[0].problem == "missing"


# --- the command line


def test_commands(
    ready: registry.RegistryEntry,
    hub: hub_server.Hub,
    data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.small = True
    assert main.main(["models", "fetch", "net", "--size", "56x28"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for word in (
        "licence Apache-2.0",
        "first use",
        "no hash of this file",
        "takes 56x28",
    ):
        assert word in shown
    assert main.main(["models", "verify"]) == 0
    assert "whole" in capsys.readouterr().out
    assert main.main(["models", "list"]) == 0
    assert "model.onnx" in capsys.readouterr().out
    (data / "net" / "model.onnx").write_bytes(b"rotten")
    assert main.main(["models", "verify", "net"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "DAMAGED" in shown and f"delete {data / 'net'} and run" in shown
    assert main.main(["models", "fetch", "nett"]) == 2
    assert "did you mean net?" in capsys.readouterr().err
    assert main.main(["models", "verify", "sam-vit-base"]) == 2


@pytest.mark.slow
def test_non_commercial_licence_is_confirmed(
    net: dict[str, dict[str, Any]],
    hub: hub_server.Hub,
    tmp_path: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net["net"].update(licence="CC-BY-NC-4.0", non_commercial=True)
    install(net, tmp_path, monkeypatch)
    assert main.main(["models", "fetch", "net"]) == 2  # no terminal for the question
    error = capsys.readouterr().err
    assert "CC-BY-NC-4.0 forbids commercial use" in error and "--accept-licence" in error
    assert hub.requests == [] and not data.exists()
    for answer, status in (("n\n", 2), ("y\n", 0)):
        assert _at_a_terminal(["models", "fetch", "net"], answer) == status
    assert fetch.Record.load(data / "net") is not None
    (data / "net" / "model.onnx").unlink()
    assert main.main(["models", "fetch", "net", "--accept-licence"]) == 0


def _at_a_terminal(arguments: list[str], answer: str) -> int:
    """Exit status of depth_tools in a process whose standard input is a terminal."""
    import pty

    ours, theirs = pty.openpty()
    script = f"""
import sys
from pathlib import Path
from depth_node.cli import main
from depth_node.model_zoo import fetch, registry
registry.REGISTRY = Path({str(registry.REGISTRY)!r})
sys.exit(main.main({arguments!r}))
"""
    os.write(ours, answer.encode())
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], stdin=theirs, capture_output=True, timeout=60
        )
    finally:
        os.close(ours)
        os.close(theirs)
    return done.returncode


@pytest.mark.slow
def test_offline_mode_of_the_hub_is_a_sentence(ready: registry.RegistryEntry) -> None:
    script = f"""
import sys
from pathlib import Path
from depth_node.cli import main
from depth_node.model_zoo import fetch, registry
registry.REGISTRY = Path({str(registry.REGISTRY)!r})
sys.exit(main.main(["models", "fetch", "net"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "from another machine" in done.stderr and len(done.stderr.strip().splitlines()) == 1
