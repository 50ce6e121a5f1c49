# SPDX-License-Identifier: Apache-2.0
"""The node as a process of its own: command line, parameter file, signals, exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node
from sensor_msgs.msg import Image

from tests.helpers.rig import (
    IDENTITY,
    PATIENCE_S,
    Services,
    Spinner,
    camera_image,
    cloud,
    info,
    lidar_points,
    own_domain,
    until,
)


class Process:
    """`depth_node` in a process of its own, and a peer in this one."""

    def __init__(
        self, *arguments: str, program: tuple[str, ...] = ("-m", "depth_node.ros.node")
    ) -> None:
        domain = own_domain()
        environment = {**os.environ, "ROS_DOMAIN_ID": str(domain), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *program, "--ros-args", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self.peer = Node("peer", context=self._context)
        self._spinner = Spinner(self.peer, self._context)
        self._services = Services(self.peer)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def said(self, words: str, timeout_s: float = PATIENCE_S) -> str:
        def found() -> list[str]:
            return [line for line in self.lines if words in line]

        until(lambda: bool(found()), timeout_s, f"{words!r} in the output, which is {self.lines}")
        return found()[0]

    def change(self, transition: str) -> bool:
        return self._services.change(transition)

    def end(self, number: int) -> int:
        """Send a signal to the node; return its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE_S)
        self._reader.join(5)
        return status

    def close(self) -> None:
        if not self._context.ok():
            return  # closed already
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(5)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._spinner.end()
        self.peer.destroy_node()
        rclpy.shutdown(context=self._context)


@pytest.fixture
def parameters(tmp_path: Path, slow_network: Path) -> Path:
    path = tmp_path / "parameters.yaml"
    path.write_text(
        "depth_node:\n  ros__parameters:\n"
        f"    model: {{path: {slow_network}, threads: 1}}\n"
        f"    T_camera_lidar: {IDENTITY}\n"
    )
    return path


@pytest.fixture
def running(parameters: Path) -> Iterator[Process]:
    process = Process("--params-file", str(parameters))
    yield process
    process.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_inference_ends_the_node_cleanly(running: Process, number: int) -> None:
    assert running.change("configure"), running.lines
    assert running.change("activate"), running.lines
    depths: list[Image] = []
    running.peer.create_subscription(Image, "/depth_node/depth/image_rect", depths.append, 10)
    image, depth = camera_image(1.0)
    publishers = []
    for topic, message in (
        ("camera_info", info(1.0)),
        ("points", cloud(1.0, lidar_points(depth))),
        ("image", image),
    ):
        publisher = running.peer.create_publisher(type(message), topic, 10)
        until(
            lambda p=publisher: p.get_subscription_count() > 0,
            PATIENCE_S,
            f"a subscriber of {topic}",
        )
        publishers.append((publisher, message))
    end = time.monotonic() + PATIENCE_S
    while not depths and time.monotonic() < end:  # until the node has discovered its listener
        for publisher, message in publishers:
            publisher.publish(message)
        time.sleep(0.1)
    assert depths, running.lines
    publishers[-1][0].publish(image)
    time.sleep(0.15)  # the network takes far longer than that
    assert running.end(number) == 0, running.lines
    assert not [line for line in running.lines if "Traceback" in line or "Error" in line]


