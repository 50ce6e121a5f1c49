# SPDX-License-Identifier: Apache-2.0
"""From relative to metric depth: fits of a prediction to sparse measured points.

The methods of Region-aware Depth Scale Adaptation (arXiv 2507.14879, sections 3.1 to 3.3). In every
region R of a label map the relative depth d becomes metres through

    SLF   D = s d + t                      (sparse linear fit)
    SSF   D = s d + a x + b y + t          (sparse surface fit)

estimated by least squares at the measured points of R; x and y run from -1 to 1 over the picture.
A region with too few points borrows those of its neighbours, ring after ring, and the result is
applied to the original region only. ``paper`` mode is exactly that; ``sensor`` mode withstands
outliers, wild extrapolation and upside-down surfaces. All regions are solved at once, so a frame
costs a few milliseconds. A result carries its evidence (per region and per pixel), and "unknown"
is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import stdtrit

from depth_node.config import ConfigError, option, section, validate
from depth_node.field import MIN_POINTS as FIELD_MIN_POINTS
from depth_node.field import Field, FieldConfig, solve
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction
from depth_node.regions import adjacency

if TYPE_CHECKING:
    from depth_node.projection import SparseDepth

METHODS: tuple[str, ...] = (
    "global_depth",
    "global_disparity",
    "median",
    "region_median",
    "slf",
    "ssf",
    "field",
)
MODES = ("paper", "sensor")

_REGION_METHODS = ("region_median", "slf", "ssf")
_COLUMNS = {"median": 0, "region_median": 0, "global_depth": 1, "global_disparity": 1}
_COLUMNS |= {"slf": 1, "ssf": 3, "field": 1}  # how many of d, x, y are fitted beside the constant

MAD_TO_STD = 1.4826  # of a normal variable
INLIER_STDS = 3.0  # a point farther than this from its region's fit is called an outlier

# A column is kept while the columns before it leave at least this share of its variance
# unexplained. Float32 rounding alone leaves about 1e-13 of an exactly flat surface.
RANK_TOLERANCE = 1e-10
_CONSTANT_SHARE = 1e-6  # relative depth that varies by less than this share of its mean is constant

# The interval (see _predictive_spread). The growths were read off held-out pixels of real frames;
# the factor of each frame makes up for what they get wrong on average.
PRIOR_POINTS = 4.0
RING_GROWTH = 0.3  # per ring of neighbours borrowed
MAX_GROWTH_RINGS = 4
UNSEEN_GROWTH = 1.7  # a region without any point of its own
MAX_LEVERAGE = 0.95  # a point that its fit passes through would have an infinite left-out residual
MIN_JUDGE_WEIGHT = 0.1
MIN_RELATIVE_STD = 1e-4  # no sensor and no float32 map is better than this

FEATHER_SHARE = 0.05  # seams with a larger step are edges of the scene

_BLOCK_PX = 65536  # worked on at a time
_MAX_VISITED = 1 << 24  # cells of the table of regions that borrow by regions
_FULL_DEVIATION_PX = 100_000

REGION_FIT_DTYPE = np.dtype(
    [
        ("label", np.int32),
        ("status", np.int32),  # RegionStatus
        ("points", np.int32),  # measured in the region itself
        ("inliers", np.int32),  # of all points used, borrowed ones included
        ("rings", np.int32),  # rings of neighbours borrowed; -1 = every point of the picture
        (
            "scale",
            np.float32,
        ),  # s: metres per unit of relative depth (global_disparity: of disparity, 1/m)
        ("slope_x", np.float32),  # a: metres per half picture width
        ("slope_y", np.float32),  # b: metres per half picture height
        ("shift", np.float32),  # t: metres (global_disparity: 1/m)
        ("residual", np.float32),  # standard deviation of the points about the fit, m
    ]
)


_PARAMETERS = ("scale", "slope_x", "slope_y", "shift")


class RegionStatus(IntEnum):
    """How a region came to its parameters."""

    OK = 0  # fitted to its own points
    EXPANDED = 1  # borrowed the points of neighbours
    GLOBAL = 2  # has the fit to all points of the picture
    REDUCED = (
        3  # the points could not tell all parameters apart: columns were dropped (y, x, then d)
    )
    MEDIAN_SCALE = 4  # too few points in the whole picture: one scale, no shift
    UNKNOWN = 5  # no answer


class FitStatus(IntEnum):
    """How a frame came to its depth."""

    OK = 0  # fitted as asked
    MEDIAN_SCALE = 1  # too few points for the method: one scale for the picture
    NETWORK_METRES = 2  # no point: the metric network's own metres, unchecked
    NO_POINTS = 3  # no point and no metric network: no depth
    NO_PREDICTION = 4  # the network gave nothing (at any point): no depth


_REGION_TEXTS = {
    RegionStatus.OK: "on their own",
    RegionStatus.EXPANDED: "with neighbours",
    RegionStatus.GLOBAL: "with the picture's fit",
    RegionStatus.REDUCED: "with fewer parameters",
    RegionStatus.UNKNOWN: "without an answer",
}


@dataclass(frozen=True)
class FitConfig:
    """How relative depth becomes metres."""

    method: str = option(
        "ssf",
        "Fit of metres to the relative depth: one for the picture (global_depth, global_disparity, "
        "median) or one per region (region_median; slf: scale, shift; ssf: scale, slopes, shift), "
        "or one for the picture with the residual of the points spread over it (field).",
        choices=METHODS,
    )
    mode: str = option(
        "sensor",
        "paper: plain least squares as published; sensor: withstands outliers and few points.",
        choices=MODES,
    )
    min_points: int = option(
        0,
        "Fewest points of a region before it borrows from its neighbours; 0 = parameters + 1 in "
        "paper mode, 2 x parameters in sensor mode.",
        minimum=0,
        maximum=1000,
    )
    min_depth_m: float = option(
        0.05,
        "Points nearer than this are ignored, output is clamped to it.",
        unit="m",
        minimum=1e-3,
    )
    max_depth_m: float = option(
        200.0,
        "Points farther than this are ignored, output is clamped to it.",
        unit="m",
        minimum=1e-2,
    )
    huber_threshold: float = option(
        1.345,
        "Residuals beyond this many robust standard deviations lose weight (sensor mode).",
        minimum=0.5,
        maximum=10.0,
    )
    huber_iterations: int = option(
        5, "Reweighted solutions after the first (sensor mode); 0 = plain.", minimum=0, maximum=50
    )
    range_guard: float = option(
        0.5,
        "A region's depth may leave the range of its points by this share of that range (sensor "
        "mode); 0 = no limit.",
        minimum=0.0,
        maximum=100.0,
    )
    range_floor: float = option(
        0.1,
        "The range of a region's points counts as at least this share of their median depth.",
        minimum=0.0,
        maximum=10.0,
    )
    polarity_guard: bool = option(
        False,
        "A region whose fit turns near and far around takes the scale of the whole picture (sensor "
        "mode). Off because it cost up to 6 % AbsRel on the real frames tried.",
    )
    feather_px: int = option(
        0,
        "Blend surfaces that meet at a seam between regions over this distance (sensor mode); "
        "0 = off.",
        unit="px",
        minimum=0,
        maximum=50,
    )
    field: FieldConfig = section(FieldConfig, "The residual field (method field).")

    def __post_init__(self) -> None:
        validate(self)
        if self.min_depth_m >= self.max_depth_m:
            raise ConfigError(
                f"min_depth_m {self.min_depth_m:g} is not below max_depth_m {self.max_depth_m:g}: "
                "no depth could be given; lower min_depth_m or raise max_depth_m"
            )

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


@dataclass(frozen=True)
class FitResult:
    """Metric depth of a picture with its evidence.

    depth: (H, W) float32 m, NaN unknown. std: (H, W) float32 m, such that depth ± 1.96 std is meant
    as a 95 % interval (errors have heavier tails than a normal variable: this is the 95 % bound
    divided by 1.96, not their second moment); NaN where there is no evidence to judge by. regions:
    one row per region, :data:`REGION_FIT_DTYPE`. point_inlier: (N,) bool, point agrees with its
    region's fit. point_residual: (N,) float32 m, measured minus fitted; NaN for points that could
    not be used. message: one sentence for an operator. details: more for an operator, by name
    (method field: base, leave-one-out error, share of outliers and the like).
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
) -> FitResult:
    """Metric depth of the picture from its prediction and the points measured in it.

    labels: (H, W) integers, 0 = unassigned, regions 1..K; used by the region methods, without them
    the picture is one region. image: (H, W, 3) uint8 RGB, used by method ``field`` only. A frame
    that cannot be fitted is told by ``status`` and ``message``; wrong shapes raise ValueError.
    """
    config = config or FitConfig()
    if labels is not None and np.shape(labels) != prediction.shape:
        raise ValueError(
            f"Labels are {np.shape(labels)} but the prediction is {prediction.shape}: "
            "segment the picture at the size of the prediction."
        )
    if config.method == "field":
        usable = _usable(points, prediction.values, config)
        if np.count_nonzero(usable) >= config.enough_points():
            return _fit_field(prediction, points, usable, labels, image, config)
    in_disparity = config.method == "global_disparity"
    relative = prediction.disparity() if in_disparity else prediction.relative_depth()
    usable = _usable(points, relative, config)
    if np.count_nonzero(usable) < config.enough_points():
        relative, in_disparity = prediction.relative_depth(), False  # for a scale without a shift
    rows, cols = points.rows[usable], points.cols[usable]
    picture = _Picture(relative, _axis(prediction.shape[1]), _axis(prediction.shape[0]))
    samples = _Samples(
        d=relative[rows, cols].astype(np.float64),
        x=picture.x[cols],
        y=picture.y[rows],
        z=points.depth[usable].astype(np.float64),
    )
    regions = _Regions.of(labels if config.method in _REGION_METHODS else None, rows, cols)
    if len(samples) == 0:
        return _without_points(prediction, points, regions, config)
    if len(samples) < config.enough_points():
        table, status = _median_scale(samples, regions, config), FitStatus.MEDIAN_SCALE
    else:
        table, status = _fit_regions(samples, regions, config), FitStatus.OK
    depth = _apply(picture, regions.labels, table, in_disparity, config)
    if config.robust and config.feather_px and regions.labels is not None:
        _feather(depth, picture, regions.labels, table, config)
    std = _deviation(picture, regions.labels, table, depth)
    if not np.isfinite(table.parameters[:, 0]).any():
        status = FitStatus.NO_PREDICTION
    return _result(points, usable, regions, table, depth, std, status)


