# SPDX-License-Identifier: Apache-2.0
"""Recordings of a robot as training data: `depth_tools export-depth`, read by training.data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depth_node.cli import main
from tests.helpers.recordings import CAMERA, T_CAMERA_LIDAR, BagWriter, scene
from training.data.open import DataConfig, open_samples

pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("rosbags", reason="rosbags is not installed")
pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
# rclpy imports lark, which warns of modules that Python has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


def test_a_drive_is_read_as_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = BagWriter(tmp_path / "drive")
    for number in range(4):
        writer.info(1 + 0.1 * number)
        writer.cloud(1 + 0.1 * number)
        writer.image(1 + 0.1 * number)
    writer.close()
    numbers = " ".join(str(value) for value in T_CAMERA_LIDAR.reshape(-1))
    arguments = ["export-depth", str(tmp_path / "drive"), "--t-camera-lidar", numbers]
    arguments += ["--every", "2", "--out", str(tmp_path / "data"), "--png"]
    assert main.main(arguments) == 0
    assert "2 frames" in capsys.readouterr().out
    samples = list(open_samples(DataConfig("frames", str(tmp_path / "data"))))
    assert len(samples) == 2
    image, depth = scene()
    for sample in samples:
        assert np.array_equal(sample.image, image)
        assert sample.camera == CAMERA
        assert sample.depth is not None
        known = np.isfinite(sample.depth)
        assert known.mean() > 0.5
        relative = np.abs(sample.depth - depth)[known] / depth[known]
        assert np.median(relative) < 0.02
