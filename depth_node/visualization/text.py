# SPDX-License-Identifier: Apache-2.0
"""Drawing of text on images."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.visualization.colours import TEXT

FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT_OVERSAMPLING = 4  # text is drawn large and shrunk, because Hershey strokes have no hinting


@lru_cache(maxsize=1024)
def _text_mask(text: str, size_px: int, bold: bool) -> npt.NDArray[Any]:
    """Return the coverage 0..1 of a line of text, (h, w) float32; size_px: height of a capital."""
    over = TEXT_OVERSAMPLING
    scale = size_px * over / 21.0  # a Hershey Simplex capital is 21 units high
    thickness = max(1, round(size_px * over * (0.17 if bold else 0.115)))
    (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
    pad = thickness + over
    below += pad
    image = np.zeros((height + below + pad, width + 2 * pad), dtype=np.uint8)
    cv2.putText(image, text, (pad, height + pad), FONT, scale, 255, thickness, cv2.LINE_AA)
    shape = (max(1, image.shape[1] // over), max(1, image.shape[0] // over))
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0


def text_width(text: str, size_px: int, bold: bool = False) -> int:
    """Return the width in pixels of a text drawn by `put_text`."""
    return _text_mask(_ascii(text), size_px, bold).shape[1] if text else 0


def put_text(
    image: npt.NDArray[Any],
    text: str,
    at: tuple[int, int],
    size_px: int = 11,
    colour: tuple[int, int, int] = TEXT,
    *,
    bold: bool = False,
    align: str = "left",
) -> None:
    """Draw one line of text into `image` (H, W, 3); `at` is (x, y) of the top of the capitals.

    align: which point of the line is at x: left, centre or right. The font has only ASCII; some
    other characters are spelled out, the rest become "?".
    """
    if not text:
        return
    mask = _text_mask(_ascii(text), size_px, bold)
    x = at[0] - {"left": 0, "centre": mask.shape[1] // 2, "right": mask.shape[1]}[align]
    y = at[1]
    top, left = max(y, 0), max(x, 0)
    bottom = min(y + mask.shape[0], image.shape[0])
    right = min(x + mask.shape[1], image.shape[1])
    if bottom <= top or right <= left:
        return
    cover = mask[top - y : bottom - y, left - x : right - x, None]
    area = image[top:bottom, left:right]
    area[:] = (area * (1 - cover) + np.array(colour, dtype=np.float32) * cover + 0.5).astype(
        np.uint8
    )


def _ascii(text: str) -> str:
    for sign, words in (("±", "+/-"), ("δ", "delta"), ("…", "..."), ("×", "x"), ("–", "-")):
        text = text.replace(sign, words)
    return text.encode("ascii", "replace").decode("ascii")
