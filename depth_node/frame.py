# SPDX-License-Identifier: Apache-2.0
"""FrameInput: the only type of an observation, for the node, replays, the demo and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from depth_node.geometry.camera import Camera
from depth_node.geometry.echoes import Echo
from depth_node.geometry.rigid import FloatArray
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from depth_node.regions.label_maps import Labels


@dataclass(frozen=True)
class SourcePoints:
    """The points of one LiDAR near an image in time, to judge the LiDARs' extrinsics one by one.

    source: the LiDAR's name. points: (N, 3) metres, T_camera_points: (4, 4) maps them to where they
    are at the image's time, as far as the motion in between is known. T_camera_lidar: (4, 4) as
    configured or from TF. lag_s: how long after the image the points were measured, 0 if the motion
    was compensated.
    """

    source: str
    points: FloatArray
    T_camera_points: npt.NDArray[np.float64]
    T_camera_lidar: npt.NDArray[np.float64]
    lag_s: float = 0.0


@dataclass(frozen=True)
class Origin:
    """Where an image comes from: used when results are written, not by any method.

    frame_id: the camera's optical frame. recorded_ns: when the image was recorded, by the clock of
    its recording.
    """

    frame_id: str = ""
    recorded_ns: int | None = None


@dataclass(frozen=True)
class FrameInput:
    """An image and all that was measured with it: the input of DepthPipeline.process().

    image: (H, W, 3) uint8 RGB. camera: the calibration of this image. points: (N, 3) metres in the
    LiDAR frame, None or empty without any. T_camera_lidar: (4, 4), required with points. age_s:
    seconds between the points and the image, one number or (N,). noise_m: declared standard
    deviation of the points' depth in metres, one number or (N,), 0: not declared. stamp_ns: time of
    the image, None for an image that is not part of a sequence: nothing of it is kept in memory.
    T_world_camera: (4, 4) pose of the camera in a fixed frame (odometry), None if unknown. sources:
    the points of each LiDAR separately, empty if one LiDAR gave them all.

    These are used, where given, instead of being computed: labels (H, W) int32 regions, prediction
    of a network, sparse depth of pixels that were measured directly. origin: where the image comes
    from. echoes: of sensors that measure one distance in a cone; the network's prediction shows
    where in the cone.
    """

    image: npt.NDArray[np.uint8]
    camera: Camera
    points: FloatArray | None = None
    T_camera_lidar: npt.NDArray[np.float64] | None = None
    age_s: float | FloatArray = 0.0
    stamp_ns: int | None = None
    T_world_camera: npt.NDArray[np.float64] | None = None
    labels: Labels | None = None
    prediction: Prediction | None = None
    sparse: SparseDepth | None = None
    noise_m: float | FloatArray = 0.0
    sources: tuple[SourcePoints, ...] = ()
    origin: Origin = Origin()
    echoes: tuple[Echo, ...] = ()

    def of_each_lidar(self) -> tuple[SourcePoints, ...]:
        """Return the points of each LiDAR separately; empty without points or a LiDAR's pose."""
        T, points = self.T_camera_lidar, self.points
        if self.sources or T is None or points is None or not len(points):
            return self.sources
        return (SourcePoints("", points, T, T),)

    def check(self) -> None:
        """Raise ValueError, with cause and cure, if image, camera and labels do not match."""
        image, camera, labels = self.image, self.camera, self.labels
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image has shape {image.shape} and type {image.dtype}: give (H, W, 3) uint8 RGB"
            )
        height, width = image.shape[:2]
        if (camera.height, camera.width) != (height, width):
            raise ValueError(
                f"image is {width}x{height} but the camera's calibration is for"
                f" {camera.width}x{camera.height}: give the calibration of this image, or"
                " Camera.resized() if the image was scaled"
            )
        if labels is not None and labels.shape != (height, width):
            raise ValueError(
                f"labels have shape {labels.shape}, the image {(height, width)}: give labels of the"
                " same image"
            )
        noise_m = np.asarray(self.noise_m)
        if not (np.isfinite(noise_m) & (noise_m >= 0)).all():
            raise ValueError(
                "noise_m has values that are negative or not finite: give the standard deviation of"
                " each point in metres, 0 where it is not known"
            )
