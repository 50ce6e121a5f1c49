# SPDX-License-Identifier: Apache-2.0
"""network: which points are left out, and how many judge an interval.

What a completion network makes of it: tests/test_completion.py."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.fitting.network import left_out_blocks, network_answer
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction

SHAPE = (60, 80)


def scattered(count: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(0).permutation(SHAPE[0] * SHAPE[1])[:count]
    rows, cols = np.divmod(pixels, SHAPE[1])
    return rows, cols


@pytest.mark.parametrize(("count", "judged"), [(18, False), (19, True)])
def test_fewer_than_nineteen_errors_bound_nothing(count: int, judged: bool) -> None:
    """The largest of n errors is above the next one in n / (n + 1) of cases: .95 from 19 on."""
    points = SparseDepth.from_arrays(*scattered(count), np.full(count, 3.1))
    metres = Prediction(np.full(SHAPE, 3.0, np.float32), "depth_metric")
    answer = network_answer(metres, points, (0.1, 100.0), 0.5)
    assert np.isfinite(answer.std).all() == judged and np.isfinite(answer.std).any() == judged
    np.testing.assert_allclose(answer.depth, 3.0)


@pytest.mark.parametrize(("count", "share"), [(151, 1 / 2), (152, 1 / 4)])
def test_half_of_few_points_and_a_quarter_of_many_are_left_out(count: int, share: float) -> None:
    which = left_out_blocks(*scattered(count), SHAPE)
    assert which.mean() == pytest.approx(share, abs=0.06)


def test_blocks_are_as_wide_as_evenly_spread_points_lie_apart() -> None:
    """400 points in 60x80 pixels lie 3.46 px apart: 23 blocks in a row of 80."""
    rows, cols = scattered(400)
    rows[:80], cols[:80] = 0, np.arange(80)
    which = left_out_blocks(rows, cols, SHAPE)[:80]
    assert np.count_nonzero(np.diff(which.astype(int))) == 22
