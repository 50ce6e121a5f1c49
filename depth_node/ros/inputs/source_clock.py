# SPDX-License-Identifier: Apache-2.0
"""Whether a LiDAR's clock agrees with the camera's, for the node and for recordings."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import numpy as np

from depth_node.ros.messages import brief

SourceKey: TypeAlias = "tuple[str, str]"  # topic and frame of a LiDAR

_LONGEST_TURN_S = 0.7  # pieces of one turn that share a stamp arrive within this time
_CLOCK_SCANS = 3  # scans that must agree before a difference of the clocks is reported
_CLOCK_S = 1.0  # smaller differences are taken for latency
_CLOCK_CERTAIN_S = 1.5  # with larger ones, scans are not used even if their stamps fit


class SourceClock:
    """The difference between a LiDAR's clock and the camera's, from stamps and times of arrival.

    For the newest scan before each image, the lead of its stamp over its arrival is compared with
    the image's. The rest is the difference of the clocks plus that of the latencies.
    """

    def __init__(self) -> None:
        self._lead_s = 0.0
        self._compared = True
        self._offsets: deque[float] = deque(maxlen=9)
        self._stamp_ns: int | None = None
        self._since_s = 0.0  # when the first message with that stamp came

    def scan(self, stamp_ns: int, arrival_s: float) -> bool:
        """Note a scan; return whether its stamp stands still.

        That is so if the first scan with this stamp arrived too long ago for both to be pieces of
        one turn.
        """
        stands = stamp_ns == self._stamp_ns and arrival_s - self._since_s > _LONGEST_TURN_S
        if stamp_ns != self._stamp_ns:
            self._stamp_ns, self._since_s = stamp_ns, arrival_s
        self._lead_s, self._compared = stamp_ns * 1e-9 - arrival_s, False
        return stands

    def image(self, stamp_ns: int, arrival_s: float) -> None:
        """Note an image; the last scan is compared with it, if no earlier image was."""
        if not self._compared:
            self._offsets.append(self._lead_s - (stamp_ns * 1e-9 - arrival_s))
            self._compared = True

    def forget(self) -> None:
        """Forget the differences measured so far, because the time of the scans begins anew."""
        self._offsets.clear()

    def offset_s(self) -> float | None:
        """Return by how much the LiDAR's stamps are ahead of the images', in s; None if that may be
        latency."""
        if len(self._offsets) < _CLOCK_SCANS:
            return None
        middle = float(np.median(self._offsets))
        spread = float(np.median(np.abs(np.asarray(self._offsets) - middle)))
        return middle if abs(middle) > _CLOCK_S and spread < 0.2 + 0.2 * abs(middle) else None

    @staticmethod
    def refuses(offset_s: float | None, found: int) -> bool:
        """Return whether scans are not used because of their clock.

        found: how many scans have stamps that fit an image.
        """
        return offset_s is not None and (not found or abs(offset_s) > _CLOCK_CERTAIN_S)


def clock_sentence(frame: str, offset_s: float, corrected_s: float, setting: str) -> str:
    """Return why the scans of a LiDAR are not used, with a cure for each of the two possible
    causes.

    Stamps and times of arrival alone do not show whether the clocks differ or the latencies.
    offset_s: from SourceClock. setting: the words before the number that corrects a difference of
    the clocks, "" for none. corrected_s: the value of that setting now.
    """
    # Clocks that count leap seconds and clocks that do not differ by whole seconds.
    whole = round(offset_s)
    cure_s = corrected_s - (whole if abs(offset_s - whole) < 0.25 else offset_s)
    cure = f" or {setting} {round(cure_s, 2)}" if setting else ""
    hint = " (37 s is TAI against UTC: let the driver write UTC)" if abs(whole) == 37 else ""
    late = "images" if offset_s > 0 else "scans"
    return (
        f"relative to their arrival, the stamps of the LiDAR scans (frame {brief(frame)!r}) are"
        f" {abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} the images', so these"
        f" scans are not used: either the clocks differ (synchronise them{hint}{cure}), or the"
        f" {late} come too late (let their driver, codec or network deliver them within"
        f" {_CLOCK_S:g} s: fewer, smaller, shorter queues)"
    )


def standing_sentence(frame: str) -> str:
    """Return what is wrong with a LiDAR whose stamps stand still, and the cure."""
    return (
        f"scans of the LiDAR (frame {brief(frame)!r}) come with one stamp again and again: nobody"
        " knows how old their points are, and only the newest scan counts: let the driver set"
        " header.stamp of each scan, with nanoseconds"
    )
