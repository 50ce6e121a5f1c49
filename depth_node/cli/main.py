# SPDX-License-Identifier: Apache-2.0
"""The command line `depth_tools`: demo, replay, export-depth, calibrate, bench,
layout, doctor, models, parameters.

A user error ends with one sentence and exit status 2, a failed check with exit status 1.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before the imports below, which take a second
    from depth_node.start import tools

    sys.exit(tools())

import argparse
from collections.abc import Callable, Sequence

from depth_node import __version__
from depth_node.cli import bench, calibrate, demo, doctor, export_depth, layout, models, replay
from depth_node.cli.arguments import need_ros
from depth_node.cli.console import CommandParser, UsageError, run_command
from depth_node.config import ConfigError
from depth_node.engine import EngineError
from depth_node.live import terminate_as_interrupt
from depth_node.recordings.frames import FrameError

USER_ERRORS = (UsageError, ConfigError, EngineError, FrameError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""

    def command() -> int:
        options = parser().parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)

    with terminate_as_interrupt():
        return run_command("depth_tools", command, USER_ERRORS)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `run` of a parsed namespace is the command's function."""
    whole = CommandParser(
        prog="depth_tools", description="Tools for metric depth from images and sparse LiDAR."
    )
    whole.add_argument("--version", action="version", version=f"depth_node {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add(commands)
    replay.add(commands)
    export_depth.add(commands)
    calibrate.add(commands)
    bench.add(commands)
    layout.add(commands)
    doctor.add(commands)
    models.add(commands)
    parameters = commands.add_parser("parameters", help="print the node's parameters as markdown")
    parameters.set_defaults(run=_run_parameters)
    return whole


def _run_parameters(options: argparse.Namespace) -> int:
    need_ros()
    from depth_node.ros import parameters

    print(parameters.markdown(), end="")
    return 0
