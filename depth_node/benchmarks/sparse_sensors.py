# SPDX-License-Identifier: Apache-2.0
"""Benchmark of sparse sensors other than a LiDAR, on recorded frames with a dense truth.

radar         20 points with 5 % range noise, which is declared to the fit
two sensors   200 points with 1 % and 200 with 15 % noise: weighted as declared, against all equal
              and against the good points alone
holes         a depth camera's image with ellipses cut out where its depth is known; scored there
rangers       four ultrasonic cones of 20 degrees with 2 % range noise; the network determines where
              in its cone an echo comes from, against points on the cones' axes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.benchmarks.accuracy import DepthPredictor, fit_method, predicted
from depth_node.benchmarks.tables import Means, Table
from depth_node.geometry.echoes import Echo, echo_cap, echo_pixels
from depth_node.geometry.rigid import transform
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import coverage, evaluate
from depth_node.recordings.files import FrameError
from depth_node.recordings.frames import RecordedFrame, frame_seed

SEEDS = (0, 1, 2, 3)
RADAR_POINTS, RADAR_NOISE = 20, 0.05
GOOD_NOISE, POOR_NOISE, EACH = 0.01, 0.15, 200
HOLES, HOLE_POINTS = 6, 20_000
RANGERS, RANGER_TRIES, RANGER_ANGLE_RAD, RANGER_KNOWN = 4, 200, 0.35, 0.7
RANGER_NOISE, RANGER_DECLARED = 0.02, 0.1  # true and declared noise, fractions of the distance
LEAST_SCORED = 200  # pixels
LEAST_KNOWN = 2 * EACH + LEAST_SCORED  # pixels of a frame, for both sensors' points and for scores
CAMERA_DENSITY = 0.2  # fraction of known pixels from which a source counts as a depth camera
_STREAM = 77


@dataclass(frozen=True)
class SensorPoints:
    """A sensor's measurement of a frame: sparse points or echoes; scored: (H, W) bool pixels."""

    points: SparseDepth
    scored: NDArray[np.bool_]
    echoes: tuple[Echo, ...] = ()


def noisy_points(frame: RecordedFrame, count: int, relative: float, *seed: int) -> SensorPoints:
    """Return `count` known pixels with declared range noise, whose standard deviation is `relative`
    times the depth.
    """
    rng = frame_seed(frame, _STREAM, count, *seed)
    known = np.flatnonzero(np.isfinite(frame.truth))
    rows, cols = np.unravel_index(rng.choice(known, count, replace=False), frame.truth.shape)
    true = frame.truth[rows, cols]
    z = true * (1 + relative * rng.standard_normal(count))
    scored = np.isfinite(frame.truth)
    scored[rows, cols] = False
    return SensorPoints(SparseDepth.from_arrays(rows, cols, z, noise_m=relative * true), scored)


def two_sensors(frame: RecordedFrame, seed: int) -> SensorPoints:
    """Return the good and the poor points together."""
    good = noisy_points(frame, EACH, GOOD_NOISE, seed, 0)
    poor = noisy_points(frame, EACH, POOR_NOISE, seed, 1)
    both = {
        name: np.concatenate([getattr(good.points, name), getattr(poor.points, name)])
        for name in ("rows", "cols", "depth", "noise_m")
    }
    return SensorPoints(SparseDepth.from_arrays(**both), good.scored & poor.scored)


def undeclared(measured: SensorPoints) -> SensorPoints:
    """Return the same points without their declared noise."""
    p = measured.points
    return SensorPoints(SparseDepth.from_arrays(p.rows, p.cols, p.depth), measured.scored)


