# SPDX-License-Identifier: Apache-2.0
"""Study of Distill Any Depth: is the order of its variants here that of tables 1 to 4?

    python -m training study distill --out STUDY [--seeds 1 2 3] [--frames FOLDER ...]

The command makes everything itself: rooms to learn from; a student that learnt a little from true
depth, from which every run starts (the paper's student is a trained network too, and from random
weights a scale-and-shift-invariant loss stalls); an assistant (the embedded network, trained
further on the truth of desks, bins and shelves alone); a run of the recipe for every variant. They
are scored on rooms that no run saw and on recorded frames, with the scores and intervals of
`training evaluate`. References are the start, the teachers, and the student that continued to learn
from the truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
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
from depth_node.engine.manifest import EMBEDDED_SMALL
from depth_node.prediction import Prediction
from training.checkpoints import TrainingError
from training.data.augmentation import Window
from training.data.pool import PoolConfig, open_pool
from training.data.samples import F64, Sample
from training.evaluation import predict, protocols, score
from training.evaluation.predict import NetworkPredictor
from training.evaluation.score import BASELINES
from training.models.networks import NetworkConfig, open_network, open_run
from training.models.teachers import NetworkTeacher, Teacher, ask
from training.recipe import Recipe
from training.recipes import distill, supervised
from training.studies import add_run_options
from training.studies.common import Study, Variant, locked, run_study, slug, trained
from training.studies.proof import Claim, Design, Gate, Measure, Part

HEIGHT, WIDTH = 64, 96  # input of the student, px
TEACHER = (96, 128)  # input of the teachers, with which they were trained, px
SMALL = (108, 144)  # images for supervised training, px
ALIGNMENT = "disp_ls"
SPECIAL = ("desk", "bin", "shelf")  # styles on which the assistant was trained further
# Of rooms on which the embedded network (seed 20) was not trained; different ones to judge on.
SEEDS = {"learn": 7101, "judge": 7103, "desk": 7111, "bin": 7112, "shelf": 7113,
         "start": 7120}  # fmt: skip
IMAGE = (216, 288)  # finer than the wide view, 96 x 144, so that a part of it shows more detail

STEPS = 400
UNET: dict[str, list[int]] = {
    "widths": [12, 20, 32, 48, 64],
    "depths": [0, 1, 1, 1, 1],
    "decoder": [32, 24, 16, 12],
}
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
# Without features, because no weights of DINOv2 were available, and without the anchor, which is
# not the paper's.
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
# The control: the same start, steps and images, but the truth instead of a teacher.
TRUTH: dict[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "student": UNET,
    "source": "images",
    "augment": {"smallest_crop": 0.7, "aspect": 0.0, "colour": 0.2, "gamma": 0.2, "blur": 0.0,
                "noise": 0.0, "grey": 0.0},
    "loop": LOOP,
}  # fmt: skip
# Table 3 has other students too; ours has twice the channels.
WIDER = ", wider student"
WIDE = {f"network.unet.{part}": [2 * n for n in UNET[part]] for part in ("widths", "decoder")}
# The run from which all students start.
START: dict[str, Any] = {"start": "", "loop.steps": 2400, "loop.batch": 16, "loop.seed": 1,
         "loop.learning_rate": 2e-3, "loop.checkpoint_every": 600}  # fmt: skip
ASSISTANT: dict[str, Any] = {
    "height": TEACHER[0],
    "width": TEACHER[1],
    "source": "images",
    "loss": {"relative": 2.0},
    "loop": {**LOOP, "seed": 1, "steps": 250, "batch": 16, "learning_rate": 5e-4},
}
# Here the assistant's maps are used as they are; in the other rows they are scaled to 0..1.
ALIKE = "average of two in one scale"
SHARED, LOCAL = {"loss.local": 0}, {"loss.shared": 0}
UNCROPPED, BASE_ROW = "no random crop, hybrid", "no random crop, global"
WHOLE: dict[str, Any] = {**SHARED, "crop.smallest_px": IMAGE[0]}
AGREED = "average by agreement"
VARIANTS = (
    # Table 2: both contexts, and each alone. All other rows are compared with the first one.
    Variant("both contexts, hybrid", {}),
    Variant("shared, hybrid", SHARED),
    Variant("local-global, hybrid", LOCAL),
    Variant(UNCROPPED, WHOLE),
    # Table 3: distillation as it was before, and as proposed, also for another student.
    Variant(BASE_ROW, {**WHOLE, "loss.norm": "global"}),
    Variant(f"both contexts, hybrid{WIDER}", WIDE),
    Variant(f"{BASE_ROW}{WIDER}", {**WHOLE, **WIDE, "loss.norm": "global"}),
    # Table 4: the teacher, with both contexts and hybrid.
    Variant("assistant teaches", {"teacher_choice": "assistant"}),
    Variant("average of two", {"teacher_choice": "average"}),
    Variant(AGREED, {"teacher_choice": "agreement"}),
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
# (table, better row, worse row, AbsRel on (ETH3D, DIODE) of the better and of the worse), as
# published, where both data sets agree.
PUBLISHED: tuple[tuple[int, str, str, tuple[float, float], tuple[float, float]], ...] = (
    (3, "both contexts, hybrid", BASE_ROW, (0.098, 0.262), (0.110, 0.290)),
    (3, f"both contexts, hybrid{WIDER}", f"{BASE_ROW}{WIDER}", (0.120, 0.272), (0.150, 0.303)),
    (2, "both contexts, hybrid", "shared, hybrid", (0.056, 0.232), (0.058, 0.237)),
    (2, "both contexts, hybrid", "local-global, hybrid", (0.056, 0.232), (0.064, 0.238)),
    (2, "shared, hybrid", "local-global, hybrid", (0.058, 0.237), (0.064, 0.238)),
    (2, "local-global, hybrid", UNCROPPED, (0.064, 0.238), (0.075, 0.270)),
    (1, "shared, hybrid", "shared, global", (0.057, 0.238), (0.064, 0.259)),
    (1, "shared, none", "shared, global", (0.057, 0.239), (0.064, 0.259)),
    (1, "shared, hybrid", "shared, local", (0.057, 0.238), (0.070, 0.245)),
    (1, "shared, none", "shared, local", (0.057, 0.239), (0.070, 0.245)),
    (1, "local-global, hybrid", "local-global, global", (0.064, 0.238), (0.065, 0.239)),
    (1, "local-global, global", "local-global, local", (0.065, 0.239), (0.076, 0.244)),
    (1, "local-global, local", "local-global, none", (0.076, 0.244), (0.273, 0.300)),
    # The rows "w/o" of table 4 are the teachers themselves (table 5), not students. Against the
    # primary alone (table 2: .056, .232) random selection is better on ETH3D and worse on DIODE.
    # The paper's average gives pixels on which the teachers agree more weight.
    (4, "both contexts, hybrid", AGREED, (0.056, 0.232), (0.228, 0.371)),  # and table 2
    (4, "one of two by chance", AGREED, (0.054, 0.258), (0.228, 0.371)),
)
START_ROW, PRIMARY, ASSISTANT_ROW = "start", "primary teacher", "assistant"
ALONE, CUT = "teacher asked about a part", "teacher, cut from its answer to the whole"
ON_ROOMS = Measure("rooms", "AbsRel")
DESIGN = Design(
    claims=tuple(
        Claim(
            better, worse, 0.0, ON_ROOMS,
            f"published {', '.join(f'{a / b - 1:+.1%}' for a, b in zip(low, high, strict=True))},"
            f" table {number}",
        )
        for number, better, worse, low, high in PUBLISHED
    ),
    seeds=5,
    floor=BASELINES,
    control=("taught by the truth", PRIMARY),
    ceiling=(ASSISTANT_ROW, START_ROW, ALONE, CUT),
    gates=(
        Gate("taught by the truth", START_ROW, ON_ROOMS, most=0.95),
        Gate("both contexts, hybrid", START_ROW, ON_ROOMS, most=0.95),
        Gate("both contexts, hybrid", "plane", ON_ROOMS, most=0.75),
        Gate(ALONE, CUT, ON_ROOMS, most=0.85),  # the assumption of the local-global context
    ),
)  # fmt: skip


class UnitRangeTeacher:
    """A teacher whose maps are scaled to 0..1 per image, as GenPercept's are."""

    kind = "disparity_affine_invariant"

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.name, self.revision = teacher.name, f"{teacher.revision}+unit"

    def __call__(self, images: Tensor) -> Tensor:
        """Return maps (N, 1, H, W) at the size of the images, from 0 (far) to 1 (near)."""
        maps, _ = ask(self.teacher, images)
        low, high = maps.amin((1, 2, 3), True), maps.amax((1, 2, 3), True)
        return (maps - low) / (high - low).clamp_min(1e-6)


