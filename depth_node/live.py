# SPDX-License-Identifier: Apache-2.0
"""Starts and controls the processes of a live run: camera, node and listener.

This module does not import ROS: depth_node.ros.demo and depth_node.ros.main run as processes of
their own, in a ROS domain of their own that does not leave this machine.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from depth_node.config import flatten
from depth_node.pipeline import PipelineConfig
from depth_node.recordings.frames import find_frames, read_frame

VIEWS = 80  # rendered views; played back and forth
SCORED = 30  # received depth images that are kept and scored, about
FAST_DDS_PROFILE = Path(__file__).parent / "ros/fastdds.xml"  # room for images in shared memory
TAIL_LINES = 15  # of a log, shown in an error
PATIENCE_S = 120.0  # time in which the node must start on a busy machine
STALLED_S = 30.0  # limit on the time between two images of the publisher, on top of its period
HUNG_S = 10.0  # limit on the time without depth before the end, on top of four usual pauses
KILLED_S = 5.0  # for a process to be gone after SIGKILL
CURE = "end what else uses this machine, or try a lower --rate, and run this again"
Progress = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]


class DemoError(RuntimeError):
    """The demo gave no depth; the message says why."""


@dataclass(frozen=True)
class DemoOptions:
    """Options of the demo.

    size: (height, width). frames: a folder to render into. views: how many are rendered, to be
    played back and forth. unplug: whether the LiDAR is silent in the middle third. knock_deg: the
    angle by which the LiDAR is turned on its mount after a third of the images. Raises DemoError
    for a value out of range.
    """

    config: PipelineConfig = field(default_factory=PipelineConfig)
    seconds: float = 20.0
    rate_hz: float = 10.0
    size: tuple[int, int] = (480, 640)
    seed: int = 10
    frames: Path | None = None
    views: int = VIEWS
    unplug: bool = False
    knock_deg: float = 0.0

    def __post_init__(self) -> None:
        if not (0.5 <= self.seconds <= 3600 and 0.1 <= self.rate_hz <= 100):
            raise DemoError("the demo runs 0.5 to 3600 seconds at 0.1 to 100 images a second")
        if min(self.size) < 48 or max(self.size) > 4096:
            raise DemoError("images of the demo have 48 to 4096 pixels a side")
        if not abs(self.knock_deg) <= 5:
            raise DemoError("the LiDAR of the demo can be turned by at most 5 degrees")

    @property
    def images(self) -> int:
        """The number of images that are published."""
        return max(1, round(self.seconds * self.rate_hz))

    @property
    def unplugged(self) -> tuple[int, int]:
        """The images without a LiDAR: the first, and the first after them."""
        return (self.images // 3, 2 * self.images // 3) if self.unplug else (0, 0)

    @property
    def knocked_at(self) -> int:
        """The first image after the LiDAR was turned; beyond the last one if it is never turned."""
        return self.images // 3 if self.knock_deg else self.images


class Child:
    """A process of the demo whose standard output is lines of JSON; its log goes to a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        env: dict[str, str],
        own_session: bool = True,
    ):
        """Start the process.

        own_session: a session of its own, so that Ctrl-C reaches only this process, which then ends
        the children in order.
        """
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
                start_new_session=own_session,
            )

    def events(self, to: queue.Queue[tuple[str, dict[str, Any]]]) -> None:
        """Put every event of the process into a queue, and finally the event `ended`."""

        def read() -> None:
            assert self.process.stdout is not None
            with self.process.stdout as lines:
                for line in lines:
                    event = None
                    with suppress(ValueError):
                        event = json.loads(line)
                    # A library may print other lines, which may be JSON by chance: a number.
                    if isinstance(event, dict) and "event" in event:
                        to.put((self.name, event))
            to.put((self.name, {"event": "ended"}))

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()

    def tell(self, word: str) -> None:
        """Send a word to the process, if it has not ended."""
        with suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()

    def end(self, patience_s: float = 5.0) -> None:
        """End the process with SIGINT, if needed with SIGTERM and finally with SIGKILL.

        patience_s: time between them.
        """
        with suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is not None:
                break
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
        with suppress(subprocess.TimeoutExpired):  # a process that waits for a disk stays
            self.process.wait(KILLED_S)
        if self.reader is not None:
            self.reader.join(KILLED_S)

    def tail(self) -> str:
        """Return the last lines of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-TAIL_LINES:])


@dataclass
class Live:
    """What the processes reported: images sent, depth images received, the listener's report."""

    published: int = 0
    received: int = 0
    report: dict[str, Any] = field(default_factory=dict)


