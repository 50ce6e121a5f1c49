# SPDX-License-Identifier: Apache-2.0
"""Benchmark of `~/obstacles` on procedural floors: false marks, boxes found, processor time.

Every frame goes through the pipeline as in the node, with the embedded network or with a stand-in
for a sharp one: rendered disparity without scale, blurred by a pixel and 3 % wrong over wide areas.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed

import numpy as np
from numpy.typing import NDArray

from depth_node.benchmarks.speed import machine, one_core, take_turns
from depth_node.benchmarks.tables import Table
from depth_node.config import build
from depth_node.engine.manifest import EMBEDDED
from depth_node.engine.refinement import refiner_for
from depth_node.fitting import fit
from depth_node.gates import Gates
from depth_node.inference import DepthModel
from depth_node.obstacles import ObstacleConfig, ObstacleFinder, Obstacles
from depth_node.pipeline import DepthPipeline, DepthResult, PipelineConfig
from depth_node.simulation.floors import (
    RATE_HZ,
    TERRAIN_M,
    FloorFrame,
    FloorWorld,
    sharp_prediction,
)

NETWORKS = ("sharp stand-in", "embedded")
SEEDS = (100, 101, 102, 103, 104, 105)
DRIVE_S = 60.0
FLAT_WITHIN_M = 8.0
BOX_M, BOX_DISTANCE_M, BOX_OFFSET_M = 0.1, 3.0, 0.5
BOX_MARGIN_M = 0.1  # a mark this near to the box counts as on it: two costmap cells of 5 cm


@dataclass(frozen=True)
class FloorCase:
    """One frame: the number of points marked within 8 m where no box is, and whether the box was
    marked.
    """

    network: str
    lines: int
    box: bool
    wrong: int
    marked: bool


DEFAULTS = ObstacleConfig()


@dataclass(frozen=True)
class Terrain:
    """What lies ahead of the robot, and the obstacle settings under test.

    rain: fraction of the LiDAR's rays that hit a raindrop.
    """

    name: str
    config: ObstacleConfig = DEFAULTS
    ramp_deg: float = 0.0
    kerb_m: float = 0.0
    drop_m: float = 0.0
    rain: float = 0.0


_SLOPES, _DROPS = ObstacleConfig(max_slope_deg=10.0), ObstacleConfig(max_drop_m=0.05)
TERRAINS = (
    Terrain("ramp of 3 degrees", ramp_deg=3.0),
    Terrain("ramp of 3 degrees, max_slope_deg 10", _SLOPES, ramp_deg=3.0),
    Terrain("ramp of 5 degrees, max_slope_deg 10", _SLOPES, ramp_deg=5.0),
    Terrain("ramp of 8 degrees, max_slope_deg 10", _SLOPES, ramp_deg=8.0),
    Terrain("ramp of 12 degrees, max_slope_deg 10", _SLOPES, ramp_deg=12.0),
    Terrain("kerb of 10 cm, max_slope_deg 10", _SLOPES, kerb_m=0.1),
    Terrain("30 cm down", drop_m=0.3),
    Terrain("30 cm down, max_drop_m 0.05", _DROPS, drop_m=0.3),
    Terrain("10 cm down, max_drop_m 0.05", _DROPS, drop_m=0.1),
    Terrain("flat floor, max_slope_deg 10", _SLOPES),
    Terrain("flat floor, max_drop_m 0.05", _DROPS),
    Terrain("flat floor, rain, 2 % of the rays", rain=0.02),
    Terrain("flat floor, rain, 10 % of the rays", rain=0.1),
)


class Robot:
    """The pipeline of each network and the obstacle finder, as in the node."""

    def __init__(self) -> None:
        config = build(PipelineConfig, {"model": {"path": EMBEDDED}})
        model = DepthModel.open(config.model, config.engine)
        self.pipelines = {name: DepthPipeline(config, model) for name in NETWORKS}
        self.finder, self.config = ObstacleFinder(), ObstacleConfig()

    def see(
        self, frame: FloorFrame, network: str, seed: int, config: ObstacleConfig | None = None
    ) -> tuple[DepthResult, Obstacles]:
        """Process a frame with one network and find its obstacles; seed: of the sharp stand-in."""
        given = frame.input
        if network == "sharp stand-in":
            given = changed(given, prediction=sharp_prediction(frame.view, seed))
        result = self.pipelines[network].process(given)
        return result, self.finder.find(
            result.gates,
            given.camera,
            frame.T_base_camera,
            config or self.config,
            result.sparse,
            result.fit.point_inlier,
        )

    def reset(self) -> None:
        """Forget all earlier frames, before another floor."""
        for pipeline in self.pipelines.values():
            pipeline.reset()


def run_floors(
    robot: Robot,
    frames: int = 600,
    lines: int = 32,
    *,
    box: bool,
    range_noise_m: float = 0.01,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[FloorCase]:
    """Return the cases of a drive of 60 s, whose frames are spread over the floors of SEEDS.

    on_step: called after each frame with the floor's name.
    """
    cases = []
    numbers = np.linspace(0, DRIVE_S * RATE_HZ - 1, frames).round().astype(int)
    for seed, part in zip(SEEDS, np.array_split(numbers, len(SEEDS)), strict=True):
        world = FloorWorld(seed, lines=lines, range_noise_m=range_noise_m)
        rng = np.random.default_rng(seed)
        robot.reset()
        for number in part.tolist():
            place = (BOX_DISTANCE_M, float(rng.uniform(-BOX_OFFSET_M, BOX_OFFSET_M)), BOX_M)
            frame = world.frame(number, place if box else None)
            if box:
                robot.reset()  # the box moves between frames, so memory would mislead
            for network in NETWORKS:
                _, obstacles = robot.see(frame, network, seed)
                cases.append(_judge(obstacles, network, lines, place if box else None))
            on_step(f"floor {seed}")
    return cases


def _judge(
    obstacles: Obstacles, network: str, lines: int, box: tuple[float, float, float] | None
) -> FloorCase:
    near = np.hypot(obstacles.in_base[:, 0], obstacles.in_base[:, 1]) < FLAT_WITHIN_M
    on_box: NDArray[np.bool_] = np.zeros(len(near), bool)
    if box is not None:
        distance, offset, edge = box
        x, y = obstacles.in_base.T
        on_box = (x > distance - BOX_MARGIN_M) & (x < distance + edge + BOX_MARGIN_M)
        on_box &= np.abs(y - offset) < edge / 2 + BOX_MARGIN_M
    wrong = int(np.count_nonzero(near & ~on_box))
    return FloorCase(network, lines, box is not None, wrong, bool(on_box.any()))


def run_terrain(
    robot: Robot,
    frames: int,
    *,
    lines: int = 32,
    range_noise_m: float = 0.01,
    on_step: Callable[[str], None] = lambda text: None,
) -> Table:
    """Return a table of what is marked within 8 m on each of TERRAINS, over `frames` frames."""
    body = []
    for terrain in TERRAINS:
        nearest: dict[str, list[float]] = {network: [] for network in NETWORKS}
        points: dict[str, list[int]] = {network: [] for network in NETWORKS}
        for seed, part in zip(SEEDS, np.array_split(np.arange(frames), len(SEEDS)), strict=True):
            world = FloorWorld(seed, lines=lines, range_noise_m=range_noise_m)
            robot.reset()
            for number in part.tolist():
                frame = world.frame(
                    number, ramp_deg=terrain.ramp_deg, kerb_m=terrain.kerb_m, drop_m=terrain.drop_m
                )
                if terrain.rain and frame.input.points is not None:
                    wet = rained_on(frame.input.points, terrain.rain, number)
                    frame = changed(frame, input=changed(frame.input, points=wet))
                for network in NETWORKS:
                    _, obstacles = robot.see(frame, network, seed, terrain.config)
                    distance = np.hypot(obstacles.in_base[:, 0], obstacles.in_base[:, 1])
                    distance = distance[distance < FLAT_WITHIN_M]
                    points[network].append(len(distance))
                    nearest[network].append(float(distance.min(initial=np.inf)))
                on_step(terrain.name)
        for network in NETWORKS:
            close = min(nearest[network], default=np.inf)
            body.append([
                terrain.name, network, str(frames), str(np.count_nonzero(points[network])),
                f"{np.mean(points[network]):.0f}", f"{close:.2f}" if np.isfinite(close) else "-",
            ])  # fmt: skip
    notes = [
        f"ramps, kerbs and drops begin {TERRAIN_M:g} m ahead; a ramp is 3 m long and wide and ends"
        f" in the air; {lines} lines"
    ]
    head = ["", "network", "frames", "marked in", "points a frame", "nearest, m"]
    return Table("Ramps, drops and rain", head, body, notes)


def rained_on(points: NDArray[np.floating], share: float, seed: int) -> NDArray[np.float32]:
    """Return the scan (N, 3) m with a fraction `share` of its points moved along their rays to a
    raindrop, between 0.5 m and the point.
    """
    rng = np.random.default_rng(seed)
    range_m = np.linalg.norm(points, axis=1)
    wet = (rng.random(len(points)) < share) & (range_m > 0.5)
    factor = np.where(wet, rng.uniform(0.5, np.maximum(range_m, 0.51)) / range_m, 1.0)
    return np.asarray(points * factor[:, None], np.float32)


def speed(robot: Robot, repeats: int = 0) -> Table:
    """Time finding the obstacles of a 640x480 frame on one core, beside the fit of that frame."""
    frame = FloorWorld(SEEDS[0]).frame(0, (BOX_DISTANCE_M, 0.0, BOX_M))
    result, _ = robot.see(frame, NETWORKS[0], SEEDS[0])
    camera, config = frame.input.camera, robot.config
    settings = result.config.fit
    again = functools.partial(
        fit, result.prediction, result.sparse, refiner=refiner_for(settings),
        image=frame.input.image, config=settings,
    )  # fmt: skip

    def obstacles(with_gates: bool) -> object:
        gates = result.gates
        if with_gates:
            gates = Gates(result.depth, result.std, result.config.publish)
        return robot.finder.find(
            gates, camera, frame.T_base_camera, config, result.sparse, result.fit.point_inlier
        )

    with one_core():
        times = take_turns(
            {
                "fit": again,
                "gates and obstacles": lambda: obstacles(True),
                "obstacles, gates known": lambda: obstacles(False),
            },
            repeats or 50,
        )
    base = float(np.median(times["fit"].cpu))
    body = []
    for name, one in times.items():
        cpu = float(np.median(one.cpu))
        body.append([name, f"{cpu:.2f}", f"{np.median(one.wall):.2f}", f"{cpu / base:.3f}"])
    notes = [f"{len(result.sparse)} points, 640x480, one core, medians", machine()]
    return Table("Time of ~/obstacles", ["", "CPU ms", "ms", "of the fit (CPU)"], body, notes)


def tables(cases: Sequence[FloorCase]) -> list[Table]:
    """Return the tables of floors without and with a box, by network and LiDAR."""
    flat, boxes = [], []
    for network, lines in dict.fromkeys((case.network, case.lines) for case in cases):
        own = [case for case in cases if (case.network, case.lines) == (network, lines)]
        empty = [case for case in own if not case.box]
        if empty:
            wrong = sum(case.wrong > 0 for case in empty)
            points = sum(case.wrong for case in empty)
            flat.append([network, str(lines), str(len(empty)), str(wrong), str(points)])
        full = [case for case in own if case.box]
        if full:
            marked = np.mean([case.marked for case in full])
            wrong = sum(case.wrong > 0 for case in full)
            boxes.append([network, str(lines), str(len(full)), f"{marked:.1%}", str(wrong)])
    head = ["network", "LiDAR lines", "frames"]
    result = []
    if flat:
        marks = ["with a mark within 8 m", "points marked"]
        result.append(Table("A flat floor, 60 s", [*head, *marks], flat))
    if boxes:
        marks = ["box marked", "frames with another mark"]
        result.append(Table("A box of 10 cm at 3 m", [*head, *marks], boxes))
    return result
