# SPDX-License-Identifier: Apache-2.0
"""The camera: pixels to rays and back, against OpenCV."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import (
    project_points,
)
from tests.helpers.cameras import (
    CAMERAS,
    PINHOLE,
    PLUMB_BOB,
    distorted,
    points_in_view,
    undistorted,
)


@pytest.mark.parametrize("name", CAMERAS)
def test_project_agrees_with_opencv(name: str) -> None:
    camera = CAMERAS[name]
    points = points_in_view(500)
    no_turn = np.zeros(3)
    if camera.model == "equidistant":
        expected, _ = cv2.fisheye.projectPoints(
            points[None], no_turn, no_turn, camera.matrix, np.array(camera.distortion)
        )
    else:
        expected, _ = cv2.projectPoints(
            points, no_turn, no_turn, camera.matrix, np.array(camera.distortion)
        )
    np.testing.assert_allclose(camera.project(points), expected.reshape(-1, 2), atol=1e-8)


@pytest.mark.parametrize("name", CAMERAS)
def test_rays_are_the_inverse_of_project(name: str) -> None:
    camera = CAMERAS[name]
    rays = camera.rays()
    assert rays.shape == (480, 640, 3)
    assert rays.dtype == np.float32
    known = np.isfinite(rays[..., 0])
    assert known.mean() > 0.95
    rows, cols = np.nonzero(known)
    pixels = camera.project(3.0 * rays[known])
    # Rays are float32: the outermost of a fisheye are long, and rounding moves a pixel by 0.01.
    np.testing.assert_allclose(pixels, np.column_stack((cols, rows)), atol=2e-2)
    near_axis = np.hypot(rays[known][:, 0], rays[known][:, 1]) < 1
    error = np.abs(pixels - np.column_stack((cols, rows)))[near_axis]
    assert error.max() < 1e-3


def test_rays_agree_with_opencv_undistort() -> None:
    camera = CAMERAS["plumb_bob5"]
    pixels = np.random.default_rng(0).integers((0, 0), (640, 480), (200, 2)).astype(np.float64)
    expected = undistorted(camera, pixels, 100)
    found = camera.rays()[pixels[:, 1].astype(int), pixels[:, 0].astype(int), :2]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_distorted_point_beyond_the_monotonic_range_is_not_folded_into_the_picture() -> None:
    camera = distorted((-0.3, 0.0, 0.0, 0.0))  # r (1 - 0.3 r^2) turns back at r = 1.054
    inside, beyond = np.array([[1.0, 0.0, 1.0]]), np.array([[1.75, 0.0, 1.0]])
    folded, _ = cv2.projectPoints(
        beyond, np.zeros(3), np.zeros(3), camera.matrix, np.array(camera.distortion)
    )
    assert 0 <= folded[0, 0, 0] < camera.width  # by the bare formula
    assert np.isfinite(camera.project(inside)).all()
    assert np.isnan(camera.project(beyond)).all()
    sparse = project_points(beyond, np.eye(4), camera)
    assert len(sparse) == 0
    assert sparse.counts.outside == 1


def test_rational_model_ends_before_its_pole() -> None:
    camera = distorted((0.1, 0.0, 0.0, 0.0, 0.0, -0.25, 0.0, 0.0))  # 1 - 0.25 r^2 = 0 at r = 2
    points = np.array([[1.9, 0.0, 1.0], [2.1, 0.0, 1.0], [4.0, 0.0, 1.0]])
    assert np.isfinite(camera.project(points)[:, 0]).tolist() == [True, False, False]


def test_fisheye_beyond_its_turning_point_is_dropped() -> None:
    camera = Camera(640, 480, 190, 190, 320, 240, "equidistant", (-0.25, 0.0, 0.0, 0.0))
    # theta (1 - 0.25 theta^2) turns at theta = 1.1547
    angles = np.array([1.1, 1.2])
    points = np.column_stack((np.tan(angles), np.zeros(2), np.ones(2)))
    assert np.isfinite(camera.project(points)[:, 0]).tolist() == [True, False]


def test_rays_are_nan_where_no_direction_arrives() -> None:
    camera = Camera(640, 480, 190, 190, 320, 240, "equidistant", (-0.25, 0.0, 0.0, 0.0))
    rays = camera.rays()
    assert np.isnan(rays[0, 0]).all()
    assert np.isfinite(rays[240, 320]).all()
    assert np.isnan(camera.backproject(np.ones((480, 640), np.float32))[0, 0]).all()


def test_nothing_behind_the_camera_is_projected() -> None:
    points = points_in_view(100)
    points[:, 2] *= -1
    points[0, 2] = 0.0
    for camera in CAMERAS.values():
        assert np.isnan(camera.project(points)).all()


@pytest.mark.parametrize("name", CAMERAS)
def test_resized_camera_sees_the_same_picture(name: str) -> None:
    camera = CAMERAS[name]
    points = points_in_view(50)
    large = camera.resized(1280, 1440)
    expected = (camera.project(points) + 0.5) * (2.0, 3.0) - 0.5
    np.testing.assert_allclose(large.project(points), expected, atol=1e-9)
    back = large.resized(640, 480)
    np.testing.assert_allclose(back.matrix, camera.matrix, atol=1e-9)


def test_backproject_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="resized"):
        PINHOLE.backproject(np.ones((240, 320), np.float32))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fx": 0.0}, "not calibrated"),
        ({"fy": float("nan")}, "not calibrated"),
        ({"fx": 1e30}, "no lens"),
        ({"fy": 1e-3}, "no lens"),
        ({"cx": float("inf")}, "principal point"),
        ({"cy": -1e7}, "principal point"),
        ({"width": 0}, "whole number"),
        ({"height": 479.5}, "whole number"),
        ({"model": "mei"}, "not known"),
        ({"model": "plumb_bob", "distortion": (0.1, 0.2, 0.3)}, "4 or 5 or 8"),
        ({"model": "equidistant", "distortion": ()}, "takes 4"),
        ({"model": "equidistant", "distortion": (0, 0, 0, float("nan"))}, "not finite"),
    ],
)
def test_unusable_calibration_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(PINHOLE, **change)


def test_from_matrix_reads_ros_models() -> None:
    k = [520.0, 0, 318.2, 0, 510.0, 241.7, 0, 0, 1]
    assert Camera.from_matrix(k, [0.0] * 5, "plumb_bob", 640, 480) == PINHOLE
    assert Camera.from_matrix(np.reshape(k, (3, 3)), (), "", 640, 480) == PINHOLE
    rational = Camera.from_matrix(k, PLUMB_BOB[8], "rational_polynomial", 640, 480)
    assert rational == distorted(PLUMB_BOB[8])
    padded = Camera.from_matrix(k, (*PLUMB_BOB[8], 0, 0, 0, 0), "rational_polynomial", 640, 480)
    assert padded == rational
    fisheye = Camera.from_matrix(k, [0.0] * 4, "fisheye", 640, 480)
    assert fisheye.model == "equidistant"  # no coefficients, but no pinhole


@pytest.mark.parametrize(
    ("k", "d", "model", "sentence"),
    [
        ([1.0] * 8, (), "plumb_bob", "nine"),
        ([5.0, 1.0, 2, 0, 5.0, 2, 0, 0, 1], (), "plumb_bob", "skew"),
        ([5.0, 0, 2, 0, 5.0, 2, 0, 0, 1], (0.1, 0, 0, 0, 0), "", "names no distortion model"),
        ([5.0, 0, 2, 0, 5.0, 2, 0, 0, 1], (0.1,) * 13, "rational_polynomial", "or 12 or 14"),
        ([0.0] * 9, (), "plumb_bob", "not calibrated"),
        ([5.0, 0, 2, 0, 5.0, 2, 0, 0, 1], (0.1,) * 4, "pumb_bob", "not known"),
    ],
)
def test_from_matrix_refuses_in_a_sentence(k: list, d: tuple, model: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Camera.from_matrix(k, d, model, 640, 480)
