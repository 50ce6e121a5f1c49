# SPDX-License-Identifier: Apache-2.0
"""The life of a process of nodes: from its arguments to a signal, each node in its own thread.

So a node that is being configured, which may take minutes, delays neither a signal nor another
node.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from depth_node.ros.process.allocator import Memory
from depth_node.ros.process.guarded_node import GuardedNode
from depth_node.ros.process.signals import on_stop

_LOOK_S = 5.0  # between two checks of the memory of the process
_CURES = {  # words of rcl's error -> what to do about it
    "Sequence should be of same type": "write all numbers of a list with a decimal point (1.0)",
    "Failed to create log directory": "let HOME or ROS_LOG_DIR name a folder that can be written",
}
_END_S = 1.0  # after a signal; a task that still runs then, such as an engine's build, is ended


def run(
    arguments: list[str] | None,
    make: Callable[[], Sequence[GuardedNode]],
    begin: Callable[[GuardedNode], None] = lambda node: None,
) -> int:
    """Run nodes until a signal ends them; the exit status is 0 then, 2 if there are no nodes to
    run.

    make: creates the nodes once rclpy is initialised; an exception is printed. begin: called for
    each node, as the first task in the thread of its callbacks.
    """
    memory = Memory()
    ended: SimpleQueue[int] = SimpleQueue()  # its put() may be called in a signal handler
    on_stop(lambda: ended.put(0))
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        nodes = make()
    except Exception as error:  # for instance rcl cannot read its arguments or a parameter file
        kind = "" if isinstance(error, (RuntimeError, ValueError)) else f"{type(error).__name__}: "
        text = " ".join(str(error).split())
        cure = next((f": {cure}" for why, cure in _CURES.items() if why in text), "")
        print(f"depth_node: {kind}{text}{cure}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    threads = [_Spinning.start(node, begin, ended) for node in nodes]
    _wait(ended, memory)
    guard = threading.Timer(_END_S, _leave)
    guard.daemon = True
    guard.start()
    for thread in threads:
        thread.end()
    for thread in threads:
        thread.join()
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown()
    guard.cancel()
    return 0


def _wait(ended: SimpleQueue[int], memory: Memory) -> None:
    """Wait for a signal or the end of rclpy; meanwhile return the memory of past peaks."""
    while True:
        try:
            ended.get(timeout=_LOOK_S)
        except Empty:
            memory.look(time.monotonic())
        else:
            return


@dataclass
class _Spinning:
    """A node, its executor, and the thread that runs its callbacks."""

    node: GuardedNode
    executor: SingleThreadedExecutor
    ending: threading.Event
    thread: threading.Thread

    @classmethod
    def start(
        cls, node: GuardedNode, begin: Callable[[GuardedNode], None], ended: SimpleQueue[int]
    ) -> _Spinning:
        executor, ending = SingleThreadedExecutor(), threading.Event()
        executor.add_node(node)
        executor.create_task(begin, node)
        name = f"executor of {node.get_fully_qualified_name()}"
        arguments = (executor, node, ending, ended)
        thread = threading.Thread(target=_spin, args=arguments, name=name, daemon=True)
        thread.start()
        return cls(node, executor, ending, thread)

    def end(self) -> None:
        """Let the thread end after the current callback."""
        self.ending.set()
        self.executor.create_task(lambda: None)  # wakes the executor

    def join(self) -> None:
        self.thread.join()
        self.executor.shutdown()


def _spin(
    executor: SingleThreadedExecutor,
    node: GuardedNode,
    ending: threading.Event,
    ended: SimpleQueue[int],
) -> None:
    """Run callbacks until rclpy is shut down or the node is to end."""
    try:
        while node.context.ok() and not ending.is_set():
            try:
                executor.spin_once()
            except ExternalShutdownException:
                break
            except Exception as error:  # raised by rclpy outside the callbacks
                node.report_exception("rclpy's executor", error)
                time.sleep(0.01)
    finally:
        ended.put(0)


def _leave() -> None:
    """End the process at once, because a task that runs (an engine's build) may take minutes."""
    with suppress(Exception):  # the terminal may be closed
        print("depth_node: a task was still running and was ended", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
