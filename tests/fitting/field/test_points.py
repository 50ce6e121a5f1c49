# SPDX-License-Identifier: Apache-2.0
"""Points of one pixel are merged; the result does not depend on their order."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting.field.points import merge_points
from depth_node.geometry.sparse_depth import SparseDepth
from tests.helpers.field_room import Room, measure, solved


@pytest.mark.parametrize("pattern", ["scattered", "level lines", "a lattice"])
def test_order_of_the_points_changes_nothing(room: Room, pattern: str) -> None:
    points = measure(room, 700)
    height, width = room.depth.shape
    if pattern != "scattered":  # every point has others that are equally near
        across, along = {"level lines": (24, 3), "a lattice": (12, 12)}[pattern]
        rows, cols = np.mgrid[across // 2 : height : across, along // 2 : width : along]
        rows, cols = rows.ravel(), cols.ravel()
        points = SparseDepth.from_arrays(rows, cols, room.depth[rows, cols])
    order = np.random.default_rng(9).permutation(len(points))
    one, other = solved(room, points), solved(room, points.subset(order))
    np.testing.assert_array_equal(one.depth, other.depth)
    np.testing.assert_array_equal(one.std, other.std)
    np.testing.assert_array_equal(one.point_inlier[order], other.point_inlier)


def test_points_given_twice_change_nothing(room: Room) -> None:
    points = measure(room, 300)
    twice = points.subset(np.concatenate([np.arange(300), np.arange(0, 300, 3)]))
    one, other = solved(room, points), solved(room, twice)
    np.testing.assert_array_equal(one.depth, other.depth)
    np.testing.assert_array_equal(one.point_inlier[::3], other.point_inlier[300:])


def test_newest_point_of_a_pixel_counts_and_equally_new_ones_have_their_mean_log() -> None:
    rows, cols = np.array([3, 3, 3, 5, 5]), np.array([4, 4, 4, 6, 6])
    depth, age_s = np.array([1.0, 4.0, 9.0, 2.0, 7.0]), np.array([0.1, 0.1, 0.5, 0.3, 0.2])
    points, merged = merge_points(SparseDepth.from_arrays(rows, cols, depth, age_s), (10, 20))
    assert len(points) == 2
    np.testing.assert_allclose(points.z[merged], [2, 2, 2, 7, 7])
    np.testing.assert_allclose(points.age_s[merged], [0.1, 0.1, 0.1, 0.2, 0.2])
    np.testing.assert_array_equal(points.rows[merged], rows)
    np.testing.assert_array_equal(points.cols[merged], cols)


def test_points_lie_in_the_range_of_their_cell() -> None:
    rng = np.random.default_rng(2)
    rows, cols = rng.integers(0, 50, 300), rng.integers(0, 70, 300)
    given = SparseDepth.from_arrays(rows, cols, rng.uniform(1, 2, 300))
    points, _ = merge_points(given, (50, 70))
    assert points.start[0] == 0 and points.start[-1] == len(points)
    for cell in range(len(points.start) - 1):
        part = slice(points.start[cell], points.start[cell + 1])
        assert (points.cells.cell(points.rows[part], points.cols[part]) == cell).all()
