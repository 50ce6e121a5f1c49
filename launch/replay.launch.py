# SPDX-License-Identifier: Apache-2.0
"""Play a rosbag2 to the live node: `ros2 bag play --clock` beside depth_node.launch.py.

    ros2 launch depth_node replay.launch.py bag:=/data/run1 \
        image:=/camera/image_raw camera_info:=/camera/camera_info points:=/lidar/points

Every argument of depth_node.launch.py can be given. For numbers and images without a running ROS
use `depth_tools replay BAG`.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.event_handlers import OnStateTransition
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "rate": ("1.0", "How fast the bag is played."),
    "loop": ("false", "true: begin again at the end; the node notices that time jumps back."),
    "start_delay": ("1.0", "Seconds between the node's activation and the first message."),
}


def check(context: LaunchContext) -> list:
    """Check the arguments at once, and not only when the node is active. Raises RuntimeError."""
    given = arguments(context)
    truth("loop", given["loop"])
    for name, lowest in (("rate", 1e-3), ("start_delay", 0.0)):
        try:
            usable = lowest <= float(given[name]) < 1e6
        except ValueError:
            usable = False
        if not usable:
            raise RuntimeError(
                f"launch argument {name} is {given[name]!r}: say a number of at least {lowest:g}"
            )
    return []


def play(context: LaunchContext) -> list:
    """Return the player, and the shutdown of the launch when it has ended."""
    given = arguments(context)
    command = ["ros2", "bag", "play", LaunchConfiguration("bag").perform(context), "--clock"]
    command += ["--rate", given["rate"], "--delay", given["start_delay"]]
    if truth("loop", given["loop"]):
        command.append("--loop")
    player = ExecuteProcess(cmd=command, output="screen")
    end = OnProcessExit(
        target_action=player, on_exit=[EmitEvent(event=Shutdown(reason="the bag has ended"))]
    )
    return [player, RegisterEventHandler(end)]


def arguments(context: LaunchContext) -> dict[str, str]:
    """Return the values of this file's arguments."""
    return {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}


def truth(name: str, text: str) -> bool:
    """Return the boolean value of an argument."""
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise RuntimeError(f"launch argument {name} is {text!r}: say true or false")
    return words[text.lower()]


def generate_launch_description() -> LaunchDescription:
    """Return the node, on the bag's clock, and the player."""
    declared = [DeclareLaunchArgument("bag", description="Folder of the rosbag2.")]
    declared += [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    place = PathJoinSubstitution([FindPackageShare("depth_node"), "launch", "depth_node.launch.py"])
    # The player waits, so that the start of the bag is not lost while the node opens its engines.
    when_active = OnStateTransition(
        start_state="activating",
        goal_state="active",
        entities=[OpaqueFunction(function=play)],
        handle_once=True,
    )
    reason = "the node could not be configured: its log says why"
    when_failed = OnStateTransition(
        start_state="configuring",
        goal_state="unconfigured",
        entities=[EmitEvent(event=Shutdown(reason=reason))],
    )
    # Included here and not within play(), so that `--show-args` lists its arguments too.
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(place),
        launch_arguments={"use_sim_time": "true", "autostart": "true"}.items(),
    )
    return LaunchDescription(
        [
            *declared,
            OpaqueFunction(function=check),
            RegisterEventHandler(when_active),
            RegisterEventHandler(when_failed),
            node,
        ]
    )
