# SPDX-License-Identifier: Apache-2.0
"""The same frames, published live to the real node and replayed from disk, give the same depth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from recordings import write_frame

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from depth_node import demo, replay
from depth_node.config import build
from depth_node.pipeline import DepthPipeline, PipelineConfig

PICTURES = 4
RATE_HZ = 2.0


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[str], None]]:
    yield lambda word: None


def live_depths(config: PipelineConfig, frames: Path, folder: Path) -> list[tuple[int, np.ndarray]]:
    """(index of the frame, depth as it came over ROS) of every picture that was answered."""
    folder.mkdir()
    options = demo.DemoOptions(config, seconds=PICTURES / RATE_HZ, rate_hz=RATE_HZ)
    live = demo.run_live(options, frames, folder, silent)
    assert live.received >= PICTURES // 2, live
    rows = map(json.loads, (folder / "published.jsonl").read_text().splitlines())
    index_of = {row["number"]: row["index"] for row in rows}
    kept = sorted(folder.glob("live_*.npy"))
    return [(index_of[int(path.stem.split("_")[1])], np.load(path)) for path in kept]


def compare(config: PipelineConfig, frames: Path, folder: Path) -> None:
    with DepthPipeline(config) as pipeline:
        moments = replay.FolderMoments(frames, replay.Sampling(hold_out=0.0), pipeline)
        want = [replay.process(pipeline, moment).depth for moment in moments]
    got = live_depths(config, frames, folder)
    assert len(got) >= PICTURES // 2
    for index, depth in got:
        assert np.isfinite(depth).mean() > 0.5
        np.testing.assert_allclose(depth, want[index], rtol=1e-6)


@pytest.mark.parametrize("method", ["field", "ssf", "global_disparity"])
def test_made_up_frames(network: Path, tmp_path: Path, method: str) -> None:
    frames = tmp_path / "frames"
    write_frame(frames / "a")
    config = build(PipelineConfig, {"model": {"path": str(network)}, "fit": {"method": method}})
    compare(config, frames, tmp_path / "run")


def test_a_real_road_with_a_real_sweep(shared: Path, tmp_path: Path) -> None:
    """960x600 pixels, 80000 points, the network in the package."""
    frames = tmp_path / "frames"
    shutil.copytree(shared / "data" / "opencalib_road" / "ours_1", frames / "ours_1")
    compare(PipelineConfig(), frames, tmp_path / "run")
