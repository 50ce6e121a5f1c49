# SPDX-License-Identifier: Apache-2.0
"""Health of the node over the last seconds: rates, latencies, quality of the fit, one sentence.

Independent of ROS and of a clock: every call gets the time, in seconds of any monotonic clock.
Thread-safe.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

LOW_INLIERS = 0.5
"""If a smaller fraction of points agrees with the fit, extrinsics or time offset may be wrong."""

# Entries of FitResult.details: key, name in the diagnostics, format.
_DETAILS = (
    ("base", "fit base", "{}"),
    ("scale", "fit base scale", "{:.4g}"),
    ("shift", "fit base shift", "{:.4g}"),
    ("leave_one_out", "fit left-out error [%]", "{:.1%}"),
    ("outlier_fraction", "fit outliers [%]", "{:.1%}"),
    ("coverage", "fit coverage of the interval [%]", "{:.1%}"),
    ("nodes", "fit nodes", "{}"),
    ("remembered", "fit remembered [%]", "{:.0%}"),
    ("resets", "fit new beginnings", "{}"),
    ("anchor_age_s", "fit age of the metres [s]", "{:.1f}"),
    ("bound", "fit bound of the metres [%]", "{:.0%}"),
)

LOST_IMAGES = 0.75
"""An image rate below this fraction of camera_info's shows that images are lost in transport."""

WINDOW_S = 5.0
"""Events that happened longer ago are not reported."""

_FEWEST_INFOS = 10  # camera_info messages in the window, before their rate is used

_EVENTS = (
    "image",
    "camera_info",
    "scan",
    "scan_refused",
    "published",
    "dropped",
    "refused",
    "failed",
    "skipped_no_subscribers",
    "skipped_rate_limit",
)