def free_domain(domains: range) -> int:
    """Return one of these ROS domains that has no participant on this machine, or any if none.

    The first participant of a domain listens on UDP port 7410 + 250 domain (DDSI-RTPS 2.3, 9.6.1).
    The search begins at another domain in each process.
    """
    start = os.getpid() % len(domains)
    candidates = [*domains[start:], *domains[:start]]
    for domain in candidates:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener, suppress(OSError):
            listener.bind(("", 7410 + 250 * domain))
            return domain
    return candidates[0]


def environment(folder: Path) -> dict[str, str]:
    """Return environment variables for a private ROS: this machine only, an own domain, Fast DDS.

    folder: for ROS's logs.
    """
    unwanted = ("ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER",
                "FASTDDS_BUILTIN_TRANSPORTS")  # fmt: skip
    env = {key: value for key, value in os.environ.items() if key not in unwanted}
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        env[name] = str(FAST_DDS_PROFILE)  # the older and the newer name
    env["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    env["ROS_DOMAIN_ID"] = str(free_domain(range(1, 51)))
    env["RMW_IMPLEMENTATION"] = "rmw_fastrtps_cpp"
    env["ROS_LOG_DIR"] = str(folder / "ros_log")
    env["PYTHONUNBUFFERED"] = "1"
    return env


def _node_parameters(config: PipelineConfig, T_camera_lidar: NDArray[np.float64]) -> dict[str, Any]:
    """Return the node's parameter file for these settings and extrinsics (4, 4)."""
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in flatten(config).items()
    }
    # Camera and LiDAR are triggered together: each image has a scan with the same stamp.
    extra: dict[str, Any] = {
        "T_camera_lidar": T_camera_lidar.reshape(-1).tolist(),
        "scan_wait_s": 0.05,
    }
    return {"/**": {"ros__parameters": {**values, **extra}}}


