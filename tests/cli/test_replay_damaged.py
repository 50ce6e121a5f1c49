# SPDX-License-Identifier: Apache-2.0
"""`depth_tools replay` of damaged recordings: what can be used is done, and the status tells."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from depth_node.cli import main
from tests.helpers.recordings import BagWriter, write_frame

pytest.importorskip("rich", reason="rich is not installed")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write into the folder they are called in."""
    monkeypatch.chdir(tmp_path)


def replay_folder(source: Path) -> int:
    return main.main(
        ["replay", str(source), "--prediction", "test", "--points", "150", "--images", "0"]
    )


def test_broken_frames_are_left_out_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "hall"
    for name in "abcde":
        write_frame(source / name)
    assert replay_folder(source) == 0
    assert "left out" not in capsys.readouterr().out
    (source / "a" / "rgb.png").write_bytes(b"")
    (source / "d" / "intrinsics.json").write_text("[" * 100_000)
    assert replay_folder(source) == 1
    shown = capsys.readouterr().out
    assert "3 frames" in shown and "left out: 2 frames: " in shown and "a/rgb.png" in shown
    run = tmp_path / "runs" / "hall_2"
    assert json.loads((run / "summary.json").read_text())[0]["frames"] == 3
    assert "left out: 2 frames" in (run / "summary.md").read_text()
    for name in "bce":
        (source / name / "rgb.png").write_bytes(b"")
    assert replay_folder(source) == 2
    errors = capsys.readouterr().err.strip()
    assert "a/rgb.png cannot be decoded" in errors and len(errors.splitlines()) == 1


def write_bag(path: Path, topic: str = "/camera/image_raw") -> BagWriter:
    writer = BagWriter(path)
    for time_s in (1.0, 1.1):
        writer.info(time_s, topic.rpartition("/")[0] + "/camera_info")
        writer.cloud(time_s, frame="camera")
        writer.image(time_s, topic)
    return writer


def test_a_bag_with_one_message_of_zeros(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    writer = write_bag(tmp_path / "bag")
    connection = writer.connections["/camera/image_raw"]
    writer.writer.write(connection, 1_050_000_000, bytes(400))
    writer.close()
    assert main.main(["replay", str(tmp_path / "bag"), "--images", "0"]) == 1
    shown = capsys.readouterr().out
    assert "2 frames" in shown
    assert "left out: 1 images: /camera/image_raw" in shown
    assert (tmp_path / "runs" / "bag" / "summary.json").is_file()


def test_a_topic_may_look_like_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    write_bag(tmp_path / "bag", "/cam[/red]/image").close()
    assert main.main(["replay", str(tmp_path / "bag"), "--images", "0"]) == 0
    assert "/cam[/red]/image" in capsys.readouterr().out


def test_a_pipe_is_no_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    os.mkfifo(tmp_path / "x.db3")
    assert main.main(["replay", str(tmp_path / "x.db3")]) == 2
    assert "no regular file" in capsys.readouterr().err
