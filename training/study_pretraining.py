# SPDX-License-Identifier: Apache-2.0
"""Do MeSa and DepthMaster do here what their papers say? The same kind of study as study.py.

    python -m training study mesa --out STUDY [--seeds 1 2 3]
    python -m training study depthmaster --out STUDY

mesa: an encoder pre-trained in five ways (from scratch is one), then fine-tuned alike on few
pictures of rooms, judged in metres on rooms and on desks that it never saw. depthmaster: small
networks from scratch, one change at a time, judged in their own space.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn
from torch.nn import functional

from depth_node import config
from depth_node.metrics import evaluate
from training import checkpoints
from training.data import Pool, Sample, Window
from training.loop import run
from training.mixture import Mixture, MixtureConfig
from training.recipes import depthmaster, mesa
from training.sequences import open_triplets
from training.study import Variant, compared, judged

F64 = NDArray[np.float64]

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

MASTER_BASE: dict[str, Any] = {
    "height": 32,
    "width": 48,
    "diffusion": {"unet_widths": [16, 32, 32], "vae_widths": [8, 16]},
    "loss": {"align": 0},
    "loop": {
        "batch": 16,
        "steps": 500,
        "learning_rate": 2e-3,
        "warmup": 50,
        "ema": 0.99,
        "tensorboard": False,
        "checkpoint_every": 250,
    },
}
# A second stage: 200 steps at a tenth of the rate, through the decoder.
SECOND: dict[str, Any] = {
    "loss.latent": 0,
    "loss.pixel": 1,
    "loss.gradient": 0.001,
    "loop.steps": 200,
    "loop.learning_rate": 2e-4,
}
MASTER = (
    Variant("sqrt-disparity", {}),
    Variant("disparity", {"diffusion.space": "disparity"}),
    Variant("depth", {"diffusion.space": "depth"}),
    Variant("pixels only", {"loss.latent": 0, "loss.pixel": 1, "loop.steps": 700}),
    Variant("two stages", {**SECOND, "diffusion.fourier": True}),
    Variant("two stages, code's form", {**SECOND, "diffusion.fourier": True, "loss.form": "code"}),
    Variant("two stages without Fourier", SECOND),
)


def pool(out: Path, what: str, count: int, style: str, seed: int, size: tuple[int, int]) -> Pool:
    """`count` rendered pictures, three of each scene, on disk."""
    tree = {
        "folder": str(out / "rooms" / f"{what}-{count}-{size[0]}x{size[1]}"),
        "samples": count,
        "wait_for": count,
        "views_per_scene": 3,
        "style": style,
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "fill": True,
    }
    return _mixture(tree).pool  # type: ignore[return-value]


def _mixture(tree: dict[str, Any]) -> Mixture:
    return Mixture(config.build(MixtureConfig, {"pool": tree}))


def samples(of: Pool) -> list[Sample]:
    """All pictures of a pool."""
    return [
        Sample(str(k), np.array(of.image[k]), of.depth[k].astype(np.float32))
        for k in range(len(of))
    ]


# --- MeSa ----------------------------------------------------------------------------------------


def pretrained(out: Path, variant: Variant, seed: int, learn: Pool, few: Pool) -> Path:
    """The run of one variant: pre-trained on `learn`, fine-tuned on `few`."""
    start: dict[str, Any] = {}
    slug = variant.name.replace(" ", "-")
    if variant.settings is not None:
        first = out / "runs" / f"{slug}-{seed}-pretrained"
        _mesa(first, {**variant.settings, "loop.seed": seed}, learn)
        start = {"start": str(first)}
    last = out / "runs" / f"{slug}-{seed}-tuned"
    _mesa(last, {**MESA_TUNE, **start, "loop.seed": seed}, few)
    return last


def _mesa(folder: Path, changes: dict[str, Any], learn: Pool) -> None:
    cfg = config.replace(config.build(mesa.Config, MESA_BASE), changes)
    mixture = Mixture(config.replace(cfg.pictures, _pool_settings(learn)))
    triplets = None
    if cfg.loss.geometric:
        triplets = open_triplets(cfg.sequences, cfg.height, cfg.width, need_poses=True)
    recipe = mesa.Mesa(cfg, mixture, triplets)
    run(recipe, cfg.loop, folder, config.to_dict(cfg), console=Console(quiet=True))


def _pool_settings(of: Pool) -> dict[str, Any]:
    return {f"pool.{name}": value for name, value in config.to_dict(of.cfg).items()}


@torch.no_grad()
def metre_errors(path: Path, judge: Sequence[Sample]) -> F64:
    """(pictures, 2): RMSE in metres and AbsRel, nothing aligned."""
    network, spec, _ = mesa.exportable(checkpoints.read(path))
    network.eval()
    found = []
    for sample in judge:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, MESA_SIZE["height"], MESA_SIZE["width"])
        x = torch.from_numpy(window.image(sample.image))
        depth = network(spec.normalise(x.permute(2, 0, 1)[None].float() / 255))
        full = functional.interpolate(depth, sample.depth.shape, mode="bilinear")[0, 0].numpy()
        scores = evaluate(full, sample.depth)
        found.append((scores.rmse, scores.abs_rel))
    return np.array(found)


# --- DepthMaster ---------------------------------------------------------------------------------


def answered(out: Path, variant: Variant, seed: int, learn: Pool) -> tuple[nn.Module, str]:
    """The network of one variant and its space; stages before it are made first."""
    settings = dict(variant.settings or {})
    first = out / "runs" / f"autoencoder-{seed}"
    _master(first, {"learn": "autoencoder", "loop.learning_rate": 3e-3, "loop.seed": seed}, learn)
    start = first
    if settings.get("loss.gradient"):  # a second stage goes on from the first variant
        start = out / "runs" / f"{MASTER[0].name}-{seed}"
        _master(start, {"start": str(first), "loop.seed": seed}, learn)
    last = out / "runs" / f"{variant.name.replace(' ', '-')}-{seed}"
    cfg = _master(last, {**settings, "start": str(start), "loop.seed": seed}, learn)
    network, _, _ = depthmaster.exportable(checkpoints.read(last))
    return network, cfg.diffusion.space


def _master(folder: Path, changes: dict[str, Any], learn: Pool) -> depthmaster.Config:
    cfg = config.replace(config.build(depthmaster.Config, MASTER_BASE), changes)
    mixture = Mixture(config.replace(cfg.pictures, _pool_settings(learn)))
    recipe = depthmaster.DepthMaster(cfg, mixture)
    run(recipe, cfg.loop, folder, config.to_dict(cfg), console=Console(quiet=True))
    return cfg


@torch.no_grad()
def space_errors(network: Any, space: str, judge: Sequence[Sample]) -> F64:
    """(pictures, 2): AbsRel, and 1 - boundary F1, aligned in the network's own space."""
    found = []
    for sample in judge:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, MASTER_BASE["height"], MASTER_BASE["width"])
        x = torch.from_numpy(window.image(sample.image)).permute(2, 0, 1)[None].float() / 255
        abs_rel, _, f1 = depthmaster.judged(
            network.map(network.spec.normalise(x)), sample.depth, space
        )
        found.append((abs_rel, 1 - f1))
    return np.array(found)


