# SPDX-License-Identifier: Apache-2.0
"""The command line `depth_tools`: demo, replay, bench, doctor, models, parameters.

A mistake of the user ends with one sentence and exit status 2, a check that failed with 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from depth_node import (
    __version__,
    benchmark,
    benchmark_field,
    benchmark_regions,
    model_tools,
    replay,
)
from depth_node.bags import BagError
from depth_node.config import ConfigError, load, override
from depth_node.engine import EngineError
from depth_node.engine.cache import EngineCache
from depth_node.engine.manifest import EMBEDDED
from depth_node.engine.opening import backends
from depth_node.fitting import METHODS
from depth_node.frames import FrameError, find_frames
from depth_node.inference import DepthModel, ModelConfig, open_engine
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.screen import (
    UsageError,
    console,
    picture_size,
    print_table,
    progress,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from rich.console import Console

ROS_CURE = (
    "source your ROS 2 (`source /opt/ros/jazzy/setup.bash`), or in a virtual environment"
    " `pip install ros-jazzy-rclpy ros-jazzy-rmw-fastrtps-cpp ros-jazzy-rmw-implementation"
    " ros-jazzy-common-interfaces ros-jazzy-rcl-interfaces`"
)


USER_ERRORS = (UsageError, ConfigError, EngineError, FrameError, BagError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the return value is the exit status."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except USER_ERRORS as error:
        print(f"depth_tools: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `depth_tools ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("depth_tools: interrupted", file=sys.stderr)
        return 130


# -------------------------------------------------------------------------------------- the options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="depth_tools", description="Metric depth from images and sparse LiDAR: tools."
    )
    parser.add_argument("--version", action="version", version=f"depth_node {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_replay(commands)
    _add_bench(commands)
    _add_doctor(commands)
    model_tools.add(commands)
    parameters = commands.add_parser("parameters", help="print the node's parameters as markdown")
    parameters.set_defaults(run=_run_parameters)
    return parser


def _add_method_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="", metavar="FILE", help=f'ONNX file, or "{EMBEDDED}" (default)'
    )
    parser.add_argument("--manifest", default="", metavar="FILE", help="its manifest, elsewhere")
    parser.add_argument("--method", default="", help=f"one of {', '.join(METHODS)}")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings of the pipeline, YAML"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, repeatable"
    )


def pipeline_config(options: argparse.Namespace) -> PipelineConfig:
    """The settings that --config, --set, --model, --manifest and --method ask for."""
    config = load(PipelineConfig, options.config) if options.config else PipelineConfig()
    shortcuts = {
        "model.path": options.model,
        "model.manifest": options.manifest,
        "fit.method": options.method,
    }
    changes = [f"{key}={value}" for key, value in shortcuts.items() if value]
    return override(config, [*options.set, *changes])


# ---------------------------------------------------------------------------------------- the demo


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo", help="live demo over ROS 2: a moving camera and a LiDAR in a procedural room"
    )
    _add_method_options(parser)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), metavar="DIR")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long (20)")
    parser.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="pictures (10)")
    parser.add_argument("--size", default="640x480", metavar="WxH", help="of the picture")
    parser.add_argument("--seed", type=int, default=10, help="which room (10)")
    parser.add_argument(
        "--frames", type=Path, metavar="DIR", help="render into here, or use what is there"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.set_defaults(run=_run_demo)


def _run_demo(options: argparse.Namespace) -> int:
    from depth_node import demo

    need_ros()
    screen = console()
    config = pipeline_config(options)
    try:
        wanted = demo.DemoOptions(
            config,
            options.seconds,
            options.rate,
            picture_size("--size", options.size),
            options.seed,
            options.frames,
        )
        report = demo.run(wanted, options.out, lambda what, total: progress(screen, what, total))
    except demo.DemoError as error:
        print(f"depth_tools: no depth came: {error}", file=sys.stderr)
        return 1
    own = f"the node, live ({config.fit.method})"
    names = {**demo.NAMES, "live": own}
    rows = [
        (names[row["method"]], *replay.metric_cells(row))
        for row in report.summary
        if row["method"] != config.fit.method or row["method"] in demo.RIVALS
    ]
    scored = report.summary[-1]["frames"]
    title = f"Against the truth, {scored} frames, the same points for every method"
    print_table(screen, title, ("method", *replay.METRIC_HEAD), rows, {own})
    times = [
        (name, *(f"{value:.1f} ms" for value in values))
        for name, values in report.quantiles().items()
    ]
    print_table(screen, "Latency of the node", ("", "p50", "p95", "p99"), times, set())
    dropped = report.published - report.received
    screen.print(
        f"pictures in: {report.published}, depth out: {report.received}, dropped: {dropped}"
    )
    if dropped > 0.2 * report.published:
        screen.print(
            f"This machine is too busy for {options.rate:g} pictures a second (the newest picture"
            " wins, the others are dropped): try --rate 2, or when less else runs.",
            style="yellow",
        )
    screen.print(f"network: {report.diagnostics.get('backend', 'unknown')}")
    if report.worst_difference < 1e-4:
        screen.print("Replaying the same frames off line gives the same depth.")
    else:
        screen.print(
            f"Live and replayed depth differ by up to {report.worst_difference:.2%}.",
            style="yellow",
        )
    for path in report.panels:
        screen.print(f"picture: {path}")
    if options.json:
        facts = dataclasses.asdict(report)
        facts["panels"] = [str(path) for path in report.panels]
        write_json(options.json, {**facts, "quantiles_ms": report.quantiles()})
    return 0


def need_ros() -> None:
    """UsageError on a machine without ROS 2."""
    if importlib.util.find_spec("rclpy") is None:
        raise UsageError(f"this needs ROS 2, which is not here: {ROS_CURE}")


# -------------------------------------------------------------------------------------- the replay


def _add_replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay", help="recorded frames or a rosbag2 through the pipeline, into a run folder"
    )
    parser.add_argument("source", type=Path, help="folder of frames, or rosbag2")
    _add_method_options(parser)
    which = parser.add_argument_group("measured points (those that are used are never scored)")
    which.add_argument("--points", type=int, default=0, metavar="N", help="N pixels of the depth")
    which.add_argument("--lines", type=int, default=0, metavar="K", help="one of K scan lines")
    which.add_argument(
        "--hold-out",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the LiDAR points that is kept for scoring (0.5; 0 = none)",
    )
    which.add_argument("--seed", type=int, default=0, help="of that choice (0)")
    frames = parser.add_argument_group("folders of frames")
    frames.add_argument(
        "--stored-regions",
        action="store_true",
        help="regions from segmentation_*.png, for methods that use regions",
    )
    frames.add_argument(
        "--prediction", default="", metavar="NAME", help="prediction_NAME.npz, no network"
    )
    bag = parser.add_argument_group("rosbag2 (topics are found by their type unless named)")
    for name in ("image", "camera-info", "points", "scan"):
        bag.add_argument(f"--{name}-topic", default="", metavar="TOPIC")
    bag.add_argument("--max-scan-age", type=float, default=0.3, metavar="S")
    bag.add_argument("--scans-per-picture", type=int, default=0, metavar="N")
    bag.add_argument("--scan-wait", type=float, default=0.0, metavar="S")
    bag.add_argument(
        "--rectified", action="store_true", help="the picture has no distortion: use P"
    )
    bag.add_argument(
        "--t-camera-lidar",
        default="",
        metavar="'16 NUMBERS'",
        help="4x4 row by row, LiDAR into optical frame; else TF of the bag",
    )
    bag.add_argument(
        "--world-frame",
        default="",
        metavar="FRAME",
        help="a frame of the bag's TF that stands still, such as odom: memory and older scans move"
        " with the camera",
    )
    out = parser.add_argument_group("output")
    out.add_argument("--out", type=Path, metavar="DIR", help="run folder (runs/SOURCE)")
    out.add_argument("--pictures", type=int, default=12, metavar="N", help="at most N panels (12)")
    out.add_argument("--save-depth", action="store_true", help="keep depth and std of every frame")
    out.add_argument("--json", type=Path, metavar="FILE", help="all rows and the summary")
    parser.set_defaults(run=_run_replay)


def _run_replay(options: argparse.Namespace) -> int:
    from depth_node import bags

    screen = console()
    config = pipeline_config(options)
    if options.prediction:
        config = override(config, ["model.path="])
    sampling = replay.Sampling(options.points, options.lines, options.hold_out, options.seed)
    source = options.source.resolve()
    out = options.out or Path("runs") / source.stem
    facts = {
        "source": str(options.source),
        "model": config.model.path,
        "method": config.fit.method,
        "points": options.points,
        "lines": options.lines,
        "hold_out": options.hold_out,
        "seed": options.seed,
    }
    keep = {"pictures": max(options.pictures, 0), "save_depth": options.save_depth}
    with DepthPipeline(config) as pipeline:
        if bags.is_bag(source):
            T = _matrix(options.t_camera_lidar)
            topics = bags.BagTopics(
                options.image_topic, options.camera_info_topic, options.points_topic,
                options.scan_topic,
            )  # fmt: skip
            with bags.Bag(
                source,
                topics,
                T,
                options.max_scan_age,
                options.scans_per_picture,
                options.scan_wait,
                options.rectified,
                options.world_frame,
            ) as bag:
                facts["topics"] = vars(bag.topics)
                chosen = ", ".join(name for name in vars(bag.topics).values() if name)
                screen.print(f"topics: {chosen}")
                bag_moments = replay.BagMoments(bag, sampling, pipeline)
                done = _replay_with_bar(screen, bag_moments, pipeline, out, facts, keep)
        else:
            moments = replay.FolderMoments(
                source,
                sampling,
                pipeline,
                stored_regions=options.stored_regions,
                stored_prediction=options.prediction,
            )
            done = _replay_with_bar(screen, moments, pipeline, out, facts, keep)
    _print_summary(screen, done.summary, config.fit.method, f"{done.frames} frames")
    for message in sorted({row["message"] for row in done.rows if row["status"] != "OK"}):
        screen.print(f"note: {message}", style="yellow")
    screen.print(f"run folder: {out}")
    if done.panels:
        screen.print(f"pictures:   {done.panels[0].parent}")
    if options.json:
        write_json(options.json, {"rows": done.rows, "summary": done.summary, "run": facts})
    return 0


def _replay_with_bar(
    screen: Console,
    moments: Any,
    pipeline: DepthPipeline,
    out: Path,
    facts: Mapping[str, Any],
    keep: Mapping[str, Any],
) -> Any:
    with progress(screen, "replaying", len(moments)) as advance:
        return replay.replay(
            moments, pipeline, out, facts=facts, on_frame=lambda name: advance(name), **keep
        )


def _print_summary(
    screen: Console, summary: Sequence[Mapping[str, Any]], own: str, title: str
) -> None:
    if all(row["abs_rel"] is None for row in summary):
        screen.print("No truth to compare with (give --points, --lines or --hold-out above 0).")
        return
    rows = [(row["method"], *replay.metric_cells(row)) for row in summary]
    print_table(screen, title, ("method", *replay.METRIC_HEAD), rows, {own})


def _matrix(text: str) -> np.ndarray | None:
    if not text:
        return None
    try:
        values = np.array([float(part) for part in text.replace(",", " ").split()])
    except ValueError:
        values = np.empty(0)
    if values.size != 16:
        raise UsageError("--t-camera-lidar needs the 16 numbers of a 4x4 matrix, row by row")
    return values.reshape(4, 4)


# ------------------------------------------------------------------------------------- benchmarks


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser("bench", help="accuracy and speed against rivals in one run")
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    accuracy = kinds.add_parser("accuracy", help="methods against the truth of recorded frames")
    accuracy.add_argument("sources", type=Path, nargs="+", metavar="SOURCE")
    accuracy.add_argument("--model", default=EMBEDDED, metavar="FILE")
    accuracy.add_argument("--manifest", default="", metavar="FILE")
    accuracy.add_argument("--prediction", default="", metavar="NAME", help="prediction_NAME.npz")
    accuracy.add_argument(
        "--methods", default="", metavar="A,B,C", help=f"of {', '.join(benchmark.known_methods())}"
    )
    accuracy.add_argument("--points", default="50,250,1000", metavar="N,N,N", help="or none")
    accuracy.add_argument("--lines", type=int, default=0, metavar="K", help="one of K scan lines")
    accuracy.add_argument("--noise", default="clean", metavar="clean,noisy")
    accuracy.add_argument("--calibration-px", type=float, default=0.0, metavar="PX")
    accuracy.add_argument("--labels", default="classical", help=", ".join(benchmark.LABELS))
    accuracy.add_argument("--seed", default="0", metavar="S,S,S", help="one or several")
    accuracy.add_argument("--json", type=Path, metavar="FILE")
    accuracy.add_argument("--markdown", type=Path, metavar="FILE", help="the tables for a page")
    accuracy.set_defaults(run=_run_accuracy)
    field = kinds.add_parser(
        "field", help="what is asked of the default method and what it reaches"
    )
    field.add_argument("case", choices=(*benchmark_field.CASES, "speed", "figure"))
    field.add_argument("sources", type=Path, nargs="*", metavar="SOURCE")
    field.add_argument("--model", default=EMBEDDED, metavar="FILE")
    field.add_argument("--manifest", default="", metavar="FILE")
    field.add_argument("--seed", default="0", metavar="S,S,S", help="one or several")
    field.add_argument("--repeats", type=int, default=0, metavar="N", help="speed: more: steadier")
    field.add_argument("--out", type=Path, metavar="FILE", help="the tables for a page, the figure")
    field.set_defaults(run=_run_field)
    regions = kinds.add_parser("regions", help="what regions cost and what they bring")
    regions.add_argument("case", choices=tuple(benchmark_regions.CASES))
    regions.add_argument("sources", type=Path, nargs="*", metavar="SOURCE")
    regions.add_argument("--model", default=EMBEDDED, metavar="FILE")
    regions.add_argument("--manifest", default="", metavar="FILE")
    regions.add_argument("--seed", default="0", metavar="S,S,S", help="one or several")
    regions.add_argument("--out", type=Path, metavar="FILE", help="the tables for a page")
    regions.set_defaults(run=_run_regions)
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
    screen = console()
    count = sum(len(find_frames(source)) for source in options.sources)
    points = "" if options.points == "none" else options.points
    chosen: dict[str, Any] = {
        "methods": _words(options.methods),
        "points": _integers("--points", points),
        "lines": options.lines,
        "noise": _words(options.noise),
        "seeds": _integers("--seed", options.seed),
        "labels": options.labels,
        "calibration_px": options.calibration_px,
    }
    with ExitStack() as stack:
        predictor: DepthModel | str = options.prediction
        if not predictor:
            config = ModelConfig(options.model, options.manifest)
            predictor = stack.enter_context(DepthModel.open(config))
        advance = stack.enter_context(progress(screen, "scoring", count))
        try:
            report = benchmark.run_accuracy(options.sources, predictor, on_frame=advance, **chosen)
        except ValueError as error:
            raise UsageError(str(error)) from None
    found = benchmark.tables(report)
    for table in found:
        print_table(screen, table.title, table.head, table.rows, set())
    for note in report.notes:
        screen.print(f"note: {note}", style="yellow")
    if options.json:
        facts = {
            **report.as_dict(),
            "sources": [str(source) for source in options.sources],
            "model": options.prediction or options.model,
            "segmentation_ms": report.segmentation_ms,
        }
        write_json(options.json, facts)
    if options.markdown:
        write_text(options.markdown, benchmark.markdown(found))
    return 0


def _run_field(options: argparse.Namespace) -> int:
    screen = console()
    if options.case == "figure":
        from depth_node.drawing import write_picture

        write_picture(options.out or Path("field.png"), benchmark_field.figure())
        return 0
    if options.case == "speed":
        found = benchmark_field.speed(options.repeats)
    else:
        count = sum(len(find_frames(source)) for source in options.sources)
        if not count:
            raise UsageError("no SOURCE is given: name folders of recorded frames")
        seeds = _integers("--seed", options.seed)
        with (
            DepthModel.open(ModelConfig(options.model, options.manifest)) as network,
            progress(screen, options.case, count) as advance,
        ):
            try:
                case = benchmark_field.CASES[options.case]
                found = case(benchmark_field.Task(options.sources, network, seeds, advance))
            except ValueError as error:
                raise UsageError(str(error)) from None
    _show_tables(screen, found, options.out)
    return 0


def _run_regions(options: argparse.Namespace) -> int:
    screen = console()
    seeds = _integers("--seed", options.seed)
    with (
        DepthModel.open(ModelConfig(options.model, options.manifest)) as network,
        progress(screen, options.case, None) as advance,
    ):
        try:
            case = benchmark_regions.CASES[options.case]
            found = case(options.sources, network, seeds, advance)
        except ValueError as error:
            raise UsageError(str(error)) from None
    _show_tables(screen, found, options.out)
    return 0


def _show_tables(screen: Console, tables: Sequence[benchmark.Table], out: Path | None) -> None:
    """On the screen and, if a file is named, there as Markdown."""
    for table in tables:
        print_table(screen, table.title, table.head, table.rows, set())
        for note in table.notes:
            screen.print(f"  {note}")
    if out:
        write_text(out, benchmark.markdown(tables))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise UsageError(f"{name} {text!r} must be whole numbers like 50,250") from None


def _run_speed(options: argparse.Namespace) -> int:
    from depth_node import demo, speed

    screen = console()
    names = ("fit", "engine", "node") if options.benchmark == "speed" else (options.benchmark,)
    for name in names:
        if name == "node":
            need_ros()
            try:
                report = speed.measure_node(
                    options.model,
                    options.manifest,
                    options.repeats,
                    lambda what, total: progress(screen, what, total),
                )
            except demo.DemoError as error:
                print(f"depth_tools: the node could not be measured: {error}", file=sys.stderr)
                return 1
        else:
            with progress(screen, f"measuring {name}", None):
                if name == "fit":
                    report = speed.measure_fit(options.repeats)
                else:
                    report = speed.measure_engine(options.model, options.manifest, options.repeats)
        print_table(screen, report.title, report.head, report.rows, set())
        for note in report.notes:
            screen.print(f"  {note}")
        write_json(options.out / f"{name}.json", {**report.values, "machine": speed.machine()})
        write_text(options.out / f"{name}.md", speed.markdown(report))
    screen.print(f"written: {options.out}/*.json, and *.md for docs/benchmarks.md")
    return 0


# ----------------------------------------------------------------------------------------- doctor


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what is installed, what runs, what is missing")
    parser.add_argument("--model", default=EMBEDDED, metavar="FILE")
    parser.add_argument("--manifest", default="", metavar="FILE")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="to run it on (auto)")
    parser.add_argument("--precision", default="file", metavar="WORD", help="file or fp16 (file)")
    parser.add_argument("--listen", type=float, default=2.0, metavar="S", help="to the graph (2)")
    parser.set_defaults(run=_run_doctor)


PACKAGES = (  # module, distribution, needed for, cure
    ("numpy", "numpy", "", "pip install 'numpy>=1.26'"),
    ("scipy", "scipy", "", "pip install scipy"),
    ("cv2", "opencv-python-headless", "", "pip install opencv-python-headless"),
    ("yaml", "pyyaml", "", "pip install pyyaml"),
    ("onnxruntime", "onnxruntime", "", "pip install onnxruntime"),
    ("numba", "numba", "method field at full speed", "pip install numba"),
    ("rosbags", "rosbags", "replay of bags", "pip install rosbags"),
    ("tensorrt", "tensorrt", "TensorRT engines", "see docs/engines.md"),
    ("cuda", "cuda-bindings", "TensorRT engines", "pip install cuda-python"),
)
ROS_PACKAGES = (
    ("rclpy", "ros-jazzy-rclpy", "the node", ROS_CURE),
    ("sensor_msgs", "ros-jazzy-sensor-msgs", "the node", ROS_CURE),
    (
        "tf2_ros",
        "",
        "extrinsics from TF",
        "apt install ros-jazzy-tf2-ros-py, or set T_camera_lidar",
    ),
    ("cv_bridge", "cv-bridge", "Bayer and YUV pictures", "apt install ros-jazzy-cv-bridge"),
)


def _run_doctor(options: argparse.Namespace) -> int:
    screen = console()
    bad: list[str] = []
    rows = [("python", platform.python_version(), sys.executable)]
    rows.append(("depth_node", __version__, str(Path(__file__).resolve().parent)))
    for module, distribution, purpose, cure in (*PACKAGES, *ROS_PACKAGES):
        if importlib.util.find_spec(module) is not None:
            rows.append((module, _version(module, distribution), ""))
        else:
            needed = "needed" if not purpose else f"only for {purpose}"
            rows.append((module, "missing", f"{needed}: {cure}"))
            if not purpose:
                bad.append(f"{module} is missing: {cure}")
    print_table(screen, "Installed", ("part", "version", "note"), rows, set(), left=3)

    rows = [(name, "usable" if not why else "not usable", why) for name, why in backends().items()]
    how = {"backend": options.backend, "precision": options.precision, "build_engines": False}
    try:
        with open_engine(options.model, manifest=options.manifest or None, **how) as engine:
            spec = engine.manifest.input
            engine.run(np.zeros(spec.shape, spec.dtype))
            rows.append((f"model {engine.manifest.name}", "runs", f"on {engine.backend}"))
            rows += [("", key, str(value)) for key, value in engine.details.items()]
    except EngineError as error:
        bad.append(str(error))
        rows.append((f"model {Path(options.model).name}", "does not run", str(error)))
    print_table(screen, "Networks", ("what", "state", "note"), rows, set(), left=3)
    _doctor_cache(screen)

    bad += _doctor_ros(screen, options.listen)
    for sentence in bad:
        screen.print(f"missing: {sentence}", style="red")
    if not bad:
        screen.print("Everything that is needed is here.", style="green")
    return 1 if bad else 0


def _doctor_cache(screen: Console) -> None:
    """What lies in the user's cache of built engines."""
    rows = [
        (
            fact.get("model", "?"),
            fact["key"][:12],
            f"{fact['identity']['builder']}, {fact['identity']['gpu']}",
            f"{fact['bytes'] / 1e6:.1f} MB, {fact['built']}",
        )
        for fact in EngineCache.of("", 0).entries()
    ]
    if rows:
        print_table(screen, "Built engines", ("model", "key", "for", "file"), rows, set(), left=4)


def _doctor_ros(screen: Console, seconds: float) -> list[str]:
    try:
        from depth_node.ros import graph
    except ImportError as error:
        return [f"ROS 2 cannot be used ({error}): {ROS_CURE}"]
    names = ("ROS_DISTRO", "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY")
    rows = [("middleware", graph.middleware(), "")]
    rows += [(name, os.environ.get(name, "(not set)"), "") for name in names]
    with progress(screen, "listening to the ROS graph", None):
        topics = graph.seen_topics(seconds)
    rows += [(topic.role, topic.name, f"{topic.type}, {topic.publishers} publishing")
             for topic in topics]  # fmt: skip
    for role in graph.WANTED:
        if role not in {topic.role for topic in topics}:
            rows.append((role, "none seen", "no driver runs, or another ROS_DOMAIN_ID"))
    print_table(screen, "ROS 2", ("what", "value", "note"), rows, set(), left=3)
    return []


def _version(module: str, distribution: str) -> str:
    for name in (distribution, module):
        try:
            return importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
    return "installed"


# ------------------------------------------------------------------------------- the parameters


def _run_parameters(options: argparse.Namespace) -> int:
    need_ros()
    from depth_node.ros import parameters

    print(parameters.markdown(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
