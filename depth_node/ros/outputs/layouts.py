# SPDX-License-Identifier: Apache-2.0
"""Views of a node's topics: a layout for Foxglove (and Lichtblick), a configuration for RViz.

Both contain topic names, so they are written for a node with its namespace and remaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from depth_node.ros.outputs.results import (
    CAMERA_INFO,
    CONFIDENCE,
    DIAGNOSTICS,
    OBSTACLES,
    POINTS,
    RECTIFIED,
    REGIONS,
    REJECTED,
)

IMAGE, IMAGE_INFO, LIDAR = "image", "camera_info", "points"
_NODE = "depth_node"
_NAME = re.compile(r"~?/?[A-Za-z_~][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*|/")
_FARTHEST_M = 10.0  # upper end of the colour scale
_LIDAR_COLOUR, _REJECTED_COLOUR = (255, 60, 60), (255, 0, 255)


@dataclass(frozen=True)
class NodeTopics:
    """The topic names of a node. Raises ValueError for a name that ROS would refuse.

    namespace: of the node. rules: (from, to), as in `-r from:=to`; the first that matches applies.
    """

    namespace: str = "/"
    rules: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in (self.namespace, *(each for rule in self.rules for each in rule)):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no name of ROS 2: use letters, digits and _, parts by /, and ~/"
                    " for what is below the node"
                )

    def resolve(self, topic: str) -> str:
        """Return the full name of a topic, given the node's name for it."""
        full = self._expand(topic)
        return next(
            (self._expand(to) for name, to in self.rules if self._expand(name) == full), full
        )

    def _expand(self, name: str) -> str:
        namespace = "/" + self.namespace.strip("/")
        if name.startswith("/"):
            return name
        below = f"{_NODE}{name[1:]}" if name.startswith("~") else name
        return f"{namespace.rstrip('/')}/{below}"


def rule(text: str) -> tuple[str, str]:
    """Return (from, to) of `from:=to`. Raises ValueError for anything else."""
    name, separator, to = text.partition(":=")
    if not (name and separator and to):
        raise ValueError(
            f"{text!r} is no remap: write it as FROM:=TO, such as points:=/lidar/points"
        )
    return name, to


# --- Foxglove ------------------------------------------------------------------------------------


def foxglove(topics: NodeTopics, frame: str = "") -> dict[str, Any]:
    """Return the content of a layout file that Foxglove and Lichtblick import.

    frame: the frame that the view follows, "" for the viewer's choice.
    """
    at = topics.resolve
    depth_info = at(CAMERA_INFO)
    depth = {"colorMode": "colormap", "colorMap": "turbo", "minValue": 0, "maxValue": _FARTHEST_M}
    spread = {**depth, "maxValue": _FARTHEST_M / 10}
    clouds: dict[str, dict[str, Any]] = {
        at(POINTS): {"visible": True, "colorMode": "rgb", "colorField": "rgb", "pointSize": 2},
        at(LIDAR): {"visible": True, **_flat(_LIDAR_COLOUR), "pointSize": 3},
        at(OBSTACLES): {
            "visible": True, "colorMode": "colormap", "colorMap": "turbo", "colorField": "height",
            "pointSize": 4,
        },
        at(REJECTED): {"visible": False, **_flat(_REJECTED_COLOUR), "pointSize": 5},
    }  # fmt: skip
    follow = {"followTf": frame} if frame else {}
    panels: dict[str, dict[str, Any]] = {
        "3D!depth_node": {
            # Behind the camera and above it, looking ahead in an optical frame.
            "cameraState": {
                "distance": 8, "perspective": True, "phi": 160, "thetaOffset": 0,
                "target": [0, 0, 0], "targetOffset": [0, 0, 3], "targetOrientation": [0, 0, 0, 1],
                "fovy": 45, "near": 0.1, "far": 500,
            },
            "followMode": "follow-pose", **follow,
            "scene": {}, "transforms": {}, "layers": {}, "topics": clouds, "imageMode": {},
        },
        "Image!image": _image(at(IMAGE), at(IMAGE_INFO), {}),
        "Image!depth": _image(at(RECTIFIED), depth_info, depth),
        "Image!confidence": _image(at(CONFIDENCE), depth_info, spread),
        "DiagnosticSummary!depth_node": {
            "topicToRender": DIAGNOSTICS, "minLevel": 0, "pinnedIds": [], "sortByLevel": True,
            "hardwareIdFilter": "",
        },
    }  # fmt: skip
    scene = _split("column", "3D!depth_node", "DiagnosticSummary!depth_node", 80)
    maps = _split("column", "Image!depth", "Image!confidence")
    return {
        "configById": panels,
        "globalVariables": {},
        "userNodes": {},
        "playbackConfig": {"speed": 1},
        "layout": _split("row", scene, _split("column", "Image!image", maps, 34), 60),
    }


