# SPDX-License-Identifier: Apache-2.0
"""What the residual field remembers from frame to frame.

The answers of single frames tremble: other points, other noise. Where the scene stands still the
answers of several frames are averaged (in log depth, on the field's grid), as a Kalman filter with
a bounded memory would. Old answers are moved with the camera when its pose is known. They lose
their weight

- everywhere, when they predict the new points worse than the new frame's own left-out points are
  predicted (the camera moved without a known pose, the scene changed),
- about new points that contradict them, and where the image or the network's answer changed,
- altogether, after a jump in time, a change of the image's size or camera, or a new scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.base import Base
from depth_node.fitting.field.detail import DetailParameters
from depth_node.fitting.field.features import FieldFeatures
from depth_node.fitting.field.lattice import Floats, Map, rounded
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.fitting.field.settings import TemporalConfig
from depth_node.fitting.robust import STD_TO_MAD, weighted_quantile
from depth_node.prediction import Prediction

# An old answer counts fully while its median error at new points is below the first of these times
# the expected one, and not at all above the second.
ERROR_LIMITS = (1.05, 1.45)
LARGE_ERROR_QUANTILE = 0.85  # of the errors, shows edges that are out of place
NEW_SCENE = 0.6  # fraction of changed cells that makes a new scene
CHANGED_COLOUR = 0.35  # of a correlation length of colour, after blurring
CHANGED_BASE = 0.08  # log of the network's map
CONTRADICTION = 3.0  # times the expected error
MIN_CONTRADICTION = 0.04  # log depth
MAX_MEDIAN_POINTS = 2000  # more points estimate the median shift no better


@dataclass(frozen=True)
class Pose:
    """Where the camera was. matrix: (3, 3) intrinsics of the undistorted image in pixels.

    T_world_camera: (4, 4), p_world = T p_camera, in any frame that stands still.
    """

    matrix: Floats
    T_world_camera: Floats


@dataclass(frozen=True)
class FieldAnswer:
    """One frame's answer on the grid, for the memory.

    log_depth: (h, w) float32. values: (h, w) of the network; log_base makes log metres of such a
    map with this frame's base. colour: (3, h, w) in correlation lengths. row, col, log_z, trust:
    (n,) points on the grid and how far they are to be believed, 0 to 1. error, large_error: median
    and LARGE_ERROR_QUANTILE of the expected errors of log depth at new points. height, width: of
    the image.
    """

    log_depth: Map
    values: Map
    log_base: Callable[[Map], Map]
    colour: Map
    row: Floats
    col: Floats
    log_z: Floats
    trust: Floats
    error: float
    large_error: float
    height: int
    width: int

    @classmethod
    def of(
        cls,
        prediction: Prediction,
        base: Base,
        features: FieldFeatures,
        log_depth: Map,
        left_out: LeaveOut,
        parameters: DetailParameters,
        outlier: Floats,
    ) -> FieldAnswer:
        """The answer of a frame whose log depth on the grid is log_depth (h, w).

        outlier: (n,) probability that a point is one.
        """
        values = prediction.values
        if base.unknown is not None:
            values = np.where(base.unknown, np.float32(0), values)
        size, area = features.grid.size, cv2.INTER_AREA
        return cls(
            log_depth=log_depth,
            values=np.asarray(cv2.resize(values, size, interpolation=area)),
            log_base=base.log_metres,
            colour=features.grid_colour,
            row=features.grid_row,
            col=features.grid_col,
            log_z=features.y + features.log_base + features.middle,
            trust=1 - outlier,
            error=weighted_quantile(parameters.error, left_out.weight, 0.5),
            large_error=weighted_quantile(parameters.error, left_out.weight, LARGE_ERROR_QUANTILE),
            height=features.image[0],
            width=features.image[1],
        )


@dataclass(frozen=True)
class _Past:
    log_depth: Map
    frames: Map  # how many frames the cell's answer is made of
    values: Map | None  # None after a move: a network sees other values from another place
    colour: Map
    stamp_ns: int
    pose: Pose | None
    size: tuple[int, int]


class FieldState:
    """The memory of one camera. Call `at` for every frame, then pass the state to `fit`."""

    def __init__(self) -> None:
        self._past: _Past | None = None
        self._stamp_ns = 0
        self._pose: Pose | None = None
        self.resets = 0
        self.old_weight = 0.0  # of the old answer in the last one, mean over the image

    def reset(self) -> None:
        """Forget everything."""
        self._past = None

    def at(self, stamp_ns: int, pose: Pose | None = None) -> None:
        """Announce the next frame: its time and, where known, the camera's pose."""
        self._stamp_ns = stamp_ns
        self._pose = pose

    def details(self) -> dict[str, Any]:
        """The memory's part in the last answer, for an operator."""
        return {"remembered": self.old_weight, "resets": self.resets}

    def blend(self, answer: FieldAnswer, config: TemporalConfig) -> Map:
        """(h, w) log depth of the frame averaged with the remembered one; is remembered itself."""
        past, changed = self._usable_past(answer, config)
        if past is None:
            frames: Map = np.ones(answer.log_depth.shape, np.float32)
            blended = answer.log_depth
            self.old_weight = 0.0
        else:
            shift, weight = _trust(past, changed, answer)
            old = past.log_depth + np.float32(shift)
            weight *= np.minimum(past.frames / (past.frames + 1), np.float32(config.memory))
            step = old - answer.log_depth
            step[~(weight > 0)] = 0  # log depth that is not remembered may be NaN
            blended = answer.log_depth + weight * step
            frames = weight / np.maximum(1 - weight, np.float32(1e-3)) + 1
            self.old_weight = float(weight.mean())
        self._past = _Past(
            blended,
            frames,
            answer.values,
            answer.colour,
            self._stamp_ns,
            self._pose,
            (answer.height, answer.width),
        )
        return blended

    def _usable_past(
        self, answer: FieldAnswer, config: TemporalConfig
    ) -> tuple[_Past | None, NDArray[np.bool_]]:
        """The past moved to the new pose, or None for a new beginning; (h, w) where it changed."""
        past = self._past
        nothing: NDArray[np.bool_] = np.zeros((0, 0), bool)
        if past is None or not config.enabled or config.memory == 0:
            return None, nothing
        gap_s = (self._stamp_ns - past.stamp_ns) * 1e-9
        same = past.size == (answer.height, answer.width)
        if not same or gap_s <= 0 or gap_s > config.max_gap_s:
            self.resets += 1
            return None, nothing
        if past.pose is not None and self._pose is not None:
            past = _moved(past, self._pose, answer)
        changed = _changed(past, answer)
        if changed.mean() > NEW_SCENE:
            self.resets += 1
            return None, nothing
        return past, changed


