# SPDX-License-Identifier: Apache-2.0
"""The time of each point of a scan: how to read the numbers of a driver's time field.

Drivers agree on neither unit nor origin: FLOAT32 seconds relative to the last point (Velodyne),
UINT32 nanoseconds since the scan's start (Ouster, Livox), FLOAT64 seconds (Hesai, RoboSense) or
nanoseconds (Livox) since 1970. The numbers themselves show which, because a scan takes between a
millisecond and half a second, and because a time since 1970 lies near the scan's stamp. Numbers
that fit none of these are refused: times misread by a factor of 1000 are worse than none.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

TIME_FIELDS = frozenset(
    (
        "t",
        "time",
        "times",
        "timestamp",
        "timestamps",
        "time_stamp",
        "stamp",
        "stamps",
        "offset_time",
        "time_offset",
        "point_time",
        "point_time_offset",
        "relative_time",
    )
)
"""Names of time fields, without a unit suffix."""

_UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_SUFFIXES = {"s": "s", "sec": "s", "ms": "ms", "us": "us", "usec": "us", "ns": "ns", "nsec": "ns"}
_SAMPLES = 2048  # points of a scan from which the unit is determined
LONGEST_SCAN_S = 0.5  # a LiDAR that turns twice a second
_NEAR_S = (
    1.0  # absolute times are this near to the scan's stamp, wherever in the scan the stamp lies
)
_SINCE_2001_S = 1e9  # larger numbers are no relative times in any unit
_FINEST_S = 1e-3  # a type that cannot resolve milliseconds cannot hold times of points
_LEAST_SPREAD = 1 / 500  # no driver splits a turn into more messages
# For relative times: unit -> the shortest scan that is read in this unit. Integers are read as
# nanoseconds where possible; if the scan would then last microseconds only, the driver counts in a
# larger unit.
_SHORTEST_S = {
    "integer": {"ns": 1e-3, "us": 0.02, "ms": 0.02},
    "float": {"s": 0.0, "ms": 5e-3, "us": 5e-3, "ns": 5e-3},
}


_DOUBTED_S = 5.0  # longer than a counter that restarts every second needs to be recognised


class UnknownTimesError(ValueError):
    """The numbers of a time field fit no known convention; the message gives the numbers."""


def split_name(name: str) -> tuple[str, str]:
    """Split a field's name into the name without its unit suffix and the unit (s, ms, us, ns).

    The unit is "" where the name has no suffix.
    """
    match = re.fullmatch(r"(\w+?)_(s|sec|ms|us|usec|ns|nsec)", name.lower())
    return (match[1], _SUFFIXES[match[2]]) if match else (name.lower(), "")


def joined(
    seconds: npt.NDArray[np.generic], rest: npt.NDArray[np.generic], unit: str
) -> npt.NDArray[np.int64] | None:
    """Return (N,) nanoseconds of times stored in two fields: whole seconds and a remainder.

    seconds, rest: (N,). unit: of the remainder. None if `seconds` are not whole seconds: then
    each of the two fields is a time by itself.
    """
    whole = seconds.astype(np.float64)
    # Larger numbers are not seconds, and would not fit as nanoseconds; a NaN fails this test too.
    if not (np.abs(whole) < 9e9).all() or (whole % 1).any():
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = rest.astype(np.float64) * (_UNITS_S[unit] * 1e9)
    if not (np.abs(beyond) <= 1e9).all():
        return None
    return whole.astype(np.int64) * 1_000_000_000 + np.rint(beyond).astype(np.int64)


def seconds_from_stamp(
    values: npt.NDArray[np.generic], name: str, stamp_ns: int
) -> npt.NDArray[np.float32] | None:
    """Return (N,) seconds from the stamp of a scan to each of its points, negative if earlier.

    values: (N,) of the field called `name`, as they are. stamp_ns: of the message, 0 if the
    driver sets none and the arrival time is used instead: then the last point is at 0. A point
    without a time of its own (NaN, or a 0 among times since 1970) is at 0. None means that all
    points are at the stamp. Raises UnknownTimesError.
    """
    sample = values[:: 1 + len(values) // _SAMPLES].astype(np.float64)
    sample = np.sort(sample[np.isfinite(sample)])
    if not len(sample) or sample[-1] == sample[0] == 0:
        return None
    # The percentiles are robust against a few stray values.
    low, high = sample[len(sample) // 100], sample[-1 - len(sample) // 100]
    # Of the points with a time of their own. Near a stamp of 100 s, offsets of up to 0.1 s in
    # nanoseconds end where absolute times in microseconds would; only their middle is elsewhere.
    middle = np.median(sample[sample != 0])
    unit = split_name(name)[1]
    units = {unit: _UNITS_S[unit]} if unit else _UNITS_S
    for factor in units.values():
        apart_s = max(abs(value * factor - stamp_ns * 1e-9) for value in (middle, high))
        if apart_s <= _NEAR_S < high * factor:
            return _absolute(values, name, factor, stamp_ns)
    if high >= _SINCE_2001_S:
        # Seconds, milli-, micro- and nanoseconds since 1970 are a factor of 1000 apart.
        factor = float(1000.0 ** -np.floor(np.log10(high / _SINCE_2001_S) / 3 + 1e-9))
        if stamp_ns == 0:
            return _absolute(values, name, factor, round(sample[-1] * factor * 1e9))
        after_s = high * factor - stamp_ns * 1e-9
        raise UnknownTimesError(
            f"field {name!r} of the points holds times {abs(after_s):.3g} s"
            f" {'after' if after_s > 0 else 'before'} the message's stamp: let the driver take both"
            " from one clock"
        )
    return _relative(values, name, unit, (float(low), float(high)), stamp_ns == 0)


def _absolute(
    values: npt.NDArray[np.generic], name: str, factor: float, stamp_ns: int
) -> npt.NDArray[np.float32]:
    """Read times since 1970, or since the start of a simulation."""
    if values.dtype.itemsize < 8 and values.dtype.kind == "f":
        finest_s = float(np.spacing(np.float32(stamp_ns * 1e-9 / factor))) * factor
        if finest_s > _FINEST_S:
            raise UnknownTimesError(
                f"field {name!r} of the points holds times since 1970 as {values.dtype.name}, which"
                f" are {finest_s:g} s apart: let the driver publish them as FLOAT64"
            )
    offset = values.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite values
        parts = offset % 1
    if factor > _FINEST_S and not parts.any() and (offset * (factor * 1e9) != stamp_ns).any():
        raise UnknownTimesError(
            f"field {name!r} of the points holds whole seconds, which tell the points of a scan not"
            " apart: let the driver publish their times with nanoseconds"
        )
    offset -= stamp_ns / (1e9 * factor)
    offset *= factor
    return _kept(offset.astype(np.float32))


def _relative(
    values: npt.NDArray[np.generic],
    name: str,
    unit: str,
    ends: tuple[float, float],
    arrival: bool,
) -> npt.NDArray[np.float32]:
    """Read times relative to the scan's stamp, start or end."""
    largest = max(abs(ends[0]), abs(ends[1]))
    kind = "float" if values.dtype.kind == "f" else "integer"
    shortest_s = {unit: 0.0} if unit else _SHORTEST_S[kind]
    read = [
        candidate
        for candidate, least_s in shortest_s.items()
        if least_s <= largest * _UNITS_S[candidate] <= LONGEST_SCAN_S
    ]
    if not read or ends[1] - ends[0] < _LEAST_SPREAD * largest:
        raise UnknownTimesError(
            f"field {name!r} of the points holds {values.dtype.name} from {ends[0]:g} to"
            f" {ends[1]:g}, which is no time of a scan in any unit: see the driver's settings for"
            " times of points"
        )
    offset = np.multiply(values, np.float32(_UNITS_S[read[0]]), dtype=np.float32, casting="unsafe")
    if arrival:
        offset -= np.float32(ends[1] * _UNITS_S[read[0]])
    return _kept(offset)


