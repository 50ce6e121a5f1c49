# SPDX-License-Identifier: Apache-2.0
"""Render the frames of tests/assets/frames anew: python -m tests.assets.make_frames [FOLDER].

Rooms of depth_node.simulation, a network that errs as networks do, and a LiDAR beside the camera.
The same bits come out on the same machine; another's sines may move a rounding here and there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.prediction import Prediction
from depth_node.simulation.renderer import LidarPattern, Scene
from depth_node.simulation.viewpoints import random_view

FRAMES = Path(__file__).parent / "frames"
HEIGHT, WIDTH = 150, 200
DEPTH_STEP_M = 1 / 2048  # of the stored depth, uint16: up to 32 m
VALUE_STEPS = 4095  # of the stored prediction, from its lowest to its highest value

# name: style of the room, its seed, what the network gives
PLANS = {
    "room": ("room", 40, "disparity_affine_invariant"),
    "hall": ("room", 25, "depth_affine_invariant"),
    "desk": ("desk", 7, "log_depth_affine_invariant"),
    "shelf": ("shelf", 41, "disparity_affine_invariant"),
    "bin": ("bin", 5, "depth_affine_invariant"),
}
SWEPT = "hall"  # the frame that a LiDAR saw too
BEND = 0.1  # standard deviation of the network's smooth error, in log depth
EDGE_BLUR_PX = 1.6
GRAIN = 0.01  # fine error in log depth, in patches of a few pixels
T_CAMERA_LIDAR = ((0.0, -1.0, 0.0, 0.25), (0.0, 0.0, -1.0, -0.2), (1.0, 0.0, 0.0, -0.1))


@dataclass(frozen=True)
class Frame:
    """image (H, W, 3) uint8; depth (H, W) float32 m; labels (H, W) int32; prediction of the depth.

    focal_px: fx = fy, the principal point is the image's middle. points_lidar: (N, 3) float32 m, or
    (0, 3) for a frame that no LiDAR saw.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    labels: NDArray[np.int32]
    prediction: Prediction
    focal_px: float
    points_lidar: NDArray[np.float32]

    @classmethod
    def read(cls, name: str, folder: Path = FRAMES) -> Frame:
        """A stored frame."""
        with np.load(folder / f"{name}.npz") as stored:
            low, high = stored["value_range"]
            values = low + (high - low) / VALUE_STEPS * _running(stored["value_steps"])
            return cls(
                image=_running(stored["image"]).astype(np.uint8),
                depth=(_running(stored["depth_steps"]) * DEPTH_STEP_M).astype(np.float32),
                labels=stored["labels"].astype(np.int32),
                prediction=Prediction(values.astype(np.float32), str(stored["kind"])),
                focal_px=float(stored["focal_px"]),
                points_lidar=stored["points_lidar"].astype(np.float32),
            )


def render(name: str) -> dict[str, NDArray[Any]]:
    """The arrays of a frame as they are stored."""
    style, seed, kind = PLANS[name]
    scene = Scene.random(seed, style)
    rng = np.random.default_rng(seed)
    camera, T_world_camera = random_view(scene, rng, WIDTH, HEIGHT)
    seen = scene.render(camera, T_world_camera)
    points = np.zeros((0, 3), np.float32)
    if name == SWEPT:
        T_camera_lidar = np.vstack([T_CAMERA_LIDAR, (0, 0, 0, 1)])
        pattern = LidarPattern(32, 300, (-35.0, 25.0), (-50.0, 50.0), range_noise_m=0.01)
        points = scene.lidar(T_world_camera @ T_camera_lidar, pattern, seed)
    values = network(seen.depth, kind, rng).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    steps = np.round((values - low) / (high - low) * VALUE_STEPS)
    return {
        "image": _differences(seen.image),
        "depth_steps": _differences(np.round(seen.depth / DEPTH_STEP_M)),
        "labels": seen.labels.astype(np.uint8),
        "value_range": np.array([low, high]),
        "value_steps": _differences(steps),
        "kind": np.array(kind),
        "focal_px": np.array(camera.fx),
        "points_lidar": points.astype(np.float16),
    }


def network(
    depth: NDArray[np.float32], kind: str, rng: np.random.Generator
) -> NDArray[np.floating]:
    """What a network would give for a depth: soft edges, bent and grainy, no scale and no shift."""
    log_depth = np.log(depth)
    soft = cv2.GaussianBlur(log_depth, (0, 0), EDGE_BLUR_PX)
    bend = cv2.resize(rng.normal(0, BEND, (4, 5)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    grain = cv2.GaussianBlur(rng.normal(0, 1, (HEIGHT, WIDTH)), (0, 0), 2)
    log_depth = soft + bend + GRAIN / grain.std() * grain
    if kind.startswith("disparity"):
        return 3 * np.exp(-log_depth) + 0.4
    return 0.7 * np.exp(log_depth) + 0.5 if kind.startswith("depth") else 0.8 * log_depth - 1


def _differences(values: NDArray[Any]) -> NDArray[Any]:
    """Each column less the one before (mod 2^8 or 2^16): small numbers, which compress well."""
    stored = values if values.dtype == np.uint8 else values.astype(np.uint16)
    return np.diff(stored, axis=1, prepend=np.zeros_like(stored[:, :1]))


def _running(differences: NDArray[Any]) -> NDArray[Any]:
    return np.cumsum(differences, axis=1, dtype=differences.dtype)


def main(folder: Path = FRAMES) -> None:
    """Write all frames."""
    folder.mkdir(exist_ok=True)
    for name in PLANS:
        path = folder / f"{name}.npz"
        np.savez_compressed(path, **render(name))
        print(f"{path}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main(*(Path(folder) for folder in sys.argv[1:]))
