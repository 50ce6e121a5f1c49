# SPDX-License-Identifier: Apache-2.0
"""`depth_tools calibrate`: what it reads of a bag."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from depth_node.calibration.estimate import Estimate
from depth_node.cli import calibrate
from tests.helpers.recordings import T_CAMERA_LIDAR, BagWriter

NUMBERS = " ".join(str(value) for value in T_CAMERA_LIDAR.reshape(-1))


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    calibrate.add(parser.add_subparsers())
    return parser.parse_args(["calibrate", *arguments])


@pytest.mark.parametrize(
    ("topic", "option", "model"),
    [
        ("/camera/image_rect", [], "pinhole"),
        ("/camera/image_raw", [], "plumb_bob"),
        ("/camera/image_raw", ["--rectified"], "pinhole"),
        ("/camera/image_rect", ["--rectified", "no"], "plumb_bob"),
    ],
)
def test_the_image_is_rectified_as_for_the_node(
    topic: str, option: list[str], model: str, tmp_path: Path
) -> None:
    pytest.importorskip("rosbags", reason="rosbags is not installed")
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    writer = BagWriter(tmp_path / "bag")
    writer.info(1.0, d=np.array([0.1, 0.0, 0.0, 0.0, 0.0]))
    writer.cloud(1.0)
    writer.image(1.0, topic)
    writer.close()
    for start in ("--start", "--t-camera-lidar"):
        options = parsed(str(tmp_path / "bag"), start, NUMBERS, *option)
        (frame,) = calibrate._bag_frames(options, tmp_path / "bag")
        assert frame.camera.model == model
        np.testing.assert_allclose(frame.T_camera_lidar, T_CAMERA_LIDAR)


def test_a_time_offset_that_the_data_leave_open_is_not_told_as_a_setting() -> None:
    def found(std_s: float, known: bool = True) -> str:
        covariance = np.diag([1e-8] * 6 + [std_s**2])
        correction = np.array([0.0] * 6 + [0.041])
        return calibrate.time_words(Estimate(correction, covariance, 700, 1.0, 1.0, known))

    assert found(0.001) == "0.0410"
    assert found(0.06) == "not known (its deviation is 0.0600)"
    assert "no motion" in found(0.001, known=False)
