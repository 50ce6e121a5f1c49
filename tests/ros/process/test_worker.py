# SPDX-License-Identifier: Apache-2.0
"""LatestWorker: the newest item wins, it survives an exception, close() waits."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from depth_node.ros.process.worker import LatestWorker, Pace


def test_the_newest_wins_and_whoever_offers_hears_of_drops() -> None:
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()
    seen: list[int] = []

    def work(item: int) -> None:
        seen.append(item)
        started.set()
        assert go_on.wait(5)
        if item == 3:
            done.set()

    worker = LatestWorker(work, lambda error: None, "test")
    assert not worker.offer(0)
    assert started.wait(5)
    dropped = [worker.offer(item) for item in (1, 2, 3)]
    assert dropped == [False, True, True]
    go_on.set()
    assert done.wait(5)
    assert worker.close(5)
    assert seen == [0, 3]


def test_an_exception_is_reported_and_the_next_item_works() -> None:
    errors: list[Exception] = []
    done = threading.Event()

    def work(item: int) -> None:
        if item == 0:
            raise RuntimeError("boom")
        done.set()

    failed = threading.Event()
    worker = LatestWorker(work, lambda error: (errors.append(error), failed.set()), "test")
    worker.offer(0)
    assert failed.wait(5)
    worker.offer(1)
    assert done.wait(5)
    assert worker.close(5)
    assert [str(error) for error in errors] == ["boom"]


def test_close_finishes_the_item_at_hand_and_leaves_the_waiting_one() -> None:
    started, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def work(item: int) -> None:
        started.set()
        assert go_on.wait(5)
        seen.append(item)

    worker = LatestWorker(work, lambda error: None, "test")
    worker.offer(0)
    assert started.wait(5)
    worker.offer(1)
    assert not worker.close(0.01), "still at work"
    go_on.set()
    assert worker.close(5)
    assert seen == [0]


@pytest.mark.parametrize("camera_hz", [10.0, 10.4, 14.0, 25.0, 30.0, 100.0])
def test_a_pace_is_kept_on_average(camera_hz: float) -> None:
    pace = Pace()
    jitter_s = np.random.default_rng(0).uniform(-0.2, 0.2, 3000) / camera_hz
    stamps = np.sort(np.arange(3000) / camera_hz + jitter_s) + 1.7e9
    taken = [stamp for stamp in stamps if pace.due(round(stamp * 1e9), 10.0)]
    seconds = stamps[-1] - stamps[0]
    assert len(taken) == pytest.approx(10.0 * seconds, rel=0.02)


def test_a_pause_is_not_made_up_for() -> None:
    pace = Pace()
    assert pace.due(0, 10.0)
    assert [pace.due(round(t * 1e9), 10.0) for t in (60.0, 60.04, 60.06, 60.1, 60.16)] == [
        True, True, False, True, False
    ]  # fmt: skip


def test_without_a_limit_every_image_is_taken() -> None:
    assert all(Pace().due(stamp, 0.0) for stamp in (0, 0, 1, 5))
