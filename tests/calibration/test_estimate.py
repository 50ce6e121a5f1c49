# SPDX-License-Identifier: Apache-2.0
"""A correction is found with its uncertainty; several equally good ones count as unknown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from depth_node.benchmarks.calibration import calibrate_case
from depth_node.benchmarks.calibration_sequences import RenderedWalk, room_sequence
from depth_node.calibration.estimate import (
    UNIT,
    calibrate,
    correction_matrix,
    covariance_of,
    divided,
    local_maximum,
    rivals,
    thinned,
    usable_dimensions,
)
from depth_node.calibration.observation import AXES, observe_all
from depth_node.geometry.rigid import check_rigid, invert_rigid
from depth_node.simulation.walk import T_CAMERA_LIDAR


@pytest.mark.slow
def test_it_finds_its_way_from_five_degrees_and_ten_centimetres(short_walk: RenderedWalk) -> None:
    """In a room with much furniture thirteen frames are enough."""
    found = calibrate_case(short_walk, 64, True, 1)
    assert found.angle_deg < 0.3 and found.distance_m < 0.03
    assert abs(found.error[6]) < 0.01
    assert (np.abs(found.error) < 5 * found.estimate.std + 0.1 * UNIT).all()


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["yaw", "pitch"])
def test_a_turn_of_two_degrees_is_found(cache: Path, axis: str) -> None:
    fault = np.zeros(7)
    fault[AXES.index(axis)] = np.deg2rad(2.0)
    wrong = correction_matrix(fault) @ T_CAMERA_LIDAR
    room = room_sequence(101, 24, cache)
    estimate = calibrate(observe_all(room.frames(64, T_camera_lidar=wrong)))
    left = correction_matrix(estimate.correction) @ wrong @ invert_rigid(T_CAMERA_LIDAR)
    angle = np.rad2deg(np.arccos(np.clip((np.trace(left[:3, :3]) - 1) / 2, -1, 1)))
    assert angle < 0.5, f"{angle:.2f} degrees are left of two"
    assert np.isfinite(estimate.std).all() and estimate.edges > 100


def test_in_the_dark_every_axis_is_unknown(short_walk: RenderedWalk) -> None:
    """Some correction fits the noise of the images best, and often one fits it much better."""
    rng = np.random.default_rng(0)
    dark = [
        dataclasses.replace(frame, image=rng.integers(0, 6, frame.image.shape).astype(np.uint8))
        for frame in short_walk.frames(64)
    ]
    assert calibrate(observe_all(dark)).unknown == list(AXES)


def test_the_local_maximum_test_counts_what_scores_worse() -> None:
    rng = np.random.default_rng(0)
    height = np.array([1.0, 0.2, 0.3, 0.1])
    scores = height + 0.01 * rng.standard_normal((20, 4))
    assert local_maximum(scores) == (1.0, 1.0)
    worse, confidence = local_maximum(scores[:, ::-1])
    assert worse == 0 and confidence == 0


def test_an_end_elsewhere_that_scores_as_high_is_uncertainty() -> None:
    ends = np.zeros((3, 7))
    ends[1] = 3 * UNIT
    assert not rivals(ends, np.array([1.0, 0.5, 1.0]), np.zeros(7)).any()
    doubt = rivals(ends, np.array([1.0, 0.95, 1.0]), np.zeros(7))
    np.testing.assert_allclose(np.sqrt(np.diag(doubt)), 3 * UNIT)


def test_covariances_and_corrections_have_their_shapes() -> None:
    found = np.random.default_rng(1).standard_normal((12, 7)) * UNIT
    assert covariance_of(found, True).shape == (7, 7)
    assert covariance_of(found, False)[6, 6] == (2 * UNIT[6]) ** 2
    check_rigid(correction_matrix(found[0]))


def test_few_frames_are_divided_and_many_edges_thinned(short_walk: RenderedWalk) -> None:
    seen = observe_all(short_walk.frames(64)[:2])
    parts = divided(seen)
    assert len(parts) == 10
    assert sum(len(o.points) for o in parts) == sum(len(o.points) for o in seen)
    assert abs(sum(len(o.points) for o in thinned(seen, 200)) - 200) <= 2
    assert thinned(seen, 10**6) == seen


def test_a_time_offset_needs_motion(short_walk: RenderedWalk) -> None:
    assert usable_dimensions(observe_all(short_walk.frames(16))) == 7
    assert usable_dimensions(observe_all(short_walk.frames(16)[:1])) == 6


def test_a_correction_is_a_rigid_motion_and_its_negative_undoes_small_ones() -> None:
    step = np.array([0.01, -0.02, 0.005, 0.03, -0.01, 0.02, 0.0])
    T = correction_matrix(step)
    assert T[:3, :3] @ T[:3, :3].T == pytest.approx(np.eye(3), abs=1e-12)
    assert correction_matrix(-step) @ T == pytest.approx(np.eye(4), abs=1e-3)
    assert correction_matrix(np.zeros(7)) == pytest.approx(np.eye(4))
