# SPDX-License-Identifier: Apache-2.0
"""Evaluation of depth networks: scores with confidence intervals, as tables and JSON.

A network is an ONNX file that depth_node.engine runs, exactly as on a robot, or a checkpoint of
this package. Predictions can be stored in a folder by network and image, so that another alignment,
protocol or metric needs no second run. Every score names the alignment that was fitted to the
truth and the protocol that chose the pixels (protocols.py).

Two baselines do not use the image: `constant`, the median disparity, and `plane`, the least-squares
fit 1/z = a + b x + c y, which has three fitted parameters where a network's alignment has two.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from depth_node import config
from depth_node.engine import EngineError
from depth_node.engine.options import REFERENCE
from depth_node.recordings.frames import find_frames
from depth_node.simulation.rooms import STYLES
from training.checkpoints import TrainingError
from training.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    depth_error,
    mean_corruption_error,
    mean_resilience_rate,
    named,
)
from training.data.corruptions import SETS as CORRUPTION_SETS
from training.data.open import DataConfig, open_samples
from training.data.ordinal_labels import LabelSet, read_labels
from training.data.samples import DataSet, Sample
from training.evaluation import protocols
from training.evaluation.predict import (
    Cached,
    NetworkPredictor,
    open_model,
    recorded,
    rendered_rooms,
)
from training.evaluation.score import (
    BASELINES,
    CLEAN,
    INDOOR,
    ROWS,
    SCORES,
    Row,
    ScoringPlan,
    score,
)
from training.evaluation.statistics import bootstrap, bounds, gather, mean, ratio


def robustness(
    rows: Sequence[Row], methods: Sequence[str], base: str, pooled: bool = False
) -> list[dict[str, Any]]:
    """Return a line per method: DEE of clean images, mCE over `base`, mRR, DEE of each corruption.

    The DEE of a corruption is the mean over the severities. AbsRel and delta1 are means over the
    sources' means, or over all images if `pooled`.
    """

    def error(method: str, corruption: str, severity: int) -> float:
        selected = [row for row in rows if (row.corruption, row.severity) == (corruption, severity)]
        return depth_error(*mean(selected, method, pooled=pooled))

    names = sorted({row.corruption for row in rows} - {CLEAN}, key=CORRUPTIONS.index)
    tables = {
        method: {name: [error(method, name, k) for k in SEVERITIES] for name in names}
        for method in {*methods, base}
    }
    lines = []
    for method in methods:
        clean = error(method, CLEAN, 0)
        line: dict[str, Any] = {"method": method, "base": base, "clean": clean}
        line["mce"] = mean_corruption_error(tables[method], tables[base])
        line["mrr"] = mean_resilience_rate(tables[method], clean)
        lines.append({**line, **{name: float(np.mean(tables[method][name])) for name in names}})
    return lines


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m training evaluate`."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        default=[],
        help="embedded, FILE.onnx[=MANIFEST] or a run folder; repeatable",
    )
    add(
        "--procedural",
        type=int,
        default=0,
        help="number of rendered rooms to score on; needs --seed",
    )
    add("--seed", type=int, default=-1, help="seed of those rooms, other than the pool's")
    add("--frames", type=Path, action="append", default=[], help="folder of <source>/<frame>")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="a published data set: kind=nyuv2 folder=... split=test (docs/training/data.md)",
    )
    add("--labels", type=Path, default=None, help="ordinal labels (.csv, .json) to compare with")
    add("--images", type=Path, default=None, help="folder of the images of --labels")
    add(
        "--alignment",
        action="append",
        default=[],
        help=f"one of {', '.join(protocols.ALIGNMENTS)}; repeatable (default: as the output needs)",
    )
    add(
        "--protocol",
        default="",
        help=f"one of {', '.join(protocols.PROTOCOLS)} (default: the data set's, else indoor)",
    )
    add(
        "--corruptions",
        default="",
        metavar="NAME,NAME",
        help="also score corrupted images at five severities: mCE and mRR; names, or a set:"
        f" {', '.join(CORRUPTION_SETS)}",
    )
    add("--base", default="", help="model that mCE and ratios are relative to")
    add(
        "--backend",
        default=REFERENCE,
        help=f"back end for .onnx files: auto, tensorrt, ... (default {REFERENCE})",
    )
    add("--cache", type=Path, default=None, help="folder that stores predictions")
    add("--json", type=Path, default=None, help="write settings, summary and every frame's scores")
    add("--markdown", type=Path, default=None, help="write the tables")


@dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation: the networks, and the sets of images that each is scored on.

    models: embedded, FILE.onnx[=MANIFEST] or a run folder. rooms: the number of rooms that are
    rendered from `seed`. frames: folders of recorded frames. data: a published data set. labels: an
    ordinal label file and the folder of its images. base: the method that ratios and mCE are
    relative to; "" is the first one. backend: the back end of ONNX files (open_model). cache: a
    folder that stores predictions.
    """

    models: Sequence[str] = ("embedded",)
    rooms: int = 0
    seed: int = -1
    frames: Sequence[Path] = ()
    data: DataConfig | None = None
    labels: tuple[Path, Path | None] | None = None
    plan: ScoringPlan = ScoringPlan()
    base: str = ""
    backend: str = REFERENCE
    cache: Path | None = None


