# SPDX-License-Identifier: Apache-2.0
"""Triplets of neighbouring video frames with intrinsics, and with poses and depth if known.

They come from recorded clips (clips.py), or are rendered along walks through procedural rooms with
exact poses and depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depth_node import config
from depth_node.geometry.camera import Camera
from depth_node.simulation.renderer import Scene
from depth_node.simulation.rooms import STYLES
from depth_node.simulation.viewpoints import camera_path
from training.data.clips import READERS, Clip, View
from training.data.pool import SHADOW_PX
from training.data.samples import F64, DataError

SEQUENCE_LAYOUTS = ("procedural", *READERS)


@dataclass(frozen=True)
class SequenceConfig:
    """Settings of the videos and of the distance between the frames of a triplet."""

    layout: str = config.option(
        "procedural", "How the folder is laid out; procedural needs none.", choices=SEQUENCE_LAYOUTS
    )
    folder: str = config.option("", "Folder of the data set or of one of its sequences.")
    spacing: int = config.option(1, "Frames from an image to its neighbours.", minimum=1)
    scenes: int = config.option(100, "Procedural: rooms to walk through.", minimum=1)
    views: int = config.option(8, "Procedural: neighbouring frames taken of a walk.", minimum=3)
    walk: int = config.option(
        120, "Procedural: frames that the whole walk would have; more = smaller steps.", minimum=3
    )
    style: str = config.option("room", "Procedural: kind of rooms.", choices=("mixed", *STYLES))
    seed: int = config.option(-1, "Procedural: seed of the rooms; must be set.")

    def __post_init__(self) -> None:
        config.validate(self)
        if self.layout == "procedural" and self.views < 2 * self.spacing + 1:
            raise config.ConfigError(
                f"views ({self.views}) must be at least {2 * self.spacing + 1}, a triplet with"
                f" spacing {self.spacing}"
            )


@dataclass(frozen=True)
class Triplet:
    """An image and the frames before and after it."""

    target: View
    sources: tuple[View, View]

    def poses(self) -> F64:
        """Return T_source_target (2, 4, 4), from target coordinates into those of each source.

        Raises DataError if a pose is unknown.
        """
        target = self.target.T_world_camera
        poses = []
        for source in self.sources:
            if target is None or source.T_world_camera is None:
                raise DataError(
                    "This sequence has no poses: learn them with a pose network (poses: network)"
                    " or give a sequence with poses."
                )
            poses.append(np.linalg.inv(source.T_world_camera) @ target)
        return np.stack(poses)


class Triplets:
    """All triplets of some clips, by number.

    Raises DataError for a clip that is too short and if no triplet can be used.
    """

    def __init__(self, clips: Sequence[Clip], spacing: int, height: int, width: int) -> None:
        self.height, self.width, self.spacing = height, width, spacing
        self.clips = list(clips)
        self._places: list[tuple[int, int]] = []
        need = 2 * spacing + 1
        for number, clip in enumerate(self.clips):
            if len(clip) < need:
                frames = "1 frame" if len(clip) == 1 else f"{len(clip)} frames"
                raise DataError(
                    f"The sequence {clip.name} has {frames} and a triplet with spacing {spacing}"
                    f" needs {need}: give a longer sequence or leave this one out."
                )
            for k in range(spacing, len(clip) - spacing):
                if all(clip.usable(j) for j in (k - spacing, k, k + spacing)):
                    self._places.append((number, k))
        if not self._places:
            raise DataError(
                "No three neighbouring frames of the sequences can be used (poses are missing or"
                " not finite): give other sequences or learn the poses (poses: network)."
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, k: int) -> Triplet:
        number, middle = self._places[k]
        clip = self.clips[number]
        before, here, after = (
            clip.view(middle + shift * self.spacing, self.height, self.width)
            for shift in (-1, 0, 1)
        )
        return Triplet(here, (before, after))


def open_triplets(cfg: SequenceConfig, height: int, width: int, need_poses: bool) -> Triplets:
    """Open the triplets that the settings describe. Raises DataError if data are missing."""
    clips: list[Clip]
    if cfg.layout == "procedural":
        if cfg.seed < 0:
            raise DataError("The rooms have no seed: set sequences.seed to a number of 0 or more.")
        clips = [Walk(cfg, k) for k in range(cfg.scenes)]
    else:
        if not cfg.folder or not Path(cfg.folder).is_dir():
            raise DataError(
                f"There is no folder {cfg.folder or '(empty)'} of sequences: set sequences.folder"
                f" to data in the layout {cfg.layout}."
            )
        clips = list(READERS[cfg.layout](Path(cfg.folder), need_poses))
    return Triplets(clips, cfg.spacing, height, width)


class Walk(Clip):
    """Neighbouring frames of a walk through a procedural room; rendered on first access."""

    def __init__(self, cfg: SequenceConfig, number: int) -> None:
        self.cfg, self.number = cfg, number
        self.name = f"room {cfg.seed}-{number}"
        self._views: dict[tuple[int, int], list[View]] = {}

    def __len__(self) -> int:
        return self.cfg.views

    def view(self, index: int, height: int, width: int) -> View:
        """Return a frame with exact pose and depth, rendered at (height, width)."""
        key = (height, width)
        if key not in self._views:
            self._views[key] = self._render(height, width)
        return self._views[key][index]

    def _render(self, height: int, width: int) -> list[View]:
        cfg = self.cfg
        rng = np.random.default_rng([cfg.seed, self.number])
        scene = Scene.random(rng, cfg.style, shadow_px=SHADOW_PX)
        path = camera_path(scene, cfg.walk, seed=int(rng.integers(2**31)))
        first = int(rng.integers(len(path)))
        focal = width / 2 / math.tan(math.radians(float(rng.uniform(50, 80))) / 2)
        camera = Camera(width, height, focal, focal, width / 2 - 0.5, height / 2 - 0.5)
        views = []
        for k in range(cfg.views):
            pose = path[(first + k) % len(path)]
            view = scene.render(camera, pose, antialias=False)
            views.append(View(view.image, camera.matrix, pose, view.depth))
        return views
