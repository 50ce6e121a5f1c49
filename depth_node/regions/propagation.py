# SPDX-License-Identifier: Apache-2.0
"""Propagation of regions from image to image, so that not every image is segmented.

The regions of one image (the key) are stored. Dense inverse search optical flow (arXiv 1603.03590)
between small grey images gives for every pixel of a later image its position in the key, from which
it takes its region. A pixel whose grey level differs from that position, or whose position is
outside the key, has changed; if the fraction of changed pixels is too large, the image is
segmented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.regions.label_maps import Labels, relabel
from depth_node.regions.settings import SegmentationConfig

SMALL_PX = 320  # longer side; docs/studies/regions.md compares sizes and methods
SMALLEST_PX = 32  # the patches of the flow need this size
GREY_STEP = 24.0  # of 255; a pixel that differs by more has changed

Map = NDArray[np.float32]


@dataclass(frozen=True)
class _Key:
    """The last segmented image, reduced and grey, its regions, and the flow to it."""

    grey: NDArray[np.uint8]
    labels: Labels
    flow: Map | None = None  # (h, w, 2) px of the small image, from the last image to the key
    age: int = 0  # number of images since the key


class RegionMemory:
    """Regions of one camera, propagated between images. Not safe for several threads at once."""

    def __init__(self) -> None:
        self._key: _Key | None = None
        self.changed = 0.0  # fraction of changed pixels of the last image

    def carried(self, image: NDArray[np.uint8], config: SegmentationConfig) -> Labels | None:
        """Return the regions of an (H, W, 3) uint8 RGB image, propagated from the key.

        They are (H, W) int32, 1..K without gaps; None if the image must be segmented. After a
        segmentation call keep() with its regions.
        """
        key = self._key
        if key is None or config.every == 1 or key.labels.shape != image.shape[:2]:
            return None
        if 0 < config.every <= key.age + 1:
            return None
        grey = small_grey(image)
        if min(grey.shape) < SMALLEST_PX:
            return None
        start: Any = None if key.flow is None else key.flow.copy()
        finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        flow = np.asarray(finder.calc(grey, key.grey, start), np.float32)
        self.changed = _changed(grey, key.grey, flow)
        if self.changed > config.change:
            return None
        self._key = _Key(key.grey, key.labels, flow, key.age + 1)
        return relabel(follow(key.labels, flow))

    def keep(self, image: NDArray[np.uint8], labels: Labels) -> None:
        """Make an image (H, W, 3) and its regions (H, W) the key."""
        self._key = _Key(small_grey(image), labels)


def small_grey(image: NDArray[np.uint8], longest_px: int = SMALL_PX) -> NDArray[np.uint8]:
    """Reduce (H, W, 3) uint8 RGB to (h, w) uint8 grey; its longer side is at most longest_px."""
    height, width = image.shape[:2]
    scale = min(1.0, longest_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


def _source_pixels(flow: Map) -> tuple[Map, Map]:
    """Return the columns and rows (h, w) in the key to which a flow (h, w, 2) points."""
    height, width = flow.shape[:2]
    cols = flow[..., 0] + np.arange(width, dtype=np.float32)
    rows = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return cols, rows


def _changed(grey: NDArray[np.uint8], key: NDArray[np.uint8], flow: Map) -> float:
    """Return the fraction of pixels whose grey differs from their source, or is outside the key."""
    cols, rows = _source_pixels(flow)
    source = cv2.remap(key, cols, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    other = cv2.absdiff(grey, source) > GREY_STEP
    height, width = grey.shape
    other |= (cols < -0.5) | (rows < -0.5) | (cols > width - 0.5) | (rows > height - 0.5)
    return float(other.mean())


def follow(labels: Labels, flow: Map) -> Labels:
    """Return the regions (H, W) of the source pixels of a flow (h, w, 2), in px of its own size."""
    height, width = labels.shape
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    large = np.asarray(cv2.resize(flow, (width, height)), np.float32) * scale
    cols, rows = _source_pixels(large)
    # cv2.remap does not support int32; float32 is exact for up to 2^24 regions.
    moved = cv2.remap(
        labels.astype(np.float32), cols, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, np.int32)
