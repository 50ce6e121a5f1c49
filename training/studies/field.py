# SPDX-License-Identifier: Apache-2.0
"""Study of method `field`: its targets, the effect of its parts, its interval and its limits.

    python -m training study field CASE SOURCE... [--seeds 0 1 2] [--out TABLES.md]

A case takes a task (frames as in depth_node.recordings.frames, a network and seeds) and returns
tables. Scores are averaged over the frames and seeds of a source, then over the sources.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from depth_node.benchmarks.accuracy import (
    NOISES,
    AccuracyRow,
    DepthPredictor,
    disturbed,
    predicted,
    run_accuracy,
)
from depth_node.benchmarks.tables import Means, Table
from depth_node.cli.console import UsageError, print_tables, progress
from depth_node.engine.options import ModelConfig
from depth_node.engine.refinement import refiner_for
from depth_node.fitting import FitConfig, FitResult, fit
from depth_node.fitting.field.memory import FieldState
from depth_node.fitting.field.settings import FieldAblation
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import DepthModel
from depth_node.metrics import NORMAL_95, coverage, evaluate
from depth_node.prediction import Prediction
from depth_node.recordings.frames import (
    RecordedFrame,
    Split,
    find_frames,
    frame_seed,
    split_lines,
    split_uniform,
)
from depth_node.regions.label_maps import Labels
from depth_node.regions.segmentation import segment
from depth_node.visualization import colours, panels
from depth_node.visualization.panels import write_image
from depth_node.visualization.points import draw_crosses, points_on_image
from training.studies import add_source_options

FIELD = FitConfig(method="field")
SSF = FitConfig(method="ssf", mode="paper")

# Targets by condition: AbsRel over that of SSF as published at the same points.
MUST_REACH = {"50": 0.80, "250": 0.64, "1000": 0.52, "10000": 0.33}
MUST_REACH |= {"50n": 0.70, "250n": 0.59, "1000n": 0.47, "lines_4": 0.67}
RIVALS = ("global_depth", "global_disparity", "idw", "ssf", "ssf_robust")
COUNTS = (50, 250, 1000, 10000)
NOISY_COUNTS = (50, 250, 1000)
MIN_KNOWN = 2000  # known pixels, inside and outside of an area; frames with fewer are left out
EXTRAPOLATION_POINTS = 250
FEW = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30)
FLICKER_FRAMES, FLICKER_START = 12, 4
FLICKER_COUNTS = (50, 250, 1000)
RANGE_NOISE = 0.02
GRAPH_SCALES = (100, 400)  # scales of Felzenszwalb's segmentation: fine and coarse

VARIANTS: dict[str, FieldAblation] = {
    "field": FieldAblation(),
    "base alone": FieldAblation(residual=False),
    "without detail": FieldAblation(detail=False),
    "without colour": FieldAblation(colour=False),
    "without refinement": FieldAblation(refinement=False),
    "without blend and refinement": FieldAblation(blend=False),
    "without outlier rule": FieldAblation(outliers=False),
    "regions from the image": FieldAblation(regions=True),
    "regions from masks": FieldAblation(regions=True),
    "nodes every 6 px": FieldAblation(node_px=6.0),
    "nodes every 16 px": FieldAblation(node_px=16.0),
    "nodes every 32 px": FieldAblation(node_px=32.0),
    "6 neighbours": FieldAblation(neighbours=6),
    "16 neighbours": FieldAblation(neighbours=16),
}
NO_NETWORK = "without network"

AREAS: dict[str, Callable[[int, int], tuple[slice, slice]]] = {
    "left half": lambda height, width: (slice(None), slice(0, width // 2)),
    "right half": lambda height, width: (slice(None), slice(width // 2, None)),
    "upper left quarter": lambda height, width: (slice(0, height // 2), slice(0, width // 2)),
    "lowest 40 %": lambda height, width: (slice(int(0.6 * height), None), slice(None)),
}


@dataclass(frozen=True)
class Task:
    """Input of a case.

    sources: folders of recorded frames. seeds: of the drawn points. on_frame: called with the name
    of each finished frame.
    """

    sources: Sequence[Path]
    predictor: DepthPredictor
    seeds: Sequence[int]
    on_frame: Callable[[str], None] | None = None

    def frames(self) -> Iterator[tuple[RecordedFrame, Prediction]]:
        """Yield each frame with its prediction."""
        return predicted(self.sources, self.predictor, self.on_frame)

    def conditions(self, frame: RecordedFrame) -> Iterator[tuple[str, Split]]:
        """Yield the conditions of the protocol for a frame, for all seeds."""
        for seed in self.seeds:
            yield from conditions(frame, seed)


def conditions(frame: RecordedFrame, seed: int) -> Iterator[tuple[str, Split]]:
    """Yield the conditions for which a frame has enough pixels: counts, with noise, scan lines."""
    known = int(np.isfinite(frame.truth).sum())
    for count in COUNTS:
        if count <= 0.5 * known:
            split = split_uniform(frame, count, seed)
            yield str(count), split
            if count in NOISY_COUNTS:
                noisy = disturbed(frame, split.points, "noisy", 0.0, seed)
                yield f"{count}n", replace(split, points=noisy)
    yield "lines_4", split_lines(frame, 4, seed)


def field_fit(
    prediction: Prediction, points: SparseDepth, labels: Labels | None = None, **more: Any
) -> FitResult:
    """Fit method field with the settings and refiner of a robot; more: arguments of fit."""
    return fit(prediction, points, labels, config=FIELD, refiner=refiner_for(FIELD), **more)


def errors(
    result: FitResult, known: NDArray[np.floating], where: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return AbsRel and the fraction of truth inside the 95 % interval, over a mask.

    known: true depth (H, W) m. where: mask (H, W).
    """
    truth = known[where]
    score = evaluate(result.depth[where], truth).abs_rel
    return score, coverage(result.depth[where], result.std[where], truth)


