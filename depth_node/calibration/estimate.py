# SPDX-License-Identifier: Apache-2.0
"""Estimation of the correction of a LiDAR's pose and time that aligns its edges with the images'.

A correction c is (7,), see observation.AXES; T_corrected = correction_matrix(c) @ T_camera_lidar.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from depth_node.calibration.observation import (
    AXES,
    FINE_PX,
    Floats,
    Observation,
    chance_variance,
    total_score,
)

BLOCKS = 10
"""Blocks of neighbouring frames, which show the same edges: the bootstrap draws whole blocks."""
RESAMPLES = 200
Fields = dict[float, list[npt.NDArray[np.float32]]]  # edge maps (h, w) by their reach, px

UNIT = np.array([*np.deg2rad([1.0, 1.0, 1.0]), 0.05, 0.05, 0.05, 0.05])
"""(7,) rad, m, s: the size of one step along each axis: one degree, 5 cm, 50 ms."""
LIMIT = np.array([6.0, 6.0, 6.0, 3.0, 3.0, 3.0, 2.4])
"""(7,) in UNITs: the limits of a search: 6 degrees, 15 cm, 0.12 s."""
KNOWN = np.array([*np.deg2rad([0.3, 0.3, 0.3]), 0.03, 0.03, 0.03, 0.02])
"""(7,) rad, m, s: an axis counts as known if its standard deviation is below this."""
LOCAL_RADIUS = 0.5
"""In UNITs: size of the perturbations of the local-maximum test."""


LEAST_SIGNIFICANCE = 7.0
"""Standard deviations of the score of edges at random pixels: a correction with a lower score fits
the images only by chance. In pure noise calibrate() reaches 5.6, in one image of a room 14."""


def corrections_of(steps: Floats) -> Floats:
    """Convert steps (K, 6) or (K, 7) in UNITs to corrections (K, 7)."""
    out = np.zeros((len(steps), 7))
    d = steps.shape[1]
    out[:, :d] = steps * UNIT[:d]
    return out


def correction_matrix(correction: Floats) -> Floats:
    """Return the (4, 4) matrix of a correction (6,) or (7,): T_corrected = it @ T_camera_lidar."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(correction[:3]).as_matrix()
    T[:3, 3] = correction[3:6]
    return T


def _block_sums(per_frame: Floats) -> Floats:
    """Sum the scores per frame (F, K) over blocks of neighbouring frames: (B, K)."""
    blocks = np.array_split(np.arange(len(per_frame)), min(BLOCKS, len(per_frame)))
    return np.stack([per_frame[block].sum(0) for block in blocks])


@lru_cache(maxsize=64)
def _draws(blocks: int) -> npt.NDArray[np.int64]:
    """Return how often each block is drawn in each resample, (RESAMPLES, blocks)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES)


@dataclass(frozen=True)
class Estimate:
    """An estimated correction (7,), see observation.AXES, with its covariance (7, 7); rad, m, s.

    edges: LiDAR discontinuities used. worse: fraction of small perturbations that score worse than
    the pose before the correction; confidence: fraction of the bootstrap's resamples in which at
    least 99 % of them do. time_known: whether the motion allowed a time offset to be estimated.
    """

    correction: Floats
    covariance: Floats
    edges: int
    worse: float
    confidence: float
    time_known: bool

    @property
    def std(self) -> Floats:
        """(7,) standard deviations."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def unknown(self) -> list[str]:
        """The axes that the data leave undetermined; the time only if the motion could show it."""
        axes = range(7 if self.time_known else 6)
        return [AXES[axis] for axis in axes if self.std[axis] > KNOWN[axis]]


def local_maximum(scores: Floats) -> tuple[float, float]:
    """Return the fraction of perturbations that score worse than the pose, and its confidence.

    The confidence is the fraction of bootstrap resamples in which at least 0.99 of the
    perturbations score worse. scores: (F, 1 + K), the first column those of the pose itself.
    """
    sums = _block_sums(scores)
    total = sums.sum(0)
    drawn = _draws(len(sums)) @ sums
    worse = (drawn[:, 1:] < drawn[:, :1]).mean(1)
    return float((total[1:] < total[0]).mean()), float((worse >= 0.99).mean())


def perturbations(dimensions: int) -> Floats:
    """Return perturbations (1 + K, dimensions) in -1..1: none, both ways along each axis, mixed."""
    axes = np.eye(dimensions)
    mixed = np.random.default_rng(11).uniform(-1, 1, (12, dimensions))
    return np.concatenate([np.zeros((1, dimensions)), axes, -axes, mixed, -mixed])


def usable_dimensions(observations: Sequence[Observation]) -> int:
    """Return 7 if the camera is known to move in most frames, else 6, without the time offset."""
    moving = [
        o.twist is not None and bool((np.abs(o.twist) > (0.05,) * 3 + (0.1,) * 3).any())
        for o in observations
    ]
    return 7 if np.mean(moving) > 0.5 else 6


