# SPDX-License-Identifier: Apache-2.0
"""Study of MeSa: what its three terms bring to a fine-tuned network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional

from depth_node import config
from depth_node.metrics import evaluate
from training import checkpoints
from training.data.augmentation import Window
from training.data.mixed import Mixture
from training.data.pool import Pool
from training.data.samples import F64, Sample
from training.data.sequences import open_triplets
from training.loop import run
from training.recipes import mesa
from training.studies import add_run_options
from training.studies.common import Study, Variant, pool, pool_settings, run_study, samples, slug

MESA_SIZE = {"height": 56, "width": 84}
MESA_BASE: dict[str, Any] = {
    **MESA_SIZE,
    "network": {"kind": "debug"},
    "scales": 2,
    "sequences": {"scenes": 60, "views": 6, "seed": 8003},
    "loop": {
        "batch": 8,
        "steps": 400,
        "learning_rate": 1e-3,
        "warmup": 40,
        "weight_decay": 0.05,
        "ema": 0.99,
        "tensorboard": False,
        "checkpoint_every": 200,
    },
}
MESA_TUNE: dict[str, Any] = {
    "loss.masked": 0,
    "loss.geometric": 0,
    "head": "inverse",
    "layer_decay": 0.9,
    "loop.steps": 300,
    "loop.learning_rate": 2e-3,
    "loop.checkpoint_every": 300,
}
MESA = (
    Variant("masked", {"loss.geometric": 0, "loss.supervised": 0}),
    Variant("from scratch", None),
    Variant("masked + supervised", {"loss.geometric": 0}),
    Variant("masked + geometric", {"loss.supervised": 0}),
    Variant("all three", {}),
)


def pretrained(out: Path, variant: Variant, seed: int, learn: Pool, few: Pool) -> Path:
    """The run of one variant: pre-trained on `learn`, fine-tuned on `few`."""
    start: dict[str, Any] = {}
    named = slug(variant.name)
    if variant.settings is not None:
        first = out / "runs" / f"{named}-{seed}-pretrained"
        run_mesa(first, {**variant.settings, "loop.seed": seed}, learn)
        start = {"start": str(first)}
    last = out / "runs" / f"{named}-{seed}-tuned"
    run_mesa(last, {**MESA_TUNE, **start, "loop.seed": seed}, few)
    return last


def run_mesa(folder: Path, changes: dict[str, Any], learn: Pool) -> None:
    """Train a run of the study with some settings changed."""
    cfg = config.replace(config.build(mesa.Config, MESA_BASE), changes)
    mixture = Mixture(config.replace(cfg.images, pool_settings(learn)))
    triplets = None
    if cfg.loss.geometric:
        triplets = open_triplets(cfg.sequences, cfg.height, cfg.width, need_poses=True)
    recipe = mesa.Mesa(cfg, mixture, triplets)
    run(recipe, cfg.loop, folder, config.to_dict(cfg), console=Console(quiet=True))


@torch.no_grad()
def metre_errors(path: Path, judge: Sequence[Sample]) -> F64:
    """(images, 2): RMSE in metres and AbsRel, nothing aligned."""
    network, spec, _ = mesa.exportable(checkpoints.read(path))
    network.eval()
    rows = []
    for sample in judge:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, MESA_SIZE["height"], MESA_SIZE["width"])
        x = torch.from_numpy(window.image(sample.image))
        depth = network(spec.normalise(x.permute(2, 0, 1)[None].float() / 255))
        full = functional.interpolate(depth, sample.depth.shape, mode="bilinear")[0, 0].numpy()
        scores = evaluate(full, sample.depth)
        rows.append((scores.rmse, scores.abs_rel))
    return np.array(rows)


def _mesa_study(args: argparse.Namespace) -> Study:
    size = (60, 88)
    learn = pool(args.out, "mesa-learn", args.images, "room", 8001, size)
    few = pool(args.out, "mesa-few", min(120, args.images), "room", 8002, size)
    judge = {
        "rooms": samples(pool(args.out, "mesa-rooms", 3 * args.rooms, "room", 8004, size)),
        "desks": samples(pool(args.out, "mesa-desks", 3 * args.rooms, "desk", 8005, size)),
    }

    def make(name: str, seed: int) -> dict[str, F64]:
        variant = next(v for v in MESA if v.name == name)
        path = pretrained(args.out / "mesa", variant, seed, learn, few)
        return {part: metre_errors(path, rows) for part, rows in judge.items()}

    return Study([v.name for v in MESA], ("RMSE (m)", "AbsRel"), list(judge), make)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of the study."""
    add_run_options(parser)


def command(args: argparse.Namespace, console: Console) -> None:
    """Run what is missing of the study and print its table."""
    run_study(_mesa_study(args), args, console)