# --- targets -------------------------------------------------------------------------------------


def targets(task: Task) -> list[Table]:
    """Compare AbsRel with the targets; scan lines on frames with a LiDAR, points on others."""
    folders = [folder for source in task.sources for folder in find_frames(source)]
    scanned = [folder for folder in folders if (folder / "lidar.npy").is_file()]
    others = [folder for folder in folders if folder not in scanned]
    methods = (*RIVALS, "field")
    common: dict[str, Any] = {"noise": NOISES, "seeds": task.seeds, "on_frame": task.on_frame}
    rows: list[AccuracyRow] = []
    if others:
        rows += run_accuracy(others, task.predictor, methods=methods, points=COUNTS, **common).rows
    if scanned:
        rows += run_accuracy(
            scanned, task.predictor, methods=methods, points=(), lines=4, **common
        ).rows
    score, rmse, inside = Means(), Means(), Means()
    for row in rows:
        for means, value in ((score, row.abs_rel), (rmse, row.rmse), (inside, row.coverage95)):
            means.add(row.condition, row.method, row.source, value)
    body = []
    for condition in score.rows():
        own = score.of_sources(condition, "field")
        worst = max(
            own[source] / min(score.of_sources(condition, rival)[source] for rival in RIVALS)
            for source in own
        )
        coverages = inside.of_sources(condition, "field").values()
        field, paper, idw = (score(condition, name) for name in ("field", "ssf", "idw"))
        reach = MUST_REACH.get(condition)
        body.append(
            [
                condition,
                f"{field:.4f}",
                f"{field / paper:.2f}",
                f"{reach:.2f}" if reach else "",
                f"{field / idw:.2f}",
                f"{rmse(condition, 'field') / rmse(condition, 'idw'):.2f}",
                f"{worst:.2f}",
                f"{inside(condition, 'field'):.3f}",
                f"{min(coverages):.2f} to {max(coverages):.2f}",
            ]
        )
    head = ["condition", "AbsRel", "/ SSF", "must reach", "/ IDW", "RMSE / IDW"]
    head += ["worst source / its best rival", "inside", "least and most of a source"]
    return [Table("Targets of method field", head, body)]


