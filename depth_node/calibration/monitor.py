# SPDX-License-Identifier: Apache-2.0
"""ExtrinsicsMonitor: checks a LiDAR's stated extrinsics while the robot works."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.calibration.estimate import (
    AXES,
    FINE_PX,
    LOCAL_RADIUS,
    SEARCH,
    UNIT,
    Effort,
    Fields,
    correction_matrix,
    corrections_of,
    covariance_of,
    local_maximum,
    perturbations,
    resampled,
    search,
    thinned,
    usable_dimensions,
)
from depth_node.calibration.observation import (
    Floats,
    Observation,
    chance_variance,
    same_view,
    total_score,
)

WINDOW = 25
LEAST_OBSERVATIONS = 13
EDGES_OF_A_FRAME = 250
LEAST_EDGES = 250
"""With fewer discontinuities than this in the window nothing is judged."""
SEARCH_AGAIN = 12
"""Observations between two searches: a search in nearly the same frames would find the same."""
NEWEST = 8
"""If the newest observations, this many, fail the test that those before them pass, the LiDAR has
moved, and only the newest are kept."""
MOVED_FRACTION = 0.9
"""The newest observations fail if a smaller fraction of small changes than this fits them worse."""
MAXIMUM_FRACTION, MAXIMUM_CONFIDENCE = 0.99, 0.5
"""Local-maximum test: least fraction of small changes that fit worse, and least confidence."""
TOLERANCE = np.array([*np.deg2rad([0.4, 0.4, 0.4]), 0.025, 0.025, 0.04, 0.02])
"""(7,) rad, m, s: smaller corrections are not worth a warning."""
SIGNIFICANT = 3.0
"""Standard deviations above which a correction counts as found."""
SIMPLER = 0.96
"""A correction along one axis that scores at least this fraction of the best is reported instead:
one displacement is more likely than several that compensate each other."""
LEAST_SIGNIFICANCE = 6.0
"""Standard deviations of the score of edges at random pixels: a pose with a lower score fits the
images only by chance. In pure noise the best corrections of a window reach 4, right poses in
furnished rooms 50, poses that are 30 degrees off 9."""
_FINDING = Effort(SEARCH[1:], draws=64, elite=13, rounds=5, edges=1500)
_RESAMPLING = Effort(SEARCH[-1:], draws=48, elite=10, rounds=4, edges=1500)
_RESAMPLES = 6
_TESTED = np.concatenate(
    [
        corrections_of(LOCAL_RADIUS * perturbations(6)),
        LOCAL_RADIUS * UNIT[6] * np.array([[0.0] * 6 + [-1.0], [0.0] * 6 + [1.0]]),
    ]
)
"""Corrections: none, small changes of the pose, and times half a UNIT earlier and later."""


class Finding(Enum):
    """The monitor's result on the extrinsics."""

    UNKNOWN = "too little structure to tell"
    CONSISTENT = "consistent"
    DOUBTFUL = "doubtful"
    WRONG = "wrong"


@dataclass(frozen=True)
class Verdict:
    """A finding, a sentence, and the evidence for it; nothing is corrected by it.

    worse: fraction of small perturbations that score worse than the stated pose; confidence: 0..1
    of the finding. correction (7,) (see observation.AXES) with covariance (7, 7) and the proposed
    T_camera_lidar (4, 4), the stated one if it passed the local-maximum test: None if nothing was
    judged. edges, frames: in the window. time_known: whether the motion shows a time offset.
    """

    finding: Finding = Finding.UNKNOWN
    sentence: str = "just started"
    worse: float = float("nan")
    confidence: float = 0.0
    edges: int = 0
    frames: int = 0
    correction: Floats | None = None
    covariance: Floats | None = None
    T_camera_lidar: Floats | None = None
    time_known: bool = False

    def text(self) -> str:
        """Return the sentence with its confidence and, where it applies, what it leaves open."""
        if self.finding is Finding.UNKNOWN:
            return f"unknown: {self.sentence}"
        motion = "" if self.time_known else "; too little motion to tell a time offset"
        return f"{self.sentence} (confidence {self.confidence:.0%}){motion}"


@dataclass
class _Window:
    """Observations with their scores (1 + K + 2,) of _TESTED, and the newest view's edge map.

    The maps of the other views are computed again when a correction is searched, which is rare: 25
    maps of a camera would need 23 MB.
    """

    observations: deque[Observation] = field(default_factory=lambda: deque(maxlen=WINDOW))
    scores: deque[Floats] = field(default_factory=lambda: deque(maxlen=WINDOW))
    variances: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    newest: npt.NDArray[np.float32] | None = None

    def add(self, observation: Observation, fine: npt.NDArray[np.float32]) -> None:
        self.newest = fine
        self.observations.append(observation)
        self.scores.append(observation.score(fine, _TESTED))
        self.variances.append(chance_variance(observation, fine))

    def keep(self, count: int) -> None:
        """Forget all but the newest `count` observations."""
        windows: list[deque[Any]] = [self.observations, self.scores, self.variances]
        for values in windows:
            while len(values) > count:
                values.popleft()

    def is_significant(self, score: float) -> bool:
        """Return whether a pose with this score fits the images better than by chance."""
        return score > LEAST_SIGNIFICANCE * float(np.sqrt(sum(self.variances)))


