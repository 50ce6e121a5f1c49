# SPDX-License-Identifier: Apache-2.0
"""The output topics of the node, and the message that a result gives on each of them.

Without rclpy: the live node publishes these messages, a replay writes them into a bag.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseWithCovarianceStamped
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, LaserScan, PointCloud2
from std_msgs.msg import Header

from depth_node.calibration.estimate import pose_covariance
from depth_node.calibration.monitor import Finding, Verdict
from depth_node.geometry.camera import Camera
from depth_node.geometry.millimetres import depth_to_millimetres
from depth_node.monitor import FrameRecord, Report
from depth_node.pipeline import DepthResult
from depth_node.ros import messages
from depth_node.ros.transforms.ground import ObstacleView

RECTIFIED = "~/depth/image_rect"
UNRECTIFIED = "~/depth/image"  # for images with distortion
TRANSPORT = "/compressedDepth"  # suffix that image_transport adds to a depth topic
CAMERA_INFO = "~/depth/camera_info"
POINTS = "~/points"
CONFIDENCE = "~/confidence"
REGIONS = "~/regions"
FIT = "~/fit"
REJECTED = "~/rejected"
OBSTACLES = "~/obstacles"
OBSTACLE_SCAN = "~/obstacles/scan"
EXTRINSICS = "~/extrinsics"
DIAGNOSTICS = "/diagnostics"

OUTPUTS: dict[str, type] = {
    RECTIFIED: Image,
    UNRECTIFIED: Image,
    RECTIFIED + TRANSPORT: CompressedImage,
    UNRECTIFIED + TRANSPORT: CompressedImage,
    CAMERA_INFO: CameraInfo,
    POINTS: PointCloud2,
    CONFIDENCE: Image,
    REGIONS: Image,
    FIT: PointCloud2,
    REJECTED: PointCloud2,
    OBSTACLES: PointCloud2,
    OBSTACLE_SCAN: LaserScan,
}


class OutputConfig(Protocol):
    """The settings of the node on which its messages depend."""

    @property
    def depth_encoding(self) -> str:
        """32FC1 or 16UC1."""

    @property
    def points_decimation(self) -> int:
        """Every n-th row and column of the depth is published as a point."""


def depth_topic(camera: Camera) -> str:
    """Return the topic for the depth of this camera's images."""
    return RECTIFIED if camera.model == "pinhole" else UNRECTIFIED


def message_makers(
    result: DepthResult,
    image: npt.NDArray[np.uint8],
    camera: Camera,
    header: Header,
    config: OutputConfig,
    obstacle_view: Callable[[], ObstacleView | None] = lambda: None,
) -> dict[str, Callable[[], Any]]:
    """Return for each topic of OUTPUTS a function that makes its message; nothing is computed
    before.

    The function returns None if there is no message for this image. obstacle_view: returns the
    obstacles, None if the ground is not known. image: (H, W, 3) uint8 RGB. header: stamp and frame
    of the image, used for every message.
    """

    @functools.cache
    def depth_pixels() -> npt.NDArray[Any]:
        metres = result.gates.depth_image()
        return depth_to_millimetres(metres) if config.depth_encoding == "16UC1" else metres

    def depth() -> Image:
        return messages.image_message(depth_pixels(), config.depth_encoding, header)

    @functools.cache
    def compressed_depth() -> CompressedImage:
        return messages.compressed_depth_message(depth_pixels(), header)

    def points() -> PointCloud2:
        every = config.points_decimation
        believed = result.gates.believed(every)
        rows = messages.colour_points(result.depth, camera, image, every, believed)
        return messages.table_message(rows, header)

    def regions() -> Image:
        labels = result.labels
        if labels is None:  # a method without regions leaves every pixel unassigned
            labels = np.zeros(result.depth.shape, np.int32)
        return messages.image_message(messages.labels_to_pixels(labels), "16UC1", header)

    def rejected() -> PointCloud2:
        which, sparse = result.rejected, result.sparse
        pixels = (sparse.rows[which], sparse.cols[which])
        rows = messages.residual_points(
            pixels, sparse.depth[which], result.fit.point_residual[which], camera
        )
        return messages.table_message(rows, header)

    shared_view = functools.cache(obstacle_view)

    def obstacles() -> PointCloud2 | None:
        view = shared_view()
        if view is None:
            return None
        return messages.table_message(messages.obstacle_points(view.obstacles), header)

    def obstacle_scan() -> LaserScan | None:
        view = shared_view()
        if view is None or not view.base_frame:  # a ground from parameters has no TF frame
            return None
        scan_header = Header(stamp=header.stamp, frame_id=view.base_frame)
        return messages.scan_message(view.obstacles, view.max_range_m, scan_header)

    return {
        RECTIFIED: depth,
        UNRECTIFIED: depth,
        RECTIFIED + TRANSPORT: compressed_depth,
        UNRECTIFIED + TRANSPORT: compressed_depth,
        CAMERA_INFO: lambda: messages.camera_info_message(camera, header),
        POINTS: points,
        CONFIDENCE: lambda: messages.image_message(result.std, "32FC1", header),
        REGIONS: regions,
        FIT: lambda: messages.table_message(result.fit.regions, header),
        REJECTED: rejected,
        OBSTACLES: obstacles,
        OBSTACLE_SCAN: obstacle_scan,
    }