# --- the effect of each part ---------------------------------------------------------------------


def ablation(task: Task) -> list[Table]:
    """Measure AbsRel of each variant over AbsRel of the whole method."""
    means = Means()
    for frame, prediction in task.frames():
        classical = segment(frame.image, prediction.values)
        flat = Prediction(np.full_like(prediction.values, 2), "depth_affine_invariant")
        for condition, split in task.conditions(frame):
            for name, variant in (*VARIANTS.items(), (NO_NETWORK, FieldAblation())):
                labels = frame.labels if "masks" in name else classical
                if labels is None:
                    continue
                given = flat if name == NO_NETWORK else prediction
                result = field_fit(given, split.points, labels, image=frame.image, ablation=variant)
                means.add(
                    name, condition, frame.source, errors(result, frame.truth, split.scored)[0]
                )
                if "masks" in name:  # compare only on frames with masks, of which there are few
                    whole = field_fit(prediction, split.points, image=frame.image)
                    score = errors(whole, frame.truth, split.scored)[0]
                    means.add("field where masks are", condition, frame.source, score)
    columns = means.columns()
    rows = []
    for name in (*VARIANTS, NO_NETWORK):
        base = "field where masks are" if "masks" in name else "field"
        cells = [
            f"{means(name, c):.4f}" if name == "field" else f"{means(name, c) / means(base, c):.2f}"
            for c in columns
        ]
        rows.append([name, *cells])
    return [Table("AbsRel of the variants over AbsRel of the field", ["variant", *columns], rows)]


def segmentation(task: Task) -> list[Table]:
    """Measure AbsRel of SSF as published with several kinds of regions, and the field's over it."""
    means = Means()
    for frame, prediction in task.frames():
        kinds: dict[str, Labels | None] = {"ours": segment(frame.image, prediction.values)}
        kinds |= {
            f"graph, scale {scale}": graph_regions(frame.image, scale) for scale in GRAPH_SCALES
        }
        kinds["one region"] = None
        for condition, split in task.conditions(frame):
            own = field_fit(prediction, split.points, image=frame.image)
            means.add("field", condition, frame.source, errors(own, frame.truth, split.scored)[0])
            for name, labels in kinds.items():
                result = fit(prediction, split.points, labels, refiner=None, config=SSF)
                means.add(
                    name, condition, frame.source, errors(result, frame.truth, split.scored)[0]
                )
    columns = means.columns()
    rows = [["field", *(f"{means('field', c):.4f}" for c in columns)]]
    for name in means.rows()[1:]:
        rows.append([f"SSF, {name}", *(f"{means(name, c):.4f}" for c in columns)])
        ratio = (means("field", c) / means(name, c) for c in columns)
        rows.append(["field / this", *(f"{value:.2f}" for value in ratio)])
    return [Table("SSF with regions of several kinds, AbsRel", ["", *columns], rows)]


