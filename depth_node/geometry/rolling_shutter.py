# SPDX-License-Identifier: Apache-2.0
"""Rolling shutter: points moved to the time at which the image row that sees them was read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import invert_rigid, transform
from depth_node.geometry.scan_motion import Transform, moved_by_table, poses_by_time, table_between

_MOST_STEPS = 8
_SETTLED_PX = 0.5  # rows; a row takes some 50 µs, in which 10 m/s are 0.5 mm
_MARGIN = 0.5  # around the image, as a fraction of its size


@dataclass(frozen=True)
class RollingShutter:
    """A camera with a rolling shutter.

    camera: of the image. readout_s: seconds from the exposure of the first row, at the image's
    stamp, to that of the last row.
    """

    camera: Camera
    readout_s: float

    def seen(
        self,
        points: npt.NDArray[np.float32],
        T_camera_lidar: Transform,
        stamp_ns: int,
        since: Callable[[int], Transform],
    ) -> npt.NDArray[np.float32]:
        """Move points (N, 3) from the image's stamp to the time of the row that each falls in.

        LiDAR and camera are rigidly connected: the points are in the frame that the LiDAR has at
        the stamp, and are returned in the frame that it has at their row's time. since: returns
        T_now_then (4, 4) of the camera from a time in ns to the stamp, or raises LookupError. The
        row of a point depends on where the point is at that row's time: a fixed-point iteration
        that starts at the stamp (projection of a rolling shutter, Meingast et al. 2005, eq. 4). The
        relative error of one step is the image's motion during a readout, divided by the image's
        height.
        """
        front = np.flatnonzero(transform(T_camera_lidar[2:3], points)[:, 0] > 0)
        size = (self.camera.width, self.camera.height)
        pixels = self.camera.project(transform(T_camera_lidar, points[front]))
        # No point that is farther out enters the image during a readout.
        with np.errstate(invalid="ignore"):
            near = (np.abs(pixels / size - 0.5) < 0.5 + _MARGIN).all(axis=1)
        front, row = front[near], pixels[near, 1]
        if not len(front):
            return points
        T_row_now = np.stack(
            [invert_rigid(T) for T in poses_by_time(stamp_ns, 0.0, self.readout_s, since)]
        )
        T_lidar_camera = invert_rigid(T_camera_lidar)
        table = table_between(T_lidar_camera @ T_row_now @ T_camera_lidar, self.camera.height)
        start = points[front]
        for _ in range(_MOST_STEPS):
            row = np.clip(row, 0, self.camera.height - 1)
            moved = moved_by_table(start, table, np.rint(row).astype(np.intp))
            at_row = self.camera.project(transform(T_camera_lidar, moved))[:, 1]
            # Beyond the lens's range there is no row: keep the previous one.
            at_row = np.where(np.isfinite(at_row), at_row, row)
            settled = np.abs(np.clip(at_row, 0, self.camera.height - 1) - row).max() <= _SETTLED_PX
            row = at_row
            if settled:
                break
        seen = points.copy()
        seen[front] = moved
        return seen
