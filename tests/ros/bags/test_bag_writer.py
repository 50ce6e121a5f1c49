# SPDX-License-Identifier: Apache-2.0
"""Results as a bag: read back by our reader, by rosbags and by the MCAP project's own library."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")
pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")

from rosbags.highlevel import AnyReader

from depth_node.calibration.monitor import Finding, Verdict
from depth_node.config import build
from depth_node.frame import FrameInput, Origin
from depth_node.obstacles import ObstacleConfig
from depth_node.pipeline import DepthPipeline, DepthResult, PipelineConfig
from depth_node.prediction import Prediction
from depth_node.recordings.files import FrameError
from depth_node.recordings.sources import ScoredFrame
from depth_node.ros.bags.writer import BagConfig, ResultBag
from depth_node.ros.transforms.ground import Ground
from tests.helpers.recordings import CAMERA, T_CAMERA_LIDAR, lidar_of, relative_of, scene

TOPICS = {
    "/depth_node/depth/image_rect": "sensor_msgs/msg/Image",
    "/depth_node/depth/camera_info": "sensor_msgs/msg/CameraInfo",
    "/depth_node/confidence": "sensor_msgs/msg/Image",
    "/depth_node/points": "sensor_msgs/msg/PointCloud2",
    "/depth_node/fit": "sensor_msgs/msg/PointCloud2",
    "/depth_node/rejected": "sensor_msgs/msg/PointCloud2",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}
STAMP_NS = 1_700_000_000_123_456_789


def answered(
    number: int = 0, recorded_ns: int | None = None
) -> tuple[ScoredFrame, DepthResult, dict[str, Verdict]]:
    image, depth = scene()
    prediction = Prediction(relative_of(depth), "disparity_affine_invariant")
    stamp_ns = STAMP_NS + number * 100_000_000
    observed = FrameInput(
        image, CAMERA, lidar_of(depth), T_CAMERA_LIDAR, stamp_ns=stamp_ns, prediction=prediction,
        origin=Origin("front_optical", recorded_ns),
    )  # fmt: skip
    with DepthPipeline(build(PipelineConfig, {"model": {"path": ""}})) as pipeline:
        return ScoredFrame("bag", str(number), observed), pipeline.process(observed), {}


def messages(path: Path) -> dict[str, list[tuple[int, Any]]]:
    found: dict[str, list[tuple[int, Any]]] = {}
    with AnyReader([path]) as reader:
        for connection, recorded_ns, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            found.setdefault(connection.topic, []).append((recorded_ns, message))
    return found


@pytest.mark.parametrize("name", ["result.mcap", "result"])
def test_a_bag_holds_what_the_node_publishes(tmp_path: Path, name: str) -> None:
    frame, result, _ = answered(recorded_ns=77_000_000_000)
    with ResultBag(tmp_path / name) as bag:
        bag.add(frame, result, {})
    assert [entry.name for entry in tmp_path.iterdir()] == [name], "nothing else is left"
    assert (tmp_path / name).is_file() == name.endswith(".mcap")
    found = messages(tmp_path / name)
    assert set(found) == set(TOPICS)
    for topic, ((recorded_ns, message),) in found.items():
        assert message.__msgtype__ == TOPICS[topic]
        assert recorded_ns == 77_000_000_000
        stamp = message.header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == STAMP_NS
        if topic != "/diagnostics":
            assert message.header.frame_id == "front_optical"
    depth = found["/depth_node/depth/image_rect"][0][1]
    assert depth.encoding == "32FC1"
    values = depth.data.view(np.float32).reshape(depth.height, depth.width)
    assert np.array_equal(values, result.gates.depth_image(), equal_nan=True)
    std = found["/depth_node/confidence"][0][1]
    assert np.array_equal(std.data.view(np.float32).reshape(result.std.shape), result.std, True)
    info = found["/depth_node/depth/camera_info"][0][1]
    assert np.array_equal(info.k.reshape(3, 3), CAMERA.matrix)
    cloud = found["/depth_node/points"][0][1]
    assert cloud.width == result.gates.believed(2).sum()
    status = found["/diagnostics"][0][1].status[0]
    values = {item.key: item.value for item in status.values}
    assert values["points used"] == str(len(result.sparse)) and status.level == 0


def test_what_is_said_of_the_extrinsics_is_in_the_bag(tmp_path: Path) -> None:
    frame, result, _ = answered()
    verdict = Verdict(
        Finding.WRONG, "wrong by about 1.2 deg (yaw)", correction=np.zeros(7),
        covariance=np.eye(7), T_camera_lidar=T_CAMERA_LIDAR,
    )  # fmt: skip
    with ResultBag(tmp_path / "r.mcap") as bag:
        for _ in range(2):
            bag.add(frame, result, {"/points/lidar": verdict})
    found = messages(tmp_path / "r.mcap")
    ((_, pose),) = found["/depth_node/extrinsics"]  # said once
    assert pose.header.frame_id == "front_optical"
    position = pose.pose.pose.position
    np.testing.assert_allclose((position.x, position.y, position.z), T_CAMERA_LIDAR[:3, 3])
    for _, message in found["/diagnostics"]:
        (status,) = message.status
        values = {item.key: item.value for item in status.values}
        assert values["extrinsics"].startswith("wrong by about 1.2 deg (yaw)")
        assert status.level == 1 and "wrong by about 1.2 deg" in status.message


def test_obstacles_are_in_the_bag_where_the_ground_is_known(tmp_path: Path) -> None:
    frame, result, _ = answered()
    config = ObstacleConfig(camera_height_m=0.5, max_range_m=20.0)
    ground = Ground(config, None, 0.1, lambda kind, why: None)
    with ResultBag(tmp_path / "r.mcap", ground=ground) as bag:
        bag.add(frame, result, {})
    found = messages(tmp_path / "r.mcap")
    ((_, cloud),) = found["/depth_node/obstacles"]
    view = ground.view(result, CAMERA, "front_optical", STAMP_NS)
    assert view is not None and cloud.width == len(view.obstacles.points) > 0
    assert cloud.header.frame_id == "front_optical"
    assert "/depth_node/obstacles/scan" not in found, "there is no frame to put it into"


def test_depth_as_millimetres_and_a_thinner_cloud(tmp_path: Path) -> None:
    frame, result, _ = answered()
    with ResultBag(tmp_path / "r.mcap", BagConfig("16UC1", 8)) as bag:
        bag.add(frame, result, {})
    found = messages(tmp_path / "r.mcap")
    depth = found["/depth_node/depth/image_rect"][0][1]
    assert depth.encoding == "16UC1"
    assert depth.data.view(np.uint16).max() == round(1000 * float(np.nanmax(result.depth)))
    assert found["/depth_node/points"][0][1].width == result.gates.believed(8).sum()


def test_the_mcap_projects_own_reader_reads_it(tmp_path: Path) -> None:
    """It uses only the definitions and the index in the file, as Foxglove does."""
    decoder = pytest.importorskip("mcap_ros2.decoder", reason="mcap-ros2-support is not installed")
    reader = pytest.importorskip("mcap.reader", reason="mcap is not installed")
    with ResultBag(tmp_path / "r.mcap") as bag:
        for number in range(3):
            bag.add(*answered(number))
    with (tmp_path / "r.mcap").open("rb") as file:
        opened = reader.make_reader(file, decoder_factories=[decoder.DecoderFactory()])
        summary = opened.get_summary()
        assert summary.statistics.message_count == 3 * len(TOPICS)
        assert {schema.encoding for schema in summary.schemas.values()} == {"ros2msg"}
        seen = {
            channel.topic: message
            for _, channel, _, message in opened.iter_decoded_messages(topics=list(TOPICS))
        }
    assert set(seen) == set(TOPICS)
    assert seen["/depth_node/fit"].fields[0].name == "label"


def test_nothing_stays_after_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with ResultBag(tmp_path / "r.mcap") as bag:
            bag.add(*answered())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not list(tmp_path.iterdir())


def test_the_name_is_given_only_to_a_whole_bag(tmp_path: Path) -> None:
    with ResultBag(tmp_path / "r.mcap") as bag:
        bag.add(*answered())
        assert not (tmp_path / "r.mcap").exists()
    assert (tmp_path / "r.mcap").is_file()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r.mcap").write_text("mine")
    with pytest.raises(FrameError, match=r"is there already.*--out-bag"):
        ResultBag(tmp_path / "r.mcap")

    def write() -> None:
        with ResultBag(tmp_path / "s.mcap") as bag:
            bag.add(*answered())
            (tmp_path / "s.mcap").write_text("mine")  # by somebody else, meanwhile

    with pytest.raises(FrameError, match="by now"):
        write()
    assert (tmp_path / "s.mcap").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FrameError, match=r"cannot be written.*--out-bag"),
        ResultBag(tmp_path / "file" / "r.mcap"),
    ):
        pass


def test_memory_does_not_grow_with_the_bag(tmp_path: Path) -> None:
    frame, result, _ = answered()
    peaks = []
    with ResultBag(tmp_path / "r.mcap") as bag:
        for count in (20, 200):
            tracemalloc.start()
            for number in range(count):
                stamp_ns = frame.input.stamp_ns + number * 100_000_000
                moved = dataclasses.replace(frame.input, stamp_ns=stamp_ns)
                bag.add(dataclasses.replace(frame, input=moved), result, {})
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3e6, peaks
    assert (tmp_path / "r.mcap").stat().st_size > 1e6


def test_a_frame_without_a_stamp_gets_one(tmp_path: Path) -> None:
    frame, result, _ = answered()
    still = dataclasses.replace(frame.input, stamp_ns=None, origin=Origin())
    with ResultBag(tmp_path / "r.mcap") as bag:
        bag.add(dataclasses.replace(frame, input=still), result, {})
        bag.add(dataclasses.replace(frame, input=still), result, {})
    times = [recorded for recorded, _ in messages(tmp_path / "r.mcap")["/depth_node/fit"]]
    assert times == [100_000_000, 200_000_000]
