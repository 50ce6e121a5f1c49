# SPDX-License-Identifier: Apache-2.0
"""A scan: what every kind of ranging sensor measured, as points in its frame with their times."""

from __future__ import annotations

import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import Image, LaserScan, PointCloud2, Range
from std_msgs.msg import Header

from depth_node.geometry.camera import Camera
from depth_node.geometry.echoes import echo_cap
from depth_node.geometry.point_times import (
    LONGEST_SCAN_S,
    TIME_FIELDS,
    UnknownTimesError,
    seconds_from_stamp,
    split_name,
)
from depth_node.geometry.sparse_depth import scan_to_points, valid_ranges
from depth_node.geometry.thinning import spread_pixels
from depth_node.obstacles import SCAN_STEP_RAD, Obstacles, scan_ranges
from depth_node.ros.messages.clouds import (
    NOISE_FIELDS,
    cloud_to_points,
    declared_noise,
    time_numbers,
)
from depth_node.ros.messages.errors import MessageError, brief
from depth_node.ros.messages.fields import stamp_ns
from depth_node.ros.messages.images import image_view

_WIDEST_SCAN_RAD = 4 * np.pi  # some drivers repeat a part of the turn; degrees are 57 times more
_NOISE_SAMPLES, _MOST_NOISE = 500, 0.5  # of the distance
_MOST_DEPTH_POINTS = 20_000  # of a depth image; more change nothing but the time of the fit


@dataclass(frozen=True)
class LidarScan:
    """A LiDAR's message as arrays.

    points: (N, 3) metres in its frame. offset_s: (N,) seconds from header.stamp (from the time of
    arrival, where that is 0) to the time of each point, None where all are at the stamp or nothing
    is known. unknown_times: why times that are there are not used, or "". noise_m: (N,) m, standard
    deviation that the message declares of each point's distance, 0 where it declares none; None
    where it declares none at all. doubt: what the message says that does not fit together, or "".
    """

    points: npt.NDArray[np.float32]
    offset_s: npt.NDArray[np.float32] | None
    unknown_times: str = ""
    noise_m: npt.NDArray[np.float32] | None = None
    doubt: str = ""


def lidar_scan(message: PointCloud2 | LaserScan) -> LidarScan:
    """Points and times of a message: one rule for node, replay and bags. Raises MessageError."""
    if not hasattr(message, "fields"):
        points = scan_message_to_points(message)
        return LidarScan(points, _ray_times(message, len(points)), doubt=_other_angles(message))
    points = cloud_to_points(message)
    noise_m = declared_noise(message) if len(points) else None
    doubt = "" if noise_m is None else _large_noise(points, noise_m)
    unknown = ""
    for field in message.fields if len(points) else ():
        if split_name(field.name)[0] not in TIME_FIELDS:
            continue
        try:
            values, name = time_numbers(message, field)
            stamp = stamp_ns(message.header.stamp)
            offset_s = seconds_from_stamp(values, brief(name), stamp)
            return LidarScan(points, offset_s, noise_m=noise_m, doubt=doubt)
        except (MessageError, UnknownTimesError) as error:
            unknown = unknown or str(error)
    return LidarScan(points, None, unknown, noise_m, doubt)


def _large_noise(points: npt.NDArray[np.float32], noise_m: npt.NDArray[np.float32]) -> str:
    """A sentence if points (N, 3) m declare a noise (N,) that no sensor has; or ""."""
    declared = np.flatnonzero(noise_m > 0)
    some = declared[:: 1 + len(declared) // _NOISE_SAMPLES]
    with np.errstate(invalid="ignore", over="ignore"):
        away_m = np.linalg.norm(points[some], axis=1)
    known = np.isfinite(away_m) & (away_m > 0)
    share = float(np.median(noise_m[some][known] / away_m[known])) if known.any() else 0.0
    if share < _MOST_NOISE:
        return ""
    return (
        f"its points declare a standard deviation of {share:.3g} times their distance, so that they"
        f" count for nothing: publish {', '.join(NOISE_FIELDS)} in metres, not millimetres, or name"
        " the field otherwise"
    )


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
    measured = low < message.range < high and message.range < np.inf
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


def _other_angles(message: LaserScan) -> str:
    """A sentence if the last ray of a scan is not where angle_max says, by a share of it all."""
    rays, last = len(message.ranges), float(message.angle_max)
    stated = last - message.angle_min
    span = message.angle_increment * (rays - 1)
    # Many count a ray more, and some leave angle_max 0.
    if rays < 2 or last == 0 or abs(stated - span) <= max(0.05 * abs(span), 0.02):
        return ""
    return (
        f"a laser scan spans {np.degrees(message.angle_min):.1f} to"
        f" {np.degrees(message.angle_min + span):.1f} degrees by angle_increment, but by angle_max"
        f" to {np.degrees(last):.1f}: angle_increment is used, and points lie in wrong directions"
        " if it is wrong (a filter that removed rays?); correct angle_min, angle_max and"
        " angle_increment in the driver"
    )


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
