# SPDX-License-Identifier: Apache-2.0
"""The mean over images, sources and runs, and its bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from depth_node.metrics import NORMAL_95, mean_over_sources
from training.data.samples import F64
from training.evaluation.score import Row

DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; low and high are NaN where there is too little to draw from."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} {bounds(self.low, self.high, 4)}"


def bounds(low: float, high: float, digits: int) -> str:
    """The bounds of an interval as tables show them."""
    if math.isnan(low) or math.isnan(high):
        return "[too few]"
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def gather(rows: Iterable[Row], methods: Sequence[str], metric: str) -> dict[str, F64]:
    """Source -> (frames, methods) of a metric, over the frames that all of the methods have."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.method in methods:
            table.setdefault((row.source, row.frame), {})[row.method] = getattr(row, metric)
    by_source: dict[str, list[list[float]]] = {}
    for (source, _), values in sorted(table.items()):
        if all(math.isfinite(values.get(name, math.nan)) for name in methods):
            by_source.setdefault(source, []).append([values[name] for name in methods])
    return {source: np.array(values) for source, values in by_source.items()}


def mean_over(values: Mapping[str, F64], pooled: bool = False) -> F64:
    """The methods' means (methods,) over the sources' means, or over all frames if `pooled`.

    values: source -> (frames, methods), as gather() gives them. NaN without values.
    """
    tables = [table for table in values.values() if len(table)]
    if not tables:
        return np.full(1, math.nan)
    if pooled:
        return np.asarray(np.concatenate(tables).mean(axis=0), np.float64)
    columns = range(tables[0].shape[1])
    by_method = [{name: t[:, k] for name, t in values.items() if len(t)} for k in columns]
    return np.array([mean_over_sources(of_sources) for of_sources in by_method])


def bootstrap(
    values: Mapping[str, F64],
    statistic: Callable[[F64], F64] = lambda means: means[:, 0],
    by: str = "frame",
    pooled: bool = False,
) -> Interval:
    """A statistic of the methods' means with its 95 % percentile-bootstrap interval.

    values: as gather() gives them. statistic: means (n, methods) -> (n,). The means are those of
    mean_over(). by: "frame" draws frames inside every source; "source" also draws the sources, for
    frames of one source that look alike. All methods are drawn together, so that a difference or a
    ratio is a paired one. Pooled frames are drawn from all together where a source has one alone.
    The bounds are NaN where every draw would be the same. Raises ValueError for another `by`.
    """
    if by not in ("frame", "source"):
        raise ValueError(f"by is {by!r}: draw by frame or by source.")
    tables = [table for table in values.values() if len(table)]
    if not tables:
        return Interval(math.nan, math.nan, math.nan)
    if pooled and by == "frame" and min(map(len, tables)) == 1:
        tables = [np.concatenate(tables)]
    if max(map(len, tables)) == 1 and (by == "frame" or len(tables) == 1):
        return Interval(float(statistic(mean_over(values, pooled)[None])[0]), math.nan, math.nan)
    rng = np.random.default_rng(0)
    sizes = np.array([len(table) for table in tables], float)

    def means(sums: F64, counts: F64) -> F64:  # (n, sources, methods), (n, sources)
        if pooled:
            return sums.sum(1) / counts.sum(1)[:, None]
        return (sums / counts[..., None]).mean(1)

    centre = float(statistic(mean_over(values, pooled)[None])[0])
    slots: NDArray[np.int64] = np.tile(np.arange(len(tables)), (DRAWS, 1))
    if by == "source":
        slots = rng.integers(0, len(tables), (DRAWS, len(tables)))
    sums = np.empty((DRAWS, len(tables), tables[0].shape[1]))
    for k, table in enumerate(tables):
        here = np.nonzero(slots == k)
        times = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), here[0].size)
        sums[here] = times @ table
    drawn = statistic(means(sums, sizes[slots]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(centre, float(low), float(high))


def ratio(means: F64) -> F64:
    """First method over second (n,) of means (n, 2): below 1 the first has the smaller number."""
    quotient: F64 = means[:, 0] / means[:, 1]
    return quotient


def change(means: F64) -> F64:
    """Second method over first, minus 1, (n,) of means (n, 2): below 0 the second is smaller."""
    relative: F64 = means[:, 1] / means[:, 0] - 1
    return relative


def change_of_runs(
    first: F64,
    other: F64,
    groups: Sequence[str],
    pooled: bool = True,
    paired: bool = True,
) -> Interval:
    """Mean of `other` over mean of `first`, minus 1, with its 95 % interval over runs and scenes
    together.

    first, other: (runs, images) errors; NaN where an image has none. A row that does not depend on
    the seed has one run, which stands beside each of the other's. paired: both were run with the
    same seeds, in the same order. groups: the scene of each image; a scene's images are drawn
    together. pooled: the mean is over images, else over the scenes' means.

    Each draw takes scenes and runs with replacement. Few runs drawn from themselves vary less than
    runs do, so the deviation of the drawn runs from their mean is widened by sqrt(n / (n - 1)) and
    by Student's quantile over the normal one: to 1.6 of itself for 5 runs, 9.2 for 2. Of
    single runs the interval is of the scenes alone. Raises ValueError where paired runs differ in
    number.
    """
    known: NDArray[np.bool_] = np.isfinite(np.concatenate([first, other])).all(axis=0)
    names = sorted({name for name, one in zip(groups, known, strict=True) if one})
    if not names:
        return Interval(math.nan, math.nan, math.nan)
    runs = {len(errors) for errors in (first, other)} - {1}
    if paired and len(runs) > 1:
        raise ValueError(f"Paired runs of {len(first)} and {len(other)} seeds: give the same ones.")
    place = {name: k for k, name in enumerate(names)}
    member = np.zeros((len(groups), len(names)))  # images of a scene
    for k, name in enumerate(groups):
        if known[k]:
            member[k, place[name]] = 1.0
    counts = member.sum(axis=0)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS).astype(float)
    weights = np.concatenate([np.ones((1, len(names))), weights])  # the first draw: as they are
    chosen: dict[int, NDArray[np.int64]] = {}
    means = []
    for number, errors in enumerate((first, other)):
        sums = np.where(known, errors, 0.0) @ member  # runs, scenes
        if pooled:
            by_run = weights @ sums.T / (weights @ counts)[:, None]
        else:
            by_run = weights @ (sums / counts).T / weights.sum(axis=1, keepdims=True)
        n = len(errors)
        if n > 1:
            key = n if paired else -number
            if key not in chosen:
                chosen[key] = rng.integers(0, n, (len(weights), n))
            drawn = np.take_along_axis(by_run, chosen[key], axis=1).mean(axis=1)
            widened = math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, 0.975) / NORMAL_95)
            centre = by_run.mean(axis=1)
            drawn = centre + widened * (drawn - centre)
            drawn[0] = centre[0]
        else:
            drawn = by_run[:, 0]
        means.append(drawn)
    ratios = means[1] / means[0] - 1.0
    if len(names) == 1:
        return Interval(float(ratios[0]), math.nan, math.nan)
    low, high = np.quantile(ratios[1:], [0.025, 0.975])
    return Interval(float(ratios[0]), float(low), float(high))


def mean(rows: Iterable[Row], method: str, source: str | None = None) -> tuple[float, float]:
    """AbsRel and delta1 of a method over the frames of a source, or over all sources' means."""
    rows = [row for row in rows if source is None or row.source == source]
    abs_rel, delta1 = (
        float(mean_over(gather(rows, [method], metric))[0]) for metric in ("abs_rel", "delta1")
    )
    return abs_rel, delta1
