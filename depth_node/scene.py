# SPDX-License-Identifier: Apache-2.0
"""Procedural rooms, ray-cast with exact depth, region labels and LiDAR: for demo, tests and training data.

A scene is a room (a box seen from inside) filled with boxes, elliptic cylinders and ellipsoids: floor, tables, chairs,
shelves, cabinets, totes and the things that stand on them. Every primitive is a unit shape under an affine map, so a
ray keeps its parameter t in the primitive's own frame, and with rays scaled to z = 1 that parameter IS the depth along
the optical axis: depth is exact up to float32.

Only numpy is needed. A view costs one pass per primitive over the image rectangle that the primitive can cover, so
small things are cheap. Textures are filtered (mip levels), lamps throw soft shadows (one depth cube per lamp, computed
once per scene), corners of the room are darker: the pictorial cues that a monocular network lives on.

Frames: world and LiDAR x forward, y left, z up; camera optical frame x right, y down, z forward. Lengths in metres.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.projection import Camera

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

STYLES = ("room", "desk", "bin", "shelf")
BOX, CYLINDER, ELLIPSOID = 0, 1, 2
ROOM_FACES = 6  # labels 1..6 are the room's faces -x +x -y +y floor ceiling; part p >= 1 has label 6 + p
SHADOW_SIZE_PX = 96
NEAREST_HIT_M = 1e-3


@dataclass(frozen=True)
class Rendered:
    """What a camera sees: image (H, W, 3) uint8 RGB, depth (H, W) float32 m, labels (H, W) int32 (1..K, stable over views)."""

    image: NDArray[np.uint8]
    depth: F32
    labels: I32


@dataclass(frozen=True)
class LidarPattern:
    """A spinning LiDAR: `beams` elevations times `azimuth_steps`, range noise as one sigma in metres."""

    beams: int = 16
    azimuth_steps: int = 900
    vertical_fov_deg: tuple[float, float] = (-25.0, 15.0)
    horizontal_fov_deg: tuple[float, float] = (-180.0, 180.0)
    range_noise_m: float = 0.0
    min_range_m: float = 0.1
    max_range_m: float = 40.0

    def directions(self) -> F32:
        """Unit ray directions (beams * azimuth_steps, 3) in the LiDAR frame, one ring after the other."""
        elevation = np.deg2rad(np.linspace(*self.vertical_fov_deg, self.beams))[:, None]
        low, high = self.horizontal_fov_deg
        azimuth = np.deg2rad(low + (high - low) * (np.arange(self.azimuth_steps) + 0.5) / self.azimuth_steps)
        rays = np.stack(
            np.broadcast_arrays(
                np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
            ),
            axis=-1,
        )
        return rays.reshape(-1, 3).astype(np.float32)


@dataclass(frozen=True)
class Material:
    """A filtered scalar texture mapped through three colours (linear RGB, 0..1); `tile_m` metres per repeat."""

    texture: int
    tile_m: float
    palette: tuple[tuple[float, float, float], ...]
    gloss: float = 0.0
    emission: float = 0.0


@dataclass(frozen=True)
class Lamp:
    """A point light: position (3,) m in the world, colour (3,) linear RGB intensity at 1 m."""

    position: F64
    colour: F64


# ---------------------------------------------------------------- textures

TEXTURE_SIZE_PX = 256
TEXTURE_LEVELS = 7
TEXTURE_SETS = 48
TEXTURE_NAMES = (
    "plain", "checker", "stripes", "planks", "tiles", "bricks", "noise", "fbm", "marble", "grain", "dots", "print",
    "spines", "weave", "blotches", "speckle",
)  # fmt: skip


def _periodic_noise(rng: np.random.Generator, cells_x: int, cells_y: int) -> F32:
    """Smooth value noise in 0..1 on the texture raster that repeats without a seam."""
    lattice = rng.random((cells_y, cells_x), dtype=np.float32)
    lattice = np.pad(lattice, 2, mode="wrap")
    size = TEXTURE_SIZE_PX
    step_y, step_x = size // cells_y, size // cells_x
    big = cv2.resize(
        lattice, (lattice.shape[1] * step_x, lattice.shape[0] * step_y), interpolation=cv2.INTER_CUBIC
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


def _texture(name: str, rng: np.random.Generator) -> F32:
    """One tile (256, 256) float32 in 0..1 that repeats without a seam."""
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
        return np.clip((np.sin(2 * np.pi * n * x) * rng.uniform(1, 4) * 0.5 + 0.5), 0, 1) * 0.85 + 0.15 * fine
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
        return np.where(gap, rng.choice([0.0, 1.0]), 0.4 + 0.25 * tone + 0.15 * fine).astype(np.float32)
    if name == "noise":
        return _fbm(rng, int(rng.choice([8, 16, 32])), 3)
    if name == "fbm":
        return _fbm(rng, int(rng.choice([2, 4])), 6)
    if name == "marble":
        return (0.5 + 0.5 * np.sin(2 * np.pi * (2 * x + y * 0 + 1.5 * _fbm(rng, 2, 5)))).astype(np.float32)
    if name == "grain":
        return np.clip(0.7 * _periodic_noise(rng, 2, 64) + 0.3 * _periodic_noise(rng, 4, 128), 0, 1)
    if name == "dots":
        n = int(rng.choice([4, 8, 16]))
        radius = np.hypot(x * n % 1 - 0.5, y * n % 1 - 0.5)
        return np.clip((0.32 - radius) * 20, 0, 1) * 0.9 + 0.1 * fine
    if name == "print":  # a label or a poster: blocks of colour and lines like text
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
        edges = np.sort(rng.choice(np.arange(8, size - 4, 6), int(rng.integers(9, 18)), replace=False))
        index = np.searchsorted(edges, np.arange(size))
        tone = rng.random(len(edges) + 1).astype(np.float32)[index]
        band = rng.random((len(edges) + 1, 6)) < 0.2
        shade = np.where(band[index].T[(y[:, 0] * 6).astype(int)], 0.9, tone[None, :])
        shade[:, np.isin(np.arange(size), edges)] = 0.0
        return shade.astype(np.float32)
    if name == "weave":
        n = 32
        return (0.5 + 0.25 * np.sin(2 * np.pi * n * x) + 0.25 * np.sin(2 * np.pi * n * y)).astype(np.float32)
    if name == "blotches":
        return np.clip((_fbm(rng, 8, 2) - 0.5) * 8 + 0.5, 0, 1)
    if name == "speckle":
        return np.clip(0.5 + 0.25 * rng.standard_normal((size, size)), 0, 1).astype(np.float32)
    raise ValueError(f"No texture is called {name!r}; known are {', '.join(TEXTURE_NAMES)}.")


@functools.lru_cache(maxsize=TEXTURE_SETS)
def _texture_set(index: int) -> NDArray[np.uint8]:
    """All textures of one set with their mip levels, flat: texture after texture, level after level."""
    rng = np.random.default_rng([index, 7919])
    parts = []
    for name in TEXTURE_NAMES:
        level = _texture(name, rng).astype(np.float32)
        for _ in range(TEXTURE_LEVELS):
            parts.append(np.clip(level * 255 + 0.5, 0, 255).astype(np.uint8).ravel())
            level = cv2.resize(level, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.concatenate(parts)


_LEVEL_SIZE = np.array([TEXTURE_SIZE_PX >> k for k in range(TEXTURE_LEVELS)], np.int32)
_LEVEL_START = np.concatenate([[0], np.cumsum(_LEVEL_SIZE**2)[:-1]]).astype(np.int32)
_TEXTURE_STRIDE = int(np.sum(_LEVEL_SIZE.astype(np.int64) ** 2))


def _look_up(bank: NDArray[np.uint8], texture: I32, u: F32, v: F32, texels_per_px: F32) -> F32:
    """Bilinear texture value 0..1 at (u, v) in tiles, from the mip level whose texel is nearest to a pixel."""
    level = np.clip(np.log2(np.maximum(texels_per_px, 1e-6)) + 0.5, 0, TEXTURE_LEVELS - 1).astype(np.int32)
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


# ---------------------------------------------------------------- intersection


def _entry(kind: int, origin: F32, d: F32) -> F32:
    """Entry parameter of rays origin (3,) + t d (3, n), in the frame of a unit shape; +inf where the shape is missed.

    Each shape is convex: the ray is inside between the largest entry and the smallest exit of its slabs or quadric.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if kind == ELLIPSOID:
            near, far = _quadric(origin, d, 3)
        else:
            first = 2 if kind == CYLINDER else 0
            near = far = None
            for axis in range(first, 3):
                inverse = 1.0 / d[axis]
                middle = -origin[axis] * inverse
                half = np.abs(inverse)
                near = middle - half if near is None else np.maximum(near, middle - half)
                far = middle + half if far is None else np.minimum(far, middle + half)
            if kind == CYLINDER:
                side_near, side_far = _quadric(origin, d, 2)
                near, far = np.maximum(near, side_near), np.minimum(far, side_far)
        hit = (near <= far) & (near > NEAREST_HIT_M)
        return np.where(hit, near, np.float32(np.inf))


