# SPDX-License-Identifier: Apache-2.0
"""Random rooms: tables, shelves, chairs, totes and lamps between walls, with their materials."""

from __future__ import annotations

import math

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

STYLES = ("room", "desk", "bin", "shelf")
FREE_TRIES = 12  # random places to try for a piece


def furnish(rng: np.random.Generator, style: str) -> Room:
    """Return a random room; `style` is one of STYLES and selects its centrepiece."""
    return _RoomBuilder(rng, style).build()


class _RoomBuilder(SceneBuilder):
    """Builder of a room from pieces."""

    def __init__(self, rng: np.random.Generator, style: str) -> None:
        super().__init__(rng, style)
        self.taken: list[tuple[float, float, float]] = []  # x, y, radius on the floor

    def free(self, radius: float, wall: bool = False) -> tuple[float, float, float] | None:
        """Draw a pose (x, y, yaw) whose surroundings within `radius` are free, at a wall or
        anywhere, and mark it as taken; None if FREE_TRIES draws find no free one.
        """
        hx, hy = self.half[0], self.half[1]
        for _ in range(FREE_TRIES):
            if wall:
                side = int(self.rng.integers(4))
                yaw = side * math.pi / 2  # the front faces away from the wall
                depth = self.uniform(0.02, 0.05)
                along = self.uniform(-1, 1) * ((hy if side % 2 == 0 else hx) - radius)
                x, y = (
                    (-hx + depth, along),
                    (along, -hy + depth),
                    (hx - depth, along),
                    (along, hy - depth),
                )[side]
            else:
                x, y = (
                    self.uniform(-1, 1) * (hx - radius - 0.1),
                    self.uniform(-1, 1) * (hy - radius - 0.1),
                )
                yaw = (
                    self.uniform(-math.pi, math.pi)
                    if self.chance(0.4)
                    else math.pi / 2 * self.rng.integers(4)
                )
            if all(math.hypot(x - a, y - b) > radius + r for a, b, r in self.taken):
                self.taken.append((x, y, radius))
                return x, y, float(yaw)
        return None

    # -------------------------------------------------------- pieces

    def table(self, length: float, width: float, height: float, items: int = 4) -> None:
        top = self.material(
            str(self.rng.choice(["wood", "plastic", "wall", "metal"], p=[0.6, 0.1, 0.2, 0.1]))
        )
        leg = top if self.chance(0.5) else self.material("metal")
        thick = self.uniform(0.012, 0.03)
        self.box((0, 0, height - thick), (width / 2, length / 2, thick), top)
        foot = self.uniform(0.015, 0.045)
        if self.chance(0.75):
            kind = BOX if self.chance(0.6) else CYLINDER
            for sx in (-1, 1):
                for sy in (-1, 1):
                    at = (
                        sx * (width / 2 - foot - 0.03),
                        sy * (length / 2 - foot - 0.03),
                        height / 2 - thick,
                    )
                    self.add(kind, at, (foot, foot, height / 2 - thick), leg)
        else:
            for sy in (-1, 1):
                at = (0, sy * (length / 2 - 0.06), height / 2 - thick)
                self.box(at, (width / 2 * 0.9, 0.015, height / 2 - thick), leg)
            if self.chance(0.6):
                self.box(
                    (-width / 2 + 0.05, 0, height * 0.6),
                    (0.01, length / 2 - 0.08, height * 0.25),
                    leg,
                )
        self.clutter(items, width / 2 * 0.85, length / 2 * 0.88, height)

    def clutter(
        self, count: int, half_x: float, half_y: float, ground: float, limit: float = 0.45
    ) -> None:
        """Add small objects, lower than `limit`, on a rectangle 2 half_x by 2 half_y at height
        `ground`, m.
        """
        placed: list[tuple[float, float, float]] = []
        for _ in range(count):
            x, y = self.uniform(-half_x, half_x), self.uniform(-half_y, half_y)
            gap = min([math.hypot(x - a, y - b) - r for a, b, r in placed], default=1.0)
            size = min(self.uniform(0.03, 0.16), gap * 0.8, half_x * 1.2, half_y * 1.2, limit)
            if size < 0.02:
                continue
            placed.append((x, y, size))
            self.small_object(x, y, ground, size, limit)

    def small_object(self, x: float, y: float, z: float, size: float, limit: float) -> None:
        """Add one small object of about radius `size`, lower than `limit`, at (x, y, z), m."""
        r = self.uniform
        yaw = rotation_zyx(r(-math.pi, math.pi))
        choice = self.rng.random()
        if choice < 0.34:  # a package or a stack of books
            level = z
            for _ in range(1 if self.chance(0.7) else int(self.rng.integers(2, 5))):
                half = (size * r(0.4, 0.8), size * r(0.4, 0.8), min(size * r(0.1, 1.2), limit / 2))
                if level + 2 * half[2] > z + limit:
                    break
                m = self.material(
                    str(
                        self.rng.choice(
                            ["print", "plastic", "wood", "fabric"], p=[0.5, 0.3, 0.1, 0.1]
                        )
                    )
                )
                self.add(BOX, (x, y, level + half[2]), half, m, yaw @ rotation_zyx(r(-0.15, 0.15)))
                level += 2 * half[2]
        elif choice < 0.58:  # a can, a cup, a bottle
            radius, tall = min(size * 0.5, r(0.025, 0.06)), min(size * r(0.5, 1.5), limit / 2.6)
            m = self.material("print" if self.chance(0.4) else "plastic")
            self.add(CYLINDER, (x, y, z + tall), (radius, radius, tall), m)
            if self.chance(0.4):
                neck = tall * 0.3
                self.add(
                    CYLINDER,
                    (x, y, z + 2 * tall + neck),
                    (radius * 0.4, radius * 0.4, neck),
                    self.material("plastic"),
                )
        elif choice < 0.72:  # a ball, a fruit, a bowl
            radius = min(size * r(0.5, 0.9), limit / 2)
            flat = r(0.7, 1.0)
            self.add(
                ELLIPSOID,
                (x, y, z + radius * flat),
                (radius, radius, radius * flat),
                self.material("plastic"),
            )
        elif choice < 0.82:  # a leaning book or panel
            half = (r(0.006, 0.02), size * 0.7, min(size, limit / 2.2))
            tilt = r(-0.35, 0.35)
            up = half[2] * math.cos(tilt) + half[0] * abs(math.sin(tilt))
            self.add(BOX, (x, y, z + up), half, self.material("print"), yaw @ rotation_zyx(0, tilt))
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
                self.add(
                    ELLIPSOID, at, leaf, self.leaf(), yaw @ rotation_zyx(r(-3, 3), r(-0.5, 0.5))
                )
        else:  # a flat thing: keyboard, plate, paper
            m = self.material(str(self.rng.choice(["dark", "print", "wall"])))
            self.add(BOX, (x, y, z + 0.006), (size * r(0.3, 0.6), size, 0.006), m, yaw)

    def leaf(self) -> Material:
        green = tuple(
            tuple(self.colour(self.uniform(0.22, 0.38), 0.6, v)) for v in (0.25, 0.4, 0.55)
        )
        return Material(TEXTURE_NAMES.index("fbm"), 0.2, green)

    def chair(self) -> None:
        seat, frame = (
            self.material("fabric"),
            self.material("metal" if self.chance(0.5) else "wood"),
        )
        r = self.uniform
        w, h, back = r(0.2, 0.26), r(0.42, 0.5), r(0.18, 0.3)
        self.box((0, 0, h - 0.025), (w, w, 0.025), seat)
        self.box((-w + 0.02, 0, h + back + r(0.02, 0.15)), (0.02, w * 0.95, back), seat)
        if self.chance(0.4):  # office chair
            self.add(CYLINDER, (0, 0, h / 2), (0.03, 0.03, h / 2 - 0.04), frame)
            for k in range(5):
                self.add(
                    BOX,
                    (0.14 * math.cos(k * 1.2566), 0.14 * math.sin(k * 1.2566), 0.05),
                    (0.14, 0.02, 0.02),
                    frame,
                    rotation_zyx(k * 1.2566),
                )
            self.box((-w + 0.02, 0, h + 0.08), (0.012, 0.03, 0.12), frame)
        else:
            for sx in (-1, 1):
                for sy in (-1, 1):
                    tall = h + back if sx < 0 else h - 0.05
                    self.box(
                        (sx * (w - 0.02), sy * (w - 0.02), tall / 2),
                        (0.016, 0.016, tall / 2),
                        frame,
                    )

    def shelf(
        self, width: float, depth: float, height: float, boards: int, fill: float = 0.7
    ) -> None:
        m = self.material("wood" if self.chance(0.6) else str(self.rng.choice(["metal", "wall"])))
        board = self.uniform(0.009, 0.02)
        for sy in (-1, 1):
            self.box(
                (depth / 2, sy * (width / 2 - board), height / 2), (depth / 2, board, height / 2), m
            )
        if self.chance(0.8):
            self.box((0.008, 0, height / 2), (0.006, width / 2, height / 2), m)
        step = height / boards
        for k in range(boards + 1):
            self.box(
                (depth / 2, 0, min(k * step + board, height)),
                (depth / 2, width / 2 - board, board),
                m,
            )
        for k in range(boards):
            ground, inside = k * step + 2 * board, step - 3 * board
            if not self.chance(fill):
                continue
            if self.chance(0.5) and inside > 0.18:  # a row of books
                high = min(inside * self.uniform(0.6, 0.92), 0.32)
                long = width / 2 * self.uniform(0.3, 0.9)
                off = self.uniform(-1, 1) * (width / 2 - board - long)
                deep = depth / 2 * self.uniform(0.5, 0.85)
                self.box(
                    (deep + 0.02, off, ground + high / 2),
                    (deep, long, high / 2),
                    self.material("books"),
                )
            else:
                self.at_shift(depth / 2)
                self.clutter(
                    int(self.rng.integers(2, 6)), depth * 0.3, width * 0.42, ground, inside
                )
                self.at_shift(-depth / 2)

    def cabinet(self, width: float, depth: float, height: float, items: int = 2) -> None:
        m = self.material(
            "wood" if self.chance(0.6) else str(self.rng.choice(["wall", "metal", "plastic"]))
        )
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
                self.box(
                    (depth + 0.025, y, z + half[2] * 0.6),
                    (0.01, min(0.06, half[1] * 0.5), 0.008),
                    handle,
                )
        if height < 1.6:
            self.at_shift(depth / 2)
            self.clutter(items, depth * 0.35, width * 0.42, height)
            self.at_shift(-depth / 2)

    def sofa(self) -> None:
        m = self.material("fabric")
        long, deep, seat = (
            self.uniform(0.7, 1.1),
            self.uniform(0.38, 0.48),
            self.uniform(0.36, 0.45),
        )
        self.box((deep, 0, seat / 2), (deep, long, seat / 2), m)
        self.box((0.1, 0, seat + 0.2), (0.1, long, 0.22), m)
        for sy in (-1, 1):
            self.box((deep, sy * (long + 0.08), seat * 0.75), (deep, 0.08, seat * 0.75), m)
        for _ in range(int(self.rng.integers(0, 4))):
            turn = rotation_zyx(self.uniform(-0.3, 0.3), -0.35)
            self.add(
                BOX,
                (0.3, self.uniform(-1, 1) * long * 0.8, seat + 0.19),
                (0.06, 0.19, 0.18),
                self.material("fabric"),
                turn,
            )

    def plant(self) -> None:
        self.add(CYLINDER, (0, 0, 0.15), (0.14, 0.14, 0.15), self.material("plastic"))
        self.add(CYLINDER, (0, 0, 0.5), (0.02, 0.02, 0.25), self.material("wood"))
        r = self.uniform
        for _ in range(int(self.rng.integers(6, 13))):
            half = (r(0.02, 0.05), r(0.06, 0.12), r(0.14, 0.28))
            at = (r(-0.2, 0.2), r(-0.2, 0.2), r(0.55, 1.2))
            self.add(ELLIPSOID, at, half, self.leaf(), rotation_zyx(r(-3, 3), r(-0.8, 0.8)))

    def floor_lamp(self, lamps: list[Lamp]) -> None:
        tall = self.uniform(1.3, 1.7)
        m = self.material("metal")
        self.add(CYLINDER, (0, 0, 0.015), (0.14, 0.14, 0.015), m)
        self.add(CYLINDER, (0, 0, tall / 2), (0.014, 0.014, tall / 2), m)
        self.add(CYLINDER, (0, 0, tall + 0.1), (0.16, 0.16, 0.13), self.light_material(1.2))
        lamps.append(
            Lamp(
                self.origin + np.array([0, 0, tall + 0.32]),
                self.lamp_colour(self.uniform(0.8, 2.0)),
            )
        )

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

    def on_wall(self) -> None:
        """Add a door, a window, a poster, a pillar or a radiator at a wall."""
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
            sky = tuple(
                tuple(self.colour(0.58, s, v)) for s, v in ((0.1, 0.9), (0.25, 0.95), (0.45, 0.9))
            )
            pane = Material(TEXTURE_NAMES.index("fbm"), 2.0, sky, 0.0, self.uniform(0.3, 2.0))
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

    # -------------------------------------------------------- the room

    def build(self) -> Room:
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
        self.place_pieces(int(2 + density * area * 0.28), int(density * area * 0.16), lamps)
        for _ in range(int(self.rng.integers(2, 8))):
            self.on_wall()
        if self.chance(0.5):  # skirting boards
            m = self.material("wood" if self.chance(0.5) else "wall")
            tall = r(0.03, 0.06)
            for k in range(4):
                span = self.half[1] if k % 2 == 0 else self.half[0]
                reach = self.half[0] if k % 2 == 0 else self.half[1]
                self.at(0, 0, 0, k * math.pi / 2)
                self.box((reach - 0.01, 0, tall), (0.01, span, tall), m)
        self.ceiling_lamps(lamps)
        ambient = r(0.12, 0.6) * np.array([1.0, r(0.9, 1.05), r(0.8, 1.15)])
        return Room(
            self.half,
            tuple(room),
            tuple(self.primitives),
            tuple(lamps),
            ambient,
            int(self.rng.integers(TEXTURE_SETS)),
            self.style,
            focus,
        )

    def centrepiece(self) -> F64:
        """Build the centrepiece of a close-up style and return the point to look at, (3,) m."""
        r = self.uniform
        if self.style == "desk":
            height, length, width = r(0.65, 0.8), r(1.2, 2.0), r(0.65, 1.0)
            x, y, yaw = r(-0.4, 0.4), r(-0.4, 0.4), r(-math.pi, math.pi)
            self.taken.append((x, y, length / 2 + 0.2))
            self.at(x, y, 0, yaw)
            self.table(length, width, height, int(self.rng.integers(6, 16)))
            if self.chance(0.4):  # a partition behind the desk
                self.box(
                    (-width / 2 - 0.05, 0, 0.7),
                    (0.02, length / 2 + 0.2, r(0.5, 0.75)),
                    self.material("fabric"),
                )
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
            if self.chance(0.5):  # a second tote beside it
                self.at(x, y, base, yaw)
                self.at_shift(2 * half_x + 0.08)
                self.tote(half_x, half_y, height, int(self.rng.integers(0, 8)))
            self.at(x, y, base, yaw)
            spot = np.array([r(-0.5, 0.5) * half_x, r(-0.5, 0.5) * half_y, height * 0.3])
        elif self.style == "shelf":
            width, depth, height, boards = (
                r(0.5, 1.3),
                r(0.25, 0.55),
                r(1.0, 2.0),
                int(self.rng.integers(2, 5)),
            )
            x, y, yaw = r(-0.4, 0.4), r(-0.4, 0.4), r(-math.pi, math.pi)
            self.taken.append((x, y, 0.9))
            self.at(x, y, 0, yaw)
            self.shelf(width, depth, height, boards, fill=0.95)
            level = int(self.rng.integers(boards))
            spot = np.array([depth * 0.5, r(-0.25, 0.25) * width, (level + 0.4) * height / boards])
        else:
            return np.array([r(-0.4, 0.4), r(-0.4, 0.4), r(0.5, 1.2)]) * np.array(
                [self.half[0], self.half[1], 1.0]
            )
        return self.origin + self.rotation @ spot

    def place_pieces(self, standing: int, middle: int, lamps: list[Lamp]) -> None:
        r = self.uniform
        for _ in range(standing):
            choice = self.rng.random()
            radius = r(0.35, 0.75)
            pose = self.free(radius, wall=True)
            if pose is None:
                continue
            self.at(pose[0], pose[1], 0.0, pose[2])
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
            pose = self.free(radius)
            if pose is None:
                continue
            self.at(pose[0], pose[1], 0.0, pose[2])
            if choice < 0.35:
                self.table(
                    radius * 1.7, radius * r(0.9, 1.3), r(0.35, 0.85), int(self.rng.integers(1, 7))
                )
            elif choice < 0.7:
                self.chair()
            elif choice < 0.85:  # crates
                side = radius * r(0.5, 0.75)
                level = 0.0
                for _ in range(int(self.rng.integers(1, 4))):
                    half = (side * r(0.7, 1), side * r(0.7, 1), r(0.12, 0.3))
                    m = self.material(str(self.rng.choice(["wood", "plastic", "print"])))
                    self.add(BOX, (0, 0, level + half[2]), half, m, rotation_zyx(r(-0.3, 0.3)))
                    level += 2 * half[2]
            elif choice < 0.92:
                tall = r(0.3, 1.0)
                self.add(
                    CYLINDER,
                    (0, 0, tall / 2),
                    (radius * 0.6, radius * 0.6, tall / 2),
                    self.material("plastic"),
                )
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
                self.box(
                    (0, 0, height - 0.02),
                    (r(0.1, 0.3), r(0.25, 0.6), 0.02),
                    self.light_material(2.5),
                )
            else:
                self.add(
                    ELLIPSOID,
                    (0, 0, height - drop + 0.14),
                    (0.11, 0.11, 0.11),
                    self.light_material(2.5),
                )
                self.add(
                    CYLINDER,
                    (0, 0, height - drop / 2 + 0.1),
                    (0.008, 0.008, drop / 2),
                    self.material("dark"),
                )
            lamps.append(
                Lamp(np.array([x, y, height - drop]), self.lamp_colour(power / math.sqrt(count)))
            )
