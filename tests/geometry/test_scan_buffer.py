# SPDX-License-Identifier: Apache-2.0
"""The scan buffer: which scans belong to an image."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from depth_node.geometry.scan_buffer import ScanBuffer

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def cloud(value: float, n: int = 2) -> np.ndarray:
    return np.full((n, 3), value, np.float32)


def values(buffer: ScanBuffer, stamp_ns: int, key: str = "points") -> list[float]:
    """Return the values of all points of a source for an image, the nearest scan first."""
    scans = buffer.nearest(stamp_ns, key, None)
    return [float(value) for scan in scans for value in scan.points[:, 0]]


def test_scans_within_the_age_are_found_the_nearest_first() -> None:
    buffer = ScanBuffer(0.25)
    for i in range(5):
        buffer.add(START + i * SECOND // 10, cloud(i))
    stamp = START + 4 * SECOND // 10
    assert values(buffer, stamp) == [4, 4, 3, 3, 2, 2]
    assert [stamp - scan.stamp_ns for scan in buffer.nearest(stamp, "points", None)] == [
        0, SECOND // 10, SECOND // 5
    ]  # fmt: skip
    assert buffer.newest_stamp_ns() == START + 4 * SECOND // 10


def test_a_picture_processed_late_finds_the_scans_of_its_time() -> None:
    buffer = ScanBuffer(0.1)
    for i in range(10):
        buffer.add(START + i * SECOND // 10, cloud(i))
    found = values(buffer, START + SECOND // 2)
    assert found[0] == 5 and set(found) == {4, 5, 6}  # one before, one at, one after its stamp


def test_too_old_scans_are_not_used_and_memory_stays_bounded() -> None:
    buffer = ScanBuffer(0.1)
    for i in range(200):
        buffer.add(START + i * SECOND // 10, cloud(i))
    held = sum(len(scans) for scans in buffer._scans.values())
    assert held <= 13
    assert buffer.nearest(START + 1000 * SECOND, "points", None) == []


def test_several_sources() -> None:
    buffer = ScanBuffer(0.2)
    buffer.add(START, cloud(1), "front")
    buffer.add(START + SECOND // 20, cloud(2, 3), "rear")
    assert values(buffer, START, "front") == [1, 1]
    assert values(buffer, START, "rear") == [2, 2, 2]
    assert values(buffer, START, "left") == []
    assert buffer.newest_stamp_ns("front") == START
    assert buffer.newest_stamp_ns() == START + SECOND // 20


def test_a_source_that_jumps_back_clears_itself_only() -> None:
    buffer = ScanBuffer(0.2)
    buffer.add(START + 60 * SECOND, cloud(1), "front")
    buffer.add(START + 60 * SECOND, cloud(2), "rear")
    buffer.add(START, cloud(3), "front")
    assert values(buffer, START + 60 * SECOND, "front") == []
    assert values(buffer, START + 60 * SECOND, "rear") == [2, 2]
    assert values(buffer, START, "front") == [3, 3]


def test_scan_slightly_out_of_order_or_repeated() -> None:
    buffer = ScanBuffer(0.2)
    buffer.add(START + SECOND // 10, cloud(1))
    buffer.add(START, cloud(2))
    assert values(buffer, START) == [2, 2, 1, 1]
    buffer.add(START, cloud(2))  # the same scan again is not added
    assert values(buffer, START) == [2, 2, 1, 1]
    buffer.add(START, cloud(5))  # another LiDAR with the same topic, frame and stamp
    assert values(buffer, START) == [2, 2, 5, 5, 1, 1]
    buffer.clear()
    assert buffer.newest_stamp_ns() is None


def test_a_source_that_is_ahead_silences_no_other() -> None:
    buffer = ScanBuffer(0.3)
    for i in range(20):
        buffer.add(START + i * SECOND // 10, cloud(1), "healthy")
        buffer.add(START + i * SECOND // 10 + 100 * SECOND, cloud(2), "ahead")
        assert set(values(buffer, START + i * SECOND // 10, "healthy")) == {1}


def segment(index: int, of: int, shift: float = 0.0) -> np.ndarray:
    """Return a part of a turn of 16 layers, as sent by a LiDAR that does not wait for its end."""
    azimuth = np.radians(np.arange(360 // of) + index * (360 // of) + shift)
    elevation = np.radians(np.linspace(-15, 15, 16))
    azimuth, elevation = (a.ravel() for a in np.meshgrid(azimuth, elevation))
    distance = 5.0 + np.cos(3 * azimuth)
    flat = distance * np.cos(elevation)
    return np.column_stack(
        [flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(elevation)]
    ).astype(np.float32)


@pytest.mark.parametrize("of", [1, 4, 12, 24])
def test_the_pieces_of_a_turn_count_together(of: int) -> None:
    buffer = ScanBuffer(0.25)
    period = SECOND // 10
    for turn in range(4):
        for index in range(of):
            points = segment(index, of, shift=0.3 * turn)
            buffer.add(START + turn * period + index * period // of, points, "lidar")
    stamp = START + 2 * period
    chosen = buffer.nearest(stamp, "lidar", 0)
    assert len(chosen) == of, "one turn: no piece is missing, none comes twice"
    assert max(abs(stamp - scan.stamp_ns) for scan in chosen) <= period // 2 + period // of
    assert len(buffer.nearest(stamp, "lidar", 2)) == 2
    assert len(buffer.nearest(stamp, "lidar", None)) > of


def test_a_sparse_scanner_whose_points_wander_counts_once() -> None:
    buffer = ScanBuffer(0.25)
    points = segment(0, 1)[::7]
    for i in range(4):
        buffer.add(START + i * SECOND // 20, points[i::4], "lidar")
    assert len(buffer.nearest(START, "lidar", 0)) == 1


def test_memory_is_bounded_in_bytes_and_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depth_node.geometry.scan_buffer._MOST_BYTES", 100_000)
    buffer = ScanBuffer(10.0)
    for i in range(200):
        buffer.add(START + i * SECOND // 10, cloud(i, 1000), "big")
        buffer.add(START, cloud(i), "clock that stands still")
    held = [scan.points for scans in buffer._scans.values() for scan in scans.values()]
    assert sum(points.nbytes for points in held) <= 100_000
    assert len(values(buffer, START, "clock that stands still")) == 2 * 64
    assert buffer.newest_stamp_ns("big") == START + 199 * SECOND // 10
    buffer.retain(["big"])
    assert buffer.newest_stamp_ns("clock that stands still") is None


@pytest.mark.parametrize(("count", "held"), [(2, 2), (3, 2), (9, 2)])
def test_a_quarter_of_a_gigabyte_is_held_at_most(count: int, held: int) -> None:
    """Of scans of 96 MB two are kept, not three. They consist of one point, repeated 8e6 times."""
    buffer = ScanBuffer(10.0)
    for i in range(count):
        scan = np.broadcast_to(np.full((1, 3), i, np.float32), (8_000_000, 3))
        buffer.add(START + i * SECOND // 10, scan)
    firsts = [scan.points[0, 0] for scan in buffer.nearest(START, "points", None)]
    assert firsts == list(range(count))[-held:], "the newest"


def test_buffer_filled_and_collected_by_two_threads() -> None:
    buffer = ScanBuffer(0.5)
    errors: list[BaseException] = []

    def fill(key: str) -> None:
        try:
            for i in range(500):
                buffer.add(START + i * SECOND // 100, cloud(i), key)
        except BaseException as error:  # raised again in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=fill, args=(key,)) for key in ("a", "b")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for key in ("a", "b"):
            found = values(buffer, START + SECOND, key)
            assert len(found) == 2 * len(set(found))
    for thread in threads:
        thread.join()
    assert not errors


def test_age_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_scan_age_s"):
        ScanBuffer(0.0)
