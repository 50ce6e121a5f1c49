# SPDX-License-Identifier: Apache-2.0
"""`depth_tools bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from depth_node.benchmarks import calibration, obstacles
from depth_node.cli import main
from tests.helpers.recordings import T_CAMERA_LIDAR

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


def test_bench_accuracy_of_a_bag(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = " ".join(str(value) for value in T_CAMERA_LIDAR.reshape(-1))
    arguments = ["bench", "accuracy", str(bag), "--t-camera-lidar", numbers, "--points", "50"]
    outputs = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    assert main.main([*arguments, "--lines", "3", *outputs]) == 0
    shown = capsys.readouterr().out
    for word in ("1 of 3 lines measured: 2 frames", "50 points measured", "by range", "2 to 5 m"):
        assert word in shown
    assert "cannot show it" in shown.replace("\n", " ") and "too little structure" not in shown
    stored = json.loads((tmp_path / "a.json").read_text())
    assert {row["method"] for row in stored["rows"]} >= {"field", "idw", "constant"}
    assert stored["calibration"]["finding"] == "UNKNOWN"
    assert "| field |" in (tmp_path / "a.md").read_text()


def test_bench_accuracy_of_a_bag_refuses_what_it_has_not(
    bag: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["bench", "accuracy", str(bag), "--noise", "noisy"]) == 2
    assert "--noise is for folders" in capsys.readouterr().err
    assert main.main(["bench", "accuracy", str(bag), str(source)]) == 2
    assert "one rosbag2 at a time" in capsys.readouterr().err
    assert main.main(["bench", "accuracy", str(bag), "--methods", "filed"]) == 2
    assert "did you mean field" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["calibration", "--frames", "0"], "--frames is 0"),
        (["calibration", "--frames", "401"], "--frames is 401"),
        (["obstacles", "--frames", "-1"], "--frames is -1"),
        (["obstacles", "--boxes", "-2"], "--boxes is -2"),
        (["obstacles", "--terrain", "-3"], "--terrain is -3"),
    ],
)
def test_bench_refuses_numbers_of_frames_that_cannot_be(
    arguments: list[str],
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A loop through a room has 400 images: of 1000 the walk had 400, and the table said 1000."""
    monkeypatch.setattr(calibration, "study", lambda *_: [])
    monkeypatch.setattr(obstacles, "Robot", lambda: None)
    assert main.main(["bench", *arguments]) == 2
    assert cause in capsys.readouterr().err
