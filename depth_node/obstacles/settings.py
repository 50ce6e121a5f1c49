# SPDX-License-Identifier: Apache-2.0
"""Settings of the obstacles: where the ground is, and which heights and ranges count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_node.config import ConfigError, option, validate

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ObstacleConfig:
    """Where the ground is and what stands on it, for `~/obstacles` and `~/obstacles/scan`.

    Raises ConfigError out of range.
    """

    base_frame: str = option(
        "",
        "The robot's TF frame on the ground, z up, such as base_footprint. Empty: camera_height_m"
        " and camera_pitch_deg define the ground, without TF.",
    )
    camera_height_m: float = option(
        0.0,
        "Height of the camera above the ground, used if base_frame is empty; 0 = unknown, no"
        " obstacles.",
        unit="m",
        minimum=0.0,
        maximum=100.0,
    )
    camera_pitch_deg: float = option(
        0.0,
        "How far the camera looks down from level, used if base_frame is empty.",
        unit="deg",
        minimum=-90.0,
        maximum=90.0,
    )
    min_height_m: float = option(
        0.02,
        "Anything lower above the ground is no obstacle. Pixels between measured points must also"
        " be higher than a seventh of the camera's height, measured points higher than four times"
        " their noise.",
        unit="m",
        minimum=0.0,
        maximum=10.0,
    )
    max_height_m: float = option(
        2.0,
        "Anything higher above the ground is no obstacle: the robot passes below it.",
        unit="m",
        minimum=0.01,
        maximum=100.0,
    )
    max_slope_deg: float = option(
        0.0,
        "A slope up to this angle that begins at the ground counts as ground: a ramp ahead. It"
        " must be seen over 0.8 m uphill and 0.5 m across, its foot by the LiDAR. 0 = whatever"
        " rises above the ground is an obstacle, however flat.",
        unit="deg",
        minimum=0.0,
        maximum=30.0,
    )
    max_drop_m: float = option(
        0.0,
        "Anything seen deeper than this below the ground, such as stairs down, is marked"
        " min_height_m above where the ground should be, with a negative height; pixels between"
        " measured points only from a seventh of the camera's height on. 0 = drops are not marked.",
        unit="m",
        minimum=0.0,
        maximum=100.0,
    )
    min_range_m: float = option(
        0.0,
        "Anything nearer to the base frame's origin, along the ground, is ignored: the robot's"
        " own body.",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
    )
    max_range_m: float = option(
        8.0,
        "Anything farther from the base frame's origin, along the ground, is ignored.",
        unit="m",
        minimum=0.1,
        maximum=1000.0,
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.min_height_m >= self.max_height_m:
            raise ConfigError(
                f"min_height_m is {self.min_height_m:g} and max_height_m {self.max_height_m:g}: the"
                " first must be smaller"
            )
        if self.min_range_m >= self.max_range_m:
            raise ConfigError(
                f"min_range_m is {self.min_range_m:g} and max_range_m {self.max_range_m:g}: the"
                " first must be smaller"
            )

    def fixed_ground(self) -> F64 | None:
        """Return T_base_camera (4, 4) of the parameters, the base frame below the camera.

        None if camera_height_m is not set.
        """
        if self.camera_height_m <= 0:
            return None
        return camera_above_ground(self.camera_height_m, self.camera_pitch_deg)


def camera_above_ground(height_m: float, pitch_deg: float) -> F64:
    """Return T_base_camera (4, 4) of a camera above the base frame that looks ahead and down.

    height_m: m above the base frame. pitch_deg: degrees down from level. Base frame: on the ground,
    x ahead, y left, z up.
    """
    pitch = math.radians(pitch_deg)
    T = np.eye(4)
    T[:3, :3] = [
        [0.0, -math.sin(pitch), math.cos(pitch)],
        [-1.0, 0.0, 0.0],
        [0.0, -math.cos(pitch), -math.sin(pitch)],
    ]
    T[2, 3] = height_m
    return T
