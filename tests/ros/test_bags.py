# SPDX-License-Identifier: Apache-2.0
"""Bags: topics found, transforms chained, scans matched as the live node would, clear refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")
pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")

from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from depth_node.frame import FrameInput
from depth_node.geometry.rigid import invert_rigid
from depth_node.geometry.sparse_depth import project_points
from depth_node.recordings.frames import is_bag
from depth_node.ros.bags import Bag, BagError, BagTopics
from tests.helpers.recordings import CAMERA, T_CAMERA_LIDAR, BagWriter, lidar_of, scene


def record(path: Path, write: Callable[[BagWriter], None], **options: object) -> Path:
    writer = BagWriter(path, **options)
    write(writer)
    writer.close()
    return path


def ordinary(bag: BagWriter) -> None:
    """Three images at 10 Hz, each with a scan that was recorded just before it."""
    bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
    for number in range(3):
        bag.info(1.0 + 0.1 * number)
        bag.cloud(1.0 + 0.1 * number)
        bag.image(1.0 + 0.1 * number)


def read(path: Path, **options: object) -> list[FrameInput]:
    with Bag(path, **options) as bag:
        return list(bag.frames())


@pytest.mark.parametrize("mcap", [False, True], ids=["sqlite3", "mcap"])
def test_topics_are_found_and_moments_are_whole(tmp_path: Path, mcap: bool) -> None:
    path = record(tmp_path / "bag", ordinary, mcap=mcap)
    assert is_bag(path)
    with Bag(path) as bag:
        assert bag.topics == BagTopics(
            "/camera/image_raw", "/camera/camera_info", "/lidar/points", ""
        )
        assert len(bag) == 3
        moments = list(bag.frames())
    image, depth = scene()
    assert [moment.stamp_ns for moment in moments] == [1_000_000_000, 1_100_000_000, 1_200_000_000]
    for moment in moments:
        assert np.array_equal(moment.image, image)
        assert moment.camera == CAMERA
        assert np.allclose(moment.T_camera_lidar, T_CAMERA_LIDAR)
        assert not moment.age_s.any()
        sparse = project_points(moment.points, moment.T_camera_lidar, moment.camera)
        assert len(sparse) > 0.9 * len(lidar_of(depth))
        assert sparse.depth == pytest.approx(depth[sparse.rows, sparse.cols], rel=1e-5)


@pytest.mark.parametrize("mode", ["FILE", "MESSAGE"])
def test_zstd_bags_are_read(tmp_path: Path, mode: str) -> None:
    path = record(
        tmp_path / "bag", ordinary, mode=CompressionMode[mode], fmt=CompressionFormat.ZSTD
    )
    assert len(read(path)) == 3


def test_compression_that_nobody_can_read_is_said_so(tmp_path: Path) -> None:
    path = record(tmp_path / "bag", ordinary)
    metadata = path / "metadata.yaml"
    text = metadata.read_text()
    text = text.replace("compression_format: ''", "compression_format: lz4")
    text = text.replace("compression_mode: ''", "compression_mode: MESSAGE")
    assert "lz4" in text and "MESSAGE" in text
    metadata.write_text(text)
    with pytest.raises(BagError, match=r"lz4.*without compression"):
        read(path)


def test_compressed_pictures(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.info(1.0)
        bag.cloud(1.0, frame="camera")
        bag.compressed(1.0)

    (moment,) = read(record(tmp_path / "bag", write))
    assert np.array_equal(moment.image, scene()[0])
    assert np.array_equal(moment.T_camera_lidar, np.eye(4))


def test_transforms_are_chained_through_the_tree(tmp_path: Path) -> None:
    """base -> mast -> camera and base -> lidar; the robot's own motion does not matter."""
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    T_base_mast, T_mast_camera = np.eye(4), np.eye(4)
    T_base_mast[:3, :3], T_base_mast[:3, 3] = turn, (0.3, 0.1, 1.0)
    T_mast_camera[:3, 3] = (0.0, 0.05, 0.1)
    T_base_lidar = T_base_mast @ T_mast_camera @ T_CAMERA_LIDAR

    def write(bag: BagWriter) -> None:
        bag.static_tf(
            [
                ("base", "mast", T_base_mast),
                ("mast", "camera", T_mast_camera),
                ("base", "lidar", T_base_lidar),
            ]
        )
        bag.info(1.0)
        bag.cloud(1.0)
        bag.image(1.0)

    path = record(tmp_path / "bag", write)
    (moment,) = read(path)
    assert moment.T_camera_lidar == pytest.approx(T_CAMERA_LIDAR, abs=1e-9)
    (moment,) = read(path, T_camera_lidar=invert_rigid(T_CAMERA_LIDAR))
    assert moment.T_camera_lidar == pytest.approx(invert_rigid(T_CAMERA_LIDAR))


