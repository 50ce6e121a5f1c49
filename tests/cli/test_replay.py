# SPDX-License-Identifier: Apache-2.0
"""`depth_tools replay`: folders of frames and bags, into a run folder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from depth_node.cli import main
from depth_node.recordings import replay
from tests.helpers.recordings import T_CAMERA_LIDAR

pytest.importorskip("rich", reason="rich is not installed")
# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


def test_replay_of_a_folder(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["replay", str(source), "--prediction", "test", "--points", "150", "--seed", "1"]
    arguments += ["--out", str(tmp_path / "run"), "--json", str(tmp_path / "all.json")]
    assert main.main([*arguments, "--images", "1", "--set", "fit.mode=paper"]) == 0
    shown = capsys.readouterr().out
    for word in ("2 frames", "AbsRel", "global_depth", "ssf", "field", "run folder"):
        assert word in shown
    stored = json.loads((tmp_path / "all.json").read_text())
    assert len(stored["rows"]) == 10 and stored["run"]["seed"] == 1
    assert "mode: paper" in (tmp_path / "run" / "config.yaml").read_text()
    assert len(list((tmp_path / "run" / "images").iterdir())) == 1


def test_replay_of_a_bag(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = " ".join(str(value) for value in T_CAMERA_LIDAR.reshape(-1))
    assert main.main(["replay", str(bag), "--t-camera-lidar", numbers, "--images", "0"]) == 0
    shown = capsys.readouterr().out
    assert "topics: /camera/image_raw, /camera/camera_info, /lidar/points" in shown
    assert "2 frames" in shown
    facts = json.loads((tmp_path / "runs" / "bag" / "run.json").read_text())
    assert facts["topics"]["points"] == "/lidar/points"


@pytest.mark.parametrize("option", ["--stored-regions", "--prediction=test"])
def test_what_only_folders_have_is_refused_for_a_bag(
    bag: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["replay", str(bag), option]) == 2
    assert f"{option.partition('=')[0]} is for folders of frames" in capsys.readouterr().err


def test_frames_of_one_name_in_two_sources_keep_their_own_depth(
    source: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    for name in ("hall", "yard"):
        shutil.copytree(source, both / name)
    arguments = ["replay", str(both), "--prediction", "test", "--images", "0", "--save-depth"]
    assert main.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert sorted(path.name for path in (tmp_path / "run" / "depth").iterdir()) == [
        "hall_a.npz",
        "hall_b.npz",
        "yard_a.npz",
        "yard_b.npz",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_ended_leaves_no_unfinished_bag(
    source: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """`timeout`, `docker stop` and service managers end programs with SIGTERM."""
    many = tmp_path / "many"
    for number_of_copy in range(100):
        shutil.copytree(source, many / f"hall_{number_of_copy:03d}")
    words = ["replay", str(many), "--prediction", "test", "--images", "0", "--out-bag", "x.mcap"]
    process = subprocess.Popen(
        [sys.executable, "-m", "depth_node.cli.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    rows = tmp_path / "runs" / "many" / "frames.jsonl"
    while not (rows.is_file() and rows.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert errors == "depth_tools: interrupted\n"
    assert process.returncode in (130, -signal.SIGINT)  # the same to a shell
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "runs"]


def test_results_as_a_bag_beside_the_input(bag: Path, tmp_path: Path) -> None:
    """Same stamps, frames and times of recording as the images of the input."""
    from rosbags.highlevel import AnyReader

    numbers = " ".join(str(value) for value in T_CAMERA_LIDAR.reshape(-1))
    arguments = ["replay", str(bag), "--t-camera-lidar", numbers, "--images", "0"]
    out = tmp_path / "out" / "result.mcap"
    assert main.main([*arguments, "--hold-out", "0", "--out-bag", str(out)]) == 0
    with AnyReader([out]) as reader:
        topic = "/depth_node/depth/image_rect"
        found = [
            (recorded_ns, reader.deserialize(raw, connection.msgtype))
            for connection, recorded_ns, raw in reader.messages()
            if connection.topic == topic
        ]
    assert [recorded_ns for recorded_ns, _ in found] == [1_000_000_000, 1_100_000_000]
    for recorded_ns, message in found:
        stamp = message.header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == recorded_ns
        assert message.header.frame_id == "camera"
    assert main.main([*arguments, "--out-bag", str(out)]) == 2, "never overwritten"


def test_obstacles_of_a_recording(
    bag: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rosbags.highlevel import AnyReader

    numbers = " ".join(str(value) for value in T_CAMERA_LIDAR.reshape(-1))
    arguments = ["replay", str(bag), "--t-camera-lidar", numbers, "--images", "0"]
    out = tmp_path / "a.mcap"
    height = ["--obstacles", "camera_height_m=0.5", "--obstacles", "max_range_m=20"]
    assert main.main([*arguments, *height, "--out-bag", str(out)]) == 0
    with AnyReader([out]) as reader:
        assert sum(c.topic == "/depth_node/obstacles" for c, _, _ in reader.messages()) == 2
    capsys.readouterr()
    base = ["--obstacles", "base_frame=base_link"]
    assert main.main([*arguments, *base, "--out-bag", str(tmp_path / "b.mcap")]) == 0
    assert "TF does not tell where the ground is" in capsys.readouterr().out
    assert main.main([*arguments, *height]) == 2
    assert "--out-bag" in capsys.readouterr().err
    folder = ["replay", str(source), "--prediction", "test", "--points", "50", *base]
    assert main.main([*folder, "--out-bag", str(tmp_path / "c.mcap")]) == 2
    assert "camera_height_m" in capsys.readouterr().err


@pytest.mark.parametrize("which", [["--points", "50"], ["--lines", "2"]])
def test_lines_and_points_of_a_bag(bag: Path, tmp_path: Path, which: list[str]) -> None:
    numbers = " ".join(str(value) for value in T_CAMERA_LIDAR.reshape(-1))
    arguments = ["replay", str(bag), "--t-camera-lidar", numbers, "--images", "0", *which]
    assert main.main([*arguments, "--json", str(tmp_path / "all.json")]) == 0
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert all(row["scored_pixels"] > 100 for row in rows)
    if which[0] == "--points":
        assert all(row["points"] == 50 for row in rows)
    else:
        assert all(100 < row["points"] < 300 for row in rows), "about half of 414"


def test_bag_without_extrinsics_and_with_wrong_ones(
    bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["replay", str(bag)]) == 2
    assert "--t-camera-lidar" in capsys.readouterr().err
    assert main.main(["replay", str(bag), "--t-camera-lidar", "1 2 3"]) == 2
    assert "16 numbers" in capsys.readouterr().err


@pytest.mark.slow
def test_region_methods_beat_global_ones_on_real_frames(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The road with the network in the package, desks with a real network and 250 points."""
    model = shared / "models" / "fastdepth_nyu_224.onnx"
    place = str(tmp_path / "fastdepth.manifest.yaml")
    manifest = ["models", "manifest", str(model), "--meaning", "depth_metric", "--out", place]
    assert main.main(manifest) == 0
    desks = ["--model", str(model), "--manifest", place, "--points", "250"]
    for name, options in (("opencalib_road", []), ("tum_rgbd", desks)):
        found = tmp_path / f"{name}.json"
        arguments = ["replay", str(shared / "data" / name), *options, "--json", str(found)]
        assert main.main([*arguments, "--out", str(tmp_path / name), "--images", "1"]) == 0
        summary = {row["method"]: row for row in json.loads(found.read_text())["summary"]}
        for method in ("slf", "ssf"):
            for rival in ("global_depth", "global_disparity"):
                assert summary[method]["abs_rel"] < summary[rival]["abs_rel"], (name, method)
                assert summary[method]["delta1"] > summary[rival]["delta1"], (name, method)


def test_interrupt_ends_quietly(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replay, "replay", interrupt)
    arguments = ["replay", str(source), "--prediction", "test", "--points", "9"]
    assert main.main(arguments) == 130
    assert "interrupted" in capsys.readouterr().err
