# SPDX-License-Identifier: Apache-2.0
"""The LiDAR input of a node: takes messages and returns the points that belong to an image."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import Image, LaserScan, PointCloud2, Range

from depth_node.frame import SourcePoints
from depth_node.geometry.echoes import Echo
from depth_node.geometry.point_times import BelievedTimes
from depth_node.geometry.rolling_shutter import RollingShutter
from depth_node.geometry.scan_buffer import Scan, ScanBuffer
from depth_node.geometry.seen_points import Exposure, SeenPoints, SensorKind
from depth_node.ros.inputs.source_clock import (
    SourceClock,
    SourceKey,
    clock_sentence,
    standing_sentence,
)
from depth_node.ros.messages import (
    LidarScan,
    RefusedScanError,
    brief,
    lidar_scan,
    not_registered,
    place,
)
from depth_node.ros.transforms.extrinsics import Extrinsics, far_apart, one_pose_for_all
from depth_node.ros.transforms.motion import CameraMotion
from depth_node.ros.transforms.tf import NoTransformError

LidarMessage: TypeAlias = "PointCloud2 | LaserScan | Image | Range"

_MOST_WAITING = 64  # messages of one LiDAR; more than any method here needs
_MOST_WAITING_BYTES = 128 << 20  # of all LiDARs together
_MOST_SOURCES = 32
_FORGET_SOURCE_S = 10.0  # without a message, by time of arrival


class UnreadScan:
    """A LiDAR message that is read once for all its cameras, when the first of them needs it."""

    def __init__(
        self, message: LidarMessage, read: Callable[[Any], LidarScan] = lidar_scan
    ) -> None:
        """read: converts the message to a scan, or raises ValueError with cause and cure."""
        self.header = message.header
        self.size_bytes = _size(message)
        self._read = read
        self._reading = threading.Lock()
        self._message: LidarMessage | None = message
        self._scan: LidarScan | None = None
        self._refusal = "", ""  # sentence and place; an exception would keep all locals

    def read(self) -> LidarScan:
        """Return the scan; its arrays must not be changed. Raises ValueError."""
        with self._reading:
            if self._message is not None:
                try:
                    self._scan = self._read(self._message)
                except ValueError as error:
                    self._refusal = str(error), place(error)
                self._message = None  # releases its bytes
        if self._scan is None:
            raise RefusedScanError(*self._refusal)
        return self._scan


@dataclass(frozen=True)
class LidarPoints:
    """The points of all LiDARs that belong to one image.

    points: (N, 3) float32 metres, T_camera_lidar: (4, 4), age_s: (N,) seconds between points and
    image. trouble: why there are no points or not all of them, "" if there is no problem; kind:
    which problem it is. sources: the scan of each LiDAR that is nearest in time to the image.
    echoes: of sensors that measure one distance in a cone. noise_m: standard deviation of the
    points' distances, (N,) or one for all, 0 = not stated.
    """

    points: npt.NDArray[np.floating]
    T_camera_lidar: npt.NDArray[np.float64]
    age_s: npt.NDArray[np.float32]
    trouble: str = ""
    kind: str = ""
    sources: tuple[SourcePoints, ...] = ()
    noise_m: float | npt.NDArray[np.float32] = 0.0
    echoes: tuple[Echo, ...] = ()


class _UnusableSourceError(Exception):
    """Why the scans of a source are not used, and which kind of problem that is."""

    def __init__(self, sentence: str, kind: str) -> None:
        super().__init__(sentence)
        self.sentence, self.kind = sentence, kind


@dataclass
class _Source:
    """One LiDAR: its waiting messages, when they came, and its clock."""

    waiting: deque[tuple[int, UnreadScan]] = field(
        default_factory=lambda: deque(maxlen=_MOST_WAITING)
    )
    messages: int = 0
    newest_ns: int = 0
    arrival_s: float = 0.0
    clock: SourceClock = field(default_factory=SourceClock)
    times: BelievedTimes = field(default_factory=BelievedTimes)


class LidarInput:
    """Takes messages in the executor's thread and processes them in the worker's.

    Scans are kept by topic and frame, so several LiDARs may share a topic or a frame.
    """

    def __init__(
        self,
        extrinsics: Extrinsics,
        max_scan_age_s: float,
        scans_per_image: int = 0,
        refused: Callable[[ValueError], None] = lambda error: None,
        warned: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.extrinsics = extrinsics
        self.scans_per_image = scans_per_image
        self.time_offset_s = 0.0  # the caller of offer() has already added it to the stamps
        self.relative_noise: dict[str, float] = {}
        """Topic -> stated standard deviation of its points, relative to their distance."""
        self.registered: frozenset[str] = frozenset()
        """Topics whose points are in the camera's own frame: depth images."""
        self.echoing: frozenset[str] = frozenset()
        """Topics of cone sensors; their points are the cap of the cone on which the echo lies."""
        self._max_scan_age_s = max_scan_age_s
        self._refused = refused
        self._warned = warned
        self._warned_of: set[tuple[str, ...]] = set()
        self._buffer = ScanBuffer(max_scan_age_s)
        self._horizon_ns = int(2e9 * max_scan_age_s) + 1_000_000_000
        self._sources: dict[SourceKey, _Source] = {}
        self._arrival = threading.Condition()

    def offer(
        self,
        stamp_ns: int,
        scan: UnreadScan,
        topic: str = "points",
        arrival_s: float | None = None,
        idle: bool = False,
    ) -> None:
        """Keep a scan for later; cheap enough for the executor's thread.

        arrival_s: when it arrived, by the clock of the images' arrivals. idle: no output has a
        subscriber, so only the newest message of each LiDAR is kept, for the first image that is
        processed again.
        """
        arrival_s = time.monotonic() if arrival_s is None else arrival_s
        key = (topic, scan.header.frame_id)
        with self._arrival:
            self._forget_sources(key, arrival_s)
            source = self._sources.setdefault(key, _Source())
            if source.newest_ns - stamp_ns > self._horizon_ns:  # time jumped back
                source.waiting.clear()
                source.clock.forget()
            if idle:
                source.waiting.clear()
                self._buffer.forget(key)
            source.messages += 1
            source.newest_ns, source.arrival_s = stamp_ns, arrival_s
            if source.clock.scan(stamp_ns, arrival_s):
                source.waiting.clear()
                self._buffer.forget(key)
                self._warn_once(("stamp", *key), standing_sentence(key[1]))
            source.waiting.append((stamp_ns, scan))
            # collect() may not be called for a long time, for instance while no image comes.
            while source.waiting[0][0] < stamp_ns - self._horizon_ns:
                source.waiting.popleft()
            self._forget_waiting()
            self._arrival.notify_all()

    def wait(self, stamp_ns: int, timeout_s: float) -> None:
        """Wait until there is a scan that is not older than the image, at most for timeout_s."""

        def newest_ns() -> int:
            return max(
                (s.newest_ns for s in self._sources.values() if s.clock.offset_s() is None),
                default=0,
            )

        if timeout_s > 0:
            with self._arrival:
                self._arrival.wait_for(lambda: newest_ns() >= stamp_ns, timeout_s)

    def collect(
        self,
        camera_frame: str,
        stamp_ns: int,
        motion: CameraMotion | None = None,
        arrival_s: float | None = None,
        shutter: RollingShutter | None = None,
    ) -> LidarPoints:
        """Return the points of every LiDAR within max_scan_age_s of the stamp; for the worker's
        thread.

        motion: moves scans of other times to where they are seen at the stamp, assuming that LiDAR
        and camera move together. Without it one turn of each LiDAR is taken, unless scans_per_image
        asks for more: points of other times would be in wrong places, which is worse than fewer
        points. arrival_s: when the image arrived, by the clock of `offer`; None: unknown, clocks
        are not compared. shutter: of a camera that reads its rows one after the other; needs
        motion.
        """
        clocks = self._take_in(stamp_ns, arrival_s, moving=motion is not None)
        since = None if motion is None else motion.until(camera_frame, stamp_ns)
        seen = SeenPoints(Exposure(stamp_ns, since, shutter))
        trouble = "", ""
        if self.extrinsics.is_fixed:
            self._warn_of_several_frames(clocks)
        for key, offset_s in clocks.items():
            limit = seen.exposure.most_scans(self._kind(key), self.scans_per_image)
            scans = self._buffer.nearest(stamp_ns, key, limit)
            try:
                T = self._pose(key, offset_s, scans, camera_frame, stamp_ns)
                trouble = self._add(seen, scans, key, T) or trouble
            except _UnusableSourceError as error:
                trouble = error.sentence, error.kind
        if not seen and not trouble[0]:
            trouble = self._why_none(stamp_ns, list(clocks))
        points, T, age_s, noise_m = seen.joined()
        sources, echoes = tuple(seen.sources), tuple(seen.echoes)
        return LidarPoints(points, T, age_s, *trouble, sources, noise_m, echoes)

    def _kind(self, key: SourceKey) -> SensorKind:
        if key[0] in self.registered:
            return SensorKind.DEPTH_IMAGE
        return SensorKind.RANGE if key[0] in self.echoing else SensorKind.LIDAR

    def _pose(
        self,
        key: SourceKey,
        offset_s: float | None,
        scans: Sequence[Scan],
        camera_frame: str,
        stamp_ns: int,
    ) -> npt.NDArray[np.float64]:
        """Return T_camera_lidar (4, 4) for the scans of a source. Raises _UnusableSourceError."""
        frame, registered = key[1], self._kind(key) is SensorKind.DEPTH_IMAGE
        if offset_s is not None and SourceClock.refuses(offset_s, len(scans)):
            # lidar_time_offset_s applies to LiDARs, not to depth images.
            setting = "" if registered else "set lidar_time_offset_s to"
            sentence = clock_sentence(frame, offset_s, self.time_offset_s, setting)
            raise _UnusableSourceError(sentence, "clock")
        if registered and scans and frame.lstrip("/") != camera_frame.lstrip("/"):
            raise _UnusableSourceError(not_registered(frame, camera_frame), "registration")
        if registered or not scans:
            return np.eye(4)
        try:
            T = self.extrinsics.find(camera_frame, frame, stamp_ns)
        except NoTransformError as error:
            raise _UnusableSourceError(str(error), "transform") from None
        if doubt := far_apart(T, brief(frame)):
            self._warn_once(("far apart", frame), doubt)
        return T

    def _warn_of_several_frames(self, keys: Iterable[SourceKey]) -> None:
        """Warn if a fixed T_camera_lidar is used for sensors of several frames."""
        frames = sorted({key[1] for key in keys if self._kind(key) is not SensorKind.DEPTH_IMAGE})
        if len(frames) > 1:
            doubt = one_pose_for_all(frames, "empty it and let TF tell each")
            self._warn_once(("frames",), doubt)

    def _add(
        self,
        seen: SeenPoints,
        scans: Sequence[Scan],
        key: SourceKey,
        T: npt.NDArray[np.float64],
    ) -> tuple[str, str] | None:
        """Add the scans of a source; return problem and kind if their motion is unknown."""
        trouble, kind = None, self._kind(key)
        share, name = self.relative_noise.get(key[0], 0.0), "/".join(key)
        for scan in scans:
            nearest = scan.stamp_ns == scans[0].stamp_ns
            placed = seen.exposure.as_measured(scan, T)
            try:
                placed = seen.exposure.moved(scan, T)
                placed = seen.exposure.by_rows(placed, kind)
            except NoTransformError as error:
                trouble = str(error), "motion"
                if not nearest and not self.scans_per_image:
                    continue
            seen.add(scan, placed, T, name, kind, share, nearest)
        return trouble

    def frames(self) -> dict[str, int]:
        """Return topic -> number of frame_ids in its messages, for topics with messages."""
        with self._arrival:
            return dict(Counter(topic for topic, _ in self._sources))

    def clear(self) -> None:
        """Forget every scan and every source."""
        with self._arrival:
            self._sources.clear()
        self._buffer.clear()

    def _take_in(
        self, stamp_ns: int, arrival_s: float | None, moving: bool
    ) -> dict[SourceKey, float | None]:
        """Read waiting scans and compare clocks; return every source, sorted, with its clock's
        offset."""
        with self._arrival:
            waiting = {key: list(source.waiting) for key, source in self._sources.items()}
            times = {key: source.times for key, source in self._sources.items()}
            for source in self._sources.values():
                source.waiting.clear()
                if arrival_s is not None:
                    source.clock.image(stamp_ns, arrival_s)
            clocks = {key: s.clock.offset_s() for key, s in sorted(self._sources.items())}
        for key, scans in waiting.items():
            for scan_ns, unread in scans:
                try:
                    scan = unread.read()
                except ValueError as error:
                    self._refused(error)
                    continue
                if scan.unknown_times and moving:
                    self._warn_once(
                        ("times", *key),
                        f"all points of a scan (frame {brief(key[1])!r}) count as measured at its"
                        f" stamp: {scan.unknown_times}",
                    )
                if scan.doubt:
                    self._warn_once(("doubt", *key), f"{brief(key[1])}: {scan.doubt}")
                offset_s = times[key].of(scan_ns, scan.offset_s, scan.unknown_times)
                self._buffer.add(scan_ns, scan.points, key, offset_s, scan.noise_m)
        self._buffer.retain(waiting)
        return clocks

    def _warn_once(self, key: tuple[str, ...], sentence: str) -> None:
        if key not in self._warned_of and len(self._warned_of) < _MOST_SOURCES:
            self._warned_of.add(key)
            self._warned(sentence)

    def _forget_sources(self, key: SourceKey, now_s: float) -> None:
        """Remove silent sources; beyond _MOST_SOURCES also the one with the fewest messages.

        So a flood of invented frames does not remove a LiDAR.
        """
        silent = [k for k, s in self._sources.items() if now_s - s.arrival_s > _FORGET_SOURCE_S]
        if key not in self._sources and len(self._sources) - len(silent) >= _MOST_SOURCES:
            others = {k: s for k, s in self._sources.items() if k not in silent}
            silent.append(min(others, key=lambda k: (others[k].messages, others[k].arrival_s)))
        for gone in silent:
            if gone != key:
                del self._sources[gone]

    def _forget_waiting(self) -> None:
        sizes = {
            key: sum(scan.size_bytes for _, scan in source.waiting)
            for key, source in self._sources.items()
        }
        while sum(sizes.values()) > _MOST_WAITING_BYTES:
            key = max(sizes, key=lambda key: sizes[key])
            if len(self._sources[key].waiting) < 2:
                return
            sizes[key] -= self._sources[key].waiting.popleft()[1].size_bytes

    def _why_none(self, stamp_ns: int, keys: list[SourceKey]) -> tuple[str, str]:
        stamps = {key: self._buffer.newest_stamp_ns(key) for key in keys}
        apart = {k: (stamp_ns - ns) * 1e-9 for k, ns in stamps.items() if ns is not None}
        if not apart:
            return (
                "no LiDAR points: check the driver, the remapping of `points` or `scan` (or what"
                " else lidar_sources names), their QoS",
                "no scans",
            )
        key = min(apart, key=lambda key: abs(apart[key]))
        apart_s, frame = apart[key], brief(key[1])
        if abs(apart_s) <= self._max_scan_age_s:
            return f"the LiDAR scans are empty (frame {frame!r}): check the LiDAR", "empty"
        side = "older" if apart_s > 0 else "newer"
        return (
            f"the newest LiDAR scan (frame {frame!r}) is {abs(apart_s):.2f} s {side} than the"
            f" image, more than max_scan_age_s = {self._max_scan_age_s:g} s: check the LiDAR and"
            " that both clocks agree, or raise max_scan_age_s",
            "age",
        )


def _size(message: LidarMessage) -> int:
    if isinstance(message, Range):
        return 4
    return 4 * len(message.ranges) if isinstance(message, LaserScan) else len(message.data)
