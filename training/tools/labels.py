# SPDX-License-Identifier: Apache-2.0
"""Split of ordinal labels into some to train on and some that are held out for evaluation.

    python -m training labels split labels.csv --out-train train.csv --out-held held.csv

No image has labels in both files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from training.data.ordinal_labels import read_labels, require_ours, split_by_image, write_labels
from training.data.samples import DataError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m training labels`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="split")
    split = actions.add_parser("split", help="split the labels by image, at random")
    split.add_argument("file", type=Path, help="label file, .csv or .json")
    split.add_argument("--out-train", required=True, type=Path, help="label file to train on")
    split.add_argument("--out-held", required=True, type=Path, help="label file to evaluate with")
    split.add_argument("--held", type=float, default=0.2, help="fraction of labels held back")
    split.add_argument("--seed", type=int, default=0, help="seed of the choice of images")


def command(args: argparse.Namespace, console: Console) -> None:
    """Write both files and print how many labels each has.

    Raises DataError: for wrong arguments or labels before anything is written, or if a file cannot
    be written.
    """
    if not 0 < args.held < 1:
        raise DataError(f"--held is {args.held:g}: give a fraction between 0 and 1, such as 0.2.")
    if args.seed < 0:
        raise DataError("--seed must be 0 or more.")
    outs = (args.out_train, args.out_held)
    if len({path.resolve() for path in (args.file, *outs)}) < 3:
        raise DataError("The labels, --out-train and --out-held must be three different files.")
    for path in outs:
        require_ours(path)
        if path.exists():
            raise DataError(f"{path} exists already: delete it, or give another name.")
    parts = split_by_image(read_labels(args.file), args.held, args.seed)
    for path, pairs, purpose in zip(outs, parts, ("to train on", "held back"), strict=True):
        try:
            write_labels(path, pairs)
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error}); choose another place.") from error
        count = len({pair.image for pair in pairs})
        console.print(f"{path}: {len(pairs)} labels of {count} images {purpose}")