class Level(IntEnum):
    """Severity, with the numbers of diagnostic_msgs."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class FrameRecord:
    """Facts about one published frame.

    stamp_ms: time from the image's stamp to publication, None if the stamp is of another clock.
    node_ms: time from the image's arrival in the node to publication. stage_ms: time of each stage.
    scan_age_s: age of the oldest LiDAR point used, None without points. inlier_fraction and
    residual_m: of the fit, NaN without points. status: name of the fit's status. details:
    FitResult.details. trouble: a sentence for the operator, empty if there is no fault.
    """

    node_ms: float
    stamp_ms: float | None = None
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    scan_age_s: float | None = None
    points: int = 0
    inlier_fraction: float = float("nan")
    residual_m: float = float("nan")
    status: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True)
class Situation:
    """The node's state, which the monitor cannot see by itself.

    engine: facts about the back end in use, by name. input_hint: a sentence about an input that
    cannot arrive in the present ROS graph, empty if there is none. extrinsics: the verdict on each
    LiDAR, by its name in the diagnostics. misplaced: a sentence if one of them is wrong.
    """

    active: bool = True
    enabled: bool = True
    subscribers: int = 1
    backend: str = ""
    image_topic: str = "image"
    engine: Mapping[str, str] = field(default_factory=dict)
    input_hint: str = ""
    extrinsics: Mapping[str, str] = field(default_factory=dict)
    misplaced: str = ""


@dataclass(frozen=True)
class Report:
    """The health of the node: level, one sentence, and its figures as texts in a fixed order."""

    level: Level
    message: str
    values: dict[str, str]


class Monitor:
    """Counts events and stores the frames of the last WINDOW_S seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset(None)

    def reset(self, now_s: float | None) -> None:
        """Delete all counts and frames; the window starts at `now_s`."""
        with self._lock:
            self._start_s = now_s
            self._totals: Counter[str] = Counter()
            self._times: dict[str, deque[float]] = {name: deque() for name in _EVENTS}
            self._frames: deque[tuple[float, FrameRecord]] = deque()
            self._reason = ""
            self._scan_reason = ""

    def image(self, now_s: float) -> None:
        """Count an image that arrived."""
        self._count("image", now_s)

    def camera_info(self, now_s: float) -> None:
        """Count a camera_info that arrived; cameras send one with every image."""
        self._count("camera_info", now_s)

    def scan(self, now_s: float) -> None:
        """Count a LiDAR message that arrived."""
        self._count("scan", now_s)

    def scan_refused(self, now_s: float, reason: str) -> None:
        """Count a LiDAR message that cannot be used; the frame is processed without it."""
        self._count("scan_refused", now_s)
        with self._lock:
            self._scan_reason = reason

    def dropped(self, now_s: float) -> None:
        """Count an image that was replaced by a newer one before it was processed."""
        self._count("dropped", now_s)

    def skipped_no_subscribers(self, now_s: float) -> None:
        """Count an image that was skipped because no output topic has a subscriber."""
        self._count("skipped_no_subscribers", now_s)

    def skipped_rate_limit(self, now_s: float) -> None:
        """Count an image that was skipped because the rate is limited."""
        self._count("skipped_rate_limit", now_s)

    def refused(self, now_s: float, reason: str) -> None:
        """Count an input that cannot be used: wrong size, unknown encoding, no calibration."""
        self._count("refused", now_s, reason)

    def failed(self, now_s: float, reason: str) -> None:
        """Count a frame whose processing raised an exception."""
        self._count("failed", now_s, reason)

    def published(self, now_s: float, frame: FrameRecord) -> None:
        """Count a published frame and keep its record for WINDOW_S."""
        self._count("published", now_s)
        with self._lock:
            self._frames.append((now_s, frame))

    def total(self, event: str) -> int:
        """Return the number of events of this name since the last reset."""
        with self._lock:
            return self._totals[event]

    def recent(self, event: str) -> int:
        """Return the number of these events in the window before the last event or report."""
        with self._lock:
            return len(self._times[event])

    def report(self, now_s: float, situation: Situation) -> Report:
        """Return level, sentence and figures of the last WINDOW_S seconds."""
        with self._lock:
            self._drop_old(now_s)
            recent = {name: len(times) for name, times in self._times.items()}
            since = self._start_s if self._start_s is not None else now_s
            span = max(min(WINDOW_S, now_s - since), 1e-3)
            rates = {name: count / span for name, count in recent.items()}
            frames = [frame for _, frame in self._frames]
            level, message = self._judge(recent, rates, frames, situation, now_s - since)
            return Report(level, message, self._values(rates, frames, situation))

    def _judge(
        self,
        recent: dict[str, int],
        rates: dict[str, float],
        frames: list[FrameRecord],
        situation: Situation,
        age_s: float,
    ) -> tuple[Level, str]:
        if not situation.active:
            return Level.OK, "inactive: waiting to be activated"
        if not situation.enabled:
            return Level.WARN, "switched off by ~/enable: call it with true to continue"
        if not recent["image"]:
            if age_s < min(2.0, WINDOW_S):
                return Level.OK, "just started: waiting for the first image"
            return Level.ERROR, situation.input_hint or (
                f"no image on {situation.image_topic} in {WINDOW_S:g} s:"
                " check the camera, the remapping of `image` and its QoS"
            )
        if situation.subscribers == 0:
            return Level.OK, "no output topic has a subscriber: images are skipped"
        bad = recent["failed"] + recent["refused"]
        if bad and not frames:
            return Level.ERROR, f"no frame gets through: {situation.input_hint or self._reason}"
        if not frames:
            return Level.WARN, (
                f"no frame in the last {WINDOW_S:g} s: the first one is being processed"
            )
        if bad:
            return Level.WARN, f"{bad} of {bad + len(frames)} frames failed: {self._reason}"
        last = frames[-1]
        if last.trouble:
            return Level.WARN, situation.input_hint or last.trouble
        if recent["scan_refused"]:
            count = f"{recent['scan_refused']} of {recent['scan']}"
            return Level.WARN, f"{count} LiDAR messages were refused: {self._scan_reason}"
        if situation.misplaced:
            return Level.WARN, situation.misplaced
        if last.inlier_fraction < LOW_INLIERS:
            return Level.WARN, (
                f"only {last.inlier_fraction:.0%} of the LiDAR points agree with the fit:"
                " check the extrinsics and the clocks of camera and LiDAR"
            )
        infos = recent["camera_info"]
        if infos >= _FEWEST_INFOS and recent["image"] < LOST_IMAGES * infos:
            return Level.WARN, (
                f"only {rates['image']:.1f} images/s arrive, but {rates['camera_info']:.1f}"
                " camera_info/s: unless the images alone are throttled, they are lost in transport;"
                " with Fast DDS set FASTRTPS_DEFAULT_PROFILES_FILE"
                " (since Kilted FASTDDS_DEFAULT_PROFILES_FILE) to"
                " share/depth_node/config/fastdds.xml of this package for camera, node and"
                " subscribers"
            )
        latency_ms = last.node_ms if last.stamp_ms is None else last.stamp_ms
        origin = "arrival" if last.stamp_ms is None else "stamp"
        return Level.OK, (
            f"{rates['published']:.1f} of {rates['image']:.1f} frames/s, {latency_ms:.0f} ms after"
            f" their {origin}, {last.points} LiDAR points"
        )

    def _values(
        self, rates: dict[str, float], frames: list[FrameRecord], situation: Situation
    ) -> dict[str, str]:
        values = {
            "backend": situation.backend or "none",
            **{f"engine {name}": value for name, value in situation.engine.items()},
            "subscribers": str(situation.subscribers),
            "image rate [1/s]": f"{rates['image']:.1f}",
            "camera_info rate [1/s]": f"{rates['camera_info']:.1f}",
            "scan rate [1/s]": f"{rates['scan']:.1f}",
            "depth rate [1/s]": f"{rates['published']:.1f}",
        }
        if frames:
            last = frames[-1]
            stamp = [frame.stamp_ms for frame in frames if frame.stamp_ms is not None]
            values["stamp to publish p50/p95 [ms]"] = (
                _percentiles(stamp) if stamp else "stamps are of another clock"
            )
            node = [frame.node_ms for frame in frames]
            values["arrival to publish p50/p95 [ms]"] = _percentiles(node)
            for stage in last.stage_ms:
                times = [frame.stage_ms[stage] for frame in frames if stage in frame.stage_ms]
                values[f"{stage} [ms]"] = f"{np.median(times):.1f}"
            age = last.scan_age_s
            values["scan age [ms]"] = "no scan" if age is None else f"{age * 1e3:.0f}"
            values["points used"] = str(last.points)
            values["fit inliers [%]"] = f"{last.inlier_fraction * 100:.0f}"
            values["fit residual [m]"] = f"{last.residual_m:.3f}"
            if last.status:
                values["fit status"] = last.status
            for key, name, form in _DETAILS:
                if key in last.details:
                    values[name] = form.format(last.details[key]).rstrip("%")
        values.update(situation.extrinsics)
        for name in ("dropped", "refused", "failed", "skipped_no_subscribers"):
            values[f"frames {name}"] = str(self._totals[name])
        if self._totals["skipped_rate_limit"]:
            values["frames skipped_rate_limit"] = str(self._totals["skipped_rate_limit"])
        values["scans refused"] = str(self._totals["scan_refused"])
        if self._scan_reason:
            values["last refusal of a scan"] = self._scan_reason
        if self._reason:
            values["last refusal or failure"] = self._reason
        return values

    def _count(self, event: str, now_s: float, reason: str = "") -> None:
        with self._lock:
            if self._start_s is None:
                self._start_s = now_s
            self._totals[event] += 1
            self._times[event].append(now_s)
            if reason:
                self._reason = reason
            self._drop_old(now_s)

    def _drop_old(self, now_s: float) -> None:
        oldest = now_s - WINDOW_S
        for times in self._times.values():
            while times and times[0] < oldest:
                times.popleft()
        while self._frames and self._frames[0][0] < oldest:
            self._frames.popleft()


def _percentiles(times_ms: list[float]) -> str:
    return "/".join(f"{value:.1f}" for value in np.percentile(times_ms, (50, 95)))
