# SPDX-License-Identifier: Apache-2.0
"""Range sensors (sonar, infrared): the distance of the nearest surface somewhere in a cone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import FloatArray, transform
from depth_node.geometry.sparse_depth import SparseDepth

Transform = npt.NDArray[np.float64]

_CAP_POINTS = 128
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_NEAREST = 0.97  # quantile of nearness over the cap: robust against the error of a single pixel
_LEAST_KNOWN = 0.5  # least fraction of the cap for which the network knows the nearness


@dataclass(frozen=True)
class Echo:
    """A measured distance: a surface lies somewhere on a spherical cap, and none in front of it.

    points: (N, 3) metres in the camera's optical frame, spread evenly over the cap; the surface is
    at one of them at least. noise_m: declared standard deviation of the distance. age_s: seconds
    between the measurement and the image.
    """

    points: FloatArray
    noise_m: float = 0.0
    age_s: float = 0.0

    @classmethod
    def of(cls, cap: FloatArray, T_camera_sensor: Transform, share: float, age_s: float) -> Echo:
        """Create an echo from a cap (N, 3), metres in the sensor's frame, and a pose (4, 4).

        share: the declared standard deviation as a fraction of the distance.
        """
        noise_m = share * float(np.linalg.norm(cap[0])) if len(cap) else 0.0
        return cls(transform(T_camera_sensor, cap), noise_m, age_s)


def echo_cap(range_m: float | None, field_of_view_rad: float) -> npt.NDArray[np.float32]:
    """Return points (N, 3), metres, at one distance in a cone around x, the first on its axis.

    range_m: the distance, None without an echo (then there are no points). field_of_view_rad: the
    full angle of the cone, from 0 to below pi.
    """
    if range_m is None:
        return np.empty((0, 3), np.float32)
    number = np.arange(_CAP_POINTS if field_of_view_rad > 0 else 1)
    # Fibonacci spiral: equal steps of the height on a sphere enclose equal areas.
    step = (1 - math.cos(field_of_view_rad / 2)) / max(len(number) - 1, 1)
    x = 1 - step * number
    radius, turn = np.sqrt(np.maximum(1 - x * x, 0)), _GOLDEN_ANGLE * number
    directions = np.column_stack([x, radius * np.cos(turn), radius * np.sin(turn)])
    return (range_m * directions).astype(np.float32)


def echo_pixels(echoes: Iterable[Echo], nearness: FloatArray, camera: Camera) -> SparseDepth:
    """Return a pixel with a depth for each echo that the image can locate within its cap.

    nearness: (H, W) of the camera's image, larger is nearer, not finite where unknown. The echo is
    placed where the cap is nearest according to it. A cap that is not completely in the image gives
    nothing: its echo may come from something that the camera does not see.
    """
    rows: list[int] = []
    cols: list[int] = []
    measured: list[tuple[float, float, float]] = []
    for echo in echoes:
        points = np.asarray(echo.points, np.float64)
        if not len(points) or not np.isfinite(points).all() or points[:, 2].min() <= 0:
            continue
        pixels = camera.project(points)
        with np.errstate(invalid="ignore"):
            inside = (pixels >= -0.5) & (pixels < (camera.width - 0.5, camera.height - 0.5))
        if not inside.all():
            continue
        col, row = np.floor(pixels + 0.5).astype(np.intp).T
        near = nearness[row, col].astype(np.float64)
        known = np.flatnonzero(np.isfinite(near))
        if len(known) < _LEAST_KNOWN * len(points):
            continue
        order = known[np.argsort(near[known], kind="stable")]
        chosen = order[math.ceil(_NEAREST * (len(order) - 1))]
        rows.append(int(row[chosen]))
        cols.append(int(col[chosen]))
        measured.append((float(points[chosen, 2]), echo.age_s, echo.noise_m))
    depth, age_s, noise_m = np.array(measured, np.float32).reshape(-1, 3).T
    return SparseDepth.from_arrays(rows, cols, depth, age_s, noise_m)
