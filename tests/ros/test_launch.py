# SPDX-License-Identifier: Apache-2.0
"""The launch file, where launch_ros is installed: it comes with apt's ROS 2, not from PyPI."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="launch_ros comes with apt's ROS 2, not from PyPI")

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument
from launch.launch_description_sources import get_launch_description_from_python_launch_file

from tests.helpers.rig import IDENTITY, PATIENCE_S, own_domain, until

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
    executable = tmp_path / "lib/depth_node/depth_node"
    executable.parent.mkdir(parents=True)
    executable.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m depth_node.ros.node "$@"\n')
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


@pytest.mark.parametrize("autostart", [True, False])
def test_the_node_comes_up_and_goes_down(
    repo: Path, prefix: Path, network: Path, autostart: bool
) -> None:
    parameters = prefix / "parameters.yaml"
    parameters.write_text(f"/**:\n  ros__parameters:\n    T_camera_lidar: {IDENTITY}\n")
    paths = [str(prefix), *filter(None, [os.environ.get("AMENT_PREFIX_PATH")])]
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", RUN, str(repo / "launch/depth_node.launch.py")),
            *(f"params_file:={parameters}", f"model:={network}", "method:=slf"),
            *("namespace:=robot", f"autostart:={str(autostart).lower()}"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "AMENT_PREFIX_PATH": os.pathsep.join(paths),
            "ROS_DOMAIN_ID": str(own_domain()),
            "PYTHONUNBUFFERED": "1",
        },
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    goal = "depth_node is active" if autostart else "depth_node is up and unconfigured"
    try:
        until(lambda: any(goal in line for line in lines), PATIENCE_S, f"{goal!r} in {lines}")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
        reader.join(5)
        process.stdout.close()
    output = "".join(lines)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "process has finished cleanly" in output
    assert ("configured: tiny on onnxruntime-cpu, fit slf" in output) == autostart
