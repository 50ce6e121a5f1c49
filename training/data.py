# SPDX-License-Identifier: Apache-2.0
"""Pictures with depth to learn from: a pool of rendered scenes on disk, and augmentation.

The pool is a ring of fixed-size arrays that one process fills (`python -m training render`) while
another trains on what is there. Sample i follows from the pool's seed and i alone. A training run
on a pool that is still growing sees what the renderer has managed so far; only on a complete pool
does a run repeat itself to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from depth_node import config
from depth_node.scene import STYLES, Scene, random_view

SHADOW_PX = 96  # coarser than by default: pooled pictures are small
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class DataError(RuntimeError):
    """Training data that is missing or does not fit; the message says what to do."""


@dataclass(frozen=True)
class PoolConfig:
    """Where rendered scenes lie and what they look like."""

    folder: str = config.option("pool", "Folder of the pool (outside the repository).")
    samples: int = config.option(
        100_000, "Pictures the ring holds before the oldest is replaced.", minimum=1
    )
    height: int = config.option(108, "Rows of a pooled picture.", unit="px", minimum=16)
    width: int = config.option(144, "Columns of a pooled picture.", unit="px", minimum=16)
    views_per_scene: int = config.option(6, "Pictures taken of each scene.", minimum=1)
    style: str = config.option("mixed", "Kind of scenes.", choices=("mixed", *STYLES))
    seed: int = config.option(-1, "Seed of the scenes; must be set.")
    wait_for: int = config.option(
        2000, "Pictures that must be there before training starts.", minimum=1
    )
    fill: bool = config.option(
        False, "Render wait_for pictures first, in the training process itself."
    )

    def __post_init__(self) -> None:
        config.validate(self)


class Pool:
    """Memory-mapped pictures (N, H, W, 3) uint8 and depth (N, H, W) float16 m."""

    def __init__(self, cfg: PoolConfig, write: bool = False) -> None:
        if cfg.seed < 0:
            raise DataError("The pool has no seed: set pool.seed to a number of 0 or more.")
        self.cfg = cfg
        self.folder = Path(cfg.folder)
        self._identity = {
            "height": cfg.height,
            "width": cfg.width,
            "samples": cfg.samples,
            "seed": cfg.seed,
            "style": cfg.style,
            "views_per_scene": cfg.views_per_scene,
        }
        about = self.folder / "pool.yaml"
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
        if about.exists():
            found = yaml.safe_load(about.read_text(encoding="utf-8"))
            if found != self._identity:
                raise DataError(
                    f"The pool in {self.folder} was made with other settings ({json.dumps(found)});"
                    " "
                    f"choose another pool.folder or the settings of that pool."
                )
        elif not write:
            raise DataError(
                f"There is no pool in {self.folder}; start `python -m training render` with the"
                " same config."
            )
        new = not about.exists()
        image_shape = (cfg.samples, cfg.height, cfg.width, 3)
        self.image: U8 = self._map("image.u8", np.uint8, image_shape, write)
        self.depth: NDArray[np.float16] = self._map("depth.f16", np.float16, image_shape[:3], write)
        self._count: NDArray[np.int64] = self._map("count.i64", np.int64, (1,), write)
        if new:
            about.write_text(yaml.safe_dump(self._identity), encoding="utf-8")

    def _map(self, name: str, dtype: type, shape: tuple[int, ...], write: bool) -> np.memmap:  # type: ignore[type-arg]
        path = self.folder / name
        mode = ("r+" if path.exists() else "w+") if write else "r"
        return np.memmap(path, dtype=dtype, mode=mode, shape=shape)  # type: ignore[call-overload,no-any-return]

    @property
    def written(self) -> int:
        """Pictures rendered so far, those replaced since included."""
        return int(self._count[0])

    def __len__(self) -> int:
        """Pictures that can be read."""
        return min(self.written, self.cfg.samples)

    def fill(self, until: int) -> Iterator[int]:
        """Render on to `until` pictures in all; yields the count after every scene. Continues where
        it stopped.
        """
        cfg = self.cfg
        per_scene = cfg.views_per_scene
        while self.written < until:
            index = self.written // per_scene
            rng = np.random.default_rng([cfg.seed, index])
            scene = Scene.random(rng, cfg.style, shadow_px=SHADOW_PX)
            for k in range(per_scene):
                camera, pose = random_view(scene, rng, cfg.width, cfg.height)
                seen = scene.render(camera, pose, antialias=False)
                slot = (index * per_scene + k) % cfg.samples
                self.image[slot] = seen.image
                self.depth[slot] = seen.depth
            self._count[0] = (index + 1) * per_scene
            yield self.written


@dataclass(frozen=True)
class AugmentConfig:
    """How a picture is varied; geometry moves picture and depth together."""

    smallest_crop: float = config.option(
        0.72, "Least share of the picture's sides that a crop keeps.", minimum=0.1, maximum=1
    )
    flip: float = config.option(0.5, "Probability of a left-right flip.", minimum=0, maximum=1)
    colour: float = config.option(
        0.3, "Spread of gain per channel, contrast and saturation.", minimum=0, maximum=1
    )
    gamma: float = config.option(0.35, "Spread of the logarithm of gamma.", minimum=0, maximum=2)
    blur: float = config.option(0.4, "Probability of a blur of up to 1 px.", minimum=0, maximum=1)
    noise: float = config.option(
        0.03, "Greatest sigma of pixel noise (picture in 0..1).", minimum=0, maximum=1
    )
    grey: float = config.option(0.05, "Probability of a grey picture.", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        config.validate(self)


def augment(
    image: U8, depth: F32, height: int, width: int, cfg: AugmentConfig, rng: np.random.Generator
) -> tuple[F32, F32]:
    """One training pair: picture (height, width, 3) float32 0..1 and depth (height, width) float32
    m (nearest).
    """
    rows, columns = depth.shape
    share = rng.uniform(cfg.smallest_crop, 1.0)
    # The aspect varies a little as well: a network input is a stretched picture, whatever the
    # camera's aspect.
    h = max(int(rows * share * rng.uniform(0.92, 1.0)), 8)
    w = max(int(columns * share * rng.uniform(0.92, 1.0)), 8)
    r, c = int(rng.integers(0, rows - h + 1)), int(rng.integers(0, columns - w + 1))
    crop = image[r : r + h, c : c + w]
    shrinks = h >= height and w >= width
    out = cv2.resize(
        crop, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    z = cv2.resize(depth[r : r + h, c : c + w], (width, height), interpolation=cv2.INTER_NEAREST)
    if rng.random() < cfg.flip:
        out, z = out[:, ::-1], z[:, ::-1]
    x = out.astype(np.float32) / np.float32(255)
    return _recolour(x, cfg, rng), np.ascontiguousarray(z, np.float32)


def _recolour(x: F32, cfg: AugmentConfig, rng: np.random.Generator) -> F32:
    """Another light, another camera: gamma, contrast, saturation, white balance, blur, noise."""
    spread = cfg.colour
    x = np.power(np.clip(x, 0, 1), np.float32(np.exp(rng.normal(0, cfg.gamma))))
    mean = np.float32(x.mean())
    x = (x - mean) * np.float32(rng.uniform(1 - spread, 1 + spread)) + mean
    grey = x.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < cfg.grey else rng.uniform(1 - 1.5 * spread, 1 + spread)
    x = grey + (x - grey) * np.float32(saturation)
    x = x * rng.uniform(1 - spread / 2, 1 + spread / 2, 3).astype(np.float32) + np.float32(
        rng.normal(0, spread / 6)
    )
    if rng.random() < cfg.blur:
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.3, 1.0))), np.float32)
    sigma = rng.uniform(0, cfg.noise)
    x = x + np.float32(sigma) * rng.standard_normal(x.shape, dtype=np.float32)
    return np.clip(x, 0, 1).astype(np.float32)
