# SPDX-License-Identifier: Apache-2.0
"""Recorded frames or a rosbag2 through the pipeline of the live node, into a run folder.

A run folder holds what was done and what came out::

    config.yaml     every setting, as resolved
    run.json        source, seed, model, versions
    frames.jsonl    one line per frame and method: status, errors, stage times
    summary.json    the errors averaged over each source, then over the sources
    summary.md      the same as a table
    images/       panels
    depth/          with save_depth: <frame>.npz, keys depth and std

Every method of the comparison gets the same prediction, regions and points as the pipeline's own.
Points that were used are never scored.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from depth_node import __version__
from depth_node.calibration.monitor import Verdict
from depth_node.config import dump, replace
from depth_node.frame import FrameInput, SourcePoints
from depth_node.geometry.sparse_depth import project_points
from depth_node.metrics import coverage, evaluate, mean_over_sources
from depth_node.pipeline import DepthPipeline, DepthResult
from depth_node.recordings.extrinsics_log import ExtrinsicsLog
from depth_node.recordings.frames import (
    FrameError,
    RecordedFrame,
    find_frames,
    frame_seed,
    read_frame,
    split_lines,
    split_uniform,
)
from depth_node.recordings.held_out import Sampling, measured_points
from depth_node.visualization import panels

COMPARED = ("global_depth", "global_disparity", "slf", "ssf")
_MOST_WARNINGS = 8
SCORES = ("abs_rel", "delta1", "rmse", "coverage95", "answered")


@dataclass(frozen=True)
class ScoredFrame:
    """A recorded frame and what its depth is compared with.

    truth: (H, W) m and scored: (H, W) bool pixels to compare with, or None.
    """

    source: str
    name: str
    input: FrameInput
    truth: NDArray[np.float32] | None = None
    scored: NDArray[np.bool_] | None = None

    @property
    def scored_truth(self) -> NDArray[np.float32] | None:
        """(H, W) truth in metres at the scored pixels, NaN elsewhere; None without any."""
        if self.truth is None or self.scored is None:
            return None
        return np.where(self.scored, self.truth, np.float32(np.nan))


class LeftOut:
    """What of a recording could not be used: counted, the first reason of each kind kept.

    A frame, image or message that is left out does not end a replay. damaged: whether some of it
    was broken, and not merely without a match.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._warnings: list[str] = []
        self.damaged = False

    def add(self, why: str, kind: str = "parts", damaged: bool = True, count: int = 1) -> None:
        """So many more of a kind; of a recording's parts each reason is a kind."""
        key = kind if kind != "parts" else why
        self._counts[key] = self._counts.get(key, 0) + count
        if key not in self._reasons:
            self._reasons[key] = f"{kind}: {why}" if kind != "parts" else why
        self.damaged |= damaged

    def warn(self, sentence: str) -> None:
        """What was used and may be wrong all the same; each sentence once."""
        if sentence not in self._warnings and len(self._warnings) < _MOST_WARNINGS:
            self._warnings.append(sentence)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def first(self) -> str:
        """The first reason that ended an image or a frame, else the first of all."""
        own = [why for key, why in self._reasons.items() if key in ("images", "frames")]
        return next(iter([*own, *self._reasons.values()]), "")

    def sentences(self, most: int = 12) -> list[str]:
        """A line for each warning, and for each kind, the first of them."""
        lines = [f"left out: {count} {self._reasons[key]}" for key, count in self._counts.items()]
        if len(lines) > most:
            lines[most:] = [f"left out: {len(lines) - most} other kinds of parts"]
        return [*(f"warning: {sentence}" for sentence in self._warnings), *lines]


