# SPDX-License-Identifier: Apache-2.0
"""Scans of several sensors, moved to the time of one image."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.geometry.rolling_shutter import RollingShutter
from depth_node.geometry.scan_buffer import Scan
from depth_node.geometry.seen_points import Exposure, SeenPoints, SensorKind

STAMP_NS, SPEED_M_S = 10**9, 2.0
CAMERA = Camera(64, 48, 50.0, 50.0, 31.5, 23.5)


def since(then_ns: int) -> NDArray[np.float64]:
    """T_now_then of a camera that drives to the right: fixed points were farther right before."""
    T_now_then = np.eye(4)
    T_now_then[0, 3] = -SPEED_M_S * (STAMP_NS - then_ns) * 1e-9
    return T_now_then


def scan(count: int = 3, age_s: float = 0.1, x: float = 0.0) -> Scan:
    points = np.tile(np.float32([x, 0, 5]), (count, 1))
    return Scan(STAMP_NS - round(age_s * 1e9), points)


def add(seen: SeenPoints, one: Scan, kind: SensorKind = SensorKind.LIDAR, **more: object) -> None:
    placed = seen.exposure.by_rows(seen.exposure.moved(one, np.eye(4)), kind)
    options = {"noise_share": 0.0, "nearest": True} | more
    seen.add(one, placed, np.eye(4), "points/lidar", kind, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_scans_are_joined_where_the_image_sees_them(count: int) -> None:
    seen = SeenPoints(Exposure(STAMP_NS, since))
    for k in range(count):
        add(seen, scan(age_s=0.1 * k, x=0.2 * k))  # one place, seen three times
    points, T, age_s, noise_m = seen.joined()
    assert bool(seen) == (count > 0)
    assert len(points) == len(age_s) == len(noise_m) == 3 * count
    place = np.tile([0.0, 0.0, 5.0], (3 * count, 1))
    np.testing.assert_allclose(points @ T[:3, :3].T + T[:3, 3], place, atol=1e-6)
    np.testing.assert_allclose(age_s, np.repeat(0.1 * np.arange(count), 3), atol=1e-6)
    assert [source.lag_s for source in seen.sources] == [0.0] * count


def test_without_motion_a_scan_stays_and_its_lag_is_known() -> None:
    seen = SeenPoints(Exposure(STAMP_NS))
    add(seen, scan(x=0.2))
    np.testing.assert_array_equal(seen.joined()[0], scan(x=0.2).points)
    assert seen.sources[0].lag_s == pytest.approx(-0.1)


def test_unknown_motion_is_told() -> None:
    def unknown(then_ns: int) -> NDArray[np.float64]:
        raise LookupError("no odometry")

    with pytest.raises(LookupError, match="no odometry"):
        Exposure(STAMP_NS, unknown).moved(scan(), np.eye(4))


def test_how_many_scans_belong_to_an_image() -> None:
    still, moving = Exposure(STAMP_NS), Exposure(STAMP_NS, since)
    assert still.most_scans(SensorKind.LIDAR, 0) == 0  # one turn
    assert moving.most_scans(SensorKind.LIDAR, 0) is None  # all that are recent
    assert moving.most_scans(SensorKind.LIDAR, 2) == moving.most_scans(SensorKind.DEPTH_IMAGE, 2)
    assert (
        moving.most_scans(SensorKind.DEPTH_IMAGE, 0) == moving.most_scans(SensorKind.RANGE, 5) == 1
    )


def test_rows_move_what_a_lidar_measured_and_no_depth_image() -> None:
    exposure = Exposure(STAMP_NS, since, RollingShutter(CAMERA, 0.05))
    placed = exposure.moved(scan(age_s=0.0), np.eye(4))
    half_s = 0.05 * 23.5 / 48  # until the row in the middle
    moved = exposure.by_rows(placed, SensorKind.LIDAR).points[0, 0]
    assert moved == pytest.approx(-SPEED_M_S * half_s, rel=0.05)
    assert exposure.by_rows(placed, SensorKind.DEPTH_IMAGE) is placed


def test_only_what_tells_where_its_sensor_is_is_a_source() -> None:
    seen = SeenPoints(Exposure(STAMP_NS))
    add(seen, scan(), nearest=False)
    add(seen, scan(), noise_share=0.1)
    add(seen, scan()._replace(noise_m=np.full(3, 0.1, np.float32)))
    assert not seen.sources
    np.testing.assert_allclose(seen.joined()[3], np.repeat(np.float32([0, 0.5, 0.1]), 3), rtol=1e-5)
    add(seen, scan(), SensorKind.RANGE)
    assert len(seen.echoes) == 1 and len(seen.joined()[0]) == 9
