# SPDX-License-Identifier: Apache-2.0
"""Bad input: the message names cause and cure, and the next good frame works."""

from __future__ import annotations

import array
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.geometry.rigid import rigid_transform
from depth_node.pipeline import DepthResult
from depth_node.ros import messages
from depth_node.ros.node import DepthNode
from depth_node.ros.transforms.tf import NoTransformError, Transform, TransformSource
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
    set_parameter,
    settings,
    until,
)
from tests.helpers.stand_ins import tf2_ros as tf2_stand_in

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


def good_frame_works(rig: Rig, stamp_s: float = 50.0) -> None:
    """Check that a good frame after bad ones gives its true depth."""

    def answers() -> list[Image]:
        stamp_ns = round(stamp_s * 1e9)
        heard = rig.received["depth/image_rect"]
        return [message for message in heard if messages.stamp_ns(message.header.stamp) == stamp_ns]

    truth = rig.show(stamp_s)
    until(lambda: len(answers()) > 0, PATIENCE_S, "the depth of a good frame")
    np.testing.assert_allclose(messages.image_view(answers()[0]), truth, rtol=CLOSE)


# --- LiDAR ---------------------------------------------------------------------------------------


def test_no_lidar_at_all(rig: Rig) -> None:
    rig.show(1.0, NO_POINTS)
    until(lambda: depths(rig), PATIENCE_S, "an answer")
    assert np.isnan(depths(rig)[0]).all(), "relative depth without points is no metric depth"
    assert "remapping of `points` or `scan`" in rig.said("no LiDAR points")
    good_frame_works(rig)


def test_scans_that_are_too_old(rig: Rig) -> None:
    rig.publish("points", cloud(1.0, POINTS))
    until(lambda: rig.node._monitor.total("scan") == 1, PATIENCE_S, "the scan")
    rig.show(9.0, NO_POINTS)
    until(lambda: depths(rig), PATIENCE_S, "an answer")
    assert np.isnan(depths(rig)[0]).all()
    assert "raise max_scan_age_s" in rig.said("8.00 s older than the image")
    good_frame_works(rig)


def test_all_points_behind_the_camera(rig: Rig) -> None:
    rig.show(1.0, -POINTS)
    until(lambda: depths(rig), PATIENCE_S, "an answer")
    assert np.isnan(depths(rig)[0]).all()
    assert "check T_camera_lidar" in rig.said(f"{len(POINTS)} behind the camera")
    good_frame_works(rig)


