# SPDX-License-Identifier: Apache-2.0
"""Studies of DepthMaster: its ablations with small networks, and the diffusion teacher.

    python -m training study spaces --out STUDY --images 3000 --seeds 1 2 3 4 5
    python -m training study depthmaster --out STUDY --images 3000
    python -m training study assistant --out STUDY --images 3000      (after depthmaster)

spaces: small networks from scratch that differ in the space of the target. depthmaster: the same
for stages, details and alignment. Both score each network in its own space and share their runs.
assistant: a student of the embedded network, with and without depthmaster's "both stages" as second
teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from depth_node import config
from depth_node.engine.manifest import EMBEDDED, EMBEDDED_SMALL
from training import checkpoints
from training.data.augmentation import Window
from training.data.mixed import Mixture
from training.data.pool import Pool
from training.data.samples import F64, Sample
from training.evaluation.score import BASELINES
from training.losses.targets import SPACES, target
from training.models.diffusion import open_run
from training.models.network_io import NetworkInput
from training.models.networks import NetworkConfig, open_network
from training.models.networks import open_run as open_student
from training.models.teachers import NetworkTeacher, ask
from training.recipes import depthmaster, distill, mesa
from training.studies import add_run_options
from training.studies.common import (
    HEIGHT,
    WIDTH,
    Study,
    Variant,
    baseline_errors,
    by_room,
    device,
    errors,
    packaged,
    pool,
    pool_settings,
    run_study,
    samples,
    slug,
    trained,
)
from training.studies.mesa import run_mesa
from training.studies.proof import Claim, Design, Gate, Measure

# At this size the external encoder of the alignment, which sees the image at 0.875 of its size, has
# 3 x 4 patches of 14 px, as many as the U-Net's middle block has cells.
MASTER_SIZE = {"height": 48, "width": 64}
STEPS, DETAIL = 700, 200  # steps of the first and of the second stage
MASTER_BASE: dict[str, Any] = {
    **MASTER_SIZE,
    "diffusion": {"unet_widths": [24, 32, 48], "vae_widths": [8, 16, 32]},
    "loss": {"align": 0},
    "loop": {
        "batch": 16,
        "steps": STEPS,
        "learning_rate": 2e-3,
        "warmup": 50,
        "ema": 0.99,
        "tensorboard": False,
        "checkpoint_every": 200,
    },
}
AUTOENCODER: dict[str, Any] = {
    "learn": "autoencoder",
    "loop.learning_rate": 3e-3,
    "loop.steps": 800,
}
# Cells of half the size, so that edges are kept: as many values as the map has pixels.
FINER_AUTOENCODER: dict[str, Any] = {
    **AUTOENCODER,
    "diffusion.vae_widths": [16, 32],
    "loop.steps": 300,
}
# In place of DINOv2, whose weights were not available: a transformer encoder that learnt masked
# image modelling on the same images.
STAND_IN: dict[str, Any] = {
    "network.kind": "debug",
    "height": 42,
    "width": 56,
    "masking.unit_px": 14,
    "loss.geometric": 0,
    "loss.supervised": 0,
    "loop.steps": 1500,
    "loop.learning_rate": 1e-3,
    "loop.warmup": 50,
    "loop.batch": 16,
    "loop.checkpoint_every": 500,
}
ENCODER = "encoder"  # in external.source: is replaced by the folder of that encoder
# The second stage: losses after the decoder, a tenth of the learning rate.
PIXELS: dict[str, Any] = {"loss.latent": 0, "loss.pixel": 1, "loss.gradient": 0.001}
LATER: dict[str, Any] = {"start": "sqrt-disparity", "loop.steps": DETAIL}
SECOND: dict[str, Any] = {**LATER, **PIXELS, "loop.learning_rate": 2e-4}
FOURIER: dict[str, Any] = {"diffusion.fourier": True}
# The Fourier block is new in the second stage, so it learns at the rate of the first one.
ADDED: dict[str, Any] = {**FOURIER, "fourier_rate": 10}
ALIGNED: dict[str, Any] = {"loss.align": 1, "external.kind": "debug", "external.source": ENCODER}
# Ten times the paper's weight, so that the term has an effect in a run of minutes.
STRONG = "aligned, weight 10"
MASTER = (
    Variant("sqrt-disparity", {}),
    Variant("disparity", {"diffusion.space": "disparity"}),
    Variant("depth", {"diffusion.space": "depth"}),
    Variant("aligned", ALIGNED),
    Variant("aligned, random encoder", {**ALIGNED, "external.source": ""}),
    Variant(STRONG, {**ALIGNED, "loss.align": 10}),
    Variant("stage 1 for longer", {**LATER, "loop.learning_rate": 2e-4}),
    Variant("stage 2 alone", {**PIXELS, **FOURIER, "loop.steps": STEPS + DETAIL}),
    Variant("both stages", {**SECOND, **ADDED}),
    Variant("both stages, code's form", {**SECOND, **ADDED, "loss.form": "code"}),
    Variant("both stages without Fourier", SECOND),
    Variant("both stages, pixel loss only", {**SECOND, "loss.gradient": 0}),
    Variant("both stages, aligned", {**SECOND, **ADDED, "start": STRONG}),
)
# A small U-Net as student, with the embedded network, the network of "both stages" or both as
# teachers.
STUDENTS = (
    Variant("embedded network alone", {"teacher_choice": "primary"}),
    Variant(
        "with the diffusion assistant", {"teacher_choice": "random", "assistant_probability": 0.3}
    ),
    Variant("diffusion network alone", {"teacher_choice": "assistant"}),
)
ASSISTANT = "both stages"
STUDENT_SIZE = (64, 96)
STUDENT_BASE: dict[str, Any] = {
    "height": STUDENT_SIZE[0],
    "width": STUDENT_SIZE[1],
    "encoder_rate": 1.0,
    "network": {
        "kind": "unet",
        "unet": {
            "widths": [12, 20, 32, 48, 64],
            "depths": [0, 1, 1, 1, 1],
            "decoder": [32, 24, 16, 12],
        },
    },
    "crop": {"smallest_px": 78},
    "view": {"colour": 0.2, "gamma": 0.2},
    "loss": {"feature": 0, "local": 0, "gradient": 0.5, "norm": "global"},
    "loop": {
        "steps": 600,
        "batch": 16,
        "warmup": 30,
        "learning_rate": 2e-3,
        "precision": "bf16",
        "tensorboard": False,
        "checkpoint_every": 100,
    },
}


def variant_run(out: Path, variant: Variant, seed: int, learn: Pool, steps: int = 0) -> Path:
    """Train the run of one variant, after those that it starts from; return its folder.

    All variants share one autoencoder, as with Stable Diffusion, and one external encoder. steps:
    of each run; 0: the study's own.
    """
    settings = dict(variant.settings or {})
    own = {"loop.steps": steps} if steps else {}
    first = {**AUTOENCODER, **own, "loop.seed": 0}
    start = _master(out / "runs" / "autoencoder", first, learn)
    if settings.get("external.source"):
        settings["external.source"] = str(stand_in(out, learn))
    if "start" in settings:
        before = next(v for v in MASTER if v.name == settings["start"])
        start = variant_run(out, before, seed, learn, steps)
    last = out / "runs" / f"{slug(variant.name)}-{seed}"
    return _master(last, {**settings, **own, "start": str(start), "loop.seed": seed}, learn)


def stand_in(out: Path, learn: Pool) -> Path:
    """Train an encoder with STAND_IN; return a folder of it that networks.open_dino can open."""
    folder, made = out / "runs" / "encoder", out / "runs" / "encoder-dinov2"
    if not (made / "config.json").is_file():
        run_mesa(folder, {**STAND_IN, "loop.seed": 0}, learn)
        learnt: Any = mesa.exportable(checkpoints.read(folder))[0].network
        learnt.network.backbone.save_pretrained(made)
    return made


def _master(folder: Path, changes: dict[str, Any], learn: Pool) -> Path:
    cfg = config.replace(config.build(depthmaster.Config, MASTER_BASE), changes)
    mixture = Mixture(config.replace(cfg.images, pool_settings(learn)))
    recipe = depthmaster.DepthMaster(cfg, mixture)
    return trained(recipe, cfg.loop, folder, config.to_dict(cfg))


@torch.no_grad()
def space_errors(network: Any, space: str, judge: Sequence[Sample], through: bool = False) -> F64:
    """Return AbsRel and boundary F1 (images, 2), aligned in the network's own space.

    through: score the truth after the autoencoder alone (table II) instead of the network's map.
    """
    network = network.to(device())
    rows = []
    for sample in judge:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, MASTER_SIZE["height"], MASTER_SIZE["width"])
        if through:
            depth = torch.from_numpy(window.nearest(sample.depth))[None, None]
            target_map = target(depth, torch.isfinite(depth), space)
            values = network.reconstruct(target_map.values.to(device())).clamp(-1, 1)
        else:
            x = torch.from_numpy(window.image(sample.image)).permute(2, 0, 1)[None].float() / 255
            values = network.map(network.spec.normalise(x.to(device())))
        abs_rel, _, f1 = depthmaster.scores_in_space(values, sample.depth, space)
        rows.append((abs_rel, f1))
    return np.array(rows)


def embedded_errors(judge: Sequence[Sample], name: str) -> F64:
    """Return AbsRel and boundary F1 (images, 2) of a packaged network, aligned in disparity."""
    rows = []
    for values, truth in packaged(*PACKAGED_ROWS[name], judge):
        disparity = torch.from_numpy(values)[None, None]
        abs_rel, _, f1 = depthmaster.scores_in_space(disparity, truth, "disparity")
        rows.append((abs_rel, f1))
    return np.array(rows)


def master_errors(
    out: Path, name: str, seed: int, learn: Pool, judge: Sequence[Sample], steps: int = 0
) -> F64:
    """Return AbsRel and boundary F1 (images, 2) of a variant or reference, by its row name."""
    if name in BASELINES:
        return baseline_errors(name, judge)
    if name in PACKAGED_ROWS:
        return embedded_errors(judge, name)
    if name == FINER:
        own = {"loop.steps": steps} if steps else {}
        path = _master(
            out / "runs" / "autoencoder-2px", {**FINER_AUTOENCODER, **own, "loop.seed": 0}, learn
        )
        return space_errors(open_run(path), SPACES[0], judge, through=True)
    variant = next((v for v in MASTER if v.name == name), MASTER[0])
    path = variant_run(out, variant, seed, learn, steps)
    network = open_run(path)
    space = THROUGH.get(name, network.cfg.space)
    return space_errors(network, space, judge, through=name in THROUGH)


THROUGH = {f"autoencoder alone, {space}": space for space in SPACES}
EMBEDDED_ROW, FINE_ROW = "the embedded network", "the embedded network with edges"
PACKAGED_ROWS = {EMBEDDED_ROW: (EMBEDDED_SMALL, (HEIGHT, WIDTH)), FINE_ROW: (EMBEDDED, (192, 256))}
ROOT, WHOLE = "sqrt-disparity", "autoencoder alone, sqrt_disparity"
FINER = f"{WHOLE}, cells of 2 px"


def student_errors(
    out: Path, name: str, seed: int, learn: Pool, see: Sequence[Sample], judge: Sequence[Sample]
) -> F64:
    """Return AbsRel and 1 - delta1 (images, 2) of a student, teacher or baseline, by row name."""
    if name in BASELINES:
        return baseline_errors(name, judge, edges=False)
    source = open_network(NetworkConfig(source=EMBEDDED_SMALL))
    embedded = NetworkTeacher(source, "embedded", (HEIGHT, WIDTH))
    if name == TEACHERS[0]:
        return errors(source, judge)
    variant = next(v for v in MASTER if v.name == ASSISTANT)
    network: Any = open_run(variant_run(out / "depthmaster", variant, seed, learn))
    size = (MASTER_SIZE["height"], MASTER_SIZE["width"])
    assistant = NetworkTeacher(network, "diffusion", size)
    if name == TEACHERS[1]:
        return errors(_sized(assistant), judge)
    chosen = next(v for v in STUDENTS if v.name == name)
    changes = {**(chosen.settings or {}), "loop.seed": seed}
    cfg = config.replace(config.build(distill.Config, STUDENT_BASE), changes)
    folder = out / "assistant" / "runs" / f"{slug(name)}-{seed}"
    plain = [Sample(s.name, s.image) for s in see]
    recipe = distill.Distill(cfg, plain, [embedded, assistant])
    trained(recipe, cfg.loop, folder, config.to_dict(cfg))
    return errors(_sized(NetworkTeacher(open_student(folder), "student", STUDENT_SIZE)), judge)


TEACHERS = ("the embedded network itself", "the diffusion network itself")


class _Sized(nn.Module):
    """A teacher, which resizes images to its own size, as a network of images in 0..1."""

    spec = NetworkInput((0.0,) * 3, (1.0,) * 3, 1)

    def __init__(self, inner: NetworkTeacher) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the teacher's disparity (N, 1, H, W) of images (N, 3, H, W)."""
        disparity, _ = ask(self.inner, x)
        return disparity


