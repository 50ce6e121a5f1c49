# SPDX-License-Identifier: Apache-2.0
"""Common to the studies that train: variants, rendered pools, scores computed once, the run."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from depth_node import config
from depth_node.metrics import boundary_f1, evaluate
from depth_node.prediction import Prediction
from training.checkpoints import TrainingError
from training.data.augmentation import Window
from training.data.pool import Pool, PoolConfig, open_pool
from training.data.samples import F64, Sample
from training.evaluation import protocols
from training.evaluation.score import baseline
from training.models.networks import MEANING, Network
from training.studies.proof import Design, Judge, Part, report

HEIGHT, WIDTH = 96, 128
ALIGNMENT, PROTOCOL = "disp_ls", "indoor"
VIEWS_PER_ROOM = 3


@dataclass(frozen=True)
class Variant:
    """One row of the table: settings of the recipe that differ from the base; None: no run."""

    name: str
    settings: dict[str, Any] | None


@torch.no_grad()
def errors(
    network: Network, samples: Sequence[Sample], size: tuple[int, int] = (HEIGHT, WIDTH)
) -> F64:
    """(images, 2): AbsRel and 1 - delta1 after scale and shift in disparity, at `size`, which the
    network sees.
    """
    network.eval()
    protocol = protocols.find(PROTOCOL)
    rows = []
    for sample in samples:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, *size)
        pixels = window.image(sample.image).astype(np.float32) / np.float32(255)
        x = network.spec.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        truth = window.nearest(sample.depth)
        counted = protocols.counted(protocol, truth)
        meaning = getattr(network, "meaning", MEANING)
        prediction = Prediction(network(x)[0, 0].numpy(), meaning)
        depth = protocols.align(prediction, truth, counted, ALIGNMENT, protocol)
        scores = evaluate(np.where(counted, depth, np.nan), np.where(counted, truth, np.nan))
        rows.append((scores.abs_rel, 1 - scores.delta1))
    return np.array(rows)


def baseline_errors(name: str, judge: Sequence[Sample], edges: bool = True) -> F64:
    """(images, 2): AbsRel and boundary F1 (or 1 - delta1) of a baseline that does not use the
    image.
    """
    rows = []
    for sample in judge:
        assert sample.depth is not None
        depth = baseline(name, sample.depth)
        scores = evaluate(depth, sample.depth)
        second = boundary_f1(depth, sample.depth) if edges else 1 - scores.delta1
        rows.append((scores.abs_rel, second))
    return np.array(rows)


def scored_once(path: Path, make: Callable[[], Mapping[str, F64]]) -> dict[str, Any]:
    """The result of `make`, stored in a JSON file and read from it on later calls."""
    if not path.is_file():
        errors_by_set = {name: values.tolist() for name, values in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(errors_by_set), encoding="utf-8")
        partial.replace(path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def slug(name: str) -> str:
    """The name of a variant as that of a file."""
    return "".join(c if c.isalnum() else "-" for c in name)


@dataclass(frozen=True)
class Study:
    """What is compared, and the design by which its table may be shown.

    folder: of its scores and table. rows: names, the first is what the others are compared with.
    units: the columns of the errors. parts: the sets that are judged. make(name, seed) gives the
    errors of a row by part, (images, units). unseeded: rows that do not depend on the seed. table:
    the file of the report. after: what else is said of the results, below it.
    """

    folder: Path
    rows: Sequence[str]
    units: Sequence[str]
    parts: Mapping[str, Part]
    make: Callable[[str, int], Mapping[str, F64]]
    design: Design
    unseeded: Sequence[str] = ()
    table: str = "table.md"
    after: Callable[[Judge], Sequence[str]] = lambda judge: ()


def by_room(samples: Sequence[Sample]) -> Part:
    """Rendered images that come VIEWS_PER_ROOM of a room."""
    return Part([str(k // VIEWS_PER_ROOM) for k in range(len(samples))])


def pool(out: Path, purpose: str, count: int, style: str, seed: int, size: tuple[int, int]) -> Pool:
    """`count` rendered images, three of each scene, on disk."""
    tree = {
        "folder": str(out / "rooms" / f"{purpose}-{count}-{size[0]}x{size[1]}"),
        "samples": count,
        "wait_for": count,
        "views_per_scene": VIEWS_PER_ROOM,
        "style": style,
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "fill": True,
    }
    return open_pool(config.build(PoolConfig, tree))


def samples(of: Pool) -> list[Sample]:
    """All images of a pool."""
    return [of[k] for k in range(len(of))]


def pool_settings(of: Pool) -> dict[str, Any]:
    """The settings by which a recipe draws from this pool."""
    return {f"pool.{name}": value for name, value in config.to_dict(of.cfg).items()}


def run_study(study: Study, args: argparse.Namespace, console: Console) -> None:
    """Run what is missing of a study; its report is written after every run, printed at the end.

    Raises TrainingError for an unknown row.
    """
    for name in args.only:
        if name not in study.rows:
            raise TrainingError(f"No row is called {name!r}: there are {'; '.join(study.rows)}.")
    torch.set_num_threads(1)
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for seed in args.seeds:
        for name in study.rows:
            if (args.only and name not in args.only) or (
                name in study.unseeded and name in results
            ):
                continue
            path = study.folder / "scores" / f"{slug(name)}-{seed}-{args.rooms}.json"
            stored = scored_once(path, functools.partial(study.make, name, seed))
            results.setdefault(name, {})[seed] = {
                part: np.array(errors, np.float64) for part, errors in stored.items()
            }
            judge = Judge(results, study.parts, study.units, study.unseeded)
            sections = [report(judge, study.design, study.rows), *study.after(judge)]
            text = "\n\n".join(sections)
            (study.folder / study.table).write_text(text + "\n", encoding="utf-8")
    console.print(text)
