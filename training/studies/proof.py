# SPDX-License-Identifier: Apache-2.0
"""The design of a study, written down before it runs: claims, seeds, references and gates.

A table of networks that have learnt nothing proves nothing, however narrow its intervals are. So a
study names references (a floor that ignores the image, a positive control that must win, a
ceiling), claims with the number that decides each, the number of seeds, and gates: ratios of errors
that must be reached, or the table is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.data.samples import F64
from training.evaluation import statistics
from training.evaluation.statistics import Interval

# The errors of a study: row -> seed -> part -> (images, units).
Results = Mapping[str, Mapping[int, Mapping[str, F64]]]


@dataclass(frozen=True)
class Part:
    """A set of images on which rows are scored.

    groups: the scene of each image. pooled: take the mean over all images (rooms), else over the
    means of the scenes (recorded sources).
    """

    groups: Sequence[str]
    pooled: bool = True


@dataclass(frozen=True)
class Measure:
    """One number of a table: the names of a part and of a unit of its errors."""

    part: str
    unit: str


@dataclass(frozen=True)
class Claim:
    """The claim that a measure of `row` over that of `than`, minus 1, is below `change`.

    change -0.1: at least a tenth less. note: the published result.
    """

    row: str
    than: str
    change: float
    measure: Measure
    note: str = ""


@dataclass(frozen=True)
class Gate:
    """A condition for showing the table.

    The measure of `row` over that of `than` must be between `least` and `most`.
    """

    row: str
    than: str
    measure: Measure
    least: float = 0.0
    most: float = math.inf


@dataclass(frozen=True)
class Design:
    """The design of a study, which is printed with its table.

    claims: the first is the primary one. seeds: runs of every row. Names of reference rows: floor
    ignores the image, control must win, ceiling cannot be beaten.
    """

    claims: tuple[Claim, ...]
    seeds: int
    floor: tuple[str, ...]
    control: tuple[str, ...]
    ceiling: tuple[str, ...]
    gates: tuple[Gate, ...]

    def references(self) -> tuple[str, ...]:
        """Return the reference rows: floor, control and ceiling."""
        return (*self.floor, *self.control, *self.ceiling)


@dataclass(frozen=True)
class Assessment:
    """The assessment of a study's results by its design.

    lines: claims, references and gates as sentences, which precede the table. shown: all gates are
    passed. complete: every row has all its runs.
    """

    lines: tuple[str, ...]
    shown: bool
    complete: bool


@dataclass(frozen=True)
class Judge:
    """Compares rows of a study.

    parts: by name. units: in the order of the errors' columns. unseeded: rows with one run only.
    """

    results: Results
    parts: Mapping[str, Part]
    units: Sequence[str]
    unseeded: Sequence[str] = field(default=())

    def runs(self, row: str, measure: Measure, seeds: Sequence[int]) -> F64:
        """Return the errors (runs, images) of a row; of an unseeded row its one run."""
        column = self.units.index(measure.unit)
        own = self.results[row]
        chosen = list(own)[:1] if row in self.unseeded else seeds
        return np.stack([np.asarray(own[seed][measure.part])[:, column] for seed in chosen])

    def means(self, row: str, measure: Measure) -> list[float]:
        """Return the measure of each run of a row: the mean of its finite errors."""
        part = self.parts[measure.part]
        values = []
        for errors in self.runs(row, measure, sorted(self.results[row])):
            by_scene: dict[str, list[float]] = {}
            for name, value in zip(part.groups, errors, strict=True):
                if np.isfinite(value):
                    by_scene.setdefault(name, []).append(float(value))
            tables = {name: np.array(v)[:, None] for name, v in by_scene.items()}
            values.append(float(statistics.mean_over(tables, part.pooled)[0]))
        return values

    def change(self, row: str, than: str, measure: Measure) -> Interval:
        """Return the measure of `row` over that of `than`, minus 1, on the seeds that both have."""
        part = self.parts[measure.part]
        seeded = [set(self.results[name]) for name in (row, than) if name not in self.unseeded]
        seeds = sorted(set.intersection(*seeded)) if seeded else []
        first, other = (self.runs(name, measure, seeds) for name in (than, row))
        return statistics.change_of_runs(first, other, part.groups, part.pooled)

    def has(self, *rows: str) -> bool:
        """Return whether these rows have results with a common seed."""
        if not all(self.results.get(row) for row in rows):
            return False
        seeded = [set(self.results[row]) for row in rows if row not in self.unseeded]
        return not seeded or bool(set.intersection(*seeded))

    def verdict(self, design: Design, rows: Sequence[str]) -> Assessment:
        """Assess the results by a design; rows: all rows of the study."""
        short = {
            row: design.seeds - len(self.results.get(row, {}))
            for row in rows
            if row not in self.unseeded
        }
        short |= {row: 1 for row in rows if row in self.unseeded and not self.results.get(row)}
        missing = {row: count for row, count in short.items() if count > 0}
        lines = [self._claim(claim, k == 0, design) for k, claim in enumerate(design.claims)]
        for name in ("floor", "control", "ceiling"):
            lines.append(f"- {name}: {', '.join(getattr(design, name)) or 'none'}")
        passed = [self._gate(gate, lines) for gate in design.gates]
        if missing:
            runs = sum(missing.values())
            lines.append(f"- incomplete: {runs} runs of {', '.join(missing)} are missing")
        return Assessment(tuple(lines), all(passed), not missing)

    def _claim(self, claim: Claim, primary: bool, design: Design) -> str:
        where = f"{claim.measure.unit} on {claim.measure.part}"
        aim = "lower" if claim.change == 0 else f"changed by {claim.change:+.0%} or better"
        kind = "primary claim" if primary else "claim"
        text = f"- {kind}, {design.seeds} seeds: {where} of {claim.row!r} is {aim} against"
        text += f" {claim.than!r}" + (f" ({claim.note})" if claim.note else "")
        if not self.has(claim.row, claim.than):
            return f"{text}: not run"
        interval = self.change(claim.row, claim.than, claim.measure)
        enough = all(
            len(self.results[row]) >= design.seeds
            for row in (claim.row, claim.than)
            if row not in self.unseeded
        )
        judged = "undecided"
        if not enough:
            judged = "no verdict before all seeds"
        elif interval.high < claim.change:
            judged = "it holds"
        elif interval.low > claim.change:
            judged = "it does not hold"
        return f"{text}: {percent(interval)}, {judged}"

    def _gate(self, gate: Gate, lines: list[str]) -> bool:
        """Return whether a gate is passed, and add a sentence to `lines`."""
        bounds = []
        if gate.least > 0:
            bounds.append(f"at least {gate.least:g}")
        if gate.most < math.inf:
            bounds.append(f"at most {gate.most:g}")
        text = f"- gate: {gate.measure.unit} on {gate.measure.part} of {gate.row!r} is"
        text += f" {' and '.join(bounds)} of {gate.than!r}"
        if not self.has(gate.row, gate.than):
            lines.append(f"{text}: not run, so not passed")
            return False
        values = [np.mean(self.means(row, gate.measure)) for row in (gate.row, gate.than)]
        ratio = float(values[0] / values[1])
        passed = bool(gate.least <= ratio <= gate.most)
        word = "passed" if passed else "FAILED"
        lines.append(f"{text}: {ratio:.3f} ({values[0]:.4g} of {values[1]:.4g}), {word}")
        return passed


def percent(change: Interval) -> str:
    """Format a change and its interval for the tables."""
    if math.isnan(change.low) or math.isnan(change.high):
        return f"{change.value:+.1%} [too few]"
    return f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"


def table(judge: Judge) -> str:
    """Return a Markdown table of every row's mean error over runs, each run and the change.

    The change is against the first row, on the seeds that both have, with its interval over runs
    and scenes.
    """
    names = [name for name in judge.results if judge.results[name]]
    measures = [Measure(part, unit) for part in judge.parts for unit in judge.units]
    head = [f"{m.part}: {m.unit} | change" for m in measures]
    lines = [f"| row | runs | {' | '.join(head)} |", "|---" * (2 + 2 * len(head)) + "|"]
    for name in names:
        unseeded = name in judge.unseeded
        cells = [name, "" if unseeded else str(len(judge.results[name]))]
        for measure in measures:
            each = judge.means(name, measure)
            shown = f"{np.mean(each):.4f}"
            if len(each) > 1:
                shown += f" ({' '.join(f'{value:.4f}' for value in each)})"
            cells.append(shown)
            same = name == names[0] or not judge.has(name, names[0])
            cells.append("" if same else percent(judge.change(name, names[0], measure)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(judge: Judge, design: Design, rows: Sequence[str]) -> str:
    """Return the report: claims, references and gates, then the table if all gates are passed."""
    verdict = judge.verdict(design, rows)
    if verdict.shown:
        return "\n".join([*verdict.lines, "", table(judge)])
    return "\n".join(
        [*verdict.lines, "", "No table: it would compare networks that did not pass their gate."]
    )
