# SPDX-License-Identifier: Apache-2.0
"""Benchmark of deskewing: what it gains and costs to move each LiDAR point by its own time, and to
the time of the image row in which a rolling shutter sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_node.benchmarks.speed import machine, one_core, take_turns
from depth_node.benchmarks.tables import Means, Table
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.point_times import seconds_from_stamp
from depth_node.geometry.rigid import invert_rigid
from depth_node.geometry.rolling_shutter import RollingShutter
from depth_node.geometry.scan_buffer import Scan
from depth_node.geometry.scan_motion import ages, moved_scan
from depth_node.geometry.sparse_depth import project_points
from depth_node.geometry.transform_tree import TransformTree
from depth_node.metrics import coverage, evaluate
from depth_node.pipeline import DepthPipeline, DepthResult
from depth_node.simulation.renderer import LidarPattern, Scene
from depth_node.simulation.rolling import render_rows
from depth_node.simulation.spinning import moving_pose, spinning_scan
from depth_node.simulation.viewpoints import camera_path
from depth_node.simulation.walk import T_CAMERA_LIDAR

Pose = Callable[[float], NDArray[np.float64]]  # T_world_camera (4, 4) by seconds from the stamp

SEEDS = (31, 32, 33, 34, 35, 36)
VIEWS = 4  # in each room
SPEED_M_S, TURN_RAD_S = 10.0, 1.0
POINTS = 130_000
SCALE = 10.0
"""Metres per unit of a rendered room, which is then as deep as a road: a robot may drive this fast
there.
"""
READOUT_S = 0.03
"""Time from the first row to the last; 15 to 30 ms are usual."""
_PERIOD_S = 0.1
_LOOKS_S = _PERIOD_S / 2  # after the stamp: the LiDAR then looks ahead
_TF_S = 0.01
_STAMP_NS = 1_000_000_000
_LOOKS_NS = _STAMP_NS + round(1e9 * _LOOKS_S)
_CAMERA = Camera(320, 240, 256.0, 256.0, 159.5, 119.5)
_LIDAR = LidarPattern(16, 1800, horizontal_fov_deg=(-50.4, 50.4), range_noise_m=0.02 / SCALE)


@dataclass(frozen=True)
class SpinningView:
    """An image (H, W, 3), its true depth (H, W) m, and the scans of a spinning LiDAR around it.

    still: scan of a robot that stands. moving: scan of a robot that moves by `pose` (translation in
    units of SCALE metres). aside: scan of a robot that stands where the moving one is in the middle
    of its scan; it differs from still only in what is hidden from the camera. The image is taken at
    the scan's stamp, all rows at once.
    """

    source: str
    scene: Scene
    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    still: Scan
    moving: Scan
    aside: Scan
    pose: Pose

    def frame(
        self,
        scan: Scan,
        since: Callable[[int], NDArray[np.float64]],
        image: NDArray[np.uint8] | None = None,
        shutter: RollingShutter | None = None,
    ) -> FrameInput:
        """Return the observation that the node and the bag reader make from a scan.

        since: T_now_then (4, 4) of the camera by time, ns. image: (H, W, 3), default the view's.
        """
        points, T_camera_lidar = moved_scan(scan, T_CAMERA_LIDAR, since)
        if shutter is not None:
            points = shutter.seen(points, T_camera_lidar, _STAMP_NS, since)
        image = self.image if image is None else image
        return FrameInput(image, _CAMERA, points, T_camera_lidar, ages(scan, _STAMP_NS))

    def read_row_by_row(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return image (H, W, 3) and depth (H, W) m of a rolling shutter on the moving robot."""
        rendered = render_rows(self.scene, _CAMERA, self.pose, READOUT_S)
        return rendered.image, np.float32(SCALE) * rendered.depth

    def since(self, then_ns: int) -> NDArray[np.float64]:
        """Return T_now_then (4, 4) of the camera, interpolated between sampled poses as TF does."""
        tree = _recorded(self.pose, SCALE)
        now = invert_rigid(tree.look_up("odom", "camera", _STAMP_NS))
        return now @ tree.look_up("odom", "camera", then_ns)


