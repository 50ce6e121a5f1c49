# SPDX-License-Identifier: Apache-2.0
"""Extrinsics that are given, from TF, missing, late or lost."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from depth_node.geometry.rigid import rigid_transform
from depth_node.ros.transforms.extrinsics import Extrinsics
from depth_node.ros.transforms.tf import NoTransformError, TfSource, Transform
from tests.helpers.stand_ins import tf2_ros as tf2_stand_in

T_AT_1 = rigid_transform((1.0, 0.0, 0.0), (0, 0, 0, 1))
T_AT_2 = rigid_transform((2.0, 0.0, 0.0), (0, 0, 0, 1))


class Buffer:
    """A TF buffer of one pair of frames: stamp in seconds -> transform; a static one has 0."""

    def __init__(self, transforms: dict[float, Transform]) -> None:
        self.transforms = transforms
        self.asked = 0

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        self.asked += 1
        if not self.transforms or (target, source) != ("camera", "lidar"):
            raise NoTransformError(f"frame {source} does not exist")
        newest = max(self.transforms)
        stamp_s = newest if stamp_ns is None or newest == 0 else stamp_ns * 1e-9
        if not min(self.transforms) <= stamp_s <= newest:
            raise NoTransformError("lookup would require extrapolation")
        before = max(known for known in self.transforms if known <= stamp_s)
        return self.transforms[before], round(before * 1e9)

    def forget_moving(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_given_matrix_holds_for_every_frame_and_time() -> None:
    extrinsics = Extrinsics(fixed=T_AT_1)
    assert extrinsics.find("", "", 0) is T_AT_1
    with pytest.raises(ValueError, match="fixed transform or a source"):
        Extrinsics()


def test_a_static_transform_is_asked_for_once_and_kept_when_its_publisher_is_gone() -> None:
    buffer = Buffer({0.0: T_AT_1})
    extrinsics = Extrinsics(source=buffer)
    for stamp_ns in (1, 10**9, 10**18):
        np.testing.assert_array_equal(extrinsics.find("camera", "lidar", stamp_ns), T_AT_1)
    assert buffer.asked == 1
    buffer.transforms = {}
    np.testing.assert_array_equal(extrinsics.find("camera", "lidar", 5), T_AT_1)
    extrinsics.forget()
    with pytest.raises(NoTransformError):
        extrinsics.find("camera", "lidar", 5)


def test_another_static_transform_is_noticed_within_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A calibration restarts the static publisher while the node runs."""
    now = [100.0]
    monkeypatch.setattr("depth_node.ros.transforms.lookup.time.monotonic", lambda: now[0])
    buffer = Buffer({0.0: T_AT_1})
    extrinsics = Extrinsics(source=buffer)
    extrinsics.find("camera", "lidar", 1)
    buffer.transforms = {0.0: T_AT_2}
    np.testing.assert_array_equal(extrinsics.find("camera", "lidar", 2), T_AT_1)
    now[0] += 1.1
    np.testing.assert_array_equal(extrinsics.find("camera", "lidar", 3), T_AT_2)
    buffer.transforms = {}
    now[0] += 1.1
    np.testing.assert_array_equal(extrinsics.find("camera", "lidar", 4), T_AT_2)


def test_a_missing_transform_is_found_once_it_comes() -> None:
    buffer = Buffer({})
    extrinsics = Extrinsics(source=buffer)
    with pytest.raises(NoTransformError, match=r"from lidar to camera.*does not exist.*T_camera"):
        extrinsics.find("camera", "lidar", 1)
    buffer.transforms = {0.0: T_AT_2}
    np.testing.assert_array_equal(extrinsics.find("camera", "lidar", 1), T_AT_2)


def test_a_moving_transform_is_taken_at_the_stamp() -> None:
    extrinsics = Extrinsics(source=Buffer({1.0: T_AT_1, 2.0: T_AT_2}))
    np.testing.assert_array_equal(extrinsics.find("camera", "lidar", 1_500_000_000), T_AT_1)
    np.testing.assert_array_equal(extrinsics.find("camera", "lidar", 2_000_000_000), T_AT_2)


