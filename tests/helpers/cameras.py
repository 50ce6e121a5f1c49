# SPDX-License-Identifier: Apache-2.0
"""Cameras of every model, and points in their view."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from depth_node.geometry.camera import Camera

PINHOLE = Camera(640, 480, 520.0, 510.0, 318.2, 241.7)

PLUMB_BOB = {
    4: (-0.28, 0.09, 0.0011, -0.0007),
    5: (-0.31, 0.12, 0.0009, -0.0011, -0.02),
    8: (0.45, -0.2, 0.0003, -0.0004, 0.05, 0.7, -0.15, 0.03),
}

FISHEYE = (-0.021, 0.006, -0.004, 0.0009)


def points_in_view(n: int, seed: int = 0, spread: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.5, 20.0, n)
    return np.column_stack((rng.uniform(-spread, spread, (n, 2)) * z[:, None], z))


def distorted(coefficients: tuple[float, ...], model: str = "plumb_bob") -> Camera:
    return replace(PINHOLE, model=model, distortion=coefficients)


CAMERAS = {
    "pinhole": PINHOLE,
    **{f"plumb_bob{n}": distorted(d) for n, d in PLUMB_BOB.items()},
    "equidistant": Camera(640, 480, 270.0, 272.0, 318.2, 241.7, "equidistant", FISHEYE),
}


def undistorted(camera: Camera, pixels: np.ndarray, iterations: int) -> np.ndarray:
    """Return the normalised coordinates (N, 2) of pixels (N, 2), by OpenCV's own iteration."""
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, iterations, 1e-12)
    given = pixels[:, None], camera.matrix, np.array(camera.distortion)
    if hasattr(cv2, "undistortPointsIter"):  # until OpenCV 5
        return cv2.undistortPointsIter(*given, None, None, criteria).reshape(-1, 2)
    return cv2.undistortPoints(*given, criteria=criteria).reshape(-1, 2)