def run_live(
    options: DemoOptions, frames: Path, folder: Path, progress: Progress, bare: bool = False
) -> Live:
    """Run camera, node and listener as processes until all images have been processed.

    frames: frame folders with a LiDAR, all with the extrinsics of the first. folder: an empty one
    for the files that the processes write: published.jsonl (number, index of the frame, stamp) and
    live_NUMBER.npy, the depth that was received. bare: instead of the node, run one that only
    answers each image with a depth image of its size. Raises DemoError if no depth arrives.
    """
    T_camera_lidar = read_frame(find_frames(frames)[0]).T_camera_lidar
    if T_camera_lidar is None:
        raise DemoError(f"the frames in {frames} have no LiDAR: they cannot be played live")
    parameters = folder / "node.yaml"
    values = _node_parameters(options.config, T_camera_lidar)
    parameters.write_text(yaml.safe_dump(values), encoding="utf-8")
    env = environment(folder)
    keep_every = max(1, options.images // SCORED)
    node = ["-m", "depth_node.ros.main", "--ros-args", "--params-file", str(parameters)]
    commands = {
        "node": ["-m", "depth_node.ros.demo", "bare", str(folder)] if bare else node,
        "listener": ["-m", "depth_node.ros.demo", "listen", str(folder),
                     "--keep-every", str(keep_every), "--timeout", str(PATIENCE_S),
                     *(["--no-lifecycle"] if bare else [])],
        "publisher": ["-m", "depth_node.ros.demo", "publish", str(folder), "--frames", str(frames),
                      "--rate", str(options.rate_hz), "--count", str(options.images),
                      "--unplugged", *map(str, options.unplugged),
                      "--knock", str(options.knock_deg), "--knock-at", str(options.knocked_at)],
    }  # fmt: skip
    children: dict[str, Child] = {}
    events: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
    with terminate_as_interrupt():
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
def terminate_as_interrupt() -> Iterator[None]:
    """Make SIGTERM, and SIGHUP unless it is ignored, end this process as Ctrl-C does.

    So children are ended and unfinished files deleted, also if the terminal is closed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if number == signal.SIGTERM or handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conduct(
    options: DemoOptions,
    children: dict[str, Child],
    events: queue.Queue[tuple[str, dict[str, Any]]],
    progress: Progress,
) -> Live:
    """Wait until all are ready, start the images, and collect the depth and the report.

    Raises DemoError if a process fails, ends or hangs; every wait is bounded.
    """
    with progress("starting camera, node and listener", 2) as advance:
        waiting = {"publisher": "loaded", "listener": "ready"}
        end = time.monotonic() + PATIENCE_S
        while waiting:
            found = _next_event(children, events, end)
            if found is None:
                late = " and the ".join(waiting)
                reason = f"the {late} did not get ready within {PATIENCE_S:g} s: {CURE}"
                raise DemoError(_sentence(children, reason, *waiting, "node"))
            name, event = found
            if waiting.get(name) == event["event"]:
                del waiting[name]
                advance(name)
    children["publisher"].tell("go")
    live = Live()
    depth_at: list[float] = []
    stalled_s = STALLED_S + 1 / options.rate_hz
    with progress("live: images in, depth out", options.images) as advance:
        finished = False
        end = time.monotonic() + stalled_s
        while not (finished and live.received >= live.published):
            found = _next_event(children, events, end)
            if found is None:
                if finished:
                    break
                reason = f"the publisher sent nothing for {stalled_s:.3g} s: {CURE}"
                raise DemoError(_sentence(children, reason, "publisher"))
            event = found[1]
            if event["event"] == "published":
                live.published += 1
                advance(f"{live.received} depth images")
                end = time.monotonic() + stalled_s
            elif event["event"] == "depth":
                live.received += 1
                depth_at.append(time.monotonic())
            elif event["event"] == "finished":
                finished = True
                end = time.monotonic() + 2.0  # for depth images after the last image
    silent_s = time.monotonic() - depth_at[-1] if depth_at else 0.0
    children["listener"].tell("stop")
    end = time.monotonic() + PATIENCE_S
    while not live.report:
        found = _next_event(children, events, end)
        if found is None:
            reason = f"the listener gave no report within {PATIENCE_S:g} s: {CURE}"
            raise DemoError(_sentence(children, reason, "listener"))
        event = found[1]
        live.received += event["event"] == "depth"
        if event["event"] == "report":
            live.report = event
    if not live.received:
        raise DemoError(_sentence(children, "the node published no depth"))
    pauses = np.diff(depth_at)
    if len(pauses) and silent_s > HUNG_S + 4 * pauses.max():
        reason = f"the node gave no depth in the last {silent_s:.1f} s: it hangs, or {CURE}"
        raise DemoError(_sentence(children, reason))
    return live


def _next_event(
    children: dict[str, Child], events: queue.Queue[tuple[str, dict[str, Any]]], end_s: float
) -> tuple[str, dict[str, Any]] | None:
    """Return the next event with the name of its process; None if none comes before `end_s`.

    end_s: a time of time.monotonic(). Raises DemoError if a process has failed or ended.
    """
    try:
        name, event = events.get(timeout=max(end_s - time.monotonic(), 0.01))
    except queue.Empty:
        return None
    _fail_on_end(children, name, event)
    return name, event


def _fail_on_end(children: dict[str, Child], name: str, event: dict[str, Any]) -> None:
    if event["event"] == "failed":
        raise DemoError(_sentence(children, event["reason"]))
    if event["event"] == "ended":
        try:
            status = children[name].process.wait(5.0)
        except subprocess.TimeoutExpired:
            reason = f"the {name} closed its output and did not end: run this again"
            raise DemoError(_sentence(children, reason, name)) from None
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        raise DemoError(_sentence(children, f"the {name} ended early {how}", name))


def _sentence(children: dict[str, Child], reason: str, *names: str) -> str:
    """Return a reason and the end of the log of each named process (of the node if none is)."""
    logs = [
        f"the end of the {name}'s log:\n{children[name].tail() or '(empty)'}"
        for name in names or ("node",)
    ]
    return f"{reason}; " + "\n".join(logs)
