# SPDX-License-Identifier: Apache-2.0
"""Study of WeSTAR: adaptation to degraded images, variant against variant, with intervals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from depth_node import config
from training.data.corruptions import CORRUPTIONS, corrupt
from training.data.ordinal_labels import LabelSet, SimulationConfig, simulate
from training.data.pool import Pool, PoolConfig
from training.data.samples import F64, Sample
from training.loop import run
from training.models.networks import Network, NetworkConfig, open_network, open_run
from training.recipes import westar
from training.studies import add_run_options
from training.studies.common import (
    HEIGHT,
    VIEWS_PER_ROOM,
    WIDTH,
    Variant,
    compared,
    errors,
    percent,
    scored_once,
    slug,
)

# Of rooms that the embedded network was not trained on (its pool has seed 20), and different ones
# to learn from, to choose settings by, to judge by, and to go on knowing.
ROOMS = {"learn": 7001, "choose": 7002, "judge": 7003, "known": 7004}
# What a person could label in an afternoon: a triple of points, so three pairs, in every image.
TRIPLES = SimulationConfig(count=1)
# The paper's weights are for another network; these were set by the rooms "choose".
WESTAR_BASE: dict[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "keep": 0,
    "network": {"kind": "unet", "source": "embedded"},
    "tune": {"pattern": ".*"},
    "labels": {"from_depth": False, "probability": 0.0},
    "loss": {"weak": 2.0, "reg": 0.01, "margin": 0.3, "mask_px": 48},
    "loop": {
        "steps": 500,
        "batch": 8,
        "warmup": 20,
        "learning_rate": 2e-3,
        "ema": 0.98,
        "precision": "bf16",
        "tensorboard": False,
        "checkpoint_every": 100,
        "log_every": 20,
    },
}
ALONE: dict[str, Any] = {"loss.weak": 0, "loss.reg": 0}
WESTAR = (
    Variant("source", None),
    Variant("WeSTAR", {}),
    Variant("weights as published", {"loss.weak": 0.001, "loss.reg": 1.0, "loss.margin": 0.05}),
    Variant(
        "as westar_embedded.yaml",  # chosen by `study labels`, after the rows below were judged
        {
            "loss.known": 0.1,
            "loss.st": 0.3,
            "loss.weak": 4.0,
            "loss.reg": 0.001,
            "loss.margin": 0.5,
            "weak.smallest_crop": 0.75,
            "labels.probability": 0.5,
        },
    ),
    Variant("WeSTAR, rooms of the source kept", {"loss.known": 12.0}),
    Variant(
        "held by answers alone, half the update",
        {"loss.known": 4.0, "loss.reg": 0, "loss.contexts": "global", "tune.merge_scale": 0.5},
    ),
    Variant("self-training, whole image", {**ALONE, "loss.contexts": "global"}),
    Variant("self-training, masks", ALONE),
    Variant("without labels", {"loss.weak": 0}),
    Variant("without regulariser", {"loss.reg": 0}),
    Variant("labels alone", {"loss.st": 0}),
    Variant("full fine-tuning", {"tune.mode": "full", "loop.learning_rate": 5e-4}),
    Variant("upper bound: depth is known", {**ALONE, "teacher": "truth"}),
    Variant("self-training, depth bins", {**ALONE, "loss.contexts": "depth_bins"}),
    Variant("decoder", {"tune.mode": "decoder"}),
    Variant("teacher is the frozen source", {"teacher": "frozen_source"}),
    Variant("teacher is the student", {"teacher": "shared"}),
)


def rooms(out: Path, purpose: str, count: int) -> list[Sample]:
    """Rendered images with depth, 108 x 144, three of each room."""
    cfg = PoolConfig(
        str(out / "rooms" / f"{purpose}-{count}"),
        samples=count,
        views_per_scene=VIEWS_PER_ROOM,
        seed=ROOMS[purpose],
        wait_for=count,
    )
    pool = Pool(cfg, write=True)
    for _ in pool.fill(count):
        pass
    return [replace(pool[k], name=f"{purpose}-{k}") for k in range(count)]


def corrupted_images(samples: Sequence[Sample], name: str, severity: int) -> list[Sample]:
    """The same images, corrupted; the seed of each is its number."""
    return [
        Sample(s.name, corrupt(s.image, name, severity, seed=k), s.depth)
        for k, s in enumerate(samples)
    ]


def adapt(
    out: Path,
    variant: Variant,
    seed: int,
    target: Sequence[Sample],
    known: Sequence[Sample],
    steps: int,
) -> Network:
    """The source adapted by one variant, its low-rank updates merged."""
    if variant.settings is None:
        return open_network(NetworkConfig(source="embedded"))
    changes = {**variant.settings, "loop.seed": seed, "loop.steps": steps}
    changes["masks.folder"] = str(out / "masks")
    cfg = config.replace(config.build(westar.Config, WESTAR_BASE), changes)
    labels = None
    if cfg.loss.weak:
        drawn = [simulate(s.name, s.depth, TRIPLES) for s in target if s.depth is not None]
        labels = LabelSet([pair for pairs in drawn for pair in pairs], [s.name for s in target])
    # A recipe that has no depth cannot use it.
    visible = target if cfg.teacher == "truth" else [Sample(s.name, s.image) for s in target]
    folder = out / "runs" / f"{slug(variant.name)}-{seed}-{steps}"
    recipe = westar.Westar(cfg, visible, labels, [Sample(s.name, s.image) for s in known])
    run(recipe, cfg.loop, folder, config.to_dict(cfg), console=Console(quiet=True))
    return open_run(folder)


def table(results: dict[str, list[dict[str, Any]]], sets: Sequence[str]) -> str:
    """Markdown: 1 - delta1 and AbsRel of every variant on every set, mean over the seeds."""
    names = list(results)
    head = [f"{s}: 1 - delta1 | AbsRel | change of 1 - delta1" for s in sets]
    lines = [f"| variant | seeds | {' | '.join(head)} |", "|---" * (2 + 3 * len(sets)) + "|"]
    for name in names:
        cells = [name, str(len(results[name]))]
        for part in sets:
            own = np.mean([np.array(row[part]) for row in results[name]], axis=0)
            base = np.mean([np.array(row[part]) for row in results[names[0]]], axis=0)
            change = "" if name == names[0] else percent(compared(base[:, 1], own[:, 1]))
            cells += [f"{own[:, 1].mean():.4f}", f"{own[:, 0].mean():.4f}", change]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `study westar`."""
    add_run_options(parser)
    parser.add_argument("--target", default="defocus", choices=CORRUPTIONS, help="corruption")
    parser.add_argument("--severity", type=int, default=5, help="of the corruption")
    parser.add_argument(
        "--choose", action="store_true", help="score on other rooms, for choosing settings"
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Run what is missing, print the table after every run."""
    torch.set_num_threads(1)
    learn = rooms(args.out, "learn", args.images)
    known = rooms(args.out, "known", max(args.images // 9, 1) * 3)
    judge = rooms(args.out, "choose" if args.choose else "judge", 3 * args.rooms)
    folder = args.out / args.study
    steps = args.steps or WESTAR_BASE["loop"]["steps"]
    folder = folder / f"{args.target}-{args.severity}-{args.images}"
    learn = corrupted_images(learn, args.target, args.severity)
    sets = {"target": corrupted_images(judge, args.target, args.severity), "source": judge}
    chosen = [v for v in WESTAR if not args.only or v.name in args.only or v.settings is None]
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for variant in chosen:
            if variant.settings is None and variant.name in results:
                continue
            name = f"{slug(variant.name)}-{seed}-{steps}-{len(judge)}-{int(args.choose)}.json"

            def make(v: Variant = variant, s: int = seed) -> dict[str, F64]:
                network = adapt(folder, v, s, learn, known, steps)
                return {name: errors(network, samples) for name, samples in sets.items()}

            row = scored_once(folder / "scores" / name, make)
            results.setdefault(variant.name, []).append(row)
            text = table(results, list(sets))
            (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    console.print(text)
