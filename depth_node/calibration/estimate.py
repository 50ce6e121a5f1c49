# SPDX-License-Identifier: Apache-2.0
"""The correction of a LiDAR's pose and time that puts its edges on those of the images.

A correction is (7,): see observation.AXES; T_corrected = correction_matrix(c) @ T_camera_lidar.
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
    total_score,
)

BLOCKS = 10
"""Neighbouring frames show the same edges: the bootstrap draws blocks of them, so many in all."""
RESAMPLES = 200
Fields = dict[float, list[npt.NDArray[np.float32]]]  # edge maps (h, w) by their reach, px

UNIT = np.array([*np.deg2rad([1.0, 1.0, 1.0]), 0.05, 0.05, 0.05, 0.05])
"""One degree, 5 cm, 50 ms: what counts as one step along each axis."""
LIMIT = np.array([6.0, 6.0, 6.0, 3.0, 3.0, 3.0, 2.4])
"""UNITs: 6 degrees, 15 cm, .12 s are as far as a search goes."""
KNOWN = np.array([*np.deg2rad([0.3, 0.3, 0.3]), 0.03, 0.03, 0.03, 0.02])
"""(7,) rad, m, s: an axis counts as known if its standard deviation is below."""
LOCAL_RADIUS = 0.5
"""UNITs: perturbations of the local-maximum test."""


def corrections_of(steps: Floats) -> Floats:
    """Corrections (K, 7) of steps (K, 6) or (K, 7) in UNITs."""
    out = np.zeros((len(steps), 7))
    d = steps.shape[1]
    out[:, :d] = steps * UNIT[:d]
    return out


def correction_matrix(correction: Floats) -> Floats:
    """(4, 4) of a correction (6,) or (7,): T_corrected = this @ T_camera_lidar."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(correction[:3]).as_matrix()
    T[:3, 3] = correction[3:6]
    return T


def _block_sums(per_frame: Floats) -> Floats:
    """Sums (B, K) of blocks of neighbouring frames (F, K)."""
    blocks = np.array_split(np.arange(len(per_frame)), min(BLOCKS, len(per_frame)))
    return np.stack([per_frame[block].sum(0) for block in blocks])


@lru_cache(maxsize=64)
def _draws(blocks: int) -> npt.NDArray[np.int64]:
    """How often each block is drawn in each resample, (RESAMPLES, blocks)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES)


@dataclass(frozen=True)
class Estimate:
    """correction (7,), see observation.AXES, and covariance (7, 7); rad, m, s.

    edges: LiDAR discontinuities used. worse: fraction of small perturbations that score worse than
    the pose before the correction; confidence: of the bootstrap's draws, in how many
    all of them do. time_known: whether the motion allowed a time offset.
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
        """The axes that the data leave open; the time only where the motion tells of it."""
        axes = range(7 if self.time_known else 6)
        return [AXES[axis] for axis in axes if self.std[axis] > KNOWN[axis]]


def local_maximum(scores: Floats) -> tuple[float, float]:
    """Fraction of perturbations that score worse, and in how many draws at least .99 of them do.

    scores: (F, 1 + K), the first column those of the pose itself.
    """
    sums = _block_sums(scores)
    total = sums.sum(0)
    drawn = _draws(len(sums)) @ sums
    worse = (drawn[:, 1:] < drawn[:, :1]).mean(1)
    return float((total[1:] < total[0]).mean()), float((worse >= 0.99).mean())


def perturbations(dimensions: int) -> Floats:
    """(1 + K, dimensions) in -1..1: none, along each axis to both sides, and mixed ones."""
    axes = np.eye(dimensions)
    mixed = np.random.default_rng(11).uniform(-1, 1, (12, dimensions))
    return np.concatenate([np.zeros((1, dimensions)), axes, -axes, mixed, -mixed])


def usable_dimensions(observations: Sequence[Observation]) -> int:
    """7 where most frames know the camera's motion and it moves, else 6: no time offset."""
    moving = [
        o.twist is not None and bool((np.abs(o.twist) > (0.05,) * 3 + (0.1,) * 3).any())
        for o in observations
    ]
    return 7 if np.mean(moving) > 0.5 else 6