def test_a_late_transform_serves_within_the_tolerance_and_a_lost_one_does_not() -> None:
    extrinsics = Extrinsics(source=Buffer({1.0: T_AT_1, 2.0: T_AT_2}), tolerance_s=0.1)
    np.testing.assert_array_equal(extrinsics.find("camera", "lidar", 2_090_000_000), T_AT_2)
    with pytest.raises(NoTransformError, match=r"0\.50 s older than the image.*tf_tolerance_s"):
        extrinsics.find("camera", "lidar", 2_500_000_000)


@pytest.mark.parametrize("frames", [("", "lidar"), ("camera", "")])
def test_messages_without_frame_id_are_named(frames: tuple[str, str]) -> None:
    with pytest.raises(NoTransformError, match="frame_id"):
        Extrinsics(source=Buffer({0.0: T_AT_1})).find(*frames, 1)


class TransformException(Exception):  # noqa: N818 - the name in tf2_ros
    pass


def fake_tf2(transform: object) -> ModuleType:
    """Return the part of tf2_ros that TfSource uses, as its documentation describes it."""

    class TfBuffer:
        def lookup_transform(self, target: str, source: str, when: object) -> object:
            if transform is None:
                raise TransformException('"lidar" passed to lookupTransform\ndoes not exist')
            return transform

    class TransformListener:
        def __init__(self, buffer: TfBuffer, node: object, *, spin_thread: bool) -> None:
            self.listening = True

        def unregister(self) -> None:
            self.listening = False

    module = ModuleType("tf2_ros")
    module.__dict__.update(
        Buffer=TfBuffer, TransformListener=TransformListener, TransformException=TransformException
    )
    return module


def test_the_adapter_of_tf2_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    half = np.sqrt(0.5)
    found = SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=3, nanosec=4)),
        transform=SimpleNamespace(
            translation=SimpleNamespace(x=1.0, y=2.0, z=3.0),
            rotation=SimpleNamespace(x=0.0, y=0.0, z=half, w=half),
        ),
    )
    monkeypatch.setitem(sys.modules, "tf2_ros", fake_tf2(found))
    source = TfSource(node=None)  # type: ignore[arg-type]
    T, stamp_ns = source.lookup("camera", "lidar", None)
    assert stamp_ns == 3_000_000_004
    np.testing.assert_allclose(T @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)
    source.close()
    assert not source._listener.listening
    monkeypatch.setitem(sys.modules, "tf2_ros", fake_tf2(None))
    with pytest.raises(NoTransformError, match="lookupTransform does not exist"):
        TfSource(node=None).lookup("camera", "lidar", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("real", [True, False])
def test_tf2_ros_and_its_stand_in(monkeypatch: pytest.MonkeyPatch, real: bool) -> None:
    if not real:
        monkeypatch.setitem(sys.modules, "tf2_ros", tf2_stand_in)
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros comes with apt's ROS 2, not PyPI")
    geometry = pytest.importorskip("geometry_msgs.msg")
    rclpy = pytest.importorskip("rclpy")
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("tf_test", context=context)
    source = TfSource(node)
    try:
        with pytest.raises(NoTransformError):
            source.lookup("camera", "lidar", None)
        link = geometry.TransformStamped()
        link.header.frame_id, link.child_frame_id = "camera", "lidar"
        link.transform.translation.x = 1.0
        link.transform.rotation.w = 1.0
        source._buffer.set_transform_static(link, "test")
        T, stamp_ns = source.lookup("camera", "lidar", None)
        np.testing.assert_allclose(T, T_AT_1)
        assert stamp_ns == 0, "a static chain is known by its stamp"
        assert tf2_ros.TransformException
        link.header.frame_id, link.child_frame_id = "lidar", "mirror"
        link.header.stamp.sec = 100
        source._buffer.set_transform(link, "test")
        source.forget_moving()
        assert source.lookup("lidar", "mirror", None)[1] == 100 * 10**9, "/tf has not jumped"
        link.header.stamp.sec = 10
        source._buffer.set_transform(link, "test")
        assert source.lookup("lidar", "mirror", None)[1] == 10 * 10**9, "the time before is gone"
        assert source.lookup("camera", "lidar", None)[1] == 0, "static transforms stay"
    finally:
        source.close()
        node.destroy_node()
        rclpy.shutdown(context=context)
