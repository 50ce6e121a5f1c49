# SPDX-License-Identifier: Apache-2.0
"""`depth_tools layout`: files that show a node's topics in Foxglove and RViz."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from depth_node.cli.arguments import need_ros
from depth_node.cli.console import UsageError, console, write_text

_RVIZ_HEAD = """\
# RViz 2: coloured points, LiDAR, obstacles, depth. Fixed Frame: that of your camera. Written by
# `depth_tools layout --rviz`, which takes a namespace and remaps.
"""


def add(commands: Any) -> None:
    """Add the command `layout` with its options."""
    parser = commands.add_parser(
        "layout",
        help="write a Foxglove layout or RViz configuration with the topics of your node",
        epilog="Import the layout in Foxglove or Lichtblick (Layouts, Import from file); open the"
        " configuration with rviz2 -d.",
    )
    parser.add_argument("--namespace", default="/", metavar="NS", help="namespace of the node (/)")
    parser.add_argument(
        "-r",
        "--remap",
        action="append",
        default=[],
        metavar="FROM:=TO",
        help="a remap of the node, such as points:=/lidar/points; repeatable",
    )
    parser.add_argument(
        "--frame",
        default="",
        metavar="FRAME",
        help="fixed frame of the view: the camera's optical frame, or odom",
    )
    parser.add_argument("--foxglove", type=Path, metavar="FILE.json")
    parser.add_argument("--rviz", type=Path, metavar="FILE.rviz")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    need_ros()
    from depth_node.ros.outputs import layouts

    if options.foxglove is None and options.rviz is None:
        raise UsageError("layout writes nothing yet: give --foxglove FILE.json or --rviz FILE.rviz")
    try:
        rules = tuple(layouts.rule(text) for text in options.remap)
        topics = layouts.NodeTopics(options.namespace, rules)
    except ValueError as error:
        raise UsageError(str(error)) from None
    frame = {"frame": options.frame} if options.frame else {}
    if options.foxglove is not None:
        content = layouts.foxglove(topics, **frame)
        write_text(options.foxglove, json.dumps(content, indent=2) + "\n", make_folder=False)
    if options.rviz is not None:
        content = layouts.rviz(topics, **frame)
        text = _RVIZ_HEAD + yaml.safe_dump(content, sort_keys=False, width=100)
        write_text(options.rviz, text, make_folder=False)
    for path in (options.foxglove, options.rviz):
        if path is not None:
            console().print(f"written: {path}", markup=False)
    return 0
