# SPDX-License-Identifier: Apache-2.0
"""Messages that a faulty, foreign or malicious publisher might send: name -> (topic, message)."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, PointField
from std_msgs.msg import Header

CAMERA, LIDAR, LASER = "camera_optical_frame", "lidar", "laser"
Rng = np.random.Generator
LARGEST = 2**32 - 1


def set_stamp(header: Header, stamp_ns: int) -> Header:
    header.stamp.sec, header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    return header


def _image(stamp_ns: int, **changes: Any) -> Image:
    """Return a valid 64x48 rgb8 image, of another size than the camera's, with changes applied."""
    message = Image(header=set_stamp(Header(frame_id=CAMERA), stamp_ns))
    message.height, message.width, message.step, message.encoding = 48, 64, 192, "rgb8"
    message.data = array.array("B", bytes(48 * 192))
    return _changed(message, changes)


def _info(stamp_ns: int, **changes: Any) -> CameraInfo:
    message = CameraInfo(header=set_stamp(Header(frame_id=CAMERA), stamp_ns))
    message.height, message.width, message.distortion_model = 480, 640, "plumb_bob"
    message.d = [0.0] * 5
    message.k = [512.0, 0.0, 319.5, 0.0, 512.0, 239.5, 0.0, 0.0, 1.0]
    message.p = [512.0, 0.0, 319.5, 0.0, 0.0, 512.0, 239.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    return _changed(message, changes)


def _cloud(stamp_ns: int, points: Any = None, frame: str = LIDAR, **changes: Any) -> PointCloud2:
    rows = np.ones((50, 3), np.float32) if points is None else np.asarray(points, np.float32)
    message = PointCloud2(header=set_stamp(Header(frame_id=frame), stamp_ns), height=1)
    message.fields = [
        PointField(name=name, offset=4 * axis, datatype=PointField.FLOAT32, count=1)
        for axis, name in enumerate("xyz")
    ]
    message.width, message.point_step, message.row_step = len(rows), 12, 12 * len(rows)
    message.data = array.array("B", rows.tobytes())
    return _changed(message, changes)


def _scan(stamp_ns: int, **changes: Any) -> LaserScan:
    message = LaserScan(header=set_stamp(Header(frame_id=LASER), stamp_ns))
    message.angle_min, message.angle_max, message.angle_increment = -1.0, 1.0, 0.02
    message.range_min, message.range_max = 0.1, 30.0
    message.ranges = array.array("f", [2.0] * 101)
    return _changed(message, changes)


def _changed(message: Any, changes: dict[str, Any]) -> Any:
    for name, value in changes.items():
        if name == "frame":
            message.header.frame_id = value
        elif name == "stamp":
            message.header.stamp.sec, message.header.stamp.nanosec = value
        else:
            setattr(message, name, value)
    return message


def _transform(stamp_ns: int, parent: str, child: str, turn: tuple[float, ...]) -> Any:
    message = TransformStamped(child_frame_id=child)
    set_stamp(message.header, stamp_ns).frame_id = parent
    rotation = message.transform.rotation
    rotation.x, rotation.y, rotation.z, rotation.w = turn
    return message


def _foreign(rng: Rng) -> str:
    """Return a new unknown TF frame at each call."""
    return f"foreign_{rng.integers(1 << 30)}"


def _field(name: str, offset: int, datatype: int) -> PointField:
    return PointField(name=name, offset=offset, datatype=datatype, count=1)


NAN, INF = float("nan"), float("inf")
_INFOS: dict[str, dict[str, Any]] = {
    "K of zeros": {"k": [0.0] * 9, "p": [0.0] * 12},
    "K of NaN": {"k": [NAN] * 9, "p": [NAN] * 12},
    "K of Inf": {"k": [INF] * 9},
    "negative focal length": {"k": [-512.0, 0.0, 319.5, 0.0, -512.0, 239.5, 0.0, 0.0, 1.0]},
    "tiny focal length": {"k": [1e-30, 0.0, 319.5, 0.0, 1e-30, 239.5, 0.0, 0.0, 1.0]},
    "3 coefficients": {"d": [0.1] * 3},
    "100 coefficients": {"d": [0.1] * 100},
    "distortion of NaN": {"d": [NAN] * 5},
    "huge distortion": {"d": [1e30] * 5},
    "unknown model": {"distortion_model": "pizza"},
    "no model": {"distortion_model": "", "d": []},
    "no size": {"height": 0, "width": 0},
    "other size": {"height": 48, "width": 64},
    "largest size": {"height": LARGEST, "width": LARGEST},
    "binning": {"binning_x": LARGEST, "binning_y": LARGEST},
}
_IMAGES: dict[str, dict[str, Any]] = {
    "no data": {"data": array.array("B")},
    "too little data": {"data": array.array("B", bytes(100))},
    "too much data": {"data": array.array("B", bytes(100_000))},
    "step 0": {"step": 0},
    "largest step": {"step": LARGEST},
    "no size": {"height": 0, "width": 0, "step": 0, "data": array.array("B")},
    "largest size": {"height": LARGEST, "width": LARGEST, "step": LARGEST},
    "one pixel": {"height": 1, "width": 1, "step": 3, "data": array.array("B", bytes(3))},
    "other size": {},
    "no frame": {"frame": ""},
    "negative time": {"stamp": (-1, 0)},
    "largest time": {"stamp": (2**31 - 1, LARGEST)},
    **{
        f"encoding {name or 'empty'}": {"encoding": name}
        for name in ("", "bgr8", "mono8", "mono16", "rgba8", "bayer_rggb8", "yuv422_yuy2", "nv12",
                     "32FC1", "16UC1", "64FC4", "pizza", "8UC" + "9" * 200)
    },
}  # fmt: skip
_CLOUDS: dict[str, dict[str, Any]] = {
    "empty": {"points": np.empty((0, 3))},
    "NaN": {"points": np.full((50, 3), NAN)},
    "Inf": {"points": np.full((50, 3), INF)},
    "huge": {"points": np.full((50, 3), 3e38)},
    "zeros": {"points": np.zeros((50, 3))},
    "no fields": {"fields": []},
    "no z": {"fields": [_field("x", 0, 7), _field("y", 4, 7)]},
    "unknown datatype": {"fields": [_field(name, 0, 99) for name in "xyz"]},
    "offset beyond": {"fields": [_field(name, LARGEST - 2, 7) for name in "xyz"]},
    "float64 over all": {"fields": [_field(name, 2, 8) for name in "xyz"]},
    "big-endian": {"is_bigendian": True},
    "point_step 0": {"point_step": 0},
    "row_step 0": {"row_step": 0},
    "too little data": {"data": array.array("B", bytes(7))},
    "largest width": {"width": LARGEST},
    "largest of all": {"width": LARGEST, "height": LARGEST, "row_step": LARGEST},
    "no frame": {"frame": ""},
    "negative time": {"stamp": (-5, 0)},
    "largest time": {"stamp": (2**31 - 1, LARGEST)},
}
_SCANS: dict[str, dict[str, Any]] = {
    "empty": {"ranges": array.array("f")},
    "NaN": {"ranges": array.array("f", [NAN] * 101)},
    "Inf": {"ranges": array.array("f", [INF] * 101)},
    "negative": {"ranges": array.array("f", [-1.0] * 101)},
    "huge": {"ranges": array.array("f", [3e38] * 101), "range_max": INF},
    "angles of NaN": {"angle_min": NAN, "angle_increment": NAN},
    "huge angles": {"angle_min": 1e30, "angle_increment": 1e30},
    "no range": {"range_min": 30.0, "range_max": 0.1},
    "range of NaN": {"range_min": NAN, "range_max": NAN},
}
_TURNS: dict[str, tuple[float, float, float, float]] = {
    "turn of zeros": (0.0, 0.0, 0.0, 0.0),
    "turn of NaN": (NAN, NAN, NAN, NAN),
    "huge turn": (1e200, 0.0, 0.0, 1e200),
}

Maker = Callable[[int, Rng], tuple[str, Any]]
HOSTILE: dict[str, Maker] = {
    **{f"image: {n}": lambda t, rng, c=c: ("image", _image(t, **c)) for n, c in _IMAGES.items()},
    **{
        f"camera_info: {n}": lambda t, rng, c=c: ("camera_info", _info(t, **c))
        for n, c in _INFOS.items()
    },
    **{f"points: {n}": lambda t, rng, c=c: ("points", _cloud(t, **c)) for n, c in _CLOUDS.items()},
    **{f"scan: {n}": lambda t, rng, c=c: ("scan", _scan(t, **c)) for n, c in _SCANS.items()},
    "image: foreign frame": lambda t, rng: ("image", _image(t, frame=_foreign(rng))),
    "points: foreign frame": lambda t, rng: ("points", _cloud(t, frame=_foreign(rng))),
    "scan: foreign frame": lambda t, rng: ("scan", _scan(t, frame=_foreign(rng))),
    "points: noise": lambda t, rng: ("points", _cloud(t, rng.normal(size=(500, 3)) * 10)),
    **{
        f"tf: {n}": lambda t, rng, turn=turn: ("/tf", _transform(t, "odom", "base", turn))
        for n, turn in _TURNS.items()
    },
    "tf: foreign": lambda t, rng: ("/tf", _transform(t, _foreign(rng), "x", (0.0, 0.0, 0.0, 1.0))),
    "tf: without names": lambda t, rng: ("/tf", _transform(t, "", "", (0.0, 0.0, 0.0, 1.0))),
}
# The camera's image once in another size, with its calibration: valid, but another scene.
SMALL_PAIR = "image: small with its camera_info"
HOSTILE[SMALL_PAIR] = lambda t, rng: ("image", _image(t))


def small_info(stamp_ns: int) -> CameraInfo:
    """Return the calibration that belongs to SMALL_PAIR."""
    k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    p = [50.0, 0.0, 31.5, 0.0, 0.0, 50.0, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    return _info(stamp_ns, height=48, width=64, k=k, p=p)