def _quadric(origin: F32, d: F32, axes: int) -> tuple[F32, F32]:
    """Entry and exit at the unit sphere (axes = 3) or the unit cylinder around z (axes = 2)."""
    square, along = d[0] * d[0], origin[0] * d[0]
    for axis in range(1, axes):
        square = square + d[axis] * d[axis]
        along = along + origin[axis] * d[axis]
    closest = -along / square
    # The distance of the closest approach is small where it matters: no cancellation, unlike b^2 - a c.
    room = 1.0 - sum((origin[axis] + closest * d[axis]) ** 2 for axis in range(axes))
    half = np.sqrt(np.maximum(room, 0.0) / square)
    half = np.where(room > 0, half, np.float32(np.nan))
    return closest - half, closest + half


# ---------------------------------------------------------------- the scene


class Scene:
    """A furnished room. Make one with `Scene.random(seed)`; everything follows from the seed.

    `focus` is the point that close-up styles look at and `style` one of STYLES.
    """

    def __init__(
        self,
        room_half: F64,
        room_materials: list[Material],
        parts: list[Part],
        lamps: list[Lamp],
        ambient: F64,
        texture_set: int = 0,
        style: str = "room",
        focus: F64 | None = None,
    ) -> None:
        if len(room_materials) != ROOM_FACES:
            raise ValueError(f"A room has {ROOM_FACES} faces; {len(room_materials)} materials were given.")
        self.style = style
        self.room_half = np.asarray(room_half, np.float64)
        self.focus = np.array([0.0, 0.0, 0.8]) if focus is None else np.asarray(focus, np.float64)
        self.parts = parts
        self.lamps = lamps
        self._texture_set = texture_set
        room_centre = np.array([0.0, 0.0, self.room_half[2]])
        # Row 0 is the room itself, so that a pixel's part index addresses every table.
        self._kind = np.array([BOX] + [p.kind for p in parts])
        self._centre = np.stack([room_centre] + [p.centre for p in parts])
        self._axes = np.stack([np.eye(3)] + [p.axes for p in parts])
        self._half = np.stack([self.room_half] + [p.half for p in parts])
        self._to_local = np.swapaxes(self._axes, 1, 2) / self._half[:, :, None]
        materials = room_materials + [p.material for p in parts]
        self._texture = np.array([m.texture for m in materials], np.int32)
        self._tile = np.array([m.tile_m for m in materials], np.float32)
        self._palette = np.array([m.palette for m in materials], np.float32).reshape(len(materials) * 3, 3)
        self._gloss = np.array([m.gloss for m in materials], np.float32)
        self._emission = np.array([m.emission for m in materials], np.float32)
        self._ambient = np.asarray(ambient, np.float32)
        self._shadow: list[F32] | None = None

    @classmethod
    def random(cls, seed: int | np.random.Generator, style: str = "room") -> Scene:
        """A random furnished room; style one of STYLES, or "mixed" to draw one."""
        if style != "mixed" and style not in STYLES:
            raise ValueError(f"No scene style is called {style!r}; choose mixed or one of {', '.join(STYLES)}.")
        rng = np.random.default_rng(seed)
        drawn = str(rng.choice(STYLES, p=[0.55, 0.2, 0.12, 0.13]))
        return _Builder(rng, drawn if style == "mixed" else style).build()

    @property
    def label_count(self) -> int:
        """K: labels are 1..K, whether or not a view sees them."""
        return ROOM_FACES + len(self.parts)

    def contains(self, points: F64, margin_m: float = 0.0) -> NDArray[np.bool_]:
        """Which world points (N, 3) are free: inside the room and in no part, with a margin."""
        points = np.atleast_2d(points)
        offset = np.abs(np.einsum("pij,npj->npi", np.swapaxes(self._axes, 1, 2), points[:, None] - self._centre))
        in_room = (offset[:, 0] <= self._half[0] - margin_m).all(1)
        in_part = (offset[:, 1:] <= self._half[1:] + margin_m).all(2).any(1)
        return in_room & ~in_part

    def render(self, camera: Camera, T_world_camera: F64) -> Rendered:  # noqa: N803 - the frame convention
        """Picture, depth and labels from a camera pose (4, 4); the camera must be inside the room."""
        rotation = np.asarray(T_world_camera, np.float64)[:3, :3]
        origin = np.asarray(T_world_camera, np.float64)[:3, 3]
        rays = np.ascontiguousarray(np.moveaxis(camera.rays(), -1, 0)).astype(np.float32)
        depth, part = self._cast_view(origin, rotation, rays, camera)
        world = (rotation.astype(np.float32) @ rays.reshape(3, -1)).reshape(rays.shape)
        image, labels = self._shade(origin, world, depth, part, 1.0 / camera.fx)
        return Rendered(image, depth, labels)

    def probe(self, camera: Camera, T_world_camera: F64) -> tuple[F32, I32]:  # noqa: N803
        """Depth (H, W) float32 m and part (H, W) int32 (0 the room) without the picture: several times cheaper."""
        pose = np.asarray(T_world_camera, np.float64)
        rays = np.ascontiguousarray(np.moveaxis(camera.rays(), -1, 0)).astype(np.float32)
        return self._cast_view(pose[:3, 3], pose[:3, :3], rays, camera)

    def lidar(self, T_world_lidar: F64, pattern: LidarPattern = LidarPattern(), seed: int = 0) -> F32:  # noqa: N803,B008
        """Points (N, 3) float32 in the LiDAR frame; N is at most beams * azimuth_steps (out of range is dropped)."""
        pose = np.asarray(T_world_lidar, np.float64)
        directions = pattern.directions()
        ranges = self.ranges(pose[:3, 3], (pose[:3, :3].astype(np.float32) @ directions.T))
        if pattern.range_noise_m > 0:
            noise = np.random.default_rng(seed).standard_normal(len(ranges), dtype=np.float32)
            ranges = ranges + np.float32(pattern.range_noise_m) * noise
        keep = (ranges >= pattern.min_range_m) & (ranges <= pattern.max_range_m)
        return directions[keep] * ranges[keep, None]

    def ranges(self, origin: F64, directions: F32) -> F32:
        """First hit (n,) float32 along any world rays origin (3,) + t directions (3, n)."""
        nearest = self._room_exit(origin, directions)
        for index in range(1, len(self._kind)):
            local = self._to_local[index]
            t = _entry(
                int(self._kind[index]),
                (local @ (origin - self._centre[index])).astype(np.float32),
                local.astype(np.float32) @ directions,
            )
            np.minimum(nearest, t, out=nearest)
        return nearest

    # ------------------------------------------------------------ casting

    def _room_exit(self, origin: F64, directions: F32) -> F32:
        local_origin = (self._to_local[0] @ (origin - self._centre[0])).astype(np.float32)
        local = self._to_local[0].astype(np.float32) @ directions
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = 1.0 / local
            leave = np.abs(inverse) - local_origin[:, None] * inverse
        return np.nanmin(leave, axis=0).astype(np.float32)

    def _rectangles(self, origin: F64, rotation: F64, camera: Camera) -> I32:
        """Rows r0:r1 and columns c0:c1 (P + 1, 4) that a part can cover; empty when it is not in view."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
        corners = self._centre[:, None] + np.einsum("pij,pkj->pki", self._axes, signs[None] * self._half[:, None])
        seen = (corners - origin) @ rotation
        z = seen[..., 2]
        whole = np.array([0, camera.height, 0, camera.width])
        if camera.model != "pinhole":
            return np.where((z > 0).any(1)[:, None], whole, 0).astype(np.int32)
        safe = np.maximum(z, 1e-3)
        u = camera.fx * seen[..., 0] / safe + camera.cx
        v = camera.fy * seen[..., 1] / safe + camera.cy
        box = np.stack([np.floor(v.min(1)), np.ceil(v.max(1)) + 1, np.floor(u.min(1)), np.ceil(u.max(1)) + 1], axis=1)
        box = np.clip(box, 0, [camera.height, camera.height, camera.width, camera.width])
        box = np.where((z > 1e-3).all(1)[:, None], box, whole)  # a corner behind the camera bounds nothing
        box[(z <= 0).all(1)] = 0
        return box.astype(np.int32)

    def _cast_view(self, origin: F64, rotation: F64, rays: F32, camera: Camera) -> tuple[F32, I32]:
        """Depth (H, W) and part index (H, W), 0 the room, for rays (3, H, W) with z = 1 in the camera."""
        _, height, width = rays.shape
        flat = rays.reshape(3, -1)
        depth = self._room_exit(origin, rotation.astype(np.float32) @ flat).reshape(height, width)
        part = np.zeros((height, width), np.int32)
        to_camera = (self._to_local @ rotation).astype(np.float32)
        local_origin = np.einsum("pij,pj->pi", self._to_local, origin - self._centre).astype(np.float32)
        boxes = self._rectangles(origin, rotation, camera)
        for index in range(1, len(self._kind)):
            r0, r1, c0, c1 = boxes[index]
            if r1 <= r0 or c1 <= c0:
                continue
            d = to_camera[index] @ rays[:, r0:r1, c0:c1].reshape(3, -1)
            t = _entry(int(self._kind[index]), local_origin[index], d).reshape(r1 - r0, c1 - c0)
            window = depth[r0:r1, c0:c1]
            nearer = t < window
            np.copyto(window, t, where=nearer)
            part[r0:r1, c0:c1][nearer] = index
        return depth, part

    # ------------------------------------------------------------ shading

    def _shade(
        self, origin: F64, world_rays: F32, depth: F32, part: I32, radians_per_px: float
    ) -> tuple[NDArray[np.uint8], I32]:
        height, width = depth.shape
        index = part.ravel()
        t = depth.ravel()
        rays = world_rays.reshape(3, -1)
        point = [rays[k] * t + np.float32(origin[k]) for k in range(3)]
        local, scaled = self._local(index, point)
        normal, surface, u, v = self._surface(index, local, scaled)
        view_cos = np.abs(sum(normal[k] * rays[k] for k in range(3))) / np.sqrt(sum(rays[k] ** 2 for k in range(3)))
        footprint = t * np.float32(radians_per_px) / np.maximum(view_cos, 0.25)
        tile = self._tile[surface]
        value = _look_up(
            _texture_set(self._texture_set),
            self._texture[surface],
            u / tile,
            v / tile,
            footprint * (TEXTURE_SIZE_PX / tile),
        )
        position = np.minimum(value * 2, np.float32(1.9999))
        low = position.astype(np.int32)
        mix = (position - low)[:, None]
        row = surface * 3 + low
        albedo = self._palette[row] * (1 - mix) + self._palette[row + 1] * mix
        light, shine = self._light(point, normal, rays, surface)
        glow = self._emission[surface][:, None]
        colour = albedo * (light + glow) + shine
        picture = 1.0 - np.exp(-np.maximum(colour, 0.0))
        np.power(picture, np.float32(1 / 2.2), out=picture)
        image = (picture * 255 + 0.5).astype(np.uint8).reshape(height, width, 3)
        return image, (surface + 1).reshape(height, width)

    def _local(self, index: I32, point: list[F32]) -> tuple[list[F32], list[F32]]:
        """Coordinates of world points in their part: unit (box faces at +-1) and metric."""
        table = np.concatenate(
            [np.swapaxes(self._axes, 1, 2).reshape(-1, 9), self._centre, self._half], axis=1
        ).astype(np.float32)
        rows = table[index].T
        delta = [point[k] - rows[9 + k] for k in range(3)]
        metric = [sum(rows[3 * i + k] * delta[k] for k in range(3)) for i in range(3)]
        return [metric[i] / rows[12 + i] for i in range(3)], metric

    def _surface(
        self, index: I32, local: list[F32], metric: list[F32]
    ) -> tuple[list[F32], I32, F32, F32]:
        """Unit normal, surface (label - 1) and texture coordinates in metres of every hit."""
        kind = self._kind.astype(np.int32)[index]
        ax, ay, az = (np.abs(c) for c in local)
        is_x = (ax >= ay) & (ax >= az)
        is_y = ~is_x & (ay >= az)
        is_z = ~is_x & ~is_y
        radial = np.sqrt(local[0] ** 2 + local[1] ** 2)
        is_cap = (kind == CYLINDER) & (az >= radial)
        is_side = (kind == CYLINDER) & ~is_cap
        is_round = kind == ELLIPSOID
        sign = [np.sign(c) for c in local]
        half = self._half.astype(np.float32)[index].T
        inward = np.where(index == 0, np.float32(-1), np.float32(1))
        own = [
            np.where(is_round | is_side, local[k] / half[k], np.where(flag & ~is_cap, sign[k] * inward, np.float32(0)))
            for k, flag in enumerate((is_x, is_y))
        ]
        own.append(
            np.where(
                is_round,
                local[2] / half[2],
                np.where(is_side, np.float32(0), np.where(is_z | is_cap, sign[2] * inward, np.float32(0))),
            )
        )
        own[0] = np.where(is_cap, np.float32(0), own[0])
        own[1] = np.where(is_cap, np.float32(0), own[1])
        length = np.sqrt(own[0] ** 2 + own[1] ** 2 + own[2] ** 2) + np.float32(1e-9)
        axes = self._axes.astype(np.float32).reshape(-1, 9)[index].T
        normal = [sum(axes[3 * k + i] * own[i] for i in range(3)) / length for k in range(3)]
        around = np.arctan2(local[1], local[0]) * half[0]
        u = np.where(is_round | is_side, around, np.where(is_x & ~is_cap, metric[1], metric[0]))
        v = np.where(is_round | is_side, metric[2], np.where(is_z | is_cap, metric[1], metric[2]))
        face = np.where(is_x, 0, np.where(is_y, 2, 4)) + (
            np.where(is_x, sign[0], np.where(is_y, sign[1], sign[2])) > 0
        )
        surface = np.where(index == 0, face, ROOM_FACES - 1 + index).astype(np.int32)
        return normal, surface, u.astype(np.float32), v.astype(np.float32)

    def _light(self, point: list[F32], normal: list[F32], rays: F32, surface: I32) -> tuple[F32, F32]:
        """Diffuse irradiance (n, 3) and specular radiance (n, 3)."""
        crease = np.ones_like(point[0])
        for axis in range(3):
            offset = self.room_half[axis] - np.abs(point[axis] - np.float32(self._centre[0, axis]))
            own_face = np.abs(normal[axis])
            crease *= 1.0 - 0.5 * (1.0 - own_face) * np.exp(-np.maximum(offset, 0) * np.float32(1 / 0.22))
        sky = np.float32(0.75) + np.float32(0.25) * normal[2]
        light = (crease * sky)[:, None] * self._ambient
        shine = np.zeros_like(light)
        length = np.sqrt(rays[0] ** 2 + rays[1] ** 2 + rays[2] ** 2)
        gloss = self._gloss[surface]
        for lamp, cube in zip(self.lamps, self._shadow_cubes(), strict=True):
            to = [np.float32(lamp.position[k]) - point[k] for k in range(3)]
            square = to[0] ** 2 + to[1] ** 2 + to[2] ** 2
            distance = np.sqrt(square) + np.float32(1e-6)
            cosine = sum(normal[k] * to[k] for k in range(3)) / distance
            lit = np.maximum(cosine, 0) * self._visible(lamp, cube, point, normal, distance)
            light += (lit * crease / (np.float32(0.3) + square))[:, None] * lamp.colour.astype(np.float32)
            half = [to[k] / distance - rays[k] / length for k in range(3)]
            size = np.sqrt(half[0] ** 2 + half[1] ** 2 + half[2] ** 2) + np.float32(1e-6)
            peak = np.clip(sum(normal[k] * half[k] for k in range(3)) / size, 0, 1) ** 40
            shine += (gloss * peak * (lit > 0) / (np.float32(0.3) + square))[:, None] * lamp.colour.astype(np.float32)
        return light, shine

    def _shadow_cubes(self) -> list[F32]:
        """Depth from each lamp through the six faces of a cube (6, S, S); cast once, as lamps and parts stand still."""
        if self._shadow is None:
            self._shadow = []
            half = SHADOW_SIZE_PX / 2.0
            face = Camera(SHADOW_SIZE_PX, SHADOW_SIZE_PX, half, half, half - 0.5, half - 0.5)
            rays = np.ascontiguousarray(np.moveaxis(face.rays(), -1, 0)).astype(np.float32)
            for lamp in self.lamps:
                views = [self._cast_view(lamp.position, r, rays, face)[0] for r in _CUBE_ROTATIONS]
                self._shadow.append(np.stack(views))
        return self._shadow

    def _visible(self, lamp: Lamp, cube: F32, point: list[F32], normal: list[F32], distance: F32) -> F32:
        """Share 0..1 of a lamp's light that arrives: bilinear share of nearer cube texels (soft edge one texel wide)."""
        texel = distance * np.float32(2.0 / SHADOW_SIZE_PX)
        push = np.float32(0.01) + np.float32(1.2) * texel
        away = [point[k] + normal[k] * push - np.float32(lamp.position[k]) for k in range(3)]
        ax, ay, az = (np.abs(c) for c in away)
        is_x = (ax >= ay) & (ax >= az)
        is_y = ~is_x & (ay >= az)
        major = np.where(is_x, away[0], np.where(is_y, away[1], away[2]))
        depth = np.abs(major) + np.float32(1e-6)
        face = np.where(is_x, 0, np.where(is_y, 2, 4)) + (major < 0)
        rotation = _CUBE_ROTATIONS.astype(np.float32)
        right, down = rotation[:, :, 0][face].T, rotation[:, :, 1][face].T
        half = np.float32(SHADOW_SIZE_PX / 2)
        x = sum(right[k] * away[k] for k in range(3)) / depth * half + half - np.float32(0.5)
        y = sum(down[k] * away[k] for k in range(3)) / depth * half + half - np.float32(0.5)
        top = SHADOW_SIZE_PX - 1
        x, y = np.clip(x, 0, top - 1e-3), np.clip(y, 0, top - 1e-3)
        xi, yi = x.astype(np.int32), y.astype(np.int32)
        fx, fy = x - xi, y - yi
        flat = cube.ravel()
        base = (face * SHADOW_SIZE_PX + yi) * SHADOW_SIZE_PX + xi
        limit = depth - np.float32(0.01)
        lit = [flat[base + step] >= limit for step in (0, 1, SHADOW_SIZE_PX, SHADOW_SIZE_PX + 1)]
        return ((lit[0] * (1 - fx) + lit[1] * fx) * (1 - fy) + (lit[2] * (1 - fx) + lit[3] * fx) * fy).astype(
            np.float32
        )


