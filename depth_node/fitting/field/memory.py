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
from depth_node.fitting.field.lattice import Floats, Integers, Map, resized, rounded
from depth_node.fitting.field.leave_out import LeaveOut
from depth_node.fitting.field.settings import TemporalConfig
from depth_node.fitting.robust import MAD_TO_STD, weighted_quantile
from depth_node.prediction import Prediction

NEW_SCENE = 0.6  # fraction of changed cells that makes a new scene
CHANGED_COLOUR = 0.35  # of a correlation length of colour, after blurring
CHANGED_BASE = 0.08  # log of the network's map
MAX_MEDIAN_POINTS = 2000  # more points estimate the median shift no better

# What moves in the image, on every second cell of the grid
HALF = 2
WINDOW = 5  # cells over which a displacement is estimated
COLOUR_NOISE = 0.02  # of a correlation length: smaller gradients show no displacement
MAX_DISPLACEMENT = 3.0  # cells; the edges of the old answer are out of place at more anyway
QUIET = 0.08  # cells of displacement that noise alone may show
ROUNDED = 0.25  # cells by which an answer is out of place that was moved with the camera
CHANGE_PER_CELL = 0.015  # log depth by which what moves one cell in the image may come nearer

# What the points say, on every fourth cell of the grid
QUARTER = 4
CLIP = 3.0  # standard deviations beyond which a miss counts as so many
CERTAINTY = 3.0  # squared standard deviations of a local mean that chance explains
CONTRADICTION = 4.0  # standard deviations of a miss that contradicts the past
MIN_CONTRADICTION = 0.02  # log depth
MIN_TESTED_WEIGHT = 0.02  # of the old answer at a left-out point that judges it
KEPT_EVIDENCE = 0.7  # of what earlier frames said of the old answers
DOUBT = 1.0  # standard errors by which the old answer is believed less than they say
NO_DIFFERENCE = 1e-5  # log depth that makes no difference


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
    error: median of its size. height, width: of the image.
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
    error: float
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
        size = (max(1, features.grid.size[0] // HALF), max(1, features.grid.size[1] // HALF))
        colour = [_reduced(plane, size) for plane in features.grid_colour]
        return cls(
            log_depth=log_depth,
            values=_reduced(values, size),
            log_base=base.log_metres,
            colour=np.stack(colour),
            row=features.grid_row,
            col=features.grid_col,
            log_z=features.y + features.log_base + features.middle,
            trust=1 - outlier,
            tested=left_out.which,
            miss=parameters.miss,
            error=weighted_quantile(parameters.error, left_out.weight, 0.5),
            height=features.image[0],
            width=features.image[1],
        )


@dataclass(frozen=True)
class _Evidence:
    """What left-out points say of steps towards the old answer: a regression of misses on steps.

    It is not biased by the points' own noise, which is in the misses alone. agreement, information,
    doubt: weighted sums of step times miss, of squared steps, and the variance of agreement.
    """

    agreement: float = 0.0
    information: float = 0.0
    doubt: float = 0.0

    @classmethod
    def of(cls, step: Floats, miss: Floats) -> _Evidence:
        """Of one frame. step, miss: (k,) log depth from the answer without the points."""
        size = np.abs(step)
        if len(step) == 0 or float(size.max()) <= NO_DIFFERENCE:
            return cls()
        weight = 1 / (size + np.median(size))  # an edge counts no more than what lies about it
        weighted = weight * step
        agreement, information = float(weighted @ miss), float(weighted @ step)
        rest = weighted * (miss - agreement / information * step)
        # One point alone explains its miss wholly.
        rest *= len(step) / max(len(step) - 1, 0.5)
        scale = 1 / float(np.median(size) + NO_DIFFERENCE)
        return cls(scale * agreement, scale * information, scale**2 * float(rest @ rest))

    def and_then(self, later: _Evidence) -> _Evidence:
        """With that of the next frame."""
        return _Evidence(
            KEPT_EVIDENCE * self.agreement + later.agreement,
            KEPT_EVIDENCE * self.information + later.information,
            KEPT_EVIDENCE**2 * self.doubt + later.doubt,
        )

    def fraction(self, errors: float) -> float:
        """Fraction of the steps that is right, so many standard errors added; 1 without evidence."""
        if self.information <= 0:
            return 1.0
        return (self.agreement + errors * math.sqrt(self.doubt)) / self.information


@dataclass(frozen=True)
class _Past:
    log_depth: Map
    frames: Map  # how many frames the cell's answer is made of
    values: Map | None  # None after a move: a network sees other values from another place
    colour: Map
    evidence: _Evidence
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
        past = self._usable_past(answer, config)
        frames: Map
        colour, evidence = answer.colour, _Evidence()
        if past is None:
            frames = np.ones(answer.log_depth.shape, np.float32)
            blended = answer.log_depth
            self.old_weight = 0.0
        else:
            old, weight, evidence = _old_and_weight(past, answer, config.memory)
            step = old - answer.log_depth
            step[~(weight > 0)] = 0  # log depth that is not remembered may be NaN
            blended = answer.log_depth + weight * step
            frames = weight / np.maximum(1 - weight, np.float32(1e-3)) + 1
            self.old_weight = float(weight.mean())
            # The remembered image is made of the same frames and so as late as the answer is.
            half = _reduced(weight, (colour.shape[2], colour.shape[1]))
            step = np.nan_to_num(past.colour - colour)
            step *= half
            colour = colour + step
        self._past = _Past(
            blended,
            frames,
            answer.values,
            colour,
            evidence,
            self._stamp_ns,
            self._pose,
            (answer.height, answer.width),
        )
        return blended

    def _usable_past(self, answer: FieldAnswer, config: TemporalConfig) -> _Past | None:
        """The past moved to the new pose, or None for a new beginning."""
        past = self._past
        if past is None or not config.enabled or config.memory == 0:
            return None
        gap_s = (self._stamp_ns - past.stamp_ns) * 1e-9
        same = past.size == (answer.height, answer.width)
        if not same or gap_s <= 0 or gap_s > config.max_gap_s:
            self.resets += 1
            return None
        if past.pose is not None and self._pose is not None:
            past = _moved(past, self._pose, answer)
        if _changed(past, answer).mean() > NEW_SCENE:
            self.resets += 1
            return None
        return past


def _reduced(plane: Map, size: tuple[int, int]) -> Map:
    """A map at a smaller (width, height), averaged."""
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.float32)


def _changed(past: _Past, answer: FieldAnswer) -> NDArray[np.bool_]:
    """(h/2, w/2) cells whose colour or base changed more than noise would."""
    square = ((past.colour - answer.colour) ** 2).sum(axis=0)
    changed = ~(cv2.blur(square, (3, 3)) < CHANGED_COLOUR**2)
    if past.values is not None:
        step = answer.log_base(past.values) - answer.log_base(answer.values)
        step -= np.float32(np.median(step[::2, ::2]))  # another scale alone is no change
        changed |= ~(np.abs(step) < CHANGED_BASE)
    return changed


def _old_and_weight(
    past: _Past, answer: FieldAnswer, memory: float
) -> tuple[Map, Map, _Evidence]:
    """(h, w) old log depth, shifted as the points want it, and its weight in the new answer.

    Also what left-out points say of such weights so far.
    """
    height, width = past.log_depth.shape
    rows = np.clip(rounded(answer.row), 0, height - 1)
    cols = np.clip(rounded(answer.col), 0, width - 1)
    old_z = past.log_depth[rows, cols].astype(np.float64)
    miss = answer.log_z - old_z
    changed = _changed(past, answer)
    nothing: Map = np.zeros((height, width), np.float32)
    half_rows = np.minimum(rows // HALF, changed.shape[0] - 1)
    half_cols = np.minimum(cols // HALF, changed.shape[1] - 1)
    comparable = np.isfinite(miss) & (answer.trust > 0.5)
    still = comparable & ~changed[half_rows, half_cols]
    number = np.count_nonzero(still)
    if number < 4:
        return past.log_depth, nothing, _Evidence()
    # A camera that comes nearer shifts the whole map; the points show by how much.
    some = miss[still][:: 1 + number // MAX_MEDIAN_POINTS]
    shift = float(np.median(some))
    spread = MAD_TO_STD * float(np.median(np.abs(some - shift)))
    certainty = spread / math.sqrt(number)
    shift = math.copysign(max(abs(shift) - certainty, 0.0), shift)
    step, tested_miss, tested = _tested(answer, old_z + shift)
    # What points miss has their noise in it; by how much two answers differ has not.
    expected = min(answer.error, float(np.median(np.abs(step))) if len(step) else math.inf)
    expected = max(expected, NO_DIFFERENCE)
    noise = resized(_displaced(past, answer) ** 2, (width, height))
    bias, trust = _biased(
        rows[comparable],
        cols[comparable],
        miss[comparable] - shift,
        max(spread, MAD_TO_STD * answer.error),
        (height, width),
    )
    noise += bias
    noise *= np.float32(1 / expected**2)
    noise += 1
    noise += 1 / np.maximum(past.frames, np.float32(1e-3))
    weight = 1 / noise
    np.minimum(weight, np.float32(memory), out=weight)
    valid = (~changed).astype(np.float32)
    weight *= (resized(valid, (width, height)) > 0.999) & np.isfinite(past.log_depth)
    weight *= trust
    believed = weight[rows[tested], cols[tested]]
    use = believed > MIN_TESTED_WEIGHT
    evidence = _Evidence.of((step * believed)[use], tested_miss[use])
    together = past.evidence.and_then(evidence)
    fraction = min(together.fraction(-DOUBT), evidence.fraction(DOUBT))
    weight *= np.float32(min(max(fraction, 0.0), 1.0))
    return past.log_depth + np.float32(shift), weight, together


def _tested(answer: FieldAnswer, old: Floats) -> tuple[Floats, Floats, Integers]:
    """For k of the points left out: old answer minus that without the point, miss, which they are.

    old: (n,) old log depth at the points.
    """
    tested = answer.tested
    use = np.isfinite(old[tested]) & (answer.trust[tested] > 0.5)
    tested, miss = tested[use], answer.miss[use]
    return old[tested] - (answer.log_z[tested] - miss), miss, tested


def _displaced(past: _Past, answer: FieldAnswer) -> Map:
    """(h/2, w/2) error of the old log depth where its image is out of place: what moved, moved."""
    difference = past.colour - answer.colour
    finite = np.isfinite(difference)
    if not finite.all():
        difference = np.where(finite, difference, np.float32(1))
    difference -= np.median(difference[:, ::4, ::4], axis=(1, 2), keepdims=True)
    change = np.square(difference).sum(axis=0)
    row_step = answer.colour[:, 2:, 1:-1] - answer.colour[:, :-2, 1:-1]
    col_step = answer.colour[:, 1:-1, 2:] - answer.colour[:, 1:-1, :-2]
    inner = (np.square(row_step) + np.square(col_step)).sum(axis=0) * np.float32(0.25)
    gradient = cv2.copyMakeBorder(inner, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    window = (WINDOW, WINDOW)
    change, gradient = cv2.blur(change, window), cv2.blur(gradient, window)
    # Noise of the image alone changes it where it is even.
    even = gradient[::2, ::2] <= np.quantile(gradient[::4, ::4], 0.2)
    floor = float(np.median(change[::2, ::2][even]))
    square = np.maximum(change - 1.5 * floor, 0) / (gradient + np.float32(COLOUR_NOISE**2))
    displacement = np.minimum(np.sqrt(square), np.float32(MAX_DISPLACEMENT))
    displacement = np.maximum(displacement - np.float32(QUIET), 0)
    height, width = change.shape
    old = past.log_depth[: HALF * height : HALF, : HALF * width : HALF]
    old = np.where(np.isfinite(old), old, answer.log_depth[: HALF * height : HALF, : HALF * width : HALF])
    step = cv2.morphologyEx(old, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    step *= displacement + np.float32(ROUNDED if past.values is None else 0)
    wrong = cv2.dilate(step, np.ones((3, 3), np.uint8))
    wrong += np.float32(CHANGE_PER_CELL) * displacement
    return np.asarray(wrong, np.float32)


def _biased(
    rows: Integers, cols: Integers, miss: Floats, spread: float, shape: tuple[int, int]
) -> tuple[Map, Map]:
    """(h, w) squared mean by which points about a cell miss the past, beyond chance; and trust.

    miss: (k,) at the cells (rows, cols). spread: its usual standard deviation. The trust, 0 to 1,
    ends where a third of the points about a cell contradict: an edge of what moved runs through.
    """
    height, width = math.ceil(shape[0] / QUARTER), math.ceil(shape[1] / QUARTER)
    cell = (rows // QUARTER) * width + cols // QUARTER
    spacing = math.sqrt(height * width / len(rows))
    size = 2 * round(min(max(spacing, 1.0), 6.0)) + 1

    def around(values: Floats | None) -> Map:
        total = np.bincount(cell, values, minlength=height * width).reshape(height, width)
        border = cv2.BORDER_CONSTANT
        summed = cv2.boxFilter(
            total.astype(np.float32), -1, (size, size), normalize=False, borderType=border
        )
        return np.asarray(summed, np.float32)

    count = np.maximum(around(None), np.float32(0.5))
    mean = around(np.clip(miss, -CLIP * spread, CLIP * spread)) / count
    square = np.maximum(mean * mean - np.float32(CERTAINTY * spread**2) / count, 0)
    limit = max(CONTRADICTION * spread, MIN_CONTRADICTION)
    against = around((np.abs(miss) > limit).astype(np.float64)) / count
    trust = 1 - np.minimum(3 * np.maximum(against, 0), 1)
    full = (shape[1], shape[0])
    return resized(square, full), resized(trust, full)


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
    filled = _filled(log_depth.reshape(height, width))
    return _Past(
        filled,
        np.maximum(frames.reshape(height, width), np.isfinite(filled)).astype(np.float32),
        None,
        _moved_colour(past.colour, source, target, first, (v, u), (height, width)),
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
        maps.append((whole[: HALF * colour.shape[1] : HALF, : HALF * colour.shape[2] : HALF]) / HALF)
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
