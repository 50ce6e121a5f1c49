# SPDX-License-Identifier: Apache-2.0
"""The network that refines method `field`, trained on rendered scenes alone.

Examples are made once, by the field itself (training.data.field_problems), and stay in the memory
of the training device: a step reads them there, so that only the network takes time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from depth_node import config
from depth_node.engine.manifest import EMBEDDED
from depth_node.engine.options import ModelConfig
from depth_node.fitting.field.refine import WHOLE
from depth_node.inference import DepthModel
from training.data.field_problems import HEIGHT, WIDTH, Examples, ExamplesConfig
from training.models.refiner import RefinerNet
from training.recipe import Batch, BatchPart, LoopConfig, Recipe, generators

COLOUR = slice(4 * len(WHOLE) + 1, 4 * len(WHOLE) + 4)  # channels of lightness, a, b
# Widths of the uniform distributions of the colour's offset (about 0) and factor (about 1).
COLOUR_SHIFT, COLOUR_GAIN = 0.3, 0.8
USUAL_ERROR = 0.02  # of the field, log depth; it scales the loss to about 1
LEAST_ERROR = 0.003  # log depth; added to the field's error, by which a loss is divided
CAP = 0.5  # log depth; targets are clamped to this


@dataclass(frozen=True)
class Config:
    """Settings of a run of refine."""

    examples: ExamplesConfig = config.section(ExamplesConfig, "What it learns from.")
    judged: ExamplesConfig = config.section(
        ExamplesConfig, "What it is judged by: other scenes.", views=60, per_view=2
    )
    widths: tuple[int, ...] = config.option((32, 64, 96, 128), "Channels at the four sizes.")
    blocks: tuple[int, ...] = config.option((2, 2, 3, 3), "Blocks of the encoder at these.")
    balance: float = config.option(
        1.0,
        "An example's loss is over the field's error to this power; 0: examples with large errors"
        " count more.",
        minimum=0,
        maximum=1,
    )
    rows: int = config.option(96, "Rows of a crop, in cells of the half grid.", minimum=32)
    columns: int = config.option(128, "Columns of a crop.", minimum=32)
    loop: LoopConfig = config.section(LoopConfig, "How long and how fast.")

    def __post_init__(self) -> None:
        config.validate(self)
        most = (HEIGHT // 2, WIDTH // 2)  # the half grid of the examples
        if self.rows % 8 or self.columns % 8 or self.rows > most[0] or self.columns > most[1]:
            raise config.ConfigError(
                f"rows and columns must be multiples of 8, at most {most[0]} and {most[1]}, the"
                f" size of an example: {self.rows}x{self.columns} cannot be cut out of one"
            )


CHUNK = 256  # examples copied to a device at a time


@dataclass
class Store:
    """Examples on disk, copied to a device when they are first used there."""

    examples: Examples
    on: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ready = self.examples.ready()

    def __len__(self) -> int:
        return len(self.ready)

    def at(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return maps (N, CHANNELS, h, w) and targets (N, 4, h, w), float16, on the device."""
        if device not in self.on:
            maps, target = self.examples.maps, self.examples.target
            self.on[device] = self._copied(maps, device), self._copied(target, device)
        return self.on[device]

    def _copied(self, stored: Any, device: torch.device) -> Tensor:
        out = torch.empty((len(self), *stored.shape[1:]), dtype=torch.float16, device=device)
        for first in range(0, len(self), CHUNK):
            part = stored[self.ready[first : first + CHUNK]]
            out[first : first + len(part)] = torch.from_numpy(part)
        return out


