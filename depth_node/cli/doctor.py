# SPDX-License-Identifier: Apache-2.0
"""`depth_tools doctor`: report installed packages, usable back ends and missing parts."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depth_node import __version__
from depth_node.cli.arguments import ROS_CURE
from depth_node.cli.console import console, print_table, progress
from depth_node.engine import EngineError
from depth_node.engine.cache import EngineCache
from depth_node.engine.manifest import EMBEDDED
from depth_node.engine.opening import backends
from depth_node.inference import open_engine
from depth_node.model_zoo.registry import models_folder
from depth_node.sentences import one_line

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: Any) -> None:
    """Add the command `doctor`."""
    parser = commands.add_parser(
        "doctor", help="report what works on this machine, what is missing and how to install it"
    )
    parser.add_argument("--model", default=EMBEDDED, metavar="FILE")
    parser.add_argument("--manifest", default="", metavar="FILE")
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help="back end of the network (auto)"
    )
    parser.add_argument("--precision", default="file", metavar="WORD", help="file or fp16 (file)")
    parser.add_argument(
        "--listen",
        type=float,
        default=2.0,
        metavar="S",
        help="seconds to listen to the ROS graph (2)",
    )
    parser.set_defaults(run=_run_doctor)


PACKAGES = (  # module, distribution, needed for, cure
    ("numpy", "numpy", "", "pip install 'numpy>=1.26'"),
    ("scipy", "scipy", "", "pip install scipy"),
    ("cv2", "opencv-python-headless", "", "pip install opencv-python-headless"),
    ("yaml", "pyyaml", "", "pip install pyyaml"),
    ("onnxruntime", "onnxruntime", "", "pip install onnxruntime"),
    ("numba", "numba", "method field at full speed", "pip install numba"),
    ("rosbags", "rosbags", "replay of bags", "pip install rosbags"),
    ("rich", "rich", "tables and progress bars", "pip install rich"),
    ("huggingface_hub", "huggingface_hub", "models fetch", "pip install huggingface_hub"),
    ("onnx", "onnx", "models convert", "pip install onnx"),
    ("tensorrt", "tensorrt", "TensorRT engines", "see docs/engines.md"),
    ("cuda", "cuda-bindings", "TensorRT engines", "pip install cuda-python"),
)
ROS_PACKAGES = (
    ("rclpy", "ros-jazzy-rclpy", "the node", ROS_CURE),
    ("sensor_msgs", "ros-jazzy-sensor-msgs", "the node", ROS_CURE),
    (
        "tf2_ros",
        "",
        "extrinsics from TF",
        "apt install ros-$ROS_DISTRO-tf2-ros-py, or set T_camera_lidar",
    ),
)


def _run_doctor(options: argparse.Namespace) -> int:
    terminal = console(bare=True)
    faults: list[str] = []
    rows = [("python", platform.python_version(), sys.executable)]
    rows.append(("depth_node", __version__, str(Path(__file__).resolve().parent.parent)))
    packages = (*PACKAGES, *ROS_PACKAGES)
    broken = _import_errors([module for module, *_ in packages if _is_installed(module)])
    for module, distribution, purpose, cure in packages:
        needed = "needed" if not purpose else f"only for {purpose}"
        if not _is_installed(module):
            rows.append((module, "missing", f"{needed}: {cure}"))
            fault = "is missing"
        elif module in broken:
            rows.append((module, "broken", f"{needed}: {cure} (import: {broken[module]})"))
            fault = f"cannot be imported ({broken[module]})"
        else:
            rows.append((module, _version(module, distribution), ""))
            continue
        if not purpose:
            faults.append(f"{module} {fault}: {cure}")
    print_table(terminal, "Installed", ("part", "version", "note"), rows, set(), left=3)

    rows = [
        (name, "usable" if not reason else "not usable", reason)
        for name, reason in backends().items()
    ]
    settings = {"backend": options.backend, "precision": options.precision, "build": False}
    opening = f"opening {options.model}"
    try:
        with (
            progress(terminal, opening, None),
            open_engine(options.model, manifest=options.manifest or None, **settings) as engine,
        ):
            spec = engine.manifest.input
            engine.run(np.zeros(spec.shape, spec.dtype))
            rows.append((f"model {engine.manifest.name}", "runs", f"on {engine.backend}"))
            rows += [("", key, str(value)) for key, value in engine.details.items()]
    except EngineError as error:
        faults.append(str(error))
        rows.append((f"model {Path(options.model).name}", "does not run", str(error)))
    print_table(terminal, "Networks", ("part", "state", "note"), rows, set(), left=3)
    _doctor_cache(terminal)
    _doctor_folders(terminal)

    memory = _shared_memory_fault()
    if memory:  # the middleware would end this process (SIGBUS) in the middle of a table
        faults.append(memory)
    else:
        faults += _doctor_ros(terminal, options.listen)
    for sentence in faults:
        terminal.print(f"missing: {sentence}", style="red")
    if not faults:
        terminal.print("Everything that is needed is here.", style="green")
    return 1 if faults else 0


def _doctor_cache(terminal: Console) -> None:
    """List the user's cache of built engines."""
    cache = EngineCache.of("", 0)
    rows = [
        (
            one_line(entry.get("model", "?")),
            one_line(entry["key"], 12).rstrip("…"),
            one_line(f"{entry['identity']['builder']}, {entry['identity']['gpu']}"),
            one_line(f"{entry['bytes'] / 1e6:.1f} MB, {entry['built']}"),
        )
        for entry in cache.entries()
    ]
    unread = len(list(cache.folder.glob("*.engine"))) - len(rows)
    if unread > 0:
        note = f"{unread} without a JSON file that can be read: built anew when needed"
        rows.append(("?", "damaged", note, str(cache.folder)))
    if rows:
        print_table(terminal, "Built engines", ("model", "key", "for", "file"), rows, set(), left=4)


