# SPDX-License-Identifier: Apache-2.0
"""Augmentation: windows that move an image and its maps alike, and changes of colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node import config
from depth_node.geometry.camera import Camera
from training.data.samples import F32, U8, unit_range


@dataclass(frozen=True)
class Window:
    """Part of an image that is resized and perhaps mirrored, with its depth and its points.

    The rows top .. top + rows and the columns left .. left + columns of the image become an image
    of (height, width).
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
        """Return the window that shows all of an image of this shape."""
        return cls(0, 0, shape[0], shape[1], height, width)

    def image(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the window of an image (H, W, C).

        It is averaged over areas if neither side grows, otherwise interpolated linearly.
        """
        shrinks = self.rows >= self.height and self.columns >= self.width
        return self._cut(image, cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def unit_range(self, image: U8) -> F32:
        """Return the window of an image (H, W, 3) uint8, as float32 in 0..1."""
        return unit_range(self.image(image))

    def nearest(self, values: NDArray[Any], shape: tuple[int, ...] = ()) -> NDArray[Any]:
        """Return the window of a map (H, W) whose values must not be mixed: depth, labels, masks.

        shape: the shape of the image, if the map shows the whole image at another size (h, w).
        """
        if not shape or shape[:2] == values.shape[:2]:
            return self._cut(values, cv2.INTER_NEAREST_EXACT)
        rows = self._places(self.top, self.rows, self.height, shape[0], values.shape[0])
        columns = self._places(self.left, self.columns, self.width, shape[1], values.shape[1])
        return values[np.ix_(rows, columns[::-1] if self.flip else columns)]

    @staticmethod
    def _places(first: int, extent: int, count: int, of: int, stored: int) -> NDArray[np.int64]:
        """Return, for each of `count` rows, the stored row in which its centre lies."""
        centres = first + (np.arange(count) + 0.5) * (extent / count)
        return np.minimum((centres * (stored / of)).astype(np.int64), stored - 1)

    def _cut(self, values: NDArray[Any], interpolation: int) -> NDArray[Any]:
        cut = values[self.top : self.top + self.rows, self.left : self.left + self.columns]
        kind = values.dtype
        cut = cut.astype(np.uint8) if kind == np.bool_ else cut
        out = cv2.resize(cut, (self.width, self.height), interpolation=interpolation)
        return np.ascontiguousarray(out[:, ::-1] if self.flip else out).astype(kind, copy=False)

    def points(self, uv: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the coordinates (N, 2) in the window of image coordinates (N, 2), (column, row).

        They may lie outside the window. Pixel centres are at integers in both.
        """
        uv = np.asarray(uv, np.float64)
        u = (uv[:, 0] - self.left + 0.5) * self.width / self.columns - 0.5
        v = (uv[:, 1] - self.top + 0.5) * self.height / self.rows - 0.5
        return np.stack([self.width - 1 - u if self.flip else u, v], axis=1)

    def camera(self, camera: Camera) -> Camera:
        """Return the camera of the window, without distortion. Raises ValueError with a flip."""
        if self.flip:
            raise ValueError("a mirrored image has no camera: take the window without flip")
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
    """Settings of the augmentation; by default nothing changes. Presets: RENDERED, WEAK, STRONG."""

    smallest_crop: float = config.option(
        1.0, "Smallest scale of a crop, over the image's sides.", minimum=0.1, maximum=1
    )
    aspect: float = config.option(
        0.0, "Largest further fraction that a crop loses of one side.", minimum=0, maximum=0.5
    )
    flip: float = config.option(0.0, "Probability of a left-right flip.", minimum=0, maximum=1)
    colour: float = config.option(
        0.0, "Spread of gain per channel, contrast and saturation.", minimum=0, maximum=1
    )
    gamma: float = config.option(0.0, "Spread of the logarithm of gamma.", minimum=0, maximum=2)
    blur: float = config.option(0.0, "Probability of a blur of up to 1 px.", minimum=0, maximum=1)
    noise: float = config.option(
        0.0, "Greatest sigma of pixel noise (image in 0..1).", minimum=0, maximum=1
    )
    grey: float = config.option(0.0, "Probability of a grey image.", minimum=0, maximum=1)
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


# For rendered rooms, whose images lack the imperfections of a camera.
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
# Self-training (WeSTAR): the views of teacher (weak) and student (strong); the strong view moves no
# pixel. The kinds of its changes are WeSAM's, the probabilities are ours.
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
    """Return a random crop of an image of this shape, resized to (height, width)."""
    scale = rng.uniform(cfg.smallest_crop, 1.0)
    rows = max(int(shape[0] * scale * rng.uniform(1 - cfg.aspect, 1.0)), min(8, shape[0]))
    columns = max(int(shape[1] * scale * rng.uniform(1 - cfg.aspect, 1.0)), min(8, shape[1]))
    top = int(rng.integers(0, shape[0] - rows + 1))
    left = int(rng.integers(0, shape[1] - columns + 1))
    return Window(top, left, rows, columns, height, width, bool(rng.random() < cfg.flip))


def augment(
    image: U8, depth: F32, height: int, width: int, cfg: ViewConfig, rng: np.random.Generator
) -> tuple[F32, F32]:
    """Return one augmented training pair of an image (H, W, 3) and its depth (H, W) m.

    The image becomes (height, width, 3) float32 in 0..1, the depth (height, width) float32 m by
    nearest neighbour.
    """
    # The aspect ratio varies as well: a network's input is a stretched image, whatever the aspect
    # ratio of the camera is.
    window = random_window(depth.shape, height, width, cfg, rng)
    x = recolour(window.unit_range(image), cfg, rng)
    return x, window.nearest(depth).astype(np.float32, copy=False)


def recolour(x: F32, cfg: ViewConfig, rng: np.random.Generator) -> F32:
    """Change the colours of an image (H, W, 3) float32 in 0..1, as another light or camera would.

    No pixel moves.
    """
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
    return unit_range(np.stack(even, axis=2))


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
    """Apply the strong changes that are drawn by their probabilities, in random order."""
    chances = {name: getattr(cfg, name) for name in _DISTORTIONS}
    chosen = [name for name, chance in chances.items() if rng.random() < chance]
    possible = [name for name, chance in chances.items() if chance > 0]
    if cfg.at_least_one and possible and not chosen:
        chosen = [possible[int(rng.integers(len(possible)))]]
    for k in rng.permutation(len(chosen)):
        x = _DISTORTIONS[chosen[k]](x, rng)
    return x