class ExtrinsicsMonitor:
    """Judges one LiDAR by its last WINDOW observations.

    The stated pose is checked with the local-maximum test; only if it fails, a correction is
    searched.

    T_camera_lidar: (4, 4) as stated; another pose needs another monitor.
    """

    def __init__(self, T_camera_lidar: Floats) -> None:
        self.T_camera_lidar = np.array(T_camera_lidar, np.float64)
        self.verdict = Verdict()
        self._looked = 0
        self._searched = -SEARCH_AGAIN
        self._window = _Window()

    def look(
        self, observation: Observation, fine: npt.NDArray[np.float32]
    ) -> Iterator[Verdict | None]:
        """Take an observation and the edge map (h, w), of reach FINE_PX, of its image.

        A view that is the same as the last one is ignored. The verdict may change at once. Returned
        is the search for a correction, if one is due: an iterator of steps of some milliseconds
        each, the last of which gives a verdict.
        """
        window = self._window
        if window.newest is not None and same_view(window.newest, fine):
            if self.verdict.frames < LEAST_OBSERVATIONS:
                text = f"{self.verdict.frames} of {LEAST_OBSERVATIONS} views so far"
                text += ", and the camera stands still"
                self.verdict = dataclasses.replace(self.verdict, sentence=text)
            return iter(())
        window.add(thinned([observation], EDGES_OF_A_FRAME)[0], fine)
        self._looked += 1
        edges = sum(len(o.points) for o in window.observations)
        count = len(window.observations)
        if count < LEAST_OBSERVATIONS:
            if self._looked == count:  # else the verdict of before holds until there are enough
                text = f"{count} of {LEAST_OBSERVATIONS} views so far"
                self.verdict = Verdict(sentence=text, edges=edges, frames=count)
        elif edges < LEAST_EDGES:
            text = f"too little structure to tell: {edges} depth edges in {count} frames"
            self.verdict = Verdict(sentence=text, edges=edges, frames=count)
        else:
            time_known = usable_dimensions(list(window.observations)) == 7
            scores = np.stack(window.scores)[:, : None if time_known else -2]
            worse, confidence = local_maximum(scores)
            if self.verdict.finding is Finding.CONSISTENT and _moved(scores):
                window.keep(NEWEST)
                self._searched = -SEARCH_AGAIN
            elif _is_maximum(worse, confidence):
                self.verdict = (
                    self._consistent(worse, confidence, edges, count, time_known)
                    if window.is_significant(float(scores[:, 0].sum()))
                    else _no_structure(edges, count)
                )
            elif self._looked - self._searched >= SEARCH_AGAIN:
                self._searched = self._looked
                return self._find(worse, confidence, edges)
        return iter(())

    def _consistent(
        self, worse: float, confidence: float, edges: int, frames: int, time_known: bool
    ) -> Verdict:
        return Verdict(
            Finding.CONSISTENT,
            f"consistent: {worse:.0%} of small changes of the extrinsics fit the images worse",
            worse,
            confidence,
            edges,
            frames,
            np.zeros(7),
            np.diag((LOCAL_RADIUS * UNIT) ** 2),
            self.T_camera_lidar,
            time_known,
        )

    def _find(self, worse: float, confidence: float, edges: int) -> Iterator[Verdict | None]:
        """Search a correction and its covariance in the present window."""
        observations = list(self._window.observations)
        fields: Fields = {stage.reach_px: [] for stage in _FINDING.stages}
        for reach_px, each in fields.items():
            for observation in observations:
                each.append(observation.spread(reach_px))
                yield None
        start: Floats = np.zeros(7)
        for start in search(observations, _FINDING, fields=fields):  # noqa: B007
            yield None
        estimates = []
        for one in resampled(observations, _RESAMPLING, start, _RESAMPLES, fields):
            if not np.isnan(one[0]):
                estimates.append(one)
            yield None
        time_known = usable_dimensions(observations) == 7
        correction = np.mean(estimates, axis=0)
        covariance = covariance_of(np.stack(estimates), time_known)
        maps = fields[FINE_PX]
        singles = []
        for axis in range(7 if time_known else 6):
            singles.append(_single_axis(observations, maps, axis))
            yield None
        singles.sort(key=lambda one: -one.score)
        # The correction must score better than the stated pose.
        both = np.stack([np.zeros(7), correction])
        scores = total_score(observations, maps, both).sum(0)
        best = max(float(scores[1]), singles[0].score)
        if not self._window.is_significant(best):
            self.verdict = _no_structure(edges, len(observations))
            yield self.verdict
            return
        alike = [one for one in singles if one.score >= SIMPLER * best]
        others = ""
        if alike:
            axis = alike[0].axis
            correction = np.zeros(7)
            correction[axis] = alike[0].value
            # The variance of this axis given that the other axes are right.
            own = 1 / np.linalg.inv(covariance)[axis, axis] + (0.05 * UNIT[axis]) ** 2
            deviation = np.sqrt(np.diag(covariance))
            covariance[axis], covariance[:, axis] = 0.0, 0.0
            covariance[axis, axis] = own
            others = "".join(
                f", or {amount(one.axis, one.value, deviation[one.axis])}" for one in alike[1:]
            )
        self.verdict = judged(
            correction,
            covariance,
            self.T_camera_lidar,
            better=best > float(scores[0]),
            others=others,
            worse=worse,
            confidence=confidence,
            edges=edges,
            frames=len(observations),
            time_known=time_known,
        )
        yield self.verdict


