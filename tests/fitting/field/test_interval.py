# SPDX-License-Identifier: Apache-2.0
"""The interval contains the true depth, and is NaN where it cannot be estimated."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.config import replace
from depth_node.fitting import FitConfig
from depth_node.fitting.field import kernels
from depth_node.fitting.field.interval import beside_edges, forget_far
from depth_node.fitting.field.lattice import rounded
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction
from tests.helpers import sequences
from tests.helpers.field_room import (
    FIELD,
    WIDTH,
    Room,
    inside,
    measure,
    network,
    room_features,
    solved,
    with_depth,
)
from tests.helpers.fits import fit


@pytest.mark.parametrize("count", [50, 250, 1000])
def test_interval_holds_the_truth(room: Room, count: int) -> None:
    shares = [
        inside(solved(room, measure(room, count, seed), prediction=network(room, seed)), room.depth)
        for seed in range(4)
    ]
    assert 0.90 <= np.mean(shares) <= 0.995


def test_extrapolation_is_admitted(room: Room) -> None:
    left = np.zeros(room.depth.shape, bool)
    left[:, : WIDTH // 2] = True
    own, plain, shares = [], [], []
    for seed in range(6):
        points = measure(room, 250, seed, left)
        prediction = network(room, seed)
        result = solved(room, points, prediction=prediction)
        config = FitConfig(method="global_disparity", mode="sensor")
        other = solved(room, points, config, prediction=prediction)
        own.append(np.mean(np.abs(result.depth - room.depth)[~left] / room.depth[~left]))
        plain.append(np.mean(np.abs(other.depth - room.depth)[~left] / room.depth[~left]))
        shares.append(inside(result, room.depth, ~left))
        relative = result.std / result.depth
        assert np.median(relative[:, -40:]) > 1.5 * np.median(relative[left])
    assert np.mean(own) <= 1.03 * np.mean(plain)
    assert np.mean(shares) >= 0.9


def test_beyond_the_limit_the_interval_is_unknown(room: Room) -> None:
    left = np.zeros(room.depth.shape, bool)
    left[:, :100] = True
    points = measure(room, 300, area=left)
    result = solved(room, points, replace(FIELD, {"field.max_extrapolation": 0.25}))
    assert np.isnan(result.std[:, 200:]).all()
    assert np.isfinite(result.depth).all()
    assert np.isfinite(result.std[:, :150]).all()


def test_interval_is_forgotten_beyond_the_limit_alone() -> None:
    std: NDArray[np.float32] = np.ones((20, 40), np.float32)
    far_px = np.tile(np.linspace(0, 20, 20, dtype=np.float32), (10, 1))
    forget_far(std, far_px, 0.5)
    assert np.isfinite(std).all()
    forget_far(std, far_px, 0.25)
    assert np.isfinite(std[:, :19]).all() and np.isnan(std[:, 21:]).all()


@pytest.mark.parametrize("points", ["250 points", "lines", "dense lines"])
def test_interval_holds_on_a_road_with_a_good_network_of_soft_edges(points: str) -> None:
    """The residuals of such a network are structure, not noise of the points."""
    view = sequences.kind("drive").views[0]
    disparity = 1 / (view.depth * sequences.bend(0, 0.03, (4, 5)))
    soft = cv2.GaussianBlur(disparity, (0, 0), 1.0)
    given = Prediction((3 * soft + 0.2).astype(np.float32), "disparity_affine_invariant")
    measured = (
        sequences.scattered(view, 0, 250, 0.0)
        if points == "250 points"
        else sequences.POINTS[points](view, 0)
    )
    result = fit(given, measured, image=view.image, config=FIELD)
    held = np.abs(result.depth - view.depth) <= NORMAL_95 * result.std
    assert 0.92 <= held.mean() <= 0.99


def test_declared_range_noise_is_taken_from_the_interval_alone(room: Room) -> None:
    points = measure(room, 1000)
    noise_m = 0.05
    noisy = points.depth + noise_m * np.random.default_rng(0).standard_normal(1000)
    points, given = with_depth(points, noisy), network(room, amplitude=0.03)
    unknown = solved(room, points, prediction=given)
    config = replace(FIELD, {"field.range_noise_m": noise_m})
    declared = solved(room, points, config, prediction=given)
    np.testing.assert_array_equal(declared.depth, unknown.depth)
    assert (declared.std < unknown.std).all()
    assert np.median(declared.std / unknown.std) < 0.85
    assert inside(declared, room.depth) >= 0.93
    assert inside(unknown, room.depth) >= inside(declared, room.depth)


def test_point_beside_an_edge_is_told_from_a_wrong_one(room: Room) -> None:
    """One point is as deep as the surface beyond the edge, the other as nothing near it."""
    features = room_features(room, measure(room, 400))
    loops = kernels.kernels("auto")
    left_out = LeaveOut.of(features, np.zeros(len(features)), 10, loops)
    which = left_out.which[:2]
    log_z = (features.y + features.log_base + features.middle)[which]
    log_depth: NDArray[np.float32] = np.zeros(features.grid.shape, np.float32)
    log_depth[:] = log_z.min() - 1
    row, col = rounded(features.grid_row)[which[0]], rounded(features.grid_col)[which[0]]
    log_depth[row, min(col + 2, log_depth.shape[1] - 1)] = log_z[0] + 0.1
    np.testing.assert_array_equal(beside_edges(features, which, log_depth, loops), [1, 0])
