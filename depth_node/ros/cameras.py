# SPDX-License-Identifier: Apache-2.0
"""Several cameras in one process: a DepthNode for each, with shared networks, LiDARs and TF.

The node `depth_cameras` names the cameras and their topics. Each camera is a lifecycle node of its
own, `<camera>/depth_node`, with its own parameters, callbacks, worker, memory and diagnostics.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor

from depth_node.config import ConfigError
from depth_node.engine.sharing import Opener, SharedEngines
from depth_node.inference import open_configured
from depth_node.ros.inputs.shared_topics import SharedTopics
from depth_node.ros.inputs.subscriptions import INPUTS
from depth_node.ros.node import DepthNode
from depth_node.ros.process.guarded_node import GuardedNode
from depth_node.ros.process.nodes import run
from depth_node.ros.transforms.tf import SharedTransforms, TfSource

LIDARS = ("points", "scan")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class CameraTopics:
    """A camera's name, which is also its namespace, and the topics of its inputs.

    inputs: name in DepthNode -> absolute topic.
    """

    name: str
    inputs: dict[str, str]


class Cameras(GuardedNode):
    """Reads the list of cameras, subscribes to LiDARs and TF for all of them, and creates their
    nodes.

    Raises ConfigError with cause and cure if the parameters name no camera, or an invalid one.
    """

    def __init__(self, opener: Opener = open_configured, **node_arguments: Any) -> None:
        """opener: opens the networks. node_arguments: rclpy's; the cameras get the same context."""
        super().__init__("depth_cameras", **node_arguments)
        self._opener = opener
        names = self._names()
        self.autostart = self._flag(
            "autostart",
            "Configure and activate every camera once, when it is up; false with a lifecycle"
            " manager.",
        )
        self.lidars = SharedTopics(self)
        self.transforms = SharedTransforms(lambda: TfSource(self))
        shared = {
            name: self._topic(name, name, f"Topic of the LiDARs' {name}, for all cameras.")
            for name in LIDARS
        }
        self.cameras = [self._camera(name, shared) for name in _checked(names)]

    def make_nodes(self) -> list[DepthNode]:
        """Return the cameras' nodes, which share their networks, LiDARs and TF."""
        engines = SharedEngines(self._opener)
        nodes = [
            DepthNode(
                engines.open,
                self.lidars,
                self.transforms,
                context=self.context,
                cli_args=self._arguments(camera),
            )
            for camera in self.cameras
        ]
        self._warn_of_one_pose(nodes)
        return nodes

    def _warn_of_one_pose(self, nodes: Sequence[DepthNode]) -> None:
        """Warn if cameras share a T_camera_lidar, as from a parameter file's part for all nodes."""
        seen: dict[tuple[float, ...], str] = {}
        for node, camera in zip(nodes, self.cameras, strict=True):
            pose = node.config.T_camera_lidar
            other = seen.setdefault(pose, camera.name)
            if pose and other != camera.name:
                self.get_logger().warning(
                    f"cameras {other} and {camera.name} have the same T_camera_lidar, which one of"
                    " them cannot have: give each its own, under"
                    f" /**/{camera.name}/depth_node, or leave it to TF"
                )

    def _camera(self, name: str, shared: dict[str, str]) -> CameraTopics:
        inputs = {
            topic: self._topic(
                f"{name}.{topic}",
                shared.get(topic, f"{name}/{topic}"),
                f"Topic of `{topic}` of camera {name}.",
            )
            for topic in INPUTS
        }
        return CameraTopics(name, inputs)

    def _arguments(self, camera: CameraTopics) -> list[str]:
        """Return the arguments of this camera's node alone; they override those of the process."""
        namespace = f"{self.get_namespace().rstrip('/')}/{camera.name}"
        rules = {"__ns": namespace, "__node": "depth_node", **camera.inputs}
        return ["--ros-args", *(word for pair in rules.items() for word in ("-r", ":=".join(pair)))]

    def _names(self) -> list[str]:
        about = _read_only("Names of the cameras, each its namespace.")
        about.dynamic_typing = True  # an empty list of cameras has no type
        value = self.declare_parameter("cameras", None, about).value
        if isinstance(value, str) or not all(isinstance(name, str) for name in value or ()):
            raise ConfigError(f"cameras is {value!r}: give a list of names, such as [front, left]")
        return list(value or ())

    def _flag(self, name: str, description: str) -> bool:
        return bool(self.declare_parameter(name, False, _read_only(description)).value)

    def _topic(self, name: str, default: str, description: str) -> str:
        """Declare a parameter that names a topic; return the absolute topic."""
        text = str(self.declare_parameter(name, default, _read_only(description)).value)
        return str(self.resolve_topic_name(text))


def _checked(names: Sequence[str]) -> Sequence[str]:
    if not names:
        raise ConfigError(
            "there is no camera: give depth_cameras the parameter cameras, such as [front, left]"
            " (config/multi_camera.yaml shows a file)"
        )
    for name in names:
        if not _NAME.fullmatch(name) or name in LIDARS:
            raise ConfigError(
                f"a camera cannot be called {name!r}, as its name is a namespace: use letters,"
                " digits and _, a letter first, and another word than points and scan"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"cameras names {twice[0]} twice: give each camera a name of its own")
    return names


def _read_only(description: str) -> ParameterDescriptor:
    return ParameterDescriptor(description=description, read_only=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the cameras until SIGINT or SIGTERM; return 0 then, 2 without a camera."""
    autostart = False

    def make() -> list[GuardedNode]:
        nonlocal autostart
        owner = Cameras()
        autostart = owner.autostart
        return [*owner.make_nodes(), owner]  # destroyed last, because it subscribes for the others

    def begin(node: GuardedNode) -> None:
        if autostart and isinstance(node, DepthNode):
            node.bring_up()

    return run(arguments, make, begin)


if __name__ == "__main__":
    sys.exit(main())
