# SPDX-License-Identifier: Apache-2.0
"""Do the recipes help? Small experiments on rendered rooms, repeatable, resumable, with intervals.

    python -m training study westar --out STUDY --pictures 900 [--target defocus --severity 5]
    python -m training study distill --out STUDY                         (study_distillation.py)
    python -m training study mesa | depthmaster | assistant --out STUDY   (study_pretraining.py)

Every variant is a run of the recipe itself in a folder of its own, then judged on rooms that no
run saw; what is done is not done again. The table says the error of each variant, how it compares
with the first one (paired over the pictures, 95 % bootstrap), and on how many seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from depth_node import config
from depth_node.metrics import evaluate
from depth_node.prediction import Prediction
from training import protocols
from training.corruptions import CORRUPTIONS, corrupt
from training.data import Pool, PoolConfig, Sample, Window
from training.loop import run
from training.models import Network, NetworkConfig, open_network, open_run
from training.ordinal import LabelSet, SimulationConfig, simulate
from training.recipes import westar

PRETRAINING = ("mesa", "depthmaster", "assistant")  # of study_pretraining.py
HEIGHT, WIDTH = 96, 128
ALIGNMENT, PROTOCOL = "disp_ls", "indoor"
# Of rooms that the embedded network was not trained on (its pool has seed 20), and different ones
# to learn from, to choose settings by, to judge by, and to go on knowing.
ROOMS = {"learn": 7001, "choose": 7002, "judge": 7003, "known": 7004}


@dataclass(frozen=True)
class Variant:
    """One row of the table: settings of the recipe that differ from the base; None: no run."""

    name: str
    settings: dict[str, Any] | None


def rooms(out: Path, what: str, count: int) -> list[Sample]:
    """Rendered pictures with depth, 108 x 144, three of each room."""
    cfg = PoolConfig(
        str(out / "rooms" / f"{what}-{count}"),
        samples=count,
        views_per_scene=3,
        seed=ROOMS[what],
        wait_for=count,
    )
    pool = Pool(cfg, write=True)
    for _ in pool.fill(count):
        pass
    return [replace(pool[k], name=f"{what}-{k}") for k in range(count)]


def worn(samples: Sequence[Sample], name: str, severity: int) -> list[Sample]:
    """The same pictures, corrupted; each in its own way, always the same."""
    return [
        Sample(s.name, corrupt(s.image, name, severity, seed=k), s.depth)
        for k, s in enumerate(samples)
    ]


@torch.no_grad()
def errors(network: Network, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """(pictures, 2): AbsRel and 1 - delta1 after scale and shift in disparity."""
    network.eval()
    protocol = protocols.find(PROTOCOL)
    found = []
    for sample in samples:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, HEIGHT, WIDTH)
        seen = window.image(sample.image).astype(np.float32) / np.float32(255)
        x = network.spec.normalise(torch.from_numpy(seen).permute(2, 0, 1)[None])
        truth = window.nearest(sample.depth)
        counted = protocols.counted(protocol, truth)
        said = Prediction(network(x)[0, 0].numpy(), "disparity_affine_invariant")
        depth = protocols.align(said, truth, counted, ALIGNMENT, protocol)
        scores = evaluate(np.where(counted, depth, np.nan), np.where(counted, truth, np.nan))
        found.append((scores.abs_rel, 1 - scores.delta1))
    return np.array(found)


# What a person could label in an afternoon: a triple of points, so three pairs, in every picture.
TRIPLES = SimulationConfig(count=1)
# The paper's weights are for another network; these were set by the rooms "choose".
WESTAR_BASE: dict[str, Any] = {
    "height": HEIGHT,
    "width": WIDTH,
    "keep": 0,
    "network": {"kind": "unet", "source": "embedded"},
    "tune": {"pattern": ".*"},
    "labels": {"from_depth": False},
    "loss": {"weak": 2.0, "reg": 0.01, "margin": 0.3, "mask_px": 48},
    "loop": {
        "steps": 500,
        "batch": 8,
        "warmup": 20,
        "learning_rate": 2e-3,
        "ema": 0.98,
        "precision": "bf16",
        "tensorboard": False,
        "checkpoint_every": 100,
        "log_every": 20,
    },
}
ALONE: dict[str, Any] = {"loss.weak": 0, "loss.reg": 0}
WESTAR = (
    Variant("source", None),
    Variant("WeSTAR", {}),
    Variant("WeSTAR, rooms of the source kept", {"loss.known": 12.0}),
    Variant(
        "held by answers alone, half the update",
        {"loss.known": 4.0, "loss.reg": 0, "loss.contexts": "global", "tune.share": 0.5},
    ),
    Variant("self-training, whole picture", {**ALONE, "loss.contexts": "global"}),
    Variant("self-training, masks", ALONE),
    Variant("without labels", {"loss.weak": 0}),
    Variant("without regulariser", {"loss.reg": 0}),
    Variant("labels alone", {"loss.st": 0}),
    Variant("full fine-tuning", {"tune.what": "full", "loop.learning_rate": 5e-4}),
    Variant("upper bound: depth is known", {**ALONE, "teacher": "truth"}),
    Variant("self-training, depth bins", {**ALONE, "loss.contexts": "depth_bins"}),
    Variant("decoder", {"tune.what": "decoder"}),
    Variant("teacher is the frozen source", {"teacher": "frozen_source"}),
    Variant("teacher is the student", {"teacher": "shared"}),
)


def adapt(
    out: Path,
    variant: Variant,
    seed: int,
    target: Sequence[Sample],
    known: Sequence[Sample],
    steps: int,
) -> Network:
    """The source adapted by one variant, its low-rank updates merged."""
    if variant.settings is None:
        return open_network(NetworkConfig(source="embedded"))
    changes = {**variant.settings, "loop.seed": seed, "loop.steps": steps}
    changes["masks.folder"] = str(out / "masks")
    cfg = config.replace(config.build(westar.Config, WESTAR_BASE), changes)
    labels = None
    if cfg.loss.weak:
        drawn = [simulate(s.name, s.depth, TRIPLES) for s in target if s.depth is not None]
        labels = LabelSet([pair for pairs in drawn for pair in pairs], [s.name for s in target])
    # A recipe that has no depth cannot use it.
    seen = target if cfg.teacher == "truth" else [Sample(s.name, s.image) for s in target]
    folder = out / "runs" / f"{slug(variant.name)}-{seed}-{steps}"
    recipe = westar.Westar(cfg, seen, labels, [Sample(s.name, s.image) for s in known])
    run(recipe, cfg.loop, folder, config.to_dict(cfg), console=_quiet())
    return open_run(folder)


def judged(path: Path, make: Callable[[], dict[str, NDArray[np.float64]]]) -> dict[str, Any]:
    """What `make` gives, kept in a file and read from there the next time."""
    if not path.is_file():
        found = {name: values.tolist() for name, values in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def compared(
    first: NDArray[np.float64], other: NDArray[np.float64], draws: int = 4000
) -> tuple[float, float, float]:
    """Mean of other over mean of first, minus 1, with its 95 % interval; (pictures,) each.

    Pictures of one room (three) are drawn together.
    """
    usable = len(first) // 3 * 3
    one, two = first[:usable].reshape(-1, 3).mean(1), other[:usable].reshape(-1, 3).mean(1)
    drawn = np.random.default_rng(0).integers(0, len(one), (draws, len(one)))
    ratios = two[drawn].mean(1) / one[drawn].mean(1) - 1
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(other.mean() / first.mean() - 1), float(low), float(high)


def table(results: dict[str, list[dict[str, Any]]], sets: Sequence[str]) -> str:
    """Markdown: 1 - delta1 and AbsRel of every variant on every set, mean over the seeds."""
    names = list(results)
    head = [f"{s}: 1 - delta1 | AbsRel | change of 1 - delta1" for s in sets]
    lines = [f"| variant | seeds | {' | '.join(head)} |", "|---" * (2 + 3 * len(sets)) + "|"]
    for name in names:
        cells = [name, str(len(results[name]))]
        for part in sets:
            mine = np.mean([np.array(row[part]) for row in results[name]], axis=0)
            base = np.mean([np.array(row[part]) for row in results[names[0]]], axis=0)
            said = "" if name == names[0] else percent(*compared(base[:, 1], mine[:, 1]))
            cells += [f"{mine[:, 1].mean():.4f}", f"{mine[:, 0].mean():.4f}", said]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(change: float, low: float, high: float) -> str:
    """A change and its interval, as the tables have them."""
    return f"{change:+.1%} [{low:+.1%}, {high:+.1%}]"


def slug(name: str) -> str:
    """The name of a variant as that of a file."""
    return "".join(c if c.isalnum() else "-" for c in name)


def _quiet() -> Console:
    return Console(quiet=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `study`."""
    parser.add_argument("what", choices=("westar", "distill", *PRETRAINING))
    parser.add_argument("--out", required=True, type=Path, help="folder of rooms, runs and scores")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="a run of each variant")
    parser.add_argument("--only", nargs="+", default=[], help="variants, by their names")
    parser.add_argument("--steps", type=int, default=0, help="0: as the study says")
    parser.add_argument("--pictures", type=int, default=300, help="to learn from")
    parser.add_argument(
        "--rooms", type=int, default=100, help="rooms to judge by, three views each"
    )
    parser.add_argument(
        "--frames", type=Path, nargs="+", default=[], help="distill: recorded frames to judge by"
    )
    parser.add_argument(
        "--target", default="defocus", choices=CORRUPTIONS, help="westar: corruption"
    )
    parser.add_argument("--severity", type=int, default=5, help="westar: of the corruption")
    parser.add_argument(
        "--choose", action="store_true", help="judge by other rooms, for choosing settings"
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Run what is missing, print the table after every run."""
    if args.what in PRETRAINING:
        from training import study_pretraining

        return study_pretraining.command(args, console)
    if args.what == "distill":
        from training import study_distillation

        return study_distillation.command(args, console)
    torch.set_num_threads(1)
    learn = rooms(args.out, "learn", args.pictures)
    known = rooms(args.out, "known", max(args.pictures // 9, 1) * 3)
    judge = rooms(args.out, "choose" if args.choose else "judge", 3 * args.rooms)
    place = args.out / args.what
    steps = args.steps or WESTAR_BASE["loop"]["steps"]
    place = place / f"{args.target}-{args.severity}-{args.pictures}"
    learn = worn(learn, args.target, args.severity)
    sets = {"target": worn(judge, args.target, args.severity), "source": judge}
    chosen = [v for v in WESTAR if not args.only or v.name in args.only or v.settings is None]
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for variant in chosen:
            if variant.settings is None and variant.name in results:
                continue
            name = f"{slug(variant.name)}-{seed}-{steps}-{len(judge)}-{int(args.choose)}.json"

            def make(v: Variant = variant, s: int = seed) -> dict[str, NDArray[np.float64]]:
                network = adapt(place, v, s, learn, known, steps)
                return {name: errors(network, samples) for name, samples in sets.items()}

            row = judged(place / "scores" / name, make)
            results.setdefault(variant.name, []).append(row)
            text = table(results, list(sets))
            (place / "table.md").write_text(text + "\n", encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
