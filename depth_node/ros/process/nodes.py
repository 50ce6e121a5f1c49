# SPDX-License-Identifier: Apache-2.0
"""The life of a process of nodes: from its arguments to a signal, each node in a thread of its own.

So one node that is being configured, which may take minutes, holds up neither a signal nor another
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

_LOOK_S = 5.0  # between two looks at the memory of the process
_CURES = {  # what rcl's refusals say -> what to do about it
    "Sequence should be of same type": "write all numbers of a list with a decimal point (1.0)",
    "Failed to create log directory": "let HOME or ROS_LOG_DIR name a folder that can be written",
}
_END_S = 1.0  # after a signal; what is still busy then, such as a build of an engine, is left


def run(
    arguments: list[str] | None,
    make: Callable[[], Sequence[GuardedNode]],
    begin: Callable[[GuardedNode], None] = lambda node: None,
) -> int:
    """Run nodes until a signal ends them; the exit status is 0 then, 2 if there are none to run.

    make: creates the nodes once rclpy is up; what it raises is printed. begin: called for each node
    in the thread of its callbacks, as the first of them.
    """
    memory = Memory()
    ended: SimpleQueue[int] = SimpleQueue()  # its put may be called by a signal's handler
    on_stop(lambda: ended.put(0))
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        nodes = make()
    except Exception as error:  # rcl cannot read its arguments or the parameter file
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
    """Until a signal or the end of rclpy; meanwhile memory of past peaks is given back."""
    while True:
        try:
            ended.get(timeout=_LOOK_S)
        except Empty:
            memory.look(time.monotonic())
        else:
            return


@dataclass
class _Spinning:
    """A node, its executor, and the thread of its callbacks."""

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
        """Let it end after the callback at hand."""
        self.ending.set()
        self.executor.create_task(lambda: None)  # wakes it

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
            except Exception as error:  # of what rclpy does outside the callbacks
                node.report_exception("rclpy's executor", error)
                time.sleep(0.01)
    finally:
        ended.put(0)


def _leave() -> None:
    """End the process at once: what is busy now (a build of an engine, a network) takes minutes."""
    with suppress(Exception):  # the terminal may be gone
        print("depth_node: a task was still running and was ended", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
