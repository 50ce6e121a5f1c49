# SPDX-License-Identifier: Apache-2.0
"""`depth_tools bench`: accuracy and speed of the methods against rivals in the same run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from depth_node.benchmarks import (
    accuracy,
    calibration,
    cameras,
    deskew,
    drive_accuracy,
    field_speed,
    gates,
    obstacles,
    sparse_sensors,
    speed,
    unanchored,
)
from depth_node.benchmarks.tables import Table, markdown
from depth_node.cli.arguments import integers, need_ros, random_seeds, words
from depth_node.cli.console import (
    UsageError,
    console,
    print_table,
    print_tables,
    progress,
    write_json,
    write_text,
)
from depth_node.cli.replay import add_bag_options, opened_bag, refuse_bag_options
from depth_node.engine.manifest import EMBEDDED
from depth_node.engine.options import ModelConfig
from depth_node.inference import DepthModel
from depth_node.live import DemoError
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.recordings.files import new_folder
from depth_node.recordings.frames import find_frames, is_bag
from depth_node.recordings.held_out import Sampling

DRIVE_LINES = 4  # default of --lines for a rosbag2: one of so many scan lines is measured


def add(commands: Any) -> None:
    """Add the command `bench` with its benchmarks."""
    parser = commands.add_parser(
        "bench", help="measure accuracy and speed, compared with rivals in the same run"
    )
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    for add_benchmark in (
        _add_accuracy, _add_sensors, _add_field, _add_cameras, _add_deskew, _add_unanchored,
        _add_calibration, _add_gates, _add_obstacles, _add_speed,
    ):  # fmt: skip
        add_benchmark(kinds)


# --- shared options ------------------------------------------------------------------------------


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED, metavar="FILE")
    parser.add_argument("--manifest", default="", metavar="FILE")


@contextmanager
def _predictor(options: argparse.Namespace) -> Iterator[DepthModel | str]:
    """Yield the network, or the name of the stored predictions that replace it."""
    if options.prediction:
        yield options.prediction
        return
    with DepthModel.open(ModelConfig(options.model, options.manifest)) as model:
        yield model


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")


def _add_repeats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=0, metavar="N", help="number of repetitions")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/walks"), metavar="DIR", help="rendered walks"
    )


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables as Markdown")


# --- accuracy ------------------------------------------------------------------------------------


def _add_accuracy(kinds: Any) -> None:
    parser = kinds.add_parser(
        "accuracy", help="errors of the methods on held-out points of recorded frames or a rosbag2"
    )
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="SOURCE", help="folders of frames, or one rosbag2"
    )
    _add_model(parser)
    parser.add_argument(
        "--prediction",
        default="",
        metavar="NAME",
        help="use prediction_NAME.npz of the frames instead of a network",
    )
    parser.add_argument(
        "--methods",
        default="",
        metavar="A,B,C",
        help=f"methods to compare: {', '.join(accuracy.known_methods())}",
    )
    parser.add_argument(
        "--points",
        default="50,250,1000",
        metavar="N,N,N",
        help="numbers of points to measure, or none",
    )
    parser.add_argument(
        "--lines", type=int, default=0, metavar="K", help="also measure with one of K scan lines"
    )
    parser.add_argument(
        "--scan-below",
        type=float,
        metavar="M",
        help="also measure with a planar scanner M metres below the camera (folders of frames)",
    )
    parser.add_argument("--noise", default="clean", metavar="clean,noisy", help="of the points")
    parser.add_argument("--calibration-px", type=float, default=0.0, metavar="PX")
    parser.add_argument(
        "--labels", default="classical", help=f"regions: {', '.join(accuracy.LABELS)}"
    )
    parser.add_argument("--seed", default="0", metavar="S,S,S", help="random seeds, one or several")
    parser.add_argument(
        "--frames",
        type=int,
        default=drive_accuracy.FRAMES,
        metavar="N",
        help=f"most frames of a rosbag2, spread evenly ({drive_accuracy.FRAMES})",
    )
    add_bag_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables as Markdown"
    )
    parser.set_defaults(run=_run_accuracy)


def _point_counts(options: argparse.Namespace) -> list[int]:
    counts = [] if options.points == "none" else integers("--points", options.points)
    if any(count < 0 for count in counts):
        raise UsageError(f"--points {options.points}: give numbers of points from 0")
    return counts


def _run_accuracy(options: argparse.Namespace) -> int:
    terminal = console()
    if any(is_bag(source) for source in options.sources):
        return _run_drive(options)
    refuse_bag_options(options)
    count = sum(len(find_frames(source)) for source in options.sources)
    chosen: dict[str, Any] = {
        "methods": words(options.methods),
        "points": _point_counts(options),
        "lines": options.lines,
        "scan_below_m": options.scan_below,
        "noise": words(options.noise),
        "seeds": random_seeds(options.seed),
        "labels": options.labels,
        "calibration_px": options.calibration_px,
    }
    with _predictor(options) as predictor, progress(terminal, "scoring", count) as advance:
        try:
            report = accuracy.run_accuracy(options.sources, predictor, on_frame=advance, **chosen)
        except ValueError as error:
            raise UsageError(str(error)) from None
    tables = accuracy.tables(report)
    for table in tables:
        print_table(terminal, table.title, table.head, table.rows, set())
    for note in report.notes:
        terminal.print(f"note: {note}", style="yellow")
    if options.json:
        content = {
            **report.as_dict(),
            "sources": [str(source) for source in options.sources],
            "model": options.prediction or options.model,
            "segmentation_ms": report.segmentation_ms,
        }
        write_json(options.json, content)
    if options.markdown:
        write_text(options.markdown, markdown(tables))
    return 0


def _run_drive(options: argparse.Namespace) -> int:
    """Measure accuracy on a robot's own recording, at LiDAR points that are held out."""
    terminal = console()
    if len(options.sources) != 1:
        raise UsageError("give one rosbag2 at a time: each has its own calibration and scores")
    folders_only = {"prediction": "", "noise": "clean", "calibration_px": 0.0, "scan_below": None}
    for option, usual in folders_only.items():
        if getattr(options, option) != usual:
            raise UsageError(f"--{option.replace('_', '-')} is for folders of frames with a truth")
    seed = random_seeds(options.seed)[0]
    samplings = [Sampling(lines=options.lines or DRIVE_LINES, seed=seed)]
    samplings += [Sampling(points=n, seed=seed) for n in _point_counts(options)]
    methods = words(options.methods) or drive_accuracy.METHODS
    try:
        accuracy.check_methods(methods)
    except ValueError as error:
        raise UsageError(str(error)) from None
    with ExitStack() as stack:
        model = DepthModel.open(ModelConfig(options.model, options.manifest))
        stack.callback(model.close)
        bag = stack.enter_context(opened_bag(options, options.sources[0].resolve()))
        stride = max(1, -(-len(bag) // max(1, options.frames)))
        advance = stack.enter_context(progress(terminal, "scoring", len(bag)))
        report = drive_accuracy.drive_accuracy(
            bag.frames(), model, samplings=samplings, methods=methods, stride=stride,
            on_frame=lambda: advance(""),
        )  # fmt: skip
    tables = drive_accuracy.tables(report)
    for table in tables:
        print_table(terminal, table.title, table.head, table.rows, {"field"})
    if report.skipped:
        terminal.print(f"{report.skipped} frames had too few points to hold some out")
    for sentence in bag.left_out.sentences():
        terminal.print(sentence, style="yellow", markup=False, soft_wrap=True)
    terminal.print(f"note: {report.warning}", style="yellow", markup=False, soft_wrap=True)
    if options.json:
        write_json(options.json, {**report.as_dict(), "model": options.model})
    if options.markdown:
        write_text(options.markdown, f"{markdown(tables)}\n{report.warning}\n")
    return 0


# --- unlike sensors ------------------------------------------------------------------------------


def _add_sensors(kinds: Any) -> None:
    parser = kinds.add_parser(
        "sensors",
        help="radar, two different sensors, a depth camera with holes, with declared noise",
    )
    _add_sources(parser)
    _add_model(parser)
    parser.add_argument("--prediction", default="", metavar="NAME", help="use prediction_NAME.npz")
    _add_out(parser)
    parser.set_defaults(run=_run_sensors)


def _run_sensors(options: argparse.Namespace) -> int:
    terminal = console()
    count = sum(len(find_frames(source)) for source in options.sources)
    with _predictor(options) as predictor, progress(terminal, "measuring", count) as advance:
        table = sparse_sensors.run_sensors(options.sources, predictor, on_frame=advance)
    print_tables(terminal, [table], options.out)
    return 0


# --- speed of the field --------------------------------------------------------------------------


def _add_field(kinds: Any) -> None:
    parser = kinds.add_parser("field", help="speed of the default method on one core")
    _add_repeats(parser)
    _add_out(parser)
    parser.set_defaults(run=_run_field)


def _run_field(options: argparse.Namespace) -> int:
    print_tables(console(), field_speed.speed(options.repeats), options.out)
    return 0


# --- several cameras -----------------------------------------------------------------------------


def _add_cameras(kinds: Any) -> None:
    parser = kinds.add_parser(
        "cameras", help="several cameras in one process, compared with one process each"
    )
    parser.add_argument("--count", type=int, default=4, metavar="N", help="number of cameras")
    parser.add_argument("--seconds", type=float, default=15.0, help="duration of each turn")
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="number of turns")
    parser.add_argument("--model", default=EMBEDDED, metavar="FILE")
    _add_out(parser)
    parser.set_defaults(run=_run_cameras)


def _run_cameras(options: argparse.Namespace) -> int:
    need_ros()
    if options.count < 2 or options.turns < 1 or options.seconds <= 0:
        raise UsageError("bench cameras compares at least 2 cameras, in turns of some seconds")
    terminal = console()
    parameters = {"model": {"path": options.model}}
    try:
        tables = cameras.measure(
            options.count,
            options.seconds,
            options.turns,
            parameters,
            lambda label, total: progress(terminal, label, total),
        )
    except DemoError as error:
        print(f"depth_tools: the cameras could not be measured: {error}", file=sys.stderr)
        return 1
    print_tables(terminal, tables, options.out)
    return 0


# --- deskew --------------------------------------------------------------------------------------


def _add_deskew(kinds: Any) -> None:
    parser = kinds.add_parser(
        "deskew", help="LiDAR points moved by their own times: accuracy while driving, and cost"
    )
    parser.add_argument("--seed", default="", metavar="S,S,S", help="rooms (6 held-out ones)")
    _add_repeats(parser)
    _add_out(parser)
    parser.set_defaults(run=_run_deskew)


def _run_deskew(options: argparse.Namespace) -> int:
    seeds = random_seeds(options.seed, deskew.SEEDS)
    with DepthPipeline(PipelineConfig()) as pipeline:
        tables = [
            deskew.accuracy(pipeline, seeds),
            deskew.rolling_accuracy(pipeline, seeds),
            deskew.speed(options.repeats),
        ]
    print_tables(console(), tables, options.out)
    return 0


# --- LiDAR that falls silent ---------------------------------------------------------------------


def _add_unanchored(kinds: Any) -> None:
    parser = kinds.add_parser("unanchored", help="depth and interval after the LiDAR falls silent")
    parser.add_argument("sources", type=Path, nargs="*", metavar="SOURCE", help="recorded frames")
    parser.add_argument("--seed", default="", metavar="S,S,S", help="rooms (5 held-out ones)")
    _add_cache(parser)
    _add_out(parser)
    parser.set_defaults(run=_run_unanchored)


def _run_unanchored(options: argparse.Namespace) -> int:
    terminal = console()
    seeds = random_seeds(options.seed, unanchored.SEEDS)
    with (
        DepthPipeline(PipelineConfig()) as pipeline,
        progress(terminal, "walking", len(seeds)) as advance,
    ):
        tables = [unanchored.walks(pipeline, seeds, options.cache, advance)]
        tables += [unanchored.recordings(pipeline, source) for source in options.sources]
    print_tables(terminal, tables, options.out)
    return 0


# --- calibration ---------------------------------------------------------------------------------


def _add_calibration(kinds: Any) -> None:
    parser = kinds.add_parser(
        "calibration", help="extrinsics monitor and `calibrate` on rendered walks with known errors"
    )
    parser.add_argument("--seed", default="", metavar="S,S,S", help="rooms (10 held-out ones)")
    parser.add_argument("--frames", type=int, default=calibration.FRAMES, metavar="N")
    _add_cache(parser)
    _add_out(parser)
    parser.set_defaults(run=_run_calibration)


def _run_calibration(options: argparse.Namespace) -> int:
    terminal = console()
    seeds = random_seeds(options.seed, calibration.SEEDS)
    if not 1 <= options.frames <= calibration.MOST_FRAMES:
        raise UsageError(
            f"--frames is {options.frames}: a loop through a room has 1 to"
            f" {calibration.MOST_FRAMES} frames"
        )
    with progress(terminal, "walking", len(seeds) + 1) as advance:
        tables = calibration.study(options.cache, seeds, options.frames, advance)
    print_tables(terminal, tables, options.out)
    return 0


# --- gates ---------------------------------------------------------------------------------------


def _add_gates(kinds: Any) -> None:
    parser = kinds.add_parser(
        "gates", help="what the gates of ~/points remove, on recorded frames with truth"
    )
    _add_sources(parser)
    _add_model(parser)
    parser.add_argument("--seed", default="0", metavar="S,S,S", help="random seeds, one or several")
    _add_out(parser)
    parser.set_defaults(run=_run_gates)


def _run_gates(options: argparse.Namespace) -> int:
    terminal = console()
    count = sum(len(find_frames(source)) for source in options.sources)
    with (
        DepthModel.open(ModelConfig(options.model, options.manifest)) as model,
        progress(terminal, "gating", count) as advance,
    ):
        seeds = random_seeds(options.seed)
        rows = gates.run_gates(
            options.sources, model, seeds=seeds, gates=gates.CANDIDATES, on_frame=advance
        )
    print_tables(terminal, gates.tables(rows), options.out)
    return 0


# --- obstacles -----------------------------------------------------------------------------------


def _add_obstacles(kinds: Any) -> None:
    parser = kinds.add_parser(
        "obstacles", help="~/obstacles on rendered floors: false marks, detected boxes, time"
    )
    parser.add_argument(
        "--frames", type=int, default=600, metavar="N", help="frames of a drive of 60 s"
    )
    parser.add_argument("--boxes", type=int, default=120, metavar="N", help="frames with a box")
    parser.add_argument(
        "--terrain", type=int, default=24, metavar="N", help="frames of each ramp, drop and rain"
    )
    parser.add_argument("--lines", default="32", metavar="N,N", help="lines of the LiDAR")
    parser.add_argument(
        "--range-noise",
        type=float,
        default=0.01,
        metavar="M",
        help="range noise of the LiDAR, one sigma",
    )
    _add_repeats(parser)
    _add_out(parser)
    parser.set_defaults(run=_run_obstacles)


def _run_obstacles(options: argparse.Namespace) -> int:
    terminal = console()
    for option in ("frames", "boxes", "terrain"):
        number = getattr(options, option)
        if number < 0:
            raise UsageError(f"--{option} is {number}: give a number from 0, 0 leaves it out")
    robot, cases = obstacles.Robot(), []
    lines = integers("--lines", options.lines)
    terrain = options.terrain * len(obstacles.TERRAINS)
    steps = len(lines) * (options.frames + options.boxes + terrain)
    varied: list[Table] = []
    with progress(terminal, "driving", steps) as advance:
        for count in lines:
            for frames, box in ((options.frames, False), (options.boxes, True)):
                if frames:
                    cases += obstacles.run_floors(
                        robot,
                        frames=frames,
                        lines=count,
                        box=box,
                        range_noise_m=options.range_noise,
                        on_step=advance,
                    )
            if terrain:
                varied.append(
                    obstacles.run_terrain(
                        robot,
                        options.terrain,
                        lines=count,
                        range_noise_m=options.range_noise,
                        on_step=advance,
                    )
                )
    tables = [*obstacles.tables(cases), *varied, obstacles.speed(robot, options.repeats)]
    print_tables(terminal, tables, options.out)
    return 0


# --- fit, engine, node ---------------------------------------------------------------------------


def _add_speed(kinds: Any) -> None:
    for name, description in (
        ("fit", "the region fit, compared with a plain loop of least squares"),
        ("engine", "the engine, compared with a plain session of ONNX Runtime"),
        ("node", "latency of the node, compared with a bare ROS 2 node"),
        ("speed", "fit, engine and node"),
    ):
        parser = kinds.add_parser(name, help=description)
        _add_repeats(parser)
        _add_model(parser)
        parser.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="new folder for the results (default: runs/bench, runs/bench_2, ...)",
        )
        parser.set_defaults(run=_run_speed, benchmark=name)


def _run_speed(options: argparse.Namespace) -> int:
    terminal = console()
    out = new_folder(options.out, Path("runs/bench"))
    names = ("fit", "engine", "node") if options.benchmark == "speed" else (options.benchmark,)
    for name in names:
        if name == "node":
            need_ros()
            try:
                report = speed.measure_node(
                    options.model,
                    options.manifest,
                    options.repeats,
                    lambda label, total: progress(terminal, label, total),
                )
            except DemoError as error:
                print(f"depth_tools: the node could not be measured: {error}", file=sys.stderr)
                return 1
        else:
            with progress(terminal, f"measuring {name}", None):
                if name == "fit":
                    report = speed.measure_fit(options.repeats)
                else:
                    report = speed.measure_engine(options.model, options.manifest, options.repeats)
        print_table(terminal, report.title, report.head, report.rows, set())
        for note in report.notes:
            terminal.print(f"  {note}")
        write_json(out / f"{name}.json", {**report.values, "machine": speed.machine()})
        write_text(out / f"{name}.md", speed.markdown(report))
    terminal.print(f"written: {out}/*.json, and *.md for docs/benchmarks.md")
    return 0