@dataclass(frozen=True)
class StudentSizePredictor:
    """A teacher or a student as a predictor; images are resized to the student's size first."""

    teacher: Teacher

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Predict disparity (H, W) of an image (H, W, 3) uint8 RGB."""
        small = Window.whole(image.shape, HEIGHT, WIDTH).unit_range(image)
        maps, _ = ask(self.teacher, torch.from_numpy(small).permute(2, 0, 1)[None])
        whole = torch.nn.functional.interpolate(maps, image.shape[:2], mode="bilinear")
        return Prediction(whole[0, 0].numpy(), "disparity_affine_invariant")


@dataclass
class DistillStudy:
    """Images, teachers and initial students of all variants, made on first use and stored."""

    out: Path
    images: int
    steps: int

    def rendered(self, purpose: str, count: int, size: tuple[int, int] = IMAGE) -> list[Sample]:
        """Return images with depth, three per room.

        purpose: a key of SEEDS; if it is one of SPECIAL, rooms of that style, else of all styles.
        """
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
        with locked(Path(cfg.folder)):
            pool = open_pool(cfg)
        return [replace(pool[k], source=f"{purpose} {k // 3}") for k in range(count)]

    @cached_property
    def learn(self) -> list[Sample]:
        """The images from which students learn."""
        return self.rendered("learn", self.images)

    @property
    def folder(self) -> Path:
        """Folder of everything that depends on the numbers of images and steps."""
        return self.out / "distill" / f"{self.images}-{self.steps}"

    @cached_property
    def start(self) -> Path:
        """Folder of the run from which all students start."""
        return self._start("start", {})

    @cached_property
    def wide_start(self) -> Path:
        """Folder of the run from which the wider students start."""
        own = {name.replace("network.unet", "student"): value for name, value in WIDE.items()}
        return self._start("start-wider", own)

    def _start(self, name: str, student: dict[str, Any]) -> Path:
        steps = {"loop.steps": min(START["loop.steps"], 6 * self.steps)}
        cfg = config.replace(config.build(supervised.Config, TRUTH), {**START, **steps, **student})
        images = self.rendered("start", self.images // 9 * 12, SMALL)
        return self._trained(name, cfg, supervised.Supervised(cfg, images))

    @cached_property
    def primary(self) -> Teacher:
        """The embedded network."""
        network = open_network(NetworkConfig(source=EMBEDDED_SMALL))
        return NetworkTeacher(network, "embedded", TEACHER)

    @cached_property
    def assistant(self) -> UnitRangeTeacher:
        """The embedded network after more images of desks, bins and shelves; maps in 0..1."""
        weights = self.folder / "embedded.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_file(open_network(NetworkConfig(source=EMBEDDED_SMALL)).state_dict(), str(weights))
        steps = min(ASSISTANT["loop"]["steps"], self.steps)
        changes = {"start": str(weights), "loop.steps": steps}
        cfg = config.replace(config.build(supervised.Config, ASSISTANT), changes)
        count = self.images // 9 * 3
        special = [s for style in SPECIAL for s in self.rendered(style, count, SMALL)]
        run = self._trained("assistant", cfg, supervised.Supervised(cfg, special))
        return UnitRangeTeacher(NetworkTeacher(open_run(run), "assistant", TEACHER))

    def student(self, variant: Variant, seed: int) -> Teacher:
        """Train the student of one variant and return it as a teacher, for scoring."""
        settings = variant.settings or {}
        changes = {**settings, "loop.seed": seed, "loop.steps": self.steps}
        recipe: Recipe
        if variant.settings is None:
            changes["start"] = str(self.start)
            cfg: Any = config.replace(config.build(supervised.Config, TRUTH), changes)
            recipe = supervised.Supervised(cfg, self.learn)
        else:
            wide = WIDE.keys() <= settings.keys()
            changes["network.source"] = str(self.wide_start if wide else self.start)
            cfg = config.replace(config.build(distill.Config, BASE), changes)
            second: Teacher | None = None
            if cfg.teacher_choice != "primary":
                second = self.assistant.teacher if variant.name == ALIKE else self.assistant
            plain = [Sample(s.name, s.image) for s in self.learn]  # no depth to look at
            recipe = distill.Distill(cfg, plain, [self.primary, second])
        folder = self._trained(f"{slug(variant.name)}-{seed}", cfg, recipe)
        return NetworkTeacher(open_run(folder), variant.name)

    def _trained(self, name: str, cfg: Any, recipe: Recipe) -> Path:
        """Train or resume a run and return its folder."""
        folder = self.folder / "runs" / name
        return trained(recipe, cfg.loop, folder, config.to_dict(cfg))


def part_errors(teacher: Teacher, judge: Sequence[Sample]) -> dict[str, F64]:
    """Return AbsRel (images,) of the teacher on the parts of wide views, in two ways.

    ALONE: the teacher sees the part itself. CUT: the part is cut from its map of the whole view.
    Local-global distillation assumes that ALONE is better.
    """
    cfg = config.build(distill.Config, BASE)
    rows, columns = cfg.wide_size
    protocol = protocols.find(score.INDOOR)
    rows_by_way: dict[str, list[float]] = {ALONE: [], CUT: []}
    for sample in judge:
        assert sample.depth is not None
        wide = Window.whole(sample.image.shape, rows, columns)
        image, truth = wide.image(sample.image), wide.nearest(sample.depth)
        whole = StudentSizePredictor(teacher).predict(image).values
        errors: dict[str, list[float]] = {ALONE: [], CUT: []}
        for top, left in cfg.corners():
            part = np.s_[top : top + HEIGHT, left : left + WIDTH]
            counted = protocols.counted(protocol, truth[part])
            answers = {
                ALONE: StudentSizePredictor(teacher).predict(image[part]).values,
                CUT: whole[part],
            }
            for way, values in answers.items():
                prediction = Prediction(values, "disparity_affine_invariant")
                depth = protocols.align(prediction, truth[part], counted, ALIGNMENT, protocol)
                scored = np.where(counted, truth[part], np.float32(np.nan))
                errors[way].append(metrics.evaluate(depth, scored).abs_rel)
        for way, values_ in errors.items():
            rows_by_way[way].append(float(np.nanmean(values_)))
    return {way: np.array(values) for way, values in rows_by_way.items()}


UNITS = ("AbsRel", "1 - delta1", "boundary F1")


def scores(predictor: NetworkPredictor | str, samples: Sequence[Sample]) -> F64:
    """Return the errors (images, UNITS) of a predictor, or of a baseline by its name.

    NaN for images that are not scored.
    """
    name = predictor if isinstance(predictor, str) else "it"
    models = {} if isinstance(predictor, str) else {name: predictor}
    rows = []
    for sample in samples:
        own = [r for r in score.score([sample], models, SCORED) if r.method == name]
        rows.append([(r.abs_rel, 1 - r.delta1, r.boundary_f1) for r in own] or [(np.nan,) * 3])
    return np.array([row[0] for row in rows])


SCORED = score.ScoringPlan((ALIGNMENT,))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `study distill`."""
    add_run_options(parser)
    parser.add_argument(
        "--frames", type=Path, nargs="+", default=[], help="recorded frames to score on"
    )


