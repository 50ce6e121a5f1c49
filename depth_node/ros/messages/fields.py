# SPDX-License-Identifier: Apache-2.0
"""Fields common to messages: stamps, and arrays as bytes in this machine's order."""

from __future__ import annotations

import array
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from builtin_interfaces.msg import Time

IS_BIGENDIAN = sys.byteorder == "big"


def stamp_ns(stamp: Time) -> int:
    """Return a stamp in nanoseconds of the publisher's clock; 0 = the publisher set none."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def time_of(stamp_ns: int) -> Time:
    """Return the stamp of a time in nanoseconds."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return Time(sec=seconds, nanosec=nanoseconds)


def message_bytes(values: npt.NDArray[Any]) -> array.array[int]:
    """Return the bytes of an array in the type that rclpy assigns without checking each element.

    Of any other type, rclpy checks every element: 0.4 s for a 1280x720 image instead of 0.3 ms.
    """
    data = array.array("B")
    if values.size:
        flat = np.ascontiguousarray(values).reshape(-1)
        data.frombytes(flat.view(np.uint8).data)
    return data