def camera_with_holes(frame: RecordedFrame, seed: int) -> SensorPoints | None:
    """Return a depth camera's image, thinned evenly, with holes where its depth is known.

    Returns None for a frame whose depth is too sparse for an image or whose holes have too few
    known pixels.
    """
    height, width = frame.truth.shape
    known = np.isfinite(frame.truth)
    if known.mean() < CAMERA_DENSITY:
        return None
    rng = frame_seed(frame, _STREAM, seed)
    cut = np.zeros(known.shape, np.uint8)
    for _ in range(HOLES):
        centre = int(rng.integers(width)), int(rng.integers(height))
        axes = tuple(int(side) for side in rng.integers(width // 40, width // 10, 2))
        cv2.ellipse(cut, centre, axes, float(rng.integers(180)), 0, 360, 1, -1)
    scored = known & (cut > 0)
    if scored.sum() < LEAST_SCORED:
        return None
    every = max(1, round((height * width / HOLE_POINTS) ** 0.5))
    used = np.zeros(known.shape, bool)
    used[::every, ::every] = True
    rows, cols = np.nonzero(used & known & (cut == 0))
    return SensorPoints(SparseDepth.from_arrays(rows, cols, frame.truth[rows, cols]), scored)


def rangers(frame: RecordedFrame, seed: int, on_axis: bool = False) -> SensorPoints | None:
    """Return echoes of rangers at the camera, each of the nearest surface anywhere in its cone.

    on_axis: place each measurement on the axis of its cone. Returns None for a frame without a
    cone that lies in the image and whose depth is mostly known (RANGER_KNOWN).
    """
    rng = frame_seed(frame, _STREAM, RANGERS, seed)
    camera, truth = frame.camera, frame.truth
    distance = truth * np.linalg.norm(camera.rays(), axis=2)
    to_optical = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    echoes: list[Echo] = []
    for _ in range(RANGER_TRIES):
        row, col = rng.uniform(0, truth.shape[0]), rng.uniform(0, truth.shape[1])
        pitch = -np.arctan2(row - camera.cy, camera.fy)
        yaw = -np.arctan2(col - camera.cx, camera.fx)
        T = np.eye(4)
        turn = (
            cv2.Rodrigues(np.array([0.0, 0.0, yaw]))[0]
            @ cv2.Rodrigues(np.array([0.0, -pitch, 0.0]))[0]
        )
        T[:3, :3] = to_optical @ turn
        cap = transform(T, echo_cap(1.0, RANGER_ANGLE_RAD))
        pixels = np.floor(camera.project(cap) + 0.5)
        inside = (pixels >= 0).all(axis=1) & (pixels < (camera.width, camera.height)).all(axis=1)
        if not inside.all():
            continue
        seen = distance[pixels[:, 1].astype(int), pixels[:, 0].astype(int)]
        if np.isfinite(seen).mean() < RANGER_KNOWN:
            continue
        metres = float(np.nanmin(seen)) * (1 + RANGER_NOISE * rng.standard_normal())
        angle = 0.0 if on_axis else RANGER_ANGLE_RAD
        echoes.append(Echo.of(echo_cap(metres, angle), T, RANGER_DECLARED, 0.0))
        if len(echoes) == RANGERS:
            break
    if not echoes:
        return None
    return SensorPoints(SparseDepth.from_arrays([], [], []), np.isfinite(truth), tuple(echoes))


def _beside_radar(
    measured: SensorPoints | None, frame: RecordedFrame, seed: int
) -> SensorPoints | None:
    if measured is None:
        return None
    radar = noisy_points(frame, RADAR_POINTS, RADAR_NOISE, seed)
    return SensorPoints(radar.points, radar.scored, measured.echoes)


CASES: dict[str, Callable[[RecordedFrame, int], SensorPoints | None]] = {
    "radar, noise declared": lambda f, s: noisy_points(f, RADAR_POINTS, RADAR_NOISE, s),
    "radar, not declared": lambda f, s: undeclared(noisy_points(f, RADAR_POINTS, RADAR_NOISE, s)),
    "two sensors, noise declared": two_sensors,
    "two sensors, all alike": lambda f, s: undeclared(two_sensors(f, s)),
    "the good sensor alone": lambda f, s: undeclared(noisy_points(f, EACH, GOOD_NOISE, s, 0)),
    "holes of a depth camera": camera_with_holes,
    "rangers, the network tells where": rangers,
    "rangers, on their axes": lambda f, s: rangers(f, s, on_axis=True),
    "radar and rangers": lambda f, s: _beside_radar(rangers(f, s), f, s),
    "radar and rangers on their axes": lambda f, s: _beside_radar(rangers(f, s, True), f, s),
}


def run_sensors(
    sources: Iterable[str | Path],
    predictor: DepthPredictor | str,
    on_frame: Callable[[str], None] | None = None,
) -> Table:
    """Return the table of `field` in every case: AbsRel, coverage and relative standard deviation,
    means over sources.

    predictor: a network, or the NAME of the predictions stored beside the frames. on_frame: called
    with the name of every frame when it is done. Frames with fewer than LEAST_KNOWN known pixels
    are left out; raises FrameError if no other frame is there.
    """
    means = Means()
    for frame, prediction in predicted(sources, predictor, on_frame):
        for case, measured in _measured(frame):
            heard_at = echo_pixels(measured.echoes, prediction.nearness, frame.camera)
            points = measured.points.with_more(heard_at)
            result = fit_method("field", prediction, points, None, frame.image)
            truth = np.where(measured.scored, frame.truth, np.float32(np.nan))
            error = evaluate(result.depth, truth).abs_rel
            means.add(case, "AbsRel", frame.source, error)
            inside = coverage(result.depth, result.std, truth)
            means.add(case, "in 95 % band", frame.source, inside)
            width = float(np.nanmedian(result.std / result.depth))
            means.add(case, "median std / depth", frame.source, width)
            means.add(case, "worst source", frame.source, inside)
    if not means.rows():
        raise FrameError(
            f"No frame has {LEAST_KNOWN} pixels of known depth, which the sensors need to measure"
            " and to be scored: give frames with a denser truth."
        )
    rows = []
    for case in means.rows():
        worst = min(means.of_sources(case, "worst source").values())
        rows.append(
            [
                case,
                f"{means(case, 'AbsRel'):.4f}",
                f"{means(case, 'in 95 % band'):.3f}",
                f"{worst:.3f}",
                f"{means(case, 'median std / depth'):.3f}",
            ]
        )
    head = ["sensor", "AbsRel", "in 95 % band", "in its worst source", "median std / depth"]
    return Table("Other sparse sensors, method field, mean over sources", head, rows)


def _measured(frame: RecordedFrame) -> Iterator[tuple[str, SensorPoints]]:
    if np.count_nonzero(np.isfinite(frame.truth)) < LEAST_KNOWN:
        return
    for case, make in CASES.items():
        for seed in SEEDS:
            measured = make(frame, seed)
            if measured is not None:
                yield case, measured
