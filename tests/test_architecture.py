# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (docs/architecture.md): the source read, fresh interpreters tried."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO

PACKAGE = REPO / "depth_node"

ROS = ("rclpy", "tf2_ros", "cv_bridge", "message_filters", "launch", "launch_ros")
ROS_MESSAGES = ("_msgs", "_srvs", "_interfaces")
TRAINING_ONLY = ("torch", "torchvision", "transformers", "peft", "diffusers", "timm", "training")

# Modules that may use only arrays: no engine, no pipeline, no ROS.
CORE = {
    "prediction", "projection", "regions", "region_reuse", "masks", "fitting", "surfaces",
    "surface_maps", "compiling", "field", "field_kernels", "temporal", "metrics", "preprocess",
    "scene", "furniture", "textures", "monitor", "config", "transforms",
}  # fmt: skip
ABOVE_CORE = {
    "engine", "inference", "pipeline", "frames", "bags", "replay", "benchmark", "speed", "drawing",
    "demo", "tools", "ros", "zoo", "convert", "halving", "graphs", "parity", "screen",
    "model_tools",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Dotted names that a source file imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def top(name: str) -> str:
    return name.split(".")[0]


def within(name: str) -> str:
    """`fitting` for `depth_node.fitting.methods.fit`, empty for what is not ours."""
    parts = name.split(".")
    return parts[1] if parts[0] == "depth_node" and len(parts) > 1 else ""


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_package_imports(path: Path) -> None:
    names = imports(path)
    tops = {top(name) for name in names}
    inside = path.relative_to(PACKAGE)
    assert not tops & set(TRAINING_ONLY), "the robot's package never needs the training packages"
    if inside.parts[0] != "ros":
        ros = {t for t in tops if t in ROS or t.endswith(ROS_MESSAGES)}
        assert not ros, f"only depth_node/ros imports ROS, not {inside}: {ros}"
    if inside.as_posix() != "engine/ort.py":
        assert "onnxruntime" not in tops, "onnxruntime is imported in engine/ort.py alone"
    if inside.as_posix() != "engine/trt.py":
        assert "tensorrt" not in tops, "TensorRT is imported in engine/trt.py alone"
    if inside.as_posix() != "engine/cuda.py":
        assert "cuda" not in tops, "cuda-python is imported in engine/cuda.py alone"
    if inside.stem in CORE:
        upward = {within(name) for name in names} & ABOVE_CORE
        assert not upward, f"{inside} is core and must not know {upward}"


@pytest.mark.parametrize("path", sources(REPO / "training"), ids=lambda p: p.stem)
def test_training_imports(path: Path) -> None:
    names = imports(path)
    assert "ros" not in {within(name) for name in names}, "training never needs ROS"
    tops = {top(name) for name in names}
    if path.name not in ("models.py", "segmentation.py"):
        assert not tops & {"transformers", "timm", "peft"}, "networks come from training/models.py"
    if path.name != "diffusion.py":
        assert "diffusers" not in tops
    if path.parent.name == "recipes":
        others = {n for n in names if n.startswith("training.recipes.") and path.stem not in n}
        assert not others, f"recipes never import each other: {others}"
    if path.name not in ("loop.py", "benchmark.py"):  # the bare loop that loop.py is timed against
        calls = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert "backward" not in calls, "only training/loop.py trains"


@pytest.mark.parametrize("path", sources(REPO / "launch"), ids=lambda p: p.stem)
def test_launch_imports(path: Path) -> None:
    allowed = {"__future__", "launch", "launch_ros", "ament_index_python", "lifecycle_msgs"}
    assert {top(name) for name in imports(path)} - set(sys.stdlib_module_names) <= allowed


def test_everything_but_ros_imports_without_ros_and_training_packages() -> None:
    """A fresh interpreter in which the forbidden packages raise at import."""
    modules = [
        "depth_node." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in sources(PACKAGE)
        if path.stem != "__init__" and path.relative_to(PACKAGE).parts[0] != "ros"
    ]
    poison = ["rclpy", "sensor_msgs", "cv_bridge", "tf2_ros", "torch", "tensorrt", "onnxruntime"]
    poison.append("cuda")
    script = f"""
import sys
for name in {poison!r}:
    sys.modules[name] = None
import importlib
for name in {modules!r}:
    if not name.endswith(("engine.ort", "engine.trt", "engine.cuda")):
        importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_reads_the_world_at_import() -> None:
    """No clock, environment or file at module level: importing has no side effects to explain."""
    forbidden = {"open", "getenv", "environ", "time", "perf_counter", "now", "read_text", "load"}
    offenders = []
    for path in sources(PACKAGE):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.If):
                continue
            for node in ast.walk(statement):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in forbidden:
                    offenders.append(f"{path.relative_to(REPO)}:{node.lineno} {name}()")
    assert not offenders
