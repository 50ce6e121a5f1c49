# SPDX-License-Identifier: Apache-2.0
"""Evidence of image, points and left-out points on an old result."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.fitting.field import trust
from depth_node.fitting.field.kernels import kernels
from depth_node.fitting.field.lattice import Map
from depth_node.fitting.field.trust import MAX_DISPLACEMENT, Evidence, local_bias

SHAPE = (60, 80)


def pattern(shift: float = 0.0, noise: float = 0.0, seed: int = 0) -> Map:
    """Return waves that moved to the right by so many cells."""
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]]
    col = col - shift
    wave = 0.1 * np.sin(col / 3) + 0.1 * np.cos(row / 4 + col / 5)
    wave += np.random.default_rng(seed).normal(0, noise, SHAPE)
    return wave.astype(np.float32)


def displacement(old: Map, new: Map) -> Map:
    return trust.displacement(old, new, kernels("auto"))


def test_image_that_stands_still_is_not_displaced_by_its_noise() -> None:
    moved = displacement(pattern(noise=0.005, seed=1), pattern(noise=0.005, seed=2))
    assert np.mean(moved) < 0.02


@pytest.mark.parametrize("shift", [0.4, 0.8, 1.2])
def test_displacement_is_that_of_the_image(shift: float) -> None:
    moved = displacement(pattern(noise=0.001, seed=1), pattern(shift, noise=0.001, seed=2))
    assert 0.4 * shift < np.median(moved) < 1.2 * shift


def test_noise_that_differs_over_the_image_is_no_displacement() -> None:
    """Bright areas are saturated and have none, dark ones have much."""
    strength = np.where(np.arange(SHAPE[1]) < 40, 0.0, 0.012)
    rng = np.random.default_rng(7)
    old, new = (pattern() + strength * rng.standard_normal(SHAPE) for _ in range(2))
    assert displacement(old.astype(np.float32), new.astype(np.float32)).mean() < 0.02


def test_edge_that_moves_is_no_noise() -> None:
    old: Map = np.zeros(SHAPE, np.float32)
    new = old.copy()
    old[:, 40:], new[:, 41:] = 0.5, 0.5
    assert displacement(old, new)[:, 39:42].min() > 0.5


def test_displacement_is_found_where_it_is_and_bounded() -> None:
    new = pattern()
    new[20:40, 30:50] = pattern(6.0)[20:40, 30:50]
    moved = displacement(pattern(), new)
    assert np.median(moved[24:36, 34:46]) > 0.5
    assert moved[:15].max() == 0
    assert moved.max() <= MAX_DISPLACEMENT


def test_no_more_is_said_than_the_window_can_see() -> None:
    """Half a window of five cells: what has moved further, or was not seen, moved by about that."""
    old, new = pattern(), pattern()
    old[20:40, 30:50] = np.nan
    new[:15] += np.where(np.arange(SHAPE[1]) % 2, 50.0, -50.0).astype(np.float32)
    moved = displacement(old, new)
    for part in (moved[24:36, 34:46], moved[:13, 4:-4]):
        assert 2.0 < part.min() <= part.max() < 4.0


def test_brightness_alone_is_no_displacement() -> None:
    old = pattern(noise=0.003, seed=1)
    assert displacement(old, pattern(noise=0.003, seed=2) + np.float32(0.1)).mean() < 0.02


def test_what_was_not_seen_before_counts_as_moved() -> None:
    old = pattern()
    old[:, :20] = np.nan
    moved = displacement(old, pattern())
    assert moved[:, :15].min() > 1
    assert moved[:, 30:].max() == 0


def scattered(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, cols = np.divmod(np.random.default_rng(3).permutation(240 * 320)[:count], 320)
    return rows, cols


def test_chance_is_no_bias_and_no_contradiction() -> None:
    rows, cols = scattered(1000)
    miss = np.random.default_rng(4).normal(0, 0.02, 1000)
    square, trust = local_bias(rows, cols, miss, 0.02, (240, 320))
    assert square.shape == trust.shape == (60, 80)
    assert np.mean(square > 0) < 0.15
    assert np.mean(trust) > 0.98


def test_bias_of_a_thing_that_comes_nearer_is_measured() -> None:
    rows, cols = scattered(2000)
    miss = np.random.default_rng(4).normal(0, 0.01, 2000)
    thing = (rows > 80) & (rows < 160) & (cols > 100) & (cols < 200)
    miss[thing] -= 0.02
    square, _ = local_bias(rows, cols, miss, 0.01, (240, 320))
    assert 0.01 < np.sqrt(np.median(square[24:36, 30:45])) < 0.025
    assert np.median(square[:15]) == 0


def test_quiet_place_shows_a_smaller_bias_than_a_restless_image() -> None:
    """Far walls are measured to a millimetre a metre, whatever near edges do."""
    rows, cols = scattered(2000)
    rng = np.random.default_rng(4)
    miss = np.where(rows < 120, rng.normal(0.006, 0.0005, 2000), rng.normal(0, 0.02, 2000))
    square, _ = local_bias(rows, cols, miss, 0.015, (240, 320))
    assert np.median(square[5:25]) > 0.5 * 0.006**2


def test_contradiction_ends_the_trust() -> None:
    rows, cols = scattered(1000)
    miss = np.where(cols < 100, 0.5, 0.0)
    _, trust = local_bias(rows, cols, miss, 0.01, (240, 320))
    assert np.median(trust[:, :20]) == 0
    assert trust[:, 40:].min() == 1


@pytest.mark.parametrize("right", [1.0, 0.5, 0.0])
def test_evidence_is_not_moved_by_the_points_noise(right: float) -> None:
    rng = np.random.default_rng(5)
    step = rng.normal(0, 0.02, 20_000)
    miss = right * step + rng.normal(0, 0.05, 20_000)
    evidence = Evidence.of(step, miss)
    assert evidence.fraction(0.3, 0) == pytest.approx(right, abs=0.05)
    assert evidence.fraction(0.3, -1) < evidence.fraction(0.3, 0) < evidence.fraction(0.3, 1)


def test_little_evidence_changes_little() -> None:
    rng = np.random.default_rng(6)
    step, miss = rng.normal(0, 0.01, 8), rng.normal(0, 0.1, 8)
    assert Evidence.of(step, miss).fraction(0.8, 0) == pytest.approx(0.8, abs=0.25)
    assert Evidence().fraction(0.8, -1) == 0.8
    assert Evidence.of(np.zeros(5), np.ones(5)).fraction(0.8, -1) == 0.8
    assert Evidence.of(np.zeros(0), np.zeros(0)) == Evidence()
    assert Evidence.of(np.full(1, 0.01), np.full(1, 0.02)) == Evidence()


def test_one_large_step_does_not_decide() -> None:
    step = np.r_[np.full(100, 0.01), 1.0]
    miss = np.r_[np.full(100, 0.01), 0.0]
    assert Evidence.of(step, miss).fraction(0.5, 0) > 0.3


def test_evidence_of_frames_adds_up_and_fades() -> None:
    step = np.full(50, 0.01)
    helped, harmed = Evidence.of(step, step), Evidence.of(step, -step)
    together = helped
    for _ in range(12):
        together = together.and_then(harmed)
    assert together.fraction(0.5, 0) == pytest.approx(-1, abs=0.05)
    assert helped.and_then(harmed).information > harmed.information


def test_displacement_of_a_zoomed_image_grows_outwards() -> None:
    new = pattern()
    matrix = cv2.getRotationMatrix2D((40, 30), 0, 1.02)
    zoomed = np.asarray(cv2.warpAffine(new, matrix, (80, 60)), np.float32)
    moved = displacement(new, zoomed)
    assert moved[25:35, 35:45].mean() < 0.5 * moved[5:55, 65:75].mean()


def test_fewer_points_than_four_are_no_witnesses() -> None:
    step = np.array([0.1, -0.2, 0.15, 0.3])
    assert Evidence.of(step[:3], step[:3]) == Evidence()
    assert Evidence.of(step, step).fraction(0.5, 0.0) == pytest.approx(1.0)


def test_steps_of_a_hundred_thousandth_are_none() -> None:
    step = np.array([1.0, -1.0, 1.0, 1.0, -1.0])
    assert Evidence.of(0.8e-5 * step, step) == Evidence()
    assert Evidence.of(1.5e-5 * step, step) != Evidence()


def test_points_that_miss_by_less_than_two_hundredths_contradict_nothing() -> None:
    """This holds however exact the other points are."""
    rows, cols = (axis.ravel() for axis in np.mgrid[: SHAPE[0] : 2, : SHAPE[1] : 2])
    for miss, trusted in ((0.015, 1.0), (0.03, 0.0)):
        _, trust = local_bias(rows, cols, np.full(len(rows), miss), 1e-4, SHAPE)
        np.testing.assert_array_equal(trust, np.float32(trusted))
