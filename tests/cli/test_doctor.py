# SPDX-License-Identifier: Apache-2.0
"""`depth_tools doctor`: what is installed, what runs, what is missing."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from depth_node.cli import doctor, main
from depth_node.engine.cache import EngineCache

# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


@functools.cache
def import_errors(*modules: str) -> dict[str, str]:
    """The real answer for the packages that are installed, asked for once."""
    return doctor_import_errors(modules)


doctor_import_errors = doctor._import_errors


@pytest.fixture
def _known_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what else the doctor says: what is installed changes in none of them."""
    monkeypatch.setattr(doctor, "_import_errors", lambda modules: import_errors(*modules))


def test_models_list_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    assert "embedded" in shown and "whole" in shown and "disparity_affine_invariant" in shown
    assert main.main(["doctor", "--listen", "0"]) == 0
    shown = capsys.readouterr().out
    for word in ("numpy", "onnxruntime-cpu", "usable", "runs", "Everything that is needed"):
        assert word in shown
    for word in ("is the reference", "not tensorrt", "no module tensorrt"):
        assert word in shown or tensorrt_is_here()


def tensorrt_is_here() -> bool:
    return importlib.util.find_spec("tensorrt") is not None


@pytest.mark.slow
@pytest.mark.usefixtures("_known_packages")
def test_doctor_shows_the_engine_its_key_and_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.helpers.gpu_on_cpu import Machine

    Machine().install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    asked = ["doctor", "--listen", "0", "--backend", "tensorrt"]
    assert main.main(asked) == 1  # it builds nothing, and names the command that does
    assert "`depth_tools models build embedded`" in capsys.readouterr().out
    assert main.main(["models", "build", "embedded"]) == 0
    built = capsys.readouterr().out
    assert main.main(asked) == 0
    shown = capsys.readouterr().out
    key = next(tmp_path.rglob("*.engine")).stem
    for word in (
        "correlation 1.000000",
        "Played GPU",
        "TensorRT 10.13.3.9",
        key[:12],
        "cuda graph",
    ):
        assert word in shown
    assert key in built and "correlation 1.000000" in built


@pytest.mark.usefixtures("_known_packages")
def test_doctor_names_what_does_not_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["doctor", "--listen", "0", "--model", str(tmp_path / "none.onnx")]) == 1
    assert "missing: model file" in " ".join(capsys.readouterr().out.split())


def test_doctor_runs_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main.main(["doctor", "--listen", "0"]) == 0
    shown = capsys.readouterr().out
    for word in ("Installed", "numpy", "onnxruntime-cpu", "Everything that is needed is here."):
        assert word in shown
    assert any(line.split()[:2] == ["rich", "missing"] for line in shown.splitlines())


def test_installed_means_that_it_can_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that raises, one that ends the process, one that prints, and one that is whole."""
    (tmp_path / "raises.py").write_text("raise OSError('libtf2.so:\\n\\x1b[31mno such file')")
    (tmp_path / "crashes.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "leaves.py").write_text("import os; os._exit(3)")
    (tmp_path / "talks.py").write_text("print('hello')")
    monkeypatch.syspath_prepend(tmp_path)
    modules = ["raises", "crashes", "talks", "leaves", "json"]
    assert doctor._import_errors(modules) == {
        "raises": r"OSError: libtf2.so: \x1b[31mno such file",
        "crashes": "it crashes: SIGSEGV",
        "leaves": "it crashes: exit status 3",
    }


def test_a_broken_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tf2_ros").mkdir()
    (tmp_path / "tf2_ros" / "__init__.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    main.main(["doctor", "--listen", "0"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "tf2_ros" in line)
    assert "broken" in line and "nothing_of_that_name" in line


@pytest.mark.usefixtures("_known_packages")
@pytest.mark.parametrize("content", ["[]", "{}", '{"key": 5}', "[" * 100_000, "\x1b[31m"])
def test_a_damaged_cache_is_said(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    folder = EngineCache.of("", 0).folder
    folder.mkdir(parents=True)
    (folder / "a.engine").write_bytes(b"plan")
    (folder / "a.json").write_text(content)
    folder.chmod(0o777)
    assert main.main(["doctor", "--listen", "0"]) == 0
    shown = capsys.readouterr().out
    assert "1 without a JSON file that can be read" in shown
    assert f"chmod go-w {folder}" in shown


@pytest.mark.usefixtures("_known_packages")
def test_full_shared_memory_is_named_before_ros_is_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    assert main.main(["doctor"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "/dev/shm has only 1 MB free" in shown and "SIGBUS" in shown and "--shm-size" in shown
    assert "listening" not in shown and "middleware" not in shown


def test_what_the_node_publishes_is_no_camera() -> None:
    outputs = ["~/depth/image_rect", "~/points", "~/fit"]
    topics = ["/camera/image", "/points", "/a/b/depth/image_rect", "/a/b/points", "/a/b/fit"]
    assert doctor._our_nodes(topics, outputs) == ["/a/b"]
    assert doctor._our_nodes(topics[:-1], outputs) == []
    assert doctor._our_nodes([], outputs) == []


def test_a_running_node_is_listed_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rclpy = pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    from depth_node.ros.outputs.results import OUTPUTS

    monkeypatch.setenv("COLUMNS", "300")
    context = rclpy.context.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("depth_here", context=context)
    try:
        publishers = [node.create_publisher(kind, topic, 1) for topic, kind in OUTPUTS.items()]
        publishers.append(node.create_publisher(next(iter(OUTPUTS.values())), "/front/image", 1))
        end = time.monotonic() + 20
        shown = ""
        while "/depth_here" not in shown and time.monotonic() < end:
            assert doctor._doctor_ros(doctor.console(), 1.0) == []
            shown = capsys.readouterr().out
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)
    assert "its outputs are left out" in shown and "/front/image" in shown
    assert "/depth_here/points" not in shown and "/depth_here/confidence" not in shown
