# SPDX-License-Identifier: Apache-2.0
"""Procedural textures of rendered scenes: seamless scalar tiles with mip levels.

A tile has 256 x 256 values in 0..1, which a material maps to colours. There are TEXTURE_SETS sets
of all tiles; a set is generated from its number at its first use.
"""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

TEXTURE_SIZE_PX = 256
TEXTURE_LEVELS = 7
TEXTURE_SETS = 48
TEXTURE_NAMES = (
    "plain", "checker", "stripes", "planks", "tiles", "bricks", "noise", "fbm",
    "marble", "grain", "dots", "print", "spines", "weave", "blotches", "speckle",
)  # fmt: skip


def _periodic_noise(rng: np.random.Generator, cells_x: int, cells_y: int) -> F32:
    """Return seamless smooth value noise in 0..1, (256, 256)."""
    lattice = rng.random((cells_y, cells_x), dtype=np.float32)
    lattice = np.pad(lattice, 2, mode="wrap")
    size = TEXTURE_SIZE_PX
    step_y, step_x = size // cells_y, size // cells_x
    big = cv2.resize(
        lattice,
        (lattice.shape[1] * step_x, lattice.shape[0] * step_y),
        interpolation=cv2.INTER_CUBIC,
    )
    return np.clip(big[2 * step_y : 2 * step_y + size, 2 * step_x : 2 * step_x + size], 0.0, 1.0)


