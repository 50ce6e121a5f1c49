# SPDX-License-Identifier: Apache-2.0
"""The unknown shift of a point map (x, y, z of each pixel), found with a known camera."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_STEPS = 8
_SAMPLES = 64  # of a larger map, at least this many rows and columns are used


def point_map_shift(
    points: npt.NDArray[np.floating],
    ray_x: npt.NDArray[np.floating],
    ray_y: npt.NDArray[np.floating],
    valid: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Return the shift s that puts (x, y, z + s) on the pixels' rays; NaN if it is not determined.

    points: (h, w, 3) x, y, z up to one scale and a shift of z. ray_x, ray_y: (h, w) of the camera,
    such that a point at depth Z lies at (ray_x Z, ray_y Z, Z). valid: (h, w), the pixels to use, or
    None for all. The shift minimises the sum of squared distances in the image plane,
    x / (z + s) - ray_x (MoGe, arXiv 2410.19115, section 3.2, with the focal length known), by
    iteratively reweighted linear least squares.
    """
    step = [max(1, size // _SAMPLES) for size in points.shape[:2]]
    part = (slice(None, None, step[0]), slice(None, None, step[1]))
    x, y, z = (points[part][..., axis].astype(np.float64) for axis in range(3))
    u, v = ray_x[part].astype(np.float64), ray_y[part].astype(np.float64)
    good = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    if valid is not None:
        good &= valid[part]
    x, y, z, u, v = x[good], y[good], z[good], u[good], v[good]
    weight = np.ones_like(z)
    shift = np.nan
    for _ in range(_STEPS):
        lever = float((weight * (u * u + v * v)).sum())
        if not lever > 0:
            return float("nan")
        shift = float((weight * (u * (x - u * z) + v * (y - v * z))).sum()) / lever
        moved = z + shift
        weight = np.where(moved > 0, 1 / np.maximum(moved, 1e-9) ** 2, 0.0)
        weight /= max(float(weight.max(initial=0.0)), 1e-300)
    return shift
