# SPDX-License-Identifier: Apache-2.0
"""Study of Distill Any Depth's normalisations with a teacher that is wrong in one region.

    python -m training study normalisations --out STUDY --seeds 1 2 3 4 5

This is the mechanism that the paper gives for them. The teacher is the truth, except for one
rectangle of each image in which its map is wrong: turned upside down, scaled and rough. If a part
of a map is wrong, a normalisation over the whole image (`global`) changes it everywhere; one over
parts, or none, does not. Students that start from the same short run learn from such teachers with
each normalisation, and are scored against the truth on rooms that no run saw. `teacher_errors`
measures the same effect on the targets themselves, without a network.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from depth_node import config
from training.data.augmentation import Window
from training.data.mixed import batched, drawn
from training.data.pool import Pool
from training.data.samples import F64, Sample
from training.evaluation.score import BASELINES
from training.evaluation.statistics import change_of_runs
from training.losses.depth import normalised_l1
from training.losses.normalization import NORMS, statistics
from training.models.networks import open_run
from training.models.unet import SmallUNet
from training.recipe import Batch, BatchPart, Recipe, generators
from training.recipes import supervised
from training.studies import add_run_options
from training.studies.common import (
    Study,
    baseline_errors,
    by_room,
    errors,
    pool,
    run_study,
    samples,
    slug,
    trained,
)
from training.studies.distill import TRUTH
from training.studies.proof import Claim, Design, Gate, Measure, percent

SIZE, VIEW = (64, 96), (76, 114)  # (h, w) of the network's input and of a rendered image, px
SHARES = (0.0, 0.1, 0.3)  # fractions of an image's pixels where the teacher is wrong
# Standard deviations of the logarithm of the wrong map's factor, for the whole rectangle and for
# each of CELLS x CELLS cells.
WRONG_SCALE, ROUGHNESS, CELLS = 0.8, 0.4, 4
STEPS = 500
LOOP: dict[str, Any] = {**TRUTH["loop"], "steps": STEPS, "batch": 16, "checkpoint_every": 500}
BASE: dict[str, Any] = {**TRUTH, "height": SIZE[0], "width": SIZE[1], "loop": LOOP}
# All students start from this run: from random weights a scale-and-shift-invariant loss stalls.
START: dict[str, Any] = {"loop.steps": 500, "loop.seed": 1, "loop.learning_rate": 2e-3}


def spoiled(disparity: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Replace one rectangle of each disparity map (N, 1, H, W); return maps and mask of it.

    The rectangle has the fraction `share` of the pixels. In it the disparity is the image's own,
    turned upside down, times a random factor and a random rough field.
    """
    n, _, height, width = disparity.shape
    mask = torch.zeros_like(disparity, dtype=torch.bool)
    if share == 0:
        return disparity, mask
    out = disparity.clone()
    for k in range(n):
        longer = float(np.exp(rng.uniform(-0.4, 0.4)))
        rows = int(np.clip(round(height * np.sqrt(share) * longer), 1, height))
        columns = int(np.clip(round(share * height * width / rows), 1, width))
        top, left = (int(rng.integers(0, a - b + 1)) for a, b in ((height, rows), (width, columns)))
        at = np.s_[0, top : top + rows, left : left + columns]
        cells = rng.normal(0, ROUGHNESS, (1, 1, CELLS, CELLS)).astype(np.float32)
        rough = torch.nn.functional.interpolate(
            torch.from_numpy(cells), (rows, columns), mode="bilinear", align_corners=True
        )[0, 0].to(disparity)
        factor = torch.exp(rough + float(rng.normal(0, WRONG_SCALE)))
        out[k][at] = disparity[k][at].flip(0) * factor
        mask[k][at] = True
    return out, mask