@dataclass
class Evaluated:
    """Result of an evaluation: a row per image and method, the tables, and their lines as data."""

    methods: list[str]
    base: str
    rows: list[Row] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def markdown(self) -> str:
        """Return the tables in GitHub's Markdown."""
        return "\n".join(_markdown(table) for table in self.tables)

    def json(self, asked: Evaluation) -> str:
        """Return settings, summary and rows as JSON, without a path of this machine."""
        data = asked.data
        content = {
            "settings": {
                "models": self.methods,
                "procedural": asked.rooms,
                "seed": asked.seed,
                "frames": [folder.name for folder in asked.frames],
                "data": data and {**config.to_dict(data), "folder": Path(data.folder).name},
                **vars(asked.plan),
                "base": self.base,
                "backend": asked.backend,
            },
            "machine": {"python": platform.python_version(), "processor": platform.machine()},
            "summary": self.summary,
            "rows": [vars(row) for row in self.rows],
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False)


def command(args: argparse.Namespace, console: Console) -> None:
    """Run the evaluation and write its files. Raises TrainingError with one sentence."""
    words = [word.strip() for word in args.corruptions.split(",") if word.strip()]
    try:
        asked = Evaluation(
            models=args.model or ("embedded",),
            rooms=args.procedural,
            seed=args.seed,
            frames=args.frames,
            data=config.override(DataConfig(), args.data) if args.data else None,
            labels=(args.labels, args.images) if args.labels else None,
            plan=ScoringPlan(tuple(args.alignment), args.protocol, named(words)),
            base=args.base,
            backend=args.backend,
            cache=args.cache,
        )
        evaluated = run(asked, console)
        if args.json is not None:
            _write(args.json, evaluated.json(asked))
        if args.markdown is not None:
            _write(args.markdown, evaluated.markdown())
    except (ValueError, EngineError) as error:
        raise TrainingError(str(error)) from error


def run(asked: Evaluation, console: Console) -> Evaluated:
    """Score every set and print its tables when they are ready.

    Raises ValueError for an unknown base, and the errors of opening, reading and scoring.
    """
    sets = list(_sets(asked.rooms, asked.seed, asked.frames, asked.data))
    opened: dict[str, Any] = {}
    try:
        predictors: dict[str, NetworkPredictor] = {}
        for text in asked.models:
            name, identity, model = open_model(text, asked.backend)
            name = text if name in opened else name
            opened[name] = model
            predictors[name] = Cached(model, identity, asked.cache) if asked.cache else model
        evaluated = Evaluated(list(opened), asked.base or next(iter(opened)))
        known = (*opened, *BASELINES)
        if evaluated.base not in known:
            raise ValueError(f"--base {asked.base!r} is none of the methods {', '.join(known)}.")

        def show(table: Table, lines: list[dict[str, Any]]) -> None:
            console.print(table)
            evaluated.tables.append(table)
            evaluated.summary.extend(lines)

        for subset in sets:
            shown = track(subset.samples, subset.title, total=subset.total, console=console)
            plan = replace(asked.plan, protocol=asked.plan.protocol or subset.protocol)
            rows = score(shown, predictors, plan)
            evaluated.rows += rows
            for table, lines in _tables(subset, rows, evaluated.methods, evaluated.base):
                show(table, lines)
        if asked.labels is not None:
            show(*_agreement(*asked.labels, predictors, console))
    finally:
        for model in opened.values():
            model.close()
    return evaluated


