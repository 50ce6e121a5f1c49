# SPDX-License-Identifier: Apache-2.0
"""The LiDAR of the live node is unplugged and plugged in again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Image

from depth_node.ros import messages
from tests.helpers.rig import CLOSE, IDENTITY, PATIENCE_S, Rig, until

NO_POINTS = np.empty((0, 3), np.float32)


def show(rig: Rig, depths: list[Image], stamp_s: float, lidar: bool) -> np.ndarray:
    count = len(depths)
    truth = rig.show(stamp_s, None if lidar else NO_POINTS)
    until(lambda: len(depths) > count, PATIENCE_S, "depth")
    return truth


def state(arrays: list[DiagnosticArray]) -> tuple[bytes, str, dict[str, str]]:
    """Return level, sentence and values of the next diagnostics."""
    arrays.clear()
    until(lambda: len(arrays) > 1, PATIENCE_S, "diagnostics")
    (status,) = arrays[-1].status
    return status.level, status.message, {item.key: item.value for item in status.values}


def test_depth_goes_on_and_says_so(network: Path) -> None:
    with Rig(f"model.path:={network}", f"T_camera_lidar:={IDENTITY}").start() as rig:
        depths = rig.listen(Image, "depth/image_rect")
        stds = rig.listen(Image, "confidence")
        arrays = rig.listen(DiagnosticArray, "/diagnostics")
        for i in range(3):
            show(rig, depths, 10 + i / 10, lidar=True)
        assert state(arrays)[2]["fit status"] == "OK"
        widths = []
        for stamp_s in (10.6, 11.0, 14.0):
            truth = show(rig, depths, stamp_s, lidar=False)
            np.testing.assert_allclose(messages.image_view(depths[-1]), truth, rtol=CLOSE)
            until(lambda: len(stds) == len(depths), PATIENCE_S, "its interval")
            widths.append(float(np.median(messages.image_view(stds[-1]) / truth)))
        assert widths == sorted(widths) and widths[-1] > 2 * widths[0]
        level, sentence, values = state(arrays)
        assert level == DiagnosticStatus.WARN
        assert "UNANCHORED" in sentence and "3.8 s ago" in sentence
        assert "newest LiDAR scan" in sentence, "and why"
        assert values["fit status"] == "UNANCHORED"
        assert values["fit age of the metres [s]"] == "3.8"
        rig.said("UNANCHORED")
        truth = show(rig, depths, 14.1, lidar=True)  # the first image after the plug is back
        np.testing.assert_allclose(messages.image_view(depths[-1]), truth, rtol=CLOSE)
        values = state(arrays)[2]
        assert values["fit status"] == "OK" and "fit age of the metres [s]" not in values


@pytest.mark.parametrize("more", ["", "fit.unanchored_s:=0.0"])
def test_without_a_scan_ever_or_with_the_parameter_at_0_no_metres(network: Path, more: str) -> None:
    parameters = [f"model.path:={network}", f"T_camera_lidar:={IDENTITY}", *filter(None, [more])]
    with Rig(*parameters).start() as rig:
        depths = rig.listen(Image, "depth/image_rect")
        arrays = rig.listen(DiagnosticArray, "/diagnostics")
        if more:
            show(rig, depths, 10.0, lidar=True)
        show(rig, depths, 11.0, lidar=False)
        assert np.isnan(messages.image_view(depths[-1])).all()
        level, _, values = state(arrays)
        assert level == DiagnosticStatus.WARN and values["fit status"] == "NO_POINTS"
