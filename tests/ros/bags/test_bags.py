# SPDX-License-Identifier: Apache-2.0
"""Bags: topics found, transforms chained, scans matched as the live node would, clear refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")
pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")

from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from depth_node.fitting import FitStatus
from depth_node.frame import FrameInput
from depth_node.geometry.rigid import invert_rigid
from depth_node.geometry.sparse_depth import project_points
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.recordings.frames import is_bag
from depth_node.recordings.sources import LeftOut
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


def test_points_that_only_an_inverse_pose_puts_into_the_image(tmp_path: Path) -> None:
    left_out = LeftOut()
    read(
        record(tmp_path / "bag", ordinary),
        T_camera_lidar=invert_rigid(T_CAMERA_LIDAR),
        left_out=left_out,
    )
    assert "with the inverse of the pose there would be" in " ".join(left_out.sentences())


def test_a_stamp_that_stands_still_is_told_and_the_newest_scan_counts(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.info(1.0)
        for number in range(20):
            points = np.full((10, 3), 2.0 + number)
            bag.cloud(1.0, points, frame="camera", recorded_s=1.0 + 0.1 * number)
        header = bag.header(1.0, "camera")
        bag.image(3.0, header=header)

    left_out = LeftOut()
    (frame,) = read(record(tmp_path / "bag", write), left_out=left_out)
    assert (frame.points == 21.0).all() and len(frame.points) == 10
    assert "only the newest scan counts" in " ".join(left_out.sentences())


def test_what_a_depth_node_published_is_no_measurement(tmp_path: Path) -> None:
    """In a recording of all topics, the node's own depth must not be used as a LiDAR's."""

    def write(bag: BagWriter) -> None:
        ordinary(bag)
        bag.cloud(1.0, topic="/front/depth_node/points", frame="camera")
        bag.image(1.0, topic="/front/depth_node/regions")
        bag.info(1.0, topic="/front/depth_node/depth/camera_info")
        bag.scan(1.0, np.full(9, 2.0), topic="/front/depth_node/obstacles/scan")

    with Bag(record(tmp_path / "bag", write)) as bag:
        assert bag.topics.image == "/camera/image_raw"
        assert (bag.topics.points, bag.topics.scan) == ("/lidar/points", "")

    def only_its_own(bag: BagWriter) -> None:
        bag.info(1.0)
        bag.image(1.0)
        bag.cloud(1.0, topic="/depth_node/points", frame="camera")

    with pytest.raises(BagError, match="no LiDAR"):
        read(record(tmp_path / "own", only_its_own))


def test_the_calibration_of_another_camera_and_one_pose_for_two_lidars_are_told(
    tmp_path: Path,
) -> None:
    def write(bag: BagWriter) -> None:
        bag.info(1.0, topic="/other/camera_info", header=bag.header(1.0, "other_optical"))
        bag.cloud(1.0, frame="roof")
        bag.scan(1.0, np.full(9, 2.0))
        bag.image(1.0)

    left_out = LeftOut()
    topics = BagTopics(points="/lidar/points", scan="/scan")
    far = T_CAMERA_LIDAR.copy()
    far[2, 3] = 80.0
    path = record(tmp_path / "bag", write)
    read(path, topics=topics, T_camera_lidar=far, left_out=left_out)
    told = " ".join(left_out.sentences())
    assert "camera_info is in frame 'other_optical' but the image in 'camera'" in told
    assert "points of all frames ('lidar', 'roof')" in told
    assert "80 m from the camera" in told


def driving(bag: BagWriter) -> None:
    """A camera that moves 1 m/s forward, and a point 5 m in front of its start."""
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
    (moment,) = read(path)  # no motion is known: the scan nearest in time, unmoved
    np.testing.assert_allclose(moment.points[:, 2], [4.1], rtol=1e-6)
    assert moment.T_world_camera is None
    with pytest.raises(BagError, match=r"from camera to map.*--world-frame"):
        read(path, world_frame="map")


def test_each_point_moves_by_its_own_time(tmp_path: Path) -> None:
    """A point at 5 m, seen twice by one scan of a camera that comes 1 m nearer in a second."""

    def write(bag: BagWriter) -> None:
        for time_s in (0.5, 1.0, 1.5):
            T = np.eye(4)
            T[2, 3] = time_s
            bag.tf(time_s, [("odom", "camera", T)])
        bag.info(0.5)
        points = np.array([[0.0, 0.0, 4.2], [0.1, 0.0, 4.1]])  # at 0.8 and 0.9 s
        bag.cloud(0.8, points, frame="camera", ticks=np.array([0, 100_000_000]))
        bag.image(1.0)

    path = record(tmp_path / "bag", write)
    (moment,) = read(path, world_frame="odom")
    np.testing.assert_allclose(moment.points, [[0, 0, 4.0], [0.1, 0, 4.0]], atol=1e-5)
    np.testing.assert_allclose(moment.age_s, [0.2, 0.1], atol=1e-6)
    (moment,) = read(path)
    np.testing.assert_allclose(moment.points[:, 2], [4.2, 4.1], atol=1e-6)
    np.testing.assert_allclose(moment.age_s, [0.2, 0.1], atol=1e-6)


def test_a_rolling_shutter_sees_each_point_at_its_rows_time(tmp_path: Path) -> None:
    """The middle row is read 0.1 s after the stamp, 0.1 m on the way to the point."""
    path = record(tmp_path / "bag", driving)
    (at_once,) = read(path, world_frame="odom")
    (row_by_row,) = read(path, world_frame="odom", camera_readout_time_s=0.2)
    np.testing.assert_allclose(at_once.points[:, 2], [4.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(row_by_row.points[:, 2], [3.9, 3.9], atol=3e-3)
    with pytest.raises(BagError, match=r"--world-frame"):
        read(path, camera_readout_time_s=0.2)


def test_times_of_points_that_mean_nothing_are_told_once(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        for time_s in (0.5, 1.0, 1.5):
            bag.tf(time_s, [("odom", "camera", np.eye(4))])
        bag.info(0.5)
        for time_s in (0.8, 0.9):
            ticks = np.array([4_000_000_000, 4_100_000_000])
            bag.cloud(time_s, np.array([[0.0, 0.0, 4.0]] * 2), frame="camera", ticks=ticks)
        bag.image(1.0)

    path = record(tmp_path / "bag", write)
    for world_frame, sentences in (("odom", 1), ("", 0)):
        left_out = LeftOut()
        (moment,) = read(path, world_frame=world_frame, left_out=left_out)
        assert len(moment.points) and not left_out.damaged
        assert len(left_out.sentences()) == sentences
        assert not sentences or "'t'" in left_out.sentences()[0]


def test_the_clock_of_the_lidar_is_corrected(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.info(1.0)
        bag.cloud(38.0, np.array([[0.0, 0.0, 4.0]]), frame="camera")
        bag.image(1.0)

    path = record(tmp_path / "bag", write)
    (moment,) = read(path, scan_wait_s=60.0)
    assert len(moment.points) == 0
    (moment,) = read(path, scan_wait_s=60.0, lidar_time_offset_s=-37.0)
    assert len(moment.points) == 1


def test_a_clock_offset_is_named_in_seconds_and_its_scans_are_not_used(tmp_path: Path) -> None:
    """Stamps of TAI: at a large max_scan_age_s, scans that are really 37 s old seem to fit."""

    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        bag.info(1.0)
        for number in range(60):
            bag.image(float(number))
            bag.cloud(number + 37.05, recorded_s=number + 0.05)

    path = record(tmp_path / "bag", write)
    for max_scan_age_s in (0.3, 40.0):
        frames, (sentence,), damaged = read_all(path, max_scan_age_s=max_scan_age_s)
        assert not damaged and not any(len(frame.points) for frame in frames[4:])
        assert "scans of /lidar/points" in sentence and "37.0 s ahead" in sentence
        assert "give --lidar-time-offset -37" in sentence
    frames, sentences, _ = read_all(path, lidar_time_offset_s=-37.0, scan_wait_s=0.1)
    assert not sentences and all(len(frame.points) for frame in frames[1:])


def test_what_camera_info_says_of_a_stereo_pair_is_told(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        P = np.hstack([CAMERA.matrix, [[-8.0], [0.0], [0.0]]])
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        bag.info(1.0, p=P.reshape(-1))
        bag.cloud(1.0)
        bag.image(1.0, "/camera/image_rect")

    _, (sentence,), damaged = read_all(record(tmp_path / "bag", write))
    assert not damaged
    assert sentence.startswith("warning: P of camera_info is that")


def test_a_camera_frame_in_body_axes_is_named(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", np.eye(4))])
        bag.info(1.0)
        for time_s in (1.0, 1.1):
            bag.cloud(time_s)
            bag.image(time_s)

    _, (sentence,), damaged = read_all(record(tmp_path / "bag", write))
    assert not damaged
    assert sentence.startswith("left out: 2 scans beside the image") and "optical frame" in sentence


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
    (moment,) = read(path)  # of those recorded by then, the nearest in time
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
    clouds, scans = moment.sources  # unmoved, for the extrinsics monitor
    assert (clouds.source, scans.source) == ("/lidar/points/camera", "/scan/lidar")
    assert len(clouds.points) == 1 and len(scans.points) == 2
    assert np.allclose(scans.T_camera_lidar, T_CAMERA_LIDAR)


def test_what_a_lidar_measured_before_the_image_is_known(tmp_path: Path) -> None:
    path = record(tmp_path / "bag", driving)
    (moment,) = read(path)
    (source,) = moment.sources
    assert source.lag_s == pytest.approx(-0.1)
    assert np.array_equal(source.T_camera_points, source.T_camera_lidar)
    (moment,) = read(path, world_frame="odom")  # the motion is compensated
    (source,) = moment.sources
    assert source.lag_s == 0 and len(source.points) == 1
    moved = source.T_camera_points @ np.append(source.points[0], 1.0)
    assert moved[2] == pytest.approx(4.0)


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


def read_all(path: Path, **options: object) -> tuple[list[FrameInput], list[str], bool]:
    """Return the frames, the sentences on what was left out, and whether it was damaged."""
    with Bag(path, **options) as bag:
        frames = list(bag.frames())
        return frames, bag.left_out.sentences(), bag.left_out.damaged


def bad_transform(bag: BagWriter, child: str, quaternion: tuple[float, ...], topic: str) -> None:
    types = bag.types
    pose = types["geometry_msgs/msg/Transform"](
        translation=types["geometry_msgs/msg/Vector3"](0.0, 0.0, 0.0),
        rotation=types["geometry_msgs/msg/Quaternion"](*quaternion),
    )
    stamped = types["geometry_msgs/msg/TransformStamped"](
        header=bag.header(1.0, "base"), child_frame_id=child, transform=pose
    )
    kind = "tf2_msgs/msg/TFMessage"
    bag.write(topic, kind, 1.0, types[kind](transforms=[stamped]))


@pytest.mark.parametrize(
    "quaternion", [(0, 0, 0, 0), (0, 0, 0, 0.98), (np.nan, 0, 0, 1), (1e300, 1e300, 0, 0)]
)
def test_a_bad_transform_of_another_link_is_skipped_and_named(
    tmp_path: Path, quaternion: tuple[float, ...]
) -> None:
    def write(bag: BagWriter) -> None:
        ordinary(bag)
        for topic in ("/tf", "/tf_static", "/tf"):
            bad_transform(bag, "gripper", quaternion, topic)

    frames, (sentence,), damaged = read_all(record(tmp_path / "bag", write))
    assert len(frames) == 3 and not damaged
    assert sentence.startswith("left out: 3 transforms of gripper")

    def needed(bag: BagWriter) -> None:
        bad_transform(bag, "camera", quaternion, "/tf_static")
        bad_transform(bag, "lidar", quaternion, "/tf_static")
        bag.info(1.0)
        bag.cloud(1.0)
        bag.image(1.0)

    with pytest.raises(BagError, match=r"transforms of camera, lidar were skipped.*--t-camera"):
        read(record(tmp_path / "b", needed))
    assert len(read(tmp_path / "b", T_camera_lidar=T_CAMERA_LIDAR)) == 1


def test_a_transform_of_a_frame_to_itself_is_skipped_as_tf2_does(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "/camera", np.eye(4)), ("", "lidar", np.eye(4))])
        ordinary(bag)
        bag.tf(1.0, [("lidar", "lidar", np.eye(4))])

    frames, sentences, damaged = read_all(record(tmp_path / "bag", write))
    assert len(frames) == 3 and not damaged
    assert any(words.startswith("left out: 2 transforms of lidar") for words in sentences)


def test_of_many_cameras_the_first_are_named(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        ordinary(bag)
        for number in range(100):
            bag.image(1.0, f"/camera_{number:03d}/image_raw")

    with pytest.raises(BagError, match=r"several image topics .*, and 89 others\): choose one"):
        read_all(record(tmp_path / "bag", write))


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        ordinary(bag)
        for topic in ("/camera/image_raw", "/lidar/points", "/camera/camera_info", "/tf_static"):
            for content in (bytes(40), b"", b"\0\1\0\0" + b"\xff" * 60):
                bag.writer.write(bag.connections[topic], 1_250_000_000, content)
        bag.image(1.3, height=9)
        bag.image(1.31, data=np.zeros(10, np.uint8))
        bag.image(1.32, encoding="nonsense")
        bag.info(1.33, k=np.full(9, np.nan))
        bag.image(1.34)

    frames, sentences, damaged = read_all(record(tmp_path / "bag", write))
    assert [round(frame.stamp_ns / 1e9, 2) for frame in frames] == [1.0, 1.1, 1.2, 1.34]
    assert damaged
    text = "\n".join(sentences)
    assert "left out: 6 images: /camera/image_raw: a message of 40 bytes is no" in text
    assert "calibrations: /camera/camera_info" in text and "scans: " in text
    assert all(sentence.isprintable() for sentence in sentences)


def test_a_jpeg_of_no_bytes_and_one_of_another_size(tmp_path: Path) -> None:
    import cv2

    def write(bag: BagWriter) -> None:
        kind = "sensor_msgs/msg/CompressedImage"
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        bag.info(1.0)
        bag.cloud(1.0)
        good = cv2.imencode(".jpg", scene()[0])[1].reshape(-1)
        small = cv2.imencode(".jpg", scene()[0][:40])[1].reshape(-1)
        for number, data in enumerate((good, good[:0], good[: len(good) // 2], small, good)):
            header = bag.header(1.0 + 0.1 * number, "camera")
            message = bag.types[kind](header=header, format="jpeg", data=data)
            bag.write("/cam/image/compressed", kind, 1.0 + 0.1 * number, message)

    frames, (sentence,), damaged = read_all(record(tmp_path / "bag", write))
    assert len(frames) == 2 and damaged and "3 images" in sentence


def test_transforms_that_start_late_leave_the_first_images_out(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.info(1.0)
        for time_s in (1.0, 1.1, 1.5, 1.6):
            if time_s >= 1.5:
                bag.tf(time_s, [("camera", "lidar", T_CAMERA_LIDAR)])
            bag.cloud(time_s)
            bag.image(time_s)

    frames, (sentence,), damaged = read_all(record(tmp_path / "bag", write))
    assert [round(frame.stamp_ns / 1e9, 1) for frame in frames] == [1.5, 1.6]
    assert not damaged and "2 images" in sentence and "is known from 1.500 s" in sentence


def test_a_lidar_without_a_transform_takes_nothing_from_one_that_has_it(tmp_path: Path) -> None:
    """As in the node, it is left out and named, and the others are used."""

    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        for time_s in (1.0, 1.1, 1.2):
            bag.info(time_s)
            bag.cloud(time_s)
            bag.cloud(time_s, frame="other")
            bag.image(time_s)

    frames, (sentence,), damaged = read_all(record(tmp_path / "bag", write))
    assert [len(frame.points) for frame in frames] == [len(lidar_of(scene()[1]))] * 3
    assert "3 scans of other" in sentence and "no transform leads from other to camera" in sentence
    assert not damaged


def test_a_world_frame_that_is_fixed_to_the_camera_is_told(tmp_path: Path) -> None:
    """The same warning as the node's."""

    def write(bag: BagWriter) -> None:
        bag.static_tf([("base", "camera", np.eye(4)), ("camera", "lidar", T_CAMERA_LIDAR)])
        for time_s in (1.0, 1.1):
            bag.info(time_s)
            bag.cloud(time_s)
            bag.image(time_s)

    left_out = LeftOut()
    assert len(read(record(tmp_path / "bag", write), world_frame="base", left_out=left_out)) == 2
    (sentence,) = left_out.sentences()
    assert "world_frame 'base'" in sentence and "static" in sentence


