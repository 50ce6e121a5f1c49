# SPDX-License-Identifier: Apache-2.0
"""What makes a study's table a proof: a claim that was written down before, references, gates.

A table of networks that have learnt nothing says nothing, however narrow its intervals are. So a
study names what its numbers stand between (a floor that ignores the image, a positive control that
must win, a ceiling), the claim with its primary number and its seeds, and gates: ratios of errors
without which the table is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from training.data.samples import F64
from training.evaluation import statistics
from training.evaluation.statistics import Interval

# Row -> seed -> part -> (images, units): the errors of a study.
Results = Mapping[str, Mapping[int, Mapping[str, F64]]]


@dataclass(frozen=True)
class Part:
    """A set that is judged: the scene of each image, and whether the mean is over all images (of
    rooms) or over the scenes' means (of recorded sources).
    """

    groups: Sequence[str]
    pooled: bool = True


@dataclass(frozen=True)
class Measure:
    """One number of a table: a part of what is judged, and a unit of its errors, by their names."""

    part: str
    unit: str


@dataclass(frozen=True)
class Claim:
    """A row's number against another row's: `row` is to change it by at most `change` (-0.1: a
    tenth less, or better). note: what was published.
    """

    row: str
    than: str
    change: float
    measure: Measure
    note: str = ""


@dataclass(frozen=True)
class Gate:
    """Without it the rows say nothing: the number of `row` over that of `than` must lie between
    `least` and `most`.
    """

    row: str
    than: str
    measure: Measure
    least: float = 0.0
    most: float = math.inf


@dataclass(frozen=True)
class Design:
    """Written down before a study runs, and printed with its table.

    claims: the first is the primary one. seeds: runs of every row. floor, control, ceiling: names
    of rows that bound what can be reached: what ignores the image, what must win, what cannot be
    beaten.
    """

    claims: tuple[Claim, ...]
    seeds: int
    floor: tuple[str, ...]
    control: tuple[str, ...]
    ceiling: tuple[str, ...]
    gates: tuple[Gate, ...]

    def references(self) -> tuple[str, ...]:
        """The rows that no claim is about."""
        return (*self.floor, *self.control, *self.ceiling)


@dataclass(frozen=True)
class Assessment:
    """What the gates say of a study's results: the sentences that stand above its table, whether
    the table may be shown, and whether every seed of every row is in it.
    """

    lines: tuple[str, ...]
    shown: bool
    complete: bool


@dataclass(frozen=True)
class Judge:
    """Compares rows of a study; parts by name, units in the order of the errors' columns."""

    results: Results
    parts: Mapping[str, Part]
    units: Sequence[str]
    unseeded: Sequence[str] = field(default=())

    def runs(self, row: str, measure: Measure, seeds: Sequence[int]) -> F64:
        """(runs, images) errors of a row; the one run of a row without seeds."""
        column = self.units.index(measure.unit)
        own = self.results[row]
        chosen = list(own)[:1] if row in self.unseeded else seeds
        return np.stack([np.asarray(own[seed][measure.part])[:, column] for seed in chosen])

    def means(self, row: str, measure: Measure) -> list[float]:
        """The number of each run of a row."""
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
        """The number of `row` over that of `than`, minus 1, on the seeds that both have."""
        part = self.parts[measure.part]
        seeded = [set(self.results[name]) for name in (row, than) if name not in self.unseeded]
        seeds = sorted(set.intersection(*seeded)) if seeded else []
        first, other = (self.runs(name, measure, seeds) for name in (than, row))
        return statistics.change_of_runs(first, other, part.groups, part.pooled)

    def has(self, *rows: str) -> bool:
        """Whether these rows have results that can be compared."""
        if not all(self.results.get(row) for row in rows):
            return False
        seeded = [set(self.results[row]) for row in rows if row not in self.unseeded]
        return not seeded or bool(set.intersection(*seeded))

    def verdict(self, design: Design, rows: Sequence[str]) -> Assessment:
        """The claim and the gates of a design as sentences; `rows`: all that the study has."""
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
        """Whether a gate is passed; a sentence is added to `lines`."""
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
    """A change and its interval, as the tables print them."""
    if math.isnan(change.low) or math.isnan(change.high):
        return f"{change.value:+.1%} [too few]"
    return f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"


def table(judge: Judge) -> str:
    """Markdown: the errors of every row, each run and the mean over runs; the change of each
    against the first row on the same seeds, with its interval over runs and scenes.
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
    """Claim, references and gates, then the table; where a gate is not passed no table."""
    verdict = judge.verdict(design, rows)
    if verdict.shown:
        return "\n".join([*verdict.lines, "", table(judge)])
    return "\n".join(
        [*verdict.lines, "", "No table: it would compare networks that did not pass their gate."]
    )
