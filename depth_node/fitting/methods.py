# SPDX-License-Identifier: Apache-2.0
"""From relative to metric depth: fits of a prediction to sparse measured points.

The methods of Region-aware Depth Scale Adaptation (arXiv 2507.14879, sections 3.1 to 3.3). In every
region R of a label map the relative depth d is converted to metres D by

    SLF   D = s d + t                      (sparse linear fit)
    SSF   D = s d + a x + b y + t          (sparse surface fit)

estimated by least squares at the measured points of R; x and y run from -1 to 1 over the image.
A region with too few points borrows those of its neighbours, ring after ring, and the result is
applied to the original region only. ``paper`` mode is exactly that; ``sensor`` mode also limits the
influence of outliers and the extrapolation. All regions are solved at once, so a frame takes a few
milliseconds. A result contains its evidence (per region and per pixel), and "unknown" is NaN.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from depth_node.config import option, section, validate
from depth_node.fitting.anchor import FEW_POINTS, MetricAnchor, own_metres
from depth_node.fitting.field.points import MIN_POINTS as FIELD_MIN_POINTS
from depth_node.fitting.field.refine import Refiner
from depth_node.fitting.field.settings import WHOLE_METHOD, FieldAblation, FieldConfig
from depth_node.fitting.field.solve import solve
from depth_node.fitting.field.threads import MAX_THREADS
from depth_node.fitting.network import AnswerWithout, network_answer
from depth_node.fitting.region_groups import Regions
from depth_node.fitting.region_surfaces import (
    RegionSamples,
    Rules,
    fit_surfaces,
    median_scale,
)
from depth_node.fitting.result import (
    FitResult,
    FitStatus,
    field_result,
    network_result,
    surfaces_result,
    unanchored_result,
    without_metres,
    without_points,
)
from depth_node.fitting.surface_maps import ImageGrid, depth_map, feather, std_map
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
NETWORK = "network"  # no fit: the network's own metres
MODES = ("paper", "sensor")

DEPTH_RANGE_M = (0.05, 200.0)
"""Nearest and farthest depth in m, by default."""

REGION_METHODS = ("region_median", "slf", "ssf")  # one fit per region
_COLUMNS = {"median": 0, "region_median": 0, "global_depth": 1, "global_disparity": 1}
_COLUMNS |= {
    "slf": 1,
    "ssf": 3,
    "field": 1,
    NETWORK: 0,
}  # number of d, x, y that are fitted in addition to the constant


@dataclass(frozen=True)
class FitConfig:
    """How relative depth becomes metres."""

    method: str = option(
        "field",
        "How metres are fitted to the relative depth: one fit for the image (global_depth,"
        " global_disparity, median), one per region (region_median; slf: scale, shift; ssf: scale,"
        " slopes, shift), or one for the image plus a field that spreads the residuals at the"
        " points (field). network: no fit; the metres of a metric or completion network, checked"
        " by the points.",
        choices=(*METHODS, NETWORK),
    )
    mode: str = option(
        "sensor",
        "Mode of the region methods; paper: plain least squares as published; sensor: robust to"
        " outliers and few points.",
        choices=MODES,
    )
    min_points: int = option(
        0,
        "A region with fewer points borrows from its neighbours; 0 = parameters + 1 in paper mode,"
        " 2 x parameters in sensor mode.",
        minimum=0,
        maximum=1000,
    )
    range_guard: float = option(
        0.5,
        "A region's depth may exceed the range of its points by this share of that range (sensor"
        " mode); 0 = no limit.",
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
        "How long depth continues when at most five LiDAR points arrive, or none: from the last"
        " relation between points and network, with status UNANCHORED and a wide interval; 0 = not"
        " at all.",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
    )
    threads: int = option(
        0,
        "Threads that share the loops of method field; 0 = one per core that the process may use,"
        " at most 4. The depth is the same with any number.",
        minimum=0,
        maximum=MAX_THREADS,
    )
    field: FieldConfig = section(FieldConfig, "The residual field (method field).")

    def __post_init__(self) -> None:
        validate(self)

    @property
    def robust(self) -> bool:
        """Whether the fit limits the influence of outliers and the extrapolation."""
        return self.mode == "sensor"

    def enough_points(self) -> int:
        """Return the number of points with which a region does not borrow."""
        if self.method == "field":
            return FIELD_MIN_POINTS
        parameters = _COLUMNS[self.method] + 1
        return self.min_points or (2 * parameters if self.robust else parameters + 1)

    def rules(
        self,
        depth_range_m: tuple[float, float] = DEPTH_RANGE_M,
        polarity_guard: bool = False,
    ) -> Rules:
        """Return the rules of the regression of surfaces that these settings mean."""
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


def fit(
    prediction: Prediction,
    points: SparseDepth,
    labels: NDArray[np.integer] | None = None,
    *,
    refiner: Refiner | None,
    image: NDArray[np.uint8] | None = None,
    config: FitConfig | None = None,
    state: FieldState | None = None,
    depth_range_m: tuple[float, float] = DEPTH_RANGE_M,
    ablation: FieldAblation = WHOLE_METHOD,
    polarity_guard: bool = False,
    left_out: AnswerWithout | None = None,
) -> FitResult:
    """Fit metric depth of the image to its prediction and the points measured in it.

    labels: (H, W) integers, 0 = unassigned, regions 1..K; used by the region methods; without them
    the image is one region. refiner: network that refines method ``field`` where the depth network
    is weak; on a robot it is that of engine.refinement.refiner_for(config). It has no default,
    because a field without it is a plausible answer to another question. image: (H, W, 3) uint8
    RGB, and state: memory of earlier frames, after its `at` was called for this frame; only method
    ``field`` uses both. depth_range_m: nearest and farthest: points beyond are ignored, the depth
    is clamped to it. ablation: what studies leave out of method ``field``. polarity_guard: for
    studies: a region whose fit swaps near and far takes the scale of the whole image (sensor mode);
    it increased AbsRel on real frames by up to 6 %. left_out: for method ``network``: the
    prediction of a completion network without some of the points.

    A frame that cannot be fitted is reported by ``status`` and ``message``. Raises ValueError for
    wrong shapes, an empty depth range and negative labels, and RuntimeError if the compiler that
    config.field asks for cannot be used.
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
            used = points.subset(usable)
            answer = solve(
                prediction, used, labels, image, config.field, state,
                depth_range_m=depth_range_m, threads=config.threads, ablation=ablation,
                refiner=refiner,
            )  # fmt: skip
            return field_result(answer, points, usable)
    rules = config.rules(depth_range_m, polarity_guard)
    return _fit_surfaces(prediction, points, labels, config, rules)


