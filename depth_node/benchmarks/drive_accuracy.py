# SPDX-License-Identifier: Apache-2.0
"""Accuracy on a robot's own recording: LiDAR points or lines are held out, methods compared.

Every frame is evaluated by itself, without memory. The scores pool the held-out points of all
frames that fall into the image and that nothing nearer hides. An error of the extrinsics or of the
clocks displaces used and held-out points alike, so the scores cannot show it; the extrinsics
monitor, which compares the points with the images, therefore runs over all frames too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.benchmarks.accuracy import (
    OWN_METHODS,
    DepthPredictor,
    Interpolation,
    fit_config,
    fit_method,
)
from depth_node.benchmarks.tables import Table
from depth_node.calibration.monitor import Finding, Verdict
from depth_node.calibration.watch import ExtrinsicsWatch
from depth_node.fitting import REGION_METHODS
from depth_node.frame import FrameInput
from depth_node.geometry.sparse_depth import ProjectionConfig, SparseDepth, project_points
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction
from depth_node.recordings.files import FrameError
from depth_node.recordings.held_out import Sampling, hold_out_points
from depth_node.regions.label_maps import Labels
from depth_node.regions.segmentation import segment

METHODS = ("constant", "idw", "global_disparity", "ssf_robust", "field")
BANDS_M = (0.0, 2.0, 5.0, 10.0, 20.0, 50.0, float("inf"))
LEAST_SCORED = 20  # pixels of a frame; a frame with fewer is not scored
LEAST_IN_BAND = 200  # pixels of all frames; a range band with fewer is not shown
FRAMES = 60


@dataclass
class Errors:
    """Pooled relative and absolute errors of held-out points; NaN answers are only counted.

    frames: number of calls of add. relative: sum of relative errors. squared_m2: sum of squared
    errors, m^2. bounded: answers with a standard deviation; inside: those of them whose 95 %
    interval contains the truth.
    """

    frames: int = 0
    pixels: int = 0
    answered: int = 0
    relative: float = 0.0
    squared_m2: float = 0.0
    bounded: int = 0
    inside: int = 0

    def add(
        self,
        depth: NDArray[np.floating],
        std: NDArray[np.floating],
        truth: NDArray[np.floating],
    ) -> None:
        """Add a frame's n points, (n,) m each: answer, standard deviation and measured depth."""
        error = np.abs(depth - truth)
        known, bounded = np.isfinite(error), np.isfinite(error) & np.isfinite(std)
        self.frames += 1
        self.pixels += len(truth)
        self.answered += int(known.sum())
        self.relative += float((error[known] / truth[known]).sum())
        self.squared_m2 += float(np.square(error[known], dtype=np.float64).sum())
        self.bounded += int(bounded.sum())
        self.inside += int((error[bounded] <= NORMAL_95 * std[bounded]).sum())

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the scores for JSON; a score without any value is None."""
        return {
            "pixels": self.pixels,
            "answered": self.answered / self.pixels if self.pixels else None,
            "abs_rel": self.relative / self.answered if self.answered else None,
            "rmse": (self.squared_m2 / self.answered) ** 0.5 if self.answered else None,
            "coverage95": self.inside / self.bounded if self.bounded else None,
        }


@dataclass
class DriveReport:
    """Result of drive_accuracy.

    errors: by (condition, method, range band); the band "" holds all ranges. frames: scored frames.
    skipped: frames with too few used or held-out points in the image. verdict: of the extrinsics
    monitor.
    """

    errors: dict[tuple[str, str, str], Errors] = field(default_factory=dict)
    frames: int = 0
    skipped: int = 0
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def warning(self) -> str:
        """Sentence on the errors that the scores cannot show, with the monitor's verdict."""
        cure = {
            Finding.WRONG: "; correct it (`depth_tools calibrate`) before you believe these scores",
            Finding.CONSISTENT: "",
        }.get(self.verdict.finding, "; `depth_tools calibrate` tells more")
        return (
            "used and held-out points share every error of the extrinsics and of the clocks, so"
            " these scores cannot show it. The extrinsics against the images:"
            f" {self.verdict.text()}{cure}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        rows = [
            {"condition": condition, "method": method, "band": band or "all", **errors.as_dict()}
            for (condition, method, band), errors in self.errors.items()
        ]
        finding = self.verdict.finding.name
        calibration = {"finding": finding, "sentence": self.verdict.sentence}
        return {"rows": rows, "frames": self.frames, "calibration": calibration}


