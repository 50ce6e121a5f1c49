# SPDX-License-Identifier: Apache-2.0
"""Study of MeSa: what its three terms bring to a fine-tuned network."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional

from depth_node import config
from depth_node.engine.manifest import EMBEDDED_SMALL
from depth_node.metrics import evaluate
from depth_node.prediction import Prediction
from training import checkpoints
from training.checkpoints import TrainingError
from training.data.augmentation import Window
from training.data.mixed import Mixture
from training.data.pool import Pool
from training.data.samples import F32, F64, Sample
from training.data.sequences import SequenceConfig, Triplets, open_triplets
from training.evaluation import protocols
from training.models.networks import MEANING, NetworkConfig, open_network
from training.recipes import mesa
from training.studies import add_run_options, probe
from training.studies.common import (
    ALIGNMENT,
    HEIGHT,
    PROTOCOL,
    VIEWS_PER_ROOM,
    WIDTH,
    Study,
    Variant,
    by_room,
    device,
    pool,
    pool_settings,
    run_study,
    samples,
    slug,
    trained,
)
from training.studies.proof import Claim, Design, Gate, Measure

# A U-Net, which learns depth from a thousand views in minutes; the small transformer of other
# studies stayed above the mean map.
MESA_SIZE = {"height": 32, "width": 64}
POOLED = (36, 72)  # of the rendered images, which are cropped a little
STEPS, TUNE_STEPS = 600, 1000  # of pre-training, of fine-tuning
MESA_BASE: dict[str, Any] = {
    **MESA_SIZE,
    "network": {
        "kind": "unet",
        "unet": {
            "widths": [16, 28, 56, 96, 128],
            "depths": [0, 1, 1, 2, 2],
            "decoder": [56, 40, 28, 16],
        },
    },
    "scales": 1,
    "masking": {"unit_px": 8},
    "augment": {"smallest_crop": 0.85, "flip": 0.5, "colour": 0.15, "gamma": 0.15},
    # One term a step: every row costs the same.
    "loss": {"alternate": True},
    "sequences": {"scenes": 60, "views": 16, "spacing": 2, "seed": 8003},
    "loop": {
        "batch": 48,
        "steps": STEPS,
        "learning_rate": 3e-3,
        "warmup": 50,
        "weight_decay": 0.05,
        "ema": 0.99,
        "tensorboard": False,
        "checkpoint_every": 200,
    },
}
SUPERVISED: dict[str, Any] = {"loss.masked": 0, "loss.geometric": 0}
MESA_TUNE: dict[str, Any] = {**SUPERVISED, "loop.steps": TUNE_STEPS}
# An encoder that knows something is moved less, its first layers least.
GENTLE: dict[str, Any] = {"layer_decay": 0.8}
MESA = (
    Variant("masked", {"loss.geometric": 0, "loss.supervised": 0}),
    Variant("from scratch", None),
    Variant("masked + supervised", {"loss.geometric": 0}),
    Variant("masked + geometric", {"loss.supervised": 0}),
    Variant("all three", {}),
)
# Judged as it is pre-trained: its decoder learns too, and its metres come from the poses.
ALONE = Variant("geometric alone, not fine-tuned", {"loss.masked": 0, "loss.supervised": 0})
# Fine-tuned as the others are, one run: a MobileNetV2 beside the U-Net, which needs sides that are
# multiples of 64 and sees the images enlarged.
TUNED_IMAGENET = "ImageNet MobileNetV2, fine-tuned"
DETAIL: dict[str, Any] = {
    **GENTLE,
    "height": 64,
    "width": 128,
    "network.unet.detail": [16, 12],
    "loop.batch": 16,
    "loop.steps": 600,
}


def pretrained(
    out: Path, variant: Variant, seed: int, learn: Pool, few: Pool, steps: int = 0, tuned: int = 0
) -> Path:
    """The run of one variant: pre-trained on `learn`, fine-tuned on `few`; `steps` of each, and
    `tuned` of the latter, where given.
    """
    start: dict[str, Any] = {}
    long = {"loop.steps": steps} if steps else {}
    later = {"loop.steps": tuned} if tuned else long
    named = slug(variant.name)
    tune = MESA_TUNE
    if variant.name == TUNED_IMAGENET:
        tune = {**MESA_TUNE, **(variant.settings or {})}
    elif variant.settings is not None:
        first = out / "runs" / f"{named}-{seed}-pretrained"
        run_mesa(first, {**variant.settings, **long, "loop.seed": seed}, learn)
        if variant is ALONE:
            return first
        start = {"start": str(first), **GENTLE}
    last = out / "runs" / f"{named}-{seed}-tuned"
    run_mesa(last, {**tune, **start, **later, "loop.seed": seed}, few)
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
    """Rendered on first access, once for all runs of a process: a second of a core each."""
    return open_triplets(cfg, height, width, need_poses=True)


def _row(depth: F32, truth: F32) -> tuple[float, float, float]:
    scores = evaluate(depth, truth)
    known = np.isfinite(truth) & (truth > 0) & np.isfinite(depth) & (depth > 0)
    factor = float(np.median(truth[known]) / np.median(depth[known]))
    return scores.rmse, scores.abs_rel, evaluate(depth * np.float32(factor), truth).rmse


@torch.no_grad()
def metre_errors(path: Path, judge: Sequence[Sample]) -> F64:
    """(images, 3): RMSE in metres and AbsRel, nothing aligned, and RMSE after the medians' scale
    (the metres of an unknown room are mostly scale).
    """
    content = checkpoints.read(path)
    network, spec, _ = mesa.exportable(content)
    size = content["settings"]["height"], content["settings"]["width"]
    network = network.to(device()).eval()
    rows = []
    for sample in judge:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, *size)
        x = torch.from_numpy(window.image(sample.image))
        depth = network(spec.normalise(x.permute(2, 0, 1)[None].to(device()).float() / 255))
        full = functional.interpolate(depth, sample.depth.shape, mode="bilinear")[0, 0]
        rows.append(_row(full.cpu().numpy(), sample.depth))
    return np.array(rows)


NEEDS_WEIGHTS = (
    "The row {!r} needs torchvision's mobilenet_v2-b0353104.pth: give it with --imagenet, or leave"
    " the row out with --only."
)
MEAN_MAP, PLACE = "mean map", "place alone, ridge"
RANDOM, IMAGENET = "random features, ridge", "ImageNet features, ridge"
RIDGES = {PLACE: False, RANDOM: False, IMAGENET: True}
SHAPE = "true shape, typical scale"
EMBEDDED_ROW = "the embedded network, scale and shift fitted"
METRES, SCALED = Measure("rooms", "RMSE (m)"), Measure("rooms", "RMSE, scaled (m)")
# The aim is the project's; 17.1 % is the paper's gain over masked pre-training. The gate was .6 in
# metres, which is mostly a gate of the unknown scale: a perfect shape at the typical scale has .9
# of the mean map. Shape is judged after the medians' scale instead, and .75 is half of the way from
# the mean map to the packaged network (.50 of it, two numbers of each image fitted, at 72 x 108);
# in metres a network must know more than shape alone tells.
DESIGN = Design(
    claims=(
        Claim("all three", "masked", -0.10, SCALED),
        Claim("masked + geometric", "masked", 0.0, SCALED),
        Claim("masked + supervised", "masked", 0.0, SCALED),
        Claim("masked", "from scratch", 0.0, SCALED),
        Claim("all three", "masked", -0.10, METRES),
    ),
    seeds=5,
    floor=(MEAN_MAP, PLACE),
    control=(RANDOM, IMAGENET, TUNED_IMAGENET),
    ceiling=(SHAPE, EMBEDDED_ROW),
    gates=(
        Gate(IMAGENET, RANDOM, METRES, most=0.9),
        Gate("masked", MEAN_MAP, SCALED, most=0.75),
        Gate("masked", SHAPE, METRES, most=1.0),
        Gate(ALONE.name, MEAN_MAP, SCALED, most=1.0),
    ),
)


@torch.no_grad()
def embedded_errors(judge: Sequence[Sample]) -> F64:
    """(images, 3), as metre_errors, of the packaged network: scale and shift of its disparity are
    fitted to the truth, so the metres are the truth's.
    """
    network = open_network(NetworkConfig(source=EMBEDDED_SMALL)).eval()
    rules = protocols.find(PROTOCOL)
    rows = []
    for sample in judge:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, HEIGHT, WIDTH)
        x = torch.from_numpy(window.image(sample.image)).permute(2, 0, 1)[None].float() / 255
        values = network(network.spec.normalise(x))
        full = functional.interpolate(values, sample.depth.shape, mode="bilinear")[0, 0]
        mask = protocols.counted(rules, sample.depth)
        given = Prediction(full.numpy(), MEANING)
        rows.append(
            _row(protocols.align(given, sample.depth, mask, ALIGNMENT, rules), sample.depth)
        )
    return np.array(rows)


def reference_errors(
    name: str, seed: int, few: Sequence[Sample], judge: Sequence[Sample], weights: Path | None
) -> F64:
    """(images, 3), as metre_errors, of what no recipe learnt: by its name in the table.

    Raises TrainingError where ImageNet's weights are asked for and not given.
    """
    depths = [sample.depth for sample in few if sample.depth is not None]
    if name == MEAN_MAP:  # least squares in metres, as RMSE is
        blind = np.nanmean(np.stack(depths).astype(np.float64), axis=0).astype(np.float32)
        return np.array([_row(blind, s.depth) for s in judge if s.depth is not None])
    if name == SHAPE:  # what is left is the unknown scale
        typical = float(np.exp(np.mean([np.log(np.nanmedian(depth)) for depth in depths])))
        return np.array(
            [
                _row(s.depth * np.float32(typical / np.nanmedian(s.depth)), s.depth)
                for s in judge
                if s.depth is not None
            ]
        )
    if name == EMBEDDED_ROW:
        return embedded_errors(judge)
    if RIDGES[name] and weights is None:
        raise TrainingError(NEEDS_WEIGHTS.format(name))
    network = None if name == PLACE else probe.encoder(weights if RIDGES[name] else None, seed)
    fitted = probe.fit(network, few, VIEWS_PER_ROOM)
    return np.array([_row(fitted.depth(s.image), s.depth) for s in judge if s.depth is not None])


def _mesa_study(args: argparse.Namespace) -> Study:
    size = POOLED
    learn = pool(args.out, "mesa-learn", args.images, "room", 8001, size, args.jobs)
    few = pool(args.out, "mesa-few", args.few, "room", 8002, size, args.jobs)
    judge = samples(pool(args.out, "mesa-rooms", 3 * args.rooms, "room", 8004, size, args.jobs))
    control = Variant(TUNED_IMAGENET, {**DETAIL, "imagenet": str(args.imagenet or "")})
    rows = [*MESA, ALONE]
    named = f"{args.images}-{args.few}-{args.steps or 'own'}" + (f"-{args.tune}" * (args.tune > 0))
    folder = args.out / "mesa" / named

    def make(name: str, seed: int) -> dict[str, F64]:
        if name in (MEAN_MAP, SHAPE, EMBEDDED_ROW, *RIDGES):
            return {"rooms": reference_errors(name, seed, samples(few), judge, args.imagenet)}
        if name == TUNED_IMAGENET and args.imagenet is None:
            raise TrainingError(NEEDS_WEIGHTS.format(name))
        variant = next(v for v in (*rows, control) if v.name == name)
        path = pretrained(folder, variant, seed, learn, few, args.steps, args.tune)
        return {"rooms": metre_errors(path, judge)}

    names = [*(v.name for v in rows), *DESIGN.references()]
    units = ("RMSE (m)", "AbsRel", "RMSE, scaled (m)")
    parts = {"rooms": by_room(judge)}
    unseeded = (MEAN_MAP, PLACE, IMAGENET, SHAPE, EMBEDDED_ROW, TUNED_IMAGENET)
    return Study(folder, names, units, parts, make, DESIGN, unseeded)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of the study."""
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
        help="torchvision's mobilenet_v2-b0353104.pth, for the positive control",
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Run what is missing of the study and print its report."""
    run_study(_mesa_study(args), args, console)
