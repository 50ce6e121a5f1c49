# SPDX-License-Identifier: Apache-2.0
"""The lines of a LiDAR scan, found by the angle of its points, in whatever order these are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import FloatArray

ROW_DEG = 0.2
"""Height of a row, whose points belong to one scan line; a line's points scatter less than this."""
GAP_DEG = 0.03
"""Least gap between two lines; where there are no gaps, rows of fixed height follow each other."""


def rows_by_angle(
    across_deg: npt.NDArray[np.float64], height_deg: float = ROW_DEG
) -> npt.NDArray[np.int64]:
    """Return the row of each point (n,), from the angle across the scan lines, degrees.

    A gap of more than GAP_DEG begins a new row, and so does a height of height_deg above the last
    gap. Fixed bins would not do: the points of a scan line have the same angle except for rounding,
    and the border of a bin could split them. Row numbers grow with the angle, with gaps.
    """
    order = np.argsort(across_deg)
    angle = across_deg[order]
    begins = np.diff(angle, prepend=-np.inf) > GAP_DEG
    line = np.cumsum(begins)
    within = np.floor((angle - angle[begins][line - 1]) / height_deg).astype(np.int64)
    row = np.empty(len(angle), np.int64)
    row[order] = line * 10_000 + within
    return row


def elevation_deg(points: FloatArray) -> npt.NDArray[np.float64]:
    """Return the elevation (N,), degrees, of points (N, 3) above the LiDAR's horizontal plane."""
    x, y, z = np.asarray(points, np.float64).T
    return np.rad2deg(np.arctan2(z, np.hypot(x, y)))