def _fbm(rng: np.random.Generator, cells: int, octaves: int = 4, stretch: int = 1) -> F32:
    total = np.zeros((TEXTURE_SIZE_PX, TEXTURE_SIZE_PX), np.float32)
    amplitude, weight = 0.5, 0.0
    for _ in range(octaves):
        total += amplitude * _periodic_noise(rng, cells, max(cells // stretch, 1))
        weight += amplitude
        amplitude *= 0.55
        cells = min(cells * 2, TEXTURE_SIZE_PX // 2)
    total /= weight
    low, high = np.percentile(total, [2, 98])
    return np.clip((total - low) / (high - low + 1e-6), 0, 1).astype(np.float32)


def make_texture(name: str, rng: np.random.Generator) -> F32:
    """Return a tile (256, 256) float32 in 0..1. Raises ValueError for an unknown name."""
    size = TEXTURE_SIZE_PX
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    fine = _fbm(rng, 16, 3)
    if name == "plain":
        return 0.45 + 0.1 * fine
    if name == "checker":
        n = int(rng.choice([2, 4, 8]))
        return np.clip(((np.floor(x * n) + np.floor(y * n)) % 2) * 0.8 + 0.2 * fine, 0, 1)
    if name == "stripes":
        n = int(rng.choice([2, 4, 8, 16]))
        return (
            np.clip((np.sin(2 * np.pi * n * x) * rng.uniform(1, 4) * 0.5 + 0.5), 0, 1) * 0.85
            + 0.15 * fine
        )
    if name == "planks":
        rows = int(rng.choice([4, 8]))
        row = np.floor(y * rows).astype(int)
        offset = rng.random(rows).astype(np.float32)[row]
        tone = rng.random((rows, 2)).astype(np.float32)
        column = ((x + offset) % 1.0 * 2).astype(int)
        gap = (y * rows % 1.0 < 0.05) | ((x + offset) % 0.5 < 0.006)
        wood = 0.35 + 0.35 * tone[row, column] + 0.3 * (_fbm(rng, 4, 5, stretch=1) - 0.5)
        grain = _periodic_noise(rng, 4, 128)
        return np.where(gap, 0.02, np.clip(wood + 0.18 * (grain - 0.5), 0.08, 1)).astype(np.float32)
    if name in ("tiles", "bricks"):
        n = int(rng.choice([2, 4, 8]))
        shift = np.where(np.floor(y * n) % 2 > 0, 0.5, 0.0) if name == "bricks" else 0.0
        wide = n if name == "tiles" else n // 2
        u, v = x * wide + shift, y * n
        tone = rng.random((n, wide)).astype(np.float32)[v.astype(int) % n, u.astype(int) % wide]
        line = rng.uniform(0.03, 0.1)
        gap = (u % 1.0 < line * (0.5 if name == "bricks" else 1)) | (v % 1.0 < line)
        return np.where(gap, rng.choice([0.0, 1.0]), 0.4 + 0.25 * tone + 0.15 * fine).astype(
            np.float32
        )
    if name == "noise":
        return _fbm(rng, int(rng.choice([8, 16, 32])), 3)
    if name == "fbm":
        return _fbm(rng, int(rng.choice([2, 4])), 6)
    if name == "marble":
        return (0.5 + 0.5 * np.sin(2 * np.pi * (2 * x + y * 0 + 1.5 * _fbm(rng, 2, 5)))).astype(
            np.float32
        )
    if name == "grain":
        return np.clip(0.7 * _periodic_noise(rng, 2, 64) + 0.3 * _periodic_noise(rng, 4, 128), 0, 1)
    if name == "dots":
        n = int(rng.choice([4, 8, 16]))
        radius = np.hypot(x * n % 1 - 0.5, y * n % 1 - 0.5)
        return np.clip((0.32 - radius) * 20, 0, 1) * 0.9 + 0.1 * fine
    if name == "print":  # a label or a poster: blocks of colour and lines of text
        out = 0.6 + 0.2 * _fbm(rng, 2, 2)
        for _ in range(8):
            r, c = rng.integers(0, size - 40, 2)
            h, w = rng.integers(12, 110, 2)
            out[r : r + h, c : c + w] = rng.random()
        for _ in range(int(rng.integers(4, 14))):
            r, c = int(rng.integers(0, size - 8)), int(rng.integers(0, size // 2))
            w = int(rng.integers(30, size // 2))
            out[r : r + 4, c : c + w] = np.where(rng.random(w) < 0.75, 0.02, 0.9)
        return out.astype(np.float32)
    if name == "spines":  # books side by side
        edges = np.sort(
            rng.choice(np.arange(8, size - 4, 6), int(rng.integers(9, 18)), replace=False)
        )
        index = np.searchsorted(edges, np.arange(size))
        tone = rng.random(len(edges) + 1).astype(np.float32)[index]
        band = rng.random((len(edges) + 1, 6)) < 0.2
        shade = np.where(band[index].T[(y[:, 0] * 6).astype(int)], 0.9, tone[None, :])
        shade[:, np.isin(np.arange(size), edges)] = 0.0
        return shade.astype(np.float32)
    if name == "weave":
        n = 32
        return (0.5 + 0.25 * np.sin(2 * np.pi * n * x) + 0.25 * np.sin(2 * np.pi * n * y)).astype(
            np.float32
        )
    if name == "blotches":
        return np.clip((_fbm(rng, 8, 2) - 0.5) * 8 + 0.5, 0, 1)
    if name == "speckle":
        return np.clip(0.5 + 0.25 * rng.standard_normal((size, size)), 0, 1).astype(np.float32)
    raise ValueError(f"No texture is called {name!r}; known are {', '.join(TEXTURE_NAMES)}.")


@functools.lru_cache(maxsize=TEXTURE_SETS)
def texture_set(index: int) -> NDArray[np.uint8]:
    """Return all textures of a set with mip levels, (n,): texture by texture, level by level."""
    rng = np.random.default_rng([index, 7919])
    parts = []
    for name in TEXTURE_NAMES:
        level: NDArray[Any] = make_texture(name, rng)
        for _ in range(TEXTURE_LEVELS):
            parts.append(np.clip(level * 255 + 0.5, 0, 255).astype(np.uint8).ravel())
            level = cv2.resize(level, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.concatenate(parts)


_LEVEL_SIZE = np.array([TEXTURE_SIZE_PX >> k for k in range(TEXTURE_LEVELS)], np.int32)
_LEVEL_START = np.concatenate([[0], np.cumsum(_LEVEL_SIZE**2)[:-1]]).astype(np.int32)
_TEXTURE_STRIDE = int(np.sum(_LEVEL_SIZE.astype(np.int64) ** 2))


def look_up(bank: NDArray[np.uint8], texture: I32, u: F32, v: F32, texels_per_px: F32) -> F32:
    """Return bilinear values (n,) in 0..1 at (u, v), (n,) in tiles, from the mip level whose texel
    is about a pixel.

    bank: of texture_set. texture: (n,) indices of TEXTURE_NAMES. texels_per_px: (n,) at level 0.
    """
    level = np.clip(np.log2(np.maximum(texels_per_px, 1e-6)) + 0.5, 0, TEXTURE_LEVELS - 1).astype(
        np.int32
    )
    size = _LEVEL_SIZE[level]
    start = texture * _TEXTURE_STRIDE + _LEVEL_START[level]
    x, y = u * size - 0.5, v * size - 0.5
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    mask = size - 1  # sizes are powers of two
    xi, yi = x0.astype(np.int32), y0.astype(np.int32)
    left, right = xi & mask, (xi + 1) & mask
    top, bottom = start + (yi & mask) * size, start + ((yi + 1) & mask) * size
    upper = bank[top + left] * (1 - fx) + bank[top + right] * fx
    lower = bank[bottom + left] * (1 - fx) + bank[bottom + right] * fx
    return ((upper * (1 - fy) + lower * fy) * np.float32(1 / 255)).astype(np.float32)
