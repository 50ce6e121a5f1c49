# SPDX-License-Identifier: Apache-2.0
"""The result of a fit: depth with its evidence, a status, and a sentence for an operator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_node.fitting.anchor import PRIOR_FACTOR, Unanchored
from depth_node.fitting.region_surfaces import (
    INLIER_STDS,
    MIN_RELATIVE_STD,
    PARAMETERS,
    REGION_FIT_DTYPE,
    Regions,
    RegionStatus,
    SurfaceTable,
)
from depth_node.metrics import NORMAL_95

if TYPE_CHECKING:
    from depth_node.fitting.field.solve import Field
    from depth_node.fitting.network import NetworkAnswer
    from depth_node.geometry.sparse_depth import SparseDepth
    from depth_node.prediction import Prediction


class FitStatus(IntEnum):
    """How the depth of a frame was computed."""

    OK = 0  # fitted with the configured method
    MEDIAN_SCALE = 1  # too few points for the method: one scale for the image
    NETWORK_METRES = 2  # the metric network's own metres, not checked by points
    NO_POINTS = 3  # no point and no metric network: no depth
    NO_PREDICTION = 4  # the network gave no (metric) value anywhere or at any point: no depth
    TOO_FEW_POINTS = 5  # fewer points than a completion network needs: no depth
    UNANCHORED = 6  # too few points: metres of a remembered line, or a metric network's own


_REGION_TEXTS = {
    RegionStatus.OK: "on their own",
    RegionStatus.EXPANDED: "with neighbours",
    RegionStatus.GLOBAL: "with the image's fit",
    RegionStatus.REDUCED: "with fewer parameters",
    RegionStatus.UNKNOWN: "without an answer",
}


@dataclass(frozen=True)
class FitResult:
    """Metric depth of an image with its evidence.

    depth: (H, W) float32 m, NaN unknown. std: (H, W) float32 m, such that depth ± 1.96 std is meant
    as a 95 % interval (errors have heavier tails than a normal variable: this is the 95 % bound
    divided by 1.96, not their second moment); NaN where there is no evidence for it. regions: one
    row per region, :data:`REGION_FIT_DTYPE`. point_inlier: (N,) bool, whether the point agrees with
    its region's fit. point_residual: (N,) float32 m, measured minus fitted; NaN for points that
    could not be used. message: one sentence for an operator. details: more for an operator, by name
    (method field: base, left-out error, fraction of outliers and the like).
    """

    depth: NDArray[np.float32]
    std: NDArray[np.float32]
    regions: NDArray[np.void]
    point_inlier: NDArray[np.bool_]
    point_residual: NDArray[np.float32]
    status: FitStatus
    message: str
    details: dict[str, Any] = field(default_factory=dict)


# --- one fit of the image ------------------------------------------------------------------------


def field_result(answer: Field, points: SparseDepth, usable: NDArray[np.bool_]) -> FitResult:
    """Return the result of method field. usable: (N,), the points that it was fitted to."""
    residual = _residual(points, usable, answer.depth)
    inlier = np.zeros(len(points), dtype=bool)
    inlier[usable] = answer.outlier < 0.5
    row = _image_row(RegionStatus.OK, usable, inlier, residual)
    row["scale"], row["shift"] = answer.details["scale"], answer.details["shift"]
    row["slope_x"] = row["slope_y"] = 0
    message = f"Base fit in {answer.details['base']} space and residual field of"
    message += f" {_used_of_given(points, usable)}"
    if "leave_one_out" in answer.details:
        rejected = int(np.count_nonzero(answer.outlier >= 0.5))
        message += f", {rejected} rejected; left-out error {answer.details['leave_one_out']:.1%}"
    return FitResult(
        answer.depth, answer.std, row, inlier, residual, FitStatus.OK, f"{message}.", answer.details
    )


def network_result(
    answer: NetworkAnswer,
    points: SparseDepth,
    usable: NDArray[np.bool_],
    unchecked_interval: bool,
) -> FitResult:
    """Return the result of method network. usable: (N,), the points that judge its metres.

    unchecked_interval: whether depth with too few points to judge it gets the wide interval of
    unchecked metres; otherwise std is NaN.
    """
    calibrated, std = "coverage" in answer.details, answer.std
    if not calibrated and unchecked_interval:
        std = answer.depth * np.float32((PRIOR_FACTOR - 1) / NORMAL_95)
    residual = _residual(points, usable, answer.depth)
    bound = np.full(len(points), np.nan, np.float32)
    bound[usable] = np.float32(INLIER_STDS) * std[points.rows[usable], points.cols[usable]]
    inlier = np.abs(residual) <= bound
    message = f"The network's own metres, judged by {answer.details['judged by']} points"
    if calibrated:
        message += f": their mean error is {answer.details['left_out_error']:.1%}."
    else:
        message += ", which are too few for an interval"
        wide = f": it is that of unchecked ones, {PRIOR_FACTOR - 1:.0%}."
        message += wide if unchecked_interval else "."
    status = FitStatus.OK if calibrated else FitStatus.NETWORK_METRES
    row = _image_row(RegionStatus.OK, usable, inlier, residual)
    return FitResult(answer.depth, std, row, inlier, residual, status, message, answer.details)


def unanchored_result(
    answer: Unanchored,
    points: SparseDepth,
    usable: NDArray[np.bool_],
    depth_range_m: tuple[float, float],
) -> FitResult:
    """Return the result of an anchor. usable: (N,), the few points that correct it."""
    depth = np.clip(answer.depth, np.float32(depth_range_m[0]), np.float32(depth_range_m[1]))
    inlier = np.zeros(len(points), dtype=bool)
    inlier[usable] = np.abs(answer.residual) <= math.log1p(answer.bound)
    row = _image_row(RegionStatus.GLOBAL, usable, inlier)
    count = int(np.count_nonzero(usable))
    number = "no LiDAR point" if not count else f"only {count} LiDAR point{'s'[: count > 1]}"
    own, details = math.isnan(answer.age_s), {"bound": answer.bound}
    source = "the network's own" if own else f"those of {answer.age_s:.1f} s ago"
    return FitResult(
        depth=depth,
        std=answer.std,
        regions=row,
        point_inlier=inlier,
        point_residual=_residual(points, usable, depth),
        status=FitStatus.UNANCHORED,
        message=(
            f"UNANCHORED: {number}, so the metres are {source}, within"
            f" {answer.bound:.0%}; check the LiDAR, its topic and its time stamps."
        ),
        details=details if own else {"anchor_age_s": answer.age_s, **details},
    )


def _image_row(
    status: RegionStatus,
    usable: NDArray[np.bool_],
    inlier: NDArray[np.bool_],
    residual: NDArray[np.float32] | None = None,
) -> NDArray[np.void]:
    """Return the row (1,) of a fit of the whole image, label 0; parameters it lacks are NaN."""
    row = np.zeros(1, REGION_FIT_DTYPE)
    for name in (*PARAMETERS, "residual"):
        row[name] = np.nan
    row["status"] = status
    row["points"], row["inliers"] = np.count_nonzero(usable), np.count_nonzero(inlier)
    if residual is not None and inlier.any():
        row["residual"] = np.sqrt(np.mean(residual[inlier] ** 2))
    return row


# --- one fit for each region ---------------------------------------------------------------------


def surfaces_result(
    table: SurfaceTable,
    regions: Regions,
    points: SparseDepth,
    usable: NDArray[np.bool_],
    depth: NDArray[np.float32],
    std: NDArray[np.float32],
    status: FitStatus,
) -> FitResult:
    """Return the result of the region methods and global fits.

    usable: (N,), the points that they were fitted to. depth, std: (H, W) m.
    """
    residual = _residual(points, usable, depth)
    limit = np.full(len(points), np.nan, np.float32)
    floor = MIN_RELATIVE_STD * points.depth[usable]
    limit[usable] = INLIER_STDS * np.fmax(table.rows["residual"][regions.of_point], floor)
    rows, used = table.rows[regions.present], _used_of_given(points, usable)
    if status is FitStatus.NO_PREDICTION:
        message = f"The network gave no relative depth above zero at any of {used}: no depth."
    elif status is FitStatus.MEDIAN_SCALE:
        message = (
            f"{used} are too few for this method: one scale for the whole image; "
            "give more points or lower min_points."
        )
    else:
        counts = np.bincount(rows["status"], minlength=len(RegionStatus))
        parts = [f"{counts[kind]} {text}" for kind, text in _REGION_TEXTS.items() if counts[kind]]
        message = f"{len(rows)} regions fitted to {used}: {', '.join(parts)}."
    return FitResult(depth, std, rows, np.abs(residual) <= limit, residual, status, message)


# --- no fit --------------------------------------------------------------------------------------


def without_points(
    prediction: Prediction,
    points: SparseDepth,
    regions: Regions,
    depth_range_m: tuple[float, float],
) -> FitResult:
    """Return the result without usable points: a metric network's own metres, or no depth."""
    depth: NDArray[np.float32] = np.full(prediction.shape, np.nan, np.float32)
    reason = "No point was measured"
    if len(points):
        lowest, highest = depth_range_m
        reason = (
            f"None of {len(points)} points could be used (outside the image, outside "
            f"{lowest:g} to {highest:g} m or where the network is silent)"
        )
    status = FitStatus.NO_POINTS
    if not np.isfinite(prediction.values).any():
        status = FitStatus.NO_PREDICTION
        message = (
            "The network gave no number anywhere, so there is no depth; "
            "check the model and its input."
        )
    elif prediction.is_metric:
        status = FitStatus.NETWORK_METRES
        nearest, farthest = np.array(depth_range_m, np.float32)
        depth = np.clip(prediction.metric_depth(), nearest, farthest)
        message = f"{reason}: the depth is the network's own metres, unchecked."
    else:
        message = (
            f"{reason} and the network gives no metres, so there is no depth; "
            "check the points' topic, time stamps and calibration."
        )
    rows = np.zeros(len(regions.present), REGION_FIT_DTYPE)
    rows["label"], rows["status"] = np.arange(len(rows)), RegionStatus.UNKNOWN
    for name in (*PARAMETERS, "residual"):
        rows[name] = np.nan
    return _nothing_fitted(depth, points, rows[regions.present], status, message)