def drive_accuracy(
    frames: Iterable[FrameInput],
    predictor: DepthPredictor,
    *,
    samplings: Sequence[Sampling],
    methods: Sequence[str] = METHODS,
    stride: int = 1,
    on_frame: Callable[[], None] = lambda: None,
) -> DriveReport:
    """Score methods on every `stride`-th frame, under each way to hold points out.

    methods: names from depth_node.benchmarks.accuracy.known_methods(). on_frame: called after each
    frame. Raises FrameError if no frame has enough held-out points in the image.
    """
    report, watch = DriveReport(), ExtrinsicsWatch()
    projection = ProjectionConfig()
    for number, frame in enumerate(frames):
        watch.add(frame)
        if number % stride == 0 and frame.points is not None and len(frame.points):
            prediction = predictor.predict(frame.image)
            scored = False
            for sampling in samplings:
                rng = np.random.default_rng([sampling.seed, number])
                used, truth, pixels = hold_out_points(frame, sampling, projection, rng)
                if truth is None or pixels is None or pixels.sum() < LEAST_SCORED:
                    continue
                sparse = _measured(used, projection)
                if not len(sparse):
                    continue
                scored = True
                _score(report, sampling, methods, frame, prediction, sparse, truth, pixels)
            report.frames += scored
            report.skipped += not scored
        on_frame()
    report.verdict = watch.verdict
    if not report.frames:
        raise FrameError(
            "no frame has enough LiDAR points in the image to use some and hold others out: check"
            " the extrinsics, or ask for fewer --points."
        )
    return report


def _measured(frame: FrameInput, projection: ProjectionConfig) -> SparseDepth:
    if frame.sparse is not None:
        return frame.sparse
    assert frame.points is not None and frame.T_camera_lidar is not None
    return project_points(frame.points, frame.T_camera_lidar, frame.camera, projection, frame.age_s)


def _score(
    report: DriveReport,
    sampling: Sampling,
    methods: Sequence[str],
    frame: FrameInput,
    prediction: Prediction,
    sparse: SparseDepth,
    truth: NDArray[np.float32],
    scored: NDArray[np.bool_],
) -> None:
    condition = f"{sampling.points} points" if sampling.points else f"1 of {sampling.lines} lines"
    rows, cols = np.nonzero(scored)
    z = truth[rows, cols]
    band = np.digitize(z, BANDS_M) - 1
    for method, (depth, std) in _answers(methods, frame, prediction, sparse, rows, cols):
        _errors(report, condition, method, "").add(depth, std, z)
        for index in np.unique(band):
            of = band == index
            _errors(report, condition, method, _band(index)).add(depth[of], std[of], z[of])


def _answers(
    methods: Sequence[str],
    frame: FrameInput,
    prediction: Prediction,
    sparse: SparseDepth,
    rows: NDArray[np.integer],
    cols: NDArray[np.integer],
) -> Iterator[tuple[str, tuple[NDArray[np.floating], NDArray[np.floating]]]]:
    """Yield (method, (depth, std)) at the n pixels (rows, cols), (n,) m each."""
    labels: Labels | None = None
    nothing = np.full(len(rows), np.nan, np.float32)
    for method in methods:
        if method == "constant":
            yield method, (np.full(len(rows), np.median(sparse.depth), np.float32), nothing)
        elif method == "idw":
            yield method, (Interpolation.of(sparse, rows, cols)(sparse.depth), nothing)
        else:
            assert method not in OWN_METHODS
            config = fit_config(method)
            if config.method in REGION_METHODS and labels is None:
                labels = segment(frame.image, prediction.values)
            result = fit_method(method, prediction, sparse, labels, frame.image)
            yield method, (result.depth[rows, cols], result.std[rows, cols])


def _errors(report: DriveReport, condition: str, method: str, band: str) -> Errors:
    return report.errors.setdefault((condition, method, band), Errors())


def _band(index: int) -> str:
    low, high = BANDS_M[index], BANDS_M[index + 1]
    return f"{low:g} to {high:g} m" if np.isfinite(high) else f"over {low:g} m"


def tables(report: DriveReport) -> list[Table]:
    """Return a table of the methods for each way to hold points out, and one of `field` (without
    it, the last method) by range band.
    """
    conditions = list(dict.fromkeys(condition for condition, _, _ in report.errors))
    methods = list(dict.fromkeys(method for _, method, _ in report.errors))
    head = ["method", "AbsRel", "RMSE", "in 95 % band", "answered"]
    result = []
    for condition in conditions:
        body = [
            [method, *_cells(report.errors[condition, method, ""])]
            for method in methods
            if (condition, method, "") in report.errors
        ]
        scored = report.errors[condition, methods[0], ""]
        title = f"{condition} measured: {scored.frames} frames, {scored.pixels} held-out points"
        result.append(Table(title, head, body))
    best = "field" if "field" in methods else methods[-1]
    body = []
    for condition in conditions:
        for index in range(len(BANDS_M) - 1):
            errors = report.errors.get((condition, best, _band(index)))
            if errors is not None and errors.pixels >= LEAST_IN_BAND:
                body.append([condition, _band(index), str(errors.pixels), *_cells(errors)])
    head = ["measured", "range", "held-out points", *head[1:]]
    if body:
        result.append(Table(f"{best} by range", head, body))
    return result


def _cells(errors: Errors) -> list[str]:
    values = errors.as_dict()
    forms = {"abs_rel": "{:.4f}", "rmse": "{:.3f} m", "coverage95": "{:.1%}", "answered": "{:.1%}"}
    return ["-" if values[key] is None else form.format(values[key]) for key, form in forms.items()]
