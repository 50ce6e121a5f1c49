# SPDX-License-Identifier: Apache-2.0
"""Method `field`: a robust base fit, and the residual of the points spread over the picture.

    depth = B exp(m + U + C)

B    base: a robust line from the network's declared space (depth, disparity or log depth) to metres
m    median log residual of the points, y = log z - log B - m what is left
U    local kriging of y on a coarse lattice of nodes, in features of place, log B, colour, region
C    detail: what is left at the points after U, handed to the cells about them that look alike

How far noise is smoothed and how strongly the details count is chosen in each frame by leaving
points out, at the distances at which the picture's pixels lie from their nearest point; the same
left-out errors calibrate the interval. Outliers are found as points that no neighbour agrees with.
docs/method.md explains it; the constants below were chosen with one source of frames left out at a
time (docs/studies/field.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.config import option, section, validate
from depth_node.fitting.field.kernels import (
    COMPILERS,
    STUDENT_PEAK,
    Floats,
    Integers,
    Kernels,
    kernels,
)
from depth_node.fitting.field.memory import QUANTILE, Answer, FieldState, TemporalConfig
from depth_node.prediction import Prediction

Map = NDArray[np.float32]

REFERENCE_PX = 640.0  # sizes in pixels below are for a picture whose larger side is this long

MIN_POINTS = 4  # fewer tell a scale only

# Base
HUBER, TUKEY = 1.345, 4.685  # robust standard deviations, for the usual 95 % efficiency
ROBUST_STEPS = 6
BASE_POINTS = 2000
MAD_TO_STD = 1.4826
RANGE_SHARE = 3.0  # B stays within the points' 2 to 98 % range widened by this factor

# Correlation lengths (distance over which the residual changes) and shares
PLACE_SHARE = 0.2  # of the larger side of the picture
LOG_BASE = 0.5
LIGHTNESS, CHROMA = 0.7, 0.4  # of Lab scaled to 0..1
LABEL_GAP = 0.1  # squared feature distance between two regions
LONG_SHARE = 0.8  # of the prior variance that changes slowly, with place alone
LONG_PLACE_SHARE = 0.6

# Outliers: Student-t with 3 degrees of freedom for honest points, uniform in log for the others
OUTLIER_PRIOR = 0.02
OUTLIER_PRIOR_POINTS = 10.0
OUTLIER_DENSITY = 0.8  # per unit of log depth; 0.6: evenly between 0.4 and 2 times the true range
STUDENT_MEDIAN = 0.765  # median of |t_3|
SUSPECT_NUGGET = 0.4
AGREEMENT_SHARE = 0.4  # of the likelihood that comes from single neighbours, the rest from kriging
MANY_POINTS = 2000  # from here on the single neighbours tell outliers well enough
SOME_NEIGHBOURS, FEW_NEIGHBOURS = 8, 5  # that a point is judged by, below and above that

# Lattices
GRID_PX = 2.0  # cell of the detail lattice
CANDIDATES_PER_NEIGHBOUR = 1.5
POINTS_PER_CELL = 1.7  # nine cells hold the candidates of a node

# Choices made by leaving out
VALIDATION_POINTS = 256
NUGGETS = (0.003, 0.01, 0.03, 0.1, 0.3)
TRIM = 0.97
PRIOR_SHARES = (0.05, 0.5, 4.0, math.inf)  # weight of U against the points about a cell
CLIPS = (0.005, 0.02, 0.06, 9.0)  # how much of a step of the surface is believed, in log depth
USUAL_CHOICE = (1, 2)
CHOICE_PENALTY = 0.3  # over sqrt(N), per step away from the usual choice
ERROR_CAP = 0.5
MATCH_SLACK = 1.3
MAX_ELONGATION = 4.0

# Detail
DETAIL_SPACINGS = 1.25
MAX_DETAIL_PX = 64.0
LINE_GAPS, LINE_CELLS = 4.0, 4.0  # reach across dense scan lines: median distances, at most cells
SURFACE_GAIN, COLOUR_GAIN = 100.0, 5.0
SOFTENING = 0.5  # squared cells

# Interval
NORMAL_95 = 1.959964
COVERAGE = 0.945  # of left-out points, which have noise: it is 0.95 to 0.96 of the pixels
SILL_PRIOR = 5.0  # neighbours' worth of trust in the picture's prior variance
VARIANCE_POWER, SILL_POWER = 1.4, 1.35  # wide intervals are still too narrow, narrow ones too wide
LEAST_SPREAD = 1e-3
FAR_GROWTH = 8.0  # per correlation length of place beyond the points' spacing
EDGE_GROWTH, EDGE_CAP = 12.0, 0.5  # per unit of a step of log depth, up to such a step
FEW_GROWTH, FEW_GROWTH_SQUARED = 8.0, 40.0
NOISE_SHARE = 0.6  # of the points' noise that left-out errors are freed of
LEAST_BOUND_SHARE, LEAST_BOUND_POINTS = 0.1, 15.0  # of a squared bound that stays: a + b / N


@dataclass(frozen=True)
class FieldConfig:
    """Switches of the residual field."""

    residual: bool = option(True, "Spread what the base fit leaves at the points (U and C).")
    detail: bool = option(True, "Follow single points closely where they are dense (C).")
    colour: bool = option(True, "Points of similar colour inform each other more.")
    regions: bool = option(
        False,
        "Points of one region inform each other more. Off: beside colour it gained less than 1 % "
        "with good regions and cost up to 3 % with fine ones (docs/studies/field.md).",
    )
    outliers: bool = option(True, "Find and disregard points that disagree with all neighbours.")
    node_px: float = option(
        10.0,
        "Distance of the nodes of U in a picture of 640 pixels.",
        unit="px",
        minimum=4.0,
        maximum=64.0,
    )
    neighbours: int = option(10, "Points that inform one node.", minimum=3, maximum=24)
    max_extrapolation: float = option(
        1.0,
        "Farther than this from every used point, as a share of the larger side of the picture, "
        "the interval is unknown (NaN).",
        minimum=0.01,
        maximum=2.0,
    )
    age_s: float = option(
        0.5,
        "Points of this age have twice the noise of fresh ones.",
        unit="s",
        minimum=0.01,
        maximum=100.0,
    )
    temporal: TemporalConfig = section(TemporalConfig, "What is remembered from frame to frame.")
    compiler: str = option(
        "auto", "numba, numpy, or auto: numba where it is installed.", choices=COMPILERS
    )

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Field:
    """The answer for a frame with n measured points.

    depth: (H, W) float32 m. std: (H, W) float32 m, depth ± 1.96 std is the 95 % interval, NaN
    unknown. outlier: (n,) probability that a point is wrong. details: what an operator may ask for.
    """

    depth: Map
    std: Map
    outlier: Floats
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def warm_up(config: FieldConfig | None = None) -> None:
    """Load or compile the loops and touch all that a frame needs: the first is no slower then."""
    config = config or FieldConfig()
    rng = np.random.default_rng(0)
    height, width, count = 480, 640, 300
    values = rng.uniform(1, 2, (height, width)).astype(np.float32)
    rows, cols = np.divmod(rng.permutation(height * width)[:count], width)
    depth = values[rows, cols].astype(np.float64)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    prediction = Prediction(values, "depth_affine_invariant")
    state = FieldState()
    for stamp_ns in (100_000_000, 200_000_000):
        state.at(stamp_ns)
        solve(prediction, rows, cols, depth, np.zeros(count), None, image, config, state)


def solve(
    prediction: Prediction,
    rows: NDArray[np.integer],
    cols: NDArray[np.integer],
    depth: NDArray[np.floating],
    age_s: NDArray[np.floating],
    labels: NDArray[np.integer] | None,
    image: NDArray[np.uint8] | None,
    config: FieldConfig,
    state: FieldState | None = None,
) -> Field:
    """The field of a frame from n >= 1 points at pixels (rows, cols) with finite depth above 0 m.

    labels: (H, W) regions or None. image: (H, W, 3) uint8 RGB or None. The network must have
    given a number at every point. state: what earlier frames left, told of this one by `at`.
    """
    samples, merged = _merged(rows, cols, depth, age_s, prediction.shape)
    base = _fit_base(prediction, samples)
    if not config.residual:
        return _base_alone(base, samples, merged)
    loops = kernels(config.compiler)
    scene = _Scene.of(base, samples, labels, image, config)
    suspect = _suspicion(scene, loops, config)
    trial = _Trial.of(scene, suspect, loops, config)
    mean, variance, sill = _at_nodes(scene, trial, suspect, loops, config)
    surface = _Surface.of(scene, mean)
    choice = _choose_detail(scene, trial, surface, suspect, config)
    correction = _detail(scene, surface, choice, suspect, loops)
    height, width = base.map.shape
    update = surface.update + correction + np.float32(scene.middle)
    if state is not None:
        answer = _answer(prediction, base, scene, scene.grid_log + update, trial, choice, suspect)
        update = state.blend(answer, config.temporal) - scene.grid_log
    out = _resized(np.exp(update), (width, height))
    out *= base.map
    bound = _bound(scene, trial, choice, scene.grid_log + update, variance, sill)
    std = _resized(bound.relative / np.float32(NORMAL_95), (width, height))
    std *= out
    _forget_far(std, trial, config)
    if base.unknown is not None:
        out[base.unknown] = np.nan
        std[base.unknown] = np.nan
    details = base.details() | {
        "points": len(samples.z),
        "nodes": len(variance),
        "leave_one_out": float(np.average(choice.error, weights=trial.weight)),
        "outlier_share": float(suspect.mean()),
        "coverage": bound.coverage,
        "nugget": trial.nugget,
        "detail": choice.share,
        "clip": choice.clip,
        "interval_factor": bound.factor,
        "compiler": loops.name,
    }
    if state is not None:
        details |= {"remembered": state.share, "resets": state.resets}
    return Field(out, std, suspect[merged], details)


def _answer(
    prediction: Prediction,
    base: _Base,
    scene: _Scene,
    log_depth: Map,
    trial: _Trial,
    choice: _Choice,
    suspect: Floats,
) -> Answer:
    values = prediction.values
    if base.unknown is not None:
        values = np.where(base.unknown, np.float32(0), values)
    return Answer(
        log_depth=log_depth,
        values=np.asarray(cv2.resize(values, scene.grid.size, interpolation=cv2.INTER_AREA)),
        log_base=base.log_metres,
        colour=scene.grid_colour,
        row=scene.grid_row,
        col=scene.grid_col,
        log_z=scene.y + scene.log_base + scene.middle,
        trust=1 - suspect,
        error=_weighted_quantile(choice.error, trial.weight, 0.5),
        large_error=_weighted_quantile(choice.error, trial.weight, QUANTILE),
        height=base.map.shape[0],
        width=base.map.shape[1],
    )


# --- points --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Samples:
    """n points at different pixels, ordered by cell and pixel: their given order changes nothing.

    cell: (n,) of `cells`; start: (cells + 1,), cell c holds points start[c] to start[c + 1].
    """

    rows: Integers
    cols: Integers
    z: Floats
    age_s: Floats
    cells: _Lattice
    cell: Integers
    start: Integers


def _merged(
    rows: NDArray[np.integer],
    cols: NDArray[np.integer],
    depth: NDArray[np.floating],
    age_s: NDArray[np.floating],
    picture: tuple[int, int],
) -> tuple[_Samples, Integers]:
    """Points with those at one pixel made one (the newest; the mean log of equally new ones).

    Also which of the merged points each given one became, (n,).
    """
    height, width = picture
    taken: NDArray[np.bool_] = np.zeros(height * width, bool)
    taken[rows.astype(np.int64) * width + cols] = True
    spacing = math.sqrt(height * width / np.count_nonzero(taken))
    cells = _Lattice.of(picture, math.sqrt(POINTS_PER_CELL) * spacing)
    cell = cells.cell(rows, cols)
    key = (cell * height + rows) * width + cols
    # Where every pixel has one point, any order of equal keys will do, which is faster.
    order = np.argsort(key, kind=None if len(key) == np.count_nonzero(taken) else "stable")
    key, age = key[order], np.asarray(age_s, np.float64)[order]
    log_z = np.log(depth[order].astype(np.float64))
    first = np.concatenate([[True], key[1:] != key[:-1]])
    merged: Integers = np.empty(len(rows), np.int64)
    merged[order] = np.cumsum(first) - 1
    if not first.all():
        group = merged[order]
        newest = np.minimum.reduceat(age, np.flatnonzero(first))
        kept = age <= newest[group]
        log_z = np.bincount(group[kept], log_z[kept]) / np.bincount(group[kept])
        age, key = newest, key[first]
    row, col = np.divmod(key, width)
    cell, row = np.divmod(row, height)
    start = np.searchsorted(cell, np.arange(cells.shape[0] * cells.shape[1] + 1))
    return _Samples(row, col, np.exp(log_z), age, cells, cell, start.astype(np.int64)), merged


# --- base ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Base:
    """The network's map in metres by one line: z, 1/z or log z = scale v + shift.

    nearest, farthest: m, the map keeps within. map: (H, W) float32, finite everywhere. unknown:
    (H, W) bool where the network gave nothing, or None.
    """

    kind: str
    scale: float
    shift: float
    nearest: float
    farthest: float
    map: Map
    unknown: NDArray[np.bool_] | None

    def details(self) -> dict[str, Any]:
        return {"base": self.kind, "scale": self.scale, "shift": self.shift}

    def log_metres(self, values: Map) -> Map:
        """Logarithm of the map that this base makes of a network's values."""
        return np.log(
            _metres(self.kind, self.scale, self.shift, self.nearest, self.farthest, values)
        )


