# SPDX-License-Identifier: Apache-2.0
"""The field without a network is blended in where the network is weak, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting.field.settings import FieldAblation
from depth_node.prediction import Prediction
from tests.helpers.field_room import Room, error, inside, measure, network, solved, with_depth

ALONE = FieldAblation(blend=False)


def brightness(room: Room) -> Prediction:
    """A weak network: it mistakes brightness for nearness."""
    disparity = room.image.mean(axis=2).astype(np.float32) / 255 + 0.2
    return Prediction(disparity, "disparity_affine_invariant")


@pytest.mark.parametrize("count", [250, 500])
def test_weak_network_is_helped(room: Room, count: int) -> None:
    given, points = brightness(room), measure(room, count)
    mixed = solved(room, points, prediction=given)
    alone = solved(room, points, prediction=given, ablation=ALONE)
    assert error(mixed, room.depth) < 0.97 * error(alone, room.depth)
    assert mixed.details["without_network"] > 0.1
    assert inside(mixed, room.depth) >= 0.92


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_good_network_is_left_alone(room: Room, noise: float) -> None:
    """A good network is kept, although noise of the points makes both fields look equally good."""
    points = measure(room, 1000)
    factor = 1 + noise * np.random.default_rng(0).standard_normal(1000)
    points, given = with_depth(points, points.depth * factor), network(room, amplitude=0.03)
    mixed = solved(room, points, prediction=given)
    alone = solved(room, points, prediction=given, ablation=ALONE)
    np.testing.assert_array_equal(mixed.depth, alone.depth)
    np.testing.assert_array_equal(mixed.std, alone.std)


def test_few_points_do_not_tell_which_is_better(room: Room) -> None:
    given, points = brightness(room), measure(room, 60)
    mixed = solved(room, points, prediction=given)
    np.testing.assert_array_equal(
        mixed.depth, solved(room, points, prediction=given, ablation=ALONE).depth
    )
    enough = solved(room, measure(room, 130), prediction=given)
    assert enough.details["without_network"] > 0


def test_blend_lies_between_both_fields(room: Room) -> None:
    """The blend is a weighted mean: it scales with the points and stays between both fields."""
    given, points = brightness(room), measure(room, 500)
    mixed = solved(room, points, prediction=given)
    tripled = solved(room, with_depth(points, 3 * points.depth), prediction=given)
    np.testing.assert_allclose(tripled.depth, 3 * mixed.depth, rtol=1e-3)
    assert 0 < mixed.details["without_network"] < 1
