# SPDX-License-Identifier: Apache-2.0
"""monitor: one level, and one sentence that tells an operator what to do."""

from __future__ import annotations

import dataclasses

import pytest

from depth_node.monitor import FrameRecord, Level, Monitor, Situation

ACTIVE = Situation(backend="onnxruntime-cpu", engine={"check": "correlation 0.99999"})
GOOD = FrameRecord(
    node_ms=40.0,
    stamp_ms=60.0,
    stage_ms={"engine": 12.0, "fit": 5.0},
    scan_age_s=0.02,
    points=900,
    inlier_fraction=0.95,
    residual_m=0.04,
)


def running(frame: FrameRecord = GOOD, seconds: float = 5.0, rate: float = 10.0) -> Monitor:
    monitor = Monitor()
    monitor.reset(0.0)
    for index in range(int(seconds * rate) + 1):
        now = index / rate
        monitor.image(now)
        monitor.scan(now)
        monitor.published(now, frame)
    return monitor


def test_a_healthy_node_says_its_rate_and_latency() -> None:
    report = running().report(5.0, ACTIVE)
    assert report.level == Level.OK
    assert report.message == "10.2 of 10.2 frames/s, 60 ms after their stamp, 900 LiDAR points"
    assert report.values["backend"] == "onnxruntime-cpu"
    assert report.values["engine check"] == "correlation 0.99999"
    assert report.values["stamp to publish p50/p95 [ms]"] == "60.0/60.0"
    assert report.values["engine [ms]"] == "12.0"
    assert report.values["scan age [ms]"] == "20"
    assert report.values["fit inliers [%]"] == "95"
    assert report.values["fit residual [m]"] == "0.040"


def test_what_the_method_tells_of_its_fit_is_passed_on_and_nothing_is_made_up() -> None:
    details = {
        "base": "disparity", "scale": 0.01234567, "shift": -2.5, "leave_one_out": 0.0321,
        "outlier_fraction": 0.004, "coverage": 0.951, "nodes": 4800, "something else": 1,
    }  # fmt: skip
    values = running(dataclasses.replace(GOOD, details=details)).report(5.0, ACTIVE).values
    told = {name: text for name, text in values.items() if name.startswith("fit ")}
    assert told == {
        "fit [ms]": "5.0",
        "fit inliers [%]": "95",
        "fit residual [m]": "0.040",
        "fit base": "disparity",
        "fit base scale": "0.01235",
        "fit base shift": "-2.5",
        "fit left-out error [%]": "3.2",
        "fit outliers [%]": "0.4",
        "fit coverage of the interval [%]": "95.1",
        "fit nodes": "4800",
    }
    assert "fit base" not in running(GOOD).report(5.0, ACTIVE).values


@pytest.mark.parametrize(
    ("situation", "level", "words"),
    [
        (Situation(active=False), Level.OK, "inactive"),
        (Situation(enabled=False), Level.WARN, "~/enable"),
        (Situation(subscribers=0), Level.OK, "no output topic has a subscriber"),
    ],
)
def test_situations_that_explain_silence(situation: Situation, level: Level, words: str) -> None:
    report = running().report(5.0, situation)
    assert report.level == level
    assert words in report.message


def test_no_picture_is_an_error_that_names_the_topic_but_not_in_the_first_seconds() -> None:
    monitor = Monitor()
    monitor.reset(100.0)
    assert monitor.report(101.0, ACTIVE).level == Level.OK
    report = monitor.report(106.0, Situation(image_topic="/camera/image_raw"))
    assert report.level == Level.ERROR
    assert "/camera/image_raw" in report.message


def test_a_camera_that_stops_is_noticed() -> None:
    monitor = running()
    assert monitor.report(9.0, ACTIVE).level == Level.OK
    assert monitor.report(10.5, ACTIVE).level == Level.ERROR


def test_failures_warn_while_frames_come_and_are_an_error_when_none_does() -> None:
    monitor = running()
    monitor.failed(5.0, "RuntimeError: boom")
    report = monitor.report(5.0, ACTIVE)
    assert (report.level, "boom" in report.message) == (Level.WARN, True)
    assert report.values["frames failed"] == "1"
    monitor = Monitor()
    monitor.image(0.0)
    monitor.refused(0.0, "image is 640x480 but camera_info 320x240")
    report = monitor.report(0.5, ACTIVE)
    assert report.level == Level.ERROR
    assert "320x240" in report.message


def test_the_trouble_of_the_last_frame_is_the_sentence() -> None:
    report = running(FrameRecord(node_ms=1.0, trouble="no LiDAR points")).report(5.0, ACTIVE)
    assert (report.level, report.message) == (Level.WARN, "no LiDAR points")
    assert report.values["scan age [ms]"] == "no scan"
    assert report.values["stamp to publish p50/p95 [ms]"] == "stamps are of another clock"


def test_few_inliers_warn() -> None:
    frame = FrameRecord(node_ms=1.0, points=100, inlier_fraction=0.3, residual_m=1.0)
    report = running(frame).report(5.0, ACTIVE)
    assert report.level == Level.WARN
    assert "30%" in report.message


def test_refused_scans_have_a_counter_of_their_own() -> None:
    monitor = running()
    for _ in range(30):
        monitor.scan_refused(5.0, "no field 'z'")
    report = monitor.report(5.0, ACTIVE)
    assert report.level == Level.WARN
    assert report.message == "30 of 51 LiDAR messages were refused: no field 'z'"
    assert report.values["scans refused"] == "30"
    assert report.values["frames refused"] == report.values["frames failed"] == "0"


def test_images_that_get_lost_are_noticed_by_the_rate_of_camera_info() -> None:
    monitor = running()  # ten images a second
    for index in range(101):
        monitor.camera_info(index / 20)
    report = monitor.report(5.0, ACTIVE)
    assert report.level == Level.WARN
    assert "only 10.2 images/s arrive, but 20.2 camera_info/s" in report.message
    assert "fastdds.xml" in report.message
    monitor = running()
    for index in range(51):
        monitor.camera_info(index / 10)
    assert monitor.report(5.0, ACTIVE).level == Level.OK


def test_a_hint_on_the_inputs_takes_the_place_of_a_guess() -> None:
    monitor = Monitor()
    monitor.reset(0.0)
    report = monitor.report(9.0, Situation(input_hint="/image is published as CompressedImage"))
    assert (report.level, report.message) == (Level.ERROR, "/image is published as CompressedImage")


def test_reset_forgets_and_the_window_slides() -> None:
    monitor = running()
    monitor.dropped(5.0)
    assert monitor.total("dropped") == 1
    monitor.reset(5.0)
    assert monitor.total("published") == 0
    assert "frames/s" not in monitor.report(5.5, ACTIVE).message
    monitor = running(seconds=60.0)
    assert monitor.report(60.0, ACTIVE).values["depth rate [1/s]"] == "10.2"
