# SPDX-License-Identifier: Apache-2.0
"""Speed benchmarks of fit, engine and node, each against a rival in the same run.

Ours and the rival take turns, so that other processes of the machine disturb both alike. Ratios
compare medians of processor time, which other processes disturb least; the tables also show the
median and the spread (10 % and 90 % quantile) of the wall-clock time. The results go into
docs/benchmarks.md.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.config import build
from depth_node.fitting import FitConfig, fit
from depth_node.fitting.methods import DEPTH_RANGE_M
from depth_node.fitting.numba_support import find_numba
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import open_engine
from depth_node.live import DemoOptions, run_live
from depth_node.pipeline import PipelineConfig
from depth_node.prediction import Prediction
from depth_node.simulation.walk import Progress, render_walk

HEIGHT, WIDTH, REGIONS, POINTS = 480, 640, 100, 1000
NODE_SIZE = (720, 1280)
NODE_RATE_HZ = 4.0
NODE_OVERHEAD_MS = 15.0  # most that the node may add to a bare node, besides fit and segmentation


@dataclass(frozen=True)
class SpeedReport:
    """A table (head, rows), the same numbers for JSON (values), and notes on them."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def machine() -> str:
    """Return processor, number of cores and versions, in one line."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    return f"{name}, {os.cpu_count()} cores, {versions}, OpenCV {cv2.__version__}"


def markdown(report: SpeedReport) -> str:
    """Return the report as a Markdown block for docs/benchmarks.md."""
    lines = [
        f"### {report.title}",
        "",
        "| " + " | ".join(report.head) + " |",
        "|---|" + "--:|" * (len(report.head) - 1),
        *("| " + " | ".join(row) + " |" for row in report.rows),
        "",
        *(f"- {note}" for note in report.notes),
        f"- {machine()}",
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------ timing


@contextmanager
def one_core() -> Iterator[None]:
    """Context in which OpenCV uses one thread and, if the system supports it, the calling thread
    stays on one core.
    """
    threads = cv2.getNumThreads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        cv2.setNumThreads(1)
        if cores:
            os.sched_setaffinity(0, {max(cores)})
        yield
    finally:
        cv2.setNumThreads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


@dataclass(frozen=True)
class Times:
    """Wall-clock and processor time of each call of one function, (n,) ms each."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]

    def summary(self) -> dict[str, float]:
        """Return the medians and the spread of the wall-clock time, for JSON."""
        low, median, high = np.percentile(self.wall, (10, 50, 90)).tolist()
        cpu = float(np.median(self.cpu))
        return {"median_ms": median, "p10_ms": low, "p90_ms": high, "cpu_ms": cpu}


