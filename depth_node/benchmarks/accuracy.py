# SPDX-License-Identifier: Apache-2.0
"""Accuracy benchmark on recorded frames: the same points for every method, held-out truth.

Sparse points are drawn from the truth of a frame and are never scored. Every method gets the same
prediction, the same points and the same regions. Scores are averaged over the frames and seeds of a
source, then over the sources, because the frames of one source are similar.

Conditions
    points      N pixels of known depth are measured, drawn uniformly at random
    lines       rows form bands of 3 pixels; one band of K is measured, the others are scored
    scan        the pixels that a level planar laser scanner below the camera hits are measured
    noise       clean, or noisy: 2 % range noise and 5 % outliers of 0.4 to 2 times the range
    calibration measured pixels are displaced by a number of pixels, in one direction for a frame

Methods besides those of depth_node.fitting (paper mode; sensor mode with the suffix `_robust`)
    constant    median of the points
    idw         no network: inverse distance weighting of the 4 nearest points
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from depth_node import fitting
from depth_node.benchmarks.tables import Means, Table
from depth_node.engine.refinement import refiner_for
from depth_node.fitting import FitConfig, FitResult, fit
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import coverage, evaluate
from depth_node.prediction import Prediction
from depth_node.recordings.files import FrameError
from depth_node.recordings.frames import (
    RecordedFrame,
    Split,
    find_frames,
    frame_seed,
    read_frame,
    split_lines,
    split_scan,
    split_uniform,
)
from depth_node.regions.label_maps import Labels
from depth_node.regions.segmentation import segment
from depth_node.regions.settings import SegmentationConfig
from depth_node.sentences import nearest

OWN_METHODS = ("constant", "idw")
ROBUST = "_robust"
NOISES = ("clean", "noisy")
LABELS = ("classical", "masks", "none")
PAPER_METHOD = "ssf"  # denominator of the table of ratios
RANGE_NOISE = 0.02
OUTLIER_FRACTION = 0.05
OUTLIER_RANGE = (0.4, 2.0)
IDW_NEIGHBOURS = 4
IDW_POWER = 2.0
MIN_SCORED_FRACTION = 0.1  # of the known pixels; a frame with fewer left to score is skipped
_NOISE_STREAM, _SHIFT_STREAM = 101, 102  # random streams, separate from that of the split


class DepthPredictor(Protocol):
    """Protocol of a network that predicts relative depth from an image, such as DepthModel."""

    def predict(self, image: NDArray[np.uint8], /) -> Prediction:
        """Return the prediction (H, W) for an RGB image (H, W, 3) uint8."""
        ...


@dataclass(frozen=True)
class AccuracyRow:
    """Scores of one method on one frame under one condition, over the scored pixels with an answer.

    points: number of measured points. pattern: "uniform", "lines_K" or "scan". rmse in metres.
    coverage95: fraction of the scored pixels whose truth is inside the stated 95 % interval, NaN
    for a method that states none. answered: fraction of the scored pixels that get a depth. ms:
    time of the fit alone, without network and segmentation; NaN for idw, which computes only the
    scored pixels.
    """

    source: str
    frame: str
    method: str
    points: int
    pattern: str
    noise: str
    seed: int
    abs_rel: float
    delta1: float
    rmse: float
    coverage95: float
    answered: float
    ms: float

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON; NaN becomes None, because JSON has no NaN."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }

    @property
    def condition(self) -> str:
        """Short name of the condition: `250` or `lines_4`, with noise `250n` or `lines_4n`."""
        pattern = str(self.points) if self.pattern == "uniform" else self.pattern
        return pattern + ("" if self.noise == "clean" else "n")


@dataclass(frozen=True)
class AccuracyReport:
    """All rows, notes that qualify their averages, and the median time of the segmentation, ms."""

    rows: list[AccuracyRow]
    notes: list[str] = field(default_factory=list)
    segmentation_ms: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return the rows and the notes for JSON."""
        return {"rows": [row.as_dict() for row in self.rows], "notes": self.notes}


def known_methods() -> tuple[str, ...]:
    """Return the names of all methods that run_accuracy can score."""
    robust = tuple(f"{method}{ROBUST}" for method in fitting.METHODS if method != "field")
    return (*OWN_METHODS, *fitting.METHODS, *robust)


def check_methods(methods: Sequence[str]) -> None:
    """Raise ValueError if no name is given or one of them is not in known_methods()."""
    _check_names("method", methods, known_methods())


