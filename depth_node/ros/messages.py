# SPDX-License-Identifier: Apache-2.0
"""ROS messages to arrays and back, and nothing else.

Arrays that come out are views of the message where its layout allows it, so they live as long as
the message and must not be written to. What a message says wrongly about itself is refused with a
MessageError that names the field.
"""

from __future__ import annotations

import array
import itertools
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    PointField,
    Range,
)
from std_msgs.msg import Header

from depth_node.geometry.camera import Camera
from depth_node.geometry.echoes import echo_cap
from depth_node.geometry.point_times import (
    LONGEST_SCAN_S,
    TIME_FIELDS,
    UnknownTimesError,
    joined,
    seconds_from_stamp,
    split_name,
)
from depth_node.geometry.sparse_depth import scan_to_points, valid_ranges
from depth_node.geometry.thinning import spread_pixels
from depth_node.image_files import (
    ImageError,
    TooLargeError,
    bits_in_use,
    decode,
    look_through,
    scaled_to_8_bits,
)
from depth_node.obstacles import SCAN_STEP_RAD, Obstacles, scan_ranges

IMAGE_LAYOUTS: dict[str, tuple[str, int]] = {  # encoding -> NumPy type, channels
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "rgba8": ("u1", 4),
    "bgra8": ("u1", 4),
    "mono8": ("u1", 1),
    "rgb16": ("u2", 3),
    "bgr16": ("u2", 3),
    "rgba16": ("u2", 4),
    "bgra16": ("u2", 4),
    "mono16": ("u2", 1),
    "8UC1": ("u1", 1),
    "8UC3": ("u1", 3),
    "8UC4": ("u1", 4),
    "16UC1": ("u2", 1),
    "32FC1": ("f4", 1),
    **{f"bayer_{pattern}8": ("u1", 1) for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{pattern}16": ("u2", 1) for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    **dict.fromkeys(("uyvy", "yuv422", "yuyv", "yuv422_yuy2"), ("u1", 2)),
}
_TO_RGB = {  # encoding without its number of bits -> OpenCV's conversion, None: as it is
    "rgb": None,
    "bgr": cv2.COLOR_BGR2RGB,
    "rgba": cv2.COLOR_RGBA2RGB,
    "bgra": cv2.COLOR_BGRA2RGB,
    "mono": cv2.COLOR_GRAY2RGB,
    # OpenCV names a pattern by the second row of its second and third column.
    "bayer_rggb": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg": cv2.COLOR_BayerGB2RGB,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
}
_SEMI_PLANAR = {  # encoding -> OpenCV's conversion, rows of bytes for every row of the image
    "nv12": (cv2.COLOR_YUV2RGB_NV12, 1.5),
    "nv21": (cv2.COLOR_YUV2RGB_NV21, 1.5),
    "nv24": (None, 3.0),
}
NOISE_FIELDS = ("std", "stddev", "range_std", "rangeSTD")
"""Fields of a PointCloud2 that are the standard deviation of each point's distance in metres."""

_UNTYPED = {"8UC1": "mono8", "8UC3": "bgr8", "8UC4": "bgra8"}  # OpenCV's order, as cv_bridge has it
_PLAIN_NUMBERS = re.compile(r"^(8|16|32|64)[USF]C\d*$")
_WIDEST_SCAN_RAD = 4 * np.pi  # some drivers repeat a part of the turn; degrees are 57 times more
_MOST_DEPTH_POINTS = 20_000  # of a depth image; more change nothing but the time of the fit
_FIELD_TYPES = {
    PointField.INT8: "i1",
    PointField.UINT8: "u1",
    PointField.INT16: "i2",
    PointField.UINT16: "u2",
    PointField.INT32: "i4",
    PointField.UINT32: "u4",
    PointField.FLOAT32: "f4",
    PointField.FLOAT64: "f8",
}
_TYPE_NAMES = {
    "i1": "INT8",
    "u1": "UINT8",
    "i2": "INT16",
    "u2": "UINT16",
    "i4": "INT32",
    "u4": "UINT32",
}
_TYPE_FIELDS = {name: number for number, name in _FIELD_TYPES.items()}
_IS_BIGENDIAN = sys.byteorder == "big"

XYZRGB = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("rgb", "f4")])
XYZ_HEIGHT = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("height", "f4")])
XYZ_RESIDUAL = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("residual", "f4")])


class MessageError(ValueError):
    """A message that contradicts itself or cannot be read; one sentence with cause and cure."""


class RefusedScanError(MessageError):
    """A scan that could not be read before; place: where that was found."""

    def __init__(self, sentence: str, place: str) -> None:
        super().__init__(sentence)
        self.place = place


