# SPDX-License-Identifier: Apache-2.0
"""Depth images, landmarks and ranges of a bag: used where they are named, as the live node does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")
pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")

from depth_node.frame import FrameInput
from depth_node.geometry.sparse_depth import ProjectionConfig, project_points
from depth_node.recordings.held_out import Sampling, hold_out_points
from depth_node.ros.bags import Bag, BagTopics
from tests.helpers.recordings import CAMERA, T_CAMERA_LIDAR, BagWriter, lidar_of, scene

DEPTH = scene()[1]
SPARSE = np.where(np.indices(DEPTH.shape).sum(axis=0) % 3 == 0, DEPTH, 0).astype(np.float32)


def write(path: Path, *, frame: str = "camera") -> Path:
    """A camera with a LiDAR, a depth image of each encoding, radar and an ultrasonic sensor."""
    bag = BagWriter(path)
    bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR), ("camera", "sonar", T_CAMERA_LIDAR)])
    bag.info(1.0)
    bag.cloud(1.0)
    bag.cloud(1.0, lidar_of(DEPTH, 7), "/radar")
    for name, pixels in (("32FC1", SPARSE), ("16UC1", np.rint(1000 * SPARSE).astype(np.uint16))):
        bag.image(
            1.0, f"/depth/{name}", header=bag.header(1.0, frame), encoding=name,
            step=pixels.strides[0], data=pixels.view(np.uint8).reshape(-1),
        )  # fmt: skip
    kind = "sensor_msgs/msg/Range"
    echo = bag.types[kind](
        header=bag.header(1.0, "sonar"), radiation_type=0, field_of_view=0.3, min_range=0.1,
        max_range=5.0, range=2.2, **({"variance": 0.0} if _has_variance(bag, kind) else {}),
    )  # fmt: skip
    bag.write("/sonar", kind, 1.0, echo)
    bag.image(1.05)
    bag.close()
    return path


def _has_variance(bag: BagWriter, kind: str) -> bool:
    return "variance" in bag.types[kind].__dataclass_fields__


def only(path: Path, noise: dict[str, float], **topics: str) -> tuple[FrameInput, list[Any]]:
    with Bag(path, BagTopics(**topics), noise=noise) as bag:
        (frame,) = bag.frames()
        return frame, bag.left_out.sentences()


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_a_depth_image_alone_needs_no_extrinsics(tmp_path: Path, encoding: str) -> None:
    frame, left_out = only(write(tmp_path / "bag"), {"depth": 0.02}, depth=f"/depth/{encoding}")
    assert not left_out
    np.testing.assert_array_equal(frame.T_camera_lidar, np.eye(4))
    rows, cols = np.nonzero(SPARSE)
    np.testing.assert_allclose(frame.points, CAMERA.backproject(SPARSE)[rows, cols], atol=6e-4)
    np.testing.assert_allclose(
        frame.noise_m, 0.02 * np.linalg.norm(frame.points, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(frame.age_s, 0.05)
    assert not frame.sources, "no LiDAR whose pose could be judged"


def test_all_sensors_together_each_with_its_noise(tmp_path: Path) -> None:
    frame, left_out = only(
        write(tmp_path / "bag"),
        {"landmarks": 0.1, "depth": 0.02, "range": 0.2},
        points="/lidar/points", landmarks="/radar", depth="/depth/32FC1", range="/sonar",
    )  # fmt: skip
    assert not left_out
    assert frame.points is not None
    lidar, radar, pixels = len(lidar_of(DEPTH)), len(lidar_of(DEPTH, 7)), np.count_nonzero(SPARSE)
    assert len(frame.points) == lidar + radar + pixels
    share = frame.noise_m / np.linalg.norm(frame.points, axis=1)
    assert np.count_nonzero(frame.noise_m == 0) == lidar
    assert np.count_nonzero(np.abs(share - 0.02) < 1e-4) == pixels
    assert [each.source for each in frame.sources] == ["/lidar/points/lidar"]
    (echo,) = frame.echoes
    from_sensor = echo.points - T_CAMERA_LIDAR[:3, 3]
    np.testing.assert_allclose(np.linalg.norm(from_sensor, axis=1), 2.2, rtol=1e-5)
    assert (echo.noise_m, echo.age_s) == (pytest.approx(0.44), pytest.approx(0.05))


def test_they_are_not_taken_unless_named(tmp_path: Path) -> None:
    frame, _ = only(write(tmp_path / "bag"), {}, points="/lidar/points")
    assert not frame.echoes and not np.any(frame.noise_m)
    assert frame.points is not None and len(frame.points) == len(lidar_of(DEPTH))


def test_a_depth_image_of_another_frame_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "bag", frame="tof")
    topics = BagTopics(depth="/depth/32FC1")
    with Bag(path, topics) as bag, pytest.raises(ValueError, match="must be registered"):
        list(bag.frames())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(lines=2), Sampling(points=20)])
def test_noisy_points_are_no_truth_beside_others(tmp_path: Path, sampling: Sampling) -> None:
    frame, _ = only(
        write(tmp_path / "bag"), {"landmarks": 0.1}, points="/lidar/points", landmarks="/radar"
    )
    rng = np.random.default_rng(0)
    observed, truth, scored = hold_out_points(frame, sampling, ProjectionConfig(), rng)
    sparse = observed.sparse
    if sparse is None:
        assert observed.points is not None and observed.T_camera_lidar is not None
        sparse = project_points(
            observed.points, observed.T_camera_lidar, CAMERA, noise_m=observed.noise_m
        )
    exact = np.count_nonzero(sparse.noise_m == 0)
    assert exact > 0 and np.count_nonzero(sparse.noise_m) > 5
    assert truth is not None and scored is not None
    assert scored.any()
    assert not scored[sparse.rows, sparse.cols].any()
