# SPDX-License-Identifier: Apache-2.0
"""From relative to metric depth: fits of a prediction to sparse measured points.

The methods of Region-aware Depth Scale Adaptation (arXiv 2507.14879, sections 3.1 to 3.3). In every
region R of a label map the relative depth d becomes metres through

    SLF   D = s d + t                      (sparse linear fit)
    SSF   D = s d + a x + b y + t          (sparse surface fit)

estimated by least squares at the measured points of R; x and y run from -1 to 1 over the image.
A region with too few points borrows those of its neighbours, ring after ring, and the result is
applied to the original region only. ``paper`` mode is exactly that; ``sensor`` mode withstands
outliers, wild extrapolation and upside-down surfaces. All regions are solved at once, so a frame
costs a few milliseconds. A result carries its evidence (per region and per pixel), and "unknown"
is NaN.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_node.config import option, section, validate
from depth_node.fitting.anchor import (
    FEW_POINTS,
    PRIOR_FACTOR,
    MetricAnchor,
    Unanchored,
    own_metres,
)
from depth_node.fitting.field.points import MIN_POINTS as FIELD_MIN_POINTS
from depth_node.fitting.field.refine import Refiner
from depth_node.fitting.field.settings import WHOLE_METHOD, FieldAblation, FieldConfig
from depth_node.fitting.field.solve import Field, solve
from depth_node.fitting.field.threads import MAX_THREADS
from depth_node.fitting.network import AnswerWithout, network_answer
from depth_node.fitting.region_surfaces import (
    INLIER_STDS,
    MIN_RELATIVE_STD,
    PARAMETERS,
    REGION_FIT_DTYPE,
    Regions,
    RegionSamples,
    RegionStatus,
    Rules,
    SurfaceTable,
    fit_surfaces,
    median_scale,
)
from depth_node.fitting.surface_maps import ImageGrid, depth_map, feather, std_map
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction

if TYPE_CHECKING:
    from depth_node.fitting.field.memory import FieldState
    from depth_node.geometry.sparse_depth import SparseDepth

METHODS: tuple[str, ...] = (
    "global_depth",
    "global_disparity",
    "median",
    "region_median",
    "slf",
    "ssf",
    "field",
)
NETWORK = "network"  # beside the fits: the network's own metres
MODES = ("paper", "sensor")

DEPTH_RANGE_M = (0.05, 200.0)
"""Nearest and farthest depth in m, where nothing else is said."""

REGION_METHODS = ("region_median", "slf", "ssf")  # one fit per region
_COLUMNS = {"median": 0, "region_median": 0, "global_depth": 1, "global_disparity": 1}
_COLUMNS |= {
    "slf": 1,
    "ssf": 3,
    "field": 1,
    NETWORK: 0,
}  # how many of d, x, y are fitted beside the constant


class FitStatus(IntEnum):
    """How a frame came to its depth."""

    OK = 0  # fitted as asked
    MEDIAN_SCALE = 1  # too few points for the method: one scale for the image
    NETWORK_METRES = 2  # the metric network's own metres, unchecked: no interval
    NO_POINTS = 3  # no point and no metric network: no depth
    NO_PREDICTION = 4  # the network gave nothing (at any point): no depth
    TOO_FEW_POINTS = 5  # fewer points than a completion network needs: no depth
    UNANCHORED = 6  # too few points: metres by what earlier ones said, or a metric network's own


_REGION_TEXTS = {
    RegionStatus.OK: "on their own",
    RegionStatus.EXPANDED: "with neighbours",
    RegionStatus.GLOBAL: "with the image's fit",
    RegionStatus.REDUCED: "with fewer parameters",
    RegionStatus.UNKNOWN: "without an answer",
}


@dataclass(frozen=True)
class FitConfig:
    """How relative depth becomes metres."""

    method: str = option(
        "field",
        "Fit of metres to the relative depth: one for the image (global_depth, global_disparity, "
        "median) or one per region (region_median; slf: scale, shift; ssf: scale, slopes, shift), "
        "or one for the image with the residual of the points spread over it (field); network: no "
        "fit, the metres of a metric or completion network, judged by the points.",
        choices=(*METHODS, NETWORK),
    )
    mode: str = option(
        "sensor",
        "Mode of the region methods; paper: plain least squares as published; sensor: withstands "
        "outliers and few points.",
        choices=MODES,
    )
    min_points: int = option(
        0,
        "Fewest points of a region before it borrows from its neighbours; 0 = parameters + 1 in "
        "paper mode, 2 x parameters in sensor mode.",
        minimum=0,
        maximum=1000,
    )
    range_guard: float = option(
        0.5,
        "A region's depth may leave the range of its points by this share of that range (sensor "
        "mode); 0 = no limit.",
        minimum=0.0,
        maximum=100.0,
    )
    feather_px: int = option(
        0,
        "Blend surfaces that meet at a seam between regions over this distance (sensor mode); "
        "0 = off.",
        unit="px",
        minimum=0,
        maximum=50,
    )
    unanchored_s: float = option(
        30.0,
        "How long depth goes on, with status UNANCHORED and a wide interval, by what earlier LiDAR "
        "points said of the network's values when at most five come, or none; 0 = not at all.",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
    )
    threads: int = option(
        0,
        "Threads that share the loops of method field; 0 = one for each core that the process may"
        " use, at most 4. The depth is the same with any number.",
        minimum=0,
        maximum=MAX_THREADS,
    )
    field: FieldConfig = section(FieldConfig, "The residual field (method field).")

    def __post_init__(self) -> None:
        validate(self)

    @property
    def robust(self) -> bool:
        """Whether outliers and extrapolation are guarded against."""
        return self.mode == "sensor"

    def enough_points(self) -> int:
        """Points a region needs before it stops borrowing."""
        if self.method == "field":
            return FIELD_MIN_POINTS
        parameters = _COLUMNS[self.method] + 1
        return self.min_points or (2 * parameters if self.robust else parameters + 1)

    def rules(
        self,
        depth_range_m: tuple[float, float] = DEPTH_RANGE_M,
        polarity_guard: bool = False,
    ) -> Rules:
        """What these settings mean for the regression of surfaces."""
        return Rules(
            columns=_COLUMNS[self.method],
            in_disparity=self.method == "global_disparity",
            enough=self.enough_points(),
            min_depth_m=depth_range_m[0],
            max_depth_m=depth_range_m[1],
            robust=self.robust,
            range_guard=self.range_guard,
            polarity_guard=polarity_guard,
        )


@dataclass(frozen=True)
class FitResult:
    """Metric depth of an image with its evidence.

    depth: (H, W) float32 m, NaN unknown. std: (H, W) float32 m, such that depth ± 1.96 std is meant
    as a 95 % interval (errors have heavier tails than a normal variable: this is the 95 % bound
    divided by 1.96, not their second moment); NaN where there is no evidence to judge by. regions:
    one row per region, :data:`REGION_FIT_DTYPE`. point_inlier: (N,) bool, point agrees with its
    region's fit. point_residual: (N,) float32 m, measured minus fitted; NaN for points that could
    not be used. message: one sentence for an operator. details: more for an operator, by name
    (method field: base, leave-one-out error, fraction of outliers and the like).
    """

    depth: NDArray[np.float32]
    std: NDArray[np.float32]
    regions: NDArray[np.void]
    point_inlier: NDArray[np.bool_]
    point_residual: NDArray[np.float32]
    status: FitStatus
    message: str
    details: dict[str, Any] = field(default_factory=dict)


def fit(
    prediction: Prediction,
    points: SparseDepth,
    labels: NDArray[np.integer] | None = None,
    *,
    image: NDArray[np.uint8] | None = None,
    config: FitConfig | None = None,
    state: FieldState | None = None,
    depth_range_m: tuple[float, float] = DEPTH_RANGE_M,
    ablation: FieldAblation = WHOLE_METHOD,
    polarity_guard: bool = False,
    left_out: AnswerWithout | None = None,
    refiner: Refiner | None = None,
) -> FitResult:
    """Metric depth of the image from its prediction and the points measured in it.

    labels: (H, W) integers, 0 = unassigned, regions 1..K; used by the region methods, without them
    the image is one region. image: (H, W, 3) uint8 RGB and state, of earlier frames, after its `at`
    was called for this one, are used by method ``field`` only. depth_range_m: nearest and farthest:
    points beyond are ignored, the depth is clamped to it. ablation: what studies leave out of
    method ``field``. polarity_guard: for studies: a region whose fit turns near and far around
    takes the scale of the whole image (sensor mode); it cost up to 6 % AbsRel on real frames.
    refiner: network that refines method ``field`` where the depth network is weak.
    left_out: method ``network``: what a completion network answers without some of the points.

    A frame that cannot be fitted is reported by ``status`` and ``message``; wrong
    shapes raise ValueError.
    """
    config = config or FitConfig()
    if not 0 < depth_range_m[0] < depth_range_m[1]:
        raise ValueError(
            f"depth_range_m is {depth_range_m}: its nearest depth must be above 0 and is not below"
            " its farthest; no depth could be given."
        )
    if labels is not None and np.shape(labels) != prediction.shape:
        raise ValueError(
            f"Labels are {np.shape(labels)} but the prediction is {prediction.shape}: "
            "segment the image at the size of the prediction."
        )
    if config.method == NETWORK:
        return _fit_network(prediction, points, config, depth_range_m, left_out)
    if config.method == "field":
        usable = _usable(points, prediction.values, depth_range_m)
        if np.count_nonzero(usable) >= config.enough_points():
            return _fit_field(
                prediction,
                points,
                usable,
                labels,
                image,
                config,
                state,
                depth_range_m,
                ablation,
                refiner,
            )
    rules = config.rules(depth_range_m, polarity_guard)
    in_disparity = rules.in_disparity
    relative = prediction.disparity() if in_disparity else prediction.relative_depth()
    usable = _usable(points, relative, depth_range_m)
    if np.count_nonzero(usable) < rules.enough:
        relative, in_disparity = prediction.relative_depth(), False  # for a scale without a shift
    rows, cols = points.rows[usable], points.cols[usable]
    grid = ImageGrid.of(relative)
    samples = RegionSamples(
        d=relative[rows, cols].astype(np.float64),
        x=grid.x[cols],
        y=grid.y[rows],
        z=points.depth[usable].astype(np.float64),
    )
    regions = Regions.of(labels if config.method in REGION_METHODS else None, rows, cols)
    if len(samples) == 0:
        if config.unanchored_s and prediction.is_metric and np.isfinite(prediction.values).any():
            found = own_metres(prediction, rows, cols, samples.z)
            return _unanchored(found, points, usable, depth_range_m)
        return _without_points(prediction, points, regions, rules)
    if len(samples) < rules.enough:
        table, status = median_scale(samples, regions, rules), FitStatus.MEDIAN_SCALE
    else:
        table, status = fit_surfaces(samples, regions, rules), FitStatus.OK
    limits = {"min_depth_m": rules.min_depth_m, "max_depth_m": rules.max_depth_m}
    depth = depth_map(
        grid, regions.labels, table, in_disparity=in_disparity, max_depth_m=rules.max_depth_m
    )
    if config.robust and config.feather_px and regions.labels is not None:
        feather(depth, grid, regions.labels, table, distance_px=config.feather_px, **limits)
    std = std_map(grid, regions.labels, table, depth)
    if not np.isfinite(table.parameters[:, 0]).any():
        status = FitStatus.NO_PREDICTION
    return _result(points, usable, regions, table, depth, std, status)


def fit_in_sequence(
    prediction: Prediction,
    points: SparseDepth,
    labels: NDArray[np.integer] | None,
    *,
    image: NDArray[np.uint8],
    config: FitConfig,
    state: FieldState | None,
    anchor: MetricAnchor,
    stamp_ns: int | None,
    depth_range_m: tuple[float, float],
    refiner: Refiner | None = None,
) -> FitResult:
    """`fit` of an image that others went before: where at most FEW_POINTS points can be used, the
    anchor that they left gives the metres, if it may. labels: (H, W); image: (H, W, 3), as there.
    stamp_ns: of the image. Without one, with config.unanchored_s 0 and with method `network`, which
    has metres of its own, no anchor is used or left.
    """
    fit_alone = functools.partial(
        fit, prediction, points, labels, image=image, config=config, state=state,
        depth_range_m=depth_range_m, refiner=refiner,
    )  # fmt: skip
    if stamp_ns is None or not config.unanchored_s or config.method == NETWORK:
        return fit_alone()
    usable = _usable(points, prediction.values, depth_range_m)
    rows, cols = points.rows[usable], points.cols[usable]
    v, z = prediction.values[rows, cols], points.depth[usable].astype(np.float64)
    if len(z) <= FEW_POINTS:
        found = anchor.answer(stamp_ns, prediction, v, z, config.unanchored_s)
        if found is None and prediction.is_metric and np.isfinite(prediction.values).any():
            found = own_metres(prediction, rows, cols, z)
        if found is not None:
            return _unanchored(found, points, usable, depth_range_m)
    result = fit_alone()
    believed = result.point_inlier[usable]
    if result.status is FitStatus.OK and np.count_nonzero(believed) > FEW_POINTS:
        anchor.learn(stamp_ns, prediction, v[believed], z[believed])
    return result


def _unanchored(
    found: Unanchored,
    points: SparseDepth,
    usable: NDArray[np.bool_],
    depth_range_m: tuple[float, float],
) -> FitResult:
    """The answer of an anchor as one fit of the image."""
    limits = np.float32(depth_range_m[0]), np.float32(depth_range_m[1])
    depth = np.clip(found.depth, *limits)
    residual = np.full(len(points), np.nan, np.float32)
    residual[usable] = points.depth[usable] - depth[points.rows[usable], points.cols[usable]]
    inlier = np.zeros(len(points), dtype=bool)
    inlier[usable] = np.abs(found.residual) <= math.log1p(found.bound)
    table = np.zeros(1, REGION_FIT_DTYPE)
    table["status"] = RegionStatus.GLOBAL
    table["points"], table["inliers"] = np.count_nonzero(usable), np.count_nonzero(inlier)
    for name in (*PARAMETERS, "residual"):
        table[name] = np.nan
    count = int(np.count_nonzero(usable))
    number = "no LiDAR point" if not count else f"only {count} LiDAR point{'s'[: count > 1]}"
    own = math.isnan(found.age_s)
    source = "the network's own" if own else f"those of {found.age_s:.1f} s ago"
    details = {"bound": found.bound}
    return FitResult(
        depth=depth,
        std=found.std,
        regions=table,
        point_inlier=inlier,
        point_residual=residual,
        status=FitStatus.UNANCHORED,
        message=(
            f"UNANCHORED: {number}, so the metres are {source}, within"
            f" {found.bound:.0%}; check the LiDAR, its topic and its time stamps."
        ),
        details=details if own else {"anchor_age_s": found.age_s, **details},
    )


def _fit_field(
    prediction: Prediction,
    points: SparseDepth,
    usable: NDArray[np.bool_],
    labels: NDArray[np.integer] | None,
    image: NDArray[np.uint8] | None,
    config: FitConfig,
    state: FieldState | None,
    depth_range_m: tuple[float, float],
    ablation: FieldAblation,
    refiner: Refiner | None,
) -> FitResult:
    """The residual field, which is one fit of the image: one row of evidence, label 0."""
    z = points.depth[usable]
    rows, cols = points.rows[usable], points.cols[usable]
    age_s = points.age_s[usable]
    answer = solve(
        prediction,
        rows,
        cols,
        z,
        age_s,
        labels,
        image,
        config.field,
        state,
        noise_m=points.noise_m[usable],
        depth_range_m=depth_range_m,
        threads=config.threads,
        ablation=ablation,
        refiner=refiner,
    )
    depth = answer.depth
    inlier = np.zeros(len(points), dtype=bool)
    inlier[usable] = answer.outlier < 0.5
    residual = np.full(len(points), np.nan, np.float32)
    residual[usable] = z - depth[rows, cols]
    table = np.zeros(1, REGION_FIT_DTYPE)
    table["status"] = RegionStatus.OK
    table["points"] = len(z)
    table["inliers"] = np.count_nonzero(inlier)
    table["scale"], table["shift"] = answer.details["scale"], answer.details["shift"]
    table["residual"] = np.sqrt(np.mean(residual[inlier] ** 2)) if inlier.any() else np.nan
    return FitResult(
        depth=depth,
        std=answer.std,
        regions=table,
        point_inlier=inlier,
        point_residual=residual,
        status=FitStatus.OK,
        message=_field_message(answer, len(points), len(z)),
        details=answer.details,
    )


def _fit_network(
    prediction: Prediction,
    points: SparseDepth,
    config: FitConfig,
    depth_range_m: tuple[float, float],
    left_out: AnswerWithout | None,
) -> FitResult:
    """The network's own metres: one row of evidence, label 0, without parameters."""
    usable = _usable(points, prediction.values, depth_range_m)
    if not np.isfinite(prediction.values).any() or not prediction.is_metric:
        nowhere = Regions.of(None, points.rows[:0], points.cols[:0])
        result = _without_points(prediction, points, nowhere, config.rules(depth_range_m))
        if not np.isfinite(prediction.values).any():
            return result
        message = (
            f"The network gives {prediction.kind}, no metres, so there is no depth: use another"
            " fit.method, or a network that gives metres."
        )
        return replace(result, status=FitStatus.NO_PREDICTION, message=message)
    if left_out is not None:
        which, given = left_out.which[usable], left_out.given[usable]
        left_out = AnswerWithout(left_out.prediction, which, given)
    z, rows, cols = points.depth[usable], points.rows[usable], points.cols[usable]
    answer = network_answer(
        prediction, rows, cols, z, depth_range_m, config.field.max_extrapolation, left_out
    )
    calibrated, std = "coverage" in answer.details, answer.std
    if not calibrated and config.unanchored_s:
        std = answer.depth * np.float32((PRIOR_FACTOR - 1) / NORMAL_95)
    residual = np.full(len(points), np.nan, np.float32)
    residual[usable] = z - answer.depth[rows, cols]
    bound = np.full(len(points), np.nan, np.float32)
    bound[usable] = np.float32(INLIER_STDS) * std[rows, cols]
    inlier = np.abs(residual) <= bound
    table = np.zeros(1, REGION_FIT_DTYPE)
    table["status"] = RegionStatus.OK
    table["points"] = len(z)
    table["inliers"] = np.count_nonzero(inlier)
    for name in (*PARAMETERS, "residual"):
        table[name] = np.nan
    if inlier.any():
        table["residual"] = np.sqrt(np.mean(residual[inlier] ** 2))
    judges = answer.details["judged by"]
    message = f"The network's own metres, judged by {judges} points"
    if calibrated:
        message += f": their mean error is {answer.details['left_out_error']:.1%}."
    else:
        message += ", which are too few for an interval"
        wide = f": it is that of unchecked ones, {PRIOR_FACTOR - 1:.0%}."
        message += wide if config.unanchored_s else "."
    return FitResult(
        depth=answer.depth,
        std=std,
        regions=table,
        point_inlier=inlier,
        point_residual=residual,
        status=FitStatus.OK if calibrated else FitStatus.NETWORK_METRES,
        message=message,
        details=answer.details,
    )


