# SPDX-License-Identifier: Apache-2.0
"""The node for an hour under kills, jumps of time, hostile messages and damage.

`python -m tests.soak` starts the real node and a publisher as processes in a ROS domain of their
own, listens, injects faults by a seeded schedule, prints a line a minute and a summary, and exits
with 1 on a crash, growth or a stuck frame: docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import ListParameters, SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_srvs.srv import SetBool, Trigger

from depth_node import live
from depth_node.ros import messages
from depth_node.simulation import walk
from tests.helpers import REPO
from tests.helpers.rig import TRANSITIONS, Spinner
from tests.helpers.soak_hostile import HOSTILE
from tests.helpers.soak_judge import (
    Failures,
    Flow,
    Frames,
    Limits,
    LogReader,
    Sample,
    growth,
    table,
)

SIZE = (480, 640)
VIEWS = 8
START_S = 180.0  # limit of a start with nothing compiled, on a busy machine
END_S = 20.0  # limit of the node's end after a signal
ANSWER_S = 10.0
DISK_MB = 64
NODE = "/depth_node"


# The executable `depth_node`, which prints the stacks of its threads on SIGUSR1.
NODE_PROGRAM = (
    "import faulthandler, signal, sys; faulthandler.register(signal.SIGUSR1);"
    " from depth_node.ros.main import main; sys.exit(main())"
)


class NodeDiedError(RuntimeError):
    """The node's process ended by itself."""