def _no_structure(edges: int, frames: int) -> Verdict:
    """Return the verdict on images without structure, as of a covered camera or of one in the dark.

    Their edges are noise, and among many corrections some fit it best.
    """
    text = (
        f"too little structure to tell: the {edges} depth edges of {frames} frames fit edges of the"
        " images only by chance, as in the dark"
    )
    return Verdict(sentence=text, edges=edges, frames=frames)


def _is_maximum(worse: float, confidence: float) -> bool:
    """Return whether the stated pose passes the local-maximum test."""
    return worse >= MAXIMUM_FRACTION and confidence >= MAXIMUM_CONFIDENCE


def _moved(scores: Floats) -> bool:
    """Return whether the newest scores (F, 1 + K) fail the test that those before them pass."""
    if len(scores) < LEAST_OBSERVATIONS + NEWEST:
        return False
    before, newest = scores[:-NEWEST], scores[-NEWEST:]
    return _is_maximum(*local_maximum(before)) and local_maximum(newest)[0] < MOVED_FRACTION


@dataclass(frozen=True)
class _Single:
    """A correction along one axis alone: its index, value in rad, m or s, and score."""

    axis: int
    value: float
    score: float


def _single_axis(
    observations: Sequence[Observation], maps: Sequence[npt.NDArray[np.float32]], axis: int
) -> _Single:
    """Find the best correction along one axis alone, in coarse and then in fine steps."""
    centre, score = 0.0, 0.0
    for steps in (np.arange(-12, 13) * 0.25, np.arange(-4, 5) * 0.05):
        tried = np.zeros((len(steps), 7))
        tried[:, axis] = (centre + steps) * UNIT[axis]
        scores = total_score(observations, maps, tried).sum(0)
        centre = float(tried[np.argmax(scores), axis] / UNIT[axis])
        score = float(scores.max())
    return _Single(axis, centre * float(UNIT[axis]), score)


def judged(
    correction: Floats,
    covariance: Floats,
    T_camera_lidar: Floats,
    *,
    better: bool,
    others: str = "",
    worse: float,
    confidence: float,
    edges: int,
    frames: int,
    time_known: bool,
) -> Verdict:
    """Return the verdict on a correction (7,) of the stated T_camera_lidar (4, 4).

    covariance: (7, 7) of the correction. better: whether it scores better than the stated pose.
    others: other corrections that explain the scans as well, added to the sentence.
    """
    std = np.sqrt(np.diag(covariance))
    axes = range(7 if time_known else 6)
    wrong = [a for a in axes if abs(correction[a]) > max(TOLERANCE[a], SIGNIFICANT * std[a])]
    known = [a for a in axes if std[a] < TOLERANCE[a]]
    if wrong and better:
        finding = Finding.WRONG
        sentence = (
            "wrong by about " + ", ".join(amount(a, correction[a], std[a]) for a in wrong) + others
        )
        surest = max(abs(correction[a]) / std[a] for a in wrong)
        confidence = float(1 - np.exp(-0.5 * (surest / SIGNIFICANT) ** 2 * 3))
    elif not any(a in known for a in range(3)):
        finding = Finding.UNKNOWN
        known_deg = float(np.rad2deg(std[:3].min()))
        sentence = f"too little structure to tell: the pose is known to {known_deg:.1f} deg"
        confidence = 0.0
    elif all(a in known and abs(correction[a]) < TOLERANCE[a] for a in axes):
        finding = Finding.CONSISTENT
        sentence = "consistent: the best correction found is too small to matter"
        confidence = max(confidence, 0.9)
    else:
        finding = Finding.DOUBTFUL
        sentence = (
            f"doubtful: {1 - worse:.0%} of small changes of the extrinsics fit the images better;"
            " `depth_tools calibrate` on a recording with structure tells more"
        )
        confidence = 1 - confidence
    proposed = correction_matrix(correction) @ T_camera_lidar
    return Verdict(
        finding, sentence, worse, confidence, edges, frames, correction, covariance, proposed,
        time_known,
    )  # fmt: skip


def amount(axis: int, value: float, std: float) -> str:
    """Describe a correction along one axis, with its standard deviation."""
    if axis < 3:
        return f"{np.rad2deg(abs(value)):.2f} +- {np.rad2deg(std):.2f} deg ({AXES[axis]})"
    if axis < 6:
        return f"{100 * abs(value):.1f} +- {100 * std:.1f} cm ({AXES[axis]})"
    return f"{1000 * abs(value):.0f} +- {1000 * std:.0f} ms (time)"
