# SPDX-License-Identifier: Apache-2.0
"""Camera poses in a scene: random views of several objects, and walks through free space."""

from __future__ import annotations

import math

import numpy as np

from depth_node.geometry.camera import Camera
from depth_node.simulation.outdoors import OUTDOORS
from depth_node.simulation.renderer import F64, Scene


def look_at(position: F64, target: F64, roll: float = 0.0) -> F64:
    """Return T_world_camera (4, 4) at `position` (3,) with the optical axis through `target` (3,).

    roll: in radians.
    """
    forward = np.asarray(target, np.float64) - np.asarray(position, np.float64)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    if np.linalg.norm(right) < 1e-6:  # the axis is vertical
        right = np.array([0.0, -1.0, 0.0])
    right = right / np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    c, s = math.cos(roll), math.sin(roll)
    pose[:3, :3] = np.stack([c * right + s * down, c * down - s * right, forward], axis=1)
    pose[:3, 3] = position
    return pose


_PROBE = Camera(16, 12, 11.0, 11.0, 7.5, 5.5)


def random_view(
    scene: Scene, rng: np.random.Generator, width: int, height: int
) -> tuple[Camera, F64]:
    """Draw a camera of 45 to 85 degrees and T_world_camera (4, 4) with several primitives in view.

    If 40 draws fail, the camera looks down from above at the room's focus.
    """
    view = math.radians(float(rng.uniform(45, 85)))
    focal = width / 2 / math.tan(view / 2)
    camera = Camera(width, height, focal, focal, width / 2 - 0.5, height / 2 - 0.5)
    min_near, min_median = (0.35, 0.9) if scene.style == "room" else (0.15, 0.25)
    if scene.style in OUTDOORS:
        min_near, min_median = 0.7, 2.0
    least_primitives = 6 if scene.style in OUTDOORS else 4
    for _ in range(40):
        position, target = _random_aim(scene, rng)
        if not scene.contains(position, 0.08)[0]:
            continue
        pose = look_at(position, target, roll=float(rng.normal(0, 0.035)))
        depth, primitive = scene.probe(_PROBE, pose)
        near, middle = np.percentile(depth, [3, 50])
        if (
            len(np.unique(primitive)) >= least_primitives
            and near > min_near
            and middle > min_median
        ):
            return camera, pose
    above = np.array([0.0, 0.0, 4.0 if scene.style in OUTDOORS else scene.room.half[2] * 1.4])
    return camera, look_at(above, scene.room.focus + 1e-3)


def _random_aim(scene: Scene, rng: np.random.Generator) -> tuple[F64, F64]:
    """Draw position and target, (3,) m each, of a camera that is typical of the style."""
    half, focus = scene.room.half, scene.room.focus
    if scene.style == "room":
        on_floor = rng.uniform(-1, 1, 2) * (half[:2] - 0.25)
        position = np.array([*on_floor, rng.uniform(0.25, min(1.9, 2 * half[2] - 0.3))])
        yaw = math.atan2(-on_floor[1], -on_floor[0]) + rng.normal(0, 0.7)
        return position, position + _direction(yaw, rng.normal(-0.12, 0.17))
    if scene.style in OUTDOORS:
        return _outdoor_aim(focus, rng)
    distance = float(rng.uniform(0.3, 1.6) if scene.style == "desk" else rng.uniform(0.25, 1.1))
    steep = {"desk": (0.15, 1.1), "bin": (0.5, 1.45), "shelf": (-0.3, 0.6)}[scene.style]
    pitch, yaw = rng.uniform(*steep), rng.uniform(-math.pi, math.pi)
    if scene.style == "shelf":  # the camera stands in front of the shelf
        front = scene.room.primitives[0].axes[:, 0]
        yaw = math.atan2(front[1], front[0]) + rng.normal(0, 0.35)
    position = focus + distance * _direction(yaw, pitch)
    return position, focus + rng.normal(0, 0.08, 3) * distance


def _outdoor_aim(focus: F64, rng: np.random.Generator) -> tuple[F64, F64]:
    """Draw position and target, (3,) m each: from a small robot's height to a lorry's, mostly along
    the road.
    """
    height = rng.uniform(0.25, 1.2) if rng.random() < 0.4 else rng.uniform(1.2, 2.6)
    position = np.array([rng.uniform(-8, 8), focus[1] + rng.normal(0, 1.0), height])
    yaw = rng.normal(0.0, 0.25) + (math.pi if rng.random() < 0.25 else 0.0)
    if rng.random() < 0.25:
        yaw = rng.uniform(-math.pi, math.pi)
    return position, position + _direction(yaw, rng.normal(-0.05, 0.1))


def _direction(yaw: float, pitch: float) -> F64:
    """Return the unit vector (3,) at a heading and an elevation in radians."""
    flat = math.cos(pitch)
    return np.array([math.cos(yaw) * flat, math.sin(yaw) * flat, math.sin(pitch)])


def camera_path(scene: Scene, n: int, seed: int = 0) -> F64:
    """Return T_world_camera (n, 4, 4) of a smooth closed walk whose views look across the room.

    Of several random loops the best is taken: outside primitives, nothing close to the lens, far
    views. Raises ValueError if n is below 1.
    """
    if n < 1:
        raise ValueError(f"A camera path needs at least one pose, not {n}.")
    rng = np.random.default_rng(seed)
    best: F64 = np.empty((0, 2, 3))
    best_score = -math.inf
    for _ in range(24):
        loop = _loop(scene, rng, n)
        free = scene.contains(loop[:, 0], 0.15).mean()
        looks = loop[:: max(n // 12, 1)]
        depth = np.stack([scene.probe(_PROBE, look_at(*aim))[0] for aim in looks])
        score = 6 * free + min(float(depth.min()), 0.6) + 0.15 * float(np.median(depth))
        if score > best_score:
            best, best_score = loop, score
    return np.stack([look_at(*aim) for aim in best])


def _loop(scene: Scene, rng: np.random.Generator, n: int) -> F64:
    """Draw positions and targets (n, 2, 3) m of a closed ellipse at the height of a hand-held
    camera, which looks past the middle of the room.
    """
    half = scene.room.half
    phase = 2 * math.pi * (np.arange(n) / n) + rng.uniform(0, 2 * math.pi)
    reach = rng.uniform(0.35, 0.75, 2) * (half[:2] - 0.3)
    height = rng.uniform(1.1, 1.6) + 0.12 * np.sin(2 * phase)
    position = np.stack([reach[0] * np.cos(phase), reach[1] * np.sin(phase), height], axis=1)
    lead = phase + rng.uniform(-0.5, 0.5)
    far = -0.45 * half[:2]
    level = np.full(n, rng.uniform(0.4, 0.9))
    target = np.stack([far[0] * np.cos(lead), far[1] * np.sin(lead), level], axis=1)
    return np.stack([position, target], axis=1)
