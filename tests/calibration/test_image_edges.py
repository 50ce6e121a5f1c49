# SPDX-License-Identifier: Apache-2.0
"""Edges of images: their place, the independence of exposure, and how they are spread."""

from __future__ import annotations

import numpy as np

from depth_node.calibration.image_edges import edge_strength, gradient_strength, spread


def step(left: int = 40, right: int = 160) -> np.ndarray:
    image = np.full((48, 64, 3), left, np.uint8)
    image[:, 32:] = right
    return image


def test_a_step_is_an_edge_and_nothing_else_is() -> None:
    edges = edge_strength(step())
    assert (edges[:, 31:33] == 1).all()
    assert (edges[:, :30] == 0).all() and (edges[:, 35:] == 0).all()


def test_contrast_does_not_count() -> None:
    np.testing.assert_array_equal(edge_strength(step()), edge_strength(step(90, 120)))


def test_a_colour_edge_without_a_grey_one_counts() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32, 0], image[:, 32:, 2] = 60, 200
    assert gradient_strength(image)[:, 31:33].min() > 200


def test_a_blank_image_has_no_edges() -> None:
    assert not edge_strength(np.full((48, 64, 3), 7, np.uint8)).any()


def test_spreading_decays_with_distance() -> None:
    edges = np.zeros((41, 61), np.float32)
    edges[20, 30] = 1
    wide = spread(edges, 2.0)
    np.testing.assert_allclose(wide[20, 30:34], np.exp(-np.arange(4) / 2.0), rtol=1e-5)
    assert wide[23, 33] == wide[20, 33] == wide[20, 27]
    assert wide.max() == 1


def test_a_wide_reach_has_the_same_shape_and_peak() -> None:
    edges = np.zeros((48, 64), np.float32)
    edges[:, 32] = 1
    wide = spread(edges, 8.0)
    assert wide.shape == edges.shape
    assert abs(int(np.argmax(wide[24])) - 32) <= 1
    assert wide[24, 0] < wide[24, 16] < wide[24, 30]
