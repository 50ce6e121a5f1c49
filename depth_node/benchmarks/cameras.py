# SPDX-License-Identifier: Apache-2.0
"""Benchmark of several cameras: one process for all, a process for each, and one camera alone.

All run over ROS 2 under the same load: a LiDAR at 10 Hz, and cameras that send the next image when
the depth of the last one has arrived. The arrangements take turns, so that other processes disturb
them alike. Processor time per frame is the measure that other processes disturb least.
"""

from __future__ import annotations

import os
import queue
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from depth_node.benchmarks.speed import machine
from depth_node.benchmarks.tables import Table
from depth_node.live import Child, DemoError, environment
from depth_node.recordings.frames import find_frames, read_frame
from depth_node.simulation.walk import Progress, render_walk

SIZE = (480, 640)
VIEWS = 4
SEED = 10
PATIENCE_S = 180.0


@dataclass
class Arrangement:
    """Cameras grouped by process, and the measurements: one entry per turn.

    rate: frames/s of all cameras together. slowest: frames/s of the slowest camera. cpu_ms:
    processor time per frame. memory: (resident, proportional share) of all processes, MiB.
    latency_ms: one entry per frame, from sending the image to receiving its depth.
    """

    title: str
    processes: Sequence[Sequence[str]]
    rate: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    slowest: list[float] = field(default_factory=list)

    @property
    def cameras(self) -> list[str]:
        """All cameras, of every process."""
        return [camera for group in self.processes for camera in group]


def measure(
    count: int, seconds: float, turns: int, parameters: dict[str, Any], progress: Progress
) -> list[Table]:
    """Measure one camera, `count` cameras in one process, and `count` cameras in `count` processes.

    seconds: length of a turn. turns: of each arrangement. parameters: of every node, nested as in a
    parameter file. Raises DemoError if a process ends early or no depth arrives.
    """
    names = [f"camera{number}" for number in range(count)]
    arrangements = [
        Arrangement("1 camera", [names[:1]]),
        Arrangement(f"{count} cameras, one process", [names]),
        Arrangement(f"{count} cameras, {count} processes", [[name] for name in names]),
    ]
    with tempfile.TemporaryDirectory(prefix="depth_bench_") as temporary:
        frames = Path(temporary) / "frames"
        render_walk(frames, VIEWS, SEED, SIZE, progress)
        total = turns * len(arrangements)
        with progress("cameras at work", total) as advance:
            for turn in range(total):
                arrangement = arrangements[turn % len(arrangements)]
                folder = Path(temporary) / f"{turn}"
                folder.mkdir()
                _turn(arrangement, frames, folder, seconds, parameters)
                advance(arrangement.title)
    return [_table(arrangements)]


def _turn(
    arrangement: Arrangement,
    frames: Path,
    folder: Path,
    seconds: float,
    parameters: dict[str, Any],
) -> None:
    env = environment(folder)
    T_camera_lidar = read_frame(find_frames(frames)[0]).T_camera_lidar
    if T_camera_lidar is None:
        raise DemoError(f"the frames in {frames} have no LiDAR: they cannot be played live")
    common = {**parameters, "T_camera_lidar": T_camera_lidar.reshape(-1).tolist()}
    events: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
    with ExitStack() as stack:
        nodes = []
        for number, group in enumerate(arrangement.processes):
            owner = {"cameras": list(group), "points": "/lidar/points"}
            content = {"/**": common, "/depth_cameras": owner}
            files = folder / f"{number}.yaml"
            text = yaml.safe_dump({k: {"ros__parameters": v} for k, v in content.items()})
            files.write_text(text, encoding="utf-8")
            if len(group) > 1:
                command = ["depth_node.ros.cameras", "--ros-args"]
            else:
                command = ["depth_node.ros.main", "--ros-args", "-r", f"__ns:=/{group[0]}",
                           "-r", "points:=/lidar/points"]  # fmt: skip
            command = ["-m", *command, "--params-file", str(files)]
            # All in one session, because Linux first divides the processor among sessions
            # (autogroups), which would favour the arrangement of several processes.
            nodes.append(Child(f"node{number}", command, folder, env, own_session=False))
            stack.callback(nodes[-1].end)
        command = ["-m", "depth_node.ros.camera_load", "--frames", str(frames), "--cameras",
                   ",".join(arrangement.cameras), "--seconds", str(seconds)]  # fmt: skip
        load = Child(
            "load", [*command, "--timeout", str(PATIENCE_S)], folder, env, own_session=False
        )
        stack.callback(load.end)
        for child in (*nodes, load):
            child.events(events)
        _await("ready", [*nodes, load], events, PATIENCE_S)
        before = sum(_cpu_s(child.process.pid) for child in nodes)
        load.tell("go")
        report = _await("report", [*nodes, load], events, seconds + PATIENCE_S)
        used_s = sum(_cpu_s(child.process.pid) for child in nodes) - before
        memory = np.sum([_memory_mib(child.process.pid) for child in nodes], axis=0)
        load.tell("stop")
    latency_ms: dict[str, list[float]] = report["latency_ms"]
    answered = sum(map(len, latency_ms.values()))
    if not answered:
        raise DemoError(f"no depth came from {arrangement.title}; the load said {report}")
    arrangement.rate.append(answered / report["seconds"])
    arrangement.slowest.append(min(map(len, latency_ms.values())) / report["seconds"])
    arrangement.cpu_ms.append(used_s * 1e3 / answered)
    arrangement.memory.append((float(memory[0]), float(memory[1])))
    arrangement.latency_ms += [value for values in latency_ms.values() for value in values]


