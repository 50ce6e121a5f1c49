# SPDX-License-Identifier: Apache-2.0
"""A sparse depth image in place of a LiDAR's points, or beside them."""

from __future__ import annotations

import array
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from sensor_msgs.msg import Image

from depth_node.geometry.camera import Camera
from depth_node.ros import messages
from depth_node.ros.inputs.lidar import LidarInput, UnreadScan
from depth_node.ros.messages import MessageError, depth_image_scan
from depth_node.ros.transforms.extrinsics import Extrinsics
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
    until,
)

CAMERA = messages.camera_of(info(1.0))


def depth_image(
    depth: npt.NDArray[np.floating], stamp_s: float = 1.0, encoding: str = "32FC1", **more: Any
) -> Image:
    """Return the message of a depth image (H, W) in metres."""
    pixels = depth.astype("f4")
    if encoding == "16UC1":
        pixels = np.nan_to_num(np.rint(1000 * depth), posinf=0).astype("u2")
    message = messages.image_message(pixels, encoding, header(stamp_s))
    for name, value in more.items():
        setattr(message, name, value)
    return message


def sparse(depth: npt.NDArray[np.floating], unknown: float = 0.0) -> npt.NDArray[np.float64]:
    """Keep every third pixel of every third row."""
    holes = np.full(depth.shape, unknown)
    holes[::3, ::3] = depth[::3, ::3]
    return holes


# --- the message ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
@pytest.mark.parametrize("big", [False, True])
def test_metres_and_millimetres_in_both_byte_orders(encoding: str, big: bool) -> None:
    truth = camera_image(1.0)[1]
    message = depth_image(sparse(truth), encoding=encoding)
    if big:
        kind = messages.IMAGE_LAYOUTS[encoding][0]
        swapped = messages.image_view(message).astype(f">{kind}")
        message.data, message.is_bigendian = array.array("B", swapped.tobytes()), 1
    points = depth_image_scan(message, CAMERA).points
    assert points.dtype == np.float32
    np.testing.assert_allclose(points, lidar_points(truth), atol=6e-4 * truth.max())


def test_what_is_unknown_makes_no_point() -> None:
    depth = np.full((48, 64), np.nan)
    depth[0, :6] = [0.0, -1.0, np.inf, -np.inf, np.nan, 2.0]
    points = depth_image_scan(depth_image(depth), CAMERA).points
    np.testing.assert_allclose(points, [CAMERA.rays()[0, 5] * 2.0])


def test_a_smaller_image_looks_through_the_middles_of_its_pixels() -> None:
    """A pixel of an image of a quarter of the size covers 4x4 of the camera's."""
    depth = np.zeros((12, 16))
    depth[2, 5] = 3.0
    points = depth_image_scan(depth_image(depth), CAMERA).points
    np.testing.assert_allclose(CAMERA.project(points), [[4 * 5 + 1.5, 4 * 2 + 1.5]], atol=1e-4)


def test_a_lens_that_distorts_is_kept() -> None:
    bent = Camera(64, 48, 60.0, 60.0, 31.5, 23.5, "plumb_bob", (-0.2, 0.05, 0.0, 0.0, 0.0))
    depth = np.zeros((48, 64))
    depth[4, 60] = 2.0
    points = depth_image_scan(depth_image(depth), bent).points
    np.testing.assert_allclose(bent.project(points), [[60.0, 4.0]], atol=1e-2)


def test_a_dense_image_is_thinned() -> None:
    camera = Camera(640, 480, 500.0, 500.0, 319.5, 239.5)
    points = depth_image_scan(depth_image(np.full((480, 640), 2.0)), camera).points
    assert 10_000 < len(points) <= 20_000
    assert np.ptp(points[:, 0]) > 2.5 and np.ptp(points[:, 1]) > 1.9, "the whole of the view"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (depth_image(np.ones((40, 64))), "register node"),
        (depth_image(np.ones((96, 128))), "register node"),
        (depth_image(np.ones((24, 64))), "register node"),
        (depth_image(np.ones((48, 64)), encoding="16UC1", height=0, data=[]), "no pixels"),
        (depth_image(np.ones((48, 64)), encoding="16UC1", step=3), "step is 3"),
        (depth_image(np.ones((48, 64)), data=[1, 2, 3]), "data has 3 bytes"),
        (camera_image(1.0)[0], "publish 16UC1"),
        (Image(encoding="x" * 5000), "publish 16UC1"),
    ],
)
def test_a_depth_image_that_cannot_be_used_is_refused(message: Image, words: str) -> None:
    with pytest.raises(MessageError, match=words) as error:
        depth_image_scan(message, CAMERA)
    assert len(str(error.value)) < 400


