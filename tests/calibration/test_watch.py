# SPDX-License-Identifier: Apache-2.0
"""Frames are chosen by their stamps, LiDARs are judged separately, and the node is not delayed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import pytest

from depth_node.benchmarks.calibration import faulty_frames
from depth_node.benchmarks.calibration_sequences import RenderedWalk
from depth_node.calibration import watch as module
from depth_node.calibration.monitor import Finding
from depth_node.calibration.watch import BURST_S, BackgroundWatch, ExtrinsicsWatch, Seen
from depth_node.frame import FrameInput, SourcePoints
from depth_node.simulation.walk import T_CAMERA_LIDAR
from tests.helpers.watch import stuck_watch

PATIENCE_S = 60.0  # a busy machine; only a failing test waits that long


def looked_at(frames: list[FrameInput], monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    seen: list[Seen] = []

    def look(self: ExtrinsicsWatch, one: Seen) -> Iterator[None]:
        seen.append(one)
        return iter(())

    monkeypatch.setattr(ExtrinsicsWatch, "look", look)
    watch = ExtrinsicsWatch()
    for frame in frames:
        watch.add(frame)
    return seen


def stamped(frame: FrameInput, stamps_s: list[float]) -> list[FrameInput]:
    return [dataclasses.replace(frame, stamp_ns=round(s * 1e9)) for s in stamps_s]


@pytest.mark.parametrize("rate_hz", [1, 2, 10, 30])
def test_a_frame_every_third_of_a_second_at_any_rate(
    short_walk: RenderedWalk, monkeypatch: pytest.MonkeyPatch, rate_hz: int
) -> None:
    frames = stamped(short_walk.frames(16)[0], [5 + k / rate_hz for k in range(12 * rate_hz)])
    seen = looked_at(frames, monkeypatch)
    stamps = np.array([one.frame.stamp_ns for one in seen], np.float64) * 1e-9
    assert len(stamps) >= 11 * min(rate_hz, 2.4)
    gaps = np.diff(stamps)
    assert gaps.min() >= module.PERIOD_S and gaps.max() <= max(module.PERIOD_S, 0) + 1 / rate_hz
    index = {id(frame): k for k, frame in enumerate(frames)}
    for one in seen[1:]:
        k = index[id(one.frame)]
        assert (index[id(one.before)], index[id(one.after)]) == (k - 1, k + 1)


def test_time_that_jumps_back_and_frames_without_stamps(
    short_walk: RenderedWalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = short_walk.frames(16)[0]
    seen = looked_at(stamped(frame, [100.0, 100.1, 3.0, 3.1]), monkeypatch)
    assert [one.frame.stamp_ns for one in seen] == [100_000_000_000, 3_000_000_000]
    alone = dataclasses.replace(frame, stamp_ns=None)
    monkeypatch.undo()
    assert len(looked_at([alone, alone], monkeypatch)) == 2


def two_lidars(walk: RenderedWalk) -> list[FrameInput]:
    """Return frames with one LiDAR at its stated pose and one that is turned by a degree."""
    frames = []
    for right, turned in zip(walk.frames(64), faulty_frames(walk, 64, "yaw"), strict=True):
        assert right.points is not None and turned.T_camera_lidar is not None
        T = turned.T_camera_lidar
        sources = (
            SourcePoints("front", right.points, T_CAMERA_LIDAR, T_CAMERA_LIDAR),
            SourcePoints("side", right.points, T, T),
        )
        frames.append(dataclasses.replace(right, sources=sources))
    return frames


def test_each_lidar_is_judged_by_itself(short_walk: RenderedWalk) -> None:
    watch = ExtrinsicsWatch()
    frames = two_lidars(short_walk)
    for _ in range(3):
        for k in range(1, len(frames) - 1):
            for _ in watch.look(Seen(*frames[k - 1 : k + 2])):
                pass
    assert watch.verdicts["front"].finding is Finding.CONSISTENT
    assert watch.verdicts["side"].finding is Finding.WRONG
    assert module.worst(watch.verdicts)[0] == "side"


def test_what_is_measured_later_is_moved_to_the_image(short_walk: RenderedWalk) -> None:
    """50 ms given by the stamps are no time offset; 50 ms that the stamps do not contain are."""
    late = short_walk.frames(64, late=True)
    for lag_s, expected in ((0.05, 0.0), (0.0, 0.05)):
        frames = []
        for frame in late:
            assert frame.points is not None
            T = T_CAMERA_LIDAR
            source = SourcePoints("", frame.points, T, T, lag_s)
            frames.append(dataclasses.replace(frame, sources=(source,)))
        watch = ExtrinsicsWatch()
        for _ in range(3):
            for k in range(1, len(frames) - 1):
                for _ in watch.look(Seen(*frames[k - 1 : k + 2])):
                    pass
        correction = watch.verdict.correction
        assert correction is not None
        assert correction[6] == pytest.approx(expected, abs=0.015)


def test_a_flood_of_lidars_is_bounded(short_walk: RenderedWalk) -> None:
    frame = short_walk.frames(16)[0]
    assert frame.points is not None
    T = T_CAMERA_LIDAR
    sources = tuple(SourcePoints(str(k), frame.points[:50], T, T) for k in range(40))
    watch = ExtrinsicsWatch()
    watch.add(dataclasses.replace(frame, stamp_ns=None, sources=sources))
    assert len(watch.verdicts) == module.MOST_LIDARS


# --- in the background ---------------------------------------------------------------------------


def until(condition: object, what: str) -> None:
    assert callable(condition)
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"no {what}"
        time.sleep(0.005)


def test_the_background_says_what_the_foreground_says(short_walk: RenderedWalk) -> None:
    frames = [dataclasses.replace(f, stamp_ns=None) for f in short_walk.frames(64)]
    foreground, background = ExtrinsicsWatch(), BackgroundWatch(1.0)
    for number, frame in enumerate(frames):
        foreground.add(frame)
        background.offer(frame)
        until(lambda n=number: background.verdicts and background.verdicts[""].frames > n, "look")
    assert background.verdicts[""].text() == foreground.verdicts[""].text()
    background.reset()
    assert not background.verdicts
    background.offer(frames[0])
    until(lambda: background.verdicts, "verdict after the reset")
    assert background.verdicts[""].frames == 1
    assert background.close(PATIENCE_S)


def test_a_frame_never_waits_for_the_watch(
    short_walk: RenderedWalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = stuck_watch(monkeypatch)
    frame = dataclasses.replace(short_walk.frames(16)[0], stamp_ns=None)
    background = BackgroundWatch(1.0)
    background.offer(frame)
    assert begun.wait(PATIENCE_S)
    for _ in range(100):  # the watch is stuck in the first one
        with background.frame_at_work():
            pass
        background.offer(frame)
        assert background.verdicts == {}
    background.reset()
    released.set()
    assert background.close(PATIENCE_S)


def test_no_step_begins_while_a_frame_is_at_work(
    short_walk: RenderedWalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", PATIENCE_S)
    frame = dataclasses.replace(short_walk.frames(16)[0], stamp_ns=None)
    background = BackgroundWatch(1.0)
    with background.frame_at_work():
        background.offer(frame)
        until(lambda: background._slot is None, "beginning")
        assert not background.verdicts
    until(lambda: background.verdicts, "verdict")
    assert background.close(PATIENCE_S)


@pytest.mark.slow
def test_it_spends_its_share_and_no_more(short_walk: RenderedWalk) -> None:
    """The share is of this process's CPU time, which only this test uses."""
    share = 0.05
    frames = [dataclasses.replace(f, stamp_ns=None) for f in short_walk.frames(64)]
    background = BackgroundWatch(share)
    begin_s = time.process_time()
    number = 0
    while time.process_time() - begin_s < 2.0:
        with background.frame_at_work():
            np.sort(np.random.default_rng(0).random(200_000))
        background.offer(frames[number % len(frames)])
        number += 1
    spent_s, total_s = background.spent_s, time.process_time() - begin_s
    assert background.close(PATIENCE_S)
    assert spent_s > 0.5 * share * total_s, "what it may spend is used"
    assert spent_s < share * total_s + 0.05, "a step more than the share at most"
    assert BURST_S < 1.0


