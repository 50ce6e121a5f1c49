# SPDX-License-Identifier: Apache-2.0
"""Images to draw on and to run networks on: a box in a room, and a camera-like image."""

from __future__ import annotations

import cv2
import numpy as np

from depth_node.geometry.camera import Camera

CAMERA = Camera(width=160, height=120, fx=140.0, fy=140.0, cx=79.5, cy=59.5)


def room() -> tuple[np.ndarray, np.ndarray]:
    """Return image and depth of a wall at 4 m with a box at 2 m in front of it."""
    depth = np.full((120, 160), 4.0, np.float32)
    depth[40:90, 50:100] = 2.0
    image = np.full((120, 160, 3), (90, 120, 150), np.uint8)
    image[40:90, 50:100] = (200, 40, 40)
    return image, depth


def sample_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth image (height, width, 3) with noise, like a camera's."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int64)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
