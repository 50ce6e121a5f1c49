# SPDX-License-Identifier: Apache-2.0
"""`depth_tools bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depth_node.cli import main

pytest.importorskip("rich", reason="rich is not installed")
# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


def test_bench_accuracy(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "accuracy", str(source), "--prediction", "test", "--lines", "4"]
    arguments += ["--methods", "global_depth,idw,ssf", "--points", "50,250", "--seed", "0,1"]
    arguments += ["--noise", "clean,noisy", "--json", str(tmp_path / "new" / "a.json")]
    assert main.main([*arguments, "--markdown", str(tmp_path / "a.md")]) == 0
    shown = capsys.readouterr().out
    for word in ("AbsRel, mean over sources", "delta1", "RMSE", "95 %", "lines_4"):
        assert word in shown
    rows = json.loads((tmp_path / "new" / "a.json").read_text())["rows"]
    assert len(rows) == 2 * 3 * 3 * 2 * 2  # frames, methods, patterns, noises, seeds
    keys = "source frame method points pattern noise abs_rel delta1 rmse coverage95 answered ms"
    assert set(keys.split()) <= set(rows[0])
    assert "| ssf |" in (tmp_path / "a.md").read_text()
