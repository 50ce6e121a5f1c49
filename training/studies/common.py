# SPDX-License-Identifier: Apache-2.0
"""Common parts of the studies that train: variants, rendered pools, stored scores, the run."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from depth_node.metrics import boundary_f1, evaluate
from depth_node.prediction import Prediction
from training.checkpoints import TrainingError
from training.data.augmentation import Window
from training.data.pool import Pool, PoolConfig, open_pool
from training.data.samples import F32, F64, Sample
from training.evaluation import protocols
from training.evaluation.score import baseline
from training.loop import run
from training.models.network_io import NetworkInput
from training.models.networks import MEANING, Network, NetworkConfig, open_network
from training.recipe import LoopConfig, Recipe
from training.studies import help_with
from training.studies.proof import Design, Judge, Part, report

HEIGHT, WIDTH = 96, 128
ALIGNMENT, PROTOCOL = "disp_ls", "indoor"
VIEWS_PER_ROOM = 3
SCORED_TOGETHER = 32  # images per batch of scoring


@dataclass(frozen=True)
class Variant:
    """One row of the table: settings of the recipe that differ from the base.

    settings is None where the study does not train with changed settings; each study says what it
    does then.
    """

    name: str
    settings: dict[str, Any] | None


def device() -> torch.device:
    """Return the device on which networks are scored: the accelerator if there is one."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


@torch.no_grad()
def _maps(
    network: nn.Module, spec: NetworkInput, size: tuple[int, int], samples: Sequence[Sample]
) -> Iterator[tuple[Sample, Tensor]]:
    """Yield each image and the network's map (1, h, w) of it, at `size`, on the CPU."""
    network = network.to(device()).eval()
    for start in range(0, len(samples), SCORED_TOGETHER):
        some = samples[start : start + SCORED_TOGETHER]
        images = [Window.whole(s.image.shape, *size).image(s.image) for s in some]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device()).float() / 255
        yield from zip(some, network(spec.normalise(pixels)).float().cpu(), strict=True)


def errors(
    network: Network, samples: Sequence[Sample], size: tuple[int, int] = (HEIGHT, WIDTH)
) -> F64:
    """Return AbsRel and 1 - delta1 (images, 2) after a fit of scale and shift in disparity.

    size: (h, w) of the network's input, at which it is also scored.
    """
    protocol = protocols.find(PROTOCOL)
    meaning = getattr(network, "meaning", MEANING)
    rows = []
    for sample, values in _maps(network, network.spec, size, samples):
        assert sample.depth is not None
        truth = Window.whole(sample.image.shape, *size).nearest(sample.depth)
        counted = protocols.counted(protocol, truth)
        given = Prediction(values[0].numpy(), meaning)
        depth = protocols.align(given, truth, counted, ALIGNMENT, protocol)
        scores = evaluate(np.where(counted, depth, np.nan), np.where(counted, truth, np.nan))
        rows.append((scores.abs_rel, 1 - scores.delta1))
    return np.array(rows)


def answered(
    network: nn.Module, spec: NetworkInput, size: tuple[int, int], judge: Sequence[Sample]
) -> Iterator[tuple[F32, F32]]:
    """Yield the network's map (H, W) of each image and the true depth (H, W) m.

    size: (h, w) of the network's input; the map is enlarged to the size of the depth.
    """
    for sample, values in _maps(network, spec, size, judge):
        assert sample.depth is not None
        full = functional.interpolate(values[None], sample.depth.shape, mode="bilinear")
        yield full[0, 0].numpy(), sample.depth


def packaged(
    source: str, size: tuple[int, int], judge: Sequence[Sample]
) -> Iterator[tuple[F32, F32]]:
    """Yield the maps of a packaged network and the true depths, as `answered` does."""
    network = open_network(NetworkConfig(source=source))
    return answered(network, network.spec, size, judge)


def baseline_errors(name: str, judge: Sequence[Sample], edges: bool = True) -> F64:
    """Return the errors (images, 2) of a baseline that does not use the image.

    AbsRel, and boundary F1 with `edges`, else 1 - delta1.
    """
    rows = []
    for sample in judge:
        assert sample.depth is not None
        depth = baseline(name, sample.depth)
        scores = evaluate(depth, sample.depth)
        second = boundary_f1(depth, sample.depth) if edges else 1 - scores.delta1
        rows.append((scores.abs_rel, second))
    return np.array(rows)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a path, so that only one process at a time is inside; yield True.

    Yields False, without the lock, if another process holds it and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def scored_once(
    path: Path, make: Callable[[], Mapping[str, F64]], wait: bool = True
) -> dict[str, Any] | None:
    """Return the result of `make`, which is stored in a JSON file and read from it later.

    None if another process is making it and `wait` is False.
    """
    if not path.is_file():
        with locked(path, wait) as acquired:
            if not acquired:
                return None
            if not path.is_file():
                errors_by_set = {name: values.tolist() for name, values in make().items()}
                partial = path.with_name(path.name + ".partial")
                partial.write_text(json.dumps(errors_by_set), encoding="utf-8")
                partial.replace(path)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def trained(recipe: Recipe, cfg: LoopConfig, folder: Path, settings: dict[str, Any]) -> Path:
    """Train or resume a run and return its folder; waits while another process trains it."""
    with locked(folder):
        run(recipe, cfg, folder, settings, console=Console(quiet=True))
    return folder


