# SPDX-License-Identifier: Apache-2.0
"""Scans of a spinning LiDAR on a moving robot: every column is measured from another pose."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from depth_node.simulation.renderer import LidarPattern, Scene

_SLICE_DEG = 3.6  # part of a turn whose points share one time and pose


def moving_pose(
    T_world_body: NDArray[np.float64],
    velocity: NDArray[np.float64],
    turn_rate: NDArray[np.float64],
) -> Callable[[float], NDArray[np.float64]]:
    """Return the pose T_world_body (4, 4) as a function of time, s, which is the given one at 0 s.

    The velocity (3,) m/s in the world frame and the turn rate (3,) rad/s in the body frame are
    constant.
    """

    def pose(time_s: float) -> NDArray[np.float64]:
        T = T_world_body.copy()
        T[:3, :3] = T[:3, :3] @ Rotation.from_rotvec(turn_rate * time_s).as_matrix()
        T[:3, 3] += velocity * time_s
        return T

    return pose


def spinning_scan(
    scene: Scene,
    T_world_lidar: Callable[[float], NDArray[np.float64]],
    pattern: LidarPattern,
    period_s: float = 0.1,
    seed: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return points (N, 3) m, each in the LiDAR frame at its own time, and these times (N,) s.

    T_world_lidar: (4, 4) by time in s. A whole turn takes period_s; it begins at 0 s at the back
    (-180 degrees), so the LiDAR looks ahead at half of it. Only the pattern's horizontal field of
    view is measured.
    """
    low, high = pattern.horizontal_fov_deg
    slices = max(1, round((high - low) / _SLICE_DEG))
    edges = np.linspace(low, high, slices + 1)
    points, times = [], []
    for index, (start, end) in enumerate(itertools.pairwise(edges)):
        part = dataclasses.replace(
            pattern,
            azimuth_steps=max(1, round(pattern.azimuth_steps / slices)),
            horizontal_fov_deg=(float(start), float(end)),
        )
        time_s = ((start + end) / 2 + 180.0) / 360.0 * period_s
        seen = scene.lidar(T_world_lidar(time_s), part, seed=seed * slices + index)
        points.append(seen)
        times.append(np.full(len(seen), time_s, np.float32))
    return np.concatenate(points), np.concatenate(times)
