# SPDX-License-Identifier: Apache-2.0
"""`depth_tools demo`: render a room, run camera, node and listener as processes, score the depth.

Nothing here imports ROS: depth_node.ros.demo and depth_node.ros.main run as processes of their own,
in a ROS domain of their own that does not leave this machine. The other methods of the table are
computed afterwards by the same pipeline from the same images and points.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depth_node.cli.arguments import (
    add_method_options,
    need_ros,
    pipeline_config,
    random_seeds,
)
from depth_node.cli.console import (
    console,
    image_size,
    print_table,
    progress,
    write_json,
)
from depth_node.config import replace as changed
from depth_node.frame import FrameInput
from depth_node.live import DemoError, DemoOptions, Live, Progress, run_live
from depth_node.metrics import evaluate
from depth_node.pipeline import DepthPipeline, DepthResult
from depth_node.recordings import replay, scores, sources
from depth_node.recordings.files import new_folder
from depth_node.recordings.frames import find_frames, read_frame
from depth_node.simulation.walk import NOTE, render_walk

if TYPE_CHECKING:
    from rich.console import Console

PANELS = 3
RIVALS = ("global_depth", "slf", "ssf")
NAMES = {
    "global_depth": "one scale + shift",
    "global_disparity": "one scale + shift in disparity",
    "median": "one scale",
    "slf": "SLF, per region",
    "ssf": "SSF, per region",
    "field": "residual field",
}


@dataclass(frozen=True)
class Unplugged:
    """The depth received while the LiDAR was silent.

    images: number of scored depth images. abs_rel: their mean AbsRel. answered: the mean fraction
    of pixels with depth. statuses: the fit statuses in /diagnostics during that time. back_s: time
    (s) from the LiDAR's return to the first status OK, None if there was none.
    """

    images: int
    abs_rel: float
    answered: float
    statuses: list[str]
    back_s: float | None


@dataclass(frozen=True)
class DemoReport:
    """Results of the demo.

    rows: a row per scored frame and method (scores.score), the node's own as method "live".
    latency_ms, arrival_ms: stamp to publish and stamp to receive. worst_difference: largest
    relative difference between depth received live and computed off line from the same frame.
    extrinsics: the node's verdicts on them, each with the number of the image it began at.
    """

    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    latency_ms: list[float]
    arrival_ms: list[float]
    published: int
    received: int
    worst_difference: float
    diagnostics: dict[str, str]
    extrinsics: list[tuple[int, str]]
    panels: list[Path]
    unplugged: Unplugged | None = None

    def quantiles(self) -> dict[str, list[float]]:
        """p50, p95, p99 in ms from the stamp to publishing and to receiving."""
        return {
            name: np.percentile(times, (50, 95, 99)).tolist()
            for name, times in (
                ("stamp to publish", self.latency_ms),
                ("stamp to received", self.arrival_ms),
            )
        }


def run(options: DemoOptions, out: Path, progress: Progress) -> DemoReport:
    """Render, run and score, and write images into `out`. Raises DemoError if no depth came.

    progress(what, total) is a context manager that gives a function to call after each step.
    """
    # No memory between images, so that any of them can be computed again and compared.
    alone = changed(options.config, {"fit.field.temporal.enabled": False})
    options = dataclasses.replace(options, config=alone)
    with tempfile.TemporaryDirectory(prefix="depth_demo_") as temporary:
        folder = Path(temporary)
        frames = options.frames or folder / "frames"
        frames.mkdir(parents=True, exist_ok=True)
        if any(frames.iterdir()) and not (frames / NOTE).is_file():
            raise DemoError(
                f"{frames} has other files than rendered frames, which would be mixed with them:"
                " give an empty folder, or that of an earlier demo, to --frames"
            )
        views = min(options.views, options.images)
        render_walk(frames, views, options.seed, options.size, progress)
        live = run_live(options, frames, folder, progress)
        return _judge(options, frames, folder, live, out, progress)


def _judge(
    options: DemoOptions, frames: Path, folder: Path, live: Live, out: Path, progress: Progress
) -> DemoReport:
    """Score the received depth and the other methods against the truth, and draw panels."""
    sent = [json.loads(row) for row in (folder / "published.jsonl").read_text("utf-8").splitlines()]
    index_of = {row["number"]: row["index"] for row in sent}
    paths = {int(path.stem.split("_")[1]): path for path in sorted(folder.glob("live_*.npy"))}
    silent = {row["number"] for row in sent if not row["lidar"]}
    without = {number: path for number, path in paths.items() if number in silent}
    # The off-line pipeline knows only the stated extrinsics: compare images before the turn.
    alike = set(range(options.knocked_at)) - silent
    kept = {number: path for number, path in paths.items() if number in alike}
    chosen = np.linspace(0, len(kept) - 1, min(PANELS + 2, len(kept))).round().astype(int)
    drawn = {list(kept)[k] for k in (chosen[1:-1] if len(chosen) > 2 else chosen)}
    rows: list[dict[str, Any]] = []
    panels: list[Path] = []
    worst = 0.0
    own = options.config.fit.method
    views = find_frames(frames)
    with (
        DepthPipeline(options.config) as pipeline,
        progress("comparing methods", len(kept)) as advance,
    ):
        pipeline.warm_up()
        comparison = scores.MethodComparison(pipeline, RIVALS)
        for number, path in kept.items():
            frame = _scored_frame(pipeline, views[index_of[number]])
            result = pipeline.process(frame.input)
            results = comparison.results(frame.input, result)
            depth = np.load(path)
            worst = max(worst, depth_difference(depth, result.depth))
            results["live"] = dataclasses.replace(result, depth=depth)
            rows += [scores.score(frame, method, one) for method, one in results.items()]
            if number in drawn:
                panels += _draw(frame, results, own, out, len(panels), options)
            advance("")
    report = live.report
    return DemoReport(
        rows=rows,
        summary=scores.summarise(rows),
        latency_ms=report["latency_ms"],
        arrival_ms=report["arrival_ms"],
        published=live.published,
        received=live.received,
        worst_difference=worst,
        diagnostics=report["diagnostics"],
        extrinsics=[(number, text) for number, text in report["extrinsics"]],
        panels=panels,
        unplugged=_unplugged(sent, without, views, report["states"]) if silent else None,
    )


def _unplugged(
    sent: list[dict[str, Any]],
    kept: dict[int, Path],
    views: list[Path],
    states: list[tuple[int, str]],
) -> Unplugged:
    """Score the images without a LiDAR. kept: image number -> file of the received depth."""
    accuracies = []
    for number, path in kept.items():
        truth = read_frame(views[sent[number]["index"]]).truth
        assert truth is not None
        accuracies.append(evaluate(np.load(path), truth))
    pulled_ns = next(row["stamp"] for row in sent if not row["lidar"])
    last_ns = max(row["stamp"] for row in sent if not row["lidar"])
    back_ns = next((row["stamp"] for row in sent if row["lidar"] and row["stamp"] > last_ns), None)
    meanwhile = [status for time_ns, status in states if pulled_ns < time_ns <= last_ns]
    ok_ns = [time_ns for time_ns, status in states if status == "OK" and time_ns > (back_ns or 0)]
    return Unplugged(
        images=len(accuracies),
        abs_rel=float(np.mean([one.abs_rel for one in accuracies])) if accuracies else math.nan,
        answered=float(np.mean([one.answered for one in accuracies])) if accuracies else 0.0,
        statuses=list(dict.fromkeys(meanwhile)),
        back_s=(ok_ns[0] - back_ns) * 1e-9 if back_ns and ok_ns else None,
    )


def _scored_frame(pipeline: DepthPipeline, folder: Path) -> sources.ScoredFrame:
    """Return a rendered view with all its LiDAR points; pixels with a point are not scored."""
    frame = read_frame(folder)
    assert frame.points_lidar is not None and frame.T_camera_lidar is not None
    observed = FrameInput(frame.image, frame.camera, frame.points_lidar, frame.T_camera_lidar)
    scored = ~sources.hit_pixels(pipeline, frame.points_lidar, frame)
    return sources.ScoredFrame("room", frame.name, observed, frame.truth, scored)


def depth_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the largest relative difference of two depth maps (H, W), m.

    Infinite if their unknown pixels differ.
    """
    known = np.isfinite(one)
    if not np.array_equal(known, np.isfinite(other)):
        return math.inf
    return float((np.abs(one - other)[known] / other[known]).max(initial=0.0))


