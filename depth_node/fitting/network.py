# SPDX-License-Identifier: Apache-2.0
"""Method `network`: the network's own metres, with an interval that points calibrate.

The metres of the network stay unchanged; the measured points only give their error. A network that
gets no points is judged by all of them. A completion network, which gets the points, runs twice:
with all of them for the result, and without some of them for the error at these. They are left out
in blocks, because a pixel is farther from its nearest point than the points of a scan line are from
each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.field.interval import MIN_SPREAD, edge_factor
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction

INSIDE = 0.95  # fraction of the errors inside the interval
MIN_JUDGES = 19  # the largest of fewer errors bounds the next one in less than 95 % of cases
FEW_POINTS = 8 * MIN_JUDGES  # with fewer points, half are left out: a quarter may be too few judges
BLOCK_SPACINGS = 1.0  # side of a block that is left out, in spacings of evenly spread points


@dataclass(frozen=True)
class AnswerWithout:
    """The prediction of a completion network without some of the points.

    prediction: (H, W) of its second run. which: (N,) bool, the points that this run was not given.
    given: (N,) bool, the points that the first run, whose prediction is the result, was given.
    """

    prediction: Prediction
    which: NDArray[np.bool_]
    given: NDArray[np.bool_]


@dataclass(frozen=True)
class NetworkAnswer:
    """Metres of a network and their interval.

    depth, std: (H, W) float32 m, as in FitResult. details: numbers for an operator, by name.
    """

    depth: NDArray[np.float32]
    std: NDArray[np.float32]
    details: dict[str, Any]


def left_out_blocks(
    rows: NDArray[np.integer], cols: NDArray[np.integer], image: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return which points (N,) are in every fourth block of an image (H, W), or, of fewer than
    FEW_POINTS, in every second block.

    rows, cols: (N,) pixels of the points.
    """
    spacing = math.sqrt(image[0] * image[1] / max(len(rows), 1))
    side = max(1.0, BLOCK_SPACINGS * spacing)
    block_row, block_col = np.floor(rows / side), np.floor(cols / side)
    if len(rows) < FEW_POINTS:
        few: NDArray[np.bool_] = (block_row + block_col) % 2 == 0
        return few
    result: NDArray[np.bool_] = (block_row + 2 * block_col) % 4 == 0
    return result


def network_answer(
    prediction: Prediction,
    points: SparseDepth,
    depth_range_m: tuple[float, float],
    max_extrapolation: float,
    left_out: AnswerWithout | None = None,
) -> NetworkAnswer:
    """Return the metres of a metric prediction and their interval, from usable points.

    left_out: of a completion network; its arrays have one entry for each of these points. The bound
    of the error is relative to the depth. It grows at steps of the depth and with the distance from
    the points that the network was given, and is scaled so that 95 % of the points that it was not
    given are inside. std is NaN with fewer than MIN_JUDGES of these, and where the nearest given
    point is farther than max_extrapolation times the larger side of the image.
    """
    rows, cols, z = points.rows, points.cols, points.depth
    depth, edge = _depth_and_edge(prediction, depth_range_m)
    judge: NDArray[np.bool_] = np.ones(len(z), bool)
    judged, spread, own = depth, edge, edge[rows, cols]
    far: NDArray[np.float32] | None = None
    if left_out is not None:
        judge, others = left_out.which, left_out.given & ~left_out.which
        judged, judged_edge = _depth_and_edge(left_out.prediction, depth_range_m)
        spacing = math.sqrt(depth.size / max(np.count_nonzero(left_out.given), 1))
        far = _distance_px(rows[left_out.given], cols[left_out.given], depth.shape)
        judged_far = _distance_px(rows[others], cols[others], depth.shape)[rows, cols]
        spread = edge * (1 + far / np.float32(spacing))
        own = judged_edge[rows, cols] * (1 + judged_far / spacing)
    error = np.abs(z / judged[rows, cols] - 1)
    judge = judge & np.isfinite(error) & np.isfinite(own)
    count = int(np.count_nonzero(judge))
    details: dict[str, Any] = {"points": len(z), "judged by": count}
    std: NDArray[np.float32] = np.full(depth.shape, np.nan, np.float32)
    if count >= MIN_JUDGES:
        # The k-th smallest of n errors bounds the next one in k / (n + 1) of cases (split conformal
        # prediction: Lei et al. 2018, arXiv 1604.04173).
        ratio = np.sort((error[judge] / own[judge]).astype(np.float64))
        factor = float(ratio[math.ceil(INSIDE * (count + 1)) - 1])
        bound = np.maximum(np.float32(factor) * spread, np.float32(MIN_SPREAD))
        std = (bound * depth / np.float32(NORMAL_95)).astype(np.float32)
        if far is not None:
            std[far > max_extrapolation * max(depth.shape)] = np.nan
        details["coverage"] = float(np.mean(error[judge] <= factor * own[judge]))
        details["left_out_error"] = float(np.mean(error[judge]))
        details["interval_factor"] = factor
    return NetworkAnswer(depth, std, details)


def _depth_and_edge(
    prediction: Prediction, depth_range_m: tuple[float, float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return depth (H, W) in m, limited to the range, and the interval's factor at its steps."""
    lowest, highest = np.array(depth_range_m, np.float32)
    depth = np.clip(prediction.metric_depth(), lowest, highest)
    return depth, edge_factor(np.log(np.nan_to_num(depth, nan=float(lowest))))


def _distance_px(
    rows: NDArray[np.integer], cols: NDArray[np.integer], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Return each pixel's distance (H, W) in px from the nearest of the given ones.

    rows, cols: (n,) the given pixels; without any the distance is infinite.
    """
    if len(rows) == 0:
        return np.full(shape, np.inf, np.float32)
    empty: NDArray[np.uint8] = np.ones(shape, np.uint8)
    empty[rows, cols] = 0
    return np.asarray(cv2.distanceTransform(empty, cv2.DIST_L2, 3), np.float32)
