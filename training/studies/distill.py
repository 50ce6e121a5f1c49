# SPDX-License-Identifier: Apache-2.0
"""Does Distill Any Depth order its choices here as its tables 1, 2 and 4 do?

    python -m training study distill --out STUDY [--seeds 1 2 3] [--frames FOLDER ...]

All is made by the command itself: rooms to look at; a student that learnt a little from true
depth, where every run starts (the paper's student is a trained network too, and from random weights
a loss without scale and shift stalls); an assistant (the embedded network, taught on by the truth
of desks, bins and shelves alone); a run of the recipe for every choice. Judged on rooms that no run
saw and on recorded frames, with the scores and intervals of `training evaluate`. Beside the choices
stand the start, the teachers, and the student that went on learning from the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from depth_node import config, metrics
from depth_node.prediction import Prediction
from training.checkpoints import TrainingError
from training.data.augmentation import Window
from training.data.pool import PoolConfig, open_pool
from training.data.samples import Sample
from training.evaluation import predict, protocols, score, statistics
from training.loop import Recipe, run
from training.models.networks import NetworkConfig, open_network, open_run
from training.models.teachers import NetworkTeacher, Teacher, ask
from training.recipes import distill, supervised
from training.studies import add_run_options
from training.studies.common import Variant, percent, scored_once, slug

HEIGHT, WIDTH = 64, 96  # of the student
TEACHER = (96, 128)  # of the teachers, as they were trained
SMALL = (108, 144)  # of images that are only learnt from as they are
ALIGNMENT = "disp_ls"
SPECIAL = ("desk", "bin", "shelf")  # styles that the assistant saw more of
# Of rooms that the embedded network (seed 20) never saw; other ones to judge by than to learn from.
SEEDS = {"learn": 7101, "judge": 7103, "desk": 7111, "bin": 7112, "shelf": 7113,
         "start": 7120}  # fmt: skip
IMAGE = (216, 288)  # finer than the wide view, 96 x 144, so that its parts show more than it does

STEPS = 400
UNET = {"widths": [12, 20, 32, 48, 64], "depths": [0, 1, 1, 1, 1], "decoder": [32, 24, 16, 12]}
LOOP = {
    "steps": STEPS,
    "batch": 8,
    "warmup": 20,
    "learning_rate": 1e-3,
    "weight_decay": 0.02,
    "schedule": "cosine",
    "final_rate": 0.01,
    "precision": "bf16",
    "tensorboard": False,
    "checkpoint_every": 100,
    "log_every": 50,
}
# No weights of DINOv2 were at hand, and the anchor is not the paper's.
BASE: dict[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "teacher_choice": "primary",
    "encoder_rate": 1.0,
    "keep": 0,
    "network": {"kind": "unet", "unet": UNET},
    "crop": {"smallest_px": 152},
    "view": {"colour": 0.2, "gamma": 0.2},
    "loss": {"feature": 0, "anchor": 0},
    "loop": LOOP,
}
# The upper row: the same start, steps and images, taught by the truth.
TRUTH: dict[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "student": UNET,
    "source": "images",
    "augment": {"smallest_crop": 0.7, "aspect": 0.0, "colour": 0.2, "gamma": 0.2, "blur": 0.0,
                "noise": 0.0, "grey": 0.0},
    "loop": LOOP,
}  # fmt: skip
# Where all begin.
START: dict[str, Any] = {"start": "", "loop.steps": 2400, "loop.batch": 16, "loop.seed": 1,
         "loop.learning_rate": 2e-3, "loop.checkpoint_every": 600}  # fmt: skip
ASSISTANT: dict[str, Any] = {
    "height": TEACHER[0],
    "width": TEACHER[1],
    "source": "images",
    "loss": {"relative": 2.0},
    "loop": {**LOOP, "seed": 1, "steps": 250, "batch": 16, "learning_rate": 5e-4},
}
ALIKE = "average of two in one scale"  # of both as they are; elsewhere the assistant's is 0..1
SHARED, LOCAL = {"loss.local": 0}, {"loss.shared": 0}
VARIANTS = (
    # Table 2: both, one, the other. The first row is what all others are compared with.
    Variant("both contexts, hybrid", {}),
    Variant("shared, hybrid", SHARED),
    Variant("local-global, hybrid", LOCAL),
    # Table 4: the teacher, with both contexts and hybrid.
    Variant("assistant teaches", {"teacher_choice": "assistant"}),
    Variant("average of two", {"teacher_choice": "average"}),
    Variant("one of two by chance", {"teacher_choice": "random"}),
    Variant(ALIKE, {"teacher_choice": "average"}),
    # Table 1: normalisation, in each context.
    Variant("shared, global", {**SHARED, "loss.norm": "global"}),
    Variant("shared, none", {**SHARED, "loss.norm": "none"}),
    Variant("shared, local", {**SHARED, "loss.norm": "local"}),
    Variant("local-global, global", {**LOCAL, "loss.norm": "global"}),
    Variant("local-global, none", {**LOCAL, "loss.norm": "none"}),
    Variant("local-global, local", {**LOCAL, "loss.norm": "local"}),
    Variant("taught by the truth", None),
)
# (table, better, worse) as published, AbsRel on ETH3D and on DIODE, where both sets say the same.
PUBLISHED: tuple[tuple[int, str, str, tuple[float, float], tuple[float, float]], ...] = (
    (1, "shared, hybrid", "shared, global", (0.057, 0.238), (0.064, 0.259)),
    (1, "shared, none", "shared, global", (0.057, 0.239), (0.064, 0.259)),
    (1, "shared, hybrid", "shared, local", (0.057, 0.238), (0.070, 0.245)),
    (1, "shared, none", "shared, local", (0.057, 0.239), (0.070, 0.245)),
    (1, "local-global, hybrid", "local-global, global", (0.064, 0.238), (0.065, 0.239)),
    (1, "local-global, global", "local-global, local", (0.065, 0.239), (0.076, 0.244)),
    (1, "local-global, local", "local-global, none", (0.076, 0.244), (0.273, 0.300)),
    (2, "both contexts, hybrid", "shared, hybrid", (0.056, 0.232), (0.058, 0.237)),
    (2, "both contexts, hybrid", "local-global, hybrid", (0.056, 0.232), (0.064, 0.238)),
    (2, "shared, hybrid", "local-global, hybrid", (0.058, 0.237), (0.064, 0.238)),
    (4, "both contexts, hybrid", "average of two", (0.056, 0.232), (0.228, 0.371)),  # and table 2
    # Its rows "w/o" are the teachers themselves (table 5), no students; against the primary alone
    # (table 2: .056, .232) chance is better on ETH3D and worse on DIODE. Its average weighs pixels
    # on which the teachers agree more.
    (4, "one of two by chance", "average of two", (0.054, 0.258), (0.228, 0.371)),
)


class UnitRangeTeacher:
    """A teacher whose maps are scaled to 0..1, image by image, as GenPercept's are."""

    kind = "disparity_affine_invariant"

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.name, self.revision = teacher.name, f"{teacher.revision}+unit"

    def __call__(self, images: Tensor) -> Tensor:
        """Maps of the images' size, 0 far to 1 near."""
        maps, _ = ask(self.teacher, images)
        low, high = maps.amin((1, 2, 3), True), maps.amax((1, 2, 3), True)
        return (maps - low) / (high - low).clamp_min(1e-6)