def _kept(offset: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return offsets (N,) with 0 in place of values that cannot be offsets within a scan."""
    if not (offset.min() >= -_NEAR_S - LONGEST_SCAN_S and offset.max() <= _NEAR_S + LONGEST_SCAN_S):
        with np.errstate(invalid="ignore"):
            offset[~(np.abs(offset) <= _NEAR_S + LONGEST_SCAN_S)] = 0
    return offset


class BelievedTimes:
    """Decides for each message of one LiDAR whether the times of its points are used.

    A field that counts from the start of each clock second looks like times since the stamp early
    in the second, and like nothing known later in it. So after a message whose times cannot be
    read, the times of the following messages are not used for a while either.
    """

    def __init__(self) -> None:
        self._unknown_ns: int | None = None

    def of(
        self, stamp_ns: int, offset_s: npt.NDArray[np.float32] | None, unknown: str
    ) -> npt.NDArray[np.float32] | None:
        """Return offset_s (N,), s, of a message with this stamp, or None if it must not be used.

        unknown: why the message's own times cannot be read, or "".
        """
        if unknown:
            self._unknown_ns = stamp_ns
        if self._unknown_ns is None or abs(stamp_ns - self._unknown_ns) * 1e-9 > _DOUBTED_S:
            return offset_s
        return None
