# SPDX-License-Identifier: Apache-2.0
"""Networks of others: the registry, and fetching by a real huggingface_hub from a real server."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.cli import main
from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.inference import open_engine
from depth_node.model_zoo import fetch, registry

pytest.importorskip("onnxruntime")
pytest.importorskip("rich", reason="rich is not installed")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers import hub_server
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
    # Again: nothing is downloaded, and what the user set in the manifest stays.
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


def test_broken_connection_is_continued(ready: registry.RegistryEntry, hub: hub_server.Hub) -> None:
    content = _large(hub)
    hub.cut_after = 11 << 20
    assert fetch.fetch(_weights(ready)).path.read_bytes() == content
    (resumed,) = hub.ranges
    assert resumed.startswith("bytes=") and int(resumed[6:].split("-")[0]) > 0


def test_download_that_was_killed_is_continued(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path
) -> None:
    """Another process is killed in the middle of it; what it had written is not asked for again."""
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
    """More than huggingface_hub writes at once."""
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


# --- what goes wrong: every sentence says what to do


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
    # ... and it is so.
    place.write_bytes(hub.files["somebody/net/onnx/model.onnx"])
    done = fetch.fetch(ready)
    assert done.manifest is not None and manifest_path(place).is_file()
    assert done.record.files["model.onnx"].basis == "put there by hand"


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
    usage = fetch.shutil.disk_usage("/")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage._replace(free=10))
    assert "make room, or set XDG_DATA_HOME" in refusal(lambda: fetch.fetch(ready))


def test_disk_that_fills_up_on_the_way(
    ready: registry.RegistryEntry, hub: hub_server.Hub, data: Path
) -> None:
    """/dev/full stands for the disk: it takes no byte."""
    content = hub.files["somebody/net/onnx/model.onnx"]
    etag = hashlib.sha256(content).hexdigest()
    part = data / "net" / f".model.onnx.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    assert "cannot be stored" in refusal(lambda: fetch.fetch(ready))


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
    assert main.main(["models", "fetch", "net"]) == 2  # nobody to ask
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
