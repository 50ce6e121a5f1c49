# SPDX-License-Identifier: Apache-2.0
"""The live demo: renders a room, runs camera, node and listener as processes, judges the result.

Nothing here imports ROS: depth_node.ros.demo and depth_node.ros.node run as processes of their own,
in a ROS domain of their own that does not leave this machine. The other methods of the table are
computed afterwards by the same pipeline from the same pictures and points.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from depth_node import replay
from depth_node.config import flatten
from depth_node.config import replace as changed
from depth_node.frames import find_frames, read_frame
from depth_node.geometry.camera import Camera
from depth_node.pipeline import DepthPipeline, DepthResult, PipelineConfig
from depth_node.simulation.renderer import LidarPattern, Scene, camera_path

# The LiDAR (x forward, y left, z up) sits 8 cm above and 3 cm behind the camera (optical frame).
T_CAMERA_LIDAR = np.array(
    [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -0.08], [1.0, 0.0, 0.0, -0.03], [0.0, 0.0, 0.0, 1.0]]
)
LIDAR = LidarPattern(beams=16, azimuth_steps=900, range_noise_m=0.01)
VIEWS = 80  # rendered; played back and forth
STEPS_OF_WALK = 160  # the views are half of a closed walk through the room
SCORED = 30  # of the depth images that came
PANELS = 3
RIVALS = ("global_depth", "slf", "ssf")
NAMES = {
    "global_depth": "one scale + shift",
    "global_disparity": "one scale + shift in disparity",
    "median": "one scale",
    "slf": "SLF, per region",
    "ssf": "SSF, per region",
    "field": "residual field",
}
FAST_DDS_PROFILE = (
    Path(__file__).parent / "ros" / "fastdds.xml"
)  # room for pictures in shared memory
PATIENCE_S = 120.0  # for the node to come up on a busy machine

Progress = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]


class DemoError(RuntimeError):
    """The demo did not give depth; one sentence why."""


@dataclass(frozen=True)
class DemoOptions:
    """What may be chosen: size is (height, width), frames a folder to render into, views how many
    are rendered to be played back and forth."""

    config: PipelineConfig = field(default_factory=PipelineConfig)
    seconds: float = 20.0
    rate_hz: float = 10.0
    size: tuple[int, int] = (480, 640)
    seed: int = 10
    frames: Path | None = None
    views: int = VIEWS

    def __post_init__(self) -> None:
        if not (0.5 <= self.seconds <= 3600 and 0.1 <= self.rate_hz <= 100):
            raise DemoError("the demo runs 0.5 to 3600 seconds at 0.1 to 100 pictures a second")
        if min(self.size) < 48 or max(self.size) > 4096:
            raise DemoError("pictures of the demo have 48 to 4096 pixels a side")

    @property
    def pictures(self) -> int:
        """How many are published."""
        return max(1, round(self.seconds * self.rate_hz))


@dataclass(frozen=True)
class DemoReport:
    """What the demo found.

    rows: a row per scored frame and method (replay.score), the node's own as method "live".
    latency_ms, arrival_ms: stamp to publish and stamp to receive. worst_difference: largest
    relative difference between depth received live and computed off line from the same frame.
    """

    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    latency_ms: list[float]
    arrival_ms: list[float]
    published: int
    received: int
    worst_difference: float
    diagnostics: dict[str, str]
    panels: list[Path]

    def quantiles(self) -> dict[str, list[float]]:
        """p50, p95, p99 in ms from the stamp to publishing and to receiving."""
        return {
            name: np.percentile(times, (50, 95, 99)).tolist()
            for name, times in (
                ("stamp to publish", self.latency_ms),
                ("stamp to received", self.arrival_ms),
            )
        }


def run(options: DemoOptions, out: Path, progress: Progress) -> DemoReport:
    """Everything, from rendering to the pictures in `out`. Raises DemoError when no depth came.

    progress(what, total) is a context manager that gives a function to call after each step.
    """
    # Every picture on its own, so that any of them can be computed again and compared.
    alone = changed(options.config, {"fit.field.temporal.enabled": False})
    options = dataclasses.replace(options, config=alone)
    with tempfile.TemporaryDirectory(prefix="depth_demo_") as temporary:
        folder = Path(temporary)
        frames = options.frames or folder / "frames"
        frames.mkdir(parents=True, exist_ok=True)
        render(options, frames, progress)
        live = run_live(options, frames, folder, progress)
        return _judge(options, frames, folder, live, out, progress)


# ------------------------------------------------------------------------------------ rendering


def render(options: DemoOptions, folder: Path, progress: Progress) -> None:
    """Views of a room with truth and LiDAR as frame folders; those that are there already stay."""
    count = min(options.views, options.pictures)
    note = folder / "rendered.json"
    request = {"seed": options.seed, "size": list(options.size), "count": count}
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == request:
        return
    # A fresh interpreter: forking a process in which a progress bar's thread runs may hang.
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, 8, count)
    with (
        progress("rendering a room", count) as advance,
        ProcessPoolExecutor(workers, context, initializer=_ignore_interrupts) as pool,
    ):
        futures = [
            pool.submit(_render_view, folder, options.seed, options.size, index)
            for index in range(count)
        ]
        try:
            for future in as_completed(futures):
                future.result()
                advance("")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    note.write_text(json.dumps(request), encoding="utf-8")


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@lru_cache(maxsize=1)
def _walk(seed: int) -> tuple[Scene, NDArray[np.float64]]:
    """The room and the poses T_world_camera (STEPS_OF_WALK, 4, 4) of a walk through it."""
    scene = Scene.random(seed)
    return scene, camera_path(scene, STEPS_OF_WALK, seed)


def _render_view(folder: Path, seed: int, size: tuple[int, int], index: int) -> None:
    """Write one view as a frame folder (layout: depth_node.frames)."""
    scene, path = _walk(seed)
    height, width = size
    focal = 0.8 * width
    camera = Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    view = scene.render(camera, path[index])
    points = scene.lidar(path[index] @ T_CAMERA_LIDAR, LIDAR, seed=index)
    place = folder / f"view_{index:04d}"
    place.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(place / "rgb.png"), cv2.cvtColor(view.image, cv2.COLOR_RGB2BGR))
    np.savez(place / "depth.npz", depth=view.depth)
    np.save(place / "lidar.npy", points)
    intrinsics = {key: getattr(camera, key) for key in ("fx", "fy", "cx", "cy", "width", "height")}
    (place / "intrinsics.json").write_text(json.dumps(intrinsics), encoding="utf-8")
    calibration = {"T_cam_lidar": T_CAMERA_LIDAR.tolist()}
    (place / "calib.json").write_text(json.dumps(calibration), encoding="utf-8")


# ----------------------------------------------------------------------------------- processes


class Child:
    """A process of the demo whose standard output is lines of JSON; its log goes to a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: dict[str, str]):
        self.name = name
        self.reader: threading.Thread | None = None
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
                bufsize=1,
                start_new_session=True,  # Ctrl-C is ours: we end the children in order
            )

    def events(self, to: queue.Queue[tuple[str, dict[str, Any]]]) -> None:
        """Put every event of the process into a queue, at last one that it has ended."""

        def read() -> None:
            assert self.process.stdout is not None
            with self.process.stdout as lines:
                for line in lines:
                    with suppress(ValueError):  # something printed by a library
                        to.put((self.name, json.loads(line)))
            to.put((self.name, {"event": "ended"}))

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()

    def tell(self, word: str) -> None:
        """Say a word to the process; it may have ended already."""
        with suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()

    def end(self, patience_s: float = 5.0) -> None:
        """SIGINT, after a while SIGTERM, at last SIGKILL."""
        with suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        self.process.wait(5.0)
        if self.reader is not None:
            self.reader.join(5.0)

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


