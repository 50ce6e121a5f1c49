# SPDX-License-Identifier: Apache-2.0
"""Packing of a data set into WebDataset shards."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import webdataset
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from depth_node import config
from training.data.open import DataConfig, open_samples
from training.data.samples import DataError, Sample
from training.data.shards import PATTERN


def write_shards(
    samples: Iterable[Sample], folder: Path, per_shard: int = 1000, jpeg: int = 0
) -> int:
    """Pack samples into shards of at most `per_shard` and return their number.

    jpeg: quality of the images; 0 stores lossless PNG. The shards are written beside the folder and
    renamed at the end. Raises DataError if the folder is not empty or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty: choose another folder for the shards.")
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for left in partial.glob("shard-*.tar"):
        left.unlink()
    count = 0
    try:
        with webdataset.ShardWriter(
            str(partial / PATTERN), maxcount=per_shard, encoder=False, verbose=0
        ) as writer:
            for count, sample in enumerate(samples, start=1):
                writer.write(_packed(f"{count - 1:09d}", sample, jpeg))
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    except OSError as error:
        raise DataError(
            f"The shards in {folder} cannot be written ({error}): make room there and start again."
        ) from error
    return count


def _packed(key: str, sample: Sample, jpeg: int) -> dict[str, Any]:
    bgr = cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR)
    end = "jpg" if jpeg else "png"
    content = {"__key__": key, end: _encoded(f".{end}", bgr, [cv2.IMWRITE_JPEG_QUALITY, jpeg])}
    about: dict[str, Any] = {"name": sample.name}
    if sample.camera is not None:
        about["camera"] = asdict(sample.camera)
    if sample.depth is not None:
        known = np.isfinite(sample.depth)
        step = float(sample.depth[known].max()) / 65535 if known.any() else 1.0
        counts = np.where(known, np.clip(np.round(sample.depth / step), 1, 65535), 0)
        content["depth.png"] = _encoded(".png", counts.astype(np.uint16))
        about["depth_step_m"] = step
    if sample.masks is not None:
        if sample.masks.max(initial=0) > 65535:
            raise DataError(f"{sample.name} has more than 65535 regions: merge some.")
        content["masks.png"] = _encoded(".png", sample.masks.astype(np.uint16))
    content["json"] = json.dumps(about).encode()
    return content


def _encoded(end: str, image: NDArray[Any], options: list[int] | None = None) -> bytes:
    done, content = cv2.imencode(end, image, options if end == ".jpg" and options else [])
    assert done
    return content.tobytes()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `python -m training shards`."""
    parser.add_argument("--out", required=True, type=Path, help="new folder")
    parser.add_argument("--per-shard", type=int, default=1000, help="samples per file")
    parser.add_argument(
        "--jpeg", type=int, default=0, help="quality of the images; 0 (default) = PNG"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="the data set: kind=nyuv2 folder=... ..."
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Pack the data set that the overrides describe, and print the number of samples."""
    samples = open_samples(config.override(DataConfig(), args.overrides))
    shown = track(samples, "packing", total=len(samples), console=console)
    count = write_shards(shown, args.out, args.per_shard, args.jpeg)
    console.print(f"{args.out}: {count} samples")
