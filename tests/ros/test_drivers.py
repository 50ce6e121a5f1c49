# SPDX-License-Identifier: Apache-2.0
"""Usual behaviour of drivers and users, with the live node: correct depth, or a sentence with the
cure."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2

from depth_node.ros import messages
from tests.helpers.rig import (
    CLOSE,
    IDENTITY,
    PATIENCE_S,
    Rig,
    camera_image,
    cloud,
    header,
    info,
    lidar_points,
    own_domain,
    set_parameter,
    settings,
    until,
)

NO_POINTS = np.empty((0, 3), np.float32)
POINTS = lidar_points(camera_image(0.0)[1])


@pytest.fixture
def rig(network: Path) -> Iterator[Rig]:
    with Rig(*settings(network)) as rig:
        rig.start()
        rig.listen(Image, "depth/image_rect")
        yield rig


def depths(rig: Rig) -> list[npt.NDArray[np.float32]]:
    return [messages.image_view(message) for message in rig.received["depth/image_rect"]]


def values(rig: Rig) -> dict[str, str]:
    arrays = rig.listen(DiagnosticArray, "/diagnostics")
    arrays.clear()
    until(lambda: arrays, PATIENCE_S, "diagnostics")
    status = arrays[-1].status[0]
    return {"message": status.message, **{item.key: item.value for item in status.values}}


# --- LiDAR ---------------------------------------------------------------------------------------


def test_a_laser_scan_with_the_clouds_header_takes_nothing_away(rig: Rig) -> None:
    table = rig.listen(PointCloud2, "fit")
    scan = LaserScan(header=header(1.0, "lidar"), range_min=0.1, range_max=50.0)
    scan.angle_min, scan.angle_increment, scan.ranges = -0.5, 0.1, [3.0] * 10
    rig.publish("points", cloud(1.0, POINTS))
    rig.publish("scan", scan)
    until(lambda: rig.node._monitor.total("scan") == 2, PATIENCE_S, "both")
    rig.show(1.0, NO_POINTS)
    until(lambda: table, PATIENCE_S, "the fit")
    assert messages.table_rows(table[0])["points"].sum() >= len(POINTS)


def test_a_lidar_clock_of_tai_is_named_and_its_cure_works(network: Path) -> None:
    """Also with a max_scan_age_s that would accept scans which are really 37 s old."""
    parameters = settings(network, "max_scan_age_s:=40.0", "fit.unanchored_s:=0.0")
    with Rig(*parameters).start() as rig:
        rig.listen(Image, "depth/image_rect")
        for index in range(6):
            stamp = 100.0 + 0.1 * index
            scans = rig.node._monitor.total("scan")
            rig.publish("points", cloud(stamp + 37.0, POINTS))
            until(lambda n=scans: rig.node._monitor.total("scan") > n, PATIENCE_S, "the scan")
            rig.show(stamp, NO_POINTS)
            until(lambda n=index: len(depths(rig)) == n + 1, PATIENCE_S, "an answer")
        assert np.isnan(depths(rig)[-1]).all()
        sentence = rig.said("the clocks differ")
        assert "37.0 s ahead of the images'" in sentence
        assert "set lidar_time_offset_s to -37" in sentence
        assert "the clocks differ" in values(rig)["message"]
        assert set_parameter(rig, "lidar_time_offset_s", -37.0)[0]
        rig.publish("points", cloud(138.0, POINTS))
        until(lambda: rig.node._monitor.total("scan") == 7, PATIENCE_S, "the scan")
        truth = rig.show(101.0, NO_POINTS)
        until(lambda: len(depths(rig)) == 7, PATIENCE_S, "depth")
        np.testing.assert_allclose(depths(rig)[-1], truth, rtol=CLOSE)


def test_many_wrong_clouds_are_one_warning_and_no_failed_frame(rig: Rig) -> None:
    rig.publish("camera_info", info(1.0))
    until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
    for index in range(40):
        message = cloud(1.0 + index / 100, POINTS)
        message.data = message.data[: 12 * (index + 1)]
        rig.publish("points", message)
        until(lambda n=index: rig.node._monitor.total("scan") > n, PATIENCE_S, "the scan")
    rig.publish("image", camera_image(1.0)[0])
    until(lambda: depths(rig), PATIENCE_S, "an answer")
    rig.said("point cloud data has")
    time.sleep(0.1)
    assert sum("point cloud data has" in line for line in rig.logs) == 1
    assert rig.node._monitor.total("scan_refused") == 40
    assert rig.node._monitor.total("refused") == rig.node._monitor.total("failed") == 0


def test_a_camera_frame_in_body_axes_is_named(network: Path) -> None:
    """The driver stamps images with camera_link, whose axes are body axes like the LiDAR's."""
    with Rig(*settings(network)).start() as rig:
        rig.listen(Image, "depth/image_rect")
        body = np.column_stack([POINTS[:, 2], -POINTS[:, 0], -POINTS[:, 1]])
        rig.show(1.0, body.astype(np.float32))
        sentence = rig.said("looks like a body frame")
        assert "optical frame" in sentence


