# SPDX-License-Identifier: Apache-2.0
"""`depth_tools replay`: run the pipeline on recorded frames or a rosbag2."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_node.cli.console import (
    UsageError,
    console,
    print_table,
    progress,
    write_json,
)
from depth_node.config import override
from depth_node.obstacles import ObstacleConfig
from depth_node.pipeline import DepthPipeline
from depth_node.recordings import replay, scores, sources
from depth_node.recordings.files import new_folder
from depth_node.recordings.frames import is_bag
from depth_node.recordings.held_out import Sampling
from depth_node.recordings.rerun_log import RerunLog
from depth_node.sentences import both_ends

if TYPE_CHECKING:
    from rich.console import Console
from depth_node.cli.arguments import add_method_options, matrix, pipeline_config

_OTHER_SENSORS = {"landmarks": 0.05, "depth": 0.02, "range": 0.1}  # noise: the node's defaults


def add(commands: Any) -> None:
    """Add the command `replay` with its options."""
    parser = commands.add_parser(
        "replay",
        help="run the pipeline on recorded frames or a rosbag2",
        epilog="Damaged data is skipped and reported at the end. Exit status: 0 if everything was"
        " readable, 1 if damaged data was skipped, 2 if nothing could be replayed.",
    )
    parser.add_argument("source", type=Path, help="folder of frames, or rosbag2")
    add_method_options(parser)
    which = parser.add_argument_group("which points are used (used points are never scored)")
    which.add_argument(
        "--points", type=int, default=0, metavar="N", help="use N pixels of the depth"
    )
    which.add_argument("--lines", type=int, default=0, metavar="K", help="use one of K scan lines")
    which.add_argument(
        "--hold-out",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the LiDAR points that is held out for scoring (0.5; 0 = none)",
    )
    which.add_argument("--seed", type=int, default=0, help="seed of the choice (0)")
    frames = parser.add_argument_group("folders of frames")
    frames.add_argument(
        "--stored-regions",
        action="store_true",
        help="take regions from segmentation_*.png, for methods that use regions",
    )
    frames.add_argument(
        "--prediction",
        default="",
        metavar="NAME",
        help="use prediction_NAME.npz instead of a network",
    )
    add_bag_options(parser)
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="new run folder (default: runs/SOURCE, runs/SOURCE_2, ...)",
    )
    out.add_argument(
        "--images", type=int, default=12, metavar="N", help="write at most N panels (12)"
    )
    out.add_argument("--save-depth", action="store_true", help="save depth and std of every frame")
    out.add_argument("--json", type=Path, metavar="FILE", help="write all rows and the summary")
    out.add_argument(
        "--out-bag",
        type=Path,
        metavar="FILE.mcap",
        help="write depth, camera_info, confidence, points, fit, rejected, extrinsics and"
        " diagnostics as the node would publish them, with the input's stamps and frames"
        " (--hold-out 0 uses every point)",
    )
    out.add_argument(
        "--obstacles",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="also write obstacles; KEY is a parameter obstacles.* of the node that defines the"
        " ground: base_frame=base_footprint (TF of a bag), or camera_height_m=0.5",
    )
    out.add_argument(
        "--rerun", type=Path, metavar="FILE.rrd", help="write the same for the Rerun viewer"
    )
    parser.set_defaults(run=_run_replay)


def add_bag_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for reading a bag, which `opened_bag` uses."""
    bag = parser.add_argument_group("rosbag2 (topics are found by their type unless named)")
    for name in ("image", "camera-info", "points", "scan"):
        bag.add_argument(f"--{name}-topic", default="", metavar="TOPIC")
    for name, usual in _OTHER_SENSORS.items():
        bag.add_argument(
            f"--{name}-topic",
            default="",
            metavar="TOPIC",
            help=f"topic of the node's input `{name}`",
        )
        bag.add_argument(
            f"--{name}-noise",
            type=float,
            default=usual,
            metavar="SHARE",
            help=f"like {name}_noise of the node ({usual:g})",
        )
    bag.add_argument(
        "--max-scan-age", type=float, default=0.3, metavar="S", help="like max_scan_age_s (0.3)"
    )
    bag.add_argument(
        "--scans-per-image", type=int, default=0, metavar="N", help="like scans_per_image (0)"
    )
    bag.add_argument("--scan-wait", type=float, default=0.0, metavar="S", help="like scan_wait_s")
    bag.add_argument(
        "--lidar-time-offset",
        type=float,
        default=0.0,
        metavar="S",
        help="added to the stamps of LiDAR messages, like lidar_time_offset_s of the node",
    )
    bag.add_argument(
        "--rectified",
        nargs="?",
        const="yes",
        default="auto",
        choices=("auto", "yes", "no"),
        help="whether the image is rectified, like image_rectified of the node (default: auto;"
        " --rectified alone: yes)",
    )
    bag.add_argument(
        "--t-camera-lidar",
        default="",
        metavar="'16 NUMBERS'",
        help="4x4 matrix, row by row, from LiDAR to optical frame (default: TF of the bag)",
    )
    bag.add_argument(
        "--world-frame",
        default="",
        metavar="FRAME",
        help="a frame of the bag's TF that stands still, such as odom: corrects memory and older"
        " scans for the camera's motion",
    )
    bag.add_argument(
        "--camera-readout-time",
        type=float,
        default=0.0,
        metavar="S",
        help="of a rolling shutter, like camera_readout_time_s of the node; needs --world-frame",
    )


