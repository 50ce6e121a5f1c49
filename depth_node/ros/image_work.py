# SPDX-License-Identifier: Apache-2.0
"""The processing of one image: its points, its depth, the messages and the monitor's record."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CompressedImage, Image

from depth_node.calibration.mistaken_pose import MistakenPose
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.rolling_shutter import RollingShutter
from depth_node.monitor import Monitor
from depth_node.pipeline import DepthPipeline, DepthResult
from depth_node.ros import messages
from depth_node.ros.inputs.camera import CameraInput
from depth_node.ros.inputs.lidar import LidarInput, LidarPoints
from depth_node.ros.messages import place
from depth_node.ros.outputs.diagnostics import frame_trouble
from depth_node.ros.outputs.extrinsics_watch import LiveWatch
from depth_node.ros.outputs.publishers import Outputs
from depth_node.ros.outputs.results import (
    RECTIFIED,
    TRANSPORT,
    UNRECTIFIED,
    depth_topic,
    frame_record,
)
from depth_node.ros.process.guarded_node import GuardedNode, describe_exception
from depth_node.ros.settings import NodeConfig
from depth_node.ros.transforms.motion import CameraMotion
from depth_node.ros.transforms.poses import Poses
from depth_node.ros.transforms.tf import NoTransformError

_FOREIGN_CLOCK_S = 60.0  # an older image, or one from the future, has the stamp of another clock


@dataclass(frozen=True)
class PendingImage:
    """An image that waits for the worker."""

    message: Image | CompressedImage
    stamp_ns: int
    arrival_s: float
    clock_s: float
    """Its arrival, by the clock of the LiDAR messages' arrivals."""


@dataclass(frozen=True)
class Parts:
    """The parts and settings of an active node, as they are when a frame begins."""

    config: NodeConfig
    pipeline: DepthPipeline
    lidar: LidarInput
    poses: Poses
    outputs: Outputs
    watch: LiveWatch | None


class ImageWork:
    """Turns images into published results, in the worker's thread."""

    def __init__(self, node: GuardedNode, camera: CameraInput, monitor: Monitor) -> None:
        self._node, self._camera, self._monitor = node, camera, monitor
        self._mistaken = MistakenPose()
        self._looked_at: CameraMotion | None = None  # the motion whose world_frame was checked
        self._raised: set[str] = set()  # places that raised and were logged

    def begin(self) -> None:
        """Log the failures of a new activation again."""
        self._raised.clear()

    def forget(self) -> None:
        """Forget earlier frames."""
        self._mistaken.forget()

    def run(self, pending: PendingImage, parts: Parts) -> None:
        """Process an image; one that cannot be used is counted and causes a warning."""
        pipeline, config, watch = parts.pipeline, parts.config, parts.watch
        try:
            image, camera = self._camera.decode(pending.message, config)
        except ValueError as error:  # a MessageError, or a calibration that cannot be used
            self._monitor.refused(time.monotonic(), str(error))
            self._node.warn_throttled(place(error), str(error))
            return
        wanted = self._wanted(camera, parts.outputs)
        if not wanted:
            self._monitor.skipped_no_subscribers(time.monotonic())
            return
        parts.lidar.wait(pending.stamp_ns, config.scan_wait_s)
        motion, header = parts.poses.motion, pending.message.header
        shutter = None
        if motion is not None and config.camera_readout_time_s > 0:
            shutter = RollingShutter(camera, config.camera_readout_time_s)
        points = parts.lidar.collect(
            header.frame_id, pending.stamp_ns, motion, pending.clock_s, shutter
        )
        observed = FrameInput(
            image,
            camera,
            points.points,
            points.T_camera_lidar,
            points.age_s,
            pending.stamp_ns,
            self._pose(motion, header.frame_id, pending.stamp_ns),
            noise_m=points.noise_m,
            sources=points.sources,
            echoes=points.echoes,
        )
        with watch.frame_at_work() if watch is not None else nullcontext():
            result = pipeline.process(observed)
            stage_ms = dict(result.stage_ms)
            start_s = time.perf_counter()
            parts.outputs.publish(
                wanted, result, image, camera, header, config,
                lambda: parts.poses.ground.view(result, camera, header.frame_id, pending.stamp_ns),
            )  # fmt: skip
            stage_ms["publish"] = (time.perf_counter() - start_s) * 1e3
        if points.sources and not points.echoes:
            self._mistaken.look(observed, result.prediction)
        if watch is not None and points.sources:
            watch.offer_image(observed, header)
        self._report(pending, points, result, stage_ms, camera)

    def failed(self, error: Exception) -> None:
        """Count an exception of the worker and log each kind once; the worker goes on."""
        if not self._node.context.ok():
            return  # rclpy is shut down, so publishing fails
        text = describe_exception(error)
        self._monitor.failed(time.monotonic(), text)
        kind = place(error)
        if kind not in self._raised:
            self._raised.add(kind)
            self._node.get_logger().error(f"a frame failed and was left out: {text}")

    def _pose(
        self, motion: CameraMotion | None, frame: str, stamp_ns: int
    ) -> npt.NDArray[np.float64] | None:
        """Return T_world_camera (4, 4), None if it is not known."""
        if motion is None:
            return None
        try:
            pose = motion.pose(frame, stamp_ns)
            if motion is not self._looked_at:  # once for each world_frame
                self._looked_at = motion
                if doubt := motion.doubt(frame):
                    self._node.warn_throttled("world frame", doubt)
            return pose
        except NoTransformError as error:
            self._node.warn_throttled("motion", str(error))
            return None

    def _wanted(self, camera: Camera, outputs: Outputs) -> set[str]:
        """Return the topics that have a subscriber and that this camera has messages for."""
        subscribed = outputs.topics_with_subscribers()
        right = depth_topic(camera)
        wrong = UNRECTIFIED if right == RECTIFIED else RECTIFIED
        if subscribed & {wrong, wrong + TRANSPORT}:
            has = "no distortion" if right == RECTIFIED else "distortion"
            self._node.warn_throttled(
                "wrong depth topic",
                f"{self._node.resolve_topic_name(wrong)} stays silent: the image has {has},"
                f" so its depth is on {self._node.resolve_topic_name(right)}",
            )
        return subscribed - {wrong, wrong + TRANSPORT}

    def _report(
        self,
        pending: PendingImage,
        points: LidarPoints,
        result: DepthResult,
        stage_ms: dict[str, float],
        camera: Camera,
    ) -> None:
        now_s = time.monotonic()
        stamp_ms: float | None = None
        if messages.stamp_ns(pending.message.header.stamp):
            behind_s = (self._node.get_clock().now().nanoseconds - pending.stamp_ns) * 1e-9
            stamp_ms = behind_s * 1e3 if 0 <= behind_s < _FOREIGN_CLOCK_S else None
        frame = pending.message.header.frame_id
        trouble, kind = frame_trouble(points, result, camera, frame)
        if not trouble and self._mistaken.sentence:
            trouble, kind = self._mistaken.sentence, "mistaken pose"
        if trouble:
            self._node.warn_throttled(f"trouble {kind}", trouble)
        record = frame_record(
            result,
            node_ms=(now_s - pending.arrival_s) * 1e3,
            stage_ms=stage_ms,
            stamp_ms=stamp_ms,
            trouble=trouble,
        )
        self._monitor.published(now_s, record)
