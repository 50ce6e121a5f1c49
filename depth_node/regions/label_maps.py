# SPDX-License-Identifier: Apache-2.0
"""Label maps: creation from masks, renumbering, merging, and the neighbourhood of regions.

A label map is (H, W) int32: 0 = unassigned, 1..K = regions. Two regions are neighbours if they have
a pair of 4-adjacent pixels (Region-aware Depth Scale Adaptation, arXiv 2507.14879, section 3; where
the paper leaves a choice, a comment states the choice made here).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from depth_node.regions.settings import SegmentationConfig

REFERENCE_AREA_PX = 640 * 480  # pixel counts in the configuration are given for this image size
_DENSE_ID_LIMIT = 1 << 22  # ids up to here are relabelled through a table, larger ones by sorting
Labels = NDArray[np.int32]


def relabel(labels: NDArray[np.integer]) -> Labels:
    """Number the regions of a map (H, W) 1..K without gaps, in their order; 0 stays 0."""
    labels = _checked(labels)
    top = int(labels.max(initial=0))
    if top > _DENSE_ID_LIMIT:
        ids, inverse = np.unique(labels, return_inverse=True)
        start = 0 if ids[0] == 0 else 1
        return (inverse.reshape(labels.shape) + start).astype(np.int32)
    present = np.bincount(labels.ravel(), minlength=top + 1) > 0
    present[0] = False
    table = np.where(present, np.cumsum(present), 0).astype(np.int32)
    return table[labels]


def border_lengths(labels: NDArray[np.integer]) -> sparse.csr_matrix:
    """Return the number of 4-adjacent pixel pairs between regions: (K+1, K+1) int32, symmetric.

    Row and column 0 are empty: unassigned pixels have no neighbours.
    """
    one, other, count = _border_pairs(labels)
    pairs = sparse.coo_matrix((np.ones(len(one), np.int32), (one, other)), shape=(count, count))
    lengths = pairs.tocsr()
    return sparse.csr_matrix(lengths + lengths.T)


def adjacency(labels: NDArray[np.integer]) -> sparse.csr_matrix:
    """Return which regions are neighbours: (K+1, K+1) bool, symmetric.

    Row 0, column 0 and the diagonal are empty.
    """
    one, other, count = _border_pairs(labels)
    # Sorting each pair once is four times faster than border_lengths(labels).astype(bool).
    one, other = np.divmod(np.unique(one * count + other), count)
    row, column = np.divmod(np.unique([one * count + other, other * count + one]), count)
    begin = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
    touch = np.ones(len(row), dtype=bool)
    return sparse.csr_matrix((touch, column, begin), shape=(count, count))


def _border_pairs(
    labels: NDArray[np.integer],
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return both regions, (n,) each, of all 4-adjacent pixels of different regions, and K + 1."""
    labels = _checked(labels)
    count, width = int(labels.max(initial=0)) + 1, labels.shape[1]
    small: Any = np.uint8 if count <= 256 else np.uint16 if count <= 65536 else np.int64
    labels = np.ascontiguousarray(labels, dtype=small)  # small types are faster to compare
    flat = labels.ravel()
    differs = np.zeros(labels.shape, dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=differs.ravel()[:-1])
    differs[:, -1] = False  # the end of a row does not touch the next row
    right, down = np.flatnonzero(differs), np.flatnonzero(flat[:-width] != flat[width:])
    one: NDArray[np.int64] = flat[np.concatenate([right, down])].astype(np.int64)
    other: NDArray[np.int64] = flat[np.concatenate([right + 1, down + width])].astype(np.int64)
    if not (one.all() and other.all()):
        both = (one > 0) & (other > 0)
        one, other = one[both], other[both]
    return one, other, count


def merge_small(labels: NDArray[np.integer], min_px: int) -> Labels:
    """Merge every region below `min_px` pixels into the neighbour with the longest common border.

    In rounds: in a round every small region joins its neighbour, except a region that a smaller one
    joins, because that may make it large enough. If borders are equally long, the larger neighbour
    is taken, then the one that begins higher up in the image, so that the result does not depend on
    the numbering. A small region without neighbours stays. Returns a map (H, W) of labels 1..K
    without gaps; unassigned pixels stay 0.
    """
    labels = _checked(labels)
    # Work on runs of equal pixels: a few thousand instead of 300000 pixels.
    flat = labels.ravel()
    start = np.concatenate([[0], 1 + np.flatnonzero(flat[1:] != flat[:-1])])
    run_px = np.diff(start, append=labels.size)
    ids, first_run, region = np.unique(flat[start], return_index=True, return_inverse=True)
    if ids[0] != 0:  # row 0 of all tables belongs to unassigned pixels
        region, first_run = region + 1, np.concatenate([[0], first_run])
    area = np.bincount(region, run_px).astype(np.int64)
    dense: Labels = np.repeat(region.astype(np.int32), run_px).reshape(labels.shape)
    if len(area) < 2 or area[1:].min() >= min_px:
        return dense
    # Renumber by first pixel: from here on a smaller number means higher up in the image.
    order = np.concatenate([[0], 1 + np.argsort(first_run[1:], kind="stable")])
    number: NDArray[np.int64] = np.empty(len(area), np.int64)
    number[order] = np.arange(len(area))
    area = area[order]

    owner: NDArray[np.int64] = np.arange(len(area))
    lengths = border_lengths(dense).tocoo()
    one: NDArray[np.int64]
    other: NDArray[np.int64]
    one, other = number[lengths.row], number[lengths.col]
    border = lengths.data.astype(np.int64)
    while (area[one] < min_px).any():
        target = _joined(area, one, other, border, min_px)
        owner = target[owner]
        area = np.bincount(target, weights=area, minlength=len(area)).astype(np.int64)
        one, other = target[one], target[other]
        keep = one != other
        merged = sparse.coo_matrix(
            (border[keep], (one[keep], other[keep])), shape=(len(area), len(area))
        ).tocsr()
        lengths = merged.tocoo()
        one, other = lengths.row.astype(np.int64), lengths.col.astype(np.int64)
        border = lengths.data
    ids = np.unique(owner[1:])
    table = np.concatenate([[0], 1 + np.searchsorted(ids, owner[1:])]).astype(np.int32)
    return np.repeat(table[number[region]], run_px).reshape(labels.shape)


