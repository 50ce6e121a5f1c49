# SPDX-License-Identifier: Apache-2.0
"""The memory of earlier frames, and how it moves with the camera."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image, PointCloud2

from depth_node.geometry.rigid import rigid_transform
from depth_node.ros import messages
from depth_node.ros.inputs.lidar import UnreadScan
from depth_node.ros.node import DepthNode
from depth_node.ros.transforms.motion import CameraMotion
from depth_node.ros.transforms.tf import NoTransformError, Transform, TransformSource
from tests.helpers.rig import (
    CLOSE,
    PATIENCE_S,
    Rig,
    camera_image,
    cloud,
    info,
    lidar_points,
    settings,
    until,
)


class Drive:
    """A camera that drives along its axis at `speed` m/s; TF knows it up to `newest_s`."""

    def __init__(self, speed: float = 1.0, newest_s: float = 1e6) -> None:
        self.speed = speed
        self.newest_s = newest_s
        self.closed = False

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        if (target, source) != ("odom", "camera_optical_frame"):
            raise NoTransformError(f"frame {target} does not exist")
        stamp_s = self.newest_s if stamp_ns is None else stamp_ns * 1e-9
        if stamp_s > self.newest_s:
            raise NoTransformError("lookup would require extrapolation")
        T = rigid_transform((0.0, 0.0, self.speed * stamp_s), (0, 0, 0, 1))
        return T, round(stamp_s * 1e9)

    def forget_moving(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_motion_of_the_camera_between_two_times() -> None:
    motion = CameraMotion("odom", Drive(speed=2.0), 0.1)
    moved = motion.until("camera_optical_frame", 1_500_000_000)(1_000_000_000)
    # What was 5 m ahead is 4 m ahead half a second later.
    np.testing.assert_allclose(moved @ [0, 0, 5, 1], [0, 0, 4, 1])
    same = motion.until("unknown", 7)(7)
    np.testing.assert_array_equal(same, np.eye(4))


class Pixels:
    """A large object in the stack frame of the caller."""


def pixels_of_a_frame(ask: Callable[[], object]) -> weakref.ref[Pixels]:
    pixels = Pixels()
    ask()
    return weakref.ref(pixels)


def test_late_transforms_and_refused_scans_keep_no_image_alive() -> None:
    """A kept exception holds the locals of all its callers."""

    def late() -> None:
        motion.pose("camera_optical_frame", 1_050_000_000)

    def refused() -> None:
        for _ in range(2):
            try:
                scan.read()
            except ValueError as error:
                sentences.append(str(error))

    motion = CameraMotion("odom", Drive(newest_s=1.0), 0.1)
    scan, sentences = UnreadScan(PointCloud2(height=1, width=1)), []
    gc.disable()
    try:
        assert pixels_of_a_frame(late)() is None
        assert pixels_of_a_frame(refused)() is None
    finally:
        gc.enable()
    assert len(sentences) == 2 and "no field" in sentences[1]


def test_late_motion_serves_within_the_tolerance() -> None:
    motion = CameraMotion("odom", Drive(newest_s=2.0), 0.1)
    assert motion.pose("camera_optical_frame", 2_090_000_000)[2, 3] == pytest.approx(2.0)
    with pytest.raises(NoTransformError, match=r"motion is unknown.*extrapolation.*world_frame"):
        motion.pose("camera_optical_frame", 2_200_000_000)
    with pytest.raises(NoTransformError, match="frame_id"):
        motion.pose("", 1)
    with pytest.raises(NoTransformError, match="does not exist"):
        CameraMotion("map", Drive(), 0.1).pose("camera_optical_frame", 1)


def driving(drive: Drive) -> type[DepthNode]:
    class Driving(DepthNode):
        def make_transform_source(self) -> TransformSource:
            return drive

    return Driving


def late_scan_depth(rig: Rig) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Depth of an image whose only scan is a quarter of a second and half a metre older."""
    heard = rig.listen(Image, "depth/image_rect")
    image, truth = camera_image(1.25)
    points = lidar_points(truth) + np.float32([0, 0, 0.5])
    rig.publish("camera_info", info(1.25))
    rig.publish("points", cloud(1.0, points))
    until(
        lambda: bool(rig.node._camera.info and rig.node._monitor.total("scan")),
        PATIENCE_S,
        "inputs",
    )
    rig.publish("image", image)
    until(lambda: bool(heard), PATIENCE_S, "depth")
    return messages.image_view(heard[0]), truth


