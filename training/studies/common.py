# SPDX-License-Identifier: Apache-2.0
"""Common to the studies: rooms, variants, scores that are computed once, tables with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from depth_node.metrics import evaluate
from depth_node.prediction import Prediction
from training.data.augmentation import Window
from training.data.corruptions import corrupt
from training.data.pool import Pool, PoolConfig
from training.data.samples import Sample
from training.evaluation import protocols
from training.models.networks import Network

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


def rooms(out: Path, purpose: str, count: int) -> list[Sample]:
    """Rendered images with depth, 108 x 144, three of each room."""
    cfg = PoolConfig(
        str(out / "rooms" / f"{purpose}-{count}"),
        samples=count,
        views_per_scene=3,
        seed=ROOMS[purpose],
        wait_for=count,
    )
    pool = Pool(cfg, write=True)
    for _ in pool.fill(count):
        pass
    return [replace(pool[k], name=f"{purpose}-{k}") for k in range(count)]


def corrupted(samples: Sequence[Sample], name: str, severity: int) -> list[Sample]:
    """The same images, corrupted; each in its own way, always the same."""
    return [
        Sample(s.name, corrupt(s.image, name, severity, seed=k), s.depth)
        for k, s in enumerate(samples)
    ]


@torch.no_grad()
def errors(network: Network, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """(images, 2): AbsRel and 1 - delta1 after scale and shift in disparity."""
    network.eval()
    protocol = protocols.find(PROTOCOL)
    rows = []
    for sample in samples:
        assert sample.depth is not None
        window = Window.whole(sample.image.shape, HEIGHT, WIDTH)
        pixels = window.image(sample.image).astype(np.float32) / np.float32(255)
        x = network.spec.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        truth = window.nearest(sample.depth)
        counted = protocols.counted(protocol, truth)
        prediction = Prediction(network(x)[0, 0].numpy(), "disparity_affine_invariant")
        depth = protocols.align(prediction, truth, counted, ALIGNMENT, protocol)
        scores = evaluate(np.where(counted, depth, np.nan), np.where(counted, truth, np.nan))
        rows.append((scores.abs_rel, 1 - scores.delta1))
    return np.array(rows)


def judged(path: Path, make: Callable[[], dict[str, NDArray[np.float64]]]) -> dict[str, Any]:
    """What `make` gives, kept in a file and read from there the next time."""
    if not path.is_file():
        errors_by_set = {name: values.tolist() for name, values in make().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(errors_by_set), encoding="utf-8")
        partial.replace(path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def compared(
    first: NDArray[np.float64], other: NDArray[np.float64], draws: int = 4000
) -> tuple[float, float, float]:
    """Mean of other over mean of first, minus 1, with its 95 % interval; (images,) each.

    Images of one room (three) are drawn together.
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
            own = np.mean([np.array(row[part]) for row in results[name]], axis=0)
            base = np.mean([np.array(row[part]) for row in results[names[0]]], axis=0)
            change = "" if name == names[0] else percent(*compared(base[:, 1], own[:, 1]))
            cells += [f"{own[:, 1].mean():.4f}", f"{own[:, 0].mean():.4f}", change]
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