def _fit_field(
    prediction: Prediction,
    points: SparseDepth,
    usable: NDArray[np.bool_],
    labels: NDArray[np.integer] | None,
    image: NDArray[np.uint8] | None,
    config: FitConfig,
) -> FitResult:
    """The residual field, which is one fit of the picture: one row of evidence, label 0."""
    z = points.depth[usable]
    rows, cols = points.rows[usable], points.cols[usable]
    found = solve(prediction, rows, cols, z, points.age_s[usable], labels, image, config.field)
    depth = np.clip(found.depth, np.float32(config.min_depth_m), np.float32(config.max_depth_m))
    inlier = np.zeros(len(points), dtype=bool)
    inlier[usable] = found.outlier < 0.5
    residual = np.full(len(points), np.nan, np.float32)
    residual[usable] = z - depth[rows, cols]
    table = np.zeros(1, REGION_FIT_DTYPE)
    table["status"] = RegionStatus.OK
    table["points"] = len(z)
    table["inliers"] = np.count_nonzero(inlier)
    table["scale"], table["shift"] = found.details["scale"], found.details["shift"]
    table["residual"] = np.sqrt(np.mean(residual[inlier] ** 2)) if inlier.any() else np.nan
    return FitResult(
        depth=depth,
        std=found.std,
        regions=table,
        point_inlier=inlier,
        point_residual=residual,
        status=FitStatus.OK,
        message=_field_message(found, len(points), len(z)),
        details=found.details,
    )


