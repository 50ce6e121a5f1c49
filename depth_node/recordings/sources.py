# SPDX-License-Identifier: Apache-2.0
"""Sources of recorded frames with their ground truth, and the record of what cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from depth_node.config import replace
from depth_node.frame import FrameInput, SourcePoints
from depth_node.geometry.sparse_depth import if_inverted, none_in_image, project_points
from depth_node.pipeline import DepthPipeline
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

MOST_LINES = 12  # of sentences on what was left out
_MOST_WARNINGS = 8


@dataclass(frozen=True)
class ScoredFrame:
    """A recorded frame and its ground truth.

    truth: (H, W) m, or None. scored: (H, W) bool, the pixels to compare, or None.
    """

    source: str
    name: str
    input: FrameInput
    truth: NDArray[np.float32] | None = None
    scored: NDArray[np.bool_] | None = None

    @property
    def scored_truth(self) -> NDArray[np.float32] | None:
        """Truth (H, W), metres, at the scored pixels, NaN elsewhere; None without any."""
        if self.truth is None or self.scored is None:
            return None
        return np.where(self.scored, self.truth, np.float32(np.nan))


class LeftOut:
    """The parts of a recording that could not be used: counted, with the first reason of each kind.

    A frame, image or message that is left out does not end a replay. damaged: whether some of them
    were damaged, rather than only without a match.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._warnings: list[str] = []
        self.damaged = False

    def add(self, why: str, kind: str = "parts", damaged: bool = True, count: int = 1) -> None:
        """Count parts of a kind that were left out; for kind "parts" each reason is a kind."""
        key = kind if kind != "parts" else why
        self._counts[key] = self._counts.get(key, 0) + count
        if key not in self._reasons:
            self._reasons[key] = f"{kind}: {why}" if kind != "parts" else why
        self.damaged |= damaged

    def warn(self, sentence: str) -> None:
        """Warn of something that was used and may still be wrong; each sentence is kept once."""
        if sentence not in self._warnings and len(self._warnings) < _MOST_WARNINGS:
            self._warnings.append(sentence)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def first(self) -> str:
        """Return the first reason for which an image or frame was left out, else the first of any.

        "" if nothing was left out.
        """
        own = [why for key, why in self._reasons.items() if key in ("images", "frames")]
        return next(iter([*own, *self._reasons.values()]), "")

    def sentences(self) -> list[str]:
        """Return a line for each warning and one for each kind, at most MOST_LINES kinds."""
        lines = [f"left out: {count} {self._reasons[key]}" for key, count in self._counts.items()]
        if len(lines) > MOST_LINES:
            lines[MOST_LINES:] = [f"left out: {len(lines) - MOST_LINES} other kinds of parts"]
        return [*(f"warning: {sentence}" for sentence in self._warnings), *lines]


class FrameSource(Protocol):
    """A source of recorded frames: their number, and an iterator over them."""

    @property
    def left_out(self) -> LeftOut:
        """The parts that could not be used so far."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ScoredFrame]: ...


class FolderFrames:
    """The frames under a folder, read one at a time; a frame that cannot be used is left out.

    Iterating raises the FrameError of the first frame if none can be used.
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
        sparse = project_points(used, T, frame.camera, self.pipeline.config.projection)
        if len(used) and not len(sparse):
            why = none_in_image(sparse.counts) + if_inverted(used, T, frame.camera)
            self.left_out.add(why, kind="scans beside the image", damaged=False)
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
    """Return the pixels (H, W) on which a used point falls, hidden or not: they are not scored."""
    assert frame.T_camera_lidar is not None
    config = replace(pipeline.config.projection, {"drop_occluded": False})
    sparse = project_points(used, frame.T_camera_lidar, frame.camera, config)
    mask = np.zeros(frame.image.shape[:2], dtype=bool)
    mask[sparse.rows, sparse.cols] = True
    return mask
