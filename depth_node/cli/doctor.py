# SPDX-License-Identifier: Apache-2.0
"""`depth_tools doctor`: report installed packages, usable back ends and missing parts."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
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

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: Any) -> None:
    """Add the command `doctor`."""
    parser = commands.add_parser(
        "doctor", help="report what is installed, what runs and what is missing"
    )
    parser.add_argument("--model", default=EMBEDDED, metavar="FILE")
    parser.add_argument("--manifest", default="", metavar="FILE")
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help="back end of the network (auto)"
    )
    parser.add_argument(
        "--precision", default="file", metavar="WORD", help="precision, file or fp16 (file)"
    )
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
        "apt install ros-jazzy-tf2-ros-py, or set T_camera_lidar",
    ),
    ("cv_bridge", "cv-bridge", "Bayer and YUV images", "apt install ros-jazzy-cv-bridge"),
)


def _run_doctor(options: argparse.Namespace) -> int:
    terminal = console()
    faults: list[str] = []
    rows = [("python", platform.python_version(), sys.executable)]
    rows.append(("depth_node", __version__, str(Path(__file__).resolve().parent.parent)))
    for module, distribution, purpose, cure in (*PACKAGES, *ROS_PACKAGES):
        if importlib.util.find_spec(module) is not None:
            rows.append((module, _version(module, distribution), ""))
        else:
            needed = "needed" if not purpose else f"only for {purpose}"
            rows.append((module, "missing", f"{needed}: {cure}"))
            if not purpose:
                faults.append(f"{module} is missing: {cure}")
    print_table(terminal, "Installed", ("part", "version", "note"), rows, set(), left=3)

    rows = [
        (name, "usable" if not reason else "not usable", reason)
        for name, reason in backends().items()
    ]
    settings = {"backend": options.backend, "precision": options.precision, "build": False}
    try:
        with open_engine(options.model, manifest=options.manifest or None, **settings) as engine:
            spec = engine.manifest.input
            engine.run(np.zeros(spec.shape, spec.dtype))
            rows.append((f"model {engine.manifest.name}", "runs", f"on {engine.backend}"))
            rows += [("", key, str(value)) for key, value in engine.details.items()]
    except EngineError as error:
        faults.append(str(error))
        rows.append((f"model {Path(options.model).name}", "does not run", str(error)))
    print_table(terminal, "Networks", ("part", "state", "note"), rows, set(), left=3)
    _doctor_cache(terminal)

    faults += _doctor_ros(terminal, options.listen)
    for sentence in faults:
        terminal.print(f"missing: {sentence}", style="red")
    if not faults:
        terminal.print("Everything that is needed is here.", style="green")
    return 1 if faults else 0


def _doctor_cache(terminal: Console) -> None:
    """List the user's cache of built engines."""
    rows = [
        (
            entry.get("model", "?"),
            entry["key"][:12],
            f"{entry['identity']['builder']}, {entry['identity']['gpu']}",
            f"{entry['bytes'] / 1e6:.1f} MB, {entry['built']}",
        )
        for entry in EngineCache.of("", 0).entries()
    ]
    if rows:
        print_table(terminal, "Built engines", ("model", "key", "for", "file"), rows, set(), left=4)


def _doctor_ros(terminal: Console, seconds: float) -> list[str]:
    try:
        from depth_node.ros import graph
    except ImportError as error:
        return [f"ROS 2 cannot be used ({error}): {ROS_CURE}"]
    names = ("ROS_DISTRO", "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY")
    rows = [("middleware", graph.middleware(), "")]
    rows += [(name, os.environ.get(name, "(not set)"), "") for name in names]
    with progress(terminal, "listening to the ROS graph", None):
        topics = graph.seen_topics(seconds)
    rows += [(topic.role, topic.name, f"{topic.type}, {topic.publishers} publishing")
             for topic in topics]  # fmt: skip
    for role in graph.WANTED:
        if role not in {topic.role for topic in topics}:
            rows.append((role, "none seen", "no driver runs, or another ROS_DOMAIN_ID"))
    print_table(terminal, "ROS 2", ("part", "value", "note"), rows, set(), left=3)
    return []


def _version(module: str, distribution: str) -> str:
    for name in (distribution, module):
        try:
            return importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return "installed"
