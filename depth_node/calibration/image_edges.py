# SPDX-License-Identifier: Apache-2.0
"""Edges of an image, spread so that a near miss scores too."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

WORK_WIDTH_PX = 320
"""Images are reduced to about this width: a pixel is then 0.15 to 0.3 degrees."""
STRONG_FRACTION = 0.06
"""This fraction of the pixels, those of the steepest gradient, are edges at full strength."""
LEAST_GRADIENT = 16
"""Of at most 1020: a step of four grey values; less is noise, also in an image without edges."""
WEAK_FRACTION = 0.2
"""Beyond this fraction of the steepest pixels is no edge; up to it the strength falls to 0."""


def gradient_strength(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the larger of |Sobel x| and |Sobel y| (h, w) of a grey (h, w) or RGB (h, w, 3) image.

    Of RGB the channel with the largest gradient counts: a blue table on a grey floor may have no
    edge in grey.
    """
    across = np.abs(cv2.Sobel(image, cv2.CV_16S, 1, 0, ksize=3))
    down = np.abs(cv2.Sobel(image, cv2.CV_16S, 0, 1, ksize=3))
    strength = np.maximum(across, down)
    if strength.ndim == 3:
        strength = np.maximum(np.maximum(strength[..., 0], strength[..., 1]), strength[..., 2])
    return np.asarray(strength, np.float32)


def edge_strength(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the edge strength (h, w), float32 in 0..1, of a grey (h, w) or RGB (h, w, 3) image.

    It is 1 at the steepest STRONG_FRACTION of the pixels and 0 beyond the steepest WEAK_FRACTION:
    the thresholds are quantiles of the image itself, so exposure and contrast have no influence. An
    image without gradients has no edges.
    """
    strength = gradient_strength(image)
    # Quantiles of a histogram: Sobel's values are whole numbers up to 4 * 255.
    counts = np.cumsum(np.bincount(strength.astype(np.int32).ravel(), minlength=1021))
    ranks = strength.size * np.array([1 - WEAK_FRACTION, 1 - STRONG_FRACTION])
    low, high = np.searchsorted(counts, ranks)
    high, low = max(int(high), LEAST_GRADIENT), max(int(low), LEAST_GRADIENT // 2)
    edges: npt.NDArray[np.float32] = np.clip(
        (strength - low) / np.float32(max(high - low, 1)), 0, 1
    )
    return edges


def spread(edges: npt.NDArray[np.float32], reach_px: float) -> npt.NDArray[np.float32]:
    """Spread edges (h, w): each pixel gets the largest edge * exp(-distance / reach) around it.

    Done in steps of one pixel, each a dilation over the eight neighbours; a wide reach at half the
    resolution.
    """
    height, width = edges.shape
    if reach_px >= 4 and min(height, width) >= 8:
        pooled = cv2.dilate(edges, np.ones((2, 2), np.uint8))
        half = np.ascontiguousarray(pooled[1::2, 1::2], np.float32)
        wide = spread(half, reach_px / 2)
        return np.asarray(cv2.resize(wide, (width, height)), np.float32)
    decay = float(np.exp(-1.0 / reach_px))
    square = np.ones((3, 3), np.uint8)
    out = edges
    for _ in range(int(np.ceil(2.5 * reach_px))):
        out = np.maximum(out, np.float32(decay) * np.asarray(cv2.dilate(out, square), np.float32))
    return np.asarray(out, np.float32)
