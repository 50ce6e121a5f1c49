# SPDX-License-Identifier: Apache-2.0
"""The score of a pose by a frame is highest at the truth; motion from poses and from images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from depth_node.benchmarks.calibration_sequences import RenderedWalk
from depth_node.calibration.estimate import UNIT
from depth_node.calibration.observation import AXES, motion, observe, observe_all, total_score
from depth_node.geometry.camera import Camera


@pytest.mark.parametrize("lines", [16, 64])
def test_the_truth_scores_best_along_each_axis(short_walk: RenderedWalk, lines: int) -> None:
    seen = observe_all(short_walk.frames(lines))
    fields = [o.spread(2.0) for o in seen]
    for axis in range(len(AXES)):
        tried = np.zeros((5, 7))
        tried[:, axis] = UNIT[axis] * np.array([-1, -0.5, 0, 0.5, 1])
        scores = total_score(seen, fields, tried).sum(0)
        assert np.argmax(scores) == 2, AXES[axis]
        assert scores[2] > 0


def test_late_points_score_best_at_their_offset(short_walk: RenderedWalk) -> None:
    seen = observe_all(short_walk.frames(64, late=True))
    tried = np.zeros((5, 7))
    tried[:, 6] = [-0.05, 0.0, 0.025, 0.05, 0.1]
    scores = total_score(seen, [o.spread(2.0) for o in seen], tried).sum(0)
    assert np.argmax(scores) == 3


def test_distorted_and_pinhole_cameras_agree(short_walk: RenderedWalk) -> None:
    frame = short_walk.frames(64)[0]
    seen = observe(frame)
    c = frame.camera
    bent = Camera(c.width, c.height, c.fx, c.fy, c.cx, c.cy, "plumb_bob", (1e-9, 0.0, 0.0, 0.0))
    tried = np.zeros((3, 7))
    tried[1, 1], tried[2, 3] = 0.01, 0.05
    field = seen.spread(2.0)
    np.testing.assert_allclose(
        dataclasses.replace(seen, camera=bent).score(field, tried),
        seen.score(field, tried),
        rtol=1e-3,
        atol=1e-2,
    )


def test_an_images_own_motion_is_about_that_of_the_odometry(short_walk: RenderedWalk) -> None:
    known = short_walk.frames(16)
    blind = short_walk.frames(16, odometry=False)
    turns = [
        (motion(a, b), motion(c, d))
        for a, b, c, d in zip(known, known[2:], blind, blind[2:], strict=False)
    ]
    told = np.array([one[1] for one, _ in turns if one is not None])
    guessed = np.array([one[1] for _, one in turns if one is not None])
    assert np.abs(told).max() > 0.05
    assert np.corrcoef(told, guessed)[0, 1] > 0.9


def test_motion_is_unknown_without_stamps_or_over_a_gap(short_walk: RenderedWalk) -> None:
    first, second = short_walk.frames(16)[:2]
    assert motion(first, dataclasses.replace(second, stamp_ns=None)) is None
    assert motion(first, dataclasses.replace(second, stamp_ns=10**10)) is None
    assert motion(first, first) is None


def test_a_frame_without_points_has_no_edges(short_walk: RenderedWalk) -> None:
    frame = dataclasses.replace(short_walk.frames(16)[0], points=None)
    seen = observe(frame)
    assert len(seen.points) == 0
    assert (seen.score(seen.spread(2.0), np.zeros((3, 7))) == 0).all()
