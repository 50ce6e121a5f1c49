# SPDX-License-Identifier: Apache-2.0
"""Depth discontinuities of a LiDAR scan: where a near surface ends in front of a far one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import FloatArray
from depth_node.geometry.scan_lines import rows_by_angle

MIN_JUMP_M = 0.15
MIN_JUMP_RATIO = 0.08
"""The range jumps by more than both at a discontinuity: more than noise or a slanted surface do."""
SAME_SLOPE = 0.5
"""Neighbouring steps that differ by less than this fraction of the larger are a slanted surface."""
MAX_GAP_DEG = 1.5
"""Largest angle between neighbours; the edge between them is known to half of their angle."""


@dataclass(frozen=True)
class DepthEdges:
    """Edges of a scan.

    points: (n, 3) float64 m in the LiDAR's frame, where near surfaces end. weight: (n,) of each
    edge.
    """

    points: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.weight)


def depth_edges(points: FloatArray, rotation: npt.NDArray[np.float64] | None = None) -> DepthEdges:
    """Find the depth discontinuities of a scan (N, 3), metres in the LiDAR's frame.

    The order of the points does not matter: points of about the same elevation form a line, sorted
    by azimuth, and points of about the same azimuth a column. rotation: (3, 3) camera from LiDAR;
    if the z axis of the points' frame is not upright in the camera (as after a change of frame),
    the angles are taken in the camera's frame. An edge is placed halfway between the near point and
    its far neighbour, at the range of the near one: the angular steps of a scan are coarse, but the
    mean of many such edges has no bias.
    """
    p = np.asarray(points, np.float64).reshape(-1, 3)
    if rotation is not None and abs(rotation[1, 2]) < 0.7:
        seen = p @ rotation.T
        x, y, z = seen[:, 2], -seen[:, 0], -seen[:, 1]
    else:
        x, y, z = p.T
    with np.errstate(invalid="ignore", over="ignore"):
        flat = np.hypot(x, y)
        reach = np.hypot(flat, z)
    valid = np.isfinite(reach) & (reach > 1e-3)
    p, reach = p[valid], reach[valid]
    azimuth = np.rad2deg(np.arctan2(y[valid], x[valid]))
    elevation = np.rad2deg(np.arctan2(z[valid], flat[valid]))
    both = [
        _along(p, reach, elevation, azimuth, np.cos(np.deg2rad(elevation))),
        _along(p, reach, azimuth, elevation, np.ones(len(reach))),
    ]
    return DepthEdges(
        np.concatenate([edges.points for edges in both]),
        np.concatenate([edges.weight for edges in both]),
    )


def _along(
    p: npt.NDArray[np.float64],
    reach: npt.NDArray[np.float64],
    across_deg: npt.NDArray[np.float64],
    along_deg: npt.NDArray[np.float64],
    metric: npt.NDArray[np.float64],
) -> DepthEdges:
    """Find discontinuities between neighbours along one angle, within rows of the other angle.

    p: (N, 3) m. reach: (N,) m. across_deg, along_deg: (N,). metric: (N,) factor that turns a
    difference of along_deg into an angle between rays.
    """
    row = rows_by_angle(across_deg)
    order = np.lexsort((along_deg, row))
    row, angle, r = row[order], along_deg[order], reach[order]
    gap = np.diff(angle) * metric[order][1:]
    jump = np.diff(r)
    near = np.minimum(r[1:], r[:-1])
    size = np.abs(jump)
    edge = (row[1:] == row[:-1]) & (gap < MAX_GAP_DEG)
    edge &= (size > MIN_JUMP_M) & (size > MIN_JUMP_RATIO * near)
    edge &= ~_slanted(np.diff(1.0 / r), row)
    index = np.flatnonzero(edge)
    first, second = order[index], order[index + 1]
    ahead = p[first] / reach[first, None] + p[second] / reach[second, None]
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    weight = np.sqrt(np.minimum(size[index] / near[index], 1.0))
    return DepthEdges(ahead * near[index, None], weight)


def _slanted(step: npt.NDArray[np.float64], row: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which steps (n,) of 1 / range belong to a slanted plane, such as a floor: (n,) bool.

    Along a scan line 1 / range of a plane changes evenly, so a step belongs to a plane if a
    neighbouring step has the same sign and at least half its size. row: (n + 1,) of the points; a
    step from one row to the next is not compared.
    """
    same = np.append(row[1:] == row[:-1], False)
    out = np.zeros(len(step), bool)
    if len(step) < 2:
        return out
    like = np.abs(np.diff(step)) <= SAME_SLOPE * np.maximum(np.abs(step[1:]), np.abs(step[:-1]))
    like &= same[:-1][1:] & same[:-1][:-1]
    out[:-1] |= like
    out[1:] |= like
    return out
