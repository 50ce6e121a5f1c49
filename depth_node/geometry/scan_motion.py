# SPDX-License-Identifier: Apache-2.0
"""Motion compensation: scans of a moving LiDAR, each point moved to the time of an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import invert_rigid
from depth_node.geometry.scan_buffer import Scan

Transform = npt.NDArray[np.float64]

_KNOT_S = 0.01  # interval between the poses that are looked up, interpolated linearly in between
_FINE_S = 1e-4  # points this near in time share a pose: 0.5 mm at 10 m/s, 2.5 mm in 50 m at 1 rad/s
_MOST_FINE = 8192


def ages(scan: Scan, stamp_ns: int) -> npt.NDArray[np.float32]:
    """Return the time (N,), s, between each point of a scan and an image, never negative."""
    behind_s = (stamp_ns - scan.stamp_ns) * 1e-9
    if scan.offset_s is None:
        return np.full(len(scan.points), abs(behind_s), np.float32)
    age = np.float32(behind_s) - scan.offset_s
    return np.abs(age, out=age)


def noise(scan: Scan, share: float) -> npt.NDArray[np.float32]:
    """Return the standard deviation (N,), m, of the points: as declared by the message, else
    `share` times their distance."""
    points, declared = scan.points, scan.noise_m
    noise_m: npt.NDArray[np.float32] = np.zeros(len(points), np.float32)
    if share:
        noise_m = (np.float32(share) * np.linalg.norm(points, axis=1)).astype(np.float32)
    return noise_m if declared is None else np.where(declared > 0, declared, noise_m)


def moved_scan(
    scan: Scan, T_camera_lidar: Transform, since: Callable[[int], Transform]
) -> tuple[npt.NDArray[np.float32], Transform]:
    """Return points (N, 3) and the T_camera_lidar (4, 4) that applies at the time of an image.

    LiDAR and camera are rigidly connected. since: returns T_now_then (4, 4) of the camera from a
    stamp in ns to the image's, or raises LookupError. Points with times of their own are returned
    in the frame that the LiDAR has at the image's time, with the T_camera_lidar that was given.
    Without such times, or if the motion is not known for all of them, the points stay as they are
    and the transform contains the motion since the scan's stamp. Between poses 10 ms apart a point
    moves in a straight line, an error of r w² / 80000 s² at a distance r: 0.6 mm in 50 m at
    1 rad/s. Raises LookupError if the motion since the scan's stamp is unknown too.
    """
    points, offset_s = scan.points, scan.offset_s
    if offset_s is None or not len(points):
        return points, since(scan.stamp_ns) @ T_camera_lidar
    first, last = float(offset_s.min()), float(offset_s.max())
    try:
        T_now_then = poses_by_time(scan.stamp_ns, first, last, since)
    except LookupError:
        return points, since(scan.stamp_ns) @ T_camera_lidar
    fine = min(2 + int((last - first) / _FINE_S), _MOST_FINE)
    table = table_between(invert_rigid(T_camera_lidar) @ T_now_then @ T_camera_lidar, fine)
    steps = offset_s - np.float32(first)
    steps *= np.float32((fine - 1) / max(last - first, 1e-9))
    steps += np.float32(0.5)
    return moved_by_table(points, table, steps.astype(np.intp)), T_camera_lidar


def poses_by_time(
    stamp_ns: int, first_s: float, last_s: float, since: Callable[[int], Transform]
) -> Transform:
    """Return the poses (K, 4, 4) that `since` gives at even times, at most 10 ms apart.

    The times go from first_s to last_s after the stamp. Raises what `since` raises.
    """
    count = 2 + int((last_s - first_s) / _KNOT_S)
    stamps_ns = stamp_ns + np.rint(1e9 * np.linspace(first_s, last_s, count)).astype(np.int64)
    return np.stack([since(int(then_ns)) for then_ns in stamps_ns])


def table_between(poses: Transform, count: int) -> npt.NDArray[np.float32]:
    """Interpolate poses (K, 4, 4) at even times to a table (3, 4, count) of finer even times."""
    knots = poses[:, :3].reshape(len(poses), 12)
    position = np.linspace(0, len(poses) - 1, count)
    knot = np.minimum(position.astype(np.intp), len(poses) - 2)
    fraction = (position - knot)[:, None]
    table = ((1 - fraction) * knots[knot] + fraction * knots[knot + 1]).astype(np.float32)
    return np.ascontiguousarray(table.T).reshape(3, 4, count)


def moved_by_table(
    points: npt.NDArray[np.float32], table: npt.NDArray[np.float32], which: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """Transform each point (N, 3) by the entry `which` (N,), in 0..M-1, of a table (3, 4, M)."""
    moved = np.empty_like(points)
    x, y, z = np.ascontiguousarray(points.T)
    part: npt.NDArray[np.float32] = np.empty(len(points), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for axis in range(3):
            total = table[axis, 3].take(which)
            for column, values in enumerate((x, y, z)):
                table[axis, column].take(which, out=part, mode="clip")
                part *= values
                total += part
            moved[:, axis] = total
    return moved
