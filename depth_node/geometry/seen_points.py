# SPDX-License-Identifier: Apache-2.0
"""The points that belong to one image: scans of several sensors, as they are seen at its time.

The node and the reader of recordings both collect them here, so that a replay sees what the robot
saw.
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
    """How the points of a message stand to the camera."""

    LIDAR = "points somewhere about the camera"
    DEPTH_IMAGE = "points in the camera's own frame, each where a pixel looks"
    RANGE = "the cap of a cone on which one echo lies"


class PlacedScan(NamedTuple):
    """points: (N, 3) m, T_camera_points: (4, 4) puts them where they are seen at the image's time,
    as far as the motion is known. lag_s: how long after the image they are where they are put."""

    points: FloatArray
    T_camera_points: Transform
    lag_s: float


@dataclass(frozen=True)
class Exposure:
    """When an image was taken, and how its camera moved around that time.

    since: T_now_then (4, 4) of the camera from a time in ns to the stamp, or a LookupError; None:
    nothing is known of the motion. shutter: of a camera that reads its rows one after the other,
    the first at the stamp; needs since.
    """

    stamp_ns: int
    since: Callable[[int], Transform] | None = None
    shutter: RollingShutter | None = None

    def most_scans(self, kind: SensorKind, scans_per_image: int) -> int | None:
        """How many scans of a source belong to the image, as ScanBuffer.nearest() counts them: 0
        for one turn, None for all that are recent. scans_per_image: as it is set, 0: by itself.

        Points that have moved are worse than fewer points: one turn where the motion is unknown.
        """
        if kind is SensorKind.RANGE:
            return 1  # each echo is of all its cone
        if kind is SensorKind.DEPTH_IMAGE:
            return scans_per_image or 1  # each shows all that the one before it did
        return scans_per_image or (0 if self.since is None else None)

    def moved(self, scan: Scan, T_camera_source: Transform) -> PlacedScan:
        """A scan as it is seen at the stamp; as it was measured where the motion is unknown.

        T_camera_source: (4, 4), of the sensor, which moves with the camera. Raises LookupError
        where `since` does.
        """
        if self.since is None:
            return self.as_measured(scan, T_camera_source)
        return PlacedScan(*moved_scan(scan, T_camera_source, self.since), 0.0)

    def as_measured(self, scan: Scan, T_camera_source: Transform) -> PlacedScan:
        """A scan without the motion between it and the image. T_camera_source: (4, 4)."""
        return PlacedScan(scan.points, T_camera_source, (scan.stamp_ns - self.stamp_ns) * 1e-9)

    def by_rows(self, seen: PlacedScan, kind: SensorKind) -> PlacedScan:
        """A moved scan, (N, 3), as the row of the image that each point lands in sees it.

        Raises LookupError where `since` does.
        """
        # A depth image is where its camera's rows saw it.
        if self.shutter is None or self.since is None or kind is SensorKind.DEPTH_IMAGE:
            return seen
        points = np.asarray(seen.points, np.float32)
        T = seen.T_camera_points
        return seen._replace(points=self.shutter.seen(points, T, self.stamp_ns, self.since))


@dataclass
class SeenPoints:
    """All points of an image, scan by scan.

    sources: the scan of each LiDAR that is nearest to the image. echoes: of sensors that measure
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
        """One scan more. T_camera_source: (4, 4), as stated. noise_share: declared noise as a share
        of the distance. nearest: no scan of the source is nearer to the image."""
        age_s = ages(scan, self.exposure.stamp_ns)
        if kind is SensorKind.RANGE:
            points, T, _ = seen
            self.echoes.append(Echo.of(points, T, noise_share, float(age_s[0])))
            return
        # The edges of radar echoes and landmarks do not tell where their sensor is.
        if nearest and not noise_share and scan.noise_m is None:
            points, T, lag_s = seen
            self.sources.append(SourcePoints(source, points, T, T_camera_source, lag_s))
        self._clouds.append(seen)
        self._ages_s.append(age_s)
        self._noises_m.append(noise(scan, noise_share))

    def joined(
        self,
    ) -> tuple[FloatArray, Transform, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Points (N, 3) m, their T_camera_points (4, 4), age_s (N,) and noise_m (N,).

        One scan stays in its own frame, several are joined in the camera's.
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
