# SPDX-License-Identifier: Apache-2.0
"""Study of MeSa: the effect of its three terms on a fine-tuned network."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from depth_node import config
from depth_node.engine.manifest import EMBEDDED_SMALL
from depth_node.metrics import evaluate
from depth_node.prediction import Prediction
from training import checkpoints
from training.data.mixed import Mixture
from training.data.pool import Pool
from training.data.samples import F32, F64, Sample
from training.data.sequences import SequenceConfig, Triplets, open_triplets
from training.evaluation import protocols
from training.models.networks import MEANING
from training.recipes import mesa
from training.studies import add_run_options
from training.studies.common import (
    ALIGNMENT,
    HEIGHT,
    PROTOCOL,
    WIDTH,
    Study,
    Variant,
    answered,
    by_room,
    packaged,
    pool,
    pool_settings,
    run_study,
    samples,
    slug,
    trained,
)
from training.studies.proof import Claim, Design, Gate, Measure

# Pre-training starts from a MobileNetV2 with ImageNet's weights, which predicts depth after two
# hundred steps on 120 views. A U-Net from scratch did not pass the gate after 1,500 steps on two
# thousand views. Steps and views were chosen on 60 other rooms (seed 8006), to fit an hour of one
# shared core, before any run was judged.
POOLED = (72, 108)  # (h, w) of the rendered images, larger than the input because of the crops
STEPS, TUNE_STEPS, ALONE_STEPS = 240, 250, 200
MESA_BASE: dict[str, Any] = {
    "height": 64,
    "width": 96,
    "network": {
        "kind": "unet",
        "unet": {"encoder": "mobilenet", "decoder": [56, 40, 28, 16]},
    },
    "scales": 1,
    "masking": {"unit_px": 16},
    "augment": {"smallest_crop": 0.85, "flip": 0.5, "colour": 0.15, "gamma": 0.15},
    # One term per step, so that every row takes the same time.
    "loss": {"alternate": True},
    # The scenes are static and the poses exact, so every pixel may be compared.
    "geometric": {"automask": False},
    "sequences": {"scenes": 60, "views": 8, "spacing": 1, "seed": 8003},
    "loop": {
        "batch": 16,
        "steps": STEPS,
        "learning_rate": 2e-3,
        "warmup": 20,
        "weight_decay": 0.05,
        "ema": 0.99,
        "tensorboard": False,
        "checkpoint_every": 1000,
    },
}
# A pre-trained encoder learns more slowly, its first blocks the slowest or not at all.
GENTLE: dict[str, Any] = {"layer_decay": 0.9, "frozen_blocks": 4}
SUPERVISED: dict[str, Any] = {"loss.masked": 0, "loss.geometric": 0}
MESA = (
    Variant("masked", {"loss.geometric": 0, "loss.supervised": 0}),
    Variant("all three", {}),
    Variant("fine-tuning alone", None),
    Variant("masked + supervised", {"loss.geometric": 0}),
    Variant("masked + geometric", {"loss.supervised": 0}),
)
# Scored without fine-tuning: its decoder learns too, and the poses give the metric scale.
ALONE = Variant(
    "geometric alone, not fine-tuned",
    {"loss.masked": 0, "loss.supervised": 0, "loop.steps": ALONE_STEPS},
)
RANDOM = Variant("random encoder, fine-tuned", None)
ROWS = (*MESA, ALONE, RANDOM)


@dataclass(frozen=True)
class Setting:
    """What the runs of a study share.

    folder: of the runs. learn, few: views to pre-train and to fine-tune on. imagenet: file from
    which encoders start; None: random weights. steps, tuned: of pre-training and of fine-tuning; 0:
    the study's own.
    """

    folder: Path
    learn: Pool
    few: Pool
    imagenet: Path | None = None
    steps: int = 0
    tuned: int = 0


def pretrained(of: Setting, variant: Variant, seed: int) -> Path:
    """Pre-train a variant on `of.learn`, fine-tune it on `of.few`, and return the run folder.

    A variant without settings is fine-tuned only, ALONE is pre-trained only.
    """
    known = of.imagenet is not None and variant is not RANDOM
    begin = {"imagenet": str(of.imagenet), **GENTLE} if known else {}
    long = {"loop.steps": of.steps} if of.steps else {}
    own = {**begin, "loop.seed": seed}
    folder = of.folder / "runs" / f"{slug(variant.name)}-{seed}"
    if variant.settings is not None:
        first = folder.with_name(folder.name + "-pretrained")
        run_mesa(first, {**own, **variant.settings, **long}, of.learn)
        if variant is ALONE:
            return first
        own = {**GENTLE, "start": str(first), "loop.seed": seed}
    tuned = of.tuned or of.steps or TUNE_STEPS
    last = folder.with_name(folder.name + "-tuned")
    run_mesa(last, {**own, **SUPERVISED, "loop.steps": tuned}, of.few)
    return last


def run_mesa(folder: Path, changes: dict[str, Any], learn: Pool) -> None:
    """Train a run of the study with some settings changed."""
    cfg = config.replace(config.build(mesa.Config, MESA_BASE), changes)
    mixture = Mixture(config.replace(cfg.images, pool_settings(learn)))
    triplets = _walks(cfg.sequences, cfg.height, cfg.width) if cfg.loss.geometric else None
    recipe = mesa.Mesa(cfg, mixture, triplets)
    trained(recipe, cfg.loop, folder, config.to_dict(cfg))


@functools.cache
def _walks(cfg: SequenceConfig, height: int, width: int) -> Triplets:
    """Open the rendered walks once for all runs of a process; each takes a second to render."""
    return open_triplets(cfg, height, width, need_poses=True)


def _row(depth: F32, truth: F32) -> tuple[float, float, float]:
    scores = evaluate(depth, truth)
    known = np.isfinite(truth) & (truth > 0) & np.isfinite(depth) & (depth > 0)
    factor = float(np.median(truth[known]) / np.median(depth[known]))
    return scores.rmse, scores.abs_rel, evaluate(depth * np.float32(factor), truth).rmse


@torch.no_grad()
def metre_errors(path: Path, judge: Sequence[Sample]) -> F64:
    """Return RMSE (m) and AbsRel without alignment, and RMSE (m) after median scaling (images, 3).

    Median scaling, because the scale dominates the metric error in an unknown room.
    """
    content = checkpoints.read(path)
    network, spec, _ = mesa.exportable(content)
    size = content["settings"]["height"], content["settings"]["width"]
    return np.array([_row(depth, truth) for depth, truth in answered(network, spec, size, judge)])


MEAN_MAP, SHAPE = "mean map", "true shape, typical scale"
EMBEDDED_ROW = "the embedded network, scale and shift fitted"
UNSEEDED = (MEAN_MAP, SHAPE, EMBEDDED_ROW, ALONE.name, RANDOM.name)  # rows with one run each
METRES, SCALED = Measure("rooms", "RMSE (m)"), Measure("rooms", "RMSE, scaled (m)")
# The aim of 10 % is the project's; the paper gains 17.1 % over masked pre-training. Shape is scored
# after median scaling: in metres even a perfect shape at the typical scale has .9 of the error of
# the mean map. The gate .75 is half of the way from the mean map to the packaged network (.50 of
# the mean map's error, with scale and shift fitted per image); in metres a network must do better
# than a perfect shape at the typical scale.
DESIGN = Design(
    claims=(
        Claim("all three", "masked", -0.10, SCALED),
        Claim("masked + geometric", "masked", 0.0, SCALED),
        Claim("masked + supervised", "masked", 0.0, SCALED),
        Claim("masked", "fine-tuning alone", 0.0, SCALED),
        Claim("all three", "masked", -0.10, METRES),
    ),
    seeds=5,
    floor=(MEAN_MAP,),
    control=(RANDOM.name,),
    ceiling=(SHAPE, EMBEDDED_ROW),
    gates=(
        Gate("fine-tuning alone", RANDOM.name, SCALED, most=0.9),
        Gate("masked", MEAN_MAP, SCALED, most=0.75),
        Gate("masked", SHAPE, METRES, most=1.0),
        Gate(ALONE.name, MEAN_MAP, SCALED, most=1.0),
    ),
)


def reference_errors(name: str, few: Sequence[Sample], judge: Sequence[Sample]) -> F64:
    """Return the errors (images, 3), as metre_errors does, of a reference by its row name."""
    depths = [sample.depth for sample in few if sample.depth is not None]
    truths = [sample.depth for sample in judge if sample.depth is not None]
    if name == MEAN_MAP:  # the mean in metres minimises the squared error, as RMSE measures it
        blind = np.nanmean(np.stack(depths).astype(np.float64), axis=0).astype(np.float32)
        return np.array([_row(blind, truth) for truth in truths])
    if name == SHAPE:  # the remaining error is that of the unknown scale
        typical = float(np.exp(np.mean([np.log(np.nanmedian(depth)) for depth in depths])))
        return np.array(
            [_row(truth * np.float32(typical / np.nanmedian(truth)), truth) for truth in truths]
        )
    # Scale and shift of its disparity are fitted to the truth, from which its metres come.
    rules = protocols.find(PROTOCOL)
    rows = []
    for values, truth in packaged(EMBEDDED_SMALL, (HEIGHT, WIDTH), judge):
        counted = protocols.counted(rules, truth)
        aligned = protocols.align(Prediction(values, MEANING), truth, counted, ALIGNMENT, rules)
        rows.append(_row(aligned, truth))
    return np.array(rows)


def _mesa_study(args: argparse.Namespace) -> Study:
    size = POOLED
    learn = pool(args.out, "mesa-learn", args.images, "room", 8001, size, args.jobs)
    few = pool(args.out, "mesa-few", args.few, "room", 8002, size, args.jobs)
    judge = samples(pool(args.out, "mesa-rooms", 3 * args.rooms, "room", 8004, size, args.jobs))
    begun = "imagenet" if args.imagenet else "scratch"
    named = [begun, args.images, args.few, args.steps or "own", args.tune or "own"]
    folder = args.out / "mesa" / "-".join(map(str, named))
    of = Setting(folder, learn, few, args.imagenet, args.steps, args.tune)

    def make(name: str, seed: int) -> dict[str, F64]:
        variant = next((row for row in ROWS if row.name == name), None)
        if variant is None:
            return {"rooms": reference_errors(name, samples(few), judge)}
        return {"rooms": metre_errors(pretrained(of, variant, seed), judge)}

    names = [*(row.name for row in ROWS), MEAN_MAP, SHAPE, EMBEDDED_ROW]
    units = ("RMSE (m)", "AbsRel", "RMSE, scaled (m)")
    return Study(folder, names, units, {"rooms": by_room(judge)}, make, DESIGN, UNSEEDED)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the study."""
    add_run_options(parser)
    parser.add_argument("--few", type=int, default=120, help="views with depth to fine-tune on")
    parser.add_argument(
        "--tune", type=int, default=0, help="steps of fine-tuning; 0: the study's own number"
    )
    parser.add_argument(
        "--imagenet",
        type=Path,
        default=None,
        metavar="FILE",
        help="torchvision's mobilenet_v2-b0353104.pth, which encoders start from; else random",
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Do the missing runs of the study and print its report."""
    run_study(_mesa_study(args), args, console)
