# SPDX-License-Identifier: Apache-2.0
"""The LiDAR's pose from edges: known faults are found, a bare wall is no evidence."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.benchmarks.calibration_sequences import (
    RenderedWalk,
    bare_wall_sequence,
    room_sequence,
)
from depth_node.calibration.estimate import calibrate, correction_matrix
from depth_node.calibration.monitor import ExtrinsicsMonitor, Finding
from depth_node.calibration.observation import AXES, observe_all
from depth_node.geometry.rigid import invert_rigid
from depth_node.simulation.walk import T_CAMERA_LIDAR

FRAMES = 24


@pytest.fixture(scope="module")
def room() -> RenderedWalk:
    return room_sequence(101, FRAMES)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["yaw", "pitch"])
def test_a_turn_of_two_degrees_is_found(room: RenderedWalk, axis: str) -> None:
    fault = np.zeros(7)
    fault[AXES.index(axis)] = np.deg2rad(2.0)
    wrong = correction_matrix(fault) @ T_CAMERA_LIDAR
    estimate = calibrate(observe_all(room.frames(64, T_camera_lidar=wrong)))
    left = correction_matrix(estimate.correction) @ wrong @ invert_rigid(T_CAMERA_LIDAR)
    angle = np.rad2deg(np.arccos(np.clip((np.trace(left[:3, :3]) - 1) / 2, -1, 1)))
    assert angle < 0.5, f"{angle:.2f} degrees are left of two"
    assert np.isfinite(estimate.std).all() and estimate.edges > 100


@pytest.mark.slow
def test_a_bare_wall_does_not_tell() -> None:
    monitor = ExtrinsicsMonitor()
    wall = bare_wall_sequence(FRAMES)
    for frame in wall.frames(16):
        verdict = monitor.add(frame)
    assert verdict.finding is Finding.UNKNOWN


def test_a_correction_is_a_rigid_motion_and_its_negative_undoes_small_ones() -> None:
    step = np.array([0.01, -0.02, 0.005, 0.03, -0.01, 0.02, 0.0])
    T = correction_matrix(step)
    assert T[:3, :3] @ T[:3, :3].T == pytest.approx(np.eye(3), abs=1e-12)
    assert correction_matrix(-step) @ T == pytest.approx(np.eye(4), abs=1e-3)
    assert correction_matrix(np.zeros(7)) == pytest.approx(np.eye(4))