class FrameSource(Protocol):
    """Recorded frames, wherever they come from: how many, and each in turn."""

    @property
    def left_out(self) -> LeftOut:
        """What could not be used so far."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ScoredFrame]: ...


class ResultSink(Protocol):
    """Where results go besides the run folder: a bag, a recording of a viewer."""

    def add(self, frame: ScoredFrame, result: DepthResult, verdicts: Mapping[str, Verdict]) -> None:
        """Take the result of a frame, in the order of the recording.

        verdicts: what the edges of each LiDAR say of its extrinsics by then.
        """


class FolderFrames:
    """The frames under a folder, read one at a time; one that cannot be used is left out.

    Raises FrameError, the first one's, where not one can be used.
    """

    def __init__(
        self,
        path: Path,
        sampling: Sampling,
        pipeline: DepthPipeline,
        *,
        stored_regions: bool = False,
        stored_prediction: str = "",
    ) -> None:
        self.frames = find_frames(path)
        self.left_out = LeftOut()
        self.sampling = sampling
        self.pipeline = pipeline
        self.stored_regions = stored_regions
        self.stored_prediction = stored_prediction

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[ScoredFrame]:
        first: FrameError | None = None
        given = 0
        for folder in self.frames:
            try:
                frame = self._scored(read_frame(folder))
            except FrameError as error:
                self.left_out.add(str(error), kind="frames")
                first = first or error
                continue
            given += 1
            yield frame
        if first is not None and not given:
            raise first

    def _scored(self, frame: RecordedFrame) -> ScoredFrame:
        observed = FrameInput(
            frame.image,
            frame.camera,
            labels=frame.labels if self.stored_regions else None,
            prediction=(
                frame.prediction(self.stored_prediction) if self.stored_prediction else None
            ),
        )
        sampling = self.sampling
        if sampling.points or sampling.lines:
            split = (
                split_uniform(frame, sampling.points, sampling.seed)
                if sampling.points
                else split_lines(frame, sampling.lines, sampling.seed)
            )
            observed = dataclasses.replace(observed, sparse=split.points)
            return ScoredFrame(frame.source, frame.name, observed, frame.depth, split.scored)
        if frame.points_lidar is None or frame.T_camera_lidar is None:
            raise FrameError(
                f"{frame.folder} has no lidar.npy: say how many pixels of its depth are measured"
                " with --points N, or which scan lines with --lines K."
            )
        rng = frame_seed(frame, sampling.seed)
        used = frame.points_lidar[measured_points(len(frame.points_lidar), sampling.hold_out, rng)]
        scored = None
        if frame.depth is not None and sampling.hold_out > 0:
            scored = np.isfinite(frame.depth) & ~hit_pixels(self.pipeline, used, frame)
        T = frame.T_camera_lidar
        observed = dataclasses.replace(
            observed,
            points=used,
            T_camera_lidar=T,
            sources=(SourcePoints("", frame.points_lidar, T, T),),
        )
        return ScoredFrame(frame.source, frame.name, observed, frame.depth, scored)


def hit_pixels(
    pipeline: DepthPipeline, used: NDArray[np.float32], frame: RecordedFrame
) -> NDArray[np.bool_]:
    """Pixels on which a used point falls, hidden or not: none of them is scored."""
    assert frame.T_camera_lidar is not None
    config = replace(pipeline.config.projection, {"drop_occluded": False})
    sparse = project_points(used, frame.T_camera_lidar, frame.camera, config)
    mask = np.zeros(frame.image.shape[:2], dtype=bool)
    mask[sparse.rows, sparse.cols] = True
    return mask


class MethodComparison:
    """Other methods on the prediction, regions and points of a result that is there already."""

    def __init__(self, pipeline: DepthPipeline, methods: Sequence[str] = COMPARED) -> None:
        own = pipeline.config.fit.method
        self.own = own
        self._rivals = {
            method: DepthPipeline(
                replace(pipeline.config, {"fit.method": method}),
                pipeline.depth_model,
                pipeline.region_model,
            )
            for method in methods
            if method != own
        }
        self.methods = (*self._rivals, own)

    def results(self, frame: FrameInput, result: DepthResult) -> dict[str, DepthResult]:
        """Method -> result; the pipeline's own comes last."""
        by_method = {}
        labels = result.labels if result.labels is not None else frame.labels
        # No stamp: each method works on this frame alone.
        frame = dataclasses.replace(
            frame, stamp_ns=None, prediction=result.prediction, sparse=result.sparse
        )
        for method, rival in self._rivals.items():
            by_method[method] = rival.process(dataclasses.replace(frame, labels=labels))
            if labels is None:  # segmented once, for all that want regions
                labels = by_method[method].labels
        by_method[self.own] = result
        return by_method


