# SPDX-License-Identifier: Apache-2.0
"""TF for several users: opened once, closed with the last, cleared only when its own time jumps."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node

from depth_node.ros.transforms.tf import NoTransformError, SharedTransforms, TfSource, Transform
from tests.helpers.rig import header
from tests.helpers.stand_ins import tf2_ros as tf2_stand_in


class Source:
    def __init__(self) -> None:
        self.closed, self.jumps = 0, 0

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        return np.eye(4), 7

    def forget_moving(self) -> None:
        self.jumps += 1

    def close(self) -> None:
        self.closed += 1


def test_one_source_for_all_users_as_long_as_there_is_one() -> None:
    opened: list[Source] = []

    def open_source() -> Source:
        opened.append(Source())
        return opened[-1]

    shared = SharedTransforms(open_source)
    shared.forget_moving()
    assert not opened, "opened for the first user"
    first, second = shared.join(), shared.join()
    first.close()
    first.close()
    assert len(opened) == 1 and not opened[0].closed, "a user leaves once"
    shared.forget_moving()
    assert opened[0].jumps == 1
    second.close()
    assert opened[0].closed == 1
    assert first.lookup("a", "b", None)[1] == 7, "for the frame at work"
    shared.join()
    assert len(opened) == 2


def test_a_source_that_cannot_be_opened_is_tried_again_by_the_next() -> None:
    answers: list[Source | None] = [None, Source()]

    def open_source() -> Source:
        if (source := answers.pop(0)) is None:
            raise ImportError("No module named 'tf2_ros'")
        return source

    shared = SharedTransforms(open_source)
    with pytest.raises(ImportError):
        shared.join()
    shared.join()
    assert not answers


class Deaf(Node):
    """A node whose subscriptions nobody serves."""

    def __init__(self) -> None:  # no context is needed
        pass

    def create_subscription(self, *arguments: object, **named: object) -> None:  # type: ignore[override]
        pass


@pytest.fixture
def tf(monkeypatch: pytest.MonkeyPatch) -> TfSource:
    monkeypatch.setitem(sys.modules, "tf2_ros", tf2_stand_in)
    return TfSource(Deaf())


def came(tf: TfSource, *stamps_s: float, child: str = "base") -> None:
    for stamp_s in stamps_s:
        link = TransformStamped(header=header(stamp_s, "odom"), child_frame_id=child)
        link.transform.rotation.w = 1.0
        tf._buffer.set_transform(link, "test")


def knows(tf: TfSource, stamp_s: float, child: str = "base") -> bool:
    try:
        tf.lookup("odom", child, round(stamp_s * 1e9))
    except NoTransformError:
        return False
    return True


def test_a_jump_that_one_user_sees_alone_takes_nothing_from_the_others(tf: TfSource) -> None:
    """A camera whose own stamps jump, or that is reset."""
    came(tf, 100.0, 100.1)
    tf.forget_moving()
    assert knows(tf, 100.05)
    came(tf, 100.2, 99.9)  # two publishers, a late message
    assert knows(tf, 100.05) and knows(tf, 99.95)


@pytest.mark.parametrize("back_to_s", [10.0, 99.0])
@pytest.mark.parametrize("asked_first", [True, False])
def test_after_a_jump_of_tf_itself_the_new_time_counts_alone(
    tf: TfSource, asked_first: bool, back_to_s: float
) -> None:
    """tf2 ignores what is ten seconds older than its newest, and would mix the times before."""
    came(tf, 100.0, 100.1)
    came(tf, 100.0, 100.1, child="arm")
    if asked_first:
        tf.forget_moving()
    came(tf, back_to_s)
    if not asked_first:
        tf.forget_moving()
    came(tf, back_to_s + 0.1, back_to_s + 0.2)
    assert knows(tf, back_to_s + 0.15)
    assert not knows(tf, 100.05) and not knows(tf, 100.05, "arm")


def test_each_jump_clears_once_however_many_users_see_it(tf: TfSource) -> None:
    came(tf, 100.0)
    tf.forget_moving()
    came(tf, 10.0, 10.1)
    tf.forget_moving()
    assert knows(tf, 10.05), "the second camera sees the same jump later"
    came(tf, 10.2)
    assert knows(tf, 10.05)