def divided(observations: Sequence[Observation]) -> list[Observation]:
    """Return at least BLOCKS observations: a few frames are divided into vertical strips.

    Each strip has a part of the points, by their column in the image.
    """
    parts = -(-BLOCKS // max(len(observations), 1))
    if parts <= 1:
        return list(observations)
    out = []
    for o in observations:
        order = np.argsort(o.camera.project(o.points)[:, 0])
        out += [o.subset(chosen) for chosen in np.array_split(order, parts)]
    return out


@dataclass(frozen=True)
class SearchStage:
    """A stage of a search.

    reach_px: reach of the edges. deviation: standard deviation of the first draws, in UNITs. least:
    standard deviation, in UNITs, that is added to that of the best draws in each round.
    """

    reach_px: float
    deviation: float
    least: float


SEARCH = (
    SearchStage(16.0, 2.0, 0.1),
    SearchStage(8.0, 1.0, 0.05),
    SearchStage(4.0, 0.5, 0.02),
    SearchStage(FINE_PX, 0.25, 0.002),
)


@dataclass(frozen=True)
class Effort:
    """The effort of a search.

    stages: coarse to fine. draws: per round. elite: how many of the best draws give the next mean
    and covariance. rounds: per stage. edges: about how many LiDAR edges are used in all.
    """

    stages: tuple[SearchStage, ...] = SEARCH
    draws: int = 160
    elite: int = 20
    rounds: int = 7
    edges: int = 6000


KEEP = 0.2
"""Weight of the old covariance in the new one: the search must not narrow too early in a diagonal
ridge of the score."""


def thinned(observations: Sequence[Observation], edges: int) -> list[Observation]:
    """Return the observations thinned to about `edges` LiDAR edges in all."""
    share = edges / max(sum(len(o.points) for o in observations), 1)
    if share >= 1:
        return list(observations)
    out = []
    for o in observations:
        chosen = np.linspace(0, max(len(o.points) - 1, 0), round(share * len(o.points)))
        out.append(o.subset(chosen.round().astype(np.intp)))
    return out


def search(
    observations: Sequence[Observation],
    effort: Effort = Effort(),
    start: Floats | None = None,
    counts: npt.NDArray[np.integer] | None = None,
    seed: int = 3,
    fields: Fields | None = None,
) -> Iterator[Floats]:
    """Search a correction from coarse to fine; yields the mean (7,) of the best after each round.

    The cross-entropy method: corrections are drawn around a mean, and the best of them give the
    next mean and covariance. start: (7,), None for no correction. counts: (F,) weight of each
    observation. fields: edge maps of the observations by reach; missing ones are added.
    """
    d = usable_dimensions(observations)
    some = thinned(observations, effort.edges)
    weights = np.ones(len(some)) if counts is None else counts.astype(np.float64)
    rng = np.random.default_rng(seed)
    mean = np.zeros(d) if start is None else start[:d] / UNIT[:d]
    fields = {} if fields is None else fields
    for stage in effort.stages:
        if stage.reach_px not in fields:
            fields[stage.reach_px] = [o.spread(stage.reach_px) for o in some]
        maps = fields[stage.reach_px]
        covariance = np.eye(d) * stage.deviation**2
        for _ in range(effort.rounds):
            drawn = rng.multivariate_normal(mean, covariance, effort.draws)
            drawn[0] = mean
            drawn = np.clip(drawn, -LIMIT[:d], LIMIT[:d])
            scores = weights @ total_score(some, maps, corrections_of(drawn))
            best = drawn[np.argsort(-scores)[: effort.elite]]
            mean = best.mean(0)
            elite_covariance = np.cov(best.T) + np.eye(d) * stage.least**2
            covariance = (1 - KEEP) * elite_covariance + KEEP * covariance
            yield corrections_of(mean[None])[0]


def resampled(
    observations: Sequence[Observation],
    effort: Effort,
    start: Floats,
    repeats: int,
    fields: Fields | None = None,
) -> Iterator[Floats]:
    """Search a correction (7,) in each of `repeats` bootstrap resamples of blocks of frames.

    Every search begins at `start` (7,). Yields NaN (7,) after each round, and the correction after
    the last round of a resample.
    """
    count = len(observations)
    block_of = np.arange(count) * min(BLOCKS, count) // max(count, 1)
    fields = {} if fields is None else fields
    rng = np.random.default_rng(17)
    blocks = int(block_of.max(initial=0)) + 1
    for number in range(repeats):
        times = rng.multinomial(blocks, np.full(blocks, 1 / blocks))[block_of]
        correction = start
        for correction in search(observations, effort, start, times, 100 + number, fields):  # noqa: B007
            yield np.full(7, np.nan)
        yield correction


def covariance_of(corrections: Floats, time_known: bool) -> Floats:
    """Return the covariance (7, 7) of resampled corrections (n, 7).

    An unknown time gets a standard deviation of 100 ms.
    """
    blocks = BLOCKS / (BLOCKS - 1)
    covariance = np.atleast_2d(np.cov(corrections.T)) * blocks + np.diag((0.01 * UNIT) ** 2)
    if not time_known:
        covariance[6, 6] = (2 * UNIT[6]) ** 2
    return covariance


def pose_covariance(T: Floats, covariance: Floats) -> Floats:
    """Return the covariance (6, 6) of a pose T (4, 4) in the order of ROS: x, y, z and rotations.

    covariance: (7, 7) of a correction of the pose, whose rotation also moves the LiDAR's origin.
    """
    x, y, z = T[:3, 3]
    J = np.zeros((6, 7))
    J[:3, :3] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
    J[:3, 3:6] = np.eye(3)
    J[3:, :3] = np.eye(3)
    return J @ covariance @ J.T


def _last(rounds: Iterator[Floats]) -> Floats:
    """Return the last correction (7,) of a search."""
    (correction,) = deque(rounds, maxlen=1)
    return correction


def rivals(ends: Floats, scores: Floats, correction: Floats) -> Floats:
    """Return the covariance (7, 7) due to other results of the searches that score nearly as high.

    ends: (n, 7) results, scores: (n,). Rivals are farther from the correction (7,) than
    RIVAL_UNITS: the data do not show which of them is the pose.
    """
    off = ends - correction
    rival = (scores >= RIVAL_SCORE * scores.max()) & (np.abs(off / UNIT).max(1) > RIVAL_UNITS)
    if not rival.any():
        return np.zeros((7, 7))
    return off[rival].T @ off[rival] / int(rival.sum())


RIVAL_SCORE, RIVAL_UNITS = 0.9, 1.0
STARTS = 10
START_DEVIATION = np.array([2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5])
"""In UNITs: standard deviation of the starts; the first two starts are the stated pose itself."""
FINE = Effort(SEARCH[-1:], draws=160, elite=20, rounds=8, edges=30_000)
RESAMPLE = Effort(SEARCH[-2:], draws=100, elite=14, rounds=6, edges=5000)
REPEATS = 16


def calibrate(
    observations: Sequence[Observation], on_step: Callable[[str], None] = lambda text: None
) -> Estimate:
    """Estimate the correction of a pose that may be 5 degrees, 10 cm and 0.1 s off.

    Several searches with different random draws are made; the result with the highest score is
    refined with more edges. If it fits the images only by chance, as in the dark, every axis is
    unknown. on_step: called with the name of each step that is done.
    """
    observations = divided(observations)
    fields: Fields = {FINE_PX: [o.spread(FINE_PX) for o in observations]}
    ends: list[Floats] = [np.zeros(7)]
    rng = np.random.default_rng(29)
    for number in range(STARTS):
        start = UNIT * START_DEVIATION * rng.standard_normal(7) if number > 1 else None
        ends.append(_last(search(observations, start=start, seed=number, fields=fields)))
        on_step("search")
    scores = total_score(observations, fields[FINE_PX], np.stack(ends)).sum(0)
    highest = ends[int(np.argmax(scores))]
    correction = _last(search(observations, FINE, highest, fields=fields))
    on_step("refine")
    resamples = [
        c
        for c in resampled(observations, RESAMPLE, correction, REPEATS, fields)
        if not np.isnan(c[0])
    ]
    on_step("resample")
    d = usable_dimensions(observations)
    tested = corrections_of(LOCAL_RADIUS * perturbations(d))
    worse, confidence = local_maximum(total_score(observations, fields[FINE_PX], tested))
    edges = sum(len(o.points) for o in observations)
    covariance = covariance_of(np.stack(resamples), d == 7)
    covariance += rivals(np.stack(ends), scores, correction)
    score = float(total_score(observations, fields[FINE_PX], correction[None]).sum())
    chance = sum(map(chance_variance, observations, fields[FINE_PX]))
    if not score > LEAST_SIGNIFICANCE * np.sqrt(chance):
        covariance += np.diag((LIMIT * UNIT) ** 2)
    return Estimate(correction, covariance, edges, worse, confidence, d == 7)


def describe(correction: Floats) -> str:
    """Describe a correction (7,) in words: degrees and centimetres, without the time."""
    turned = ", ".join(
        f"{name} {np.rad2deg(value):+.2f} deg"
        for name, value in zip(AXES[:3], correction[:3], strict=True)
    )
    moved = ", ".join(
        f"{name} {100 * value:+.1f} cm"
        for name, value in zip(AXES[3:6], correction[3:6], strict=True)
    )
    return f"{turned}, {moved}"
