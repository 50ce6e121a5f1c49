# SPDX-License-Identifier: Apache-2.0
"""Simulated drives and walks past boxes, with truth, to evaluate the field's memory on a robot.

`python -m tests.helpers.sequences` compares memory on and off for every kind and condition.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.config import replace
from depth_node.fitting import FitConfig
from depth_node.fitting.field.memory import FieldState, Pose
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction
from tests.helpers.fits import fit

WIDTH, HEIGHT = 320, 240
CAMERA = Camera(WIDTH, HEIGHT, 220.0, 220.0, 159.5, 99.5)
FRAME_NS = 100_000_000
FIELD = FitConfig(method="field")
FRAMES, FIRST_SCORED = 12, 3
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in the world (x right, y down, z forward), m. velocity: m per frame."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    colour: tuple[float, float, float]
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class View:
    """A rendered frame: image (H, W, 3); depth (H, W) m; body (H, W), the index of the box seen."""

    image: NDArray[np.uint8]
    depth: F32
    body: NDArray[np.int64]
    T_world_camera: F64


@dataclass(frozen=True)
class Kind:
    """A kind of sequence: boxes and the camera's pose in each frame. still: nothing moves."""

    boxes: Sequence[Box]
    path: Sequence[F64]
    still: bool = False
    views: list[View] = field(default_factory=list)


def render(boxes: Sequence[Box], T_world_camera: F64, frame: int) -> View:
    """Render the nearest box along every ray, with a pattern that is fixed to the box."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    rays = np.stack(
        [
            (cols - CAMERA.cx) / CAMERA.fx,
            (rows - CAMERA.cy) / CAMERA.fy,
            np.ones((HEIGHT, WIDTH), np.float32),
        ]
    ).reshape(3, -1)
    direction = (T_world_camera[:3, :3] @ rays).astype(np.float32)
    direction = np.where(np.abs(direction) < 1e-6, np.float32(1e-6), direction)
    depth: F32 = np.full(HEIGHT * WIDTH, np.inf, np.float32)
    body: NDArray[np.int64] = np.full(HEIGHT * WIDTH, -1)
    face: NDArray[np.int64] = np.zeros(HEIGHT * WIDTH, np.int64)
    for number, box in enumerate(boxes):
        origin = T_world_camera[:3, 3] - frame * np.array(box.velocity)
        a = (np.array(box.low) - origin).astype(np.float32)[:, None] / direction
        b = (np.array(box.high) - origin).astype(np.float32)[:, None] / direction
        near = np.minimum(a, b)
        enter, leave = near.max(axis=0), np.maximum(a, b).min(axis=0)
        hit = (enter < leave) & (enter > 0.05) & (enter < depth)
        depth[hit], body[hit], face[hit] = enter[hit], number, near.argmax(axis=0)[hit]
    colour = np.array([box.colour for box in boxes], np.float32)[body]
    velocity = np.array([box.velocity for box in boxes], np.float32)[body]
    place = (T_world_camera[:3, 3:4] + direction * depth).T - frame * velocity
    wave = np.zeros(HEIGHT * WIDTH, np.float32)
    for axis in range(3):
        across = place[:, axis] * (face != axis)
        for wavelength, size in ((0.35, 8.0), (1.1, 12.0), (4.0, 14.0)):
            wavelength = np.maximum(wavelength, depth / 40)  # no pattern finer than 5 px
            wave += size * np.sin(2 * np.pi * across / wavelength + body + axis).astype(np.float32)
    light = np.array([0.8, 1.1, 0.95], np.float32)[face]
    noise = np.random.default_rng(frame).normal(0, 2, (HEIGHT * WIDTH, 3))
    painted = colour * light[:, None] + wave[:, None] + noise
    image = np.clip(painted, 0, 255).astype(np.uint8).reshape(HEIGHT, WIDTH, 3)
    shape = (HEIGHT, WIDTH)
    return View(image, depth.reshape(shape), body.reshape(shape), T_world_camera)


# --- where ---------------------------------------------------------------------------------------


def street(moving: Sequence[Box] = ()) -> list[Box]:
    """Return a road between houses, with parked cars and posts; the camera is 1.5 m above it."""
    rng = np.random.default_rng(4)
    boxes = [Box((-60, 1.5, -30), (60, 2.5, 120), (110, 110, 115))]
    boxes.append(Box((-90, -90, 90), (90, 5, 95), (150, 175, 200)))
    for side in (-1, 1):
        z = -5.0
        while z < 90:
            length, setback = rng.uniform(5, 11), rng.uniform(5.5, 10)
            near, far = sorted((side * setback, side * 40))
            hue = tuple(rng.uniform(80, 200, 3))
            boxes.append(Box((near, -rng.uniform(4, 9), z), (far, 1.5, z + length), hue))
            z += length + rng.uniform(0, 4)
        for z in np.arange(4, 50, 9.0) + rng.uniform(0, 5):
            x = side * 3.9
            hue = tuple(rng.uniform(30, 220, 3))
            boxes.append(Box((x - 0.9, 0.1, z), (x + 0.9, 1.5, z + 4.2), hue))
            x = side * 5.1
            boxes.append(Box((x - 0.1, -3.5, z + 5), (x + 0.1, 1.5, z + 5.2), (60, 60, 60)))
    return [*boxes, *moving]


def hall(moving: Sequence[Box] = ()) -> list[Box]:
    """Return a furnished room, 8 m wide and up to 7 m deep ahead of the camera."""
    rng = np.random.default_rng(9)
    boxes = [
        Box((-5, 1.2, -4), (5, 2, 9), (140, 120, 100)),
        Box((-5, -2.5, -4), (5, -1.6, 9), (215, 215, 210)),
        Box((-5, -2, 7), (5, 2, 8), (185, 190, 170)),
        Box((-5, -2, -4), (-4, 2, 9), (170, 180, 195)),
        Box((4, -2, -4), (5, 2, 9), (195, 175, 165)),
    ]
    for _ in range(14):
        x, z = rng.uniform(-3.8, 3.8), rng.uniform(1.8, 6.8)
        if abs(x) < 0.9 and z < 4:
            continue
        half, height = rng.uniform(0.15, 0.5), rng.uniform(0.4, 2.2)
        hue = tuple(rng.uniform(30, 230, 3))
        boxes.append(Box((x - half, 1.2 - height, z - half), (x + half, 1.2, z + half), hue))
    return [*boxes, *moving]


def cars() -> list[Box]:
    """Return a leading car that slowly drives away, two oncoming ones and one that crosses."""
    return [
        Box((-1.2, 0.0, 9), (0.7, 1.5, 13), (200, 60, 50), (0.0, 0.0, 0.30)),
        Box((1.4, 0.1, 22), (3.2, 1.5, 26), (50, 80, 190), (0.0, 0.0, -0.55)),
        Box((1.3, -0.9, 36), (3.4, 1.5, 43), (210, 200, 60), (0.0, 0.0, -0.5)),
        Box((-5.0, 0.2, 16), (-1.6, 1.5, 17.8), (60, 170, 90), (0.25, 0.0, 0.0)),
    ]


def people() -> list[Box]:
    """Return two people, one who walks across and one who comes towards the camera."""
    return [
        Box((-1.6, -0.5, 2.4), (-1.15, 1.2, 2.8), (200, 60, 60), (0.10, 0.0, 0.0)),
        Box((1.2, -0.5, 5.2), (1.7, 1.2, 5.6), (60, 60, 190), (-0.05, 0.0, -0.13)),
    ]


# --- how the camera moves ------------------------------------------------------------------------


def turned(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> F64:
    """Return the rotation (3, 3) by degrees about the camera's y, x and z, in this order."""
    vectors = np.radians([[pitch, 0, 0], [0, yaw, 0], [0, 0, roll]])
    x, y, z = (cv2.Rodrigues(vector)[0] for vector in vectors)
    return np.asarray(y @ x @ z)


