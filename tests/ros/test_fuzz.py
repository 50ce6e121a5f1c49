# SPDX-License-Identifier: Apache-2.0
"""The live node survives any messages, requests, parameters and transitions."""

from __future__ import annotations

import array
import importlib
import random
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from builtin_interfaces.msg import Time
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import ListParameters, SetParameters, SetParametersAtomically
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    PointField,
    Range,
)
from std_srvs.srv import Trigger

from depth_node.config import describe
from depth_node.ros import messages
from depth_node.ros.messages import IMAGE_LAYOUTS
from depth_node.ros.node import OUTPUTS
from depth_node.ros.settings import NodeConfig
from tests.helpers.rig import (
    CLOSE,
    IDENTITY,
    PATIENCE_S,
    Rig,
    camera_image,
    cloud,
    info,
    lidar_points,
    until,
)

SEED = 20
INPUTS: dict[str, type] = {  # beside the image; the node is asked whether these are all
    "camera_info": CameraInfo,
    "points": PointCloud2,
    "scan": LaserScan,
    "landmarks": PointCloud2,
    "depth": Image,
    "range": Range,
}
SOURCES = next(o.choices for o in describe(NodeConfig) if o.name == "lidar_sources")
STEPS = {  # from unconfigured to each state
    "unconfigured": (),
    "inactive": ("configure",),
    "active": ("configure", "activate"),
}
IDS = [*range(16), 20, 30, 50, 60, 62, 97, 98, 99, 100, 200, 254, 255]
NUMBERS = {
    "int8": (-(2**7), 2**7 - 1), "uint8": (0, 2**8 - 1), "octet": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1), "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1), "uint64": (0, 2**64 - 1),
}  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "/",
    "a/b",
    "~",
    "\x00",
    "ü🤖",
    "%s%n%d",
    "../..",
    "x" * 5000,
    "points",
    "NaN",
    "'\"\n",
)


@pytest.fixture
def rig(network: Path) -> Iterator[Rig]:
    with Rig(f"model.path:={network}", f"T_camera_lidar:={IDENTITY}") as rig:
        yield rig


def alive(rig: Rig) -> str:
    assert all(spinner._thread.is_alive() for spinner in rig._spinners), "an executor ended"
    return rig.state()


def random_value(rng: random.Random, kind: str) -> Any:
    """Return any value that a field of this type can hold, often an extreme one."""
    listed = re.fullmatch(r"sequence<(.+?)(?:, (\d+))?>", kind)
    if listed:
        length = rng.choice((0, 1, 2, 3, 9, 40))
        return random_list(rng, listed[1], min(length, int(listed[2] or length)))
    fixed = re.fullmatch(r"(.+)\[(\d+)\]", kind)
    if fixed:
        return random_list(rng, fixed[1], int(fixed[2]))
    if kind == "boolean":
        return rng.random() < 0.5
    if kind in NUMBERS:
        low, high = NUMBERS[kind]
        value = rng.choice((low, high, 0, 1, 2, 64, 48, rng.randint(low, high)))
        value = min(max(value, low), high)
        return bytes([value]) if kind == "octet" else value
    if kind in ("float", "double"):
        return rng.choice((*FLOATS, rng.uniform(-100, 100)))
    if kind.startswith("string"):
        return rng.choice((*TEXTS, "".join(rng.choices(string.printable, k=12))))
    package, _, name = kind.partition("/")
    return random_message(rng, getattr(importlib.import_module(f"{package}.msg"), name)())


def random_list(rng: random.Random, kind: str, length: int) -> Any:
    values = [random_value(rng, kind) for _ in range(length)]
    return [v[0:1] for v in values] if kind == "octet" else values


def random_message(rng: random.Random, message: Any) -> Any:
    for name, kind in message.get_fields_and_field_types().items():
        value = random_value(rng, kind)
        if kind in ("float", "sequence<float>") or kind.startswith("float["):
            value = np.clip(np.float64(value), -3e38, 3e38).tolist()
        setattr(message, name, value)
    return message


def spoilt(rng: random.Random, message: Any) -> Any:
    """Replace some fields of a good message with random values."""
    fields = message.get_fields_and_field_types()
    for name in rng.sample(sorted(fields), rng.randint(0, 3)):
        fresh = random_message(rng, type(message)())
        setattr(message, name, getattr(fresh, name))
    return message