# --- the table -----------------------------------------------------------------------------------


def table(
    results: dict[str, list[dict[str, Any]]], sets: Sequence[str], units: Sequence[str]
) -> str:
    """Markdown: the errors of every variant, means over pictures and seeds; the change of each
    against the first variant with its 95 % interval over rooms.
    """
    names = list(results)
    head = [f"{part}: {unit} | change" for part in sets for unit in units]
    lines = [f"| variant | seeds | {' | '.join(head)} |", "|---" * (2 + 2 * len(head)) + "|"]
    for name in names:
        cells = [name, str(len(results[name]))]
        for part in sets:
            mine = np.mean([np.array(row[part]) for row in results[name]], axis=0)
            base = np.mean([np.array(row[part]) for row in results[names[0]]], axis=0)
            for k in range(len(units)):
                change, low, high = compared(base[:, k], mine[:, k])
                said = "" if name == names[0] else f"{change:+.1%} [{low:+.1%}, {high:+.1%}]"
                cells += [f"{mine[:, k].mean():.3f}", said]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def command(args: argparse.Namespace, console: Console) -> None:
    """Run what is missing of a study, print its table after every run."""
    torch.set_num_threads(1)
    place = args.out / args.what
    results: dict[str, list[dict[str, Any]]] = {}
    text = ""
    is_mesa = args.what == "mesa"
    variants = [v for v in (MESA if is_mesa else MASTER) if not args.only or v.name in args.only]
    if is_mesa:
        size = (60, 88)
        learn = pool(args.out, "mesa-learn", args.pictures, "room", 8001, size)
        few = pool(args.out, "mesa-few", min(120, args.pictures), "room", 8002, size)
        judge = {
            "rooms": samples(pool(args.out, "mesa-rooms", 3 * args.rooms, "room", 8004, size)),
            "desks": samples(pool(args.out, "mesa-desks", 3 * args.rooms, "desk", 8005, size)),
        }
        units = ("RMSE (m)", "AbsRel")
    else:
        learn = pool(args.out, "master-learn", args.pictures, "mixed", 8011, (36, 54))
        held_out = pool(args.out, "master-judge", 3 * args.rooms, "mixed", 8014, (64, 96))
        judge = {"rooms": samples(held_out)}
        units = ("AbsRel", "1 - boundary F1")
    for seed in args.seeds:
        for variant in variants:

            def make(v: Variant = variant, s: int = seed) -> dict[str, F64]:
                if is_mesa:
                    path = pretrained(place, v, s, learn, few)
                    return {part: metre_errors(path, rows) for part, rows in judge.items()}
                network, space = answered(place, v, s, learn)
                return {part: space_errors(network, space, rows) for part, rows in judge.items()}

            name = f"{variant.name.replace(' ', '-')}-{seed}-{args.rooms}.json"
            results.setdefault(variant.name, []).append(judged(place / "scores" / name, make))
            text = table(results, list(judge), units)
            (place / "table.md").write_text(text + "\n", encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
