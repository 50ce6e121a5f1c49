# SPDX-License-Identifier: Apache-2.0
"""Start the lifecycle node `depth_node` and, with autostart, bring it to active.

    ros2 launch depth_node depth_node.launch.py image:=/camera/image_raw \
        camera_info:=/camera/camera_info points:=/lidar/points

An argument that is not given leaves the parameter file, or the node's own default, as it is.
"""

from __future__ import annotations

from pathlib import Path

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
from launch_ros.actions import LifecycleNode, Node
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
    "autostart": (
        "true",
        "Configure and activate the node once, at its start; false with a lifecycle manager.",
    ),
    "model": (
        "",
        "model.path: an .onnx file with its manifest beside it, a fetched network, or `embedded`.",
    ),
    "method": ("", "fit.method: field, ssf, slf, region_median, median, global_depth, ..."),
    "use_sim_time": ("", "true: time comes from /clock."),
    "image": ("", "Topic of the camera image."),
    "camera_info": ("", "Topic of its CameraInfo."),
    "points": ("", "Topic of the LiDAR's PointCloud2."),
    "scan": ("", "Topic of a LaserScan."),
    "landmarks": ("", "Topic of a noisy PointCloud2 (radar, VIO, SLAM); see lidar_sources."),
    "sparse_depth": ("", "Topic of a sparse depth Image (RGB-D, ToF, stereo); see lidar_sources."),
    "depth": (
        "",
        "Output topic for ~/depth/image_rect; compressedDepth goes below it, camera_info beside it."
        " Depth of a distorted image goes to the name without _rect (or with _unrectified).",
    ),
    "rviz": ("false", "true: also start RViz, with the topics given here."),
    "log_level": ("info", "Log level of the node."),
}
REMAPPINGS = {
    "image": "image",
    "camera_info": "camera_info",
    "points": "points",
    "scan": "scan",
    "landmarks": "landmarks",
    "sparse_depth": "depth",
    "depth": "~/depth/image_rect",
}


def start(context: LaunchContext) -> list:
    """Return the node with the given arguments, and the events that bring it to active."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    parameters: list = []
    if given["params_file"]:
        if not Path(given["params_file"]).is_file():
            raise RuntimeError(
                f"launch argument params_file: there is no file {given['params_file']}: check the"
                " path, or leave params_file out for the package's own"
            )
        parameters.append(given["params_file"])
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
        remappings=remappings(given),
        arguments=["--ros-args", "--log-level", f"depth_node:={given['log_level']}"],
        output="screen",
        emulate_tty=True,
    )
    shown = [rviz(given)] if truth("rviz", given["rviz"]) else []
    if not truth("autostart", given["autostart"]):
        return [node, *shown]

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
            handle_once=True,  # after a manual cleanup and configure, activation is manual too
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
    # The handlers come first, or they could miss an event of a node that starts quickly.
    return [when_up, when_configured, when_active, node, *shown]


def remappings(given: dict[str, str]) -> list[tuple[str, str]]:
    """Return the node's topics and their new names.

    Subscribers of a depth image expect camera_info beside it, so it is moved too.
    """
    pairs = [(own, given[name]) for name, own in REMAPPINGS.items() if given[name]]
    depth = given["depth"]
    if depth:
        name = depth.rpartition("/")[2]  # the namespace stays: camera_info is there
        plain = beside(depth, name.replace("_rect", ""))
        if "_rect" not in name:
            plain = f"{depth}_unrectified"
        pairs += [
            ("~/depth/camera_info", beside(depth, "camera_info")),
            ("~/depth/image", plain),
            ("~/depth/image_rect/compressedDepth", f"{depth}/compressedDepth"),
            ("~/depth/image/compressedDepth", f"{plain}/compressedDepth"),
        ]
    return pairs


def beside(topic: str, name: str) -> str:
    """Return a name beside a topic: /cam/depth/image_rect -> /cam/depth/camera_info."""
    namespace, slash, _ = topic.rpartition("/")
    return f"{namespace}{slash}{name}"


def rviz(given: dict[str, str]) -> Node:
    """Return RViz with the package's view, its topics remapped to those of this node.

    The view contains the topics of a node without namespace and remappings.
    """
    own = f"/{given['namespace'].strip('/')}/depth_node".replace("//", "/")
    moved = [
        (f"/depth_node/{name}", f"{own}/{name}")
        for name in (
            "points",
            "confidence",
            "regions",
            "obstacles",
            "rejected",
            "depth/image_rect",
        )
    ]
    if given["depth"]:
        moved[-1] = (moved[-1][0], given["depth"])
    scan_topic = given["points"] or f"{own.rpartition('/')[0]}/points"
    view = PathJoinSubstitution([FindPackageShare("depth_node"), "config", "depth_node.rviz"])
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", view],
        remappings=[(own, to) for own, to in [*moved, ("/points", scan_topic)] if own != to],
    )


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
