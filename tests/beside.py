# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.beside CHECKOUT`: time of a frame here beside that of another checkout.

Both pipelines run with their defaults but for --set, each in a process of its own on one core, and
take turns frame by frame on the same rendered drive, so that whatever else the machine does
disturbs both.
The ratio is that of the medians, its interval from resampled pairs of frames (95 %).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.benchmarks.speed import machine
from depth_node.geometry.camera import Camera
from depth_node.simulation.renderer import LidarPattern, Scene
from depth_node.simulation.viewpoints import camera_path
from depth_node.simulation.walk import T_CAMERA_LIDAR
from tests.helpers import REPO

SIZE = (640, 480)
VIEWS = 16
PERIOD_NS = 100_000_000
WARM = 16  # frames that are not timed: they fill machine code, caches and the fit's memory

# The program that a checkout runs. It uses only what every checkout since FrameInput has.
CHILD = """
import json, sys, time
import numpy as np
from depth_node.config import override
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.pipeline import DepthPipeline, PipelineConfig

data = np.load(sys.argv[1])
camera = Camera(*map(int, data["size"]), *map(float, data["intrinsics"]))
with DepthPipeline(override(PipelineConfig(), sys.argv[2:])) as pipeline:
    pipeline.warm_up()
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        which = number % len(data["images"])
        frame = FrameInput(
            data["images"][which], camera, data[f"points_{which}"], data["T_camera_lidar"],
            stamp_ns=number * int(data["period_ns"]),
        )
        start, begin = time.perf_counter(), time.process_time()
        result = pipeline.process(frame)
        cpu, wall = time.process_time() - begin, time.perf_counter() - start
        print(json.dumps({"CPU": 1e3 * cpu, "clock": 1e3 * wall, **result.stage_ms}), flush=True)
"""


def render(path: Path, seed: int = 5) -> None:
    """Render a walk to and fro in a room, with a LiDAR of 16 lines, into an .npz."""
    width, height = SIZE
    camera = Camera(width, height, 0.8 * width, 0.8 * width, (width - 1) / 2, (height - 1) / 2)
    scene = Scene.random(seed)
    path_there = camera_path(scene, 200, seed)[: VIEWS // 2 + 1]
    poses = [*path_there, *path_there[-2:0:-1]]
    images = [scene.render(camera, pose).image for pose in poses]
    pattern = LidarPattern(16, 1800)
    points = {
        f"points_{number}": scene.lidar(pose @ T_CAMERA_LIDAR, pattern, number)
        for number, pose in enumerate(poses)
    }
    np.savez(
        path,
        images=np.stack(images),
        size=SIZE,
        intrinsics=(camera.fx, camera.fy, camera.cx, camera.cy),
        T_camera_lidar=T_CAMERA_LIDAR,
        period_ns=PERIOD_NS,
        **points,  # type: ignore[arg-type]
    )


class Checkout:
    """The pipeline of a checkout, in a process of its own."""

    def __init__(self, root: Path, frames: Path, settings: Sequence[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(frames), *settings],
            cwd=root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def frame(self) -> dict[str, float]:
        """Process the next frame and return its times by name, ms."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        times: dict[str, float] = json.loads(self._answer())
        return times

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a checkout's pipeline ended early: see its traceback above")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.communicate("")


def ratio(
    here: NDArray[np.float64], there: NDArray[np.float64], seed: int = 0
) -> tuple[float, float, float]:
    """Return the ratio of the medians of times (n,) of the same frames, and its 95 % interval."""
    chosen = np.random.default_rng(seed).integers(0, len(here), (2000, len(here)))
    ratios = np.median(here[chosen], axis=1) / np.median(there[chosen], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(np.median(here) / np.median(there)), float(low), float(high)


def measure(
    other: Path, frames: int, settings: Sequence[str] = ()
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Time `frames` frames; return, by what was timed, the times (frames,) here and there, ms."""
    times: dict[str, list[list[float]]] = defaultdict(lambda: [[], []])
    with tempfile.TemporaryDirectory(prefix="depth_beside_") as folder:
        data = Path(folder) / "frames.npz"
        render(data)
        pair = [Checkout(root, data, settings) for root in (REPO, other.resolve())]
        for number in range(WARM + frames):
            order = (0, 1) if number % 2 else (1, 0)
            for which in order:
                found = pair[which].frame()
                if number >= WARM:
                    for name, ms in found.items():
                        times[name][which].append(ms)
        for checkout in pair:
            checkout.close()
    return {
        name: (np.array(here), np.array(there))
        for name, (here, there) in times.items()
        if len(here) == len(there)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.beside", description=__doc__)
    parser.add_argument("checkout", type=Path, help="another checkout of this repository")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):  # before the pipelines count their cores
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    times = measure(options.checkout, options.frames, options.settings)
    print("| p50, ms | here | there | ratio | 95 % |\n|---|---|---|---|---|")
    for name, (here, there) in times.items():
        middle, low, high = ratio(here, there)
        print(
            f"| {name} | {np.median(here):.2f} | {np.median(there):.2f} | {middle:.3f}"
            f" | {low:.3f} to {high:.3f} |"
        )
    print(f"\n- {options.frames} frames of {SIZE[0]}x{SIZE[1]}, 16 lines, one core; {machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
