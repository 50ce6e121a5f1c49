# SPDX-License-Identifier: Apache-2.0
"""Plays a rosbag2 to the live node: `ros2 bag play --clock` beside depth_node.launch.py.

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
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "rate": ("1.0", "How fast the bag is played."),
    "loop": ("false", "true: begin again at the end; the node notices that time jumps back."),
    "start_delay": ("3.0", "Seconds for the node to come up before the first message."),
}


def play(context: LaunchContext) -> list:
    """The player, and the end of everything when it has ended."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in ARGUMENTS}
    command = ["ros2", "bag", "play", LaunchConfiguration("bag").perform(context), "--clock"]
    command += ["--rate", given["rate"], "--delay", given["start_delay"]]
    if given["loop"].lower() in ("true", "1", "yes"):
        command.append("--loop")
    player = ExecuteProcess(cmd=command, output="screen")
    end = OnProcessExit(
        target_action=player, on_exit=[EmitEvent(event=Shutdown(reason="the bag has ended"))]
    )
    return [player, RegisterEventHandler(end)]


def generate_launch_description() -> LaunchDescription:
    """The node on the bag's clock, and the player."""
    declared = [DeclareLaunchArgument("bag", description="Folder of the rosbag2.")]
    declared += [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    place = PathJoinSubstitution([FindPackageShare("depth_node"), "launch", "depth_node.launch.py"])
    # Included here and not within play(), so that `--show-args` lists its arguments too.
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(place),
        launch_arguments={"use_sim_time": "true", "autostart": "true"}.items(),
    )
    return LaunchDescription([*declared, node, OpaqueFunction(function=play)])