def _field_message(found: Field, given: int, used: int) -> str:
    text = f"{used} points" if used == given else f"{used} of {given} points"
    details = found.details
    message = f"Base fit in {details['base']} space and residual field of {text}"
    if "leave_one_out" in details:
        rejected = int(np.count_nonzero(found.outlier >= 0.5))
        message += f", {rejected} rejected; left-out error {details['leave_one_out']:.1%}"
    return message + "."


@dataclass(frozen=True)
class _Picture:
    """The map to be made metric, (H, W) float32; positions of its columns and rows in -1..1."""

    relative: NDArray[np.float32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True)
class _Regions:
    """The label map (None: the picture is one region, 0), labels with pixels, labels of the points.

    present: (K+1,) bool. of_point: (n,).
    """

    labels: NDArray[np.integer] | None
    present: NDArray[np.bool_]
    of_point: NDArray[np.intp]

    @classmethod
    def of(
        cls, labels: NDArray[np.integer] | None, rows: NDArray[np.int32], cols: NDArray[np.int32]
    ) -> _Regions:
        if labels is None:
            return cls(None, np.ones(1, dtype=bool), np.zeros(len(rows), np.intp))
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0:
            raise ValueError("Labels below 0 mean nothing: use 0 for unassigned pixels.")
        present = np.zeros(highest + 1, dtype=bool)
        present[labels[::4, ::4]] = True  # finds nearly all of them in a sixteenth of the time
        present[0] = lowest == 0
        if not present[1:].all():
            present[labels] = True
        return cls(labels, present, labels[rows, cols].astype(np.intp))


@dataclass(frozen=True)
class _Table:
    """What is applied to each label 0..K: the result of all fits, NaN where there is no answer.

    parameters: (K+1, 4) of d, x, y, 1. limits: (K+1, 2) m. basis: (K+1, C, 4), weight: (K+1,) as in
    _Surfaces. spread: (K+1,) standard deviation of a new measurement if the parameters were exact,
    in metres / depth ** spread_power. rows: (K+1,) REGION_FIT_DTYPE.
    """

    parameters: NDArray[np.float64]
    limits: NDArray[np.float64]
    basis: NDArray[np.float64]
    weight: NDArray[np.float64]
    spread: NDArray[np.float64]
    spread_power: int
    rows: NDArray[np.void]


@dataclass(frozen=True)
class _Samples:
    """The n usable points: relative depth (or disparity), position in -1..1, measured metres."""

    d: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    z: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.z)