def test_two_inputs_on_one_topic_are_refused(tmp_path: Path) -> None:
    """As in the node: its points would count both as a LiDAR's and as a radar's."""

    def write(bag: BagWriter) -> None:
        bag.info(1.0)
        bag.cloud(1.0)
        bag.image(1.0)

    topics = BagTopics(points="/lidar/points", landmarks="/lidar/points")
    with pytest.raises(BagError, match="--points-topic and --landmarks-topic are both"):
        read(record(tmp_path / "bag", write), topics=topics)


def foreign_records(number: int, schema: str, encoding: str, message: str) -> bytes:
    import struct

    def text(value: str) -> bytes:
        return struct.pack("<I", len(value)) + value.encode()

    def part(op: int, body: bytes) -> bytes:
        return struct.pack("<BQ", op, len(body)) + body

    return b"".join(
        [
            part(3, struct.pack("<H", number) + text(schema) + text(encoding) + text("{}")),
            part(4, struct.pack("<HH", number, number) + text(f"/foreign/{number}")
                 + text(message) + struct.pack("<I", 0)),
            part(5, struct.pack("<HIQQ", number, 0, 1, 1) + b"{}"),
        ]
    )  # fmt: skip


def test_foreign_channels_are_ignored(tmp_path: Path) -> None:
    path = record(tmp_path / "bag", ordinary, mcap=True)
    (file,) = path.glob("*.mcap")
    whole = file.read_bytes()
    head = 17 + int.from_bytes(whole[9:17], "little")
    foreign = (
        foreign_records(900, "foo.Bar", "jsonschema", "json")
        + foreign_records(901, "foo.Bar", "protobuf", "protobuf")
        + foreign_records(902, "sensor_msgs/msg/Image", "ros2msg", "json")
        + foreign_records(903, "my_msgs/msg/Odd", "ros2msg", "cdr")
    )
    file.write_bytes(whole[:head] + foreign + whole[head:])
    frames, sentences, damaged = read_all(path)
    assert (len(frames), sentences, damaged) == (3, [], False)
    assert len(read(file)) == 3