def default_methods() -> tuple[str, ...]:
    """Return the baselines of the protocol, the paper's methods in both modes, and the field."""
    named = ("constant", "global_depth", "global_disparity", "idw", "slf", "ssf")
    own = ("field",) if "field" in fitting.METHODS else ()
    return (*named, "slf_robust", "ssf_robust", *own)


def fit_config(method: str) -> FitConfig:
    """Return the fit settings of a method: sensor mode for `field` and for names that end in
    `_robust`, paper mode for the others.
    """
    if method.endswith(ROBUST):
        return FitConfig(method=method[: -len(ROBUST)], mode="sensor")
    return FitConfig(method=method, mode="sensor" if method == "field" else "paper")


def fit_method(
    method: str,
    prediction: Prediction,
    points: SparseDepth,
    labels: Labels | None,
    image: NDArray[np.uint8],
) -> FitResult:
    """Fit by a method as on a robot, where the field is refined by a second network.

    labels: (H, W) regions, or None. image: (H, W, 3) uint8 RGB.
    """
    config = fit_config(method)
    refiner = refiner_for(config)
    return fit(prediction, points, labels, image=image, config=config, refiner=refiner)


def run_accuracy(
    sources: Iterable[str | Path],
    predictor: DepthPredictor | str,
    *,
    methods: Sequence[str] = (),
    points: Sequence[int] = (50, 250, 1000),
    lines: int = 0,
    scan_below_m: float | None = None,
    noise: Sequence[str] = ("clean",),
    seeds: Sequence[int] = (0,),
    labels: str = "classical",
    calibration_px: float = 0.0,
    segmentation: SegmentationConfig | None = None,
    on_frame: Callable[[str], None] | None = None,
) -> AccuracyReport:
    """Score methods on frames under every combination of the conditions.

    sources: frames, sources or folders of sources. predictor: a network, or the NAME of the
    predictions stored beside the frames. methods: names from known_methods(); empty means
    default_methods(). points: numbers of measured points. lines: also measure one of this many scan
    lines; 0 leaves this condition out. scan_below_m: also measure with a planar scanner this far
    below the camera, m; None leaves this condition out. labels: take the regions from the image
    (classical), from the frame's masks where it has them (masks), or use none. on_frame: called
    with the name of every frame when it is done.

    Raises FrameError if a frame cannot be used, ValueError for a wrong argument.
    """
    methods = tuple(methods) or default_methods()
    check_methods(methods)
    _check_names("noise", noise, NOISES)
    _check_names("labels", (labels,), LABELS)
    if not points and not lines and scan_below_m is None:
        raise ValueError("nothing to measure: give numbers of points or a number of lines.")
    rows: list[AccuracyRow] = []
    notes: list[str] = []
    segmentation_ms = []
    _warm_up(methods)
    for frame, prediction in predicted(sources, predictor, on_frame):
        # Compute the derived maps here, once per frame, so that no method's time includes them.
        prediction.relative_depth(), prediction.disparity()
        begin = time.perf_counter()
        regions = _regions(frame, prediction, labels, segmentation)
        segmentation_ms.append((time.perf_counter() - begin) * 1e3)
        if labels == "masks" and frame.labels is None:
            notes.append(f"{frame.source}/{frame.name} has no masks: classical regions.")
        for seed in seeds:
            for pattern, split in _splits(frame, points, lines, scan_below_m, seed, notes):
                measured = {
                    name: disturbed(frame, split.points, name, calibration_px, seed)
                    for name in noise
                }
                rows.extend(
                    _score(frame, prediction, regions, methods, pattern, split, measured, seed)
                )
    median_ms = float(np.median(segmentation_ms))
    return AccuracyReport(rows, list(dict.fromkeys(notes)), median_ms)


def predicted(
    sources: Iterable[str | Path],
    predictor: DepthPredictor | str,
    on_frame: Callable[[str], None] | None = None,
) -> Iterator[tuple[RecordedFrame, Prediction]]:
    """Yield every frame of the sources with its prediction; call on_frame with its name when the
    caller asks for the next.
    """
    for folder in dict.fromkeys(path for source in sources for path in find_frames(source)):
        frame = read_frame(folder)
        if isinstance(predictor, str):
            yield frame, frame.prediction(predictor)
        else:
            yield frame, predictor.predict(frame.image)
        if on_frame is not None:
            on_frame(f"{frame.source}/{frame.name}")


