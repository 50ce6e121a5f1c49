# SPDX-License-Identifier: Apache-2.0
"""depth_node on the topics of usual drivers: `camera:=realsense lidar:=ouster`.

All arguments of depth_node.launch.py may be given too; a topic that is given wins.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    OpaqueFunction,
    SetLaunchConfiguration,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

# Driver with its usual names -> image and camera_info; see docs/integration.md.
CAMERAS = {
    "realsense": ("/camera/camera/color/image_raw", "/camera/camera/color/camera_info"),
    "oak": ("/oak/rgb/image_raw", "/oak/rgb/camera_info"),
    "zed": ("/zed/zed_node/rgb/color/rect/image", "/zed/zed_node/rgb/color/rect/camera_info"),
    "zed4": ("/zed/zed_node/rgb/image_rect_color", "/zed/zed_node/rgb/camera_info"),
    "usb_cam": ("/image_raw", "/camera_info"),
}
LIDARS = {
    "velodyne": "/velodyne_points",
    "ouster": "/ouster/points",
    "livox": "/livox/lidar",
}
TOPICS = ("image", "camera_info", "points")


def choose(context: LaunchContext) -> list:
    """Set the topics of both drivers, except those that are given."""
    given = {name: LaunchConfiguration(name).perform(context).strip() for name in TOPICS}
    camera = named(context, "camera", CAMERAS)
    lidar = named(context, "lidar", LIDARS)
    usual = dict(zip(TOPICS, (*CAMERAS[camera], LIDARS[lidar]), strict=True))
    return [SetLaunchConfiguration(name, given[name] or usual[name]) for name in TOPICS]


def named(context: LaunchContext, argument: str, drivers: dict) -> str:
    """Return the driver that an argument names. Raises RuntimeError for an unknown one."""
    name = LaunchConfiguration(argument).perform(context).strip()
    if name not in drivers:
        raise RuntimeError(
            f"launch argument {argument} is {name!r}: say one of {', '.join(drivers)}, or use"
            " depth_node.launch.py and name the topics"
        )
    return name


def generate_launch_description() -> LaunchDescription:
    """Return the launch description, as `ros2 launch` requires."""
    topics = [
        DeclareLaunchArgument(name, default_value="", description=f"Topic; empty: the {name} of"
                              " the driver.")
        for name in TOPICS
    ]  # fmt: skip
    path = PathJoinSubstitution([FindPackageShare("depth_node"), "launch", "depth_node.launch.py"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("camera", description=f"Driver: {', '.join(CAMERAS)}."),
            DeclareLaunchArgument("lidar", description=f"Driver: {', '.join(LIDARS)}."),
            *topics,
            OpaqueFunction(function=choose),
            # Not within choose(), so that `--show-args` lists its arguments too.
            IncludeLaunchDescription(PythonLaunchDescriptionSource(path)),
        ]
    )
