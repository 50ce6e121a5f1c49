# SPDX-License-Identifier: Apache-2.0
"""No library that we load writes into a fresh home, or starts a thread or a socket of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO

LOOK = """
import os, socket, sys, time
from pathlib import Path

import numpy  # starts the threads of its linear algebra


def threads():
    return len(os.listdir("/proc/self/task"))


def sockets():
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [link for link in links if os.path.lexists(link) and "socket" in os.readlink(link)]


def nobody(*arguments, **options):
    raise AssertionError(f"a look-up of {arguments}")


socket.getaddrinfo = socket.gethostbyname = socket.create_connection = nobody
before = threads(), sockets()
exec(sys.argv[1])
end = time.monotonic() + 2  # a thread that has been joined may still be listed for a moment
while (after := (threads(), sockets())) != before and time.monotonic() < end:
    time.sleep(0.05)
print(after == before, before, after, os.environ.get("ORT_DISABLE_TELEMETRY"))
print(*(path for path in Path.home().rglob("*") if path.is_file()))
"""
# Threads that compute are not meant.
POOLS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
ENGINE = """
from depth_node.inference import open_engine
with open_engine("embedded", threads=1, backend="onnxruntime-cpu") as engine:
    engine.run(numpy.zeros(engine.manifest.input.shape, "float32"))
"""


def child(home: Path, script: str, **environment: str) -> list[str]:
    """Run a script in a process with a fresh home -> what it is, the files in its home."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("XDG_", "ORT_", "HF_", "NUMBA_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", LOOK, script],
        env={
            **clean,
            **dict.fromkeys(POOLS, "1"),
            "HOME": str(home),
            "PYTHONPATH": str(REPO),
            **environment,
        },
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_running_a_network_tells_nobody(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    about, files, _ = child(tmp_path, ENGINE)
    assert about.startswith("True") and about.endswith("1"), about
    assert not files


def test_a_users_own_setting_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    script = """
import depth_node.engine.ort
print(os.environ["ORT_DISABLE_TELEMETRY"])
sys.exit()  # telemetry's own threads are not waited for
"""
    about, *_ = child(tmp_path, script, ORT_DISABLE_TELEMETRY="0")
    assert about == "0"


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["cv2", "scipy.ndimage", "yaml", "numba", "rosbags.highlevel", "rich.progress", "onnx",
     "huggingface_hub.file_download"],
)  # fmt: skip
def test_importing_a_library_leaves_nothing_behind(module: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(module.split(".")[0]) is None:
        pytest.skip(f"{module} is not installed")
    about, files, _ = child(tmp_path, f"import {module}")
    assert about.startswith("True"), about
    assert not files


def test_fetching_sends_no_telemetry(tmp_path: Path) -> None:
    """huggingface_hub tells servers what else is installed here, unless it is told not to."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    script = """
from depth_node.model_zoo import fetch, registry
entry = registry.find("depth-anything-v2-small")
hub = fetch._hub(entry, entry.onnx)
assert hub.constants.HF_HUB_DISABLE_TELEMETRY
headers = hub.utils.build_hf_headers(library_name="depth_node")
assert "torch" not in headers["user-agent"], headers
"""
    _, files, _ = child(tmp_path, script)
    assert not files
