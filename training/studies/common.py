# SPDX-License-Identifier: Apache-2.0
"""Common to the studies: variants, rendered pools, scores computed once, tables with intervals."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from depth_node import config
from depth_node.metrics import evaluate
from depth_node.prediction import Prediction
from training.data.augmentation import Window
from training.data.pool import Pool, PoolConfig, open_pool
from training.data.samples import F64, Sample
from training.evaluation import protocols, statistics
from training.evaluation.statistics import Interval
from training.models.networks import MEANING, Network

HEIGHT, WIDTH = 96, 128
ALIGNMENT, PROTOCOL = "disp_ls", "indoor"
VIEWS_PER_ROOM = 3


@dataclass(frozen=True)
class Variant:
    """One row of the table: settings of the recipe that differ from the base; None: no run."""

    name: str
    settings: dict[str, Any] | None


@torch.no_grad()
def errors(network: Network, samples: Sequence[Sample]) -> F64:
    """(images, 2): AbsRel and 1 - delta1 after scale and shift in disparity."""
    network.eval()
    protocol = protocols.find(PROTOCOL)
    rows = []
    for sample in samples:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, HEIGHT, WIDTH)
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


def scored_once(path: Path, make: Callable[[], dict[str, F64]]) -> dict[str, Any]:
    """The result of `make`, stored in a JSON file and read from it on later calls."""
    if not path.is_file():
        errors_by_set = {name: values.tolist() for name, values in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(errors_by_set), encoding="utf-8")
        partial.replace(path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def compared(first: F64, other: F64) -> Interval:
    """Mean of other over mean of first, minus 1, with its 95 % interval; (images,) each.

    The images of a room are drawn together.
    """
    usable = len(first) // VIEWS_PER_ROOM * VIEWS_PER_ROOM
    rooms = [errors[:usable].reshape(-1, VIEWS_PER_ROOM).mean(axis=1) for errors in (first, other)]
    return statistics.bootstrap({"rooms": np.stack(rooms, axis=1)}, statistics.change, pooled=True)


def percent(change: Interval) -> str:
    """A change and its interval, as the tables print them."""
    return f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"


def slug(name: str) -> str:
    """The name of a variant as that of a file."""
    return "".join(c if c.isalnum() else "-" for c in name)


@dataclass(frozen=True)
class Study:
    """What is compared.

    rows: names of the variants, the first is what the others are compared with. units: two
    measures. parts: the sets that are judged. make(name, seed) gives the errors of a row by part,
    (images, 2). unseeded: rows that do not depend on the seed.
    """

    rows: Sequence[str]
    units: Sequence[str]
    parts: Sequence[str]
    make: Callable[[str, int], dict[str, F64]]
    unseeded: Sequence[str] = ()


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


def table(
    results: dict[str, dict[int, dict[str, Any]]],
    sets: Sequence[str],
    units: Sequence[str],
    unseeded: Sequence[str] = (),
) -> str:
    """Markdown: the errors of every variant, means over images and seeds; the change of each
    against the first variant on the same seeds, with its 95 % interval over rooms.
    """
    names = list(results)
    head = [f"{part}: {unit} | change" for part in sets for unit in units]
    lines = [f"| variant | seeds | {' | '.join(head)} |", "|---" * (2 + 2 * len(head)) + "|"]
    for name in names:
        own, first = results[name], results[names[0]]
        both = sorted(set(own) & set(first))
        cells = [name, "" if name in unseeded else str(len(own))]
        for part in sets:
            means = np.mean([np.array(row[part]) for row in own.values()], axis=0)
            new, old = (
                np.mean([np.array(rows[seed][part]) for seed in both], axis=0)
                for rows in (own, first)
            )
            for k in range(len(units)):
                cells.append(f"{means[:, k].mean():.3f}")
                if name == names[0] or name in unseeded:
                    cells.append("")
                    continue
                cells.append(percent(compared(old[:, k], new[:, k])))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run_study(study: Study, args: argparse.Namespace, console: Console) -> None:
    """Run what is missing of a study, print its table after every run."""
    torch.set_num_threads(1)
    results: dict[str, dict[int, dict[str, Any]]] = {}
    text = ""
    for seed in args.seeds:
        for name in study.rows:
            if (args.only and name not in args.only) or (
                name in study.unseeded and name in results
            ):
                continue
            path = args.out / args.study / "scores" / f"{slug(name)}-{seed}-{args.rooms}.json"
            row = scored_once(path, functools.partial(study.make, name, seed))
            results.setdefault(name, {})[seed] = row
            text = table(results, study.parts, study.units, study.unseeded)
            (args.out / args.study / "table.md").write_text(text + "\n", encoding="utf-8")
    console.print(text)
