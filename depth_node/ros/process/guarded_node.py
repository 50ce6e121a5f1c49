# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node that survives every message, request and parameter.

In rclpy an exception of a callback ends the executor and with it the process, and rclpy's own
callbacks raise even for a transition that does not fit the state. Here every callback, rclpy's own
included, is wrapped when it is created: an exception is logged (throttled), a service answers that
it failed, and the node goes on.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node

from depth_node.ros.messages import place

_REPEAT_WARNING_S = 10.0
_MOST_KINDS = 64  # of warnings whose last time is kept

Transition = Callable[[Any, LifecycleState], TransitionCallbackReturn]


class GuardedNode(Node):
    """Wraps every callback that is created on it, and throttles warnings of the same kind."""

    def __init__(self, name: str, **node_arguments: Any) -> None:
        self._warned: OrderedDict[str, float] = OrderedDict()
        self._warned_lock = threading.Lock()
        super().__init__(name, **node_arguments)
        for service in self.services:  # rclpy creates the lifecycle's without create_service
            service.callback = self._guarded_service(service.callback)

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Any, *rest: Any, **named: Any
    ) -> Any:
        """See rclpy.node.Node."""
        return super().create_subscription(msg_type, topic, self._guarded(callback), *rest, **named)

    def create_timer(self, timer_period_sec: float, callback: Any, *rest: Any, **named: Any) -> Any:
        """See rclpy.node.Node."""
        return super().create_timer(timer_period_sec, self._guarded(callback), *rest, **named)

    def create_service(
        self, srv_type: Any, srv_name: str, callback: Any, *rest: Any, **named: Any
    ) -> Any:
        """See rclpy.node.Node."""
        guarded = self._guarded_service(callback)
        return super().create_service(srv_type, srv_name, guarded, *rest, **named)

    def report_exception(self, what: str, error: BaseException) -> None:
        """Log an exception of a callback: its type, its message and where it was raised."""
        self.warn_throttled(
            f"exception {place(error)}",
            f"{what} failed and was left out: {describe_exception(error)}",
        )

    def warn_throttled(self, kind: str, text: str) -> None:
        """Log a warning, but of the same kind at most one in ten seconds."""
        now_s = time.monotonic()
        with self._warned_lock:  # the worker's thread warns too
            if now_s - self._warned.get(kind, -_REPEAT_WARNING_S) < _REPEAT_WARNING_S:
                return
            self._warned[kind] = now_s
            self._warned.move_to_end(kind)
            while len(self._warned) > _MOST_KINDS:
                self._warned.popitem(last=False)
        self.get_logger().warning(text)

    def _guarded(self, callback: Any) -> Any:
        if hasattr(callback, "__wrapped__") or inspect.iscoroutinefunction(callback):
            return callback

        @functools.wraps(callback)
        def call(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as error:
                self.report_exception("a message or timer", error)
                return None

        return call

    def _guarded_service(self, callback: Any) -> Any:
        if hasattr(callback, "__wrapped__") or inspect.iscoroutinefunction(callback):
            return callback

        @functools.wraps(callback)
        def answer(request: Any, response: Any) -> Any:
            try:
                return callback(request, response)
            except Exception as error:
                if isinstance(request, ChangeState.Request):
                    # rcl has refused the transition; the state is what it was.
                    wish = request.transition.label[:40] or request.transition.id
                    self.warn_throttled(
                        "transition",
                        f"transition {wish} does not fit the node's present state and was refused:"
                        " `ros2 lifecycle list` shows those that do",
                    )
                else:
                    self.report_exception("a service request", error)
                return _failure(request, type(response)(), describe_exception(error))

        return answer


class GuardedLifecycleNode(GuardedNode, LifecycleNode):
    """A lifecycle node whose callbacks are guarded."""


def logged_transition(callback: Transition) -> Transition:
    """Log what a transition callback raises, which rclpy turns into ERROR without a message."""

    @functools.wraps(callback)
    def call(self: Any, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return callback(self, state)
        except Exception as error:
            self.get_logger().error(f"{callback.__name__} failed: {describe_exception(error)}")
            return TransitionCallbackReturn.ERROR

    return call


def describe_exception(error: BaseException) -> str:
    """Return one line of bounded length: type, message, file and line."""
    kind, _, where = place(error).partition(" at ")
    return f"{kind}: {' '.join(str(error).split())[:500]} ({where})"


def _failure(request: Any, response: Any, reason: str) -> Any:
    """Return the response that reports the failure, in the fields that it has."""
    if hasattr(response, "success"):
        response.success = False
    if hasattr(response, "message"):
        response.message = reason
    no = SetParametersResult(successful=False, reason=reason)
    if hasattr(response, "results") and hasattr(request, "parameters"):
        response.results = [no] * len(request.parameters)
    if isinstance(getattr(response, "result", None), SetParametersResult):
        response.result = no
    return response