# --- beside other sources ------------------------------------------------------------------------


def test_only_the_nearest_image_counts_with_its_own_noise_and_no_extrinsics() -> None:
    T_camera_lidar = np.eye(4)
    T_camera_lidar[0, 3] = 7.0
    both = LidarInput(Extrinsics(T_camera_lidar), 0.3)
    both.relative_noise, both.registered = {"depth": 0.1}, frozenset({"depth"})
    for stamp_s, metres in ((1.0, 4.0), (1.1, 2.0)):
        message = depth_image(np.full((48, 64), metres), stamp_s)
        unread = UnreadScan(message, lambda message: depth_image_scan(message, CAMERA))
        both.offer(round(stamp_s * 1e9), unread, "depth", stamp_s)
    both.offer(1_090_000_000, UnreadScan(cloud(1.09, np.ones((5, 3), np.float32))), "points", 1.1)
    found = both.collect("camera_optical_frame", 1_090_000_000)
    assert len(found.points) == 5 + 48 * 64
    measured = found.noise_m > 0
    np.testing.assert_allclose(found.points[measured][:, 2], 2.0)
    assert found.noise_m[measured].min() == pytest.approx(0.2, rel=1e-3)
    np.testing.assert_allclose(found.points[~measured], np.tile([8.0, 1.0, 1.0], (5, 1)))
    assert not found.trouble


# --- over the middleware -------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_a_depth_image_is_enough(network: Path, encoding: str) -> None:
    """No LiDAR, no extrinsics, no TF; the depth between its pixels is the image's."""
    with Rig(f"model.path:={network}", "lidar_sources:=[depth]").start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        image, truth = camera_image(1.0)
        rig.publish("depth", depth_image(sparse(truth), encoding=encoding))
        rig.publish("camera_info", info(1.0))  # it may come after the depth
        until(
            lambda: rig.node._camera.info and rig.node._monitor.total("scan"), PATIENCE_S, "inputs"
        )
        rig.publish("image", image)
        until(lambda: heard, PATIENCE_S, "depth")
        np.testing.assert_allclose(messages.image_view(heard[0]), truth, rtol=CLOSE)


def test_what_is_wrong_with_a_depth_image_is_said_and_the_next_one_works(network: Path) -> None:
    more = ["lidar_sources:=[points, depth]", f"T_camera_lidar:={IDENTITY}"]
    with Rig(f"model.path:={network}", *more).start() as rig:
        heard = rig.listen(Image, "depth/image_rect")
        _, truth = camera_image(1.0)
        other_frame = depth_image(truth)
        other_frame.header.frame_id = "tof_frame"
        bad = {
            "must be registered to the camera, at its size": depth_image(truth[:40]),
            "depth image encoding 'rgb8'": camera_image(1.0)[0],
            "data has 3 bytes": depth_image(truth, data=[1, 2, 3]),
            "the depth image is in frame 'tof_frame'": other_frame,
        }
        for number, (words, message) in enumerate(bad.items()):
            stamp_s = 1.0 + 10 * number
            message.header.stamp = header(stamp_s).stamp
            rig.publish("depth", message)
            until(
                lambda count=2 * number + 1: rig.node._monitor.total("scan") >= count,
                PATIENCE_S, "the depth image",
            )  # fmt: skip
            rig.show(stamp_s)
            rig.said(words)
            until(lambda count=number + 1: len(heard) >= count, PATIENCE_S, "depth of the LiDAR")
            np.testing.assert_allclose(messages.image_view(heard[-1]), truth, rtol=CLOSE)
        rig.publish("depth", depth_image(sparse(truth, np.nan), 90.0))
        until(lambda: rig.node._monitor.total("scan") == 9, PATIENCE_S, "the depth image")
        rig.publish("image", camera_image(90.0)[0])
        until(lambda: len(heard) == 5, PATIENCE_S, "depth of the depth image")
        np.testing.assert_allclose(messages.image_view(heard[-1]), truth, rtol=CLOSE)