def test_points_that_are_no_numbers_or_come_twice_change_nothing(rig: Rig) -> None:
    good_frame_works(rig, 1.0)
    bad = np.repeat(POINTS[:1], 4, axis=0)
    bad[0, 0], bad[1, 2], bad[2] = np.nan, np.inf, 0.0
    rig.show(2.0, np.vstack([bad, POINTS, POINTS]))
    until(lambda: len(depths(rig)) == 2, PATIENCE_S, "depth")
    np.testing.assert_allclose(depths(rig)[1], depths(rig)[0], rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_points_than_parameters(rig: Rig, count: int) -> None:
    truth = rig.show(1.0, POINTS[200 : 200 + count])
    until(lambda: depths(rig), PATIENCE_S, "an answer")
    known = np.isfinite(depths(rig)[0])
    assert known.all(), "one point gives at least a scale"
    ratio = depths(rig)[0] / truth
    assert np.all((ratio > 0.2) & (ratio < 5.0)), "a guess, but no nonsense"
    good_frame_works(rig)


def test_an_empty_cloud(rig: Rig) -> None:
    rig.publish("points", cloud(1.0, NO_POINTS))
    until(lambda: rig.node._monitor.total("scan") == 1, PATIENCE_S, "the scan")
    rig.show(1.0, NO_POINTS)
    until(lambda: depths(rig), PATIENCE_S, "an answer")
    assert "check the LiDAR" in rig.said("scans are empty")
    good_frame_works(rig)


def test_a_cloud_that_cannot_be_read(rig: Rig) -> None:
    message = cloud(1.0, POINTS)
    message.fields[2].name = "height"
    rig.publish("points", message)
    until(lambda: rig.node._monitor.total("scan") == 1, PATIENCE_S, "the scan")
    rig.show(1.0, NO_POINTS)
    assert "only x, y, height" in rig.said("no field 'z'")
    good_frame_works(rig)


# --- image and calibration ---------------------------------------------------------------------


def changed(**changes: object) -> Image:
    message = camera_image(1.0)[0]
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (changed(encoding="mystery8"), "encoding 'mystery8'"),
        (changed(encoding="16UC1"), "no image"),
        (changed(step=10), "step is 10 bytes"),
        (changed(data=array.array("B", b"12345")), "data has 5 bytes"),
        (camera_image(1.0, 24, 32)[0], "the image is 32x24 but camera_info is for 64x48"),
    ],
)
def test_pictures_that_cannot_be_used(rig: Rig, image: Image, words: str) -> None:
    rig.publish("camera_info", info(1.0))
    until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
    rig.publish("image", image)
    rig.said(words)
    assert rig.node._monitor.total("refused") == 1
    assert not depths(rig)
    good_frame_works(rig)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"d": [0.1] * 5, "distortion_model": "swirl"}, "'swirl' is not known"),
        ({"d": [0.1] * 3}, "distortion coefficients, not 3"),
        ({"width": 0, "height": 0}, "width is 0"),
    ],
)
def test_calibrations_that_cannot_be_used(rig: Rig, changes: dict[str, object], words: str) -> None:
    rig.publish("camera_info", info(1.0, **changes))
    until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
    rig.publish("image", camera_image(1.0)[0])
    rig.said(words)
    assert not depths(rig)
    rig.publish("camera_info", info(1.1))
    until(
        lambda: rig.node._camera.info.k[0] > 0 and not any(rig.node._camera.info.d),
        PATIENCE_S,
        "camera_info",
    )
    good_frame_works(rig)


def test_no_camera_info(rig: Rig) -> None:
    rig.publish("image", camera_image(1.0)[0])
    assert "remap `camera_info`" in rig.said("no camera_info on /camera_info yet")
    good_frame_works(rig)


def test_the_picture_may_change_its_size_at_run_time(rig: Rig) -> None:
    good_frame_works(rig, 1.0)
    rig.publish("camera_info", info(2.0, 96, 128))
    until(lambda: rig.node._camera.info.width == 128, PATIENCE_S, "camera_info")
    image, truth = camera_image(2.0, 96, 128)
    rig.publish("points", cloud(2.0, lidar_points(truth)))
    until(lambda: rig.node._monitor.total("scan") == 2, PATIENCE_S, "the scan")
    rig.publish("image", image)
    until(lambda: len(depths(rig)) == 2, PATIENCE_S, "depth")
    assert depths(rig)[1].shape == (96, 128)
    np.testing.assert_allclose(depths(rig)[1], truth, rtol=CLOSE)
    rig.publish("camera_info", info(3.0))
    until(lambda: rig.node._camera.info.width == 64, PATIENCE_S, "camera_info")
    good_frame_works(rig)


# --- time ----------------------------------------------------------------------------------------


def test_zero_stamps_are_matched_by_arrival_and_warned_about(rig: Rig) -> None:
    truth = rig.show(0.0)
    until(lambda: depths(rig), PATIENCE_S, "depth")
    np.testing.assert_allclose(depths(rig)[0], truth, rtol=CLOSE)
    assert messages.stamp_ns(rig.received["depth/image_rect"][0].header.stamp) == 0
    assert "let the driver set header.stamp" in rig.said("image messages have stamp 0")


def test_a_bag_that_loops(rig: Rig) -> None:
    good_frame_works(rig, 100.0)
    good_frame_works(rig, 10.0)
    rig.said("time jumped back by 90.0 s")
    good_frame_works(rig, 10.1)
    rig.show(100.0, NO_POINTS)
    until(lambda: len(depths(rig)) == 4, PATIENCE_S, "an answer")
    assert np.isnan(depths(rig)[3]).all(), "the scan of the first round is forgotten"