@dataclass(frozen=True)
class _EvaluationSet:
    """Images of one table.

    pooled: the mean is over all images, otherwise over the means of the sources. by: what the
    bootstrap draws. order: the order of the sources in the table.
    """

    title: str
    samples: Iterable[Sample]
    total: int
    order: tuple[str, ...]
    pooled: bool
    by: str
    protocol: str = INDOOR


def _sets(
    count: int, seed: int, folders: Sequence[Path], data: DataConfig | None
) -> Iterator[_EvaluationSet]:
    """Yield every requested set. Raises ValueError or DataError if one cannot be opened."""
    if count:
        if seed < 0:
            raise ValueError("Rendered rooms need a seed: give --seed, and not that of the pool.")
        # Rooms of all styles are one population: the mean is over images, not over styles.
        order = tuple(f"procedural {style}" for style in STYLES)
        title = f"{count} unseen rooms, seed {seed}"
        yield _EvaluationSet(title, rendered_rooms(count, seed), count, order, True, "frame")
    if folders:
        frames = (sample for folder in folders for sample in recorded(folder))
        total = sum(len(find_frames(folder)) for folder in folders)
        yield _EvaluationSet("recorded frames", frames, total, (), False, "source")
    if data is not None:
        data_set = open_samples(data)
        if data_set.protocol not in protocols.PROTOCOLS:
            raise ValueError(
                f"Images of kind {data.kind!r} have no depth to be scored on: give --labels and"
                " --images, or a data set with depth."
            )
        title = f"{data_set.name}{' ' + data.split if data.split else ''} ({len(data_set)})"
        # The mean is over all images, as in the publications. The bootstrap draws scenes, as images
        # of one scene are not independent.
        yield _EvaluationSet(
            title, published(data_set), len(data_set), (), True, "source", data_set.protocol
        )


def published(data_set: DataSet) -> Iterator[Sample]:
    """Yield the samples of a data set that have depth; their source is the folder, as the scene."""
    for sample in data_set:
        if sample.depth is not None:
            scene = sample.name.rpartition("/")[0] or data_set.name
            yield replace(sample, source=scene)


def _agreement(
    labels: Path, images: Path | None, predictors: Mapping[str, NetworkPredictor], console: Console
) -> tuple[Table, list[dict[str, Any]]]:
    """Return the table of the fraction of labelled pairs that each network puts in that order.

    Pairs that are labelled as equal do not count. Raises ValueError without a folder of images or
    without an ordered pair.
    """
    if images is None:
        raise ValueError("--labels needs --images, the folder that its images lie in.")
    data_set = open_samples(DataConfig(kind="images", folder=str(images)))
    labelled = LabelSet(read_labels(labels), [item.name for item in data_set.items])
    title = f"ordered pairs of {labels.name}"
    right: dict[str, list[list[float]]] = {name: [] for name in predictors}
    for k, item in enumerate(track(data_set.items, title, console=console)):
        if item.name not in labelled.images:
            continue
        image = data_set[k].image
        *ends, signs = labelled.points(item.name, image.shape)
        (c1, r1), (c2, r2) = (np.floor(points + 0.5).astype(int).T for points in ends)
        for name, model in predictors.items():
            disparity = model.predict(image).disparity()
            agreed = np.sign(disparity[r1, c1] - disparity[r2, c2]) == signs
            right[name] += [[float(agreed[signs != 0].sum()), float((signs != 0).sum())]]
    if not any(line[1] for line in next(iter(right.values()))):
        raise ValueError(f"{labels} has no pair with a nearer point: label some more.")
    table = Table(title=f"{title}: fraction in the labelled order, 95 % by image")
    table.add_column("")
    table.add_column("pairs", justify="right")
    table.add_column("agreed", justify="right")
    lines = []
    for name, counts in right.items():
        by_image = {str(k): np.array([line]) for k, line in enumerate(counts) if line[1]}
        agreement = bootstrap(by_image, ratio, by="source", pooled=True)
        total = sum(line[1] for line in counts)
        table.add_row(name, f"{total:.0f}", str(agreement))
        lines.append({"set": title, "method": name, "pairs": total, "agreed": vars(agreement)})
    return table, lines


