# SPDX-License-Identifier: Apache-2.0
"""The extrinsics watch of a live node: its topic, its lines in the diagnostics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from depth_node.calibration.estimate import pose_covariance
from depth_node.calibration.monitor import Finding, Verdict
from depth_node.calibration.watch import BackgroundWatch
from depth_node.frame import FrameInput
from depth_node.ros.messages import brief

TOPIC = "~/extrinsics"


class LiveWatch(BackgroundWatch):
    """A BackgroundWatch whose verdicts are published; nothing is corrected by them."""

    def __init__(self, node: Node, share: float, failed: Callable[[Exception], None]) -> None:
        super().__init__(share, failed)
        self._node = node
        self._published: dict[str, Verdict] = {}
        self._header = Header()
        # Kept for late comers: a verdict may hold for hours.
        qos = QoSProfile(
            depth=8,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._publisher = node.create_publisher(PoseWithCovarianceStamped, TOPIC, qos)

    def offer_image(self, frame: FrameInput, header: Header) -> None:
        """Keep a frame to look at later; header: of its image."""
        self._header = header
        self.offer(frame)

    def report(self) -> tuple[dict[str, str], str]:
        """Publish new proposals; lines for the diagnostics, and a warning or ""."""
        verdicts = self.verdicts
        for name, verdict in verdicts.items():
            if verdict is not self._published.get(name) and verdict.T_camera_lidar is not None:
                self._publisher.publish(pose_message(verdict, self._header))
        self._published = verdicts
        lines = {}
        for name, verdict in verdicts.items():
            key = "extrinsics" if len(verdicts) < 2 else f"extrinsics of {brief(name)}"
            lines[key] = verdict.text()
            if verdict.finding is Finding.WRONG and verdict.T_camera_lidar is not None:
                numbers = ", ".join(f"{value:.5f}" for value in verdict.T_camera_lidar.ravel())
                lines[f"{key}: T_camera_lidar proposed"] = f"[{numbers}]"
        if verdicts:
            lines["extrinsics watch CPU [%]"] = f"{100 * self.spent_share:.1f}"
        wrong = [n for n, verdict in verdicts.items() if verdict.finding is Finding.WRONG]
        if not wrong:
            return lines, ""
        return lines, (
            f"where the LiDAR {brief(wrong[0])} is said to be, or when, is"
            f" {verdicts[wrong[0]].text()}: mount it as it was, or correct T_camera_lidar, TF or"
            " lidar_time_offset_s (`depth_tools calibrate` on a recording measures them)"
        )

    def take_down(self, timeout_s: float) -> None:
        """End the thread and take the topic off the graph."""
        self.close(timeout_s)
        self._node.destroy_publisher(self._publisher)


def pose_message(verdict: Verdict, header: Header) -> PoseWithCovarianceStamped:
    """The pose of the LiDAR in the camera that a verdict proposes; header: of an image."""
    T, covariance = verdict.T_camera_lidar, verdict.covariance
    assert T is not None and covariance is not None
    message = PoseWithCovarianceStamped(header=header)
    position, orientation = message.pose.pose.position, message.pose.pose.orientation
    position.x, position.y, position.z = (float(value) for value in T[:3, 3])
    quaternion = Rotation.from_matrix(T[:3, :3]).as_quat()
    orientation.x, orientation.y, orientation.z, orientation.w = (float(q) for q in quaternion)
    message.pose.covariance = np.ravel(pose_covariance(T, covariance))
    return message
