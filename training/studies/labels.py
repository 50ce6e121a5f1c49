# SPDX-License-Identifier: Apache-2.0
"""Study of ordinal labels: does a published configuration raise the agreement of held-back images?

    python -m training study labels --out STUDY --place upside_down
    python -m training study labels --out STUDY --place upside_down --transformer 450

The new place is rendered rooms seen by an upside-down camera, or corrupted images of them. Labels
are simulated; the held-back ones are of rooms that no run saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from depth_node import config
from training.data.augmentation import Window
from training.data.corruptions import CORRUPTIONS, corrupt
from training.data.ordinal_labels import LabelSet, Pair, SimulationConfig, simulate
from training.data.samples import Sample
from training.loop import run
from training.models.networks import Network, open_network, open_run
from training.recipes import distill, westar
from training.studies.common import slug
from training.studies.westar import rooms

CONFIGS = Path(__file__).parents[1] / "configs"
UPSIDE_DOWN = "upside_down"
SIZE = (56, 84)  # of the transformer's input
# Like a person: depths that differ by less than 15 % are labelled alike.
LABELS = SimulationConfig(count=1, ratio=1.15)


def seen_from(place: str, samples: Sequence[Sample]) -> list[Sample]:
    """Return the images as an upside-down camera sees them, or corrupted with severity 5."""
    if place == UPSIDE_DOWN:
        return [
            Sample(
                s.name,
                np.ascontiguousarray(s.image[::-1, ::-1]),
                None if s.depth is None else np.ascontiguousarray(s.depth[::-1, ::-1]),
            )
            for s in samples
        ]
    return [
        Sample(s.name, corrupt(s.image, place, 5, seed=k), s.depth) for k, s in enumerate(samples)
    ]


def labels_of(samples: Sequence[Sample]) -> LabelSet:
    """Simulate labels: one triple of points, so three pairs, for each image."""
    drawn_pairs: list[Pair] = []
    for sample in samples:
        if sample.depth is not None:
            drawn_pairs += simulate(sample.name, sample.depth, LABELS)
    return LabelSet(drawn_pairs, [sample.name for sample in samples])


@torch.no_grad()
def agreement(
    network: Network, samples: Sequence[Sample], labels: LabelSet, size: tuple[int, int]
) -> float:
    """Return the fraction of ordered pairs that a network puts in the right order.

    A tie counts as wrong; pairs that are labelled alike do not count.
    """
    network.eval()
    right: list[bool] = []
    for sample in samples:
        window = Window.whole(sample.image.shape, *size)
        x = torch.from_numpy(window.unit_range(sample.image)).permute(2, 0, 1)[None]
        disparity = network.answer(network.spec.normalise(x)).disparity
        first, second, sign = labels.points(sample.name, sample.image.shape)
        ends = np.concatenate([window.points(first), window.points(second)], axis=1)
        batch = {
            "points": torch.from_numpy(ends).float(),
            "owner": torch.zeros(len(sign), dtype=torch.long),
        }
        order = np.sign(westar.differences(disparity, batch).numpy())
        right += (order == sign)[sign != 0].tolist()
    return float(np.mean(right))


def pretrained(out: Path, steps: int) -> Path:
    """Train a small Depth Anything on rendered rooms with the embedded network as teacher."""
    tree = {
        "height": SIZE[0],
        "width": SIZE[1],
        "teacher_choice": "primary",
        "encoder_rate": 1.0,
        "keep": 300,
        "network": {"kind": "debug"},
        "primary": {"source": "engine"},
        "images": {"kind": "procedural", "seed": 20, "limit": 300, "height": 108, "width": 144},
        "crop": {"smallest_px": 80},
        "loss": {"feature": 0.0, "local": 0.0, "gradient": 0.5, "norm": "global"},
        "loop": {
            "seed": 1,
            "steps": steps,
            "batch": 16,
            "warmup": 20,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "tensorboard": False,
            "checkpoint_every": steps,
        },
    }
    cfg = config.build(distill.Config, tree)
    folder = out / f"transformer-{steps}"
    quiet = Console(quiet=True)
    run(distill.build(cfg, quiet), cfg.loop, folder, config.to_dict(cfg), console=quiet)
    return folder


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `study labels`."""
    parser.add_argument("--out", required=True, type=Path, help="folder of rooms and runs")
    parser.add_argument("--place", default=UPSIDE_DOWN, choices=(UPSIDE_DOWN, *CORRUPTIONS))
    parser.add_argument("--images", type=int, default=100, help="labelled images, three pairs each")
    parser.add_argument("--rooms", type=int, default=60, help="rooms to score on, one image each")
    parser.add_argument(
        "--transformer",
        type=int,
        default=0,
        metavar="STEPS",
        help="adapt a small Depth Anything that learnt so long from the embedded network, with"
        " westar.yaml; 0: the embedded network with westar_embedded.yaml",
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="settings")


def command(args: argparse.Namespace, console: Console) -> None:
    """Adapt once and print the agreement before and after, with learnt and held-back labels."""
    torch.set_num_threads(1)
    learn = seen_from(args.place, rooms(args.out, "learn", 3 * args.images)[::3])
    judge = seen_from(args.place, rooms(args.out, "judge", 3 * args.rooms)[::3])
    name, own = "westar_embedded.yaml", [f"masks.folder={args.out / 'masks'}", "labels.held=0"]
    if args.transformer:
        name = "westar.yaml"
        own += [
            f"network.source={pretrained(args.out, args.transformer)}",
            f"height={SIZE[0]}", f"width={SIZE[1]}", "loss.mask_px=32", "loop.batch=8",
        ]  # fmt: skip
    cfg = config.load(westar.Config, CONFIGS / name, [*own, *args.set])
    known = rooms(args.out, "known", 99) if cfg.loss.known else []
    parts = {"learnt": (learn, labels_of(learn)), "held back": (judge, labels_of(judge))}
    recipe = westar.Westar(
        cfg,
        [Sample(s.name, s.image) for s in learn],
        parts["learnt"][1],
        [Sample(s.name, s.image) for s in known],
    )
    folder = (
        args.out / "runs" / f"{Path(name).stem}-{args.place}-{len(learn)}-{slug(str(args.set))}"
    )
    run(recipe, cfg.loop, folder, config.to_dict(cfg), console=Console(quiet=True))
    size = (cfg.height, cfg.width)
    lines = ["| labels | pairs | source | adapted | of what was missing |", "|---" * 5 + "|"]
    for part, (samples, labels) in parts.items():
        before, after = (
            agreement(network, samples, labels, size)
            for network in (open_network(cfg.network), open_run(folder))
        )
        gained = (after - before) / (1 - before) if before < 1 else float("nan")
        lines.append(f"| {part} | {len(labels)} | {before:.3f} | {after:.3f} | {gained:.0%} |")
    console.print("\n".join(lines))