class OtherSizeError(MessageError):
    """An image that is not of the size of its camera_info, in pixels."""

    def __init__(self, sentence: str, width: int, height: int) -> None:
        super().__init__(sentence)
        self.width, self.height = width, height


def place(error: BaseException) -> str:
    """Where an exception was raised, file:line: the kind of it, whatever its sentence says."""
    if isinstance(error, RefusedScanError):
        return error.place
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"
    return f"{type(error).__name__} at {where}"


def brief(text: str, length: int = 80) -> str:
    """A text of somebody else's for a sentence of ours, cut where it is too long."""
    return text if len(text) <= length else f"{text[:length]}..."


# --- time ----------------------------------------------------------------------------------------


def stamp_ns(stamp: Time) -> int:
    """A stamp in nanoseconds of the clock that wrote it; 0 = the publisher set none."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


# --- messages to arrays --------------------------------------------------------------------------


def image_view(message: Image) -> npt.NDArray[Any]:
    """The pixels of an encoding of IMAGE_LAYOUTS: (H, W) or (H, W, channels), a view."""
    if message.encoding not in IMAGE_LAYOUTS:
        known = ", ".join(IMAGE_LAYOUTS)
        raise MessageError(
            f"image encoding {brief(message.encoding)!r} has no fixed layout; use {known}"
        )
    kind, channels = IMAGE_LAYOUTS[message.encoding]
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = message.height, message.width, message.step
    if height < 1 or width < 1:
        raise MessageError(f"image is {width}x{height}: it has no pixels; correct the publisher")
    row = width * channels * dtype.itemsize
    if step < row:
        raise MessageError(
            f"image step is {step} bytes, but {width} pixels of {message.encoding} take {row};"
            " correct step in the publisher"
        )
    if len(message.data) != step * height:
        raise MessageError(
            f"image data has {len(message.data)} bytes, but step {step} x height {height} is"
            f" {step * height}; correct data or step in the publisher"
        )
    shape = (height, width) if channels == 1 else (height, width, channels)
    size = dtype.itemsize
    strides = (step, size) if channels == 1 else (step, channels * size, size)
    return np.ndarray(shape, dtype, buffer=memoryview(message.data), strides=strides)


class BitDepth:
    """How many bits the 16-bit images of one camera really use: 8, 10, 12, 14 or 16.

    The largest value seen tells, so the answer only grows: a camera of 12 bits in a dark room may
    count as one of 10 until something bright comes. `warn` hears of each new answer below 16.
    """

    def __init__(self, warn: Callable[[str, str], None] | None = None) -> None:
        self.bits = 8
        self.warn = warn or (lambda kind, text: None)
        self._told = 0

    def to_8_bits(self, pixels: npt.NDArray[np.integer], name: str) -> npt.NDArray[np.uint8]:
        """The same pixels as uint8, by the bits in use."""
        self.bits = max(self.bits, bits_in_use(pixels))
        if self.bits != self._told:
            self._told = self.bits
            if self.bits < 16:
                self.warn(
                    "bits",
                    f"{name} images use {self.bits} of their 16 bits so far, so they are scaled by"
                    f" {self.bits} bits: let the driver fill 16 bits or publish mono8 or rgb8 if"
                    " the brightness is wrong",
                )
        return scaled_to_8_bits(pixels, self.bits)


def image_to_rgb(message: Image, depth: BitDepth | None = None) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB image of an Image, of every encoding that a camera driver publishes.

    depth: what is known of the bits of this camera; without it each image is judged by itself.
    """
    depth = depth or BitDepth()
    encoding = message.encoding
    if encoding in _UNTYPED:
        depth.warn(
            "untyped",
            f"image encoding {encoding} does not say its colours and is read as"
            f" {_UNTYPED[encoding]}: let the driver name the encoding",
        )
    elif _PLAIN_NUMBERS.match(encoding):
        raise MessageError(
            f"image encoding {encoding} is no image but plain numbers; publish rgb8, bgr8 or"
            " mono8, or mono16 for a 16-bit camera"
        )
    if encoding in _SEMI_PLANAR:
        return _semi_planar_to_rgb(message)
    if encoding not in IMAGE_LAYOUTS:
        raise MessageError(
            f"image encoding {brief(encoding)!r} is not known; publish rgb8, bgr8 or mono8, for"
            " instance with image_proc"
        )
    view = image_view(message)
    encoding = _UNTYPED.get(encoding, encoding)
    if view.dtype.itemsize == 2:
        if view.shape[2:] == (4,):  # opacity fills 16 bits, whatever the camera does
            view, encoding = view[..., :3], encoding.replace("a", "")
        view = depth.to_8_bits(np.asarray(view, np.uint16), encoding)
    code = _TO_RGB[encoding.removesuffix("16").removesuffix("8")]
    if code is None:
        return np.ascontiguousarray(view)
    return _convert(view, code, encoding)


