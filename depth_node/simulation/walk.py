# SPDX-License-Identifier: Apache-2.0
"""Rendering of a walk through a procedural room as frame folders with truth and LiDAR."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.simulation.renderer import LidarPattern, Scene
from depth_node.simulation.viewpoints import camera_path

Progress = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]

# The LiDAR (x forward, y left, z up) sits 8 cm above and 3 cm behind the camera (optical frame).
T_CAMERA_LIDAR = np.array(
    [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -0.08], [1.0, 0.0, 0.0, -0.03], [0.0, 0.0, 0.0, 1.0]]
)
LIDAR = LidarPattern(beams=16, azimuth_steps=900, range_noise_m=0.01)
NOTE = "rendered.json"  # file in a folder of rendered frames that says what was rendered
STEPS_OF_WALK = 160  # the views are half of a closed walk through the room


def render_walk(
    folder: Path, count: int, seed: int, size: tuple[int, int], progress: Progress
) -> None:
    """Render `count` views of a room as frame folders, unless the folder has them already.

    Further views that an earlier call has rendered into the folder are removed. size: (height,
    width) px. progress(label, total): context manager whose value is a function to call after each
    step.
    """
    note = folder / NOTE
    request = {"seed": seed, "size": list(size), "count": count}
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if before == request:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Until all views are there, the note says that they are not those of any request.
    most = max(count, before.get("count", 0))
    note.write_text(json.dumps({"count": most, "complete": False}), encoding="utf-8")
    for index in range(count, most):
        shutil.rmtree(folder / _view_name(index), ignore_errors=True)
    # Spawn, because forking a process in which the thread of a progress bar runs may hang.
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, 8, count)
    with (
        progress("rendering a room", count) as advance,
        ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts) as pool,
    ):
        futures = [pool.submit(_render_view, folder, seed, size, index) for index in range(count)]
        try:
            for future in as_completed(futures):
                future.result()
                advance("")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    note.write_text(json.dumps(request), encoding="utf-8")


def _view_name(index: int) -> str:
    return f"view_{index:04d}"


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@lru_cache(maxsize=1)
def _walk(seed: int) -> tuple[Scene, NDArray[np.float64]]:
    """Return the room and the poses T_world_camera (STEPS_OF_WALK, 4, 4) of a walk through it."""
    scene = Scene.random(seed)
    return scene, camera_path(scene, STEPS_OF_WALK, seed)


def _render_view(folder: Path, seed: int, size: tuple[int, int], index: int) -> None:
    """Write one view as a frame folder (layout: depth_node.recordings.frames)."""
    scene, path = _walk(seed)
    height, width = size
    focal = 0.8 * width
    camera = Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    view = scene.render(camera, path[index])
    points = scene.lidar(path[index] @ T_CAMERA_LIDAR, LIDAR, seed=index)
    view_folder = folder / _view_name(index)
    view_folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(view_folder / "rgb.png"), cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR))
    np.savez(view_folder / "depth.npz", depth=view.depth)
    np.save(view_folder / "lidar.npy", points)
    intrinsics = {key: getattr(camera, key) for key in ("fx", "fy", "cx", "cy", "width", "height")}
    (view_folder / "intrinsics.json").write_text(json.dumps(intrinsics), encoding="utf-8")
    calibration = {"T_cam_lidar": T_CAMERA_LIDAR.tolist()}
    (view_folder / "calib.json").write_text(json.dumps(calibration), encoding="utf-8")
