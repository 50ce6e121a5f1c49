# SPDX-License-Identifier: Apache-2.0
"""Results for the Rerun viewer: written by the real rerun-sdk and read back by it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from depth_node.config import build
from depth_node.frame import FrameInput
from depth_node.pipeline import DepthPipeline, DepthResult, PipelineConfig
from depth_node.prediction import Prediction
from depth_node.recordings.files import FrameError
from depth_node.recordings.rerun_log import RerunLog
from depth_node.recordings.sources import ScoredFrame
from tests.helpers.recordings import CAMERA, T_CAMERA_LIDAR, lidar_of, relative_of, scene


def answered() -> tuple[ScoredFrame, DepthResult]:
    image, depth = scene()
    prediction = Prediction(relative_of(depth), "disparity_affine_invariant")
    observed = FrameInput(
        image, CAMERA, lidar_of(depth), T_CAMERA_LIDAR, stamp_ns=10**18, prediction=prediction
    )
    with DepthPipeline(build(PipelineConfig, {"model": {"path": ""}})) as pipeline:
        return ScoredFrame("bag", "0", observed), pipeline.process(observed)


def test_without_rerun_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(FrameError, match="pip install rerun-sdk"), RerunLog(tmp_path / "a.rrd"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("default")
def test_a_recording_holds_every_entity(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    frame, result = answered()
    with RerunLog(tmp_path / "a.rrd") as log:
        log.add(frame, result, {})
        log.add(frame, result, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.rrd"]
    chunks = pytest.importorskip("rerun.chunk")
    recording = chunks.RrdReader(tmp_path / "a.rrd").store()
    schema = recording.schema()
    entities = {column.entity_path for column in schema.component_columns()}
    wanted = {"/camera", "/camera/image", "/camera/depth", "/camera/deviation", "/points", "/lidar"}
    assert wanted <= entities
    assert {"stamp", "frame"} <= {column.name for column in schema.index_columns()}


@pytest.mark.filterwarnings("default")
def test_nothing_stays_after_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")

    def fail() -> None:
        with RerunLog(tmp_path / "a.rrd") as log:
            log.add(*answered())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.rrd").write_bytes(np.zeros(3).tobytes())
    with pytest.raises(FrameError, match="is there already"):
        RerunLog(tmp_path / "a.rrd")