def test_sim_time(network: Path) -> None:
    with Rig(*settings(network, "use_sim_time:=true")).start() as rig:
        rig.listen(Image, "depth/image_rect")
        arrays = rig.listen(DiagnosticArray, "/diagnostics")
        rig.publish("/clock", Clock(clock=Time(sec=100, nanosec=50_000_000)))
        until(lambda: rig.node.get_clock().now().nanoseconds > 10**9, PATIENCE_S, "simulated time")
        good_frame_works(rig, 100.0)
        arrays.clear()
        until(lambda: arrays, PATIENCE_S, "diagnostics, although simulated time stands still")
        values = {item.key: item.value for item in arrays[0].status[0].values}
        assert values["stamp to publish p50/p95 [ms]"] == "50.0/50.0"
        assert arrays[0].header.stamp.sec == 100


# --- extrinsics ----------------------------------------------------------------------------------


class Tree:
    """A TF tree that a test can change: the newest T_camera_lidar and its stamp in ns, or None."""

    def __init__(self) -> None:
        self.newest: tuple[Transform, int] | None = None

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        if self.newest is None:
            raise NoTransformError(f'"{source}" does not exist')
        if stamp_ns is not None and stamp_ns > self.newest[1] > 0:
            raise NoTransformError("extrapolation into the future")
        return self.newest

    def forget_moving(self) -> None:
        pass

    def close(self) -> None:
        self.newest = None


@pytest.mark.parametrize("by_reset", [False, True])
def test_moving_transforms_come_back_after_a_jump_in_time(
    network: Path, monkeypatch: pytest.MonkeyPatch, by_reset: bool
) -> None:
    """tf2 ignores transforms ten seconds older than its newest, so all of a bag that loops."""
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_stand_in)
    parameters = (f"model.path:={network}", "fit.unanchored_s:=0.0")
    with Rig(*parameters).start() as rig:
        rig.listen(Image, "depth/image_rect")

        def moving(*times_s: float) -> None:
            for time_s in times_s:
                link = TransformStamped(child_frame_id="lidar")
                link.header = header(time_s)
                link.transform.rotation.w = 1.0
                rig.publish("/tf", link)
            time.sleep(0.3)

        moving(99.9, 100.1)
        good_frame_works(rig, 100.0)
        if by_reset:
            rig.reset()
        else:
            rig.show(10.0)
            rig.said("time jumped back by 90.0 s")
            until(lambda: len(depths(rig)) == 2, PATIENCE_S, "an answer")
        moving(10.1, 10.3)
        good_frame_works(rig, 10.2)


def test_tf_is_taken_once_for_all_that_need_it_and_as_long_as_one_does(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A robot's /tf has hundreds of messages a second, each of which costs Python its time."""
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_stand_in)
    frames = ("world_frame:=odom", "obstacles.base_frame:=base_link")
    with Rig(f"model.path:={network}", *frames).start() as rig:

        def listeners(count: int) -> None:
            until(lambda: rig.node.count_subscribers("/tf") == count, PATIENCE_S, f"{count} on /tf")

        listeners(1)
        assert set_parameter(rig, "world_frame", "map")[0]
        assert set_parameter(rig, "T_camera_lidar", IDENTITY)[0]
        assert set_parameter(rig, "obstacles.base_frame", "")[0]
        listeners(1)
        assert set_parameter(rig, "world_frame", "")[0]
        listeners(0)
        assert set_parameter(rig, "world_frame", "odom")[0]
        listeners(1)
        assert rig.change("deactivate") and rig.change("cleanup")
        listeners(0)


def test_settings_that_need_a_missing_tf_are_refused_whole(network: Path) -> None:
    """The method was changed although the request was refused, because TF was opened last."""

    class WithoutTf(DepthNode):
        def make_transform_source(self) -> TransformSource:
            raise ImportError("No module named 'tf2_ros'")

    with Rig(*settings(network), node_class=WithoutTf).start() as rig:
        pipeline = rig.node._pipeline
        assert pipeline is not None
        changes = {"fit.method": "slf", "world_frame": "odom"}
        result = rig.node.set_parameters_atomically(
            [Parameter(name, value=value) for name, value in changes.items()]
        )
        assert not result.successful and "install tf2_ros" in result.reason
        assert pipeline._config.fit.method == rig.node.config.fit.method == "field"


