# SPDX-License-Identifier: Apache-2.0
"""Pictures to learn from: what one is, how it is varied, and a pool of rendered ones on disk.

The pool is a ring of fixed-size arrays that one process fills (`python -m training render`) while
another trains on what is there. Sample i follows from the pool's seed and i alone. A training run
on a pool that is still growing sees what the renderer has managed so far; only on a complete pool
does a run repeat itself to the bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import yaml
from depth_node.scene import STYLES
from numpy.typing import NDArray

from depth_node import config
from depth_node.geometry.camera import Camera
from depth_node.simulation.renderer import Scene, random_view

SHADOW_PX = 96  # coarser than by default: pooled pictures are small
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


class DataError(RuntimeError):
    """Training data that is missing or does not fit; the message says what to do."""


@dataclass(frozen=True)
class Sample:
    """One picture to learn from or to be judged on.

    image: (H, W, 3) uint8 RGB. depth: (H, W) float32 metres, NaN unknown, or None. camera: of the
    picture, or None. masks: (H, W) int32 regions, 0 = none, or None. name: unique within the data
    set, or within the source: pictures of one source (room, recording) are not independent.
    """

    name: str
    image: U8
    depth: F32 | None = None
    camera: Camera | None = None
    masks: NDArray[np.int32] | None = None
    source: str = ""


class Pictures(Protocol):
    """Samples by number: a pool, a data set, a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


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

    def __getitem__(self, index: int) -> Sample:
        """One picture with its depth."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no picture {index} among {len(self)}")
        depth = self.depth[index].astype(np.float32)
        return Sample(f"{self.cfg.seed}-{index}", self.image[index], depth)

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


def open_pool(
    cfg: PoolConfig, waiting: Callable[[int], None] = lambda found: None, poll_s: float = 5.0
) -> Pool:
    """The pool, once it holds cfg.wait_for pictures; rendered here if cfg.fill says so.

    waiting(found) is called now and then while another process has rendered too few.
    """
    if cfg.fill:
        writer = Pool(cfg, write=True)
        for _ in writer.fill(cfg.wait_for):
            pass
        return writer
    pool = Pool(cfg)
    while len(pool) < min(cfg.wait_for, cfg.samples):
        waiting(len(pool))
        time.sleep(poll_s)
    return pool


@dataclass(frozen=True)
class Window:
    """A part of a picture, resized, perhaps mirrored: one geometry for picture, depth and points.

    Rows top .. top + rows, columns left .. left + columns of the picture become (height, width).
    """

    top: int
    left: int
    rows: int
    columns: int
    height: int
    width: int
    flip: bool = False

    @classmethod
    def whole(cls, shape: tuple[int, ...], height: int, width: int) -> Window:
        """All of a picture of that shape."""
        return cls(0, 0, shape[0], shape[1], height, width)

    def image(self, image: NDArray[Any]) -> NDArray[Any]:
        """A picture (H, W, C): averaged where it shrinks, linear where it grows."""
        shrinks = self.rows >= self.height and self.columns >= self.width
        return self._cut(image, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def nearest(self, values: NDArray[Any]) -> NDArray[Any]:
        """A map (H, W) whose values must not mix: depth, labels, masks."""
        return self._cut(values, cv2.INTER_NEAREST_EXACT)

    def _cut(self, values: NDArray[Any], interpolation: int) -> NDArray[Any]:
        cut = values[self.top : self.top + self.rows, self.left : self.left + self.columns]
        kind = values.dtype
        cut = cut.astype(np.uint8) if kind == np.bool_ else cut
        out = cv2.resize(cut, (self.width, self.height), interpolation=interpolation)
        return np.ascontiguousarray(out[:, ::-1] if self.flip else out).astype(kind, copy=False)

    def points(self, uv: NDArray[np.floating]) -> NDArray[np.float64]:
        """Picture coordinates (N, 2) as (column, row) -> coordinates in the window, maybe outside.

        Pixel centres lie at integers on both sides.
        """
        uv = np.asarray(uv, np.float64)
        u = (uv[:, 0] - self.left + 0.5) * self.width / self.columns - 0.5
        v = (uv[:, 1] - self.top + 0.5) * self.height / self.rows - 0.5
        return np.stack([self.width - 1 - u if self.flip else u, v], axis=1)

    def camera(self, camera: Camera) -> Camera:
        """The undistorted camera of the window; a mirrored one has no camera: ValueError."""
        if self.flip:
            raise ValueError("a mirrored picture has no camera: take the window without flip")
        x, y = self.width / self.columns, self.height / self.rows
        centre = self.points(np.array([[camera.cx, camera.cy]]))[0]
        return Camera(
            width=self.width,
            height=self.height,
            fx=camera.fx * x,
            fy=camera.fy * y,
            cx=float(centre[0]),
            cy=float(centre[1]),
        )


@dataclass(frozen=True)
class ViewConfig:
    """How a picture is varied; by default not at all. RENDERED, WEAK and STRONG are presets."""

    smallest_crop: float = config.option(
        1.0, "Least share of the picture's sides that a crop keeps.", minimum=0.1, maximum=1
    )
    aspect: float = config.option(
        0.0, "Greatest share that a crop loses of one side more.", minimum=0, maximum=0.5
    )
    flip: float = config.option(0.0, "Probability of a left-right flip.", minimum=0, maximum=1)
    colour: float = config.option(
        0.0, "Spread of gain per channel, contrast and saturation.", minimum=0, maximum=1
    )
    gamma: float = config.option(0.0, "Spread of the logarithm of gamma.", minimum=0, maximum=2)
    blur: float = config.option(0.0, "Probability of a blur of up to 1 px.", minimum=0, maximum=1)
    noise: float = config.option(
        0.0, "Greatest sigma of pixel noise (picture in 0..1).", minimum=0, maximum=1
    )
    grey: float = config.option(0.0, "Probability of a grey picture.", minimum=0, maximum=1)
    posterize: float = config.option(
        0.0, "Probability of 4 to 6 bits a colour.", minimum=0, maximum=1
    )
    equalize: float = config.option(0.0, "Probability of equal histograms.", minimum=0, maximum=1)
    sharpen: float = config.option(0.0, "Probability of sharper edges.", minimum=0, maximum=1)
    solarize: float = config.option(
        0.0, "Probability that bright values are inverted.", minimum=0, maximum=1
    )
    exposure: float = config.option(
        0.0, "Probability of another brightness and contrast.", minimum=0, maximum=1
    )
    shadow: float = config.option(
        0.0, "Probability of a darkened four-sided shadow.", minimum=0, maximum=1
    )
    at_least_one: bool = config.option(
        False, "Draw one of posterize .. shadow where chance chose none."
    )

    def __post_init__(self) -> None:
        config.validate(self)


# For rendered rooms: their pictures have no camera's faults, so they are given some.
RENDERED: dict[str, Any] = {
    "smallest_crop": 0.72,
    "aspect": 0.08,
    "flip": 0.5,
    "colour": 0.3,
    "gamma": 0.35,
    "blur": 0.4,
    "noise": 0.03,
    "grey": 0.05,
}
# Self-training (WeSTAR): the teacher's view and the student's; the strong one moves no pixel. What
# it may do is WeSAM's list, how often it does it is ours.
WEAK: dict[str, Any] = {"flip": 0.5}
STRONG: dict[str, Any] = {
    "posterize": 0.2,
    "equalize": 0.2,
    "sharpen": 0.2,
    "solarize": 0.2,
    "exposure": 0.5,
    "shadow": 0.3,
    "at_least_one": True,
}


def random_window(
    shape: tuple[int, ...], height: int, width: int, cfg: ViewConfig, rng: np.random.Generator
) -> Window:
    """A crop of a picture of that shape by cfg's geometry."""
    share = rng.uniform(cfg.smallest_crop, 1.0)
    rows = max(int(shape[0] * share * rng.uniform(1 - cfg.aspect, 1.0)), min(8, shape[0]))
    columns = max(int(shape[1] * share * rng.uniform(1 - cfg.aspect, 1.0)), min(8, shape[1]))
    top = int(rng.integers(0, shape[0] - rows + 1))
    left = int(rng.integers(0, shape[1] - columns + 1))
    return Window(top, left, rows, columns, height, width, bool(rng.random() < cfg.flip))