def _cube_rotations() -> F64:
    """World-from-camera rotations (6, 3, 3) looking along +x -x +y -y +z -z."""
    faces = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            forward = np.zeros(3)
            forward[axis] = sign
            right = np.roll(forward, 1)
            faces.append(np.stack([right, np.cross(forward, right), forward], axis=1))
    return np.stack(faces)


_CUBE_ROTATIONS = _cube_rotations()


@dataclass(frozen=True)
class Part:
    """A unit shape under an affine map: centre (3,) m, axes (3, 3) columns are its directions in the world, half (3,) m."""

    kind: int
    centre: F64
    axes: F64
    half: F64
    material: Material


# ---------------------------------------------------------------- furnishing


def _turn(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> F64:
    """World-from-local rotation Rz(yaw) Ry(pitch) Rx(roll), radians."""
    cz, sz, cy, sy, cx, sx = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )


class _Builder:
    """Draws the furniture. Every piece is built at a place: origin on its ground, x its front, z up."""

    def __init__(self, rng: np.random.Generator, style: str) -> None:
        self.rng = rng
        self.style = style
        self.parts: list[Part] = []
        self.taken: list[tuple[float, float, float]] = []  # x, y, radius on the floor
        self.origin = np.zeros(3)
        self.rotation = np.eye(3)
        self.yaw = 0.0

    # -------------------------------------------------------- drawing

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def colour(self, hue: float, saturation: float, value: float) -> F64:
        """Linear RGB of an HSV colour, channels 0..1."""
        hue, value = (hue % 1.0) * 6, float(np.clip(value, 0.02, 0.98))
        saturation = float(np.clip(saturation, 0, 1))
        k = (np.array([5.0, 3.0, 1.0]) + hue) % 6
        rgb = value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
        return np.asarray(rgb**2.2, np.float64)

    def material(self, family: str) -> Material:
        """A random material of a family: wall, floor, ceiling, wood, metal, fabric, plastic, print, books, dark."""
        r = self.uniform
        gloss = emission = 0.0
        spread = r(0.05, 0.25)
        if family == "wall":
            hue, saturation, value = self.rng.random(), abs(self.rng.normal(0, 0.18)), r(0.5, 0.98)
            if self.chance(0.12):
                saturation, value = r(0.4, 0.8), r(0.35, 0.8)
            names, tile = ("plain", "noise", "fbm", "stripes", "bricks", "speckle", "tiles"), r(0.6, 3.0)
            weights = np.array([5, 2, 2, 1, 1, 1, 0.6])
            spread = r(0.02, 0.15)
        elif family == "floor":
            if self.chance(0.45):
                hue, saturation, value = r(0.04, 0.12), r(0.25, 0.65), r(0.3, 0.85)
                names, tile, weights = ("planks", "grain"), r(0.9, 2.2), np.array([5, 1])
            else:
                hue, saturation, value = self.rng.random(), abs(self.rng.normal(0, 0.2)), r(0.25, 0.85)
                names = ("tiles", "checker", "noise", "fbm", "speckle", "marble", "weave", "blotches")
                tile, weights = r(0.8, 3.0), np.array([3, 1, 2, 2, 2, 1, 2, 1])
            gloss = r(0, 0.5) if self.chance(0.5) else 0.0
            spread = r(0.1, 0.35)
        elif family == "ceiling":
            hue, saturation, value = self.rng.random(), r(0, 0.08), r(0.75, 0.98)
            names, tile, weights = ("plain", "tiles", "speckle", "planks"), r(1.2, 4.0), np.array([5, 2, 2, 1])
            spread = 0.06
        elif family == "wood":
            hue, saturation, value = r(0.03, 0.11), r(0.2, 0.7), r(0.25, 0.9)
            names, tile, weights = ("grain", "fbm", "plain", "marble"), r(0.4, 1.6), np.array([5, 1, 1, 1])
            gloss, spread = r(0, 0.4), r(0.08, 0.25)
        elif family == "metal":
            hue, saturation, value = r(0.5, 0.7), r(0, 0.12), r(0.2, 0.9)
            names, tile, weights = ("plain", "noise", "grain"), r(0.3, 1.0), np.array([3, 1, 1])
            gloss, spread = r(0.3, 1.5), 0.06
        elif family == "fabric":
            hue, saturation, value = self.rng.random(), r(0.1, 0.8), r(0.15, 0.9)
            names = ("weave", "noise", "plain", "stripes", "checker", "dots", "blotches")
            tile, weights = r(0.3, 1.2), np.array([4, 2, 2, 1, 0.7, 0.7, 1])
        elif family == "plastic":
            hue, saturation, value = self.rng.random(), r(0.3, 0.95), r(0.25, 0.95)
            names, tile, weights = ("plain", "noise", "speckle", "grain"), r(0.2, 1.0), np.array([4, 1, 1, 1])
            gloss, spread = r(0, 1.0), r(0.03, 0.15)
        elif family == "print":
            hue, saturation, value = self.rng.random(), r(0.2, 0.9), r(0.4, 0.95)
            names = ("print", "dots", "stripes", "blotches", "checker", "fbm")
            tile, weights, spread = r(0.25, 0.7), np.array([7, 1, 1, 1, 1, 1]), r(0.3, 0.6)
            gloss = r(0, 0.5)
        elif family == "books":
            hue, saturation, value = self.rng.random(), r(0.3, 0.8), r(0.4, 0.9)
            names, tile, weights, spread = ("spines",), r(0.35, 0.7), np.array([1]), 0.6
        elif family == "dark":
            hue, saturation, value = self.rng.random(), r(0, 0.3), r(0.03, 0.15)
            names, tile, weights, spread = ("plain", "fbm"), r(0.3, 1.0), np.array([3, 1]), 0.03
            gloss = r(0.3, 1.2)
        else:
            raise ValueError(f"No material family is called {family!r}.")
        name = str(self.rng.choice(names, p=weights / weights.sum()))
        shift = self.uniform(0.1, 0.5) if family in ("print", "books") else self.uniform(0, 0.04)
        palette = tuple(
            tuple(self.colour(hue + k * shift, saturation * (1 - 0.3 * k * spread), value + (k - 1) * spread))
            for k in range(3)
        )
        return Material(TEXTURE_NAMES.index(name), tile, palette, gloss, emission)  # type: ignore[arg-type]

    def light_material(self, strength: float) -> Material:
        warm = tuple(np.array([1.0, self.uniform(0.85, 1.0), self.uniform(0.7, 1.0)]))
        return Material(0, 1.0, (warm, warm, warm), 0.0, strength)  # type: ignore[arg-type]

    def at(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> None:
        """Put the origin of the next pieces at a place in the world."""
        self.origin, self.yaw, self.rotation = np.array([x, y, z]), yaw, _turn(yaw)

    def add(
        self,
        kind: int,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        material: Material,
        turn: F64 | None = None,
    ) -> None:
        axes = self.rotation if turn is None else self.rotation @ turn
        where = self.origin + self.rotation @ np.asarray(centre, np.float64)
        self.parts.append(Part(kind, where, axes, np.maximum(np.asarray(half, np.float64), 2e-3), material))

    def box(self, centre: tuple[float, float, float], half: tuple[float, float, float], m: Material) -> None:
        self.add(BOX, centre, half, m)

    def free(self, radius: float, tries: int = 12, wall: bool = False) -> tuple[float, float, float] | None:
        """A place on the floor (x, y, yaw) with room around it, against a wall or anywhere; None if there is none."""
        hx, hy = self.half[0], self.half[1]
        for _ in range(tries):
            if wall:
                side = int(self.rng.integers(4))
                yaw = side * math.pi / 2  # front looks away from the wall
                depth = self.uniform(0.02, 0.05)
                along = self.uniform(-1, 1) * ((hy if side % 2 == 0 else hx) - radius)
                x, y = ((-hx + depth, along), (along, -hy + depth), (hx - depth, along), (along, hy - depth))[side]
            else:
                x, y = self.uniform(-1, 1) * (hx - radius - 0.1), self.uniform(-1, 1) * (hy - radius - 0.1)
                yaw = self.uniform(-math.pi, math.pi) if self.chance(0.4) else math.pi / 2 * self.rng.integers(4)
            if all(math.hypot(x - a, y - b) > radius + r for a, b, r in self.taken):
                self.taken.append((x, y, radius))
                return x, y, float(yaw)
        return None

    # -------------------------------------------------------- pieces

    def table(self, length: float, width: float, height: float, items: int = 4) -> None:
        top = self.material(str(self.rng.choice(["wood", "plastic", "wall", "metal"], p=[0.6, 0.1, 0.2, 0.1])))
        leg = top if self.chance(0.5) else self.material("metal")
        thick = self.uniform(0.012, 0.03)
        self.box((0, 0, height - thick), (width / 2, length / 2, thick), top)
        foot = self.uniform(0.015, 0.045)
        if self.chance(0.75):
            kind = BOX if self.chance(0.6) else CYLINDER
            for sx in (-1, 1):
                for sy in (-1, 1):
                    at = (sx * (width / 2 - foot - 0.03), sy * (length / 2 - foot - 0.03), height / 2 - thick)
                    self.add(kind, at, (foot, foot, height / 2 - thick), leg)
        else:
            for sy in (-1, 1):
                at = (0, sy * (length / 2 - 0.06), height / 2 - thick)
                self.box(at, (width / 2 * 0.9, 0.015, height / 2 - thick), leg)
            if self.chance(0.6):
                self.box((-width / 2 + 0.05, 0, height * 0.6), (0.01, length / 2 - 0.08, height * 0.25), leg)
        self.clutter(items, width / 2 * 0.85, length / 2 * 0.88, height)

    def clutter(self, count: int, half_x: float, half_y: float, ground: float, limit: float = 0.45) -> None:
        """Things on a rectangle (2 half_x by 2 half_y) at height `ground`, none taller than `limit`."""
        placed: list[tuple[float, float, float]] = []
        for _ in range(count):
            x, y = self.uniform(-half_x, half_x), self.uniform(-half_y, half_y)
            gap = min([math.hypot(x - a, y - b) - r for a, b, r in placed], default=1.0)
            size = min(self.uniform(0.03, 0.16), gap * 0.8, half_x * 1.2, half_y * 1.2, limit)
            if size < 0.02:
                continue
            placed.append((x, y, size))
            self.thing(x, y, ground, size, limit)

    def thing(self, x: float, y: float, z: float, size: float, limit: float) -> None:
        """One small thing of about `size` (radius, m) standing at (x, y, z)."""
        r = self.uniform
        yaw = _turn(r(-math.pi, math.pi))
        choice = self.rng.random()
        if choice < 0.34:  # a package or a stack of books
            level = z
            for _ in range(1 if self.chance(0.7) else int(self.rng.integers(2, 5))):
                half = (size * r(0.4, 0.8), size * r(0.4, 0.8), min(size * r(0.1, 1.2), limit / 2))
                if level + 2 * half[2] > z + limit:
                    break
                m = self.material(str(self.rng.choice(["print", "plastic", "wood", "fabric"], p=[0.5, 0.3, 0.1, 0.1])))
                self.add(BOX, (x, y, level + half[2]), half, m, yaw @ _turn(r(-0.15, 0.15)))
                level += 2 * half[2]
        elif choice < 0.58:  # a can, a cup, a bottle
            radius, half = min(size * 0.5, r(0.025, 0.06)), min(size * r(0.5, 1.5), limit / 2.6)
            m = self.material("print" if self.chance(0.4) else "plastic")
            self.add(CYLINDER, (x, y, z + half), (radius, radius, half), m)
            if self.chance(0.4):
                neck = half * 0.3
                self.add(CYLINDER, (x, y, z + 2 * half + neck), (radius * 0.4, radius * 0.4, neck), self.material("plastic"))
        elif choice < 0.72:  # a ball, a fruit, a bowl
            radius = min(size * r(0.5, 0.9), limit / 2)
            flat = r(0.7, 1.0)
            self.add(ELLIPSOID, (x, y, z + radius * flat), (radius, radius, radius * flat), self.material("plastic"))
        elif choice < 0.82:  # a leaning book or panel
            half = (r(0.006, 0.02), size * 0.7, min(size, limit / 2.2))
            tilt = r(-0.35, 0.35)
            up = half[2] * math.cos(tilt) + half[0] * abs(math.sin(tilt))
            self.add(BOX, (x, y, z + up), half, self.material("print"), yaw @ _turn(0, tilt))
        elif choice < 0.9 and size > 0.07 and limit > 0.3:  # a monitor
            h = min(0.2, limit / 2 - 0.05)
            self.add(CYLINDER, (x, y, z + 0.01), (0.1, 0.1, 0.01), self.material("dark"), yaw)
            self.add(BOX, (x, y, z + 0.06), (0.015, 0.02, 0.06), self.material("dark"), yaw)
            self.add(BOX, (x, y, z + 0.1 + h), (0.015, h * 1.5, h), self.material("dark"), yaw)
        elif choice < 0.95 and limit > 0.3:  # a desk lamp or a small plant
            self.add(CYLINDER, (x, y, z + 0.05), (0.05, 0.05, 0.05), self.material("plastic"))
            for _ in range(int(self.rng.integers(2, 5))):
                leaf = (r(0.01, 0.03), r(0.03, 0.06), r(0.08, 0.13))
                at = (x + r(-0.04, 0.04), y + r(-0.04, 0.04), z + 0.1 + leaf[2])
                self.add(ELLIPSOID, at, leaf, self.leaf(), yaw @ _turn(r(-3, 3), r(-0.5, 0.5)))
        else:  # a flat thing: keyboard, plate, paper
            m = self.material(str(self.rng.choice(["dark", "print", "wall"])))
            self.add(BOX, (x, y, z + 0.006), (size * r(0.3, 0.6), size, 0.006), m, yaw)

    def leaf(self) -> Material:
        green = tuple(tuple(self.colour(self.uniform(0.22, 0.38), 0.6, v)) for v in (0.25, 0.4, 0.55))
        return Material(TEXTURE_NAMES.index("fbm"), 0.2, green)  # type: ignore[arg-type]

    def chair(self) -> None:
        seat, frame = self.material("fabric"), self.material("metal" if self.chance(0.5) else "wood")
        r = self.uniform
        w, h, back = r(0.2, 0.26), r(0.42, 0.5), r(0.18, 0.3)
        self.box((0, 0, h - 0.025), (w, w, 0.025), seat)
        self.box((-w + 0.02, 0, h + back + r(0.02, 0.15)), (0.02, w * 0.95, back), seat)
        if self.chance(0.4):  # office chair
            self.add(CYLINDER, (0, 0, h / 2), (0.03, 0.03, h / 2 - 0.04), frame)
            for k in range(5):
                self.add(BOX, (0.14 * math.cos(k * 1.2566), 0.14 * math.sin(k * 1.2566), 0.05), (0.14, 0.02, 0.02), frame, _turn(k * 1.2566))
            self.box((-w + 0.02, 0, h + 0.08), (0.012, 0.03, 0.12), frame)
        else:
            for sx in (-1, 1):
                for sy in (-1, 1):
                    tall = h + back if sx < 0 else h - 0.05
                    self.box((sx * (w - 0.02), sy * (w - 0.02), tall / 2), (0.016, 0.016, tall / 2), frame)

    def shelf(self, width: float, depth: float, height: float, boards: int, fill: float = 0.7) -> None:
        m = self.material("wood" if self.chance(0.6) else str(self.rng.choice(["metal", "wall"])))
        board = self.uniform(0.009, 0.02)
        for sy in (-1, 1):
            self.box((depth / 2, sy * (width / 2 - board), height / 2), (depth / 2, board, height / 2), m)
        if self.chance(0.8):
            self.box((0.008, 0, height / 2), (0.006, width / 2, height / 2), m)
        step = height / boards
        for k in range(boards + 1):
            self.box((depth / 2, 0, min(k * step + board, height)), (depth / 2, width / 2 - board, board), m)
        for k in range(boards):
            ground, inside = k * step + 2 * board, step - 3 * board
            if not self.chance(fill):
                continue
            if self.chance(0.5) and inside > 0.18:  # a row of books
                high = min(inside * self.uniform(0.6, 0.92), 0.32)
                long = width / 2 * self.uniform(0.3, 0.9)
                off = self.uniform(-1, 1) * (width / 2 - board - long)
                deep = depth / 2 * self.uniform(0.5, 0.85)
                self.box((deep + 0.02, off, ground + high / 2), (deep, long, high / 2), self.material("books"))
            else:
                self.at_shift(depth / 2)
                self.clutter(int(self.rng.integers(2, 6)), depth * 0.3, width * 0.42, ground, inside)
                self.at_shift(-depth / 2)

    def at_shift(self, forward: float) -> None:
        self.origin = self.origin + self.rotation @ np.array([forward, 0.0, 0.0])

    def cabinet(self, width: float, depth: float, height: float, items: int = 2) -> None:
        m = self.material("wood" if self.chance(0.6) else str(self.rng.choice(["wall", "metal", "plastic"])))
        self.box((depth / 2, 0, height / 2), (depth / 2, width / 2, height / 2), m)
        rows, columns = int(self.rng.integers(1, 4)), int(self.rng.integers(1, 3))
        handle = self.material("metal")
        front = m if self.chance(0.5) else self.material("wood")
        for i in range(rows):
            for k in range(columns):
                y = (k + 0.5) / columns * width - width / 2
                z = (i + 0.5) / rows * height
                half = (0.008, width / columns / 2 - 0.012, height / rows / 2 - 0.012)
                self.box((depth + 0.008, y, z), half, front)
                self.box((depth + 0.025, y, z + half[2] * 0.6), (0.01, min(0.06, half[1] * 0.5), 0.008), handle)
        if height < 1.6:
            self.at_shift(depth / 2)
            self.clutter(items, depth * 0.35, width * 0.42, height)
            self.at_shift(-depth / 2)

    def sofa(self) -> None:
        m = self.material("fabric")
        long, deep, seat = self.uniform(0.7, 1.1), self.uniform(0.38, 0.48), self.uniform(0.36, 0.45)
        self.box((deep, 0, seat / 2), (deep, long, seat / 2), m)
        self.box((0.1, 0, seat + 0.2), (0.1, long, 0.22), m)
        for sy in (-1, 1):
            self.box((deep, sy * (long + 0.08), seat * 0.75), (deep, 0.08, seat * 0.75), m)
        for _ in range(int(self.rng.integers(0, 4))):
            turn = _turn(self.uniform(-0.3, 0.3), -0.35)
            self.add(BOX, (0.3, self.uniform(-1, 1) * long * 0.8, seat + 0.19), (0.06, 0.19, 0.18), self.material("fabric"), turn)

    def plant(self) -> None:
        self.add(CYLINDER, (0, 0, 0.15), (0.14, 0.14, 0.15), self.material("plastic"))
        self.add(CYLINDER, (0, 0, 0.5), (0.02, 0.02, 0.25), self.material("wood"))
        r = self.uniform
        for _ in range(int(self.rng.integers(6, 13))):
            half = (r(0.02, 0.05), r(0.06, 0.12), r(0.14, 0.28))
            at = (r(-0.2, 0.2), r(-0.2, 0.2), r(0.55, 1.2))
            self.add(ELLIPSOID, at, half, self.leaf(), _turn(r(-3, 3), r(-0.8, 0.8)))

    def floor_lamp(self, lamps: list[Lamp]) -> None:
        tall = self.uniform(1.3, 1.7)
        m = self.material("metal")
        self.add(CYLINDER, (0, 0, 0.015), (0.14, 0.14, 0.015), m)
        self.add(CYLINDER, (0, 0, tall / 2), (0.014, 0.014, tall / 2), m)
        self.add(CYLINDER, (0, 0, tall + 0.1), (0.16, 0.16, 0.13), self.light_material(1.2))
        lamps.append(Lamp(self.origin + np.array([0, 0, tall + 0.32]), self.lamp_colour(self.uniform(0.8, 2.0))))

    def tote(self, half_x: float, half_y: float, height: float, items: int) -> None:
        m = self.material("plastic")
        wall = 0.012
        self.box((0, 0, wall), (half_x, half_y, wall), m)
        for s in (-1, 1):
            self.box((s * half_x, 0, height / 2), (wall, half_y + wall, height / 2), m)
            self.box((0, s * half_y, height / 2), (half_x + wall, wall, height / 2), m)
            self.box((s * (half_x + 0.01), 0, height), (wall * 2, half_y + 0.03, wall), m)
            self.box((0, s * (half_y + 0.01), height), (half_x + 0.03, wall * 2, wall), m)
        self.clutter(items, half_x * 0.8, half_y * 0.8, 2 * wall, height)

    def lamp_colour(self, strength: float) -> F64:
        return strength * np.array([1.0, self.uniform(0.82, 1.0), self.uniform(0.65, 1.05)])

    def on_wall(self) -> None:
        """A door, a window, a picture, a board, a pillar or a radiator at the walls."""
        hx, hy, top = self.half[0], self.half[1], 2 * self.half[2]
        side = int(self.rng.integers(4))
        span = hy if side % 2 == 0 else hx
        along = self.uniform(-1, 1) * max(span - 0.8, 0.1)
        x, y = ((-hx, along), (along, -hy), (hx, along), (along, hy))[side]
        self.at(x, y, 0.0, side * math.pi / 2)
        choice = self.rng.random()
        if choice < 0.2:
            m = self.material("wood" if self.chance(0.6) else "wall")
            self.box((0.02, 0, 1.02), (0.02, 0.46, 1.02), self.material("wood"))
            self.box((0.045, 0, 1.0), (0.012, 0.4, 0.98), m)
            self.add(ELLIPSOID, (0.08, 0.33, 1.0), (0.03, 0.03, 0.03), self.material("metal"))
        elif choice < 0.45:
            w, h = self.uniform(0.4, 1.1), self.uniform(0.4, 0.65)
            middle = min(self.uniform(1.3, 1.6), top - h - 0.15)
            self.box((0.02, 0, middle), (0.02, w + 0.05, h + 0.05), self.material("wall"))
            sky = tuple(tuple(self.colour(0.58, s, v)) for s, v in ((0.1, 0.9), (0.25, 0.95), (0.45, 0.9)))
            pane = Material(TEXTURE_NAMES.index("fbm"), 2.0, sky, 0.0, self.uniform(0.3, 2.0))  # type: ignore[arg-type]
            for s in (-1, 1):
                self.box((0.045, s * w / 2, middle), (0.006, w / 2 - 0.02, h), pane)
        elif choice < 0.8:
            w, h = self.uniform(0.15, 0.7), self.uniform(0.15, 0.45)
            middle = min(self.uniform(1.3, 1.7), top - h - 0.1)
            self.box((0.012, 0, middle), (0.012, w + 0.03, h + 0.03), self.material("wood"))
            self.box((0.026, 0, middle), (0.004, w, h), self.material("print"))
        elif choice < 0.9:
            deep, w = self.uniform(0.1, 0.4), self.uniform(0.15, 0.6)
            self.box((deep, 0, top / 2), (deep, w, top / 2), self.material("wall"))
        else:
            self.box((0.06, 0, 0.4), (0.05, 0.5, 0.28), self.material("metal"))

    # -------------------------------------------------------- the whole

    def build(self) -> Scene:
        r = self.uniform
        low, high = (1.3, 3.2) if self.style != "room" else (1.7, 5.0)
        self.half = np.array([r(low, high), r(low, high), r(1.15, 1.7)])
        wall = self.material("wall")
        room = [wall if self.chance(0.7) else self.material("wall") for _ in range(4)]
        room += [self.material("floor"), self.material("ceiling")]
        lamps: list[Lamp] = []
        focus = self.centrepiece()
        area = 4 * self.half[0] * self.half[1]
        density = r(0.5, 1.3)
        self.place_furniture(int(2 + density * area * 0.28), int(density * area * 0.16), lamps)
        for _ in range(int(self.rng.integers(2, 8))):
            self.on_wall()
        if self.chance(0.5):  # skirting boards say where the floor ends
            m = self.material("wood" if self.chance(0.5) else "wall")
            tall = r(0.03, 0.06)
            for k in range(4):
                span = self.half[1] if k % 2 == 0 else self.half[0]
                reach = self.half[0] if k % 2 == 0 else self.half[1]
                self.at(0, 0, 0, k * math.pi / 2)
                self.box((reach - 0.01, 0, tall), (0.01, span, tall), m)
        self.ceiling_lamps(lamps)
        ambient = r(0.12, 0.6) * np.array([1.0, r(0.9, 1.05), r(0.8, 1.15)])
        return Scene(
            self.half, room, self.parts, lamps, ambient, int(self.rng.integers(TEXTURE_SETS)), self.style, focus
        )

    def centrepiece(self) -> F64:
        """What a close-up style is about; returns the point to look at."""
        r = self.uniform
        if self.style == "desk":
            height, length, width = r(0.65, 0.8), r(1.2, 2.0), r(0.65, 1.0)
            x, y, yaw = r(-0.4, 0.4), r(-0.4, 0.4), r(-math.pi, math.pi)
            self.taken.append((x, y, length / 2 + 0.2))
            self.at(x, y, 0, yaw)
            self.table(length, width, height, int(self.rng.integers(6, 16)))
            if self.chance(0.4):  # a screen wall behind the desk
                self.box((-width / 2 - 0.05, 0, 0.7), (0.02, length / 2 + 0.2, r(0.5, 0.75)), self.material("fabric"))
            spot = np.array([r(-0.25, 0.2) * width, r(-0.3, 0.3) * length, height + r(0, 0.12)])
        elif self.style == "bin":
            height, half_x, half_y = r(0.12, 0.45), r(0.14, 0.4), r(0.18, 0.5)
            x, y, yaw = r(-0.4, 0.4), r(-0.4, 0.4), r(-math.pi, math.pi)
            base = 0.0 if self.chance(0.4) else r(0.4, 0.8)
            self.taken.append((x, y, 0.9))
            self.at(x, y, 0, yaw)
            if base > 0:
                self.table(r(1.2, 1.8), r(1.0, 1.4), base, 0)
            self.at(x, y, base, yaw)
            self.tote(half_x, half_y, height, int(self.rng.integers(2, 20)))
            if self.chance(0.5):  # a neighbour
                self.at(x, y, base, yaw)
                self.at_shift(2 * half_x + 0.08)
                self.tote(half_x, half_y, height, int(self.rng.integers(0, 8)))
            self.at(x, y, base, yaw)
            spot = np.array([r(-0.5, 0.5) * half_x, r(-0.5, 0.5) * half_y, height * 0.3])
        elif self.style == "shelf":
            width, depth, height, boards = r(0.5, 1.3), r(0.25, 0.55), r(1.0, 2.0), int(self.rng.integers(2, 5))
            x, y, yaw = r(-0.4, 0.4), r(-0.4, 0.4), r(-math.pi, math.pi)
            self.taken.append((x, y, 0.9))
            self.at(x, y, 0, yaw)
            self.shelf(width, depth, height, boards, fill=0.95)
            level = int(self.rng.integers(boards))
            spot = np.array([depth * 0.5, r(-0.25, 0.25) * width, (level + 0.4) * height / boards])
        else:
            return np.array([r(-0.4, 0.4), r(-0.4, 0.4), r(0.5, 1.2)]) * np.array([self.half[0], self.half[1], 1.0])
        return self.origin + self.rotation @ spot

    def place_furniture(self, standing: int, middle: int, lamps: list[Lamp]) -> None:
        r = self.uniform
        for _ in range(standing):
            choice = self.rng.random()
            radius = r(0.35, 0.75)
            place = self.free(radius, wall=True)
            if place is None:
                continue
            self.at(place[0], place[1], 0.0, place[2])
            if choice < 0.3:
                self.shelf(radius * 1.6, r(0.22, 0.42), r(0.8, 2.1), int(self.rng.integers(2, 6)))
            elif choice < 0.62:
                self.cabinet(radius * 1.7, r(0.3, 0.6), r(0.5, 2.0), int(self.rng.integers(0, 4)))
            elif choice < 0.75:
                self.sofa()
            elif choice < 0.83:
                self.at_shift(0.35)
                self.plant()
            elif choice < 0.88:
                self.at_shift(0.3)
                self.floor_lamp(lamps)
            else:
                width = r(0.5, 0.8)
                self.at_shift(width / 2)
                self.table(radius * 2.0, width, r(0.6, 0.9), int(self.rng.integers(2, 8)))
        for _ in range(middle):
            choice = self.rng.random()
            radius = r(0.5, 0.9) if choice < 0.35 else r(0.25, 0.45)
            place = self.free(radius)
            if place is None:
                continue
            self.at(place[0], place[1], 0.0, place[2])
            if choice < 0.35:
                self.table(radius * 1.7, radius * r(0.9, 1.3), r(0.35, 0.85), int(self.rng.integers(1, 7)))
            elif choice < 0.7:
                self.chair()
            elif choice < 0.85:  # crates
                side = radius * r(0.5, 0.75)
                level = 0.0
                for _ in range(int(self.rng.integers(1, 4))):
                    half = (side * r(0.7, 1), side * r(0.7, 1), r(0.12, 0.3))
                    m = self.material(str(self.rng.choice(["wood", "plastic", "print"])))
                    self.add(BOX, (0, 0, level + half[2]), half, m, _turn(r(-0.3, 0.3)))
                    level += 2 * half[2]
            elif choice < 0.92:
                tall = r(0.3, 1.0)
                self.add(CYLINDER, (0, 0, tall / 2), (radius * 0.6, radius * 0.6, tall / 2), self.material("plastic"))
            else:
                size = r(0.12, 0.35)
                self.add(ELLIPSOID, (0, 0, size), (size, size, size), self.material("plastic"))
        if self.chance(0.35):  # a rug
            self.at(r(-0.4, 0.4), r(-0.4, 0.4), 0, r(-math.pi, math.pi))
            self.box((0, 0, 0.004), (r(0.5, 1.2), r(0.5, 1.2), 0.004), self.material("fabric"))

    def ceiling_lamps(self, lamps: list[Lamp]) -> None:
        r = self.uniform
        height = 2 * self.half[2]
        count = int(self.rng.integers(1, 3)) if lamps else int(self.rng.integers(1, 4))
        power = r(2.0, 5.0) * math.sqrt(self.half[0] * self.half[1]) / 2.5
        panel = self.chance(0.6)
        for _ in range(count):
            x, y = r(-0.65, 0.65) * self.half[0], r(-0.65, 0.65) * self.half[1]
            drop = 0.12 if panel else r(0.25, 0.6)
            self.at(x, y, 0, 0)
            if panel:
                self.box((0, 0, height - 0.02), (r(0.1, 0.3), r(0.25, 0.6), 0.02), self.light_material(2.5))
            else:
                self.add(ELLIPSOID, (0, 0, height - drop + 0.14), (0.11, 0.11, 0.11), self.light_material(2.5))
                self.add(CYLINDER, (0, 0, height - drop / 2 + 0.1), (0.008, 0.008, drop / 2), self.material("dark"))
            lamps.append(Lamp(np.array([x, y, height - drop]), self.lamp_colour(power / math.sqrt(count))))


# ---------------------------------------------------------------- cameras


def look_at(position: F64, target: F64, roll: float = 0.0) -> F64:
    """T_world_camera (4, 4) of a camera at `position` whose axis goes through `target`; roll in radians."""
    forward = np.asarray(target, np.float64) - np.asarray(position, np.float64)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    if np.linalg.norm(right) < 1e-6:  # straight up or down
        right = np.array([0.0, -1.0, 0.0])
    right = right / np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    c, s = math.cos(roll), math.sin(roll)
    pose[:3, :3] = np.stack([c * right + s * down, c * down - s * right, forward], axis=1)
    pose[:3, 3] = position
    return pose


_PROBE = Camera(16, 12, 11.0, 11.0, 7.5, 5.5)


def random_view(scene: Scene, rng: np.random.Generator, width: int, height: int) -> tuple[Camera, F64]:
    """A camera (width x height, 45 to 85 degrees wide) and a pose T_world_camera (4, 4) from which there is something to see."""
    view = math.radians(float(rng.uniform(45, 85)))
    focal = width / 2 / math.tan(view / 2)
    camera = Camera(width, height, focal, focal, width / 2 - 0.5, height / 2 - 0.5)
    pose = np.eye(4)
    for _ in range(40):
        position, target = _random_aim(scene, rng)
        if not scene.contains(position, 0.08)[0]:
            continue
        pose = look_at(position, target, roll=float(rng.normal(0, 0.035)))
        probe, parts = scene.probe(_PROBE, pose)
        near, middle = np.percentile(probe, [3, 50])
        close = scene.style != "room"
        enough = len(np.unique(parts)) >= 4
        if enough and near > (0.15 if close else 0.35) and middle > (0.25 if close else 0.9):
            return camera, pose
    centre = np.array([0.0, 0.0, scene.room_half[2] * 1.4])
    return camera, look_at(centre, scene.focus + 1e-3)


def _random_aim(scene: Scene, rng: np.random.Generator) -> tuple[F64, F64]:
    half = scene.room_half
    if scene.style == "room":
        place = rng.uniform(-1, 1, 2) * (half[:2] - 0.25)
        position = np.array([*place, rng.uniform(0.25, min(1.9, 2 * half[2] - 0.3))])
        toward = math.atan2(-place[1], -place[0]) + rng.normal(0, 0.7)
        pitch = rng.normal(-0.12, 0.17)
        forward = np.array([math.cos(toward) * math.cos(pitch), math.sin(toward) * math.cos(pitch), math.sin(pitch)])
        return position, position + forward
    distance = float(rng.uniform(0.3, 1.6) if scene.style == "desk" else rng.uniform(0.25, 1.1))
    steep = {"desk": (0.15, 1.1), "bin": (0.5, 1.45), "shelf": (-0.3, 0.6)}[scene.style]
    pitch, yaw = rng.uniform(*steep), rng.uniform(-math.pi, math.pi)
    if scene.style == "shelf":  # in front of it
        shelf = scene.parts[0]
        yaw = math.atan2(shelf.axes[1, 0], shelf.axes[0, 0]) + rng.normal(0, 0.35)
    offset = distance * np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)])
    return scene.focus + offset, scene.focus + rng.normal(0, 0.08, 3) * distance