def _changed(past: _Past, answer: FieldAnswer) -> NDArray[np.bool_]:
    """(h, w) cells whose colour or base changed more than noise would."""
    colour = np.sqrt(((past.colour - answer.colour) ** 2).sum(axis=0))
    changed = ~(cv2.blur(colour, (3, 3)) < CHANGED_COLOUR)
    if past.values is not None:
        step = answer.log_base(past.values) - answer.log_base(answer.values)
        step -= np.float32(np.median(step[::4, ::4]))  # another scale alone is no change
        changed |= ~(np.abs(step) < CHANGED_BASE)
    return changed


def _trust(past: _Past, changed: NDArray[np.bool_], answer: FieldAnswer) -> tuple[float, Map]:
    """Shift to add to the old log depth, and (h, w) how far that is to be believed, 0 to 1."""
    rows = np.clip(rounded(answer.row), 0, past.log_depth.shape[0] - 1)
    cols = np.clip(rounded(answer.col), 0, past.log_depth.shape[1] - 1)
    miss = answer.log_z - past.log_depth[rows, cols].astype(np.float64)
    comparable = np.isfinite(miss) & (answer.trust > 0.5)
    weight = (~changed & np.isfinite(past.log_depth)).astype(np.float32)
    if np.count_nonzero(comparable) < 4:
        return 0.0, weight
    expected = max(answer.error, 1e-3)
    still = comparable & (weight[rows, cols] > 0)
    if np.count_nonzero(still) < 4:
        return 0.0, np.zeros_like(weight)
    # A camera that comes nearer shifts the whole map; the points show by how much.
    number = np.count_nonzero(still)
    some = miss[still][:: 1 + number // MAX_MEDIAN_POINTS]
    shift = float(np.median(some))
    spread, large = np.quantile(np.abs(some - shift), [0.5, LARGE_ERROR_QUANTILE])
    certainty = 1.5 * spread / math.sqrt(number)
    shift = math.copysign(max(abs(shift) - certainty, 0.0), shift)
    low, high = ERROR_LIMITS
    ratio = max(spread / expected, large / max(answer.large_error, 1e-3))
    weight *= np.float32(np.clip((high - ratio) / (high - low), 0, 1))
    # Around a point that contradicts the past, the past is wrong; around one that agrees it holds.
    limit = max(CONTRADICTION * expected / STD_TO_MAD, MIN_CONTRADICTION)
    against = np.abs(miss - shift) > limit
    if (against & comparable).any():
        weight *= 1 - _contradiction(
            rows[comparable], cols[comparable], against[comparable], weight.shape
        )
    return shift, weight


def _contradiction(
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    against: NDArray[np.bool_],
    shape: tuple[int, ...],
) -> Map:
    """(h, w) 0 to 1: how much the points around a cell contradict, 0 where there is none near."""
    spacing = math.sqrt(shape[0] * shape[1] / len(rows))
    size = 2 * round(min(max(spacing, 2.0), 24.0)) + 1
    cell, cells = rows * shape[1] + cols, shape[0] * shape[1]

    def around(which: NDArray[np.int64]) -> Map:
        count = np.bincount(which, minlength=cells).reshape(shape).astype(np.float32)
        border = cv2.BORDER_CONSTANT
        summed = cv2.boxFilter(count, -1, (size, size), normalize=False, borderType=border)
        return np.asarray(summed, np.float32)

    fraction = around(cell[against]) / np.maximum(around(cell), np.float32(0.5))
    # A third of the points about a cell is enough: an edge of what moved runs through.
    return np.minimum(3 * np.maximum(fraction, 0), 1).astype(np.float32)


def _moved(past: _Past, pose: Pose, answer: FieldAnswer) -> _Past:
    """The past as the camera sees it from its new pose; NaN where nothing is known.

    Cells go forward to where their points appear, the nearest wins; the small gaps between cells
    that moved apart are filled from their neighbours.
    """
    assert past.pose is not None
    height, width = past.log_depth.shape
    scale = np.diag([width / answer.width, height / answer.height, 1.0])
    offset = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    to_grid = half @ scale @ offset
    T = np.linalg.inv(pose.T_world_camera) @ past.pose.T_world_camera
    if np.allclose(T, np.eye(4), atol=1e-6) and np.allclose(pose.matrix, past.pose.matrix):
        return past
    back = np.linalg.inv(to_grid @ past.pose.matrix)
    project = (to_grid @ pose.matrix @ T[:3, :3] @ back).astype(np.float32)
    push = (to_grid @ pose.matrix @ T[:3, 3]).astype(np.float32)
    z = np.exp(past.log_depth)
    col = np.arange(width, dtype=np.float32)[None, :]
    row = np.arange(height, dtype=np.float32)[:, None]
    depth = z * (project[2, 0] * col + project[2, 1] * row + project[2, 2]) + push[2]
    with np.errstate(divide="ignore", invalid="ignore"):
        u = (z * (project[0, 0] * col + project[0, 1] * row + project[0, 2]) + push[0]) / depth
        v = (z * (project[1, 0] * col + project[1, 1] * row + project[1, 2]) + push[1]) / depth
    inside = (depth > 1e-3) & (u >= -0.5) & (v >= -0.5) & (u < width - 0.5) & (v < height - 0.5)
    source = np.flatnonzero(inside)
    depth, u, v = depth.ravel()[source], u.ravel()[source], v.ravel()[source]
    target = (v + 0.5).astype(np.int64) * width + (u + 0.5).astype(np.int64)
    nearest: Map = np.full(height * width, np.inf, np.float32)
    np.minimum.at(nearest, target, depth)
    first = depth <= nearest[target]
    from_cell: NDArray[np.int64] = np.full(height * width, -1, np.int64)
    from_cell[target[first]] = source[first]
    log_depth: Map = np.full(height * width, np.nan, np.float32)
    log_depth[target[first]] = np.log(depth[first])
    known = from_cell >= 0
    safe = np.maximum(from_cell, 0)
    frames = np.where(known, past.frames.ravel()[safe], 0).astype(np.float32)
    colour = past.colour.reshape(3, -1)[:, safe]
    colour[:, ~known] = np.nan
    filled = _filled(log_depth.reshape(height, width))
    planes = [_filled(plane) for plane in colour.reshape(3, height, width)]
    return _Past(
        filled,
        np.maximum(frames.reshape(height, width), np.isfinite(filled)).astype(np.float32),
        None,
        np.stack(planes),
        past.stamp_ns,
        past.pose,
        past.size,
    )


def _filled(plane: Map) -> Map:
    """A map (h, w) whose NaN cells with enough known neighbours have their mean."""
    known = np.isfinite(plane)
    if known.all():
        return plane
    value = cv2.boxFilter(np.where(known, plane, 0).astype(np.float32), -1, (3, 3), normalize=False)
    count = cv2.boxFilter(known.astype(np.float32), -1, (3, 3), normalize=False)
    out = plane.copy()
    gap = ~known & (count >= 4)
    out[gap] = value[gap] / count[gap]
    return out
