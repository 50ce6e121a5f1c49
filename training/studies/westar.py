# SPDX-License-Identifier: Apache-2.0
"""Study of WeSTAR: adaptation to degraded images, variant against variant, with intervals."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from depth_node import config
from depth_node.engine.manifest import EMBEDDED
from training.checkpoints import TrainingError
from training.data.augmentation import STRONG
from training.data.corruptions import corrupt, named
from training.data.ordinal_labels import LabelSet, SimulationConfig, simulate
from training.data.pool import PoolConfig, open_pool
from training.data.samples import F64, Sample
from training.evaluation.score import BASELINES
from training.models.lora import merged
from training.models.networks import Network, open_network, open_run
from training.recipes import westar
from training.studies import add_run_options
from training.studies.common import (
    VIEWS_PER_ROOM,
    Study,
    Variant,
    baseline_errors,
    by_room,
    errors,
    locked,
    run_study,
    slug,
    trained,
)
from training.studies.proof import Claim, Design, Gate, Measure, Part

# Seeds of rooms on which the embedded network was not trained (its pool has seed 20); different
# rooms to learn from, to choose settings on, to judge on, and for loss.known.
ROOMS = {"learn": 7001, "choose": 7002, "judge": 7003, "known": 7004}
# As much as a person could label in an afternoon: one triple of points, so three pairs, per image.
# The paper has five.
TRIPLES = 1
# The paper's weights are for another network; these were chosen on the rooms "choose".
WESTAR_BASE: dict[str, Any] = {
    "height": 192,
    "width": 256,
    "keep": 0,
    "network": {"kind": "unet", "source": EMBEDDED},
    "tune": {"pattern": ".*", "statistics": "both", "statistics_share": 0.7, "merge_scale": 0.5},
    "appearance": 0.5,
    "labels": {"from_depth": False, "probability": 0.0},
    "loss": {
        "st": 0.3,
        "weak": 2.0,
        "reg": 0.0,
        "margin": 0.3,
        "known": 4.0,
        "contexts": "global",  # masks would double the time, for a term of this small weight
        "mask_px": 48,
    },
    "loop": {
        "steps": 400,
        "batch": 8,
        "warmup": 20,
        "learning_rate": 1e-3,
        "ema": 0.98,
        "precision": "bf16",
        "tensorboard": False,
        "checkpoint_every": 100,
        "log_every": 20,
    },
}
SOURCE, STRETCHED = "source", "stretched, nothing learnt"
MEASURED = "new statistics, nothing learnt"
MEASURED_BOTH = "statistics of both places, nothing learnt"
PUBLISHED = "as westar_embedded.yaml"
CEILING = "ceiling: depth is known, all weights, longer"
LONGER = 4  # factor on the steps of the ceiling's run
AS_KNOWN = "WeSTAR, known rooms as they are"
NO_LABELS = "look of the place alone, no labels"
GIVEN = "self-training, the renderer's masks"
ALONE: dict[str, Any] = {"loss.weak": 0, "loss.st": 1.0}
# A student of the true depth gets the teacher's view: strong augmentations are off.
AS_IT_IS: dict[str, Any] = {f"strong.{name}": type(value)(0) for name, value in STRONG.items()}
WESTAR = (
    Variant(SOURCE, None),
    Variant(MEASURED, {"tune.statistics": "place", "tune.statistics_share": 1.0}),
    Variant(MEASURED_BOTH, {}),
    Variant("WeSTAR", {}),
    Variant(AS_KNOWN, {"appearance": 0.0}),
    Variant(NO_LABELS, {"loss.st": 0, "loss.weak": 0}),
    Variant(
        PUBLISHED,
        {
            "appearance": 0.0,
            "tune.statistics": "source",
            "tune.statistics_share": 1.0,
            "tune.merge_scale": 1.0,
            "loop.learning_rate": 2e-3,
            "loss.contexts": "masks",
            "loss.weak": 4.0,
            "loss.known": 0.1,
            "loss.reg": 0.001,
            "loss.margin": 0.5,
            "weak.smallest_crop": 0.75,
            "labels.probability": 0.5,
        },
    ),
    Variant("labels alone", {"loss.st": 0}),
    Variant("full fine-tuning", {"tune.mode": "full", "loop.learning_rate": 1e-4}),
    Variant("self-training, masks", {**ALONE, "loss.contexts": "masks"}),
    Variant(GIVEN, {**ALONE, "loss.contexts": "masks", "masks.given": True}),
    Variant("self-training, depth bins", {**ALONE, "loss.contexts": "depth_bins"}),
    Variant("self-training, whole image", ALONE),
    Variant(
        CEILING,
        {
            **ALONE,
            "teacher": "truth",
            "loss.known": 0.0,
            "appearance": 0.0,
            "tune.statistics": "place",
            "tune.statistics_share": 1.0,
            "tune.mode": "full",
            "loop.learning_rate": 2e-4,
            **AS_IT_IS,
        },
    ),
)


def rooms(out: Path, purpose: str, count: int, jobs: int = 1, labels: bool = False) -> list[Sample]:
    """Return rendered images with depth, 108 x 144, three per room.

    labels: with masks of the surfaces.
    """
    folder = out / "rooms" / f"{purpose}-{count}{'-labels' if labels else ''}"
    cfg = PoolConfig(
        str(folder),
        samples=count,
        views_per_scene=VIEWS_PER_ROOM,
        seed=ROOMS[purpose],
        wait_for=count,
        fill=True,
        labels=labels,
    )
    with locked(folder):
        pool = open_pool(cfg, processes=jobs)
    return [replace(pool[k], name=f"{purpose}-{k}") for k in range(count)]


def corrupted_images(samples: Sequence[Sample], name: str, severity: int) -> list[Sample]:
    """Return the images corrupted; the seed of each is its index."""
    return [
        replace(s, image=corrupt(s.image, name, severity, seed=k)) for k, s in enumerate(samples)
    ]


def labelled(triples: int) -> str:
    """Return the suffix of a run's name for an unusual number of labels."""
    return "" if triples == TRIPLES else f"-{triples}"


