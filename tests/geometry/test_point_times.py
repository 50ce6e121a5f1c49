# SPDX-License-Identifier: Apache-2.0
"""point_times: how the numbers of drivers' time fields are read, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.geometry.point_times import (
    TIME_FIELDS,
    UnknownTimesError,
    joined,
    seconds_from_stamp,
    split_name,
)

STAMP_NS = 1_700_000_000_123_456_789
TURN_S = np.linspace(0.0, 0.1, 5000)
ABSOLUTE_S = STAMP_NS * 1e-9 + TURN_S


@pytest.mark.parametrize(
    ("name", "values", "want"),
    [
        pytest.param("time", (TURN_S - 0.1).astype("f4"), TURN_S - 0.1, id="velodyne"),
        pytest.param("time", TURN_S.astype("f4"), TURN_S, id="velodyne, from the first point"),
        pytest.param("t", (1e9 * TURN_S).astype("u4"), TURN_S, id="ouster"),
        pytest.param("timestamp", ABSOLUTE_S, TURN_S, id="hesai, robosense"),
        pytest.param("timestamp", ABSOLUTE_S - 0.1, TURN_S - 0.1, id="stamp of the last point"),
        pytest.param("timestamp", ABSOLUTE_S + 0.7, TURN_S + 0.7, id="a driver that stamps early"),
        pytest.param("time", (4.5 * TURN_S).astype("f4"), 4.5 * TURN_S, id="two turns a second"),
        pytest.param("timestamp", 1e9 * ABSOLUTE_S, TURN_S, id="livox"),
        pytest.param("timestamp", 1e6 * ABSOLUTE_S, TURN_S, id="microseconds since 1970"),
        pytest.param("timestamp", 1e3 * ABSOLUTE_S, TURN_S, id="milliseconds since 1970"),
        pytest.param("offset_time", (1e8 * TURN_S).astype("u4"), TURN_S / 10, id="livox, 100 Hz"),
        pytest.param("time_offset_ns", (1e9 * TURN_S).astype("i4"), TURN_S, id="aeva"),
        pytest.param("time_us", (1e5 * TURN_S).astype("u2"), TURN_S / 10, id="unit in the name"),
        pytest.param("time", (1e3 * TURN_S).astype("f4"), TURN_S, id="float milliseconds"),
        pytest.param("time", (1e6 * TURN_S).astype("f4"), TURN_S, id="float microseconds"),
        pytest.param("t", (1e6 * TURN_S).astype("u4"), TURN_S, id="integer microseconds"),
        pytest.param("t", (1e9 * TURN_S).astype("f8"), TURN_S, id="nanoseconds as FLOAT64"),
    ],
)
def test_layouts_of_drivers(name: str, values: np.ndarray, want: np.ndarray) -> None:
    assert split_name(name)[0] in TIME_FIELDS
    offset = seconds_from_stamp(values, name, STAMP_NS)
    assert offset is not None and offset.dtype == np.float32
    np.testing.assert_allclose(offset, want, atol=2e-6)


def test_simulated_time_is_absolute_too() -> None:
    offset = seconds_from_stamp(12.5 + TURN_S, "timestamp", 12_500_000_000)
    np.testing.assert_allclose(offset, TURN_S, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "time_s"),
    [
        pytest.param("t", (1e9 * TURN_S).astype("u4"), 100.0, id="nanoseconds at 100 s"),
        pytest.param("t", (1e9 * TURN_S).astype("u4"), 99.2, id="nanoseconds just before"),
        pytest.param("t", (1e6 * TURN_S).astype("u4"), 100.0, id="microseconds at 100 s"),
        pytest.param("t", (1e9 * TURN_S).astype("u4"), 100_000.0, id="nanoseconds after 28 hours"),
        pytest.param("time", (1e3 * TURN_S).astype("f4"), 100.0, id="float milliseconds"),
    ],
)
def test_times_since_the_stamp_of_a_clock_that_began_lately(
    name: str, values: np.ndarray, time_s: float
) -> None:
    """In simulations, and for LiDARs whose clock begins when they are switched on."""
    offset = seconds_from_stamp(values, name, round(time_s * 1e9))
    np.testing.assert_allclose(offset, TURN_S, atol=2e-6)


def test_points_without_a_time_do_not_hide_that_the_others_are_absolute() -> None:
    """A 0 among times since 1970 stands for a point that was not measured."""
    values = ABSOLUTE_S.copy()
    values[: int(0.7 * len(values))] = 0.0
    offset = seconds_from_stamp(values, "timestamp", STAMP_NS)
    assert offset is not None
    np.testing.assert_allclose(offset[values > 0], TURN_S[values > 0], atol=2e-6)
    assert not offset[values == 0].any()


@pytest.mark.parametrize(("time_s", "held"), [(10_000, True), (20_000, False)])
def test_float32_must_tell_milliseconds_apart(time_s: int, held: bool) -> None:
    """In a simulation float32 times are 1 ms apart after three hours and 2 ms after six."""
    values = (time_s + TURN_S).astype("f4")
    if held:
        offset = seconds_from_stamp(values, "timestamp", time_s * 10**9)
        np.testing.assert_allclose(offset, TURN_S, atol=6e-4)
    else:
        with pytest.raises(UnknownTimesError, match="FLOAT64"):
            seconds_from_stamp(values, "timestamp", time_s * 10**9)


@pytest.mark.parametrize(("pieces", "read"), [(400, True), (600, False)])
def test_the_last_piece_of_a_turn_has_a_spread(pieces: int, read: bool) -> None:
    """A field that changes by less than 1/500 is not a time, or a time that stands still."""
    values = np.linspace(0.1 * (1 - 1 / pieces), 0.1, 90, dtype="f4")
    if read:
        np.testing.assert_allclose(seconds_from_stamp(values, "time", STAMP_NS), values, rtol=1e-6)
    else:
        with pytest.raises(UnknownTimesError, match="no time of a scan"):
            seconds_from_stamp(values, "time", STAMP_NS)


@pytest.mark.parametrize(
    ("kind", "last", "unit_s"),
    [
        ("u4", 1_500_000, 1e-9), ("u4", 700_000, 0),
        ("u4", 30_000, 1e-6), ("u4", 15_000, 0),
        ("u4", 30, 1e-3), ("u4", 15, 0),
        ("f4", 7.0, 1e-3), ("f4", 3.0, 0),
        ("f4", 7e3, 1e-6), ("f4", 3e3, 0),
        ("f4", 7e6, 1e-9), ("f4", 3e6, 0),
    ],
)  # fmt: skip
def test_a_scan_that_is_too_short_for_its_unit_is_no_scan(
    kind: str, last: float, unit_s: float
) -> None:
    """Shortest scans: integers in nanoseconds 1 ms, in larger units 20 ms, other numbers 5 ms."""
    values = np.linspace(0, last, 31).astype(kind)
    if unit_s:
        offset = seconds_from_stamp(values, "time", STAMP_NS)
        np.testing.assert_allclose(offset, values * unit_s, rtol=1e-5)
    else:
        with pytest.raises(UnknownTimesError, match="no time of a scan"):
            seconds_from_stamp(values, "time", STAMP_NS)


def test_a_shuffled_scan_keeps_each_time_with_its_point() -> None:
    order = np.random.default_rng(0).permutation(len(TURN_S))
    offset = seconds_from_stamp((1e9 * TURN_S[order]).astype("u4"), "t", STAMP_NS)
    np.testing.assert_allclose(offset, TURN_S[order], atol=1e-6)


def test_points_without_a_time_are_at_the_stamp() -> None:
    values = ABSOLUTE_S.copy()
    values[::7] = 0.0  # missing returns
    values[1::7] = np.nan
    offset = seconds_from_stamp(values, "timestamp", STAMP_NS)
    assert offset is not None
    assert (offset[::7] == 0).all() and (offset[1::7] == 0).all()
    np.testing.assert_allclose(offset[2::7], TURN_S[2::7], atol=1e-6)


def test_a_few_stray_values_do_not_hide_the_unit() -> None:
    values = (1e9 * TURN_S).astype("u4")
    values[::500] = 2**32 - 1
    offset = seconds_from_stamp(values, "t", STAMP_NS)
    assert offset is not None
    assert (offset[::500] == 0).all()
    np.testing.assert_allclose(offset[1::500], TURN_S[1::500], atol=1e-6)


@pytest.mark.parametrize("values", [np.zeros(9, "f4"), np.zeros(9, "u4"), np.full(9, np.nan)])
def test_a_field_that_is_not_filled_says_nothing(values: np.ndarray) -> None:
    assert seconds_from_stamp(values, "time", STAMP_NS) is None


@pytest.mark.parametrize("values", [(1e9 * TURN_S).astype("u4"), ABSOLUTE_S, TURN_S.astype("f4")])
def test_without_a_stamp_the_last_point_arrives(values: np.ndarray) -> None:
    offset = seconds_from_stamp(values, "t", 0)
    assert offset is not None
    np.testing.assert_allclose(offset, TURN_S - TURN_S[-1], atol=2e-3)


def test_without_a_stamp_only_times_since_2001_are_absolute() -> None:
    with pytest.raises(UnknownTimesError, match="no time of a scan"):
        seconds_from_stamp(9e8 + TURN_S, "timestamp", 0)
    assert seconds_from_stamp(1.1e9 + TURN_S, "timestamp", 0) is not None


@pytest.mark.parametrize(
    ("values", "why"),
    [
        pytest.param(ABSOLUTE_S + 37, r"37\.1 s after the message's stamp.*one clock", id="TAI"),
        pytest.param(ABSOLUTE_S + 1.4, r"1\.5 s after the message's stamp", id="a second and more"),
        pytest.param(1e9 * (ABSOLUTE_S - 3600), r"3\.6e\+03 s before", id="another hour"),
        pytest.param(ABSOLUTE_S.astype("f4"), r"FLOAT64", id="too coarse"),
        pytest.param(np.linspace(0, 1, 5000, dtype="f4"), "no time of a scan", id="a fraction"),
        pytest.param(np.arange(5000, dtype="u2"), "no time of a scan", id="an index"),
        pytest.param(12_345.0 + TURN_S, "no time of a scan", id="since the LiDAR started"),
    ],
)
def test_what_fits_nothing_is_refused(values: np.ndarray, why: str) -> None:
    with pytest.raises(UnknownTimesError, match=why):
        seconds_from_stamp(values, "timestamp", STAMP_NS)


def test_names() -> None:
    assert split_name("Time_Stamp") == ("time_stamp", "")
    assert split_name("time_offset_nsec") == ("time_offset", "ns")
    assert split_name("intensity")[0] not in TIME_FIELDS
    assert split_name("t_ns") == ("t", "ns")


def test_seconds_that_no_nanoseconds_can_hold_are_no_seconds() -> None:
    seconds, rest = np.array([9.5e9]), np.array([0.0])
    assert joined(seconds, rest, "ns") is None
    np.testing.assert_array_equal(joined(seconds / 10, rest, "ns"), [950_000_000 * 10**9])
