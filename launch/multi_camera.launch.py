# SPDX-License-Identifier: Apache-2.0
"""Start several cameras in one process and, with autostart, bring each of them to active.

    ros2 launch depth_node multi_camera.launch.py params_file:=cameras.yaml

The parameter file lists the cameras and their topics; config/multi_camera.yaml of this package is
an example. Each camera is a lifecycle node, /<camera>/depth_node.
"""

from __future__ import annotations

import json
from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "params_file": (
        PathJoinSubstitution([FindPackageShare("depth_node"), "config", "multi_camera.yaml"]),
        "YAML file with the cameras and their parameters.",
    ),
    "namespace": ("", "Namespace of all cameras: /<namespace>/<camera>/depth_node."),
    "autostart": (
        "true",
        "Configure and activate every camera once, at its start; false with a lifecycle manager.",
    ),
    "model": ("", "model.path of every camera that has none of its own in the file."),
    "method": ("", "fit.method of every camera, likewise."),
    "use_sim_time": ("", "true: time comes from /clock."),
    "log_level": ("info", "Log level of all cameras."),
}


def start(context: LaunchContext) -> list:
    """Return the process of the cameras with the given arguments."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    if not Path(given["params_file"]).is_file():
        raise RuntimeError(
            f"launch argument params_file: there is no file {given['params_file']}: check the path"
        )
    overrides: dict = {}
    if given["model"]:
        overrides["model.path"] = given["model"]
    if given["method"]:
        overrides["fit.method"] = given["method"]
    if given["use_sim_time"]:
        overrides["use_sim_time"] = truth("use_sim_time", given["use_sim_time"])
    # As arguments of the process, which reach every camera; parameters of the action would reach
    # one node only. They come after the file, so that they override its values for all cameras.
    options = ["--log-level", given["log_level"], "--params-file", given["params_file"]]
    for name, value in overrides.items():
        options += ["-p", f"{name}:={json.dumps(value)}"]  # JSON is YAML too
    cameras = Node(
        package="depth_node",
        executable="depth_cameras",
        name="depth_cameras",
        namespace=given["namespace"],
        parameters=[{"autostart": truth("autostart", given["autostart"])}],
        arguments=["--ros-args", *options],
        output="screen",
        emulate_tty=True,
    )
    return [cameras]


def truth(name: str, text: str) -> bool:
    """Return the boolean value of an argument."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise RuntimeError(f"launch argument {name} is {text!r}: say true or false")
    return words[text.lower()]


def generate_launch_description() -> LaunchDescription:
    """Return the launch description, as `ros2 launch` requires."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in ARGUMENTS.items()
            ),
            OpaqueFunction(function=start),
        ]
    )
