# SPDX-License-Identifier: Apache-2.0
"""The launch file for usual drivers: its table read without launch, its choice run with launch."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def tables(repo: Path) -> dict[str, Any]:
    """The constants of the launch file."""
    tree = ast.parse((repo / "launch/drivers.launch.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def test_every_driver_of_the_page_has_its_topics(repo: Path) -> None:
    page = (repo / "docs/integration.md").read_text()
    found = tables(repo)
    for name, topics in {**found["CAMERAS"], **found["LIDARS"]}.items():
        assert f"`{name}`" in page
        for topic in [topics] if isinstance(topics, str) else topics:
            assert topic.startswith("/") and topic in page, topic


def test_an_image_and_its_calibration_are_of_one_camera(repo: Path) -> None:
    for image, info in tables(repo)["CAMERAS"].values():
        assert image.split("/")[1:-2] == info.split("/")[1:-1] or (
            image.rpartition("/")[0] == info.rpartition("/")[0]
        )


def test_what_auto_makes_of_their_names(repo: Path) -> None:
    """ZED 4's name says that it is rectified; the other rectified one has no distortion (D = 0)."""
    pytest.importorskip("sensor_msgs", reason="ROS 2 messages are not installed")
    from sensor_msgs.msg import CameraInfo

    from depth_node.ros.messages import is_rectified

    k, p = np.diag([80.0, 80.0, 1.0]).ravel(), np.eye(3, 4).ravel()
    info = CameraInfo(d=[0.1] * 5, k=k, r=np.eye(3).ravel(), p=p, distortion_model="plumb_bob")
    cameras = tables(repo)["CAMERAS"]
    rectified = {name for name, (image, _) in cameras.items() if is_rectified(image, info)}
    assert rectified == {"zed4"}


@pytest.mark.parametrize(
    ("arguments", "points"),
    [({}, "/ouster/points"), ({"points": "/mine"}, "/mine")],
)
def test_the_choice_with_launch(repo: Path, arguments: dict[str, str], points: str) -> None:
    pytest.importorskip("launch_ros", reason="launch_ros comes with apt's ROS 2, not from PyPI")
    import runpy

    from launch import LaunchContext

    description = runpy.run_path(str(repo / "launch/drivers.launch.py"))
    context = LaunchContext()
    given = {"camera": "zed", "lidar": "ouster", "image": "", "camera_info": "", "points": ""}
    context.launch_configurations.update(given | arguments)
    for action in description["choose"](context):
        action.execute(context)
    assert context.launch_configurations["points"] == points
    assert context.launch_configurations["image"].startswith("/zed/")
    context.launch_configurations["camera"] = "kinect"
    with pytest.raises(RuntimeError, match="realsense"):
        description["choose"](context)


def test_the_nodes_own_arguments_are_shown(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ros2 launch depth_node drivers.launch.py --show-args`."""
    pytest.importorskip("launch_ros", reason="launch_ros comes with apt's ROS 2, not from PyPI")
    import runpy

    from launch.substitutions import TextSubstitution

    monkeypatch.setattr(
        "launch_ros.substitutions.FindPackageShare", lambda name: TextSubstitution(text=str(repo))
    )
    description = runpy.run_path(str(repo / "launch/drivers.launch.py"))
    shown = {
        one.name for one in description["generate_launch_description"]().get_launch_arguments()
    }
    assert {"camera", "lidar", "params_file", "method", "landmarks", "rviz"} <= shown