class NoisyTeacher(Recipe):
    """The recipe: a student of a teacher that is the truth except in one region."""

    name = "supervised"  # it has the network of that recipe, which networks.open_run knows

    def __init__(self, cfg: supervised.Config, images: Pool, norm: str, share: float) -> None:
        self.cfg, self.images, self.norm, self.share = cfg, images, norm, share

    def model(self) -> nn.Module:
        """Return the student with the weights of the start."""
        return supervised.Supervised(self.cfg, self.images).model()

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Return images (N, 3, h, w), normalised for the network, and maps (N, 1, h, w)."""
        cfg = self.cfg
        rngs = generators(cfg.loop, step, part)
        rows = [drawn(self.images, rng, cfg.height, cfg.width, cfg.augment) for rng in rngs]
        batch = batched(rows)
        rng = np.random.default_rng([cfg.loop.seed, step, part[0], 1])
        teacher, known, _ = teacher_map(batch["depth"], self.share, rng)
        image = SmallUNet.spec.normalise(batch["image"])
        return {"image": image, "teacher": teacher, "known": known}

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Return the distillation loss with the norm, without other terms."""
        level = normalised_l1(model(batch["image"]), batch["teacher"], batch["known"], self.norm)
        return {"loss": level}


def teacher_map(
    depth: Tensor, share: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the teacher's map (N, 1, H, W) of depth in m, and masks of known and wrong pixels.

    The map is disparity normalised by the median and mean deviation of the true map, as the start
    was trained: with `none` the compared maps then have one scale; for the other normalisations it
    makes no difference.
    """
    known = torch.isfinite(depth) & (depth > 0)
    truth = torch.where(known, 1.0 / depth.clamp_min(1e-3), torch.zeros_like(depth))
    median, deviation, _ = (p[:, -1].view(-1, 1, 1, 1) for p in statistics(truth, known))
    disparity, wrong = spoiled(truth, share, rng)
    return (disparity - median) / deviation.clamp_min(1e-6), known, wrong & known


def teacher_errors(judge: Sequence[Sample], norm: str, share: float, seed: int) -> F64:
    """Return the errors (images,) of the normalised teacher where its map is right.

    The mean difference from the normalised truth over the pixels outside of the wrong region: how
    far a perfect student is pulled away from the truth there. 0 for `none`. seed: of the regions.
    """
    errors = []
    rng = np.random.default_rng([seed, 2])
    for sample in judge:
        assert sample.depth is not None
        depth = Window.whole(sample.image.shape, *SIZE).nearest(sample.depth)
        maps = torch.from_numpy(np.ascontiguousarray(depth, np.float32))[None, None]
        truth, known, _ = teacher_map(maps, 0.0, rng)
        teacher, _, wrong = teacher_map(maps, share, rng)
        right = (known & ~wrong).float()
        errors.append(float(normalised_l1(truth, teacher, known, norm, right)))
    return np.array(errors)


def target_table(judge: Sequence[Sample], seeds: Sequence[int]) -> str:
    """Return a Markdown table of `teacher_errors`; each seed draws other regions."""
    lines = [
        "Targets: mean difference from the normalised truth where the teacher is right, and its"
        " change against `global`",
        "",
        f"| wrong pixels | {' | '.join(NORMS)} |",
        "|---" * (1 + len(NORMS)) + "|",
    ]
    for share in SHARES[1:]:
        pulls = {
            norm: np.stack([teacher_errors(judge, norm, share, seed) for seed in seeds])
            for norm in NORMS
        }
        cells = []
        for norm, pull in pulls.items():
            change = change_of_runs(pulls["global"], pull, by_room(judge).groups)
            cells.append(f"{pull.mean():.3f}" + ("" if norm == "global" else f" {percent(change)}"))
        lines.append(f"| {share:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def name_of(norm: str, share: float) -> str:
    """Return the name of the row of a normalisation and a fraction of wrong pixels."""
    return f"{norm}, {share:.0%} wrong"


ROWS = {name_of(norm, share): (norm, share) for share in SHARES[::-1] for norm in NORMS}
START_ROW = "start"
ON_ROOMS = Measure("rooms", "AbsRel")
WORST, CLEAN = SHARES[-1], SHARES[0]
DESIGN = Design(
    claims=(
        Claim(name_of("hybrid", WORST), name_of("global", WORST), 0.0, ON_ROOMS),
        Claim(name_of("none", WORST), name_of("global", WORST), 0.0, ON_ROOMS),
        Claim(name_of("hybrid", WORST), name_of("local", WORST), 0.0, ON_ROOMS),
        Claim(name_of("hybrid", 0.1), name_of("global", 0.1), 0.0, ON_ROOMS),
        Claim(name_of("hybrid", CLEAN), name_of("global", CLEAN), 0.0, ON_ROOMS),
    ),
    seeds=5,
    floor=BASELINES,
    control=(START_ROW,),
    ceiling=(),
    gates=(
        # With a correct teacher a student must have learnt.
        Gate(name_of("global", CLEAN), "plane", ON_ROOMS, most=0.75),
        Gate(name_of("global", CLEAN), START_ROW, ON_ROOMS, most=0.95),
        Gate(name_of("hybrid", CLEAN), START_ROW, ON_ROOMS, most=0.95),
        # The wrong region must do harm, or the normalisations cannot be distinguished.
        Gate(name_of("global", WORST), name_of("global", CLEAN), ON_ROOMS, least=1.03),
    ),
)


def _start(folder: Path, learn: Pool, steps: int) -> Path:
    """Train the run from which all students start, on the truth; return its folder."""
    cfg = config.replace(
        config.build(supervised.Config, BASE), {**START, **({"loop.steps": steps} if steps else {})}
    )
    path = folder / "runs" / "start"
    recipe = supervised.Supervised(cfg, learn)
    return trained(recipe, cfg.loop, path, config.to_dict(cfg))


def _student(folder: Path, learn: Pool, name: str, seed: int, steps: int) -> Path:
    """Train the run of a row and return its folder."""
    changes: dict[str, Any] = {"loop.seed": seed, "start": str(_start(folder, learn, steps))}
    changes |= {"loop.steps": steps} if steps else {}
    cfg = config.replace(config.build(supervised.Config, BASE), changes)
    norm, share = ROWS[name]
    path = folder / "runs" / f"{slug(name)}-{seed}"
    recipe = NoisyTeacher(cfg, learn, norm, share)
    settings = {**config.to_dict(cfg), "norm": norm, "share": share}
    return trained(recipe, cfg.loop, path, settings)


def _study(args: argparse.Namespace) -> Study:
    learn = pool(args.out, "normalisations-learn", args.images, "mixed", 7131, VIEW, args.jobs)
    count = 3 * args.rooms
    judge = samples(pool(args.out, "normalisations-judge", count, "mixed", 7133, VIEW, args.jobs))
    folder = args.out / "normalisations" / f"{args.images}-{args.steps or STEPS}"

    def make(name: str, seed: int) -> dict[str, F64]:
        if name in BASELINES:
            return {"rooms": baseline_errors(name, judge, edges=False)}
        if name == START_ROW:
            path = _start(folder, learn, args.steps)
        else:
            path = _student(folder, learn, name, seed, args.steps)
        return {"rooms": errors(open_run(path), judge, SIZE)}

    targets = functools.cache(lambda: target_table(judge, args.seeds))
    rows = [*ROWS, *DESIGN.references()]
    parts = {"rooms": by_room(judge)}
    unseeded = (*BASELINES, START_ROW)
    units = ("AbsRel", "1 - delta1")
    return Study(folder, rows, units, parts, make, DESIGN, unseeded, after=lambda _: [targets()])


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the study."""
    add_run_options(parser)


def command(args: argparse.Namespace, console: Console) -> None:
    """Do the missing runs of the study and print its report."""
    run_study(_study(args), args, console)
