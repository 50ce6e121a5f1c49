# SPDX-License-Identifier: Apache-2.0
"""Several cameras in one process, over real middleware."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from geometry_msgs.msg import TransformStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Log
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from depth_node.engine.options import EngineConfig, ModelConfig
from depth_node.engine.protocol import Closeable, Engine
from depth_node.engine.sharing import Opener
from depth_node.inference import open_configured
from depth_node.ros import messages
from depth_node.ros.cameras import Cameras
from depth_node.ros.node import DepthNode
from depth_node.ros.process.guarded_node import GuardedNode
from tests.helpers.rig import (
    IDENTITY,
    PATIENCE_S,
    Spinner,
    camera_image,
    cloud,
    header,
    info,
    lidar_points,
    own_domain,
    until,
)
from tests.helpers.stand_ins import tf2_ros as tf2_stand_in


class Peer:
    """Cameras, a LiDAR and a listener around nodes, all in this process."""

    def __init__(self, *words: str) -> None:
        """words: the arguments of the nodes' process."""
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=own_domain(), args=["process", *words])
        self.peer = Node("peer", context=self.context)
        self.nodes: list[GuardedNode] = []
        self._spinners = [Spinner(self.peer, self.context)]
        self._publishers: dict[str, Any] = {}
        self.received: dict[str, list[Image]] = {}

    def add(self, *nodes: GuardedNode) -> None:
        self.nodes += nodes
        self._spinners += [Spinner(node, self.context) for node in nodes]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        for spinner in self._spinners:
            spinner.end()
        self._spinners.clear()
        self._publishers.clear()
        for node in (*self.nodes, self.peer):
            node.destroy_node()
        self.nodes.clear()
        del self.peer
        gc.collect()
        rclpy.shutdown(context=self.context)

    def listen(self, camera: str) -> list[Image]:
        """Return a camera's depth images, once its node has discovered the subscriber."""
        topic = f"/{camera}/depth_node/depth/image_rect"
        heard = self.received.setdefault(camera, [])
        self.peer.create_subscription(Image, topic, heard.append, QoSProfile(depth=50))
        node = self.node(camera)
        until(
            lambda: node._outputs is not None and bool(node._outputs.topics_with_subscribers()),
            PATIENCE_S,
            f"a publisher of {topic} that knows its listener",
        )
        return heard

    def node(self, camera: str) -> DepthNode:
        found = [n for n in self.nodes if n.get_namespace() == f"/{camera}"]
        assert isinstance(found[0], DepthNode)
        return found[0]

    def publish(self, topic: str, message: Any) -> None:
        if topic not in self._publishers:
            self._publishers[topic] = self.peer.create_publisher(type(message), topic, 10)
        publisher = self._publishers[topic]
        until(lambda: publisher.get_subscription_count() > 0, PATIENCE_S, f"a subscriber: {topic}")
        publisher.publish(message)

    def scan(self, stamp_s: float, points: np.ndarray, *cameras: str) -> None:
        """Publish a LiDAR message and wait until the cameras have it."""
        before = [self.node(camera)._monitor.total("scan") for camera in cameras]
        self.publish("/lidar/points", cloud(stamp_s, points))
        for camera, count in zip(cameras, before, strict=True):
            monitor = self.node(camera)._monitor
            until(lambda m=monitor, n=count: m.total("scan") > n, PATIENCE_S, "the scan")

    def show(self, camera: str, stamp_s: float) -> None:
        image, _ = camera_image(stamp_s)
        self.publish(f"/{camera}/camera_info", info(stamp_s))
        until(lambda: self.node(camera)._camera.info is not None, PATIENCE_S, "camera_info")
        self.publish(f"/{camera}/image", image)


def arguments(names: list[str], network: Path) -> list[str]:
    parameters = (
        f"cameras:=[{','.join(names)}]",
        "points:=/lidar/points",
        f"model.path:={network}",
        f"T_camera_lidar:={IDENTITY}",
    )
    return ["--ros-args", *(word for text in parameters for word in ("-p", text))]


