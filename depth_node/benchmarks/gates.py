# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the gates on recorded frames with truth: which wrong and right points they remove.

A point is far off if its depth differs from the truth by more than 20 %. Means are over the frames
and seeds of a source, then over the sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from depth_node.benchmarks.accuracy import DepthPredictor, disturbed, fit_method, predicted
from depth_node.benchmarks.tables import Table
from depth_node.fitting.methods import DEPTH_RANGE_M
from depth_node.gates import GateConfig, Gates
from depth_node.metrics import mean_over_sources
from depth_node.recordings.frames import FrameError, split_lines, split_uniform

FAR_OFF = 0.2  # of the truth
MOST_LOST = 0.25  # largest fraction of the points that gates may remove
STDS = (0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15)
CANDIDATES = tuple(GateConfig(max_std=std, cut_edges=cut) for std in STDS for cut in (True, False))


@dataclass(frozen=True)
class GateRow:
    """Result of one gate on one frame under one condition, over the scored pixels with a depth.

    condition: number of points, or lines_K; the suffix n means noisy. far_off_before,
    far_off_after: fraction of the output points that are far off, without and with the gate. kept:
    fraction of the points that pass the gate.
    """

    source: str
    condition: str
    gate: GateConfig
    far_off_before: float
    far_off_after: float
    kept: float


@dataclass(frozen=True)
class GateMeans:
    """Means of the columns of GateRow over sources."""

    far_off_before: float
    far_off_after: float
    kept: float

    @property
    def left(self) -> float:
        """Fraction of far-off points with the gate divided by that without it; NaN without any."""
        return self.far_off_after / self.far_off_before if self.far_off_before else math.nan


def run_gates(
    sources: Iterable[str | Path],
    predictor: DepthPredictor | str,
    *,
    points: Sequence[int] = (250, 1000),
    lines: int = 8,
    seeds: Sequence[int] = (0,),
    gates: Sequence[GateConfig] = (GateConfig(),),
    on_frame: Callable[[str], None] | None = None,
) -> list[GateRow]:
    """Return the rows of every frame, condition and gate; method `field` gives the depth.

    See accuracy.run_accuracy for the arguments. Raises FrameError if a frame cannot be used, or if
    no frame knows enough depths.
    """
    rows: list[GateRow] = []
    for frame, prediction in predicted(sources, predictor, on_frame):
        for seed in seeds:
            splits = {}
            known = int(np.isfinite(frame.truth).sum())
            for count in (count for count in points if count < 0.9 * known):
                splits[str(count)] = split_uniform(frame, count, seed)
            if lines:
                splits[f"lines_{lines}"] = split_lines(frame, lines, seed)
            for name, split in splits.items():
                for kind in ("clean", "noisy"):
                    measured = disturbed(frame, split.points, kind, 0.0, seed)
                    result = fit_method("field", prediction, measured, None, frame.image)
                    condition = name + ("n" if kind == "noisy" else "")
                    given = split.scored & np.isfinite(result.depth)
                    error = np.abs(result.depth - frame.truth) / frame.truth
                    far_off = error[given] > FAR_OFF
                    for gate in gates:
                        maps = Gates(result.depth, result.std, gate, DEPTH_RANGE_M, prediction.sky)
                        rows.append(
                            _row(frame.source, condition, gate, far_off, maps.believed()[given])
                        )
    if not rows:
        raise FrameError("No frame knows enough depths for these numbers of points: ask for fewer.")
    return rows


def _row(
    source: str,
    condition: str,
    gate: GateConfig,
    far_off: NDArray[np.bool_],
    passes: NDArray[np.bool_],
) -> GateRow:
    after = float(far_off[passes].mean()) if passes.any() else np.nan
    return GateRow(source, condition, gate, float(far_off.mean()), after, float(passes.mean()))


def averaged(rows: Iterable[GateRow], condition: str = "") -> GateMeans:
    """Average the rows of one condition over sources; without a condition, all rows."""
    chosen = [row for row in rows if condition in ("", row.condition)]
    columns = []
    for column in ("far_off_before", "far_off_after", "kept"):
        values: dict[str, list[float]] = {}
        for row in chosen:
            values.setdefault(row.source, []).append(getattr(row, column))
        columns.append(mean_over_sources(values))
    return GateMeans(*columns)


def choose(rows: Sequence[GateRow]) -> GateConfig:
    """Return the gate in the rows that leaves the smallest fraction of far-off points, among those
    that remove less than MOST_LOST of the points; if none does, among all.
    """
    means = {gate: averaged(r for r in rows if r.gate == gate) for gate in {r.gate for r in rows}}
    allowed = [gate for gate, mean in means.items() if 1 - mean.kept < MOST_LOST]
    # The fraction before is the same for all gates; a gate that no point passes has none after.
    after = {gate: mean.far_off_after for gate, mean in means.items()}
    return min(allowed or means, key=lambda gate: (math.isnan(after[gate]), after[gate]))


def tables(rows: Sequence[GateRow]) -> list[Table]:
    """Return tables of the default gates by condition and by source, and, with several gates and
    sources, of the gates chosen on the other sources.
    """
    default = [row for row in rows if row.gate == GateConfig()]
    head = ["", "far off before", "far off after", "left", "points kept"]
    conditions = list(dict.fromkeys(row.condition for row in default))
    sources = list(dict.fromkeys(row.source for row in default))
    result = [
        Table(
            "Default gates, mean over sources",
            head,
            [_cells(each, averaged(default, each)) for each in conditions],
            [f"far off: more than {FAR_OFF:.0%} off the truth; left: after over before"],
        ),
        Table(
            "Default gates, mean over conditions",
            head,
            [
                _cells(source, averaged(row for row in default if row.source == source))
                for source in sources
            ],
        ),
    ]
    if len({row.gate for row in rows}) > 1 and len(sources) > 1:
        body = []
        for source in sources:
            gate = choose([row for row in rows if row.source != source])
            held_out = averaged(r for r in rows if r.source == source and r.gate == gate)
            edges = "yes" if gate.cut_edges else "no"
            body.append([*_cells(source, held_out), f"{gate.max_std:g}", edges])
        note = f"fewest far-off points of those that lose less than {MOST_LOST:.0%} of the points"
        result.append(
            Table(
                "Gates chosen on the other sources", [*head, "max_std", "cut_edges"], body, [note]
            )
        )
    return result


def _cells(name: str, means: GateMeans) -> list[str]:
    return [
        name,
        f"{means.far_off_before:.2%}",
        f"{means.far_off_after:.2%}",
        "-" if math.isnan(means.left) else f"{means.left:.2f}",
        f"{means.kept:.1%}",
    ]
