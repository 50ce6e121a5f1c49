# SPDX-License-Identifier: Apache-2.0
"""Compressed depth is decoded correctly by the rule of image_transport_plugins."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from sensor_msgs.msg import CompressedImage, Image

from depth_node.ros import messages
from tests.helpers.rig import IDENTITY, PATIENCE_S, Rig, header, until


def decoded(message: CompressedImage) -> npt.NDArray[np.generic]:
    """Decode by the plugin's rule: 12 bytes of settings, a PNG; float depth is a / (code - b)."""
    encoding, _, transport = message.format.partition("; ")
    assert transport == "compressedDepth png"
    data = bytes(message.data)
    form, a, b = struct.unpack("<iff", data[:12])
    codes = cv2.imdecode(np.frombuffer(data[12:], np.uint8), cv2.IMREAD_UNCHANGED)
    assert form == 0 and codes.dtype == np.uint16
    if encoding == "16UC1":
        return codes
    assert encoding == "32FC1"
    known = codes != 0
    depth = np.full(codes.shape, np.nan, np.float32)
    depth[known] = np.float32(a) / (codes[known].astype(np.float32) - np.float32(b))
    return depth


@pytest.mark.parametrize(("near", "far"), [(0.1, 100.0), (2.0, 2.5), (5.0, 5.0), (0.01, 0.02)])
def test_metres_come_back_within_half_a_code(near: float, far: float) -> None:
    depth = np.linspace(near, far, 48 * 64, dtype=np.float32).reshape(48, 64)
    got = decoded(messages.compressed_depth_message(depth, header(1.0)))
    step = (1 / near - 1 / far) / 65534  # of inverse depth
    assert np.abs(1 / got - 1 / depth).max() <= 0.5 * step + 1e-6 / near
    np.testing.assert_allclose(got[[0, -1], [0, -1]], [near, far], rtol=1e-4)


def test_what_is_unknown_stays_unknown() -> None:
    depth = np.array([[np.nan, np.inf, -np.inf, 0.0, -1.0, 3.0, 7.0]], np.float32)
    got = decoded(messages.compressed_depth_message(depth, header(1.0)))
    np.testing.assert_array_equal(np.isnan(got), [[True] * 5 + [False] * 2])
    nothing = messages.compressed_depth_message(np.full((4, 5), np.nan, np.float32), header(1.0))
    assert np.isnan(decoded(nothing)).all()


def test_millimetres_stay_as_they_are() -> None:
    depth = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    message = messages.compressed_depth_message(depth, header(1.0))
    np.testing.assert_array_equal(decoded(message), depth)


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_it_goes_beside_the_depth_wherever_that_goes(network: Path, encoding: str) -> None:
    settings = [f"model.path:={network}", f"T_camera_lidar:={IDENTITY}"]
    moved = ["-r", "~/depth/image_rect:=/camera/depth"]
    with Rig(*settings, f"depth_encoding:={encoding}", arguments=moved).start() as rig:
        small: list[CompressedImage] = []
        rig.peer.create_subscription(
            CompressedImage, "/camera/depth/compressedDepth", small.append, 10
        )
        whole = rig.listen(Image, "/camera/depth")
        until(lambda: len(rig.node._outputs.topics_with_subscribers()) == 2, PATIENCE_S, "peers")
        rig.show(1.0)
        until(lambda: small and whole, PATIENCE_S, "both")
        assert small[0].header == whole[0].header and small[0].format.startswith(encoding)
        np.testing.assert_allclose(decoded(small[0]), messages.image_view(whole[0]), rtol=1e-4)