def _sized(inner: NetworkTeacher) -> Any:
    return _Sized(inner)


SPACE_ROWS = (ROOT, "disparity", "depth")
UNSEEDED = (*BASELINES, *THROUGH, FINER, TEACHERS[0], *PACKAGED_ROWS)


def _master_learn(args: argparse.Namespace) -> Pool:
    return pool(args.out, "master-learn", args.images, "room", 8011, (54, 72), args.jobs)


ABS_REL, EDGES = Measure("rooms", "AbsRel"), Measure("rooms", "boundary F1")
# Published, AbsRel in % of KITTI: depth 10.3, disparity 8.9, root of disparity 8.7.
SPACES_DESIGN = Design(
    claims=(
        Claim(ROOT, "depth", 0.0, ABS_REL),
        Claim("disparity", "depth", 0.0, ABS_REL),
        Claim(ROOT, "disparity", 0.0, ABS_REL),
    ),
    seeds=5,
    floor=("constant", "plane"),
    control=(EMBEDDED_ROW,),
    ceiling=tuple(THROUGH),
    gates=tuple(Gate(name, "plane", ABS_REL, most=0.75) for name in (ROOT, "disparity", "depth")),
)
# Published, boundary F1: one stage of pixel losses .307 to .314, alignment and two stages .330,
# with Fourier enhancement .337. A comparison of edges needs networks that have some, hence the
# gates on boundary F1.
STAGES_DESIGN = Design(
    claims=(
        Claim("both stages", ROOT, 0.0, ABS_REL),
        Claim("both stages", "both stages without Fourier", 0.0, ABS_REL),
        Claim("aligned", ROOT, 0.0, ABS_REL),
    ),
    seeds=5,
    floor=("constant", "plane"),
    control=(EMBEDDED_ROW, FINE_ROW),
    ceiling=(WHOLE, FINER),
    gates=(
        Gate(ROOT, "plane", ABS_REL, most=0.75),
        Gate(WHOLE, FINE_ROW, EDGES, least=1.0),
        Gate(FINER, FINE_ROW, EDGES, least=1.0),
        Gate("both stages", WHOLE, EDGES, least=0.5),
    ),
)