# --- camera --------------------------------------------------------------------------------------


def test_a_rectified_topic_is_believed_through_its_transport(network: Path) -> None:
    arguments = ["-r", "image:=/cam/image_rect/compressed"]
    more = "image_transport:=compressed"
    with Rig(*settings(network, more), arguments=arguments).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        rig.publish("camera_info", info(1.0, d=[-0.3, 0.0, 0.0, 0.0, 0.0]))
        until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
        image, truth = camera_image(1.0)
        rig.publish("points", cloud(1.0, POINTS))
        until(lambda: rig.node._monitor.total("scan") == 1, PATIENCE_S, "the scan")
        png = cv2.imencode(".png", messages.image_to_rgb(image)[..., ::-1])[1].tobytes()
        rig.publish("/cam/image_rect/compressed", CompressedImage(header=header(1.0), data=png))
        until(lambda: heard, PATIENCE_S, "depth")
        np.testing.assert_allclose(messages.image_view(heard[0]), truth, rtol=CLOSE)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_camera_info_published_once_is_received(network: Path, when: str) -> None:
    with Rig(*settings(network)) as rig:
        qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        if when == "after":
            rig.start()
        rig.peer.create_publisher(CameraInfo, "camera_info", qos).publish(info(1.0))
        if when == "before":
            time.sleep(0.3)
            rig.start()
        until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info of before")
        assert not any("incompatible QoS" in line for line in rig.logs)
        for _ in range(2):
            assert rig.change("deactivate") and rig.change("activate")
            until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info, once more")


def test_the_wrong_transport_is_named(rig: Rig) -> None:
    context = rclpy.Context()  # a participant of DDS has one type for a topic
    rclpy.init(context=context, domain_id=own_domain())
    camera = Node("camera", context=context)
    camera.create_publisher(CompressedImage, "image", 10)
    try:
        rig.said("published as")
    finally:
        camera.destroy_node()
        rclpy.shutdown(context=context)
    assert "set image_transport to compressed" in rig.said(
        "/image is published as sensor_msgs/msg/CompressedImage"
    )


def test_a_camera_that_publishes_compressed_images_only_is_named(rig: Rig) -> None:
    rig.peer.create_publisher(CompressedImage, "image/compressed", 10)
    assert "remap `image` to it and set image_transport to compressed" in rig.said(
        "nobody publishes /image, but there is /image/compressed"
    )


def test_a_huge_image_is_refused_before_it_is_decoded(network: Path) -> None:
    with Rig(*settings(network, "image_transport:=compressed")).start() as rig:
        rig.listen(Image, "depth/image_rect")
        rig.publish("camera_info", info(1.0))
        until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
        head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (30_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
        rig.publish("image", CompressedImage(header=header(1.0), data=head))
        rig.said("the image is 30000x30000 but camera_info is for 64x48")
        assert rig.node._monitor.total("refused") == 1


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("image_rectified:=yes", "image_rectified", "yes"),
        ("image_rectified:=no", "image_rectified", "no"),
        ("image_rectified:=auto", "image_rectified", "auto"),
        ("max_scan_age_s:=1", "max_scan_age_s", 1.0),
        ("max_width_px:=640.0", "max_width_px", 640),
        ("world_frame:=7", "world_frame", "7"),
        ("projection.drop_occluded:=off", "projection.drop_occluded", False),
        ("projection.drop_occluded:=1", "projection.drop_occluded", True),
        ("T_camera_lidar:=[1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1]", "T_camera_lidar", tuple(IDENTITY)),
    ],
)
def test_values_may_be_typed_as_the_documentation_has_them(
    network: Path, typed: str, name: str, value: object
) -> None:
    with Rig(f"model.path:={network}", typed) as rig:
        assert not rig.node._settings.problems
        assert getattr(rig.node._settings.config, name.rpartition(".")[2], None) == value or (
            rig.node.get_parameter(name).value == value
        )


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("image_rectified", True, "yes"),
        ("image_rectified", False, "no"),
        ("max_scan_age_s", 1, 1.0),
        ("points_decimation", 4.0, 4),
    ],
)
def test_values_may_be_set_as_the_documentation_has_them(
    rig: Rig, name: str, typed: object, value: object
) -> None:
    assert set_parameter(rig, name, typed) == (True, "")
    assert rig.node.get_parameter(name).value == value
    assert getattr(rig.node._settings.config, name) == value