def too_few_points(image: tuple[int, int], points: SparseDepth, needed: int) -> FitResult:
    """The result of a frame with too few points for a completion network: no depth anywhere."""
    nothing: NDArray[np.float32] = np.full(image, np.nan, np.float32)
    return FitResult(
        depth=nothing,
        std=nothing.copy(),
        regions=np.zeros(0, REGION_FIT_DTYPE),
        point_inlier=np.zeros(len(points), dtype=bool),
        point_residual=np.full(len(points), np.nan, np.float32),
        status=FitStatus.TOO_FEW_POINTS,
        message=(
            f"{len(points)} points fall into fewer than the {needed} pixels of the network's input"
            " that it needs, so there is no depth: check the points' topic, time stamps and"
            " calibration, or use a network without points and method field."
        ),
    )


def _field_message(answer: Field, given: int, used: int) -> str:
    text = f"{used} points" if used == given else f"{used} of {given} points"
    details = answer.details
    message = f"Base fit in {details['base']} space and residual field of {text}"
    if "leave_one_out" in details:
        rejected = int(np.count_nonzero(answer.outlier >= 0.5))
        message += f", {rejected} rejected; left-out error {details['leave_one_out']:.1%}"
    return message + "."


def usable_points(
    points: SparseDepth, image: tuple[int, int], depth_range_m: tuple[float, float]
) -> NDArray[np.bool_]:
    """(N,) points inside an image (H, W) with a depth in range."""
    height, width = image
    rows, cols, depth = points.rows, points.cols, points.depth
    usable = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    usable &= (depth >= depth_range_m[0]) & (depth <= depth_range_m[1])  # NaN is neither
    return usable


