# SPDX-License-Identifier: Apache-2.0
"""`depth_tools bench`: accuracy and speed against rivals in one run."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_node.benchmarks import accuracy, field_speed, speed
from depth_node.benchmarks.tables import markdown
from depth_node.cli.console import (
    UsageError,
    console,
    print_table,
    print_tables,
    progress,
    write_json,
    write_text,
)
from depth_node.engine.manifest import EMBEDDED
from depth_node.inference import DepthModel, ModelConfig
from depth_node.recordings.frames import find_frames
from depth_node.ros.live import DemoError

if TYPE_CHECKING:
    pass
from depth_node.cli.arguments import integers, need_ros, words


def add(commands: Any) -> None:
    """The options of `depth_tools bench`."""
    parser = commands.add_parser("bench", help="accuracy and speed against rivals in one run")
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    scores = kinds.add_parser("accuracy", help="methods against the truth of recorded frames")
    scores.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    scores.add_argument("--model", default=EMBEDDED, metavar="FILE")
    scores.add_argument("--manifest", default="", metavar="FILE")
    scores.add_argument("--prediction", default="", metavar="NAME", help="prediction_NAME.npz")
    scores.add_argument(
        "--methods",
        default="",
        metavar="A,B,C",
        help=f"of {', '.join(accuracy.known_methods())}",
    )
    scores.add_argument("--points", default="50,250,1000", metavar="N,N,N", help="or none")
    scores.add_argument("--lines", type=int, default=0, metavar="K", help="one of K scan lines")
    scores.add_argument("--noise", default="clean", metavar="clean,noisy")
    scores.add_argument("--calibration-px", type=float, default=0.0, metavar="PX")
    scores.add_argument("--labels", default="classical", help=", ".join(accuracy.LABELS))
    scores.add_argument("--seed", default="0", metavar="S,S,S", help="one or several")
    scores.add_argument("--json", type=Path, metavar="FILE")
    scores.add_argument("--markdown", type=Path, metavar="FILE", help="the tables for a page")
    scores.set_defaults(run=_run_accuracy)
    field = kinds.add_parser("field", help="speed of the default method, on one core")
    field.add_argument("--repeats", type=int, default=0, metavar="N", help="more: steadier")
    field.add_argument("--out", type=Path, metavar="FILE", help="the tables for a page")
    field.set_defaults(run=_run_field)
    for name, what in (
        ("fit", "the region fit against a plain loop of least squares"),
        ("engine", "our path to ONNX Runtime against ONNX Runtime itself"),
        ("node", "what the node adds to a bare ROS 2 node"),
        ("speed", "fit, engine and node"),
    ):
        kind = kinds.add_parser(name, help=what)
        kind.add_argument("--repeats", type=int, default=0, metavar="N", help="more: steadier")
        kind.add_argument("--model", default=EMBEDDED, metavar="FILE")
        kind.add_argument("--manifest", default="", metavar="FILE")
        kind.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR")
        kind.set_defaults(run=_run_speed, benchmark=name)


def _run_accuracy(options: argparse.Namespace) -> int:
    terminal = console()
    count = sum(len(find_frames(source)) for source in options.sources)
    points = "" if options.points == "none" else options.points
    chosen: dict[str, Any] = {
        "methods": words(options.methods),
        "points": integers("--points", points),
        "lines": options.lines,
        "noise": words(options.noise),
        "seeds": integers("--seed", options.seed),
        "labels": options.labels,
        "calibration_px": options.calibration_px,
    }
    with ExitStack() as stack:
        predictor: DepthModel | str = options.prediction
        if not predictor:
            config = ModelConfig(options.model, options.manifest)
            predictor = stack.enter_context(DepthModel.open(config))
        advance = stack.enter_context(progress(terminal, "scoring", count))
        try:
            report = accuracy.run_accuracy(options.sources, predictor, on_frame=advance, **chosen)
        except ValueError as error:
            raise UsageError(str(error)) from None
    found = accuracy.tables(report)
    for table in found:
        print_table(terminal, table.title, table.head, table.rows, set())
    for note in report.notes:
        terminal.print(f"note: {note}", style="yellow")
    if options.json:
        facts = {
            **report.as_dict(),
            "sources": [str(source) for source in options.sources],
            "model": options.prediction or options.model,
            "segmentation_ms": report.segmentation_ms,
        }
        write_json(options.json, facts)
    if options.markdown:
        write_text(options.markdown, markdown(found))
    return 0


def _run_field(options: argparse.Namespace) -> int:
    print_tables(console(), field_speed.speed(options.repeats), options.out)
    return 0


def _run_speed(options: argparse.Namespace) -> int:
    terminal = console()
    names = ("fit", "engine", "node") if options.benchmark == "speed" else (options.benchmark,)
    for name in names:
        if name == "node":
            need_ros()
            try:
                report = speed.measure_node(
                    options.model,
                    options.manifest,
                    options.repeats,
                    lambda what, total: progress(terminal, what, total),
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
        write_json(options.out / f"{name}.json", {**report.values, "machine": speed.machine()})
        write_text(options.out / f"{name}.md", speed.markdown(report))
    terminal.print(f"written: {options.out}/*.json, and *.md for docs/benchmarks.md")
    return 0