def _draw(
    frame: sources.ScoredFrame,
    results: dict[str, DepthResult],
    own: str,
    out: Path,
    number: int,
    options: DemoOptions,
) -> list[Path]:
    """Write the panel of a frame and, for the first frame, each image as a file of its own."""
    shown = {method: one for method, one in results.items() if method != own}
    images = replay.panel(
        frame,
        shown,
        "live",
        "Metric depth, live over ROS 2",
        f"one camera image, {len(results[own].sparse)} LiDAR points, the network in the package;"
        f" {results[own].fit.message}",
        names={**NAMES, "live": f"the node, live ({own})"},
    )
    return images.save(out, f"demo_{number}", singles=number == 0)[:1]


def _unplugged_sentence(found: Unplugged) -> str:
    back = "not OK again" if found.back_s is None else f"OK again {found.back_s:.1f} s after"
    return (
        f"LiDAR unplugged: depth in {found.answered:.0%} of the pixels of {found.images} images,"
        f" AbsRel {found.abs_rel:.3f}; status {', '.join(found.statuses) or 'unknown'};"
        f" {back} its return"
    )


def add(commands: Any) -> None:
    """Add the command `demo` with its options."""
    parser = commands.add_parser(
        "demo", help="live demo over ROS 2: a moving camera and a LiDAR in a procedural room"
    )
    add_method_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="new folder for the images (default: demo_output, demo_output_2, ...)",
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="duration (20)")
    parser.add_argument(
        "--rate", type=float, default=10.0, metavar="HZ", help="images a second (10)"
    )
    parser.add_argument("--size", default="640x480", metavar="WxH", help="size of the image")
    parser.add_argument("--seed", type=int, default=10, help="seed of the room (10)")
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="DIR",
        help="folder that keeps the rendered frames: an empty one, or that of an earlier demo",
    )
    parser.add_argument(
        "--unplug", action="store_true", help="unplug the LiDAR for the middle third of the run"
    )
    parser.add_argument(
        "--knock",
        type=float,
        default=0.0,
        metavar="DEG",
        help="turn the LiDAR on its mount by this angle after a third of the run, to see whether"
        " the node notices (needs --seconds 30 or more)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers to this file"
    )
    parser.set_defaults(run=run_command)