def views(seed: int, per_scene: int, width: int, height: int, style: str = "mixed") -> Iterator[Rendered]:
    """Endless pictures of random scenes, `per_scene` of each; the stream follows from the seed alone."""
    index = 0
    while True:
        rng = np.random.default_rng([seed, index])
        scene = Scene.random(rng, style)
        for _ in range(per_scene):
            camera, pose = random_view(scene, rng, width, height)
            yield scene.render(camera, pose)
        index += 1


def camera_path(scene: Scene, n: int, seed: int = 0) -> F64:
    """T_world_camera (n, 4, 4): a smooth closed walk through free space that looks across the room."""
    if n < 1:
        raise ValueError(f"A camera path needs at least one pose; n is {n}.")
    rng = np.random.default_rng(seed)
    best, best_score = None, -np.inf
    for _ in range(24):
        path = _loop(scene, rng, n)
        some = path[:: max(n // 12, 1)]
        free = scene.contains(path[:, :3, 3], 0.15).mean()
        probes = np.stack([scene.probe(_PROBE, pose)[0] for pose in some])
        score = 6 * free + min(float(probes.min()), 0.6) + 0.15 * float(np.median(probes))
        if score > best_score:
            best, best_score = path, score
    assert best is not None
    return best


def _loop(scene: Scene, rng: np.random.Generator, n: int) -> F64:
    half = scene.room_half
    phase = 2 * math.pi * (np.arange(n) / n) + rng.uniform(0, 2 * math.pi)
    reach = rng.uniform(0.35, 0.75, 2) * (half[:2] - 0.3)
    height = rng.uniform(1.1, 1.6)
    position = np.stack(
        [reach[0] * np.cos(phase), reach[1] * np.sin(phase), height + 0.12 * np.sin(2 * phase)], axis=1
    )
    lead = rng.uniform(-0.5, 0.5)
    target = np.stack(
        [-0.45 * half[0] * np.cos(phase + lead), -0.45 * half[1] * np.sin(phase + lead), np.full(n, rng.uniform(0.4, 0.9))],
        axis=1,
    )
    return np.stack([look_at(p, t) for p, t in zip(position, target, strict=True)])
