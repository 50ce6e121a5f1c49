# SPDX-License-Identifier: Apache-2.0
"""The memory of the residual field from frame to frame.

The results of single frames jitter, because points and noise differ. Where the scene is static the
results of several frames are averaged (in log depth, on the field's grid), like a Kalman filter
with bounded memory does. An old result is moved with the camera if its pose is known. An old result
of n frames has the weight

    w = f L / (1 + L (q / e)^2),   L = min(memory, n / (n + 1)),   at most L

with e the frame's own error and q how outdated the old result is in that cell:

- what still moves in the image (because the camera's pose is unknown or wrong, or an object moves
  by itself) displaces the edges of the old result,
- the new points around the cell miss the old result to one side.

f is the fraction of all steps towards the old result that predicts the left-out points best. w is 0
where the image or the network's values changed completely. After a jump in time, a change of the
image's size or a new scene the old result is forgotten. docs/method.md has the details.
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
CHANGED_COLOUR = 0.35  # in correlation lengths of colour, after blurring
CHANGED_BASE = 0.08  # log of the network's map
MIN_POINTS = 4  # fewer points do not judge an old result
MAX_MEDIAN_POINTS = 2000  # more points do not estimate the median shift better
ROUNDED = 0.25  # cells by which rounding displaces a result that was moved with the camera
CHANGE_PER_CELL = 0.015  # change of log depth to expect of what moves by one cell in the image
MOVING = 0.5  # cells of displacement that are certainly a motion
MOVING_FRACTION = 0.4  # of the image: with more in motion, f is 0 without evidence
MIN_JUDGED_WEIGHT = 0.02  # least weight of an old result that a left-out point judges
DOUBT = 1.0  # standard errors by which f is lowered; f of a single frame is raised by as many
LARGEST_STEP = 4.0  # towards the old result, over the expected error: more is a displaced edge
MAX_FRACTION = 1.5  # maximum of f
FAIR_DISTANCE = 0.5  # least distance from an earlier point, over that from the present ones
MIN_ERROR = 1e-5  # log depth


@dataclass(frozen=True)
class Pose:
    """The camera's pose and intrinsics.

    matrix: (3, 3) intrinsics of the undistorted image in pixels. T_world_camera: (4, 4), p_world =
    T p_camera, in any frame fixed to the ground.
    """

    matrix: Floats
    T_world_camera: Floats


@dataclass(frozen=True)
class FieldAnswer:
    """One frame's result on the grid, as input of the memory.

    log_depth: (h, w) float32. values: (h/2, w/2) of the network; log_base converts such a map to
    log metres with this frame's base. colour: (3, h/2, w/2) in correlation lengths. row, col: (n,)
    coordinates of the points on the grid. log_z: (n,) log of their measured depth. trust: (n,) 0 to
    1. tested: (m,) indices of the left-out points. miss: (m,) their log depth minus the one
    predicted without them. distance_px: (m,) from which they were predicted. error: median of the
    absolute left-out errors. expected: (h/2, w/2) median errors to expect of pixels. far_px:
    (h/2, w/2) distance from the nearest point. height, width: of the image.
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
        """Collect the result of a frame whose log depth on the grid is log_depth (h, w).

        outlier: (n,) probability that a point is an outlier.
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
    frames: Map  # (h/2, w/2) number of frames that were averaged
    values: Map | None  # None after a move: a network gives other values from another place
    colour: Map  # averaged over the same frames as log_depth
    far_px: Map  # (h/2, w/2) distance from the nearest point of the last frame
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
        self.old_weight = 0.0  # mean weight of the old result in the last frame's

    def reset(self) -> None:
        """Forget everything."""
        self._past = None

    def at(self, stamp_ns: int, pose: Pose | None = None) -> None:
        """Announce the next frame: its time and, if known, the camera's pose."""
        self._stamp_ns = stamp_ns
        self._pose = pose

    def details(self) -> dict[str, Any]:
        """Return the weight of the memory in the last result, for an operator."""
        return {"remembered": self.old_weight, "resets": self.resets}

    def blend(self, answer: FieldAnswer, config: TemporalConfig, kernels: FieldKernels) -> Map:
        """Return the frame's log depth (h, w) averaged with the remembered one, and remember it."""
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
        """Return the past moved to the new pose, None if it is to be forgotten, and changed cells.

        The changed cells are (h/2, w/2) bool, or (0, 0) without a past.
        """
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
    """How the old result is used.

    shift: to add to the old log depth. weight: (h/2, w/2) of it in the new result. evidence: of
    the left-out points of this and earlier frames.
    """

    shift: np.float32
    weight: Map
    evidence: Evidence


def _reduced(plane: Map, size: tuple[int, int]) -> Map:
    """Return a map averaged to a smaller (width, height)."""
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32)


def _every_second(plane: Map, size: tuple[int, int]) -> Map:
    """Return every second cell of a map, at most (width, height) of them."""
    return np.ascontiguousarray(plane[: HALF * size[1] : HALF, : HALF * size[0] : HALF])


