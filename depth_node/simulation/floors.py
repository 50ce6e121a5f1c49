# SPDX-License-Identifier: Apache-2.0
"""Simulated robot on the flat floor of a hall, with or without an obstacle ahead: image, LiDAR and
exact depth.

The robot's base frame is on the floor, x forward, z up; its camera looks ahead and down. Its LiDAR
sits above the camera (walk.T_CAMERA_LIDAR).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import invert_rigid, transform
from depth_node.obstacles import camera_above_ground
from depth_node.prediction import Prediction
from depth_node.simulation.primitives import BOX, Material, Primitive, Room
from depth_node.simulation.renderer import LidarPattern, Rendered, Scene
from depth_node.simulation.textures import TEXTURE_NAMES, TEXTURE_SETS
from depth_node.simulation.walk import T_CAMERA_LIDAR

F64 = NDArray[np.float64]

HALL_HALF_M = (13.0, 13.0, 1.6)
CAMERA_HEIGHT_M, CAMERA_PITCH_DEG = 0.5, 12.0  # the pitch is downwards
CAMERA = Camera(640, 480, 460.0, 460.0, 319.5, 239.5)
FLOOR_TEXTURES = ("plain", "tiles", "planks", "speckle", "noise", "checker", "marble")
RATE_HZ = 10.0
SPEED_M_S, CIRCLE_M = 0.5, 2.0  # radius about the middle of the hall; walls are 9 m away or more
TERRAIN_M = 2.0  # from the robot to the beginning of a ramp, a kerb or a drop
_BLUR_PX, _RIPPLE, _RIPPLE_PX = 1.2, 0.03, 60.0


@dataclass(frozen=True)
class FloorFrame:
    """The robot's observation at one time (input) and the truth (view).

    T_base_camera: (4, 4). view: image, exact depth and labels; the box, ramp, kerb or platform has
    the last label.
    """

    input: FrameInput
    view: Rendered
    T_base_camera: F64


class FloorWorld:
    """A hall whose floor, walls and light are drawn from a seed, with a robot in it.

    lines, range_noise_m: scan lines of the LiDAR and standard deviation of its range noise.
    """

    def __init__(
        self,
        seed: int,
        *,
        lines: int = 32,
        range_noise_m: float = 0.01,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.seed, self.camera = seed, CAMERA
        self.T_base_camera = camera_above_ground(CAMERA_HEIGHT_M, CAMERA_PITCH_DEG)
        self.lidar = LidarPattern(lines, 900, (-25.0, 15.0), (-60.0, 60.0), range_noise_m)
        names = list(self.rng.choice(FLOOR_TEXTURES, 3))
        self._materials = [self._material(name, self.rng.uniform(0.5, 2.0)) for name in names]
        self._box = self._material("print", 0.3)
        self._light = self.rng.uniform(0.6, 1.5)
        self._set = int(self.rng.integers(TEXTURE_SETS))
        self._empty = self._scene(())

    def frame(
        self,
        number: int,
        box: tuple[float, float, float] | None = None,
        scans: int = 1,
        *,
        ramp_deg: float = 0.0,
        kerb_m: float = 0.0,
        drop_m: float = 0.0,
    ) -> FloorFrame:
        """Return frame `number` of a drive in a circle at 10 Hz.

        box: distance, offset to the left and edge length of a cube ahead of the robot, m. scans:
        number of last scans that accumulate, moved to the frame's time as the node does with
        `world_frame`. ramp_deg: slope of a ramp, 3 m long and wide, that begins TERRAIN_M ahead of
        the robot; kerb_m: height of a wide step up there; drop_m: height of a step down there. Give
        at most one of box, ramp_deg, kerb_m and drop_m.
        """
        T_world_base = _circle(number)
        scene = self._empty
        if ramp_deg or kerb_m or drop_m:
            T_world_base[2, 3] = drop_m
            scene = self._scene((self._terrain(T_world_base, ramp_deg, kerb_m, drop_m),))
        if box is not None:
            distance, offset, edge = box
            centre = T_world_base @ np.array([distance + edge / 2, offset, edge / 2, 1.0])
            half = np.full(3, edge / 2)
            scene = self._scene(
                (Primitive(BOX, centre[:3], T_world_base[:3, :3], half, self._box),)
            )
        T_world_camera = T_world_base @ self.T_base_camera
        view = scene.render(self.camera, T_world_camera, antialias=box is not None)
        T_world_lidar = T_world_camera @ T_CAMERA_LIDAR
        points = scene.lidar(T_world_lidar, self.lidar, self.seed + number)
        for earlier in range(number - 1, number - scans, -1):
            T_world_then = _circle(earlier)
            T_world_then[2, 3] = T_world_base[2, 3]
            T_world_then = T_world_then @ self.T_base_camera @ T_CAMERA_LIDAR
            then = scene.lidar(T_world_then, self.lidar, self.seed + earlier)
            moved = transform(invert_rigid(T_world_lidar) @ T_world_then, then)
            points = np.concatenate([points, moved.astype(np.float32)])
        frame = FrameInput(
            view.image, self.camera, points, T_CAMERA_LIDAR,
            stamp_ns=round((1 + number / RATE_HZ) * 1e9), T_world_camera=T_world_camera,
        )  # fmt: skip
        return FloorFrame(frame, view, self.T_base_camera)

    def _terrain(
        self, T_world_base: F64, ramp_deg: float, kerb_m: float, drop_m: float
    ) -> Primitive:
        """Return the ramp or kerb ahead of the robot, or the platform that it stands on."""
        angle, half = math.radians(ramp_deg), np.array([1.5, 1.5, 0.05])
        uphill, normal = (np.array([math.cos(angle), 0, math.sin(angle)]),
                          np.array([-math.sin(angle), 0, math.cos(angle)]))  # fmt: skip
        tilt = np.column_stack([uphill, [0.0, 1.0, 0.0], normal])
        centre = np.array([TERRAIN_M, 0.0, 0.0]) + half[0] * uphill - half[2] * normal
        if kerb_m:
            half = np.array([2.0, 3.0, kerb_m / 2])
            centre = np.array([TERRAIN_M + half[0], 0.0, kerb_m / 2])
        elif drop_m:
            half = np.array([4.0, 4.0, drop_m / 2])
            centre = np.array([TERRAIN_M - half[0], 0.0, -drop_m / 2])
        place = (T_world_base @ np.append(centre, 1.0))[:3]
        return Primitive(BOX, place, T_world_base[:3, :3] @ tilt, half, self._materials[0])

    def _material(self, texture: str, tile_m: float) -> Material:
        shade = self.rng.uniform(0.15, 0.6) * self.rng.uniform(0.7, 1.0, 3)
        steps = (0.6, 1.0, 1.3)
        palette = tuple(tuple(float(v) for v in np.clip(shade * s, 0.01, 1)) for s in steps)
        return Material(TEXTURE_NAMES.index(texture), tile_m, palette)

    def _scene(self, primitives: tuple[Primitive, ...]) -> Scene:
        floor, wall, ceiling = self._materials
        half = np.array(HALL_HALF_M)
        room = Room(
            half, (wall,) * 4 + (floor, ceiling), primitives, (),
            np.full(3, self._light), self._set, "room", np.zeros(3),
        )  # fmt: skip
        return Scene(room, shadow_px=64)


def _circle(number: int) -> F64:
    """Return T_world_base (4, 4) of frame `number` on the flat floor."""
    angle = SPEED_M_S / CIRCLE_M * number / RATE_HZ
    T_world_base = np.eye(4)
    T_world_base[:2, :2] = [
        [math.cos(angle), -math.sin(angle)],
        [math.sin(angle), math.cos(angle)],
    ]
    T_world_base[:2, 3] = CIRCLE_M * math.sin(angle), -CIRCLE_M * math.cos(angle)
    return T_world_base


def sharp_prediction(view: Rendered, seed: int) -> Prediction:
    """Return what a good foundation network would predict for a view: disparity (H, W) without
    scale, with edges about a pixel soft and errors of a few percent over wide areas.
    """
    height, width = view.depth.shape
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((int(height / _RIPPLE_PX) + 2, int(width / _RIPPLE_PX) + 2))
    ripple = cv2.resize(coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    disparity = (1 + _RIPPLE * ripple) / view.depth
    soft = cv2.GaussianBlur(disparity.astype(np.float32), (0, 0), _BLUR_PX)
    return Prediction(np.asarray(soft, np.float32), "disparity_affine_invariant")
