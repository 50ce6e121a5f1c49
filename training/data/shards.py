# SPDX-License-Identifier: Apache-2.0
"""Data sets as WebDataset shards: a few large tar files instead of many small files.

    shard-000000.tar    KEY.png         or .jpg: the image
                        KEY.depth.png   uint16, 0 = unknown, depth = value * depth_step_m
                        KEY.masks.png   uint16 regions, 0 = none
                        KEY.json        name, depth_step_m, camera

Any WebDataset reader can stream them. Here a sample is read by its number, because training must
find the same image again when it is resumed. The table of the members' offsets is made once, from
the headers, when the shards are opened.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np

from depth_node.geometry.camera import Camera
from training.data.files import decode, decode_rgb, finite_number, reading
from training.data.samples import DataError, DataSet, Item, Sample

PATTERN = "shard-%06d.tar"


def open_shards(folder: Path) -> DataSet:
    """Open all shards of a folder, in order. Raises DataError if none is there or one is cut."""
    items = []
    for path in sorted(folder.glob("*.tar")):
        members: dict[str, dict[str, tuple[int, int]]] = {}
        with reading(path):
            try:
                with tarfile.open(path, "r:") as tar:
                    for member in tar:
                        key, _, end = member.name.partition(".")
                        if member.isreg() and not key.startswith("."):
                            members.setdefault(key, {})[end] = (member.offset_data, member.size)
            except tarfile.TarError as error:
                raise ValueError(str(error)) from error
            ends = [start + size for parts in members.values() for start, size in parts.values()]
            if max(ends, default=0) > path.stat().st_size:
                raise ValueError("the file is cut")
        items += [Item(key, path, about=parts) for key, parts in members.items()]
    if not items:
        raise DataError(f"{folder} holds no shards: write some with `python -m training shards`.")
    return DataSet("shards", "none", items, _read)


def _read(item: Item) -> Sample:
    parts: dict[str, tuple[int, int]] = item.about
    with reading(item.image), item.image.open("rb") as file:

        def content(end: str) -> bytes:
            if end not in parts:
                raise ValueError(f"{item.name} has no .{end}")
            start, size = parts[end]
            file.seek(start)
            return file.read(size)

        about = json.loads(content("json"))
        if not isinstance(about, dict) or not isinstance(about.get("name"), str):
            raise ValueError(f"{item.name}.json is no object with a name")
        end = next((end for end in ("jpg", "jpeg") if end in parts), "png")
        image = decode_rgb(content(end))
        depth = masks = None
        if "depth.png" in parts:
            counts = decode(content("depth.png"))
            step = finite_number(about["depth_step_m"])
            if counts.dtype != np.uint16 or counts.ndim != 2 or not step > 0:
                raise ValueError(f"{item.name}.depth.png is no depth in steps above 0")
            known = np.where(counts > 0, counts * step, np.nan)
            depth = known.astype(np.float32)
        if "masks.png" in parts:
            masks = decode(content("masks.png")).astype(np.int32)
        camera = None
        if "camera" in about:
            stored = about["camera"]
            numbers = {name: finite_number(value) for name, value in stored.items()
                       if name not in ("model", "distortion")}  # fmt: skip
            for name in ("width", "height"):
                if numbers[name] != int(numbers[name]):
                    raise ValueError(f"its camera has the {name} {numbers[name]}")
                numbers[name] = int(numbers[name])
            distortion = tuple(finite_number(value) for value in stored["distortion"])
            camera = Camera(**{**stored, **numbers, "distortion": distortion})
            if (camera.height, camera.width) != image.shape[:2]:
                raise ValueError(f"its camera is of {camera.width}x{camera.height} pixels")
        return Sample(about["name"], image, depth, camera, masks)