def _usable(
    points: SparseDepth, relative: NDArray[np.float32], depth_range_m: tuple[float, float]
) -> NDArray[np.bool_]:
    """(N,) points inside the image with a depth in range on a pixel that the network answered."""
    height, width = relative.shape
    rows, cols = points.rows, points.cols
    usable = usable_points(points, (height, width), depth_range_m)
    usable[usable] = np.isfinite(relative[rows[usable], cols[usable]])
    return usable


def _without_points(
    prediction: Prediction, points: SparseDepth, regions: Regions, rules: Rules
) -> FitResult:
    """No usable point: a metric network's own metres, or nothing."""
    depth: NDArray[np.float32] = np.full(prediction.shape, np.nan, np.float32)
    reason = "No point was measured"
    if len(points):
        reason = (
            f"None of {len(points)} points could be used (outside the image, outside "
            f"{rules.min_depth_m:g} to {rules.max_depth_m:g} m or where the network is silent)"
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
        depth = prediction.metric_depth()
        message = f"{reason}: the depth is the network's own metres, checked by nothing."
    else:
        message = (
            f"{reason} and the network gives no metres, so there is no depth; "
            "check the points' topic, time stamps and calibration."
        )
    count = len(regions.present)
    rows = np.zeros(count, REGION_FIT_DTYPE)
    rows["label"] = np.arange(count)
    rows["status"] = RegionStatus.UNKNOWN
    for name in (*PARAMETERS, "residual"):
        rows[name] = np.nan
    return FitResult(
        depth=depth,
        std=np.full(prediction.shape, np.nan, np.float32),
        regions=rows[regions.present],
        point_inlier=np.zeros(len(points), dtype=bool),
        point_residual=np.full(len(points), np.nan, np.float32),
        status=status,
        message=message,
    )


def _result(
    points: SparseDepth,
    usable: NDArray[np.bool_],
    regions: Regions,
    table: SurfaceTable,
    depth: NDArray[np.float32],
    std: NDArray[np.float32],
    status: FitStatus,
) -> FitResult:
    residual = np.full(len(points), np.nan, np.float32)
    residual[usable] = points.depth[usable] - depth[points.rows[usable], points.cols[usable]]
    limit = np.full(len(points), np.nan, np.float32)
    floor = MIN_RELATIVE_STD * points.depth[usable]
    limit[usable] = INLIER_STDS * np.fmax(table.rows["residual"][regions.of_point], floor)
    rows = table.rows[regions.present]
    return FitResult(
        depth=depth,
        std=std,
        regions=rows,
        point_inlier=np.abs(residual) <= limit,
        point_residual=residual,
        status=status,
        message=_message(rows, len(points), int(np.count_nonzero(usable)), status),
    )


def _message(rows: NDArray[np.void], given: int, used: int, status: FitStatus) -> str:
    used_text = f"{used} points" if used == given else f"{used} of {given} points"
    if status is FitStatus.NO_PREDICTION:
        return f"The network gave no relative depth above zero at any of {used_text}: no depth."
    if status is FitStatus.MEDIAN_SCALE:
        return (
            f"{used_text} are too few for this method: one scale for the whole image; "
            "give more points or lower min_points."
        )
    counts = np.bincount(rows["status"], minlength=len(RegionStatus))
    parts = [f"{counts[kind]} {text}" for kind, text in _REGION_TEXTS.items() if counts[kind]]
    return f"{len(rows)} regions fitted to {used_text}: {', '.join(parts)}."
