# SPDX-License-Identifier: Apache-2.0
"""The launch file, where launch_ros is installed: it comes with apt's ROS 2, not from PyPI."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch_ros comes with apt's ROS 2, not from PyPI")

import rclpy
import rclpy.node
from launch import LaunchContext
from launch.actions import DeclareLaunchArgument
from launch.launch_description_sources import get_launch_description_from_python_launch_file

from depth_node.ros.node import OUTPUTS
from tests.helpers.rig import IDENTITY, PATIENCE_S, Services, Spinner, own_domain, until

# What `ros2 launch` does, without needing ros2cli.
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
arguments = [text.split(":=", 1) for text in sys.argv[2:]]
source = PythonLaunchDescriptionSource(sys.argv[1])
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
)
sys.exit(service.run())
"""


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An ament prefix in which the package of this checkout is installed."""
    marker = tmp_path / "share/ament_index/resource_index/packages/depth_node"
    marker.parent.mkdir(parents=True)
    marker.touch()
    (tmp_path / "lib/depth_node").mkdir(parents=True)
    for name, module in (("depth_node", "node"), ("depth_cameras", "cameras")):
        executable = tmp_path / "lib/depth_node" / name
        executable.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -m depth_node.ros.{module} "$@"\n'
        )
        executable.chmod(0o755)
    return tmp_path


def test_the_arguments(repo: Path) -> None:
    path = str(repo / "launch/depth_node.launch.py")
    description = get_launch_description_from_python_launch_file(path)
    declared = {
        entity.name: entity
        for entity in description.entities
        if isinstance(entity, DeclareLaunchArgument)
    }
    promised = {"params_file", "namespace", "autostart", "model", "method", "use_sim_time"}
    assert promised | {"image", "camera_info", "points", "scan"} <= set(declared)
    context = LaunchContext()
    for name, argument in declared.items():
        assert argument.description
        if name in ("model", "method", "use_sim_time"):
            assert not "".join(part.perform(context) for part in argument.default_value or [])


class Launch:
    """A launch file in a process of its own, with what it printed."""

    def __init__(self, path: Path, prefix: Path, *arguments: str) -> None:
        paths = [str(prefix), *filter(None, [os.environ.get("AMENT_PREFIX_PATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(path), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "AMENT_PREFIX_PATH": os.pathsep.join(paths),
                "PATH": os.pathsep.join([str(prefix / "bin"), os.environ["PATH"]]),
                "ROS_DOMAIN_ID": str(own_domain()),
                "PYTHONUNBUFFERED": "1",
            },
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        self._reader = threading.Thread(
            target=lambda: self.lines.extend(self.process.stdout or ()), daemon=True
        )
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def said(self, words: str, times: int = 1) -> None:
        try:
            until(lambda: self.output.count(words) >= times, PATIENCE_S, repr(words))
        except AssertionError as error:
            raise AssertionError(f"{error}; it printed:\n{self.output}") from None

    def end(self, number: int | None = signal.SIGINT) -> int:
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE_S)
        self._reader.join(5)
        return status

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def parameters(prefix: Path) -> Path:
    path = prefix / "parameters.yaml"
    path.write_text(f"/**:\n  ros__parameters:\n    T_camera_lidar: {IDENTITY}\n")
    return path


@pytest.mark.parametrize("autostart", [True, False])
def test_the_node_comes_up_and_goes_down(
    repo: Path, prefix: Path, network: Path, parameters: Path, autostart: bool
) -> None:
    with Launch(
        repo / "launch/depth_node.launch.py",
        prefix,
        *(f"params_file:={parameters}", f"model:={network}", "method:=slf"),
        *("namespace:=robot", f"autostart:={str(autostart).lower()}"),
    ) as launch:
        launch.said("depth_node is active" if autostart else "depth_node is up and unconfigured")
        assert launch.end() == 0, launch.output
    assert "Traceback" not in launch.output
    assert "process has finished cleanly" in launch.output
    configured = "configured: tiny on onnxruntime-cpu, fit slf" in launch.output
    assert configured == autostart


def test_autostart_acts_once(repo: Path, prefix: Path, network: Path, parameters: Path) -> None:
    """After a manual cleanup and configure, the node is activated manually too."""
    path = repo / "launch/depth_node.launch.py"
    context = rclpy.Context()
    with Launch(path, prefix, f"params_file:={parameters}", f"model:={network}") as launch:
        launch.said("depth_node is active")
        rclpy.init(context=context, domain_id=own_domain())
        peer = rclpy.node.Node("peer", context=context)
        spinner = Spinner(peer, context)
        services = Services(peer)
        try:
            for transition in ("deactivate", "cleanup", "configure"):
                assert services.change(transition), launch.output
            time.sleep(1.0)
            assert services.state() == "inactive"
            assert services.change("activate")
        finally:
            spinner.end()
            peer.destroy_node()
            rclpy.shutdown(context=context)
        assert launch.end() == 0, launch.output


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("params_file:=/nope.yaml", "there is no file /nope.yaml"),
        ("autostart:=maybe", "say true or false"),
        ("rviz:=perhaps", "say true or false"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    repo: Path, prefix: Path, parameters: Path, argument: str, words: str
) -> None:
    given = [argument]
    if not argument.startswith("params_file"):
        given.append(f"params_file:={parameters}")
    with Launch(repo / "launch/depth_node.launch.py", prefix, *given) as launch:
        assert launch.end(None) != 0
    assert words in launch.output
    assert "unconfigured" not in launch.output, "the node was not started"


def test_depth_and_its_camera_info_move_together(repo: Path) -> None:
    module = runpy.run_path(str(repo / "launch/depth_node.launch.py"))
    given = dict.fromkeys(module["ARGUMENTS"], "")
    given |= {"depth": "/cam/depth/image_rect", "points": "/lidar/points", "namespace": "robot"}
    moved = dict(module["remappings"](given))
    assert moved["~/depth/image_rect"] == "/cam/depth/image_rect"
    assert moved["~/depth/camera_info"] == "/cam/depth/camera_info"
    assert moved["~/depth/image"] == "/cam/depth/image"
    for own in ("image", "image_rect"):
        assert moved[f"~/depth/{own}/compressedDepth"] == f"/cam/depth/{own}/compressedDepth"
    assert {own for own in OUTPUTS if own.startswith("~/depth/")} <= set(moved), "all move"
    assert moved["points"] == "/lidar/points"
    given["depth"] = "depth"
    assert dict(module["remappings"](given))["~/depth/image"] == "depth_unrectified"
    assert dict(module["remappings"](given))["~/depth/camera_info"] == "camera_info"
    given["depth"] = "/camera_rect/depth"
    assert dict(module["remappings"](given))["~/depth/image"] == "/camera_rect/depth_unrectified"
    given["depth"] = "/camera_rect/image_rect"
    assert dict(module["remappings"](given))["~/depth/image"] == "/camera_rect/image"
    shown = module["rviz"]({**given, "depth": "/cam/depth/image_rect"})
    context = LaunchContext()
    pairs = {
        "".join(part.perform(context) for part in own): "".join(
            part.perform(context) for part in to
        )
        for own, to in shown._Node__remappings
    }
    assert pairs["/points"] == "/lidar/points"
    assert pairs["/depth_node/points"] == "/robot/depth_node/points"
    assert pairs["/depth_node/depth/image_rect"] == "/cam/depth/image_rect"


# --- several cameras ------------------------------------------------------------------------------


@pytest.mark.parametrize("autostart", [True, False])
def test_several_cameras_come_up_and_go_down(
    repo: Path, prefix: Path, network: Path, autostart: bool
) -> None:
    """The package's own file; what the launch file adds reaches every camera."""
    with Launch(
        repo / "launch/multi_camera.launch.py",
        prefix,
        *(f"params_file:={repo / 'config/multi_camera.yaml'}", f"model:={network}"),
        *("method:=slf", "namespace:=robot", f"autostart:={str(autostart).lower()}"),
    ) as launch:
        launch.said("is up and unconfigured", 2)
        if autostart:
            launch.said("configured: tiny on onnxruntime-cpu, fit slf", 2)
        assert launch.end() == 0, launch.output
    assert "robot.front.depth_node" in launch.output and "robot.left.depth_node" in launch.output
    assert "process has finished cleanly" in launch.output
    assert "Traceback" not in launch.output and "unknown parameter" not in launch.output
    assert ("configured: tiny" in launch.output) == autostart


