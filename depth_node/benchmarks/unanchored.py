# SPDX-License-Identifier: Apache-2.0
"""Benchmark of depth after the LiDAR has failed, on rendered walks and recorded frames: does the
stated interval still contain the truth?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_node.benchmarks.calibration_sequences import CAMERA, room_sequence
from depth_node.benchmarks.tables import Means, Table
from depth_node.fitting import FitStatus
from depth_node.frame import FrameInput
from depth_node.geometry.sparse_depth import SparseDepth, project_points
from depth_node.metrics import coverage, evaluate
from depth_node.pipeline import DepthPipeline
from depth_node.prediction import Prediction
from depth_node.recordings.frames import find_frames, read_frame, split_uniform
from depth_node.simulation.walk import T_CAMERA_LIDAR

SEEDS = (115, 116, 117, 118, 119)
"""Held-out rooms: no constant was chosen on them."""
FRAMES = 100
ANCHORED_S = 2.0  # with points, before the LiDAR fails
AGES_S = (0.2, 1.0, 2.0, 4.0, 7.6)  # since the last scan, at which frames are scored
FEW = (0, 1, 3, 5)  # points per frame that are still measured after that
ROAD_AGE_S = 1.0
ANCHORING_POINTS = 250
_STEP = 2  # every second frame is used
_HEAD = ["points after it", "of the last scan, s", "AbsRel", "in the 95 % interval", "bound"]

Truth = NDArray[np.float32]


def walks(
    pipeline: DepthPipeline,
    seeds: Sequence[int] = SEEDS,
    cache: Path | None = None,
    on_walk: Callable[[str], None] = lambda name: None,
) -> Table:
    """Score rendered walks of some 10 s, on which the LiDAR is silent after ANCHORED_S.

    cache: folder that keeps the rendered walks. on_walk: called after each walk with its name.
    """
    means = Means()
    for seed in seeds:
        steps = list(_walk(pipeline, seed, cache))
        for few in FEW:
            pipeline.reset()
            rng = np.random.default_rng([seed, few])
            for frame, points, truth in steps:
                assert frame.stamp_ns is not None
                age_s = frame.stamp_ns * 1e-9 - ANCHORED_S
                sparse = points if age_s <= 0 else _some(points, few, rng)
                result = pipeline.process(dataclasses.replace(frame, sparse=sparse))
                if result.fit.status is not FitStatus.UNANCHORED:
                    continue
                for age in AGES_S:
                    if abs(age_s - age) < 0.05:
                        row = f"{few}|{age:g}"
                        _score(means, row, f"room {seed}", result.depth, result.std, truth)
                        means.add(row, "bound", f"room {seed}", result.fit.details["bound"])
        on_walk(f"room {seed}")
    notes = [
        f"{len(seeds)} rooms on which no constant was chosen; a loop through the room in 40 s;"
        " 16 lines while there is a LiDAR, scored at the points of 64 lines",
    ]
    return Table("The LiDAR falls silent on a walk", _HEAD, _rows(means), notes)


def recordings(pipeline: DepthPipeline, folder: Path) -> Table:
    """Score recorded frames: anchored on one frame of a source, unanchored on every other one."""
    means = Means()
    sources: dict[str, list[tuple[FrameInput, SparseDepth, Truth]]] = {}
    for path in find_frames(folder):
        recorded = read_frame(path)
        if recorded.depth is None:
            continue
        split = split_uniform(recorded, ANCHORING_POINTS, 0)
        observed = FrameInput(recorded.image, recorded.camera)
        prediction = pipeline.process(dataclasses.replace(observed, sparse=split.points)).prediction
        observed = dataclasses.replace(observed, prediction=prediction)
        truth = np.where(split.scored, recorded.depth, np.float32(np.nan))
        sources.setdefault(recorded.source, []).append((observed, split.points, truth))
    for source, frames in sources.items():
        for i, (first, first_points, _) in enumerate(frames):
            for j, (second, second_points, truth) in enumerate(frames):
                if i == j or first.image.shape != second.image.shape:
                    continue
                for few in FEW:
                    pipeline.reset()
                    start = dataclasses.replace(first, sparse=first_points, stamp_ns=10**9)
                    pipeline.process(start)
                    now_ns = 10**9 + round(ROAD_AGE_S * 1e9)
                    sparse = _some(second_points, few, np.random.default_rng([i, j, few]))
                    later = dataclasses.replace(second, sparse=sparse, stamp_ns=now_ns)
                    result = pipeline.process(later)
                    row = f"{few}|{ROAD_AGE_S:g}"
                    _score(means, row, source, result.depth, result.std, truth)
                    means.add(row, "bound", source, result.fit.details["bound"])
    inside = means.of_sources(f"0|{ROAD_AGE_S:g}", "inside")
    notes = [
        "another view of the same place counts as a second later, which is harder than a second of"
        " driving",
        "without a point, inside by source: "
        + ", ".join(f"{source} {value:.3f}" for source, value in inside.items()),
    ]
    return Table("Anchored on one recorded frame, scored on another", _HEAD, _rows(means), notes)


def _walk(
    pipeline: DepthPipeline, seed: int, cache: Path | None
) -> Iterator[tuple[FrameInput, SparseDepth, Truth]]:
    """Yield frames with their prediction, the points of 16 lines, and the true depth (H, W) m at
    the points of 64 lines, NaN elsewhere.
    """
    sequence = room_sequence(seed, FRAMES, cache)
    sparse_frames, dense_frames = sequence.frames(16), sequence.frames(64)
    for sparse, dense in zip(sparse_frames[::_STEP], dense_frames[::_STEP], strict=True):
        assert sparse.points is not None and dense.points is not None
        config = pipeline.config.projection
        points = project_points(sparse.points, T_CAMERA_LIDAR, CAMERA, config)
        truth = project_points(dense.points, T_CAMERA_LIDAR, CAMERA, config)
        prediction = pipeline.process(FrameInput(sparse.image, CAMERA, sparse=points)).prediction
        frame = FrameInput(
            sparse.image,
            CAMERA,
            stamp_ns=sparse.stamp_ns,
            prediction=Prediction(prediction.values, prediction.kind),
        )
        yield frame, points, truth.to_map(CAMERA.height, CAMERA.width)


def _some(points: SparseDepth, count: int, rng: np.random.Generator) -> SparseDepth:
    return points.subset(np.sort(rng.permutation(len(points))[:count]))


def _score(means: Means, row: str, source: str, depth: Truth, std: Truth, truth: Truth) -> None:
    means.add(row, "AbsRel", source, evaluate(depth, truth).abs_rel)
    means.add(row, "inside", source, coverage(depth, std, truth))


def _rows(means: Means) -> list[list[str]]:
    return [
        [
            *row.split("|"),
            f"{means(row, 'AbsRel'):.3f}",
            f"{means(row, 'inside'):.3f}",
            f"{means(row, 'bound'):.0%}",
        ]
        for row in means.rows()
    ]
