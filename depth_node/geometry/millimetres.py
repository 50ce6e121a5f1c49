# SPDX-License-Identifier: Apache-2.0
"""Depth in 16-bit millimetres, the format of 16UC1 images and of depth.png."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def depth_to_millimetres(depth: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """Convert depth (H, W) from metres, NaN unknown, to the millimetres of REP-118, 0 unknown.

    Depth that 16 bits cannot represent becomes unknown. So does depth below half a millimetre,
    which would be rounded to 0.
    """
    with np.errstate(invalid="ignore"):
        millimetres = np.floor(depth * 1000.0 + 0.5)
        known = (millimetres >= 1) & (millimetres < 65535)  # many drivers use 65535 for "farther"
    return np.where(known, millimetres, 0).astype(np.uint16)
