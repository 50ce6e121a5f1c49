# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 to arrays and back: fields of any layout, and structured arrays."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from depth_node.geometry.camera import Camera
from depth_node.geometry.point_times import joined, split_name
from depth_node.obstacles import Obstacles
from depth_node.ros.messages.errors import MessageError, brief
from depth_node.ros.messages.fields import IS_BIGENDIAN, message_bytes

NOISE_FIELDS = ("std", "stddev", "range_std", "rangeSTD")
"""Fields of a PointCloud2 with the standard deviation of each point's distance, m."""
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
XYZRGB = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("rgb", "f4")])
XYZ_HEIGHT = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("height", "f4")])
XYZ_RESIDUAL = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("residual", "f4")])


def cloud_to_points(message: PointCloud2) -> npt.NDArray[np.float32]:
    """Return (N, 3) float32 metres of the fields x, y, z, in any layout; NaN stays NaN."""
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
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a float64 beyond the range of float32 becomes Inf
        for axis, (name, kind) in enumerate(zip("xyz", kinds, strict=True)):
            points[..., axis] = _column(message, fields[name], kind)
    return points.reshape(-1, 3)


def _check_apart(fields: list[tuple[PointField, str]]) -> None:
    """Raise MessageError if coordinates share bytes, or one of them is there twice."""
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
    """Return the NumPy type of a field, byte order first. Raises MessageError."""
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
    """Return a view (H, W) of a field of a cloud whose sizes are consistent."""
    strides = (message.row_step, message.point_step)
    shape = (message.height, message.width)
    return np.ndarray(shape, kind, memoryview(message.data), field.offset, strides)


def time_numbers(message: PointCloud2, field: PointField) -> tuple[npt.NDArray[Any], str]:
    """Return the numbers (N,) of a time field and its name. Raises MessageError.

    Seconds and nanoseconds in two fields (stamp_sec and stamp_nsec) are added.
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
    """Return a field (N,) in this machine's byte order. Raises MessageError."""
    kind = _field_kind(message, field)
    return _column(message, field, kind).reshape(-1).astype(kind[1:], copy=False)


def declared_noise(message: PointCloud2) -> npt.NDArray[np.float32] | None:
    """Return (N,) m of the first field of NOISE_FIELDS, 0 where it has no value; None without such
    a field.

    Raises MessageError if the field has no number of metres.
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


def table_message(rows: npt.NDArray[np.void], header: Header, is_dense: bool = True) -> PointCloud2:
    """Return the PointCloud2 of a structured array: a field per column, a point per row."""
    rows = np.ascontiguousarray(rows).reshape(-1)
    fields = []
    for name, (dtype, offset) in sorted(
        ((name, column[:2]) for name, column in (rows.dtype.fields or {}).items()),
        key=lambda item: item[1][1],
    ):
        number = _TYPE_FIELDS[dtype.newbyteorder("=").str[1:]]
        fields.append(PointField(name=name, offset=int(offset), datatype=number, count=1))
    message = PointCloud2(header=header, height=1, width=len(rows), fields=fields)
    message.is_bigendian = IS_BIGENDIAN
    message.is_dense = is_dense
    message.point_step = rows.dtype.itemsize
    message.row_step = message.point_step * len(rows)
    message.data = message_bytes(rows)
    return message


def table_rows(message: PointCloud2) -> npt.NDArray[np.void]:
    """Return the structured array of an unordered PointCloud2, such as one of `table_message`."""
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
    """Return XYZRGB rows, in the camera's frame, of the known depth in every n-th row and column.

    depth: (H, W) metres, image: (H, W, 3) RGB. believed: (ceil(H / n), ceil(W / n)), which of these
    pixels to take, None for all. rgb is the customary float32 whose bits are 0x00RRGGBB.
    """
    every = (slice(None, None, decimation),) * 2
    z, rays = depth[every], camera.rays()[every]
    rows = np.empty((*z.shape, 4), np.float32)
    np.multiply(rays, z[..., None], out=rows[..., :3])
    colours = image[every].astype(np.uint32)
    packed = rows[..., 3].view(np.uint32)  # as float, the bits of a NaN could change
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
    """Return XYZ_RESIDUAL rows, in the camera's frame, of measured points.

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
    """Return XYZ_HEIGHT rows: points in the camera's frame and their height above the ground."""
    rows = np.column_stack([obstacles.points, obstacles.height]).astype(np.float32)
    return rows.view(XYZ_HEIGHT).reshape(-1)
