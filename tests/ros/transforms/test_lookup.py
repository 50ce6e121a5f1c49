# SPDX-License-Identifier: Apache-2.0
"""Poses at stamps of images, from static and moving transforms (more in test_extrinsics.py)."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from depth_node.geometry.rigid import rigid_transform
from depth_node.obstacles import ObstacleConfig
from depth_node.ros.transforms.ground import Ground
from depth_node.ros.transforms.lookup import StaleTransformError, StampedLookup
from depth_node.ros.transforms.tf import NoTransformError, Transform

OLD = rigid_transform((1.0, 0.0, 0.0), (0, 0, 0, 1))
NEW = rigid_transform((2.0, 0.0, 0.0), (0, 0, 0, 1))


class Link:
    """Static at first, then moving."""

    def __init__(self) -> None:
        self.moves_at_ns: int | None = None

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        if self.moves_at_ns is None:
            return OLD, 0
        if stamp_ns is not None and stamp_ns > self.moves_at_ns:
            raise NoTransformError("lookup would require extrapolation into the future")
        return NEW, self.moves_at_ns

    def forget_moving(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr("depth_node.ros.transforms.lookup.LOOK_AGAIN_S", 0.0)
    return Link()


def test_a_static_transform_that_began_to_move_is_not_kept(link: Link) -> None:
    lookup = StampedLookup(link, 0.1)
    np.testing.assert_array_equal(lookup.find("base", "camera", 10**9), OLD)
    link.moves_at_ns = 2 * 10**9
    np.testing.assert_array_equal(lookup.find("base", "camera", 2_050_000_000), NEW)
    with pytest.raises(StaleTransformError, match=r"3\.00 s older than the image"):
        lookup.find("base", "camera", 5 * 10**9)


def test_the_ground_of_a_mast_that_began_to_turn_is_not_the_one_before(link: Link) -> None:
    """The kept static transform stood in for a moving one that was late."""
    ground = Ground(ObstacleConfig(base_frame="base"), link, 0.1, lambda kind, text: None)
    assert ground._lookup is not None
    np.testing.assert_array_equal(ground._by_tf(ground._lookup, "camera", 10**9), OLD)
    link.moves_at_ns = 2 * 10**9
    with pytest.raises(NoTransformError, match=r"from camera to base \(the newest is 3\.00 s"):
        ground._by_tf(ground._lookup, "camera", 5 * 10**9)
