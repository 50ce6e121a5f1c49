# SPDX-License-Identifier: Apache-2.0
"""The points that belong to one image: scans of several sensors, moved to the image's time.

The node and the reader of recordings both use this module, so that a replay gets the same points as
the robot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from depth_node.frame import SourcePoints
from depth_node.geometry.echoes import Echo
from depth_node.geometry.rigid import FloatArray, transform
from depth_node.geometry.rolling_shutter import RollingShutter
from depth_node.geometry.scan_buffer import Scan
from depth_node.geometry.scan_motion import ages, moved_scan, noise

Transform = npt.NDArray[np.float64]


class SensorKind(Enum):
    """The kind of a sensor, which defines where its points are relative to the camera."""

    LIDAR = "points somewhere about the camera"
    DEPTH_IMAGE = "points in the camera's own frame, each where a pixel looks"
    RANGE = "the cap of a cone on which one echo lies"


class PlacedScan(NamedTuple):
    """A scan placed in the camera.

    points: (N, 3) m. T_camera_points: (4, 4) maps them to where they are at the image's time, as
    far as the motion is known. lag_s: how long after the image the points were at this place, 0 if
    the motion was compensated.
    """

    points: FloatArray
    T_camera_points: Transform
    lag_s: float


@dataclass(frozen=True)
class Exposure:
    """When an image was taken, and how its camera moved around that time.

    since: returns T_now_then (4, 4) of the camera from a time in ns to the stamp, or raises
    LookupError; None if nothing is known of the motion. shutter: of a camera that reads its rows
    one after the other, the first at the stamp; it has an effect only together with since.
    """

    stamp_ns: int
    since: Callable[[int], Transform] | None = None
    shutter: RollingShutter | None = None

    def most_scans(self, kind: SensorKind, scans_per_image: int) -> int | None:
        """Return how many scans of a source belong to the image, as ScanBuffer.nearest() counts.

        That is 0 for one turn, None for all recent scans. scans_per_image: the setting, 0 =
        automatic: all recent scans if the motion is known, else one turn, because points displaced
        by unknown motion are worse than fewer points.
        """
        if kind is SensorKind.RANGE:
            return 1  # each echo covers the whole cone
        if kind is SensorKind.DEPTH_IMAGE:
            return scans_per_image or 1  # each shows all that the one before it showed
        return scans_per_image or (0 if self.since is None else None)

    def moved(self, scan: Scan, T_camera_source: Transform) -> PlacedScan:
        """Return a scan moved to the stamp, or as it was measured if the motion is unknown.

        T_camera_source: (4, 4), of the sensor, which moves with the camera. Raises LookupError
        where `since` does.
        """
        if self.since is None:
            return self.as_measured(scan, T_camera_source)
        return PlacedScan(*moved_scan(scan, T_camera_source, self.since), 0.0)

    def as_measured(self, scan: Scan, T_camera_source: Transform) -> PlacedScan:
        """Return a scan without compensation of the motion. T_camera_source: (4, 4)."""
        return PlacedScan(scan.points, T_camera_source, (scan.stamp_ns - self.stamp_ns) * 1e-9)

    def by_rows(self, seen: PlacedScan, kind: SensorKind) -> PlacedScan:
        """Return a moved scan (N, 3) with each point at the time of the image row it falls in.

        Raises LookupError where `since` does.
        """
        # A depth image was read by rows itself: its pixels are already where the rows saw them.
        if self.shutter is None or self.since is None or kind is SensorKind.DEPTH_IMAGE:
            return seen
        points = np.asarray(seen.points, np.float32)
        T = seen.T_camera_points
        return seen._replace(points=self.shutter.seen(points, T, self.stamp_ns, self.since))


@dataclass
class SeenPoints:
    """All points of an image, collected scan by scan.

    sources: of each LiDAR, the scan nearest in time to the image. echoes: of sensors that measure
    one distance in a cone.
    """

    exposure: Exposure
    sources: list[SourcePoints] = field(default_factory=list)
    echoes: list[Echo] = field(default_factory=list)
    _clouds: list[PlacedScan] = field(default_factory=list)
    _ages_s: list[npt.NDArray[np.float32]] = field(default_factory=list)
    _noises_m: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self._clouds or self.echoes)

    def add(
        self,
        scan: Scan,
        seen: PlacedScan,
        T_camera_source: Transform,
        source: str,
        kind: SensorKind,
        noise_share: float,
        nearest: bool,
    ) -> None:
        """Add a scan.

        T_camera_source: (4, 4), as configured or from TF. noise_share: declared noise as a fraction
        of the distance. nearest: whether no scan of the source is nearer in time to the image.
        """
        age_s = ages(scan, self.exposure.stamp_ns)
        if kind is SensorKind.RANGE:
            points, T, _ = seen
            self.echoes.append(Echo.of(points, T, noise_share, float(age_s[0])))
            return
        # Edges of noisy points (radar, landmarks) are not sharp enough to judge a sensor's pose.
        if nearest and not noise_share and scan.noise_m is None:
            points, T, lag_s = seen
            self.sources.append(SourcePoints(source, points, T, T_camera_source, lag_s))
        self._clouds.append(seen)
        self._ages_s.append(age_s)
        self._noises_m.append(noise(scan, noise_share))

    def joined(
        self,
    ) -> tuple[FloatArray, Transform, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return points (N, 3) m, their T_camera_points (4, 4), age_s (N,) and noise_m (N,).

        A single scan stays in its own frame; several are joined in the camera's frame.
        """
        if len(self._clouds) == 1:
            points, T, _ = self._clouds[0]
            return points, T, self._ages_s[0], self._noises_m[0]
        none = np.empty((0, 3), np.float32)
        in_camera = [transform(T, points) for points, T, _ in self._clouds]
        return (
            np.concatenate([none, *in_camera]),
            np.eye(4),
            np.concatenate([none[:, 0], *self._ages_s]),
            np.concatenate([none[:, 0], *self._noises_m]),
        )
