# SPDX-License-Identifier: Apache-2.0
"""`depth_tools calibrate`: the LiDAR's pose and time offset with their standard deviations."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from depth_node.calibration.estimate import AXES, UNIT, Estimate, calibrate, correction_matrix
from depth_node.calibration.observation import Floats, observe_all
from depth_node.cli.arguments import matrix
from depth_node.cli.console import UsageError, console, print_table, progress, write_json
from depth_node.cli.replay import add_bag_options, opened_bag, refuse_bag_options
from depth_node.frame import FrameInput
from depth_node.geometry.rigid import check_rigid
from depth_node.recordings.files import new_folder
from depth_node.recordings.frames import FrameError, find_frames, is_bag, read_frame
from depth_node.visualization.edges import before_and_after
from depth_node.visualization.panels import write_image

USED_FRAMES = 60
"""Number of frames used, spread evenly; more frames of a walk show the same edges again."""
LEAST_EDGES = 150


def add(commands: Any) -> None:
    """Add the command `calibrate` with its options."""
    parser = commands.add_parser(
        "calibrate", help="estimate the LiDAR's pose and time offset from a recording"
    )
    parser.add_argument("source", type=Path, help="folder of frames with a LiDAR, or rosbag2")
    parser.add_argument(
        "--start",
        default="",
        metavar="'16 NUMBERS'",
        help="initial 4x4 matrix, row by row, from LiDAR to optical frame, up to 5 degrees and 10"
        " cm off (default: that of the frames or of the bag's TF)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="new folder for images and result.json (default: runs/calibrate_SOURCE, ..._2, ...)",
    )
    parser.add_argument(
        "--frames", type=int, default=USED_FRAMES, metavar="N", help="number of frames to use"
    )
    add_bag_options(parser)
    parser.set_defaults(run=_run, scans_per_image=1)


def _run(options: argparse.Namespace) -> int:
    terminal = console()
    start = matrix(options.start, "--start")
    if start is not None:
        try:
            start = check_rigid(start, "--start")
        except ValueError as error:
            raise UsageError(str(error)) from None
    source = options.source.resolve()
    out = new_folder(options.out, Path("runs") / f"calibrate_{source.stem}")
    if is_bag(source):
        frames = _bag_frames(options, source)
    else:
        refuse_bag_options(options, scans_per_image=1)
        frames = _folder_frames(options, source)
    if start is not None:
        frames = [dataclasses.replace(frame, T_camera_lidar=start) for frame in frames]
    stated = _common_pose(frames)
    steps = 13
    with progress(terminal, "calibrating", steps) as advance:
        seen = observe_all(frames, max(options.frames, 1))
        advance("edges")
        edges = sum(len(o.points) for o in seen)
        if edges < LEAST_EDGES:
            terminal.print(
                f"cannot tell: {edges} depth edges in {len(seen)} frames, {LEAST_EDGES} are needed;"
                " record where things stand in front of others, not a bare wall"
            )
            return 1
        found = calibrate(seen, advance)
    corrected = correction_matrix(found.correction) @ stated
    _print(terminal, found, len(seen), options.source)
    lines = ", ".join(f"{value:.6f}" for value in corrected.ravel())
    terminal.print(f"T_camera_lidar: [{lines}]")
    terminal.print(f"lidar_time_offset_s: {time_words(found)}")
    written = _draw(out, frames, stated, corrected)
    unknown = found.unknown
    result = {
        "T_camera_lidar": corrected.ravel().tolist(),
        "correction": dict(zip(AXES, found.correction.tolist(), strict=True)),
        "std": dict(zip(AXES, found.std.tolist(), strict=True)),
        "time_known": found.time_known,
        "unknown": unknown,
        "frames": len(seen),
        "edges": found.edges,
    }
    write_json(out / "result.json", result)
    terminal.print(f"images: {written}")
    if unknown:
        terminal.print(
            f"cannot tell {', '.join(unknown)}: the data leave it open (see the deviations); record"
            " more frames with structure at several distances"
        )
        return 1
    return 0


def time_words(found: Estimate) -> str:
    """Return the time offset (s) as the node's parameter, or why it cannot be set."""
    if not found.time_known:
        return "not known (no motion, or no stamps)"
    if AXES[6] in found.unknown:
        return f"not known (its deviation is {found.std[6]:.4f})"
    return f"{found.correction[6]:.4f}"


def _print(terminal: Any, found: Estimate, frames: int, source: Path) -> None:
    scale = np.array([*np.rad2deg([1.0, 1.0, 1.0]), 100, 100, 100, 1000])
    units = ("deg",) * 3 + ("cm",) * 3 + ("ms",)
    rows = [
        (AXES[a], f"{found.correction[a] * scale[a]:+.2f}", f"{found.std[a] * scale[a]:.2f}",
         units[a])
        for a in range(7 if found.time_known else 6)
    ]  # fmt: skip
    title = f"Correction in the camera's axes: {source}, {frames} frames, {found.edges} depth edges"
    print_table(terminal, title, ("axis", "correction", "std", "unit"), rows, set())
    size = np.abs(found.correction / UNIT).max()
    worse = f"{found.worse:.0%} of small changes of the stated extrinsics fit worse"
    terminal.print(f"  {worse}{'' if size > 0.3 else ': they are consistent with the recording'}")


def _draw(out: Path, frames: Sequence[FrameInput], before: Floats, after: Floats) -> Path:
    chosen = np.unique(np.linspace(0, len(frames) - 1, 4).round().astype(int))
    for index in chosen:
        image = before_and_after(frames[index], before, after)
        try:
            write_image(out / f"frame_{index:04d}.png", image)
        except OSError as error:
            raise UsageError(f"{error}: name another folder with --out") from None
    return out


def _common_pose(frames: Sequence[FrameInput]) -> Floats:
    """Return the pose (4, 4) of all frames. Raises UsageError if they differ or have none."""
    poses = [f.T_camera_lidar for f in frames if f.T_camera_lidar is not None]
    if not poses:
        raise UsageError("no frame has LiDAR points with a pose: give --start 'the 16 numbers'")
    if any(not np.allclose(T, poses[0], atol=1e-6) for T in poses):
        raise UsageError(
            "the frames state different T_camera_lidar (several rigs?): calibrate each rig by"
            " itself, or give one --start 'the 16 numbers'"
        )
    return poses[0]


def _folder_frames(options: argparse.Namespace, source: Path) -> list[FrameInput]:
    frames = []
    folders = find_frames(source)
    # All frames would not fit in memory; a frame without a stamp does not need its neighbours.
    for folder in folders[:: max(1, len(folders) // max(options.frames, 1))]:
        frame = read_frame(folder)
        if frame.points_lidar is None:
            raise FrameError(f"{folder} has no lidar.npy: calibrating needs LiDAR points.")
        frames.append(
            FrameInput(frame.image, frame.camera, frame.points_lidar, frame.T_camera_lidar)
        )
    return frames


def _bag_frames(options: argparse.Namespace, source: Path) -> list[FrameInput]:
    options.t_camera_lidar = options.start or options.t_camera_lidar
    with opened_bag(options, source) as bag:
        # All frames would not fit in memory: keep the used ones, each with its two neighbours.
        step = max(1, len(bag) // max(options.frames, 1))
        wanted: Iterable[FrameInput] = bag.frames()
        if step > 3:
            wanted = (frame for n, frame in enumerate(bag.frames()) if n % step < 3)
        frames = list(itertools.islice(wanted, 3 * max(options.frames, 1) + 3))
    if not frames:
        raise FrameError(f"{source} gave no image: nothing to calibrate.")
    return frames
