# SPDX-License-Identifier: Apache-2.0
"""Opening of a data set by its settings: published layouts, shards, folders, rendered rooms."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from depth_node import config
from depth_node.recordings.frames import FrameError
from depth_node.sentences import one_line
from depth_node.simulation.outdoors import OUTDOORS
from depth_node.simulation.renderer import ALL_STYLES, STYLE_GROUPS, Scene
from depth_node.simulation.viewpoints import random_view
from training.data.layouts import LAYOUTS, listed_lines
from training.data.samples import DataError, DataSet, Item, Sample


@dataclass(frozen=True)
class DataConfig:
    """A data set: layout, folder and selection."""

    kind: str = config.option(
        "images",
        "Layout of the folder.",
        choices=(
            "images", "frames", "shards", "procedural",
            "nyuv2", "kitti", "diode", "eth3d", "scannet", "void", "hypersim", "vkitti2",
        ),
    )  # fmt: skip
    folder: str = config.option("", "Folder of the data set.")
    split: str = config.option("", "Part of the data set by its own layout; empty = all of it.")
    list: str = config.option(
        "", "Text file with a line per image, `image depth`, or per scene; empty = none."
    )
    limit: int = config.option(0, "Use only the first so many; 0 = all.", minimum=0)
    unreadable: str = config.option(
        "refuse",
        "What to do about samples that cannot be read: refuse = a sentence when one is met;"
        " leave_out = read all once at the start, go on with the others and say how many.",
        choices=("refuse", "leave_out"),
    )
    seed: int = config.option(-1, "Procedural only: seed of the scenes; must be set.")
    style: str = config.option(
        "mixed", "Procedural only: kind of scenes.", choices=(*STYLE_GROUPS, *ALL_STYLES)
    )
    height: int = config.option(240, "Procedural only: rows.", unit="px", minimum=16)
    width: int = config.option(320, "Procedural only: columns.", unit="px", minimum=16)

    def __post_init__(self) -> None:
        config.validate(self)


def open_samples(cfg: DataConfig) -> DataSet:
    """Open the data set that the settings describe. Raises DataError if there is none."""
    if cfg.kind == "procedural":
        return procedural(cfg)
    folder = Path(cfg.folder).expanduser()
    if not cfg.folder or not folder.is_dir():
        raise DataError(
            f"There is no folder {cfg.folder!r} of kind {cfg.kind}: set `folder` beside its `kind`"
            " to where the images are (`images.folder` of most recipes, `images.data.folder` of"
            " mesa and depthmaster)."
        )
    if cfg.kind == "shards":
        from training.data import shards

        samples = shards.open_shards(folder)
    else:
        layout = LAYOUTS[cfg.kind]
        lines = listed_lines(Path(cfg.list).expanduser()) if cfg.list else []
        try:
            items = layout.find(folder, cfg.split, lines)
        except FrameError as error:
            raise DataError(str(error)) from error
        except OSError as error:
            raise DataError(
                f"{folder} cannot be searched ({one_line(error)}): check its permissions."
            ) from error
        if not items:
            part = f", split {cfg.split!r}" if cfg.split else ""
            listed = f", list {cfg.list}" if cfg.list else ""
            raise DataError(
                f"{folder}{part}{listed} holds nothing laid out as {cfg.kind}: expected"
                f" {layout.expects}."
            )
        samples = DataSet(cfg.kind, layout.protocol, items, layout.read)
    samples = samples[: cfg.limit] if cfg.limit else samples
    return without_unreadable(samples) if cfg.unreadable == "leave_out" else samples


def without_unreadable(samples: DataSet) -> DataSet:
    """Return the samples that can be read, in order; log a warning with the number of the others.

    Each sample is read once here: so it is known before a long run begins which ones are left out,
    and they are the same when the run is resumed. Raises DataError if none can be read.
    """

    def why_not(index: int) -> str:
        try:
            samples[index]
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # images are decoded in parallel
        reasons = list(pool.map(why_not, range(len(samples))))
    readable = [item for item, reason in zip(samples.items, reasons, strict=True) if not reason]
    if len(readable) == len(samples):
        return samples
    first = next(filter(None, reasons))
    if not readable:
        raise DataError(f"None of {len(samples)} samples can be read; the first: {first}")
    left_out = len(samples) - len(readable)
    logging.getLogger(__name__).warning(
        f"left out: {left_out} of {len(samples)} samples that cannot be read; the first: {first}"
    )
    return samples.of(readable)


def procedural(cfg: DataConfig) -> DataSet:
    """Return one rendered image of each of cfg.limit scenes; image k depends on seed and k only.

    Raises DataError without a seed or a limit.
    """
    if cfg.seed < 0 or not cfg.limit:
        missing = "seed" if cfg.seed < 0 else "limit"
        raise DataError(
            "Procedural images need a seed of 0 or more and a limit, how many scenes: set `seed`"
            f" and `limit` beside `kind: procedural` ({missing} is missing)."
        )
    items = [Item(f"{cfg.seed}-{k}", Path(), about=k) for k in range(cfg.limit)]
    protocol = "outdoor" if cfg.style in ("outdoors", *OUTDOORS) else "indoor"
    return DataSet("procedural", protocol, items, partial(_render, cfg))


def _render(cfg: DataConfig, item: Item) -> Sample:
    rng = np.random.default_rng([cfg.seed, item.about])
    scene = Scene.random(rng, cfg.style)
    camera, pose = random_view(scene, rng, cfg.width, cfg.height)
    view = scene.render(camera, pose)
    return Sample(item.name, view.image, view.depth, camera)
