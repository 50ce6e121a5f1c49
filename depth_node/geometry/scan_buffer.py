# SPDX-License-Identifier: Apache-2.0
"""A buffer of the recent scans of each source, and the choice of those that belong to an image."""

from __future__ import annotations

import threading
from collections.abc import Container, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import FloatArray

_MOST_PARTS = 64  # messages of one source with the same stamp; a stopped clock would add for ever
_MOST_BYTES = 256 << 20  # of all stored scans
_SAMPLES = 2048  # points of a scan that show in which directions it looks
_CELL = 0.06  # size of the cells of directions, on the unit sphere: 3.4 degrees
_SIDE = 2 * (int(1 / _CELL) + 2) + 1  # cells per side of the cube, with room for neighbours
_SAME_VIEW = 0.8  # a scan repeats the view of others if they share more than this of its cells


class Scan(NamedTuple):
    """A scan of one LiDAR.

    points: (N, 3) m in the LiDAR's frame. offset_s: (N,) s from the stamp to the time of each
    point, None if all count as measured at the stamp. noise_m: (N,) m, the points' declared
    standard deviation, 0 for points without; None if no point has one.
    """

    stamp_ns: int
    points: npt.NDArray[np.float32]
    offset_s: npt.NDArray[np.float32] | None = None
    noise_m: npt.NDArray[np.float32] | None = None


@dataclass
class _Scan:
    """The points of one stamp, message by message, with their offsets and noise.

    cells: the cells of directions in which the points lie, once they have been computed.
    """

    parts: list[npt.NDArray[np.float32]] = field(default_factory=list)
    offsets: list[npt.NDArray[np.float32] | None] = field(default_factory=list)
    noises: list[npt.NDArray[np.float32] | None] = field(default_factory=list)
    cells: npt.NDArray[np.intp] | None = None

    @property
    def points(self) -> npt.NDArray[np.float32]:
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)

    @property
    def nbytes(self) -> int:
        held = [*self.parts, *self.offsets, *self.noises]
        return sum(part.nbytes for part in held if part is not None)

    def at(self, stamp_ns: int) -> Scan:
        return Scan(stamp_ns, self.points, self._joined(self.offsets), self._joined(self.noises))

    def _joined(
        self, values: list[npt.NDArray[np.float32] | None]
    ) -> npt.NDArray[np.float32] | None:
        """Return the values of all points, 0 in parts without values; None if no part has any."""
        if all(value is None for value in values):
            return None
        return np.concatenate(
            [
                np.zeros(len(part), np.float32) if value is None else value
                for part, value in zip(self.parts, values, strict=True)
            ]
        )


