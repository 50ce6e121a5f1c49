# SPDX-License-Identifier: Apache-2.0
"""The live demo end to end, small: real processes, real middleware, images, clean ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers.recordings import write_frame

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from depth_node import live
from depth_node.calibration.estimate import correction_matrix
from depth_node.config import build
from depth_node.geometry.rigid import invert_rigid, transform
from depth_node.pipeline import PipelineConfig
from depth_node.ros import demo as processes
from depth_node.ros.demo import there_and_back, turned_lidar
from depth_node.simulation.walk import T_CAMERA_LIDAR
from tests.helpers.rig import PATIENCE_S, own_domain


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[str], None]]:
    yield lambda word: None


def test_the_path_has_no_jump() -> None:
    assert [there_and_back(k, 4) for k in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert [there_and_back(k, 1) for k in range(3)] == [0, 0, 0]


def test_a_lidar_that_is_turned_needs_that_correction() -> None:
    points = np.random.default_rng(0).normal(0, 5, (100, 3)).astype(np.float32)
    turned = transform(T_CAMERA_LIDAR, turned_lidar(points, T_CAMERA_LIDAR, 2.0))
    T = correction_matrix(np.deg2rad([0, 2.0, 0, 0, 0, 0, 0])) @ T_CAMERA_LIDAR
    assert np.abs(turned - transform(T_CAMERA_LIDAR, points)).max() > 0.1
    right = transform(T @ invert_rigid(T_CAMERA_LIDAR), turned)
    np.testing.assert_allclose(right, transform(T_CAMERA_LIDAR, points), atol=1e-4)
    assert live.DemoOptions(seconds=30).knocked_at == 300, "never"
    assert live.DemoOptions(seconds=30, knock_deg=2).knocked_at == 100
    with pytest.raises(live.DemoError, match="5 degrees"):
        live.DemoOptions(knock_deg=9)


def test_no_image_goes_out_before_somebody_has_found_the_camera(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lost announcement is repeated seconds later, after all images of a short run."""
    counts = [0, 0, 1]
    camera = SimpleNamespace(get_subscription_count=lambda: counts.pop(0))
    processes.wait_for_subscriber(camera)
    assert not counts
    monkeypatch.setattr(processes, "DISCOVERY_S", 0.2)
    processes.wait_for_subscriber(SimpleNamespace(get_subscription_count=lambda: 0))  # returns


def test_no_image_goes_out_before_the_node_has_found_the_listener(tmp_path: Path) -> None:
    """The node skips images without a subscriber, so its own diagnostics must show the discovery.

    Here the node discovers the listener long after the listener has discovered the node.
    """
    rclpy.init(domain_id=own_domain())
    try:
        node = rclpy.create_node("demo_listen")
        listener = processes.Listener(node, tmp_path, keep_every=1)
        out = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        told: list[str] = []

        def tell() -> None:
            told.append("0" if len(told) < 10 else "1")
            status = DiagnosticStatus(values=[KeyValue(key="subscribers", value=told[-1])])
            out.publish(DiagnosticArray(status=[status]))

        node.create_timer(0.1, tell)
        processes.spin_until(node, listener.is_found, 0.5)
        assert told and not listener.is_found()
        processes.spin_until(node, listener.is_found, PATIENCE_S)
        assert listener.is_found()
        node.destroy_node()
    finally:
        rclpy.shutdown()


