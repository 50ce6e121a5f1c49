# SPDX-License-Identifier: Apache-2.0
"""FrameInput: the one noun for an observation, made by the node, replay, bags, demo, benchmarks."""

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
    """What one LiDAR measured around an image, for whoever judges the LiDARs one by one.

    source: its name. points: (N, 3) metres, T_camera_points: (4, 4) puts them where they are at the
    image's time, as far as the motion since then is known. T_camera_lidar: (4, 4) as stated; lag_s:
    how long after the image they were measured, 0 where the motion is taken out.
    """

    source: str
    points: FloatArray
    T_camera_points: npt.NDArray[np.float64]
    T_camera_lidar: npt.NDArray[np.float64]
    lag_s: float = 0.0


@dataclass(frozen=True)
class Origin:
    """Where an image comes from: for what is written beside it, no method reads it.

    frame_id: the camera's optical frame. recorded_ns: when the image was recorded, by the clock of
    its recording.
    """

    frame_id: str = ""
    recorded_ns: int | None = None


@dataclass(frozen=True)
class FrameInput:
    """An image and all that was measured with it: what DepthPipeline.process() works on.

    image: (H, W, 3) uint8 RGB. camera: the calibration of this image. points: (N, 3) metres in the
    LiDAR frame, None or empty without any. T_camera_lidar: (4, 4), needed where there are points.
    age_s: seconds between the points and the image, one number or (N,). noise_m: declared standard
    deviation of the points' depth in metres, one number or (N,), 0: not declared. stamp_ns:
    time of the image, None for an image of no sequence: nothing is remembered of it.
    T_world_camera: (4, 4) where the camera was in a frame that stands still (odometry), None where
    nobody knows. sources: the points of each LiDAR by itself, empty where one LiDAR gave them all.

    What is given here is taken instead of being computed: labels (H, W) int32 regions, prediction
    of a network, sparse depth of pixels that were measured directly. origin: where the image comes
    from. echoes: of sensors that measure one distance in a cone; the network says where in it.
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
        """The points of each LiDAR by itself; nothing without points of a LiDAR of known pose."""
        T, points = self.T_camera_lidar, self.points
        if self.sources or T is None or points is None or not len(points):
            return self.sources
        return (SourcePoints("", points, T, T),)

    def check(self) -> None:
        """Raise ValueError, with cause and cure, if image, camera and labels contradict."""
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
