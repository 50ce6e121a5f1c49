# SPDX-License-Identifier: Apache-2.0
"""`depth_tools doctor`: what is installed, what runs, what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from depth_node.cli import main

pytest.importorskip("rich", reason="rich is not installed")
# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


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


def test_doctor_names_what_does_not_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["doctor", "--listen", "0", "--model", str(tmp_path / "none.onnx")]) == 1
    assert "missing: model file" in " ".join(capsys.readouterr().out.split())
