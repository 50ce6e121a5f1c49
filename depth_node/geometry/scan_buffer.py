# SPDX-License-Identifier: Apache-2.0
"""Recent scans of LiDARs, and the selection of those that belong to an image."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import FloatArray


class ScanBuffer:
    """The recent scans of one or several LiDARs, collected for the stamp of an image.

    Scans are points of one common frame, (N, 3) in metres, with a key per source. Threads may add
    and collect at the same time. Raises ValueError if max_scan_age_s is not above 0.
    """

    def __init__(self, max_scan_age_s: float) -> None:
        if not max_scan_age_s > 0:
            raise ValueError(f"max_scan_age_s is {max_scan_age_s:g} s: it must be above 0")
        self._max_age_ns = round(max_scan_age_s * 1e9)
        # An image that is processed late still needs the scans around its own stamp.
        self._keep_ns = 2 * self._max_age_ns + 1_000_000_000
        self._scans: dict[str, dict[int, npt.NDArray[np.float32]]] = {}
        self._lock = threading.Lock()
        self.jumps_back = 0

    def add(self, stamp_ns: int, points: FloatArray, key: str = "points") -> bool:
        """Store an (N, 3) scan. True if time jumped back (a looping bag), which deletes all scans.

        A scan that is slightly older than the one before is stored; one of the same stamp replaces
        it.
        """
        with self._lock:
            scans = self._scans.get(key, {})
            jumped = bool(scans) and stamp_ns < max(scans) - self._keep_ns
            if jumped:
                self._scans.clear()
                self.jumps_back += 1
            scans = self._scans.setdefault(key, {})
            scans[stamp_ns] = np.asarray(points, dtype=np.float32).reshape(-1, 3)
            oldest = max(scans) - self._keep_ns
            for stamp in [stamp for stamp in scans if stamp < oldest]:
                del scans[stamp]
            return jumped

    def collect(
        self, stamp_ns: int, key: str | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Points (N, 3) and ages (N,) of the scans at most max_scan_age_s before or after a stamp.

        Of all sources or of one. An age is the time between the scan and the stamp, s.
        """
        chosen = self.scans(stamp_ns, key)
        if not chosen:
            return np.empty((0, 3), np.float32), np.empty(0, np.float32)
        ages = [
            np.full(len(points), abs(stamp_ns - stamp) * 1e-9, np.float32)
            for stamp, points in chosen
        ]
        return np.concatenate([points for _, points in chosen]), np.concatenate(ages)

    def scans(
        self, stamp_ns: int, key: str | None = None
    ) -> list[tuple[int, npt.NDArray[np.float32]]]:
        """The scans that collect() joins, one by one: stamps in ns and points (N, 3)."""
        with self._lock:
            sources = self._scans.values() if key is None else [self._scans.get(key, {})]
            return [
                (stamp, points)
                for scans in sources
                for stamp, points in scans.items()
                if abs(stamp_ns - stamp) <= self._max_age_ns
            ]

    def newest_stamp_ns(self, key: str | None = None) -> int | None:
        """Stamp of the newest stored scan in ns, of all sources or of one; None without scans."""
        with self._lock:
            sources = self._scans.values() if key is None else [self._scans.get(key, {})]
            return max((stamp for scans in sources for stamp in scans), default=None)

    def clear(self) -> None:
        """Delete all scans."""
        with self._lock:
            self._scans.clear()
