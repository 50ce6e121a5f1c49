# SPDX-License-Identifier: Apache-2.0
"""The package as colcon builds it, and facts that stand in two packaging files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from depth_node.live import free_domain
from tests.helpers import REPO

BUILT = ["package.xml", "setup.py", "setup.cfg", "resource", "depth_node", "launch", "config"]


@pytest.fixture(scope="module")
def install_space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`install/depth_node` of a real `colcon build` of this checkout."""
    pytest.importorskip("colcon_core", reason="colcon is not installed (make test installs it)")
    workspace = tmp_path_factory.mktemp("workspace")
    package = workspace / "src" / "depth_node"
    package.mkdir(parents=True)
    for name in BUILT:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, package / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, package / name)
    done = subprocess.run(
        [sys.executable, "-m", "colcon", "build", "--packages-select", "depth_node"],
        cwd=workspace,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace / "install" / "depth_node"


@pytest.mark.slow
def test_colcon_installs_what_ros_looks_for(install_space: Path) -> None:
    assert (install_space / "share/ament_index/resource_index/packages/depth_node").is_file()
    assert (install_space / "share/depth_node/package.xml").is_file()
    for folder, pattern in (("launch", "*.launch.py"), ("config", "*")):
        here = {p.name for p in (REPO / folder).glob(pattern) if p.is_file()}
        there = {p.name for p in (install_space / "share/depth_node" / folder).iterdir()}
        assert here and here <= there
    for executable in ("depth_node", "depth_tools"):
        assert os.access(install_space / "lib/depth_node" / executable, os.X_OK)
    for name in ("embedded.onnx", "embedded-small.onnx", "LICENSE.torchvision"):
        assert list(install_space.rglob(f"models/{name}")), f"{name} travels with the package"
    assert not list(install_space.rglob("training")), "training stays in the checkout"


@pytest.mark.slow
def test_installed_executable_reads_a_parameter_file(install_space: Path) -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    library = next(install_space.glob("lib/python3*/site-packages"))
    environment = {
        **os.environ,
        "PYTHONPATH": str(library),
        "ROS_DOMAIN_ID": str(free_domain(range(1, 51))),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [
            str(install_space / "lib/depth_node/depth_node"),
            "--ros-args",
            "--params-file",
            str(install_space / "share/depth_node/config/depth_node.yaml"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()  # the node says one line when it is up
        assert "depth_node" in first, first
    finally:
        process.send_signal(2)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0, first + rest
    assert "Traceback" not in first + rest


@pytest.mark.slow
def test_colcon_test_runs_the_fast_tier(install_space: Path) -> None:
    """In the workspace as it was built; some tests of it are enough here."""
    workspace = install_space.parents[1]
    tests = workspace / "src/depth_node/tests"
    tests.mkdir()
    for name in ("__init__.py", "conftest.py", "test_config.py", "test_metrics.py"):
        shutil.copy(REPO / "tests" / name, tests)
    for name in ("helpers", "ros", "training"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / "tests" / name, tests / name, ignore=ignored)
    done = subprocess.run(
        [sys.executable, "-m", "colcon", "test", "--packages-select", "depth_node",
         "--pytest-args", "-k", "test_config or test_metrics or test_worker"],
        cwd=workspace,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = ElementTree.parse(workspace / "build/depth_node/pytest.xml").getroot()
    suite = report if report.tag == "testsuite" else report.find("testsuite")
    assert suite is not None
    assert int(suite.get("tests", "0")) > 20 and suite.get("failures") == "0"
    names = {case.get("classname", "") for case in suite.iter("testcase")}
    assert not [name for name in names if ".ros." in name or ".training." in name]


def test_one_version() -> None:
    manifest = ElementTree.parse(REPO / "package.xml").getroot()
    version = manifest.findtext("version")
    assert f'version="{version}"' in (REPO / "setup.py").read_text()
    assert f'__version__ = "{version}"' in (REPO / "depth_node/__init__.py").read_text()
    assert f"\n{version} (" in (REPO / "CHANGELOG.rst").read_text()


def test_every_ros_package_imported_is_declared() -> None:
    manifest = ElementTree.parse(REPO / "package.xml").getroot()
    declared = {element.text for element in manifest.findall("exec_depend")}
    text = "\n".join(p.read_text() for p in (REPO / "depth_node/ros").rglob("*.py"))
    used = set(
        re.findall(
            r"^\s*(?:from|import) (\w+_(?:msgs|srvs|interfaces)|rclpy|tf2_ros|cv_bridge)",
            text,
            re.M,
        )
    )
    # `tf2_ros_py` brings the Python module tf2_ros; the package tf2_ros is the C++ one.
    assert used and {"tf2_ros_py" if name == "tf2_ros" else name for name in used} <= declared


def test_bloom_and_rosdep_can_read_the_manifest() -> None:
    """No key that only pip serves, none that nobody uses, and where to read and to complain."""
    manifest = ElementTree.parse(REPO / "package.xml").getroot()
    declared = {element.text or "" for element in manifest.findall("exec_depend")}
    assert not [name for name in declared if name.endswith("-pip")]
    sources = [*(REPO / "depth_node/ros").rglob("*.py"), *(REPO / "launch").glob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    packages = {name for name in declared if name.endswith(("_msgs", "_srvs", "_interfaces"))}
    unused = {name for name in packages if not re.search(rf"^from {name}\b", text, re.M)}
    assert not unused and "tf2_ros" not in declared
    assert {url.get("type") for url in manifest.findall("url")} == {
        "website", "repository", "bugtracker"
    }  # fmt: skip


def test_without_ros_the_executable_says_so_in_one_sentence() -> None:
    script = "import sys; sys.modules['rclpy'] = None\n"
    script += "from depth_node.ros.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "rclpy is missing" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_numpy_that_is_too_old_is_refused_with_its_cure(tmp_path: Path) -> None:
    metadata = tmp_path / "numpy-1.21.5.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.21.5\n")
    path = os.pathsep.join([str(tmp_path), str(REPO)])
    done = subprocess.run(
        [sys.executable, "-c", "import depth_node"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "needs NumPy 1.26 or newer, and 1.21.5 is installed: python3 -m pip" in done.stderr


def test_tests_that_pages_and_the_makefile_name_exist() -> None:
    named = {}
    pages = [REPO / "Makefile", REPO / "README.md", REPO / "CONTRIBUTING.md"]
    for page in (*pages, *(REPO / "docs").rglob("*.md")):
        for path in re.findall(r"\btests/[\w/]+(?:\.py)?", page.read_text(encoding="utf-8")):
            named[path] = page.name
    assert {path: page for path, page in named.items() if not (REPO / path).exists()} == {}


def test_each_target_of_the_makefile_is_there_once() -> None:
    text = (REPO / "Makefile").read_text(encoding="utf-8")
    phony = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    targets = re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE)
    assert sorted(targets) == sorted(" ".join(phony).split())