def mirrored(maps: Tensor) -> Tensor:
    """Mirror maps (N, C, h, w) left to right.

    The first channels are in groups of four, the 2 x 2 cells of the grid in a cell of the half
    grid: of these left and right change places too.
    """
    fours = min(4 * len(WHOLE), maps.shape[1])
    swapped = [4 * (k // 4) + (k % 4 ^ 1) for k in range(fours)]
    order = torch.tensor([*swapped, *range(fours, maps.shape[1])], device=maps.device)
    return maps.flip(-1).index_select(1, order)


def errors(change: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) mean |change - target| and (N,) mean |target|, the error after and before.

    Both maps (N, 4, h, w) in log depth; target is NaN where unknown and is clamped to CAP.
    """
    known = torch.isfinite(target)
    safe = torch.where(known, target, torch.zeros_like(target)).clamp(-CAP, CAP)
    count = known.flatten(1).sum(1).clamp_min(1)
    missed = ((change - safe).abs() * known).flatten(1).sum(1) / count
    return missed, (safe.abs() * known).flatten(1).sum(1) / count


class Refine(Recipe):
    """The recipe: corrections of the field's log depth, learnt from `examples`.

    judged: examples of other scenes, which score every checkpoint.
    """

    name = "refine"
    free_to_change = ("examples.folder", "judged.folder")

    def __init__(self, cfg: Config, examples: Store, judged: Store) -> None:
        self.cfg = cfg
        self.examples = examples
        self.judged = judged

    def model(self) -> nn.Module:
        """Return a fresh network, whose correction of the field is nearly 0."""
        return RefinerNet(tuple(self.cfg.widths), tuple(self.cfg.blocks))

    def batch(self, step: int, part: BatchPart) -> Batch:
        """Return indices of examples (N,) and uniform random numbers (N, 7).

        Of these: the crop's row and column, the flip, three colour offsets, the colour's factor.
        """
        rngs = generators(self.cfg.loop, step, part)
        which = [int(rng.integers(len(self.examples))) for rng in rngs]
        varied = np.array([rng.random(7) for rng in rngs], np.float32)
        return {"which": torch.tensor(which), "varied": torch.from_numpy(varied)}

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        cfg, which, varied = self.cfg, batch["which"], batch["varied"]
        all_maps, all_target = self.examples.at(which.device)
        height, width = all_target.shape[-2:]
        room = torch.tensor([height - cfg.rows, width - cfg.columns], device=which.device)
        begin = (varied[:, :2] * (room + 1)).long()
        rows = begin[:, :1] + torch.arange(cfg.rows, device=which.device)
        cols = begin[:, 1:] + torch.arange(cfg.columns, device=which.device)
        index = (which[:, None, None], slice(None), rows[:, :, None], cols[:, None, :])
        maps = all_maps[index].permute(0, 3, 1, 2).float()
        target = all_target[index].permute(0, 3, 1, 2).float()
        flip = (varied[:, 2] < 0.5).view(-1, 1, 1, 1)
        maps = torch.where(flip, mirrored(maps), maps)
        colour = maps[:, COLOUR]
        shift = (varied[:, 3:6, None, None] - 0.5) * COLOUR_SHIFT
        maps[:, COLOUR] = colour * (1 + COLOUR_GAIN * (varied[:, 6:7, None, None] - 0.5)) + shift
        return maps, torch.where(flip, mirrored(target), target)

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None) -> dict[str, Tensor]:
        """Return the mean error, each example's over the field's error to the power `balance`."""
        maps, target = self._drawn(batch)
        missed, own = errors(model(maps).float(), target)
        level = (own + LEAST_ERROR) / USUAL_ERROR
        return {"loss": (missed / USUAL_ERROR / level**self.cfg.balance).mean()}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the mean over the judged examples of the error divided by the field's."""
        maps, target = self.judged.at(next(model.parameters()).device)
        ratios = []
        for k in range(0, len(target), 8):
            missed, own = errors(model(maps[k : k + 8].float()), target[k : k + 8].float())
            ratios.append((missed / own)[own > 0])
        return {"score": float(torch.cat(ratios).mean())}


def build(cfg: Config, console: Console) -> Refine:
    """Make the examples that are missing and return the recipe on them."""
    sets = []
    with DepthModel.open(ModelConfig(EMBEDDED)) as network:
        for part in (cfg.examples, cfg.judged):
            examples = Examples(part)
            missing = examples.missing()
            for number, _ in enumerate(examples.fill(missing, network.predict)):
                if number % 100 == 0:
                    console.print(f"examples: view {number} of {len(missing)}")
            sets.append(Store(examples))
    return Refine(cfg, *sets)
