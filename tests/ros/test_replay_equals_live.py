# SPDX-License-Identifier: Apache-2.0
"""The same frames, published live to the real node and replayed from disk, give the same depth."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.recordings import write_frame

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from depth_node.config import build, replace
from depth_node.live import DemoOptions, run_live
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.recordings import sources
from depth_node.recordings.held_out import Sampling

IMAGES = 4
RATE_HZ = 2.0


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[str], None]]:
    yield lambda word: None


def live_depths(
    config: PipelineConfig, frames: Path, folder: Path
) -> list[tuple[int, int, np.ndarray]]:
    """(number, index of the frame, depth as it came over ROS) of every answered image."""
    folder.mkdir()
    options = DemoOptions(config, seconds=IMAGES / RATE_HZ, rate_hz=RATE_HZ)
    live = run_live(options, frames, folder, silent)
    assert live.received >= IMAGES // 2, live
    rows = map(json.loads, (folder / "published.jsonl").read_text().splitlines())
    index_of = {row["number"]: row["index"] for row in rows}
    kept = sorted(folder.glob("live_*.npy"))
    numbers = [int(path.stem.split("_")[1]) for path in kept]
    return [(n, index_of[n], np.load(path)) for n, path in zip(numbers, kept, strict=True)]


def compare(config: PipelineConfig, frames: Path, folder: Path) -> None:
    """Compare live and replayed depth of single images, without memory."""
    config = replace(config, {"fit.field.temporal.enabled": False})
    with DepthPipeline(config) as pipeline:
        scored = sources.FolderFrames(frames, Sampling(hold_out=0.0), pipeline)
        # As published: depth at the end of the range is +Inf.
        want = [pipeline.process(frame.input).gates.depth_image() for frame in scored]
    got = live_depths(config, frames, folder)
    assert len(got) >= IMAGES // 2
    for _, index, depth in got:
        assert np.isfinite(depth).mean() > 0.5
        np.testing.assert_allclose(depth, want[index], rtol=1e-6)


@pytest.mark.parametrize("method", ["field", "ssf", "global_disparity"])
def test_made_up_frames(network: Path, tmp_path: Path, method: str) -> None:
    frames = tmp_path / "frames"
    write_frame(frames / "a")
    config = build(PipelineConfig, {"model": {"path": str(network)}, "fit": {"method": method}})
    compare(config, frames, tmp_path / "run")


def test_a_sequence_that_is_remembered(network: Path, tmp_path: Path) -> None:
    """With the memory on, the same images in the same order and at the same times."""
    frames = tmp_path / "frames"
    write_frame(frames / "a")
    points = np.load(frames / "a" / "lidar.npy")
    np.save(frames / "a" / "lidar.npy", points[::2])
    write_frame(frames / "b")  # the same room, measured at other places
    np.save(frames / "b" / "lidar.npy", points[1::2])
    config = build(PipelineConfig, {"model": {"path": str(network)}})
    assert config.fit.method == "field" and config.fit.field.temporal.enabled
    got = live_depths(config, frames, tmp_path / "run")
    rows = map(json.loads, (tmp_path / "run" / "published.jsonl").read_text().splitlines())
    stamps = {row["number"]: row["stamp"] for row in rows}
    with DepthPipeline(config) as pipeline:
        sampling = Sampling(hold_out=0.0)
        scored = list(sources.FolderFrames(frames, sampling, pipeline))
        differs = False
        for number, index, depth in got:
            frame = dataclasses.replace(scored[index].input, stamp_ns=stamps[number])
            result = pipeline.process(frame)
            np.testing.assert_allclose(depth, result.gates.depth_image(), rtol=1e-6)
            differs |= bool(result.fit.details["remembered"] > 0.1)
        assert differs, "nothing was remembered, so nothing was compared"


def test_a_real_road_with_a_real_sweep(shared: Path, tmp_path: Path) -> None:
    """960x600 pixels, 80000 points, the network in the package."""
    frames = tmp_path / "frames"
    shutil.copytree(shared / "data" / "opencalib_road" / "ours_1", frames / "ours_1")
    compare(PipelineConfig(), frames, tmp_path / "run")
