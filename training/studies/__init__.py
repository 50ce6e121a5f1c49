# SPDX-License-Identifier: Apache-2.0
"""Experiments that justify defaults and compare recipes; results are in docs/studies.

    python -m training study westar --out STUDY --images 900 [--target defocus --severity 5]
    python -m training study distill | normalisations | mesa --out STUDY
    python -m training study spaces | depthmaster | assistant --out STUDY
    python -m training study field | regions | upsampling CASE SOURCE ... --out TABLES.md

Every variant of a recipe is trained by the recipe itself in a folder of its own, then scored on
rooms that no run saw. Finished runs are not repeated, and `--jobs N` distributes them to processes
(on one GPU, or on the cores). Such a study has a design (studies/proof.py): a claim, seeds,
references and gates; the table is shown only if the gates are passed. The studies of the field, of
regions and of upsampling score recorded frames.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from depth_node.engine.manifest import EMBEDDED

if TYPE_CHECKING:
    from rich.console import Console

# Name -> module with `arguments(parser)` and `command(args, console)`, and the help text.
STUDIES = {
    "westar": ("training.studies.westar", "adaptation to degraded images"),
    "labels": ("training.studies.labels", "what a few hundred ordinal labels bring"),
    "distill": ("training.studies.distill", "distillation: normalisations, teachers, assistants"),
    "normalisations": (
        "training.studies.normalisations",
        "distillation by a teacher that is wrong in one region",
    ),
    "mesa": ("training.studies.mesa", "pre-training: masked, geometric, supervised"),
    "spaces": ("training.studies.depthmaster", "what space a diffusion network's depth is in"),
    "depthmaster": ("training.studies.depthmaster", "its stages, details and alignment"),
    "assistant": ("training.studies.depthmaster", "that teacher beside another one"),
    "field": ("training.studies.field", "method field: ablation, targets, interval, flicker"),
    "upsampling": ("training.studies.upsampling", "depth maps enlarged: edges kept or bilinear"),
    "regions": ("training.studies.regions", "what regions cost and what they bring"),
}


def arguments(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add a parser for each study; only the module of the study in words[0] is imported."""
    studies = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    for name, (module, description) in STUDIES.items():
        sub = studies.add_parser(name, help=description)
        if words[:1] == [name]:  # other studies may need libraries that are not installed
            importlib.import_module(module).arguments(sub)


def command(args: argparse.Namespace, console: Console) -> None:
    """Run the study of args.study and print its tables."""
    importlib.import_module(STUDIES[args.study][0]).command(args, console)


def help_with(args: argparse.Namespace) -> None:
    """Run a study in an additional process: it takes runs of the study and prints nothing."""
    import cv2
    from rich.console import Console

    cv2.setNumThreads(1)
    command(argparse.Namespace(**{**vars(args), "jobs": 0}), Console(quiet=True))


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the studies that train: folder, seeds, steps, images and rooms."""
    parser.add_argument("--out", required=True, type=Path, help="folder of rooms, runs and scores")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1], help="seeds; each variant has one run per seed"
    )
    parser.add_argument("--only", nargs="+", default=[], help="names of the variants to run")
    parser.add_argument("--steps", type=int, default=0, help="0: the study's own number")
    parser.add_argument("--images", type=int, default=300, help="images to train on")
    parser.add_argument(
        "--jobs", type=int, default=1, help="number of processes that share the runs"
    )
    parser.add_argument(
        "--rooms", type=int, default=100, help="rooms to score on, three views each"
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the studies that score recorded frames."""
    parser.add_argument("sources", type=Path, nargs="*", metavar="SOURCE")
    parser.add_argument("--model", default=EMBEDDED, metavar="FILE")
    parser.add_argument("--manifest", default="", metavar="FILE")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="seeds of the drawn points"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables as Markdown")
