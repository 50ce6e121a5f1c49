# SPDX-License-Identifier: Apache-2.0
"""Drawing of measured points on images."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.visualization.colours import REJECTED, Scale


def draw_points(
    image: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    cols: npt.NDArray[Any],
    colours: npt.NDArray[Any],
    radius_px: float | None = None,
) -> npt.NDArray[Any]:
    """Draw discs with a dark rim at (rows, cols) on a copy of `image` (H, W, 3), in input order.

    rows, cols: (N,) pixels. colours: (N, 3) uint8 RGB. radius_px: None chooses it by the number of
    points; small discs have no rim.
    """
    image = image.copy()
    if radius_px is None:
        spacing = math.sqrt(image.shape[0] * image.shape[1] / max(len(rows), 1))
        radius_px = float(np.clip(0.22 * spacing, 0.9, 0.009 * image.shape[1] + 0.6))
    shift = 4  # cv2 takes positions in 1/16 pixel
    inner = round(radius_px * 16)
    rim = round((radius_px + 1.0) * 16)
    centres = [(int(c) * 16, int(r) * 16) for r, c in zip(rows, cols, strict=True)]
    if radius_px >= 1.6:
        for centre in centres:
            cv2.circle(image, centre, rim, (12, 13, 16), -1, cv2.LINE_AA, shift)
    for centre, colour in zip(centres, np.asarray(colours).tolist(), strict=True):
        cv2.circle(image, centre, inner, colour, -1, cv2.LINE_AA, shift)
    return image


def points_on_image(
    image: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    cols: npt.NDArray[Any],
    depth: npt.NDArray[Any],
    scale: Scale,
) -> npt.NDArray[Any]:
    """Draw sparse depth at (rows, cols), (N,) m each, as coloured discs on the dimmed image
    (H, W, 3), the nearest on top.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    dimmed = (0.22 * image + 0.28 * grey).astype(np.uint8)
    order = np.argsort(-np.asarray(depth), kind="stable")
    return draw_points(dimmed, rows[order], cols[order], scale.colours(depth[order]))


def draw_crosses(
    image: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    cols: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """Draw crosses in REJECTED with a dark rim at (rows, cols), (N,) px, on a copy of `image`
    (H, W, 3).
    """
    image = image.copy()
    arm = max(2.0, 0.008 * image.shape[1])
    line = max(1, round(0.35 * arm))
    shift = 4  # cv2 takes positions in 1/16 pixel
    reach = round(arm * 16)
    for ink, thickness in (((12, 13, 16), line + 2), (REJECTED, line)):
        for row, col in zip(rows, cols, strict=True):
            x, y = int(col) * 16, int(row) * 16
            for down in (reach, -reach):
                ends = (x - reach, y - down), (x + reach, y + down)
                cv2.line(image, *ends, ink, thickness, cv2.LINE_AA, shift)
    return image


def sparse_map(values: npt.NDArray[Any], scale: Scale, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Draw a map (H, W) that is known at few pixels, such as a LiDAR truth, as dots on the dimmed
    image (H, W, 3).
    """
    rows, cols = np.nonzero(np.isfinite(values))
    most = 30_000  # with more, the dots would cover each other
    if len(rows) > most:
        keep = np.linspace(0, len(rows) - 1, most).astype(int)
        rows, cols = rows[keep], cols[keep]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    dimmed = np.repeat(grey * 0.3, 3, axis=2).astype(np.uint8)
    radius = max(0.9, 0.0022 * image.shape[1])
    return draw_points(dimmed, rows, cols, scale.colours(values[rows, cols]), radius)
