# SPDX-License-Identifier: Apache-2.0
"""Drawing of measured points on images."""

from __future__ import annotations

import numpy as np

from depth_node.visualization import colours, points


def test_points_are_drawn_where_they_are_and_the_nearest_on_top() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    scale = colours.Scale("depth", 1.0, 9.0)
    rows, cols = np.array([20, 20]), np.array([30, 30])
    for depth in (np.array([1.0, 9.0]), np.array([9.0, 1.0])):
        sample_image = points.points_on_image(image, rows, cols, depth, scale)
        assert np.array_equal(sample_image[20, 30], scale.colours(np.array([1.0]))[0])
        assert not sample_image[40:, 50:].any()


def test_crosses_mark_the_place_and_leave_the_rest_alone() -> None:
    sample_image = np.full((120, 160, 3), 99, np.uint8)
    crossed = points.draw_crosses(sample_image, np.array([40]), np.array([100]))
    assert sample_image.min() == sample_image.max() == 99, "the given image is not drawn into"
    red = np.argwhere((crossed == colours.REJECTED).all(axis=2))
    np.testing.assert_allclose(red.mean(axis=0), (40, 100), atol=0.6)
    changed = np.argwhere((crossed != 99).any(axis=2))
    assert np.abs(changed - (40, 100)).max() <= 6
    np.testing.assert_array_equal(
        points.draw_crosses(sample_image, np.array([]), np.array([])), sample_image
    )
