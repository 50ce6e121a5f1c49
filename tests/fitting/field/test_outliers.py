# SPDX-License-Identifier: Apache-2.0
"""Outliers are found, honest points kept."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting.field.outliers import OUTLIER_NUGGET, outlier_nugget
from depth_node.fitting.field.settings import FieldAblation
from depth_node.prediction import Prediction
from tests.helpers.field_room import Room, error, measure, solved, with_depth


def test_outliers_are_found_and_do_no_harm(room: Room) -> None:
    points = measure(room, 500)
    rng = np.random.default_rng(4)
    wrong = rng.random(500) < 0.1
    factor = np.where(rng.random(500) < 0.5, 0.5, 1.8)
    result = solved(room, with_depth(points, np.where(wrong, points.depth * factor, points.depth)))
    rejected = ~result.point_inlier
    assert (rejected & wrong).sum() >= 0.8 * wrong.sum()
    assert (rejected & ~wrong).sum() <= 0.02 * 500
    assert error(result, room.depth) < 0.01
    blind = solved(
        room,
        with_depth(points, np.where(wrong, points.depth * factor, points.depth)),
        ablation=FieldAblation(outliers=False),
    )
    assert error(result, room.depth) < 0.6 * error(blind, room.depth)


def test_one_wrong_point_among_six_is_found(room: Room) -> None:
    """The network is right, and the five other points agree with it."""
    points = measure(room, 6)
    depth = points.depth.copy()
    depth[2] *= 1.5
    right = Prediction(room.depth, "depth_affine_invariant")
    result = solved(room, with_depth(points, depth), prediction=right)
    assert np.flatnonzero(~result.point_inlier).tolist() == [2]
    assert error(result, room.depth) < 0.01


def test_extra_nugget_grows_with_the_probability_and_stays_finite() -> None:
    extra = outlier_nugget(np.array([0.0, 0.5, 0.9, 1.0]))
    assert extra[0] == 0.0
    assert extra[1] == pytest.approx(OUTLIER_NUGGET)
    assert (np.diff(extra) > 0).all() and np.isfinite(extra).all()
