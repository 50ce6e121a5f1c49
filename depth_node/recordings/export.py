# SPDX-License-Identifier: Apache-2.0
"""Export of depth as folders of frames, which `read_frame` and training's layout `frames` read."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.geometry.millimetres import depth_to_millimetres
from depth_node.pipeline import DepthResult
from depth_node.recordings.files import FrameError, UnfinishedFile, is_new
from depth_node.recordings.sources import ScoredFrame

JPEG_QUALITY = 95


def known_depth_mm(
    depth: NDArray[np.floating], std: NDArray[np.floating], max_relative_std: float
) -> NDArray[np.uint16]:
    """Convert depth (H, W), metres, with its standard deviation to millimetres (H, W), 0 unknown.

    Depth that 16 bits cannot represent becomes unknown. With max_relative_std above 0, so does
    depth whose standard deviation, relative to the depth, is larger than that or unknown.
    """
    if max_relative_std > 0:
        with np.errstate(invalid="ignore"):
            depth = np.where(std <= max_relative_std * depth, depth, np.nan)
    return depth_to_millimetres(depth)


class FrameFolders:
    """Writes results as SOURCE/FRAME/{rgb.jpg, depth.png, intrinsics.json} below a folder.

    Depth that does not pass the gates (publish.*) is stored as unknown: a network must not learn
    flying pixels. Each frame's folder gets its name only when it is complete. images_png: write
    rgb.png, which is lossless, instead of rgb.jpg.
    """

    def __init__(
        self, folder: Path, max_relative_std: float = 0.0, *, images_png: bool = False
    ) -> None:
        self.folder = folder
        self.count = 0
        self._sources: set[str] = set()
        self._known = 0
        self._pixels = 0
        self._max_relative_std = max_relative_std
        self._png = images_png

    @property
    def known(self) -> float:
        """Fraction of the pixels that were written with a depth, NaN before the first frame."""
        return self._known / self._pixels if self._pixels else float("nan")

    def add(self, frame: ScoredFrame, result: DepthResult) -> None:
        """Write a frame. Raises FrameError if it exists already or cannot be written, or if the
        folder of its source holds frames of an earlier export."""
        source = self.folder / frame.source
        if frame.source not in self._sources and not is_new(source):
            raise FrameError(
                f"{source} holds an earlier export: name another folder with --out, or remove it"
                " first."
            )
        self._sources.add(frame.source)
        unfinished = UnfinishedFile(self.folder / frame.source / frame.name, "--out")
        part = unfinished.__enter__() / "frame"
        made: Path | None = None
        try:
            part.mkdir()
            image = frame.input.image[..., ::-1]
            name = "rgb.png" if self._png else "rgb.jpg"
            quality = [] if self._png else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
            millimetres = known_depth_mm(
                result.gates.believed_depth(), result.std, self._max_relative_std
            )
            _write(part / name, image, quality)
            _write(part / "depth.png", millimetres, [])
            text = json.dumps(_intrinsics(frame.input.camera), indent=2)
            (part / "intrinsics.json").write_text(text + "\n", encoding="utf-8")
            made = part
        except OSError as error:
            raise FrameError(
                f"{part} cannot be written ({error.strerror}): make room, or name another --out."
            ) from None
        finally:
            unfinished.finish(made)
        self.count += 1
        self._known += int(np.count_nonzero(millimetres))
        self._pixels += millimetres.size


def _write(path: Path, pixels: NDArray[np.generic], options: list[int]) -> None:
    whole, data = cv2.imencode(path.suffix, np.ascontiguousarray(pixels), options)
    if not whole:
        raise FrameError(f"{path} cannot be encoded.")
    path.write_bytes(data.tobytes())


def _intrinsics(camera: Camera) -> dict[str, object]:
    """Return the content of intrinsics.json, as read_frame expects it."""
    values: dict[str, object] = {
        name: getattr(camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")
    }
    if camera.model != "pinhole":
        values |= {"model": camera.model, "distortion": list(camera.distortion)}
    return values
