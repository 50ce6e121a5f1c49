# SPDX-License-Identifier: Apache-2.0
"""The lines of a LiDAR scan: told by the angle of its points, whatever their order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import FloatArray

ROW_DEG = 0.2
"""Points within a row this high are of one scan line; a line's points scatter less than that."""
GAP_DEG = 0.03
"""A gap between two lines is at least this wide; without gaps rows follow on each other."""


def rows_by_angle(
    across_deg: npt.NDArray[np.float64], height_deg: float = ROW_DEG
) -> npt.NDArray[np.int64]:
    """The row of each point (n,): a gap in the angle across begins a new one, so does a height.

    The points of a scan line have one angle but for rounding, so that no bin may cut through it.
    Rows grow with the angle; their numbers leave gaps.
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
    """(N,) degrees above the LiDAR's own horizontal plane, of points (N, 3) in its frame."""
    x, y, z = np.asarray(points, np.float64).T
    return np.rad2deg(np.arctan2(z, np.hypot(x, y)))
