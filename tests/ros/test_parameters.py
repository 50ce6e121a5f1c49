# SPDX-License-Identifier: Apache-2.0
"""Parameters: the documentation is what the code says, and the YAML files fit it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

import rclpy
import yaml
from rclpy.node import Node
from rclpy.parameter import Parameter

from depth_node.config import ConfigError, build, describe
from depth_node.ros.inputs.subscriptions import INPUTS
from depth_node.ros.outputs.results import OUTPUTS
from depth_node.ros.parameters import NodeParameters, descriptor, markdown
from depth_node.ros.settings import ESSENTIAL, RENAMED, NodeConfig

IDENTITY = [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_the_committed_documentation_is_up_to_date(repo: Path) -> None:
    assert (repo / "docs/parameters.md").read_text() == markdown(), "run `make docs`"


@pytest.mark.parametrize(
    "name",
    [
        "depth_node.yaml", "laserscan.yaml", "lidars.yaml", "oak.yaml", "realsense.yaml",
        "usb_cam.yaml", "zed.yaml",
    ],
)  # fmt: skip
def test_the_parameter_files_can_be_used(repo: Path, name: str) -> None:
    values = yaml.safe_load((repo / "config" / name).read_text())
    assert list(values) == ["/**"], "whatever the node's name and namespace"
    build(NodeConfig, values["/**"]["ros__parameters"])
    # What is commented out can be used too, where it is a parameter with a value.
    lines = (repo / "config" / name).read_text().splitlines()
    bare = [line.replace("# ", "", 1) if re.match(r"    # \w+: ", line) else line for line in lines]
    with_comments = yaml.safe_load("\n".join(bare))
    build(NodeConfig, with_comments["/**"]["ros__parameters"])


def test_every_parameter_says_what_it_does() -> None:
    for item in describe(NodeConfig):
        assert len(item.description) > 10, item.name
        assert descriptor(item).description.startswith(item.description)


def test_a_width_that_shows_nothing_is_refused() -> None:
    for width in (1, 31):
        with pytest.raises(ConfigError, match=f"max_width_px is {width}.*32 or more, or 0"):
            NodeConfig(max_width_px=width)
    assert NodeConfig(max_width_px=32).max_width_px == 32
    assert NodeConfig(max_width_px=0).max_width_px == 0


def test_extrinsics_are_checked() -> None:
    assert NodeConfig().fixed_extrinsics() is None
    matrix = NodeConfig(T_camera_lidar=tuple(IDENTITY)).fixed_extrinsics()
    assert matrix is not None
    assert matrix.shape == (4, 4)
    with pytest.raises(ConfigError, match="no rotation"):
        NodeConfig(T_camera_lidar=(2.0, *IDENTITY[1:]))
    with pytest.raises(ConfigError, match="lidar_sources"):
        NodeConfig(lidar_sources=())


def test_rviz_shows_topics_that_the_node_has(repo: Path) -> None:
    displays = yaml.safe_load((repo / "config/depth_node.rviz").read_text())
    topics = {
        display["Topic"]["Value"]
        for display in displays["Visualization Manager"]["Displays"]
        if "Topic" in display
    }
    published = {name.replace("~", "/depth_node") for name in OUTPUTS}
    assert topics <= published | {f"/{name}" for name in INPUTS}
    assert "/depth_node/points" in topics


def test_a_renamed_parameter_is_refused_with_its_new_name() -> None:
    known = {item.name for item in describe(NodeConfig)}
    assert not set(RENAMED) & known, "an old name is a parameter again"
    context = rclpy.Context()
    rclpy.init(context=context)
    old = Parameter("max_scan_age", value=0.2)
    node = Node("renamed", context=context, parameter_overrides=[old])
    try:
        (sentence,), foreign = NodeParameters(node).unknown({})
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
    assert not foreign
    assert sentence == "parameter max_scan_age is now called max_scan_age_s: use the new name"


def test_what_a_user_sets_comes_first_in_the_documentation() -> None:
    first, _, rest = markdown().partition("## Everything else")
    assert all(f"| `{name}`" in first and f"| `{name}`" not in rest for name in ESSENTIAL)


def test_the_nodes_parameters_speak_in_one_style() -> None:
    """A capital, a full stop, the unit in the name where it is no count."""
    for item in describe(NodeConfig):
        assert item.description[0].isupper() and item.description.endswith("."), item.name
        if item.unit in ("s", "m", "px", "MB"):
            assert item.name.endswith(f"_{item.unit.lower()}"), f"{item.name} has a unit"
