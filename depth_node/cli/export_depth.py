# SPDX-License-Identifier: Apache-2.0
"""`depth_tools export-depth`: write image and depth pairs of a drive, to train on or to look at."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from depth_node.cli.arguments import add_method_options, pipeline_config
from depth_node.cli.console import UsageError, console, progress
from depth_node.cli.replay import add_bag_options, open_bags, opened_bag, refuse_bag_options
from depth_node.pipeline import DepthPipeline
from depth_node.recordings.export import FrameFolders
from depth_node.recordings.frames import is_bag
from depth_node.recordings.held_out import Sampling
from depth_node.recordings.sources import FolderFrames

MAX_RELATIVE_STD = 0.1


def add(commands: Any) -> None:
    """Add the command `export-depth` with its options."""
    parser = commands.add_parser(
        "export-depth",
        help="write image and depth pairs of a drive (uint16 millimetres) for training",
        epilog="`python -m training` reads the folder as a data set of kind `frames`.",
    )
    parser.add_argument("source", type=Path, help="rosbag2, or folder of frames with a LiDAR")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of pairs, a new or an empty folder SOURCE in it",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every Nth image (1)")
    parser.add_argument(
        "--max-relative-std",
        type=float,
        default=MAX_RELATIVE_STD,
        metavar="R",
        help="write depth with a larger relative standard deviation as unknown"
        f" ({MAX_RELATIVE_STD}; 0 = keep all)",
    )
    parser.add_argument("--png", action="store_true", help="write images as PNG, without loss")
    add_method_options(parser)
    add_bag_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.every < 1 or not 0 <= options.max_relative_std < 10:
        raise UsageError("--every must be at least 1, --max-relative-std between 0 and 10")
    terminal = console()
    source = options.source.resolve()
    if source.is_dir() and options.out.resolve().is_relative_to(source):
        raise UsageError(
            f"--out {options.out} lies in the source, whose frames would be mixed with what is"
            " written: name a folder beside it"
        )
    everything = Sampling(hold_out=0.0)
    out = FrameFolders(options.out, options.max_relative_std, images_png=options.png)
    with ExitStack() as stack:
        pipeline = stack.enter_context(DepthPipeline(pipeline_config(options)))
        if is_bag(source):
            bag = stack.enter_context(opened_bag(options, source))
            frames: Any = open_bags().BagFrames(bag, everything, pipeline)
        else:
            refuse_bag_options(options)
            frames = FolderFrames(source, everything, pipeline)
        advance = stack.enter_context(progress(terminal, "exporting", len(frames)))
        for number, frame in enumerate(frames):
            # Every image is processed, so that the method's memory contains them all.
            result = pipeline.process(frame.input)
            if number % options.every == 0:
                out.add(frame, result)
            advance("")
    for sentence in frames.left_out.sentences():
        terminal.print(sentence, style="yellow", markup=False, soft_wrap=True)
    terminal.print(f"{out.count} frames, depth on {out.known:.0%} of their pixels", markup=False)
    terminal.print(f"written: {options.out}", markup=False)
    return 1 if frames.left_out.damaged else 0
