# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of method `field` beyond the accuracy table of `depth_tools bench accuracy`.

    python -m depth_node.benchmark_field ablation SOURCE... [--model FILE --manifest FILE]
    python -m depth_node.benchmark_field extrapolation SOURCE...
    python -m depth_node.benchmark_field few SOURCE...
    python -m depth_node.benchmark_field interval SOURCE...
    python -m depth_node.benchmark_field flicker SOURCE...
    python -m depth_node.benchmark_field speed

prints one Markdown table each. Sources are folders of frames (depth_node.frames); scores are
averaged over frames and seeds of a source, then over sources.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node import config as settings
from depth_node.benchmark import disturbed
from depth_node.field import warm_up
from depth_node.fitting import FitConfig, fit
from depth_node.frames import (
    Frame,
    Split,
    find_frames,
    frame_seed,
    read_frame,
    split_lines,
    split_uniform,
)
from depth_node.inference import DepthModel, ModelConfig
from depth_node.prediction import Prediction
from depth_node.projection import SparseDepth
from depth_node.regions import segment
from depth_node.speed import fit_problem, machine, one_core, take_turns
from depth_node.temporal import FieldState

FIELD = FitConfig(method="field")
MIN_KNOWN = 2000  # frames that know less of an area are left out
EXTRAPOLATION_POINTS = 250
FLICKER_FRAMES, FLICKER_START = 12, 4

VARIANTS: dict[str, dict[str, Any]] = {
    "field": {},
    "base alone": {"field.residual": False},
    "without detail": {"field.detail": False},
    "without colour": {"field.colour": False},
    "without outlier rule": {"field.outliers": False},
    "regions from the picture": {"field.regions": True},
    "regions from masks": {"field.regions": True},
    "nodes every 6 px": {"field.node_px": 6.0},
    "nodes every 16 px": {"field.node_px": 16.0},
    "nodes every 32 px": {"field.node_px": 32.0},
    "6 neighbours": {"field.neighbours": 6},
    "16 neighbours": {"field.neighbours": 16},
}
NO_NETWORK = "without network"

