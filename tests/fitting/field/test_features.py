# SPDX-License-Identifier: Apache-2.0
"""Features: which points are used for each other, and the weight of old ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri

from depth_node.fitting.field import kernels
from depth_node.fitting.field.features import _declared_nugget
from depth_node.fitting.field.settings import FieldAblation
from depth_node.prediction import Prediction
from tests.helpers.field_room import (
    FIELD,
    Room,
    error,
    measure,
    network,
    room_features,
    solved,
    with_depth,
)
from tests.helpers.fits import fit


def test_numbers_of_the_regions_change_nothing(room: Room) -> None:
    points = measure(room, 300)
    other_labels = np.array([0, 17, 4, 9, 2], np.int32)[room.labels]
    heeded = FieldAblation(regions=True)
    kind: dict[str, Any] = {"image": room.image, "config": FIELD, "ablation": heeded}
    one = fit(network(room), points, room.labels, **kind)
    other = fit(network(room), points, other_labels, **kind)
    np.testing.assert_array_equal(one.depth, other.depth)
    without = fit(network(room), points, room.labels, image=room.image, config=FIELD)
    assert not np.allclose(one.depth, without.depth)


def test_without_picture_and_regions(room: Room) -> None:
    points = measure(room, 300)
    result = fit(network(room), points, config=FIELD)
    assert np.isfinite(result.depth).all()
    assert error(result, room.depth) < 0.05


def test_older_points_weigh_less(room: Room) -> None:
    """Of two scans that differ by 6 %, the newer one has more influence on the result."""
    points = measure(room, 800)
    old = np.arange(800) % 2 == 0
    depth = np.where(old, points.depth * 1.06, points.depth)
    age = np.where(old, 3.0, 0.0).astype(np.float32)
    aged = dataclasses.replace(with_depth(points, depth), age_s=age)
    exact = Prediction((3.0 / room.depth + 0.4).astype(np.float32), "disparity_affine_invariant")
    fresh_share = []
    for each in (aged, with_depth(points, depth)):
        ratio = np.median(solved(room, each, prediction=exact).depth / room.depth)
        fresh_share.append(abs(ratio - 1))
    assert fresh_share[0] < 0.85 * fresh_share[1]


def test_kriging_passes_near_points_and_returns_to_the_middle_far_away(room: Room) -> None:
    features = room_features(room, measure(room, 300))
    loops, none = kernels.kernels("auto"), np.zeros(300)
    queries = features.queries()._replace(hole=np.zeros(300))
    neighbours = features.nearest(queries, 10, loops)
    kriged = features.krige(queries.feature, neighbours, none, (1e-6,), loops)
    np.testing.assert_allclose(kriged.mean[0], features.y, atol=1e-4)
    far = np.ascontiguousarray(queries.feature + 1e4)
    neighbours = features.nearest(queries._replace(feature=far), 10, loops)
    kriged = features.krige(far, neighbours, none, (1e-6,), loops)
    np.testing.assert_allclose(kriged.mean[0], 0, atol=1e-4)
    np.testing.assert_allclose(kriged.variance[0], 1, atol=1e-4)


def test_point_is_not_its_own_neighbour_as_a_query(room: Room) -> None:
    features = room_features(room, measure(room, 300))
    neighbours = features.nearest(features.queries(), 5, kernels.kernels("auto"))
    assert not (neighbours.indices == np.arange(300)[:, None]).any()


@pytest.mark.parametrize(("noise", "nugget"), [(0.1, 10.0), (0.5**0.5 * 0.1, 1.0)])
def test_declared_noise_never_explains_all_that_the_residuals_vary(
    noise: float, nugget: float
) -> None:
    """A tenth of their variance stays for structure, also where the declaration is as large."""
    y = 0.1 * ndtri((np.arange(2001) + 0.5) / 2001)
    taken = _declared_nugget(y, np.full(len(y), noise))
    np.testing.assert_allclose(taken, nugget, rtol=0.02)