def driving(bag: BagWriter) -> None:
    """A camera that comes 1 m nearer in a second, and a point at 5 m in front of where it began."""
    for time_s in (0.5, 1.0, 1.5):
        T = np.eye(4)
        T[2, 3] = time_s
        bag.tf(time_s, [("odom", "camera", T)])
    bag.info(0.5)
    for time_s in (0.75, 0.9):
        bag.cloud(time_s, np.array([[0.0, 0.0, 5.0 - time_s]]), frame="camera")
    bag.image(1.0)


def test_scans_of_another_time_move_with_the_camera(tmp_path: Path) -> None:
    path = record(tmp_path / "bag", driving)
    (moment,) = read(path, world_frame="odom")
    np.testing.assert_allclose(moment.points[:, 2], [4.0, 4.0], rtol=1e-6)
    assert moment.T_world_camera is not None
    np.testing.assert_allclose(moment.T_world_camera[:3, 3], [0, 0, 1.0])
    np.testing.assert_allclose(np.sort(moment.age_s), [0.1, 0.25], rtol=1e-5)
    (moment,) = read(path)  # nobody said that it moves: the scan nearest in time, as it is
    np.testing.assert_allclose(moment.points[:, 2], [4.1], rtol=1e-6)
    assert moment.T_world_camera is None
    with pytest.raises(BagError, match=r"from camera to map.*--world-frame"):
        read(path, world_frame="map")


def test_without_a_transform_the_cure_is_named(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.info(1.0)
        bag.cloud(1.0)
        bag.image(1.0)

    with pytest.raises(BagError, match=r"from lidar to camera.*--t-camera-lidar"):
        read(record(tmp_path / "bag", write))


def test_scans_are_matched_as_the_live_node_does(tmp_path: Path) -> None:
    points = {0.7: 1.0, 0.98: 2.0, 1.02: 3.0}  # time of the scan -> where it sees one point

    def write(bag: BagWriter) -> None:
        bag.info(0.5)
        for time_s in (0.7, 0.98):
            bag.cloud(time_s, np.array([[0.0, 0.0, points[time_s]]]), frame="camera")
        bag.image(1.0)
        bag.cloud(1.02, np.array([[0.0, 0.0, points[1.02]]]), frame="camera")

    path = record(tmp_path / "bag", write)
    (moment,) = read(path)  # what had come by then, the nearest in time
    assert moment.points[:, 2].tolist() == [2.0]
    assert moment.age_s == pytest.approx([0.02], abs=1e-6)
    (moment,) = read(path, scans_per_image=9, max_scan_age_s=0.5)
    assert sorted(moment.points[:, 2].tolist()) == [1.0, 2.0]
    (moment,) = read(path, scans_per_image=9, scan_wait_s=0.1)
    assert sorted(moment.points[:, 2].tolist()) == [1.0, 2.0, 3.0]
    (moment,) = read(path, max_scan_age_s=0.01)
    assert len(moment.points) == 0


def test_laser_scan_and_cloud_together_end_in_the_camera_frame(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        bag.info(1.0)
        bag.scan(1.0, np.array([3.0, 3.0, np.inf]))
        bag.cloud(1.0, np.array([[0.0, 0.0, 5.0]]), frame="camera")
        bag.image(1.0)

    path = record(tmp_path / "bag", write)
    with Bag(path) as bag:
        assert (bag.topics.points, bag.topics.scan) == ("/lidar/points", "")
    topics = BagTopics(points="/lidar/points", scan="scan")
    (moment,) = read(path, topics=topics)
    assert np.array_equal(moment.T_camera_lidar, np.eye(4))
    assert len(moment.points) == 3
    assert moment.points[:, 2] == pytest.approx([5.0, 3 * np.cos(0.5), 3.0], rel=1e-5)


def test_the_first_calibration_serves_earlier_pictures_and_zero_stamps_take_the_record_time(
    tmp_path: Path,
) -> None:
    def write(bag: BagWriter) -> None:
        bag.image(0.9)
        bag.info(1.0)
        bag.cloud(1.0, frame="camera")
        bag.image(1.1, header=bag.header(0.0, "camera"))

    moments = read(record(tmp_path / "bag", write))
    assert [moment.stamp_ns for moment in moments] == [900_000_000, 1_100_000_000]
    assert len(moments[1].points) and moments[0].camera == CAMERA


def several(bag: BagWriter) -> None:
    bag.info(1.0, "/left/camera_info")
    bag.info(1.0, "/right/camera_info")
    bag.image(1.0, "/left/image_raw")
    bag.image(1.0, "/right/image_raw")
    bag.image(1.0, "/left/depth/image_rect")
    bag.cloud(1.0, frame="camera")


def test_several_cameras_need_a_choice_and_depth_is_no_picture(tmp_path: Path) -> None:
    path = record(tmp_path / "bag", several)
    with pytest.raises(
        BagError, match=r"several image topics \(/left/image_raw, /right/image_raw\).*--image-top"
    ):
        read(path)
    with Bag(path, BagTopics(image="/right/image_raw")) as bag:
        assert bag.topics.camera_info == "/right/camera_info"


@pytest.mark.parametrize(
    ("topics", "words"),
    [
        (BagTopics(image="/front/image"), r"no topic /front/image.*it has: .*/left/image_raw"),
        (BagTopics(image="/lidar/points"), r"/lidar/points is .*PointCloud2, --image-topic needs"),
        (BagTopics(image="/left/image_raw", scan="/lidar/points"), "--scan-topic needs"),
    ],
)
def test_wrong_topics_are_refused(tmp_path: Path, topics: BagTopics, words: str) -> None:
    path = record(tmp_path / "bag", several)
    with pytest.raises(BagError, match=words):
        read(path, topics=topics)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("image", "no image topic; it has: "),
        ("info", "no camera_info topic"),
        ("cloud", "no LiDAR"),
    ],
)
def test_missing_topics_are_named(tmp_path: Path, missing: str, words: str) -> None:
    def write(bag: BagWriter) -> None:
        for name in ("image", "info", "cloud"):
            if name != missing:
                getattr(bag, name)(1.0)

    with pytest.raises(BagError, match=words):
        read(record(tmp_path / "bag", write))


