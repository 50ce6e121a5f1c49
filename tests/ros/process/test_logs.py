# SPDX-License-Identifier: Apache-2.0
"""Several cameras that are configured at once each log what they did themselves."""

from __future__ import annotations

import logging
import threading

from depth_node.ros.process.logs import forward_logs


class Lines(list[str]):
    """A logger of a node."""

    def info(self, line: str) -> None:
        self.append(line)

    def warning(self, line: str) -> None:
        self.append(f"warning: {line}")


def test_lines_of_two_cameras_are_not_mixed_and_the_level_is_restored() -> None:
    """One camera's engine was also logged by the other, and the level stayed at INFO for ever."""
    source, front, left = logging.getLogger("depth_node.engine"), Lines(), Lines()
    package = logging.getLogger("depth_node")
    before = package.level
    left_is_in, front_is_out = threading.Event(), threading.Event()

    def configure_left() -> None:
        with forward_logs(left):
            source.info("left")
            left_is_in.set()
            assert front_is_out.wait(10)
            source.warning("left again")

    thread = threading.Thread(target=configure_left)
    with forward_logs(front):
        thread.start()
        assert left_is_in.wait(10)
        source.info("front")
        other = threading.Thread(target=source.info, args=("a build's own thread",))
        other.start()
        other.join()
    front_is_out.set()
    thread.join()
    assert front == ["front", "a build's own thread"]
    assert left == ["left", "a build's own thread", "warning: left again"]
    assert package.level == before and not package.handlers