def divided(observations: Sequence[Observation]) -> list[Observation]:
    """At least BLOCKS observations: few frames are cut into strips with a part of the points."""
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
    """reach of the edges, px; deviation, UNITs, that the draws start with; least: added to it."""

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
    """How much a search tries: stages, draws and the best of them per round, rounds, edges."""

    stages: tuple[SearchStage, ...] = SEARCH
    draws: int = 160
    elite: int = 20
    rounds: int = 7
    edges: int = 6000


KEEP = 0.2
"""Of the old spread in the new one: a valley that lies askew is not left too early."""


def thinned(observations: Sequence[Observation], edges: int) -> list[Observation]:
    """The observations with about so many edges in all."""
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
    """Coarse to fine; yields the best correction (7,) so far after each round.

    The cross-entropy method: draws around a mean, the best of them give the next mean and spread.
    counts: (F,) how often each observation counts. fields: edge maps of the observations, if they
    are there already.
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
    """Corrections (7,) found from a start in bootstrap resamples of blocks of frames, in turn.

    Yields after each round; NaN until the search of a resample has ended.
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
    """Covariance (7, 7) of resampled corrections (n, 7); an unknown time has 100 ms."""
    blocks = BLOCKS / (BLOCKS - 1)
    covariance = np.atleast_2d(np.cov(corrections.T)) * blocks + np.diag((0.01 * UNIT) ** 2)
    if not time_known:
        covariance[6, 6] = (2 * UNIT[6]) ** 2
    return covariance


def pose_covariance(T: Floats, covariance: Floats) -> Floats:
    """Covariance (6, 6) of a pose T (4, 4) as ROS orders it: x, y, z, turns about those axes.

    covariance: (7, 7) of a correction of it. A turn of the correction moves the LiDAR too.
    """
    x, y, z = T[:3, 3]
    J = np.zeros((6, 7))
    J[:3, :3] = [[0, z, -y], [-z, 0, x], [y, -x, 0]]
    J[:3, 3:6] = np.eye(3)
    J[3:, :3] = np.eye(3)
    return J @ covariance @ J.T


def _last(rounds: Iterator[Floats]) -> Floats:
    """The last correction (7,) of a search."""
    (correction,) = deque(rounds, maxlen=1)
    return correction


def rivals(ends: Floats, scores: Floats, correction: Floats) -> Floats:
    """Covariance (7, 7) of other ends (n, 7) of the search that score (n,) nearly as high.

    They lie elsewhere, beyond RIVAL_UNITS: the data do not say which of them is the pose.
    """
    off = ends - correction
    rival = (scores >= RIVAL_SCORE * scores.max()) & (np.abs(off / UNIT).max(1) > RIVAL_UNITS)
    if not rival.any():
        return np.zeros((7, 7))
    return off[rival].T @ off[rival] / int(rival.sum())


RIVAL_SCORE, RIVAL_UNITS = 0.9, 1.0
STARTS = 10
START_DEVIATION = np.array([2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.5])
"""UNITs: the third start and those after it are drawn; the first two are the stated pose."""
FINE = Effort(SEARCH[-1:], draws=160, elite=20, rounds=8, edges=30_000)
RESAMPLE = Effort(SEARCH[-2:], draws=100, elite=14, rounds=6, edges=5000)
REPEATS = 16


def calibrate(
    observations: Sequence[Observation], on_step: Callable[[str], None] = lambda text: None
) -> Estimate:
    """The correction of a pose that may be 5 degrees, 10 cm and .1 s off.

    Several searches with other draws: the one that ends highest is refined with all edges.
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
    return Estimate(correction, covariance, edges, worse, confidence, d == 7)


def describe(correction: Floats) -> str:
    """A correction (7,) in words: degrees, centimetres, milliseconds."""
    turned = ", ".join(
        f"{name} {np.rad2deg(value):+.2f} deg"
        for name, value in zip(AXES[:3], correction[:3], strict=True)
    )
    moved = ", ".join(
        f"{name} {100 * value:+.1f} cm"
        for name, value in zip(AXES[3:6], correction[3:6], strict=True)
    )
    return f"{turned}, {moved}"