def augment(
    image: U8, depth: F32, height: int, width: int, cfg: ViewConfig, rng: np.random.Generator
) -> tuple[F32, F32]:
    """One training pair: picture (height, width, 3) float32 0..1 and depth (height, width) float32
    m (nearest).
    """
    # The aspect varies a little as well: a network input is a stretched picture, whatever the
    # camera's aspect.
    window = random_window(depth.shape, height, width, cfg, rng)
    x = window.image(image).astype(np.float32) / np.float32(255)
    return recolour(x, cfg, rng), window.nearest(depth).astype(np.float32, copy=False)


def recolour(x: F32, cfg: ViewConfig, rng: np.random.Generator) -> F32:
    """Another light, another camera for a picture (H, W, 3) float32 in 0..1; no pixel moves."""
    x = _distort(np.clip(x, 0, 1).astype(np.float32, copy=False), cfg, rng)
    spread = cfg.colour
    if cfg.gamma:
        x = np.power(x, np.float32(np.exp(rng.normal(0, cfg.gamma))))
    if spread or cfg.grey:
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
    if cfg.noise:
        sigma = rng.uniform(0, cfg.noise)
        x = x + np.float32(sigma) * rng.standard_normal(x.shape, dtype=np.float32)
    return np.clip(x, 0, 1).astype(np.float32)