def _run_replay(options: argparse.Namespace) -> int:
    terminal = console()
    config = pipeline_config(options)
    if options.prediction:
        config = override(config, ["model.path="])
    sampling = Sampling(options.points, options.lines, options.hold_out, options.seed)
    source = options.source.resolve()
    out = new_folder(options.out, Path("runs") / source.stem)
    facts = {
        "source": str(options.source),
        "model": config.model.path,
        "method": config.fit.method,
        "points": options.points,
        "lines": options.lines,
        "hold_out": options.hold_out,
        "seed": options.seed,
    }
    keep: dict[str, Any] = {"images": max(options.images, 0), "save_depth": options.save_depth}
    with ExitStack() as stack:
        pipeline = stack.enter_context(DepthPipeline(config))
        bag: Any = None
        if is_bag(source):
            for name in ("stored_regions", "prediction"):
                if getattr(options, name):
                    raise UsageError(f"--{name.replace('_', '-')} is for folders of frames")
            bag = stack.enter_context(opened_bag(options, source))
            facts["topics"] = vars(bag.topics)
            chosen = ", ".join(name for name in vars(bag.topics).values() if name)
            terminal.print(f"topics: {both_ends(chosen)}", markup=False)
            frames: Any = open_bags().BagFrames(bag, sampling, pipeline)
        else:
            refuse_bag_options(options)
            frames = sources.FolderFrames(
                source,
                sampling,
                pipeline,
                stored_regions=options.stored_regions,
                stored_prediction=options.prediction,
            )
        trouble: dict[str, str] = {}
        sinks = _sinks(options, config.model.path, bag, trouble)
        keep["sinks"] = [stack.enter_context(sink) for sink in sinks]
        done = _replay_with_bar(terminal, frames, pipeline, out, facts, keep)
    held_out = bool(options.points or options.lines or options.hold_out)
    _print_summary(terminal, done.summary, config.fit.method, f"{done.frames} frames", held_out)
    for message in sorted({row["message"] for row in done.rows if row["status"] != "OK"}):
        terminal.print(f"note: {message}", style="yellow", markup=False)
    for sentence in trouble.values():
        terminal.print(f"note: {sentence}", style="yellow", markup=False, soft_wrap=True)
    for sentence in done.extrinsics:
        terminal.print(sentence, markup=False, soft_wrap=True)
    for sentence in done.left_out.sentences():
        terminal.print(sentence, style="yellow", markup=False, soft_wrap=True)
    terminal.print(f"run folder: {out}", markup=False)
    if done.panels:
        terminal.print(f"images:   {done.panels[0].parent}", markup=False)
    for path in (options.out_bag, options.rerun):
        if path is not None:
            terminal.print(f"written: {path}", markup=False)
    if options.json:
        content = {"rows": done.rows, "summary": done.summary, "run": facts}
        more = {"left_out": done.left_out.sentences(), "extrinsics": done.extrinsics}
        write_json(options.json, {**content, **more})
    return 1 if done.left_out.damaged else 0