def _changed(past: _Past, answer: FieldAnswer) -> NDArray[np.bool_]:
    """Return the cells (h/2, w/2) whose colour or base changed by more than noise."""
    step = past.colour - answer.colour
    step *= step
    changed = ~(cv2.blur(step[0] + step[1] + step[2], (3, 3)) < CHANGED_COLOUR**2)
    if past.values is not None:
        step = answer.log_base(past.values) - answer.log_base(answer.values)
        some = step[2::5, 2::5]
        # A change of scale alone does not count.
        step -= np.float32(median(some if some.size else step))
        changed |= ~(np.abs(step) < CHANGED_BASE)
    return changed


@dataclass(frozen=True)
class _Judges:
    """Left-out points (n,) that judge the old result.

    rows, cols: cells of a map of half the size. miss: log depth of the point minus the one
    predicted without it. step: log depth of the old result minus the one predicted without the
    point. distance_px: from which the point was predicted.
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
        """Return the left-out points that can be compared with the old result.

        Of all points of the frame are given: old_miss, log depth of the point minus the old
        result's; comparable, whether that is known and the point is trusted; rows, cols as above.
        """
        usable = comparable[answer.tested]
        tested, miss = answer.tested[usable], answer.miss[usable]
        rows, cols = rows[tested], cols[tested]
        largest = LARGEST_STEP * answer.expected[rows, cols]
        step = np.clip(miss - old_miss[tested], -largest, largest)
        return cls(rows, cols, miss, step, answer.distance_px[usable])

    def evidence(self, past: _Past, weight: Map) -> Evidence:
        """Return their evidence on the old result with a weight (h/2, w/2)."""
        believed = weight[self.rows, self.cols]
        judged = believed > MIN_JUDGED_WEIGHT
        # Near points of the last frame, the old result is better than at the pixels between them.
        judged &= past.far_px[self.rows, self.cols] >= FAIR_DISTANCE * self.distance_px
        return Evidence.of((self.step * believed)[judged], self.miss[judged])


def _belief(
    past: _Past,
    changed: NDArray[np.bool_],
    answer: FieldAnswer,
    memory: float,
    kernels: FieldKernels,
) -> _Belief:
    """Determine how the old result is used. changed: (h/2, w/2) cells where it is not."""
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
    # The motion of the camera towards the scene shifts the whole map; the points show by how much.
    some = still[:: 1 + len(still) // MAX_MEDIAN_POINTS]
    shift = median(some)
    spread = MAD_TO_STD * median(np.abs(some - shift))
    shift = math.copysign(max(abs(shift) - spread / math.sqrt(len(still)), 0.0), shift)
    miss -= shift
    judges = _Judges.of(answer, miss, comparable, half_rows, half_cols)
    # The misses contain the points' noise, the difference of old and new results does not. So the
    # ratio of both corrects the expected error for the noise.
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
    # If much of the image moves, the rest is probably only too uniform to show its motion.
    moving_fraction = float(np.minimum(moved, MOVING).mean()) / MOVING
    prior = max(1 - moving_fraction / MOVING_FRACTION, 0.0)
    fraction = min(evidence.fraction(prior, -DOUBT), now.fraction(prior, DOUBT))
    weight *= np.float32(min(max(fraction, 0.0), MAX_FRACTION))
    np.minimum(weight, limit, out=weight)
    return _Belief(np.float32(shift), weight, evidence)


def _misplaced(past: _Past, answer: FieldAnswer, moved: Map) -> Map:
    """Return the error (h/2, w/2) of the old log depth by displacements (h/2, w/2) in cells."""
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
    """Return the past as seen from the camera's new pose, NaN where nothing is known.

    Each cell is moved forward to where its point appears, and the nearest one wins. Small gaps
    between cells that moved apart are filled from their neighbours.
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
    """Return the colour (3, h/2, w/2) of the past from the new pose, NaN where nothing is known.

    source: cells of the grid (h, w). target: cells where they appear. first: those that nothing
    hides. place: rows and columns of the targets before rounding.
    """
    height, width = shape
    maps = []
    for at, (come, arrive) in enumerate(
        zip(np.divmod(source[first], width), np.divmod(target[first], width), strict=True)
    ):
        from_where: Map = np.full(height * width, np.nan, np.float32)
        # What appears exactly at the centre of the target cell was beside the centre of the source
        # cell by the rounding error.
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
    """Return a map (h, w) in which NaN cells with four or more known neighbours get their mean."""
    known = np.isfinite(plane)
    if known.all():
        return plane
    value = cv2.boxFilter(np.where(known, plane, 0).astype(np.float32), -1, (3, 3), normalize=False)
    count = cv2.boxFilter(known.astype(np.float32), -1, (3, 3), normalize=False)
    out = plane.copy()
    gap = ~known & (count >= 4)
    out[gap] = value[gap] / count[gap]
    return out
