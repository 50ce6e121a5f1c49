# SPDX-License-Identifier: Apache-2.0
"""Means over images, sources and runs, and their bootstrap intervals."""

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
    """Value with its 95 % interval; low and high are NaN if there is too little to draw from."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} {bounds(self.low, self.high, 4)}"


def bounds(low: float, high: float, digits: int) -> str:
    """Return the bounds of an interval as the tables show them."""
    if math.isnan(low) or math.isnan(high):
        return "[too few]"
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def gather(rows: Iterable[Row], methods: Sequence[str], metric: str) -> dict[str, F64]:
    """Return a metric as source -> (frames, methods), over the frames that all methods have."""
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
    """Return the means (methods,) over the sources' means, or over all frames if `pooled`.

    values: source -> (frames, methods), as from gather(). Without values it is one NaN, (1,).
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
    """Return a statistic of the methods' means with its 95 % percentile-bootstrap interval.

    values: source -> (frames, methods), as from gather(). statistic: maps means (n, methods), as of
    mean_over(), to (n,). by "frame" draws frames within every source; by "source" also draws the
    sources, for sources whose frames look alike. All methods are drawn together, so that a
    difference or a ratio is paired. If a source has a single frame, pooled frames are drawn from
    all sources together. The bounds are NaN if every draw would be the same. Raises ValueError for
    another `by`.
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
    """Return the first method's mean over the second's, (n,), of means (n, 2)."""
    quotient: F64 = means[:, 0] / means[:, 1]
    return quotient


def change(means: F64) -> F64:
    """Return the second method's mean over the first's, minus 1, (n,), of means (n, 2)."""
    relative: F64 = means[:, 1] / means[:, 0] - 1
    return relative


def change_of_runs(
    first: F64,
    other: F64,
    groups: Sequence[str],
    pooled: bool = True,
    paired: bool = True,
) -> Interval:
    """Return the relative change of the mean from `first` to `other`, with its 95 % interval.

    The value is mean(other) / mean(first) - 1; the interval covers runs and scenes together. first
    and other: errors (runs, images), NaN where an image has none. A method that does not depend on
    the seed has one run, which is compared with each run of the other. paired: both have the same
    seeds in the same order. groups: the scene of each image; the images of a scene are drawn
    together. pooled: the mean is over images, otherwise over the means of the scenes.

    Each draw takes scenes and runs with replacement. Means of few runs that are drawn from
    themselves vary less than means of new runs would, so the deviation of the drawn runs from
    their mean is multiplied by sqrt(n / (n - 1)) and by the quantile of Student's distribution over
    that of the normal distribution: by 1.6 for 5 runs, by 9.2 for 2. With single runs the interval
    covers the scenes only. The bounds are NaN for a single scene. Raises ValueError if paired runs
    differ in number.
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
    weights = np.concatenate([np.ones((1, len(names))), weights])  # the first: every scene once
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


def mean(
    rows: Iterable[Row], method: str, source: str | None = None, pooled: bool = False
) -> tuple[float, float]:
    """Return AbsRel and delta1 of a method: of one source, or the mean over the sources' means.

    With `pooled` it is the mean over all images.
    """
    rows = [row for row in rows if source is None or row.source == source]
    abs_rel, delta1 = (
        float(mean_over(gather(rows, [method], metric), pooled)[0])
        for metric in ("abs_rel", "delta1")
    )
    return abs_rel, delta1
