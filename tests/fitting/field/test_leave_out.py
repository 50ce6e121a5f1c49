# SPDX-License-Identifier: Apache-2.0
"""Left-out points represent the pixels between the points."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting.field import kernels
from depth_node.fitting.field.lattice import rounded
from depth_node.fitting.field.leave_out import MAX_ELONGATION, LeaveOut, distance_px
from tests.helpers.field_room import (
    Room,
    error,
    inside,
    measure,
    measured_pixels,
    network,
    room_features,
    solved,
    with_depth,
)


def test_range_noise_is_smoothed(room: Room) -> None:
    points = measure(room, 1500)
    noisy = points.depth * (1 + 0.03 * np.random.default_rng(0).standard_normal(1500))
    result = solved(room, with_depth(points, noisy), prediction=network(room, amplitude=0.05))
    assert error(result, room.depth) < 0.02


def test_interval_holds_between_scan_lines(room: Room) -> None:
    """Points of a line are close to each other; the pixels between lines are not."""
    on_line = np.zeros(room.depth.shape, bool)
    on_line[6::24] = True
    result = solved(room, measure(room, 1500, area=on_line))
    assert inside(result, room.depth, ~on_line) >= 0.82


def test_no_point_inside_the_hole_predicts_the_one_left_out(room: Room) -> None:
    """Points of four scan lines are closer to each other than pixels are to their nearest point."""
    on_line = np.zeros(room.depth.shape, bool)
    on_line[20::60] = True
    features = room_features(room, measure(room, 800, area=on_line))
    left_out = LeaveOut.of(features, np.zeros(len(features)), 10, kernels.kernels("auto"))
    own = left_out.which[:, None]
    assert not (left_out.neighbours.indices == own).any()
    position = features.points.feature[:, :2]
    step = position[own] - position[left_out.neighbours.indices]
    nearest = np.sqrt((step**2).sum(axis=2)).min(axis=1)
    # A hole is longer along the lines, never shorter than the distance across them.
    assert (nearest >= left_out.distance * (1 - 1e-9)).all()
    assert np.quantile(nearest / left_out.distance, 0.75) < 1.1 * MAX_ELONGATION
    assert np.median(left_out.distance) * features.length_px > 4 * 320 / (800 / 4)


def test_equally_near_neighbours_count_in_no_order_of_the_given_points(room: Room) -> None:
    """On a grid of pixels every point has four neighbours at one distance."""
    grid = np.zeros(room.depth.shape, bool)
    grid[4::8, 4::8] = True
    points = measure(room, int(grid.sum()), area=grid)
    shuffled = points.subset(np.random.default_rng(3).permutation(len(points)))
    one, other = (
        LeaveOut.of(features, np.zeros(len(features)), 10, kernels.kernels("auto"))
        for features in (room_features(room, points), room_features(room, shuffled))
    )
    assert np.array_equal(one.neighbours.indices, other.neighbours.indices)
    for name in ("hole", "shape", "distance", "mean"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_distance_is_zero_at_points_and_grows_away_from_them(room: Room) -> None:
    features = room_features(room, measure(room, 30))
    far_px = distance_px(features, kernels.kernels("auto"))
    rows, cols = measured_pixels(features)
    cells = tuple(rounded(each) for each in features.grid.coordinates(rows, cols))
    assert (far_px[cells] == 0).all()
    row, col = np.unravel_index(far_px.argmax(), far_px.shape)
    exact = np.hypot((features.grid_row - row), (features.grid_col - col)).min()
    assert far_px.max() == pytest.approx(exact * features.grid.cell_px, rel=0.05)
