# SPDX-License-Identifier: Apache-2.0
"""Inputs that look right and give wrong depth cause a warning if they cannot be refused.

Examples: limits reported as distances, mixed-up cameras, one pose for two sensors, frames that
move.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2

from depth_node.obstacles import ObstacleConfig
from depth_node.ros import messages
from depth_node.ros.inputs.lidar import LidarInput, UnreadScan
from depth_node.ros.outputs.diagnostics import SeveralPublishers
from depth_node.ros.transforms.extrinsics import Extrinsics
from depth_node.ros.transforms.ground import Ground
from depth_node.ros.transforms.motion import CameraMotion
from depth_node.ros.transforms.tf import Transform
from tests.helpers.rig import Rig, camera_image, cloud, header, info, settings, until


class Links:
    """TF in which every transform is the same, static if its stamp is 0."""

    def __init__(self, T: Transform, stamp_ns: int = 0) -> None:
        self.T, self.stamp_ns = T, stamp_ns

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        return self.T, self.stamp_ns

    def forget_moving(self) -> None:
        pass

    def close(self) -> None:
        pass


def shifted(x: float, y: float, z: float) -> Transform:
    T = np.eye(4)
    T[:3, 3] = x, y, z
    return T


# --- limits that are no distances ----------------------------------------------------------------


def test_a_ray_at_exactly_a_limit_did_not_return() -> None:
    """Drivers that do not know of Inf write the limit where nothing came back."""
    scan = LaserScan(angle_increment=0.1, range_min=0.1, range_max=30.0, time_increment=1e-4)
    scan.ranges = [30.0, 5.0, 0.1, 29.9, 30.0]
    read = messages.lidar_scan(scan)
    np.testing.assert_allclose(np.linalg.norm(read.points, axis=1), [5.0, 29.9], rtol=1e-6)
    assert read.offset_s is not None and len(read.offset_s) == 2


def test_a_depth_image_that_is_full_measures_nothing() -> None:
    """65535 mm is the end of 16 bits, and many cameras write it for no measurement."""
    camera = messages.camera_of(info(1.0))
    pixels = np.full((camera.height, camera.width), 65535, np.uint16)
    pixels[::4, ::4] = 2000
    scan = messages.depth_image_scan(messages.image_message(pixels, "16UC1", header(1.0)), camera)
    assert len(scan.points) == np.count_nonzero(pixels == 2000)
    assert scan.points[:, 2].max() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("angle_max", "wrong"), [(0.9, False), (0.97, False), (0.0, False), (1.5, True), (-0.2, True)]
)
def test_a_scan_whose_angles_do_not_fit_together_is_told_once(
    angle_max: float, wrong: bool
) -> None:
    """A filter may remove rays and leave the angles unchanged."""
    told: list[str] = []
    source = LidarInput(Extrinsics(np.eye(4)), 0.3, warned=told.append)
    for i in range(3):
        scan = LaserScan(header=header(1.0 + 0.1 * i, "laser"), range_min=0.1, range_max=9.0)
        scan.angle_min, scan.angle_increment, scan.ranges = -1.0, 0.02, [3.0] * 96
        scan.angle_max = angle_max
        source.offer(round((1.0 + 0.1 * i) * 1e9), UnreadScan(scan), "scan", 1.0 + 0.1 * i)
        source.collect("camera", round((1.0 + 0.1 * i) * 1e9), None, 1.0 + 0.1 * i)
    assert len(told) == wrong and (not wrong or "by angle_max to" in told[0])


# --- cameras that are mixed up -------------------------------------------------------------------


def test_the_calibration_of_another_camera_is_told(network: Path) -> None:
    """Two cameras of one model have the same image size, so only the frames differ."""
    with Rig(*settings(network)).start() as rig:
        calibration = info(10.5)
        calibration.header.frame_id = "left_optical_frame"
        rig.listen(Image, "depth/image_rect")
        rig.publish("camera_info", calibration)
        until(lambda: rig.node._camera.info is not None, 20.0, "camera_info")
        rig.publish("image", camera_image(10.5)[0])
        rig.said("camera_info is in frame 'left_optical_frame' but the image in")


@pytest.mark.parametrize(
    ("of_info", "of_image", "differ"),
    [("left", "right", True), ("/left", "left", False), ("", "right", False), ("left", "", False)],
)
def test_frames_of_image_and_calibration(of_info: str, of_image: str, differ: bool) -> None:
    assert bool(messages.other_camera(of_info, of_image)) == differ


def test_a_rectified_image_without_p_is_told() -> None:
    message = CameraInfo(width=640, height=480, distortion_model="plumb_bob", d=[0.2, 0, 0, 0, 0])
    message.k = [500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0]
    assert "publish P" in messages.calibration_warning(message, rectified=True)
    assert not messages.calibration_warning(message, rectified=False)
    message.d = [0.0] * 5
    assert not messages.calibration_warning(message, rectified=True)


def test_two_that_publish_one_image_or_one_frame_are_told(network: Path) -> None:
    """A bag that is played beside the live driver, two LiDARs of one model in one frame."""
    camera = {"image": 1, "camera_info": 1}
    with Rig(*settings(network)).start() as rig:
        look = SeveralPublishers()
        for name, kind, words in (
            ("image", Image, "2 publishers send on {topic}, so images of one may be used"),
            ("points", PointCloud2, "2 publishers send on {topic}, but with only 1 frame_id(s)"),
        ):
            topic = rig.node.resolve_topic_name(name)
            sent = camera_image(10.5)[0] if kind is Image else cloud(10.5, np.ones((9, 3)))
            rig.publish(name, sent)
            frames = {} if kind is Image else {"points": 1}
            assert rig.node.count_publishers(topic) == 1
            assert not any(look.doubt(rig.node, camera | frames) for _ in range(9))
            more = rig.peer.create_publisher(kind, topic, 1)
            until(lambda t=topic: rig.node.count_publishers(t) == 2, 20.0, "a second publisher")
            found = [look.doubt(rig.node, camera | frames) for _ in range(6)]
            assert not any(found[:4]), "a driver that starts anew is there twice for a while"
            assert words.format(topic=topic) in found[-1]
            assert kind is Image or not look.doubt(rig.node, camera | {"points": 2})
            rig.peer.destroy_publisher(more)
            until(lambda f=frames: not look.doubt(rig.node, camera | f), 20.0, "that it is gone")


def test_frames_of_a_topic_are_counted() -> None:
    source = LidarInput(Extrinsics(source=Links(np.eye(4))), 0.3)
    for frame in ("left", "right", "left"):
        source.offer(10**9, UnreadScan(cloud(1.0, np.ones((2, 3)), frame)), "points", 1.0)
    assert source.frames() == {"points": 2}


# --- one pose for several sensors, and poses that are none ---------------------------------------


def collected(extrinsics: Extrinsics, frames: list[str]) -> list[str]:
    told: list[str] = []
    source = LidarInput(extrinsics, 0.3, warned=told.append)
    points = np.full((5, 3), 3.0, np.float32)
    for _ in range(2):
        for number, frame in enumerate(frames):
            scan = UnreadScan(cloud(1.0, points, frame))
            source.offer(10**9, scan, ("points", "scan")[number % 2], 1.0)
        source.collect("camera", 10**9, None, 1.0)
    return told


def test_one_matrix_for_two_lidars_is_told_once() -> None:
    told = collected(Extrinsics(np.eye(4)), ["roof", "bumper"])
    assert len(told) == 1 and "('bumper', 'roof')" in told[0]
    assert not collected(Extrinsics(np.eye(4)), ["roof", "roof"])
    assert not collected(Extrinsics(source=Links(np.eye(4))), ["roof", "bumper"])


@pytest.mark.parametrize("by_tf", [True, False])
def test_a_lidar_farther_away_than_a_robot_is_long_is_told_once(by_tf: bool) -> None:
    """80 mm that are given as 80 m put every point 80 m too far."""
    far, near = shifted(0.0, -1.0, 80.0), shifted(0.0, -1.0, 8.0)
    of = [Extrinsics(source=Links(T)) if by_tf else Extrinsics(T) for T in (far, near)]
    told = collected(of[0], ["roof"])
    assert len(told) == 1 and "80.01 m from the camera" in told[0] and "metres" in told[0]
    assert not collected(of[1], ["roof"])


# --- frames that do not stand still, or do -------------------------------------------------------


def test_a_world_frame_that_is_fixed_to_the_camera_is_told() -> None:
    static = CameraMotion("base_link", Links(np.eye(4), 0), 0.1)
    assert "'base_link' is joined to 'camera' by static" in static.doubt("camera")
    assert not CameraMotion("odom", Links(np.eye(4), 10**9), 0.1).doubt("camera")


def test_a_base_frame_that_the_robot_drives_away_from_is_told() -> None:
    told: list[str] = []
    ground = Ground(
        ObstacleConfig(base_frame="odom"), None, 0.1, lambda kind, text: told.append(text)
    )
    for metres in (0.0, 1.0, 2.0):
        ground._look_at(shifted(metres, 0.0, 1.0), "odom")
        assert bool(told) == (metres > 1.5)
    assert "moved by 2.0 m in obstacles.base_frame 'odom'" in told[0]


@pytest.mark.parametrize("base_frame", ["base_link", ""])
def test_ground_that_is_seen_below_the_base_frame_is_told(base_frame: str) -> None:
    """base_link on the axle: boxes as high as the axle were never obstacles."""
    for below_m, wrong in ((0.2, True), (0.0, False)):
        ground = Ground(ObstacleConfig(camera_height_m=1.0), None, 0.1, lambda kind, text: None)
        for _ in range(14):
            ground.look_below(np.nan, base_frame)
            ground.look_below(below_m, base_frame)
        assert not ground._low_ground
        ground.look_below(below_m, base_frame)
        assert bool(ground._low_ground) == wrong
        words = "use the frame on the ground" if base_frame else "camera_height_m"
        assert not wrong or (words in ground._low_ground and "0.20 m below" in ground._low_ground)
        ground.forget()
        assert not ground._low_ground


# --- stamps that stand still ---------------------------------------------------------------------


def test_scans_whose_stamp_stands_still_do_not_pile_up() -> None:
    """Old points would count as fresh if a driver sets no nanoseconds, or stamps only once."""
    told: list[str] = []
    source = LidarInput(Extrinsics(np.eye(4)), 0.3, warned=told.append)
    for i in range(30):
        points = np.full((10, 3), float(i), np.float32)
        source.offer(10**9, UnreadScan(cloud(1.0, points)), "points", 0.1 * i)
        found = source.collect("camera", 10**9, None, 0.1 * i)
        assert len(found.points) <= 80
    assert len(found.points) == 10 and (found.points == 29.0).all()
    assert len(told) == 1 and "only the newest scan counts" in told[0]


def test_pieces_of_a_turn_with_one_stamp_belong_together() -> None:
    told: list[str] = []
    source = LidarInput(Extrinsics(np.eye(4)), 0.3, warned=told.append)
    for i in range(24):
        stamp_s = 1.0 + 0.1 * (i // 12)
        points = np.full((10, 3), float(i), np.float32)
        scan = UnreadScan(cloud(stamp_s, points))
        source.offer(round(stamp_s * 1e9), scan, "points", stamp_s + 0.008 * (i % 12))
    assert len(source.collect("camera", 1_100_000_000, None, 1.2).points) >= 120 and not told
