# SPDX-License-Identifier: Apache-2.0
"""A node under test, and a peer that publishes to it and subscribes, over real middleware."""

from __future__ import annotations

import array
import functools
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Log
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from depth_node.live import free_domain
from depth_node.ros.node import DepthNode

HEIGHT, WIDTH = 48, 64
FOCAL = 60.0
# Relative tolerance of depth: a region's fit is limited to the range of its points, and pixels have
# 8 bits.
CLOSE = 0.05
PATIENCE_S = 40.0  # for a busy machine; only a failing test waits that long
ANSWER_S = 10.0  # a service's answer that has not arrived by then is lost
IDENTITY = [float(value) for value in np.eye(4).reshape(-1)]
TRANSITIONS = {  # number of the transition, and the state after it
    "configure": (Transition.TRANSITION_CONFIGURE, "inactive"),
    "activate": (Transition.TRANSITION_ACTIVATE, "active"),
    "deactivate": (Transition.TRANSITION_DEACTIVATE, "inactive"),
    "cleanup": (Transition.TRANSITION_CLEANUP, "unconfigured"),
}


@functools.cache
def own_domain() -> int:
    """Return a ROS domain for this process alone, so that tests receive nobody else's messages.

    Processes of depth_node.live that other workers start choose among other domains.
    """
    return free_domain(range(51, 101))


def settings(network: Path, *more: str) -> list[str]:
    """Return parameters of a node with this network, whose LiDAR frame is the camera frame."""
    return [f"model.path:={network}", f"T_camera_lidar:={IDENTITY}", *more]


def header(stamp_s: float, frame: str = "camera_optical_frame") -> Header:
    message = Header(frame_id=frame)
    message.stamp.sec, message.stamp.nanosec = divmod(round(stamp_s * 1e9), 1_000_000_000)
    return message


def camera_image(
    stamp_s: float, height: int = HEIGHT, width: int = WIDTH
) -> tuple[Image, npt.NDArray[np.float64]]:
    """Return a grey image whose brightness is the disparity, and its depth (height, width) m.

    The tiny network of conftest.py returns the brightness, so the true depth is known.
    """
    ramp = np.linspace(40, 220, width)[None, :] + np.zeros((height, 1))
    grey = np.rint(ramp).astype(np.uint8)
    message = Image(header=header(stamp_s), height=height, width=width, encoding="rgb8")
    message.step = 3 * width
    message.data = array.array("B", np.repeat(grey[..., None], 3, axis=2).tobytes())
    return message, 100.0 / grey


