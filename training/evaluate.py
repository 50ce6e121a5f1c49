# SPDX-License-Identifier: Apache-2.0
"""Judge depth networks as shipped: predictions once, scores many times, with their uncertainty.

A network is an ONNX file behind depth_node.engine.manifest, exactly what a robot runs, or a checkpoint of
this package. Predictions are kept in a folder by network and picture, so that another alignment,
protocol or metric costs no second run. Every score names the alignment that was fitted to the
truth and the protocol that chose the pixels (protocols.py).

Two rivals never look at the picture: `constant` (the median disparity) and `plane`, the best
1/z = a + b x + c y, which is fitted with three numbers where a network gets two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from depth_node.scene import STYLES
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from depth_node import config
from depth_node.engine import EngineError
from depth_node.engine.options import REFERENCE
from depth_node.inference import DepthModel, ModelConfig
from depth_node.metrics import boundary_f1, evaluate
from depth_node.prediction import Prediction
from depth_node.recordings.frames import find_frames, read_frame
from depth_node.simulation.renderer import Scene, random_view
from training import protocols
from training.checkpoints import TrainingError
from training.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    depth_error,
    mean_corruption_error,
    mean_resilience_rate,
)
from training.data import DataError, Sample
from training.datasets import DataConfig, Samples, open_samples
from training.ordinal import LabelSet, read_labels

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
BASELINES = ("constant", "plane")
INDOOR = "indoor"
CLEAN = "clean"
SCORES = ("abs_rel", "delta1", "delta2", "delta3", "rmse", "rmse_log", "log10", "silog")
DRAWS = 4000
ROWS = 20  # sources that a table lists; of more it shows the mean alone


# --- pictures ------------------------------------------------------------------------------------


def procedural(
    count: int, seed: int, height: int = 240, width: int = 320, style: str = "mixed"
) -> Iterable[Sample]:
    """One picture of each of `count` rooms; frame k follows from the seed and k alone."""
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        scene = Scene.random(rng, style)
        camera, pose = random_view(scene, rng, width, height)
        seen = scene.render(camera, pose)
        source = f"procedural {scene.style}"
        yield Sample(f"{seed}-{k}", seen.image, seen.depth, source=source)


def recorded(folder: Path) -> Iterable[Sample]:
    """The frames below a folder that have depth."""
    for place in find_frames(folder):
        frame = read_frame(place)
        if frame.depth is not None:
            yield Sample(frame.name, frame.image, frame.depth, source=frame.source)


def worn(sample: Sample, name: str, severity: int) -> Sample:
    """The sample seen through a corruption; its random field follows from the frame's name."""
    seed = zlib.crc32(f"{sample.source}/{sample.name}".encode())
    return replace(sample, image=corrupt(sample.image, name, severity, seed))


# --- networks ------------------------------------------------------------------------------------


class Predictor(Protocol):
    """What is judged: DepthModel is one."""

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """(H, W, 3) uint8 RGB -> the prediction at the picture's size."""