def _doctor_ros(terminal: Console, seconds: float) -> list[str]:
    try:
        from depth_node.ros.inputs import graph
        from depth_node.ros.outputs import results
    except Exception as error:  # a message package built for another Python fails in many ways
        return [f"ROS 2 cannot be used ({one_line(error)}): {ROS_CURE}"]
    names = ("ROS_DISTRO", "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY")
    rows = [("middleware", graph.middleware(), "")]
    rows += [(name, os.environ.get(name, "(not set)"), "") for name in names]
    with progress(terminal, "listening to the ROS graph", None):
        topics = graph.seen_topics(seconds)
    # The outputs of a running node are neither a camera nor a LiDAR.
    nodes = _our_nodes([topic.name for topic in topics], list(results.OUTPUTS))
    rows += [("depth_node", name, "runs; its outputs are left out here") for name in nodes]
    ours = {name + topic.removeprefix("~") for name in nodes for topic in results.OUTPUTS}
    topics = [topic for topic in topics if topic.name not in ours]
    rows += [(topic.role, topic.name, f"{topic.type}, {topic.publishers} publishing")
             for topic in topics]  # fmt: skip
    for role in graph.WANTED:
        if role not in {topic.role for topic in topics}:
            rows.append((role, "none seen", "no driver runs, or another ROS_DOMAIN_ID"))
    print_table(terminal, "ROS 2", ("part", "value", "note"), rows, set(), left=3)
    return []


def _our_nodes(names: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """Return the full names of nodes of which all outputs (such as `~/points`) are topics."""
    endings = [output.removeprefix("~") for output in outputs]
    ending = endings[0]
    candidates = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    return [node for node in candidates if all(node + other in names for other in endings)]


def _doctor_folders(terminal: Console) -> None:
    """List the folders of code (engines, networks, numba's cache) that other users can write."""
    numba = os.environ.get("NUMBA_CACHE_DIR", "")
    folders = [EngineCache.of("", 0).folder, models_folder(), *([Path(numba)] if numba else [])]
    rows = [
        (str(folder), f"others can write here, and so run code: chmod go-w {folder}")
        for folder in folders
        if folder.is_dir() and folder.stat().st_mode & 0o022
    ]
    if rows:
        print_table(terminal, "Folders", ("folder", "note"), rows, set(), left=2)


_SHARED_MEMORY = Path("/dev/shm")
_SHARED_MEMORY_MB = 64  # enough for three participants with the segments of fastdds.xml


def _shared_memory_fault() -> str:
    """Return why Fast DDS would fail for lack of shared memory, or ""."""
    try:
        free = shutil.disk_usage(_SHARED_MEMORY).free / 1e6
    except OSError as error:
        return f"{_SHARED_MEMORY} cannot be used ({error.strerror}): Fast DDS needs shared memory"
    if free >= _SHARED_MEMORY_MB:
        return ""
    return (
        f"{_SHARED_MEMORY} has only {free:.0f} MB free, and Fast DDS ends a process without a word"
        " (SIGBUS, Bus error) when it is full: stop all ROS processes and run `fastdds shm clean`,"
        f" or delete what is old in {_SHARED_MEMORY}; in a container, --shm-size 256m or --ipc host"
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # the folder it would be in is broken
        return False


_IMPORT = """
import importlib, json, os, sys
sys.path[:] = json.loads(sys.argv[1])
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for module in json.loads(sys.argv[2]):
    print(json.dumps([module, None]), file=out, flush=True)
    try:
        importlib.import_module(module)
        reason = ""
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
    print(json.dumps([module, reason]), file=out, flush=True)
"""


def _import_errors(modules: Sequence[str]) -> dict[str, str]:
    """Return why modules cannot be imported: module -> reason, only for those that fail.

    They are imported in another process: a library built for another NumPy may end the process
    that loads it.
    """
    failed: dict[str, str] = {}
    left = list(modules)
    while left:
        command = [sys.executable, "-c", _IMPORT, json.dumps(sys.path), json.dumps(left)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            shown, status = done.stdout, done.returncode
        except subprocess.TimeoutExpired as error:
            shown = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else ""
            status = -signal.SIGALRM
        answers = dict(json.loads(line) for line in shown.splitlines())
        failed |= {module: one_line(reason) for module, reason in answers.items() if reason}
        last = next((module for module, reason in answers.items() if reason is None), None)
        if last is None:
            break
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        failed[last] = "it takes minutes" if status == -signal.SIGALRM else f"it crashes: {how}"
        left = left[left.index(last) + 1 :]
    return failed


def _version(module: str, distribution: str) -> str:
    for name in (distribution, module):
        try:
            return importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return "installed"