def refuse_bag_options(options: argparse.Namespace, **own: Any) -> None:
    """Raise UsageError for an option of `add_bag_options`, which a folder of frames would ignore.

    own: defaults in which the command differs from `add_bag_options`.
    """
    parser = argparse.ArgumentParser()
    add_bag_options(parser)
    for name, usual in (vars(parser.parse_args([])) | own).items():
        if getattr(options, name) != usual:
            raise UsageError(
                f"--{name.replace('_', '-')} is for a rosbag2: a folder of frames has its"
                " calibration in intrinsics.json and calib.json, so leave it out"
            )


def opened_bag(options: argparse.Namespace, source: Path) -> Any:
    """Return the bag that the options of `add_bag_options` describe, a context manager."""
    bags = open_bags()
    topics = bags.BagTopics(
        options.image_topic,
        options.camera_info_topic,
        options.points_topic,
        options.scan_topic,
        *(getattr(options, f"{name}_topic") for name in _OTHER_SENSORS),
    )
    return bags.Bag(
        source,
        topics,
        matrix(options.t_camera_lidar),
        options.max_scan_age,
        options.scans_per_image,
        options.scan_wait,
        options.lidar_time_offset,
        options.rectified,
        options.world_frame,
        options.camera_readout_time,
        {name: getattr(options, f"{name}_noise") for name in _OTHER_SENSORS},
    )


def _sinks(options: argparse.Namespace, model: str, bag: Any, trouble: dict[str, str]) -> list[Any]:
    """Return the outputs besides the run folder, as context managers.

    bag: the opened source, None for a folder of frames. trouble: receives the reasons why there are
    no obstacles.
    """
    sinks: list[Any] = []
    if options.obstacles and options.out_bag is None:
        raise UsageError("--obstacles are written into a bag: name it with --out-bag.")
    if options.out_bag is not None:
        open_bags()  # reports missing packages
        from depth_node.ros.bags.writer import ResultBag
        from depth_node.ros.transforms.ground import Ground

        ground = None
        if options.obstacles:
            config = override(ObstacleConfig(), options.obstacles)
            source = None
            if config.base_frame:
                if bag is None:
                    raise UsageError(
                        "--obstacles base_frame needs the TF of a bag: give camera_height_m and"
                        " camera_pitch_deg for a folder of frames."
                    )
                source = bag.transforms
            ground = Ground(config, source, 0.1, lambda kind, why: trouble.update({kind: why}))
        sinks.append(ResultBag(options.out_bag, hardware_id=model, ground=ground))
    if options.rerun is not None:
        sinks.append(RerunLog(options.rerun))
    return sinks


def _replay_with_bar(
    terminal: Console,
    frames: Any,
    pipeline: DepthPipeline,
    out: Path,
    facts: Mapping[str, Any],
    keep: Mapping[str, Any],
) -> Any:
    with progress(terminal, "replaying", len(frames)) as advance:
        return replay.replay(
            frames, pipeline, out, facts=facts, on_frame=lambda name: advance(_plain(name)), **keep
        )


def _plain(name: str) -> str:
    """Return a name for the progress bar, which would read [red] as markup."""
    return both_ends(name, 60).replace("[", "\\[")


def _print_summary(
    terminal: Console,
    summary: Sequence[Mapping[str, Any]],
    own: str,
    title: str,
    held_out: bool,
) -> None:
    if all(row["abs_rel"] is None for row in summary):
        why = (
            "no image has points left to score"
            if held_out
            else ("give --points, --lines or --hold-out above 0")
        )
        terminal.print(f"{title}. No truth to compare with: {why}.", markup=False)
        return
    rows = [(row["method"], *scores.metric_cells(row)) for row in summary]
    print_table(terminal, title, ("method", *scores.METRIC_HEAD), rows, {own})


def open_bags() -> Any:
    """Import and return depth_node.ros.bags.

    Raises UsageError if the ROS message packages are missing.
    """
    try:
        from depth_node.ros import bags
    except ImportError as error:
        raise UsageError(
            f"Reading a bag needs the ROS message packages ({error}): source ROS 2, or"
            " pip install ros-jazzy-common-interfaces."
        ) from None
    return bags
