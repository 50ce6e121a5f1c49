# SPDX-License-Identifier: Apache-2.0
"""Layouts name the topics that a node really has, in the words that Foxglove and RViz read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from depth_node.cli.main import main
from depth_node.ros.outputs import layouts
from depth_node.ros.outputs.layouts import NodeTopics
from tests.helpers.rig import Rig, settings

REMAPS = (
    ("image", "/cam/image_rect"),
    ("points", "lidar/points"),
    ("~/depth/image_rect", "/cam/depth/image_rect"),
    ("~/depth/camera_info", "/cam/depth/camera_info"),
    ("~/points", "~/cloud"),
)


def shown(layout: dict[str, Any]) -> set[str]:
    """Every topic of a Foxglove layout."""
    topics: set[str] = set()
    for panel in layout["configById"].values():
        topics |= set(panel.get("topics", {}))
        mode = panel.get("imageMode", {})
        topics |= {mode[key] for key in ("imageTopic", "calibrationTopic") if key in mode}
        topics |= {panel["topicToRender"]} if "topicToRender" in panel else set()
    return topics


def displays(config: dict[str, Any]) -> set[str]:
    all_displays = config["Visualization Manager"]["Displays"]
    return {each["Topic"]["Value"] for each in all_displays if "Topic" in each}


@pytest.mark.parametrize("namespace", ["/", "/front", "robot/left"])
def test_topics_are_those_of_the_running_node(network: Path, namespace: str) -> None:
    full = "/" + namespace.strip("/")
    arguments = [word for name, to in REMAPS for word in ("-r", f"{name}:={to}")]
    arguments += ["-r", f"__ns:={full}"] if full != "/" else []
    with Rig(*settings(network), arguments=arguments) as rig:
        for transition in ("configure", "activate"):
            getattr(rig.node, f"trigger_{transition}")()
        node = rig.node
        published = {
            name for name, _ in node.get_publisher_names_and_types_by_node("depth_node", full)
        }
        subscribed = {
            name for name, _ in node.get_subscriber_names_and_types_by_node("depth_node", full)
        }
    assert "/cam/depth/image_rect" in published, "the node is active"
    topics = NodeTopics(namespace, REMAPS)
    assert shown(layouts.foxglove(topics)) <= published | subscribed
    assert displays(layouts.rviz(topics)) <= published | subscribed
    assert {"/cam/image_rect", "/cam/depth/camera_info"} <= shown(layouts.foxglove(topics))


def test_the_committed_rviz_file_is_that_of_a_node_as_it_comes(repo: Path) -> None:
    committed = yaml.safe_load((repo / "config/depth_node.rviz").read_text())
    assert committed == layouts.rviz(NodeTopics())


def leaves(tree: Any) -> list[str]:
    return [tree] if isinstance(tree, str) else leaves(tree["first"]) + leaves(tree["second"])


def test_a_foxglove_layout_is_whole() -> None:
    layout = layouts.foxglove(NodeTopics(), "odom")
    assert sorted(leaves(layout["layout"])) == sorted(layout["configById"])
    assert set(layout) == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    assert layout["configById"]["3D!depth_node"]["followTf"] == "odom"
    assert json.loads(json.dumps(layout, allow_nan=False)) == layout


def test_panels_are_in_the_words_of_foxgloves_own_library() -> None:
    """Names of settings, and values where it lists them, of foxglove-sdk's layouts."""
    foxglove = pytest.importorskip("foxglove.layouts", reason="foxglove-sdk is not installed")
    panels = layouts.foxglove(NodeTopics(), "odom")["configById"]
    cloud = foxglove.BaseRendererPointCloudTopicSettings()._to_dict()
    for name, panel in panels.items():
        kind = name.partition("!")[0]
        if kind == "DiagnosticSummary":
            assert set(panel) <= set(foxglove.DiagnosticsSummaryConfig()._to_dict())
            continue
        known = {"3D": foxglove.ThreeDeeConfig, "Image": foxglove.ImageConfig}[kind]()._to_dict()
        assert set(panel) <= {*known, "imageMode"}
        assert set(panel.get("cameraState", {})) <= set(foxglove.ThreeDeeCameraState()._to_dict())
        assert set(panel["imageMode"]) <= set(foxglove.ImageModeConfig()._to_dict())
        for settings_of_topic in panel["topics"].values():
            assert set(settings_of_topic) <= {*cloud, "visible"}
            mode = settings_of_topic["colorMode"]
            annotation = foxglove.BaseRendererBasePointSettings.__annotations__["color_mode"]
            assert repr(mode).strip("'") in annotation


def test_the_command_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = {kind: tmp_path / f"out.{kind}" for kind in ("json", "rviz")}
    rules = [word for name, to in REMAPS for word in ("-r", f"{name}:={to}")]
    command = ["layout", "--namespace", "/front", *rules, "--frame", "odom"]
    assert main([*command, "--foxglove", str(out["json"]), "--rviz", str(out["rviz"])]) == 0
    topics = NodeTopics("/front", REMAPS)
    assert json.loads(out["json"].read_text()) == layouts.foxglove(topics, "odom")
    assert yaml.safe_load(out["rviz"].read_text()) == layouts.rviz(topics, "odom")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--foxglove FILE.json or --rviz"),
        (["-r", "points=/x", "--rviz", "x.rviz"], "write it as FROM:=TO"),
        (["-r", "points:=/a b", "--rviz", "x.rviz"], "no name of ROS 2"),
        (["--namespace", "1a", "--rviz", "x.rviz"], "no name of ROS 2"),
        (["--rviz", "/no/such/folder/x.rviz"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layout", *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)
