# SPDX-License-Identifier: Apache-2.0
"""The processes beside the node in the live demo: a camera with a LiDAR, and a listener.

`python -m depth_node.ros.demo publish FOLDER ...` plays rendered frames as a driver would and notes
in FOLDER what it published when; `python -m depth_node.ros.demo listen FOLDER ...` brings the
lifecycle node to active and keeps what it publishes. Both talk to the demo by lines of JSON on
their standard output and take the words `go` and `stop` on their standard input; when that ends, so
do they. `bare` stands in for the node where its cost is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from depth_node.geometry.rigid import invert_rigid, transform
from depth_node.recordings.frames import find_frames, read_frame
from depth_node.ros import messages

CAMERA_FRAME = "camera_optical_frame"
LIDAR_FRAME = "lidar"
NODE = "/depth_node"
TRANSITIONS = {  # name -> number, state after it
    "configure": (Transition.TRANSITION_CONFIGURE, "inactive"),
    "activate": (Transition.TRANSITION_ACTIVATE, "active"),
    "deactivate": (Transition.TRANSITION_DEACTIVATE, "inactive"),
    "cleanup": (Transition.TRANSITION_CLEANUP, "unconfigured"),
}
ASK_AGAIN_S = 15.0
DISCOVERY_S = 10.0  # a lost announcement is repeated every three seconds
XYZ = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4")])


def say(event: str, **facts: Any) -> None:
    """Write one line of JSON, an event, for the demo."""
    print(json.dumps({"event": event, **facts}), flush=True)


class Words:
    """The words of the demo on standard input, one a line; end of input counts as `stop`."""

    def __init__(self) -> None:
        self._words: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        # Read from the descriptor: a daemon thread that waits in a buffered reader would hold its
        # lock while the interpreter ends.
        pending = b""
        while chunk := os.read(0, 4096):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._words.put(line.decode().strip())
        self._words.put("stop")

    def next_word(self, wait_s: float = 0.0) -> str:
        """Return the next word, or "" if none comes in time."""
        try:
            return self._words.get(timeout=wait_s) if wait_s > 0 else self._words.get_nowait()
        except queue.Empty:
            return ""


# ------------------------------------------------------------------------------------- publisher


def publish(options: argparse.Namespace, node: Node, words: Words) -> None:
    """Publish the frames of a folder forth and back at a fixed rate, with the present time as
    stamp."""
    frames = [read_frame(folder) for folder in find_frames(options.frames)]
    qos = qos_profile_sensor_data
    info_out = node.create_publisher(CameraInfo, "camera_info", qos)
    points_out = node.create_publisher(PointCloud2, "points", qos)
    image_out = node.create_publisher(Image, "image", qos)
    clouds, knocked = [], []
    for frame in frames:
        points, T = frame.points_lidar, frame.T_camera_lidar
        assert points is not None and T is not None
        clouds.append(np.ascontiguousarray(points).view(XYZ).reshape(-1))
        turned = np.ascontiguousarray(turned_lidar(points, T, options.knock), np.float32)
        knocked.append(turned.view(XYZ).reshape(-1))
    say("loaded", frames=len(frames))
    while (word := words.next_word(wait_s=0.2)) != "go":
        if word == "stop":
            return
    wait_for_subscriber(image_out)
    log = (options.folder / "published.jsonl").open("w", encoding="utf-8")
    period = 1.0 / options.rate
    start = time.monotonic()
    for number in range(options.count):
        pause = start + number * period - time.monotonic()
        if words.next_word(max(pause, 0.0)) == "stop":
            break
        index = there_and_back(number, len(frames))
        stamp = node.get_clock().now()
        # Written before it is published, so that a listener finds the line of each message.
        row = {"number": number, "index": index, "stamp": stamp.nanoseconds}
        row["lidar"] = number not in range(*options.unplugged)
        log.write(json.dumps(row) + "\n")
        log.flush()
        header = Header(frame_id=CAMERA_FRAME, stamp=stamp.to_msg())
        lidar_header = Header(frame_id=LIDAR_FRAME, stamp=stamp.to_msg())
        info_out.publish(messages.camera_info_message(frames[index].camera, header))
        cloud = (clouds if number < options.knock_at else knocked)[index]
        if row["lidar"]:
            points_out.publish(messages.table_message(cloud, lidar_header))
        image_out.publish(messages.image_message(frames[index].image, "rgb8", header))
        say("published", number=number)
    log.close()
    say("finished")
    while (
        words.next_word(wait_s=0.2) != "stop"
    ):  # keep the publishers until all messages have arrived
        pass


def wait_for_subscriber(publisher: Any) -> None:
    """Wait until a publisher has a subscriber, at most for the time of a discovery.

    Earlier images would be lost; without any subscriber they are published all the same, for
    whoever reports that they are lost.
    """
    end = time.monotonic() + DISCOVERY_S
    while not publisher.get_subscription_count() and time.monotonic() < end:
        time.sleep(0.05)


def turned_lidar(
    points: npt.NDArray[np.float32], T_camera_lidar: npt.NDArray[np.float64], degrees: float
) -> npt.NDArray[np.float64]:
    """Return the points (N, 3) of a LiDAR turned on its mount, about the camera's y axis."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    return transform(invert_rigid(turn @ T_camera_lidar) @ T_camera_lidar, points)