def _warm_up(methods: Iterable[str]) -> None:
    """Run every method once, so that no measured time includes loading and compiling."""
    values = np.linspace(1, 2, 48 * 64, dtype=np.float32).reshape(48, 64)
    rows, cols = np.divmod(np.arange(0, 48 * 64, 61), 64)
    points = SparseDepth.from_arrays(rows, cols, values[rows, cols])
    image: NDArray[np.uint8] = np.zeros((48, 64, 3), np.uint8)
    labels: Labels = np.ones((48, 64), np.int32)
    for method in methods:
        if method not in OWN_METHODS:
            prediction = Prediction(values, "depth_affine_invariant")
            fit_method(method, prediction, points, labels, image)


def disturbed(
    frame: RecordedFrame, points: SparseDepth, noise: str, calibration_px: float, seed: int
) -> SparseDepth:
    """Return the points with range noise, outliers and displaced pixels, like a real sensor's."""
    rows, cols, depth = points.rows, points.cols, points.depth.astype(np.float64)
    if noise == "noisy":
        rng = frame_seed(frame, seed, _NOISE_STREAM, len(points))
        depth = depth * (1 + RANGE_NOISE * rng.standard_normal(len(depth)))
        outlier = rng.random(len(depth)) < OUTLIER_FRACTION
        depth[outlier] *= rng.uniform(*OUTLIER_RANGE, np.count_nonzero(outlier))
    if calibration_px:
        angle = frame_seed(frame, seed, _SHIFT_STREAM).uniform(0, 2 * np.pi)
        rows = np.floor(rows + calibration_px * np.sin(angle) + 0.5).astype(np.int32)
        cols = np.floor(cols + calibration_px * np.cos(angle) + 0.5).astype(np.int32)
        height, width = frame.image.shape[:2]
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        rows, cols, depth = rows[inside], cols[inside], depth[inside]
    return SparseDepth.from_arrays(rows, cols, depth)


@dataclass(frozen=True)
class Interpolation:
    """Inverse distance weighting of the k nearest points at n pixels; index, weight: (n, k)."""

    index: NDArray[np.intp]
    weight: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        points: SparseDepth,
        rows: NDArray[np.integer],
        cols: NDArray[np.integer],
        neighbours: int = IDW_NEIGHBOURS,
    ) -> Interpolation:
        """Find neighbours and weights (n, k) for the pixels (rows, cols), (n,) each.

        At the pixel of a point the interpolation returns that point's value.
        """
        tree = cKDTree(np.stack([points.rows, points.cols], axis=1))
        count = min(neighbours, len(points))
        # A list as k keeps the axis of the neighbours even when there is only one.
        pixels = np.stack([rows, cols], axis=1)
        distance, index = tree.query(pixels, k=list(range(1, count + 1)))
        weight = 1 / np.maximum(distance, 1e-6) ** IDW_POWER
        return cls(np.asarray(index), weight / weight.sum(axis=1, keepdims=True))

    def __call__(self, depth: NDArray[np.floating]) -> NDArray[np.float32]:
        """Interpolate the depth of the points, (N,) m, at the pixels: (n,) float32 m."""
        return np.einsum("ij,ij->i", self.weight, depth[self.index]).astype(np.float32)


def averaged(rows: Iterable[AccuracyRow], score: str) -> dict[tuple[str, str], float]:
    """Average one score by (method, condition): over a source's frames and seeds, then over the
    sources.
    """
    means = Means()
    for row in rows:
        means.add(row.method, row.condition, row.source, getattr(row, score))
    return means.all()


def tables(report: AccuracyReport) -> list[Table]:
    """Return the tables of averages: every score by condition, and AbsRel of every source."""
    rows = report.rows
    result = [_table(rows, "abs_rel", "AbsRel, mean over sources", 4)]
    base = averaged(rows, "abs_rel")
    if any(method == PAPER_METHOD for method, _ in base):
        ratio = {
            (method, condition): value / base.get((PAPER_METHOD, condition), math.nan)
            for (method, condition), value in base.items()
        }
        result.append(_grid(f"AbsRel / AbsRel of {PAPER_METHOD}", ratio, 2))
    result.append(_table(rows, "delta1", "delta1", 3))
    result.append(_table(rows, "rmse", "RMSE, m", 3))
    result.append(_table(rows, "coverage95", "fraction inside the stated 95 % interval", 3))
    if any(row.answered < 1 for row in rows):
        result.append(_table(rows, "answered", "fraction of scored pixels with a depth", 3))
    result.append(_table(rows, "ms", "ms of the fit", 1))
    sources = list(dict.fromkeys(row.source for row in rows))
    if len(sources) > 1:
        for source in sources:
            own = [row for row in rows if row.source == source]
            count = len({row.frame for row in own})
            result.append(_table(own, "abs_rel", f"AbsRel, {source} ({count} frames)", 4))
    return result


