# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms: compared with Rodrigues; matrices that are no rotations are refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from depth_node.geometry.rigid import check_rigid, invert_rigid, rigid_transform, transform


def test_rigid_transform_agrees_with_rodrigues() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        angle = rng.uniform(-3, 3)
        quaternion = [*(axis * np.sin(angle / 2)), np.cos(angle / 2)]
        found = rigid_transform((1, 2, 3), quaternion)
        np.testing.assert_allclose(found[:3, :3], cv2.Rodrigues(axis * angle)[0], atol=1e-12)
        np.testing.assert_allclose(found @ invert_rigid(found), np.eye(4), atol=1e-12)
        points = rng.normal(size=(5, 3))
        there = transform(found, points)
        np.testing.assert_allclose(transform(invert_rigid(found), there), points, atol=1e-12)


@pytest.mark.parametrize("quaternion", [(0, 0, 0, 0), (0, 0, 0, 1.2), (np.nan, 0, 0, 1)])
def test_quaternion_that_is_no_rotation_is_refused(quaternion: tuple) -> None:
    with pytest.raises(ValueError, match="unit quaternion"):
        rigid_transform((0, 0, 0), quaternion)


def test_check_rigid() -> None:
    given = rigid_transform((1, 2, 3), (0.5, 0.5, 0.5, 0.5))
    np.testing.assert_array_equal(check_rigid(given.ravel().tolist(), "T"), given)
    mirrored = np.diag([1.0, 1.0, -1.0, 1.0])
    for bad, sentence in (
        (np.eye(3), "16"),
        (mirrored, "no rotation"),
        (2 * given, "last row"),
        (np.diag([2.0, 2.0, 2.0, 1.0]), "no rotation"),
        (given.T, "last row"),
        (np.full((4, 4), np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=rf"T_camera_lidar.*{sentence}"):
            check_rigid(bad, "T_camera_lidar")


def test_points_that_are_not_finite_stay_so_and_disturb_no_other() -> None:
    T = rigid_transform((0.1, 0.2, 0.3), (0.5, -0.5, 0.5, -0.5))
    points = np.array([[np.inf, 0, 1], [1, 2, 3], [np.inf, -np.inf, np.inf], [3e38, 0, 0]])
    moved = transform(T, points.astype(np.float32))  # a warning would be an error here
    assert not np.isfinite(moved[[0, 2]]).all(axis=1).any()
    np.testing.assert_allclose(moved[1], transform(T, points[1:2])[0], rtol=1e-6)
