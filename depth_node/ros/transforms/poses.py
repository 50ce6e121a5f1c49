# SPDX-License-Identifier: Apache-2.0
"""The poses that a configured node works with, and which of its settings need TF for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from depth_node.config import ConfigError
from depth_node.ros.settings import NodeConfig
from depth_node.ros.transforms.extrinsics import Extrinsics
from depth_node.ros.transforms.ground import Ground
from depth_node.ros.transforms.motion import CameraMotion
from depth_node.ros.transforms.tf import INSTALL_TF, SharedTransforms, TransformSource

Warn = Callable[[str, str], None]


@dataclass(frozen=True)
class Poses:
    """The LiDARs' poses, the camera's motion (None without world_frame) and the ground.

    Each holds TF while its settings need it, so TF is received as long as one of them does.
    """

    extrinsics: Extrinsics
    motion: CameraMotion | None
    ground: Ground

    @classmethod
    def of(cls, config: NodeConfig, tf: SharedTransforms, warn: Warn) -> Poses:
        """The poses of a node with these settings. warn: is given kind and sentence of a doubt.

        Raises ConfigError with cause and cure where TF is needed and cannot be had.
        """
        with ExitStack() as undo:
            extrinsics = _extrinsics(config, tf)
            undo.callback(extrinsics.close)
            motion = _motion(config, tf)
            if motion is not None:
                undo.callback(motion.close)
            ground = _ground(config, tf, warn)
            undo.pop_all()
        return cls(extrinsics, motion, ground)

    def changed(self, old: NodeConfig, new: NodeConfig, tf: SharedTransforms, warn: Warn) -> Poses:
        """The poses with other settings; what the change does not concern is the same object.

        Nothing is changed here: the caller closes what one of the two has alone. Raises as of().
        """
        extrinsics, motion, ground = self.extrinsics, self.motion, self.ground
        with ExitStack() as undo:
            if (new.T_camera_lidar, new.lidar_sources) != (old.T_camera_lidar, old.lidar_sources):
                extrinsics = _extrinsics(new, tf)
                undo.callback(extrinsics.close)
            if (new.world_frame, new.tf_tolerance_s) != (old.world_frame, old.tf_tolerance_s):
                motion = _motion(new, tf)
                if motion is not None:
                    undo.callback(motion.close)
            if (new.obstacles, new.tf_tolerance_s) != (old.obstacles, old.tf_tolerance_s):
                ground = _ground(new, tf, warn)
            undo.pop_all()
        return Poses(extrinsics, motion, ground)

    def forget(self) -> None:
        """Look static transforms up again, and at where the ground is."""
        self.extrinsics.forget()
        self.ground.forget()

    def close(self, kept: Poses | None = None) -> None:
        """End the hold on TF of what `kept` does not have too."""
        if kept is None or self.extrinsics is not kept.extrinsics:
            self.extrinsics.close()
        if self.motion is not None and (kept is None or self.motion is not kept.motion):
            self.motion.close()
        if kept is None or self.ground is not kept.ground:
            self.ground.close()


def _extrinsics(config: NodeConfig, tf: SharedTransforms) -> Extrinsics:
    fixed, source = config.fixed_extrinsics(), None
    if fixed is None:
        source = _join(
            tf,
            "the pose of the LiDAR is unknown: set the parameter T_camera_lidar (16 numbers,"
            f" row by row), or {INSTALL_TF} and publish the transform",
        )
    return Extrinsics(fixed, source, config.tf_tolerance_s)


def _motion(config: NodeConfig, tf: SharedTransforms) -> CameraMotion | None:
    if not config.world_frame:
        return None
    source = _join(tf, f"world_frame needs TF: {INSTALL_TF}, or empty world_frame")
    return CameraMotion(config.world_frame, source, config.tf_tolerance_s)


def _ground(config: NodeConfig, tf: SharedTransforms, warn: Warn) -> Ground:
    source = None
    if config.obstacles.base_frame:
        source = _join(
            tf,
            f"obstacles.base_frame needs TF: {INSTALL_TF}, or empty it and set"
            " obstacles.camera_height_m",
        )
    return Ground(config.obstacles, source, config.tf_tolerance_s, warn)


def _join(tf: SharedTransforms, refusal: str) -> TransformSource:
    """TF. Raises ConfigError without it; refusal: what needs it, and the cure."""
    try:
        return tf.join()
    except ImportError as error:
        raise ConfigError(f"{refusal} ({error})") from error
