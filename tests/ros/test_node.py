# SPDX-License-Identifier: Apache-2.0
"""The node over real middleware: its outputs, and when it processes images."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from depth_node.frame import FrameInput

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import cv2
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2

from depth_node.fitting import REGION_FIT_DTYPE
from depth_node.pipeline import DepthPipeline
from depth_node.ros import messages
from depth_node.ros.node import OUTPUTS, DepthNode
from tests.helpers.rig import (
    CLOSE,
    PATIENCE_S,
    Rig,
    camera_image,
    cloud,
    header,
    info,
    lidar_points,
    set_parameter,
    settings,
    until,
)

NO_POINTS = np.empty((0, 3), np.float32)


@pytest.fixture
def rig(network: Path) -> Iterator[Rig]:
    with Rig(*settings(network)) as rig:
        yield rig.start()


def stamp_of(message: Image) -> float:
    return messages.stamp_ns(message.header.stamp) / 1e9


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["field", "ssf"])
def test_every_output_of_one_picture(network: Path, method: str) -> None:
    height = "obstacles.camera_height_m:=1.0"
    with Rig(*settings(network, f"fit.method:={method}", height)).start() as rig:
        heard = {name[2:]: rig.listen(kind, name[2:]) for name, kind in OUTPUTS.items()}
        truth = rig.show(10.5)
        # The image has no distortion; no TF frame is known to put a scan into.
        silent = {"depth/image", "depth/image/compressedDepth", "obstacles/scan"}
        until(
            lambda: all(heard[name] for name in heard.keys() - silent), PATIENCE_S, "every output"
        )
        assert not any(heard[name] for name in silent)
        for name, got in heard.items():
            if name not in silent:
                assert stamp_of(got[0]) == 10.5
                assert got[0].header.frame_id == "camera_optical_frame"

        depth = messages.image_view(heard["depth/image_rect"][0])
        assert heard["depth/image_rect"][0].encoding == "32FC1"
        np.testing.assert_allclose(depth, truth, rtol=CLOSE)

        camera = messages.camera_of(heard["depth/camera_info"][0])
        assert camera == messages.camera_of(info(0.0))

        std = messages.image_view(heard["confidence"][0])
        assert heard["confidence"][0].encoding == "32FC1"
        assert std.shape == depth.shape
        assert np.all(std[np.isfinite(std)] > 0)

        regions = messages.image_view(heard["regions"][0])
        table = messages.table_rows(heard["fit"][0])
        assert table.dtype.names == REGION_FIT_DTYPE.names
        assert set(table["label"]) == set(np.unique(regions))
        assert (regions.max() > 0) == (method == "ssf"), "the field makes no use of regions"
        assert table["points"].sum() > 0

        points = messages.table_rows(heard["points"][0])
        assert points.dtype.names == ("x", "y", "z", "rgb")
        expected = camera.backproject(depth.astype(np.float32))[::2, ::2].reshape(-1, 3)
        got = np.column_stack([points[name] for name in "xyz"])
        np.testing.assert_allclose(got, expected[np.isfinite(expected).all(axis=1)], rtol=1e-5)


def test_live_depth_is_that_of_the_pipeline(rig: Rig) -> None:
    """The node adds transport and no arithmetic."""
    heard = rig.listen(Image, "depth/image_rect")
    rig.show(1.0)
    until(lambda: len(heard) == 1, PATIENCE_S, "depth")
    image, depth = camera_image(1.0)
    with DepthPipeline(rig.node._settings.config) as pipeline:
        expected = pipeline.process(
            FrameInput(
                messages.image_to_rgb(image),
                messages.camera_of(info(1.0)),
                lidar_points(depth),
                np.eye(4),
            )
        )
    np.testing.assert_allclose(messages.image_view(heard[0]), expected.depth, rtol=1e-6)


def test_sixteen_bit_depth(network: Path) -> None:
    with Rig(*settings(network, "depth_encoding:=16UC1")).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        truth = rig.show(1.0)
        until(lambda: len(heard) == 1, PATIENCE_S, "depth")
        assert heard[0].encoding == "16UC1"
        np.testing.assert_allclose(messages.image_view(heard[0]) / 1000.0, truth, rtol=CLOSE)


def test_a_distorted_picture_is_not_called_rectified(rig: Rig) -> None:
    heard = {name: rig.listen(Image, f"depth/{name}") for name in ("image", "image_rect")}
    rig.publish("camera_info", info(1.0, d=[-0.05, 0.0, 0.0, 0.0, 0.0]))
    until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
    image, depth = camera_image(1.0)
    rig.publish("points", cloud(1.0, lidar_points(depth)))
    rig.publish("image", image)
    until(lambda: heard["image"], PATIENCE_S, "depth")
    assert not heard["image_rect"]
    assert "image_rect stays silent: the image has distortion" in rig.said("stays silent")


def test_a_rectified_topic_is_believed(network: Path) -> None:
    """Drivers publish the raw image's distortion with the rectified one too."""
    arguments = ["-r", "image:=camera/image_rect"]
    with Rig(*settings(network), arguments=arguments).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        infos = rig.listen(CameraInfo, "depth/camera_info")
        rig.publish(
            "camera_info",
            info(
                1.0,
                d=[-0.3, 0.0, 0.0, 0.0, 0.0],
                k=[70.0, 0.0, 31.5, 0.0, 70.0, 23.5, 0.0, 0.0, 1.0],
            ),
        )
        until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
        rig.publish("camera/image_rect", camera_image(1.0)[0])
        until(lambda: heard and infos, PATIENCE_S, "depth")
        assert infos[0].k[0] == 60.0, "P of camera_info, not K"
        assert not any(infos[0].d)


