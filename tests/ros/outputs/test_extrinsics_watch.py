# SPDX-License-Identifier: Apache-2.0
"""The live node detects a LiDAR whose pose is not the stated one, without delaying frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not installed")

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image

from depth_node.benchmarks.calibration import faulty_frames
from depth_node.calibration.estimate import pose_covariance
from depth_node.frame import FrameInput
from depth_node.ros import messages
from depth_node.simulation.walk import T_CAMERA_LIDAR
from tests.helpers.rig import PATIENCE_S, Rig, cloud, header, set_parameter, until
from tests.helpers.walks import furnished_room
from tests.helpers.watch import stuck_watch

APART_S = 0.4  # far enough that each frame is looked at


def rig_with(network: Path, T: np.ndarray[Any, Any], share: float) -> Rig:
    numbers = [float(value) for value in T.ravel()]
    return Rig(
        f"model.path:={network}", f"T_camera_lidar:={numbers}", f"extrinsics_cpu_share:={share}"
    ).start()


def play(rig: Rig, frames: list[FrameInput], depth: list[Image], begin_s: float) -> float:
    """Publish frames, each after the depth of the one before; return the next stamp."""
    for frame in frames:
        assert frame.points is not None
        count, scans = len(depth), rig.node._monitor.total("scan")
        rig.publish("camera_info", messages.camera_info_message(frame.camera, header(begin_s)))
        rig.publish("points", cloud(begin_s, np.asarray(frame.points)))
        until(lambda n=scans: rig.node._monitor.total("scan") > n, PATIENCE_S, "the scan")
        until(lambda: rig.node._camera.info is not None, PATIENCE_S, "camera_info")
        image = messages.image_message(frame.image, "rgb8", header(begin_s))
        rig.publish("image", image)
        until(lambda n=count: len(depth) > n, PATIENCE_S, "depth")
        begin_s += APART_S
    return begin_s


def newest(diagnostics: list[DiagnosticArray]) -> tuple[str, dict[str, str]]:
    if not diagnostics:
        return "", {}
    status = diagnostics[-1].status[0]
    return status.message, {item.key: item.value for item in status.values}


def there_and_back(frames: list[FrameInput]) -> list[FrameInput]:
    return [*frames, *frames[-2::-1]]


def test_a_turned_lidar_is_noticed_and_right_extrinsics_start_anew(network: Path) -> None:
    frames = faulty_frames(furnished_room(), 64, "yaw")
    turned = frames[0].T_camera_lidar
    assert turned is not None
    with rig_with(network, turned, 1.0) as rig:
        depth = rig.listen(Image, "depth/image_rect")
        diagnostics = rig.listen(DiagnosticArray, "/diagnostics")
        poses = rig.listen(PoseWithCovarianceStamped, "extrinsics")
        watch = rig.node._watch
        assert watch is not None
        now_s = 10.0
        for number, frame in enumerate(there_and_back(frames) * 2):
            now_s = play(rig, [frame], depth, now_s)
            # The last frame waits for the one after it.
            until(lambda n=number: watch.looks >= n, PATIENCE_S, "look")
        until(lambda: "wrong by about" in newest(diagnostics)[0], PATIENCE_S, "warning")
        message, values = newest(diagnostics)
        assert "deg (yaw)" in message and "depth_tools calibrate" in message
        assert values["extrinsics"].startswith("wrong by about")
        proposed = np.array(eval(values["extrinsics: T_camera_lidar proposed"])).reshape(4, 4)
        until(lambda: poses, PATIENCE_S, "a proposal")
        pose = poses[-1].pose
        q = pose.pose.orientation
        R = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
        left = Rotation.from_matrix(R @ T_CAMERA_LIDAR[:3, :3].T).magnitude()
        assert np.rad2deg(left) < 0.4, "of one degree"
        np.testing.assert_allclose(proposed[:3, :3], R, atol=1e-4)
        covariance = np.reshape(pose.covariance, (6, 6))
        assert (np.linalg.eigvalsh(covariance) > 0).all()
        assert poses[-1].header.frame_id == "camera_optical_frame"

        right = [float(value) for value in T_CAMERA_LIDAR.ravel()]
        assert set_parameter(rig, "T_camera_lidar", right)[0]
        play(rig, frames[:4], depth, now_s)
        until(lambda: "so far" in newest(diagnostics)[1].get("extrinsics", ""), PATIENCE_S, "news")
        assert "wrong" not in newest(diagnostics)[0]


def test_depth_comes_while_the_watch_is_busy(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = stuck_watch(monkeypatch)
    frames = furnished_room().frames(16)
    with rig_with(network, T_CAMERA_LIDAR, 1.0) as rig:
        depth = rig.listen(Image, "depth/image_rect")
        now_s = play(rig, frames[:3], depth, 10.0)
        assert begun.wait(PATIENCE_S)
        play(rig, frames, depth, now_s)
        assert len(depth) == 3 + len(frames)
        watch = rig.node._watch
        assert watch is not None and not watch.verdicts, "it has been stuck all the while"
        released.set()
        assert rig.change("deactivate") and rig.node._watch is None


def test_off_it_says_nothing(network: Path) -> None:
    frames = furnished_room().frames(16)
    with rig_with(network, T_CAMERA_LIDAR, 0.0) as rig:
        depth = rig.listen(Image, "depth/image_rect")
        diagnostics = rig.listen(DiagnosticArray, "/diagnostics")
        play(rig, frames[:4], depth, 10.0)
        count = len(diagnostics)
        until(lambda: len(diagnostics) > count + 1, PATIENCE_S, "diagnostics")
        assert not any(key.startswith("extrinsics") for key in newest(diagnostics)[1])
        assert rig.node._watch is not None and rig.node._watch._thread is None


def test_a_turn_of_a_distant_lidar_moves_it() -> None:
    """Compare the covariance of the pose with randomly drawn poses."""
    T = np.eye(4)
    T[:3, 3] = [0.5, -1.0, 2.0]
    rng = np.random.default_rng(3)
    std = np.array([0.01, 0.02, 0.005, 0.01, 0.03, 0.02, 0.01])
    drawn = rng.standard_normal((20_000, 7)) * std
    turned = Rotation.from_rotvec(drawn[:, :3])
    moved = turned.apply(np.tile(T[:3, 3], (len(drawn), 1))) + drawn[:, 3:6]
    expected = np.cov(np.column_stack([moved, turned.as_rotvec()]).T)
    np.testing.assert_allclose(pose_covariance(T, np.diag(std**2)), expected, atol=2e-5)