@dataclass(frozen=True)
class StudentSizePredictor:
    """A teacher or a student as a predictor that gets images at the student's size."""

    teacher: Teacher

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """(H, W, 3) uint8 RGB -> disparity (H, W)."""
        small = Window.whole(image.shape, HEIGHT, WIDTH).image(image).astype(np.float32) / 255
        maps, _ = ask(self.teacher, torch.from_numpy(small).permute(2, 0, 1)[None])
        whole = torch.nn.functional.interpolate(maps, image.shape[:2], mode="bilinear")
        return Prediction(whole[0, 0].numpy(), "disparity_affine_invariant")


@dataclass
class DistillStudy:
    """Images, teachers and the initial student of all variants, made on first use and stored."""

    out: Path
    images: int
    steps: int

    def rendered(self, purpose: str, count: int, size: tuple[int, int] = IMAGE) -> list[Sample]:
        """Images with depth, three of each room; of a style by its name, else of all."""
        cfg = PoolConfig(
            str(self.out / "rooms" / f"distill-{purpose}-{count}"),
            samples=count,
            height=size[0],
            width=size[1],
            views_per_scene=3,
            style=purpose if purpose in SPECIAL else "mixed",
            seed=SEEDS[purpose],
            wait_for=count,
            fill=True,
        )
        pool = open_pool(cfg)
        return [replace(pool[k], source=f"{purpose} {k // 3}") for k in range(count)]

    @cached_property
    def learn(self) -> list[Sample]:
        """What students look at."""
        return self.rendered("learn", self.images)

    @property
    def folder(self) -> Path:
        """Of everything that other numbers of images or steps would change."""
        return self.out / "distill" / f"{self.images}-{self.steps}"

    @cached_property
    def start(self) -> Path:
        """The run of the student that all begin with."""
        steps = {"loop.steps": min(START["loop.steps"], 6 * self.steps)}
        cfg = config.replace(config.build(supervised.Config, TRUTH), {**START, **steps})
        images = self.rendered("start", self.images // 9 * 12, SMALL)
        return self._trained("start", cfg, supervised.Supervised(cfg, images))

    @cached_property
    def primary(self) -> Teacher:
        """The embedded network."""
        network = open_network(NetworkConfig(source="embedded"))
        return NetworkTeacher(network, "embedded", TEACHER)

    @cached_property
    def assistant(self) -> UnitRangeTeacher:
        """The embedded network after more images of desks, bins and shelves; maps in 0..1."""
        weights = self.folder / "embedded.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_file(open_network(NetworkConfig(source="embedded")).state_dict(), str(weights))
        steps = min(ASSISTANT["loop"]["steps"], self.steps)
        changes = {"start": str(weights), "loop.steps": steps}
        cfg = config.replace(config.build(supervised.Config, ASSISTANT), changes)
        count = self.images // 9 * 3
        special = [s for style in SPECIAL for s in self.rendered(style, count, SMALL)]
        run = self._trained("assistant", cfg, supervised.Supervised(cfg, special))
        return UnitRangeTeacher(NetworkTeacher(open_run(run), "assistant", TEACHER))

    def student(self, variant: Variant, seed: int) -> Teacher:
        """What one variant learnt."""
        settings = variant.settings or {}
        changes = {**settings, "loop.seed": seed, "loop.steps": self.steps}
        recipe: Recipe
        if variant.settings is None:
            changes["start"] = str(self.start)
            cfg: Any = config.replace(config.build(supervised.Config, TRUTH), changes)
            recipe = supervised.Supervised(cfg, self.learn)
        else:
            changes["network.source"] = str(self.start)
            cfg = config.replace(config.build(distill.Config, BASE), changes)
            second: Teacher | None = None
            if cfg.teacher_choice != "primary":
                second = self.assistant.teacher if variant.name == ALIKE else self.assistant
            plain = [Sample(s.name, s.image) for s in self.learn]  # no depth to look at
            recipe = distill.Distill(cfg, plain, [self.primary, second])
        folder = self._trained(f"{slug(variant.name)}-{seed}", cfg, recipe)
        return NetworkTeacher(open_run(folder), variant.name)

    def _trained(self, name: str, cfg: Any, recipe: Recipe) -> Path:
        """The folder of a run, gone on with if it did not end."""
        folder = self.folder / "runs" / name
        run(recipe, cfg.loop, folder, config.to_dict(cfg), console=Console(quiet=True))
        return folder


def part_errors(teacher: Teacher, judge: Sequence[Sample]) -> dict[str, Any]:
    """AbsRel of the teacher on the parts of wide views, as lists of one row an image like those of
    `scores`: asked about the part itself, and cut from its answer to the whole.

    Local-global distillation presumes that the former is the better one.
    """
    cfg = config.build(distill.Config, BASE)
    rows, columns = cfg.wide_size
    protocol = protocols.find(score.INDOOR)
    rows_by_way: dict[str, list[list[Any]]] = {"alone": [], "cut": []}
    for sample in judge:
        assert sample.depth is not None
        wide = Window.whole(sample.image.shape, rows, columns)
        image, truth = wide.image(sample.image), wide.nearest(sample.depth)
        whole = StudentSizePredictor(teacher).predict(image).values
        errors: dict[str, list[float]] = {"alone": [], "cut": []}
        for top, left in cfg.corners():
            part = np.s_[top : top + HEIGHT, left : left + WIDTH]
            counted = protocols.counted(protocol, truth[part])
            answers = {
                "alone": StudentSizePredictor(teacher).predict(image[part]).values,
                "cut": whole[part],
            }
            for way, values in answers.items():
                prediction = Prediction(values, "disparity_affine_invariant")
                depth = protocols.align(prediction, truth[part], counted, ALIGNMENT, protocol)
                scored = np.where(counted, truth[part], np.float32(np.nan))
                errors[way].append(metrics.evaluate(depth, scored).abs_rel)
        for way, values_ in errors.items():
            rows_by_way[way].append([sample.source, sample.name, float(np.nanmean(values_))])
    return {way: np.array(lines, dtype=object) for way, lines in rows_by_way.items()}


def scores(teacher: Teacher, sets: dict[str, list[Sample]]) -> dict[str, Any]:
    """Source, frame, AbsRel, delta1 and boundary F1 of every image, by set."""
    plan = score.ScoringPlan((ALIGNMENT,))
    tables = {}
    for part, samples in sets.items():
        rows = score.score(samples, {"it": StudentSizePredictor(teacher)}, plan)
        own = [row for row in rows if row.method == "it"]
        table = [[r.source, r.frame, r.abs_rel, r.delta1, r.boundary_f1] for r in own]
        tables[part] = np.array(table, dtype=object)
    return tables


def compared(
    first: Sequence[Any], other: Sequence[Any], pooled: bool, column: int = 2
) -> statistics.Interval:
    """Mean of other over mean of first, minus 1; each a list of `scores` of one set, per seed.

    Means over the seeds first, then over images (`pooled`) or sources; drawn by source, paired.
    """
    means = [
        np.mean([[row[column] for row in rows] for rows in seeds], 0) for seeds in (first, other)
    ]
    by_source: dict[str, list[list[float]]] = {}
    for (source, *_), one, two in zip(first[0], *means, strict=True):
        by_source.setdefault(source, []).append([float(one), float(two)])
    tables = {name: np.array(rows) for name, rows in by_source.items()}
    return statistics.bootstrap(tables, statistics.change, by="source", pooled=pooled)


Results = dict[str, list[dict[str, Any]]]
POOLED = {"rooms": True, "frames": False}  # the mean is over images, or over sources' means


def table(results: Results, parts: Sequence[str]) -> str:
    """Markdown: every variant on every set, and how it compares with the first one."""
    first = next(iter(results))
    head = " | ".join(
        f"{part}: AbsRel | each seed | change | 1 - delta1 | boundary F1" for part in parts
    )
    lines = [f"| variant | {head} |", "|---" * (1 + 5 * len(parts)) + "|"]
    for name, rows in results.items():
        cells = [name]
        for part in parts:
            own = [row[part] for row in rows]
            pooled = POOLED[part]
            values = [[mean([one], k, pooled) for one in own] for k in (2, 3, 4)]
            abs_rel, delta1, edges = (float(np.mean(v)) for v in values)
            each = " ".join(f"{v:.4f}" for v in values[0]) if len(own) > 1 else ""
            change = ""
            if name != first:
                base = [row[part] for row in results[first]]
                change = percent(compared(base, own, pooled))
            cells += [f"{abs_rel:.4f}", each, change, f"{1 - delta1:.4f}", f"{edges:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def orders(results: Results, parts: Sequence[str]) -> str:
    """Markdown: the published order, pair by pair, and the result here.

    yes or no only where the interval leaves 0 out and all seeds agree; else open.
    """
    head = " | ".join(f"{part}: error of the first over the second" for part in parts)
    lines = [f"| table | better | than | published | {head} |", "|---" * (4 + len(parts)) + "|"]
    for number, better, worse, low, high in PUBLISHED:
        if better not in results or worse not in results:
            continue
        published = ", ".join(f"{a / b - 1:+.1%}" for a, b in zip(low, high, strict=True))
        cells = [str(number), better, worse, published]
        for part in parts:
            two, one = ([row[part] for row in results[name]] for name in (worse, better))
            interval = compared(two, one, POOLED[part])
            each = [compared([a], [b], POOLED[part]).value for a, b in zip(two, one, strict=False)]
            verdict = "open"
            if interval.high < 0 and max(each) < 0:
                verdict = "yes"
            elif interval.low > 0 and min(each) > 0:
                verdict = "no"
            cells.append(f"{percent(interval)} {verdict}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(seeds: Sequence[Any], column: int, pooled: bool) -> float:
    """Mean of a column of `scores`, over the seeds and then over images or sources."""
    by_source: dict[str, list[list[float]]] = {}
    for rows in seeds:
        for row in rows:
            if np.isfinite(row[column]):
                by_source.setdefault(row[0], []).append([row[column]])
    tables = {name: np.array(values) for name, values in by_source.items()}
    return float(statistics.mean_over(tables, pooled)[0])


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `study distill`."""
    add_run_options(parser)
    parser.add_argument(
        "--frames", type=Path, nargs="+", default=[], help="recorded frames to score on"
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Run what is missing, write the tables after every run and print them at the end.

    Raises TrainingError for an unknown variant or too few images.
    """
    names = [variant.name for variant in VARIANTS]
    for name in args.only:
        if name not in names:
            raise TrainingError(f"No variant is called {name!r}: there are {'; '.join(names)}.")
    if args.images < 9:
        raise TrainingError(f"--images {args.images} is too few for this study: give 9 or more.")
    torch.set_num_threads(1)
    study = DistillStudy(args.out, args.images, args.steps or STEPS)
    judge = study.rendered("judge", 3 * args.rooms)
    sets = {"rooms": judge}
    frames = [sample for folder in args.frames for sample in predict.recorded(folder)]
    if frames:
        sets["frames"] = frames
    chosen = [v for v in VARIANTS if not args.only or v.name in args.only]
    results: Results = {v.name: [] for v in chosen}
    more: list[str] = []

    def scored(name: str, make: Any) -> dict[str, Any]:
        file = f"{slug(name)}-{len(judge)}-{len(frames)}.json"
        return scored_once(study.folder / "scores" / file, make)

    def write() -> str:
        done = {name: rows for name, rows in results.items() if rows}
        text = "\n\n".join([table(done, list(sets)), orders(done, list(sets)), *more])
        (study.folder / "table.md").write_text(text + "\n", encoding="utf-8")
        return text

    for seed in args.seeds:
        for variant in chosen:

            def make(v: Variant = variant, s: int = seed) -> dict[str, Any]:
                return scores(study.student(v, s), sets)

            results[variant.name].append(scored(f"{variant.name}-{seed}", make))
            write()
    others = {
        "start": lambda: NetworkTeacher(open_run(study.start), "start"),
        "primary teacher": lambda: study.primary,
        "assistant": lambda: study.assistant,
    }
    for name, open_teacher in others.items():
        results[name] = [
            scored(name, lambda open_teacher=open_teacher: scores(open_teacher(), sets))
        ]
    parts = scored("parts", lambda: part_errors(study.primary, judge))
    change = compared([parts["cut"]], [parts["alone"]], pooled=True)
    alone, cut = (mean([parts[way]], 2, pooled=True) for way in ("alone", "cut"))
    more.append(
        f"The teacher on parts of wide views, AbsRel: {alone:.4f} asked about the part,"
        f" {cut:.4f} cut from its answer to the whole ({percent(change)})."
    )
    console.print(write())
