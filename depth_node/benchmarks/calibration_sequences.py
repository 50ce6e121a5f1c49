# SPDX-License-Identifier: Apache-2.0
"""Rendered walks with an exactly known LiDAR pose and time, by which calibration is evaluated."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.simulation.renderer import LidarPattern, Scene
from depth_node.simulation.viewpoints import camera_path
from depth_node.simulation.walk import T_CAMERA_LIDAR

CAMERA = Camera(320, 240, 256.0, 256.0, 159.5, 119.5)
STEP_S = 0.05  # between poses of the walk; every second pose has an image, at 10 Hz
LOOP_STEPS = 800  # of a loop of some 9 m through a room, in 40 s
LATE_S = 0.05
LINES = (16, 64)
VERSION = 2  # of the stored walks: raise it when what is rendered changes


@dataclass(frozen=True)
class RenderedWalk:
    """Images (F, H, W, 3) of a walk, its camera poses (F, 4, 4), and the scans of each image.

    points: by (lines, late) a list of F arrays (n, 3) in the LiDAR frame, m: measured at the
    image's time (late False) or LATE_S after it (late True). The LiDAR's pose in the camera frame
    is simulation.walk.T_CAMERA_LIDAR.
    """

    name: str
    images: NDArray[np.uint8]
    T_world_camera: NDArray[np.float64]
    points: dict[tuple[int, bool], list[NDArray[np.float32]]]

    def frames(
        self,
        lines: int,
        *,
        late: bool = False,
        T_camera_lidar: NDArray[np.float64] = T_CAMERA_LIDAR,
        odometry: bool = True,
    ) -> list[FrameInput]:
        """Return the frames as a node would receive them, with the stated pose T_camera_lidar
        (4, 4).
        """
        return [
            FrameInput(
                image,
                CAMERA,
                points,
                T_camera_lidar,
                stamp_ns=round(2 * STEP_S * 1e9) * number,
                T_world_camera=pose if odometry else None,
            )
            for number, (image, points, pose) in enumerate(
                zip(self.images, self.points[lines, late], self.T_world_camera, strict=True)
            )
        ]


def walk_poses(scene: Scene, seed: int, count: int) -> NDArray[np.float64]:
    """Return T_world_camera (count, 4, 4) every STEP_S, on a loop through the room with a camera
    that swings from side to side.
    """
    poses = camera_path(scene, LOOP_STEPS, seed)[:count]
    time_s = STEP_S * np.arange(len(poses))
    phase = np.random.default_rng([seed, 31]).uniform(0, 2 * np.pi, 3)
    yaw = np.deg2rad(12) * np.sin(2 * np.pi * time_s / 4.1 + phase[0])
    yaw += np.deg2rad(5) * np.sin(2 * np.pi * time_s / 2.3 + phase[1])
    pitch = np.deg2rad(2) * np.sin(2 * np.pi * time_s / 3.1 + phase[2])
    look = Rotation.from_euler("YX", np.stack([yaw, pitch], axis=1)).as_matrix()
    poses = poses.copy()
    poses[:, :3, :3] = poses[:, :3, :3] @ look
    return poses


def render_sequence(name: str, scene: Scene, poses: NDArray[np.float64]) -> RenderedWalk:
    """Render F images from poses (2 F + 1, 4, 4): at every second pose an image and the scans of
    both LiDARs, and at the pose after it the late scans.
    """
    patterns = {
        lines: LidarPattern(
            lines, azimuth_steps=300, horizontal_fov_deg=(-60.0, 60.0), range_noise_m=0.01
        )
        for lines in LINES
    }
    images = []
    points: dict[tuple[int, bool], list[NDArray[np.float32]]] = {}
    for number in range(0, len(poses) - 1, 2):
        images.append(scene.render(CAMERA, poses[number]).image)
        for lines, pattern in patterns.items():
            for late in (False, True):
                T_world_lidar = poses[number + late] @ T_CAMERA_LIDAR
                scan = scene.lidar(T_world_lidar, pattern, seed=2 * number + late)
                points.setdefault((lines, late), []).append(scan)
    return RenderedWalk(name, np.stack(images), poses[:-1:2], points)


def room_sequence(seed: int, frames: int, cache: Path | None = None) -> RenderedWalk:
    """Return a walk through the furnished room of a seed; read it from the cache if it is there."""
    path = None if cache is None else cache / f"room_{seed}_{frames}_v{VERSION}.npz"
    if path is not None and path.is_file():
        return _read(path)
    scene = Scene.random(seed)
    sequence = render_sequence(f"room {seed}", scene, walk_poses(scene, seed, 2 * frames + 1))
    if path is not None:
        _write(path, sequence)
    return sequence


def bare_wall_sequence(frames: int) -> RenderedWalk:
    """Return a drive along a wall of an empty room, where no depth discontinuity is in view."""
    furnished = Scene.random(0).room
    room = dataclasses.replace(furnished, half=np.array([6.0, 6.0, 4.0]), primitives=())
    poses = np.tile(np.eye(4), (2 * frames + 1, 1, 1))
    poses[:, :3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    poses[:, 0, 3] = 4.5
    poses[:, 1, 3] = 0.3 * STEP_S * np.arange(len(poses))
    poses[:, 2, 3] = 2.5
    return render_sequence("bare wall", Scene(room), poses)


def _write(path: Path, sequence: RenderedWalk) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "name": np.array(sequence.name),
        "images": sequence.images,
        "poses": sequence.T_world_camera,
    }
    for (lines, late), scans in sequence.points.items():
        arrays[f"points_{lines}_{int(late)}"] = np.concatenate(scans)
        arrays[f"counts_{lines}_{int(late)}"] = np.array([len(scan) for scan in scans])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(part, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def _read(path: Path) -> RenderedWalk:
    with np.load(path) as content:
        points = {}
        for lines in LINES:
            for late in (False, True):
                ends = np.cumsum(content[f"counts_{lines}_{int(late)}"])[:-1]
                points[lines, late] = np.split(content[f"points_{lines}_{int(late)}"], ends)
        return RenderedWalk(str(content["name"]), content["images"], content["poses"], points)
