# SPDX-License-Identifier: Apache-2.0
"""Cache of teachers' maps and of masks, which are computed once per image and read many times.

    FOLDER/ab/abcdef...png    uint16: a map, scaled from its smallest value (1) to its largest
                              (65535), 0 = unknown; or masks, one per bit, 16 to a page, the pages
                              below each other
    FOLDER/ab/abcdef...json   the key, and the range or the number of masks; written last

The name is a digest of the key, so that another image, crop, teacher or revision has another file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.engine.options import REFERENCE
from depth_node.inference import DepthModel
from depth_node.sentences import one_line
from training.data.augmentation import Window
from training.data.files import content, decode, finite_number
from training.data.samples import DataError

PER_PAGE = 16  # masks in a page
STEPS = 65534  # between the smallest and the largest value; 0 is kept for unknown


def digest(image: NDArray[np.uint8]) -> str:
    """Return the name of an image (H, W, C); it depends on shape and pixels only."""
    shape = json.dumps(image.shape).encode()
    return hashlib.blake2b(
        shape + np.ascontiguousarray(image).tobytes(), digest_size=16
    ).hexdigest()


def model_digest(model: DepthModel) -> str:
    """Return the name of an exported network, a digest of all that its answers depend on.

    These are weights, input, output, meaning, roles, levels and focal length, and the back end if
    it is not the reference.
    """
    manifest, backend = model.engine.manifest, model.engine.backend
    shaping: tuple[Any, ...] = (
        manifest.sha256,
        manifest.input,
        manifest.output_name,
        manifest.meaning,
        sorted(manifest.roles.items()),
        sorted(manifest.levels.items()),
        manifest.focal_px,
    )
    if backend != REFERENCE:  # answers of one back end are not those of another
        shaping = (*shaping, backend)
    return hashlib.sha256(repr(shaping).encode()).hexdigest()


@dataclass(frozen=True)
class Key:
    """Key of a map or masks: the image (a `digest`), the maker with its revision, the window."""

    image: str
    maker: str
    revision: str
    window: Window | None = None  # None: the whole image in its own size

    @property
    def name(self) -> str:
        """The name of the files, without suffix."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Cache:
    """Folder of maps and masks. `cure`: the command that fills it, for error messages.

    Reading raises DataError for an absent or damaged entry; writing raises it if the disk is full
    or the folder cannot be written.
    """

    def __init__(self, folder: str | Path, cure: str = "") -> None:
        self.folder = Path(folder)
        self.cure = cure

    def __contains__(self, key: Key) -> bool:
        return self._path(key, ".json").is_file()

    def write_map(self, key: Key, values: NDArray[np.floating], **about: Any) -> None:
        """Store a map (H, W) float in 16 bits over its own range; values not finite are unknown.

        about: plain values that are stored with it (meaning, processing size). Raises DataError for
        a map without any finite value.
        """
        known = np.isfinite(values)
        if values.ndim != 2 or not known.any():
            raise DataError(
                f"The map of {key.maker} for image {key.image} has no finite value or not two"
                " dimensions: it is not kept; look at that image."
            )
        low, high = float(values[known].min()), float(values[known].max())
        relative = (np.where(known, values, low).astype(np.float64) - low) / max(high - low, 1e-30)
        stored = np.where(known, np.round(relative * STEPS) + 1, 0).astype(np.uint16)
        self._write(key, stored, {"kind": "map", "low": low, "high": high, **about})

    def read_map(self, key: Key) -> NDArray[np.float32]:
        """Return the map (H, W) float32, NaN unknown; its error is at most its range / 131068."""
        stored, about = self._read(key, "map")
        try:
            low, high = finite_number(about.get("low")), finite_number(about.get("high"))
        except ValueError as error:
            raise self._damaged(key, f"its range: {error}") from None
        if low > high:
            raise self._damaged(key, f"its range is {low:g} to {high:g}")
        values = low + (stored.astype(np.float64) - 1) / STEPS * (high - low)
        return np.where(stored > 0, values, np.nan).astype(np.float32)

    def write_masks(self, key: Key, masks: NDArray[np.bool_], **about: Any) -> None:
        """Store masks (K, H, W) bool; they may overlap."""
        count, height, width = masks.shape
        pages = np.zeros((max(-(-count // PER_PAGE), 1), height, width), np.uint16)
        for k, mask in enumerate(masks):
            pages[k // PER_PAGE] |= mask.astype(np.uint16) << np.uint16(k % PER_PAGE)
        self._write(
            key,
            pages.reshape(-1, width),
            {"kind": "masks", "count": count, "height": height, **about},
        )

    def read_masks(self, key: Key) -> NDArray[np.bool_]:
        """Return the masks (K, H, W) bool."""
        stored, about = self._read(key, "masks")
        count, height = about.get("count"), about.get("height")
        if type(count) is not int or type(height) is not int or count < 0 or height < 1:
            raise self._damaged(key, f"its masks are {count!r:.40} of {height!r:.40} rows")
        if stored.shape[0] != max(-(-count // PER_PAGE), 1) * height:
            raise self._damaged(
                key, f"{stored.shape[0]} rows cannot hold {count} masks of {height}"
            )
        pages = stored.reshape(-1, height, stored.shape[1])
        planes = [(pages[k // PER_PAGE] >> np.uint16(k % PER_PAGE)) & 1 for k in range(count)]
        return np.array(planes, bool).reshape(count, height, stored.shape[1])

    def about(self, key: Key) -> dict[str, Any]:
        """Return the values stored with a map or masks. Raises DataError without such an entry."""
        try:
            values = json.loads(self._path(key, ".json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            made = f" run `{self.cure}` first." if self.cure else " fill it first."
            raise DataError(
                f"The cache {self.folder} has nothing of {key.maker} (revision {key.revision}) for"
                f" image {key.image} in this view:{made}"
            ) from None
        except Exception as error:  # no JSON, no UTF-8, nested too deeply, not readable
            raise self._damaged(key, one_line(error)) from error
        if not isinstance(values, dict):
            raise self._damaged(key, f"its .json holds a {type(values).__name__}")
        return values

    def _path(self, key: Key, suffix: str) -> Path:
        return self.folder / key.name[:2] / (key.name + suffix)

    def _write(self, key: Key, stored: NDArray[np.uint16], about: Mapping[str, Any]) -> None:
        done, png = cv2.imencode(".png", stored)
        assert done
        text = json.dumps({"key": asdict(key), **about}, indent=1)
        try:
            self._path(key, "").parent.mkdir(parents=True, exist_ok=True)
            for suffix, data in ((".png", png.tobytes()), (".json", text.encode())):
                path = self._path(key, suffix)
                partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
                partial.write_bytes(data)
                os.replace(partial, path)
        except OSError as error:
            raise DataError(
                f"The cache {self.folder} cannot be written ({error}): make room there, or choose"
                " another folder."
            ) from error

    def _read(self, key: Key, kind: str) -> tuple[NDArray[np.uint16], dict[str, Any]]:
        about = self.about(key)
        if about.get("kind") != kind:
            raise self._damaged(key, f"it holds no {kind}")
        path = self._path(key, ".png")
        try:
            stored = decode(content(path))
        except Exception as error:
            raise self._damaged(key, f"its image is not readable: {one_line(error)}") from error
        if stored.dtype != np.uint16 or stored.ndim != 2:
            raise self._damaged(key, f"its image is {stored.dtype} of shape {stored.shape}")
        return np.asarray(stored, np.uint16), about

    def _damaged(self, key: Key, why: str) -> DataError:
        return DataError(
            f"{self._path(key, '.png')} is damaged ({why}): delete it and its .json, and fill the"
            " cache again."
        )
