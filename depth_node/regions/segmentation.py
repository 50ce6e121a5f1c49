# SPDX-License-Identifier: Apache-2.0
"""Classical segmentation of an image, with or without a prediction, into regions."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from depth_node.regions.label_maps import REFERENCE_AREA_PX, Labels
from depth_node.regions.settings import SegmentationConfig

DEPTH_WEIGHT = 0.15  # of the prediction, in mean deviations from its median, relative to Lab / 100
BLUR_CELLS = 0.7  # standard deviation of the blur of the cells


def segment(
    image: NDArray[np.uint8],
    prediction_values: NDArray[np.floating] | None = None,
    config: SegmentationConfig | None = None,
) -> Labels:
    """Segment an image without a network: (H, W) int32, every pixel in a region 1..K.

    image: (H, W, 3) uint8 RGB. prediction_values: (H, W) output of a depth network in any of its
    spaces, NaN unknown; with it, edges of depth count as well as edges of colour.

    The image is averaged into cells, each of which is a region at first. In rounds, every region
    that is too small joins the neighbour of the nearest mean colour and mean prediction (Boruvka's
    rounds with means; Felzenszwalb and Huttenlocher's graph segmentation, IJCV 2004, compares
    single pixels). Every region is 4-connected, has at least `config.grow_cells` cells (if the
    image has) and ends at edges of colour or depth. Raises ValueError for an array that is not such
    an image, or a prediction of another size.
    """
    config = config or SegmentationConfig()
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"the image is {image.dtype} of shape {image.shape}, give uint8 RGB (H, W, 3)."
        )
    height, width = image.shape[:2]
    if prediction_values is not None and np.shape(prediction_values) != (height, width):
        raise ValueError(
            f"the prediction has shape {np.shape(prediction_values)} and the image "
            f"{(height, width)}: give the prediction in image coordinates."
        )
    cell_px = config.cell_px * np.sqrt(height * width / REFERENCE_AREA_PX)
    # At most as many cells as pixels, so that every cell has pixels and regions are connected.
    rows = int(np.clip(round(height / cell_px), 1, height))
    cols = int(np.clip(round(width / cell_px), 1, width))

    small = cv2.resize(image, (cols, rows), interpolation=cv2.INTER_AREA)
    colour = cv2.cvtColor(small.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2Lab)
    features: list[NDArray[Any]] = [colour / np.float32(100)]
    if prediction_values is not None:
        values: NDArray[Any] = np.asarray(prediction_values, np.float32)
        values = np.asarray(cv2.resize(values, (cols, rows), interpolation=cv2.INTER_AREA))
        features.append(np.float32(DEPTH_WEIGHT) * _levelled(values)[..., None])
    cells: NDArray[Any] = np.concatenate(features, axis=2)
    cells = np.asarray(cv2.GaussianBlur(cells, (0, 0), BLUR_CELLS))
    labels: NDArray[Any] = _grow(cells, config.grow_cells)
    labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(labels, np.int32)


def _levelled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a prediction (h, w) in mean deviations from its median, compressed by asinh.

    Unknown values become 0.
    """
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    centred = np.where(known, values, 0) - np.median(values[known])
    deviation = float(np.abs(centred[known]).mean())
    if not 0 < deviation < np.inf:
        return np.zeros_like(values)
    # Depth has a long tail of far values, disparity of near ones; asinh gives edges in the tail
    # a weight similar to that of others.
    return np.where(known, np.arcsinh(centred / np.float32(deviation)), np.float32(0))


def _grow(cells: NDArray[np.float32], min_cells: int) -> Labels:
    """Join cells (h, w, f) to regions of at least min_cells cells, nearest mean features first."""
    height, width, _ = cells.shape
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    one = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    other = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    region: NDArray[Any] = index.ravel()  # of every cell
    size: NDArray[Any] = np.ones(len(region))
    mean: NDArray[Any] = cells.reshape(len(region), -1)
    while len(one):
        active = (size[one] < min_cells) | (size[other] < min_cells)
        if not active.any():
            break
        difference = mean[one[active]] - mean[other[active]]
        distance = np.einsum("ij,ij->i", difference, difference)
        from_farthest = np.argsort(-distance, kind="stable")
        left, right = one[active][from_farthest], other[active][from_farthest]
        # The last of repeated writes counts, so each region gets its nearest neighbour.
        both = np.stack([left, right], axis=1).ravel()
        back = np.stack([right, left], axis=1).ravel()
        nearest = np.arange(len(size), dtype=np.int32)
        nearest[both] = back
        grown = size >= min_cells
        nearest[grown] = np.flatnonzero(grown)
        links = sparse.csr_matrix(
            (np.ones(len(size), np.int8), nearest, np.arange(len(size) + 1)),
            shape=(len(size), len(size)),
        )
        count, joined = csgraph.connected_components(links, directed=False)
        region = joined[region]
        sums = [np.bincount(joined, mean[:, k] * size, count) for k in range(mean.shape[1])]
        size = np.bincount(joined, size, count)
        mean = (np.stack(sums, axis=1) / size[:, None]).astype(np.float32)
        one, other = joined[one], joined[other]
        keep = one != other
        one, other = np.minimum(one[keep], other[keep]), np.maximum(one[keep], other[keep])
        pairs = np.unique(one.astype(np.int64) * count + other)
        one, other = pairs // count, pairs % count
    return region.reshape(height, width).astype(np.int32) + 1
