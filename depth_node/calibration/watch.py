# SPDX-License-Identifier: Apache-2.0
"""ExtrinsicsWatch: judges the extrinsics of each LiDAR in a stream of frames, recorded or live."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np

from depth_node.calibration.monitor import ExtrinsicsMonitor, Finding, Verdict
from depth_node.calibration.observation import (
    FINE_PX,
    edge_map,
    image_edges,
    motion,
    observe_source,
)
from depth_node.frame import FrameInput

PERIOD_S = 0.35
"""Interval between the images that are used: those in between show the same edges."""
MOST_LIDARS = 8
"""Limit on the monitors, in case many frame names arrive that are no LiDARs."""
BURST_S = 0.3
"""CPU time that may be saved up while there is no frame to judge."""
REST_S = 0.1
"""Interval at which a thread that has no CPU time left checks its account again."""
PATIENCE_S = 0.05
"""Longest time that a step waits for the frame that the pipeline is processing."""


_TURN = threading.Lock()  # one frame at a time per process: each needs 20 MiB, mostly waiting


@dataclass(frozen=True)
class Seen:
    """A frame to judge by, and its neighbours, from which the motion is found."""

    before: FrameInput
    frame: FrameInput
    after: FrameInput


class _Chooser:
    """Chooses frames of a stream: one per PERIOD_S, and each frame without a stamp."""

    def __init__(self) -> None:
        self._newest: FrameInput | None = None
        self._chosen: tuple[FrameInput, FrameInput] | None = None  # with the one before it
        self._looked_ns = 0

    def take(self, frame: FrameInput) -> Seen | None:
        """Take the next frame; return the chosen frame before it, with its neighbours, or None."""
        before, chosen = self._newest or frame, self._chosen
        self._newest, self._chosen = frame, None
        if frame.stamp_ns is None:
            return Seen(frame, frame, frame)
        since_s = (frame.stamp_ns - self._looked_ns) * 1e-9
        if not 0 <= since_s < PERIOD_S:  # also after time has jumped back
            self._chosen, self._looked_ns = (before, frame), frame.stamp_ns
        return None if chosen is None else Seen(*chosen, frame)


class ExtrinsicsWatch:
    """Judges each LiDAR of a stream of frames separately; not thread-safe.

    Image edges and motion are computed once for all LiDARs. If the stated pose of a LiDAR changes,
    judging it begins again. Nothing is ever corrected.
    """

    def __init__(self) -> None:
        self._chooser = _Chooser()
        self._monitors: dict[str, ExtrinsicsMonitor] = {}

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The present verdict on each LiDAR, by its name."""
        return {name: monitor.verdict for name, monitor in self._monitors.items()}

    @property
    def verdict(self) -> Verdict:
        """The most serious verdict."""
        return worst(self.verdicts)[1]

    def add(self, frame: FrameInput) -> None:
        """Take the next frame and do all the work that is due."""
        seen = self._chooser.take(frame)
        if seen is not None:
            for _ in self.look(seen):
                pass

    def look(self, seen: Seen) -> Iterator[None]:
        """Judge the LiDARs by one frame, in steps of some milliseconds."""
        image = image_edges(seen.frame)
        twist = motion(seen.before, seen.after)
        if twist is None:
            twist = motion(seen.before, seen.frame)
        yield
        fine = edge_map(image.edges, FINE_PX)
        yield
        for source in seen.frame.of_each_lidar():
            monitor = self._monitors.get(source.source)
            T = source.T_camera_lidar
            if monitor is None or not np.allclose(T, monitor.T_camera_lidar, atol=1e-9):
                if monitor is None and len(self._monitors) >= MOST_LIDARS:
                    continue
                monitor = self._monitors[source.source] = ExtrinsicsMonitor(T)
            observation = observe_source(image, source, twist)
            yield
            for _ in monitor.look(observation, fine):
                yield


def worst(verdicts: dict[str, Verdict]) -> tuple[str, Verdict]:
    """Return the name of the LiDAR with the most serious verdict, and this verdict.

    Without any verdict: an empty name and the verdict of a monitor that has just started.
    """
    order = (Finding.WRONG, Finding.DOUBTFUL, Finding.UNKNOWN, Finding.CONSISTENT)
    if not verdicts:
        return "", Verdict()
    return min(verdicts.items(), key=lambda item: order.index(item[1].finding))


