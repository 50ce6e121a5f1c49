# SPDX-License-Identifier: Apache-2.0
"""Details follow dense points."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from depth_node.benchmarks.accuracy import Interpolation
from depth_node.fitting.field import kernels
from depth_node.fitting.field.detail import (
    Surface,
    choose_detail,
    detail_correction,
    detail_points,
)
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.prediction import Prediction
from tests.helpers.field_room import Room, error, measure, measured_pixels, room_features, solved


def test_answer_tends_to_the_points_as_they_grow_dense(room: Room) -> None:
    """This holds even with a network of constant output."""
    flat = Prediction(np.full(room.depth.shape, 2, np.float32), "depth_affine_invariant")
    errors = [
        error(solved(room, measure(room, n), prediction=flat), room.depth)
        for n in (100, 1000, 10000)
    ]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_dense_scan_lines_are_joined_better_than_by_interpolation(room: Room) -> None:
    """Points at every pixel along lines 12 pixels apart, and a network of constant output."""
    blind = Prediction(np.full(room.depth.shape, 2, np.float32), "depth_affine_invariant")
    on_line = np.zeros(room.depth.shape, bool)
    for row in range(3):
        on_line[row::12] = True
    points = measure(room, np.count_nonzero(on_line), area=on_line)
    result = solved(room, points, prediction=blind)
    rows, cols = np.nonzero(~on_line)
    plain = Interpolation.of(points, rows, cols)(points.depth)
    truth = room.depth[rows, cols]
    assert error(result, room.depth) <= 0.75 * np.mean(np.abs(plain - truth) / truth)


def test_surface_and_rest_make_up_what_was_measured(room: Room) -> None:
    features = room_features(room, measure(room, 200))
    nodes = np.random.default_rng(0).normal(0, 0.1, len(features.node_queries.cell))
    surface = Surface.of(features, nodes)
    measured = np.log(room.depth[measured_pixels(features)].astype(np.float64))
    np.testing.assert_allclose(
        surface.at_point + surface.rest + features.middle, measured, rtol=1e-6, atol=1e-6
    )
    assert surface.log.shape == features.grid.shape


def test_a_dense_point_reaches_the_cells_beside_it_and_no_farther(room: Room) -> None:
    """One point differs on uniform ground, among points in nearly every cell."""
    features = room_features(room, measure(room, 76_000))
    features = dataclasses.replace(
        features, colour=np.zeros_like(features.colour),
        grid_colour=np.zeros_like(features.grid_colour),
    )  # fmt: skip
    loops = kernels.kernels("auto")
    count, shape = len(features), features.grid.shape
    left_out = LeaveOut.of(features, np.zeros(count), 10, loops)
    even: np.ndarray = np.zeros(shape, np.float32)
    one = int(np.argmin(np.hypot(features.grid_row - 40, features.grid_col - 60)))
    rest = np.zeros(count)
    rest[one] = 0.1
    surface = Surface(even, np.zeros(count), rest, np.zeros(count))
    points = detail_points(features, surface, np.zeros(count))
    parameters = choose_detail(features, left_out, surface, points, loops)
    parameters = dataclasses.replace(parameters, prior_weight=0.5, clip=9.0)
    alone = np.ones(count)
    alone[one] = 0.0
    points = detail_points(features, surface, alone)
    handed = detail_correction(features, surface, points, parameters, loops)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot(rows - features.grid_row[one], cols - features.grid_col[one])
    assert (handed[distance < 1.45] > 0).all() and np.count_nonzero(distance < 1.45) == 9
    assert not handed[distance > 1.6].any()
    assert handed.max() == pytest.approx(0.1 * 2 / (2 + 0.5 / 1.51), rel=0.01), "at the point"


def test_without_detail_nothing_is_corrected(room: Room) -> None:
    features = room_features(room, measure(room, 200))
    outlier, loops = np.zeros(len(features)), kernels.kernels("auto")
    left_out = LeaveOut.of(features, outlier, 10, loops)
    surface = Surface.of(features, np.zeros(len(features.node_queries.cell)))
    points = detail_points(features, surface, outlier)
    parameters = choose_detail(features, left_out, surface, points, loops, detail=False)
    assert parameters.prior_weight == np.inf
    assert not detail_correction(features, surface, points, parameters, loops).any()
