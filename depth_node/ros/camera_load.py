# SPDX-License-Identifier: Apache-2.0
"""Cameras that send the next image when the depth of the last has come, for a benchmark.

`python -m depth_node.ros.camera_load --frames FOLDER ...` plays a LiDAR and several cameras to
nodes that are up, `/<camera>/depth_node`, brings them to active, and reports on standard output, by
lines of JSON, how many depth images each camera got and how late. Nothing is dropped and no core
idles, so the rate is what the nodes can do.
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from depth_node.recordings.frames import find_frames, read_frame
from depth_node.ros import messages
from depth_node.ros.demo import (
    CAMERA_FRAME,
    LIDAR_FRAME,
    XYZ,
    Words,
    change,
    run_steered,
    say,
    there_and_back,
    wait_for_publisher,
)

_LOST_S = 2.0  # an image without depth by then was lost, or its node is broken
_LIDAR_HZ = 10.0


class Load:
    """A LiDAR and cameras; each camera has one image on its way at a time."""

    def __init__(self, node: Node, frames: Path, cameras: list[str]) -> None:
        self._node = node
        # Serialised once, because the work of the load is not to be measured.
        self._frames: list[tuple[bytes, bytes, bytes]] = []
        camera_frame, lidar_frame = Header(frame_id=CAMERA_FRAME), Header(frame_id=LIDAR_FRAME)
        for frame in (read_frame(folder) for folder in find_frames(frames)):
            points = np.ascontiguousarray(frame.points_lidar).view(XYZ).reshape(-1)
            played = (
                messages.camera_info_message(frame.camera, camera_frame),
                messages.image_message(frame.image, "rgb8", camera_frame),
                messages.table_message(points, lidar_frame),
            )
            info, image, scan = map(serialize_message, played)
            self._frames.append((info, image, scan))
        sensor = qos_profile_sensor_data
        self._lidar = node.create_publisher(PointCloud2, "/lidar/points", sensor)
        self._infos = {
            c: node.create_publisher(CameraInfo, f"/{c}/camera_info", 1) for c in cameras
        }
        self._images = {c: node.create_publisher(Image, f"/{c}/image", sensor) for c in cameras}
        self._sent = dict.fromkeys(cameras, 0)
        self._sent_s = dict.fromkeys(cameras, 0.0)
        self.latency_ms: dict[str, list[float]] = {camera: [] for camera in cameras}
        self.lost = 0
        for camera in cameras:
            topic = f"/{camera}/depth_node/depth/image_rect"
            callback = partial(self._on_depth, camera)
            node.create_subscription(Image, topic, callback, QoSProfile(depth=5), raw=True)

    def run(self, seconds: float) -> float:
        """Play for a number of seconds; return the seconds that it took."""
        begin = now = time.monotonic()
        next_scan = begin
        for camera in self._images:
            self._send(camera)
        while now < begin + seconds:
            if now >= next_scan:
                self._send_scan()
                next_scan = max(next_scan + 1.0 / _LIDAR_HZ, now)
            for camera, sent_s in self._sent_s.items():
                if now - sent_s > _LOST_S:
                    self.lost += 1
                    self._send(camera)
            rclpy.spin_once(self._node, timeout_sec=0.02)
            now = time.monotonic()
        return now - begin

    def forget(self) -> None:
        """Forget the images counted so far."""
        self.lost = 0
        for times in self.latency_ms.values():
            times.clear()

    def _on_depth(self, camera: str, message: bytes) -> None:
        self.latency_ms[camera].append((time.monotonic() - self._sent_s[camera]) * 1e3)
        self._send(camera)

    def _now(self) -> bytes:
        stamp = self._node.get_clock().now().to_msg()
        return struct.pack("<iI", stamp.sec, stamp.nanosec)

    def _send(self, camera: str) -> None:
        number = self._sent[camera]
        info, image, _ = self._frames[there_and_back(number, len(self._frames))]
        stamp = self._now()
        self._sent[camera], self._sent_s[camera] = number + 1, time.monotonic()
        self._infos[camera].publish(_stamped(info, stamp))
        self._images[camera].publish(_stamped(image, stamp))

    def _send_scan(self) -> None:
        index = there_and_back(max(self._sent.values()), len(self._frames))
        self._lidar.publish(_stamped(self._frames[index][2], self._now()))


def _stamped(message: bytes, stamp: bytes) -> bytes:
    """Return a serialised message with another stamp, which follows the 4-byte CDR header."""
    return b"".join((message[:4], stamp, message[12:]))


def main(arguments: list[str] | None = None) -> int:
    """Run the load; say `ready`, wait for `go`, say `report`, wait for `stop`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--cameras", required=True, help="names, separated by commas")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--timeout", type=float, default=60.0)
    options = parser.parse_args(arguments)
    return run_steered("camera_load", lambda node: _load(node, options))


def _load(node: Node, options: argparse.Namespace) -> None:
    cameras, words = options.cameras.split(","), Words()
    load = Load(node, options.frames, cameras)
    for transition in ("configure", "activate"):
        for camera in cameras:
            change(node, transition, options.timeout, f"/{camera}/depth_node")
    for camera in cameras:
        wait_for_publisher(node, f"/{camera}/depth_node/depth/image_rect", options.timeout)
    load.run(2.0)  # until discovery is done and each node has processed some images
    load.forget()
    say("ready")
    while (word := words.next_word(wait_s=1.0)) not in ("go", "stop"):
        pass
    if word == "go":
        seconds = load.run(options.seconds)
        say("report", seconds=seconds, latency_ms=load.latency_ms, lost=load.lost)
    while words.next_word(wait_s=1.0) != "stop":
        pass


if __name__ == "__main__":
    sys.exit(main())