def test_foreign_types_of_a_database_are_ignored(tmp_path: Path) -> None:
    import sqlite3

    path = record(tmp_path / "bag", ordinary)
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as base:
        base.execute("INSERT INTO topics VALUES (90, '/x', 'my_msgs/msg/Odd', 'cdr', '', '')")
        base.execute("INSERT INTO topics VALUES (91, '/y', 'a.B', 'protobuf', '', '')")
        base.execute("INSERT INTO messages VALUES (990, 90, 5, x'00')")
    base.close()
    assert read_all(path)[1:] == ([], False)
    assert len(read(file)) == 3


@pytest.mark.parametrize("codec", ["", "STORAGE"])
@pytest.mark.parametrize("share", [0.4, 0.67, 0.95])
def test_of_a_cut_mcap_what_is_there_is_replayed(tmp_path: Path, share: float, codec: str) -> None:
    def write(bag: BagWriter) -> None:
        rng = np.random.default_rng(0)
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        for number in range(120):
            bag.info(1.0 + 0.1 * number)
            bag.cloud(1.0 + 0.1 * number)
            bag.image(1.0 + 0.1 * number, data=rng.integers(0, 255, 96 * 72 * 3, np.uint8))

    options = {"mode": CompressionMode[codec], "fmt": CompressionFormat.ZSTD} if codec else {}
    path = record(tmp_path / "bag", write, mcap=True, **options)
    (file,) = path.glob("*.mcap")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    for source in (path, file):
        frames, sentences, damaged = read_all(source)
        assert len(frames) >= 0.45 * share * 120
        assert damaged and "mcap recover" in sentences[0] and "cut off at byte" in sentences[0]


