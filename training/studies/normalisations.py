# SPDX-License-Identifier: Apache-2.0
"""Distill Any Depth's normalisations by the mechanism that the paper gives for them: a teacher
that is wrong in one region.

    python -m training study normalisations --out STUDY --seeds 1 2 3 4 5

The teacher is the truth, but for one rectangle of each image in which its map is another one:
scaled, shifted and rough. A map that is normalised by the whole image (`global`) moves everywhere
when a part of it is wrong; one that is normalised in parts, or not at all, does not. Students that
begin with the same short run learn from such teachers under each normalisation, and are judged by
the truth on rooms that no run saw. `teacher_errors` says the same of the targets themselves,
without any network.
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

SIZE, VIEW = (64, 96), (76, 114)  # of the network, of a rendered image
SHARES = (0.0, 0.1, 0.3)  # of an image's pixels in which the teacher is wrong
# Of the wrong map: deviations of its logarithm as a whole and from cell to cell.
WRONG_SCALE, ROUGHNESS, CELLS = 0.8, 0.4, 4
STEPS = 500
LOOP: dict[str, Any] = {**TRUTH["loop"], "steps": STEPS, "batch": 16, "checkpoint_every": 500}
BASE: dict[str, Any] = {**TRUTH, "height": SIZE[0], "width": SIZE[1], "loop": LOOP}
# All begin with it; from random weights a loss without scale and shift stalls.
START: dict[str, Any] = {"loop.steps": 500, "loop.seed": 1, "loop.learning_rate": 2e-3}


def spoiled(disparity: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Disparities (N, 1, H, W) with one rectangle of each image replaced, and the mask of it.

    The rectangle has `share` of the pixels; in it the disparity is the image's own, turned upside
    down, times a factor and a rough field that are drawn anew.
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
    """The recipe: a student of the truth as a teacher that is wrong in one region gives it."""

    name = "supervised"  # its network is that one's, and opened as such

    def __init__(self, cfg: supervised.Config, images: Pool, norm: str, share: float) -> None:
        self.cfg, self.images, self.norm, self.share = cfg, images, norm, share

    def model(self) -> nn.Module:
        """The student, with the weights of the start."""
        return supervised.Supervised(self.cfg, self.images).model()

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Images (N, 3, h, w), normalised for the network, and the teacher's maps (N, 1, h, w)."""
        cfg = self.cfg
        rngs = generators(cfg.loop, step, part)
        rows = [drawn(self.images, rng, cfg.height, cfg.width, cfg.augment) for rng in rngs]
        batch = batched(rows)
        rng = np.random.default_rng([cfg.loop.seed, step, part[0], 1])
        teacher, known, _ = teacher_map(batch["depth"], self.share, rng)
        image = SmallUNet.spec.normalise(batch["image"])
        return {"image": image, "teacher": teacher, "known": known}

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """The distillation loss of the norm, alone."""
        level = normalised_l1(model(batch["image"]), batch["teacher"], batch["known"], self.norm)
        return {"loss": level}


def teacher_map(
    depth: Tensor, share: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's map (N, 1, H, W) of depth in m, the mask of known pixels, that of wrong ones.

    The map is disparity with the median and mean deviation of the truth taken out, as the start was
    taught: `none` then compares maps of one scale, and to the others it makes no difference.
    """
    known = torch.isfinite(depth) & (depth > 0)
    truth = torch.where(known, 1.0 / depth.clamp_min(1e-3), torch.zeros_like(depth))
    median, deviation, _ = (p[:, -1].view(-1, 1, 1, 1) for p in statistics(truth, known))
    disparity, wrong = spoiled(truth, share, rng)
    return (disparity - median) / deviation.clamp_min(1e-6), known, wrong & known


def teacher_errors(judge: Sequence[Sample], norm: str, share: float, seed: int) -> F64:
    """(images,): mean difference between the normalised spoiled teacher and the normalised truth
    over the pixels that the teacher has right: how far a perfect student is pulled away where
    nothing is wrong. 0 for `none`. seed: of the regions.
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
    """Markdown: the targets themselves, without a network; each seed draws other regions."""
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
    """The row of a normalisation and a share of wrong pixels."""
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
        # A student of a teacher that is right must have learnt from it.
        Gate(name_of("global", CLEAN), "plane", ON_ROOMS, most=0.75),
        Gate(name_of("global", CLEAN), START_ROW, ON_ROOMS, most=0.95),
        Gate(name_of("hybrid", CLEAN), START_ROW, ON_ROOMS, most=0.95),
        # And the noise must be felt, or nothing tells normalisations apart.
        Gate(name_of("global", WORST), name_of("global", CLEAN), ON_ROOMS, least=1.03),
    ),
)


def _start(folder: Path, learn: Pool, steps: int) -> Path:
    """The run that all students begin with, of the truth itself."""
    cfg = config.replace(
        config.build(supervised.Config, BASE), {**START, **({"loop.steps": steps} if steps else {})}
    )
    path = folder / "runs" / "start"
    recipe = supervised.Supervised(cfg, learn)
    return trained(recipe, cfg.loop, path, config.to_dict(cfg))


def _student(folder: Path, learn: Pool, name: str, seed: int, steps: int) -> Path:
    """The run of a row."""
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
    """The command line of the study."""
    add_run_options(parser)


def command(args: argparse.Namespace, console: Console) -> None:
    """Run what is missing of the study and print its report."""
    run_study(_study(args), args, console)