@dataclass
class Live:
    """What the processes told: pictures sent and depth images received, the listener's report."""

    published: int = 0
    received: int = 0
    report: dict[str, Any] = field(default_factory=dict)


def _environment(folder: Path) -> dict[str, str]:
    """A ROS of our own: this machine only, a domain of our own, Fast DDS, logs in our folder."""
    unwanted = ("ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER",
                "FASTDDS_BUILTIN_TRANSPORTS")  # fmt: skip
    env = {key: value for key, value in os.environ.items() if key not in unwanted}
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        env[name] = str(FAST_DDS_PROFILE)  # the older and the newer name
    env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    env["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    env["RMW_IMPLEMENTATION"] = "rmw_fastrtps_cpp"
    env["ROS_LOG_DIR"] = str(folder / "ros_log")
    env["PYTHONUNBUFFERED"] = "1"
    return env


def _node_parameters(config: PipelineConfig, T_camera_lidar: NDArray[np.float64]) -> dict[str, Any]:
    """The parameters by which the node does what the settings say, with given extrinsics."""
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(config).items()
    }
    # The LiDAR turns with the camera: each picture has a scan with the same stamp.
    extra: dict[str, Any] = {
        "T_camera_lidar": T_camera_lidar.reshape(-1).tolist(),
        "scan_wait": 0.05,
    }
    return {"/**": {"ros__parameters": {**values, **extra}}}