def info(stamp_s: float, height: int = HEIGHT, width: int = WIDTH, **changes: Any) -> CameraInfo:
    message = CameraInfo(header=header(stamp_s), height=height, width=width)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    message.distortion_model = "plumb_bob"
    message.d = [0.0] * 5
    message.k = [FOCAL, 0.0, cx, 0.0, FOCAL, cy, 0.0, 0.0, 1.0]
    message.p = [FOCAL, 0.0, cx, 0.0, 0.0, FOCAL, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def lidar_points(depth: npt.NDArray[np.float64], every: int = 3) -> npt.NDArray[np.float32]:
    """Return points (N, 3) in the camera frame at every n-th pixel of a depth map (H, W)."""
    rows, cols = np.mgrid[0 : depth.shape[0] : every, 0 : depth.shape[1] : every]
    rows, cols = rows.ravel(), cols.ravel()
    z = depth[rows, cols]
    x = (cols - (depth.shape[1] - 1) / 2) / FOCAL * z
    y = (rows - (depth.shape[0] - 1) / 2) / FOCAL * z
    return np.column_stack([x, y, z]).astype(np.float32)


def cloud(stamp_s: float, points: npt.NDArray[np.float32], frame: str = "lidar") -> PointCloud2:
    points = np.ascontiguousarray(points, np.float32)
    message = PointCloud2(header=header(stamp_s, frame), height=1, width=len(points))
    message.fields = [
        PointField(name=name, offset=4 * axis, datatype=PointField.FLOAT32, count=1)
        for axis, name in enumerate("xyz")
    ]
    message.point_step, message.row_step = 12, 12 * len(points)
    message.data = array.array("B", points.tobytes())
    return message


class Spinner:
    """An executor in a thread of its own that can be ended without a race.

    `Executor.shutdown` destroys a guard condition that another thread may be using in `spin`.
    """

    def __init__(self, node: Node, context: rclpy.Context) -> None:
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(node)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._ending.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def end(self) -> None:
        self._ending.set()
        self._thread.join(PATIENCE_S)
        self._executor.shutdown()


class Services:
    """Client of a node's services that copes with lost answers.

    A service may answer before its connection to a new client is complete; the answer is then lost.
    """

    def __init__(self, peer: Node) -> None:
        self._peer = peer
        self._clients: dict[str, Any] = {}

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Return the answer of a service; call it again if no answer arrives."""
        for _ in range(int(PATIENCE_S / ANSWER_S)):
            answer = self._once(kind, name, request)
            if answer is not None:
                return answer
        raise AssertionError(f"no answer of {name}")

    def change(self, transition: str) -> bool:
        """Return whether a transition succeeded.

        If the answer is lost, the state decides; the node answers for it after the transition.
        """
        number, target = TRANSITIONS[transition]
        request = ChangeState.Request()
        request.transition.id = number
        answer = self._once(ChangeState, "/depth_node/change_state", request)
        return self.state() == target if answer is None else bool(answer.success)

    def state(self) -> str:
        answer = self.call(GetState, "/depth_node/get_state", GetState.Request())
        return str(answer.current_state.label)

    def _once(self, kind: Any, name: str, request: Any) -> Any:
        if name not in self._clients:
            self._clients[name] = self._peer.create_client(kind, name)
            assert self._clients[name].wait_for_service(PATIENCE_S), name
        client = self._clients[name]
        future = client.call_async(request)
        end = time.monotonic() + ANSWER_S
        while not future.done() and time.monotonic() < end:
            time.sleep(0.002)
        if not future.done():
            client.remove_pending_request(future)
            return None
        return future.result()


class Rig:
    """The node under test and its peer, each with an executor in a thread of its own."""

    def __init__(
        self, *parameters: str, node_class: type[DepthNode] = DepthNode, arguments: Any = ()
    ) -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=own_domain())
        command_line = ["--ros-args", *arguments]
        for parameter in parameters:
            command_line += ["-p", parameter]
        self.node = node_class(context=self.context, cli_args=command_line)
        self.peer = Node("peer", context=self.context)
        self.received: dict[str, list[Any]] = {}
        self.logs: list[str] = []
        self._publishers: dict[str, Any] = {}
        self.services = Services(self.peer)
        logs = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.peer.create_subscription(Log, "/rosout", lambda m: self.logs.append(m.msg), logs)
        self._spinners = [Spinner(node, self.context) for node in (self.node, self.peer)]

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for spinner in self._spinners:
            spinner.end()
        self._spinners.clear()
        self._publishers.clear()
        del self.services
        for node in (self.node, self.peer):
            node.destroy_node()
        del node, self.node, self.peer
        # The lifecycle services and the publisher of /rosout exist until the objects are collected;
        # a later test would find them.
        gc.collect()
        rclpy.shutdown(context=self.context)

    # --- the node's services ---------------------------------------------------------------------

    def call(self, kind: Any, name: str, request: Any) -> Any:
        return self.services.call(kind, name, request)

    def change(self, transition: str) -> bool:
        return self.services.change(transition)

    def state(self) -> str:
        return self.services.state()

    def start(self) -> Rig:
        """Configure and activate the node; otherwise fail with its log."""
        for transition in ("configure", "activate"):
            assert self.change(transition), self.logs
        return self

    def enable(self, on: bool) -> None:
        assert self.call(SetBool, "/depth_node/enable", SetBool.Request(data=on)).success

    def reset(self) -> None:
        assert self.call(Trigger, "/depth_node/reset", Trigger.Request()).success

    # --- topics ----------------------------------------------------------------------------------

    def listen(self, kind: type, topic: str) -> list[Any]:
        """Collect a topic's messages, reliably; return when the node knows of the subscriber."""
        name = f"/depth_node/{topic}" if not topic.startswith("/") else topic
        messages: list[Any] = self.received.setdefault(topic, [])
        quality = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        self.peer.create_subscription(kind, name, messages.append, quality)
        until(
            lambda: self._heard(name), PATIENCE_S, f"a publisher of {name} that knows its listener"
        )
        return messages

    def publish(self, topic: str, message: Any) -> None:
        if topic not in self._publishers:
            self._publishers[topic] = self.peer.create_publisher(type(message), topic, 10)
        publisher = self._publishers[topic]
        until(
            lambda: publisher.get_subscription_count() > 0, PATIENCE_S, f"a subscriber of {topic}"
        )
        publisher.publish(message)

    def show(
        self, stamp_s: float, points: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float64]:
        """Publish camera_info, points and the image; return its depth (H, W) m.

        points: default those that the image shows; an empty array publishes none.
        """
        image, depth = camera_image(stamp_s)
        points = lidar_points(depth) if points is None else points
        scans = self.node._monitor.total("scan")
        self.publish("camera_info", info(stamp_s))
        if len(points):
            self.publish("points", cloud(stamp_s, points))
            until(lambda: self.node._monitor.total("scan") > scans, PATIENCE_S, "the scan")
        until(lambda: self.node._camera.info is not None, PATIENCE_S, "camera_info")
        self.publish("image", image)
        return depth

    def silent(self) -> None:
        """Wait until every received image is counted as published, dropped, refused, failed or
        skipped.
        """
        count = self.node._monitor.total

        def settled() -> bool:
            fates = ("published", "dropped", "refused", "failed", "skipped_no_subscribers")
            return count("image") > 0 and sum(map(count, fates)) >= count("image")

        until(settled, PATIENCE_S, "the fate of every image")

    def said(self, words: str, timeout_s: float = PATIENCE_S) -> str:
        """Wait for a log line with these words and return it."""
        until(lambda: any(words in line for line in self.logs), timeout_s, f"{words!r} in the log")
        return next(line for line in self.logs if words in line)

    def _heard(self, name: str) -> bool:
        outputs = self.node._outputs
        others = ("/diagnostics", "/depth_node/extrinsics")
        if name in others or outputs is None:
            return self.peer.count_publishers(name) > 0
        return name in {
            self.node.resolve_topic_name(topic) for topic in outputs.topics_with_subscribers()
        }


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition; fail after timeout_s with the description `what`."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.005)


def set_parameter(rig: Rig, name: str, value: object) -> tuple[bool, str]:
    request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    result = rig.call(SetParameters, "/depth_node/set_parameters", request).results[0]
    return result.successful, result.reason