@dataclass(frozen=True)
class _Groups:
    """Which points each fit uses: S groups over M (group, point) pairs, sorted by group.

    label: (S,) region, -1 = every point of the picture (always the last group). rings: (S,). group,
    point: (M,). start: (S,) first pair. No group is empty.
    """

    label: NDArray[np.intp]
    rings: NDArray[np.int32]
    group: NDArray[np.intp]
    point: NDArray[np.intp]
    start: NDArray[np.intp]

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M,) to (S,) sums."""
        return np.add.reduceat(values, self.start)

    def only(self, chosen: NDArray[np.bool_]) -> _Groups:
        """The chosen (S,) groups alone."""
        pairs = chosen[self.group]
        group = (np.cumsum(chosen) - 1)[self.group[pairs]]
        start = np.searchsorted(group, np.arange(np.count_nonzero(chosen)))
        return _Groups(self.label[chosen], self.rings[chosen], group, self.point[pairs], start)

    def median(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(M,) values not below 0 to (S,) medians (mean of the two middle ones for even counts)."""
        # One sort of "group + share of the largest value" is six times faster than by two keys.
        top = float(values.max()) * (1 + 1e-9) + np.finfo(np.float64).tiny
        ranked = np.sort(self.group + values / top)
        size = np.diff(np.append(self.start, len(self.group)))
        low, high = ranked[self.start + (size - 1) // 2], ranked[self.start + size // 2]
        medians: NDArray[np.float64] = (0.5 * (low + high) - np.arange(len(size))) * top
        return medians


@dataclass(frozen=True)
class _Surfaces:
    """One fitted surface per group.

    parameters: (S, 4) of d, x, y, 1. kept: (S,) columns not dropped. basis: (S, C, 4) linear
    functionals of (d, x, y, 1), orthonormal over the weighted points of the group: a pixel's
    leverage is 1/weight + the sum of their squares. weight: (S,) sum of weights. residual, weights,
    leverage: (M,). orthonormal: the values of the functionals at the points, C times (M,).
    """

    parameters: NDArray[np.float64]
    kept: NDArray[np.intp]
    basis: NDArray[np.float64]
    weight: NDArray[np.float64]
    residual: NDArray[np.float64]
    weights: NDArray[np.float64]
    leverage: NDArray[np.float64]
    orthonormal: list[NDArray[np.float64]]


def _axis(size: int) -> NDArray[np.float64]:
    """Pixel positions 0..size-1 as -1..1 (a single pixel is at 0)."""
    return np.linspace(-1.0, 1.0, num=size, dtype=np.float64) if size > 1 else np.zeros(1)


def _group(regions: _Regions, enough: int) -> tuple[_Groups, NDArray[np.intp]]:
    """Groups of points per region, expanded where too few, and the number of own points.

    Regions whose whole neighbourhood is used up before there are enough have no group. A ring is
    all regions that touch those gathered so far; it is taken whole.
    """
    count, point_labels = len(regions.present), regions.of_point
    own = np.bincount(point_labels, minlength=count)
    order = np.argsort(point_labels, kind="stable")
    first = np.concatenate([[0], np.cumsum(own)[:-1]])
    wanted = np.flatnonzero(regions.present[1:]) + 1
    full, short = wanted[own[wanted] >= enough], wanted[own[wanted] < enough]
    heads, members, rings = [full], [full], np.zeros(count, np.int32)
    if regions.labels is not None and short.size and own[wanted].any():
        links = adjacency(regions.labels)
        at_once = max(_MAX_VISITED // count, 1)
        for first_short in range(0, len(short), at_once):
            some = short[first_short : first_short + at_once]
            head, member, rings[some] = _borrow(some, links, own, enough)
            heads.append(head)
            members.append(member)
    head, member = np.concatenate(heads), np.concatenate(members)
    by_region = np.argsort(head, kind="stable")
    head, member = head[by_region], member[by_region]
    size = own[member]
    pairs = order[_ranges(first[member], size)]
    everything = np.arange(len(point_labels))
    label = np.append(np.unique(head), -1)
    group_of = np.zeros(count, np.intp)
    group_of[label[:-1]] = np.arange(len(label) - 1)
    group = np.concatenate(
        [np.repeat(group_of[head], size), np.full(len(everything), len(label) - 1)]
    )
    groups = _Groups(
        label=label,
        rings=np.append(rings[label[:-1]], np.int32(-1)),
        group=group,
        point=np.concatenate([pairs, everything]),
        start=np.searchsorted(group, np.arange(len(label))),
    )
    return groups, own


def _borrow(
    short: NDArray[np.intp], links: sparse.csr_matrix, own: NDArray[np.intp], enough: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Grow all short regions together, a ring of neighbours per step, until each has enough points.

    Returns (region, member) pairs, the region itself included, and the rings of every short region;
    those that cannot have enough have no pair and -1 ring.
    """
    degree = np.diff(links.indptr)
    visited = np.zeros((len(short), len(own)), dtype=bool)
    row, member = np.arange(len(short)), short
    visited[row, member] = True
    have = own[short].astype(np.float64)
    rings = np.full(len(short), -1, np.int32)
    ring = 0
    while row.size:
        ring += 1
        size = degree[member]
        new_row = np.repeat(row, size)
        new_member = links.indices[_ranges(links.indptr[member], size)]
        unseen = ~visited[new_row, new_member]
        new = np.unique(new_row[unseen] * len(own) + new_member[unseen])
        row, member = np.divmod(new, len(own))
        visited[row, member] = True
        have += np.bincount(row, own[member], minlength=len(short))
        rings[(rings < 0) & (have >= enough)] = ring
        going = rings[row] < 0
        row, member = row[going], member[going]
    visited[rings < 0] = False
    done, members = np.nonzero(visited)
    return short[done], members, rings


def _ranges(start: NDArray[np.integer], size: NDArray[np.integer]) -> NDArray[np.intp]:
    """start[0], start[0] + 1, ... (size[0] of them), start[1], ..."""
    return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())


def _least_squares(
    groups: _Groups,
    columns: Sequence[NDArray[np.float64]],
    target: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> _Surfaces:
    """Weighted least squares of every group at once, by Gram-Schmidt on standardised columns.

    columns: d, x, y (the first one or all) of the pairs, (M,) each. They are orthogonalised in this
    order; from the first one that the others explain on, all are dropped (y, then x, then d).
    """
    group, total = groups.group, groups.sum
    weight = total(weights)
    mean_target = total(weights * target) / weight
    residual = target - mean_target[group]
    alive = np.ones(len(weight), dtype=bool)
    kept = np.zeros(len(weight), np.intp)
    leverage = weights / weight[group]
    parameters = np.zeros((len(weight), 4))
    parameters[:, 3] = mean_target
    basis = np.zeros((len(weight), len(columns), 4))
    orthogonal: list[NDArray[np.float64]] = []
    for k, column in enumerate(columns):
        mean = total(weights * column) / weight
        q = column - mean[group]
        spread = np.sqrt(total(weights * q * q) / weight)
        alive &= spread > _CONSTANT_SHARE * np.abs(mean) + np.finfo(np.float64).tiny
        scale = np.where(alive, 1 / np.where(alive, spread, 1), 0)
        q *= scale[group]
        functional = basis[:, k]
        functional[:, k] = scale
        functional[:, 3] = -mean * scale
        for j, other in enumerate(orthogonal):
            overlap = total(weights * q * other)
            q -= overlap[group] * other
            functional -= overlap[:, None] * basis[:, j]
        square = total(weights * q * q)
        alive &= square > RANK_TOLERANCE * weight
        norm = np.where(alive, 1 / np.sqrt(np.where(alive, square, 1)), 0)
        q *= norm[group]
        functional *= norm[:, None]
        coefficient = total(weights * q * residual)
        residual -= coefficient[group] * q
        parameters += coefficient[:, None] * functional
        leverage += weights * q * q
        kept += alive
        orthogonal.append(q)
    return _Surfaces(parameters, kept, basis, weight, residual, weights, leverage, orthogonal)


def _regress(
    groups: _Groups,
    columns: Sequence[NDArray[np.float64]],
    target: NDArray[np.float64],
    config: FitConfig,
) -> _Surfaces:
    """Least squares, in sensor mode with Huber's weights: 1 up to the threshold, then as 1/|r|."""
    plain = _least_squares(groups, columns, target, np.ones(len(target)))
    if not config.robust or config.huber_iterations == 0:
        return plain
    # Within the loop the plain solution's orthonormal columns serve: their weighted normal
    # equations are well conditioned and cheaper than a new orthogonalisation.
    q = np.stack([np.ones(len(target)), *plain.orthonormal])
    count = len(q)
    one, other = np.triu_indices(count)
    products = np.concatenate([q[one] * q[other], q * target])
    normal = np.empty((len(plain.weight), count, count))
    dropped = np.zeros((len(plain.weight), count))
    dropped[:, 1:] = np.arange(count - 1) >= plain.kept[:, None]
    residual = plain.residual
    tiny = 1e-6 * groups.sum(np.abs(target)) / plain.weight  # exact data must not divide by 0
    for _ in range(config.huber_iterations):
        size = np.abs(residual)
        limit = config.huber_threshold * MAD_TO_STD * groups.median(size)
        limit = np.maximum(limit, np.maximum(tiny, 1e-12))[groups.group]
        weights = limit / np.maximum(size, limit)
        sums = np.add.reduceat(products * weights, groups.start, axis=1)
        normal[:, one, other] = normal[:, other, one] = sums[: len(one)].T
        normal[:, range(count), range(count)] += dropped
        solution = np.linalg.solve(normal, sums[len(one) :].T[:, :, None])[:, :, 0]
        residual = target - np.einsum("km,mk->m", q, solution.take(groups.group, axis=0))
    return _least_squares(groups, columns, target, weights)


def _usable(
    points: SparseDepth, relative: NDArray[np.float32], config: FitConfig
) -> NDArray[np.bool_]:
    """(N,) points inside the picture with a depth in range on a pixel that the network answered."""
    height, width = relative.shape
    rows, cols, depth = points.rows, points.cols, points.depth
    usable = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    usable &= (depth >= config.min_depth_m) & (depth <= config.max_depth_m)  # NaN is neither
    usable[usable] = np.isfinite(relative[rows[usable], cols[usable]])
    return usable


def _fit_regions(samples: _Samples, regions: _Regions, config: FitConfig) -> _Table:
    """Fit every region, or the picture as a whole where there are no regions."""
    in_disparity = config.method == "global_disparity"
    groups, own = _group(regions, config.enough_points())
    d, z = samples.d[groups.point], samples.z[groups.point]
    target = 1 / z if in_disparity else z
    columns = [d, samples.x[groups.point], samples.y[groups.point]][: _COLUMNS[config.method]]
    if not columns:
        surfaces = _scale_only(groups, d, target)
        parameters, reduced = surfaces.parameters, surfaces.kept == 0
    else:
        surfaces = _regress(groups, columns, target, config)
        parameters, reduced = _guarded(groups, columns, target, surfaces, config)
    known = np.isfinite(parameters[:, 0])
    fitted = _evaluate(parameters[groups.group], [d, *columns[1:]])
    residual = np.where(known[groups.group], target - fitted, 0)  # unknown is put in below
    inlier, spread = _inliers(groups, residual, surfaces, config)

    # Each label takes the group of its own, else the last one: every point of the picture.
    count = len(regions.present)
    source = np.full(count, len(groups.label) - 1)
    source[groups.label[:-1]] = np.arange(len(groups.label) - 1)
    applied = source[regions.of_point][groups.point] == groups.group
    # Errors of a scale grow with depth, those of a disparity with its square.
    power = 2 if in_disparity else 0 if columns else 1
    error = residual
    if power:
        metres = 1 / np.maximum(fitted, 1 / config.max_depth_m) if in_disparity else fitted
        error = (
            np.where(known[groups.group], z - metres, 0) / np.where(metres > 0, metres, 1) ** power
        )
    predictive = _predictive_spread(groups, error, surfaces, applied, z ** (1.0 - power))[source]
    predictive *= np.where((own == 0) & (source < len(groups.label) - 1), UNSEEN_GROWTH, 1)

    rows = np.zeros(count, REGION_FIT_DTYPE)
    rows["label"] = np.arange(count)
    rows["points"] = own
    rows["inliers"] = groups.sum(inlier.astype(np.float64))[source]
    rows["rings"] = 0 if regions.labels is None else groups.rings[source]
    for name, column in zip(_PARAMETERS, parameters.T, strict=True):
        rows[name] = column[source]
    middle = groups.median(z)
    spread[~known] = np.nan
    predictive[~known[source]] = np.nan
    rows["residual"] = (spread * middle**2 if in_disparity else spread)[source]
    status = np.where(rows["rings"] > 0, RegionStatus.EXPANDED, RegionStatus.OK)
    status[reduced[source]] = RegionStatus.REDUCED
    status[rows["rings"] < 0] = RegionStatus.GLOBAL
    status[~known[source]] = RegionStatus.UNKNOWN
    rows["status"] = status

    limits = np.tile([config.min_depth_m, config.max_depth_m], (count, 1))
    if config.robust and config.range_guard > 0:
        low = np.minimum.reduceat(np.where(inlier, z, np.inf), groups.start)
        high = np.maximum.reduceat(np.where(inlier, z, -np.inf), groups.start)
        room = config.range_guard * np.maximum(high - low, config.range_floor * middle)
        guarded = np.stack([low - room, high + room], axis=1)[source]
        limits = np.clip(guarded, config.min_depth_m, config.max_depth_m)
    return _Table(
        parameters[source],
        limits,
        surfaces.basis[source],
        surfaces.weight[source],
        predictive,
        power,
        rows,
    )


def _evaluate(
    parameters: NDArray[np.float64], columns: Sequence[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Value of surfaces (M, 4) at points given by d, or by d, x and y."""
    value = parameters[:, 3].copy()
    for k, column in enumerate(columns):
        value += parameters[:, k] * column
    return value


def _scale_only(groups: _Groups, d: NDArray[np.float64], target: NDArray[np.float64]) -> _Surfaces:
    """The median methods: z = s d with s = median(z) / median(d) of every group.

    Where relative depth is not above zero, the picture's scale is taken, if there is one.
    """
    middle = groups.median(d - d.min()) + d.min()
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = groups.median(target) / middle
    valid = np.isfinite(scale) & (scale > 0)
    if not valid[-1]:
        scale[-1] = np.nan
    parameters = np.zeros((len(scale), 4))
    parameters[:, 0] = np.where(valid, scale, scale[-1])
    size = groups.sum(np.ones(len(d)))
    return _Surfaces(
        parameters=parameters,
        kept=valid.astype(np.intp),
        basis=np.zeros((len(scale), 0, 4)),
        weight=size,
        residual=target - parameters[groups.group, 0] * d,
        weights=np.ones(len(d)),
        leverage=1 / size[groups.group],
        orthonormal=[],
    )


def _guarded(
    groups: _Groups,
    columns: Sequence[NDArray[np.float64]],
    target: NDArray[np.float64],
    surfaces: _Surfaces,
    config: FitConfig,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Parameters of every group and which of them are not all from its own points.

    Where even d had to be dropped only a shift is left: the median in paper mode, a median shift of
    the picture's scale in sensor mode. In sensor mode a surface that turns near and far around is
    fitted again with the picture's scale (polarity guard).
    """
    parameters = surfaces.parameters.copy()
    reduced = surfaces.kept < len(columns)
    picture_scale = surfaces.parameters[-1, 0] if config.robust else 0.0
    flat = surfaces.kept == 0
    if flat.any():
        offset = target - picture_scale * columns[0]
        low = offset.min()
        shift = groups.median(offset - low) + low
        parameters[flat] = 0
        parameters[flat, 0] = picture_scale
        parameters[flat, 3] = shift[flat]
    if config.robust and config.polarity_guard and picture_scale > 0:
        turned = ~flat & (parameters[:, 0] <= 0)
        turned[-1] = False
        if turned.any():
            some = groups.only(turned)
            pairs = turned[groups.group]
            rest = _least_squares(
                some,
                [column[pairs] for column in columns[1:]],
                (target - picture_scale * columns[0])[pairs],
                surfaces.weights[pairs],
            )
            fixed = np.zeros((np.count_nonzero(turned), 4))
            fixed[:, 0] = picture_scale
            # parameters are named from the first column on, which here is x
            fixed[:, 1 : len(columns)] = rest.parameters[:, : len(columns) - 1]
            fixed[:, 3] = rest.parameters[:, 3]
            parameters[turned] = fixed
            reduced |= turned
    return parameters, reduced


def _inliers(
    groups: _Groups, residual: NDArray[np.float64], surfaces: _Surfaces, config: FitConfig
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Inliers (M,) and the standard deviation (S,) about the fit, in the units of the residual."""
    inlier = np.ones(len(residual), dtype=bool)
    if config.robust:
        size = np.abs(residual)
        rough = MAD_TO_STD * groups.median(size)[groups.group]
        inlier = size <= np.maximum(INLIER_STDS * rough, 1e-9 * np.abs(surfaces.residual).max())
    count = groups.sum(inlier.astype(np.float64))
    square = groups.sum(np.where(inlier, residual, 0) ** 2)
    return inlier, np.sqrt(square / np.maximum(count - surfaces.kept - 1, 1))


def _predictive_spread(
    groups: _Groups,
    residual: NDArray[np.float64],
    surfaces: _Surfaces,
    applied: NDArray[np.bool_],
    size: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Spread (S,) of new measurements about each fit such that ± 1.96 of it holds 95 %.

    The standard deviation at a pixel is this times sqrt(1 + leverage of the pixel). In three steps:
    1. variance of the residuals of each group, with the frame's as a prior worth PRIOR_POINTS
       points (in proportion to the typical ``size`` of a group), because regions have few points;
    2. growth with every ring borrowed: the farther the points, the less they say about the region;
    3. one factor for the frame, so that 95 % of the points lie in the interval of the fit without
       them. Leave-one-out residuals are exact and free: r / (1 - leverage). This makes the interval
       honest whatever the tails of the errors, as far as points are where pixels are.

    applied: (M,) pairs whose group is the one applied at their point.
    """
    weights, group = surfaces.weights, groups.group
    leverage = np.minimum(surfaces.leverage, MAX_LEVERAGE)
    typical = groups.median(size)
    square = groups.sum(weights * residual**2)
    freedom = np.maximum(surfaces.weight - surfaces.kept - 1, 0)
    counted = np.ones(len(typical), dtype=bool)
    counted[-1] = len(typical) == 1  # all points once more would count them twice
    if freedom[counted].sum() <= 0:
        counted[:] = True
    prior = np.sum((square / typical**2)[counted]) / max(np.sum(freedom[counted]), 1.0)
    prior_square = np.maximum(prior, MIN_RELATIVE_STD**2) * typical**2 * PRIOR_POINTS
    growth = 1 + RING_GROWTH * np.clip(groups.rings, 0, MAX_GROWTH_RINGS)
    spread = growth * np.sqrt((square + prior_square) / (freedom + PRIOR_POINTS))

    # Suspected outliers do not stretch the interval; they are no sample of the surfaces' errors.
    judges = applied & (weights > MIN_JUDGE_WEIGHT)
    g, h, w = group[judges], leverage[judges], weights[judges]
    left_out = residual[judges] / (1 - h)
    other_square = np.maximum(square[g] - w * residual[judges] ** 2 / (1 - h), 0)
    other_spread = growth[g] * np.sqrt(
        (other_square + prior_square[g]) / (np.maximum(freedom[g] - w, 0) + PRIOR_POINTS)
    )
    ratio = np.sort(np.abs(left_out) / (other_spread * np.sqrt(1 / (1 - h))))
    # The rank that holds 95 % of new points, not only of these (n + 1 in place of n).
    rank = min(int(np.ceil(0.95 * (len(ratio) + 1))), len(ratio)) - 1
    factor = ratio[rank] / NORMAL_95
    if (
        rank == len(ratio) - 1
    ):  # too few points to know their 95 % bound: what a normal variable has
        factor = max(factor, stdtrit(max(freedom[-1], 1.0), 0.975) / NORMAL_95)
    return np.maximum(factor * spread, MIN_RELATIVE_STD * typical)


def _apply(
    picture: _Picture,
    labels: NDArray[np.integer] | None,
    table: _Table,
    in_disparity: bool,
    config: FitConfig,
) -> NDArray[np.float32]:
    """Depth of every pixel, (H, W) float32 m.

    In float64: where s d and t are large and nearly cancel, float32 would lose millimetres.
    """
    scale, slope_x, slope_y, shift = table.parameters.T
    low, high = table.limits.T
    depth = np.empty(picture.relative.shape, np.float32)
    same_limits = len(np.unique(table.limits, axis=0)) == 1
    for block, look in _blocks(labels, table, depth.shape, np.float64):
        out = picture.relative[block].astype(np.float64)
        out *= look(scale)
        if slope_x.any() or slope_y.any():
            part = look(slope_x)
            out += np.multiply(part, picture.x, out=look.buffer)
            part = look(slope_y)
            out += np.multiply(part, picture.y[block, None], out=look.buffer)
        out += look(shift)
        if in_disparity:
            np.maximum(out, 1 / config.max_depth_m, out=out)
            np.reciprocal(out, out=out)
        np.maximum(out, low[0] if same_limits else look(low), out=out)
        np.minimum(
            out, high[0] if same_limits else look(high), out=depth[block], casting="same_kind"
        )
    return depth


def _deviation(
    picture: _Picture, labels: NDArray[np.integer] | None, table: _Table, depth: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Standard deviation of every pixel, (H, W) float32 m, NaN where depth is.

    spread sqrt(1 + leverage), the leverage of a pixel being 1 / weight + the sum of its squared
    basis functionals: it grows away from the points that were fitted. Large pictures are worked on
    at every second pixel, as the leverage is smooth.
    """
    step = 2 if depth.size > _FULL_DEVIATION_PX else 1
    relative = np.ascontiguousarray(picture.relative[::step, ::step])
    x = picture.x[::step].astype(np.float32)[None, :]
    y = picture.y[::step].astype(np.float32)[:, None]
    some_labels = None if labels is None else labels[::step, ::step]
    functionals = (table.spread[:, None, None] * table.basis).astype(np.float32)
    constant = (table.spread**2 * (1 + 1 / table.weight)).astype(np.float32)
    coarse = np.empty(relative.shape, np.float32)
    for block, look in _blocks(some_labels, table, coarse.shape, np.float32):
        variance = coarse[block]
        variance[...] = look(constant)
        for k in range(functionals.shape[1]):
            value = relative[block] * look(functionals[:, k, 0])
            if k > 0:
                value += look(functionals[:, k, 1]) * x
            if k > 1:
                value += look(functionals[:, k, 2]) * y[block]
            value += look(functionals[:, k, 3])
            variance += np.multiply(value, value, out=value)
        np.sqrt(variance, out=variance)
    std: NDArray[Any] = coarse
    if step > 1:
        height, width = depth.shape
        std = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    for _ in range(table.spread_power):
        std *= depth
    if np.isnan(std.sum() + depth.sum()):
        # Where every second pixel missed a hole of the prediction, or found one, both must agree.
        worst = np.float32(np.nanmax(std, initial=0))
        std[np.isnan(std) & np.isfinite(table.spread).any()] = worst
        std[np.isnan(depth)] = np.nan
    return std


def _blocks(
    labels: NDArray[np.integer] | None, table: _Table, shape: tuple[int, ...], dtype: type
) -> Iterator[tuple[slice, _Look]]:
    """Bands of rows, small enough for their intermediate results to stay in the cache."""
    rows = max(_BLOCK_PX // shape[1], 1)
    buffer: NDArray[Any] = np.empty((rows, shape[1]), dtype)
    for top in range(0, shape[0], rows):
        block = slice(top, min(top + rows, shape[0]))
        band = None if labels is None else labels[block]
        yield block, _Look(band, buffer[: block.stop - top], len(table.rows))


class _Look:
    """Looks the value of each pixel's label up, in a block of pixels; valid until the next call."""

    def __init__(self, labels: NDArray[np.integer] | None, buffer: NDArray[Any], count: int):
        self.buffer = buffer
        self._index: NDArray[Any] | None = None
        self._small = count <= 256
        if labels is not None:
            self._index = labels.astype(np.uint8 if self._small else np.intp)
            self._table = np.zeros((1, 256), buffer.dtype)

    def __call__(self, values: NDArray[Any]) -> Any:
        """values: (K+1,). The values of the block's pixels, (rows, W), or the only one."""
        if self._index is None:
            return values[0]
        if self._small:  # twice as fast as take
            self._table[0, : len(values)] = values
            return cv2.LUT(self._index, self._table, dst=self.buffer)
        # mode="clip" spares the copy that "raise" needs; labels were checked, nothing is clipped
        return values.take(self._index, mode="clip", out=self.buffer)


def _feather(
    depth: NDArray[np.float32],
    picture: _Picture,
    labels: NDArray[np.integer],
    table: _Table,
    config: FitConfig,
) -> None:
    """Blend the parameters of neighbouring regions near their seam, where the surfaces meet anyway.

    In place. Where the blend would move a pixel by more than FEATHER_SHARE the seam is an
    edge of the scene and stays sharp.
    """
    known: Any = np.isfinite(table.parameters).all(axis=1)
    size = (2 * config.feather_px + 1,) * 2
    index = labels.astype(np.intp)
    share: Any = cv2.blur(known.astype(np.float32)[index], size)
    blend: Any = np.zeros_like(depth)
    factors: list[Any] = [picture.relative, picture.x[None, :], picture.y[:, None], 1.0]
    for parameter, factor in zip(table.parameters.T, factors, strict=True):
        values = np.where(known, parameter, 0).astype(np.float32)[index]
        blend += (cv2.blur(values, size) * factor).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        blend /= share
        meets: Any = np.abs(blend - depth) <= FEATHER_SHARE * depth
    meets &= (blend >= config.min_depth_m) & (blend <= config.max_depth_m)
    np.copyto(depth, blend, where=meets)


def _median_scale(samples: _Samples, regions: _Regions, config: FitConfig) -> _Table:
    """Too few points for the method: z = s d with s = median(z / d), for the whole picture."""
    count = len(regions.present)
    positive = samples.d > 0
    ratios = samples.z[positive] / samples.d[positive]
    scale = float(np.median(ratios)) if ratios.size else np.nan
    # One point has no spread; few points get the wide interval of Student's distribution.
    spread = np.nan
    if ratios.size > 1:
        std = float(np.sqrt(np.sum((ratios / scale - 1) ** 2) / (ratios.size - 1)))
        spread = max(std, MIN_RELATIVE_STD) * float(stdtrit(ratios.size - 1, 0.975)) / NORMAL_95
    rows = np.zeros(count, REGION_FIT_DTYPE)
    rows["label"] = np.arange(count)
    rows["status"] = RegionStatus.MEDIAN_SCALE if ratios.size else RegionStatus.UNKNOWN
    rows["points"] = np.bincount(regions.of_point, minlength=count)
    rows["inliers"] = ratios.size
    rows["rings"] = 0 if regions.labels is None else -1
    rows["scale"] = scale
    if not ratios.size:
        for name in _PARAMETERS:
            rows[name] = np.nan
    rows["residual"] = np.nan
    if ratios.size > 1:
        error = samples.z[positive] - scale * samples.d[positive]
        rows["residual"] = np.sqrt(np.sum(error**2) / (ratios.size - 1))
    parameters = np.tile([scale, 0.0, 0.0, 0.0 if ratios.size else np.nan], (count, 1))
    return _Table(
        parameters=parameters,
        limits=np.tile([config.min_depth_m, config.max_depth_m], (count, 1)),
        basis=np.zeros((count, 0, 4)),
        weight=np.full(count, max(ratios.size, 1), np.float64),
        spread=np.full(count, spread),
        spread_power=1,
        rows=rows,
    )


def _without_points(
    prediction: Prediction, points: SparseDepth, regions: _Regions, config: FitConfig
) -> FitResult:
    """No usable point: a metric network's own metres, or nothing."""
    depth: NDArray[np.float32] = np.full(prediction.shape, np.nan, np.float32)
    reason = "No point was measured"
    if len(points):
        reason = (
            f"None of {len(points)} points could be used (outside the picture, outside "
            f"{config.min_depth_m:g} to {config.max_depth_m:g} m or where the network is silent)"
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
    for name in (*_PARAMETERS, "residual"):
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
    regions: _Regions,
    table: _Table,
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
            f"{used_text} are too few for this method: one scale for the whole picture; "
            "give more points or lower min_points."
        )
    counts = np.bincount(rows["status"], minlength=len(RegionStatus))
    parts = [f"{counts[kind]} {text}" for kind, text in _REGION_TEXTS.items() if counts[kind]]
    return f"{len(rows)} regions fitted to {used_text}: {', '.join(parts)}."
