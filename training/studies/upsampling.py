# SPDX-License-Identifier: Apache-2.0
"""Study of upsampling depth maps to image size: edge-preserving, bilinear, or a full-size network.

    python -m training study upsampling CASE SOURCE... [--seeds 0 1] [--rooms 6] [--out TABLES.md]

Scores are those of method `field` with the enlarged map, averaged over the frames and seeds of a
source, then over the sources; rendered rooms are an additional source.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from depth_node.benchmarks.field_speed import SpeedProblem
from depth_node.benchmarks.speed import fit_problem, machine, take_turns
from depth_node.benchmarks.tables import Means, Table
from depth_node.cli.console import print_tables, progress
from depth_node.engine.options import ModelConfig
from depth_node.engine.preprocess import InputSpec, resize_map, to_image, to_tensor
from depth_node.engine.refinement import refiner_for
from depth_node.fitting import FitConfig, fit
from depth_node.inference import DepthModel
from depth_node.metrics import boundary_f1, evaluate
from depth_node.prediction import Prediction
from depth_node.recordings.frames import (
    RecordedFrame,
    find_frames,
    frame_seed,
    read_frame,
    split_uniform,
)
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.studies import add_source_options

FIELD = FitConfig(method="field")
COUNTS = (250, 1000)
SMOOTH_ERROR = 0.03  # standard deviation of the smooth error, log disparity
BEND_CELLS = (5, 6)  # rows and columns of the grid from which it is interpolated
ROOM_SIZE = (480, 640)
RENDERED = "rendered"
BILINEAR, KEPT, FULL = "bilinear", "edges kept", "full size"
SPEED_SIZES = ((480, 640), (720, 1280))
SPEED_POINTS = 1000


@dataclass(frozen=True)
class FromTruth:
    """A simulated network: the true disparity with a smooth error of 3 %.

    blur_px: standard deviation of the blur at full size. divisor: image size over map size.
    averaged: a cell is the mean of its area, else the value at its centre.
    """

    blur_px: float
    divisor: float
    averaged: bool = False

    @property
    def name(self) -> str:
        """The name of its row in the table."""
        blur = f"blurred {self.blur_px:g} px" if self.blur_px else "sharp"
        return f"{blur}, 1/{self.divisor:g}" + (", averaged" if self.averaged else "")

    def full(self, frame: RecordedFrame, seed: int) -> NDArray[np.float32]:
        """Return disparity (H, W) at the size of the image."""
        rng = frame_seed(frame, seed, 303)
        shape = frame.truth.shape
        coarse = rng.normal(0, 1, BEND_CELLS)
        bend = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        disparity = np.exp(SMOOTH_ERROR * bend / bend.std()) / without_holes(frame.truth)
        if self.blur_px:
            disparity = cv2.GaussianBlur(disparity, (0, 0), self.blur_px)
        return np.asarray(disparity, np.float32)

    def small(self, full: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reduce the full-size map (H, W) to the network's size (h, w)."""
        size = (round(full.shape[1] / self.divisor), round(full.shape[0] / self.divisor))
        how = cv2.INTER_AREA if self.averaged else cv2.INTER_NEAREST_EXACT
        return np.asarray(cv2.resize(full, size, interpolation=how), np.float32)


NETWORKS = (
    FromTruth(0, 2), FromTruth(0, 2, averaged=True), FromTruth(1, 2), FromTruth(2, 2),
    FromTruth(0, 3), FromTruth(0, 3, averaged=True), FromTruth(1, 3), FromTruth(2, 3),
)  # fmt: skip


