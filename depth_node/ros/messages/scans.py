# SPDX-License-Identifier: Apache-2.0
"""Messages of every kind of ranging sensor as a scan: points in its frame and their times."""

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

_WIDEST_SCAN_RAD = (
    4 * np.pi
)  # some drivers repeat part of a turn; angles in degrees are 57 times larger
_NOISE_SAMPLES, _MOST_NOISE = 500, 0.5  # the latter relative to the distance
_MOST_DEPTH_POINTS = 20_000  # of a depth image; with more only the fit takes longer


@dataclass(frozen=True)
class LidarScan:
    """A LiDAR's message as arrays.

    points: (N, 3) metres in its frame. offset_s: (N,) seconds from header.stamp (from the arrival
    if that is 0) to the time of each point, None if all are at the stamp or nothing is known.
    unknown_times: why times in the message are not used, or "". noise_m: (N,) m, standard deviation
    of each point's distance that the message states, 0 where it states none; None if it states none
    at all. doubt: what in the message is inconsistent, or "".
    """

    points: npt.NDArray[np.float32]
    offset_s: npt.NDArray[np.float32] | None
    unknown_times: str = ""
    noise_m: npt.NDArray[np.float32] | None = None
    doubt: str = ""


def lidar_scan(message: PointCloud2 | LaserScan) -> LidarScan:
    """Return points and times of a message; used by node, replay and bags. Raises MessageError."""
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
    """Return a sentence if points (N, 3) m state a noise (N,) m that no sensor has; or ""."""
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
    """Return the cap (N, 3) m of a Range's cone on which its echo lies, x along the axis; N = 0
    without echo.

    The distance is that of the nearest surface anywhere in the cone. REP 117: -Inf means too near
    to measure and +Inf no echo; values of exactly min_range and max_range are treated alike. A
    sensor that only reports whether something is nearer than a fixed distance (min_range equals
    max_range) measures none. Raises MessageError.
    """
    low, high, angle = message.min_range, message.max_range, message.field_of_view
    if not (0 <= low <= high and 0 <= angle < np.pi):
        raise MessageError(
            f"range with field_of_view {angle:g} rad, min_range {low:g} m and max_range {high:g} m"
            " has no meaning; correct the driver"
        )
    # Drivers that do not use Inf write exactly the limit instead.
    measured = low < message.range < high and message.range < np.inf
    return LidarScan(echo_cap(message.range if measured else None, angle), None)


def depth_image_scan(message: Image, camera: Camera) -> LidarScan:
    """Return the points of a depth image that is registered to a camera, in the camera's frame.

    16UC1 is millimetres and 32FC1 metres along z (REP 118); 0, negative values, NaN, Inf and 65535
    mm, the end of 16 bits, are unknown. The size is the camera's or an integer fraction of it. Of a
    dense image some 20,000 pixels are taken, evenly spread. Raises MessageError.
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
    """Return the sentence on a depth image in another frame than the camera's."""
    return (
        f"the depth image is in frame {brief(frame)!r} but the image in {brief(camera_frame)!r}: it"
        " must be registered to the camera; depth_image_proc's register node makes such a depth"
        " image"
    )


def _ray_times(message: LaserScan, count: int) -> npt.NDArray[np.float32] | None:
    """Return (count,) seconds from the stamp, that of the first ray, to each valid ray; or None.

    If the stamp is 0 they count from the arrival, when the last ray is complete. None: the message
    gives no usable time_increment.
    """
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
    """Return (M, 3) float32 metres of the valid returns of a planar scan."""
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
    """Return a sentence if the last ray is not at angle_max, relative to the whole angle; or ""."""
    rays, last = len(message.ranges), float(message.angle_max)
    stated = last - message.angle_min
    span = message.angle_increment * (rays - 1)
    # Many drivers count one more ray, and some leave angle_max 0.
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
    """Return the LaserScan of the nearest obstacles about the base frame's z; +Inf free, NaN not
    seen."""
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