@pytest.mark.parametrize(
    ("argument", "words"),
    [("params_file:=/nope.yaml", "there is no file"), ("autostart:=maybe", "say true or false")],
)
def test_arguments_that_cannot_be_are_refused_for_several_cameras(
    repo: Path, prefix: Path, argument: str, words: str
) -> None:
    given = [argument, f"params_file:={repo / 'config/multi_camera.yaml'}"]
    with Launch(
        repo / "launch/multi_camera.launch.py", prefix, *given[: 1 + (words[0] == "s")]
    ) as launch:
        assert launch.end(None) != 0
    assert words in launch.output and "unconfigured" not in launch.output


# --- replay --------------------------------------------------------------------------------------


@pytest.fixture
def played(repo: Path, prefix: Path) -> Path:
    """The file in which a stand-in for `ros2` (which has no wheel) writes its arguments."""
    (prefix / "share/depth_node").mkdir(parents=True)
    (prefix / "share/depth_node/launch").symlink_to(repo / "launch")
    (prefix / "bin").mkdir()
    calls = prefix / "calls"
    ros2 = prefix / "bin/ros2"
    ros2.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    ros2.chmod(0o755)
    return calls


def test_a_bag_is_played_when_the_node_is_active(
    repo: Path, prefix: Path, played: Path, network: Path, parameters: Path
) -> None:
    with Launch(
        repo / "launch/replay.launch.py",
        prefix,
        *("bag:=/data/run", f"params_file:={parameters}", f"model:={network}"),
    ) as launch:
        assert launch.end(None) == 0, launch.output
    assert "depth_node is active" in launch.output
    assert played.read_text() == "bag play /data/run --clock --rate 1.0 --delay 1.0\n"


def test_a_bag_is_not_played_to_a_node_that_cannot_be_configured(
    repo: Path, prefix: Path, played: Path, parameters: Path
) -> None:
    with Launch(
        repo / "launch/replay.launch.py",
        prefix,
        *("bag:=/data/run", f"params_file:={parameters}", "model:=/nope.onnx"),
    ) as launch:
        launch.end(None)
    assert "cannot be configured" in launch.output
    assert not played.exists()


@pytest.mark.parametrize("argument", ["loop:=maybe", "rate:=fast", "rate:=0", "start_delay:=-1"])
def test_words_that_mean_nothing_are_refused_by_the_replay(
    repo: Path, prefix: Path, played: Path, argument: str
) -> None:
    with Launch(repo / "launch/replay.launch.py", prefix, "bag:=/data/run", argument) as launch:
        assert launch.end(None) != 0
    assert f"launch argument {argument.partition(':=')[0]} is" in launch.output
    assert not played.exists()