def test_an_older_scan_moves_with_the_camera(network: Path) -> None:
    drive = Drive(speed=2.0)
    parameters = settings(network, "world_frame:=odom")
    with Rig(*parameters, node_class=driving(drive)).start() as rig:
        depth, truth = late_scan_depth(rig)
        inner = (slice(4, -4), slice(4, -4))  # what came nearer left the image at its border
        np.testing.assert_allclose(depth[inner], truth[inner], rtol=CLOSE)
    assert drive.closed


def test_without_a_world_frame_it_does_not(network: Path) -> None:
    with Rig(*settings(network)).start() as rig:
        depth, truth = late_scan_depth(rig)
        assert np.median(depth - truth) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("readout_s", [0.0, 0.5])
def test_a_rolling_shutter_sees_the_lower_rows_later(network: Path, readout_s: float) -> None:
    """At 2 m/s, with a readout of half a second, the last row sees everything nearer."""
    parameters = settings(network, "world_frame:=odom", f"camera_readout_time_s:={readout_s}")
    with Rig(*parameters, node_class=driving(Drive(speed=2.0))).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        truth = rig.show(1.0)
        until(lambda: bool(heard), PATIENCE_S, "depth")
        nearer = truth - messages.image_view(heard[0])
        fifth = len(truth) // 5
        later = np.median(nearer[-fifth:]) - np.median(nearer[:fifth])
        assert later > 0.3 if readout_s else abs(later) < 0.1


@pytest.mark.parametrize("world_frame", ["odom", ""])
def test_scans_accumulate_where_motion_is_known(network: Path, world_frame: str) -> None:
    more = [f"world_frame:={world_frame}"] if world_frame else []
    parameters = settings(network, "max_scan_age_s:=0.3", *more)
    with Rig(*parameters, node_class=driving(Drive(speed=2.0))).start() as rig:
        heard = rig.listen(PointCloud2, "fit")
        points = lidar_points(camera_image(1.0)[1])
        for scan_s, share in ((0.8, points[::2]), (0.9, points[1::2])):
            # Where they were seen then: the camera has since come nearer.
            rig.publish("points", cloud(scan_s, share + np.float32([0, 0, 2 * (1.0 - scan_s)])))
        rig.publish("points", cloud(0.5, points))  # too old
        until(lambda: rig.node._monitor.total("scan") == 3, PATIENCE_S, "three scans")
        rig.show(1.0, points[:0])
        until(lambda: bool(heard), PATIENCE_S, "the fit")
        used = messages.table_rows(heard[0])["points"].sum()
        assert used == (len(points) if world_frame else len(points) // 2)


def test_unknown_motion_is_said_and_does_no_harm(network: Path) -> None:
    drive = Drive(newest_s=0.1)
    parameters = settings(network, "world_frame:=odom")
    with Rig(*parameters, node_class=driving(drive)).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        truth = rig.show(5.0)
        until(lambda: bool(heard), PATIENCE_S, "depth")
        np.testing.assert_allclose(messages.image_view(heard[0]), truth, rtol=CLOSE)
        assert "empty world_frame" in rig.said("the camera's motion is unknown")


@pytest.mark.parametrize("on", [True, False])
def test_earlier_pictures_are_remembered_until_a_reset(network: Path, on: bool) -> None:
    parameters = settings(network, f"fit.field.temporal.enabled:={str(on).lower()}")
    with Rig(*parameters).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        arrays = rig.listen(DiagnosticArray, "/diagnostics")

        def remembered(stamp_s: float) -> float:
            count = len(heard)
            rig.show(stamp_s)
            until(lambda: len(heard) > count, PATIENCE_S, "depth")
            arrays.clear()
            until(lambda: bool(arrays), PATIENCE_S, "diagnostics")
            values = {item.key: item.value for item in arrays[0].status[0].values}
            return float(values.get("fit remembered [%]", "0"))

        assert remembered(1.0) == 0
        if not on:
            assert remembered(1.1) == 0
            return
        assert remembered(1.1) > 20
        assert remembered(0.5) == 0, "time went back"
        assert remembered(0.6) > 20
        rig.reset()
        assert remembered(0.7) == 0
