# SPDX-License-Identifier: Apache-2.0
"""The robot of the soak as a process: camera, LiDAR, laser, TF and clock, steered by its stdin.

Each line in is a JSON object: `{"set": {"offset_s": 10}}` changes a field of `Ways`, `{"hostile":
NAME}` sends a message of tests.helpers.soak_hostile. Each line out tells of an image that was sent:
its stamp and the monotonic time.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import queue
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2
from std_msgs.msg import Header

from depth_node.ros import messages
from depth_node.ros.demo import XYZ, there_and_back
from tests.helpers.soak_hostile import (
    CAMERA,
    HOSTILE,
    LASER,
    LIDAR,
    SMALL_PAIR,
    set_stamp,
    small_info,
)

try:
    from tf2_msgs.msg import TFMessage
except ImportError:  # no wheel has it: the stand-in of tf2_ros takes single transforms
    TFMessage = None

SIM_START_S = 1000.0


@dataclass
class Ways:
    """Settings of the stamps and of what is not published."""

    offset_s: float = 0.0
    zero: bool = False
    lidar_offset_s: float = 0.0
    tf: bool = True
    sim: bool = False


class Robot:
    def __init__(self, node: Node, frames: Path, seed: int) -> None:
        self.ways = Ways()
        self._node = node
        self._rng = np.random.default_rng(seed)
        with np.load(frames) as stored:
            self._images = stored["images"]
            self._clouds = [stored[f"cloud_{k}"] for k in range(len(self._images))]
            self._ranges = stored["ranges"]
            self._poses = stored["poses"]
            self._K = stored["K"]
            self._links = {
                CAMERA: ("base", np.eye(4)),
                LIDAR: (CAMERA, stored["T_camera_lidar"]),
                LASER: (LIDAR, np.eye(4)),
            }
        best = qos_profile_sensor_data
        self._out: dict[str, Any] = {
            "image": node.create_publisher(Image, "image", best),
            "camera_info": node.create_publisher(CameraInfo, "camera_info", best),
            "points": node.create_publisher(PointCloud2, "points", best),
            "scan": node.create_publisher(LaserScan, "scan", best),
            "/tf": node.create_publisher(TFMessage or TransformStamped, "/tf", 100),
            "/clock": node.create_publisher(Clock, "/clock", best),
        }
        self._static: Any = None
        self._sim_since = time.monotonic()

    def change(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self.ways, name, value)
        if changes.get("sim"):
            self._sim_since = time.monotonic()

    def now_ns(self) -> int:
        """Return the time of the robot's clock, with its commanded offset."""
        sim_s = SIM_START_S + time.monotonic() - self._sim_since
        now_ns = round(sim_s * 1e9) if self.ways.sim else time.time_ns()
        return now_ns + round(self.ways.offset_s * 1e9)

    def step(self, number: int) -> None:
        """Publish clock, TF, calibration, LiDAR, laser and image of one time."""
        index = there_and_back(number, len(self._images))
        now_ns = self.now_ns()
        if self.ways.sim:
            clock = Clock()
            clock.clock.sec, clock.clock.nanosec = divmod(now_ns, 1_000_000_000)
            self._out["/clock"].publish(clock)
        self._transforms(index, now_ns)
        lidar_ns = now_ns + round(self.ways.lidar_offset_s * 1e9)
        if self.ways.zero:
            now_ns = lidar_ns = 0
        self._out["camera_info"].publish(self._info(now_ns))
        rows = np.ascontiguousarray(self._clouds[index]).view(XYZ).reshape(-1)
        header = set_stamp(Header(frame_id=LIDAR), lidar_ns)
        self._out["points"].publish(messages.table_message(rows, header))
        self._out["scan"].publish(self._scan(index, lidar_ns))
        header = set_stamp(Header(frame_id=CAMERA), now_ns)
        image = messages.image_message(self._images[index], "rgb8", header)
        print(json.dumps({"stamp": now_ns, "t": time.monotonic()}), flush=True)
        self._out["image"].publish(image)

    def hostile(self, name: str) -> None:
        now_ns = self.now_ns()
        if name == SMALL_PAIR:
            self._out["camera_info"].publish(small_info(now_ns))
        topic, message = HOSTILE[name](now_ns, self._rng)
        if topic == "/tf" and TFMessage is not None:
            message = TFMessage(transforms=[message])
        self._out[topic].publish(message)
        if topic == "camera_info":  # an image, so that the node uses it before the next good one
            header = set_stamp(Header(frame_id=CAMERA), now_ns)
            self._out["image"].publish(messages.image_message(self._images[0], "rgb8", header))

    def _info(self, stamp_ns: int) -> CameraInfo:
        message = CameraInfo(header=set_stamp(Header(frame_id=CAMERA), stamp_ns))
        message.height, message.width = self._images.shape[1:3]
        message.distortion_model, message.d = "plumb_bob", [0.0] * 5
        message.k = self._K.reshape(-1).tolist()
        message.p = np.hstack([self._K, np.zeros((3, 1))]).reshape(-1).tolist()
        return message

    def _scan(self, index: int, stamp_ns: int) -> LaserScan:
        ranges = self._ranges[index]
        message = LaserScan(header=set_stamp(Header(frame_id=LASER), stamp_ns))
        step = 2 * np.pi / len(ranges)
        message.angle_min, message.angle_max = -np.pi + step / 2, np.pi - step / 2
        message.angle_increment, message.range_min, message.range_max = step, 0.1, 40.0
        message.ranges = array.array("f", ranges.astype(np.float32).tobytes())
        return message

    def _transforms(self, index: int, stamp_ns: int) -> None:
        if not self.ways.tf:
            if self._static is not None:
                self._node.destroy_publisher(self._static)
                self._static = None
            return
        if self._static is None:
            latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            kind = TFMessage or TransformStamped
            self._static = self._node.create_publisher(kind, "/tf_static", latched)
            still = [_link(parent, child, T, 0) for child, (parent, T) in self._links.items()]
            self._send(self._static, still)
        self._send(self._out["/tf"], [_link("odom", "base", self._poses[index], stamp_ns)])

    @staticmethod
    def _send(publisher: Any, transforms: list[TransformStamped]) -> None:
        if TFMessage is not None:
            publisher.publish(TFMessage(transforms=transforms))
            return
        for transform in transforms:
            publisher.publish(transform)


