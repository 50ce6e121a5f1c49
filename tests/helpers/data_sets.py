# SPDX-License-Identifier: Apache-2.0
"""Small data sets on disk: smooth images, frames of noise, truncated files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.open import DataConfig, open_samples
from training.data.samples import DataSet

H, W = 48, 64  # size of noise() and frame()


def sample_image(seed: int = 0, height: int = 12, width: int = 16) -> NDArray[np.uint8]:
    """Return an image (height, width, 3) so smooth that JPEG changes it little."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 10 + seed, y * 15, x * 0 + 40 + seed], axis=2).astype(np.uint8)


def put(path: Path, content: NDArray[Any]) -> Path:
    """Write an RGB image or a map in the format that the path's suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, content)
    else:
        plain = content if content.ndim == 2 else cv2.cvtColor(content, cv2.COLOR_RGB2BGR)
        # imencode takes lower case, but ETH3D and Hypersim name files in upper case, with several
        # dots.
        done, encoded = cv2.imencode(path.suffix.lower(), plain)
        assert done
        path.write_bytes(encoded.tobytes())
    return path


def opened(kind: str, folder: Path, **more: Any) -> DataSet:
    return open_samples(DataConfig(kind=kind, folder=str(folder), **more))


def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)


def frame(folder: Path, depth: NDArray[Any] | None = None, image: str = "rgb.png") -> Path:
    """Write one RGB-D frame of noise into a folder; depth: (H, W), 2 m if None."""
    folder.mkdir(parents=True)
    assert cv2.imwrite(str(folder / image), noise())
    stored = np.full((H, W), 2000, np.uint16) if depth is None else depth
    if stored.dtype == np.uint16:
        assert cv2.imwrite(str(folder / "depth.png"), stored)
    else:
        np.savez(folder / "depth.npz", depth=stored)
    (folder / "intrinsics.json").write_text(
        f'{{"fx": 50, "fy": 50, "cx": 32, "cy": 24, "width": {W}, "height": {H}}}'
    )
    return folder


def frames(folder: Path) -> DataSet:
    return open_samples(DataConfig(kind="frames", folder=str(folder)))


def cut(path: Path, fraction: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
