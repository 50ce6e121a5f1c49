# SPDX-License-Identifier: Apache-2.0
"""The rays of a grid of pixels in the camera's and the base frame, computed once per camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """The rays of a grid of h x w pixels, every n-th row and column of the image.

    rays: (h, w, 3) in the camera's frame, z = 1. x, y, up: (h, w) their coordinates in the base
    frame. reach: (h, w) m, the depth at which a ray leaves the range max_range_m. flat_square:
    (h, w) squared length of a ray's projection on the ground. start: (3,) m, the camera's position
    in the base frame. T_base_camera: (4, 4).
    """

    every: int
    rays: F32
    x: F32
    y: F32
    up: F32
    reach: F32
    flat_square: F32
    start: F32
    T_base_camera: F64

    @classmethod
    def of(cls, camera: Camera, every: int, T_base_camera: F64, max_range_m: float) -> Grid:
        """Create the grid of every n-th row and column of a camera. T_base_camera: (4, 4)."""
        rays = np.ascontiguousarray(camera.rays()[::every, ::every])
        base_rays = rays @ T_base_camera[:3, :3].T.astype(np.float32)
        start = T_base_camera[:3, 3].astype(np.float32)
        # |start + d ray| = range over the ground, a quadratic equation in d
        over = base_rays[..., :2].astype(np.float64)
        square, along = (over**2).sum(-1), over @ start[:2].astype(np.float64)
        inside = max_range_m**2 - float(start[:2] @ start[:2])
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = (np.sqrt(along**2 + square * inside) - along) / square
        reach = np.where(square > 0, reach, np.inf if inside > 0 else 0.0)
        x, y, up = (np.ascontiguousarray(base_rays[..., axis]) for axis in range(3))
        square = square.astype(np.float32)
        return cls(every, rays, x, y, up, reach.astype(np.float32), square, start, T_base_camera)


def over_ground(points: F32, T_base_camera: F64) -> F32:
    """Return x and y (N, 2), m, in the base frame of points (N, 3), m, in the camera's frame."""
    T = T_base_camera.astype(np.float32)
    return points @ T[:2, :3].T + T[:2, 3]
