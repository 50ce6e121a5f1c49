# SPDX-License-Identifier: Apache-2.0
"""The interval holds the truth, and admits where it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.config import replace
from depth_node.fitting import FitConfig
from depth_node.fitting.field.interval import forget_far
from tests.helpers.field_room import FIELD, WIDTH, Room, inside, measure, network, solved


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
