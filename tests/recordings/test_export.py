# SPDX-License-Identifier: Apache-2.0
"""Exported frames: they can be read back, unknown stays unknown, none is half written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depth_node.config import build
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.pipeline import DepthPipeline, DepthResult, PipelineConfig
from depth_node.prediction import Prediction
from depth_node.recordings.export import FrameFolders, known_depth_mm
from depth_node.recordings.files import FrameError
from depth_node.recordings.frames import read_frame
from depth_node.recordings.sources import ScoredFrame
from tests.helpers.recordings import CAMERA, T_CAMERA_LIDAR, lidar_of, relative_of, scene


def answered(camera: Camera = CAMERA) -> tuple[ScoredFrame, DepthResult]:
    image, depth = scene()
    prediction = Prediction(relative_of(depth), "disparity_affine_invariant")
    observed = FrameInput(image, camera, lidar_of(depth), T_CAMERA_LIDAR, prediction=prediction)
    with DepthPipeline(build(PipelineConfig, {"model": {"path": ""}})) as pipeline:
        return ScoredFrame("drive", "00001", observed), pipeline.process(observed)


def test_millimetres_and_what_is_unknown() -> None:
    depth = np.array([[1.2344, np.nan, 70.0], [0.0004, 2.0, np.inf]])
    std = np.array([[0.1, 0.1, 0.1], [0.1, np.nan, 0.1]])
    assert known_depth_mm(depth, std, 0.0).tolist() == [[1234, 0, 0], [0, 2000, 0]]
    assert known_depth_mm(depth, std, 0.1).tolist() == [[1234, 0, 0], [0, 0, 0]]
    assert known_depth_mm(depth, std, 0.05).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_frame_is_read_back(tmp_path: Path) -> None:
    frame, result = answered()
    out = FrameFolders(tmp_path, images_png=True)
    out.add(frame, result)
    back = read_frame(tmp_path / "drive" / "00001")
    assert np.array_equal(back.image, frame.input.image)
    assert back.camera == CAMERA
    believed = result.gates.believed_depth()
    assert 0.5 < np.isfinite(believed).mean() < 1, "flying pixels are left out"
    assert back.truth == pytest.approx(believed, abs=0.0006, nan_ok=True)
    assert out.known == pytest.approx(np.isfinite(believed).mean())
    with pytest.raises(FrameError, match="is there already"):
        out.add(frame, result)
    assert [entry.name for entry in (tmp_path / "drive").iterdir()] == ["00001"]


def test_distortion_is_kept(tmp_path: Path) -> None:
    bent = Camera(96, 72, 80.0, 80.0, 47.5, 35.5, "plumb_bob", (-0.2, 0.05, 0.001, 0.0, 0.0))
    FrameFolders(tmp_path).add(*answered(bent))
    assert read_frame(tmp_path / "drive" / "00001").camera == bent
