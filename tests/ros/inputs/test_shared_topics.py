# SPDX-License-Identifier: Apache-2.0
"""One subscription for several receivers, also when it cannot be made at first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from sensor_msgs.msg import PointCloud2

from depth_node.ros.inputs.lidar import UnreadScan
from depth_node.ros.inputs.shared_topics import SharedTopics


class Owner:
    """As far as SharedTopics uses its node; the first subscription fails, as with a wrong QoS."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.callbacks: list[Any] = []
        self.errors: list[BaseException] = []

    def create_subscription(self, kind: type, topic: str, callback: Any, *_: Any, **__: Any) -> Any:
        if self.failures:
            self.failures -= 1
            raise ValueError("the QoS override is invalid")
        self.callbacks.append(callback)
        return SimpleNamespace(callback=callback)

    def destroy_subscription(self, subscription: Any) -> None:
        self.callbacks.remove(subscription.callback)

    def report_exception(self, what: str, error: BaseException) -> None:
        self.errors.append(error)


def test_a_receiver_whose_subscription_failed_gets_nothing_later() -> None:
    """It got each scan twice, once for the activation that failed and once for the next."""
    owner, got = Owner(failures=1), list[UnreadScan]()
    shared = SharedTopics(owner)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="QoS"):
        shared.subscribe(PointCloud2, "/points", got.append)
    end = shared.subscribe(PointCloud2, "/points", got.append)
    owner.callbacks[0](PointCloud2())
    assert len(got) == 1 and not owner.errors
    end()
    assert not owner.callbacks, "the last receiver is gone, and so is the subscription"


def test_a_receiver_that_raises_is_reported_and_the_others_get_the_same_scan() -> None:
    owner, got = Owner(failures=0), list[UnreadScan]()

    def broken(scan: UnreadScan) -> None:
        raise RuntimeError("a camera is broken")

    shared = SharedTopics(owner)  # type: ignore[arg-type]
    for receive in (got.append, broken, got.append):
        shared.subscribe(PointCloud2, "/points", receive)
    owner.callbacks[0](PointCloud2())
    assert len(owner.callbacks) == 1
    assert len(got) == 2 and got[0] is got[1] and len(owner.errors) == 1
