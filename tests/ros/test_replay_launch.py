# SPDX-License-Identifier: Apache-2.0
"""replay.launch.py, where ROS 2's launch is installed (it has no wheels)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("launch_ros", reason="launch_ros is not installed (it comes with apt's ROS 2)")


@pytest.fixture
def description(repo: Path) -> Any:
    path = repo / "launch" / "replay.launch.py"
    spec = importlib.util.spec_from_file_location("replay_launch", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arguments_are_described(description: Any) -> None:
    entities = description.generate_launch_description().entities
    names = {entity.name for entity in entities if hasattr(entity, "default_value")}
    assert names == {"bag", "rate", "loop", "start_delay"}


@pytest.mark.parametrize("loop", ["false", "true"])
def test_the_bag_is_played_with_its_clock(description: Any, loop: str) -> None:
    from launch import LaunchContext

    context = LaunchContext()
    context.launch_configurations.update(bag="/data/run", rate="2.0", loop=loop, start_delay="1.0")
    player, _ = description.play(context)
    words = [part.text for word in player.cmd for part in word]
    assert words[:5] == ["ros2", "bag", "play", "/data/run", "--clock"]
    assert ("--loop" in words) == (loop == "true")
    assert words[words.index("--rate") + 1] == "2.0"