def test_shrunk_pictures_have_a_scaled_camera_info(network: Path) -> None:
    with Rig(*settings(network, "max_width_px:=32")).start() as rig:
        depths, infos = (
            rig.listen(Image, "depth/image_rect"),
            rig.listen(CameraInfo, "depth/camera_info"),
        )
        truth = rig.show(1.0)
        until(lambda: depths and infos, PATIENCE_S, "depth")
        assert (infos[0].width, infos[0].height) == (32, 24)
        assert (depths[0].width, depths[0].height) == (32, 24)
        assert messages.camera_of(infos[0]) == messages.camera_of(info(1.0)).resized(32, 24)
        assert infos[0].p[0] == infos[0].k[0] == 30.0
        half = cv2.resize(truth, (32, 24), interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(messages.image_view(depths[0]), half, rtol=CLOSE)


def test_compressed_pictures(network: Path) -> None:
    with Rig(*settings(network, "image_transport:=compressed")).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        image, truth = camera_image(1.0)
        rig.publish("camera_info", info(1.0))
        rig.publish("points", cloud(1.0, lidar_points(truth)))
        until(
            lambda: rig.node._camera.info and rig.node._monitor.total("scan"), PATIENCE_S, "inputs"
        )
        _, png = cv2.imencode(".png", messages.image_to_rgb(image)[..., ::-1])
        message = CompressedImage(header=header(1.0), format="png", data=png.tobytes())
        rig.publish("image", message)
        until(lambda: heard, PATIENCE_S, "depth")
        np.testing.assert_allclose(messages.image_view(heard[0]), truth, rtol=CLOSE)


def test_a_laser_scan_is_enough(network: Path) -> None:
    """A planar scan through the optical axis, turned from the laser's frame into the camera's."""
    laser = [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0, 0, 0, 1]  # whole numbers are numbers too
    more = ["lidar_sources:=[scan]", f"T_camera_lidar:={laser}", "fit.method:=global_disparity"]
    with Rig(*settings(network)[:1], *more).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        image, truth = camera_image(1.0)
        rig.publish("camera_info", info(1.0))
        columns = np.arange(4, 60)
        angles = np.arctan2(-(columns - 31.5) / 60.0, 1.0)[::-1]
        scan = LaserScan(header=header(1.0, "laser"), range_min=0.1, range_max=20.0)
        scan.angle_min = float(angles[0])
        scan.angle_increment = float(angles[-1] - angles[0]) / (len(angles) - 1)
        even = scan.angle_min + scan.angle_increment * np.arange(len(angles))
        seen = np.interp(31.5 - 60.0 * np.tan(even), np.arange(64), truth[24])
        scan.ranges = (seen / np.cos(even)).tolist()
        rig.publish("scan", scan)
        until(
            lambda: rig.node._camera.info and rig.node._monitor.total("scan"), PATIENCE_S, "inputs"
        )
        rig.publish("image", image)
        until(lambda: heard, PATIENCE_S, "depth")
        np.testing.assert_allclose(messages.image_view(heard[0]), truth, rtol=CLOSE)


def test_landmarks_of_much_noise_do_no_harm_beside_a_lidar(network: Path) -> None:
    """Points that are 20 % off on their own topic are weighted by their stated noise."""
    near = {}
    for topic in ("landmarks", "points"):
        more = ["lidar_sources:=[points, landmarks]", "landmarks_noise:=0.2"]
        with Rig(*settings(network), *more).start() as rig:
            heard = rig.listen(Image, "depth/image_rect")
            image, truth = camera_image(1.0)
            rig.publish("camera_info", info(1.0))
            rig.publish("points", cloud(1.0, lidar_points(truth)))
            poor = lidar_points(truth, 4)
            poor *= 1 + 0.2 * np.random.default_rng(1).standard_normal((len(poor), 1))
            rig.publish(topic, cloud(1.0, poor.astype(np.float32), "radar"))
            until(
                lambda rig=rig: rig.node._camera.info and rig.node._monitor.total("scan") == 2,
                PATIENCE_S, "inputs",
            )  # fmt: skip
            rig.publish("image", image)
            until(lambda heard=heard: heard, PATIENCE_S, "depth")
            depth = messages.image_view(heard[0])
            near[topic] = float(np.median(np.abs(depth - truth) / truth))
    assert near["landmarks"] < 0.6 * near["points"], near


def test_depth_is_published_reliably_and_sensors_are_heard_whatever_their_qos(rig: Rig) -> None:
    rig.listen(Image, "depth/image_rect")
    (out,) = rig.peer.get_publishers_info_by_topic("/depth_node/depth/image_rect")
    assert out.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    until(
        lambda: rig.peer.get_subscriptions_info_by_topic("/image"), PATIENCE_S, "the subscription"
    )
    (image,) = rig.peer.get_subscriptions_info_by_topic("/image")
    assert image.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_qos_can_be_overridden(network: Path) -> None:
    name = "qos_overrides./depth_node/depth/image_rect.publisher.reliability:=best_effort"
    with Rig(*settings(network, name)).start() as rig:
        until(
            lambda: rig.peer.count_publishers("/depth_node/depth/image_rect"),
            PATIENCE_S,
            "publisher",
        )
        (out,) = rig.peer.get_publishers_info_by_topic("/depth_node/depth/image_rect")
        assert out.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


# --- when it works and when it rests -------------------------------------------------------------


def test_no_listener_no_inference_and_only_what_is_heard_is_made(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []

    def counted(what: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            computed.append(what)
            return real(*arguments, **named)

        return call

    pipeline = rig.node._pipeline
    monkeypatch.setattr(pipeline, "process", counted("frame", pipeline.process))
    for name in ("image_message", "table_message", "camera_info_message", "colour_points"):
        monkeypatch.setattr(messages, name, counted(name, getattr(messages, name)))
    rig.show(1.0)
    rig.silent()
    assert computed == [], "nobody listens"
    assert rig.node._monitor.total("skipped_no_subscribers") == 1
    heard = rig.listen(Image, "confidence")
    rig.show(2.0)
    until(lambda: heard, PATIENCE_S, "the confidence")
    assert computed == ["frame", "image_message"]


class Held(DepthNode):
    """A node that processes a frame only while it is allowed to."""

    def __init__(self, **arguments: object) -> None:
        self.go_on = threading.Event()
        self.started = threading.Event()
        super().__init__(**arguments)

    def _work(self, camera_image: object) -> None:
        self.started.set()
        assert self.go_on.wait(PATIENCE_S)
        super()._work(camera_image)


def test_the_newest_picture_wins_and_drops_are_counted(network: Path) -> None:
    with Rig(*settings(network), node_class=Held).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        rig.show(1.0)
        assert rig.node.started.wait(PATIENCE_S)
        for stamp in (1.1, 1.2, 1.3, 1.4):
            rig.publish("image", camera_image(stamp)[0])
        until(lambda: rig.node._monitor.total("image") == 5, PATIENCE_S, "five images")
        rig.node.go_on.set()
        until(lambda: len(heard) == 2, PATIENCE_S, "two depth images")
        assert [stamp_of(message) for message in heard] == [1.0, 1.4]
        assert rig.node._monitor.total("dropped") == 3


def test_enable_and_reset(rig: Rig) -> None:
    heard = rig.listen(Image, "depth/image_rect")
    rig.enable(False)
    rig.publish("image", camera_image(1.0)[0])
    until(lambda: rig.node._monitor.total("image") == 1, PATIENCE_S, "the image")
    assert not heard
    rig.enable(True)
    rig.show(2.0)
    until(lambda: len(heard) == 1, PATIENCE_S, "depth")
    rig.reset()
    assert rig.node._monitor.total("image") == 0
    rig.publish("image", camera_image(2.0)[0])
    until(lambda: len(heard) == 2, PATIENCE_S, "depth")
    assert np.isnan(messages.image_view(heard[1])).all(), "the scan before the reset is forgotten"


def test_a_picture_can_wait_for_its_scan(network: Path) -> None:
    with Rig(*settings(network, "scan_wait_s:=1.0", "max_scan_age_s:=0.01")).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        image, truth = camera_image(1.0)
        rig.publish("camera_info", info(1.0))
        until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
        rig.publish("image", image)
        time.sleep(0.1)
        assert not heard
        rig.publish("points", cloud(1.0, lidar_points(truth)))
        until(lambda: heard, PATIENCE_S, "depth")
        np.testing.assert_allclose(messages.image_view(heard[0]), truth, rtol=CLOSE)


def test_scans_accumulate_if_they_are_asked_to(network: Path) -> None:
    more = ["scans_per_image:=9", "max_scan_age_s:=0.5"]
    with Rig(*settings(network, *more)).start() as rig:
        table = rig.listen(PointCloud2, "fit")
        points = lidar_points(camera_image(0.0)[1])
        rig.publish("points", cloud(0.8, points[::2]))
        rig.publish("points", cloud(0.9, points[1::2], frame="second_lidar"))
        rig.publish("points", cloud(0.1, points * np.float32(3.0)))  # too old
        until(lambda: rig.node._monitor.total("scan") == 3, PATIENCE_S, "three scans")
        rig.show(1.0, NO_POINTS)
        until(lambda: table, PATIENCE_S, "the fit")
        assert messages.table_rows(table[0])["points"].sum() == len(points)


# --- parameters ----------------------------------------------------------------------------------


def test_parameters_are_described(rig: Rig) -> None:
    names = ["fit.method", "projection.max_depth_m", "points_decimation"]
    answer = rig.call(
        DescribeParameters,
        "/depth_node/describe_parameters",
        DescribeParameters.Request(names=names),
    )
    method, depth, decimation = answer.descriptors
    assert "one of" in method.additional_constraints
    assert "ssf" in method.additional_constraints
    assert depth.floating_point_range[0].from_value == 0.1
    assert "[m]" in depth.description
    assert decimation.integer_range[0].to_value == 64


def test_cheap_parameters_apply_at_once(rig: Rig) -> None:
    heard = rig.listen(PointCloud2, "fit")
    rig.show(1.0)
    until(lambda: len(heard) == 1, PATIENCE_S, "the fit")
    assert messages.table_rows(heard[0])["label"].tolist() == [0], "one fit for the whole image"
    assert set_parameter(rig, "fit.method", "ssf") == (True, "")
    rig.show(2.0)
    until(lambda: len(heard) == 2, PATIENCE_S, "the fit")
    assert messages.table_rows(heard[1])["label"].min() == 1, "a fit per region"
    moved = np.eye(4)
    moved[2, 3] = 100.0
    assert set_parameter(rig, "T_camera_lidar", moved.reshape(-1).tolist()) == (True, "")
    depths = rig.listen(Image, "depth/image_rect")
    rig.show(3.0)
    until(lambda: depths, PATIENCE_S, "depth")
    assert np.nanmin(messages.image_view(depths[0])) > 50


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("fit.method", "sff", "did you mean 'ssf'"),
        ("fit.method", PATIENCE_S, "type"),
        ("points_decimation", 0, "range"),
        ("max_scan_age_s", -1.0, "range"),
        ("T_camera_lidar", [1.0, 2.0], "2 values"),
        ("T_camera_lidar", [], "T_camera_lidar"),
        ("projection.min_depth_m", 500.0, "min_depth_m 500 is not below max_depth_m"),
        ("model.path", "other.onnx", "needs a new engine: deactivate and clean up"),
        ("image_transport", "compressed", "needs new subscriptions: deactivate"),
        ("lidar_sources", ["sonar"], "points, scan, landmarks"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_reason(
    rig: Rig, name: str, value: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value == []:
        parameter = Parameter(name, Parameter.Type.DOUBLE_ARRAY, [])
        request = SetParameters.Request(parameters=[parameter.to_parameter_msg()])
        result = rig.call(SetParameters, "/depth_node/set_parameters", request).results[0]
        successful, reason = result.successful, result.reason
        if not rig.node._lidar.extrinsics.is_fixed:
            pytest.skip("tf2_ros is installed, so TF takes over")
    else:
        successful, reason = set_parameter(rig, name, value)
    assert not successful
    assert words in reason
    answer = rig.call(
        GetParameters, "/depth_node/get_parameters", GetParameters.Request(names=["fit.method"])
    )
    assert answer.values[0].string_value == "field"


def test_what_needs_a_cleanup_can_be_set_after_it(rig: Rig, network: Path) -> None:
    assert rig.change("deactivate")
    assert set_parameter(rig, "lidar_sources", ["points"])[0]
    assert not set_parameter(rig, "model.threads", 1)[0]
    assert rig.change("cleanup")
    assert set_parameter(rig, "model.threads", 1)[0]
    rig.start()
    heard = rig.listen(Image, "depth/image_rect")
    rig.show(1.0)
    until(lambda: heard, PATIENCE_S, "depth")


# --- diagnostics ---------------------------------------------------------------------------------


def test_diagnostics_say_what_an_operator_needs(rig: Rig) -> None:
    rig.listen(Image, "depth/image_rect")
    arrays = rig.listen(DiagnosticArray, "/diagnostics")
    for step in range(8):
        rig.show(1.0 + 0.1 * step)
        time.sleep(0.1)
    arrays.clear()
    until(lambda: arrays, PATIENCE_S, "diagnostics within a second or two")
    status = arrays[0].status[0]
    values = {item.key: item.value for item in status.values}
    assert status.level == b"\x00", status.message
    assert "frames/s" in status.message
    assert status.name == "depth_node: depth"
    assert "onnxruntime-cpu" in values["backend"]
    assert values["engine check"] == "is the reference"
    assert "engine version" in values
    assert values["scan age [ms]"] == "0"
    assert values["points used"] == "352"
    for key in ("engine [ms]", "fit [ms]", "fit inliers [%]", "fit residual [m]", "frames dropped"):
        assert key in values


def test_rejected_points_and_what_the_field_tells_of_its_fit(network: Path) -> None:
    """Points at half the true range are on ~/rejected, in the camera's frame, and counted."""
    with Rig(*settings(network, "fit.method:=field")).start() as rig:
        arrays = rig.listen(DiagnosticArray, "/diagnostics")
        clouds = rig.listen(PointCloud2, "rejected")
        points = lidar_points(camera_image(1.0)[1])
        wrong = np.arange(20, len(points), 40)
        points[wrong] *= 0.5  # a farther one would count as hidden
        rig.show(1.0, points)
        until(lambda: clouds, PATIENCE_S, "rejected points")
        assert stamp_of(clouds[0]) == 1.0
        assert clouds[0].header.frame_id == "camera_optical_frame"
        rows = messages.table_rows(clouds[0])
        found = np.column_stack([rows[axis] for axis in "xyz"])
        order = np.lexsort(found.T)
        expected = points[wrong][np.lexsort(points[wrong].T)]
        np.testing.assert_allclose(found[order], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(rows["residual"], -rows["z"], rtol=0.1)
        arrays.clear()
        until(lambda: arrays, PATIENCE_S, "diagnostics")
        values = {item.key: item.value for item in arrays[0].status[0].values}
        assert values["fit base"] == "disparity"
        assert float(values["fit base scale"]) > 0
        assert 1 < float(values["fit outliers [%]"]) < 5
        assert 0 <= float(values["fit left-out error [%]"]) < 20
        assert 80 < float(values["fit coverage of the interval [%]"]) <= 100


def test_nothing_is_rejected_where_all_points_agree(rig: Rig) -> None:
    clouds = rig.listen(PointCloud2, "rejected")
    rig.show(1.0)
    until(lambda: clouds, PATIENCE_S, "an empty cloud")
    assert clouds[0].width == 0 and [field.name for field in clouds[0].fields][:3] == list("xyz")


# --- life ----------------------------------------------------------------------------------------


def measure() -> tuple[int, int, int]:
    """Return threads, open files and resident memory in KiB."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return threading.active_count(), len(os.listdir("/proc/self/fd")), int(resident.split()[1])


def test_ten_lives_leave_nothing_behind(network: Path) -> None:
    with Rig(*settings(network)) as rig:
        heard: list[Image] = []
        sizes = []
        for life in range(10):
            rig.start()
            if not heard:
                heard = rig.listen(Image, "depth/image_rect")
            until(lambda: rig._heard("/depth_node/depth/image_rect"), PATIENCE_S, "the listener")
            count = len(heard)
            rig._publishers.clear()
            rig.show(float(life + 1))
            until(lambda heard=heard, count=count: len(heard) > count, PATIENCE_S, "depth")
            assert rig.change("deactivate")
            assert rig.change("cleanup")
            sizes.append(measure())
            assert rig.state() == "unconfigured"
        threads, files, memory = (np.array(column) for column in zip(*sizes, strict=True))
        assert threads[-1] == threads[1]
        assert files[-1] <= files[1] + 2
        assert memory[-1] - memory[4] < 20_000, "KiB over five lives"


def test_inactive_means_silent(rig: Rig) -> None:
    assert rig.change("deactivate")
    until(lambda: rig.peer.count_subscribers("/image") == 0, PATIENCE_S, "no subscription")
    assert rig.peer.count_publishers("/depth_node/depth/image_rect") == 0
    assert rig.change("activate")
    heard = rig.listen(Image, "depth/image_rect")
    rig.show(1.0)
    until(lambda: heard, PATIENCE_S, "depth")
