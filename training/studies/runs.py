# SPDX-License-Identifier: Apache-2.0
"""Runs of a study that compares variants by seed: what is missing is run, then its table."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from depth_node import config
from training.data.mixed import Mixture, MixtureConfig
from training.data.pool import Pool
from training.data.samples import F64, Sample
from training.studies.common import compared, judged, percent, slug


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
        "views_per_scene": 3,
        "style": style,
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "fill": True,
    }
    return _mixture(tree).pool  # type: ignore[return-value]


def _mixture(tree: dict[str, Any]) -> Mixture:
    return Mixture(config.build(MixtureConfig, {"pool": tree}))


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
            own_means = np.mean([np.array(row[part]) for row in own.values()], axis=0)
            new, old = (
                np.mean([np.array(rows[seed][part]) for seed in both], axis=0)
                for rows in (own, first)
            )
            for k in range(len(units)):
                cells.append(f"{own_means[:, k].mean():.3f}")
                if name == names[0] or name in unseeded:
                    cells.append("")
                    continue
                cells.append(percent(*compared(old[:, k], new[:, k])))
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
            row = judged(path, functools.partial(study.make, name, seed))
            results.setdefault(name, {})[seed] = row
            text = table(results, study.parts, study.units, study.unseeded)
            (args.out / args.study / "table.md").write_text(text + "\n", encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
