# SPDX-License-Identifier: Apache-2.0
"""Ultrasonic and infrared rangers, and clouds that state the noise of each point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from sensor_msgs.msg import Image, PointCloud2, PointField, Range

from depth_node.ros import messages
from depth_node.ros.inputs.lidar import LidarInput, UnreadScan
from depth_node.ros.messages import MessageError, lidar_scan, range_scan
from depth_node.ros.transforms.extrinsics import Extrinsics
from tests.helpers.rig import PATIENCE_S, Rig, camera_image, header, info, until

BODY_TO_OPTICAL = [0.0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0, 0, 0, 1]
NOISY = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("range_std", "f4")])


def range_message(
    metres: float, stamp_s: float = 1.0, frame: str = "sonar", **more: float
) -> Range:
    message = Range(header=header(stamp_s, frame), field_of_view=0.3, min_range=0.1, max_range=8.0)
    message.range = metres
    for name, value in more.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("metres", "more", "points"),
    [
        (2.0, {}, 128),
        (2.0, {"field_of_view": 0.0}, 1),
        (np.inf, {}, 0),
        (-np.inf, {}, 0),
        (np.nan, {}, 0),
        (0.05, {}, 0),
        (9.0, {}, 0),
        (0.0, {"min_range": 0.0}, 0),
        (-np.inf, {"min_range": 1.0, "max_range": 1.0}, 0),  # something is nearer: no distance
        (1.0, {"min_range": 1.0, "max_range": 1.0}, 0),
    ],
)
def test_what_a_range_measures(metres: float, more: dict[str, float], points: int) -> None:
    scan = range_scan(range_message(metres, **more))
    assert len(scan.points) == points
    np.testing.assert_allclose(
        np.linalg.norm(scan.points, axis=1), metres if points else [], rtol=1e-6
    )


@pytest.mark.parametrize(
    "more",
    [
        {"field_of_view": np.nan},
        {"field_of_view": -0.1},
        {"field_of_view": 3.2},
        {"min_range": 5.0, "max_range": 1.0},
        {"max_range": np.nan},
        {"min_range": -1.0},
    ],
)
def test_a_range_that_contradicts_itself_is_refused(more: dict[str, float]) -> None:
    with pytest.raises(MessageError, match="correct the driver"):
        range_scan(range_message(2.0, **more))


def test_each_ranger_has_its_newest_echo_and_none_is_a_lidar_point() -> None:
    lidar = LidarInput(Extrinsics(np.reshape(BODY_TO_OPTICAL, (4, 4))), 0.3)
    lidar.relative_noise, lidar.echoing = {"range": 0.1}, frozenset({"range"})
    for stamp_s, metres, frame in (
        (1.0, 3.0, "a"),
        (1.1, 2.0, "a"),
        (1.1, 4.0, "b"),
        (1.1, np.inf, "c"),
    ):
        scan = UnreadScan(range_message(metres, stamp_s, frame), range_scan)
        lidar.offer(round(stamp_s * 1e9), scan, "range", stamp_s)
    found = lidar.collect("camera_optical_frame", 1_090_000_000)
    assert not len(found.points) and not found.sources and not found.trouble
    assert sorted(echo.points[0, 2] for echo in found.echoes) == pytest.approx([2.0, 4.0])
    assert sorted(echo.noise_m for echo in found.echoes) == pytest.approx([0.2, 0.4])
    assert [echo.age_s for echo in found.echoes] == pytest.approx([0.01, 0.01])


def test_one_ranger_gives_the_scale(network: Path) -> None:
    """Its echo comes from the nearest surface in the cone, which is not on its axis."""
    more = ["lidar_sources:=[range]", f"T_camera_lidar:={[float(x) for x in BODY_TO_OPTICAL]}"]
    with Rig(f"model.path:={network}", "image_rectified:=yes", *more).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        image, truth = camera_image(1.0)
        distance = truth * np.linalg.norm(messages.camera_of(info(1.0)).rays(), axis=2)
        axis = messages.camera_of(info(1.0)).rays()
        cone = np.arccos(1 / np.linalg.norm(axis, axis=2)) < 0.15
        nearest = float(distance[cone].min())
        rig.publish("camera_info", info(1.0))
        rig.publish("range", range_message(nearest))
        until(
            lambda: rig.node._camera.info and rig.node._monitor.total("scan"), PATIENCE_S, "inputs"
        )
        rig.publish("image", image)
        until(lambda: heard, PATIENCE_S, "depth")
        ratio = messages.image_view(heard[0]) / truth
        assert np.nanmedian(ratio) == pytest.approx(1.0, abs=0.05)
        rig.publish("range", range_message(nearest, 30.0, field_of_view=2.5))
        until(lambda: rig.node._monitor.total("scan") == 2, PATIENCE_S, "range")
        rig.publish("image", camera_image(30.0)[0])
        rig.said("the whole cone must")


# --- noise of each point -------------------------------------------------------------------------


def noisy_cloud(std: list[float]) -> PointCloud2:
    rows = np.zeros(len(std), NOISY)
    rows["x"], rows["range_std"] = 3.0, std
    return messages.table_message(rows, header(1.0, "radar"))


def test_a_clouds_own_noise_wins_over_the_parameter() -> None:
    scan = lidar_scan(noisy_cloud([0.2, 0.0, np.nan, np.inf, -1.0]))
    assert scan.noise_m is not None
    np.testing.assert_allclose(scan.noise_m, [0.2, 0, 0, 0, 0])
    for topic, other in (("landmarks", 0.3), ("points", 0.0)):
        lidar = LidarInput(Extrinsics(np.reshape(BODY_TO_OPTICAL, (4, 4))), 0.3)
        lidar.relative_noise = {"landmarks": 0.1}
        lidar.offer(10**9, UnreadScan(noisy_cloud([0.2, 0.0, np.nan, np.inf, -1.0])), topic, 1.0)
        found = lidar.collect("camera_optical_frame", 10**9)
        np.testing.assert_allclose(found.noise_m, [0.2, other, other, other, other])
        assert not found.sources, "no LiDAR whose pose could be judged"


def test_noise_as_an_integer_is_refused() -> None:
    message = noisy_cloud([0.2])
    message.fields[3].datatype = PointField.INT32
    with pytest.raises(MessageError, match="standard deviation in metres as FLOAT32"):
        lidar_scan(message)


def test_a_noise_that_no_sensor_has_is_told() -> None:
    """If 20 mm at 3 m are given as 20 m, the points would silently have no weight."""
    for std, told in ((20.0, True), (0.02, False), (0.0, False), (np.nan, False)):
        rows = np.zeros(50, NOISY)
        rows["x"], rows["range_std"] = 3.0, std
        scan = lidar_scan(messages.table_message(rows, header(1.0, "tof")))
        assert bool(scan.doubt) == told
        assert not told or "6.67 times their distance" in scan.doubt
