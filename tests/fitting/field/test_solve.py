# SPDX-License-Identifier: Apache-2.0
"""The residual field: known truth recovered, symmetries kept, evidence honest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from depth_node.fitting import FitConfig, FitStatus
from depth_node.fitting.field.settings import FieldAblation
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction
from depth_node.recordings.frames import find_frames, read_frame, split_lines, split_uniform
from depth_node.regions.segmentation import segment
from tests.helpers.field_room import FIELD, WIDTH, Room, error, measure, network, solved, with_depth
from tests.helpers.fits import fit


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("depth_affine_invariant", lambda z: 0.3 * z + 0.7),
        ("disparity_affine_invariant", lambda z: 5.0 / z + 2.0),
        ("log_depth_affine_invariant", lambda z: 1.5 * np.log(z) - 0.4),
        ("depth_metric", lambda z: z),
        ("disparity_metric", lambda z: 1 / z),
    ],
)
def test_perfect_network_gives_the_truth(room: Room, kind: str, values: Any) -> None:
    prediction = Prediction(values(room.depth.astype(np.float64)).astype(np.float32), kind)
    result = solved(room, measure(room, 60), prediction=prediction)
    assert result.status is FitStatus.OK
    np.testing.assert_allclose(result.depth, room.depth, rtol=2e-3)
    assert result.point_inlier.all()
    assert result.details["base"] == kind.split("_")[0]


def test_smooth_errors_of_the_network_vanish(room: Room) -> None:
    points = measure(room, 300)
    alone = solved(room, points, ablation=FieldAblation(residual=False))
    full = solved(room, points)
    assert error(full, room.depth) < 0.25 * error(alone, room.depth)


@pytest.mark.parametrize("count", [7, 250, 2500])
def test_scaling_the_points_scales_the_answer(room: Room, count: int) -> None:
    points = measure(room, count)
    one = solved(room, points)
    three = solved(room, with_depth(points, points.depth * 3))
    np.testing.assert_allclose(three.depth, 3 * one.depth, rtol=2e-4)
    np.testing.assert_allclose(three.std, 3 * one.std, rtol=2e-3)


def test_mirrored_picture_has_the_mirrored_answer(room: Room) -> None:
    points = measure(room, 250)
    prediction = network(room)
    one = fit(prediction, points, None, image=room.image, config=FIELD)
    mirrored = SparseDepth.from_arrays(points.rows, WIDTH - 1 - points.cols, points.depth)
    other = fit(
        Prediction(np.ascontiguousarray(prediction.values[:, ::-1]), prediction.kind),
        mirrored,
        None,
        image=np.ascontiguousarray(room.image[:, ::-1]),
        config=FIELD,
    )
    np.testing.assert_allclose(other.depth[:, ::-1], one.depth, rtol=1e-3)
    np.testing.assert_allclose(other.std[:, ::-1], one.std, rtol=1e-2)


def test_few_points_degrade_step_by_step(room: Room) -> None:
    status = {n: solved(room, measure(room, n)).status for n in (0, 1, 3, 4, 10)}
    assert status == {
        0: FitStatus.NO_POINTS,
        1: FitStatus.MEDIAN_SCALE,
        3: FitStatus.MEDIAN_SCALE,
        4: FitStatus.OK,
        10: FitStatus.OK,
    }


@pytest.mark.parametrize("count", [4, 5, 6, 8, 10])
def test_few_points_are_not_worse_than_the_global_fit(room: Room, count: int) -> None:
    own, plain = [], []
    for seed in range(8):
        points = measure(room, count, seed)
        prediction = network(room, seed)
        own.append(error(solved(room, points, prediction=prediction), room.depth))
        config = FitConfig(method="global_disparity")
        plain.append(error(solved(room, points, config, prediction=prediction), room.depth))
    assert np.mean(own) <= 1.03 * np.mean(plain)


def test_silent_network_stays_unknown(room: Room) -> None:
    prediction = network(room)
    values = prediction.values.copy()
    values[:40] = np.nan
    points = measure(room, 200)
    result = solved(room, points, prediction=Prediction(values, prediction.kind))
    assert np.isnan(result.depth[:40]).all()
    assert np.isnan(result.std[:40]).all()
    assert np.isfinite(result.depth[40:]).all()
    assert not result.point_inlier[points.rows < 40].any()


def test_one_pixel_wide_and_tiny_pictures() -> None:
    for shape in ((1, 40), (40, 1), (3, 3)):
        rows, cols = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
        values = np.linspace(1, 2, shape[0] * shape[1], dtype=np.float32).reshape(shape)
        points = SparseDepth.from_arrays(rows, cols, 2 * values.ravel() + 1)
        image = np.zeros((*shape, 3), np.uint8)
        prediction = Prediction(values, "depth_affine_invariant")
        result = fit(prediction, points, image=image, config=FIELD)
        np.testing.assert_allclose(result.depth, 2 * values + 1, rtol=5e-2)


@pytest.mark.parametrize("count", [50, 250, 1000])
def test_real_frame_beats_the_papers_method(shared: Path, count: int) -> None:
    """A network's place is taken by the frame's blurred, bent truth: no weights are needed."""
    frame = read_frame(find_frames(shared / "data" / "tum_rgbd")[0])
    known = np.where(np.isfinite(frame.truth), frame.truth, np.nanmedian(frame.truth))
    blurred = cv2.GaussianBlur(known, (0, 0), 6).astype(np.float64)
    bent = blurred * np.linspace(0.9, 1.2, known.shape[1])
    prediction = Prediction((1 / bent + 0.2).astype(np.float32), "disparity_affine_invariant")
    labels = segment(frame.image, prediction.values)
    split = split_uniform(frame, count, 0)
    scores = {}
    for method, mode in (("field", "sensor"), ("ssf", "paper")):
        config = FitConfig(method=method, mode=mode)
        result = fit(prediction, split.points, labels, image=frame.image, config=config)
        wrong = np.abs(result.depth - frame.truth)[split.scored]
        scores[method] = float(np.mean(wrong / frame.truth[split.scored]))
    assert scores["field"] < {50: 1.05, 250: 0.95, 1000: 0.8}[count] * scores["ssf"]


def test_real_lidar_lines(shared: Path) -> None:
    frame = read_frame(find_frames(shared / "data" / "opencalib_road")[0])
    flat = Prediction(np.ones(frame.truth.shape, np.float32), "depth_affine_invariant")
    split = split_lines(frame, 4, 0)
    result = fit(flat, split.points, None, image=frame.image, config=FIELD)
    truth = frame.truth[split.scored]
    assert np.mean(np.abs(result.depth[split.scored] - truth) / truth) < 0.15
    within = np.abs(result.depth[split.scored] - truth) <= NORMAL_95 * result.std[split.scored]
    assert 0.88 <= within.mean() <= 0.99
