# SPDX-License-Identifier: Apache-2.0
"""Masks of a prompted network such as Segment Anything: point prompts, selection, painting.

A prompt decoder gives a few masks for every point, each with its predicted quality (IoU) and its
dependence on the threshold (stability). Most are copies of each other. The selection and its order
follow the automatic mask generator of Segment Anything (arXiv 2304.02643, appendix B), but work on
the decoder's small maps, so that only the selected masks are enlarged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.config import option, validate

Map = NDArray[np.float32]

_MASK_STEP = 4  # every 4th row and column of a map is enough to compare two masks
FLOOD_LEVELS = 16  # number of heights of the watershed
_LONGEST_STEP = 32  # map pixels; maps that match the image only in longer steps are enlarged whole


@dataclass(frozen=True)
class PromptConfig:
    """Point prompts of a prompted network and the selection of its masks."""

    points_per_side: int = option(
        16, "Number of point prompts per side of a square grid.", minimum=1, maximum=128
    )
    min_iou: float = option(
        0.88, "Masks of lower predicted IoU are dropped.", minimum=0.0, maximum=1.0
    )
    min_stability: float = option(
        0.95,
        "Masks are dropped if a stricter threshold leaves less than this fraction of them.",
        minimum=0.0,
        maximum=1.0,
    )
    nms: str = option(
        "box",
        "How two masks are compared to find duplicates: by the overlap of their boxes (box, as"
        " published) or of the masks (mask, slower).",
        choices=("box", "mask"),
    )
    nms_iou: float = option(
        0.7,
        "Masks whose overlap with a better one is above this IoU are dropped.",
        minimum=0.0,
        maximum=1.0,
    )

    def __post_init__(self) -> None:
        validate(self)


def point_grid(per_side: int, height: float, width: float) -> NDArray[np.float32]:
    """Return points (per_side^2, 2), x and y, row by row, at the centres of equal image cells."""
    middle = (np.arange(per_side) + 0.5) / per_side
    x, y = np.meshgrid(middle * width, middle * height)
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def batches(points: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    """Divide points (n, 2) into batches of exactly (size, 2); the last repeats its last point."""
    missing = -len(points) % size
    padded = np.concatenate([points, np.repeat(points[-1:], missing, axis=0)])
    return list(padded.reshape(-1, size, 2))


def select(
    iou: NDArray[np.float32],
    stability: NDArray[np.float32],
    boxes: NDArray[np.float32],
    masks: Sequence[Map],
    config: PromptConfig,
) -> NDArray[np.intp]:
    """Return the indices of the selected ones of n masks, best first.

    A mask whose box is negative or not finite is dropped. iou, stability: (n,). boxes: (n, 4) first
    and last column and row inside: x0, y0, x1, y1. masks: n maps (h, w), above 0 inside; used only
    with `nms: mask`.
    """
    # A decoder that overflowed gives NaN, whose cast to integers differs between processors.
    boxed = np.isfinite(boxes).all(axis=1) & (boxes >= 0).all(axis=1)
    good = np.flatnonzero(boxed & (iou > config.min_iou) & (stability >= config.min_stability))
    order = good[np.argsort(-iou[good], kind="stable")]
    if config.nms == "box":
        overlap = box_overlap(boxes[order])
    else:
        overlap = mask_overlap([masks[index] for index in order])
    return order[suppressed(overlap, config.nms_iou)]


def box_overlap(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (n, n) intersection over union of boxes (n, 4), as in select()."""
    first, last = boxes[:, :2].T, boxes[:, 2:].T + 1
    area = (last[0] - first[0]) * (last[1] - first[1])
    shared = [
        np.maximum(np.minimum.outer(last[k], last[k]) - np.maximum.outer(first[k], first[k]), 0)
        for k in range(2)
    ]
    common = shared[0] * shared[1]
    return np.asarray(common / np.maximum(np.add.outer(area, area) - common, 1), np.float32)


