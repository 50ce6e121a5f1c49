# SPDX-License-Identifier: Apache-2.0
"""thinning: bounded in number, evenly spread, and only known pixels."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.geometry.thinning import spread_pixels


def test_few_pixels_are_all_taken() -> None:
    known = np.zeros((40, 60), bool)
    known[3, ::7] = known[20:30, 5] = True
    rows, cols = spread_pixels(known, int(known.sum()))
    assert set(zip(rows, cols, strict=True)) == set(zip(*np.nonzero(known), strict=True))


@pytest.mark.parametrize("shape", [(480, 640), (1, 5000), (37, 1001), (5000, 3)])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.05])
def test_never_more_than_asked_for_and_each_once(shape: tuple[int, int], share: float) -> None:
    known = np.random.default_rng(1).random(shape) <= share
    rows, cols = spread_pixels(known, 100)
    assert 0 < len(rows) <= 100
    assert known[rows, cols].all()
    assert len(set(zip(rows, cols, strict=True))) == len(rows)


def test_a_pattern_keeps_every_part_of_the_image() -> None:
    """The known pixels are in every eighth column, beside those that a plain stride would take."""
    known = np.zeros((480, 640), bool)
    known[:, 3::8] = True
    rows, cols = spread_pixels(known, 1000)
    counts, _, _ = np.histogram2d(rows, cols, bins=(6, 8), range=((0, 480), (0, 640)))
    assert counts.min() > 0.5 * counts.max() > 0


def test_of_a_dense_image_the_middles_of_equal_squares() -> None:
    rows, cols = spread_pixels(np.ones((90, 120), bool), 1200)
    assert sorted(set(rows)) == list(range(1, 90, 3))
    assert sorted(set(cols)) == list(range(1, 120, 3))


def test_no_pixels_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        spread_pixels(np.ones((2, 2), bool), 0)