def _posterize(x: F32, rng: np.random.Generator) -> F32:
    levels = np.float32(2 ** int(rng.integers(4, 7)))
    return (np.minimum(np.floor(x * levels), levels - 1) / (levels - 1)).astype(np.float32)


def _equalize(x: F32, rng: np.random.Generator) -> F32:
    values = np.round(x * 255).astype(np.uint8)
    even = [cv2.equalizeHist(np.ascontiguousarray(values[..., k])) for k in range(3)]
    return np.stack(even, axis=2).astype(np.float32) / np.float32(255)


def _sharpen(x: F32, rng: np.random.Generator) -> F32:
    amount = float(rng.uniform(0.5, 2.0))
    return np.clip(x + amount * (x - cv2.GaussianBlur(x, (0, 0), 1.0)), 0, 1).astype(np.float32)


def _solarize(x: F32, rng: np.random.Generator) -> F32:
    return np.where(x < np.float32(rng.uniform(0.5, 1.0)), x, 1 - x).astype(np.float32)


def _exposure(x: F32, rng: np.random.Generator) -> F32:
    mean = x.mean()
    moved = (x - mean) * rng.uniform(0.6, 1.4) + mean + rng.uniform(-0.25, 0.25)
    return np.clip(moved, 0, 1).astype(np.float32)


def _shadow(x: F32, rng: np.random.Generator) -> F32:
    rows, columns = x.shape[:2]
    corners = rng.uniform(-0.1, 1.1, (4, 2)) * (columns, rows)
    inside = cv2.fillConvexPoly(
        np.zeros((rows, columns), np.uint8), cv2.convexHull(corners.astype(np.int32)), 1
    )
    return (x * np.where(inside[..., None] > 0, rng.uniform(0.3, 0.7), 1.0)).astype(np.float32)


_DISTORTIONS = {
    "posterize": _posterize,
    "equalize": _equalize,
    "sharpen": _sharpen,
    "solarize": _solarize,
    "exposure": _exposure,
    "shadow": _shadow,
}


def _distort(x: F32, cfg: ViewConfig, rng: np.random.Generator) -> F32:
    """One or more of the strong changes, in random order."""
    chances = {name: getattr(cfg, name) for name in _DISTORTIONS}
    chosen = [name for name, chance in chances.items() if rng.random() < chance]
    possible = [name for name, chance in chances.items() if chance > 0]
    if cfg.at_least_one and possible and not chosen:
        chosen = [possible[int(rng.integers(len(possible)))]]
    for k in rng.permutation(len(chosen)):
        x = _DISTORTIONS[chosen[k]](x, rng)
    return x
