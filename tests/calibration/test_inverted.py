# SPDX-License-Identifier: Apache-2.0
"""inverted: a pose that was given the wrong way round is told, and no right one is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from depth_node.benchmarks.calibration_sequences import CAMERA, walk_poses
from depth_node.calibration.inverted import InvertedPose
from depth_node.frame import FrameInput, SourcePoints
from depth_node.geometry.rigid import invert_rigid
from depth_node.prediction import Prediction
from depth_node.simulation.renderer import LidarPattern, Scene
from depth_node.simulation.walk import T_CAMERA_LIDAR

ROUND = LidarPattern(16, 450, (-15.0, 15.0), (-180.0, 180.0), 0.01)


@pytest.fixture(scope="module")
def views() -> list[tuple[FrameInput, Prediction]]:
    """Nine views of a room with a LiDAR that looks all around, and a perfect network."""
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
    judge = InvertedPose()
    for frame, prediction in views:
        stated = dataclasses.replace(frame, T_camera_lidar=T)
        if by_sources:
            assert frame.points is not None
            few = SourcePoints("bumper", frame.points[:9], np.eye(4), np.eye(4))
            sources = few, SourcePoints("roof", frame.points, T, T)
            stated = dataclasses.replace(frame, T_camera_lidar=np.eye(4), sources=sources)
        judge.look(stated, prediction)
    return judge.sentence


@pytest.mark.parametrize("by_sources", [False, True])
def test_an_inverted_pose_is_told(
    views: list[tuple[FrameInput, Prediction]], by_sources: bool
) -> None:
    sentence = sentence_of(views, invert_rigid(T_CAMERA_LIDAR), by_sources)
    assert "looks inverted" in sentence and "T_camera_lidar maps LiDAR coordinates" in sentence
    assert not sentence_of(views, T_CAMERA_LIDAR, by_sources)


def test_a_network_that_sees_nothing_accuses_no_pose(
    views: list[tuple[FrameInput, Prediction]],
) -> None:
    rng = np.random.default_rng(0)
    blind = [(frame, Prediction(rng.random(p.shape, np.float32), p.kind)) for frame, p in views]
    for T in (T_CAMERA_LIDAR, invert_rigid(T_CAMERA_LIDAR)):
        assert not sentence_of(blind, T)


def test_a_new_pose_is_judged_anew(views: list[tuple[FrameInput, Prediction]]) -> None:
    judge = InvertedPose()
    for T in (invert_rigid(T_CAMERA_LIDAR), T_CAMERA_LIDAR):
        for frame, prediction in views:
            judge.look(dataclasses.replace(frame, T_camera_lidar=T), prediction)
        assert bool(judge.sentence) == (T is not T_CAMERA_LIDAR)


def test_images_of_one_moment_and_few_of_them_decide_nothing(
    views: list[tuple[FrameInput, Prediction]],
) -> None:
    wrong = invert_rigid(T_CAMERA_LIDAR)
    assert not sentence_of(views[:7], wrong)
    frame, prediction = views[0]
    same = [(dataclasses.replace(frame, stamp_ns=k * 10_000_000), prediction) for k in range(100)]
    assert not sentence_of(same, wrong)