def test_behind_a_damaged_record_the_index_is_used(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        for number in range(200):
            bag.info(1.0 + 0.1 * number)
            bag.cloud(1.0 + 0.1 * number)
            bag.image(1.0 + 0.1 * number)

    path = record(tmp_path / "bag", write, mcap=True)
    (file,) = path.glob("*.mcap")
    content = bytearray(file.read_bytes())
    with Bag(path) as bag:
        starts = bag._files._storages[0]._chunks
        if len(starts) < 3:
            pytest.skip("the writer made one chunk")
        before = len(list(bag.frames()))
    content[starts[1] : starts[1] + 200] = b"\xff" * 200
    file.write_bytes(content)
    frames, _, damaged = read_all(path)
    assert damaged and before * 0.4 < len(frames) < before


@pytest.mark.parametrize("mcap", [False, True], ids=["sqlite3", "mcap"])
def test_a_bag_folder_without_metadata_is_read(tmp_path: Path, mcap: bool) -> None:
    path = record(tmp_path / "bag", ordinary, mcap=mcap)
    (path / "metadata.yaml").unlink()
    (path / ".hidden.db3").write_bytes(b"x")
    assert is_bag(path)
    assert [frame.stamp_ns for frame in read(path)] == [1_000_000_000, 1_100_000_000, 1_200_000_000]
    (file,) = [f for f in path.iterdir() if f.suffix in (".db3", ".mcap") and f.name[0] != "."]
    for number in (10, 2):
        (path / f"bag_{number}{file.suffix}").write_bytes(file.read_bytes())
    file.rename(path / f"bag_0{file.suffix}")
    with Bag(path) as bag:
        names = [storage.path.name for storage in bag._files._storages]
    assert names == [f"bag_{number}{file.suffix}" for number in (0, 2, 10)]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "rosbag2_bagfile_information: 5", "a: &a [*a, *a]\nb: 2001-99-99"],
)
def test_metadata_that_cannot_be_read_is_told_and_done_without(tmp_path: Path, text: str) -> None:
    path = record(tmp_path / "bag", ordinary)
    (path / "metadata.yaml").write_text(text)
    frames, (sentence,), damaged = read_all(path)
    assert len(frames) == 3 and damaged and "metadata.yaml" in sentence