def _joined(
    area: NDArray[np.int64],
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    border: NDArray[np.int64],
    min_px: int,
) -> NDArray[np.int64]:
    """Return the region (K+1,) to which each region belongs after a round of merge_small.

    area: (K+1,) px. one, other, border: (n,) neighbours and the length of their border.
    """
    wants = area[one] < min_px
    giver, taker, length = one[wants], other[wants], border[wants]
    best = np.lexsort((taker, -area[taker], -length, giver))
    giver, taker = giver[best], taker[best]
    lead = np.concatenate([[True], giver[1:] != giver[:-1]])
    giver, taker = giver[lead], taker[lead]
    # A giver waits for this round if a smaller region is about to join it.
    smaller = area[giver] * len(area) + giver < area[taker] * len(area) + taker
    blocked = np.zeros(len(area), bool)
    blocked[taker[smaller]] = True
    ready = ~blocked[giver]
    target: NDArray[np.int64] = np.arange(len(area))
    target[giver[ready]] = taker[ready]
    while True:  # follow chains to their end
        further = target[target]
        if np.array_equal(further, target):
            return target
        target = further


def labels_from_masks(masks: NDArray[np.bool_], config: SegmentationConfig | None = None) -> Labels:
    """Make one label map (H, W) from masks (M, H, W) that may overlap.

    Masks are painted from large to small, so a pixel gets the smallest mask that covers it (of
    equal masks the first). Masks below `config.min_region_px` are ignored. Pixels without a mask
    become regions by 4-connectivity, and regions that are too small are merged into a neighbour.
    Raises ValueError if the masks have another shape.
    """
    config = config or SegmentationConfig()
    masks = np.asarray(masks)
    if masks.ndim != 3 or 0 in masks.shape[1:]:
        raise ValueError(f"masks have shape {masks.shape}, give them as (M, H, W).")
    masks = masks.astype(bool, copy=False)
    limit = scaled_px(config.min_region_px, *masks.shape[1:])
    sizes = masks.sum(axis=(1, 2))
    labels = np.zeros(masks.shape[1:], np.int32)
    # Reversed stable order: among equals the first mask is painted last.
    for index in np.argsort(sizes, kind="stable")[::-1]:
        if sizes[index] >= max(limit, 1):
            labels[masks[index]] = index + 1
    return _completed(labels, limit)


def labels_from_ids(
    id_image: NDArray[np.integer], config: SegmentationConfig | None = None
) -> Labels:
    """Make one label map from an image (H, W) of mask ids, 0 = no mask; see labels_from_masks."""
    config = config or SegmentationConfig()
    labels = relabel(id_image)
    limit = scaled_px(config.min_region_px, *labels.shape)
    area = np.bincount(labels.ravel())
    labels[area[labels] < limit] = 0
    return _completed(labels, limit)


def labels_from_painting(
    painted: NDArray[np.integer], config: SegmentationConfig | None = None
) -> Labels:
    """Make one label map (H, W) from masks that prompted_masks.paint has painted over each other.

    painted: (H, W) a number for every mask, 0 = no mask. Other rules as in labels_from_masks.
    """
    config = config or SegmentationConfig()
    painted = _checked(painted)
    return _completed(painted.astype(np.int32), scaled_px(config.min_region_px, *painted.shape))


def scaled_px(pixels: int, height: int, width: int) -> int:
    """Scale a pixel count that is given for 640x480 with the area of the image, rounded up."""
    return int(np.ceil(pixels * height * width / REFERENCE_AREA_PX))


def _completed(labels: Labels, min_px: int) -> Labels:
    """Turn uncovered pixels into regions and merge regions that are too small."""
    _, parts = cv2.connectedComponents((labels == 0).astype(np.uint8), connectivity=4)
    top = int(labels.max(initial=0))
    return merge_small(np.where(labels > 0, labels, parts + top), min_px)


def _checked(labels: NDArray[np.integer]) -> NDArray[np.integer]:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"a label map is {labels.dtype} of shape {labels.shape}, give integers (H, W)."
        )
    if int(labels.min()) < 0:
        raise ValueError("a label map has negative labels, use 0 for unassigned pixels.")
    return labels
