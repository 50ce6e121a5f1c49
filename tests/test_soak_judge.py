# SPDX-License-Identifier: Apache-2.0
"""Evaluation of the soak: it finds leaks, stuck nodes, tracebacks and lost frames, not noise."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.soak_judge import (
    Failures,
    Flow,
    Frames,
    Limits,
    LogReader,
    Sample,
    growth,
    slope,
)

LIMITS = Limits()


def life(seconds: int, mb_per_h: float = 0.0, threads_per_h: float = 0.0, number: int = 1) -> list:
    """Return samples of a process that takes 100 MB in its warm-up and then grows, with noise."""
    noise = np.random.default_rng(0).normal(scale=3.0, size=seconds)
    return [
        Sample(
            float(t), number, float(t), 300 + min(t, 200) / 2 + mb_per_h * t / 3600 + noise[t],
            200.0, 20.0, int(20 + threads_per_h * t / 3600), 26,
        )
        for t in range(seconds)
    ]  # fmt: skip


def test_a_leak_is_found_and_warm_up_and_noise_are_none() -> None:
    assert growth(life(2400), LIMITS)["grown"] == []
    leak = growth(life(2400, mb_per_h=60.0), LIMITS)
    assert leak["judged"] and "memory grows by" in leak["grown"][0]
    assert leak["rss_mb_per_h"] == pytest.approx(60.0, abs=6.0)
    assert "threads grow" in growth(life(2400, threads_per_h=12.0), LIMITS)["grown"][0]


def test_only_the_longest_life_counts_and_a_short_one_is_not_judged() -> None:
    samples = life(100, mb_per_h=9e4) + life(2400, number=2) + life(50, mb_per_h=9e4, number=3)
    assert growth(samples, LIMITS)["life"] == 2 and not growth(samples, LIMITS)["grown"]
    short = growth(life(200), LIMITS)
    assert not short["judged"] and not short["grown"]
    assert growth([], LIMITS) == {"judged": False, "grown": []}


def test_a_single_peak_is_no_slope() -> None:
    values = [300.0] * 500
    values[250] = 900.0
    assert slope(range(500), values) == 0.0


def feed(flow: Flow, start_s: float, end_s: float, known: float | None) -> str:
    """Ten images per second; depth with this fraction of known pixels, or no depth."""
    for t in np.arange(start_s, end_s, 0.1):
        flow.image(t)
        if known is not None:
            flow.depth(t, known)
    return flow.trouble(end_s, calm_since_s=0.0)


def test_stuck_and_blind_are_told_apart() -> None:
    flow = Flow(LIMITS)
    assert feed(flow, 0.0, 20.0, 0.9) == ""
    assert feed(flow, 20.0, 24.0, None) == ""
    assert feed(flow, 24.0, 26.0, None) == "stuck"
    assert feed(flow, 26.0, 40.0, 0.0) == "blind"
    assert feed(flow, 40.0, 41.0, 0.5) == ""


def test_no_input_and_a_fault_are_no_reason_to_be_stuck() -> None:
    flow = Flow(LIMITS)
    feed(flow, 0.0, 10.0, 0.9)
    assert flow.trouble(30.0, 0.0) == "", "nothing comes in"
    assert feed(flow, 30.0, 34.0, None) == "", "it has just begun to flow again"
    assert flow.trouble(34.5, float("inf")) == ""
    feed(flow, 34.0, 40.0, None)
    assert flow.trouble(40.0, 36.0) == "", "calm for four seconds only"
    assert flow.trouble(40.0, 30.0) == "stuck"


def test_frames_are_matched_by_stamp_and_what_the_node_explains_is_not_lost() -> None:
    frames = Frames()
    for number in range(1, 11):
        frames.sent(number, number / 10, calm=True)
    for number in range(1, 6):
        frames.received(number, number / 10 + 0.05)
    frames.told({"frames dropped": "2"}, calm=True)
    frames.told({"frames dropped": "1"}, calm=True)  # counted anew after a reset
    frames.expire(10.0, calm=True)
    assert frames.counts["in"] == 10 and frames.counts["out"] == 5
    assert frames.counts["dropped"] == 3 and frames.lost == 2
    assert frames.percentiles() == pytest.approx([50.0] * 3)


def test_frames_of_a_fault_are_not_lost() -> None:
    frames = Frames()
    frames.sent(1, 0.0, calm=False)
    frames.expire(10.0, calm=True)
    assert frames.lost == 0 and frames.counts["unanswered, fault"] == 1


def test_a_traceback_is_taken_whole() -> None:
    reader = LogReader()
    lines = ["[INFO] up", "Traceback (most recent call last):", '  File "x.py"', "    f()",
             "ValueError: no", "[ERROR] [1.5] [depth_node]: 3 frames"]  # fmt: skip
    told = [text for text in map(reader.line, lines) if text]
    assert told == ["\n".join(lines[1:5])]
    assert reader.errors == {"# frames": 1}
    reader.line("/x.py:71: RuntimeWarning: invalid value")
    assert reader.errors["/x.py:#: RuntimeWarning: invalid value"] == 1
    reader.line("Fatal Python error: Segmentation fault")
    assert reader.flush() == "Fatal Python error: Segmentation fault"


def test_equal_failures_are_one_with_a_count() -> None:
    failures = Failures()
    assert failures.add("crash", "log\nstatus 1 after 3 s", 1.0, "hostile", ["a"])
    assert not failures.add("crash", "other log\nstatus 1 after 9 s", 2.0, "tf_loss", [])
    assert failures.add("stuck", "status 1 after 3 s", 3.0, "", [])
    assert [failure["count"] for failure in failures.as_dicts()] == [2, 1]