def test_off_there_is_no_thread(short_walk: RenderedWalk) -> None:
    background = BackgroundWatch(0.0)
    for frame in short_walk.frames(16):
        background.offer(dataclasses.replace(frame, stamp_ns=None))
    assert background._thread is None and not background.verdicts
    assert background.close()


def test_a_frame_that_raises_is_told_and_the_next_one_is_judged(short_walk: RenderedWalk) -> None:
    told: list[Exception] = []
    frame = dataclasses.replace(short_walk.frames(16)[0], stamp_ns=None)
    background = BackgroundWatch(1.0, told.append)
    background.offer(dataclasses.replace(frame, image=np.zeros((0, 0, 3), np.uint8)))
    until(lambda: told, "report")
    background.offer(frame)
    until(lambda: background.verdicts, "verdict")
    assert background.close(PATIENCE_S)


def test_watches_of_one_process_look_in_turn(
    short_walk: RenderedWalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So several cameras need the memory of one frame only; a closed watch does not wait."""
    looking: list[int] = []
    most: list[int] = []

    def look(self: ExtrinsicsWatch, seen: Seen) -> Iterator[None]:
        looking.append(1)
        for _ in range(5):
            most.append(len(looking))
            time.sleep(0.002)
            yield
        looking.pop()

    monkeypatch.setattr(ExtrinsicsWatch, "look", look)
    frame = dataclasses.replace(short_walk.frames(16)[0], stamp_ns=None)
    watches = [BackgroundWatch(1.0) for _ in range(3)]
    for watch in watches:
        watch.offer(frame)
    until(lambda: all(watch.looks for watch in watches), "looks of all")
    assert max(most) == 1
    with module._TURN:
        watches[0].offer(frame)
        assert watches[0].close(PATIENCE_S)
    assert all(watch.close(PATIENCE_S) for watch in watches)