def without_holes(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill unknown pixels of depth (H, W) with that of the nearest known pixel."""
    known = np.isfinite(depth)
    _, nearest = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros(int(nearest.max()) + 1, np.float32)
    values[nearest[known]] = depth[known]
    return np.asarray(values[nearest], np.float32)


def rendered(count: int) -> Iterator[RecordedFrame]:
    """Yield views of rendered rooms with their depth."""
    height, width = ROOM_SIZE
    for seed in range(count):
        scene = Scene.random(seed)
        camera, pose = random_view(scene, np.random.default_rng(seed), width, height)
        view = scene.render(camera, pose)
        yield RecordedFrame(
            Path(RENDERED) / f"room{seed}", view.image, camera, view.depth.astype(np.float32)
        )


def bilinear(values: NDArray[np.float32], image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Enlarge a map (h, w) bilinearly to the size of the image (H, W, 3)."""
    spec = InputSpec(values.shape[0], values.shape[1])
    return np.asarray(to_image(values, spec, image.shape[0], image.shape[1]), np.float32)


def score(
    means: Means, row: str, frame: RecordedFrame, maps: dict[str, Prediction], seeds: Sequence[int]
) -> None:
    """Add AbsRel of the field with each map, and its boundary F1 at the largest count, to means."""
    for seed in seeds:
        for count in COUNTS:
            if count > 0.5 * np.isfinite(frame.truth).sum():
                continue
            split = split_uniform(frame, count, seed)
            for name, prediction in maps.items():
                refiner = refiner_for(FIELD)
                depth = fit(
                    prediction, split.points, refiner=refiner, image=frame.image, config=FIELD
                ).depth
                result = evaluate(depth[split.scored], frame.truth[split.scored])
                means.add(f"{row}|{count}", name, frame.source, result.abs_rel)
                if count == COUNTS[-1]:
                    means.add(f"{row}|F1", name, frame.source, boundary_f1(depth, frame.truth))


def simulated(frames: Iterator[RecordedFrame], seeds: Sequence[int]) -> list[Table]:
    """Compare bilinear, edges kept and full size with simulated networks."""
    means = Means()
    for frame in frames:
        for network in NETWORKS:
            full = network.full(frame, 0)
            small = network.small(full)
            maps = {
                BILINEAR: bilinear(small, frame.image),
                KEPT: resize_map(small, *frame.image.shape[:2], image=frame.image),
                FULL: full,
            }
            predictions = {
                name: Prediction(values, "disparity_affine_invariant")
                for name, values in maps.items()
            }
            score(means, network.name, frame, predictions, seeds)
    return tables(means, [network.name for network in NETWORKS], (BILINEAR, KEPT, FULL))


def with_network(
    frames: Iterator[RecordedFrame], seeds: Sequence[int], network: DepthModel
) -> list[Table]:
    """Compare bilinear and edges kept with a real network."""
    means, engine = Means(), network.engine
    spec = engine.manifest.input
    for frame in frames:
        prediction = network.predict(frame.image)
        values = engine.run(to_tensor(frame.image, spec))
        plain = to_image(values.reshape(values.shape[-2:]), spec, *frame.image.shape[:2])
        maps = {BILINEAR: Prediction(plain, prediction.kind), KEPT: prediction}
        score(means, engine.manifest.name, frame, maps, seeds)
    return tables(means, [engine.manifest.name], (BILINEAR, KEPT))


def tables(means: Means, networks: Sequence[str], names: tuple[str, ...]) -> list[Table]:
    """Make the tables: AbsRel, boundary F1 and ratio to bilinear of each map; ratios by source."""
    body, by_source, ratios = [], [], []
    sources = sorted(means.of_sources(f"{networks[0]}|{COUNTS[0]}", KEPT))
    for network in networks:
        cells = []
        for count in COUNTS:
            row = f"{network}|{count}"
            ratio = means(row, KEPT) / means(row, BILINEAR)
            cells += [f"{means(row, name):.4f}" for name in names] + [f"{ratio:.2f}"]
            ratios.append(ratio)
            ours, theirs = means.of_sources(row, KEPT), means.of_sources(row, BILINEAR)
            shares = (ours.get(each, np.nan) / theirs.get(each, np.nan) for each in sources)
            by_source.append([network, str(count), *(f"{share:.3f}" for share in shares)])
        cells += [f"{means(f'{network}|F1', name):.3f}" for name in names]
        body.append([network, *cells])
    head = ["network"]
    for count in COUNTS:
        head += [f"{name}, {count}" for name in names] + [f"ratio, {count}"]
    head += [f"F1 {name}" for name in names]
    note = f"mean ratio to bilinear {np.mean(ratios):.3f}, worst {max(ratios):.3f}"
    return [
        Table("AbsRel of the field, and its boundary F1", head, body, [note]),
        Table("AbsRel with edges kept over bilinear", ["network", "points", *sources], by_source),
    ]


def speed() -> list[Table]:
    """Measure the times of enlarging the map of a rendered room and of the fit that follows."""
    frame = next(rendered(1))
    body = []
    prediction, _, labels = fit_problem()
    for height, width in SPEED_SIZES:
        image = np.asarray(cv2.resize(frame.image, (width, height)), np.uint8)
        truth = np.asarray(cv2.resize(frame.truth, (width, height)), np.float32)
        problem = SpeedProblem.of(prediction, labels, height, width, SPEED_POINTS)
        for divisor in (2, 3):
            small = FromTruth(1, divisor).small(np.float32(1) / truth)
            parts: dict[str, Callable[[], object]] = {
                BILINEAR: partial(bilinear, small, image),
                KEPT: partial(resize_map, small, height, width, image=image),
                "fit": partial(problem.fit, FIELD),
            }
            times = {name: np.median(one.cpu) for name, one in take_turns(parts, 40).items()}
            ratio = times[KEPT] / times["fit"]
            cells = [f"{value:.1f}" for value in times.values()]
            body.append([f"{width}x{height}", f"1/{divisor}", *cells, f"{ratio:.2f}"])
    head = ["image", "map", BILINEAR, KEPT, f"fit, {SPEED_POINTS} points", "edges kept / fit"]
    return [Table("Processor time of enlarging, ms", head, body, [machine()])]


CASES = ("simulated", "network", "speed")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training study upsampling`."""
    parser.add_argument("case", choices=CASES)
    add_source_options(parser)
    parser.add_argument("--rooms", type=int, default=6, help="rendered views, one more source")


def command(args: argparse.Namespace, console: Console) -> None:
    """Run the case of args.case and print its tables."""
    if args.case == "speed":
        print_tables(console, speed(), args.out)
        return
    folders = [folder for source in args.sources for folder in find_frames(source)]
    with progress(console, args.case, len(folders) + args.rooms) as advance:

        def frames() -> Iterator[RecordedFrame]:
            for folder in folders:
                frame = read_frame(folder)
                yield frame
                advance(f"{frame.source}/{frame.name}")
            for frame in rendered(args.rooms):
                yield frame
                advance(f"{frame.source}/{frame.name}")

        if args.case == "simulated":
            results = simulated(frames(), args.seeds)
        else:
            with DepthModel.open(ModelConfig(args.model, args.manifest)) as network:
                results = with_network(frames(), args.seeds, network)
    print_tables(console, results, args.out)
