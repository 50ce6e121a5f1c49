# SPDX-License-Identifier: Apache-2.0
"""The shift of a point map: exact for an exact map, and changed little by noise and holes."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.geometry.point_map import point_map_shift

HEIGHT, WIDTH = 56, 84


def pixel_rays() -> tuple[np.ndarray, np.ndarray]:
    rows, cols = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (cols - 41.5) / 70.0, (rows - 27.5) / 70.0


def point_map(shift: float, low: float = 1.0, high: float = 30.0) -> np.ndarray:
    """Return points (H, W, 3) with the shift missing in z."""
    ray_x, ray_y = pixel_rays()
    depth = np.random.default_rng(0).uniform(low, high, (HEIGHT, WIDTH))
    return np.stack([ray_x * depth, ray_y * depth, depth - shift], axis=2)


def test_the_shift_is_found_and_noise_moves_it_little() -> None:
    points = point_map(0.7)
    assert point_map_shift(points, *pixel_rays()) == pytest.approx(0.7, abs=1e-6)
    noisy = points + np.random.default_rng(1).normal(0, 0.01, points.shape)
    assert point_map_shift(noisy, *pixel_rays()) == pytest.approx(0.7, abs=0.02)


def test_points_that_are_missing_or_not_valid_do_not_count() -> None:
    points = point_map(0.7)
    points[:, ::3] = np.nan
    points[:20] *= (1, 1, 7)
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[:20] = False
    assert point_map_shift(points, *pixel_rays(), valid) == pytest.approx(0.7, abs=1e-6)


def test_without_points_there_is_no_shift() -> None:
    assert np.isnan(point_map_shift(np.full((HEIGHT, WIDTH, 3), np.nan), *pixel_rays()))
