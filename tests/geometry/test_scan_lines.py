# SPDX-License-Identifier: Apache-2.0
"""The lines of a scan: separated by gaps in the angle, and by height where there is no gap."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.geometry.scan_lines import elevation_deg, rows_by_angle


@pytest.mark.parametrize(("gap_deg", "lines"), [(0.02, 1), (0.04, 2)])
def test_a_gap_of_three_hundredths_of_a_degree_parts_two_lines(gap_deg: float, lines: int) -> None:
    """The scatter of one line's points is no gap; the lines of the finest LiDARs have gaps."""
    angles = np.repeat([5.0, 5.0 + gap_deg], 20)
    order = np.random.default_rng(0).permutation(len(angles))
    row = np.empty(len(angles), np.int64)
    row[order] = rows_by_angle(angles[order])
    assert len(np.unique(row)) == lines
    assert len(np.unique(row[:20])) == len(np.unique(row[20:])) == 1
    assert row[0] <= row[-1], "rows grow with the angle"


def test_without_gaps_a_row_is_a_fifth_of_a_degree_high() -> None:
    angles = np.arange(0.0, 0.995, 0.01)
    row = rows_by_angle(angles)
    assert (np.diff(row) >= 0).all()
    assert np.bincount(row - row.min()).tolist() == pytest.approx([20] * 5, abs=1)


def test_elevation_is_above_the_lidars_own_plane() -> None:
    points = np.array([[1.0, 0, 0], [0, 2, 2], [-3, 0, -3], [0, 0, 1]])
    np.testing.assert_allclose(elevation_deg(points), [0, 45, -45, 90], atol=1e-9)
