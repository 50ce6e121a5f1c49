# SPDX-License-Identifier: Apache-2.0
"""Random outdoor scenes built of primitives: a street, a country road or a yard.

The world is a box whose walls and ceiling are a shining sky, at least SKY_M away: the sky has a
depth, but a far one. The road runs along x through the origin; z is up, the ground is z = 0.
Lengths in metres, colours linear RGB.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from depth_node.simulation.primitives import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    F64,
    Lamp,
    Material,
    Room,
    SceneBuilder,
    rotation_zyx,
)
from depth_node.simulation.textures import TEXTURE_NAMES, TEXTURE_SETS

OUTDOORS = ("street", "country", "yard")
SKY_M = 200.0
SUN_M = 45.0  # distance of the lamp that is the sun; farther away its shadow maps would be coarse
Point = tuple[float, float, float]
WHEEL = rotation_zyx(0.0, 0.0, math.pi / 2)  # turns a cylinder's axis to y

# Per surface: textures with their weights; ranges of hue, saturation, value, spread and tile in m.
_SURFACES: dict[str, tuple[dict[str, float], tuple[tuple[float, float], ...]]] = {
    "asphalt": (
        {"speckle": 3, "noise": 2, "fbm": 2, "plain": 1},
        ((0.0, 1.0), (0.0, 0.12), (0.15, 0.6), (0.02, 0.15), (0.5, 4.0)),
    ),
    "pavement": (
        {"tiles": 3, "bricks": 2, "plain": 1, "speckle": 2, "checker": 0.5},
        ((0.0, 0.15), (0.0, 0.3), (0.35, 0.85), (0.03, 0.2), (0.8, 4.0)),
    ),
    "grass": (
        {"speckle": 3, "noise": 3, "fbm": 2, "blotches": 1},
        ((0.12, 0.38), (0.2, 0.75), (0.2, 0.65), (0.05, 0.25), (0.5, 5.0)),
    ),
    "soil": (
        {"fbm": 3, "noise": 2, "speckle": 2, "blotches": 1},
        ((0.03, 0.14), (0.1, 0.6), (0.25, 0.85), (0.05, 0.2), (0.5, 5.0)),
    ),
    "facade": (
        {"plain": 2, "bricks": 3, "tiles": 4, "stripes": 1, "fbm": 1, "checker": 0.5, "print": 0.7},
        ((0.0, 1.0), (0.0, 0.45), (0.25, 0.95), (0.03, 0.35), (1.5, 10.0)),
    ),
    "roof": (
        {"bricks": 2, "tiles": 2, "stripes": 2, "plain": 1, "noise": 1},
        ((0.0, 1.0), (0.0, 0.6), (0.15, 0.7), (0.03, 0.2), (0.6, 3.0)),
    ),
    "foliage": (
        {"speckle": 2, "noise": 4, "blotches": 3, "fbm": 2},
        ((0.1, 0.4), (0.2, 0.8), (0.12, 0.6), (0.08, 0.3), (0.2, 1.5)),
    ),
    "bark": (
        {"noise": 2, "grain": 3, "fbm": 1},
        ((0.03, 0.12), (0.1, 0.5), (0.15, 0.55), (0.05, 0.2), (0.3, 1.5)),
    ),
    "paint": (
        {"plain": 6, "noise": 1, "print": 0.6, "stripes": 0.3},
        ((0.0, 1.0), (0.0, 0.9), (0.08, 0.95), (0.02, 0.08), (0.8, 3.0)),
    ),
    "line": (
        {"plain": 3, "noise": 1},
        ((0.1, 0.16), (0.0, 0.5), (0.7, 0.98), (0.02, 0.1), (0.5, 2.0)),
    ),
    "cloth": (
        {"plain": 3, "noise": 1, "stripes": 0.6, "checker": 0.4},
        ((0.0, 1.0), (0.0, 0.8), (0.08, 0.9), (0.03, 0.2), (0.3, 1.0)),
    ),
}


def lay_out(rng: np.random.Generator, style: str) -> Room:
    """Return a random scene as a Room whose walls are the sky; `style` is one of OUTDOORS."""
    return _Outdoors(rng, style).build()


class _Outdoors(SceneBuilder):
    """Builder of a scene from pieces, each in a local frame: origin on the ground, z up."""

    def surface(self, name: str, gloss: float = 0.0) -> Material:
        """Return a random material of _SURFACES; one in ten has a colour unusual for its kind."""
        textures, ranges = _SURFACES[name]
        hue, saturation, value, spread, tile = (self.uniform(*limits) for limits in ranges)
        if self.chance(0.1):
            hue, saturation, value = self.uniform(0, 1), self.uniform(0, 0.9), self.uniform(0.1, 1)
        weights = np.array(list(textures.values()))
        texture = str(self.rng.choice(list(textures), p=weights / weights.sum()))
        shift = self.uniform(0, 0.05)
        palette = tuple(
            tuple(self.colour(hue + k * shift, saturation, value + (k - 1) * spread))
            for k in range(3)
        )
        return Material(TEXTURE_NAMES.index(texture), tile, palette, gloss)

    def sky(self) -> Material:
        """Return a blue, grey, white or evening sky, with clouds from nearly none to all over."""
        r = self.uniform
        hue, saturation = r(0.53, 0.66), r(0.0, 0.6) if self.chance(0.6) else r(0.0, 0.1)
        if self.chance(0.1):
            hue, saturation = r(0.0, 0.15), r(0.1, 0.6)
        value, cloud = r(0.45, 0.98), r(0.0, 0.35)
        palette = tuple(
            tuple(self.colour(hue, saturation * (1 - k / 2), value + k / 2 * cloud))
            for k in range(3)
        )
        texture = TEXTURE_NAMES.index("fbm" if self.chance(0.7) else "plain")
        return Material(texture, r(120, 500), palette, 0.0, r(0.8, 2.5))

    # -------------------------------------------------------- pieces

    def building(self, length: float, depth: float, height: float) -> None:
        """Add a house with its front at x = 0 of the local frame; it extends along -x."""
        r = self.uniform
        wall = self.surface("facade")
        self.box((-depth / 2, 0, height / 2), (depth / 2, length / 2, height / 2), wall)
        if height < 9 and self.chance(0.6):  # a pitched roof: a box that stands on its edge
            side = depth / math.sqrt(2) * r(0.95, 1.1)
            turn = rotation_zyx(0.0, math.pi / 4, 0.0)
            half = (side / 2, length / 2 + r(0, 0.4), side / 2)
            self.add(BOX, (-depth / 2, 0, height), half, self.surface("roof"), turn)
        elif self.chance(0.5):  # a flat roof that overhangs
            out = r(0.05, 0.5)
            half = (depth / 2 + out, length / 2 + out, 0.12)
            self.box((-depth / 2, 0, height), half, self.surface("roof"))
        glass = self.glass()
        floors, columns = int(height / 3), int(length / r(2.2, 4.5))
        if columns and floors and self.chance(0.75):
            wide, tall = r(0.3, 0.42) * length / columns, r(0.5, 0.8)
            sunk = r(0.01, 0.06)
            for floor in range(min(floors, 4)):
                for k in range(min(columns, 7)):
                    y = (k + 0.5) / columns * length - length / 2
                    self.box((0, y, floor * 3 + 1.7), (sunk, wide, tall), glass)
        elif floors and self.chance(0.6):  # bands of windows
            for floor in range(min(floors, 6)):
                self.box((0, 0, floor * 3 + 1.8), (0.03, length * 0.47, r(0.4, 0.8)), glass)
        if self.chance(0.5):
            y = r(-0.4, 0.4) * length
            self.box((0.02, y, 1.05), (0.04, 0.55, 1.05), self.surface("paint"))
        if self.chance(0.25):  # a porch or a bay
            half = (r(0.4, 1.2), r(0.8, 2.0), r(1.2, 1.8))
            self.box((half[0], r(-0.3, 0.3) * length, half[2]), half, self.surface("facade"))

    def glass(self) -> Material:
        dark = self.uniform(0.02, 0.5)
        hue = self.uniform(0.5, 0.7)
        palette = tuple(tuple(self.colour(hue, 0.2, dark * (1 + k / 2))) for k in range(3))
        return Material(TEXTURE_NAMES.index("fbm"), 4.0, palette, self.uniform(0.3, 1.5))

    def tree(self) -> None:
        r = self.uniform
        tall, thick = r(1.2, 4.0), r(0.06, 0.3)
        self.add(CYLINDER, (0, 0, tall / 2), (thick, thick, tall / 2), self.surface("bark"))
        leaves, crown = self.surface("foliage"), r(0.8, 2.6)
        slim = r(0.5, 1.1)
        for _ in range(int(self.rng.integers(5, 15))):
            size = crown * r(0.2, 0.5)
            aside = crown * slim
            at = (r(-0.6, 0.6) * aside, r(-0.6, 0.6) * aside, tall + r(-0.1, 1.3) * crown)
            turn = rotation_zyx(r(-3, 3), r(-0.5, 0.5))
            self.add(ELLIPSOID, at, (size, size * r(0.5, 1.0), size * r(0.4, 0.9)), leaves, turn)

    def bush(self) -> None:
        leaves, r = self.surface("foliage"), self.uniform
        for _ in range(int(self.rng.integers(1, 5))):
            size = r(0.25, 0.9)
            at = (r(-0.7, 0.7), r(-0.7, 0.7), size * r(0.3, 0.8))
            self.add(ELLIPSOID, at, (size, size * r(0.7, 1.2), size * r(0.7, 1.1)), leaves)

    def car(self) -> None:
        """Add a car, van or lorry that faces x, with a dark sheet on the ground as its shadow."""
        r = self.uniform
        paint, dark, glass = self.surface("paint", r(0.1, 1.2)), self.material("dark"), self.glass()
        kind = self.rng.random()
        long, wide = r(1.8, 2.4), r(0.8, 0.95)
        wheel, foot = r(0.29, 0.36), r(0.2, 0.32)
        self.box((0, 0, 0.012), (long * 0.97, wide * 0.95, 0.003), dark)
        if kind < 0.68:
            waist, roof = r(0.8, 1.05), r(1.35, 1.8)
            middle, front, cabin = r(-0.35, 0.1), r(0.5, 0.65), r(1.0, 1.35)
            self.box((0, 0, (foot + waist) / 2), (long, wide, (waist - foot) / 2), paint)
            centre = (middle, 0.0, (waist + roof) / 2 - 0.04)
            self.box(centre, (cabin, wide * 0.9, (roof - waist) / 2 - 0.04), glass)
            self.box((middle, 0, roof - 0.04), (cabin * front * 1.3, wide * 0.9, 0.045), paint)
            for x in (-cabin, cabin):  # the slopes of both screens
                turn = rotation_zyx(0.0, math.copysign(r(0.5, 0.9), -x))
                at = (middle + x, 0, (waist + roof) / 2 - 0.1)
                self.add(BOX, at, (0.04, wide * 0.86, (roof - waist) / 1.9), glass, turn)
        else:  # a van; a lorry has a box behind its cab
            roof = r(1.9, 2.4) if kind < 0.88 else r(2.4, 3.4)
            long = r(2.2, 2.8) if kind < 0.88 else r(3.0, 5.0)
            load = paint if kind < 0.88 else self.surface("paint")
            self.box(
                (-0.4, 0, (foot + roof) / 2), (long - 0.4, wide * 1.1, (roof - foot) / 2), load
            )
            self.box((long - 0.4, 0, 0.9), (0.55, wide * 1.05, 0.9 - foot / 2), paint)
            self.box((long - 0.5, 0, 1.75), (0.3, wide, 0.3), glass)
        for x in (-0.62 * long, 0.62 * long):
            for y in (-wide, wide):
                half = (wheel, wheel, 0.12)
                self.add(CYLINDER, (x, y * 0.93, wheel), half, dark, WHEEL)
        lights = self.light_material(r(0.2, 1.5))
        for y in (-0.7, 0.7):
            self.box((long, y * wide, (foot + 0.9) / 2), (0.03, 0.16, 0.07), lights)
            self.box((-long, y * wide, (foot + 0.95) / 2), (0.03, 0.14, 0.08), self.red())

    def red(self) -> Material:
        tone = tuple(self.colour(self.uniform(-0.02, 0.03), 0.9, self.uniform(0.3, 0.9)))
        return Material(0, 1.0, (tone, tone, tone), 0.3, self.uniform(0, 1.0))

    def pole(self) -> None:
        """Add a lamp, a sign, a traffic light, a bollard or a bare mast."""
        r = self.uniform
        metal = self.material("metal") if self.chance(0.7) else self.surface("paint")
        choice = self.rng.random()
        tall = r(0.6, 1.2) if choice < 0.15 else r(2.2, 3.5) if choice < 0.6 else r(4.0, 9.0)
        thick = r(0.03, 0.06) if tall < 4 else r(0.06, 0.15)
        self.add(CYLINDER, (0, 0, tall / 2), (thick, thick, tall / 2), metal)
        if 0.15 <= choice < 0.6:
            half = (0.02, r(0.2, 0.6), r(0.2, 0.5))
            m = self.material("print") if self.chance(0.5) else self.surface("paint")
            self.box((thick + 0.02, 0, tall - half[2]), half, m)
        elif choice >= 0.75:
            arm, side = r(0.5, 1.6), 1 if self.chance(0.5) else -1
            self.box((0, side * arm, tall - 0.05), (0.04, arm, 0.04), metal)
            half = (0.12, 0.25, 0.08) if self.chance(0.6) else (0.15, 0.17, 0.45)
            self.box((0, side * 2 * arm, tall - half[2]), half, self.material("dark"))

    def person(self) -> None:
        r = self.uniform
        tall = r(1.1, 1.9)
        cloth, legs = self.surface("cloth"), self.surface("cloth")
        for y in (-0.1, 0.1):
            at = (r(-0.12, 0.12), y, tall * 0.24)
            self.add(CYLINDER, at, (0.08, 0.08, tall * 0.24), legs)
        trunk = (0.14, r(0.18, 0.26), tall * 0.2)
        self.add(ELLIPSOID, (0, 0, tall * 0.64), (*trunk[:2], tall * 0.22), cloth)
        for y in (-1, 1):
            self.add(CYLINDER, (0, y * trunk[1], tall * 0.62), (0.05, 0.05, tall * 0.17), cloth)
        head = tuple(self.colour(r(0.02, 0.1), r(0.2, 0.6), r(0.2, 0.9)))
        at = (0, 0, tall * 0.93)
        self.add(ELLIPSOID, at, (0.09, 0.08, 0.12), Material(0, 1.0, (head, head, head)))

    def fence(self, length: float) -> None:
        """Add a fence, a hedge or a wall along y."""
        r, choice = self.uniform, self.rng.random()
        tall = r(0.6, 2.0)
        if choice < 0.35:
            m = self.surface("foliage")
            self.box((0, 0, tall / 2), (r(0.2, 0.6), length / 2, tall / 2), m)
        elif choice < 0.65:
            self.box((0, 0, tall / 2), (r(0.08, 0.2), length / 2, tall / 2), self.surface("facade"))
        else:
            m = self.surface("paint") if self.chance(0.5) else self.material("wood")
            count = min(int(length / r(0.8, 2.5)) + 1, 10)
            for k in range(count):
                y = (k / max(count - 1, 1) - 0.5) * length
                self.box((0, y, tall / 2), (0.04, 0.04, tall / 2), m)
            for level in (0.4, 0.9):
                self.box((0, 0, tall * level), (0.025, length / 2, 0.05), m)

    def crates(self) -> None:
        """Add a stack of boxes, barrels and bins."""
        r, level = self.uniform, 0.0
        for _ in range(int(self.rng.integers(1, 4))):
            side, high = r(0.2, 0.7), r(0.2, 0.7)
            m = self.material("wood") if self.chance(0.5) else self.surface("paint")
            kind = BOX if self.chance(0.7) else CYLINDER
            turn = rotation_zyx(r(-0.4, 0.4))
            self.add(kind, (0, 0, level + high / 2), (side / 2, side / 2, high / 2), m, turn)
            level += high

    # -------------------------------------------------------- the scene

    def along(self, half_road: float) -> tuple[float, float]:
        """Draw a place beside the road, more often near the origin: x in m and the sign of y."""
        return self.uniform(-1, 1) ** 3 * 70 + self.uniform(-12, 12), self.sign()

    def sign(self) -> float:
        return 1.0 if self.chance(0.5) else -1.0

    def scatter(self, piece: Any, count: int, low: float, high: float) -> None:
        """Add `count` pieces at distances from `low` to `high` from the middle of the road, m."""
        for _ in range(count):
            x, side = self.along(low)
            self.at(x, side * self.uniform(low, high), 0.0, self.uniform(-math.pi, math.pi))
            piece()

    def road(self, half_width: float, far: float) -> None:
        """Add the road and its lines, along x; sometimes a crossing."""
        asphalt = self.surface("asphalt" if self.chance(0.85) else "soil")
        self.at(0, 0)
        self.box((0, 0, 0.0), (far, half_width, 0.01), asphalt)
        if self.chance(0.8):
            line = self.surface("line")
            wide = self.uniform(0.05, 0.12)
            if self.chance(0.6):
                for y in (-half_width + 0.3, half_width - 0.3):
                    self.box((0, y, 0.0), (far, wide, 0.016), line)
            if self.chance(0.3):
                self.box((0, 0, 0.0), (far, wide, 0.016), line)
            else:
                dash = self.uniform(0.8, 3.0)
                for k in range(-4, 9):
                    self.box((k * dash * 3.2, 0, 0.0), (dash / 2, wide, 0.016), line)
        if self.chance(0.25):  # a crossing
            line, x = self.surface("line"), self.uniform(4, 20)
            for k in range(int(half_width)):
                for y in {k + 0.5, -k - 0.5}:
                    self.box((x, y, 0.0), (1.5, 0.25, 0.018), line)

    def traffic(self, half_road: float, count: int) -> None:
        for _ in range(count):
            x, side = self.along(half_road)
            parked = self.chance(0.5)
            y = half_road - 1.1 if parked else half_road * self.uniform(0.4, 0.55)
            x = x if abs(x) > 6 or parked else math.copysign(self.uniform(7, 30), x)
            heading = (0.0 if side < 0 else math.pi) + float(self.rng.normal(0, 0.04))
            if self.chance(0.1):
                heading = self.uniform(-math.pi, math.pi)
            self.at(x, side * y, 0.0, heading)
            self.car()

    def houses(self, setback: float, tallest: float, gap: float) -> None:
        """Add a row of houses on each side of the road."""
        r = self.uniform
        for side in (-1.0, 1.0):
            x = r(-35, -15)
            while x < 130:
                length, height = r(6, 26), r(3, tallest)
                if self.chance(0.85):
                    self.at(x + length / 2, side * (setback + r(0, 3)), 0.0, -side * math.pi / 2)
                    self.building(length, r(6, 18), height)
                x += length + (0.0 if self.chance(0.4) else r(0.5, gap))

    def hills(self, far: float) -> None:
        r = self.uniform
        for _ in range(int(self.rng.integers(0, 6))):
            angle, distance = r(-math.pi, math.pi), r(0.5, 0.95) * far
            self.at(distance * math.cos(angle), distance * math.sin(angle), -2.0)
            name = "foliage" if self.chance(0.6) else "grass"
            half = (r(15, 60), r(15, 60), r(4, 25))
            self.add(ELLIPSOID, (0, 0, 0), half, self.surface(name))

    def street(self, far: float) -> float:
        r, integers = self.uniform, self.rng.integers
        half_road, walk = r(3.0, 8.0), r(1.2, 4.0)
        self.road(half_road, far)
        for side in (-1, 1):
            m = self.surface("pavement")
            at = (0.0, side * (half_road + walk / 2), 0.0)
            self.box(at, (far, walk / 2, r(0.06, 0.18)), m)
        edge = half_road + walk
        self.houses(edge + (r(0, 2) if self.chance(0.6) else r(2, 12)), r(5, 30), r(1, 14))
        self.traffic(half_road, int(integers(3, 14)))
        self.scatter(self.pole, int(integers(2, 9)), half_road + 0.3, edge)
        self.scatter(self.tree, int(integers(0, 7)), half_road + 0.5, edge + 3)
        self.scatter(self.person, int(integers(0, 6)), half_road * 0.5, edge)
        self.scatter(self.crates, int(integers(0, 3)), half_road + 0.5, edge)
        self.scatter(self.bush, int(integers(0, 4)), edge, edge + 4)
        return half_road

    def country(self, far: float) -> float:
        r, integers = self.uniform, self.rng.integers
        half_road = r(1.8, 5.0)
        self.road(half_road, far)
        self.hills(far)
        if self.chance(0.5):
            self.houses(half_road + r(4, 20), r(4, 9), r(10, 60))
        self.traffic(half_road, int(integers(0, 6)))
        self.scatter(self.tree, int(integers(4, 16)), half_road + 1, half_road + 25)
        self.scatter(self.bush, int(integers(3, 12)), half_road + 0.8, half_road + 10)
        self.scatter(self.pole, int(integers(0, 6)), half_road + 0.5, half_road + 4)
        for side in (-1, 1):
            if self.chance(0.4):
                self.at(r(0, 20), side * (half_road + r(1, 4)), 0.0, math.pi / 2)
                self.fence(r(20, 60))
        return half_road

    def yard(self, far: float) -> float:
        r, integers = self.uniform, self.rng.integers
        open_m = r(3.0, 9.0)
        if self.chance(0.5):
            self.hills(far)
        for _ in range(int(integers(1, 5))):
            angle, distance = r(-math.pi, math.pi), open_m + r(3, 30)
            self.at(distance * math.cos(angle), distance * math.sin(angle), 0.0, angle + math.pi)
            self.building(r(5, 30), r(5, 20), r(3, 12))
        for _ in range(int(integers(0, 4))):
            angle = r(-math.pi, math.pi)
            distance = open_m + r(1, 6)
            self.at(distance * math.cos(angle), distance * math.sin(angle), 0.0, angle)
            self.fence(r(5, 20))
        for piece, most in (
            (self.tree, 8), (self.bush, 8), (self.car, 5), (self.crates, 8), (self.person, 5),
            (self.pole, 5),
        ):  # fmt: skip
            self.scatter(piece, int(integers(0, most)), 1.5, open_m + 12)
        return open_m

    def build(self) -> Room:
        r = self.uniform
        far = r(SKY_M, 2 * SKY_M)
        self.half = np.array([far, far, far / 2])
        width = getattr(self, self.style)(far)
        ground = self.surface(str(self.rng.choice(["grass", "soil", "pavement", "asphalt"])))
        sky = self.sky()
        lamps = []
        if self.chance(0.6):  # otherwise the sky is overcast
            turn, height = r(-math.pi, math.pi), r(0.2, 1.2)
            at = np.array([math.cos(turn), math.sin(turn)]) * math.cos(height)
            place = SUN_M * np.array([*at, math.sin(height)])
            lamps.append(Lamp(place, self.lamp_colour(r(0.4, 2.0)) * SUN_M**2))
        horizon: F64 = np.array(sky.palette[2]) * r(0.7, 1.3) * sky.emission
        return Room(
            self.half,
            (sky, sky, sky, sky, ground, sky),
            tuple(self.primitives),
            tuple(lamps),
            r(0.3, 1.3) * np.array([r(0.85, 1.0), r(0.9, 1.05), r(0.9, 1.2)]),
            int(self.rng.integers(TEXTURE_SETS)),
            self.style,
            np.array([r(4, 12), r(-0.7, 0.7) * width, r(0.3, 1.6)]),
            r(60, 2000) if self.chance(0.5) else math.inf,
            horizon,
        )
