# SPDX-License-Identifier: Apache-2.0
"""Images that a run logs of its batches: views above their maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from depth_node.visualization import colours


def sheet(images: Sequence[Tensor], maps: Sequence[Tensor], most: int = 4) -> NDArray[np.uint8]:
    """A column per image of a batch, at most `most`: its views, then its maps.

    images (N, 3, H, W) in 0..1 and maps (N, 1, H, W) of disparity, all of one size; each map in
    the colours of its own range, as scale and shift mean nothing.
    """
    rows = [
        [_image(view) for view in views[:most].detach().float().cpu().numpy()] for views in images
    ]
    for values in maps:
        shown = [-m[0] for m in values[:most].detach().float().cpu().numpy()]
        # The drawing's relative maps are large where it is far.
        rows.append([colours.colour_map(m, colours.relative_scale(m)) for m in shown])
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def _image(view: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (np.clip(view.transpose(1, 2, 0), 0, 1) * 255 + 0.5).astype(np.uint8)