def settings(tried: Sequence[str] = ()) -> westar.Config:
    """Return the settings that all rows share; tried: key=value that replace some of them."""
    return config.override(config.build(westar.Config, WESTAR_BASE), tried)


def named_by(tried: Sequence[str]) -> str:
    """Return the suffix of a run's name for tried settings."""
    return "".join(f"-{slug(setting)}" for setting in tried)


def digest(cfg: westar.Config) -> str:
    """Return 8 hexadecimal digits of a hash of the settings, for the name of the run folder."""
    values = config.flatten(cfg)
    for name in ("masks.folder", "keep"):
        del values[name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def adapt(
    out: Path,
    variant: Variant,
    seed: int,
    target: Sequence[Sample],
    known: Sequence[Sample],
    steps: int,
    triples: int = TRIPLES,
    tried: Sequence[str] = (),
) -> Network:
    """Adapt the source by one variant and return the network, with low-rank updates merged.

    target, known: images of the new place and of the source's domain. tried: key=value that replace
    the variant's settings.
    """
    if variant.settings is None:
        return open_network(settings(tried).network)
    steps *= LONGER if variant.name == CEILING else 1
    changes = {**variant.settings, "loop.seed": seed, "loop.steps": steps}
    changes |= {"masks.folder": str(out / "masks"), "keep": len(target)}
    cfg = config.override(config.replace(settings(), changes), tried)
    labels = None
    if cfg.loss.weak:
        drawn = [
            simulate(s.name, s.depth, SimulationConfig(count=triples))
            for s in target
            if s.depth is not None
        ]
        labels = LabelSet([pair for pairs in drawn for pair in pairs], [s.name for s in target])
    # Depth is removed, so that the recipe cannot use it.
    visible = target if cfg.teacher == "truth" else [replace(s, depth=None) for s in target]
    run = f"{slug(variant.name)}-{seed}-{steps}{labelled(triples)}-{digest(cfg)}"
    folder = out / "runs" / run
    recipe = westar.Westar(cfg, visible, labels, [Sample(s.name, s.image) for s in known])
    if variant.name in (MEASURED, MEASURED_BOTH):
        return merged(recipe.model()).eval()  # type: ignore[return-value]
    return open_run(trained(recipe, cfg.loop, folder, config.to_dict(cfg)))


CORRUPTED, CLEAR = Measure("corrupted", "1 - delta1"), Measure("clear", "1 - delta1")
# If even true depth as the teacher does not reach this, labels cannot repair the corruption either.
REACHED = 0.45


def design(targets: Sequence[str]) -> Design:
    """Return the claims, and a gate for each corruption on the run with true depth as teacher."""
    names = list(targets) if len(targets) > 1 else [CORRUPTED.part]
    return Design(
        claims=(
            Claim("WeSTAR", SOURCE, -0.40, CORRUPTED),
            Claim("WeSTAR", SOURCE, 0.01, CLEAR),
            *(
                Claim(row, SOURCE, change, measure)
                for row in (MEASURED, MEASURED_BOTH)
                for change, measure in ((0.0, CORRUPTED), (0.01, CLEAR))
            ),
            Claim("WeSTAR", MEASURED_BOTH, 0.0, CORRUPTED),
            Claim("WeSTAR", AS_KNOWN, 0.0, CORRUPTED),
            Claim("WeSTAR", NO_LABELS, 0.0, CORRUPTED),
            Claim("WeSTAR", "self-training, masks", 0.0, CORRUPTED),
            Claim(GIVEN, "self-training, depth bins", 0.0, CORRUPTED),
            Claim("self-training, depth bins", "self-training, whole image", 0.0, CORRUPTED),
            Claim("WeSTAR", "full fine-tuning", 0.0, CORRUPTED),
        ),
        seeds=5,
        floor=BASELINES,
        control=(STRETCHED, MEASURED, MEASURED_BOTH),
        ceiling=(CEILING,),
        gates=(
            Gate(SOURCE, "plane", CLEAR, most=0.5),
            *(Gate(CEILING, SOURCE, Measure(n, "1 - delta1"), most=REACHED) for n in names),
        ),
    )


def stretched(samples: Sequence[Sample], like: Sequence[Sample]) -> list[Sample]:
    """Return the images with the average mean and standard deviation of `like`, per channel.

    The reference of a fixed rule without any learning.
    """
    pixels = [s.image.reshape(-1, 3).astype(np.float32) for s in like]
    mean = np.mean([p.mean(axis=0) for p in pixels], axis=0)
    spread = np.mean([p.std(axis=0) for p in pixels], axis=0)
    out = []
    for sample in samples:
        image = sample.image.astype(np.float32)
        own = image.reshape(-1, 3)
        scaled = (image - own.mean(axis=0)) / np.maximum(own.std(axis=0), 1.0) * spread + mean
        out.append(replace(sample, image=np.rint(scaled.clip(0, 255)).astype(np.uint8)))
    return out


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `study westar`."""
    add_run_options(parser)
    parser.add_argument(
        "--target",
        nargs="+",
        default=["defocus"],
        metavar="NAME",
        help="corruptions, adapted to one at a time and judged by their mean; westar: six of them",
    )
    parser.add_argument("--severity", type=int, default=5, help="of the corruption")
    parser.add_argument(
        "--triples", type=int, default=TRIPLES, help="labelled triples of points of each image"
    )
    parser.add_argument(
        "--choose", action="store_true", help="score on other rooms, for choosing settings"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="key=value", help="settings tried in every row"
    )


def _westar_study(args: argparse.Namespace) -> Study:
    try:
        targets = named(args.target)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    learn = rooms(args.out, "learn", args.images, args.jobs, labels=True)
    known = rooms(args.out, "known", max(args.images // 9, 1) * 3, args.jobs)
    judge = rooms(args.out, "choose" if args.choose else "judge", 3 * args.rooms, args.jobs)
    steps = args.steps or WESTAR_BASE["loop"]["steps"]
    kind = f"{args.severity}-{args.images}"

    @functools.cache
    def corrupted(purpose: str, target: str) -> list[Sample]:
        """Return the corrupted images to judge on (purpose judge) or to learn from."""
        return corrupted_images(judge if purpose == "judge" else learn, target, args.severity)

    def make(name: str, seed: int) -> dict[str, F64]:
        if name in BASELINES:
            own = baseline_errors(name, judge, edges=False)
            return joined({target: own for target in targets}, dict.fromkeys(targets, own))
        both: tuple[dict[str, F64], dict[str, F64]] = ({}, {})
        for target in targets:
            shown, clear = corrupted("judge", target), judge
            if name == STRETCHED:
                shown, clear = (stretched(one, like=known) for one in (shown, clear))
            variant = next(v for v in WESTAR if v.name == (SOURCE if name == STRETCHED else name))
            folder = args.out / args.study / f"{target}-{kind}"
            seen = [] if variant.settings is None else corrupted("learn", target)
            network = adapt(folder, variant, seed, seen, known, steps, args.triples, args.set)
            for errors_by, samples in zip(both, (shown, clear), strict=True):
                errors_by[target] = errors(network, samples, (common.height, common.width))
        return joined(*both)

    groups = by_room(judge).groups
    parts = {name: Part(groups) for name in targets} if len(targets) > 1 else {}
    parts |= {part: Part(list(groups) * len(targets)) for part in ("corrupted", "clear")}
    name = f"{'-'.join(args.target)}-{kind}-{steps}{labelled(args.triples)}{named_by(args.set)}"
    plan, common = design(targets), settings(args.set)
    unseeded = (SOURCE, *plan.control, CEILING, *BASELINES)  # one run of the ceiling is enough
    rows = [v.name for v in WESTAR if v.name not in plan.references()]
    folder = args.out / args.study / f"{name}{'-choose' if args.choose else ''}"
    return Study(
        folder, [*rows, *plan.references()], ("AbsRel", "1 - delta1"), parts, make, plan, unseeded
    )


def joined(corrupted: dict[str, F64], clear: dict[str, F64]) -> dict[str, F64]:
    """Return the errors of all corruptions together and, if there are several, of each."""
    each = corrupted if len(corrupted) > 1 else {}
    together = {"corrupted": corrupted, "clear": clear}
    return {**each, **{part: np.concatenate(list(e.values())) for part, e in together.items()}}


def command(args: argparse.Namespace, console: Console) -> None:
    """Do the missing runs and print the report. Raises TrainingError for an unknown corruption."""
    run_study(_westar_study(args), args, console)