def there_and_back(number: int, count: int) -> int:
    """Return 0, 1, ... count - 1, count - 2, ... 1, 0, 1, ...: a path without a jump at its end."""
    if count == 1:
        return 0
    place = number % (2 * count - 2)
    return place if place < count else 2 * count - 2 - place


# -------------------------------------------------------------------------------------- listener


class Listener:
    """Counts and times every depth image, and keeps those that the demo will score."""

    def __init__(self, node: Node, folder: Path, keep_every: int) -> None:
        self.folder = folder
        self.keep_every = keep_every
        self.latency_ms: list[float] = []
        self.arrival_ms: list[float] = []
        self.diagnostics: dict[str, str] = {}
        self.states: list[tuple[int, str]] = []  # (time of arrival in ns, fit status)
        self.extrinsics: list[tuple[int, str]] = []  # (first image, its report)
        self._newest = -1
        self._last_kept = -1
        self._lines = 0
        self._numbers: dict[int, int] = {}
        self._node = node
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        qos = QoSProfile(depth=10)  # reliable
        # rclpy passes a callback with two arguments the message's metadata too.
        callback: Any = self._on_depth
        node.create_subscription(Image, f"{NODE}/depth/image_rect", callback, qos)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnostics = {"message": status.message} | {
                item.key: item.value for item in status.values
            }
            self.states.append((time.time_ns(), self.diagnostics.get("fit status", "")))
        text = self.diagnostics.get("extrinsics", "")
        before = self.extrinsics[-1][1] if self.extrinsics else ""
        if text.split(" ")[0] != before.split(" ")[0]:
            self.extrinsics.append((self._newest, text))

    def _on_depth(self, message: Image, about: Any) -> None:
        now_ns = time.time_ns()
        stamp = messages.stamp_ns(message.header.stamp)
        # When the node gave it to the middleware, without the transport.
        published_ns = about["source_timestamp"] or now_ns
        number = self._number(stamp)
        if number < 0:
            return
        self._newest = number
        self.latency_ms.append((published_ns - stamp) * 1e-6)
        self.arrival_ms.append((now_ns - stamp) * 1e-6)
        say("depth", number=number)
        if self._last_kept < 0 or number - self._last_kept >= self.keep_every:
            self._last_kept = number
            np.save(self.folder / f"live_{number:05d}.npy", messages.image_view(message))

    def is_found(self) -> bool:
        """Return whether the node reports a subscriber of its depth, which is this listener."""
        return self.diagnostics.get("subscribers", "0") != "0"

    def _number(self, stamp: int) -> int:
        """Return the number of the published image with this stamp; -1 for none."""
        if stamp not in self._numbers:
            text = (self.folder / "published.jsonl").read_text(encoding="utf-8")
            lines = text[: text.rfind("\n") + 1].splitlines()
            for line in lines[self._lines :]:
                row = json.loads(line)
                self._numbers[row["stamp"]] = row["number"]
            self._lines = len(lines)
        return self._numbers.get(stamp, -1)


def listen(options: argparse.Namespace, node: Node, words: Words) -> None:
    """Bring the node to active, receive until `stop`, and report what was received."""
    if options.lifecycle:
        change(node, "configure", options.timeout)
    listener = Listener(node, options.folder, options.keep_every)
    if options.lifecycle:
        change(node, "activate", options.timeout)
    wait_for_publisher(node, f"{NODE}/depth/image_rect", options.timeout)
    # Without a subscriber the node processes no image, so it must find us before the first.
    if options.lifecycle:
        spin_until(node, listener.is_found, DISCOVERY_S)
    else:  # a bare node has no diagnostics
        spin_until(node, lambda: False, 0.5)
    say("ready")
    while words.next_word() != "stop":
        rclpy.spin_once(node, timeout_sec=0.05)
    say(
        "report",
        latency_ms=listener.latency_ms,
        arrival_ms=listener.arrival_ms,
        diagnostics=listener.diagnostics,
        states=listener.states,
        extrinsics=listener.extrinsics,
    )
    if options.lifecycle:
        change(node, "deactivate", options.timeout)
        change(node, "cleanup", options.timeout)
    say("done")


