# SPDX-License-Identifier: Apache-2.0
"""Parts of rendered scenes: primitives with materials, lamps, rooms, and the builder of scenes.

A primitive is a unit shape (box, cylinder, ellipsoid) under an affine map. In the world frame z is
up and the origin is the middle of the floor. Lengths in metres, colours linear RGB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from depth_node.simulation.textures import TEXTURE_NAMES

F64 = NDArray[np.float64]

BOX, CYLINDER, ELLIPSOID = 0, 1, 2


@dataclass(frozen=True)
class Material:
    """A texture mapped through three colours (linear RGB, 0..1), repeated every `tile_m` metres.

    gloss: strength of the specular reflection. emission: light that the surface itself emits.
    """

    texture: int
    tile_m: float
    palette: tuple[tuple[float, ...], ...]
    gloss: float = 0.0
    emission: float = 0.0


@dataclass(frozen=True)
class Lamp:
    """A point light: position (3,) m in the world, colour (3,) linear RGB intensity at 1 m."""

    position: F64
    colour: F64


@dataclass(frozen=True)
class Primitive:
    """A unit shape under an affine map.

    centre: (3,) m. axes: (3, 3), whose columns are its axes in the world frame. half: (3,) m, half
    its length along each axis.
    """

    kind: int
    centre: F64
    axes: F64
    half: F64
    material: Material


@dataclass(frozen=True)
class Room:
    """A furnished room, or an outdoor scene under a sky, before it is rendered.

    half: (3,) m, half the room's length, width and height. surfaces: materials of the faces -x +x
    -y +y floor ceiling. ambient: (3,) irradiance from all directions. focus: (3,) m, the target of
    close-up views. haze_m: distance over which 63 % of a colour turns into the haze's, (3,).
    """

    half: F64
    surfaces: tuple[Material, ...]
    primitives: tuple[Primitive, ...]
    lamps: tuple[Lamp, ...]
    ambient: F64
    texture_set: int
    style: str
    focus: F64
    haze_m: float = math.inf
    haze: F64 = field(default_factory=lambda: np.ones(3))


def rotation_zyx(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> F64:
    """Return the world-from-local rotation (3, 3), Rz(yaw) Ry(pitch) Rx(roll), from radians."""
    cz, sz, cy, sy, cx, sx = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )


class SceneBuilder:
    """Builder of scenes; it adds primitives in a local frame: origin on the ground, x to the front,
    z up.

    The order of the random draws defines what a seed looks like; recorded results depend on it.
    """

    def __init__(self, rng: np.random.Generator, style: str) -> None:
        self.rng = rng
        self.style = style
        self.primitives: list[Primitive] = []
        self.half: F64 = np.zeros(3)
        self.origin: F64 = np.zeros(3)
        self.rotation: F64 = np.eye(3)

    def uniform(self, low: float, high: float) -> float:
        """Draw a random number from low to high."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.rng.random() < probability)

    def colour(self, hue: float, saturation: float, value: float) -> F64:
        """Return the linear RGB (3,) of an HSV colour; all channels 0..1, the hue is periodic."""
        hue, value = (hue % 1.0) * 6, float(np.clip(value, 0.02, 0.98))
        saturation = float(np.clip(saturation, 0, 1))
        k = (np.array([5.0, 3.0, 1.0]) + hue) % 6
        rgb = value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
        return np.asarray(rgb**2.2, np.float64)

    def material(self, family: str) -> Material:
        """Draw a material of a family: wall, floor, ceiling, wood, metal, fabric, plastic, print,
        books or dark. Raises ValueError for another family.
        """
        r = self.uniform
        gloss = 0.0
        spread = r(0.05, 0.25)
        names: tuple[str, ...]
        if family == "wall":
            hue, saturation, value = self.rng.random(), abs(self.rng.normal(0, 0.18)), r(0.5, 0.98)
            if self.chance(0.12):
                saturation, value = r(0.4, 0.8), r(0.35, 0.8)
            names = ("plain", "noise", "fbm", "stripes", "bricks", "speckle", "tiles")
            tile = r(0.6, 3.0)
            weights = np.array([5, 2, 2, 1, 1, 1, 0.6])
            spread = r(0.02, 0.15)
        elif family == "floor":
            if self.chance(0.45):
                hue, saturation, value = r(0.04, 0.12), r(0.25, 0.65), r(0.3, 0.85)
                names, tile, weights = ("planks", "grain"), r(0.9, 2.2), np.array([5, 1])
            else:
                hue, saturation, value = (
                    self.rng.random(),
                    abs(self.rng.normal(0, 0.2)),
                    r(0.25, 0.85),
                )
                names = (
                    "tiles",
                    "checker",
                    "noise",
                    "fbm",
                    "speckle",
                    "marble",
                    "weave",
                    "blotches",
                )
                tile, weights = r(0.8, 3.0), np.array([3, 1, 2, 2, 2, 1, 2, 1])
            gloss = r(0, 0.5) if self.chance(0.5) else 0.0
            spread = r(0.1, 0.35)
        elif family == "ceiling":
            hue, saturation, value = self.rng.random(), r(0, 0.08), r(0.75, 0.98)
            names, tile, weights = (
                ("plain", "tiles", "speckle", "planks"),
                r(1.2, 4.0),
                np.array([5, 2, 2, 1]),
            )
            spread = 0.06
        elif family == "wood":
            hue, saturation, value = r(0.03, 0.11), r(0.2, 0.7), r(0.25, 0.9)
            names, tile, weights = (
                ("grain", "fbm", "plain", "marble"),
                r(0.4, 1.6),
                np.array([5, 1, 1, 1]),
            )
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
            names, tile, weights = (
                ("plain", "noise", "speckle", "grain"),
                r(0.2, 1.0),
                np.array([4, 1, 1, 1]),
            )
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
            tuple(
                self.colour(
                    hue + k * shift, saturation * (1 - 0.3 * k * spread), value + (k - 1) * spread
                )
            )
            for k in range(3)
        )
        return Material(TEXTURE_NAMES.index(name), tile, palette, gloss)

    def light_material(self, strength: float) -> Material:
        """Return a warm white surface that emits light of the given strength."""
        warm = (1.0, self.uniform(0.85, 1.0), self.uniform(0.7, 1.0))
        return Material(0, 1.0, (warm, warm, warm), 0.0, strength)

    def lamp_colour(self, strength: float) -> F64:
        """Return a warm to cold white (3,) whose intensity at 1 m is `strength`."""
        return strength * np.array([1.0, self.uniform(0.82, 1.0), self.uniform(0.65, 1.05)])

    def at(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> None:
        """Set the local frame of the next pieces: origin in the world, m, and yaw in radians."""
        self.origin, self.rotation = np.array([x, y, z]), rotation_zyx(yaw)

    def add(
        self,
        kind: int,
        centre: tuple[float, float, float],
        half: tuple[float, float, float],
        material: Material,
        turn: F64 | None = None,
    ) -> None:
        """Add a primitive in the local frame, rotated in it by `turn`; half sides are at least
        2 mm.
        """
        axes = self.rotation if turn is None else self.rotation @ turn
        centre_world = self.origin + self.rotation @ np.asarray(centre, np.float64)
        self.primitives.append(
            Primitive(
                kind, centre_world, axes, np.maximum(np.asarray(half, np.float64), 2e-3), material
            )
        )

    def box(
        self, centre: tuple[float, float, float], half: tuple[float, float, float], m: Material
    ) -> None:
        """Add a box along the axes of the local frame."""
        self.add(BOX, centre, half, m)

    def at_shift(self, forward: float) -> None:
        """Move the local frame along its x axis, m."""
        self.origin = self.origin + self.rotation @ np.array([forward, 0.0, 0.0])
