# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (docs/architecture.md): the source read, fresh interpreters tried.

The rules are by path: a new module is under the rule of its folder from its first line on.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import REPO

PACKAGE = REPO / "depth_node"

ROS = ("rclpy", "tf2_ros", "cv_bridge", "message_filters", "launch", "launch_ros")
ROS_MESSAGES = ("_msgs", "_srvs", "_interfaces")
TRAINING_ONLY = ("torch", "torchvision", "transformers", "peft", "diffusers", "timm", "training")

CORE = ("geometry", "regions", "fitting", "metrics", "prediction", "config", "monitor", "frame",
        "gates", "obstacles", "image_files", "regular_files", "sentences")  # fmt: skip
# What a robot's process never loads.
BENCH = ("simulation", "recordings", "visualization", "benchmarks", "live", "cli")
# Folder or module of depth_node -> what else of depth_node it may import. A folder may import
# itself; `engine.preprocess` is one module, `engine` the whole folder.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(CORE, CORE),
    "engine": CORE,
    "model_zoo": (*CORE, "engine", "simulation", "recordings.frames"),
    "model_zoo.registry": (*CORE, "engine"),
    "inference": (*CORE, "engine", "model_zoo.registry"),
    "pipeline": (*CORE, "engine", "inference"),
    "calibration": CORE,
    "simulation": CORE,
    "live": (*CORE, "pipeline", "recordings"),
    "recordings": (*CORE, "calibration", "pipeline", "visualization"),
    "visualization": (*CORE, "calibration"),
    "benchmarks": (*CORE, "calibration", "engine", "inference", "pipeline", "recordings",
                   "simulation", "live"),
    "cli": (*CORE, "engine", "inference", "pipeline", "model_zoo", "calibration", *BENCH,
            "ros", "start"),
    "start": (),
    "ros": (*CORE, "calibration", "engine", "inference", "pipeline"),
    "ros.bags": (*CORE, "calibration", "pipeline", "recordings"),
    "ros.camera_load": (*CORE, "recordings"),
    "ros.demo": (*CORE, "recordings"),
}  # fmt: skip
# One module each knows a library.
ONLY_IN = {
    "onnxruntime": "engine/ort.py",
    "tensorrt": "engine/trt.py",
    "cuda": "engine/cuda.py",
}
# Imports of our own modules inside functions: they need a package that may be missing, so they
# wait until it is wanted. (module that imports, imported module)
LAZY = {
    ("depth_node.benchmarks.gpu", "depth_node.engine.cuda"),
    ("depth_node.benchmarks.speed", "depth_node.engine.ort"),
    ("depth_node.cli.doctor", "depth_node.ros.inputs.graph"),  # rclpy
    ("depth_node.cli.doctor", "depth_node.ros.outputs.results"),
    ("depth_node.cli.layout", "depth_node.ros.outputs.layouts"),
    ("depth_node.cli.main", "depth_node.ros.parameters"),  # rclpy
    ("depth_node.cli.replay", "depth_node.ros.bags"),  # ROS message packages
    ("depth_node.cli.replay", "depth_node.ros.bags.writer"),
    ("depth_node.cli.replay", "depth_node.ros.transforms.ground"),
    ("depth_node.engine.opening", "depth_node.engine.ort"),
    ("depth_node.engine.opening", "depth_node.engine.trt"),
    ("depth_node.engine.manifest_writer", "depth_node.engine.ort"),
    ("depth_node.engine.refinement", "depth_node.engine.ort"),
    ("depth_node.engine.self_check", "depth_node.engine.ort"),
    ("depth_node.model_zoo.convert", "depth_node.engine.ort"),
    ("depth_node.ros.main", "depth_node.ros.cameras"),  # rclpy
    ("depth_node.ros.main", "depth_node.ros.node"),
    ("depth_node.model_zoo.fetch", "depth_node.engine.ort"),
}
TRAINING_LIBRARIES = {  # library -> folders and files of training/ that may import it
    "transformers": ("models", "export"),
    "timm": ("models", "export"),
    "peft": ("models",),
    "diffusers": ("models",),
}
TRAINS = ("loop.py", "tools/benchmark.py")  # the second times a bare loop against the first
# Of depth_node, what training/ may import; studies and tools judge, so they see more.
TRAINING_MAY = (*CORE, "engine", "inference", "pipeline", "model_zoo", "simulation", "recordings",
                "visualization", "cli.console", "start")  # fmt: skip