def _master_study(args: argparse.Namespace) -> Study:
    learn = _master_learn(args)
    size = (MASTER_SIZE["height"], MASTER_SIZE["width"])
    judge = samples(pool(args.out, "master-judge", 3 * args.rooms, "room", 8014, size, args.jobs))
    folder = args.out / "depthmaster" / (str(args.steps) if args.steps else "")

    def make(name: str, seed: int) -> dict[str, F64]:
        return {"rooms": master_errors(folder, name, seed, learn, judge, args.steps)}

    spaces = args.study == "spaces"
    design = SPACES_DESIGN if spaces else STAGES_DESIGN
    compared = [v.name for v in MASTER if (v.name in SPACE_ROWS) == spaces or v.name == ROOT]
    rows = [*compared, *design.references()]
    units, parts = ("AbsRel", "boundary F1"), {"rooms": by_room(judge)}
    return Study(folder, rows, units, parts, make, design, UNSEEDED, f"table-{args.study}.md")


OF_STUDENTS = Measure("rooms", "AbsRel")
ASSISTANT_DESIGN = Design(
    claims=(Claim("with the diffusion assistant", STUDENTS[0].name, 0.0, OF_STUDENTS),),
    seeds=5,
    floor=BASELINES,
    control=TEACHERS,
    ceiling=(),
    gates=(
        Gate(TEACHERS[0], "plane", OF_STUDENTS, most=0.6),
        Gate(STUDENTS[0].name, "plane", OF_STUDENTS, most=0.9),
    ),
)


def _assistant_study(args: argparse.Namespace) -> Study:
    learn, size = _master_learn(args), (108, 144)
    see = samples(
        pool(args.out, "assistant-see", min(args.images, 900), "room", 8021, size, args.jobs)
    )
    judge = samples(
        pool(args.out, "assistant-judge", 3 * args.rooms, "room", 8024, size, args.jobs)
    )

    folder = args.out / "assistant"

    def make(name: str, seed: int) -> dict[str, F64]:
        return {"rooms": student_errors(args.out, name, seed, learn, see, judge)}

    names = [*(v.name for v in STUDENTS), *TEACHERS, *BASELINES]
    parts = {"rooms": by_room(judge)}
    return Study(folder, names, ("AbsRel", "1 - delta1"), parts, make, ASSISTANT_DESIGN, UNSEEDED)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the study."""
    add_run_options(parser)


def command(args: argparse.Namespace, console: Console) -> None:
    """Do the missing runs of the study and print its report."""
    study = _assistant_study if args.study == "assistant" else _master_study
    run_study(study(args), args, console)