def _distill_study(args: argparse.Namespace) -> Study:
    if args.images < 9:
        raise TrainingError(f"--images {args.images} is too few for this study: give 9 or more.")
    made = DistillStudy(args.out, args.images, args.steps or STEPS)
    sets = {"rooms": made.rendered("judge", 3 * args.rooms)}
    frames = [sample for folder in args.frames for sample in predict.recorded(folder)]
    if frames:
        sets["frames"] = frames
    teachers: dict[str, Callable[[], Teacher]] = {
        START_ROW: lambda: NetworkTeacher(open_run(made.start), "start"),
        PRIMARY: lambda: made.primary,
        ASSISTANT_ROW: lambda: made.assistant,
    }

    def make(name: str, seed: int) -> dict[str, F64]:
        if name in (ALONE, CUT):
            errors: dict[str, F64] = {
                part: np.full((len(rows), 3), np.nan) for part, rows in sets.items()
            }
            errors["rooms"][:, 0] = part_errors(made.primary, sets["rooms"])[name]
            return errors
        if name in BASELINES:
            return {part: scores(name, rows) for part, rows in sets.items()}
        if name in teachers:
            teacher = teachers[name]()
        else:
            teacher = made.student(next(v for v in VARIANTS if v.name == name), seed)
        return {part: scores(StudentSizePredictor(teacher), rows) for part, rows in sets.items()}

    parts = {part: Part([s.source for s in rows], part == "rooms") for part, rows in sets.items()}
    own = [v.name for v in VARIANTS if v.name not in DESIGN.references()]
    unseeded = (*BASELINES, *teachers, ALONE, CUT)
    rows = [*own, *DESIGN.references()]
    return Study(made.folder, rows, UNITS, parts, make, DESIGN, unseeded)


def command(args: argparse.Namespace, console: Console) -> None:
    """Do the missing runs and print the report.

    Raises TrainingError for an unknown variant or too few images.
    """
    run_study(_distill_study(args), args, console)