BUSY = """
import sys, time
from depth_node.pipeline import DepthPipeline
from depth_node.ros import node

def build(self):
    print("building", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.01)

DepthPipeline.warm_up = build  # as an engine that is built for minutes
sys.exit(node.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_node_is_configured_ends_it_at_once(
    parameters: Path, number: int
) -> None:
    process = Process("--params-file", str(parameters), program=("-c", BUSY))
    try:
        client = process.peer.create_client(ChangeState, "/depth_node/change_state")
        assert client.wait_for_service(PATIENCE_S)
        request = ChangeState.Request(transition=Transition(id=1))
        client.call_async(request)
        process.said("building")
        start = time.monotonic()
        assert process.end(number) == 0, process.lines
        assert time.monotonic() - start < 2.5
        assert not [line for line in process.lines if "Traceback" in line]
    finally:
        process.close()


def test_a_transition_that_does_not_fit_does_not_end_the_process(running: Process) -> None:
    client = running.peer.create_client(ChangeState, "/depth_node/change_state")
    assert client.wait_for_service(PATIENCE_S)
    for number in (1, 1, 2, 4, 99):
        client.call_async(ChangeState.Request(transition=Transition(id=number)))
        time.sleep(0.1)
    running.said("does not fit the node's present state")
    assert running.process.poll() is None
    assert running.end(signal.SIGTERM) == 0


def test_an_unknown_parameter_in_the_file_is_refused_with_a_hint(
    running: Process, parameters: Path
) -> None:
    running.close()
    parameters.write_text(parameters.read_text() + "    fit: {metod: slf}\n")
    again = Process("--params-file", str(parameters))
    try:
        assert not again.change("configure")
        again.said("unknown parameter fit.metod: did you mean fit.method?")
        assert again.end(signal.SIGINT) == 0
        assert not [line for line in again.lines if "Traceback" in line]
    finally:
        again.close()


@pytest.mark.parametrize(
    "argument", ["start_type_description_service:=3", "use_sim_time:=maybe", "a b:=3"]
)
def test_parameters_of_rclpy_that_cannot_be_end_in_no_traceback(argument: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "depth_node.ros.node", "--ros-args", "-p", argument],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        process.wait(PATIENCE_S)  # an rclpy that takes them would go on
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (0, 2)
    assert "Traceback" not in output
    assert argument.partition(":=")[0] in output


def test_a_parameter_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("depth_node:\n  ros__parameters:\n    T_camera_lidar: [1, 0.5]\n")
    done = subprocess.run(
        [sys.executable, "-m", "depth_node.ros.node", "--ros-args", "--params-file", str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 2
    assert "depth_node:" in done.stderr
    assert "bad.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("parameter", "environment", "cure"),
    [
        ("T_camera_lidar:=[1, 0, 0, 0.5]", {}, "decimal point"),
        ("bond:=true", {"HOME": "/proc/1", "ROS_LOG_DIR": ""}, "ROS_LOG_DIR"),
    ],
)
def test_what_rcl_refuses_has_a_cure(
    parameter: str, environment: dict[str, str], cure: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "depth_node.ros.main", "--ros-args", "-p", parameter],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
    )
    assert done.returncode == 2
    assert cure in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_while_the_program_loads_is_no_traceback() -> None:
    """Which takes seconds on a small computer."""
    loading = (
        "import signal, sys, threading, os\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'rclpy.lifecycle':\n"
        "            print('loading', flush=True)\n"
        "            threading.Event().wait(30)\n"
        "sys.meta_path.insert(0, Late())\n"
        "from depth_node.ros.main import main\n"
        "sys.exit(main())\n"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-c", loading],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, output
        assert not output


def test_a_terminal_that_is_closed_ends_the_node_cleanly(running: Process) -> None:
    running.said("up and unconfigured")
    assert running.end(signal.SIGHUP) == 0, running.lines


def test_a_hangup_that_is_ignored_stays_so(parameters: Path) -> None:
    """As under nohup."""
    quiet = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
    program = f"{quiet} from depth_node.ros.main import main; sys.exit(main())"
    process = Process("--params-file", str(parameters), program=("-c", program))
    try:
        process.said("up and unconfigured")
        process.process.send_signal(signal.SIGHUP)
        assert process.change("configure")
        assert process.end(signal.SIGTERM) == 0
    finally:
        process.close()


def test_a_signal_ends_a_busy_node_whose_terminal_is_gone(parameters: Path) -> None:
    program = BUSY.replace(
        'print("building", flush=True)',
        "import os; os.kill(os.getpid(), 15);"
        " sys.stdout = sys.stderr = open('/dev/full', 'w', buffering=1)",
    )
    process = Process("--params-file", str(parameters), program=("-c", program))
    try:
        client = process.peer.create_client(ChangeState, "/depth_node/change_state")
        assert client.wait_for_service(PATIENCE_S)
        client.call_async(ChangeState.Request(transition=Transition(id=1)))
        assert process.process.wait(PATIENCE_S) == 0
    finally:
        process.close()