def test_messages_that_cannot_be_used_are_refused_with_their_topic(tmp_path: Path) -> None:
    def uncalibrated(bag: BagWriter) -> None:
        bag.info(1.0, k=np.zeros(9))
        bag.cloud(1.0)
        bag.image(1.0)

    def wrong_size(bag: BagWriter) -> None:
        bag.info(1.0, width=640, height=480)
        bag.cloud(1.0, frame="camera")
        bag.image(1.0)

    with pytest.raises(BagError, match=r"/camera/camera_info: .*not calibrated"):
        read(record(tmp_path / "a", uncalibrated))
    with pytest.raises(BagError, match=r"96x72 but /camera/camera_info 640x480.*--camera-info"):
        read(record(tmp_path / "b", wrong_size))


def test_a_camera_info_that_comes_late(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.image(1.0)
        bag.cloud(1.0, frame="camera")
        bag.info(2.0, "/other/camera_info")
        bag.info(0.5)

    path = record(tmp_path / "bag", write)
    topics = BagTopics(camera_info="/other/camera_info")
    (moment,) = read(path, topics=topics)  # it comes after the only image
    assert moment.camera == CAMERA


def test_what_is_no_bag_is_said_so(tmp_path: Path) -> None:
    assert not is_bag(tmp_path)
    ros1 = tmp_path / "old.bag"
    ros1.write_bytes(b"#ROSBAG V2.0\n")
    assert is_bag(ros1)
    with pytest.raises(BagError, match=r"ROS 1 bag.*rosbags-convert"):
        read(ros1)
    path = record(tmp_path / "bag", ordinary)
    (database,) = path.glob("*.db3")
    database.write_bytes(database.read_bytes()[:1000])
    with pytest.raises(BagError, match="cannot be"):
        read(path)
    database.unlink()
    with pytest.raises(BagError, match=r"cannot be opened.*missing"):
        read(path)
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(b"\x89MCAP0\r\n" + bytes(20))
    with pytest.raises(BagError, match="cannot be"):
        read(broken)