def _fit_base(prediction: Prediction, samples: _Samples) -> _Base:
    """The robust line in the space that the network declares, and its map kept within reason."""
    some = slice(None, None, 1 + len(samples.z) // BASE_POINTS)  # more tell no more of two numbers
    v = prediction.values[samples.rows[some], samples.cols[some]].astype(np.float64)
    z = samples.z[some]
    low, high = np.percentile(z, [2, 98])
    kind = prediction.kind.split("_", 1)[0]
    # Weights turn residuals of depth and disparity into relative ones.
    if kind == "disparity":
        target, weight = 1 / z, z * z
    elif kind == "log":
        target, weight = np.log(z), np.ones(len(z))
    else:
        target, weight = z, 1 / (z * z)
    scale, shift = _robust_line(v, target, weight)
    if scale <= 0:  # the network has near and far the wrong way round: it says nothing
        scale, shift = 0.0, float(np.median(target))
    nearest, farthest = float(low) / RANGE_SHARE, float(high) * RANGE_SHARE
    unknown = None
    values = prediction.values
    with np.errstate(over="ignore", invalid="ignore"):
        total = values.sum()
    if not np.isfinite(total):  # or the sum is too large: then nothing is unknown
        unknown = ~np.isfinite(values)
        values = np.where(unknown, np.float32(np.median(v)), values)
    metres = _metres(kind, scale, shift, nearest, farthest, values)
    return _Base(kind, scale, shift, nearest, farthest, metres, unknown)


def _metres(
    kind: str, scale: float, shift: float, nearest: float, farthest: float, values: Map
) -> Map:
    out: Map = values * np.float32(scale)
    out += np.float32(shift)
    bottom, top = nearest, farthest
    if kind == "disparity":
        bottom, top = 1 / farthest, 1 / nearest
    elif kind == "log":
        bottom, top = math.log(nearest), math.log(farthest)
    np.clip(out, np.float32(bottom), np.float32(top), out=out)
    if kind == "disparity":
        np.reciprocal(out, out=out)
    elif kind == "log":
        np.exp(out, out=out)
    return out


def _robust_line(x: Floats, y: Floats, weight: Floats) -> tuple[float, float]:
    """Slope and intercept of a robust line, by reweighting: Huber's loss, then Tukey's biweight."""
    slope, shift = 0.0, float(np.median(y))
    now = weight
    for step in range(ROBUST_STEPS):
        total = now.sum()
        middle_x, middle_y = (now * x).sum() / total, (now * y).sum() / total
        width = (now * (x - middle_x) ** 2).sum() / total
        flat = width <= 1e-14 * max(middle_x * middle_x, 1e-12)
        slope = 0.0 if flat else (now * (x - middle_x) * (y - middle_y)).sum() / total / width
        shift = middle_y - slope * middle_x
        residual = np.abs(y - slope * x - shift) * np.sqrt(weight)
        spread = MAD_TO_STD * float(np.median(residual)) + 1e-9
        if step < ROBUST_STEPS // 2:
            now = weight * np.minimum(1, HUBER * spread / np.maximum(residual, 1e-12))
        else:
            now = weight * np.maximum(1 - (residual / (TUKEY * spread)) ** 2, 0) ** 2
    return float(slope), float(shift)


def _base_alone(base: _Base, samples: _Samples, merged: Integers) -> Field:
    """Only the base, with the spread of its residuals as interval."""
    residual = np.log(samples.z) - np.log(base.map[samples.rows, samples.cols].astype(np.float64))
    middle = float(np.median(residual))
    out = base.map * np.float32(math.exp(middle))
    relative = float(np.quantile(np.abs(np.expm1(residual - middle)), 0.95)) / NORMAL_95
    std = out * np.float32(relative)
    if base.unknown is not None:
        out[base.unknown] = np.nan
        std[base.unknown] = np.nan
    return Field(out, std, np.zeros(len(merged)), base.details() | {"points": len(samples.z)})


# --- lattices and features -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Lattice:
    """Cells that divide a picture evenly, so that a mirrored picture has the mirrored lattice."""

    shape: tuple[int, int]
    picture: tuple[int, int]

    @classmethod
    def of(cls, picture: tuple[int, int], cell_px: float) -> _Lattice:
        return cls(
            (max(2, round(picture[0] / cell_px)), max(2, round(picture[1] / cell_px))), picture
        )

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as OpenCV wants it."""
        return self.shape[1], self.shape[0]

    def place(self, rows: NDArray[Any], cols: NDArray[Any]) -> tuple[Floats, Floats]:
        """Pixels -> places, whole numbers in the middle of cells."""
        (height, width), (lattice_height, lattice_width) = self.picture, self.shape
        return (
            (rows + 0.5) * (lattice_height / height) - 0.5,
            (cols + 0.5) * (lattice_width / width) - 0.5,
        )

    def cell(self, rows: NDArray[Any], cols: NDArray[Any]) -> Integers:
        """Number of the cell, row by row, in which a pixel lies."""
        row, col = self.place(rows, cols)
        whole = (row + 0.5).astype(np.int64) * self.shape[1] + (col + 0.5).astype(np.int64)
        return np.asarray(whole, np.int64)

    def centres(self) -> tuple[Floats, Floats]:
        """Rows and columns in pixels of the middles of all cells, each (cells,)."""
        (height, width), (lattice_height, lattice_width) = self.picture, self.shape
        rows = (np.arange(lattice_height) + 0.5) * (height / lattice_height) - 0.5
        cols = (np.arange(lattice_width) + 0.5) * (width / lattice_width) - 0.5
        return np.repeat(rows, lattice_width), np.tile(cols, lattice_height)


def _resized(image: Map, size: tuple[int, int]) -> Map:
    """A map at another (width, height), linear between the middles of its cells."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _whole(place: Floats) -> Integers:
    """The cell in which a place lies."""
    return (place + 0.5).astype(np.int64)


def _sample(image: Map, rows: Floats, cols: Floats) -> Floats:
    """Bilinear values of an (h, w) map at places; the border is continued."""
    height, width = image.shape
    r, c = np.clip(rows, 0, height - 1), np.clip(cols, 0, width - 1)
    i = np.minimum(r.astype(np.int64), height - 2)
    j = np.minimum(c.astype(np.int64), width - 2)
    a, b = r - i, c - j
    top = (1 - b) * image[i, j] + b * image[i, j + 1]
    bottom = (1 - b) * image[i + 1, j] + b * image[i + 1, j + 1]
    result: Floats = (1 - a) * top + a * bottom
    return result


@dataclass(frozen=True)
class _Scene:
    """Everything known before the residual is spread; points are ordered by cells.

    y: (n,) log residual less `middle`. log_base: (n,). feature: (n, F), node_feature: (M, F).
    noise: (n,) factor of the nugget from age. grid_log: log base on the grid. grid_colour:
    (3, h, w) and colour: (n, 3), in correlation lengths. grid_row, grid_col, node_row, node_col:
    (n,) places on the lattices. place_px: pixels per unit of features 0 and 1.
    """

    y: Floats
    log_base: Floats
    middle: float
    feature: Floats
    label: NDArray[np.int32]
    noise: Floats
    grid: _Lattice
    nodes: _Lattice
    cells: _Lattice
    start: Integers
    point_cell: Integers
    node_cell: Integers
    node_feature: Floats
    node_label: NDArray[np.int32]
    grid_log: Map
    grid_colour: Map
    grid_row: Floats
    grid_col: Floats
    colour: Floats
    node_row: Floats
    node_col: Floats
    place_px: float

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def of(
        cls,
        base: _Base,
        samples: _Samples,
        labels: NDArray[np.integer] | None,
        image: NDArray[np.uint8] | None,
        config: FieldConfig,
    ) -> _Scene:
        picture = (int(base.map.shape[0]), int(base.map.shape[1]))
        larger = max(picture)
        unit = larger / REFERENCE_PX
        grid = _Lattice.of(picture, GRID_PX * unit)
        nodes = _Lattice.of(picture, config.node_px * unit)
        rows, cols = samples.rows, samples.cols
        # An average over the cell would mix near and far at an edge less well in log.
        grid_base = cv2.resize(base.map, grid.size, interpolation=cv2.INTER_AREA)
        grid_log: Map = np.log(grid_base)
        grid_row, grid_col = grid.place(rows, cols)
        if image is not None and config.colour:
            lab = _guide(image, grid)
            colour = lab[_whole(grid_row), _whole(grid_col)].astype(np.float64)
            node_colour = _resized(lab, nodes.size)
            grid_colour = np.ascontiguousarray(np.moveaxis(lab, 2, 0))
        else:
            colour = np.zeros((len(rows), 3))
            node_colour = np.zeros((*nodes.shape, 3), np.float32)
            grid_colour = np.zeros((3, *grid.shape), np.float32)
        place_px = PLACE_SHARE * larger
        log_base = np.log(base.map[rows, cols].astype(np.float64))
        y = np.log(samples.z) - log_base
        middle = float(np.median(y))
        node_rows, node_cols = nodes.centres()
        node_log = _resized(grid_log, nodes.size)
        feature = np.column_stack([rows / place_px, cols / place_px, log_base / LOG_BASE, colour])
        node_feature = np.column_stack(
            [
                node_rows / place_px,
                node_cols / place_px,
                node_log.reshape(-1) / LOG_BASE,
                node_colour.reshape(-1, 3),
            ]
        )
        label: NDArray[np.int32] = np.zeros(len(rows), np.int32)
        node_label: NDArray[np.int32] = np.zeros(len(node_rows), np.int32)
        if labels is not None and config.regions:
            label = labels[rows, cols].astype(np.int32)
            node_label = labels[node_rows.astype(int), node_cols.astype(int)].astype(np.int32)
        node_row, node_col = nodes.place(rows, cols)
        return cls(
            y=y - middle,
            log_base=log_base,
            middle=middle,
            feature=np.ascontiguousarray(feature, np.float64),
            label=label,
            noise=1 + (samples.age_s / config.age_s) ** 2 * 3,
            grid=grid,
            nodes=nodes,
            cells=samples.cells,
            start=samples.start,
            point_cell=samples.cell,
            node_cell=samples.cells.cell(node_rows, node_cols),
            node_feature=np.ascontiguousarray(node_feature, np.float64),
            node_label=node_label,
            grid_log=grid_log,
            grid_colour=grid_colour,
            grid_row=grid_row,
            grid_col=grid_col,
            colour=colour,
            node_row=node_row,
            node_col=node_col,
            place_px=place_px,
        )

    def find(
        self,
        queries: _Queries,
        count: int,
        loops: Kernels,
        candidates: float = CANDIDATES_PER_NEIGHBOUR,
    ) -> tuple[Integers, Floats]:
        """Indices and squared feature distances (m, count) of the points about the queries."""
        number = len(queries.feature)
        index: Integers = np.empty((number, count), np.int64)
        square: Floats = np.empty((number, count))
        loops.nearest(
            queries.feature,
            queries.label,
            queries.cell,
            queries.hole,
            queries.shape,
            self.feature,
            self.label,
            self.start,
            *self.cells.shape,
            math.ceil(candidates * count),
            LABEL_GAP,
            index,
            square,
        )
        return index, square

    def krige(
        self,
        feature: Floats,
        near: tuple[Integers, Floats],
        doubt: Floats,
        levels: Sequence[float],
        loops: Kernels,
    ) -> tuple[Floats, Floats, Floats]:
        """Mean, variance, sill (levels, m) of the residual at features from their neighbours."""
        mean, variance, sill = (np.empty((len(levels), len(feature))) for _ in range(3))
        loops.krige(
            feature,
            *near,
            self.feature,
            self.label,
            self.y,
            self.noise,
            doubt,
            np.array(levels),
            LONG_SHARE,
            _LONG_SCALE,
            LABEL_GAP,
            mean,
            variance,
            sill,
        )
        return mean, variance, sill


_LONG_SCALE = (PLACE_SHARE / LONG_PLACE_SHARE) ** 2 / 2


@dataclass(frozen=True)
class _Queries:
    """Where neighbours are sought.

    hole: (m,) squared radius, in features 0 and 1, about a query inside which no point counts;
    shape: (3,) of the ellipse that it is (field_kernels._nearest), a circle unless said otherwise.
    """

    feature: Floats
    label: NDArray[np.int32]
    cell: Integers
    hole: Floats
    shape: Floats = dataclasses.field(default_factory=lambda: np.array([1.0, 0.0, 1.0]))


def _guide(image: NDArray[np.uint8], grid: _Lattice) -> Map:
    """(h, w, 3) slightly blurred Lab colour on the grid, in correlation lengths."""
    half = (max(2, grid.size[0] // 2), max(2, grid.size[1] // 2))
    small: NDArray[Any] = image
    if image.shape[:2] == (4 * half[1], 4 * half[0]):  # twice by half is OpenCV's fast way
        small = cv2.resize(image, (2 * half[0], 2 * half[1]), interpolation=cv2.INTER_AREA)
    small = cv2.resize(small, half, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 0.6)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    scale = np.array([0.01 / LIGHTNESS, 1 / 255 / CHROMA, 1 / 255 / CHROMA], np.float32)
    return _resized(lab * scale, grid.size)


# --- outliers ------------------------------------------------------------------------------------


def _suspicion(scene: _Scene, loops: Kernels, config: FieldConfig) -> Floats:
    """(n,) probability that a point is an outlier.

    A point is explained by kriging from its neighbours or by any single one of them (a point beyond
    an edge of the scene agrees with those on its side). Honest deviations have the heavy tails of
    Student's distribution; the share of outliers is estimated along with it.
    """
    count = len(scene)
    suspect: Floats = np.zeros(count)
    if not config.outliers or count < 4:
        return suspect
    own = _Queries(scene.feature, scene.label, scene.point_cell, np.full(count, 1e-12))
    krige = count < MANY_POINTS
    if krige:
        near = scene.find(own, min(config.neighbours, SOME_NEIGHBOURS, count - 1), loops)
    else:
        near = scene.find(own, FEW_NEIGHBOURS, loops, candidates=1)
    some = slice(None, None, 1 + count // MANY_POINTS)  # tell the scale well enough
    nugget = NUGGETS[1]
    prior = OUTLIER_PRIOR
    likelihood: Floats = np.empty(count)
    for _ in range(2):
        if krige:
            found = scene.krige(scene.feature, near, _doubt(suspect), (nugget,), loops)
            spread = np.sqrt(found[1][0] + nugget)
            deviation = np.abs(scene.y - found[0][0]) / spread
        else:
            closest = near[0][:, 0]
            place = ((scene.feature[:, :2] - scene.feature[closest, :2]) ** 2).sum(axis=1)
            alike = (1 - LONG_SHARE) / (1 + near[1][:, 0]) + LONG_SHARE / (1 + _LONG_SCALE * place)
            deviation = np.abs(scene.y - scene.y[closest]) / np.sqrt(2 * (1 - alike + nugget))
        middle = _weighted_quantile(deviation[some], 1 - suspect[some], 0.5)
        scale = middle / STUDENT_MEDIAN + 1e-6
        loops.agree(
            *near,
            scene.feature,
            scene.y,
            suspect,
            scale,
            nugget,
            LONG_SHARE,
            _LONG_SCALE,
            likelihood,
        )
        if krige:
            likelihood *= AGREEMENT_SHARE
            peak = (1 - AGREEMENT_SHARE) * STUDENT_PEAK / (scale * spread)
            likelihood += peak / (1 + (deviation / scale) ** 2 / 3) ** 2
        for _ in range(3):
            wrong = prior * OUTLIER_DENSITY
            suspect = wrong / (wrong + (1 - prior) * likelihood)
            prior = (OUTLIER_PRIOR_POINTS * OUTLIER_PRIOR + suspect.sum()) / (
                OUTLIER_PRIOR_POINTS + count
            )
    return suspect


def _doubt(suspect: Floats) -> Floats:
    """Extra nugget of suspects, (n,)."""
    result: Floats = SUSPECT_NUGGET * suspect / np.maximum(1 - suspect, 1e-3)
    return result


def _weighted_quantile(values: Floats, weight: Floats, share: float) -> float:
    order = np.argsort(values)
    heap = np.cumsum(weight[order])
    return float(values[order][min(np.searchsorted(heap, share * heap[-1]), len(values) - 1)])


# --- leaving out ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """Up to VALIDATION_POINTS points, each predicted without itself and what lies too near.

    which: (m,) points. near: their neighbours. mean, variance, sill: (m,) of kriging with the
    chosen nugget. weight: (m,) trust in the point itself. distance: (m,) from which each is
    predicted, in features 0 and 1. far_px: (h, w) of the grid's cells from the nearest point.
    points: of the frame. spacing: of evenly spread points, in features 0 and 1.
    """

    which: Integers
    near: tuple[Integers, Floats]
    mean: Floats
    variance: Floats
    sill: Floats
    weight: Floats
    nugget: float
    far_px: Map
    distance: Floats
    points: int
    spacing: float

    @classmethod
    def of(cls, scene: _Scene, suspect: Floats, loops: Kernels, config: FieldConfig) -> _Trial:
        count = len(scene)
        number = min(count, VALIDATION_POINTS)
        which = np.linspace(0, count - 1, number).astype(np.int64)
        far_px = _distance(scene)
        size = max(1, min(config.neighbours, count - 1))
        queries = _Queries(
            np.ascontiguousarray(scene.feature[which]),
            scene.label[which],
            scene.point_cell[which],
            np.full(number, 1e-12),
        )
        near = scene.find(queries, size, loops)
        hole, shape, distance = _matched_hole(scene, which, near[0], far_px)
        holed = np.flatnonzero(hole > 0)
        if len(holed):
            again = _Queries(
                np.ascontiguousarray(queries.feature[holed]),
                queries.label[holed],
                queries.cell[holed],
                np.maximum(hole[holed] ** 2, 1e-12),
                shape,
            )
            near[0][holed], near[1][holed] = scene.find(again, size, loops)
        weight = 1 - suspect[which]
        answer = scene.krige(queries.feature, near, _doubt(suspect), NUGGETS, loops)
        error = np.sort(np.abs(scene.y[which] - answer[0]), axis=1)
        order = np.argsort(np.abs(scene.y[which] - answer[0]), axis=1)
        heap = np.cumsum(weight[order], axis=1)
        kept = heap <= TRIM * heap[:, -1:]
        kept[:, 0] = True
        loss = (error * kept).sum(axis=1) / kept.sum(axis=1)
        best = int(np.argmin(loss))
        mean, variance, sill = (each[best] for each in answer)
        distance[~np.isfinite(distance)] = far_px.max() / scene.place_px
        height, width = scene.grid.picture
        spacing = math.sqrt(height * width / count) / scene.place_px
        return cls(
            which,
            near,
            mean,
            variance,
            sill,
            weight,
            NUGGETS[best],
            far_px,
            distance,
            count,
            spacing,
        )


def _distance(scene: _Scene) -> Map:
    """(h, w) distance in pixels of the grid's cells from the nearest point."""
    empty: NDArray[np.uint8] = np.ones(scene.grid.shape, np.uint8)
    empty[_whole(scene.grid_row), _whole(scene.grid_col)] = 0
    cell_px = scene.grid.picture[1] / scene.grid.shape[1]
    cells = np.asarray(cv2.distanceTransform(empty, cv2.DIST_L2, 3), np.float32)
    return cells * np.float32(cell_px)


def _matched_hole(
    scene: _Scene, which: Integers, index: Integers, far_px: Map
) -> tuple[Floats, Floats, Floats]:
    """Radius (features 0, 1) about each point inside which no other may predict it, its shape, and
    the distance from which the point is predicted then.

    A pixel of the picture lies farther from its nearest point than the points of a scan line lie
    from each other. The k-th closest of the points is predicted from the distance of the k-th
    closest share of the pixels without a point. Along a scan line the hole is longer, as pixels
    between two lines have their nearest points across.
    """
    step = scene.feature[which, None, :2] - scene.feature[np.maximum(index, 0), :2]
    own = np.sqrt((step**2).sum(axis=2))
    own[index < 0] = np.inf
    closest = own.argmin(axis=1)
    own = own.min(axis=1)
    rank = np.argsort(np.argsort(own, kind="stable"), kind="stable")
    far = far_px[::4, ::4]
    far = np.sort(far[far > 0] if (far > 0).any() else far, axis=None).astype(np.float64)
    wanted = far[((rank + 0.5) / len(which) * len(far)).astype(np.int64)] / scene.place_px
    hole = np.where(wanted > MATCH_SLACK * own + 0.5 / scene.place_px, wanted, 0.0)
    distance = np.where(hole > 0, hole, own)
    circle = np.array([1.0, 0.0, 1.0])
    towards = step[np.arange(len(which)), closest][np.isfinite(own) & (own > 0)]
    if not (hole > 0).any() or len(towards) == 0:
        return hole, circle, distance
    towards /= np.sqrt((towards**2).sum(axis=1, keepdims=True))
    share, axes = np.linalg.eigh(towards.T @ towards / len(towards))
    longer = math.sqrt(share[1] / max(share[0], 1e-9))
    longer = min(longer, MAX_ELONGATION)
    form = axes @ np.diag([1.0, 1.0 / longer**2]) @ axes.T
    return hole, np.array([form[0, 0], form[0, 1], form[1, 1]]), distance


# --- kriging on the nodes, detail about the points -----------------------------------------------


def _at_nodes(
    scene: _Scene, trial: _Trial, suspect: Floats, loops: Kernels, config: FieldConfig
) -> tuple[Floats, Floats, Floats]:
    count = len(scene.node_feature)
    queries = _Queries(scene.node_feature, scene.node_label, scene.node_cell, np.zeros(count))
    near = scene.find(queries, min(config.neighbours, len(scene)), loops)
    found = scene.krige(scene.node_feature, near, _doubt(suspect), (trial.nugget,), loops)
    return found[0][0], found[1][0], found[2][0]


@dataclass(frozen=True)
class _Surface:
    """Log depth after kriging, without the middle: on the grid and at the points.

    update: (h, w) U on the grid. log: (h, w) log B + U. at_point: (n,). rest: (n,) measured minus
    at_point. update_at_point: (n,) U.
    """

    update: Map
    log: Map
    at_point: Floats
    rest: Floats
    update_at_point: Floats

    @classmethod
    def of(cls, scene: _Scene, mean: Floats) -> _Surface:
        lattice = mean.reshape(scene.nodes.shape).astype(np.float32)
        update = _resized(lattice, scene.grid.size)
        at_point = _sample(lattice, scene.node_row, scene.node_col)
        return cls(
            update,
            scene.grid_log + update,
            scene.log_base + at_point,
            scene.y - at_point,
            at_point,
        )


@dataclass(frozen=True)
class _Choice:
    """How strongly the detail counts. error: (m,) left-out relative error of the points tried."""

    share: float
    clip: float
    radius: float
    prior: float
    error: Floats


def _choose_detail(
    scene: _Scene, trial: _Trial, surface: _Surface, suspect: Floats, config: FieldConfig
) -> _Choice:
    """The prior weight and the clip that predict left-out points best."""
    cell_px = scene.grid.picture[1] / scene.grid.shape[1]
    spacing = math.sqrt(scene.grid.picture[0] * scene.grid.picture[1] / len(scene)) / cell_px
    unit = max(scene.grid.picture) / REFERENCE_PX
    radius = min(max(DETAIL_SPACINGS * spacing, 1.5), MAX_DETAIL_PX * unit / cell_px)
    between_lines = LINE_GAPS * float(np.median(trial.far_px[::4, ::4])) / cell_px
    if between_lines > 2 * radius:
        radius = max(radius, min(between_lines, LINE_CELLS))
    prior = 1 / (SOFTENING + spacing * spacing)
    which, (index, _) = trial.which, trial.near
    missing, index = index < 0, np.maximum(index, 0)
    # At a left-out point the surface is what kriging says or, where the lattice of nodes is too
    # coarse to follow the points, as wrong as it is at the point itself.
    worse = np.abs(surface.rest[which]) > np.abs(scene.y[which] - trial.mean)
    start = scene.log_base[which] + np.where(worse, surface.update_at_point[which], trial.mean)
    r2 = (scene.grid_row[which, None] - scene.grid_row[index]) ** 2
    r2 += (scene.grid_col[which, None] - scene.grid_col[index]) ** 2
    step = start[:, None] - surface.at_point[index]
    tint = ((scene.colour[which, None] - scene.colour[index]) ** 2).sum(axis=2)
    unlike = 1 + SURFACE_GAIN * step * step + COLOUR_GAIN * tint
    share = (1 - suspect[index]) ** 2 * np.maximum(1 - r2 / radius**2, 0)
    share /= (SOFTENING + r2) * unlike * unlike
    share[missing] = 0
    total = share.sum(axis=1)
    truth = scene.log_base[which] + scene.y[which]
    best: tuple[float, float, float, Floats] | None = None
    penalty = CHOICE_PENALTY / math.sqrt(len(scene))
    shares = PRIOR_SHARES if config.detail else (math.inf,)
    for b, clip in enumerate(CLIPS):
        given = (share * (surface.rest[index] + np.clip(step, -clip, clip) - step)).sum(axis=1)
        for a, weight in enumerate(shares):
            found = start
            if math.isfinite(weight):
                found = start + given / (total + weight * prior)
            error = np.minimum(np.abs(truth - found), ERROR_CAP)
            away = abs(a - USUAL_CHOICE[0]) + abs(b - USUAL_CHOICE[1])
            loss = float(error @ trial.weight) * (1 + penalty * away)
            if best is None or loss < best[0]:
                best = (loss, weight, clip, np.abs(np.expm1(truth - found)))
    assert best is not None
    return _Choice(best[1], best[2], radius, prior, best[3])


def _detail(
    scene: _Scene, surface: _Surface, choice: _Choice, suspect: Floats, loops: Kernels
) -> Map:
    """(h, w) correction of log depth on the grid."""
    total: Map = np.zeros(scene.grid.shape, np.float32)
    given: Map = np.zeros(scene.grid.shape, np.float32)
    if not math.isfinite(choice.share):
        return given
    loops.spread(
        scene.grid_row.astype(np.float32),
        scene.grid_col.astype(np.float32),
        surface.rest.astype(np.float32),
        surface.at_point.astype(np.float32),
        scene.colour.astype(np.float32),
        ((1 - suspect) ** 2).astype(np.float32),
        surface.log,
        scene.grid_colour,
        choice.radius,
        SOFTENING,
        SURFACE_GAIN,
        COLOUR_GAIN,
        choice.clip,
        total,
        given,
    )
    total += np.float32(choice.share * choice.prior)
    given /= total
    return given


# --- interval ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bound:
    """relative: (h, w) 95 % bound of the relative error on the grid. factor: by which the spread
    is widened to it. coverage: share of the left-out points inside theirs.
    """

    relative: Map
    factor: float
    coverage: float


def _bound(
    scene: _Scene, trial: _Trial, choice: _Choice, log_depth: Map, variance: Floats, sill: Floats
) -> _Bound:
    """The spread of every cell, widened so that the left-out points lie within theirs.

    variance, sill: (M,) of kriging at the nodes. log_depth: (h, w) of the answer: at its steps an
    edge that is out of place by a pixel is wrong by the height of the step.
    """

    def on_grid(at_nodes: Floats) -> Map:
        return _resized(at_nodes.astype(np.float32).reshape(scene.nodes.shape), scene.grid.size)

    step = cv2.morphologyEx(log_depth, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    edge = 1 + np.float32(EDGE_GROWTH) * np.minimum(step, np.float32(EDGE_CAP))
    far = _resized(trial.far_px, scene.nodes.size).reshape(-1) / scene.place_px
    which = trial.which
    own = _spread(trial.variance, trial.sill, trial.distance, trial)
    own *= _sample(edge, scene.grid_row[which], scene.grid_col[which])
    share = min(COVERAGE + 0.8 / len(own), 1.0)
    # The largest of few errors is no bound of the next.
    factor = 1 + FEW_GROWTH / trial.points + FEW_GROWTH_SQUARED / trial.points**2
    factor *= _weighted_quantile(choice.error / own, trial.weight, share)
    bound = on_grid(factor * _spread(variance, sill, far.astype(np.float64), trial)) * edge
    # A point has measurement noise, a pixel has not. The smallest nugget is structure that the
    # points are too sparse for; the rest is mostly noise.
    noise = (trial.nugget - NUGGETS[0]) * _local_sill(sill, trial)
    bound *= bound
    least = min(LEAST_BOUND_SHARE + LEAST_BOUND_POINTS / trial.points, 1.0)
    without = bound - on_grid(NOISE_SHARE * NORMAL_95**2 * noise)
    relative: Map = np.sqrt(np.maximum(without, np.float32(least) * bound))
    coverage = float(np.average(choice.error <= factor * own, weights=trial.weight))
    return _Bound(relative, factor, coverage)


def _local_sill(sill: Floats, trial: _Trial) -> Floats:
    """(m,) prior variance that the neighbourhoods speak for, drawn towards the picture's."""
    count = trial.near[0].shape[1]
    middle = float(np.average(trial.sill, weights=trial.weight))
    result: Floats = (count * sill + SILL_PRIOR * middle) / (count + SILL_PRIOR)
    return result


def _spread(variance: Floats, sill: Floats, distance: Floats, trial: _Trial) -> Floats:
    """(m,) relative standard deviation up to a factor.

    Kriging's variance and nugget times the local prior variance. It grows with the distance (m,)
    from the nearest point, in features 0 and 1, beyond the points' usual distance: what the points
    say of each other says little of what lies beyond them.
    """
    result = (variance + trial.nugget) ** (0.5 * VARIANCE_POWER)
    result *= _local_sill(sill, trial) ** (0.5 * SILL_POWER)
    beyond = np.maximum(distance - trial.spacing, 0)
    spread: Floats = np.maximum(result, LEAST_SPREAD**SILL_POWER) * (1 + FAR_GROWTH * beyond)
    return spread


def _forget_far(std: Map, trial: _Trial, config: FieldConfig) -> None:
    """NaN where no point is near enough to judge by; in place."""
    height, width = std.shape
    limit = config.max_extrapolation * max(height, width)
    if trial.far_px.max() > limit:
        std[_resized(trial.far_px, (width, height)) > limit] = np.nan