def slug(name: str) -> str:
    """Return the name of a variant as a file name: letters and digits, else hyphens."""
    return "".join(c if c.isalnum() else "-" for c in name)


@dataclass(frozen=True)
class Study:
    """The rows that are compared, and the design whose gates decide whether the table is shown.

    folder: of scores and table. rows: names; the others are compared with the first. units: columns
    of the errors. parts: the sets that are scored. make(name, seed) returns the errors of a row by
    part, (images, units). unseeded: rows with one run only. table: file name of the report. after:
    returns further sections of the report.
    """

    folder: Path
    rows: Sequence[str]
    units: Sequence[str]
    parts: Mapping[str, Part]
    make: Callable[[str, int], Mapping[str, F64]]
    design: Design
    unseeded: Sequence[str] = ()
    table: str = "table.md"
    after: Callable[[Judge], Sequence[str]] = lambda judge: ()


def by_room(samples: Sequence[Sample]) -> Part:
    """Return a part of rendered images in which VIEWS_PER_ROOM successive ones share a room."""
    return Part([str(k // VIEWS_PER_ROOM) for k in range(len(samples))])


def pool(
    out: Path,
    purpose: str,
    count: int,
    style: str,
    seed: int,
    size: tuple[int, int],
    jobs: int = 1,
) -> Pool:
    """Open a pool of `count` rendered images, three per scene; render what is missing.

    size: (h, w) of the images, px. jobs: rendering processes.
    """
    folder = out / "rooms" / f"{purpose}-{count}-{size[0]}x{size[1]}"
    tree = {
        "folder": str(folder),
        "samples": count,
        "wait_for": count,
        "views_per_scene": VIEWS_PER_ROOM,
        "style": style,
        "seed": seed,
        "height": size[0],
        "width": size[1],
        "fill": True,
    }
    with locked(folder):
        return open_pool(config.build(PoolConfig, tree), processes=jobs)


def samples(of: Pool) -> list[Sample]:
    """Return all images of a pool."""
    return [of[k] for k in range(len(of))]


def pool_settings(of: Pool) -> dict[str, Any]:
    """Return the settings with which a recipe draws from this pool."""
    return {f"pool.{name}": value for name, value in config.to_dict(of.cfg).items()}


def run_study(study: Study, args: argparse.Namespace, console: Console) -> None:
    """Do the missing runs of a study; write the report after each, print it at the end.

    args.jobs: number of processes; the additional ones are started here, with jobs 0, and write
    only scores. The same command given twice also distributes the runs. Raises TrainingError for an
    unknown row.
    """
    for name in args.only:
        if name not in study.rows:
            raise TrainingError(f"No row is called {name!r}: there are {'; '.join(study.rows)}.")
    torch.set_num_threads(1)
    seen: set[str] = set()
    waiting: list[tuple[str, int]] = []
    for seed in args.seeds:
        for name in study.rows:
            if not (args.only and name not in args.only) and not (
                name in study.unseeded and name in seen
            ):
                waiting.append((name, seed))
                seen.add(name)
    tasks = {
        (name, seed): study.folder / "scores" / f"{slug(name)}-{seed}-{args.rooms}.json"
        for name, seed in waiting
    }
    text = ""
    with _helpers(args):
        # First the runs that no process has begun; then wait for those that others are doing.
        for wait in (False, True):
            for name, seed in waiting:
                make = functools.partial(study.make, name, seed)
                if scored_once(tasks[name, seed], make, wait) is not None and args.jobs:
                    text = _reported(study, tasks)
            waiting = [task for task in waiting if not tasks[task].is_file()]
    console.print(text)


@contextlib.contextmanager
def _helpers(args: argparse.Namespace) -> Iterator[None]:
    """Inside, args.jobs - 1 additional processes work at the same study."""
    spawn = multiprocessing.get_context("spawn")
    helpers = [
        spawn.Process(target=help_with, args=(args,), daemon=True) for _ in range(1, args.jobs)
    ]
    for helper in helpers:
        helper.start()
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()
            helper.join()


def _reported(study: Study, tasks: Mapping[tuple[str, int], Path]) -> str:
    """Write the report on the scores that exist so far, and return it."""
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for (name, seed), path in tasks.items():
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            results.setdefault(name, {})[seed] = {
                part: np.array(errors, np.float64) for part, errors in stored.items()
            }
    judge = Judge(results, study.parts, study.units, study.unseeded)
    sections = [report(judge, study.design, study.rows), *study.after(judge)]
    text = "\n\n".join(sections)
    (study.folder / study.table).write_text(text + "\n", encoding="utf-8")
    return text