def run_live(
    options: DemoOptions, frames: Path, folder: Path, progress: Progress, bare: bool = False
) -> Live:
    """Camera, node and listener as processes until all pictures have gone through.

    frames: frame folders with a LiDAR, all with the extrinsics of the first. folder: an empty one
    for what they leave: published.jsonl (number, index of the frame, stamp) and live_NUMBER.npy,
    the depth that was received. bare: in place of the node one that does nothing but
    answer each picture with a depth image of its size.
    """
    T_camera_lidar = read_frame(find_frames(frames)[0]).T_camera_lidar
    if T_camera_lidar is None:
        raise DemoError(f"the frames in {frames} have no LiDAR: they cannot be played live")
    parameters = folder / "node.yaml"
    values = _node_parameters(options.config, T_camera_lidar)
    parameters.write_text(yaml.safe_dump(values), encoding="utf-8")
    env = _environment(folder)
    keep_every = max(1, options.pictures // SCORED)
    node = ["-m", "depth_node.ros.node", "--ros-args", "--params-file", str(parameters)]
    commands = {
        "node": ["-m", "depth_node.ros.demo", "bare", str(folder)] if bare else node,
        "listener": ["-m", "depth_node.ros.demo", "listen", str(folder),
                     "--keep-every", str(keep_every), "--timeout", str(PATIENCE_S),
                     *(["--no-lifecycle"] if bare else [])],
        "publisher": ["-m", "depth_node.ros.demo", "publish", str(folder), "--frames", str(frames),
                      "--rate", str(options.rate_hz), "--count", str(options.pictures)],
    }  # fmt: skip
    children: dict[str, Child] = {}
    events: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
    with _terminate_as_interrupt():
        try:
            for name, command in commands.items():
                children[name] = Child(name, command, folder, env)
                children[name].events(events)
            return _conduct(options, children, events, progress)
        finally:
            for name in ("publisher", "listener", "node"):
                if name in children:
                    children[name].end()


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends us as Ctrl-C does, so that the children are ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _conduct(
    options: DemoOptions,
    children: dict[str, Child],
    events: queue.Queue[tuple[str, dict[str, Any]]],
    progress: Progress,
) -> Live:
    """Wait until all are ready, let the pictures go, gather what comes back."""
    with progress("starting camera, node and listener", 2) as advance:
        for name, _ in _events(children, events, {"loaded", "ready"}, 2):
            advance(name)
    children["publisher"].tell("go")
    live = Live()
    bar = progress("live: pictures in, depth out", options.pictures)
    with bar as advance:
        end: float | None = None  # for what is still on its way after the last picture
        while end is None or time.monotonic() < end:
            try:
                name, event = events.get(timeout=0.2)
            except queue.Empty:
                continue
            _fail_on_end(children, name, event)
            if event["event"] == "published":
                live.published += 1
                advance(f"{live.received} depth images")
            elif event["event"] == "depth":
                live.received += 1
            elif event["event"] == "finished":
                end = time.monotonic() + 2.0
            if end is not None and live.received >= live.published:
                break
    children["listener"].tell("stop")
    for _, event in _events(children, events, {"report", "depth"}, 10**9, until="report"):
        live.received += event["event"] == "depth"
        if event["event"] == "report":
            live.report = event
    if not live.received:
        raise DemoError(_sentence(children, "the node published no depth"))
    return live


def _events(
    children: dict[str, Child],
    events: queue.Queue[tuple[str, dict[str, Any]]],
    wanted: set[str],
    count: int,
    until: str = "",
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`count` wanted events, or all up to the one called `until`; DemoError when none comes."""
    deadline = time.monotonic() + PATIENCE_S
    while count > 0:
        try:
            name, event = events.get(timeout=max(deadline - time.monotonic(), 0.01))
        except queue.Empty:
            reason = f"nothing happened for {PATIENCE_S:g} s"
            raise DemoError(_sentence(children, reason)) from None
        _fail_on_end(children, name, event)
        if event["event"] in wanted:
            count -= 1
            yield name, event
            if event["event"] == until:
                return


def _fail_on_end(children: dict[str, Child], name: str, event: dict[str, Any]) -> None:
    if event["event"] == "failed":
        raise DemoError(_sentence(children, event["reason"]))
    if event["event"] == "ended":
        status = children[name].process.wait(5.0)
        raise DemoError(_sentence(children, f"the {name} ended early with status {status}", name))


def _sentence(children: dict[str, Child], reason: str, name: str = "node") -> str:
    return f"{reason}; the end of the {name}'s log:\n{children[name].tail() or '(empty)'}"


# -------------------------------------------------------------------------------------- judging


def _judge(
    options: DemoOptions, frames: Path, folder: Path, live: Live, out: Path, progress: Progress
) -> DemoReport:
    """Score what came against the truth and the other methods; draw."""
    index_of = {
        row["number"]: row["index"]
        for row in map(json.loads, (folder / "published.jsonl").read_text("utf-8").splitlines())
    }
    kept = {int(path.stem.split("_")[1]): path for path in sorted(folder.glob("live_*.npy"))}
    chosen = np.linspace(0, len(kept) - 1, min(PANELS + 2, len(kept))).round().astype(int)
    drawn = {list(kept)[k] for k in (chosen[1:-1] if len(chosen) > 2 else chosen)}
    rows: list[dict[str, Any]] = []
    panels: list[Path] = []
    worst = 0.0
    own = options.config.fit.method
    views = find_frames(frames)
    with (
        DepthPipeline(options.config) as pipeline,
        progress("comparing methods", len(kept)) as advance,
    ):
        pipeline.warm_up()
        comparison = replay.Comparison(pipeline, RIVALS)
        for number, path in kept.items():
            moment = _moment(pipeline, views[index_of[number]])
            result = replay.process(pipeline, moment)
            results = comparison.results(moment, result)
            depth = np.load(path)
            worst = max(worst, depth_difference(depth, result.depth))
            results["live"] = dataclasses.replace(result, depth=depth)
            rows += [replay.score(moment, method, one) for method, one in results.items()]
            if number in drawn:
                panels += _draw(moment, results, own, out, len(panels), options)
            advance("")
    report = live.report
    return DemoReport(
        rows=rows,
        summary=replay.summarise(rows),
        latency_ms=report["latency_ms"],
        arrival_ms=report["arrival_ms"],
        published=live.published,
        received=live.received,
        worst_difference=worst,
        diagnostics=report["diagnostics"],
        panels=panels,
    )


def _moment(pipeline: DepthPipeline, folder: Path) -> replay.Moment:
    """A rendered view with all of its LiDAR points; pixels that were measured are not scored."""
    frame = read_frame(folder)
    assert frame.points_lidar is not None and frame.T_camera_lidar is not None
    return replay.Moment(
        source="room",
        name=frame.name,
        image=frame.image,
        camera=frame.camera,
        points=frame.points_lidar,
        T_camera_lidar=frame.T_camera_lidar,
        truth=frame.truth,
        scored=~replay.hit_pixels(pipeline, frame.points_lidar, frame),
    )


def depth_difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Largest relative difference of two depth maps; infinite when one is unknown elsewhere."""
    known = np.isfinite(one)
    if not np.array_equal(known, np.isfinite(other)):
        return math.inf
    return float((np.abs(one - other)[known] / other[known]).max(initial=0.0))


def _draw(
    moment: replay.Moment,
    results: dict[str, DepthResult],
    own: str,
    out: Path,
    number: int,
    options: DemoOptions,
) -> list[Path]:
    """The panel of a frame and, for the first one, every picture by itself."""
    shown = {method: one for method, one in results.items() if method != own}
    pictures = replay.panel(
        moment,
        shown,
        "live",
        "Metric depth, live over ROS 2",
        f"one camera picture, {len(results[own].sparse)} LiDAR points, the network in the package;"
        f" {results[own].fit.message}",
        names={**NAMES, "live": f"the node, live ({own})"},
    )
    return pictures.save(out, f"demo_{number}", singles=number == 0)[:1]