def pose(place: Sequence[float], yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> F64:
    T: F64 = np.eye(4)
    T[:3, :3], T[:3, 3] = turned(yaw, pitch, roll), place
    return T


def standing() -> list[F64]:
    return [pose((0, 0, 0))] * FRAMES


def forward(speed: float) -> list[F64]:
    """Return poses (4, 4) of a drive ahead on a slightly uneven road; speed: m per frame."""
    bump = np.random.default_rng(1).normal(0, 0.05, FRAMES)
    return [pose((0, 0, speed * k), pitch=bump[k]) for k in range(FRAMES)]


def turning(rate: float, speed: float = 0.0) -> list[F64]:
    """Return poses (4, 4) of a turning drive; rate: degrees per frame, speed: m per frame."""
    places, place = [], np.zeros(3)
    for k in range(FRAMES):
        yaw = rate * (k - FRAMES / 2)
        places.append(pose(tuple(place), yaw))
        place = place + turned(yaw) @ np.array([0, 0, speed])
    return places


def hand_held() -> list[F64]:
    rng = np.random.default_rng(2)
    angles = np.cumsum(rng.normal(0, [0.4, 0.3, 0.3], (FRAMES, 3)), axis=0)
    places = np.cumsum(rng.normal(0, [0.015, 0.01, 0.015], (FRAMES, 3)), axis=0)
    return [pose(tuple(places[k]), *angles[k]) for k in range(FRAMES)]


KINDS: dict[str, Callable[[], Kind]] = {
    "standing street": lambda: Kind(street(), standing(), still=True),
    "standing hall": lambda: Kind(hall(), standing(), still=True),
    "standing, traffic": lambda: Kind(street(cars()), standing()),
    "standing, people": lambda: Kind(hall(people()), standing()),
    "slow drive, traffic": lambda: Kind(street(cars()), forward(0.15)),
    "drive, traffic": lambda: Kind(street(cars()), forward(0.6)),
    "drive": lambda: Kind(street(), forward(0.4)),
    "turning drive": lambda: Kind(street(), turning(1.0, 0.2)),
    "turning in hall": lambda: Kind(hall(), turning(2.0)),
    "slowly into hall": lambda: Kind(hall(), forward(0.04)),
    "hand-held": lambda: Kind(hall(), hand_held()),
    "hand-held, people": lambda: Kind(hall(people()), hand_held()),
}


@functools.cache
def kind(name: str) -> Kind:
    """Return the named kind of sequence with its frames rendered."""
    made = KINDS[name]()
    made.views.extend(render(made.boxes, T, k) for k, T in enumerate(made.path))
    return made


# --- what is measured and predicted --------------------------------------------------------------


def bend(seed: int, amplitude: float, cells: tuple[int, int] = (5, 6)) -> F64:
    coarse = np.random.default_rng(seed).normal(0, amplitude, cells)
    return np.exp(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def blurred(view: View, frame: int) -> Prediction:
    """Predict like a weak network: soft edges, and for every box a scale that stays in time."""
    scale = np.exp(np.random.default_rng(5).normal(0, 0.12, 200))[view.body]
    disparity = cv2.GaussianBlur(1 / (view.depth * scale), (0, 0), 2.0)
    return Prediction((3 * disparity + 0.4).astype(np.float32), "disparity_affine_invariant")


def bent(view: View, frame: int) -> Prediction:
    """Predict with sharp edges, a constant smooth error of 8 % and one of 2 % per frame."""
    wrong = bend(0, 0.08) * bend(100 + frame, 0.02)
    disparity = cv2.GaussianBlur(1 / (view.depth * wrong), (0, 0), 0.5)
    return Prediction((3 * disparity + 0.4).astype(np.float32), "disparity_affine_invariant")


def sharp(view: View, frame: int) -> Prediction:
    """Predict like a foundation network: smooth errors of 3 %."""
    disparity = 1 / (view.depth * bend(frame // 4, 0.03, (4, 5)))
    return Prediction((3 * disparity + 0.4).astype(np.float32), "disparity_affine_invariant")


NETWORKS = {"blurred": blurred, "bent": bent, "sharp": sharp}


def scattered(view: View, frame: int, count: int = 300, noise: float = 0.02) -> SparseDepth:
    rng = np.random.default_rng([frame, 1, count])
    rows, cols = np.divmod(rng.permutation(HEIGHT * WIDTH)[:count], WIDTH)
    return SparseDepth.from_arrays(
        rows, cols, view.depth[rows, cols] * (1 + noise * rng.standard_normal(count))
    )


def many(view: View, frame: int) -> SparseDepth:
    return scattered(view, frame, 1500, 0.005)


def lines(view: View, frame: int, gap: int = 14, step: int = 3) -> SparseDepth:
    """Measure scan lines that move with the robot, with 2 cm of noise."""
    rng = np.random.default_rng([frame, 2])
    rows, cols = np.meshgrid(np.arange(10, HEIGHT, gap), np.arange(rng.integers(step), WIDTH, step))
    rows, cols = rows.ravel(), cols.ravel()
    return SparseDepth.from_arrays(
        rows, cols, view.depth[rows, cols] + rng.normal(0, 0.02, len(rows))
    )


def dense_lines(view: View, frame: int) -> SparseDepth:
    return lines(view, frame, 5, 2)


POINTS = {"300 points": scattered, "1500 points": many, "lines": lines, "dense lines": dense_lines}


def no_pose(T: F64, frame: int) -> Pose | None:
    return None


def right_pose(T: F64, frame: int) -> Pose | None:
    return Pose(CAMERA.matrix, T)


def frozen_pose(T: F64, frame: int) -> Pose | None:
    """Return the pose of odometry that reports no motion."""
    return Pose(CAMERA.matrix, np.eye(4))


def crooked_pose(T: F64, frame: int) -> Pose | None:
    """Return the pose under extrinsics rotated by 90 degrees: forward becomes sideways."""
    E = pose((0, 0, 0), yaw=90.0)
    return Pose(CAMERA.matrix, E @ T @ np.linalg.inv(E))


def trembling_pose(T: F64, frame: int) -> Pose | None:
    rng = np.random.default_rng([frame, 3])
    return Pose(CAMERA.matrix, T @ pose(rng.normal(0, 0.03, 3), *rng.normal(0, 0.4, 3)))


POSES = {
    "none": no_pose,
    "right": right_pose,
    "frozen": frozen_pose,
    "crooked": crooked_pose,
    "trembling": trembling_pose,
}


# --- memory on and off ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Means over the scored frames with (on) and without (off) the memory.

    error: AbsRel. inside: fraction inside the 95 % interval; worst_inside: least difference of it,
    on minus off, in one frame. flicker: median |log ratio| of consecutive frames. moving: AbsRel on
    moving boxes. remembered: mean weight of the past.
    """

    error_off: float
    error_on: float
    inside_off: float
    inside_on: float
    worst_inside: float
    flicker_off: float
    flicker_on: float
    moving_off: float
    moving_on: float
    remembered: float

    @property
    def ratio(self) -> float:
        return self.error_on / self.error_off

    @property
    def inside_change(self) -> float:
        return self.inside_on - self.inside_off

    @property
    def flicker_ratio(self) -> float:
        return self.flicker_on / self.flicker_off


@functools.cache
def without_memory(name: str, network: str, points: str) -> list[tuple[F32, F32]]:
    """Fit every frame without memory; return depth and standard deviation, (H, W) m each."""
    out = []
    config = replace(FIELD, {"field.temporal.enabled": False})
    for frame, view in enumerate(kind(name).views):
        measured = POINTS[points](view, frame)
        given = NETWORKS[network](view, frame)
        result = fit(given, measured, image=view.image, config=config)
        out.append((result.depth, result.std))
    return out


def score(name: str, network: str, points: str, posed: str = "none") -> Score:
    """Score the named sequence with and without memory."""
    sequence, state = kind(name), FieldState()
    moves = np.array([any(box.velocity) for box in sequence.boxes])
    rows, answers = [], []
    for frame, view in enumerate(sequence.views):
        measured = POINTS[points](view, frame)
        state.at((frame + 1) * FRAME_NS, POSES[posed](view.T_world_camera, frame))
        given = NETWORKS[network](view, frame)
        both = fit(given, measured, image=view.image, config=FIELD, state=state)
        alone = without_memory(name, network, points)[frame]
        answers.append((alone[0], both.depth))
        if frame < FIRST_SCORED:
            continue
        scored: NDArray[np.bool_] = np.ones(view.depth.shape, bool)
        scored[measured.rows, measured.cols] = False
        moving = scored & moves[view.body]
        row = []
        for depth, std in (alone, (both.depth, both.std)):
            wrong = np.abs(depth - view.depth)
            relative = wrong / view.depth
            share = np.mean((wrong <= NORMAL_95 * std)[scored])
            row += [relative[scored].mean(), share]
            row.append(relative[moving].mean() if moving.any() else np.nan)
        rows.append([*row, state.details()["remembered"]])
    mean = np.mean(rows, axis=0)
    worst = float(min(row[4] - row[1] for row in rows))
    steps = [
        [np.median(np.abs(np.log(b[which] / a[which]))) for which in (0, 1)]
        for a, b in itertools.pairwise(answers[FIRST_SCORED:])
    ]
    off, on = np.mean(steps, axis=0)
    return Score(mean[0], mean[3], mean[1], mean[4], worst, off, on, mean[2], mean[5], mean[6])


def main() -> None:
    parser = argparse.ArgumentParser()
    for option, choices in (
        ("--kinds", KINDS),
        ("--networks", NETWORKS),
        ("--points", POINTS),
        ("--poses", POSES),
    ):
        parser.add_argument(option, nargs="*", default=list(choices))
    args = parser.parse_args()
    print(
        f"{'kind':20} {'network':8} {'points':12} {'pose':10} AbsRel off  on/off  moving"
        "  inside off  change  worst  flicker  remembered"
    )
    for name in args.kinds:
        for network, points, posed in itertools.product(args.networks, args.points, args.poses):
            if kind(name).still and posed in ("frozen", "crooked"):
                continue
            s = score(name, network, points, posed)
            bad = "  <--" if s.ratio > 1.01 or s.inside_change < -0.02 else ""
            print(
                f"{name:20} {network:8} {points:12} {posed:10} {s.error_off:10.4f} {s.ratio:7.3f}"
                f" {s.moving_on / s.moving_off:7.3f} {s.inside_off:11.3f} {s.inside_change:7.3f}"
                f" {s.worst_inside:6.3f} {s.flicker_ratio:8.2f} {s.remembered:11.2f}{bad}",
                flush=True,
            )


if __name__ == "__main__":
    main()
