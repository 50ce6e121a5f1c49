# SPDX-License-Identifier: Apache-2.0
"""Point clouds in perspective and from above."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.geometry.camera import Camera
from depth_node.visualization import clouds
from tests.helpers.views import CAMERA, room


def test_cloud_views_show_the_box_and_survive_emptiness() -> None:
    image, depth = room()
    for view in (clouds.point_cloud_view, clouds.top_view):
        sample_image = view(depth, image, CAMERA, 150, 200)
        assert sample_image.shape == (150, 200, 3)
        red = (sample_image[..., 0] > 120) & (sample_image[..., 1] < 90)
        assert red.sum() > 20
        nothing = view(np.full_like(depth, np.nan), image, CAMERA, 150, 200)
        assert nothing.std() < 20


def test_top_view_is_metric() -> None:
    """The wall at 4 m is drawn twice as far from the camera's foot as the box at 2 m."""
    image, depth = room()
    sample_image = clouds.top_view(depth, image, CAMERA, 300, 300).astype(int)
    column = sample_image[:, 140]  # beside the middle grid line, through box and wall
    red = np.flatnonzero((column[:, 0] > 120) & (column[:, 1] < 90))
    column = sample_image[:, 90]
    blue = np.flatnonzero((column[:, 2] > 120) & (column[:, 0] < 120))
    foot = 300 - 26
    assert (foot - blue.mean()) / (foot - red.mean()) == pytest.approx(2.0, rel=0.05)


def test_a_cloud_of_one_point_is_drawn() -> None:
    """It has no extent: nothing is divided by 0, and the point is drawn in the middle."""
    image, depth = room()
    one = np.full_like(depth, np.nan)
    one[60, 80] = 2.0
    drawn = clouds.point_cloud_view(one, image, CAMERA, 150, 200)
    nothing = clouds.point_cloud_view(np.full_like(depth, np.nan), image, CAMERA, 150, 200)
    rows, cols = np.nonzero((drawn != nothing).any(axis=2))
    assert abs(rows.mean() - 75) < 1 and abs(cols.mean() - 100) < 1


def test_points_on_the_optical_axis_are_drawn_from_above() -> None:
    """They have no width: nothing is divided by 0."""
    camera = Camera(1, 1, 0.8, 0.8, 0.0, 0.0)
    plan = clouds.top_view(
        np.full((1, 1), 2.0, np.float32), np.full((1, 1, 3), 255, np.uint8), camera, 150, 200
    )
    assert plan.shape == (150, 200, 3)


@pytest.mark.parametrize("depth_m", [150.0, 700.0, 30_000.0])
def test_the_floor_plan_of_a_deep_scene_has_a_grid(depth_m: float) -> None:
    """max_depth_m has no upper limit, and a wide card shows a field many times as wide as deep."""
    camera = Camera(124, 37, 72.0, 72.0, 61.5, 18.0)
    depth, image = np.full((37, 124), depth_m, np.float32), np.zeros((37, 124, 3), np.uint8)
    plan = clouds.top_view(depth, image, camera, 187, 596).astype(int)
    row = plan[-5]  # below the camera, where only vertical grid lines are
    assert 2 <= np.count_nonzero(np.diff(row.sum(axis=1)) > 20) <= 27