def run_command(options: argparse.Namespace) -> int:
    """Run the demo, print its results and return the exit status."""
    need_ros()
    terminal = console()
    config = pipeline_config(options)
    out = new_folder(options.out, Path("demo_output"))
    try:
        wanted = DemoOptions(
            config,
            options.seconds,
            options.rate,
            image_size("--size", options.size),
            random_seeds(options.seed)[0],
            options.frames,
            unplug=options.unplug,
            knock_deg=options.knock,
        )
        report = run(wanted, out, lambda what, total: progress(terminal, what, total))
    except DemoError as error:
        print(f"depth_tools: no depth came: {error}", file=sys.stderr)
        return 1
    own = f"the node, live ({config.fit.method})"
    names = {**NAMES, "live": own}
    rows = [
        (names[row["method"]], *scores.metric_cells(row))
        for row in report.summary
        if row["method"] != config.fit.method or row["method"] in RIVALS
    ]
    scored = report.summary[-1]["frames"]
    title = f"Against the truth, {scored} frames, the same points for every method"
    print_table(terminal, title, ("method", *scores.METRIC_HEAD), rows, {own})
    times = [
        (name, *(f"{value:.1f} ms" for value in values))
        for name, values in report.quantiles().items()
    ]
    print_table(terminal, "Latency of the node", ("", "p50", "p95", "p99"), times, set())
    dropped = report.published - report.received
    terminal.print(
        f"images in: {report.published}, depth out: {report.received}, dropped: {dropped}"
    )
    if dropped > 0.2 * report.published:
        terminal.print(
            f"This machine is too busy for {options.rate:g} images a second (the newest image"
            " wins, the others are dropped): try --rate 2, or when less else runs.",
            style="yellow",
        )
    if report.unplugged is not None:
        terminal.print(_unplugged_sentence(report.unplugged))
    terminal.print(f"network: {report.diagnostics.get('backend', 'unknown')}")
    if report.worst_difference < 1e-4:
        terminal.print("Replaying the same frames off line gives the same depth.")
    else:
        terminal.print(
            f"Live and replayed depth differ by up to {report.worst_difference:.2%}.",
            style="yellow",
        )
    if wanted.knock_deg:
        _print_knock(terminal, wanted, report)
    for path in report.panels:
        terminal.print(f"image: {path}")
    if options.json:
        facts = dataclasses.asdict(report)
        facts["panels"] = [str(path) for path in report.panels]
        write_json(options.json, {**facts, "quantiles_ms": report.quantiles()})
    return 0


def _print_knock(terminal: Console, options: DemoOptions, report: DemoReport) -> None:
    """Print the node's verdicts on its extrinsics before and after the LiDAR was turned."""
    at = options.knocked_at
    terminal.print(f"The LiDAR was turned by {options.knock_deg:g} degrees at image {at}.")
    for number, text in report.extrinsics:
        after = f" ({(number - at) / options.rate_hz:.1f} s after)" if number >= at else ""
        terminal.print(f"image {number}{after}: extrinsics {text}", soft_wrap=True)
    if not any(n >= at and text.startswith("wrong") for n, text in report.extrinsics):
        terminal.print("The node did not notice it in that time.", style="yellow")