def _flat(colour: tuple[int, int, int]) -> dict[str, str]:
    return {"colorMode": "flat", "flatColor": "#" + "".join(f"{part:02x}" for part in colour)}


def _image(topic: str, calibration: str, colours: dict[str, Any]) -> dict[str, Any]:
    mode = {"imageTopic": topic, "calibrationTopic": calibration, **colours}
    return {"imageMode": mode, "scene": {}, "transforms": {}, "topics": {}, "layers": {}}


def _split(direction: str, first: Any, second: Any, percentage: float = 50) -> dict[str, Any]:
    return {
        "direction": direction, "first": first, "second": second, "splitPercentage": percentage,
    }  # fmt: skip


# --- RViz ----------------------------------------------------------------------------------------


def rviz(topics: NodeTopics, frame: str = "camera_optical_frame") -> dict[str, Any]:
    """Return the content of an RViz 2 configuration. frame: the fixed frame."""
    at = topics.resolve
    return {
        "Panels": [
            {"Class": "rviz_common/Displays", "Name": "Displays"},
            {"Class": "rviz_common/Views", "Name": "Views"},
        ],
        "Visualization Manager": {
            "Class": "",
            "Displays": [
                _cloud("Metric depth", at(POINTS), 2, {"Color Transformer": "RGB8"}),
                _cloud("LiDAR", at(LIDAR), 4, _coloured(_LIDAR_COLOUR), "Best Effort"),
                _cloud("Obstacles (height)", at(OBSTACLES), 5, {
                    "Color Transformer": "Intensity", "Channel Name": "height",
                    "Use rainbow": True, "Autocompute Intensity Bounds": True,
                }),
                _cloud("Rejected", at(REJECTED), 6, _coloured(_REJECTED_COLOUR), enabled=False),
                _image_display("Depth (m)", at(RECTIFIED)),
                _image_display("Standard deviation (m)", at(CONFIDENCE), enabled=False),
                _image_display("Regions", at(REGIONS), enabled=False),
                {"Class": "rviz_default_plugins/TF", "Name": "TF", "Enabled": False},
            ],
            "Enabled": True,
            "Global Options": {
                "Background Color": "30; 30; 34", "Fixed Frame": frame, "Frame Rate": 30,
            },
            "Tools": [
                {"Class": "rviz_default_plugins/MoveCamera"},
                {"Class": "rviz_default_plugins/Measure"},
            ],
            "Views": {
                # Behind and above the camera, in an optical frame: z is ahead, y is down.
                "Current": {
                    "Class": "rviz_default_plugins/ThirdPersonFollower", "Name": "Current View",
                    "Target Frame": "<Fixed Frame>", "Distance": 6, "Pitch": -1.2, "Yaw": -1.57,
                    "Focal Point": {"X": 0, "Y": 0, "Z": 3},
                }
            },
        },
        "Window Geometry": {"Width": 1400, "Height": 900},
    }  # fmt: skip


def _coloured(colour: Iterable[int]) -> dict[str, str]:
    return {"Color Transformer": "FlatColor", "Color": "; ".join(map(str, colour))}


def _cloud(
    name: str,
    topic: str,
    size_px: int,
    colours: dict[str, Any],
    reliability: str = "Reliable",
    enabled: bool = True,
) -> dict[str, Any]:
    return {
        "Class": "rviz_default_plugins/PointCloud2", "Name": name, "Enabled": enabled,
        "Style": "Points", "Size (Pixels)": size_px, "Position Transformer": "XYZ", **colours,
        "Topic": _topic(topic, reliability),
    }  # fmt: skip


def _image_display(name: str, topic: str, enabled: bool = True) -> dict[str, Any]:
    return {
        "Class": "rviz_default_plugins/Image", "Name": name, "Enabled": enabled,
        "Normalize Range": True, "Topic": _topic(topic, "Reliable"),
    }  # fmt: skip


def _topic(name: str, reliability: str) -> dict[str, Any]:
    return {
        "Value": name, "Depth": 5, "Durability Policy": "Volatile", "History Policy": "Keep Last",
        "Reliability Policy": reliability,
    }  # fmt: skip