def without_metres(
    prediction: Prediction, points: SparseDepth, depth_range_m: tuple[float, float]
) -> FitResult:
    """Return the result (no depth) of method `network` if the network gives no metres."""
    nowhere = Regions.of(None, points.rows[:0], points.cols[:0])
    result = without_points(prediction, points, nowhere, depth_range_m)
    if result.status is FitStatus.NO_PREDICTION:
        return result
    message = (
        f"The network gives {prediction.kind}, no metres, so there is no depth: use another"
        " fit.method, or a network that gives metres."
    )
    return replace(result, status=FitStatus.NO_PREDICTION, message=message)


def too_few_points(image: tuple[int, int], points: SparseDepth, needed: int) -> FitResult:
    """Return the result (no depth) of a frame (H, W) with too few points for a completion network.

    needed: number of pixels of the network's input that must have points.
    """
    depth: NDArray[np.float32] = np.full(image, np.nan, np.float32)
    message = (
        f"{len(points)} points fall into fewer than the {needed} pixels of the network's input"
        " that it needs, so there is no depth: check the points' topic, time stamps and"
        " calibration, or use a network without points and method field."
    )
    rows = np.zeros(0, REGION_FIT_DTYPE)
    return _nothing_fitted(depth, points, rows, FitStatus.TOO_FEW_POINTS, message)


def _nothing_fitted(
    depth: NDArray[np.float32],
    points: SparseDepth,
    rows: NDArray[np.void],
    status: FitStatus,
    message: str,
) -> FitResult:
    return FitResult(
        depth=depth,
        std=np.full(depth.shape, np.nan, np.float32),
        regions=rows,
        point_inlier=np.zeros(len(points), dtype=bool),
        point_residual=np.full(len(points), np.nan, np.float32),
        status=status,
        message=message,
    )


# --- of all --------------------------------------------------------------------------------------


def _residual(
    points: SparseDepth, usable: NDArray[np.bool_], depth: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return measured minus fitted depth (N,) in m, NaN for points that could not be used."""
    residual = np.full(len(points), np.nan, np.float32)
    residual[usable] = points.depth[usable] - depth[points.rows[usable], points.cols[usable]]
    return residual


def _used_of_given(points: SparseDepth, usable: NDArray[np.bool_]) -> str:
    used = int(np.count_nonzero(usable))
    return f"{used} points" if used == len(points) else f"{used} of {len(points)} points"