class Soak:
    """The processes of the soak test, what is measured of them, and the faults."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder, self.out = options, folder, options.out
        self.limits = Limits(rss_mb_per_h=options.growth)
        self.rng = np.random.default_rng(options.seed)
        self.start = time.monotonic()
        self.begun = False
        self.failures, self.frames, self.flow = Failures(), Frames(), Flow(self.limits)
        self.samples: list[Sample] = []
        self.faults: Counter[str] = Counter()
        self.services: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.startup_s: list[float] = []
        self.journal: list[dict[str, Any]] = []
        self.diagnostics: dict[str, str] = {}
        self.reasons: Counter[str] = Counter()
        self.log = LogReader()
        self._recent: deque[str] = deque(maxlen=8)
        self._lock = threading.RLock()
        self._fault = "start"
        self._calm_since = float("inf")
        self._trouble = ""
        self._node: subprocess.Popen[str] | None = None
        self._robot: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []
        self._life, self._life_start = 0, 0.0
        self._up = 0  # the last life that reached the state active
        self._hostile: list[str] = []
        self._expected_end = True
        self._ending = threading.Event()
        self._disk = _Disk(folder / "home")
        self._env = self._environment()
        self._context = rclpy.Context()
        self._clients: dict[str, Any] = {}

    # --- processes -------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        """Return an environment with a ROS domain, home, caches and logs of the soak's own."""
        env = live.environment(self.folder)
        home = self.folder / "home"
        env |= {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "NUMBA_CACHE_DIR": str(home / "numba"),
            "ROS_LOG_DIR": str(home / "ros_log"),
            "ROS_HOME": str(home / "ros"),
            "PYTHONFAULTHANDLER": "1",
        }
        path = [str(REPO), *filter(None, [env.get("PYTHONPATH")])]
        try:
            import tf2_ros  # noqa: F401
        except ImportError:
            path.append(str(REPO / "tests" / "helpers" / "stand_ins"))
        env["PYTHONPATH"] = os.pathsep.join(path)
        return env

    def prepare(self) -> None:
        """Render the sensors' data, write the node's parameters, create the observing ROS node."""
        _render(self.folder / "frames.npz", self.options.views, 10 + self.options.seed)
        parameters = {
            "model": {"path": "embedded", "threads": 1},
            "world_frame": "odom",
            "scan_wait_s": 0.05,
        }
        (self.folder / "node.yaml").write_text(
            yaml.safe_dump({"depth_node": {"ros__parameters": parameters}}), encoding="utf-8"
        )
        os.environ.update(self._env)
        rclpy.init(context=self._context, domain_id=int(self._env["ROS_DOMAIN_ID"]), args=[])
        self.peer = Node("soak", context=self._context, start_parameter_services=False)
        self.peer.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        qos = QoSProfile(depth=10)
        self.peer.create_subscription(Image, f"{NODE}/depth/image_rect", self._on_depth, qos)
        for kind, topic in ((CameraInfo, "depth/camera_info"), (PointCloud2, "points")):
            self.peer.create_subscription(kind, f"{NODE}/{topic}", lambda message: None, qos)
        self._spinner = Spinner(self.peer, self._context)
        threading.Thread(target=self._watch, daemon=True).start()

    def start_node(self) -> None:
        """Start the node and activate it.

        A refused transition is a failure and raises RuntimeError; a node that ends raises
        NodeDiedError.
        """
        begin = time.monotonic()
        with self._lock:
            self._expected_end = False
            self._node = subprocess.Popen(
                [sys.executable, "-c", NODE_PROGRAM, "--ros-args",
                 "--params-file", str(self.folder / "node.yaml")],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                env=self._env, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
            self._life += 1
            self._life_start = begin
            self.frames._last.clear()
        reader = threading.Thread(target=self._read_node, args=(self._node,), daemon=True)
        reader.start()
        self._readers = [reader]
        for transition in ("configure", "activate"):
            self.change(transition, START_S)
        self._up = self._life
        self.startup_s.append(round(time.monotonic() - begin, 1))

    def _read_node(self, node: subprocess.Popen[str]) -> None:
        assert node.stdout is not None
        with (self.out / "node.log").open("a", encoding="utf-8") as log:
            log.write(f"--- start {self._life}\n")
            for line in node.stdout:
                log.write(line)
                log.flush()
                self._traceback(self.log.line(line.rstrip("\n")))
        self._traceback(self.log.flush())

    def _traceback(self, block: str) -> None:
        if block:
            self.fail("traceback", block)

    def stop_node(self, number: int = signal.SIGINT) -> None:
        """End the node by a signal; it is a failure if it does not end with exit status 0.

        Raises NodeDiedError if it had ended before.
        """
        node = self._node
        assert node is not None
        with self._lock:
            died = node.poll() is not None and not self._expected_end
            self._expected_end = True
        if died:
            raise NodeDiedError
        node.send_signal(number)
        try:
            status = node.wait(END_S)
        except subprocess.TimeoutExpired:
            self.fail("unclean end", f"the node runs on {END_S:g} s after signal {number}")
            node.send_signal(signal.SIGABRT)  # the fault handler prints where it hangs
            with suppress(subprocess.TimeoutExpired):
                node.wait(5.0)
            node.kill()
            node.wait(5.0)
        else:
            if status:
                self.fail("unclean end", f"exit status {status} after signal {number}")
        for reader in self._readers:
            reader.join(5.0)

    def start_robot(self) -> None:
        """Start the publisher and return when its first image is sent; raise RuntimeError if that
        fails.
        """
        with (self.out / "publisher.log").open("a", encoding="utf-8") as log:
            self._robot = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.soak_publisher",
                 str(self.folder / "frames.npz"), "--rate", str(self.options.rate),
                 "--seed", str(int(self.rng.integers(1 << 30)))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1,
                env=self._env, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        begin = time.monotonic()
        threading.Thread(target=self._read_robot, args=(self._robot,), daemon=True).start()
        while self.flow.last_in < begin:
            if self._robot.poll() is not None or time.monotonic() > begin + 60:
                raise RuntimeError(f"the publisher does not come up: {self.out}/publisher.log")
            self.wait(0.1)

    def _read_robot(self, robot: subprocess.Popen[str]) -> None:
        assert robot.stdout is not None
        for line in robot.stdout:
            with suppress(ValueError):  # half a line of a killed process
                sent = json.loads(line)
                with self._lock:
                    self.flow.image(sent["t"])
                    if self.begun:
                        self.frames.sent(sent["stamp"], sent["t"], self._calm())

    def tell(self, **command: Any) -> None:
        """Send a command to the publisher."""
        assert self._robot is not None and self._robot.stdin is not None
        with suppress(OSError):
            self._robot.stdin.write(json.dumps(command) + "\n")
            self._robot.stdin.flush()

    def close(self) -> None:
        """End everything that was started."""
        self._ending.set()
        with self._lock:
            self._expected_end = True
        if self._robot is not None and self._robot.stdin is not None:
            with suppress(OSError, subprocess.TimeoutExpired):
                self._robot.send_signal(signal.SIGCONT)
                self._robot.stdin.close()  # ends it cleanly; a kill would leave its shared memory
                self._robot.wait(5.0)
        for process in (self._robot, self._node):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait(5.0)
        if hasattr(self, "_spinner"):
            self._spinner.end()
            self.peer.destroy_node()
        rclpy.try_shutdown(context=self._context)
        self._disk.close()

    # --- what is heard ---------------------------------------------------------------------------

    def _on_depth(self, message: Image) -> None:
        now = time.monotonic()
        pixels = messages.image_view(message)[::8, ::8]
        known = pixels > 0 if message.encoding == "16UC1" else np.isfinite(pixels)
        with self._lock:
            self.flow.depth(now, float(known.mean()))
            if self.begun:
                self.frames.received(messages.stamp_ns(message.header.stamp), now)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            with self._lock:
                self.diagnostics = {"message": status.message, **values}
                if self.begun:
                    self.frames.told(values, self._calm())
                if reason := values.get("last refusal or failure"):
                    self.reasons[reason[:200]] += 1

    # --- what is watched -------------------------------------------------------------------------

    def _calm(self) -> bool:
        return time.monotonic() >= self._calm_since

    def at_s(self) -> float:
        return time.monotonic() - self.start

    def fail(self, kind: str, text: str) -> None:
        with self._lock:
            new = self.failures.add(kind, text, self.at_s(), self._fault, self._recent)
        if kind in ("deaf", "stuck") and self._node is not None and self._node.poll() is None:
            self._node.send_signal(signal.SIGUSR1)  # writes its threads' stacks into node.log
        if new:
            last = text.strip().splitlines()[-1]
            self.say(f"FAILURE {kind} (fault {self._fault or 'none'}): {last}")

    def note(self, text: str) -> None:
        """Record something that was done to the node, as evidence if it dies."""
        self._recent.append(f"{self.at_s():.1f} s: {text}")

    def say(self, text: str) -> None:
        print(f"[{self.at_s() / 60:6.2f} min] {text}", flush=True)

    def _watch(self) -> None:
        next_minute, next_sample = 1, 0.0
        while not self._ending.wait(0.2):
            now = time.monotonic()
            with self._lock:
                calm_since = self._calm_since if self.begun else float("inf")
                self.frames.expire(now, self._calm())
                trouble = self.flow.trouble(now, calm_since)
            if trouble and trouble != self._trouble:
                said = self.diagnostics.get("message", "")
                self.fail(trouble, f"{_TROUBLES[trouble]}; the node says: {said}")
            self._trouble = trouble
            if now >= next_sample:
                next_sample = now + 1.0
                self._sample(now)
            if self.begun and self.at_s() >= 60 * next_minute:
                next_minute += 1
                self.say(self._line())

    def _sample(self, now: float) -> None:
        node = self._node
        if node is None or node.poll() is not None or not self.begun or self._up != self._life:
            return
        try:
            status = Path(f"/proc/{node.pid}/status").read_text()
            files = len(os.listdir(f"/proc/{node.pid}/fd"))
        except OSError:
            return
        facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmRSS" not in facts:
            return
        mb = {key: int(facts[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon", "RssShmem")}
        numbers = [round(value, 2) for value in mb.values()]
        sample = Sample(
            round(self.at_s(), 1),
            self._life,
            round(now - self._life_start, 1),
            *numbers,
            int(facts["Threads"]),
            files,
        )
        self.samples.append(sample)

    def _line(self) -> str:
        with self._lock:
            counts, latency = self.frames.counts, self.frames.percentiles()
            text = (
                f"in {counts['in']} out {counts['out']} dropped {counts['dropped']}"
                f" refused {counts['refused']} failed {counts['failed']} lost {self.frames.lost}"
            )
            if self.samples:
                last = self.samples[-1]
                text += f" | {last.rss:.0f} MB, {last.threads} threads, {last.files} files"
            if latency:
                text += " | p50/p95/p99 " + "/".join(f"{x:.0f}" for x in latency) + " ms"
            return (
                f"{text} | {sum(self.faults.values())} faults, {self._life - 1} restarts,"
                f" {sum(f.count for f in self.failures.found.values())} failures"
            )

    def wait(self, seconds: float) -> None:
        """Wait; raise NodeDiedError if the node ends meanwhile."""
        end = time.monotonic() + seconds
        while True:
            self._check_alive()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(0.05, left))

    def _check_alive(self) -> None:
        node = self._node
        if node is not None and not self._expected_end and node.poll() is not None:
            raise NodeDiedError

    # --- services --------------------------------------------------------------------------------

    def ask(self, kind: Any, name: str, request: Any, timeout_s: float = ANSWER_S) -> Any:
        """Return the answer of a service, None if none arrives; raise NodeDiedError."""
        full = f"{NODE}/{name}"
        self.services[name] += 1
        if full not in self._clients:
            self._clients[full] = self.peer.create_client(kind, full)
        client = self._clients[full]
        end = time.monotonic() + timeout_s
        while not client.service_is_ready():
            if time.monotonic() > end:
                return None
            self.wait(0.05)
        future = client.call_async(request)
        while not future.done():
            if time.monotonic() > end:
                client.remove_pending_request(future)
                self.services["no answer"] += 1
                return None
            self.wait(0.01)
        return future.result()

    def state(self) -> str:
        """Return the lifecycle state; no answer is a failure and returns ""."""
        for _ in range(3):
            answer = self.ask(GetState, "get_state", GetState.Request())
            if answer is not None:
                return str(answer.current_state.label)
        self.fail("deaf", f"get_state has no answer in {3 * ANSWER_S:g} s")
        return ""

    def change(self, transition: str, timeout_s: float = 60.0) -> None:
        """Make a transition that must work; otherwise record a failure and raise RuntimeError."""
        number, target = TRANSITIONS[transition]
        request = ChangeState.Request()
        request.transition.id = number
        self.note(f"transition {transition}")
        end = time.monotonic() + timeout_s
        while True:
            # An answer to a new client may be lost, so the state decides.
            left = max(1.0, end - time.monotonic())
            wait_s = left if transition == "configure" else min(left, ANSWER_S)
            answer = self.ask(ChangeState, "change_state", request, wait_s)
            if (answer is not None and answer.success) or self.state() == target:
                return
            if answer is not None or time.monotonic() > end:
                errors = [line for line in self.log.last if "ERROR" in line or "WARN" in line]
                why = errors[-1] if errors else "no error in its log"
                text = f"{transition} {'is refused' if answer is not None else 'hangs'}: {why}"
                self.fail("transition", text)
                raise RuntimeError(text)

    def set(self, name: str, value: Any, kind: Parameter.Type | None = None) -> Any:
        """Set a parameter; return whether the node accepted it, None without an answer."""
        self.note(f"set {name} to {value!r}"[:200])
        message = Parameter(name, kind, value).to_parameter_msg()
        request = SetParameters.Request(parameters=[message])
        answer = self.ask(SetParameters, "set_parameters", request)
        if answer is None or not answer.results:
            return None
        return bool(answer.results[0].successful)

    # --- the schedule ----------------------------------------------------------------------------

    def run(self) -> None:
        """Run the soak: start, faults until the time is over, a clean end."""
        self.prepare()
        self.say("starting node and publisher")
        self.start_robot()
        self.start_node()
        self._await_depth()
        self._recent.clear()
        self.start, self.begun = time.monotonic(), True
        self._fault = ""
        self._calm_since = time.monotonic()
        end = self.start + 60 * self.options.minutes
        calm: Callable[[], float] = lambda: float(self.rng.uniform(*self.options.calm))  # noqa: E731
        with self._fault_window("quiet", grace=False):
            self.wait(min(calm(), self.options.minutes * 10))
        for name in self._schedule():
            if time.monotonic() > end - 6:
                break
            self._inject(name)
            pause = self.limits.grace_s + calm()
            self._survive(lambda p=pause: self.wait(max(0.0, min(p, end - time.monotonic()))))
        self._survive(lambda: self.wait(max(0.0, end - time.monotonic())))
        self._fault = "end"
        self._calm_since = float("inf")
        self.say("ending the node")
        with suppress(NodeDiedError):
            self.stop_node(signal.SIGTERM)

    def _await_depth(self) -> None:
        begin = time.monotonic()
        while self.flow.last_metres < begin:
            if time.monotonic() > begin + START_S:
                self.fail("stuck", f"no depth within {START_S:g} s after the start")
                raise RuntimeError("no depth at all")
            self.wait(0.1)

    def _schedule(self) -> Iterator[str]:
        """Yield all faults in random order, again and again.

        A long run has restarts only in its first quarter, so that one life of the node is long
        enough to judge its growth; the schedule ends there if all faults are restarts.
        """
        names = self.options.faults
        quarter = self.start + 15 * self.options.minutes
        late = False
        while not (late and set(names) <= set(RESTARTS)):
            # Faults to leave out are drawn too, so that the order depends on the seed alone.
            for name in self.rng.permutation(names):
                late = self.options.minutes >= 20 and time.monotonic() > quarter
                if late and name in RESTARTS:
                    continue
                yield str(name)

    @contextmanager
    def _fault_window(self, name: str, grace: bool = True) -> Iterator[None]:
        with self._lock:
            if grace:
                self._fault, self._calm_since = name, float("inf")
        try:
            yield
        finally:
            with self._lock:
                if grace:
                    self._calm_since = time.monotonic() + self.limits.grace_s

    def _inject(self, name: str) -> None:
        begin = self.at_s()
        self.faults[name] += 1
        failed_before = sum(f.count for f in self.failures.found.values())
        with self._fault_window(name):

            def whole() -> None:
                FAULTS[name](self)
                if self.state() != "active":
                    self.fail("wrong state", f"after {name} the node is {self.state()!r}")
                    raise RuntimeError("not active")

            self._survive(whole)
        self._fault = ""
        failed = sum(f.count for f in self.failures.found.values()) - failed_before
        self.journal.append(
            {"at_s": round(begin, 1), "fault": name, "seconds": round(self.at_s() - begin, 1),
             "failures": failed}
        )  # fmt: skip

    def _survive(self, action: Callable[[], None]) -> None:
        """Do the action; if the node dies or refuses, record that and start it again."""
        try:
            action()
            return
        except NodeDiedError:
            self._died()
        except RuntimeError as error:
            if "publisher" in str(error):
                raise
        fault = self._fault
        with self._fault_window(fault or "recovery"):
            self._recover()
        self._fault = fault

    def _died(self) -> None:
        assert self._node is not None
        with self._lock:
            self._expected_end = True
        status = self._node.wait(5.0)
        for reader in self._readers:
            reader.join(5.0)
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        log = "\n".join(self.log.last[-12:])
        self.fail("crash", f"{log}\nthe node's process ended by itself: {name}")

    def _recover(self) -> None:
        """Start the node again, from the second try on with empty caches; raise SystemExit if three
        tries fail.
        """
        self._heal_robot()
        for attempt in range(3):
            if self._node is not None and self._node.poll() is None:
                with suppress(NodeDiedError):
                    self.stop_node()
            self._disk.free()
            if attempt:
                for cache in self._caches():
                    shutil.rmtree(cache, ignore_errors=True)
            self.restarts["node, after a failure"] += 1
            try:
                self.start_node()
                return
            except NodeDiedError:
                self._died()
            except RuntimeError:
                continue
        raise SystemExit("the node does not come up again")

    def _heal_robot(self) -> None:
        if self._robot is None or self._robot.poll() is not None:
            self.start_robot_anew()
        self._robot.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        self.tell(set={"offset_s": 0.0, "zero": False, "lidar_offset_s": 0.0, "tf": True,
                       "sim": False})  # fmt: skip

    def _caches(self) -> list[Path]:
        return [self.folder / "home" / "numba", self.folder / "home" / "cache"]

    # --- faults ----------------------------------------------------------------------------------

    def some(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def start_robot_anew(self) -> None:
        self.restarts["publisher"] += 1
        self.start_robot()

    def publisher_kill(self) -> None:
        """Kill the publisher and start a new one after a while."""
        assert self._robot is not None
        self.note("SIGKILL to the publisher")
        self._robot.kill()
        self._robot.wait(5.0)
        self.wait(self.some(0.2, 3.0))
        self.start_robot_anew()

    def publisher_pause(self) -> None:
        """Stop the publisher for a while (SIGSTOP, SIGCONT), like a driver that hangs."""
        assert self._robot is not None
        self.note("SIGSTOP to the publisher")
        self._robot.send_signal(signal.SIGSTOP)
        try:
            self.wait(self.some(0.5, 6.0))
        finally:
            self._robot.send_signal(signal.SIGCONT)

    def _ways(self, seconds: float, **ways: Any) -> None:
        """Change the publisher's settings for a while, then restore them."""
        self.note(f"publisher: {ways}")
        self.tell(set=ways)
        self.wait(seconds)
        back = {"offset_s": 0.0, "zero": False, "lidar_offset_s": 0.0, "tf": True, "sim": False}
        self.note("publisher: back")
        self.tell(set={key: back[key] for key in ways})

    def clock_forward(self) -> None:
        """Let all stamps jump ahead, and back again."""
        self._ways(self.some(2, 5), offset_s=float(self.rng.choice([0.5, 10.0, 3600.0, 1e7])))

    def clock_backward(self) -> None:
        """Let all stamps jump back, and ahead again."""
        self._ways(self.some(2, 5), offset_s=-float(self.rng.choice([0.5, 10.0, 3600.0, 1e9])))

    def zero_stamps(self) -> None:
        """Send messages without a stamp for a while."""
        self._ways(self.some(2, 5), zero=True)

    def lidar_offset(self) -> None:
        """Offset the LiDAR's clock for a while."""
        self._ways(self.some(2, 5), lidar_offset_s=float(self.rng.choice([-30, -1, -0.2, 0.2, 30])))

    def sim_time(self) -> None:
        """Switch the node and the drivers to /clock, and back."""
        self.set("use_sim_time", True)
        self._ways(self.some(3, 6), sim=True)
        self.set("use_sim_time", False)

    def tf_loss(self) -> None:
        """Stop all transforms for a while, sometimes with a reset that forgets the static ones."""
        self.note("no TF")
        self.tell(set={"tf": False})
        if self.rng.random() < 0.5:
            self.note("reset")
            self.ask(Trigger, "reset", Trigger.Request())
        self.wait(self.some(2, 6))
        self.tell(set={"tf": True})

    def hostile(self) -> None:
        """Send thirty messages that no driver should send, among good ones."""
        for _ in range(30):
            if not self._hostile:  # all of them are sent before any is repeated
                self._hostile = [str(name) for name in self.rng.permutation(list(HOSTILE))]
            name = self._hostile.pop()
            self.note(f"hostile {name}")
            self.tell(hostile=name)
            self.wait(self.some(0.05, 0.35))

    def requests(self) -> None:
        """Send random harmless service requests in quick succession."""
        for _ in range(12):
            what = str(self.rng.choice(["reset", "off", "on", "state", "list", "twice"]))
            self.note(f"request {what}")
            if what == "reset":
                self.ask(Trigger, "reset", Trigger.Request())
            elif what in ("off", "on"):
                self.ask(SetBool, "enable", SetBool.Request(data=what == "on"))
            elif what == "list":
                self.ask(ListParameters, "list_parameters", ListParameters.Request())
            elif what == "twice":  # without waiting for answers
                client = self._clients.get(f"{NODE}/get_state")
                for _ in range(5 if client else 0):
                    client.call_async(GetState.Request())
            else:
                self.state()
            self.wait(self.some(0.0, 0.3))
        self.ask(SetBool, "enable", SetBool.Request(data=True))

    def unfit_transition(self) -> None:
        """Request transitions that the state active does not allow or that do not exist."""
        unfit = [
            Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE,
            Transition.TRANSITION_CLEANUP, Transition.TRANSITION_CREATE,
            Transition.TRANSITION_UNCONFIGURED_SHUTDOWN, 10, 62, 97, 255,
        ]  # fmt: skip
        for number in self.rng.choice(unfit, size=3):
            request = ChangeState.Request()
            request.transition.id = int(number)
            request.transition.label = str(self.rng.choice(["", "nonsense"]))
            self.note(f"change_state id {number} label {request.transition.label!r} while active")
            answer = self.ask(ChangeState, "change_state", request)
            if answer is not None and answer.success:
                self.fail("wrong state", f"change_state {number} while active is a success")
            self.wait(0.3)

    def parameters(self) -> None:
        """Set valid parameters and restore them; set invalid ones, which must be refused."""
        for number in self.rng.choice(len(_VALID), size=5, replace=False):
            name, value, before = _VALID[number]
            if self.set(name, value) is False:
                self.fail("parameter", f"{name} = {value!r} is refused")
            self.wait(self.some(0.2, 1.0))
            self.set(name, before)
        for number in self.rng.choice(len(_INVALID), size=6, replace=False):
            name, value = _INVALID[number]
            if self.set(name, value) is True:
                self.fail("parameter", f"{name} = {value!r} is taken")
        self.set("T_camera_lidar", [float(x) for x in np.eye(4).reshape(-1)])
        self.wait(0.5)
        if self.set("T_camera_lidar", [], Parameter.Type.DOUBLE_ARRAY) is False:
            self.fail("parameter", "T_camera_lidar cannot be emptied again")

    def lifecycle(self) -> None:
        """Deactivate and activate while images arrive, mostly with cleanup and configure too."""
        for _ in range(int(self.rng.integers(1, 3))):
            self.change("deactivate")
            if self.rng.random() < 0.7:
                self.change("cleanup")
                self.change("configure", START_S)
            self.wait(self.some(0.0, 1.0))
            self.change("activate")
            self.wait(self.some(0.0, 1.0))

    def listeners(self) -> None:
        """Subscribe to the other topics for a while."""
        topics = {"confidence": Image, "regions": Image, "fit": PointCloud2,
                  "rejected": PointCloud2, "depth/image": Image}  # fmt: skip
        self.note("listeners come and go")
        subscriptions = [
            self.peer.create_subscription(kind, f"{NODE}/{topic}", lambda message: None, 1)
            for topic, kind in topics.items()
        ]
        try:
            self.wait(self.some(1, 4))
        finally:
            for subscription in subscriptions:
                self.peer.destroy_subscription(subscription)

    def disk_full(self) -> None:
        """Fill the disk of caches and logs, while running and over a cycle of configure."""
        self.note(f"the disk is full ({self._disk.how})")
        self._disk.fill()
        try:
            self.wait(self.some(1, 3))
            for transition in ("deactivate", "cleanup", "configure", "activate"):
                self.change(transition, START_S)
            self.wait(2.0)
        finally:
            self._disk.free()

    def disk_full_start(self) -> None:
        """Start the node with empty caches and a full disk."""
        self.stop_node()
        for cache in self._caches():
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
        self.note(f"start with empty caches and a full disk ({self._disk.how})")
        self._disk.fill()
        try:
            self.restarts["node"] += 1
            self.start_node()
            self.wait(2.0)
        finally:
            self._disk.free()

    def damage(self) -> None:
        """Damage the caches' files while the node is stopped, then start it."""
        self.stop_node()
        hurt = 0
        engines = self.folder / "home" / "cache" / "depth_node" / "engines"
        engines.mkdir(parents=True, exist_ok=True)
        for name in ("a" * 32 + ".engine", "a" * 32 + ".json", "b.reference.npz", "c.tmp"):
            (engines / name).write_bytes(self.rng.bytes(100))
        ways: list[str] = []
        for path in [p for cache in self._caches() for p in sorted(cache.rglob("*"))]:
            if not path.is_file() or self.rng.random() < 0.3:
                continue
            way = str(self.rng.choice(["half", "noise", "empty", "gone"]))
            content = path.read_bytes()
            if way == "gone":
                path.unlink()
            elif way == "noise":
                path.write_bytes(self.rng.bytes(len(content)))
            else:
                path.write_bytes(content[: len(content) // 2] if way == "half" else b"")
            hurt += 1
            ways.append(f"{way} {path.suffix}")
        self.note(f"{hurt} files of the caches damaged: {dict(Counter(ways))}")
        self.restarts["node"] += 1
        self.start_node()

    def node_signal(self) -> None:
        """End the node by SIGTERM or SIGINT, which must be clean, and start it again."""
        number = signal.Signals(int(self.rng.choice([signal.SIGTERM, signal.SIGINT])))
        self.note(f"{number.name} to the node")
        self.stop_node(number)
        self.wait(self.some(0.0, 1.0))
        self.restarts["node"] += 1
        self.start_node()

    # --- the result ------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Return the content of `soak.json`."""
        with self._lock:
            facts = growth(self.samples, self.limits)
            for text in facts["grown"]:
                self.failures.add("growth", text, self.at_s(), "", [])
            counts = {name: self.frames.counts[name] for name in
                      ("in", "out", "dropped", "refused", "failed", "skipped_no_subscribers",
                       "unanswered, fault", "unanswered, calm")}  # fmt: skip
            return {
                "minutes": round(self.at_s() / 60, 2) if self.begun else 0.0,
                "rate": self.options.rate,
                "seed": self.options.seed,
                "frames": {**counts, "lost": self.frames.lost},
                "latency_ms": self.frames.percentiles(),
                "growth": facts,
                "limits": vars(self.limits),
                "restarts": {key: self.restarts[key]
                             for key in ("node", "publisher", "node, after a failure")},
                "startup_s": self.startup_s,
                "faults": dict(self.faults),
                "requests": dict(self.services),
                "failures": self.failures.as_dicts(),
                "error_lines": dict(self.log.errors.most_common(30)),
                "reasons": dict(self.reasons.most_common(40)),
                "disk": self._disk.how,
                "journal": self.journal,
                "samples": [list(vars(sample).values()) for sample in self.samples],
            }  # fmt: skip


class _Disk:
    """The node's home, which can be filled up: a small file system of its own where mounting is
    permitted, else folders that cannot be written.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        mounted = (
            os.geteuid() == 0
            and not subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "soak", str(home)],
                capture_output=True,
            ).returncode
        )
        self.how = f"a full tmpfs of {DISK_MB} MB" if mounted else "folders that are read-only"
        if not mounted and os.geteuid() == 0:
            self.how = "a file in place of each folder"
        self._mounted = mounted
        for name in ("numba", "cache", "ros_log", "ros"):
            (home / name).mkdir()

    def fill(self) -> None:
        if self._mounted:
            with suppress(OSError), (self.home / "fill").open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
            return
        for name in ("numba", "cache"):
            folder = self.home / name
            if os.geteuid():
                for path in [folder, *folder.rglob("*")]:
                    if path.is_dir():
                        path.chmod(0o555)
            else:  # root may write in spite of permissions
                folder.rename(self.home / f"{name}.away")
                folder.write_bytes(b"")

    def free(self) -> None:
        if self._mounted:
            (self.home / "fill").unlink(missing_ok=True)
            return
        for name in ("numba", "cache"):
            folder, away = self.home / name, self.home / f"{name}.away"
            if away.exists():
                folder.unlink(missing_ok=True)
                away.rename(folder)
            for path in [folder, *folder.rglob("*")]:
                if path.is_dir():
                    path.chmod(0o755)

    def close(self) -> None:
        self.free()
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.home)], capture_output=True)


def _render(path: Path, views: int, seed: int) -> None:
    """Render what camera, LiDAR and laser measure along a short walk, with the camera's poses."""
    scene, poses = walk._walk(seed)
    height, width = SIZE
    focal = 0.8 * width
    camera = walk.Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    arrays: dict[str, Any] = {
        "poses": poses[:views], "K": camera.matrix, "T_camera_lidar": walk.T_CAMERA_LIDAR,
    }  # fmt: skip
    images, ranges = [], []
    for index in range(views):
        images.append(scene.render(camera, poses[index], antialias=False).image)
        points = scene.lidar(poses[index] @ walk.T_CAMERA_LIDAR, walk.LIDAR, seed=index)
        arrays[f"cloud_{index}"] = points
        level = points[np.abs(points[:, 2]) < 0.05 * np.hypot(points[:, 0], points[:, 1])]
        bins = ((np.arctan2(level[:, 1], level[:, 0]) + np.pi) / (2 * np.pi) * 360).astype(int)
        line = np.full(360, np.inf, np.float32)
        np.minimum.at(line, bins % 360, np.hypot(level[:, 0], level[:, 1]))
        ranges.append(line)
    np.savez(path, images=np.stack(images), ranges=np.stack(ranges), **arrays)


_TROUBLES = {
    "stuck": "no depth although inputs flow and the node is active",
    "blind": "depth comes, but no pixel of it is known",
}
_VALID: list[tuple[str, Any, Any]] = [  # name, value to set, value to restore
    ("fit.method", "slf", "field"),
    ("fit.method", "ssf", "field"),
    ("fit.method", "median", "field"),
    ("depth_encoding", "16UC1", "32FC1"),
    ("max_width_px", 320, 0),
    ("points_decimation", 8, 2),
    ("max_scan_age_s", 0.05, 0.3),
    ("tf_tolerance_s", 1.0, 0.1),
    ("world_frame", "", "odom"),
    ("image_rectified", "yes", "auto"),
    ("scans_per_image", 3, 0),
    ("fit.field.temporal.enabled", False, True),
    ("fit.field.compiler", "numpy", "auto"),
    ("fit.field.age_s", 1.0, 0.5),
]
_INVALID: list[tuple[str, Any]] = [
    ("fit.method", "pizza"),
    ("fit.method", 3),
    ("fit.nothing", 1),
    ("depth_encoding", ""),
    ("max_width_px", -1),
    ("max_width_px", 2.5),
    ("max_scan_age_s", float("nan")),
    ("max_scan_age_s", float("inf")),
    ("max_scan_age_s", -1.0),
    ("tf_tolerance_s", "long"),
    ("T_camera_lidar", [1.0, 2.0]),
    ("T_camera_lidar", [float("nan")] * 16),
    ("lidar_sources", ["radar"]),
    ("image_transport", "compressed"),
    ("model.path", "/nowhere.onnx"),
    ("points_decimation", 0),
]

FAULTS: dict[str, Callable[[Soak], None]] = {
    fault.__name__: fault
    for fault in (
        Soak.publisher_kill,
        Soak.publisher_pause,
        Soak.clock_forward,
        Soak.clock_backward,
        Soak.zero_stamps,
        Soak.sim_time,
        Soak.lidar_offset,
        Soak.tf_loss,
        Soak.hostile,
        Soak.requests,
        Soak.unfit_transition,
        Soak.parameters,
        Soak.lifecycle,
        Soak.listeners,
        Soak.disk_full,
        Soak.disk_full_start,
        Soak.damage,
        Soak.node_signal,
    )
}
RESTARTS = ("disk_full_start", "damage", "node_signal")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="from the first depth on")
    parser.add_argument("--rate", type=float, default=10.0, help="images a second")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule and the room")
    parser.add_argument("--out", type=Path, default=REPO / "runs" / "soak",
                        help="folder for soak.json, node.log and publisher.log")  # fmt: skip
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS),
                        metavar="NAME", help=f"only these of: {', '.join(FAULTS)}")  # fmt: skip
    parser.add_argument("--calm", type=float, nargs=2, default=(3.0, 7.0), metavar=("MIN", "MAX"),
                        help="seconds without a fault after each one's grace")  # fmt: skip
    parser.add_argument("--growth", type=float, default=Limits.rss_mb_per_h, metavar="MB/h",
                        help="largest slope of the memory after warm-up")  # fmt: skip
    parser.add_argument("--views", type=int, default=VIEWS, help="rendered, played back and forth")
    parser.add_argument("--markdown", action="store_true", help="print the summary as a table")
    parser.add_argument("--from", type=Path, dest="stored", metavar="soak.json",
                        help="print the table of an earlier run and end")  # fmt: skip
    return parser.parse_args(arguments)


def _summary(result: dict[str, Any]) -> str:
    lines = [line.strip("| ").replace(" | ", ": ", 1) for line in table(result).splitlines()[2:]]
    for failure in result["failures"]:
        lines.append(
            f"\n{failure['kind'].upper()} × {failure['count']}, first at {failure['at_s']} s,"
            f" fault {failure['fault'] or 'none'}\n{failure['text']}"
        )
        lines.extend(f"    before it: {text}" for text in failure["recent"])
    if result["error_lines"]:
        lines.append("\nerrors and Python warnings in the node's log")
        lines.extend(f"{count:5d} × {text}" for text, count in result["error_lines"].items())
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0 if the soak found no failure, else 1."""
    options = _parse(arguments)
    if options.stored is not None:
        print(table(json.loads(options.stored.read_text(encoding="utf-8"))))
        return 0
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("node.log", "publisher.log"):
        (options.out / name).unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is cleaned up
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with tempfile.TemporaryDirectory(prefix="soak_") as temporary:
        soak = Soak(options, Path(temporary))
        aborted = ""
        try:
            soak.run()
        except (KeyboardInterrupt, SystemExit, RuntimeError) as error:
            aborted = f"{type(error).__name__}: {error}".rstrip(": ")
        finally:
            soak.close()
        if aborted:
            soak.fail("aborted", aborted)
        result = soak.result()
    path = options.out / "soak.json"
    path.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(result) if options.markdown else _summary(result))
    print(f"\n{path}", file=sys.stderr)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