def graph_regions(image: NDArray[np.uint8], scale: int) -> Labels:
    """Segment the colours of an image (H, W, 3) by Felzenszwalb's method: labels (H, W) 1..K.

    Raises ValueError without scikit-image.
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError:
        raise ValueError(
            "The graph segmentation comes from scikit-image: pip install scikit-image."
        ) from None
    regions = felzenszwalb(image, scale=scale, sigma=0.8, min_size=scale // 2)
    return np.asarray(regions + 1, np.int32)


# --- where points are missing --------------------------------------------------------------------


def extrapolation(task: Task) -> list[Table]:
    """Measure error and interval over the image and beyond the area that has points."""
    means, worst = Means(), Means()
    for frame, prediction in task.frames():
        kind = "global_disparity" if prediction.is_disparity else "global_depth"
        for name, area_of in AREAS.items():
            area = np.zeros(frame.truth.shape, bool)
            area[area_of(*area.shape)] = True
            known = np.isfinite(frame.truth)
            beyond = known & ~area
            if min((known & area).sum(), beyond.sum()) < MIN_KNOWN:
                continue
            rows, cols = np.nonzero(known & area)
            for seed in task.seeds:
                rng = frame_seed(frame, seed, 301, EXTRAPOLATION_POINTS)
                chosen = rng.choice(len(rows), EXTRAPOLATION_POINTS, replace=False)
                at = rows[chosen], cols[chosen]
                points = SparseDepth.from_arrays(*at, frame.truth[at])
                own = field_fit(prediction, points, image=frame.image)
                paper = FitConfig(method=kind, mode="paper")
                plain = fit(prediction, points, refiner=None, config=paper)
                scored = known.copy()
                scored[at] = False
                for where, mask in (("image", scored), ("beyond", beyond)):
                    row = f"{name}, {where}"
                    score, covered = errors(own, frame.truth, mask)
                    means.add(row, "field", frame.source, score)
                    means.add(row, "global", frame.source, errors(plain, frame.truth, mask)[0])
                    worst.add(row, "inside", frame.source, covered)
    body = []
    for row in means.rows():
        ours, theirs = means(row, "field"), means(row, "global")
        least = min(worst.of_sources(row, "inside").values())
        cells = [f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}"]
        body.append([row, *cells, f"{worst(row, 'inside'):.3f}", f"{least:.2f}"])
    head = ["points in, scored", "field", "global fit", "ratio", "inside", "worst source"]
    return [Table(f"{EXTRAPOLATION_POINTS} points in a part of the image", head, body)]


def few(task: Task) -> list[Table]:
    """Compare the field with the global fits (paper mode) on 1 to 30 points."""
    means = Means()
    rivals = {"field": FIELD}
    for method in ("global_depth", "global_disparity", "median"):
        rivals[method] = FitConfig(method=method, mode="paper")
    for frame, prediction in task.frames():
        for count in FEW:
            for seed in task.seeds:
                split = split_uniform(frame, count, seed)
                for name, config in rivals.items():
                    refiner = refiner_for(config)
                    result = fit(
                        prediction, split.points, image=frame.image, config=config, refiner=refiner
                    )
                    score, covered = errors(result, frame.truth, split.scored)
                    means.add(str(count), name, frame.source, score)
                    if name == "field":
                        means.add(str(count), "inside", frame.source, covered)
                        means.add(str(count), result.status.name, frame.source, 1.0)
    statuses = [name for name in means.columns() if name.isupper()]
    body = []
    for row in means.rows():
        cells = [f"{means(row, name):.3f}" for name in rivals]
        covered = means(row, "inside")
        status = next(name for name in statuses if means(row, name) == 1)
        body.append([row, *cells, f"{covered:.3f}" if np.isfinite(covered) else "", status])
    return [Table("Few points, AbsRel", ["points", *rivals, "inside", "status"], body)]


# --- interval, time ------------------------------------------------------------------------------


def interval(task: Task) -> list[Table]:
    """Measure the fraction of held-out pixels inside the interval, by tercile of its width."""
    means = Means()
    for frame, prediction in task.frames():
        for condition, split in task.conditions(frame):
            result = field_fit(prediction, split.points, image=frame.image)
            where = split.scored & np.isfinite(result.std)
            width = result.std[where] / result.depth[where]
            inside = np.abs(result.depth - frame.truth)[where] <= NORMAL_95 * result.std[where]
            low, high = np.quantile(width, [1 / 3, 2 / 3])
            parts = {
                "all": np.ones(len(width), bool),
                "narrow third": width <= low,
                "middle": (width > low) & (width <= high),
                "wide": width > high,
            }
            for name, part in parts.items():
                share = float(inside[part].mean()) if part.any() else np.nan
                means.add(condition, name, frame.source, share)
            means.add(condition, "median width", frame.source, float(NORMAL_95 * np.median(width)))
    columns = ["all", "narrow third", "middle", "wide", "median width"]
    body = []
    for row in means.rows():
        coverages = means.of_sources(row, "all").values()
        values = [f"{means(row, name):.3f}" for name in columns]
        body.append([row, *values, f"{min(coverages):.2f} to {max(coverages):.2f}"])
    over_all = [float(np.nanmean([means(row, name) for row in means.rows()])) for name in columns]
    body.append(["mean", *(f"{value:.3f}" for value in over_all), ""])
    head = ["condition", *columns, "least and most of a source"]
    return [Table("Fraction of held-out pixels inside the 95 % interval", head, body)]


def flicker(task: Task) -> list[Table]:
    """Measure flicker in a static scene: median |log ratio| of successive depth maps.

    Each frame has new points with new noise of 2 %.
    """
    means = Means()
    names = ("frame by frame", "with memory")
    for frame, prediction in task.frames():
        known = np.isfinite(frame.truth)
        for count in FLICKER_COUNTS:
            for seed in task.seeds:
                state, rng = FieldState(), frame_seed(frame, seed, 302, count)
                answers: list[tuple[NDArray[Any], NDArray[Any]]] = []
                for number in range(FLICKER_FRAMES):
                    chosen = rng.choice(np.flatnonzero(known), count, replace=False)
                    at = np.divmod(chosen, known.shape[1])
                    noise = 1 + RANGE_NOISE * rng.standard_normal(count)
                    points = SparseDepth.from_arrays(*at, frame.truth[at] * noise)
                    alone = field_fit(prediction, points, image=frame.image)
                    state.at((number + 1) * 100_000_000)
                    both = field_fit(prediction, points, image=frame.image, state=state)
                    answers.append((alone.depth, both.depth))
                for which, name in enumerate(names):
                    depth = [answer[which] for answer in answers[FLICKER_START:]]
                    steps = [
                        np.nanmedian(np.abs(np.log(after / before)))
                        for before, after in itertools.pairwise(depth)
                    ]
                    means.add(str(count), f"flicker {name}", frame.source, float(np.mean(steps)))
                    score = evaluate(depth[-1][known], frame.truth[known]).abs_rel
                    means.add(str(count), f"AbsRel {name}", frame.source, score)
    columns = means.columns()
    body = []
    for row in means.rows():
        ratio = means(row, f"flicker {names[1]}") / means(row, f"flicker {names[0]}")
        body.append([row, *(f"{means(row, name):.4f}" for name in columns), f"{ratio:.2f}"])
    return [Table("Flicker of a standing scene", ["points", *columns, "flicker ratio"], body)]


CASES: dict[str, Callable[[Task], list[Table]]] = {
    "targets": targets,
    "ablation": ablation,
    "segmentation": segmentation,
    "extrapolation": extrapolation,
    "few": few,
    "interval": interval,
    "flicker": flicker,
}


# --- the figure of docs/method.md ----------------------------------------------------------------

FIGURE_SEED, FIGURE_POINTS, FIGURE_HEIGHT, FIGURE_WIDTH, FIGURE_SHADE = 3, 250, 240, 320, 16


def figure() -> NDArray[np.uint8]:
    """Draw the steps of the method on a rendered room, (H, W, 3) uint8 RGB, for docs/method.md.

    In place of a network's prediction: the true disparity, blurred and with a smooth error.
    """
    from depth_node.simulation.renderer import Scene
    from depth_node.simulation.viewpoints import random_view

    rng = np.random.default_rng(FIGURE_SEED)
    scene = Scene.random(FIGURE_SEED)
    camera, pose = random_view(scene, rng, FIGURE_WIDTH, FIGURE_HEIGHT)
    view = scene.render(camera, pose)
    coarse = rng.normal(0, 0.15, (5, 6))
    bend = cv2.resize(coarse, (FIGURE_WIDTH, FIGURE_HEIGHT), interpolation=cv2.INTER_CUBIC)
    disparity = cv2.GaussianBlur(1 / (view.depth * np.exp(bend)), (0, 0), 2.5)
    prediction = Prediction(disparity.astype(np.float32), "disparity_affine_invariant")
    rows, cols = np.divmod(rng.permutation(view.depth.size)[:FIGURE_POINTS], FIGURE_WIDTH)
    depth = view.depth[rows, cols] * (1 + RANGE_NOISE * rng.standard_normal(FIGURE_POINTS))
    wrong = rng.random(FIGURE_POINTS) < 0.05
    depth[wrong] *= rng.uniform(0.4, 2.0, np.count_nonzero(wrong))
    points = SparseDepth.from_arrays(rows, cols, depth)
    result = field_fit(prediction, points, image=view.image)
    alone = FieldAblation(residual=False)
    base = field_fit(prediction, points, image=view.image, ablation=alone).depth
    labels = segment(view.image, prediction.values)
    rival = fit(prediction, points, labels, refiner=None, config=SSF)
    scale = colours.depth_scale(view.depth)
    rejected = ~result.point_inlier
    measured = points_on_image(view.image, rows, cols, depth, scale)
    measured = draw_crosses(measured, rows[rejected], cols[rejected])
    change = colours.Scale("error", -25, 25, unit="%", low_word="nearer", high_word="farther")
    percent = 100 * NORMAL_95 * result.std / result.depth
    width = colours.Scale("deviation", 0.0, float(np.quantile(percent, 0.95)), unit="%")
    wrongness = colours.relative_error_percent(result.depth, view.depth)
    inside = float(np.mean(np.abs(wrongness) / 100 * view.depth <= NORMAL_95 * result.std))
    captions = {
        "points": f"{FIGURE_POINTS} points, 2 % noise; crosses: not believed",
        "base": f"robust line in disparity: error {mean_percent(base, view.depth):.1f} %",
        "change": "kriging of the residual, and detail",
        "depth": f"B exp(m + U + C): error {mean_percent(result.depth, view.depth):.1f} %",
        "width": f"holds the truth at {inside:.0%} of the pixels",
        "error": f"SSF as published: error {mean_percent(rival.depth, view.depth):.1f} %",
    }
    error = colours.error_scale()
    cards = [
        panels.ImageCard("Points", measured, captions["points"], scale),
        panels.ImageCard("Base B", colours.colour_map(base, scale), captions["base"], scale),
        panels.ImageCard(
            "Residual m + U + C",
            colours.colour_map(100 * (result.depth / base - 1), change),
            captions["change"],
            change,
        ),
        panels.ImageCard(
            "Depth", colours.colour_map(result.depth, scale), captions["depth"], scale
        ),
        panels.ImageCard(
            "95 % interval, ±", colours.colour_map(percent, width), captions["width"], width
        ),
        panels.ImageCard("Error", colours.colour_map(wrongness, error), captions["error"], error),
    ]
    heading = "Method field"
    subtitle = "a rendered room; the network is the true disparity, blurred and bent by 15 %"
    image = panels.compose(heading, subtitle, cards, columns=3, card_width=340)
    shades = np.uint8(FIGURE_SHADE)
    return image // shades * shades + shades // 2  # fewer shades, smaller file


def mean_percent(depth: NDArray[np.floating], truth: NDArray[np.floating]) -> float:
    """Return the mean absolute relative error in percent."""
    return float(np.nanmean(np.abs(colours.relative_error_percent(depth, truth))))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training study field`."""
    parser.add_argument("case", choices=(*CASES, "figure"))
    add_source_options(parser)


def command(args: argparse.Namespace, console: Console) -> None:
    """Run a case and print its tables; `figure` writes the image of docs/method.md.

    Raises UsageError without sources.
    """
    if args.case == "figure":
        write_image(args.out or Path("field.png"), figure())
        return
    count = sum(len(find_frames(source)) for source in args.sources)
    if not count:
        raise UsageError("no SOURCE is given: name folders of recorded frames")
    with (
        DepthModel.open(ModelConfig(args.model, args.manifest)) as network,
        progress(console, args.case, count) as advance,
    ):
        tables = CASES[args.case](Task(args.sources, network, args.seeds, advance))
    print_tables(console, tables, args.out)
