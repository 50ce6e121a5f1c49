# SPDX-License-Identifier: Apache-2.0
"""The hall of a robot: scans that accumulate."""

from __future__ import annotations

import numpy as np

from depth_node.geometry.rigid import transform
from depth_node.simulation.floors import TERRAIN_M, FloorWorld


def test_earlier_scans_are_measured_from_the_platform_too() -> None:
    """Before a drop of 1 m the robot stood as high as now: no ray begins inside the platform."""
    frame = FloorWorld(100, lines=16, range_noise_m=0.0).frame(30, scans=3, drop_m=1.0)
    given = frame.input
    assert given.points is not None and given.T_camera_lidar is not None
    in_base = transform(frame.T_base_camera @ given.T_camera_lidar, given.points)
    under = (np.abs(in_base[:, 0]) < TERRAIN_M - 0.1) & (np.abs(in_base[:, 1]) < 2.0)
    assert under.sum() > 300
    np.testing.assert_allclose(in_base[under, 2], 0.0, atol=0.01)