def _await(
    awaited: str,
    children: Sequence[Child],
    events: queue.Queue[tuple[str, dict[str, Any]]],
    limit_s: float,
) -> dict[str, Any]:
    """Return the awaited event.

    Raises DemoError if a process ends or fails before it arrives, or it does not arrive in limit_s.
    """
    end = time.monotonic() + limit_s
    while True:
        try:
            name, event = events.get(timeout=max(end - time.monotonic(), 0.01))
        except queue.Empty:
            raise DemoError(f"no process said {awaited} within {limit_s:g} s") from None
        if event["event"] == awaited:
            return event
        if event["event"] in ("failed", "ended"):
            reason = event.get("reason", f"{name} ended early")
            logs = "\n".join(f"{child.name}: {child.tail()}" for child in children)
            raise DemoError(f"{reason}; the ends of the logs:\n{logs}")


def _cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, user and system, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> tuple[float, float]:
    """Return a process's resident memory and its proportional set size, MiB.

    The latter divides each shared page by the number of processes that share it.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return kib["Rss"] / 1024, kib["Pss"] / 1024


def _table(arrangements: Sequence[Arrangement]) -> Table:
    _, together, apart = arrangements
    rows = []
    for one in arrangements:
        rss, pss = np.median(one.memory, axis=0)
        rows.append(
            [
                one.title,
                f"{np.median(one.rate):.1f}",
                f"{np.median(one.slowest):.1f}",
                f"{np.median(one.cpu_ms):.1f}",
                "/".join(f"{value:.0f}" for value in np.percentile(one.latency_ms, (50, 95))),
                f"{rss:.0f}",
                f"{pss:.0f}",
            ]
        )
    pairs = list(zip(together.rate, apart.rate, strict=True))
    cpu = np.median(apart.cpu_ms) / np.median(together.cpu_ms)
    memory = [np.median(one.memory, axis=0) for one in arrangements]
    count = len(together.cameras)
    each = (memory[1] - memory[0]) / (count - 1)
    notes = [
        f"one process for {count} cameras: {np.median([a / b for a, b in pairs]):.2f} times the"
        f" frames of {count} processes, {cpu:.2f} times as many for the same processor time",
        f"memory of {count} cameras in one process: {memory[1][0] / memory[0][0]:.2f} times that of"
        f" one (resident), {memory[1][1] / memory[0][1]:.2f} times (proportional share); each"
        f" further camera adds {each[1]:.0f} MiB",
        f"{count} processes: {memory[2][1] / memory[0][1]:.2f} times (proportional share)",
        f"{SIZE[1]}x{SIZE[0]}, LiDAR 10 Hz, {len(together.rate)} turns each, medians",
        machine(),
    ]
    head = ["", "frames/s", "slowest camera", "CPU ms a frame", "latency p50/p95 ms", "RSS MiB",
            "PSS MiB"]  # fmt: skip
    return Table("Several cameras", head, rows, notes)
