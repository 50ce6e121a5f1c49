# SPDX-License-Identifier: Apache-2.0
"""Method `network`: the network's own metres, with an interval that points calibrate.

A network that gives metres is taken at its word; the measured points only judge it. A network that
saw no point is judged by all of them. A completion network, which is given the points, is asked
twice: with all of them for the answer, and without some for their errors. These are left out in
blocks, since a pixel lies farther from its nearest point than the points of a line from each other.
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

INSIDE = 0.95  # of the interval
MIN_JUDGES = 19  # of fewer errors even the largest bounds the next in less than 95 % of cases
FEW_POINTS = 8 * MIN_JUDGES  # of which a quarter may be too few judges: half are left out
BLOCK_SPACINGS = 1.0  # side of a block that is left out, in spacings of evenly spread points


@dataclass(frozen=True)
class AnswerWithout:
    """What a completion network answers without some points.

    prediction: (H, W) of its second run. which: (N,) bool, the points that it was not given. given:
    (N,) bool, those that it was given for the answer itself.
    """

    prediction: Prediction
    which: NDArray[np.bool_]
    given: NDArray[np.bool_]


@dataclass(frozen=True)
class NetworkAnswer:
    """depth, std: (H, W) float32 m, as in FitResult. details: what an operator may ask for."""

    depth: NDArray[np.float32]
    std: NDArray[np.float32]
    details: dict[str, Any]


def left_out_blocks(
    rows: NDArray[np.integer], cols: NDArray[np.integer], image: tuple[int, int]
) -> NDArray[np.bool_]:
    """(N,) the points of every fourth block of an image (H, W), of every second if they are few."""
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
    """The metres of a metric prediction and their interval, from usable points.

    left_out: of a completion network, its arrays for these points. The bound is relative; it grows
    with the distance from the points that the network was given and at steps of the depth, and is
    widened until the points that it was not given lie within theirs.
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
        # The k-th smallest of n errors bounds the next in k / (n + 1) of cases (split conformal
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
    """(H, W) m within the range, and the factor of the interval at its steps."""
    lowest, highest = np.array(depth_range_m, np.float32)
    depth = np.clip(prediction.metric_depth(), lowest, highest)
    return depth, edge_factor(np.log(np.nan_to_num(depth, nan=float(lowest))))


def _distance_px(
    rows: NDArray[np.integer], cols: NDArray[np.integer], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """(H, W) distance of every pixel from the nearest of these, px; infinite without any."""
    if len(rows) == 0:
        return np.full(shape, np.inf, np.float32)
    empty: NDArray[np.uint8] = np.ones(shape, np.uint8)
    empty[rows, cols] = 0
    return np.asarray(cv2.distanceTransform(empty, cv2.DIST_L2, 3), np.float32)
