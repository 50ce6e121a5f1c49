# SPDX-License-Identifier: Apache-2.0
"""mistaken_pose: the mistake in a pose is named, and a right pose gives no sentence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from depth_node.benchmarks.calibration_sequences import CAMERA, walk_poses
from depth_node.calibration.mistaken_pose import MistakenPose, usual_mistakes
from depth_node.frame import FrameInput, SourcePoints
from depth_node.geometry.rigid import invert_rigid
from depth_node.prediction import Prediction
from depth_node.simulation.renderer import LidarPattern, Scene
from depth_node.simulation.walk import T_CAMERA_LIDAR

ROUND = LidarPattern(16, 450, (-15.0, 15.0), (-180.0, 180.0), 0.01)


@pytest.fixture(scope="module")
def views() -> list[tuple[FrameInput, Prediction]]:
    """Return nine views of a room with a LiDAR of 360 degrees, and exact predictions."""
    scene = Scene.random(3)
    found = []
    for number, pose in enumerate(walk_poses(scene, 3, 180)[::20]):
        view = scene.render(CAMERA, pose)
        points = scene.lidar(pose @ T_CAMERA_LIDAR, ROUND, seed=number)
        stamp_ns = number * 1_000_000_000
        frame = FrameInput(view.image, CAMERA, points, T_CAMERA_LIDAR, stamp_ns=stamp_ns)
        found.append((frame, Prediction(1 / view.depth, "disparity_affine_invariant")))
    return found


def sentence_of(
    views: list[tuple[FrameInput, Prediction]], T: np.ndarray, by_sources: bool = False
) -> str:
    judge = MistakenPose()
    for frame, prediction in views:
        stated = dataclasses.replace(frame, T_camera_lidar=T)
        if by_sources:
            assert frame.points is not None
            few = SourcePoints("bumper", frame.points[:9], np.eye(4), np.eye(4))
            sources = few, SourcePoints("roof", frame.points, T, T)
            stated = dataclasses.replace(frame, T_camera_lidar=np.eye(4), sources=sources)
        judge.look(stated, prediction)
    return judge.sentence


OPTICAL_FROM_BODY = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def with_quaternion(order: list[int]) -> np.ndarray:
    """Return the pose whose quaternion has the components of the right one in this order."""
    T = T_CAMERA_LIDAR.copy()
    numbers = Rotation.from_matrix(T[:3, :3]).as_quat()
    T[:3, :3] = Rotation.from_quat(numbers[order]).as_matrix()
    return T


@pytest.mark.parametrize("by_sources", [False, True])
@pytest.mark.parametrize(
    ("stated", "mistake"),
    [
        (invert_rigid(T_CAMERA_LIDAR), "is inverted"),
        (OPTICAL_FROM_BODY.T @ T_CAMERA_LIDAR, "camera frame with body axes"),
        (T_CAMERA_LIDAR @ OPTICAL_FROM_BODY.T, "LiDAR with optical axes"),
        (with_quaternion([3, 0, 1, 2]), "another order than x, y, z, w"),
        (with_quaternion([1, 2, 3, 0]), "another order than x, y, z, w"),
    ],
    ids=["inverted", "body axes", "optical axes", "w first", "x last"],
)
def test_each_usual_mistake_is_named(
    views: list[tuple[FrameInput, Prediction]],
    stated: np.ndarray,
    mistake: str,
    by_sources: bool,
) -> None:
    right = [T for T in usual_mistakes(stated).values() if np.allclose(T, T_CAMERA_LIDAR)]
    assert right, "the mistake undone is the right pose"
    assert mistake in sentence_of(views, stated, by_sources)


def test_nothing_is_said_of_the_right_pose(views: list[tuple[FrameInput, Prediction]]) -> None:
    assert not sentence_of(views, T_CAMERA_LIDAR)
    assert not sentence_of(views, T_CAMERA_LIDAR, by_sources=True)


def test_a_network_that_sees_nothing_accuses_no_pose(
    views: list[tuple[FrameInput, Prediction]],
) -> None:
    rng = np.random.default_rng(0)
    blind = [(frame, Prediction(rng.random(p.shape, np.float32), p.kind)) for frame, p in views]
    for T in (T_CAMERA_LIDAR, invert_rigid(T_CAMERA_LIDAR)):
        assert not sentence_of(blind, T)


def test_a_new_pose_is_judged_anew(views: list[tuple[FrameInput, Prediction]]) -> None:
    judge = MistakenPose()
    for T in (invert_rigid(T_CAMERA_LIDAR), T_CAMERA_LIDAR):
        for frame, prediction in views:
            judge.look(dataclasses.replace(frame, T_camera_lidar=T), prediction)
        assert bool(judge.sentence) == (T is not T_CAMERA_LIDAR)


def test_a_lidar_that_moves_against_the_camera_is_not_judged(
    views: list[tuple[FrameInput, Prediction]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []
    monkeypatch.setattr(
        "depth_node.calibration.mistaken_pose.usual_mistakes", lambda T: asked.append(T) or {}
    )
    judge = MistakenPose()
    frame, prediction = views[0]
    for number in range(200):
        T = T_CAMERA_LIDAR.copy()
        T[0, 3] = 0.001 * number
        moved = dataclasses.replace(frame, T_camera_lidar=T, stamp_ns=number * 10**9)
        judge.look(moved, prediction)
    assert len(asked) <= 20


def test_images_of_one_moment_and_few_of_them_decide_nothing(
    views: list[tuple[FrameInput, Prediction]],
) -> None:
    wrong = invert_rigid(T_CAMERA_LIDAR)
    assert not sentence_of(views[:7], wrong)
    frame, prediction = views[0]
    same = [(dataclasses.replace(frame, stamp_ns=k * 10_000_000), prediction) for k in range(100)]
    assert not sentence_of(same, wrong)
