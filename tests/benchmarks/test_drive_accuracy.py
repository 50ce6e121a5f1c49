# SPDX-License-Identifier: Apache-2.0
"""Accuracy on a robot's own recording: known errors are found; what scores cannot show is said."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from depth_node.benchmarks.calibration_sequences import room_sequence
from depth_node.benchmarks.drive_accuracy import Errors, drive_accuracy, tables
from depth_node.calibration.estimate import UNIT, correction_matrix
from depth_node.calibration.monitor import Finding
from depth_node.frame import FrameInput
from depth_node.prediction import Prediction
from depth_node.recordings.files import FrameError
from depth_node.recordings.held_out import Sampling
from depth_node.simulation.walk import T_CAMERA_LIDAR as T_WALK
from tests.helpers.recordings import CAMERA, T_CAMERA_LIDAR, lidar_of, relative_of, scene


class Network:
    """A network's prediction for the scene of tests/helpers/recordings.py."""

    def predict(self, image: np.ndarray) -> Prediction:
        return Prediction(relative_of(scene()[1]), "disparity_affine_invariant")


class Flat:
    """A network whose metric disparity depends on the brightness alone."""

    def predict(self, image: np.ndarray) -> Prediction:
        return Prediction(1 + image.mean(axis=2).astype(np.float32) / 255, "disparity_metric")


def drive(count: int = 3, every: int = 2) -> list[FrameInput]:
    image, depth = scene()
    points = lidar_of(depth, every)
    return [FrameInput(image, CAMERA, points, T_CAMERA_LIDAR) for _ in range(count)]


def test_errors_are_pooled() -> None:
    errors, nan = Errors(), np.nan
    errors.add(np.array([1.1, 2.0, nan]), np.array([0.1, 0.0, nan]), np.array([1.0, 2.0, 3.0]))
    errors.add(np.array([5.0]), np.array([0.1]), np.array([4.0]))
    scores = errors.as_dict()
    assert scores["pixels"] == 4 and scores["answered"] == pytest.approx(0.75)
    assert scores["abs_rel"] == pytest.approx((0.1 + 0 + 0.25) / 3)
    assert scores["rmse"] == pytest.approx(((0.01 + 0 + 1) / 3) ** 0.5)
    assert scores["coverage95"] == pytest.approx(2 / 3)
    assert set(Errors().as_dict().values()) == {0, None}


def test_methods_side_by_side_and_by_range() -> None:
    samplings = [Sampling(lines=3), Sampling(points=100)]
    report = drive_accuracy(drive(), Network(), samplings=samplings)
    assert report.frames == 3 and report.skipped == 0
    conditions = {condition for condition, _, _ in report.errors}
    assert conditions == {"1 of 3 lines", "100 points"}
    for condition in conditions:
        scores = {
            method: report.errors[condition, method, ""].as_dict()
            for method in ("constant", "idw", "global_disparity", "ssf_robust", "field")
        }
        assert scores["field"]["abs_rel"] < 0.5 * scores["global_disparity"]["abs_rel"]
        assert scores["field"]["abs_rel"] < 0.02 < scores["constant"]["abs_rel"]
        assert scores["field"]["coverage95"] > 0.9
        assert scores["idw"]["coverage95"] is None, "it states no interval"
    # The box lies at 2 to 5 m with most of the wall, which reaches to 5 m.
    both = report.errors["100 points", "field", "2 to 5 m"]
    assert both.pixels == report.errors["100 points", "field", ""].pixels
    titles = [table.title for table in tables(report)]
    assert titles[-1] == "field by range" and len(titles) == 3


def test_a_table_counts_the_frames_of_its_own_condition() -> None:
    """The last frame has fewer than 200 points: it is scored on lines alone."""
    samplings = [Sampling(lines=3), Sampling(points=200)]
    report = drive_accuracy(
        [*drive(2), *drive(1, every=6)], Network(), samplings=samplings, methods=("constant", "idw")
    )
    titles = [table.title for table in tables(report)]
    assert report.frames == 3
    assert titles[0].startswith("1 of 3 lines measured: 3 frames, ")
    assert titles[1].startswith("200 points measured: 2 frames, ")


def test_one_frame_of_some_is_scored_and_all_are_watched() -> None:
    seen = []
    report = drive_accuracy(
        drive(10), Network(), samplings=[Sampling(points=100)], methods=("field",), stride=4,
        on_frame=lambda: seen.append(1),
    )  # fmt: skip
    assert report.frames == 3 and len(seen) == 10


def test_a_drive_without_points_is_refused() -> None:
    empty = FrameInput(scene()[0], CAMERA, np.empty((0, 3)), np.eye(4))
    with pytest.raises(FrameError, match="hold others out"):
        drive_accuracy([empty], Network(), samplings=[Sampling(lines=3)])


@pytest.mark.slow
def test_a_wrong_extrinsic_is_told_beside_the_scores() -> None:
    """With 1 degree of yaw the scores hardly change, but the monitor's sentence does."""
    walk = room_sequence(101, 100, Path(tempfile.gettempdir()) / "depth_node_walks")
    fault = np.zeros(7)
    fault[1] = 2 * UNIT[1]
    reports = {}
    for name, T in (("right", T_WALK), ("wrong", correction_matrix(fault) @ T_WALK)):
        reports[name] = drive_accuracy(
            walk.frames(64, T_camera_lidar=T), Flat(), samplings=[Sampling(lines=3)],
            methods=("field",), stride=10,
        )  # fmt: skip
    right, wrong = (
        reports[name].errors["1 of 3 lines", "field", ""].as_dict()["abs_rel"]
        for name in ("right", "wrong")
    )
    assert wrong < 1.4 * right, "the score does not tell"
    assert reports["right"].verdict.finding is Finding.CONSISTENT
    assert reports["wrong"].verdict.finding in (Finding.WRONG, Finding.DOUBTFUL)
    assert "calibrate" in reports["wrong"].warning
    assert "cannot show it" in reports["right"].warning