def compressed_to_rgb(
    message: CompressedImage,
    depth: BitDepth | None = None,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB image of a JPEG or PNG.

    size: width and height that it must have, OtherSizeError otherwise. They are read from the
    file's header first, so that a small file that claims to be a huge image costs nothing.
    """
    depth = depth or BitDepth()
    plain = message.format.partition(";")[0].strip()
    if "compressedDepth" in message.format or _PLAIN_NUMBERS.match(plain):
        raise MessageError(
            f"compressed image format {brief(message.format)!r} is a depth image or plain numbers;"
            " subscribe to the compressed image of the camera"
        )
    try:
        image = look_through(bytes(message.data))
        if size is not None:
            check_size(image.width, image.height, size)
        pixels = decode(image)
    except ImageError as error:
        if size is not None and isinstance(error, TooLargeError):
            check_size(error.width, error.height, size)
        raise MessageError(
            f"compressed image of {len(message.data)} bytes, format {brief(message.format)!r}, is"
            f" not readable as JPEG or PNG ({error}); check the publisher"
        ) from error
    if pixels.dtype == np.uint16:
        return depth.to_8_bits(np.asarray(pixels, np.uint16), "16-bit PNG")
    return np.asarray(pixels, np.uint8)


def check_size(width: int, height: int, size: tuple[int, int]) -> None:
    """Raises OtherSizeError unless an image has the size that camera_info says."""
    if (width, height) != size:
        raise OtherSizeError(
            f"the image is {width}x{height} but camera_info is for {size[0]}x{size[1]} by its size,"
            " binning and roi: let both come from one driver at one size, or remap camera_info to"
            " the one of this image",
            width,
            height,
        )


def _semi_planar_to_rgb(message: Image) -> npt.NDArray[np.uint8]:
    """nv12, nv21 and nv24: a plane of brightness, and below it the two colours interleaved."""
    code, rows_of_bytes = _SEMI_PLANAR[message.encoding]
    width, height, step = message.width, message.height, message.step
    if len(message.data) == step * height and height * 2 % (2 * rows_of_bytes) == 0:
        height = int(height / rows_of_bytes)  # a driver that counts the rows of both planes
    rows = int(height * rows_of_bytes)
    if min(width, height) < 2 or (code is not None and (width % 2 or height % 2)) or step < width:
        raise MessageError(
            f"{message.encoding} image is {message.width}x{message.height} with step {step}: width"
            " and height must be even and step at least the width; correct the publisher"
        )
    if len(message.data) != rows * step:
        raise MessageError(
            f"{message.encoding} image data has {len(message.data)} bytes, but step {step} x"
            f" {rows} rows of both planes is {rows * step}; correct the publisher"
        )
    planes: npt.NDArray[np.uint8] = np.ndarray(
        (rows, step), np.uint8, buffer=memoryview(message.data)
    )
    if code is not None:
        return _convert(planes[:, :width], code, message.encoding)
    # nv24: colours at every pixel, two bytes each, so a row of them takes 2 x width.
    colours = np.ascontiguousarray(planes[height:]).reshape(height, 2 * step)[:, : 2 * width]
    yuv = np.dstack([planes[:height, :width], colours.reshape(height, width, 2)[..., ::-1]])
    return _convert(yuv, cv2.COLOR_YCrCb2RGB, message.encoding)


def _convert(pixels: npt.NDArray[Any], code: int, name: str) -> npt.NDArray[np.uint8]:
    try:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), code), np.uint8)
    except cv2.error as error:
        shape = "x".join(str(side) for side in pixels.shape[1::-1])
        raise MessageError(
            f"{name} of {shape} cannot be read: its width and height do not suit the encoding;"
            " check the publisher"
        ) from error


def cloud_to_points(message: PointCloud2) -> npt.NDArray[np.float32]:
    """(N, 3) float32 metres of the fields named x, y, z, wherever they lie; NaN stays NaN."""
    height, width = message.height, message.width
    if height == 0 or width == 0:
        if len(message.data):
            raise MessageError(
                f"point cloud of {width}x{height} points has {len(message.data)} bytes of data; set"
                " width and height in the publisher (height is 1 for points without order)"
            )
        return np.empty((0, 3), np.float32)
    fields = {field.name: field for field in message.fields}
    kinds: list[str] = []
    for name in "xyz":
        if name not in fields:
            raise MessageError(
                f"point cloud has no field {name!r}, only {brief(', '.join(fields)) or 'none'};"
                " the points need x, y and z"
            )
        kind = _field_kind(message, fields[name])
        if kind[1] != "f":
            raise MessageError(
                f"point cloud field {name!r} has the integer type {_TYPE_NAMES[kind[1:]]}, whose"
                " unit is not known; publish x, y and z in metres as FLOAT32 or FLOAT64"
            )
        kinds.append(kind)
    _check_apart([(field, kinds["xyz".index(field.name)]) for field in message.fields
                  if field.name in ("x", "y", "z")])  # fmt: skip
    if message.row_step < width * message.point_step:
        raise MessageError(
            f"point cloud row_step is {message.row_step} bytes, but {width} points of"
            f" {message.point_step} bytes take {width * message.point_step}; correct the publisher"
        )
    if len(message.data) != height * message.row_step:
        raise MessageError(
            f"point cloud data has {len(message.data)} bytes, but row_step {message.row_step} x"
            f" height {height} is {height * message.row_step}; correct the publisher"
        )
    points = np.empty((height, width, 3), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32 becomes Inf
        for axis, (name, kind) in enumerate(zip("xyz", kinds, strict=True)):
            points[..., axis] = _column(message, fields[name], kind)
    return points.reshape(-1, 3)


def _check_apart(fields: list[tuple[PointField, str]]) -> None:
    """Raises MessageError where coordinates share bytes, or one of them is there twice."""
    names = [field.name for field, _ in fields]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise MessageError(f"point cloud has two fields named {twice!r}; correct the publisher")
    ordered = sorted(fields, key=lambda item: item[0].offset)
    for (field, kind), (other, _) in itertools.pairwise(ordered):
        if field.offset + np.dtype(kind).itemsize > other.offset:
            raise MessageError(
                f"point cloud fields {field.name!r} and {other.name!r} share bytes (offsets"
                f" {field.offset} and {other.offset}); correct the publisher"
            )


def _field_kind(message: PointCloud2, field: PointField) -> str:
    """The NumPy type of a field, byte order first. Raises MessageError."""
    kind = _FIELD_TYPES.get(field.datatype)
    if kind is None:
        raise MessageError(
            f"point cloud field {brief(field.name)!r} has the unknown datatype {field.datatype};"
            " use FLOAT32"
        )
    if field.offset + np.dtype(kind).itemsize > message.point_step:
        raise MessageError(
            f"point cloud field {brief(field.name)!r} at offset {field.offset} lies beyond"
            f" point_step {message.point_step}; correct the publisher"
        )
    return (">" if message.is_bigendian else "<") + kind


def _column(message: PointCloud2, field: PointField, kind: str) -> npt.NDArray[Any]:
    """A view (H, W) of a field of a cloud whose sizes agree."""
    strides = (message.row_step, message.point_step)
    shape = (message.height, message.width)
    return np.ndarray(shape, kind, memoryview(message.data), field.offset, strides)


@dataclass(frozen=True)
class LidarScan:
    """A LiDAR's message as arrays.

    points: (N, 3) metres in its frame. offset_s: (N,) seconds from header.stamp (from the time of
    arrival, where that is 0) to the time of each point, None where all are at the stamp or nothing
    is known. unknown_times: why times that are there are not used, or "". noise_m: (N,) m, standard
    deviation that the message declares of each point's distance, 0 where it declares none; None
    where it declares none at all.
    """

    points: npt.NDArray[np.float32]
    offset_s: npt.NDArray[np.float32] | None
    unknown_times: str = ""
    noise_m: npt.NDArray[np.float32] | None = None


def lidar_scan(message: PointCloud2 | LaserScan) -> LidarScan:
    """Points and times of a message: one rule for node, replay and bags. Raises MessageError."""
    if not hasattr(message, "fields"):
        points = scan_message_to_points(message)
        return LidarScan(points, _ray_times(message, len(points)))
    points = cloud_to_points(message)
    noise_m = _declared_noise(message) if len(points) else None
    unknown = ""
    for field in message.fields if len(points) else ():
        if split_name(field.name)[0] not in TIME_FIELDS:
            continue
        try:
            values, name = _times(message, field)
            stamp = stamp_ns(message.header.stamp)
            offset_s = seconds_from_stamp(values, brief(name), stamp)
            return LidarScan(points, offset_s, noise_m=noise_m)
        except (MessageError, UnknownTimesError) as error:
            unknown = unknown or str(error)
    return LidarScan(points, None, unknown, noise_m)


def _times(message: PointCloud2, field: PointField) -> tuple[npt.NDArray[Any], str]:
    """The numbers (N,) of a time field and its name; seconds and nanoseconds that are told in two
    fields (stamp_sec and stamp_nsec) are joined. Raises MessageError.
    """
    base, unit = split_name(field.name)
    if unit:
        for other in message.fields:
            other_base, other_unit = split_name(other.name)
            if other_base == base and "s" in {unit, other_unit} and other_unit not in ("", unit):
                first, second = (field, other) if unit == "s" else (other, field)
                parts = _native(message, first), _native(message, second)
                together = joined(*parts, other_unit if unit == "s" else unit)
                if together is not None:
                    return together, f"{base}_ns"
    return _native(message, field), field.name


def _native(message: PointCloud2, field: PointField) -> npt.NDArray[Any]:
    """A field (N,) in this machine's order of bytes. Raises MessageError."""
    kind = _field_kind(message, field)
    return _column(message, field, kind).reshape(-1).astype(kind[1:], copy=False)


def _declared_noise(message: PointCloud2) -> npt.NDArray[np.float32] | None:
    """(N,) m of the first field of NOISE_FIELDS, 0 where it says nothing; None without any.

    Raises MessageError for a field that is there and is no number of metres.
    """
    field = next((field for field in message.fields if field.name in NOISE_FIELDS), None)
    if field is None:
        return None
    kind = _field_kind(message, field)
    if kind[1] != "f":
        raise MessageError(
            f"point cloud field {field.name!r} has the integer type {_TYPE_NAMES[kind[1:]]}, whose"
            " unit is not known; publish the standard deviation in metres as FLOAT32"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        declared = _column(message, field, kind).reshape(-1).astype(np.float32)
        return np.where((declared > 0) & np.isfinite(declared), declared, np.float32(0))


def range_scan(message: Range) -> LidarScan:
    """The cap (N, 3) of a Range's cone on which its echo lies, x along the axis; none without echo.

    The distance is that of the nearest surface in the cone, wherever in it that is. REP 117: -Inf
    is too near to measure and +Inf no echo, as exactly min_range and max_range are; a sensor that
    only says whether something is nearer than a fixed distance (min_range equals max_range)
    measures none. Raises MessageError.
    """
    low, high, angle = message.min_range, message.max_range, message.field_of_view
    if not (0 <= low <= high and 0 <= angle < np.pi):
        raise MessageError(
            f"range with field_of_view {angle:g} rad, min_range {low:g} m and max_range {high:g} m"
            " has no meaning; correct the driver"
        )
    # Exactly a limit is what drivers write that do not know of Inf.
    measured = 0 <= low < message.range < high and message.range < np.inf
    return LidarScan(echo_cap(message.range if measured else None, angle), None)


def depth_image_scan(message: Image, camera: Camera) -> LidarScan:
    """The points of a depth image that is registered to a camera, in the camera's frame.

    16UC1 is millimetres and 32FC1 metres along z (REP 118); 0, negative, NaN and Inf are unknown,
    and 65535 mm, where 16 bits end. The size is the camera's or a whole fraction of it. Of a dense
    image some 20,000 pixels are taken, spread evenly. Raises MessageError.
    """
    if message.encoding not in ("16UC1", "32FC1"):
        raise MessageError(
            f"depth image encoding {brief(message.encoding)!r} is not read: publish 16UC1"
            " (millimetres) or 32FC1 (metres)"
        )
    view = image_view(message)
    height, width = view.shape
    share = camera.width // width
    if (width * share, height * share) != (camera.width, camera.height):
        raise MessageError(
            f"the depth image is {width}x{height} but camera_info is for"
            f" {camera.width}x{camera.height}: it must be registered to the camera, at its size or"
            " a whole fraction of it; depth_image_proc's register node makes such a depth image"
        )
    with np.errstate(invalid="ignore"):
        end = np.inf if message.encoding == "32FC1" else 65535
        rows, cols = spread_pixels((view > 0) & (view < end), _MOST_DEPTH_POINTS)
    z = view[rows, cols].astype(np.float32)
    if message.encoding == "16UC1":
        z /= 1000
    rays = camera.resized(width, height).rays()
    with np.errstate(over="ignore"):
        return LidarScan(rays[rows, cols] * z[:, None], None)


def not_registered(frame: str, camera_frame: str) -> str:
    """The sentence on a depth image in another frame than the camera's."""
    return (
        f"the depth image is in frame {brief(frame)!r} but the image in {brief(camera_frame)!r}: it"
        " must be registered to the camera; depth_image_proc's register node makes such a depth"
        " image"
    )


def _ray_times(message: LaserScan, count: int) -> npt.NDArray[np.float32] | None:
    """(count,) seconds between the first ray, which has the stamp, and those that returned."""
    increment_s = float(message.time_increment)
    rays = len(message.ranges)
    if not 0 < abs(increment_s) * rays <= LONGEST_SCAN_S:
        return None
    kept = valid_ranges(
        np.frombuffer(message.ranges, np.float32), message.range_min, message.range_max
    )
    assert len(kept) == count
    offset = (kept * np.float32(increment_s)).astype(np.float32)
    if not stamp_ns(message.header.stamp):
        offset -= np.float32(max((rays - 1) * increment_s, 0.0))
    return offset


def scan_message_to_points(message: LaserScan) -> npt.NDArray[np.float32]:
    """(M, 3) float32 metres of the valid returns of a planar scan."""
    numbers = (message.angle_min, message.angle_increment, message.range_min, message.range_max)
    if not np.isfinite(numbers[:2]).all() or not message.range_max > message.range_min:
        raise MessageError(
            f"laser scan with angle_min {numbers[0]}, angle_increment {numbers[1]}, range_min"
            f" {numbers[2]}, range_max {numbers[3]} has no meaning; correct the driver"
        )
    rays = len(message.ranges)
    span = abs(numbers[1]) * (rays - 1)
    if rays > 1 and not 0 < span <= _WIDEST_SCAN_RAD:
        raise MessageError(
            f"laser scan of {rays} rays {numbers[1]:g} rad apart spans {span:g} rad, which no"
            " scanner does; publish angle_min and angle_increment in radians"
        )
    return scan_to_points(np.frombuffer(message.ranges, np.float32), *numbers)


def other_camera(info_frame: str, image_frame: str) -> str:
    """A sentence if a camera_info may be that of another camera than the image's; or ""."""
    if not info_frame or not image_frame or info_frame.lstrip("/") == image_frame.lstrip("/"):
        return ""
    return (
        f"camera_info is in frame {brief(info_frame)!r} but the image in {brief(image_frame)!r}:"
        " of two cameras all depth would be off; remap camera_info to the one of this image, or let"
        " the driver give both one frame_id"
    )


def calibration_warning(info: CameraInfo, rectified: bool) -> str:
    """What of a camera_info looks wrong or is not used, in a sentence; "" where nothing does.

    A principal point beside the image is of another size of image: a part of an image says so by
    its roi. Of a rectified image the camera is P, without R and without the offset of a stereo
    pair, and depth is published in the image's own frame.
    """
    parts = []
    p = [float(value) for value in info.p]
    k = [p[0], p[2], p[5], p[6]] if rectified and p[0] > 0 else [info.k[i] for i in (0, 2, 4, 5)]
    beside = min(k[1], k[3]) < -0.5 or k[1] > info.width or k[3] > info.height
    if beside and not (info.roi.width and info.roi.height):
        parts.append(
            f"the principal point of camera_info ({k[1]:.6g}, {k[3]:.6g}) lies beside its image of"
            f" {info.width}x{info.height}, as that of another size of image would: the points fall"
            " on wrong pixels then; publish the calibration of this size, or set roi for a part of"
            " a larger image"
        )
    if rectified:
        parts += _stereo_warnings(info, p)
    if rectified and not p[0] > 0 and any(info.d):
        parts.append(
            "P of camera_info is 0, so K is taken for the rectified image, which has another"
            " calibration where the camera has distortion: publish P"
        )
    return "; ".join(parts)


def _stereo_warnings(info: CameraInfo, p: list[float]) -> list[str]:
    R: npt.NDArray[np.float64] = np.array(info.r, np.float64).reshape(3, 3)
    turned = np.isfinite(R).all() and R.any()
    angle = np.degrees(np.arccos(np.clip((np.trace(R) - 1) / 2, -1, 1))) if turned else 0.0
    parts = []
    if p[0] > 0 and np.hypot(p[3], p[7]) > 1e-6 * p[0]:
        metres = float(np.hypot(p[3] / p[0], p[7] / p[0]))
        parts.append(
            f"P of camera_info is that of the second camera of a stereo pair ({metres:.3f} m from"
            " the first), and this offset is not used: the image's frame_id must be the optical"
            " frame of this camera and not of the first"
        )
    if angle > 0.05:
        parts.append(
            f"R of camera_info turns the image by {angle:.2f} degrees against the camera, which is"
            " not used: T_camera_lidar, or TF of the image's frame_id, must be that of the"
            " rectified image"
        )
    return parts


def camera_of(info: CameraInfo, rectified: bool = False) -> Camera:
    """The camera of the image that comes with this CameraInfo, region of interest and binning
    applied. Of a rectified image it is P without distortion, else K with D.

    Raises ValueError with one sentence for a calibration that cannot be used.
    """
    k: npt.NDArray[np.float64] = np.array(info.k, dtype=np.float64).reshape(3, 3)
    if rectified:
        p = np.array(info.p, dtype=np.float64).reshape(3, 4)
        k = p[:, :3].copy() if p[0, 0] > 0 else k
    roi = info.roi
    region = roi.width > 0 and roi.height > 0
    width, height = (roi.width, roi.height) if region else (info.width, info.height)
    if region:
        k[0, 2] -= roi.x_offset
        k[1, 2] -= roi.y_offset
    binning = np.array([max(info.binning_x, 1), max(info.binning_y, 1)])
    k[:2] /= binning[:, None]
    width, height = width // int(binning[0]), height // int(binning[1])
    if rectified:
        return Camera.from_matrix(k, (), "pinhole", width, height)
    return Camera.from_matrix(k, tuple(info.d), info.distortion_model, width, height)


# --- arrays to messages --------------------------------------------------------------------------


def image_message(pixels: npt.NDArray[Any], encoding: str, header: Header) -> Image:
    """Image of an (H, W) or (H, W, channels) array whose type fits the encoding."""
    kind, channels = IMAGE_LAYOUTS[encoding]
    expected = pixels.shape[:2] if channels == 1 else (*pixels.shape[:2], channels)
    if pixels.dtype != np.dtype(kind) or pixels.shape != expected:
        raise ValueError(f"{pixels.dtype} {pixels.shape} is no {encoding} image")
    message = Image(header=header, encoding=encoding, is_bigendian=int(_IS_BIGENDIAN))
    message.height, message.width = pixels.shape[:2]
    message.step = message.width * channels * pixels.itemsize
    message.data = _bytes(pixels)
    return message


def compressed_depth_message(pixels: npt.NDArray[Any], header: Header) -> CompressedImage:
    """A depth image (H, W) as compressed_depth_image_transport of image_transport_plugins has it.

    uint16 millimetres, 0 unknown, stay as they are. Of float32 metres, the reader makes depth of a
    code c as a / (c - b), where c is not 0; a and b, which come before the PNG, are chosen so that
    the nearest and the farthest pixel are the ends of 16 bits. What is not finite, or not in front
    of the camera, is unknown.
    """
    a, b, encoding = 0.0, 0.0, "16UC1"
    if pixels.dtype != np.uint16:
        encoding = "32FC1"
        known = np.isfinite(pixels) & (pixels > 0)
        inverse = np.divide(1.0, pixels, out=np.zeros(pixels.shape), where=known)
        values = inverse[known]
        farthest, nearest = (values.min(), values.max()) if values.size else (1.0, 1.0)
        a = 65534 / (nearest - farthest) if nearest > farthest else 1 / farthest
        # The reader's are of float32, so these are what the codes are made with.
        a = float(np.float32(a))
        b = float(np.float32(1 - a * farthest))
        codes = np.clip(np.rint(a * inverse + b), 1, 65535)
        pixels = np.where(known, codes, 0).astype(np.uint16)
    # The fastest level: level 6 takes three times as long for 1 % less of a noisy map.
    made, png = cv2.imencode(".png", pixels, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    if not made:
        raise RuntimeError(f"OpenCV made no PNG of a depth image of {pixels.shape}")
    data = array.array("B", struct.pack("<iff", 0, a, b))  # 0: inverse depth
    data.frombytes(png.tobytes())
    return CompressedImage(header=header, format=f"{encoding}; compressedDepth png", data=data)


def labels_to_pixels(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.uint16]:
    """Label map -> 16UC1 pixels, 0 = unassigned."""
    if labels.size and labels.max() > 65535:
        raise ValueError(f"{labels.max()} regions do not fit into a 16UC1 image")
    return labels.astype(np.uint16)


def camera_info_message(camera: Camera, header: Header) -> CameraInfo:
    """CameraInfo of a camera; R is the identity and P is K: the image is not turned further."""
    model = "plumb_bob" if camera.model == "pinhole" else camera.model
    if len(camera.distortion) > 5:  # with 12 and 14, OpenCV's thin prism and tilt follow
        model = "rational_polynomial"
    d = camera.distortion or (0.0,) * 5
    k = camera.matrix
    return CameraInfo(
        header=header,
        width=camera.width,
        height=camera.height,
        distortion_model=model,
        d=list(d),
        k=k.reshape(-1).tolist(),
        r=np.eye(3).reshape(-1).tolist(),
        p=np.hstack([k, np.zeros((3, 1))]).reshape(-1).tolist(),
    )


def table_message(rows: npt.NDArray[np.void], header: Header, is_dense: bool = True) -> PointCloud2:
    """PointCloud2 of a structured array: a field per column, a point per row."""
    rows = np.ascontiguousarray(rows).reshape(-1)
    fields = []
    for name, (dtype, offset) in sorted(
        ((name, column[:2]) for name, column in (rows.dtype.fields or {}).items()),
        key=lambda item: item[1][1],
    ):
        number = _TYPE_FIELDS[dtype.newbyteorder("=").str[1:]]
        fields.append(PointField(name=name, offset=int(offset), datatype=number, count=1))
    message = PointCloud2(header=header, height=1, width=len(rows), fields=fields)
    message.is_bigendian = _IS_BIGENDIAN
    message.is_dense = is_dense
    message.point_step = rows.dtype.itemsize
    message.row_step = message.point_step * len(rows)
    message.data = _bytes(rows)
    return message


def table_rows(message: PointCloud2) -> npt.NDArray[np.void]:
    """The structured array of an unordered PointCloud2, such as the one of `table_message`."""
    order = ">" if message.is_bigendian else "<"
    dtype = np.dtype(
        {
            "names": [field.name for field in message.fields],
            "formats": [order + _FIELD_TYPES[field.datatype] for field in message.fields],
            "offsets": [field.offset for field in message.fields],
            "itemsize": message.point_step,
        }
    )
    return np.frombuffer(message.data, dtype, message.width * message.height)


def colour_points(
    depth: npt.NDArray[np.float32],
    camera: Camera,
    image: npt.NDArray[np.uint8],
    decimation: int = 1,
    believed: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.void]:
    """XYZRGB rows, in the camera's frame, of the known depth in every n-th row and column.

    depth: (H, W) metres, image: (H, W, 3) RGB. believed: which of these pixels to take, None all,
    (ceil(H / n), ceil(W / n)). rgb is the customary float32 whose bits are
    0x00RRGGBB.
    """
    every = (slice(None, None, decimation),) * 2
    z, rays = depth[every], camera.rays()[every]
    rows = np.empty((*z.shape, 4), np.float32)
    np.multiply(rays, z[..., None], out=rows[..., :3])
    colours = image[every].astype(np.uint32)
    packed = rows[..., 3].view(np.uint32)  # not through float: a NaN's bits would not survive
    np.left_shift(colours[..., 0], 16, out=packed)
    np.bitwise_or(packed, colours[..., 1] << 8, out=packed)
    np.bitwise_or(packed, colours[..., 2], out=packed)
    known = np.isfinite(rows[..., 2])
    if believed is not None:
        known &= believed
    kept = rows.reshape(-1, 4) if known.all() else rows[known]
    return kept.view(XYZRGB).reshape(-1)


def residual_points(
    pixels: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]],
    depth: npt.NDArray[np.floating],
    residual: npt.NDArray[np.floating],
    camera: Camera,
) -> npt.NDArray[np.void]:
    """XYZ_RESIDUAL rows, in the camera's frame, of measured points.

    pixels: rows and columns (N,). depth: (N,) measured metres along z. residual: (N,) metres,
    measured minus fitted.
    """
    rows: npt.NDArray[np.void] = np.zeros(len(depth), XYZ_RESIDUAL)
    points = camera.rays()[pixels] * depth[:, None]
    for axis, name in enumerate("xyz"):
        rows[name] = points[:, axis]
    rows["residual"] = residual
    return rows[np.isfinite(points).all(axis=1)]


def obstacle_points(obstacles: Obstacles) -> npt.NDArray[np.void]:
    """XYZ_HEIGHT rows, in the camera's frame, and the height above the ground."""
    rows = np.column_stack([obstacles.points, obstacles.height]).astype(np.float32)
    return rows.view(XYZ_HEIGHT).reshape(-1)


def scan_message(obstacles: Obstacles, max_range_m: float, header: Header) -> LaserScan:
    """LaserScan of the nearest obstacles about the base frame's z; +Inf free, NaN not seen."""
    ranges = scan_ranges(obstacles, max_range_m)
    return LaserScan(
        header=header,
        angle_min=-np.pi,
        angle_max=-np.pi + (len(ranges) - 1) * SCAN_STEP_RAD,
        angle_increment=SCAN_STEP_RAD,
        range_min=0.0,
        range_max=float(max_range_m),
        ranges=array.array("f", ranges.tobytes()),
    )


def _bytes(values: npt.NDArray[Any]) -> array.array[int]:
    """The bytes of an array as the type that a message field takes without checking each element.

    rclpy checks every element of anything else: 0.4 s for a 1280x720 image in place of 0.3 ms.
    """
    data = array.array("B")
    if values.size:
        flat = np.ascontiguousarray(values).reshape(-1)
        data.frombytes(flat.view(np.uint8).data)
    return data
