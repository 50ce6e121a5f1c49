# SPDX-License-Identifier: Apache-2.0
"""Held-out LiDAR points: lines stay complete; used and hidden points are never scored."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import transform
from depth_node.geometry.scan_lines import elevation_deg, rows_by_angle
from depth_node.geometry.sparse_depth import ProjectionConfig, project_points
from depth_node.recordings.held_out import Sampling, hold_out_points
from tests.helpers.recordings import T_CAMERA_LIDAR

CAMERA = Camera(width=320, height=240, fx=300.0, fy=300.0, cx=159.5, cy=119.5)
BEAMS_DEG = np.linspace(-16, 12, 15)


def sweep(beams_deg: np.ndarray = BEAMS_DEG) -> np.ndarray:
    """Return points (N, 3) of a spinning LiDAR in a room of 8 x 8 m, in random order."""
    azimuth, elevation = np.meshgrid(np.deg2rad(np.arange(0, 360, 0.4)), np.deg2rad(beams_deg))
    ahead = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth),
         np.sin(elevation)], axis=-1,
    ).reshape(-1, 3)  # fmt: skip
    walls = 4.0 / np.abs(ahead[:, :2]).max(axis=1)
    noise = np.random.default_rng(1).normal(0, 0.005, len(walls))
    points = ahead * (walls + noise)[:, None]
    return np.random.default_rng(2).permutation(points).astype(np.float32)


def frame(points: np.ndarray, T: np.ndarray = T_CAMERA_LIDAR) -> FrameInput:
    image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    return FrameInput(image, CAMERA, points, T, age_s=np.full(len(points), 0.01, np.float32))


def beams_of(points: np.ndarray) -> set[int]:
    """Return the indices of the beams that these points lie on."""
    angles = elevation_deg(points)
    return set(np.abs(angles[:, None] - BEAMS_DEG).argmin(axis=1).tolist())


def test_rows_are_the_beams() -> None:
    points = sweep()
    rows = rows_by_angle(elevation_deg(points), 0.5)
    assert len(np.unique(rows)) == len(BEAMS_DEG)
    for row in np.unique(rows):
        assert len(beams_of(points[rows == row])) == 1


def test_points_at_infinity_are_on_no_line() -> None:
    """Some drivers write them where no echo came back."""
    points = sweep()
    points[::7] = np.inf
    rng = np.random.default_rng(0)
    with np.errstate(all="raise"):
        used, *_ = hold_out_points(frame(points), Sampling(lines=3), ProjectionConfig(), rng)
    assert used.points is not None and len(used.points) and np.isfinite(used.points).all()


def test_one_line_of_three_is_measured_and_no_line_is_both() -> None:
    points = sweep()
    rng = np.random.default_rng(0)
    used, truth, scored = hold_out_points(frame(points), Sampling(lines=3), ProjectionConfig(), rng)
    assert used.points is not None and truth is not None and scored is not None
    assert len(used.age_s) == len(used.points)
    beams = beams_of(used.points)
    assert len(beams) == len(BEAMS_DEG) / 3
    assert max(np.diff(sorted(beams))) == 3, "evenly spread"
    left = project_points(points, T_CAMERA_LIDAR, CAMERA)
    rows, cols = np.nonzero(scored)
    assert len(rows) > 0.5 * len(left)
    rays = CAMERA.rays()[rows, cols] * truth[rows, cols, None]
    back = transform(np.linalg.inv(T_CAMERA_LIDAR), rays)
    assert not beams_of(back) & beams


def test_points_are_counted_in_the_image() -> None:
    used, truth, scored = hold_out_points(
        frame(sweep()), Sampling(points=50), ProjectionConfig(), np.random.default_rng(0)
    )
    assert used.sparse is not None and len(used.sparse) == 50 and used.points is None
    assert used.sparse.age_s == pytest.approx(0.01)
    assert truth is not None and scored is not None
    everything = project_points(sweep(), T_CAMERA_LIDAR, CAMERA)
    assert scored.sum() == len(everything) - 50
    assert not scored[used.sparse.rows, used.sparse.cols].any()


def test_more_points_than_there_are_leave_none_measured() -> None:
    used, _, _ = hold_out_points(
        frame(sweep()), Sampling(points=10**6), ProjectionConfig(), np.random.default_rng(0)
    )
    assert used.sparse is not None and len(used.sparse) == 0


@pytest.mark.parametrize("sampling", [Sampling(hold_out=0.5), Sampling(lines=2)])
def test_what_a_used_point_hides_is_no_truth(sampling: Sampling) -> None:
    """A plate halfway between camera and wall: points behind it are not scored."""
    x, y = np.meshgrid(np.linspace(-1, 1, 81), np.linspace(-0.8, 0.8, 81))
    wall = np.stack([np.full(x.size, 4.0), x.ravel(), y.ravel()], axis=1)
    plate = np.stack([np.full(x.size, 2.0), 0.3 * x.ravel(), 0.3 * y.ravel()], axis=1)
    points = np.concatenate([wall, plate]).astype(np.float32)
    rng = np.random.default_rng(0)
    _, truth, scored = hold_out_points(frame(points), sampling, ProjectionConfig(), rng)
    assert truth is not None and scored is not None
    centre = np.zeros_like(scored)
    centre[92:122, 140:180] = True  # well within the plate
    assert (truth[scored & centre] < 3).all()
    assert (scored & centre).any() and (truth[scored & ~centre] > 3).any()


def test_nothing_is_scored_without_hold_out() -> None:
    observed, truth, scored = hold_out_points(
        frame(sweep()), Sampling(hold_out=0.0), ProjectionConfig(), np.random.default_rng(0)
    )
    assert truth is None and scored is None
    assert observed.points is not None and len(observed.points) == len(sweep())