def test_frames_with_a_leading_slash_are_those_of_tf(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers from ROS 1 write frames so; a replay accepts them too."""
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_stand_in)
    with Rig(f"model.path:={network}").start() as rig:
        rig.listen(Image, "depth/image_rect")
        for time_s in (0.9, 1.1):
            link = TransformStamped(child_frame_id="lidar", header=header(time_s))
            link.transform.rotation.w = 1.0
            rig.publish("/tf", link)
        time.sleep(0.3)
        rig.publish("points", cloud(1.0, POINTS, frame="/lidar"))
        until(lambda: rig.node._monitor.total("scan") == 1, PATIENCE_S, "the scan")
        truth = rig.show(1.0, NO_POINTS)
        until(lambda: depths(rig), PATIENCE_S, "depth")
        np.testing.assert_allclose(depths(rig)[0], truth, rtol=CLOSE)


def test_tf_missing_late_and_lost(network: Path) -> None:
    tree = Tree()

    class WithTree(DepthNode):
        def make_transform_source(self) -> TransformSource:
            return tree

    # Without the memory of earlier frames, depth needs the transform.
    parameters = (f"model.path:={network}", "fit.unanchored_s:=0.0")
    with Rig(*parameters, node_class=WithTree).start() as rig:
        rig.listen(Image, "depth/image_rect")
        rig.show(1.0)
        until(lambda: len(depths(rig)) == 1, PATIENCE_S, "an answer")
        assert np.isnan(depths(rig)[0]).all()
        assert "T_camera_lidar" in rig.said(
            "TF has no transform from lidar to camera_optical_frame"
        )
        tree.newest = (np.eye(4), 1_950_000_000)  # a moving LiDAR, 50 ms late
        good_frame_works(rig, 2.0)
        rig.show(5.0)
        until(lambda: len(depths(rig)) == 3, PATIENCE_S, "an answer")
        assert np.isnan(depths(rig)[2]).all(), "a lost transform is no transform"
        tree.newest = (np.eye(4), 0)  # static
        good_frame_works(rig, 6.0)
        tree.newest = None
        good_frame_works(rig, 7.0)


def test_two_lidars_each_have_their_transform(network: Path) -> None:
    offset = rigid_transform((0.0, 0.0, 1.0), (0, 0, 0, 1))

    class Pair(Tree):
        def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
            return (offset if source == "back" else np.eye(4)), 0

    class WithPair(DepthNode):
        def make_transform_source(self) -> TransformSource:
            return Pair()

    with Rig(f"model.path:={network}", node_class=WithPair).start() as rig:
        rig.listen(Image, "depth/image_rect")
        rig.publish("points", cloud(1.0, POINTS[::2] - np.float32([0, 0, 1]), frame="back"))
        until(lambda: rig.node._monitor.total("scan") == 1, PATIENCE_S, "the scan")
        truth = rig.show(1.0, POINTS[1::2])
        until(lambda: depths(rig), PATIENCE_S, "depth")
        np.testing.assert_allclose(depths(rig)[0], truth, rtol=CLOSE)


def test_neither_tf_nor_parameter(network: Path) -> None:
    class WithoutTf(DepthNode):
        def make_transform_source(self) -> TransformSource:
            raise ImportError("No module named 'tf2_ros'")

    with Rig(f"model.path:={network}", node_class=WithoutTf) as rig:
        assert not rig.change("configure")
        sentence = rig.said("cannot be configured")
        assert "set the parameter T_camera_lidar" in sentence
        assert "install tf2_ros" in sentence
        assert rig.state() == "unconfigured"


# --- models --------------------------------------------------------------------------------------


def truncate(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:100])
    resign(model)


def scribble(model: Path) -> None:
    model.write_text("this is no network\n" * 50)
    resign(model)


def swap(model: Path) -> None:
    model.write_bytes(model.read_bytes() + b" ")


def resize(model: Path) -> None:
    text = manifest_path(model).read_text()
    manifest_path(model).write_text(text.replace("height: 48", "height: 96"))


def resign(model: Path) -> None:
    """Make the manifest fit the damaged file, so that the damage itself must be noticed."""
    import dataclasses

    from depth_node.engine.manifest import model_sha256

    path = manifest_path(model)
    dataclasses.replace(Manifest.load(path), sha256=model_sha256(model)).save(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda model: model.unlink(), "does not exist"),
        (lambda model: manifest_path(model).unlink(), "has no manifest"),
        (truncate, "tiny.onnx"),
        (scribble, "tiny.onnx"),
        (swap, "sha256"),
        (resize, "96"),
    ],
    ids=["missing", "no manifest", "truncated", "not ONNX", "wrong hash", "wrong shape"],
)
def test_models_that_cannot_be_opened(
    network: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    for file in network.parent.glob("tiny*"):
        shutil.copy(file, tmp_path / file.name)
    model = tmp_path / network.name
    spoil(model)
    with Rig(*settings(model)) as rig:
        assert not rig.change("configure")
        sentence = rig.said("cannot be configured")
        assert words in sentence
        assert "Traceback" not in sentence
        assert "\n" not in sentence
        assert rig.state() == "unconfigured"


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("fit.metod:=slf", "unknown parameter fit.metod: did you mean fit.method?"),
        ("method:=slf", "did you mean fit.method?"),
        ("fit.bananas:=3", "unknown parameter fit.bananas"),
        ("fit.method:=sff", "fit.method must be one of"),
        ("fit.range_guard:=1000.0", "fit.range_guard must be between"),
        ("points_decimation:=many", "points_decimation must be int"),
        ("T_camera_lidar:=[1.0, 2.0]", "T_camera_lidar has 2 values"),
        ("model.path:=''", "model.path is empty"),
        (
            "qos_overrides./depth_node/depth/image_rekt.publisher.depth:=1",
            "did you mean qos_overrides./depth_node/depth/image_rect.publisher.depth?",
        ),
    ],
)
def test_parameters_that_cannot_be(network: Path, parameter: str, words: str) -> None:
    with Rig(*settings(network, parameter)) as rig:
        assert not rig.change("configure")
        assert words in rig.said("cannot be configured")
        assert rig.state() == "unconfigured"


def test_a_wrong_parameter_can_be_corrected_without_a_restart(network: Path) -> None:
    with Rig(*settings(network, "fit.method:=sff")) as rig:
        assert not rig.change("configure")
        assert set_parameter(rig, "fit.method", "slf")[0]
        rig.start()


def test_a_bad_qos_override_is_refused(network: Path) -> None:
    name = "qos_overrides./depth_node/points.publisher.reliability:=perhaps"
    with Rig(*settings(network, name)) as rig:
        assert rig.change("configure")
        assert not rig.change("activate")
        assert "reliability" in rig.said("cannot be activated")
        assert rig.state() == "inactive"


# --- the worker ----------------------------------------------------------------------------------


def test_a_frame_that_makes_the_worker_raise(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rig.node._pipeline.process
    broken = [True]

    def process(*arguments: object, **named: object) -> DepthResult:
        if broken[0]:
            raise ZeroDivisionError("made by the test")
        return real(*arguments, **named)

    monkeypatch.setattr(rig.node._pipeline, "process", process)
    for stamp in (1.0, 2.0, 3.0):
        rig.show(stamp)
        until(
            lambda count=stamp: rig.node._monitor.total("failed") == count,
            PATIENCE_S,
            "the failure",
        )
    line = rig.said("ZeroDivisionError: made by the test")
    assert "test_bad_input.py" in line
    time.sleep(0.1)
    assert sum("ZeroDivisionError" in entry for entry in rig.logs) == 1, "logged once"
    broken[0] = False
    good_frame_works(rig)


@pytest.mark.parametrize(
    ("remap", "words"),
    [
        (
            "image:=points",
            "the inputs image and points are both /points: remap each to a topic of its own",
        ),
        ("points:=/camera_info", "camera_info and points are both /camera_info"),
        (
            "points:=/depth_node/points",
            "the input points is /depth_node/points, an output of this node",
        ),
    ],
)
def test_topics_that_cannot_be(network: Path, remap: str, words: str) -> None:
    with Rig(*settings(network), arguments=("-r", remap)) as rig:
        assert not rig.change("configure")
        assert words in rig.said("cannot be configured")


def test_inputs_that_are_not_used_may_share_a_topic(network: Path) -> None:
    with Rig(*settings(network), arguments=("-r", "landmarks:=/points")) as rig:
        rig.start()