@dataclass
class _Account:
    """CPU time that may be spent: a fraction of what the process has used since the start."""

    process_s: float = field(default_factory=time.process_time)
    own_s: float = field(default_factory=time.thread_time)
    left_s: float = 0.0
    spent_s: float = 0.0
    total_s: float = 0.0

    def settle(self, share: float) -> None:
        """Account for the CPU time of process and calling thread since the last call."""
        process_s, own_s = time.process_time(), time.thread_time()
        self.spent_s += own_s - self.own_s
        self.total_s += process_s - self.process_s
        self.left_s += share * (process_s - self.process_s) - (own_s - self.own_s)
        self.left_s = min(self.left_s, BURST_S)
        self.process_s, self.own_s = process_s, own_s


class BackgroundWatch:
    """An ExtrinsicsWatch in its own thread, limited to a fraction of the process's CPU time.

    Frames that arrive while it is busy or has no CPU time left are ignored. It works in steps of
    some milliseconds and gives priority to frames being processed (`frame_at_work`). A lower
    priority of the operating system would do harm: a thread that holds Python's global interpreter
    lock while it waits for the processor stops all other threads. share: fraction of the CPU time,
    0 = off, without a thread. failed: called with an exception that a frame raised.
    """

    def __init__(self, share: float, failed: Callable[[Exception], None] = lambda error: None):
        self.share = share
        self.spent_s = self.process_s = 0.0  # CPU time of the thread, of the process since then
        self.looks = 0  # frames that were judged
        self._failed = failed
        self._ready = threading.Condition()
        self._idle = threading.Event()  # set while the pipeline processes no frame
        self._idle.set()
        self._chooser = _Chooser()
        self._slot: Seen | None = None
        self._verdicts: dict[str, Verdict] = {}
        self._generation = 0
        self._open = True
        self._thread: threading.Thread | None = None

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The present verdict on each LiDAR, by its name; nothing while it is off."""
        with self._ready:
            return dict(self._verdicts) if self.share > 0 else {}

    @property
    def spent_share(self) -> float:
        """Fraction of the process's CPU time used since the thread started, as of its last step."""
        return self.spent_s / self.process_s if self.process_s > 0 else 0.0

    @contextmanager
    def frame_at_work(self) -> Iterator[None]:
        """Mark a frame as being processed: a step waits for its end, up to PATIENCE_S."""
        self._idle.clear()
        try:
            yield
        finally:
            self._idle.set()

    def offer(self, frame: FrameInput) -> None:
        """Keep a frame to judge by later. Returns at once; its arrays must not change any more."""
        if self.share <= 0:
            return
        with self._ready:
            if self._slot is not None:  # while a frame waits for its turn, no others are kept
                self._chooser = _Chooser()
                return
            seen = self._chooser.take(frame)
            if seen is None or not self._open:
                return
            self._slot = seen
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="depth_node_extrinsics", daemon=True
                )
                self._thread.start()
            self._ready.notify()

    def reset(self) -> None:
        """Forget all frames and verdicts."""
        with self._ready:
            self._generation += 1
            self._chooser, self._slot, self._verdicts = _Chooser(), None, {}

    def close(self, timeout_s: float | None = None) -> bool:
        """End the thread after its present step; True if it ended."""
        with self._ready:
            self._open, self._slot = False, None
            self._ready.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _run(self) -> None:
        account = _Account()
        watch, generation = ExtrinsicsWatch(), self._generation
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._slot or not self._open)
            if not self._take_turn():
                return
            try:
                with self._ready:
                    seen, self._slot = self._slot, None
                    if generation != self._generation:
                        watch, generation = ExtrinsicsWatch(), self._generation
                if seen is None:  # reset() was called in between
                    continue
                for _ in watch.look(seen):
                    if not self._may_go_on(account, generation):
                        break
            except Exception as error:
                with suppress(Exception):  # the thread must outlive a failing report
                    self._failed(error)
            finally:
                seen = None  # otherwise its arrays would be kept until the next frame arrives
                _TURN.release()
            with self._ready:
                self.looks += 1
                if generation == self._generation:
                    self._verdicts = watch.verdicts

    def _take_turn(self) -> bool:
        """Wait for the lock _TURN; returns False, without the lock, once the watch is closed."""
        while self._open:
            if _TURN.acquire(timeout=REST_S):
                if self._open:
                    return True
                _TURN.release()
        return False

    def _may_go_on(self, account: _Account, generation: int) -> bool:
        """Wait for CPU time and for a gap between frames; False if the work is no longer wanted."""
        while True:
            account.settle(self.share)
            self.spent_s, self.process_s = account.spent_s, account.total_s
            with self._ready:
                if not self._open or generation != self._generation or self.share <= 0:
                    return False
                if account.left_s <= 0:
                    self._ready.wait(REST_S)
                    continue
            self._idle.wait(PATIENCE_S)
            return True
