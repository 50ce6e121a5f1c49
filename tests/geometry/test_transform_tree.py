# SPDX-License-Identifier: Apache-2.0
"""Recorded transforms: chains, interpolation over time, and errors for unknown ones."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_node.geometry.rigid import invert_rigid, rigid_transform
from depth_node.geometry.transform_tree import TransformError, TransformTree

SECOND = 1_000_000_000


def moved(x: float, y: float = 0.0, z: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    return rigid_transform((x, y, z), Rotation.from_euler("z", yaw).as_quat())


@pytest.fixture
def robot() -> TransformTree:
    """Return a base that drives and turns in odom, with camera and LiDAR fixed to it."""
    tree = TransformTree(tolerance_s=0.1)
    tree.add("base", "camera", moved(0.2, z=0.5))
    tree.add("/base", "/lidar", moved(0.0, z=0.8, yaw=0.3))
    tree.add("odom", "base", moved(3.0, 1.0, yaw=np.pi / 2), 2 * SECOND)
    tree.add("odom", "base", moved(1.0), SECOND)  # arrives late
    return tree


def test_bolted_frames_are_where_they_are_at_any_time(robot: TransformTree) -> None:
    want = invert_rigid(moved(0.2, z=0.5)) @ moved(0.0, z=0.8, yaw=0.3)
    for stamp_ns in (0, 5 * SECOND):
        np.testing.assert_allclose(robot.look_up("camera", "/lidar", stamp_ns), want, atol=1e-12)
        back = robot.look_up("lidar", "camera", stamp_ns)
        np.testing.assert_allclose(back @ want, np.eye(4), atol=1e-12)


def test_between_two_times_it_is_half_way(robot: TransformTree) -> None:
    T = robot.look_up("odom", "base", SECOND * 3 // 2)
    np.testing.assert_allclose(T, moved(2.0, 0.5, yaw=np.pi / 4), atol=1e-12)
    np.testing.assert_allclose(robot.look_up("odom", "base", 2 * SECOND)[:3, 3], [3, 1, 0])


def test_what_is_not_known_is_said(robot: TransformTree) -> None:
    np.testing.assert_allclose(robot.look_up("odom", "base", 2 * SECOND + SECOND // 20)[0, 3], 3)
    with pytest.raises(TransformError, match=r"base in odom is known from 1.000 s to 2.000 s"):
        robot.look_up("odom", "camera", 3 * SECOND)
    with pytest.raises(TransformError, match="no transform leads from radar to camera"):
        robot.look_up("camera", "radar", SECOND)
    robot.add("lidar", "odom", np.eye(4))
    with pytest.raises(TransformError, match="circle"):
        robot.look_up("camera", "lidar", SECOND)


def test_a_frame_that_changes_its_parent(robot: TransformTree) -> None:
    robot.add("base", "camera", moved(0.3))
    np.testing.assert_allclose(robot.look_up("base", "camera", 0)[0, 3], 0.3)
    robot.add("odom", "camera", moved(9.0))
    np.testing.assert_allclose(robot.look_up("odom", "camera", 0)[0, 3], 9.0)


def test_a_transform_holds_for_a_tenth_of_a_second_beyond_its_last_time() -> None:
    tree = TransformTree()
    tree.add("odom", "base", np.eye(4), 0)
    tree.look_up("odom", "base", 80_000_000)
    with pytest.raises(TransformError, match="was asked for"):
        tree.look_up("odom", "base", 150_000_000)


def test_until_when_a_chain_is_known() -> None:
    tree = TransformTree()
    tree.add("base", "mast", np.eye(4))
    tree.add("mast", "camera", np.eye(4))
    for stamp_ns in (100, 200):
        tree.add("odom", "base", np.eye(4), stamp_ns)
    tree.add("odom", "arm", np.eye(4), 150)
    assert tree.newest_ns("base", "camera") == 0, "all of it is static"
    assert tree.newest_ns("odom", "camera") == 200
    assert tree.newest_ns("arm", "camera") == 150
    with pytest.raises(TransformError):
        tree.newest_ns("map", "camera")


def test_an_hour_of_transforms_takes_little_memory() -> None:
    tree, count = TransformTree(), 20_000
    tracemalloc.start()
    for k in range(count):
        tree.add("odom", "base", moved(k * 1e-3, yaw=0.01), k * SECOND // 100)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 130 * count, "bytes"
    np.testing.assert_array_equal(
        tree.look_up("odom", "base", 12_345 * SECOND // 100), moved(12.345, yaw=0.01)
    )