def mask_overlap(masks: Sequence[Map]) -> NDArray[np.float32]:
    """Return the (n, n) intersection over union of masks (h, w), above 0 inside.

    It is computed on every 4th row and column.
    """
    if not len(masks):
        return np.zeros((0, 0), np.float32)
    step = slice(_MASK_STEP // 2, None, _MASK_STEP)
    inside = np.stack([(mask[step, step] > 0).ravel() for mask in masks]).astype(np.float32)
    common = inside @ inside.T
    area = np.diagonal(common)
    return np.asarray(common / np.maximum(np.add.outer(area, area) - common, 1), np.float32)


def suppressed(overlap: NDArray[np.float32], limit: float) -> NDArray[np.intp]:
    """Return the indices that greedy non-maximum suppression of (n, n) overlaps leaves."""
    too_near = overlap > limit
    alive = np.ones(len(overlap), bool)
    selected = []
    for index in range(len(overlap)):
        if alive[index]:
            selected.append(index)
            alive &= ~too_near[index]
    return np.asarray(selected, np.intp)


def paint(
    masks: Sequence[Map],
    boxes: NDArray[np.float32],
    extent: tuple[float, float],
    height: int,
    width: int,
    min_px: int = 1,
) -> NDArray[np.int32]:
    """Paint masks over each other, large to small: (height, width) int32, 0 without a mask.

    masks: n maps (h, w), above 0 inside, enlarged before the threshold, so that borders are smooth.
    boxes: (n, 4) as in select(). extent: number of rows and columns of the maps that the image
    fills, from the upper left. min_px: smaller masks (in the image) are left out. Mask i is painted
    as i + 1; of equally large masks the first is painted last.
    """
    painted = np.zeros((height, width), np.uint16)
    colour = np.empty((height, width), np.uint16)
    sizes = [_area(mask, box) for mask, box in zip(masks, boxes.astype(np.int64), strict=True)]
    for index in np.argsort(sizes, kind="stable")[::-1]:
        if boxes[index][0] >= extent[1] or boxes[index][1] >= extent[0]:
            continue  # beyond the image
        window, inside = _enlarged(masks[index], boxes[index], extent, height, width)
        if cv2.countNonZero(inside) < max(min_px, 1):
            continue
        colour[window] = index + 1
        painted[window] = cv2.copyTo(colour[window], inside, painted[window])
    return painted.astype(np.int32)


def _area(mask: Map, box: NDArray[np.int64]) -> int:
    return int(np.count_nonzero(mask[box[1] : box[3] + 1, box[0] : box[2] + 1] > 0))


def _enlarged(
    mask: Map, box: NDArray[np.float32], extent: tuple[float, float], height: int, width: int
) -> tuple[tuple[slice, slice], NDArray[np.uint8]]:
    """Return the window of the image around a mask's box, and the mask in it, 0 or 1."""
    rows = _Axis.about(box[1], box[3], extent[0], len(mask), height)
    cols = _Axis.about(box[0], box[2], extent[1], mask.shape[1], width)
    source = mask[rows.source, cols.source]
    if rows.whole and cols.whole:
        values = cv2.resize(source, (cols.count, rows.count), interpolation=cv2.INTER_LINEAR)
    else:
        transform = np.array([[cols.step, 0, cols.shift], [0, rows.step, rows.shift]])
        values = cv2.warpAffine(
            source,
            transform,
            (cols.count, rows.count),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    window = (
        slice(rows.first, min(rows.first + rows.count, height)),
        slice(cols.first, min(cols.first + cols.count, width)),
    )
    inside = values[: window[0].stop - rows.first, : window[1].stop - cols.first] > 0
    return window, inside.view(np.uint8)


@dataclass(frozen=True)
class _Axis:
    """The correspondence of pixels of a map and of the image along one axis.

    The window begins at image pixel `first` and has `count` pixels, of which the last may lie
    outside. Its pixel t lies at step * t + shift of the source. whole: source and window cover
    exactly the same part, as cv2.resize needs it (several times faster).
    """

    source: slice
    first: int
    count: int
    step: float
    shift: float
    whole: bool

    @classmethod
    def about(cls, low: float, high: float, extent: float, length: int, size: int) -> _Axis:
        """Return the part of a map of `length` pixels that contains its pixels low to high.

        One more pixel on each side is included, also beyond the end of the image.
        """
        step = extent / size
        begin, end = max(int(low) - 1, 0), min(int(high) + 2, length)
        used = round(extent)
        whole = abs(extent - used) < 1e-6
        if whole:
            stride = used // math.gcd(used, size)
            if stride > _LONGEST_STEP:
                begin, end = 0, used
            last = length // stride * stride
            begin, end = begin // stride * stride, min(-(-end // stride) * stride, last)
            first, count = begin * size // used, (end - begin) * size // used
        else:
            first = int(begin / step)
            count = min(math.ceil(end / step), size) - first
        shift = (first + 0.5) * step - 0.5 - begin
        return cls(slice(begin, end), first, count, step, shift, whole)


def edges_to_ids(edges: Map, level: float, radius_px: float) -> NDArray[np.int32]:
    """Segment an image along a dense edge map: (h, w) int32, every pixel in a region 1..K.

    edges: (h, w) strength of an edge, 0 to 1; NaN counts as 0. Seeds are the pixels below `level`
    that are farther than `radius_px` from every edge (so that a gap of twice that width in an edge
    does not join its sides), and connected parts that are too narrow for such a pixel. A watershed
    grows the seeds, so that regions meet on the crest of the edge between them.
    """
    strength = np.nan_to_num(np.asarray(edges, np.float32), nan=0.0)
    flat = (strength < level).astype(np.uint8)
    if not flat.any():
        return np.ones(flat.shape, np.int32)
    framed = np.pad(flat, 1, constant_values=1)  # the border of the image is not an edge
    distance = np.asarray(cv2.distanceTransform(framed, cv2.DIST_L2, 3))[1:-1, 1:-1]
    count, seeds = cv2.connectedComponents((distance > radius_px).astype(np.uint8), connectivity=4)
    parts, narrow = cv2.connectedComponents(flat, connectivity=4)
    seeded = np.zeros(parts, bool)
    seeded[np.unique(narrow[seeds > 0])] = True
    seeds = np.where((narrow > 0) & ~seeded[narrow], narrow + count, seeds)
    return _flooded(strength, seeds.astype(np.int32))


def _flooded(strength: Map, seeds: NDArray[np.int32]) -> NDArray[np.int32]:
    """Grow seeds (0 = none) level by level until every pixel has a label: a watershed by height.

    The watersheds of scipy and OpenCV compare neighbouring pixels and cross a gentle slope. If
    several labels reach a pixel at one level, it gets the largest one.
    """
    framed = np.pad(seeds, 1)
    width = framed.shape[1]
    labels = framed.ravel()
    level = np.ceil(np.pad(strength, 1) * FLOOD_LEVELS).ravel()
    inner = np.pad(np.ones(seeds.shape, bool), 1).ravel()
    dry = np.flatnonzero(inner & (labels == 0))
    height = np.clip(level[dry], 1, FLOOD_LEVELS)
    for current in range(1, FLOOD_LEVELS + 1):
        free, rest = dry[height <= current], height > current
        while len(free):
            around = labels[free - 1]
            for step in (1, -width, width):
                np.maximum(around, labels[free + step], out=around)
            reached = around > 0
            if not reached.any():
                break
            labels[free[reached]] = around[reached]
            free = free[~reached]
        dry, height = np.concatenate([dry[rest], free]), height[rest]
        height = np.concatenate([height, np.full(len(free), current)])
    return labels.reshape(framed.shape)[1:-1, 1:-1].copy()