STUDIES_MAY = (*TRAINING_MAY, "benchmarks")


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


OURS = {module_name(path): path for path in sources(PACKAGE, REPO / "training")}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(dotted name of a module or of what is imported from it, whether inside a function)."""

    def below(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: absolute imports only"
                for alias in child.names:
                    submodule = f"{child.module}.{alias.name}"
                    yield (submodule if submodule in OURS else str(child.module)), inside
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from below(child, inside or function)

    return tuple(below(parsed(path), False))


def top(name: str) -> str:
    return name.split(".")[0]


def tops(path: Path) -> set[str]:
    return {top(name) for name, _ in imports(path)}


def within(name: str) -> str:
    """`fitting.methods` for `depth_node.fitting.methods`, empty for what is not ours."""
    return name.partition(".")[2] if top(name) == "depth_node" else ""


def covers(rule: str, name: str) -> bool:
    return name == rule or name.startswith(f"{rule}.")


def rule_of(name: str) -> str:
    """The longest key of MAY_IMPORT that covers a module."""
    return max((rule for rule in MAY_IMPORT if covers(rule, name)), key=len, default="")


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@pytest.mark.parametrize("path", sources(PACKAGE), ids=relative)
def test_package_imports(path: Path) -> None:
    assert not tops(path) & set(TRAINING_ONLY), "the robot's package never needs training packages"
    inside = path.relative_to(PACKAGE)
    if inside.parts[0] != "ros":
        ros = {t for t in tops(path) if t in ROS or t.endswith(ROS_MESSAGES)}
        assert not ros, f"only depth_node/ros imports ROS, not {inside}: {ros}"
    for library, home in ONLY_IN.items():
        assert inside.as_posix() == home or library not in tops(path), f"{library}: only in {home}"
    name = within(module_name(path))
    if not name:
        return
    rule = rule_of(name)
    assert rule, f"{inside} is under no rule: docs/architecture.md says which folder it belongs to"
    for imported, _ in imports(path):
        other = within(imported)
        if other and not covers(rule.split(".")[0], other):
            allowed = any(covers(each, other) for each in MAY_IMPORT[rule])
            assert allowed, f"{inside} must not import {imported}: {rule} may use"
            f" {', '.join(MAY_IMPORT[rule])}"


@pytest.mark.parametrize("path", sources(REPO / "training"), ids=relative)
def test_training_imports(path: Path) -> None:
    inside = path.relative_to(REPO / "training")
    study = inside.parts[0] in ("studies", "tools")
    for imported, _ in imports(path):
        other = within(imported)
        if other:
            may = STUDIES_MAY if study else TRAINING_MAY
            assert any(covers(each, other) for each in may), f"{inside} must not import {imported}"
        if imported.startswith("training.studies"):
            assert inside.parts[0] in ("studies", "__main__.py"), f"{inside} imports a study"
        if inside.parts[0] == "recipes" and imported.startswith("training.recipes."):
            assert imported == module_name(path), f"recipes never import each other: {imported}"
    for library, rooms in TRAINING_LIBRARIES.items():
        assert library not in tops(path) or inside.parts[0] in rooms, f"{inside}: {library}"
    if inside.as_posix() not in TRAINS:
        calls = {
            node.func.attr
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert "backward" not in calls, "only training/loop.py trains"


def test_no_module_imports_itself_through_others() -> None:
    """No circle, those through imports inside functions included."""
    graph = {
        name: {other for other, _ in imports(path) if other in OURS and other != name}
        for name, path in OURS.items()
    }
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        state[name] = 1
        for other in sorted(graph[name]):
            assert state.get(other) != 1, f"a circle: {' -> '.join((*trail, name, other))}"
            if other not in state:
                visit(other, (*trail, name))
        state[name] = 2

    for name in sorted(graph):
        if name not in state:
            visit(name, ())


def test_own_modules_are_imported_at_the_top_but_for_optional_packages() -> None:
    lazy = {
        (module_name(path), name)
        for path in OURS.values()
        for name, inside in imports(path)
        if inside and name in OURS and top(module_name(path)) == "depth_node"
    }
    assert lazy - LAZY == set(), "import it at the top, or say here which package may be missing"
    assert LAZY - lazy == set(), "no longer imported inside a function: take it off the list"


@pytest.mark.parametrize("path", sources(REPO / "launch"), ids=relative)
def test_launch_imports(path: Path) -> None:
    allowed = {"__future__", "launch", "launch_ros", "ament_index_python", "lifecycle_msgs"}
    assert tops(path) - set(sys.stdlib_module_names) <= allowed


def python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_but_ros_imports_without_ros_and_training_packages() -> None:
    """A fresh interpreter in which the forbidden packages raise at import."""
    modules = [
        name for name in OURS if top(name) == "depth_node" and not within(name).startswith("ros")
    ] + ["depth_node.ros.main"]
    poison = ["rclpy", "sensor_msgs", "cv_bridge", "tf2_ros", "torch", "tensorrt", "onnxruntime"]
    poison.append("cuda")
    python(f"""
