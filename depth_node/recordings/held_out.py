# SPDX-License-Identifier: Apache-2.0
"""Division of the measured points into those that are used and those that are scored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_node.config import replace
from depth_node.frame import FrameInput
from depth_node.geometry.scan_lines import elevation_deg, rows_by_angle
from depth_node.geometry.sparse_depth import ProjectionConfig, project_points
from depth_node.recordings.files import FrameError

LINE_DEG = 0.5
"""Height of the rows that count as scan lines where no gaps separate the lines."""


@dataclass(frozen=True)
class Sampling:
    """Which of the known depths are measured; the others are scored.

    points: this many pixels, drawn uniformly from the depth map, or from the pixels that the LiDAR
    hits if there is no depth map. lines: one of this many scan lines. With neither, all LiDAR
    points except the fraction `hold_out` are used. Raises FrameError for values that cannot be.
    """

    points: int = 0
    lines: int = 0
    hold_out: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.points and self.lines:
            raise FrameError("--points and --lines exclude each other: give one of them.")
        if self.points < 0 or self.lines == 1 or self.lines < 0:
            raise FrameError("--points must be at least 1, --lines at least 2.")
        if not 0 <= self.hold_out < 1:
            raise FrameError(f"--hold-out must be at least 0 and below 1, not {self.hold_out:g}.")
        if self.seed < 0:
            raise FrameError(f"--seed is {self.seed}: give a number from 0.")


def measured_points(count: int, hold_out: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the indices of the points that are used, in their original order."""
    if hold_out == 0:
        return np.arange(count)
    return np.sort(rng.permutation(count)[: max(1, round(count * (1 - hold_out)))])


def hold_out_points(
    frame: FrameInput, sampling: Sampling, projection: ProjectionConfig, rng: np.random.Generator
) -> tuple[FrameInput, NDArray[np.float32] | None, NDArray[np.bool_] | None]:
    """Return the frame with the LiDAR points that are used, the truth and the scored pixels.

    The truth (H, W), m, NaN unknown, comes from the other points; scored pixels: (H, W) bool. Both
    are None if nothing is left to score. A pixel is not scored if a used point falls on it, visible
    or hidden, or if its point is hidden behind any other. A frame with fewer points than asked for
    uses none. Points with a declared noise are no truth if there are points without: they are all
    used.
    """
    points, T, camera = frame.points, frame.T_camera_lidar, frame.camera
    assert points is not None and T is not None
    age_s = np.broadcast_to(np.asarray(frame.age_s, np.float32), (len(points),))
    noise_m = np.broadcast_to(np.asarray(frame.noise_m, np.float32), (len(points),))
    poor = noise_m > 0 if (noise_m == 0).any() else np.zeros(len(points), bool)
    if sampling.points:
        seen = project_points(points, T, camera, projection, age_s, noise_m)
        exact = np.flatnonzero(seen.noise_m == 0) if poor.any() else np.arange(len(seen))
        chosen = exact[np.sort(rng.permutation(len(exact))[: sampling.points])]
        if len(exact) <= sampling.points:
            chosen = chosen[:0]
        rest = np.zeros(len(seen), bool)
        rest[exact] = True
        rest[chosen] = False
        used = seen.subset(~rest if len(chosen) else chosen)
        truth = seen.subset(rest).to_map(camera.height, camera.width)
        return dataclasses.replace(frame, points=None, sparse=used), truth, np.isfinite(truth)
    if sampling.lines:
        mask = _one_line_of(sampling.lines, points, T, camera, projection, rng)
    else:
        mask = np.zeros(len(points), bool)
        mask[measured_points(len(points), sampling.hold_out, rng)] = True
    mask = mask | poor
    observed = dataclasses.replace(
        frame, points=points[mask], age_s=age_s[mask], noise_m=noise_m[mask]
    )
    if mask.all():
        return observed, None, None
    size = (camera.height, camera.width)
    everything = project_points(points, T, camera, projection).to_map(*size)
    truth = project_points(points[~mask], T, camera, projection).to_map(*size)
    unhidden = replace(projection, {"drop_occluded": False})
    hit = np.isfinite(project_points(points[mask], T, camera, unhidden).to_map(*size))
    return observed, truth, np.isfinite(truth) & (truth == everything) & ~hit


def _one_line_of(
    one_of: int,
    points: NDArray[np.floating],
    T: NDArray[np.float64],
    camera: object,
    projection: ProjectionConfig,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Return a mask (N,) of the points on one of `one_of` of the scan lines that the camera sees.

    points: (N, 3) m. T: T_camera_lidar (4, 4).
    """
    p = np.asarray(points, np.float64)
    finite = np.isfinite(p).all(axis=1) & p.any(axis=1)
    # Joined scans of several LiDARs or times are in the camera's optical frame, where y is down.
    upright = p[finite][:, [2, 0, 1]] * (1, -1, -1) if np.allclose(T, np.eye(4)) else p[finite]
    row = np.full(len(p), -1, np.int64)
    row[finite] = rows_by_angle(elevation_deg(upright), LINE_DEG)
    with np.errstate(invalid="ignore", over="ignore"):  # some drivers write Inf without an echo
        depth = p @ T[2, :3] + T[2, 3]
    ahead = finite & (depth > projection.min_depth_m)
    lines, line = np.unique(np.where(ahead, row, -1), return_inverse=True)
    first = int(rng.integers(one_of))
    chosen: NDArray[np.bool_] = ahead & ((line + first) % one_of == 0) & (len(lines) > one_of)
    return chosen