def score(frame: ScoredFrame, method: str, result: DepthResult) -> dict[str, Any]:
    """One row: where, which method, how it went, how far off; errors None without a truth."""
    row: dict[str, Any] = {
        "source": frame.source,
        "frame": frame.name,
        "method": method,
        "points": len(result.sparse),
        "status": result.fit.status.name,
        "message": result.fit.message,
        **dict.fromkeys(SCORES),
        "scored_pixels": 0,
        "stage_ms": {stage: round(ms, 3) for stage, ms in result.stage_ms.items()},
        "ms": round(result.stage_ms["total"], 3),
    }
    truth = frame.scored_truth
    if truth is not None:
        metrics = evaluate(result.depth, truth)
        values = {**metrics.as_dict(), "coverage95": coverage(result.depth, result.std, truth)}
        row.update({key: _number(values[key]) for key in SCORES})
        row["scored_pixels"] = int(metrics.pixels)
    return row


def summarise(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per method: each score averaged over the frames of a source, then over the sources.

    A frame without an answer has no error; `answered` shows that it is missing.
    """
    table: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        table.setdefault(row["method"], {}).setdefault(row["source"], []).append(row)
    return [
        {
            "method": method,
            "sources": len(sources),
            "frames": sum(len(found) for found in sources.values()),
            **{
                key: _number(mean_over_sources(_values(key, sources)))
                for key in (*SCORES, "points", "ms")
            },
        }
        for method, sources in table.items()
    ]


def _values(key: str, sources: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Source -> the values of a column; NaN where a row has none."""
    return {
        name: [math.nan if row[key] is None else row[key] for row in rows]
        for name, rows in sources.items()
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def metric_cells(row: Mapping[str, Any]) -> list[str]:
    """A row's AbsRel, delta1, RMSE, coverage and answered share as text."""
    forms = (("abs_rel", "{:.4f}"), ("delta1", "{:.3f}"), ("rmse", "{:.3f} m"))
    shares = (("coverage95", "{:.1%}"), ("answered", "{:.1%}"))
    return [
        "-" if row.get(key) is None else form.format(row[key]) for key, form in (*forms, *shares)
    ]


METRIC_HEAD = ("AbsRel", "delta1", "RMSE", "in 95 % band", "answered")


def markdown(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a markdown table."""
    lines = [
        "| method | " + " | ".join(METRIC_HEAD) + " |",
        "|---|" + "--:|" * len(METRIC_HEAD),
    ]
    lines += [f"| {row['method']} | " + " | ".join(metric_cells(row)) + " |" for row in summary]
    return "\n".join(lines) + "\n"


def panel(
    frame: ScoredFrame,
    results: Mapping[str, DepthResult],
    own: str,
    heading: str,
    subheading: str,
    names: Mapping[str, str] | None = None,
) -> panels.FrameImages:
    """The images of one frame with the table of all methods on it, `own` the last one.

    names: what to call a method in the image, for people.
    """
    result = results[own]
    called = {name: (names or {}).get(name, name) for name in results}
    rows = [
        (called[name], *metric_cells(score(frame, name, found))) for name, found in results.items()
    ]
    truth = frame.scored_truth
    numbers = None
    if truth is not None:
        pixels = np.count_nonzero(np.isfinite(truth))
        title = f"This frame, {pixels} pixels that were not measured"
        head = ("method", *METRIC_HEAD)
        numbers = panels.TableCard(title, head, rows, highlight=len(rows) - 1, columns=3)
    # A method without regions shows those of the methods beside it.
    labels = next(
        (one.labels for one in (result, *results.values()) if one.labels is not None), None
    )
    cards: list[panels.ImageCard | panels.TableCard] = [
        *panels.frame_cards(
            frame.input.image,
            frame.input.camera,
            result.sparse,
            result.rejected,
            labels,
            result.prediction.relative_depth(),
            result.gates,
            truth=truth,
            method=called[own],
            relative_caption=f"the network alone ({result.prediction.kind.replace('_', ' ')})",
            regions_caption="" if result.labels is not None else f"not used by {called[own]}",
        )
    ]
    if numbers is not None:
        cards.append(numbers)
    return panels.FrameImages(heading, subheading, tuple(cards))


class RunFolder:
    """Where a replay writes; rows are written as they come, so an interrupted run keeps them."""

    def __init__(self, path: Path, pipeline: DepthPipeline, facts: Mapping[str, Any]) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.yaml").write_text(dump(pipeline.config), encoding="utf-8")
            self._rows = (path / "frames.jsonl").open("w", encoding="utf-8")
        except OSError as error:
            raise FrameError(
                f"The run folder {path} cannot be written ({error.strerror}): name another with"
                " --out."
            ) from None
        versions = {
            "depth_node": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        self._write("run.json", {**facts, "versions": versions})

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows of a frame."""
        for row in rows:
            self._rows.write(json.dumps(row) + "\n")
        self._rows.flush()

    def save_depth(self, name: str, result: DepthResult) -> None:
        """Keep the depth and its standard deviation of a frame."""
        folder = self.path / "depth"
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / f"{name}.npz", depth=result.depth, std=result.std)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def finish(self, summary: Sequence[Mapping[str, Any]], sentences: Iterable[str]) -> None:
        """Write the summary, and sentences below its table."""
        self._write("summary.json", summary)
        lines = "".join(f"\n{sentence}\n" for sentence in sentences)
        (self.path / "summary.md").write_text(markdown(summary) + lines, encoding="utf-8")

    def _write(self, name: str, content: Any) -> None:
        (self.path / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Replayed:
    """What a replay gave: a row per frame and method, their averages, the panels written, what of
    the recording could not be used, and what the LiDARs' edges say of their extrinsics.
    """

    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    panels: list[Path]
    frames: int
    left_out: LeftOut
    extrinsics: list[str]


def replay(
    frames: FrameSource,
    pipeline: DepthPipeline,
    out: Path,
    *,
    facts: Mapping[str, Any],
    images: int = 12,
    save_depth: bool = False,
    methods: Sequence[str] = COMPARED,
    on_frame: Callable[[str], None] = lambda name: None,
    sinks: Sequence[ResultSink] = (),
) -> Replayed:
    """Process every frame and write the run folder.

    images: panels of at most so many frames, spread evenly. on_frame: called with the name of
    every frame that is done. sinks: get every result as it comes.
    """
    pipeline.warm_up()
    comparison = MethodComparison(pipeline, methods)
    log = ExtrinsicsLog()
    drawn = set(np.linspace(0, len(frames) - 1, min(images, len(frames))).round().tolist())
    rows: list[dict[str, Any]] = []
    panels: list[Path] = []
    count = 0
    with RunFolder(out, pipeline, facts) as folder:
        for frame in frames:
            result = pipeline.process(frame.input)
            log.add(frame.name, frame.input, result.prediction)
            results = comparison.results(frame.input, result)
            found = [score(frame, method, one) for method, one in results.items()]
            folder.add(found)
            rows += found
            for sink in sinks:
                sink.add(frame, result, log.verdicts)
            if save_depth:
                folder.save_depth(frame.name, result)
            if count in drawn:
                heading = f"Metric depth from one image and {len(result.sparse)} measured points"
                words = f"{frame.source} / {frame.name}   |   {result.fit.message}"
                images_of = panel(frame, results, comparison.own, heading, words)
                stem = f"{frame.source}_{frame.name}"
                panels += images_of.save(out / "images", stem, singles=False)
            count += 1
            on_frame(frame.name)
        if not count:
            raise FrameError("The source gave no image at all: nothing was replayed.")
        summary = summarise(rows)
        folder.finish(summary, [*log.sentences(), *frames.left_out.sentences()])
    return Replayed(rows, summary, panels, count, frames.left_out, log.sentences())