def _fit_network(
    prediction: Prediction,
    points: SparseDepth,
    config: FitConfig,
    depth_range_m: tuple[float, float],
    left_out: AnswerWithout | None,
) -> FitResult:
    """Return the network's own metres, with an interval that the points calibrate."""
    if not np.isfinite(prediction.values).any() or not prediction.is_metric:
        return without_metres(prediction, points, depth_range_m)
    usable = _usable(points, prediction.values, depth_range_m)
    if left_out is not None:
        which, given = left_out.which[usable], left_out.given[usable]
        left_out = AnswerWithout(left_out.prediction, which, given)
    answer = network_answer(
        prediction, points.subset(usable), depth_range_m, config.field.max_extrapolation, left_out
    )
    return network_result(answer, points, usable, unchecked_interval=config.unanchored_s > 0)


def _fit_surfaces(
    prediction: Prediction,
    points: SparseDepth,
    labels: NDArray[np.integer] | None,
    config: FitConfig,
    rules: Rules,
) -> FitResult:
    """Fit a surface to each region (H, W), or to the image; with too few points only a scale."""
    depth_range_m = rules.min_depth_m, rules.max_depth_m
    in_disparity = rules.in_disparity
    relative = prediction.disparity() if in_disparity else prediction.relative_depth()
    usable = _usable(points, relative, depth_range_m)
    if np.count_nonzero(usable) < rules.enough:
        # A scale without a shift is fitted in depth.
        relative, in_disparity = prediction.relative_depth(), False
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
            unchecked = own_metres(prediction, rows, cols, samples.z)
            return unanchored_result(unchecked, points, usable, depth_range_m)
        return without_points(prediction, points, regions, depth_range_m)
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
    return surfaces_result(table, regions, points, usable, depth, std, status)


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
    refiner: Refiner | None,
) -> FitResult:
    """Fit an image of a sequence, see :func:`fit`, with the metres of earlier images in reserve.

    If at most FEW_POINTS points can be used, the anchor of earlier images gives the metres, or else
    a metric network. labels: (H, W); image: (H, W, 3). anchor: learns from frames with more points.
    stamp_ns: time of the image. The anchor is neither used nor updated without stamp_ns, with
    config.unanchored_s 0, and with method `network`, which has metres of its own.
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
        answer = anchor.answer(stamp_ns, prediction, v, z, config.unanchored_s)
        if answer is None and prediction.is_metric and np.isfinite(prediction.values).any():
            answer = own_metres(prediction, rows, cols, z)
        if answer is not None:
            return unanchored_result(answer, points, usable, depth_range_m)
    result = fit_alone()
    believed = result.point_inlier[usable]
    if result.status is FitStatus.OK and np.count_nonzero(believed) > FEW_POINTS:
        anchor.learn(stamp_ns, prediction, v[believed], z[believed])
    return result


def usable_points(
    points: SparseDepth, image: tuple[int, int], depth_range_m: tuple[float, float]
) -> NDArray[np.bool_]:
    """Return which points (N,) are inside an image (H, W) and have a depth in range."""
    height, width = image
    rows, cols, depth = points.rows, points.cols, points.depth
    usable = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    usable &= (depth >= depth_range_m[0]) & (depth <= depth_range_m[1])  # false for NaN
    return usable


def _usable(
    points: SparseDepth, relative: NDArray[np.float32], depth_range_m: tuple[float, float]
) -> NDArray[np.bool_]:
    """Return which points (N,) are inside the image, in range, and on a finite value (H, W)."""
    height, width = relative.shape
    rows, cols = points.rows, points.cols
    usable = usable_points(points, (height, width), depth_range_m)
    usable[usable] = np.isfinite(relative[rows[usable], cols[usable]])
    return usable
