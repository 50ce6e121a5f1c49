# SPDX-License-Identifier: Apache-2.0
"""Depth in 16-bit millimetres, as 16UC1 images and depth.png have it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def depth_to_millimetres(depth: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """(H, W) metres, NaN unknown -> REP-118's millimetres, 0 unknown.

    What 16 bits cannot say is unknown. Depth below half a millimetre is unknown too: its 0 would
    say so anyway.
    """
    with np.errstate(invalid="ignore"):
        millimetres = np.floor(depth * 1000.0 + 0.5)
        known = (millimetres >= 1) & (millimetres < 65535)  # where many drivers mean: farther
    return np.where(known, millimetres, 0).astype(np.uint16)
