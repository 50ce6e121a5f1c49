# SPDX-License-Identifier: Apache-2.0
"""Images that a run logs of its batches: views above their maps, each row with its name."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depth_node.visualization import colours

TITLE_PX = 14  # rows of a name, above what it names


def sheet(
    images: Mapping[str, Tensor], maps: Mapping[str, Tensor], most: int = 4
) -> NDArray[np.uint8]:
    """A column per image of a batch, at most `most`: its views, then its maps, by their names.

    images (N, 3, H, W) in 0..1 and maps (N, 1, H, W) of disparity, NaN unknown, all of one size;
    each map in the colours of its own range, as scale and shift mean nothing.
    """
    rows = {
        name: [_image(view) for view in views[:most].detach().float().cpu().numpy()]
        for name, views in images.items()
    }
    for name, values in maps.items():
        shown = [-m[0] for m in values[:most].detach().float().cpu().numpy()]
        # The drawing's relative maps are large where it is far.
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
