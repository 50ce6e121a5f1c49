# SPDX-License-Identifier: Apache-2.0
"""Starts the lifecycle node `depth_node` and, with autostart, brings it to active.

    ros2 launch depth_node depth_node.launch.py image:=/camera/image_raw \
        camera_info:=/camera/camera_info points:=/lidar/points

An argument that is not given leaves the parameter file, or the node's own default, as it is.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

ARGUMENTS = {
    "params_file": (
        PathJoinSubstitution([FindPackageShare("depth_node"), "config", "depth_node.yaml"]),
        "YAML file with parameters of the node.",
    ),
    "namespace": ("", "Namespace of the node and of its relative topics."),
    "autostart": ("true", "Configure and activate the node once it is up."),
    "model": ("", "model.path: an .onnx file with its manifest beside it, or `embedded`."),
    "method": ("", "fit.method: field, ssf, slf, region_median, median, global_depth, ..."),
    "use_sim_time": ("", "true: time comes from /clock."),
    "image": ("", "Topic of the camera image."),
    "camera_info": ("", "Topic of its CameraInfo."),
    "points": ("", "Topic of the LiDAR's PointCloud2."),
    "scan": ("", "Topic of a LaserScan."),
    "depth": ("", "Topic on which ~/depth/image_rect goes out."),
    "log_level": ("info", "Log level of the node."),
}
REMAPPINGS = {
    "image": "image",
    "camera_info": "camera_info",
    "points": "points",
    "scan": "scan",
    "depth": "~/depth/image_rect",
}


def start(context: LaunchContext) -> list:
    """The node with what was asked for, and the events that bring it to active."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    parameters: list = [given["params_file"]] if given["params_file"] else []
    overrides: dict = {}
    if given["model"]:
        overrides["model.path"] = given["model"]
    if given["method"]:
        overrides["fit.method"] = given["method"]
    if given["use_sim_time"]:
        overrides["use_sim_time"] = truth("use_sim_time", given["use_sim_time"])
    if overrides:
        parameters.append(overrides)
    node = LifecycleNode(
        package="depth_node",
        executable="depth_node",
        name="depth_node",
        namespace=given["namespace"],
        parameters=parameters,
        remappings=[(own, given[name]) for name, own in REMAPPINGS.items() if given[name]],
        arguments=["--ros-args", "--log-level", f"depth_node:={given['log_level']}"],
        output="screen",
        emulate_tty=True,
    )
    if not truth("autostart", given["autostart"]):
        return [node]

    def request(transition: int) -> EmitEvent:
        change = ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
        return EmitEvent(event=change)

    when_up = RegisterEventHandler(
        OnProcessStart(target_action=node, on_start=[request(Transition.TRANSITION_CONFIGURE)])
    )
    when_configured = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=node,
            start_state="configuring",
            goal_state="inactive",
            entities=[request(Transition.TRANSITION_ACTIVATE)],
        )
    )
    when_active = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=node,
            start_state="activating",
            goal_state="active",
            entities=[LogInfo(msg="depth_node is active")],
        )
    )
    # The handlers first: the node must not be faster than they are.
    return [when_up, when_configured, when_active, node]


def truth(name: str, text: str) -> bool:
    """An argument that is true or false."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise RuntimeError(f"launch argument {name} is {text!r}: say true or false")
    return words[text.lower()]


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` asks for."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in ARGUMENTS.items()
            ),
            OpaqueFunction(function=start),
        ]
    )
