# SPDX-License-Identifier: Apache-2.0
"""Sheets of a batch for the log: views above their maps, a title above each row."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depth_node.visualization import colours

TITLE_PX = 14  # height of a row's title


def sheet(
    images: Mapping[str, Tensor], maps: Mapping[str, Tensor], most: int = 4
) -> NDArray[np.uint8]:
    """Draw a column for each of the first `most` images of a batch: its views, then its maps.

    images (N, 3, H, W) in 0..1 and maps (N, 1, H, W) of disparity, NaN unknown, all of one size.
    Each map is coloured by its own range, because scale and shift have no meaning. Returns
    (rows, columns, 3) uint8 RGB.
    """
    rows = {
        name: [_image(view) for view in views[:most].detach().float().cpu().numpy()]
        for name, views in images.items()
    }
    for name, values in maps.items():
        shown = [-m[0] for m in values[:most].detach().float().cpu().numpy()]
        # colours.relative_scale expects large = far; disparity is large = near, hence the sign.
        rows[name] = [colours.colour_map(m, colours.relative_scale(m)) for m in shown]
    parts = []
    for name, row in rows.items():
        drawn = np.concatenate(row, axis=1)
        parts += [_title(name, drawn.shape[1]), drawn]
    return np.concatenate(parts, axis=0)


def _title(text: str, width: int) -> NDArray[np.uint8]:
    strip = np.zeros((TITLE_PX, width, 3), np.uint8)
    cv2.putText(strip, text, (2, TITLE_PX - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255,) * 3)
    return strip


def _image(view: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.clip(view.transpose(1, 2, 0), 0, 1) * 255 + 0.5).astype(np.uint8)
