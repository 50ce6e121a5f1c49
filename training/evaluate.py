# SPDX-License-Identifier: Apache-2.0
"""Judge depth networks as shipped: ONNX through depth_node, two numbers fitted per picture.

Alignment `disp_ls`: least squares of scale and shift to the true disparity over all known pixels,
depth is 1 / max(disparity, 1 / max_depth). Rivals without a network: the constant (median
disparity) and the best image plane 1/z = a + b x + c y, which is fitted with three numbers and
still knows nothing of the picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from depth_node.frames import find_frames, read_frame
from depth_node.inference import DepthModel, ModelConfig
from depth_node.metrics import evaluate
from depth_node.scene import STYLES, Scene, random_view

F32 = NDArray[np.float32]
MAX_DEPTH_M = 20.0
BASELINES = ("median", "plane")


@dataclass(frozen=True)
class Sample:
    """A picture (H, W, 3) uint8 RGB with metric depth (H, W) float32 m, NaN unknown."""

    source: str
    name: str
    image: NDArray[np.uint8]
    depth: F32


@dataclass(frozen=True)
class Row:
    """The scores of one method on one picture."""

    method: str
    source: str
    frame: str
    abs_rel: float
    delta1: float


def procedural(
    count: int, seed: int, height: int = 240, width: int = 320, style: str = "mixed"
) -> Iterable[Sample]:
    """One picture of each of `count` rooms; frame k follows from the seed and k alone."""
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        scene = Scene.random(rng, style)
        camera, pose = random_view(scene, rng, width, height)
        seen = scene.render(camera, pose)
        yield Sample(f"procedural {scene.style}", f"{seed}-{k}", seen.image, seen.depth)


def recorded(folder: Path) -> Iterable[Sample]:
    """The frames below a folder that have depth."""
    for place in find_frames(folder):
        frame = read_frame(place)
        if frame.depth is not None:
            yield Sample(frame.source, frame.name, frame.image, frame.depth)


def aligned_depth(
    disparity: NDArray[np.floating], truth: F32, terms: NDArray[np.float64] | None = None
) -> F32:
    """Depth (H, W) m of the least-squares fit of 1/truth to the map (or to `terms` (H, W, k)
    instead).
    """
    known = np.isfinite(truth) & (truth > 0)
    if terms is None:
        terms = np.stack([np.ones(disparity.shape), disparity], axis=-1).astype(np.float64)
    usable = known & np.isfinite(terms).all(-1)
    weights = np.linalg.lstsq(terms[usable], 1.0 / truth[usable].astype(np.float64), rcond=None)[0]
    fitted = np.maximum(terms @ weights, 1.0 / MAX_DEPTH_M)
    return (1.0 / fitted).astype(np.float32)


def plane_terms(height: int, width: int) -> NDArray[np.float64]:
    """Columns 1, x, y of every pixel (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([np.ones((height, width)), x / width, y / height], axis=-1)


def baseline(name: str, truth: F32) -> F32:
    """Depth (H, W) m of a rival that does not look at the picture."""
    height, width = truth.shape
    if name == "plane":
        return aligned_depth(truth, truth, plane_terms(height, width))
    if name == "median":
        return np.full(truth.shape, 1.0 / np.nanmedian(1.0 / truth), np.float32)
    raise ValueError(f"No baseline is called {name!r}; known are {', '.join(BASELINES)}.")


def score(samples: Iterable[Sample], models: dict[str, DepthModel]) -> list[Row]:
    """Every model and every baseline on every picture."""
    rows = []
    for sample in samples:
        answers: dict[str, Callable[[], F32]] = {
            name: lambda m=model, s=sample: aligned_depth(m.predict(s.image).disparity(), s.depth)  # type: ignore[misc]
            for name, model in models.items()
        }
        answers.update({name: lambda n=name, s=sample: baseline(n, s.depth) for name in BASELINES})  # type: ignore[misc]
        for name, answer in answers.items():
            found = evaluate(answer(), sample.depth)
            rows.append(Row(name, sample.source, sample.name, found.abs_rel, found.delta1))
    return rows


def mean(rows: list[Row], method: str, source: str | None = None) -> tuple[float, float]:
    """AbsRel and delta1 of a method over the frames of a source, or over all sources' means."""
    if source is None:
        sources = sorted({row.source for row in rows})
        pairs = [mean(rows, method, name) for name in sources]
    else:
        pairs = [
            (row.abs_rel, row.delta1)
            for row in rows
            if row.method == method and row.source == source
        ]
    if not pairs:
        return math.nan, math.nan
    return float(np.mean([a for a, _ in pairs])), float(np.mean([d for _, d in pairs]))


def _open(models: list[str]) -> dict[str, DepthModel]:
    opened = {}
    for text in models or ["embedded"]:
        path, _, manifest = text.partition("=")
        model = DepthModel.open(ModelConfig(path=path, manifest=manifest, threads=1))
        name = model.engine.manifest.name
        opened[path if name in opened else name] = model
    return opened


def report(
    models: list[str],
    count: int,
    seed: int,
    folders: list[Path],
    out: Path | None,
    console: Console,
) -> list[Row]:
    """Score, print a table of rendered rooms and one of recorded frames, write rows as JSON."""
    opened = _open(models)
    methods = [*opened, *BASELINES]
    rows: list[Row] = []
    if count:
        rooms = procedural(count, seed)
        made = score(track(rooms, "rendered rooms", total=count, console=console), opened)
        # Rooms of all styles are one population: their mean is over pictures, not over styles.
        sources = [f"procedural {style}" for style in STYLES]
        _print(console, f"{count} unseen rooms, seed {seed}", made, methods, sources, pooled=True)
        rows += made
    if folders:
        made = score((sample for folder in folders for sample in recorded(folder)), opened)
        sources = sorted({row.source for row in made})
        _print(console, "recorded frames", made, methods, sources, pooled=False)
        rows += made
    if out is not None:
        out.write_text(
            json.dumps({"rows": [vars(row) for row in rows]}, indent=1), encoding="utf-8"
        )
    for model in opened.values():
        model.close()
    return rows


def _print(
    console: Console,
    title: str,
    rows: list[Row],
    methods: list[str],
    sources: list[str],
    pooled: bool,
) -> None:
    """One row per source and one for all, a column per method."""
    table = Table(title=f"{title}: AbsRel / delta1 after scale and shift in disparity")
    table.add_column("")
    for method in methods:
        table.add_column(method, justify="right")
    present = [source for source in sources if any(row.source == source for row in rows)]
    for source in present:
        cells = (mean(rows, method, source) for method in methods)
        table.add_row(source.removeprefix("procedural "), *(f"{a:.3f} / {d:.2f}" for a, d in cells))
    totals = []
    for method in methods:
        mine = [row for row in rows if row.method == method]
        every = (np.mean([row.abs_rel for row in mine]), np.mean([row.delta1 for row in mine]))
        totals.append(every if pooled else mean(rows, method))
    name = "all pictures" if pooled else "mean of sources"
    table.add_row(name, *(f"{a:.3f} / {d:.2f}" for a, d in totals), style="bold")
    console.print(table)
