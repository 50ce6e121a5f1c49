# SPDX-License-Identifier: Apache-2.0
"""LiDAR input: each source has its own time and memory, and differing clocks are reported."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from sensor_msgs.msg import LaserScan, PointCloud2

from depth_node.geometry.camera import Camera
from depth_node.geometry.rolling_shutter import RollingShutter
from depth_node.ros.inputs.lidar import LidarInput, LidarPoints, UnreadScan
from depth_node.ros.messages import place, table_message
from depth_node.ros.transforms.extrinsics import Extrinsics
from depth_node.ros.transforms.motion import CameraMotion
from tests.helpers.rig import cloud, header

POINTS = np.random.default_rng(0).normal(5.0, 1.0, (300, 3)).astype(np.float32)


def lidar(max_scan_age_s: float = 0.3, **more: object) -> LidarInput:
    return LidarInput(Extrinsics(np.eye(4)), max_scan_age_s, **more)


def offer(
    to: LidarInput,
    stamp_s: float,
    arrival_s: float,
    points: np.ndarray = POINTS,
    frame: str = "lidar",
    topic: str = "points",
    idle: bool = False,
) -> None:
    to.offer(
        round(stamp_s * 1e9), UnreadScan(cloud(stamp_s, points, frame)), topic, arrival_s, idle
    )


def collect(from_: LidarInput, stamp_s: float, arrival_s: float | None = None) -> LidarPoints:
    return from_.collect("camera", round(stamp_s * 1e9), None, arrival_s)


def laser_scan(stamp_s: float, frame: str) -> LaserScan:
    scan = LaserScan(header=header(stamp_s, frame), range_min=0.1, range_max=50.0)
    scan.angle_min, scan.angle_increment, scan.ranges = -1.0, 0.1, [3.0] * 20
    return scan


# --- sources -------------------------------------------------------------------------------------


def test_a_laser_scan_with_the_header_of_a_cloud_replaces_nothing() -> None:
    """A driver that derives the scan from its cloud."""
    source = lidar()
    for stamp in (1.0, 1.1):
        offer(source, stamp, stamp)
        source.offer(round(stamp * 1e9), UnreadScan(laser_scan(stamp, "lidar")), "scan", stamp)
    got = collect(source, 1.1)
    assert len(got.points) == len(POINTS) + 20
    assert not got.trouble


def test_each_source_is_also_given_by_itself() -> None:
    """The extrinsics monitor gets the scan of each LiDAR that is nearest to the image."""
    source = lidar(scans_per_image=2)
    for stamp in (1.0, 1.1):
        offer(source, stamp, stamp)
    offer(source, 1.02, 1.02, POINTS[:40], frame="side")
    got = collect(source, 1.08)
    assert len(got.points) == 2 * len(POINTS) + 40
    front, side = got.sources
    assert (front.source, side.source) == ("points/lidar", "points/side")
    np.testing.assert_array_equal(front.points, POINTS)
    assert (front.lag_s, side.lag_s) == pytest.approx((0.02, -0.06))


def test_lidars_that_share_topic_frame_and_stamp_are_all_used() -> None:
    source = lidar()
    for part in (POINTS[:100], POINTS[100:250], POINTS[250:]):
        offer(source, 1.0, 1.0, part)
    assert len(collect(source, 1.0).points) == len(POINTS)
    offer(source, 1.0, 1.01, POINTS[:100])
    assert len(collect(source, 1.0).points) == len(POINTS), "the same message again"


def test_each_topic_has_its_own_noise() -> None:
    """Relative noise for landmarks, none for the LiDAR; only the LiDAR is monitored."""
    both = lidar()
    both.relative_noise = {"landmarks": 0.05}
    points = np.array([[3.0, 0.0, 4.0]], np.float32)
    both.offer(10**9, UnreadScan(cloud(1.0, points)), "points")
    both.offer(10**9, UnreadScan(cloud(1.0, 2 * points, "radar")), "landmarks")
    found = collect(both, 1.0)
    distance = np.linalg.norm(found.points, axis=1)
    declared = dict(zip(distance.round(1).tolist(), np.asarray(found.noise_m), strict=True))
    assert declared[5.0] == 0.0 and declared[10.0] == pytest.approx(0.5)
    assert [source.source for source in found.sources] == ["points/lidar"]


def test_a_lidar_whose_clock_is_ahead_silences_no_other_and_is_named() -> None:
    source = lidar()
    for i in range(20):
        now = i / 10
        offer(source, now + 1.7, now, frame="ahead")
        offer(source, now, now + 0.001, POINTS[:50], frame="healthy")
        got = collect(source, now, now + 0.002)
        assert len(got.points) == 50, "also when its scans of long ago seem to fit"
        assert (got.age_s == 0).all()
    assert "frame 'ahead'" in got.trouble and "1.7 s ahead" in got.trouble


def test_a_source_that_jumps_back_clears_itself_only() -> None:
    source = lidar()
    for frame in ("loops", "stays"):
        offer(source, 100.0, 1.0, frame=frame)
    assert len(collect(source, 100.0).points) == 2 * len(POINTS)
    offer(source, 10.0, 1.1, frame="loops")
    assert len(collect(source, 10.0).points) == len(POINTS)
    assert len(collect(source, 100.0).points) == len(POINTS)


def test_a_turn_in_twelve_pieces_counts_together() -> None:
    source = lidar()
    for index in range(36):
        angle = np.radians(np.arange(30) + 30 * (index % 12))
        piece = np.column_stack([5 * np.cos(angle), 5 * np.sin(angle), np.zeros(30)])
        offer(source, 1 + index / 120, 1 + index / 120, piece.astype(np.float32))
    assert len(collect(source, 1.15).points) == 360


# --- memory --------------------------------------------------------------------------------------


def held(source: LidarInput) -> int:
    waiting = [m for s in source._sources.values() for _, m in s.waiting]
    stored = [scan for scans in source._buffer._scans.values() for scan in scans.values()]
    return sum(scan.size_bytes for scan in waiting) + sum(scan.points.nbytes for scan in stored)


def test_a_flood_of_frames_is_bounded_and_drives_out_no_lidar() -> None:
    source = lidar()
    one = POINTS.nbytes
    for i in range(600):
        now = i / 100
        if i % 10 == 0:
            offer(source, now, now, frame="healthy")
        offer(source, now, now, frame=f"invented {i}")
        if i % 50 == 49:
            got = collect(source, now, now)
            assert len(got.points) >= len(POINTS)
    assert ("points", "healthy") in source._sources
    assert len(source._sources) <= 32
    assert held(source) <= 32 * 4 * one
    for i in range(3):
        offer(source, 20 + i, 20.0 + i, frame="healthy")
        collect(source, 20 + i, 20.0 + i)
    assert list(source._sources) == [("points", "healthy")], "the silent ones are forgotten"
    assert len(source._buffer._scans) == 1
    source.clear()
    assert held(source) == 0


def test_while_nobody_listens_one_message_of_each_lidar_is_kept() -> None:
    source = lidar(max_scan_age_s=10.0)
    for i in range(50):
        offer(source, i / 10, i / 10, idle=True)
        offer(source, i / 10, i / 10, frame="other", idle=True)
    assert held(source) == 2 * POINTS.nbytes
    assert len(collect(source, 4.9).points) == 2 * len(POINTS), "ready for the first image"


def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depth_node.ros.inputs.lidar._MOST_WAITING_BYTES", 10 * POINTS.nbytes)
    source = lidar(max_scan_age_s=10.0)
    for i in range(50):
        offer(source, i / 10, i / 10)
    assert held(source) <= 10 * POINTS.nbytes
    assert len(collect(source, 4.9).points) == len(POINTS), "the newest is there"


# --- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_scan_age_s", [0.3, 40.0])
@pytest.mark.parametrize("offset_s", [37.0, -37.0, 18.0, -5.0])
@pytest.mark.parametrize("speed", [1.0, 50.0])
def test_a_clock_offset_is_named_in_seconds_with_its_cure(
    offset_s: float, max_scan_age_s: float, speed: float
) -> None:
    """Also with a max_scan_age_s that would match scans which are really that old, and with a bag
    that is played fast."""
    source = lidar(max_scan_age_s)
    for i in range(600):
        now = 1.7e9 + i / 10
        offer(source, now + offset_s, i / 10 / speed + 0.01)
        got = collect(source, now, i / 10 / speed + 0.02)
        if i >= 3:
            assert not len(got.points)
            assert "the clocks differ" in got.trouble
    side = "ahead of" if offset_s > 0 else "behind"
    assert f"{abs(offset_s):.1f} s {side}" in got.trouble
    cure = re.search(r"lidar_time_offset_s to (-?[\d.]+)", got.trouble)
    assert cure and float(cure[1]) == pytest.approx(-offset_s, abs=0.3)
    assert ("TAI" in got.trouble) == (abs(offset_s) == 37)


def test_the_cure_counts_the_offset_that_is_set_already() -> None:
    source = lidar()
    source.time_offset_s = -18.0
    for i in range(5):
        offer(source, i / 10 + 19.0, i / 10)
        got = collect(source, i / 10, i / 10)
    assert "lidar_time_offset_s to -37" in got.trouble


@pytest.mark.parametrize(
    ("image_late_s", "scan_late_s"), [(0.8, 0.05), (0.05, 0.25), (0.0, 0.0), (1.2, 0.0)]
)
def test_latency_is_no_clock_offset(image_late_s: float, scan_late_s: float) -> None:
    source = lidar()
    events = sorted(
        [(i / 10 + scan_late_s, 0, i / 10) for i in range(60)]
        + [(i / 30 + image_late_s, 1, i / 30) for i in range(180)]
    )
    for arrival, is_image, stamp in events:
        if not is_image:
            offer(source, stamp, arrival)
        elif stamp > 1 and arrival < 6:
            got = collect(source, stamp, arrival)
            assert len(got.points) == len(POINTS), got.trouble
            assert not got.trouble


@pytest.mark.parametrize(("image_late_s", "scan_late_s"), [(1.8, 0.05), (0.05, 1.8)])
def test_a_latency_that_may_be_a_clock_offset_is_named_with_the_cures_of_both(
    image_late_s: float, scan_late_s: float
) -> None:
    """Clocks that agree, and a pipeline of 1.8 s: to set lidar_time_offset_s would be wrong."""
    source = lidar()
    events = sorted(
        [(i / 10 + scan_late_s, 0, i / 10) for i in range(60)]
        + [(i / 30 + image_late_s, 1, i / 30) for i in range(180)]
    )
    trouble = ""
    for arrival, is_image, stamp in events:
        if not is_image:
            offer(source, stamp, arrival)
        else:
            trouble = collect(source, stamp, arrival).trouble or trouble
    late = "images" if image_late_s > 1 else "scans"
    assert f"or the {late} come too late" in trouble and "queues" in trouble
    assert "the clocks differ" in trouble and "lidar_time_offset_s to" in trouble
    assert "a clock offset" not in trouble, "that would be only one of the two"


def test_a_bag_that_pauses_is_no_clock_offset() -> None:
    source = lidar()
    for i in range(200):
        arrival = i / 10 + (60.0 if i >= 100 else 0.0)
        offer(source, i / 10, arrival)
        for image in range(3):
            got = collect(source, i / 10 + image / 30, arrival + image / 30)
            assert len(got.points) == len(POINTS), got.trouble


def test_a_lidar_that_stops_is_no_clock_offset() -> None:
    source = lidar()
    for i in range(20):
        offer(source, i / 10, i / 10)
        collect(source, i / 10, i / 10)
    for i in range(20, 100):
        got = collect(source, i / 10, i / 10)
    assert "8.00 s older than the image" in got.trouble
    assert "frame 'lidar'" in got.trouble


# --- refusals ------------------------------------------------------------------------------------


def test_refusals_reach_the_counter_with_their_place() -> None:
    refused: list[ValueError] = []
    source = lidar(refused=refused.append)
    for i in range(40):
        message = cloud(1 + i / 100, POINTS)
        message.data = message.data[: 12 * (i + 1)]
        source.offer(round((1 + i / 100) * 1e9), UnreadScan(message), "points", 0.0)
    collect(source, 1.0)
    assert len(refused) == 40
    assert len({str(error) for error in refused}) == 40
    kinds = {place(error) for error in refused}
    assert len(kinds) == 1, "one kind, whatever the numbers"
    message = cloud(2.0, POINTS)
    message.fields[0].name = "forward"
    source.offer(2 * 10**9, UnreadScan(message), "points", 0.0)
    collect(source, 2.0)
    assert place(refused[-1]) not in kinds, "another kind, that is said beside it"


# --- points that have times of their own ---------------------------------------------------------


class Approach:
    """TF of a camera that moves at 10 m/s along its axis, known at all times."""

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        T = np.eye(4)
        T[2, 3] = 10.0 * (stamp_ns or 0) * 1e-9
        return T, stamp_ns or 0

    def forget_moving(self) -> None: ...

    def close(self) -> None: ...


def spinning_cloud(stamp_s: float, ticks: np.ndarray, frame: str = "lidar") -> PointCloud2:
    """Return the cloud of a point that is at 20 m at time 0."""
    rows = np.zeros(len(ticks), [("x", "f4"), ("y", "f4"), ("z", "f4"), ("t", "u4")])
    rows["z"] = 20.0 - 10.0 * (stamp_s + ticks * 1e-9)
    rows["t"] = ticks
    return table_message(rows, header(stamp_s, frame))


def test_each_point_is_moved_by_its_own_time() -> None:
    source = lidar()
    motion = CameraMotion("odom", Approach(), 0.1)
    ticks = np.linspace(0, 1e8, 200).astype(np.uint32)
    source.offer(1_000_000_000, UnreadScan(spinning_cloud(1.0, ticks)), "points", 1.1)
    got = source.collect("camera", 1_050_000_000, motion)
    np.testing.assert_allclose(got.points[:, 2], 9.5, atol=1e-3)
    np.testing.assert_allclose(got.age_s, np.abs(0.05 - ticks * 1e-9), atol=1e-6)
    still = source.collect("camera", 1_050_000_000, None)
    assert np.ptp(still.points[:, 2]) == pytest.approx(1.0, abs=1e-3), "nobody says that it moves"


def test_times_that_count_within_the_second_are_not_taken_for_times_since_the_stamp() -> None:
    """Early in a second nothing in a message distinguishes them; later they exceed the time of a
    scan.

    At 10 m/s the points would be up to 4 m off.
    """
    source = lidar()
    motion = CameraMotion("odom", Approach(), 0.1)
    turn = np.linspace(0, 1e8, 200)
    wrong = []
    for i in range(30):
        stamp_s = 1.6 + 0.1 * i
        ticks = ((stamp_s % 1) * 1e9 + turn) % 1e9
        scan = spinning_cloud(stamp_s, ticks.astype(np.uint32))
        source.offer(round(stamp_s * 1e9), UnreadScan(scan), "points", stamp_s + 0.1)
        got = source.collect("camera", round(stamp_s * 1e9), motion)
        wrong.append(bool(np.ptp(got.age_s[-200:])))
    assert not any(wrong), "a scan of which no time of a point is known has one age"


def test_a_rolling_shutter_sees_each_point_at_its_rows_time() -> None:
    """At 10 m/s the last row, 50 ms later, sees a point half a metre nearer than the first."""
    source = lidar()
    points = np.array([[0.0, y, 10.0] for y in np.linspace(-4.7, 4.5, 50)], np.float32)
    source.offer(1_000_000_000, UnreadScan(cloud(1.0, points, "lidar")), "points", 1.0)
    shutter = RollingShutter(Camera(100, 100, 100.0, 100.0, 49.5, 49.5), 0.05)
    motion = CameraMotion("odom", Approach(), 0.1)
    got = source.collect("camera", 1_000_000_000, motion, shutter=shutter)
    row = 49.5 + 100 * got.points[:, 1] / got.points[:, 2]
    want = 10 - 10 * 0.05 * np.clip(row, 0, 99) / 99
    np.testing.assert_allclose(got.points[:, 2], want, atol=5e-3)
    (source_points,) = got.sources
    np.testing.assert_array_equal(source_points.points, got.points)
    still = source.collect("camera", 1_000_000_000, motion)
    np.testing.assert_allclose(still.points[:, 2], 10.0, atol=1e-5)


def test_the_correction_of_the_clock_moves_the_points_times_too() -> None:
    source = lidar()
    ticks = np.linspace(0, 1e8, 200).astype(np.uint32)
    message = spinning_cloud(38.0, ticks)
    source.offer(1_000_000_000, UnreadScan(message), "points", 1.1)  # lidar_time_offset_s = -37
    got = source.collect("camera", 1_050_000_000, CameraMotion("odom", Approach(), 0.1))
    np.testing.assert_allclose(got.age_s, np.abs(0.05 - ticks * 1e-9), atol=1e-6)


def test_times_that_mean_nothing_are_told_once_for_each_source() -> None:
    sentences: list[str] = []
    source = lidar(warned=sentences.append)
    motion = CameraMotion("odom", Approach(), 0.1)
    ticks = np.linspace(0, 4e9, 200).astype(np.uint32)
    for i in range(5):
        for frame in ("front", "rear"):
            stamp_s = 1.0 + 0.1 * i
            cloud = spinning_cloud(stamp_s, ticks, frame)
            source.offer(round(stamp_s * 1e9), UnreadScan(cloud), "points", stamp_s)
        assert len(source.collect("camera", round(stamp_s * 1e9), motion).points) >= 400
    assert len(sentences) == 3 and "points of all frames" in sentences.pop()
    assert "frame 'front'" in sentences[0] and "'t'" in sentences[0]
    for i in range(200):
        scan = UnreadScan(spinning_cloud(2.0, ticks, f"invented {i}"))
        source.offer(2_000_000_000, scan, "points", 2.0)
        source.collect("camera", 2_000_000_000, motion)
    assert len(sentences) <= 32