class ScanBuffer:
    """A buffer of the recent scans of one or several LiDARs, read for the stamp of an image.

    Each scan is stored under the key of its source, which distinguishes the LiDARs, such as topic
    and frame; its points stay in the source's own frame. Each source has its own time: if one's
    clock is ahead or jumps back, the others are not affected. One thread may fill the buffer while
    another reads it. Raises ValueError if max_scan_age_s is not above 0.
    """

    def __init__(self, max_scan_age_s: float) -> None:
        if not max_scan_age_s > 0:
            raise ValueError(f"max_scan_age_s is {max_scan_age_s:g} s: it must be above 0")
        self._max_age_ns = round(max_scan_age_s * 1e9)
        # An image that is processed late still needs the scans near its own stamp.
        self._keep_ns = 2 * self._max_age_ns + 1_000_000_000
        self._scans: dict[Hashable, dict[int, _Scan]] = {}
        self._lock = threading.Lock()

    def add(
        self,
        stamp_ns: int,
        points: FloatArray,
        key: Hashable = "points",
        offset_s: npt.NDArray[np.float32] | None = None,
        noise_m: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Store a scan (N, 3), m, with offset_s (N,) and noise_m (N,) as in Scan.

        A scan slightly older than the one before is kept; if time jumped back (a bag that loops),
        the stored scans of this source are deleted. A scan with the same stamp is stored as another
        part of the same scan (several LiDARs that share a topic, a turn sent in pieces), unless its
        points repeat those of a stored part.
        """
        part = np.asarray(points, dtype=np.float32).reshape(-1, 3)
        with self._lock:
            scans = self._scans.setdefault(key, {})
            if scans and stamp_ns < max(scans) - self._keep_ns:
                scans.clear()
            scan = scans.setdefault(stamp_ns, _Scan())
            if not any(np.array_equal(part, other, equal_nan=True) for other in scan.parts):
                scan.parts = [*scan.parts, part][-_MOST_PARTS:]
                scan.offsets = [*scan.offsets, offset_s][-_MOST_PARTS:]
                scan.noises = [*scan.noises, noise_m][-_MOST_PARTS:]
                scan.cells = None
            oldest = max(scans) - self._keep_ns
            for stamp in [stamp for stamp in scans if stamp < oldest]:
                del scans[stamp]
            self._forget_beyond(_MOST_BYTES)

    def nearest(self, stamp_ns: int, key: Hashable, count: int | None) -> list[Scan]:
        """Return the scans of a source for an image, the nearest in time first.

        count: how many, None = all within max_scan_age_s, 0 = those of one turn: the nearest one,
        and the next ones that look in other directions than those already taken (a LiDAR that sends
        its turn in pieces, or layer by layer). Empty scans do not count.
        """
        with self._lock:
            scans = [
                (stamp, scan) for stamp, scan in self._within(stamp_ns, key) if len(scan.points)
            ]
            scans.sort(key=lambda item: abs(stamp_ns - item[0]))
            if count == 0:
                scans = _one_turn(scans)
            return [scan.at(stamp) for stamp, scan in scans[: count or None]]

    def newest_stamp_ns(self, key: Hashable | None = None) -> int | None:
        """Return the stamp of the newest scan of one source (key) or of all; None without any."""
        with self._lock:
            held = self._scans.values() if key is None else [self._scans.get(key, {})]
            return max((stamp for scans in held for stamp in scans), default=None)

    def forget(self, key: Hashable) -> None:
        """Delete the scans of one source."""
        with self._lock:
            self._scans.pop(key, None)

    def retain(self, keys: Container[Hashable]) -> None:
        """Delete the scans of every source except these."""
        with self._lock:
            for key in [key for key in self._scans if key not in keys]:
                del self._scans[key]

    def clear(self) -> None:
        """Delete all scans."""
        with self._lock:
            self._scans.clear()

    def _within(self, stamp_ns: int, key: Hashable) -> list[tuple[int, _Scan]]:
        scans = self._scans.get(key, {})
        return [
            (stamp, scan)
            for stamp, scan in scans.items()
            if abs(stamp_ns - stamp) <= self._max_age_ns
        ]

    def _forget_beyond(self, limit: int) -> None:
        """Drop the oldest scan of the largest source until the rest fits in `limit` bytes."""
        sizes = {
            key: sum(scan.nbytes for scan in scans.values()) for key, scans in self._scans.items()
        }
        while sum(sizes.values()) > limit:
            key = max(sizes, key=lambda key: sizes[key])
            scans = self._scans[key]
            if len(scans) < 2:
                return
            sizes[key] -= scans.pop(min(scans)).nbytes


def _one_turn(scans: list[tuple[int, _Scan]]) -> list[tuple[int, _Scan]]:
    """Return the first scan and those that look in other directions than the ones before them."""
    if len(scans) < 2:
        return scans
    seen = np.zeros(_SIDE**3, bool)
    step = np.arange(-1, 2)
    beside = (step[:, None, None] * _SIDE + step[:, None]) * _SIDE + step
    turn: list[tuple[int, _Scan]] = []
    for item in scans:
        cells = _cells(item[1])
        if turn and (not len(cells) or seen[cells].mean() > _SAME_VIEW):
            continue
        turn.append(item)
        for offset in beside.flat:  # neighbours too, as a sparse scanner skips cells
            seen[cells + offset] = True
    return turn


def _cells(scan: _Scan) -> npt.NDArray[np.intp]:
    """Return the cells (M,) of the unit sphere, in the LiDAR's frame, with points of the scan."""
    if scan.cells is None:
        points = scan.points
        points = points[:: max(1, len(points) // _SAMPLES)]
        distance = np.sqrt(np.einsum("ij,ij->i", points, points, dtype=np.float64))
        known = np.isfinite(distance) & (distance > 0)
        unit = points[known] / distance[known, None]
        i, j, k = np.rint(unit / _CELL).astype(np.intp).T + _SIDE // 2
        scan.cells = np.unique((i * _SIDE + j) * _SIDE + k)
    return scan.cells
