# SPDX-License-Identifier: Apache-2.0
"""Data sets as WebDataset shards: few large tar files instead of many small ones.

    shard-000000.tar    KEY.png         or .jpg: the picture
                        KEY.depth.png   uint16, 0 = unknown, depth = value * depth_step_m
                        KEY.masks.png   uint16 regions, 0 = none
                        KEY.json        name, depth_step_m, camera

Any WebDataset reader streams them. Here a sample is read by its number: training must find the same
picture again after an interruption. The table of where members lie is made by reading the headers
once, when the shards are opened.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
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
from depth_node.geometry.camera import Camera
from training.data import DataError, Sample
from training.datasets import DataConfig, Item, Samples, decode, open_samples, reading

PATTERN = "shard-%06d.tar"


def write_shards(
    samples: Iterable[Sample], folder: Path, per_shard: int = 1000, jpeg: int = 0
) -> int:
    """Pack samples; returns how many. jpeg: quality of the pictures, 0 = PNG, without loss.

    Written beside the folder and renamed at the end: DataError where it exists already.
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


def _encoded(end: str, picture: NDArray[Any], options: list[int] | None = None) -> bytes:
    done, content = cv2.imencode(end, picture, options if end == ".jpg" and options else [])
    assert done
    return content.tobytes()


def open_shards(folder: Path) -> Samples:
    """The samples of all shards of a folder, in order; DataError where a shard is cut."""
    items = []
    for path in sorted(folder.glob("*.tar")):
        members: dict[str, dict[str, tuple[int, int]]] = {}
        with reading(path):
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        key, _, end = member.name.partition(".")
                        members.setdefault(key, {})[end] = (member.offset_data, member.size)
            except tarfile.TarError as error:
                raise ValueError(str(error)) from error
            ends = [start + size for parts in members.values() for start, size in parts.values()]
            if max(ends, default=0) > path.stat().st_size:
                raise ValueError("the file is cut")
        items += [Item(key, path, about=parts) for key, parts in members.items()]
    if not items:
        raise DataError(f"{folder} holds no shards: write some with `python -m training shards`.")
    return Samples("shards", "none", items, _read)


def _read(item: Item) -> Sample:
    parts: dict[str, tuple[int, int]] = item.about
    with reading(item.image), item.image.open("rb") as file:

        def content(end: str) -> bytes:
            start, size = parts[end]
            file.seek(start)
            return file.read(size)

        about = json.loads(content("json"))
        end = next(end for end in ("png", "jpg", "jpeg") if end in parts)
        bgr = decode(content(end), cv2.IMREAD_COLOR)
        depth = masks = None
        if "depth.png" in parts:
            counts = decode(content("depth.png"), cv2.IMREAD_UNCHANGED)
            known = np.where(counts > 0, counts * float(about["depth_step_m"]), np.nan)
            depth = known.astype(np.float32)
        if "masks.png" in parts:
            masks = decode(content("masks.png"), cv2.IMREAD_UNCHANGED).astype(np.int32)
        camera = None
        if "camera" in about:
            kept = about["camera"]
            camera = Camera(**{**kept, "distortion": tuple(kept["distortion"])})
        image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
        return Sample(about["name"], image, depth, camera, masks)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m training shards` takes."""
    parser.add_argument("--out", required=True, type=Path, help="folder to make")
    parser.add_argument("--per-shard", type=int, default=1000, help="samples in a file")
    parser.add_argument(
        "--jpeg", type=int, default=0, help="quality of the pictures; 0 (default) = PNG"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="the data set: kind=nyuv2 folder=... ..."
    )


def command(args: argparse.Namespace, console: Console) -> None:
    """Pack a data set."""
    samples = open_samples(config.override(DataConfig(), args.overrides))
    shown = track(samples, "packing", total=len(samples), console=console)
    count = write_shards(shown, args.out, args.per_shard, args.jpeg)
    console.print(f"{args.out}: {count} samples")