def test_the_nodes_own_dump_can_be_loaded_while_it_is_active(rig: Rig) -> None:
    listed = rig.call(ListParameters, "/depth_node/list_parameters", ListParameters.Request())
    names = list(listed.result.names)
    request = GetParameters.Request(names=names)
    dump = rig.call(GetParameters, "/depth_node/get_parameters", request).values
    for name, value in zip(names, dump, strict=True):
        parameters = [ParameterMessage(name=name, value=value)]
        empty = value.type in (ParameterType.PARAMETER_STRING_ARRAY,) and not (
            value.string_array_value
        )
        if empty:  # what a YAML file makes of []
            parameters[0].value = ParameterValue(type=ParameterType.PARAMETER_BOOL_ARRAY)
        request = SetParameters.Request(parameters=parameters)
        (result,) = rig.call(SetParameters, "/depth_node/set_parameters", request).results
        assert result.successful, (name, result.reason)
    assert not set_parameter(rig, "model.path", "other.onnx")[0]


def test_names_of_other_nodes_in_a_shared_file_are_a_warning(network: Path) -> None:
    foreign = ["robot_base_frame:=base", "controller_frequency:=20.0", "plugin.max_vel_x:=0.5"]
    with Rig(*settings(network, *foreign)) as rig:
        assert rig.change("configure")
        sentence = rig.said("unknown parameter")
        assert all(item.partition(":=")[0] in sentence for item in foreign)


@pytest.mark.parametrize(
    "name", ["max_scan_age", "imge_rectified", "fit.metod", "fit.bananas", "method", "threads"]
)
def test_names_that_are_nearly_ours_are_refused(network: Path, name: str) -> None:
    with Rig(*settings(network, f"{name}:=1")) as rig:
        assert not rig.change("configure")
        assert name in rig.said("cannot be configured")


def test_ten_thousand_unknown_parameters_are_one_short_line(network: Path, tmp_path: Path) -> None:
    lines = "".join(f"    invented_{index}: 1\n" for index in range(10_000))
    path = tmp_path / "many.yaml"
    path.write_text(f"/**:\n  ros__parameters:\n{lines}    fit: {{metod: slf}}\n")
    with Rig(*settings(network), arguments=["--params-file", str(path)]) as rig:
        start = time.monotonic()
        assert not rig.change("configure")
        assert time.monotonic() - start < 5.0
        assert len(rig.said("and 9995 more")) < 600


def test_an_unknown_name_is_refused_with_a_hint(rig: Rig) -> None:
    assert set_parameter(rig, "fit.metod", "slf") == (
        False,
        "unknown parameter 'fit.metod': did you mean fit.method?",
    )


def test_a_refused_set_of_parameters_changes_nothing(rig: Rig) -> None:
    lidar, poses = rig.node._lidar, rig.node._poses
    assert lidar is not None
    extrinsics = lidar.extrinsics
    values = {"T_camera_lidar": [*np.eye(4).ravel()[:-5], 1.0, *np.eye(4).ravel()[-4:]],
              "max_scan_age_s": 7.0, "fit.method": "network"}  # fmt: skip
    changes = [Parameter(name, value=value) for name, value in values.items()]
    result = rig.node.set_parameters_atomically(changes)
    assert not result.successful and "network" in result.reason
    assert (rig.node._lidar, rig.node._poses) == (lidar, poses)
    assert lidar.extrinsics is extrinsics
    assert rig.node.get_parameter("max_scan_age_s").value != 7.0


# --- a lifecycle manager -------------------------------------------------------------------------


class PlayedBond:
    """The used part of bondpy's Bond; the real one needs compiled messages."""

    events: ClassVar[list[tuple[str, ...]]] = []

    def __init__(self, node: object, topic: str, bond_id: str) -> None:
        self.events.append(("new", topic, bond_id))

    def start(self) -> None:
        self.events.append(("start",))

    def shutdown(self) -> None:
        self.events.append(("shutdown",))


@pytest.mark.parametrize("bond", [True, False])
def test_a_bond_is_offered_while_the_node_is_active(
    network: Path, monkeypatch: pytest.MonkeyPatch, bond: bool
) -> None:
    module = types.ModuleType("bondpy.bondpy")
    module.Bond = PlayedBond  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bondpy", types.ModuleType("bondpy"))
    monkeypatch.setitem(sys.modules, "bondpy.bondpy", module)
    PlayedBond.events.clear()
    with Rig(*settings(network, f"bond:={str(bond).lower()}")) as rig:
        assert rig.change("configure")
        assert not PlayedBond.events
        assert rig.change("activate")
        formed = [("new", "bond", "depth_node"), ("start",)] if bond else []
        assert PlayedBond.events == formed
        assert rig.change("deactivate")
        assert PlayedBond.events == formed + ([("shutdown",)] if bond else [])


def test_parameters_are_of_their_declared_types(rig: Rig) -> None:
    assert not set_parameter(rig, "fit.method", 3)[0]
    parameter = Parameter("lidar_sources", Parameter.Type.STRING_ARRAY, [])
    request = SetParameters.Request(parameters=[parameter.to_parameter_msg()])
    assert not rig.call(SetParameters, "/depth_node/set_parameters", request).results[0].successful