class Cached:
    """A predictor whose answers are kept: predictions once, scores many times.

    identity: of everything that shapes an answer. folder: where they lie, a subfolder per network.
    An entry that cannot be read is made anew.
    """

    def __init__(self, predictor: Predictor, identity: str, folder: Path) -> None:
        self.predictor = predictor
        self.folder = folder / identity[:24]
        self.folder.mkdir(parents=True, exist_ok=True)

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """From the disk if this very picture was seen before."""
        digest = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes())
        path = self.folder / f"{digest.hexdigest()[:32]}.npz"
        try:
            with path.open("rb") as file, np.load(file) as stored:
                return Prediction(stored["values"], str(stored["kind"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        found = self.predictor.predict(image)
        partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
        np.savez(partial, values=found.values, kind=np.array(found.kind))
        os.replace(partial, path)
        return found


def open_model(text: str, backend: str = REFERENCE) -> tuple[str, str, Any]:
    """Name, identity and predictor of `embedded`, FILE.onnx[=MANIFEST] or a run of this package.

    backend: what runs a file; unless asked otherwise the reference, so that scores do not depend on
    the machine. A run is calculated by torch on the CPU. Raises EngineError or TrainingError, a
    sentence.
    """
    path, _, manifest = text.partition("=")
    if Path(path).is_dir():
        from training.export import open_checkpoint  # torch only where it is asked for

        opened = open_checkpoint(Path(path))
        return Path(path).name, opened.identity, opened
    model = DepthModel.open(ModelConfig(path, manifest, backend, threads=1))
    facts = model.engine.manifest
    shaping: tuple[Any, ...] = (facts.sha256, facts.input, facts.output_name, facts.meaning)
    if model.engine.backend != REFERENCE:  # answers kept for one are not those of another
        shaping = (*shaping, model.engine.backend)
    return facts.name, hashlib.sha256(repr(shaping).encode()).hexdigest(), model


# --- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The scores of one method on one picture, and what they were taken under."""

    method: str
    source: str
    frame: str
    abs_rel: float
    delta1: float
    delta2: float = math.nan
    delta3: float = math.nan
    rmse: float = math.nan
    rmse_log: float = math.nan
    log10: float = math.nan
    silog: float = math.nan
    boundary_f1: float = math.nan
    answered: float = math.nan
    alignment: str = ""
    protocol: str = ""
    corruption: str = CLEAN
    severity: int = 0


@dataclass(frozen=True)
class Plan:
    """What is scored: alignments (empty: the usual one of each network), protocol (empty: that of
    the set), corruptions.
    """

    alignments: tuple[str, ...] = ()
    protocol: str = ""
    corruptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.protocol:
            protocols.find(self.protocol)
        for name in self.alignments:
            if name not in protocols.ALIGNMENTS:
                raise ValueError(
                    f"No alignment is called {name!r}: use {', '.join(protocols.ALIGNMENTS)}."
                )
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise ValueError(f"No corruption is called {name!r}: use {', '.join(CORRUPTIONS)}.")


def score(
    samples: Iterable[Sample], models: Mapping[str, Predictor], plan: Plan = Plan()
) -> list[Row]:
    """Every model and every baseline on every picture, clean and worn.

    A picture without a scored pixel gives no row. Raises ValueError for an alignment that a
    network's output does not have, DataError for a picture without depth.
    """
    protocol = protocols.find(plan.protocol or INDOOR)
    rows = []
    for sample in samples:
        if sample.depth is None:
            raise DataError(f"{sample.name} has no depth to be judged by: give a set with depth.")
        mask = protocols.counted(protocol, sample.depth)
        if not mask.any():
            continue
        truth = np.where(mask, sample.depth, np.float32(np.nan))
        for name in BASELINES:
            depth = np.clip(baseline(name, truth, protocol), 0, protocol.max_depth_m)
            rows.append(_row(name, sample, depth, truth, "-", protocol.name, CLEAN, 0))
        variants = [(CLEAN, 0), *((name, k) for name in plan.corruptions for k in SEVERITIES)]
        for corruption, severity in variants:
            seen = worn(sample, corruption, severity) if severity else sample
            for name, model in models.items():
                found = model.predict(seen.image)
                for alignment in plan.alignments or protocols.alignments_for(found.kind)[:1]:
                    depth = protocols.align(found, sample.depth, mask, alignment, protocol)
                    where = (alignment, protocol.name, corruption, severity)
                    rows.append(_row(name, sample, depth, truth, *where))
    return rows


def _row(
    method: str,
    sample: Sample,
    depth: F32,
    truth: F32,
    alignment: str,
    protocol: str,
    corruption: str,
    severity: int,
) -> Row:
    found = evaluate(depth, truth)
    return Row(
        method,
        sample.source,
        sample.name,
        **{name: getattr(found, name) for name in SCORES},
        # The edges are those of the whole truth: of worn pictures the clean ones' say enough.
        boundary_f1=boundary_f1(depth, truth) if not severity else math.nan,
        answered=found.answered,
        alignment=alignment,
        protocol=protocol,
        corruption=corruption,
        severity=severity,
    )


def plane_terms(height: int, width: int) -> F64:
    """Columns 1, x, y of every pixel (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([np.ones((height, width)), x / width, y / height], axis=-1)


def baseline(
    name: str, truth: F32, protocol: protocols.Protocol = protocols.PROTOCOLS[INDOOR]
) -> F32:
    """Depth (H, W) m of a rival that does not look at the picture; truth NaN where not counted."""
    if name == "constant":
        return np.full(truth.shape, 1.0 / np.nanmedian(1.0 / truth), np.float32)
    if name == "plane":
        terms, known = plane_terms(*truth.shape), np.isfinite(truth)
        weights = np.linalg.lstsq(terms[known], 1.0 / truth[known].astype(np.float64), rcond=None)
        least = max(1.0 / protocol.max_depth_m, protocols.SMALLEST_DISPARITY)
        return (1.0 / np.maximum(terms @ weights[0], least)).astype(np.float32)
    raise ValueError(f"No baseline is called {name!r}; known are {', '.join(BASELINES)}.")


# --- means and their uncertainty -----------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds that hold it in 95 % of the resampled sets."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def gather(rows: Iterable[Row], methods: Sequence[str], metric: str) -> dict[str, F64]:
    """Source -> (frames, methods) of a metric, over the frames that all of the methods have."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.method in methods:
            table.setdefault((row.source, row.frame), {})[row.method] = getattr(row, metric)
    found: dict[str, list[list[float]]] = {}
    for (source, _), values in sorted(table.items()):
        if all(math.isfinite(values.get(name, math.nan)) for name in methods):
            found.setdefault(source, []).append([values[name] for name in methods])
    return {source: np.array(values) for source, values in found.items()}


def bootstrap(
    values: Mapping[str, F64],
    statistic: Callable[[F64], F64] = lambda means: means[:, 0],
    by: str = "frame",
    pooled: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """A statistic of the methods' means with its 95 % interval.

    values: as gather() gives them. statistic: means (n, methods) -> (n,). A mean is that over the
    sources' means, or over all frames if `pooled`. by: "frame" draws frames inside every source;
    "source" also draws the sources, for frames of one source that look alike. All methods are drawn
    together, so that a difference or a ratio is a paired one.
    """
    if by not in ("frame", "source"):
        raise ValueError(f"by is {by!r}: draw by frame or by source.")
    tables = [table for table in values.values() if len(table)]
    if not tables:
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    sizes = np.array([len(table) for table in tables], float)

    def mean(sums: F64, counts: F64) -> F64:  # (n, sources, methods), (n, sources)
        if pooled:
            return sums.sum(1) / counts.sum(1)[:, None]
        return (sums / counts[..., None]).mean(1)

    exact: F64 = np.stack([table.sum(0) for table in tables])[None]
    centre = float(statistic(mean(exact, sizes[None]))[0])
    slots: NDArray[np.int64] = np.tile(np.arange(len(tables)), (draws, 1))
    if by == "source":
        slots = rng.integers(0, len(tables), (draws, len(tables)))
    sums = np.empty((draws, len(tables), tables[0].shape[1]))
    for k, table in enumerate(tables):
        here = np.nonzero(slots == k)
        times = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), here[0].size)
        sums[here] = times @ table
    drawn = statistic(mean(sums, sizes[slots]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(centre, float(low), float(high))


def ratio(means: F64) -> F64:
    """First method over second: below 1 the first has the smaller number."""
    found: F64 = means[:, 0] / means[:, 1]
    return found


def mean(rows: Iterable[Row], method: str, source: str | None = None) -> tuple[float, float]:
    """AbsRel and delta1 of a method over the frames of a source, or over all sources' means."""
    rows = [row for row in rows if source is None or row.source == source]
    return (
        bootstrap(gather(rows, [method], "abs_rel"), draws=1).value,
        bootstrap(gather(rows, [method], "delta1"), draws=1).value,
    )


def robustness(rows: Sequence[Row], methods: Sequence[str], base: str) -> list[dict[str, Any]]:
    """A line per method: DEE clean, of every corruption (mean of severities), mCE against `base`
    and mRR.
    """

    def error(method: str, corruption: str, severity: int) -> float:
        mine = [row for row in rows if (row.corruption, row.severity) == (corruption, severity)]
        return depth_error(*mean(mine, method))

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


# --- the command ---------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """`python -m training evaluate ...`."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        default=[],
        help="embedded, FILE.onnx[=MANIFEST] or a run folder; repeatable",
    )
    add("--procedural", type=int, default=0, help="rendered rooms to score on; needs --seed")
    add("--seed", type=int, default=-1, help="seed of those rooms; not the one of the pool")
    add("--frames", type=Path, action="append", default=[], help="folder of <source>/<frame>")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="a published data set: kind=nyuv2 folder=... split=test (see training/datasets.py)",
    )
    add("--labels", type=Path, default=None, help="ordinal labels (.csv, .json) to be agreed with")
    add("--pictures", type=Path, default=None, help="the pictures that --labels speaks of")
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
        metavar="all|NAME,NAME",
        help="also score pictures worn at five severities: mCE and mRR",
    )
    add("--base", default="", help="the method that mCE and ratios are taken over")
    add(
        "--backend",
        default=REFERENCE,
        help=f"what runs .onnx files: auto, tensorrt, onnxruntime-cuda, ... (default {REFERENCE})",
    )
    add("--cache", type=Path, default=None, help="folder that keeps predictions for the next time")
    add("--json", type=Path, default=None, help="write settings, summary and every frame's scores")
    add("--markdown", type=Path, default=None, help="write the tables")


def command(args: argparse.Namespace, console: Console) -> None:
    """Run it. Raises TrainingError: one sentence."""
    named = CORRUPTIONS if args.corruptions == "all" else args.corruptions.split(",")
    worn_by = tuple(name.strip() for name in named if name.strip())
    try:
        report(
            args.model,
            args.procedural,
            args.seed,
            args.frames,
            args.json,
            console,
            data=config.override(DataConfig(), args.data) if args.data else None,
            labels=(args.labels, args.pictures) if args.labels else None,
            plan=Plan(tuple(args.alignment), args.protocol, worn_by),
            base=args.base,
            cache=args.cache,
            markdown=args.markdown,
            backend=args.backend,
        )
    except (ValueError, EngineError) as error:
        raise TrainingError(str(error)) from error


def report(
    models: Sequence[str],
    count: int,
    seed: int,
    folders: Sequence[Path],
    out: Path | None,
    console: Console,
    *,
    data: DataConfig | None = None,
    labels: tuple[Path, Path | None] | None = None,
    plan: Plan = Plan(),
    base: str = "",
    cache: Path | None = None,
    markdown: Path | None = None,
    backend: str = REFERENCE,
) -> list[Row]:
    """Score, print and write the tables: rendered rooms, recorded frames, a data set, labels.

    labels: an ordinal label file and the folder of its pictures. base: the method that ratios and
    mCE are taken over (default: the first one). backend: what runs files (open_model).
    """
    sets = list(_sets(count, seed, folders, data))
    opened: dict[str, Any] = {}
    rows: list[Row] = []
    texts: list[str] = []
    summary: list[dict[str, Any]] = []

    def show(table: Table, lines: list[dict[str, Any]]) -> None:
        console.print(table)
        texts.append(_markdown(table))
        summary.extend(lines)

    try:
        predictors: dict[str, Predictor] = {}
        for text in models or ["embedded"]:
            name, identity, model = open_model(text, backend)
            name = text if name in opened else name
            opened[name] = model
            predictors[name] = Cached(model, identity, cache) if cache else model
        base = base or next(iter(opened))
        if base not in (*opened, *BASELINES):
            raise ValueError(
                f"--base {base!r} is none of the methods {', '.join((*opened, *BASELINES))}."
            )
        for judged in sets:
            shown = track(judged.samples, judged.title, total=judged.total, console=console)
            made = score(
                shown, predictors, replace(plan, protocol=plan.protocol or judged.protocol)
            )
            rows += made
            for table, lines in _tables(judged, made, list(opened), base):
                show(table, lines)
        if labels is not None:
            show(*_agreement(labels[0], labels[1], predictors, console))
    finally:
        for model in opened.values():
            model.close()
    if out is not None:
        content = {
            "settings": {
                "models": list(opened),
                "procedural": count,
                "seed": seed,
                "frames": [folder.name for folder in folders],
                "data": data and {**config.to_dict(data), "folder": Path(data.folder).name},
                **vars(plan),
                "base": base,
                "backend": backend,
            },
            "machine": {"python": platform.python_version(), "processor": platform.machine()},
            "summary": summary,
            "rows": [vars(row) for row in rows],
        }
        _write(out, json.dumps(_plain(content), indent=1, allow_nan=False))
    if markdown is not None:
        _write(markdown, "\n".join(texts))
    return rows


@dataclass(frozen=True)
class _Set:
    """Pictures that share a table. pooled: their mean is over pictures, else over sources' means.

    by: what the bootstrap draws; order: of the sources in the table.
    """

    title: str
    samples: Iterable[Sample]
    total: int | None
    order: tuple[str, ...]
    pooled: bool
    by: str
    protocol: str = INDOOR


def _sets(
    count: int, seed: int, folders: Sequence[Path], data: DataConfig | None
) -> Iterator[_Set]:
    """Every set that is asked for. Raises ValueError or DataError where one cannot be had."""
    if count:
        if seed < 0:
            raise ValueError("Rendered rooms need a seed: give --seed, and not that of the pool.")
        # Rooms of all styles are one population: their mean is over pictures, not over styles.
        order = tuple(f"procedural {style}" for style in STYLES)
        title = f"{count} unseen rooms, seed {seed}"
        yield _Set(title, procedural(count, seed), count, order, True, "frame")
    if folders:
        frames = (sample for folder in folders for sample in recorded(folder))
        yield _Set("recorded frames", frames, None, (), False, "source")
    if data is not None:
        found = open_samples(data)
        if found.protocol not in protocols.PROTOCOLS:
            raise ValueError(
                f"Pictures of kind {data.kind!r} have no depth to be scored on: give --labels and"
                " --pictures, or a data set with depth."
            )
        title = f"{found.name}{' ' + data.split if data.split else ''} ({len(found)})"
        # As published: the mean over all pictures; drawn by scene, whose pictures are alike.
        yield _Set(title, published(found), len(found), (), True, "source", found.protocol)


def published(found: Samples) -> Iterator[Sample]:
    """The samples of a data set that have depth; those of one folder are of one scene."""
    for sample in found:
        if sample.depth is not None:
            scene = sample.name.rpartition("/")[0] or found.name
            yield replace(sample, source=scene)


def _agreement(
    labels: Path, pictures: Path | None, predictors: Mapping[str, Predictor], console: Console
) -> tuple[Table, list[dict[str, Any]]]:
    """How many of a person's ordered pairs each network puts in that order."""
    if pictures is None:
        raise ValueError("--labels needs --pictures, the folder that its images lie in.")
    found = open_samples(DataConfig(kind="images", folder=str(pictures)))
    said = LabelSet(read_labels(labels), [item.name for item in found.items])
    title = f"ordered pairs of {labels.name}"
    right: dict[str, list[list[float]]] = {name: [] for name in predictors}
    for k, item in enumerate(track(found.items, title, console=console)):
        if item.name not in said.pictures:
            continue
        picture = found[k].image
        *ends, signs = said.points(item.name, picture.shape)
        (c1, r1), (c2, r2) = (np.floor(points + 0.5).astype(int).T for points in ends)
        for name, model in predictors.items():
            disparity = model.predict(picture).disparity()
            agreed = np.sign(disparity[r1, c1] - disparity[r2, c2]) == signs
            right[name] += [[float(agreed[signs != 0].sum()), float((signs != 0).sum())]]
    if not any(line[1] for line in next(iter(right.values()))):
        raise ValueError(f"{labels} has no pair with a nearer point: label some more.")
    table = Table(title=f"{title}: share in the order that was said, 95 % by picture")
    table.add_column("")
    table.add_column("pairs", justify="right")
    table.add_column("agreed", justify="right")
    lines = []
    for name, counts in right.items():
        by_picture = {str(k): np.array([line]) for k, line in enumerate(counts) if line[1]}
        share = bootstrap(by_picture, ratio, by="source", pooled=True)
        total = sum(line[1] for line in counts)
        table.add_row(name, f"{total:.0f}", str(share))
        lines.append({"set": title, "method": name, "pairs": total, "agreed": vars(share)})
    return table, lines


def _tables(
    judged: _Set, rows: list[Row], methods: list[str], base: str
) -> Iterator[tuple[Table, list[dict[str, Any]]]]:
    """A table per alignment and one of the corruptions, each with its lines for the JSON file."""
    pooled, by = judged.pooled, judged.by
    title = f"{judged.title}, protocol {rows[0].protocol}" if rows else judged.title
    clean = [row for row in rows if row.corruption == CLEAN]
    present = {row.source for row in clean}
    sources = [source for source in judged.order if source in present] or sorted(present)
    every = [*methods, *BASELINES]
    alignments = sorted({row.alignment for row in clean} - {"-"})
    for alignment in alignments:
        mine = [row for row in clean if row.alignment in (alignment, "-")]
        counts = {source: len({r.frame for r in mine if r.source == source}) for source in sources}
        table = Table(title=f"{title}: AbsRel / delta1, alignment {alignment}")
        table.add_column("")
        for method in every:
            table.add_column(method, justify="right")
        for source in sources if len(sources) <= ROWS else ():
            cells = (mean(mine, method, source) for method in every)
            label = f"{source.removeprefix('procedural ')} ({counts[source]})"
            table.add_row(label, *(f"{a:.3f} / {d:.2f}" for a, d in cells))
        lines = []
        for method in every:
            line: dict[str, Any] = {"set": title, "alignment": alignment, "method": method}
            for metric in (*SCORES, "boundary_f1"):
                found = bootstrap(gather(mine, [method], metric), by=by, pooled=pooled)
                line[metric] = vars(found)
            over = bootstrap(gather(mine, [method, base], "abs_rel"), ratio, by=by, pooled=pooled)
            lines.append({**line, "resampled_by": by, "ratio_over": base, "ratio": vars(over)})
        name = "all pictures" if pooled else "mean of sources"
        table.add_row(
            name,
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
                    f"[{s['low']:.{digits}f}, {s['high']:.{digits}f}]"
                    for s in spans
                ),
            )
        table.add_row("boundary F1", *(f"{x['boundary_f1']['value']:.3f}" for x in lines))
        yield table, lines
    if len(rows) > len(clean) and base not in BASELINES:
        for alignment in alignments:
            mine = [row for row in rows if row.alignment == alignment]
            lines = robustness(mine, methods, base)
            table = Table(title=f"{title}: depth error DEE2, alignment {alignment}, base {base}")
            table.add_column("")
            for line in lines:
                table.add_column(line["method"], justify="right")
            for key in lines[0]:
                if key not in ("method", "base"):
                    style = ".1f" if key in ("mce", "mrr") else ".3f"
                    shown = {"mce": "mCE, %", "mrr": "mRR, %"}.get(key, key)
                    table.add_row(shown, *(format(line[key], style) for line in lines))
            yield table, [{"set": title, "alignment": alignment, **line} for line in lines]


def _markdown(table: Table) -> str:
    """A rich table as GitHub's."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [" | ".join([str(column.header) for column in table.columns])]
    lines.append(" | ".join(["---"] + ["--:"] * (len(cells) - 1)))
    lines += [" | ".join(row) for row in zip(*cells, strict=True)]
    return f"{table.title}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def _plain(value: Any) -> Any:
    """The same tree with None for what JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
