# SPDX-License-Identifier: Apache-2.0
"""The extrinsics monitor of a live node: its topic and its lines in the diagnostics."""

from __future__ import annotations

from collections.abc import Callable

from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Header

from depth_node.calibration.monitor import Verdict
from depth_node.calibration.watch import BackgroundWatch
from depth_node.frame import FrameInput
from depth_node.ros.outputs.results import EXTRINSICS, extrinsics_report, pose_message


class LiveWatch(BackgroundWatch):
    """A BackgroundWatch that publishes its verdicts; the node does not apply them."""

    def __init__(self, node: Node, share: float, failed: Callable[[Exception], None]) -> None:
        super().__init__(share, failed)
        self._node = node
        self._published: dict[str, Verdict] = {}
        self._header = Header()
        # Transient local, because a verdict may hold for hours and subscribers may come later.
        qos = QoSProfile(
            depth=8,
            reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL,
        )
        self._publisher = node.create_publisher(PoseWithCovarianceStamped, EXTRINSICS, qos)

    def offer_image(self, frame: FrameInput, header: Header) -> None:
        """Keep a frame to be judged later. header: of its image."""
        self._header = header
        self.offer(frame)

    def report(self) -> tuple[dict[str, str], str]:
        """Publish new proposals; return lines for the diagnostics, and a warning or ""."""
        verdicts = self.verdicts
        for name, verdict in verdicts.items():
            if verdict is not self._published.get(name) and verdict.T_camera_lidar is not None:
                self._publisher.publish(pose_message(verdict, self._header))
        self._published = verdicts
        lines, warning = extrinsics_report(verdicts)
        if verdicts:
            lines["extrinsics watch CPU [%]"] = f"{100 * self.spent_share:.1f}"
        return lines, warning

    def take_down(self, timeout_s: float) -> None:
        """End the thread and remove the topic from the graph."""
        self.close(timeout_s)
        self._node.destroy_publisher(self._publisher)
