# SPDX-License-Identifier: Apache-2.0
"""~/obstacles and its scan of the live node, with and without a known ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from sensor_msgs.msg import LaserScan, PointCloud2

from depth_node.obstacles import ObstacleConfig, camera_above_ground
from depth_node.ros import messages
from depth_node.ros.node import DepthNode
from depth_node.ros.outputs.results import OUTPUTS
from depth_node.ros.transforms.tf import NoTransformError, Transform, TransformSource
from tests.helpers.rig import PATIENCE_S, Rig, settings, until


class Robot:
    """TF of a robot whose camera looks ahead, a metre above its base frame."""

    def __init__(self) -> None:
        self.asked = 0

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[Transform, int]:
        self.asked += 1
        if (target, source) != ("base_footprint", "camera_optical_frame"):
            raise NoTransformError(f"frame {target} does not exist")
        return camera_above_ground(1.0, 0.0), 0

    def forget_moving(self) -> None:
        pass

    def close(self) -> None:
        pass


ROBOT = Robot()


class RobotNode(DepthNode):
    def make_transform_source(self) -> TransformSource:
        return ROBOT


def test_obstacles_by_the_cameras_height(network: Path) -> None:
    """The image shows a wall that comes nearer from left to right, all of it above the ground."""
    with Rig(*settings(network, "obstacles.camera_height_m:=1.0")).start() as rig:
        heard = rig.listen(PointCloud2, "obstacles")
        rig.show(10.5)
        until(lambda: bool(heard), PATIENCE_S, "obstacles")
        assert heard[0].header.frame_id == "camera_optical_frame"
        assert messages.stamp_ns(heard[0].header.stamp) == 10_500_000_000
        rows = messages.table_rows(heard[0])
        assert rows.dtype.names == ("x", "y", "z", "height")
        assert len(rows) > 500 and rows["z"].min() > 0.4 and rows["z"].max() < 2.6
        np.testing.assert_allclose(rows["height"], 1.0 - rows["y"], atol=1e-4)


def test_a_scan_about_the_base_frame(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depth_node.ros.transforms.lookup.LOOK_AGAIN_S", 1e9)
    settled = settings(network, "obstacles.base_frame:=base_footprint")
    with Rig(*settled, node_class=RobotNode).start() as rig:
        heard = rig.listen(LaserScan, "obstacles/scan")
        rig.show(10.5)
        until(lambda: bool(heard), PATIENCE_S, "a scan of obstacles")
        scan = heard[0]
        assert scan.header.frame_id == "base_footprint"
        ranges = np.array(scan.ranges)
        angle = scan.angle_min + scan.angle_increment * np.arange(len(ranges))
        ahead = np.abs(angle) < np.deg2rad(1.5)  # the image's pixels are wider than a beam
        assert np.nanmin(ranges[ahead]) == pytest.approx(100 / 130, rel=0.1)
        seen = np.isfinite(ranges)
        assert 40 < seen.sum() < 140 and np.abs(angle[seen]).max() < np.deg2rad(35)
        asked = ROBOT.asked
        rig.show(10.6)
        until(lambda: len(heard) > 1, PATIENCE_S, "another scan")
        assert ROBOT.asked == asked, "a static transform is kept"


def test_without_a_ground_a_sentence_says_what_to_set(network: Path) -> None:
    with Rig(*settings(network)).start() as rig:
        heard = rig.listen(PointCloud2, "obstacles")
        rig.show(10.5)
        rig.said("set obstacles.base_frame, or obstacles.camera_height_m")
        assert not heard


def test_a_base_frame_that_tf_does_not_know_is_named(network: Path) -> None:
    settled = settings(network, "obstacles.base_frame:=base_fotprint")
    with Rig(*settled, node_class=RobotNode).start() as rig:
        heard = rig.listen(PointCloud2, "obstacles")
        rig.show(10.5)
        rig.said("from camera_optical_frame to base_fotprint (frame base_fotprint does not exist)")
        assert not heard


@pytest.mark.parametrize("name", ["nav2_voxel", "nav2_stvl"])
def test_costmap_settings_suit_what_the_node_publishes(repo: Path, name: str) -> None:
    """Topics that exist, heights and ranges of the node's own defaults."""
    content = yaml.safe_load((repo / "config" / f"{name}.yaml").read_text())
    settings = content["local_costmap"]["local_costmap"]["ros__parameters"]
    layer = settings[settings["plugins"][0]]
    sources = [layer[source] for source in layer["observation_sources"].split()]
    types = {topic.replace("~", "/depth_node"): kind.__name__ for topic, kind in OUTPUTS.items()}
    assert all(types[source["topic"]] == source["data_type"] for source in sources)
    (mark,) = [source for source in sources if source["marking"]]
    assert mark["topic"] == "/depth_node/obstacles" and not mark["clearing"]
    defaults = ObstacleConfig()
    assert mark["max_obstacle_height"] == defaults.max_height_m
    assert mark.get("obstacle_max_range", mark.get("obstacle_range")) == defaults.max_range_m
    assert mark["min_obstacle_height"] <= defaults.min_height_m