def change(node: Node, name: str, timeout_s: float, target: str = NODE) -> None:
    """Request a lifecycle transition of a node, as `ros2 lifecycle set` does.

    A service may answer before its connection to a new client is complete, and the answer is lost.
    So the request is repeated after a while, and the node's state is checked.
    """
    transition, goal = TRANSITIONS[name]
    request = ChangeState.Request()
    request.transition.id = transition
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        answer = call(node, ChangeState, f"{target}/change_state", request, end)
        if answer is None or not answer.success:
            state = call(node, GetState, f"{target}/get_state", GetState.Request(), end)
            if state is None:
                continue
            if state.current_state.label != goal:
                if answer is None:
                    continue
                raise RuntimeError(f"{target} refuses to {name}")
        say("state", transition=name)
        return
    raise RuntimeError(f"{target} does not answer to {name} within {timeout_s:g} s")


def call(node: Node, kind: Any, service: str, request: Any, end: float) -> Any:
    """Return the answer of a service, or None if none comes for a while. end: the latest time."""
    client = node.create_client(kind, service)
    try:
        while not client.service_is_ready():
            if time.monotonic() > end:
                raise RuntimeError(f"there is no service {service}")
            rclpy.spin_once(node, timeout_sec=0.05)
        future = client.call_async(request)
        until = min(end, time.monotonic() + ASK_AGAIN_S)
        while not future.done() and time.monotonic() < until:
            rclpy.spin_once(node, timeout_sec=0.05)
        return future.result() if future.done() else None
    finally:
        node.destroy_client(client)


def spin_until(node: Node, condition: Callable[[], bool], patience_s: float) -> None:
    """Take messages until a condition holds, at most for patience_s."""
    end = time.monotonic() + patience_s
    while not condition() and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.05)


def wait_for_publisher(node: Node, topic: str, timeout_s: float) -> None:
    """Wait until a topic has a publisher."""
    end = time.monotonic() + timeout_s
    while not node.count_publishers(topic):
        if time.monotonic() > end:
            raise RuntimeError(f"nobody publishes {topic} within {timeout_s:g} s")
        rclpy.spin_once(node, timeout_sec=0.05)


# ------------------------------------------------------------------------------------- bare node


def answer_barely(options: argparse.Namespace, node: Node, words: Words) -> None:
    """Answer each image with zeros of its size, to measure the cost of a node without a method."""
    out = node.create_publisher(Image, f"{NODE}/depth/image_rect", QoSProfile(depth=5))
    zeros: dict[tuple[int, int], npt.NDArray[Any]] = {}

    def answer(message: Image) -> None:
        size = (message.height, message.width)
        depth = zeros.setdefault(size, np.zeros(size, np.float32))
        out.publish(messages.image_message(depth, "32FC1", message.header))

    node.create_subscription(Image, "image", answer, qos_profile_sensor_data)
    while words.next_word() != "stop":
        rclpy.spin_once(node, timeout_sec=0.05)


ROLES = {"publish": publish, "listen": listen, "bare": answer_barely}


def run_steered(name: str, work: Callable[[Node], None]) -> int:
    """Run a process that another one controls by words, with a node of this name.

    Returns the exit status. A RuntimeError of `work` is reported to the other process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it says when to stop
    rclpy.init(args=[], signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node = rclpy.create_node(name, start_parameter_services=False)
    try:
        work(node)
    except RuntimeError as error:
        say("failed", reason=str(error))
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one of the processes; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    publishing = roles.add_parser("publish")
    publishing.add_argument("--frames", type=Path, required=True)
    publishing.add_argument("--rate", type=float, required=True)
    publishing.add_argument("--count", type=int, required=True)
    publishing.add_argument(
        "--unplugged", type=int, nargs=2, default=(0, 0), help="images without a LiDAR: from, to"
    )
    publishing.add_argument("--knock", type=float, default=0.0)
    publishing.add_argument("--knock-at", type=int, default=0)
    listening = roles.add_parser("listen")
    listening.add_argument("--keep-every", type=int, required=True)
    listening.add_argument("--timeout", type=float, default=60.0)
    listening.add_argument("--no-lifecycle", dest="lifecycle", action="store_false")
    for role in (publishing, listening, roles.add_parser("bare")):
        role.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    work = ROLES[options.role]
    return run_steered(f"demo_{options.role}", lambda node: work(options, node, Words()))


if __name__ == "__main__":
    sys.exit(main())
