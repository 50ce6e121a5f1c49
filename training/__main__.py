# SPDX-License-Identifier: Apache-2.0
"""Command line: `python -m training RECIPE --config FILE key=value ...`, and tools around it."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before the imports below, which take a second
    from depth_node.start import run

    sys.exit(run("training.__main__"))

import argparse
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from training import recipes

if TYPE_CHECKING:
    from rich.console import Console

# Name -> module with `arguments(parser)` and `command(args, console)`, and the help text.
TOOLS: dict[str, tuple[str, str]] = {
    "export": ("training.export.depth", "export a checkpoint to ONNX with its manifest"),
    "evaluate": (
        "training.evaluation.report",
        "score networks on unseen rendered rooms and RGB-D frames",
    ),
    "benchmark": (
        "training.tools.benchmark",
        "time the training loop, compared with a bare PyTorch loop",
    ),
    "shards": ("training.tools.pack_shards", "pack a data set into WebDataset shards"),
    "study": (
        "training.studies",
        "run an experiment on a recipe, the field, regions or upsampling",
    ),
    "annotate": (
        "training.tools.annotate",
        "serve a web page that asks which of two points is nearer",
    ),
    "labels": (
        "training.tools.labels",
        "split ordinal labels by image into training and held-out ones",
    ),
    "corrupt": ("training.data.corruptions", "draw a sheet of all corruptions of an image"),
    "segmentation": (
        "training.export.segment_anything",
        "export a Segment Anything network as encoder and prompt decoder",
    ),
    "refiner": ("training.export.refiner", "export a run of recipe refine for the field"),
    "cka": ("training.evaluation.cka", "compare two checkpoints layer by layer (CKA)"),
}


def parse_arguments(text: list[str] | None) -> argparse.Namespace:
    """Parse the command and its options from `text`, or from sys.argv if it is None."""
    from depth_node.cli.console import CommandParser

    parser = CommandParser(
        prog="python -m training", description="Train, export and evaluate depth networks."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, description in {
        **recipes.RECIPES,
        "render": "fill the pool of rendered rooms that `supervised` trains on",
    }.items():
        sub = commands.add_parser(name, help=description)
        sub.add_argument(
            "--config", required=True, type=Path, help="YAML file, see training/configs"
        )
        sub.add_argument(
            "--dry-run", action="store_true", help="print the resolved settings and stop"
        )
        if name == "render":
            sub.add_argument(
                "--count",
                type=int,
                default=0,
                help="total number of images (default: the size of the pool)",
            )
            sub.add_argument(
                "--processes", type=int, default=1, help="number of rendering processes (default 1)"
            )
        else:
            sub.add_argument(
                "--run", type=Path, default=None, help="run folder (default runs/<config name>)"
            )
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
        )
    words = sys.argv[1:] if text is None else text
    for name, (module, description) in TOOLS.items():
        sub = commands.add_parser(name, help=description)
        if words[:1] == [name]:  # other tools may need libraries that are not installed
            tool = importlib.import_module(module)
            if name == "study":
                tool.arguments(sub, words[1:])
            else:
                tool.arguments(sub)
    args, rest = parser.parse_known_args(text)
    # argparse accepts positional settings in one block only; here they may be between options.
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def main(text: list[str] | None = None) -> int:
    """Run one command; return 0 on success, else 1 after a sentence on standard error.

    130 after an interrupt.
    """
    try:  # packages are imported where they are used, so that a missing one can be named here
        return _run(text)
    except KeyboardInterrupt:  # among these imports
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "training", "depth_node") or package in sys.stdlib_module_names:
            raise
        print(
            f"The package {package} is not installed, and this command needs it:"
            " pip install -r requirements-training.txt (docs/training/run.md says how without a"
            " GPU).",
            file=sys.stderr,
        )
        return 1


def _run(text: list[str] | None) -> int:
    args = parse_arguments(text)
    from depth_node.cli.console import UsageError, run_command
    from depth_node.cli.console import console as terminal
    from depth_node.config import ConfigError
    from depth_node.engine import EngineError
    from depth_node.recordings.frames import FrameError
    from training.checkpoints import TrainingError
    from training.data.samples import DataError

    errors = (ConfigError, DataError, EngineError, FrameError, TrainingError, UsageError)
    console = terminal()

    def command() -> int:
        if args.command in recipes.RECIPES:
            return _train(args, console)
        if args.command == "render":
            return _render(args)
        importlib.import_module(TOOLS[args.command][0]).command(args, console)
        return 0

    return run_command("", command, errors, status=1)


def _train(args: argparse.Namespace, console: Console) -> int:
    from depth_node import config
    from training import renamed_settings
    from training.loop import main_first, run

    recipe = recipes.find(args.command)
    cfg = renamed_settings.load(recipe.Config, args.config, args.overrides)
    if args.dry_run:
        print(config.dump(cfg), end="")
        return 0
    folder = args.run or Path("runs") / args.config.stem
    with main_first():  # build may render images, download weights or make masks
        built = recipe.build(cfg, console)
    run(built, cfg.loop, folder, config.to_dict(cfg), console=console)
    return 0


def _render(args: argparse.Namespace) -> int:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from depth_node import config
    from training import renamed_settings
    from training.data.pool import Pool

    cfg = renamed_settings.load(recipes.find("supervised").Config, args.config, args.overrides)
    if args.dry_run:
        print(config.dump(cfg), end="")
        return 0
    os.nice(5)  # a training run on the same machine takes precedence
    pool = Pool(cfg.pool, write=True)
    target = args.count or cfg.pool.samples
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=target, completed=pool.written)
        for count in pool.fill(target, args.processes):
            bar.update(task, completed=count)
    return 0
