# SPDX-License-Identifier: Apache-2.0
"""What the residual field remembers from frame to frame.

The answers of single frames tremble: other points, other noise. Where the scene stands still the
answers of several frames are averaged (in log depth, on the field's grid), as a Kalman filter with
a bounded memory would. Old answers are moved with the camera when its pose is known. An old answer
of n frames counts

    w = min(memory, 1 / (1 + 1/n + (q / e)^2))

with e the frame's own error and q by how much the old answer may be out of date in that cell:

- what still moves in the image (the camera without a pose, or with a wrong one; things of their
  own) displaces the edges of the old answer,
- the new points about the cell miss the old answer to one side.

It counts nothing where image or network changed altogether, and everywhere less by the fraction
that predicts the points best that the frame's own answer is tested with: those left out. After a
jump in time, a change of the image's size or a new scene it is forgotten.
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
from depth_node.fitting.field.image_loops import reduced
from depth_node.fitting.field.interval import Spread
from depth_node.fitting.field.kernels import FieldKernels
from depth_node.fitting.field.lattice import Floats, Integers, Map, resized, rounded
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.fitting.field.settings import TemporalConfig
from depth_node.fitting.field.trust import Evidence, displacement, local_bias
from depth_node.fitting.robust import MAD_TO_STD, median, weighted_quantile
from depth_node.prediction import Prediction

HALF = 2  # image, network and weights are remembered on every second cell of the grid
NEW_SCENE = 0.6  # fraction of changed cells that makes a new scene
CHANGED_COLOUR = 0.35  # of a correlation length of colour, after blurring
CHANGED_BASE = 0.08  # log of the network's map
MIN_POINTS = 4  # that judge an old answer
MAX_MEDIAN_POINTS = 2000  # more points estimate the median shift no better
ROUNDED = 0.25  # cells by which an answer is out of place that was moved with the camera
CHANGE_PER_CELL = 0.015  # log depth by which what moves one cell in the image may come nearer
MOVING = 0.5  # cells of displacement that leave no doubt of a motion
MOVING_FRACTION = 0.4  # of the image, that leaves no trust in the rest without evidence
MIN_JUDGED_WEIGHT = 0.02  # of an old answer that a left-out point judges
DOUBT = (
    1.0  # standard errors by which left-out points are believed less, or more in one frame alone
)
LARGEST_STEP = 4.0  # towards the old answer, over the expected error: more is an edge out of place
MAX_FRACTION = 1.5  # of the weights, where left-out points want more
FAIR_DISTANCE = 0.5  # from an earlier point, over that of a left-out point from the others
MIN_ERROR = 1e-5  # log depth


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

    log_depth: (h, w) float32. values: (h/2, w/2) of the network; log_base makes log metres of such
    a map with this frame's base. colour: (3, h/2, w/2) in correlation lengths. row, col, log_z,
    trust: (n,) points on the grid and how far they are to be believed, 0 to 1. tested: (m,) of the
    points that were left out in turn, miss: (m,) by how much their log depth was missed then.
    distance_px: (m,) from which. error: median of the misses' size. expected: (h/2, w/2) median
    errors of pixels. far_px: (h/2, w/2) distance from the nearest point. height, width: of the
    image.
    """

    log_depth: Map
    values: Map
    log_base: Callable[[Map], Map]
    colour: Map
    row: Floats
    col: Floats
    log_z: Floats
    trust: Floats
    tested: Integers
    miss: Floats
    distance_px: Floats
    error: float
    expected: Map
    far_px: Map
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
        spread: Spread,
        kernels: FieldKernels,
    ) -> FieldAnswer:
        """The answer of a frame whose log depth on the grid is log_depth (h, w).

        outlier: (n,) probability that a point is one.
        """
        usual = weighted_quantile(parameters.error / spread.points, left_out.weight, 0.5)
        expected = spread.nodes * usual
        values = prediction.values
        if base.unknown is not None:
            values = np.where(base.unknown, np.float32(0), values)
        size = (max(1, features.grid.size[0] // HALF), max(1, features.grid.size[1] // HALF))
        colour = [_reduced(plane, size) for plane in features.grid_colour]
        return cls(
            log_depth=log_depth,
            values=reduced(values, size, kernels.mean),
            log_base=base.line.log_metres,
            colour=np.stack(colour),
            row=features.grid_row,
            col=features.grid_col,
            log_z=features.y + features.log_base + features.middle,
            trust=1 - outlier,
            tested=left_out.which,
            miss=parameters.miss,
            distance_px=left_out.distance * features.length_px,
            error=weighted_quantile(parameters.error, left_out.weight, 0.5),
            expected=resized(expected.astype(np.float32).reshape(features.nodes.shape), size),
            far_px=_every_second(left_out.far_px, size),
            height=features.image[0],
            width=features.image[1],
        )


@dataclass(frozen=True)
class _Past:
    log_depth: Map
    frames: Map  # (h/2, w/2) how many frames the answer is made of
    values: Map | None  # None after a move: a network sees other values from another place
    colour: Map  # made of the same frames as the answer
    far_px: Map  # (h/2, w/2) from the last frame's nearest point
    evidence: Evidence
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

    def blend(self, answer: FieldAnswer, config: TemporalConfig, kernels: FieldKernels) -> Map:
        """(h, w) log depth of the frame averaged with the remembered one; is remembered itself."""
        past, changed = self._usable_past(answer, config)
        blended, colour, evidence = answer.log_depth, answer.colour, Evidence()
        frames: Map = np.ones(colour.shape[1:], np.float32)
        self.old_weight = 0.0
        if past is not None:
            belief = _belief(past, changed, answer, config.memory, kernels)
            weight, evidence = belief.weight, belief.evidence
            old, size = past.log_depth, (blended.shape[1], blended.shape[0])
            largest = resized(LARGEST_STEP * answer.expected, size)
            blended = np.empty_like(blended)
            whole = resized(weight, size)
            kernels.drawn(old, answer.log_depth, belief.shift, largest, whole, blended)
            colour_step = past.colour - colour
            colour_step *= weight
            if past.values is None:
                np.nan_to_num(colour_step, copy=False)
            colour_step += colour
            colour = colour_step
            frames = weight / np.maximum(1 - weight, np.float32(1e-3)) + 1
            self.old_weight = float(weight.mean())
        self._past = _Past(
            blended,
            frames,
            answer.values,
            colour,
            answer.far_px,
            evidence,
            self._stamp_ns,
            self._pose,
            (answer.height, answer.width),
        )
        return blended

    def _usable_past(
        self, answer: FieldAnswer, config: TemporalConfig
    ) -> tuple[_Past | None, NDArray[np.bool_]]:
        """The past moved to the new pose, or None for a new beginning; where it changed."""
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


@dataclass(frozen=True)
class _Belief:
    """shift: to add to the old log depth. weight: (h/2, w/2) of it in the new answer."""

    shift: np.float32
    weight: Map
    evidence: Evidence


def _reduced(plane: Map, size: tuple[int, int]) -> Map:
    """A map at a smaller (width, height), averaged."""
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32)


def _every_second(plane: Map, size: tuple[int, int]) -> Map:
    """Every second cell of a map, at most (width, height) of them."""
    return np.ascontiguousarray(plane[: HALF * size[1] : HALF, : HALF * size[0] : HALF])


def _changed(past: _Past, answer: FieldAnswer) -> NDArray[np.bool_]:
    """(h/2, w/2) cells whose colour or base changed more than noise would."""
    step = past.colour - answer.colour
    step *= step
    changed = ~(cv2.blur(step[0] + step[1] + step[2], (3, 3)) < CHANGED_COLOUR**2)
    if past.values is not None:
        step = answer.log_base(past.values) - answer.log_base(answer.values)
        step -= np.float32(median(step[2::5, 2::5]))  # another scale alone is no change
        changed |= ~(np.abs(step) < CHANGED_BASE)
    return changed


@dataclass(frozen=True)
class _Judges:
    """Left-out points (n,), which judge the old answer.

    rows, cols: of a map of half the size. miss: from the log depth of the answer without them to
    the point. step: from it to the old answer. distance_px: to the nearest point of the others.
    """

    rows: Integers
    cols: Integers
    miss: Floats
    step: Floats
    distance_px: Floats

    @classmethod
    def of(
        cls,
        answer: FieldAnswer,
        old_miss: Floats,
        comparable: NDArray[np.bool_],
        rows: Integers,
        cols: Integers,
    ) -> _Judges:
        """Those of the points at which the old answer is known.

        Of all points: old_miss, from the old answer's log depth to the point; comparable, whether
        it is known; rows, cols as above.
        """
        usable = comparable[answer.tested]
        tested, miss = answer.tested[usable], answer.miss[usable]
        rows, cols = rows[tested], cols[tested]
        largest = LARGEST_STEP * answer.expected[rows, cols]
        step = np.clip(miss - old_miss[tested], -largest, largest)
        return cls(rows, cols, miss, step, answer.distance_px[usable])

    def evidence(self, past: _Past, weight: Map) -> Evidence:
        """What they say of the old answer with a weight (h/2, w/2)."""
        believed = weight[self.rows, self.cols]
        judged = believed > MIN_JUDGED_WEIGHT
        # Where the last frame had a point too, the old answer is better than at the pixels between.
        judged &= past.far_px[self.rows, self.cols] >= FAIR_DISTANCE * self.distance_px
        return Evidence.of((self.step * believed)[judged], self.miss[judged])


def _belief(
    past: _Past,
    changed: NDArray[np.bool_],
    answer: FieldAnswer,
    memory: float,
    kernels: FieldKernels,
) -> _Belief:
    """How the old answer is to be used. changed: (h/2, w/2) where it is not."""
    height, width = past.log_depth.shape
    rows = np.clip(rounded(answer.row), 0, height - 1)
    cols = np.clip(rounded(answer.col), 0, width - 1)
    half_rows = np.minimum(rows // HALF, changed.shape[0] - 1)
    half_cols = np.minimum(cols // HALF, changed.shape[1] - 1)
    miss = answer.log_z - past.log_depth[rows, cols]
    comparable = np.isfinite(miss) & (answer.trust > 0.5)
    still = miss[comparable & ~changed[half_rows, half_cols]]
    if len(still) < MIN_POINTS:
        return _Belief(np.float32(0), np.zeros(changed.shape, np.float32), Evidence())
    # A camera that comes nearer shifts the whole map; the points show by how much.
    some = still[:: 1 + len(still) // MAX_MEDIAN_POINTS]
    shift = median(some)
    spread = MAD_TO_STD * median(np.abs(some - shift))
    shift = math.copysign(max(abs(shift) - spread / math.sqrt(len(still)), 0.0), shift)
    miss -= shift
    judges = _Judges.of(answer, miss, comparable, half_rows, half_cols)
    # By how much points are missed has their noise in it, by how much two answers differ has not.
    noiseless = 1.0
    if len(judges.step):
        noiseless = min(median(np.abs(judges.step)) / max(answer.error, MIN_ERROR), 1.0)
    size = (changed.shape[1], changed.shape[0])
    bias, trust = local_bias(
        rows[comparable],
        cols[comparable],
        miss[comparable],
        max(spread, MAD_TO_STD * answer.error),
        (height, width),
    )
    moved = displacement(past.colour[0], answer.colour[0], kernels)
    outdated = np.square(_misplaced(past, answer, moved)) + resized(bias, size)
    outdated /= np.square(
        np.maximum(np.float32(noiseless) * answer.expected, np.float32(MIN_ERROR))
    )
    limit = np.minimum(past.frames / (past.frames + 1), np.float32(memory))
    weight = limit / (1 + limit * outdated)
    weight *= resized(trust, size)
    weight[changed] = 0
    now = judges.evidence(past, weight)
    evidence = past.evidence.and_then(now)
    # Where much is seen to move, what seems to stand still is only too even to show it.
    moving_fraction = float(np.minimum(moved, MOVING).mean()) / MOVING
    prior = max(1 - moving_fraction / MOVING_FRACTION, 0.0)
    fraction = min(evidence.fraction(prior, -DOUBT), now.fraction(prior, DOUBT))
    weight *= np.float32(min(max(fraction, 0.0), MAX_FRACTION))
    np.minimum(weight, limit, out=weight)
    return _Belief(np.float32(shift), weight, evidence)


def _misplaced(past: _Past, answer: FieldAnswer, moved: Map) -> Map:
    """(h/2, w/2) error of the old log depth from what moved by so many cells (h/2, w/2)."""
    height, width = moved.shape
    half = slice(0, HALF * height, HALF), slice(0, HALF * width, HALF)
    old = past.log_depth[half]
    around = np.ones((3, 3), np.uint8)
    if past.values is None:
        old = np.where(np.isnan(old), answer.log_depth[half], old)
    wrong: Map = np.asarray(
        cv2.morphologyEx(np.ascontiguousarray(old), cv2.MORPH_GRADIENT, around), np.float32
    )
    wrong *= moved + np.float32(ROUNDED) if past.values is None else moved
    wrong = np.asarray(cv2.dilate(wrong, around), np.float32)
    wrong += np.float32(CHANGE_PER_CELL) * moved
    return wrong


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
    half_height, half_width = past.frames.shape
    rows, cols = np.divmod(safe.reshape(height, width)[::HALF, ::HALF], width)
    rows, cols = rows[:half_height, :half_width], cols[:half_height, :half_width]
    rows = np.minimum(rows // HALF, half_height - 1)
    cols = np.minimum(cols // HALF, half_width - 1)
    frames, far_px = past.frames[rows, cols], past.far_px[rows, cols]
    was_seen = known.reshape(height, width)[::HALF, ::HALF][:half_height, :half_width]
    return _Past(
        _filled(log_depth.reshape(height, width)),
        np.where(was_seen, frames, np.float32(1)),
        None,
        _moved_colour(past.colour, source, target, first, (v, u), (height, width)),
        np.where(was_seen, far_px, np.float32(0)),
        past.evidence,
        past.stamp_ns,
        past.pose,
        past.size,
    )


def _moved_colour(
    colour: Map,
    source: Integers,
    target: Integers,
    first: NDArray[np.bool_],
    place: tuple[Map, Map],
    shape: tuple[int, int],
) -> Map:
    """(3, h/2, w/2) colour of the past from the new pose, NaN where nothing is known.

    source, target: cells of the grid (h, w) and where they appear, `first` those in front; place:
    rows and columns of the targets before rounding.
    """
    height, width = shape
    maps = []
    for at, (come, arrive) in enumerate(
        zip(np.divmod(source[first], width), np.divmod(target[first], width), strict=True)
    ):
        from_where: Map = np.full(height * width, np.nan, np.float32)
        # The cell that is in the middle of the target came from so far beside its source.
        from_where[target[first]] = come - (place[at][first] - arrive)
        whole = _filled(from_where.reshape(shape))
        maps.append(
            (whole[: HALF * colour.shape[1] : HALF, : HALF * colour.shape[2] : HALF]) / HALF
        )
    unknown = ~np.isfinite(maps[0])
    row, col = (np.where(unknown, np.float32(-1e4), each) for each in maps)
    moved = [
        cv2.remap(
            plane,
            col,
            row,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=float("nan"),
        )
        for plane in colour
    ]
    return np.stack(moved).astype(np.float32)


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
