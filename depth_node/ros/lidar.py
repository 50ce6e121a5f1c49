# SPDX-License-Identifier: Apache-2.0
"""The node's LiDAR side: messages in, the points that belong to an image out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import LaserScan, PointCloud2

from depth_node.geometry.rigid import transform
from depth_node.geometry.scan_buffer import ScanBuffer
from depth_node.ros.extrinsics import Extrinsics, NoTransformError
from depth_node.ros.messages import MessageError, cloud_to_points, scan_message_to_points
from depth_node.ros.motion import CameraMotion

LidarMessage: TypeAlias = "PointCloud2 | LaserScan"

_MAX_WAITING = 64  # messages of a LiDAR that is faster than anything here needs


@dataclass(frozen=True)
class LidarPoints:
    """What the LiDARs say about one image.

    points: (N, 3) float32 metres, T_camera_lidar: (4, 4), age_s: (N,) seconds between scan and
    image. trouble: why there are no points or not all of them, empty if all is well.
    """

    points: npt.NDArray[np.floating]
    T_camera_lidar: npt.NDArray[np.float64]
    age_s: npt.NDArray[np.float32]
    trouble: str


class LidarInput:
    """Takes messages in the executor's thread and works on them in the worker's.

    Scans are kept by the frame that they are in, so that several LiDARs may share a topic.
    """

    def __init__(
        self,
        extrinsics: Extrinsics,
        max_scan_age_s: float,
        scans_per_image: int = 0,
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.extrinsics = extrinsics
        self.scans_per_image = scans_per_image
        self._max_scan_age_s = max_scan_age_s
        self._refused = refused
        self._buffer = ScanBuffer(max_scan_age_s)
        self._frames: set[str] = set()
        self._waiting: deque[tuple[int, LidarMessage]] = deque(maxlen=_MAX_WAITING)
        self._arrival = threading.Condition()
        self._newest_ns = 0

    def offer(self, stamp_ns: int, message: LidarMessage) -> None:
        """Keep a message for later; cheap, for the executor's thread."""
        with self._arrival:
            self._newest_ns = stamp_ns
            self._waiting.append((stamp_ns, message))
            # Nobody may ask for a long time, while no one listens to the node for instance.
            horizon_ns = stamp_ns - int(2e9 * self._max_scan_age_s) - 1_000_000_000
            while self._waiting[0][0] < horizon_ns:
                self._waiting.popleft()
            self._arrival.notify_all()

    def wait(self, stamp_ns: int, timeout_s: float) -> None:
        """Wait until there is a scan that is not older than the image, but not for ever."""
        if timeout_s > 0:
            with self._arrival:
                self._arrival.wait_for(lambda: self._newest_ns >= stamp_ns, timeout_s)

    def collect(
        self, camera_frame: str, stamp_ns: int, motion: CameraMotion | None = None
    ) -> LidarPoints:
        """The points within max_scan_age_s of the stamp, of every LiDAR; for the worker's thread.

        motion: moves scans of another time to where they are seen at the stamp, given that LiDAR
        and camera move as one. Without it one scan of each LiDAR is taken, unless
        scans_per_image asks for more: points that have moved are worse than fewer points.
        """
        self._take_in()
        found: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]] = []
        ages: list[npt.NDArray[np.float32]] = []
        trouble = ""
        for frame in sorted(self._frames):
            scans = self._nearest(stamp_ns, frame)
            scans = scans[: self.scans_per_image or (1 if motion is None else None)]
            if not scans:
                continue
            try:
                T = self.extrinsics.find(camera_frame, frame, stamp_ns)
            except NoTransformError as error:
                trouble = str(error)
                continue
            for scan_ns, points in scans:
                T_scan = T
                if motion is not None:
                    try:
                        T_scan = motion.since(camera_frame, scan_ns, stamp_ns) @ T
                    except NoTransformError as error:
                        trouble = str(error)
                        if scan_ns != scans[0][0] and not self.scans_per_image:
                            continue
                found.append((points, T_scan))
                age_s = abs(stamp_ns - scan_ns) * 1e-9
                ages.append(np.full(len(points), age_s, np.float32))
        if not found:
            empty = np.empty((0, 3), np.float32)
            return LidarPoints(empty, np.eye(4), empty[:, 0], trouble or self._why_none(stamp_ns))
        if len(found) == 1:
            return LidarPoints(*found[0], ages[0], trouble)
        in_camera = np.concatenate([transform(T, points) for points, T in found])
        return LidarPoints(in_camera, np.eye(4), np.concatenate(ages), trouble)

    def clear(self) -> None:
        """Forget every scan."""
        with self._arrival:
            self._waiting.clear()
            self._newest_ns = 0
        self._buffer.clear()

    def _take_in(self) -> None:
        with self._arrival:
            waiting = list(self._waiting)
            self._waiting.clear()
        for stamp_ns, message in waiting:
            try:
                if isinstance(message, LaserScan):
                    points = scan_message_to_points(message)
                else:
                    points = cloud_to_points(message)
            except MessageError as error:
                self._refused(str(error))
                continue
            frame = message.header.frame_id
            self._frames.add(frame)
            self._buffer.add(stamp_ns, points, key=frame)

    def _nearest(self, stamp_ns: int, frame: str) -> list[tuple[int, npt.NDArray[np.float32]]]:
        """Stamps and points of the scans in reach, the nearest in time first."""
        scans = [scan for scan in self._buffer.scans(stamp_ns, key=frame) if len(scan[1])]
        return sorted(scans, key=lambda scan: abs(stamp_ns - scan[0]))

    def _why_none(self, stamp_ns: int) -> str:
        newest_ns = self._buffer.newest_stamp_ns()
        if newest_ns is None:
            return (
                "no LiDAR points: check the driver, the remapping of `points` or `scan`, their QoS"
            )
        apart_s = (stamp_ns - newest_ns) * 1e-9
        if abs(apart_s) <= self._max_scan_age_s:
            return "the LiDAR scans are empty: check the LiDAR"
        side = "older" if apart_s > 0 else "newer"
        return (
            f"the newest LiDAR scan is {abs(apart_s):.2f} s {side} than the image, more than"
            f" max_scan_age_s = {self._max_scan_age_s:g} s: check the LiDAR and that both clocks"
            " agree, or raise max_scan_age_s"
        )