def _link(parent: str, child: str, T: Any, stamp_ns: int) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    set_stamp(message.header, stamp_ns).frame_id = parent
    move, turn = message.transform.translation, message.transform.rotation
    move.x, move.y, move.z = map(float, T[:3, 3])
    turn.x, turn.y, turn.z, turn.w = map(float, Rotation.from_matrix(T[:3, :3]).as_quat())
    return message


def _read(commands: queue.Queue[dict[str, Any] | None]) -> None:
    # Read from the descriptor, because a daemon thread inside a buffered reader would hold its lock
    # while the interpreter ends.
    pending = b""
    while chunk := os.read(0, 65536):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            commands.put(json.loads(line))
    commands.put(None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rclpy.init(args=[], signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node = rclpy.create_node("soak_robot", start_parameter_services=False)
    robot = Robot(node, options.frames, options.seed)
    commands: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    number, due = 0, time.monotonic()
    while True:
        try:
            command = commands.get(timeout=max(due - time.monotonic(), 0.001))
        except queue.Empty:
            command = {}
        if command is None:
            break
        robot.change(**command.get("set", {}))
        if "hostile" in command:
            robot.hostile(command["hostile"])
        now = time.monotonic()
        if now >= due:
            robot.step(number)
            number += 1
            due = max(due + 1 / options.rate, now - 1.0)  # catch up at most 1 s after a pause
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