def test_counts_in_metadata_are_not_believed(tmp_path: Path) -> None:
    path = record(tmp_path / "bag", ordinary)
    text = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(text.replace("message_count: 3", "message_count: -5"))
    with Bag(path) as bag:
        assert len(bag) == 3


def test_transforms_of_a_namespace_are_read(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        wrong = T_CAMERA_LIDAR.copy()
        wrong[0, 3] = 9.0
        bag.tf(0.0, [("camera", "lidar", wrong)], "/robot2/tf_static")
        bag.tf(0.0, [("camera", "lidar", T_CAMERA_LIDAR)], "/robot1/tf_static")
        bag.info(1.0, "/robot1/camera/camera_info")
        bag.cloud(1.0, topic="/robot1/points")
        bag.image(1.0, "/robot1/camera/image_raw")

    (frame,) = read(record(tmp_path / "bag", write))
    assert frame.T_camera_lidar == pytest.approx(T_CAMERA_LIDAR)


def test_scans_of_two_topics_with_one_stamp_and_frame_are_both_used(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        bag.info(1.0)
        bag.cloud(1.0)
        bag.scan(1.0, np.array([3.0, 3.0, 3.0]))
        bag.image(1.0)

    topics = BagTopics(points="/lidar/points", scan="/scan")
    (frame,) = read(record(tmp_path / "bag", write), topics=topics)
    assert len(frame.points) == len(lidar_of(scene()[1])) + 3


@pytest.mark.parametrize(
    ("topics", "chosen"),
    [
        (["/depth_camera/color/image_raw"], "/depth_camera/color/image_raw"),
        (
            ["/depth_camera/color/image_raw", "/depth_camera/depth/image_raw"],
            "/depth_camera/color/image_raw",
        ),
        (["/thermal/rgb", "/thermal/mask"], "/thermal/rgb"),
    ],
)
def test_a_camera_with_depth_in_its_name_is_found(
    tmp_path: Path, topics: list[str], chosen: str
) -> None:
    def write(bag: BagWriter) -> None:
        bag.info(1.0)
        bag.cloud(1.0, frame="camera")
        for topic in topics:
            bag.image(1.0, topic)

    with Bag(record(tmp_path / "bag", write)) as bag:
        assert bag.topics.image == chosen


def test_without_an_image_topic_the_option_is_named(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.info(1.0)
        bag.cloud(1.0)
        bag.image(1.0, "/stereo/disparity")

    with pytest.raises(BagError, match=r"no image topic; it has: .*/stereo/disparity.*--image-top"):
        read(record(tmp_path / "bag", write))


@pytest.mark.parametrize(
    ("topic", "setting", "rectified"),
    [
        ("/cam/image_rect", "auto", True),
        ("/cam/image_rect/compressed", "auto", True),
        ("/cam/image_rect_color/compressed", "auto", True),
        ("/cam/image_raw/compressed", "auto", False),
        ("/cam/image_raw/compressed", "yes", True),
        ("/cam/image_rect/compressed", "no", False),
    ],
)
def test_one_rule_for_rectified(tmp_path: Path, topic: str, setting: str, rectified: bool) -> None:
    def write(bag: BagWriter) -> None:
        p = np.hstack([CAMERA.matrix * [[0.5], [0.5], [1]], np.zeros((3, 1))]).reshape(-1)
        bag.info(1.0, "/cam/camera_info", d=np.array([0.1, 0, 0, 0, 0.0]), p=p)
        bag.cloud(1.0, frame="camera")
        if topic.endswith("compressed"):
            bag.compressed(1.0, topic)
        else:
            bag.image(1.0, topic)

    (frame,) = read(record(tmp_path / "bag", write), rectified=setting)
    assert frame.camera.model == ("pinhole" if rectified else "plumb_bob")
    assert frame.camera.fx == (40.0 if rectified else 80.0)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.db3")
    (tmp_path / "link.mcap").symlink_to("/dev/zero")
    (tmp_path / "folder.db3").mkdir()
    for name in ("pipe.db3", "link.mcap"):
        with pytest.raises(BagError, match="no regular file"):
            read(tmp_path / name)
    with pytest.raises(BagError, match=r"no \.mcap or \.db3"):
        read(tmp_path / "folder.db3")
    path = record(tmp_path / "bag", ordinary)
    (file,) = path.glob("*.db3")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BagError, match="no regular file"):
        read(path)


@pytest.mark.parametrize("value", ["'text'", "NULL", "17", "x''", "zeroblob(600000000)"])
def test_data_of_another_type_is_left_out(tmp_path: Path, value: str) -> None:
    import sqlite3

    path = record(tmp_path / "bag", ordinary)
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as base:
        base.execute("ALTER TABLE messages RENAME TO m")
        base.execute("CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id, timestamp, data)")
        base.execute("INSERT INTO messages SELECT * FROM m")
        base.execute("DROP TABLE m")
        number = 4  # the first image
        base.execute(f"UPDATE messages SET data = {value} WHERE id = {number}")
    base.close()
    frames, (sentence,), damaged = read_all(path)
    assert len(frames) == 2 and damaged and "/camera/image_raw" in sentence


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW messages AS SELECT * FROM m",
        "CREATE VIEW messages AS WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r)"
        " SELECT i id, 1 topic_id, i timestamp, zeroblob(1000000) data FROM r",
        "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id, timestamp,"
        " data AS (zeroblob(500000000)))",
        "CREATE TABLE messages(id, topic_id, timestamp, data, PRIMARY KEY(id)) WITHOUT ROWID",
    ],
)
def test_a_database_that_computes_is_refused(tmp_path: Path, statement: str) -> None:
    import sqlite3

    path = record(tmp_path / "bag", ordinary)
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as base:
        base.execute("ALTER TABLE messages RENAME TO m")
        base.execute(statement)
    base.close()
    with pytest.raises(BagError, match=r"cannot be opened|has no message that can be read"):
        read(path)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_of_a_cut_or_damaged_database_the_rest_is_replayed(tmp_path: Path, share: float) -> None:
    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        for number in range(60):
            bag.info(1.0 + 0.1 * number)
            bag.cloud(1.0 + 0.1 * number)
            bag.image(1.0 + 0.1 * number)

    path = record(tmp_path / "bag", write)
    (file,) = path.glob("*.db3")
    whole = file.read_bytes()
    place = int(share * len(whole)) // 4096 * 4096
    file.write_bytes(whole[:place] + b"\xa5" * 8192 + whole[place + 8192 :])
    frames, _, damaged = read_all(path)
    assert len(frames) >= 50
    file.write_bytes(whole[:place])
    frames, _, damaged = read_all(path)
    assert damaged and len(frames) >= 60 * share * 0.8


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