def spinning_views(seed: int, count: int = VIEWS) -> list[SpinningView]:
    """Return views of the room of a seed, from a robot at SPEED_M_S that turns at TURN_RAD_S."""
    scene = Scene.random(seed)  # in units of SCALE metres
    T_camera_lidar = T_CAMERA_LIDAR.copy()
    T_camera_lidar[:3, 3] /= SCALE
    path = camera_path(scene, 40, seed)
    rng = np.random.default_rng(seed)
    views: list[SpinningView] = []
    for number, T_world_camera in enumerate(path[:: max(1, len(path) // count)][:count]):
        drive = _free_drive(scene, T_world_camera, rng)
        scans = []
        standing, aside = (
            moving_pose(T, np.zeros(3), np.zeros(3)) for T in (T_world_camera, drive(_LOOKS_S))
        )
        for pose in (standing, drive, aside):

            def lidar(time_s: float, pose: Pose = pose) -> NDArray[np.float64]:
                return pose(time_s) @ T_camera_lidar

            points, time_s = spinning_scan(scene, lidar, _LIDAR, _PERIOD_S, number)
            scans.append(Scan(_STAMP_NS, np.float32(SCALE) * points, time_s))
        rendered = scene.render(_CAMERA, T_world_camera)
        truth = np.float32(SCALE) * rendered.depth
        still, moving, seen_aside = scans
        views.append(
            SpinningView(
                f"room {seed}", scene, rendered.image, truth, still, moving, seen_aside, drive
            )
        )
    return views


def accuracy(pipeline: DepthPipeline, seeds: Sequence[int] = SEEDS) -> Table:
    """Score a spinning LiDAR on a standing and on a driving robot: AbsRel and coverage."""
    means = Means()
    for seed in seeds:
        for view in spinning_views(seed):
            frames = {
                "standing still": view.frame(view.still._replace(offset_s=None), _standing),
                "standing, the LiDAR displaced as when driving": view.frame(
                    view.aside._replace(offset_s=None), _always(view.since(_LOOKS_NS))
                ),
                "driving, a scan as one": view.frame(
                    view.moving._replace(offset_s=None), view.since
                ),
                "driving, each point by its time": view.frame(view.moving, view.since),
            }
            for name, frame in frames.items():
                _score(means, name, view.source, pipeline.process(frame), view.truth)
    notes = [
        *_drive(seeds),
        "the image is taken at the scan's stamp, when the LiDAR looks back",
    ]
    return _accuracy_table("A LiDAR that turns while the robot drives", means, notes)


def rolling_accuracy(pipeline: DepthPipeline, seeds: Sequence[int] = SEEDS) -> Table:
    """Score a rolling-shutter camera, with each point moved by its own time: AbsRel, coverage."""
    means = Means()
    shutter = RollingShutter(_CAMERA, READOUT_S)
    for seed in seeds:
        for view in spinning_views(seed):
            image, truth = view.read_row_by_row()
            still = view.frame(view.still._replace(offset_s=None), _standing)
            frames = {
                "standing still": (still, view.truth),
                "driving, rows at once": (view.frame(view.moving, view.since, image), truth),
                "driving, each row at its time": (
                    view.frame(view.moving, view.since, image, shutter),
                    truth,
                ),
            }
            for name, (frame, depth) in frames.items():
                _score(means, name, view.source, pipeline.process(frame), depth)
    notes = [
        *_drive(seeds),
        f"{1e3 * READOUT_S:g} ms from the first row, at the scan's stamp, to the last; the truth is"
        " rendered row by row; each point moved by its own time too",
    ]
    return _accuracy_table("A rolling shutter while the robot drives", means, notes)


def _score(
    means: Means, row: str, source: str, result: DepthResult, truth: NDArray[np.float32]
) -> None:
    means.add(row, "AbsRel", source, evaluate(result.depth, truth).abs_rel)
    means.add(row, "in the 95 % interval", source, coverage(result.depth, result.std, truth))


def _drive(seeds: Sequence[int]) -> list[str]:
    return [
        f"{len(seeds)} rendered rooms of {SCALE:g} times their size, {VIEWS} views each",
        f"{SPEED_M_S:g} m/s and {TURN_RAD_S:g} rad/s; {_LIDAR.beams} lines, {1 / _PERIOD_S:g} turns"
        " a second",
    ]


def _accuracy_table(title: str, means: Means, notes: list[str]) -> Table:
    still = means("standing still", "AbsRel")
    rows = [
        [
            name,
            f"{means(name, 'AbsRel'):.4f}",
            f"{means(name, 'AbsRel') / still:.2f}",
            f"{means(name, 'in the 95 % interval'):.3f}",
        ]
        for name in means.rows()
    ]
    head = ["robot", "AbsRel", "of standing still", "in the 95 % interval"]
    return Table(title, head, rows, notes)


def speed(repeats: int = 0) -> Table:
    """Measure the processor time from scan to pixels, without and with a time for each point."""
    rng = np.random.default_rng(0)
    points = rng.normal(0, 20, (POINTS, 3)).astype(np.float32)
    ticks = np.linspace(0, 1e9 * _PERIOD_S, POINTS).astype(np.uint32)
    tree = _recorded(moving_pose(np.eye(4), np.array([10.0, 0, 0]), np.array([0, TURN_RAD_S, 0])))
    now = invert_rigid(tree.look_up("odom", "camera", _STAMP_NS))

    def since(then_ns: int) -> NDArray[np.float64]:
        return now @ tree.look_up("odom", "camera", then_ns)

    def way(offset_s: NDArray[np.float32] | None, shutter: RollingShutter | None = None) -> None:
        scan = Scan(_STAMP_NS + 10_000_000, points, offset_s)
        moved, T_camera_lidar = moved_scan(scan, T_CAMERA_LIDAR, since)
        if shutter is not None:
            moved = shutter.seen(moved, T_camera_lidar, _STAMP_NS, since)
        project_points(moved, T_camera_lidar, _CAMERA, age_s=ages(scan, _STAMP_NS))

    parts: dict[str, Callable[[], object]] = {
        "as one": lambda: way(None),
        "each by its time": lambda: way(seconds_from_stamp(ticks, "t", _STAMP_NS)),
        "each by its time, and its row's": lambda: way(
            seconds_from_stamp(ticks, "t", _STAMP_NS), RollingShutter(_CAMERA, READOUT_S)
        ),
    }
    with one_core():
        times = take_turns(parts, repeats or 30)
    median = {name: float(np.median(one.cpu)) for name, one in times.items()}
    base = median["as one"]
    rows = [
        [name, f"{value:.1f}", f"{value - base:+.1f}", f"{value / base:.2f}"]
        for name, value in median.items()
    ]
    notes = [
        f"{POINTS} points from the scan to the pixels of a {_CAMERA.width}x{_CAMERA.height} image,"
        f" poses every {_TF_S * 1e3:g} ms; medians of processor time on one core",
        machine(),
    ]
    head = ["points", "ms", "more, ms", "ratio"]
    return Table("Cost of moving each point by its own time", head, rows, notes)


def _standing(then_ns: int) -> NDArray[np.float64]:
    return np.eye(4)


def _always(T_now_then: NDArray[np.float64]) -> Callable[[int], NDArray[np.float64]]:
    return lambda then_ns: T_now_then


def _recorded(pose: Callable[[float], NDArray[np.float64]], scale: float = 1.0) -> TransformTree:
    """Return a transform tree with poses around the stamp, sampled every _TF_S as by odometry."""
    tree = TransformTree()
    for step in range(-4, round(_PERIOD_S / _TF_S) + 5):
        T = pose(step * _TF_S)
        T[:3, 3] *= scale
        tree.add("odom", "camera", T, _STAMP_NS + round(1e9 * step * _TF_S))
    return tree


def _free_drive(
    scene: Scene, T_world_camera: NDArray[np.float64], rng: np.random.Generator
) -> Pose:
    """Return a drive in a random level direction that stays in free space during a scan.

    Raises ValueError if 100 directions are all blocked.
    """
    for _ in range(100):
        heading = rng.uniform(-np.pi, np.pi)
        velocity = SPEED_M_S / SCALE * np.array([np.cos(heading), np.sin(heading), 0.0])
        turn_rate = np.array([0.0, TURN_RAD_S * rng.choice([-1.0, 1.0]), 0.0])
        pose = moving_pose(T_world_camera, velocity, turn_rate)
        way = np.stack([pose(time_s)[:3, 3] for time_s in np.linspace(0, 0.7 * _PERIOD_S, 15)])
        if scene.contains(way, 0.1).all():
            return pose
    raise ValueError("no free way about this view: take another seed")