def frame_record(
    result: DepthResult,
    *,
    node_ms: float,
    stage_ms: dict[str, float],
    stamp_ms: float | None = None,
    trouble: str = "",
) -> FrameRecord:
    """Return the monitor's record of a result; FrameRecord explains the arguments."""
    fit, used = result.fit, len(result.sparse)
    residual = np.abs(fit.point_residual[np.isfinite(fit.point_residual)])
    return FrameRecord(
        node_ms=node_ms,
        stamp_ms=stamp_ms,
        stage_ms=stage_ms,
        scan_age_s=float(result.sparse.age_s.max()) if used else None,
        points=used,
        inlier_fraction=float(fit.point_inlier.mean()) if used else float("nan"),
        residual_m=float(np.median(residual)) if len(residual) else float("nan"),
        status=fit.status.name,
        details=fit.details,
        trouble=trouble,
    )


def diagnostics_message(report: Report, node: str, hardware_id: str) -> DiagnosticArray:
    """Return the monitor's report as one status, without a stamp. node: its full name."""
    status = DiagnosticStatus(
        level=bytes([report.level]),
        name=f"{node.lstrip('/')}: depth",
        message=report.message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
    )
    return DiagnosticArray(status=[status])


def extrinsics_report(verdicts: Mapping[str, Verdict]) -> tuple[dict[str, str], str]:
    """Return lines for the diagnostics, and a warning or "". verdicts: by LiDAR."""
    lines: dict[str, str] = {}
    for name, verdict in verdicts.items():
        key = "extrinsics" if len(verdicts) < 2 else f"extrinsics of {messages.brief(name)}"
        lines[key] = verdict.text()
        if verdict.finding is Finding.WRONG and verdict.T_camera_lidar is not None:
            numbers = ", ".join(f"{value:.5f}" for value in verdict.T_camera_lidar.ravel())
            lines[f"{key}: T_camera_lidar proposed"] = f"[{numbers}]"
    wrong = [name for name, verdict in verdicts.items() if verdict.finding is Finding.WRONG]
    if not wrong:
        return lines, ""
    return lines, (
        f"the stated pose or time of the LiDAR {messages.brief(wrong[0])} is"
        f" {verdicts[wrong[0]].text()}: mount it as before, or correct T_camera_lidar, TF or"
        " lidar_time_offset_s (`depth_tools calibrate` on a recording measures them)"
    )


def pose_message(verdict: Verdict, header: Header) -> PoseWithCovarianceStamped:
    """Return the LiDAR's pose in the camera that a verdict proposes. header: of an image."""
    T, covariance = verdict.T_camera_lidar, verdict.covariance
    assert T is not None and covariance is not None
    message = PoseWithCovarianceStamped(header=header)
    position, orientation = message.pose.pose.position, message.pose.pose.orientation
    position.x, position.y, position.z = (float(value) for value in T[:3, 3])
    quaternion = Rotation.from_matrix(T[:3, :3]).as_quat()
    orientation.x, orientation.y, orientation.z, orientation.w = (float(q) for q in quaternion)
    message.pose.covariance = np.ravel(pose_covariance(T, covariance))
    return message