import sys
for name in {poison!r}:
    sys.modules[name] = None
import importlib
for name in {modules!r}:
    if not name.endswith(("engine.ort", "engine.trt", "engine.cuda")):
        importlib.import_module(name)
""")


def test_the_nodes_process_loads_nothing_of_the_bench() -> None:
    """A robot's process holds no renderer, no recordings, no drawing, no benchmark."""
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    loaded = python("""
import sys
import rclpy
from depth_node.ros.node import DepthNode
rclpy.init()
node = DepthNode()
node.on_configure(None)
node.destroy_node()
rclpy.shutdown()
print(*(name for name in sys.modules if name.startswith("depth_node.")))
""").split()
    assert "depth_node.pipeline" in loaded, "the node was not loaded at all"
    bench = {name for name in loaded if within(name).split(".")[0] in BENCH}
    assert not bench


def test_nothing_reads_the_world_at_import() -> None:
    """No clock, environment or file at module level: importing has no side effects to explain."""
    forbidden = {"open", "getenv", "environ", "time", "perf_counter", "now", "read_text", "load"}
    offenders = []
    for path in sources(PACKAGE):
        for statement in parsed(path).body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.If):
                continue
            for node in ast.walk(statement):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in forbidden:
                    offenders.append(f"{relative(path)}:{node.lineno} {name}()")
    assert not offenders


def test_the_node_keeps_no_exception() -> None:
    """One that is kept holds, by its traceback, the locals of all that called where it was raised:
    image, points and depth of a frame, until the garbage collector comes by."""
    offenders = []
    for path in sources(PACKAGE / "ros"):
        for handler in ast.walk(parsed(path)):
            if not isinstance(handler, ast.ExceptHandler) or handler.name is None:
                continue
            for statement in ast.walk(handler):
                value = getattr(statement, "value", None)
                if not isinstance(statement, ast.Assign | ast.AnnAssign) or value is None:
                    continue
                kept = value.values if isinstance(value, ast.BoolOp) else [value]
                if any(isinstance(part, ast.Name) and part.id == handler.name for part in kept):
                    offenders.append(f"{relative(path)}:{statement.lineno}")
    assert not offenders
