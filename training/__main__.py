# SPDX-License-Identifier: Apache-2.0
"""Command line: `python -m training supervised|render|export|evaluate ...`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from depth_node import config
from training.data import DataError, Pool
from training.loop import TrainingError, run
from training.recipes import supervised


def _arguments(text: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training", description="Train, export and judge depth networks."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("supervised", "train a student on rendered rooms"),
        ("render", "fill the pool of rendered rooms that `supervised` trains on"),
    ):
        sub = commands.add_parser(name, help=what)
        sub.add_argument(
            "--config", required=True, type=Path, help="YAML file, see training/configs"
        )
        sub.add_argument(
            "--dry-run", action="store_true", help="print the resolved settings and stop"
        )
        if name == "supervised":
            sub.add_argument(
                "--run", type=Path, default=None, help="run folder (default runs/<config name>)"
            )
        else:
            sub.add_argument(
                "--count",
                type=int,
                default=0,
                help="pictures in all (default: the size of the pool)",
            )
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value", help="settings that replace the file's"
        )
    sub = commands.add_parser(
        "export", help="checkpoint to ONNX with manifest, after a parity check"
    )
    sub.add_argument("checkpoint", type=Path)
    sub.add_argument(
        "--out", required=True, type=Path, help="the .onnx file; its manifest goes beside it"
    )
    sub.add_argument(
        "--fp32",
        action="store_true",
        help="keep the weights in float32 (default: stored as float16)",
    )
    sub = commands.add_parser(
        "evaluate", help="score networks on unseen rendered rooms and on RGB-D frames"
    )
    sub.add_argument(
        "--model",
        action="append",
        default=[],
        help="ONNX file with manifest, or `embedded`; repeatable",
    )
    sub.add_argument("--procedural", type=int, default=200, help="rendered rooms to score on")
    sub.add_argument(
        "--seed", type=int, required=True, help="seed of those rooms; not the one of the pool"
    )
    sub.add_argument(
        "--frames",
        type=Path,
        action="append",
        default=[],
        help="folder of <source>/<frame>; repeatable",
    )
    sub.add_argument("--json", type=Path, default=None, help="also write every frame's scores here")
    return parser.parse_args(text)


def main(text: list[str] | None = None) -> int:
    """Run one command; 0 on success, 1 with a sentence on standard error."""
    args = _arguments(text)
    try:
        if args.command in ("supervised", "render"):
            return _train_or_render(args)
        if args.command == "export":
            from training import export

            export.export_checkpoint(
                args.checkpoint, args.out, half=not args.fp32, console=Console()
            )
            return 0
        from training import evaluate

        evaluate.report(args.model, args.procedural, args.seed, args.frames, args.json, Console())
        return 0
    except (config.ConfigError, DataError, TrainingError) as error:
        print(error, file=sys.stderr)
        return 1


def _train_or_render(args: argparse.Namespace) -> int:
    cfg = config.load(supervised.SupervisedConfig, args.config, args.overrides)
    if args.dry_run:
        print(config.dump(cfg), end="")
        return 0
    if args.command == "render":
        os.nice(5)  # training next to it comes first
        pool = Pool(cfg.pool, write=True)
        target = args.count or cfg.pool.samples
        columns = (
            TextColumn("rendering"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as bar:
            task = bar.add_task("", total=target, completed=pool.written)
            for count in pool.fill(target):
                bar.update(task, completed=count)
        return 0
    folder = args.run or Path("runs") / args.config.stem
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.dump(cfg), encoding="utf-8")

    def waiting(found: int) -> None:
        print(f"waiting for the renderer: {found} of {cfg.pool.wait_for} pictures", flush=True)

    recipe = supervised.Supervised(cfg, supervised.open_pool(cfg.pool, waiting))
    run(recipe, cfg.loop, folder, config.to_dict(cfg))
    return 0


if __name__ == "__main__":
    sys.exit(main())