def hostile(rng: random.Random, topic: str, kind: type, stamp_s: float) -> Any:
    """Return a message that is nearly right, random, or made to break a reader."""
    if rng.random() < 0.2:
        return random_message(rng, kind())
    if kind is CameraInfo:
        return spoilt(rng, info(stamp_s))
    if kind is PointCloud2:
        message = cloud(stamp_s, lidar_points(camera_image(stamp_s)[1]))
        for item in message.fields:
            if rng.random() < 0.2:
                item.datatype, item.offset = rng.randint(0, 255), rng.choice((0, 4, 2**32 - 1))
                item.count = rng.choice((0, 1, 2**32 - 1))
        if rng.random() < 0.1:
            message.fields = [PointField(name="x" * 3000)] * 50
        return spoilt(rng, message)
    if kind is LaserScan:
        message = LaserScan(range_max=9.0, angle_increment=0.1, ranges=[1.0] * 30)
        message.header = cloud(stamp_s, np.zeros((1, 3), np.float32)).header
        return spoilt(rng, message)
    message, depth = camera_image(stamp_s)
    if kind is Range:
        return spoilt(rng, Range(header=message.header, max_range=9.0, range=2.0))
    if topic == "depth" and rng.random() < 0.7:
        message.encoding = rng.choice(("32FC1", "16UC1", "mono16"))
        pixels = depth.astype(np.float32) if message.encoding == "32FC1" else depth.astype("u2")
        message.step = pixels.itemsize * message.width
        message.data = array.array("B", pixels.tobytes())
        return spoilt(rng, message)
    if kind is Image:
        if rng.random() < 0.5:
            encodings = (*IMAGE_LAYOUTS, "nv12", "nv21", "nv24", "32FC3", "64FC4", "bogus")
            message.encoding = rng.choice(encodings)
        return spoilt(rng, message)
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"P6 9999999 9999999 255 ", b"")
    data = rng.choice(starts) + bytes(rng.randbytes(rng.choice((0, 3, 20, 500))))
    compressed = CompressedImage(header=message.header, format=rng.choice(("jpeg", *TEXTS)))
    compressed.data = array.array("B", data)
    return spoilt(rng, compressed)


# --- transitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STEPS)
def test_transitions_that_do_not_fit_are_refused(rig: Rig, state: str) -> None:
    for step in STEPS[state]:
        assert rig.change(step)
    fitting = {
        "unconfigured": {1, 5},
        "inactive": {2, 3, 6},
        "active": {4, 7},
    }[state]
    for number in IDS:
        if number in fitting:
            continue
        request = ChangeState.Request(transition=Transition(id=number))
        assert not rig.call(ChangeState, "/depth_node/change_state", request).success, number
        assert alive(rig) == state, number
    for label in ("", "bogus", "create", "transition_success", "x" * 3000, "\x00"):
        request = ChangeState.Request(transition=Transition(id=99, label=label))
        assert not rig.call(ChangeState, "/depth_node/change_state", request).success, label
        assert alive(rig) == state, label
    rig.said("does not fit the node's present state")


def test_after_a_shutdown_every_transition_is_refused(rig: Rig) -> None:
    request = ChangeState.Request(transition=Transition(id=5))
    assert rig.call(ChangeState, "/depth_node/change_state", request).success
    for number in IDS:
        request = ChangeState.Request(transition=Transition(id=number))
        assert not rig.call(ChangeState, "/depth_node/change_state", request).success
        assert alive(rig) == "finalized"


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_no_message_ends_the_node(network: Path, transport: str) -> None:
    rng = random.Random(SEED)
    picture = CompressedImage if transport == "compressed" else Image
    parameters = [f"model.path:={network}", f"T_camera_lidar:={IDENTITY}"]
    parameters += [f"image_transport:={transport}", f"lidar_sources:=[{','.join(SOURCES)}]"]
    with Rig(*parameters) as rig:
        rig.start()
        listens = rig.node.get_subscriber_names_and_types_by_node("depth_node", "/")
        topics = {name for name, _ in listens} - {"/parameter_events"}
        assert topics == {f"/{name}" for name in (*INPUTS, "image")}, "INPUTS lacks one"
        for name, kind in OUTPUTS.items():
            rig.listen(kind, name[2:])
        for index in range(600):
            topic, kind = rng.choice([*INPUTS.items(), ("image", picture), ("image", picture)])
            rig.publish(topic, hostile(rng, topic, kind, 1.0 + index * 0.02))
            if index % 5 == 0:
                rig.publish("camera_info", info(1.0 + index * 0.02))
        assert alive(rig) == "active"
        rig.silent()
        assert rig.node._worker._thread.is_alive()
        assert rig.node._monitor.total("failed") == 0, [x for x in rig.logs if "failed" in x]
        assert len(rig.node._warned) <= 64 and len(rig.node._image_work._raised) < 20
        if transport == "compressed":
            return
        rig.reset()
        rig.publish("camera_info", info(500.0))
        depths = rig.received["depth/image_rect"]
        until(lambda: rig.node._camera.info.header.stamp.sec == 500, PATIENCE_S, "camera_info")
        truth = rig.show(500.0)
        until(lambda: any(m.header.stamp.sec == 500 for m in depths), PATIENCE_S, "the good frame")
        good = next(m for m in depths if m.header.stamp.sec == 500)
        np.testing.assert_allclose(messages.image_view(good), truth, rtol=CLOSE)