def _check_names(kind: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given:
        raise ValueError(f"no {kind} is given: use one of {', '.join(known)}.")
    for name in given:
        if name not in known:
            guess = nearest(name, known)
            hint = f"did you mean {guess}?" if guess else f"use one of {', '.join(known)}."
            raise ValueError(f"the {kind} {name!r} is unknown: {hint}")


def _regions(
    frame: RecordedFrame, prediction: Prediction, labels: str, config: SegmentationConfig | None
) -> Labels | None:
    if labels == "none":
        return None
    if labels == "masks" and frame.labels is not None:
        return frame.labels
    return segment(frame.image, prediction.values, config)


def _splits(
    frame: RecordedFrame,
    points: Sequence[int],
    lines: int,
    scan_below_m: float | None,
    seed: int,
    notes: list[str],
) -> Iterator[tuple[str, Split]]:
    known = int(np.isfinite(frame.truth).sum())
    for count in points:
        if count <= (1 - MIN_SCORED_FRACTION) * known:
            yield "uniform", split_uniform(frame, count, seed)
        else:
            notes.append(
                f"{frame.source}/{frame.name} is left out at {count} points: it knows {known}."
            )
    if lines:
        yield f"lines_{lines}", split_lines(frame, lines, seed)
    if scan_below_m is not None:
        try:
            yield "scan", split_scan(frame, scan_below_m)
        except FrameError as error:
            notes.append(str(error))


def _score(
    frame: RecordedFrame,
    prediction: Prediction,
    labels: Labels | None,
    methods: Sequence[str],
    pattern: str,
    split: Split,
    measured: dict[str, SparseDepth],
    seed: int,
) -> Iterator[AccuracyRow]:
    rows, cols = np.nonzero(split.scored)
    truth = frame.truth[rows, cols]
    interpolation: Interpolation | None = None
    for noise, points in measured.items():
        for method in methods:
            std: NDArray[np.floating] = np.full(len(rows), np.nan, np.float32)
            depth = std
            begin = time.perf_counter()
            if method == "constant" and len(points):
                depth = np.full(len(rows), np.median(points.depth), np.float32)
            elif method == "idw" and len(points):
                # Noise changes depths, not pixels: the neighbours are the same for all its kinds.
                interpolation = interpolation or Interpolation.of(points, rows, cols)
                depth = interpolation(points.depth)
            elif method not in OWN_METHODS:
                result = fit_method(method, prediction, points, labels, frame.image)
                depth, std = result.depth[rows, cols], result.std[rows, cols]
            elapsed_ms = (time.perf_counter() - begin) * 1e3
            scores = evaluate(depth, truth)
            yield AccuracyRow(
                source=frame.source,
                frame=frame.name,
                method=method,
                points=len(split.points),
                pattern=pattern,
                noise=noise,
                seed=seed,
                abs_rel=scores.abs_rel,
                delta1=scores.delta1,
                rmse=scores.rmse,
                coverage95=coverage(depth, std, truth),
                answered=scores.answered,
                # Rows share the neighbour search, so its time cannot be assigned to one of them.
                ms=math.nan if method == "idw" else elapsed_ms,
            )


def _table(rows: Sequence[AccuracyRow], score: str, title: str, digits: int) -> Table:
    return _grid(title, averaged(rows, score), digits)


def _grid(title: str, values: dict[tuple[str, str], float], digits: int) -> Table:
    methods = list(dict.fromkeys(method for method, _ in values))
    conditions = list(dict.fromkeys(condition for _, condition in values))
    conditions.sort(key=_condition_order)
    body = [
        [method, *(_text(values.get((method, each), math.nan), digits) for each in conditions)]
        for method in methods
    ]
    return Table(title, ["method", *conditions], body)


def _text(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _condition_order(condition: str) -> tuple[bool, bool, int]:
    pattern = condition.removesuffix("n")
    noisy = pattern != condition
    return (not pattern.isdigit(), noisy, int(pattern) if pattern.isdigit() else 0)