def take_turns(parts: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Call all functions in turn; return their times, (repeats,) each, without a warm-up call."""
    wall: dict[str, list[float]] = {name: [] for name in parts}
    cpu: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, call in parts.items():
            start, begin = time.perf_counter(), time.process_time()
            call()
            if turn:
                cpu[name].append((time.process_time() - begin) * 1e3)
                wall[name].append((time.perf_counter() - start) * 1e3)
    return {name: Times(np.array(wall[name]), np.array(cpu[name])) for name in parts}


TIMES_HEAD = ("", "median ms", "10 % to 90 %", "CPU ms", "ratio (CPU)")


def _row(name: str, times: Mapping[str, float], base: Mapping[str, float]) -> tuple[str, ...]:
    spread = f"{times['p10_ms']:.2f} to {times['p90_ms']:.2f}"
    ratio = times["cpu_ms"] / base["cpu_ms"]
    return name, f"{times['median_ms']:.2f}", spread, f"{times['cpu_ms']:.2f}", f"{ratio:.3g}"


# --------------------------------------------------------------------------------------------- fit


def fit_problem() -> tuple[Prediction, SparseDepth, NDArray[np.int32]]:
    """Return the problem of one image: prediction, 1000 points, and 100 regions of different size,
    labels (H, W).
    """
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0, 1, (REGIONS, 2)) * (HEIGHT, WIDTH)
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    distance = [(rows - r) ** 2 + (cols - c) ** 2 for r, c in seeds]
    labels = np.argmin(distance, axis=0).astype(np.int32) + 1
    depth = 2.0 + 3.0 * rows / HEIGHT + rng.uniform(0, 1, REGIONS)[labels - 1]
    disparity = (rng.uniform(0.5, 2.0, REGIONS)[labels - 1] / depth).astype(np.float32)
    disparity += 0.02 * cv2.GaussianBlur(
        rng.normal(size=labels.shape).astype(np.float32), (0, 0), 9
    )
    at = rng.choice(HEIGHT * WIDTH, POINTS, replace=False)
    r, c = np.divmod(at, WIDTH)
    z = depth[r, c] * (1 + 0.01 * rng.normal(size=POINTS))
    return (
        Prediction(disparity, "disparity_affine_invariant"),
        SparseDepth.from_arrays(r, c, z.astype(np.float32)),
        labels,
    )


@dataclass(frozen=True)
class PlainFit:
    """Result of plain_fit: depth (H, W) m; with evidence also std (H, W) m and a row per region.

    rows: label, own points, points used, and their standard deviation about the fit, m.
    """

    depth: NDArray[np.float64]
    std: NDArray[np.float64]
    rows: list[tuple[int, int, int, float]]


def plain_fit(
    relative: NDArray[np.floating],
    sparse: NDArray[np.floating],
    labels: NDArray[np.integer],
    method: str = "ssf",
    *,
    evidence: bool = False,
) -> PlainFit:
    """Fit regions by a plain loop over masks with numpy.linalg.lstsq, as the rival of fit().

    It also checks fit() in paper mode, with which it shares no code: a region is a mask, neighbours
    are found by comparing pixels, and one region is solved at a time.

    relative: (H, W). sparse: (H, W) m, NaN = not measured. labels: (H, W), 0 = unassigned; these
    pixels take the fit to all points. method: slf or ssf. evidence: also compute the standard
    deviation of a prediction, sigma sqrt(1 + leverage), at every pixel.
    """
    x, y = unit_grid(*labels.shape)
    known = np.isfinite(sparse)
    columns = 4 if method == "ssf" else 2
    links: dict[int, set[int]] = {}
    depth = np.full(labels.shape, np.nan)
    std = np.full(labels.shape, np.nan)
    rows = []
    for label in np.unique(labels).tolist():
        region = labels == label
        used = known & region if label > 0 else known
        own = count = int(used.sum())
        if count <= columns:
            links = links or neighbours(labels)
            used = borrow(label, links, labels, known, columns + 1)[0]
            count = int(used.sum())
        slopes = (x[used], y[used]) if columns == 4 else ()
        design = np.stack([relative[used], *slopes, np.ones(count)])
        z = sparse[used].astype(np.float64)
        solution = np.linalg.lstsq(design.T, z, rcond=None)[0]
        d = relative[region]
        value = solution[0] * d + solution[-1]
        if columns == 4:
            px, py = x[region], y[region]
            value += solution[1] * px + solution[2] * py
        depth[region] = value
        if evidence:
            sigma = np.sqrt(np.sum((z - solution @ design) ** 2) / max(count - columns, 1))
            pixels = np.stack([d, *((px, py) if columns == 4 else ()), np.ones(len(d))])
            leverage = np.sum(pixels * (np.linalg.pinv(design @ design.T) @ pixels), axis=0)
            std[region] = sigma * np.sqrt(1 + leverage)
            rows.append((label, own, count, float(sigma)))
    return PlainFit(np.clip(depth, *DEPTH_RANGE_M), std, rows)


def unit_grid(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y of every pixel in -1..1, (H, W) each; 0 along an axis of one pixel."""
    axes = [np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in (height, width)]
    y, x = np.meshgrid(*axes, indexing="ij")
    return x, y


def neighbours(labels: NDArray[np.integer]) -> dict[int, set[int]]:
    """Return the neighbours of every region of labels (H, W), found by 4-adjacent pixels."""
    links: dict[int, set[int]] = {label: set() for label in np.unique(labels).tolist()}
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        edge = (one != other) & (one > 0) & (other > 0)
        for a, b in set(zip(one[edge].tolist(), other[edge].tolist(), strict=True)):
            links[a].add(b)
            links[b].add(a)
    return links


def borrow(
    label: int,
    links: dict[int, set[int]],
    labels: NDArray[np.integer],
    known: NDArray[np.bool_],
    enough: int,
) -> tuple[NDArray[np.bool_], int]:
    """Return measured pixels (H, W) for a region that has too few, and the rings of neighbours they
    come from; -1 stands for the whole image.
    """
    members, ring = {label}, 0
    while True:
        grown = members.union(*(links[member] for member in members))
        if grown == members:
            return known, -1
        members, ring = grown, ring + 1
        used = known & np.isin(labels, list(members))
        if used.sum() >= enough:
            return used, ring


def measure_fit(repeats: int = 0) -> SpeedReport:
    """Measure SSF for 640x480, 1000 points and 100 regions on one core."""
    prediction, points, labels = fit_problem()
    sparse = points.to_map(HEIGHT, WIDTH)
    relative = prediction.relative_depth()
    out = np.empty(labels.shape, np.float32)
    bits = labels.view(np.float32)

    def ours(mode: str) -> NDArray[np.float32]:
        fresh = Prediction(
            prediction.values, prediction.kind
        )  # a new object, because Prediction keeps the derived maps of earlier calls
        config = FitConfig(method="ssf", mode=mode)
        return fit(fresh, points, labels, refiner=None, config=config).depth

    with one_core():
        times = take_turns(
            {
                "ssf": lambda: ours("paper"),
                "ssf, sensor mode": lambda: ours("sensor"),
                "plain loop": lambda: plain_fit(relative, sparse, labels, evidence=True),
                "plain loop, depth alone": lambda: plain_fit(relative, sparse, labels),
                # Reads two maps and writes one; the labels' bits serve as the second map.
                "memory": lambda: np.add(relative, bits, out=out),
            },
            repeats or 15,
        )
    summaries = {name: one.summary() for name, one in times.items()}
    plain = plain_fit(relative, sparse, labels).depth
    agreement = float(np.median(np.abs(ours("paper") - plain) / plain))
    titles = {
        "ssf": "our SSF, paper mode: depth, std, evidence",
        "ssf, sensor mode": "our SSF, sensor mode: the same",
        "plain loop": "masks and numpy.linalg.lstsq: depth, std, evidence",
        "plain loop, depth alone": "masks and numpy.linalg.lstsq: depth alone",
        "memory": "memory traffic alone",
    }
    rows = [_row(title, summaries[name], summaries["ssf"]) for name, title in titles.items()]
    cpu = {name: one["cpu_ms"] for name, one in summaries.items()}
    values = {
        "speedup": cpu["plain loop"] / cpu["ssf"],
        "speedup_sensor": cpu["plain loop"] / cpu["ssf, sensor mode"],
        "speedup_over_depth_alone": cpu["plain loop, depth alone"] / cpu["ssf"],
        "speedup_sensor_over_depth_alone": cpu["plain loop, depth alone"] / cpu["ssf, sensor mode"],
        "memory_fraction": cpu["memory"] / cpu["ssf"],
        "median_relative_difference": agreement,
    }
    return SpeedReport(
        "Fit: SSF, 640x480, 1000 points, 100 regions, one core",
        TIMES_HEAD,
        rows,
        {**summaries, **values},
        [
            f"{values['speedup']:.0f} times (sensor mode {values['speedup_sensor']:.0f} times) as"
            " fast as the plain loop with the same outputs (aim: 20 and at most 8 ms)",
            f"{values['speedup_over_depth_alone']:.0f} times (sensor mode"
            f" {values['speedup_sensor_over_depth_alone']:.0f} times) as fast as the plain loop"
            " without standard deviation and evidence, ours still with both",
            f"both give the same depth: median relative difference {agreement:.1e}; pure memory"
            f" traffic is {values['memory_fraction']:.0%} of ours",
            f"depth of surfaces: {'compiled by numba' if find_numba()[0] else 'NumPy alone'}",
        ],
    )


# ------------------------------------------------------------------------------------------ engine


def measure_engine(model: str, manifest: str = "", repeats: int = 0) -> SpeedReport:
    """Compare the engine with a plain session of ONNX Runtime: the same model, one thread."""
    from depth_node.engine import ort  # imported here, because it imports onnxruntime

    with open_engine(
        model, manifest=manifest or None, backend="onnxruntime-cpu", threads=1
    ) as engine:
        spec = engine.manifest.input
        tensor = np.random.default_rng(0).uniform(0, 1, spec.shape).astype(spec.dtype)
        name, output = engine.manifest.input_name, engine.manifest.output_name
        session = ort.open_session(Path(engine.details["model"]), 1)
        times = take_turns(
            {
                "ours": lambda: engine.run(tensor),
                "onnxruntime": lambda: session.run([output], {name: tensor}),
            },
            repeats or 200,
        )
        title = f"Engine: {engine.manifest.name}, {spec.width}x{spec.height}, one thread"
    summaries = {name: one.summary() for name, one in times.items()}
    plain = summaries["onnxruntime"]
    ratio = summaries["ours"]["cpu_ms"] / plain["cpu_ms"]
    return SpeedReport(
        title,
        TIMES_HEAD,
        [
            _row("our engine", summaries["ours"], plain),
            _row("onnxruntime's session", plain, plain),
        ],
        {**summaries, "ratio": ratio},
        [f"{ratio:.3f} times the time of plain ONNX Runtime (aim: at most 1.05)"],
    )


# -------------------------------------------------------------------------------------------- node


STAGES = ("preprocess", "engine", "postprocess", "project", "segment", "fit", "publish")


def measure_node(model: str, manifest: str, repeats: int, progress: Progress) -> SpeedReport:
    """Measure the time from stamp to publication at 1280x720 of the node and of a bare rclpy node,
    each a process of its own.

    The bare node receives the same image and publishes a 32FC1 image of the same size.
    """
    config = build(PipelineConfig, {"model": {"path": model, "manifest": manifest}})
    count = repeats or 40
    options = DemoOptions(config, count / NODE_RATE_HZ, NODE_RATE_HZ, NODE_SIZE, views=4)
    times: dict[str, list[float]] = {"bare": [], "node": []}
    counts = {"bare": 0, "node": 0}
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with tempfile.TemporaryDirectory(prefix="depth_bench_") as temporary:
        frames = Path(temporary) / "frames"
        render_walk(frames, 4, options.seed, options.size, progress)
        for turn in range(4):
            kind = ("bare", "node")[turn % 2]
            folder = Path(temporary) / f"{turn}"
            folder.mkdir()
            live = run_live(options, frames, folder, progress, bare=kind == "bare")
            times[kind] += live.report["latency_ms"]
            counts[kind] += live.published
            for stage, measured_ms in stages.items():
                if f"{stage} [ms]" in live.report["diagnostics"]:
                    measured_ms.append(float(live.report["diagnostics"][f"{stage} [ms]"]))
    stage_ms = {stage: float(np.mean(ms)) for stage, ms in stages.items() if ms}
    quantiles = {kind: np.percentile(ms, (50, 95, 99)) for kind, ms in times.items()}
    without = quantiles["node"] - stage_ms["engine"]
    added = float(without[0] - quantiles["bare"][0])
    # A method without regions has no segmentation.
    allowed = NODE_OVERHEAD_MS + stage_ms["fit"] + stage_ms.get("segment", 0.0)
    rows = [
        ("bare rclpy node", *(f"{value:.1f}" for value in quantiles["bare"])),
        ("depth_node", *(f"{value:.1f}" for value in quantiles["node"])),
        ("depth_node without the network", *(f"{value:.1f}" for value in without)),
        *((f"stage: {stage}", f"{ms:.1f}", "", "") for stage, ms in stage_ms.items()),
    ]
    return SpeedReport(
        f"Node: 1280x720 in and out, method {config.fit.method}, stamp to publish",
        ("ms", "p50", "p95", "p99"),
        rows,
        {
            "bare_ms": quantiles["bare"].tolist(),
            "node_ms": quantiles["node"].tolist(),
            "stage_ms": stage_ms,
            "added_ms": added,
            "allowed_ms": allowed,
            "published": counts,
            "received": {kind: len(ms) for kind, ms in times.items()},
        },
        [
            f"without the network the node adds {added:.1f} ms to a bare one (aim: at most"
            f" {NODE_OVERHEAD_MS:g} ms + fit + segmentation = {allowed:.1f} ms)",
            f"{len(times['node'])} of {counts['node']} images answered by the node,"
            f" {len(times['bare'])} of {counts['bare']} by the bare one; two turns each",
        ],
    )
