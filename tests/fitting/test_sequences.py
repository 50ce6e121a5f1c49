# SPDX-License-Identifier: Apache-2.0
"""Sequences with truth: the memory helps where the scene stands and never harms where it does not.

`python -m tests.helpers.sequences` prints every kind and condition.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from depth_node.metrics import NORMAL_95
from tests.helpers import sequences

LARGEST_RATIO, LARGEST_LOSS = 1.01, 0.02  # of AbsRel with memory to without, of coverage

MOVING = [
    ("standing, people", "bent", "lines", "none"),
    ("slow drive, traffic", "bent", "dense lines", "none"),
    ("hand-held", "sharp", "dense lines", "right"),
]
MOVING_SLOW = [
    ("slow drive, traffic", "sharp", "300 points", "trembling"),
    ("slow drive, traffic", "sharp", "1500 points", "none"),
    ("slowly into hall", "sharp", "lines", "none"),
    ("standing, traffic", "sharp", "300 points", "trembling"),
    ("drive", "bent", "dense lines", "frozen"),
    ("drive", "sharp", "300 points", "right"),
    ("drive, traffic", "sharp", "300 points", "right"),
    ("drive, traffic", "sharp", "300 points", "crooked"),
    ("drive, traffic", "blurred", "300 points", "none"),
    ("turning drive", "sharp", "300 points", "trembling"),
    ("turning in hall", "sharp", "dense lines", "right"),
    ("hand-held", "blurred", "300 points", "crooked"),
    ("hand-held, people", "sharp", "1500 points", "none"),
    ("hand-held, people", "sharp", "dense lines", "right"),
]
STANDING = [("standing hall", "bent", "300 points"), ("standing hall", "sharp", "dense lines")]
STANDING_SLOW = [
    ("standing street", network, points)
    for network in sequences.NETWORKS
    for points in sequences.POINTS
]


NEAR = 0.01 if cv2.__version__.startswith("4.") else 0.05  # 5 resizes a little otherwise
# The weight of the past, mean over frames and pixels: the sum of all that the memory doubts.
REMEMBERED = {
    "standing, people": 0.3432,
    "slow drive, traffic": 0.0059,
    "hand-held": 0.0547,
    "slowly into hall": 0.2683,
}


def as_stated(value: float) -> object:
    return pytest.approx(value, rel=0.01, abs=2e-4)


@pytest.mark.parametrize(
    ("kind", "network", "points", "pose"),
    [*MOVING, *(pytest.param(*case, marks=pytest.mark.slow) for case in MOVING_SLOW)],
)
def test_memory_harms_no_sequence(kind: str, network: str, points: str, pose: str) -> None:
    score = sequences.score(kind, network, points, pose)
    assert score.ratio <= LARGEST_RATIO
    assert score.inside_change >= -LARGEST_LOSS
    assert score.worst_inside >= -2 * LARGEST_LOSS
    if (kind, network, points, pose) in MOVING:
        assert score.remembered == pytest.approx(REMEMBERED[kind], rel=NEAR)


@pytest.mark.parametrize(
    ("kind", "network", "points"),
    [*STANDING, *(pytest.param(*case, marks=pytest.mark.slow) for case in STANDING_SLOW)],
)
def test_standing_scene_flickers_a_third_as_much(kind: str, network: str, points: str) -> None:
    score = sequences.score(kind, network, points)
    assert score.flicker_ratio <= 1 / 3
    assert score.ratio <= 1
    assert score.inside_change >= -LARGEST_LOSS


def test_things_that_move_on_their_own_are_not_smeared() -> None:
    """A pose describes the motion of the camera and not that of the objects."""
    score = sequences.score("slow drive, traffic", "sharp", "300 points", "right")
    assert score.moving_on <= 1.1 * score.moving_off


def test_memory_gains_on_the_move_with_a_pose() -> None:
    score = sequences.score("slowly into hall", "bent", "300 points", "right")
    assert score.ratio <= 0.95
    assert score.remembered == pytest.approx(REMEMBERED["slowly into hall"], rel=NEAR)


@pytest.mark.parametrize("network", ["bent", "sharp", "blurred"])
def test_level_scan_lines_make_no_stairs_of_the_floor(network: str) -> None:
    """Along a line the floor is level: that says nothing of how it rises between two lines."""
    largest = {"bent": 0.007, "sharp": 0.007, "blurred": 0.012}[network]  # edges are blurred too
    floor = 0
    for frame in range(3):  # the lines' points lie elsewhere in each
        view = sequences.kind("standing hall").views[frame]
        depth, std = sequences.without_memory("standing hall", network, "lines")[frame]
        wrong = np.abs(depth - view.depth)
        assert np.mean(wrong / view.depth) < largest
        assert np.mean((wrong / view.depth)[view.body == floor]) < 0.007
        assert np.mean(wrong <= NORMAL_95 * std) > 0.9