class Answers:
    """A service that may lose an answer: None, or (success of the request, state afterwards)."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, node: Any, kind: Any, service: str, request: Any, end: float) -> Any:
        self.asked.append(service.rpartition("/")[2])
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            return SimpleNamespace(current_state=SimpleNamespace(label=answer))
        return answer if answer is None else SimpleNamespace(success=answer)


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([True], ["change_state"]),
        ([None, "inactive"], ["change_state", "get_state"]),  # done, but the answer was lost
        ([None, None, False, "inactive"], ["change_state", "get_state"] * 2),
        ([None, "unconfigured", True], ["change_state", "get_state", "change_state"]),
    ],
)
def test_lost_answers_of_the_lifecycle_services_do_no_harm(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], asked: list[str]
) -> None:
    service = Answers(*answers)
    monkeypatch.setattr(processes, "call", service)
    processes.change(None, "configure", 60.0)  # type: ignore[arg-type]
    assert service.asked == asked and not service.answers


def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "call", Answers(False, "unconfigured"))
    with pytest.raises(RuntimeError, match="refuses to configure"):
        processes.change(None, "configure", 60.0)  # type: ignore[arg-type]


def test_demo_with_the_network_in_the_package(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "depth_node.cli.main", "demo", "--seconds", "4", "--rate", "1.5"),
        *("--size", "160x120", "--out", str(tmp_path), "--json", str(tmp_path / "demo.json")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "demo.json").read_text())
    assert report["published"] == 6 and 1 <= report["received"] <= 6
    assert report["worst_difference"] < 1e-5, "live and replayed depth are the same"
    methods = {row["method"]: row for row in report["summary"]}
    assert list(methods) == ["global_depth", "slf", "ssf", "field", "live"]
    assert methods["live"]["abs_rel"] == pytest.approx(methods["field"]["abs_rel"], rel=1e-4)
    assert (
        methods["live"]["abs_rel"] < methods["ssf"]["abs_rel"] < methods["global_depth"]["abs_rel"]
    )
    p50, p95, p99 = report["quantiles_ms"]["stamp to publish"]
    assert 0 < p50 <= p95 <= p99
    assert p50 <= report["quantiles_ms"]["stamp to received"][0]
    panel = cv2.imread(str(tmp_path / "demo_0_panel.png"))
    assert panel is not None and panel.shape[1] > 1500
    singles = {path.name for path in tmp_path.glob("demo_0_*.png")}
    assert len(singles) == 10
    for word in ("AbsRel", "the node, live (field)", "p99", "dropped", "one scale + shift"):
        assert word in done.stdout


def test_the_plug_of_the_lidar_is_pulled(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "depth_node.cli.main", "demo", "--seconds", "9", "--rate", "2"),
        *("--size", "160x120", "--unplug", "--out", str(tmp_path)),
        *("--json", str(tmp_path / "demo.json")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "demo.json").read_text())
    unplugged = report["unplugged"]
    assert 1 <= unplugged["images"] <= 6 and unplugged["answered"] == 1
    assert unplugged["abs_rel"] < 0.5
    assert "UNANCHORED" in unplugged["statuses"]
    assert unplugged["back_s"] is not None
    assert report["worst_difference"] < 1e-5, "with a LiDAR all is as without a pause"
    assert "LiDAR unplugged" in done.stdout


def test_a_demo_without_depth_says_why_and_shows_the_log(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    write_frame(frames / "a")
    missing = str(tmp_path / "missing.onnx")
    options = live.DemoOptions(build(PipelineConfig, {"model": {"path": missing}}))
    (tmp_path / "run").mkdir()
    with pytest.raises(live.DemoError, match=r"(?s)refuses to configure.*does not exist"):
        live.run_live(options, frames, tmp_path / "run", silent)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    frames = tmp_path / "frames"
    write_frame(frames / "a")
    (tmp_path / "run").mkdir()
    script = f"""
from contextlib import contextmanager
from pathlib import Path
from depth_node import live
@contextmanager
def progress(what, total):
    print(what, flush=True)
    yield lambda word: print(word, flush=True)
options = live.DemoOptions(seconds=60)
live.run_live(options, Path({str(frames)!r}), Path({str(tmp_path / "run")!r}), progress)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if "live: images in" in line:
            break
    children = [pid for pid in all_processes() if parent_of(pid) == process.pid]
    assert len(children) == 3
    process.send_signal(number)
    process.stdout.read()
    errors = process.stderr.read()
    assert process.wait(30) != 0
    process.stdout.close()
    process.stderr.close()
    assert "KeyboardInterrupt" in errors
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < end, "a process of the demo is still running"
        time.sleep(0.1)


def all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent_of(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])