def test_the_image_is_chosen_before_its_own_transports(tmp_path: Path) -> None:
    """`ros2 bag record -a` finds /camera/image_raw and what image_transport makes of it."""

    def write(bag: BagWriter) -> None:
        ordinary(bag)
        bag.compressed(1.0)

    with Bag(record(tmp_path / "bag", write)) as bag:
        assert bag.topics.image == "/camera/image_raw"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda points: points * 1000, r"432 out of range; .* metres, not millimetres"),
        (lambda points: points * np.nan, r"432 not finite; check the LiDAR"),
        (lambda points: -points, r"432 behind the camera; check T_camera_lidar or the TF tree"),
    ],
)
def test_why_no_point_is_in_an_image_is_told(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        bag.info(1.0)
        bag.cloud(1.0, change(lidar_of(scene()[1])))
        bag.image(1.0)

    left_out = LeftOut()
    read(record(tmp_path / "bag", write), left_out=left_out)
    assert re.search(f"none of 432 LiDAR points is in the image: .*{words}", left_out.first())


def test_an_image_without_frame_is_told_the_right_cure(tmp_path: Path) -> None:
    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        bag.info(1.0)
        bag.cloud(1.0)
        bag.image(1.0, header=bag.header(1.0, ""))

    with pytest.raises(BagError, match=r"to \(no frame\): give the extrinsics"):
        read(record(tmp_path / "bag", write))


def test_a_file_is_opened_as_what_it_is_and_not_as_it_is_called(tmp_path: Path) -> None:
    file = next(record(tmp_path / "bag", ordinary, mcap=True).glob("*.mcap"))
    assert len(read(file.rename(tmp_path / "drive.db3"))) == 3


def test_an_image_larger_than_the_network_is_worked_on(tmp_path: Path) -> None:
    """Images of a bag cannot be written to; the network's map is enlarged with their colours."""
    image = np.kron(scene()[0], np.ones((4, 4, 1), np.uint8))
    camera = CAMERA.resized(image.shape[1], image.shape[0])

    def write(bag: BagWriter) -> None:
        bag.static_tf([("camera", "lidar", T_CAMERA_LIDAR)])
        k = camera.matrix
        p = np.hstack([k, np.zeros((3, 1))]).reshape(-1)
        bag.info(1.0, width=camera.width, height=camera.height, k=k.reshape(-1), p=p)
        bag.cloud(1.0)
        size = {"height": camera.height, "width": camera.width, "step": 3 * camera.width}
        bag.image(1.0, **size, data=image.reshape(-1))

    (frame,) = read(record(tmp_path / "bag", write))
    with DepthPipeline(PipelineConfig()) as pipeline:
        result = pipeline.process(frame)
    assert result.fit.status == FitStatus.OK and result.depth.shape == image.shape[:2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_scan_age_s": 0.0}, "--max-scan-age is 0: give a number above 0"),
        ({"max_scan_age_s": float("nan")}, "--max-scan-age is nan"),
        ({"scans_per_image": -3}, "--scans-per-image is -3: give a number from 0"),
        ({"scan_wait_s": float("inf")}, "--scan-wait is inf"),
        ({"lidar_time_offset_s": float("inf")}, "--lidar-time-offset is inf"),
        ({"noise": {"landmarks": -0.1}}, "--landmarks-noise is -0.1"),
        ({"T_camera_lidar": np.diag([1.0, 1, -1, 1])}, "--t-camera-lidar has .* no rotation"),
    ],
)
def test_settings_without_meaning_are_refused_by_the_name_of_their_option(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    path = record(tmp_path / "bag", ordinary)
    with pytest.raises(BagError, match=words):
        read(path, **settings)