def test_no_clock_ends_the_node(network: Path) -> None:
    """Simulated time that jumps, stands still or lies before 1970."""
    more = [f"T_camera_lidar:={IDENTITY}", "use_sim_time:=true"]
    with Rig(f"model.path:={network}", *more) as rig:
        rig.start()
        rig.listen(Image, "depth/image_rect")
        for second in (100, -5, -(2**31), 2**31 - 1, 0, 100):
            rig.publish("/clock", Clock(clock=Time(sec=second, nanosec=2**32 - 1)))
            rig.show(100.0 + 0.1 * (second > 0))
            assert alive(rig) == "active"
        rig.silent()
        assert rig.node._monitor.total("failed") == 0


# --- services and parameters ---------------------------------------------------------------------


def test_no_request_ends_the_node(rig: Rig) -> None:
    """Every service of the node, rclpy's own included, except transitions."""
    rng = random.Random(SEED)
    rig.start()
    until(
        lambda: len(rig.peer.get_service_names_and_types_by_node("depth_node", "/")) >= 13,
        PATIENCE_S,
        "the services",
    )
    for name, (kind, *_) in rig.peer.get_service_names_and_types_by_node("depth_node", "/"):
        if name.endswith(("change_state", "get_type_description")):
            continue  # the first has its own test, the second is answered within rcl
        package, _, service = kind.partition("/srv/")
        service_type = getattr(importlib.import_module(f"{package}.srv"), service)
        for _ in range(12):
            rig.call(service_type, name, random_message(rng, service_type.Request()))
        assert alive(rig) == "active", name


def random_parameter(rng: random.Random, names: list[str]) -> ParameterMessage:
    value = ParameterValue(type=rng.choice((*range(11), 77, 255)))
    value.bool_value = rng.random() < 0.5
    value.integer_value = random_value(rng, "int64")
    value.double_value = random_value(rng, "double")
    value.string_value = random_value(rng, "string")
    value.double_array_value = random_value(rng, "sequence<double>")
    value.integer_array_value = random_value(rng, "sequence<int64>")
    value.string_array_value = random_value(rng, "sequence<string>")
    return ParameterMessage(name=rng.choice((*names, *names, "", "bogus")), value=value)


def test_no_parameter_ends_the_node(rig: Rig) -> None:
    rng = random.Random(SEED)
    rig.start()
    listed = rig.call(ListParameters, "/depth_node/list_parameters", ListParameters.Request())
    names = sorted(listed.result.names)
    for _ in range(60):
        several = [random_parameter(rng, names) for _ in range(rng.randint(0, 8))]
        request = SetParameters.Request(parameters=several)
        answer = rig.call(SetParameters, "/depth_node/set_parameters", request)
        assert len(answer.results) == len(several)
        assert all(result.successful or result.reason for result in answer.results)
        request = SetParametersAtomically.Request(parameters=several)
        rig.call(SetParametersAtomically, "/depth_node/set_parameters_atomically", request)
    assert alive(rig) == "active"
    listed = rig.call(ListParameters, "/depth_node/list_parameters", ListParameters.Request())
    assert sorted(listed.result.names) == names, "none was taken away"


def test_an_exception_in_any_callback_is_logged_and_left_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message, a timer, a service, a transition: each raises what the test makes it raise."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("made by the test")

    rig.start()
    for name in ("image", "scan", "report"):
        monkeypatch.setattr(rig.node._monitor, name, broken)
    rig.publish("points", cloud(1.0, lidar_points(camera_image(1.0)[1])))
    rig.publish("image", camera_image(1.0)[0])
    rig.said("a message or timer failed and was left out: ZeroDivisionError: made by the test")
    monkeypatch.setattr(rig.node._monitor, "reset", broken)
    answer = rig.call(Trigger, "/depth_node/reset", Trigger.Request())
    assert not answer.success and "made by the test" in answer.message
    monkeypatch.setattr(rig.node, "_forget", broken)
    rig.change("deactivate")
    rig.said("on_deactivate failed: ZeroDivisionError")
    assert alive(rig) in ("unconfigured", "finalized")