def cameras_of(rig: Peer, opener: Opener = open_configured) -> tuple[Cameras, list[DepthNode]]:
    """Return the nodes that the process creates."""
    owner = Cameras(opener, context=rig.context)
    nodes = owner.make_nodes()
    rig.add(*nodes, owner)
    return owner, nodes


POINTS = lidar_points(camera_image(1.0)[1])


def test_one_pose_in_the_part_for_all_cameras_is_told(network: Path) -> None:
    """T_camera_lidar under /** applies to all cameras, which cannot share a position."""
    with Peer(*arguments(["front", "left"], network)) as rig:
        logs: list[str] = []
        quality = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        rig.peer.create_subscription(Log, "/rosout", lambda m: logs.append(m.msg), quality)
        cameras_of(rig)
        words = "cameras front and left have the same T_camera_lidar"
        until(lambda: any(words in line for line in logs), PATIENCE_S, words)


def sequence(rig: Peer, cameras: list[str]) -> dict[str, np.ndarray]:
    """Publish three images per camera, each with a scan of other pixels; return the last depths."""
    heard = {camera: rig.listen(camera) for camera in cameras}
    for number in range(3):
        stamp_s = 1.0 + 0.1 * number
        rig.scan(stamp_s, POINTS[number::3], *cameras)
        for camera in cameras:
            rig.show(camera, stamp_s)
        for camera in cameras:
            until(lambda c=camera, n=number: len(heard[c]) > n, PATIENCE_S, f"depth of {camera}")
    return {camera: messages.image_view(heard[camera][-1]).copy() for camera in cameras}


def test_each_camera_equals_its_single_node(network: Path) -> None:
    """With memory of earlier frames; cameras differ by a parameter and by the LiDAR's position."""
    moved = list(IDENTITY)
    moved[3] = 0.3
    own = {"front": ("max_width_px:=32",), "left": (f"T_camera_lidar:={moved}",), "rear": ()}
    names = list(own)
    with Peer(*arguments(names, network)) as rig:
        owner, nodes = cameras_of(rig)
        front, left, _ = nodes
        front.set_parameters([rclpy.Parameter("max_width_px", value=32)])
        left.set_parameters([rclpy.Parameter("T_camera_lidar", value=moved)])
        for node in nodes:
            node.bring_up()
        together = sequence(rig, names)
        assert owner.count_subscribers("/lidar/points") == 1, "the LiDAR is heard once"
    assert together["front"].shape == (24, 32)
    assert not np.allclose(together["left"], together["rear"], rtol=0.01, equal_nan=True)
    for name in names:
        words = ["--ros-args", "-r", f"__ns:=/{name}", "-r", "points:=/lidar/points"]
        for text in (f"model.path:={network}", f"T_camera_lidar:={IDENTITY}", *own[name]):
            words += ["-p", text]
        with Peer() as alone:
            node = DepthNode(context=alone.context, cli_args=words)
            alone.add(node)
            node.bring_up()
            single = sequence(alone, [name])[name]
        np.testing.assert_allclose(together[name], single, rtol=1e-6, err_msg=name)


