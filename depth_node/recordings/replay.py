# SPDX-License-Identifier: Apache-2.0
"""Replay of recorded frames or a rosbag2 through the pipeline of the node, into a run folder.

A run folder contains the settings and the results::

    config.yaml     every setting, as resolved
    run.json        source, seed, model, versions
    frames.jsonl    one line per frame and method: status, errors, stage times
    summary.json    the errors averaged over each source, then over the sources
    summary.md      the same as a table
    images/         panels
    depth/          with save_depth: <source>_<frame>.npz, keys depth and std
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from depth_node import __version__
from depth_node.calibration.monitor import Verdict
from depth_node.config import dump
from depth_node.pipeline import DepthPipeline, DepthResult
from depth_node.recordings.extrinsics_log import ExtrinsicsLog
from depth_node.recordings.frames import (
    FrameError,
)
from depth_node.recordings.scores import (
    COMPARED,
    METRIC_HEAD,
    MethodComparison,
    markdown,
    metric_cells,
    score,
    summarise,
)
from depth_node.recordings.sources import FrameSource, LeftOut, ScoredFrame
from depth_node.visualization import panels


class ResultSink(Protocol):
    """A destination of results besides the run folder: a bag, or a recording for a viewer."""

    def add(self, frame: ScoredFrame, result: DepthResult, verdicts: Mapping[str, Verdict]) -> None:
        """Take the result of a frame, in the order of the recording.

        verdicts: the present verdict on the extrinsics of each LiDAR.
        """


def panel(
    frame: ScoredFrame,
    results: Mapping[str, DepthResult],
    own: str,
    heading: str,
    subheading: str,
    names: Mapping[str, str] | None = None,
) -> panels.FrameImages:
    """Return the images of one frame with a table of all methods, the last of them `own`.

    names: readable names of the methods, for the image.
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
    # For a method without regions, show those of the methods it is compared with.
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
    """The folder that a replay writes; each row is written at once, so an interrupted run keeps it.

    Raises FrameError if the folder cannot be written.
    """

    def __init__(self, path: Path, pipeline: DepthPipeline, facts: Mapping[str, Any]) -> None:
        self.path = path
        with self.writing():
            path.mkdir(parents=True, exist_ok=True)
            # "x": another process may have taken the folder in the meantime.
            self._rows = (path / "frames.jsonl").open("x", encoding="utf-8")
            (path / "config.yaml").write_text(dump(pipeline.config), encoding="utf-8")
        versions = {
            "depth_node": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        self._write("run.json", {**facts, "versions": versions})

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append the rows of a frame."""
        with self.writing():
            for row in rows:
                self._rows.write(json.dumps(row) + "\n")
            self._rows.flush()

    def save_depth(self, name: str, result: DepthResult) -> None:
        """Write the depth of a frame and its standard deviation."""
        folder = self.path / "depth"
        with self.writing():
            folder.mkdir(exist_ok=True)
            np.savez_compressed(folder / f"{name}.npz", depth=result.depth, std=result.std)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # every row was flushed; a full disk has been reported
            self._rows.close()

    def finish(self, summary: Sequence[Mapping[str, Any]], sentences: Iterable[str]) -> None:
        """Write the summary, and sentences below its table."""
        self._write("summary.json", summary)
        lines = "".join(f"\n{sentence}\n" for sentence in sentences)
        with self.writing():
            (self.path / "summary.md").write_text(markdown(summary) + lines, encoding="utf-8")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Name the folder in a FrameError if the block cannot write into it."""
        try:
            yield
        except OSError as error:
            raise FrameError(
                f"The run folder {self.path} cannot be written ({error.strerror or error}): make"
                " room, or name another with --out."
            ) from None

    def _write(self, name: str, content: Any) -> None:
        with self.writing():
            (self.path / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    rows: one per frame and method. summary: their averages. panels: the files written. frames: how
    many were processed. left_out: what of the recording could not be used. extrinsics: sentences
    on the LiDARs' extrinsics.
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

    images: write panels of at most this many frames, spread evenly. methods: those to compare with.
    on_frame: called with the name of every frame that is done. sinks: get every result. Raises
    FrameError if the source gives no frame, or the folder cannot be written.
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
            stem = f"{frame.source}_{frame.name}"
            frame_rows = [score(frame, method, one) for method, one in results.items()]
            folder.add(frame_rows)
            rows += frame_rows
            for sink in sinks:
                sink.add(frame, result, log.verdicts)
            if save_depth:
                folder.save_depth(stem, result)
            if count in drawn:
                heading = f"Metric depth from one image and {len(result.sparse)} measured points"
                words = f"{frame.source} / {frame.name}   |   {result.fit.message}"
                images_of = panel(frame, results, comparison.own, heading, words)
                with folder.writing():
                    panels += images_of.save(out / "images", stem, singles=False)
            count += 1
            on_frame(frame.name)
        if not count:
            raise FrameError("The source gave no image at all: nothing was replayed.")
        summary = summarise(rows)
        folder.finish(summary, [*log.sentences(), *frames.left_out.sentences()])
    return Replayed(rows, summary, panels, count, frames.left_out, log.sentences())