AREAS: dict[str, Callable[[int, int], tuple[slice, slice]]] = {
    "left half": lambda height, width: (slice(None), slice(0, width // 2)),
    "right half": lambda height, width: (slice(None), slice(width // 2, None)),
    "upper left quarter": lambda height, width: (slice(0, height // 2), slice(0, width // 2)),
    "lowest 40 %": lambda height, width: (slice(int(0.6 * height), None), slice(None)),
}

Cells = dict[str, float]


class Means:
    """Mean over the entries of a source, then over sources, by row and column."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def add(self, row: str, column: str, source: str, value: float) -> None:
        """One more value; NaN counts as none."""
        if np.isfinite(value):
            self._values[row, column][source].append(value)

    def __call__(self, row: str, column: str) -> float:
        """The mean, NaN without values."""
        sources = self._values.get((row, column), {})
        return float(np.mean([np.mean(v) for v in sources.values()])) if sources else np.nan

    def worst(self, row: str, column: str, over: Callable[[list[float]], float]) -> float:
        """The extreme (min or max) of the means of sources."""
        sources = self._values.get((row, column), {})
        return over([float(np.mean(v)) for v in sources.values()]) if sources else np.nan

    def rows(self) -> list[str]:
        """In the order of arrival."""
        return list(dict.fromkeys(row for row, _ in self._values))

    def columns(self) -> list[str]:
        """In the order of arrival."""
        return list(dict.fromkeys(column for _, column in self._values))


def frames_of(
    sources: Sequence[Path], model: str, manifest: str
) -> Iterator[tuple[Frame, Prediction]]:
    """Every frame with its prediction, told on the error stream."""
    with DepthModel.open(ModelConfig(model, manifest)) as network:
        for folder in dict.fromkeys(path for source in sources for path in find_frames(source)):
            frame = read_frame(folder)
            print(f"{frame.source}/{frame.name}", file=sys.stderr)
            yield frame, network.predict(frame.image)


def conditions(frame: Frame, seed: int) -> Iterator[tuple[str, Split]]:
    """The protocol's conditions that this frame has enough pixels for, noisy points among them."""
    known = int(np.isfinite(frame.truth).sum())
    for count in (50, 250, 1000, 10000):
        if count <= 0.5 * known:
            split = split_uniform(frame, count, seed)
            yield str(count), split
            if count <= 1000:
                noisy = disturbed(frame, split.points, "noisy", 0.0, seed)
                yield f"{count}n", dataclasses.replace(split, points=noisy)
    yield "lines", split_lines(frame, 4, seed)


def abs_rel(depth: NDArray[np.floating], truth: NDArray[np.floating], where: Any) -> float:
    """Mean relative error where it is asked for and answered."""
    error = np.abs(depth[where] - truth[where]) / truth[where]
    return float(np.nanmean(error)) if np.isfinite(error).any() else np.nan


def ablation(options: argparse.Namespace) -> list[str]:
    """AbsRel of every variant over AbsRel of the whole method."""
    means = Means()
    for frame, prediction in frames_of(options.sources, options.model, options.manifest):
        classical = segment(frame.image, prediction.values)
        flat = Prediction(np.full_like(prediction.values, 2), "depth_affine_invariant")
        for seed in options.seeds:
            for condition, split in conditions(frame, seed):
                for name, changes in (*VARIANTS.items(), (NO_NETWORK, {})):
                    labels = frame.labels if "masks" in name else classical
                    if labels is None:
                        continue
                    given = flat if name == NO_NETWORK else prediction
                    config = settings.replace(FIELD, changes)
                    depth = fit(given, split.points, labels, image=frame.image, config=config).depth
                    score = abs_rel(depth, frame.truth, split.scored)
                    means.add(name, condition, frame.source, score)
                    if "masks" in name:  # few frames have masks: compare on these alone
                        whole = fit(prediction, split.points, image=frame.image, config=FIELD).depth
                        score = abs_rel(whole, frame.truth, split.scored)
                        means.add("field where masks are", condition, frame.source, score)
    columns = means.columns()
    lines = table_head(["variant", *columns])
    for name in (*VARIANTS, NO_NETWORK):
        base = "field where masks are" if "masks" in name else "field"
        cells = [
            f"{means(name, c):.4f}" if name == "field" else f"{means(name, c) / means(base, c):.2f}"
            for c in columns
        ]
        lines.append(table_row([name, *cells]))
    return lines


def extrapolation(options: argparse.Namespace) -> list[str]:
    """Points in a part of the picture alone: error and interval in and beyond it."""
    means = Means()
    for frame, prediction in frames_of(options.sources, options.model, options.manifest):
        kind = "global_disparity" if prediction.is_disparity else "global_depth"
        for name, area_of in AREAS.items():
            area = np.zeros(frame.truth.shape, bool)
            area[area_of(*area.shape)] = True
            known = np.isfinite(frame.truth)
            beyond = known & ~area
            if min((known & area).sum(), beyond.sum()) < MIN_KNOWN:
                continue
            rows, cols = np.nonzero(known & area)
            for seed in options.seeds:
                rng = frame_seed(frame, seed, 301, EXTRAPOLATION_POINTS)
                chosen = rng.choice(len(rows), EXTRAPOLATION_POINTS, replace=False)
                points = SparseDepth.from_arrays(
                    rows[chosen], cols[chosen], frame.truth[rows[chosen], cols[chosen]]
                )
                own = fit(prediction, points, image=frame.image, config=FIELD)
                plain = fit(prediction, points, config=FitConfig(method=kind, mode="paper"))
                inside = np.abs(own.depth - frame.truth) <= 1.96 * own.std
                for where, mask in (("picture", known), ("beyond", beyond)):
                    for column, value in (
                        ("field", abs_rel(own.depth, frame.truth, mask)),
                        ("global", abs_rel(plain.depth, frame.truth, mask)),
                        ("inside", float(inside[mask].mean())),
                    ):
                        means.add(f"{name}, {where}", column, frame.source, value)
    lines = table_head(["points in", "field", "global fit", "ratio", "inside the 95 % interval"])
    for row in means.rows():
        ours, theirs = means(row, "field"), means(row, "global")
        inside_text = f"{means(row, 'inside'):.3f}"
        cells = [f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}", inside_text]
        lines.append(table_row([row, *cells]))
    return lines


def few(options: argparse.Namespace) -> list[str]:
    """1 to 30 points, against the global fits (paper mode)."""
    means = Means()
    rivals = {
        "field": FIELD,
        "global_depth": FitConfig(method="global_depth", mode="paper"),
        "global_disparity": FitConfig(method="global_disparity", mode="paper"),
        "median": FitConfig(method="median", mode="paper"),
    }
    for frame, prediction in frames_of(options.sources, options.model, options.manifest):
        for count in (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30):
            for seed in options.seeds:
                split = split_uniform(frame, count, seed)
                for name, config in rivals.items():
                    found = fit(prediction, split.points, image=frame.image, config=config)
                    score = abs_rel(found.depth, frame.truth, split.scored)
                    means.add(str(count), name, frame.source, score)
                    if name == "field":
                        inside = np.abs(found.depth - frame.truth) <= 1.96 * found.std
                        share = float(inside[split.scored].mean()) if count > 1 else np.nan
                        means.add(str(count), "inside", frame.source, share)
    lines = table_head(["points", *rivals, "inside the 95 % interval"])
    for row in means.rows():
        cells = [f"{means(row, name):.3f}" for name in rivals]
        lines.append(table_row([row, *cells, f"{means(row, 'inside'):.3f}"]))
    return lines


def interval(options: argparse.Namespace) -> list[str]:
    """Share of held-out pixels inside the interval, by condition and tercile of its width."""
    means = Means()
    for frame, prediction in frames_of(options.sources, options.model, options.manifest):
        for seed in options.seeds:
            for condition, split in conditions(frame, seed):
                found = fit(prediction, split.points, image=frame.image, config=FIELD)
                where = split.scored & np.isfinite(found.std)
                width = found.std[where] / found.depth[where]
                inside = np.abs(found.depth - frame.truth)[where] <= 1.96 * found.std[where]
                low, high = np.quantile(width, [1 / 3, 2 / 3])
                parts = {
                    "all": np.ones(len(width), bool),
                    "narrow": width <= low,
                    "middle": (width > low) & (width <= high),
                    "wide": width > high,
                }
                for name, part in parts.items():
                    if part.any():
                        means.add(condition, name, frame.source, float(inside[part].mean()))
    lines = table_head(
        ["condition", "all", "worst source", "best source", "narrow third", "middle", "wide"]
    )
    for row in means.rows():
        values = [means(row, "all"), means.worst(row, "all", min), means.worst(row, "all", max)]
        values += [means(row, name) for name in ("narrow", "middle", "wide")]
        lines.append(table_row([row, *(f"{value:.3f}" for value in values)]))
    return lines


def flicker(options: argparse.Namespace) -> list[str]:
    """A standing scene with fresh points and 2 % fresh noise: median |log ratio| of two frames."""
    means = Means()
    for frame, prediction in frames_of(options.sources, options.model, options.manifest):
        known = np.isfinite(frame.truth)
        for count in (50, 250, 1000):
            for seed in options.seeds:
                state, rng = FieldState(), frame_seed(frame, seed, 302, count)
                answers: list[tuple[NDArray[Any], NDArray[Any]]] = []
                for number in range(FLICKER_FRAMES):
                    chosen = rng.choice(np.flatnonzero(known), count, replace=False)
                    rows, cols = np.divmod(chosen, known.shape[1])
                    noise = 1 + 0.02 * rng.standard_normal(count)
                    points = SparseDepth.from_arrays(rows, cols, frame.truth[rows, cols] * noise)
                    alone = fit(prediction, points, image=frame.image, config=FIELD)
                    state.at((number + 1) * 100_000_000)
                    both = fit(prediction, points, image=frame.image, config=FIELD, state=state)
                    answers.append((alone.depth, both.depth))
                for which, name in enumerate(("frame by frame", "with memory")):
                    depth = [answer[which] for answer in answers[FLICKER_START:]]
                    steps = [
                        np.nanmedian(np.abs(np.log(depth[i + 1] / depth[i])))
                        for i in range(len(depth) - 1)
                    ]
                    means.add(str(count), f"flicker {name}", frame.source, float(np.mean(steps)))
                    score = abs_rel(depth[-1], frame.truth, known)
                    means.add(str(count), f"AbsRel {name}", frame.source, score)
    columns = means.columns()
    lines = table_head(["points", *columns, "flicker ratio"])
    for row in means.rows():
        ratio = means(row, "flicker with memory") / means(row, "flicker frame by frame")
        cells = [f"{means(row, column):.4f}" for column in columns]
        lines.append(table_row([row, *cells, f"{ratio:.2f}"]))
    return lines


def speed(options: argparse.Namespace) -> list[str]:
    """Milliseconds on one core beside SSF, the NumPy form, and a pass over the picture's memory."""
    warm_up()
    prediction, _, labels = fit_problem()
    names: list[str] = []
    rows = []
    with one_core():
        for height, width in ((480, 640), (720, 1280)):
            for count in (50, 250, 1000, 10000):
                here = Prediction(enlarged(prediction.values, height, width), prediction.kind)
                found = speed_of(here, enlarged(labels, height, width), count, options.repeats)
                names = list(found)
                cells = [f"{value:.1f}" for value in found.values()]
                rows.append(table_row([f"{width}x{height}", str(count), *cells]))
    head = table_head(["picture", "points", *names])
    return [*head, *rows, "", f"Medians of processor time in ms. {machine()}"]


def speed_of(
    prediction: Prediction, labels: NDArray[np.integer], count: int, repeats: int
) -> dict[str, float]:
    """Median processor milliseconds of the ways to fit `count` points."""
    height, width = prediction.shape
    rng = np.random.default_rng(0)
    rows, cols = np.divmod(rng.permutation(height * width)[:count], width)
    bend = np.exp(0.1 * np.sin(rows / height * 7) * np.cos(cols / width * 5))
    points = SparseDepth.from_arrays(
        rows, cols, prediction.relative_depth()[rows, cols] * bend * 2 + 0.5
    )
    image, values = picture_of(labels), prediction.values
    numpy_form = settings.replace(FIELD, {"field.compiler": "numpy"})
    paper, sensor = (FitConfig(method="ssf", mode=mode) for mode in ("paper", "sensor"))
    state, clock = FieldState(), iter(range(1, 1_000_000))

    def remembered() -> object:
        state.at(next(clock) * 100_000_000)
        return fit(prediction, points, image=image, config=FIELD, state=state)

    parts: dict[str, Callable[[], object]] = {
        "field": lambda: fit(prediction, points, image=image, config=FIELD),
        "field with memory": remembered,
        "ssf": lambda: fit(prediction, points, labels, config=paper),
        "ssf robust": lambda: fit(prediction, points, labels, config=sensor),
        # What any method must do: read prediction and picture, write depth and std.
        "memory floor": lambda: (values * 2.0, values + 1.0, image.max()),
    }
    times = take_turns(parts, repeats or 30)
    slow = {"NumPy form": lambda: fit(prediction, points, image=image, config=numpy_form)}
    times |= take_turns(slow, 3)
    return {name: float(np.median(found.cpu)) for name, found in times.items()}


def enlarged(array: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The nearest value of every pixel at another size."""
    rows = np.arange(height) * array.shape[0] // height
    cols = np.arange(width) * array.shape[1] // width
    return np.ascontiguousarray(array[rows][:, cols])


def picture_of(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Every region in a colour of its own, with grain."""
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (int(labels.max()) + 1, 3))
    grain = rng.normal(0, 5, (*labels.shape, 1))
    return np.clip(colours[labels] + grain, 0, 255).astype(np.uint8)


def table_head(names: Sequence[str]) -> list[str]:
    """First two lines of a Markdown table."""
    return [table_row(names), "|" + "---|" * len(names)]


def table_row(cells: Sequence[str]) -> str:
    """One line of it."""
    return "| " + " | ".join(cells) + " |"


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[str]]] = {
    "ablation": ablation,
    "extrapolation": extrapolation,
    "few": few,
    "interval": interval,
    "flicker": flicker,
    "speed": speed,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m depth_node.benchmark_field")
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, run in BENCHMARKS.items():
        what = (run.__doc__ or "").splitlines()[0]
        kind = kinds.add_parser(name, help=what)
        if name == "speed":
            kind.add_argument("--repeats", type=int, default=0, metavar="N")
        else:
            kind.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
            kind.add_argument("--model", default="embedded", metavar="FILE")
            kind.add_argument("--manifest", default="", metavar="FILE")
            kind.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S")
    options = parser.parse_args(arguments)
    print("\n".join(BENCHMARKS[options.kind](options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