def _tables(
    subset: _EvaluationSet, rows: list[Row], methods: list[str], base: str
) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    """Yield a table of accuracy and one of robustness per alignment, with their lines for JSON."""
    title = f"{subset.title}, protocol {rows[0].protocol}" if rows else subset.title
    clean = [row for row in rows if row.corruption == CLEAN]
    alignments = sorted({row.alignment for row in clean} - {"-"})
    for alignment in alignments:
        selected = [row for row in clean if row.alignment in (alignment, "-")]
        table, lines = _accuracy(subset, selected, [*methods, *BASELINES], base)
        table.title = f"{title}: AbsRel / delta1, alignment {alignment}"
        yield table, [{"set": title, "alignment": alignment, **line} for line in lines]
    if len(rows) > len(clean) and base not in BASELINES:
        for alignment in alignments:
            selected = [row for row in rows if row.alignment == alignment]
            table, lines = _robustness(selected, methods, base, subset.pooled)
            table.title = f"{title}: depth error DEE2, alignment {alignment}, base {base}"
            yield table, [{"set": title, "alignment": alignment, **line} for line in lines]


def _accuracy(
    subset: _EvaluationSet, rows: list[Row], methods: list[str], base: str
) -> tuple[Table, list[dict[str, Any]]]:
    """Return the table of AbsRel and delta1 per source, means, intervals and ratios to base."""
    pooled, by = subset.pooled, subset.by
    present = {row.source for row in rows}
    sources = [source for source in subset.order if source in present] or sorted(present)
    counts = {source: len({r.frame for r in rows if r.source == source}) for source in sources}
    table = Table("")
    for method in methods:
        table.add_column(method, justify="right")
    for source in sources if len(sources) <= ROWS else ():
        cells = (mean(rows, method, source) for method in methods)
        label = f"{source.removeprefix('procedural ')} ({counts[source]})"
        table.add_row(label, *(f"{a:.3f} / {d:.2f}" for a, d in cells))
    lines = []
    for method in methods:
        line: dict[str, Any] = {"method": method}
        for metric in (*SCORES, "boundary_f1"):
            line[metric] = vars(bootstrap(gather(rows, [method], metric), by=by, pooled=pooled))
        over = bootstrap(gather(rows, [method, base], "abs_rel"), ratio, by=by, pooled=pooled)
        lines.append({**line, "resampled_by": by, "ratio_over": base, "ratio": vars(over)})
    table.add_row(
        "all images" if pooled else "mean of sources",
        *(f"{x['abs_rel']['value']:.3f} / {x['delta1']['value']:.2f}" for x in lines),
        style="bold",
    )
    for label, key, digits in (
        (f"AbsRel, 95 % by {by}", "abs_rel", 3),
        (f"AbsRel over {base}, paired", "ratio", 2),
    ):
        spans = (x[key] for x in lines)
        table.add_row(
            label,
            *(
                f"{'' if key == 'abs_rel' else format(s['value'], '.2f') + ' '}"
                f"{bounds(s['low'], s['high'], digits)}"
                for s in spans
            ),
        )
    table.add_row("boundary F1", *(f"{x['boundary_f1']['value']:.3f}" for x in lines))
    return table, lines


def _robustness(
    rows: list[Row], methods: list[str], base: str, pooled: bool
) -> tuple[Table, list[dict[str, Any]]]:
    """Return the table of `robustness`, one column per method, and its lines."""
    lines = robustness(rows, methods, base, pooled)
    table = Table("")
    for line in lines:
        table.add_column(line["method"], justify="right")
    for key in lines[0]:
        if key not in ("method", "base"):
            style = ".1f" if key in ("mce", "mrr") else ".3f"
            label = {"mce": "mCE, %", "mrr": "mRR, %"}.get(key, key)
            table.add_row(label, *(format(line[key], style) for line in lines))
    return table, lines


def _markdown(table: Table) -> str:
    """Return a rich table in GitHub's Markdown."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [" | ".join([str(column.header) for column in table.columns])]
    lines.append(" | ".join(["---"] + ["--:"] * (len(cells) - 1)))
    lines += [" | ".join(row) for row in zip(*cells, strict=True)]
    return f"{table.title}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def _plain(value: Any) -> Any:
    """Return the same tree with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