class Held(Closeable):
    """A network that answers only while an event is set."""

    def __init__(self, engine: Engine, may_run: threading.Event) -> None:
        self._engine, self._may_run = engine, may_run
        self.manifest, self.backend, self.details = engine.manifest, engine.backend, engine.details

    def run(self, tensor: np.ndarray) -> np.ndarray:
        assert self._may_run.wait(3 * PATIENCE_S)
        return self._engine.run(tensor)

    def run_named(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._engine.run_named(tensors)

    def close(self) -> None:
        self._engine.close()


def test_a_dead_a_slow_and_a_broken_camera_stall_none(network: Path) -> None:
    may_run, may_open = threading.Event(), threading.Event()
    may_run.set()

    def opener(config: ModelConfig, engine: EngineConfig) -> Engine:
        """By threads, so that each camera but two has a network of its own."""
        if config.threads == 2:
            return Held(open_configured(config, engine), may_run)
        if config.threads == 3:
            assert may_open.wait(3 * PATIENCE_S)
        return open_configured(config, engine)

    names = ["front", "slow", "opening", "broken", "dead", "absurd"]
    with Peer(*arguments(names, network)) as rig:
        stall(rig, opener, may_run, may_open)


def stall(rig: Peer, opener: Opener, may_run: threading.Event, may_open: threading.Event) -> None:
    _, nodes = cameras_of(rig, opener)
    front, slow, opening, broken, dead, absurd = nodes
    for node, threads in ((slow, 2), (opening, 3)):
        node.set_parameters([rclpy.Parameter("model.threads", value=threads)])
    broken.set_parameters([rclpy.Parameter("model.path", value="/nope.onnx")])
    for node in (front, slow, broken, dead, absurd):
        node.bring_up()
    number = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    client = rig.peer.create_client(ChangeState, "/opening/depth_node/change_state")
    assert client.wait_for_service(PATIENCE_S)
    client.call_async(number)  # its callback thread waits in it from now on
    heard, late = rig.listen("front"), rig.listen("slow")
    may_run.clear()
    rig.scan(1.0, POINTS, "front", "slow", "absurd")
    rig.show("slow", 1.0)
    until(lambda: slow._monitor.total("image") == 1, PATIENCE_S, "the slow camera's image")
    nonsense, _ = camera_image(1.0, height=7, width=5)
    rig.listen("absurd")
    rig.publish("/absurd/camera_info", info(1.0))
    until(lambda: absurd._camera.info is not None, PATIENCE_S, "camera_info")
    rig.publish("/absurd/image", nonsense)
    until(lambda: absurd._monitor.total("refused") == 1, PATIENCE_S, "the refusal")
    for count in range(1, 6):
        rig.show("front", 1.0 + 0.01 * count)
        until(lambda n=count: len(heard) == n, PATIENCE_S, "depth of the camera that is well")
    assert not late and not slow._monitor.total("published")
    assert opening._pipeline is None and broken._pipeline is None
    may_open.set()
    may_run.set()
    until(lambda: bool(late), PATIENCE_S, "depth of the slow camera")


@pytest.fixture
def two(network: Path) -> Iterator[Peer]:
    with Peer(*arguments(["front", "left"], network)) as peer:
        yield peer


def test_each_camera_has_its_own_life(two: Peer) -> None:
    opened: list[Engine] = []

    def opener(config: ModelConfig, engine: EngineConfig) -> Engine:
        opened.append(open_configured(config, engine))
        return opened[-1]

    owner, (front, left) = cameras_of(two, opener)
    front.bring_up()
    left.bring_up()
    assert len(opened) == 1, "one network for both"
    heard = two.listen("left")
    front.trigger_deactivate()
    front.trigger_cleanup()
    two.scan(1.0, POINTS, "left")
    assert front._monitor.total("scan") == 0
    two.show("left", 1.0)
    until(lambda: len(heard) == 1, PATIENCE_S, "depth of the other camera")
    left.trigger_deactivate()
    until(lambda: not owner.count_subscribers("/lidar/points"), PATIENCE_S, "its end")
    left.trigger_cleanup()
    front.bring_up()
    assert len(opened) == 2, "freed by the last, and opened anew"


def test_tf_is_received_once_for_all_cameras_and_as_long_as_one_needs_it(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A robot's /tf has hundreds of messages a second, each of which costs Python its time."""
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_stand_in)
    words = ["--ros-args", "-p", "cameras:=[front, left]", "-p", "points:=/lidar/points"]
    words += ["-p", f"model.path:={network}", "-p", "fit.unanchored_s:=0.0"]
    with Peer(*words) as rig:
        _, (front, left) = cameras_of(rig)

        def listeners(count: int) -> None:
            until(lambda: rig.peer.count_subscribers("/tf") == count, PATIENCE_S, f"{count} on /tf")

        front.bring_up()
        left.bring_up()
        listeners(1)
        heard = rig.listen("left")
        moving(rig, 99.9, 100.1)
        assert depth_of_left(rig, heard, 100.0)
        front._on_reset(Trigger.Request(), Trigger.Response())
        assert depth_of_left(rig, heard, 100.05), "another camera's reset takes nothing away"
        front.trigger_deactivate()
        front.trigger_cleanup()
        listeners(1)
        assert depth_of_left(rig, heard, 100.08)
        depth_of_left(rig, heard, 10.0)  # time has jumped back, and /tf follows
        moving(rig, 10.1, 10.3)
        assert depth_of_left(rig, heard, 10.2)
        front.bring_up()
        left.trigger_deactivate()
        left.trigger_cleanup()
        listeners(1)
        front.trigger_deactivate()
        front.trigger_cleanup()
        listeners(0)


def moving(rig: Peer, *times_s: float) -> None:
    """Publish the pose of a moving LiDAR, until the process has it."""
    for time_s in times_s:
        link = TransformStamped(child_frame_id="lidar", header=header(time_s))
        link.transform.rotation.w = 1.0
        rig.publish("/tf", link)
    time.sleep(0.3)


def depth_of_left(rig: Peer, heard: list[Image], stamp_s: float) -> bool:
    """Return whether an image with a scan gives depth, for which TF at its stamp is needed."""
    count = len(heard)
    rig.scan(stamp_s, POINTS, "left")
    rig.show("left", stamp_s)
    until(lambda: len(heard) > count, PATIENCE_S, "an answer")
    return bool(np.isfinite(messages.image_view(heard[-1])).any())


def test_a_limited_rate(two: Peer) -> None:
    _, (front, _left) = cameras_of(two)
    front.set_parameters([rclpy.Parameter("max_rate_hz", value=10.0)])
    front.bring_up()
    heard = two.listen("front")
    two.scan(1.0, POINTS, "front")
    for number in range(7):  # 30 Hz
        before = front._monitor.total("image")
        two.show("front", 1.0 + number / 30)
        until(lambda n=before: front._monitor.total("image") > n, PATIENCE_S, "the image")
        until(
            lambda: len(heard) == front._monitor.total("image")
            - front._monitor.total("skipped_rate_limit"),
            PATIENCE_S,
            "its fate",
        )  # fmt: skip
    assert len(heard) in (3, 4) and front._monitor.total("dropped") == 0


@pytest.mark.parametrize(
    ("cameras", "words"),
    [
        ("", "there is no camera"),
        ("[front, front]", "names front twice"),
        ("['front left']", "cannot be called 'front left'"),
        ("[points]", "cannot be called 'points'"),
        ("front", "cameras is"),
    ],
)
def test_cameras_that_cannot_be_are_refused(cameras: str, words: str) -> None:
    given = ["-p", f"cameras:={cameras}"] if cameras else []
    done = subprocess.run(
        [sys.executable, "-m", "depth_node.ros.cameras", "--ros-args", *given],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr


def test_the_example_names_what_there_is(repo: Path) -> None:
    """config/multi_camera.yaml: both cameras get their topics, their parameters and no warning."""
    file = repo / "config/multi_camera.yaml"
    with Peer("--ros-args", "--params-file", str(file)) as rig:
        check_example(*cameras_of(rig)[1])


def test_what_the_process_is_told_reaches_every_camera(repo: Path) -> None:
    """Arguments of the process override the file's part for all, not a camera's own part."""
    file = repo / "config/multi_camera.yaml"
    told = ["-p", 'fit.method:="slf"', "-p", "max_rate_hz:=3.0"]
    with Peer("--ros-args", "--params-file", str(file), *told) as rig:
        front, left = (node._settings.config for node in cameras_of(rig)[1])
    assert (front.fit.method, left.fit.method) == ("slf", "slf")
    assert (front.max_rate_hz, left.max_rate_hz) == (3.0, 5.0)


def check_example(front: DepthNode, left: DepthNode) -> None:
    assert front.resolve_topic_name("image") == "/front_camera/image_rect"
    assert left.resolve_topic_name("camera_info") == "/left_camera/camera_info"
    assert front.resolve_topic_name("points") == left.resolve_topic_name("points")
    assert front._settings.config.fixed_extrinsics() is not None
    assert left._settings.config.max_rate_hz == 5.0 and not left._settings.problems
    assert not any(node._settings.unknown({})[0] for node in (front, left))
    assert [n.get_fully_qualified_name() for n in (front, left)] == [
        "/front/depth_node", "/left/depth_node"
    ]  # fmt: skip
