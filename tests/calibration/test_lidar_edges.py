# SPDX-License-Identifier: Apache-2.0
"""Depth discontinuities: found in any order of the points; a floor has none."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from depth_node.calibration.lidar_edges import depth_edges
from depth_node.simulation.renderer import LidarPattern


def scan(ranges_of: object, lines: int = 16) -> np.ndarray:
    """Return points (N, 3) of a scan pattern; a function of the directions gives the ranges."""
    rays = LidarPattern(lines, 300, horizontal_fov_deg=(-60, 60)).directions().astype(np.float64)
    reach = ranges_of(rays)  # type: ignore[operator]
    keep = np.isfinite(reach)
    return rays[keep] * reach[keep, None]


def box_before_wall(rays: np.ndarray) -> np.ndarray:
    """A wall at x = 6 m, a board at x = 3 m from y = -.5 to .5 m, as high as all lines."""
    reach = 6 / rays[:, 0]
    y = 3 * rays[:, 1] / rays[:, 0]
    return np.where(np.abs(y) < 0.5, 3 / rays[:, 0], reach)


def floor(rays: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        reach = np.where(rays[:, 2] < 0, -1.3 / rays[:, 2], np.nan)
    return np.where(reach < 40, reach, np.nan)


def test_the_sides_of_a_board_are_found_where_they_are() -> None:
    edges = depth_edges(scan(box_before_wall))
    assert len(edges) == 32  # both sides on each line
    y = 3 * edges.points[:, 1] / edges.points[:, 0]
    np.testing.assert_allclose(np.abs(y), 0.5, atol=0.02)
    assert abs(float(y.mean())) < 0.01
    np.testing.assert_allclose(edges.points[:, 0], 3, atol=0.05)


def test_the_order_of_the_points_does_not_matter() -> None:
    points = scan(box_before_wall, 64)
    mixed = points[np.random.default_rng(0).permutation(len(points))]

    def in_order(p: np.ndarray) -> np.ndarray:
        return p[np.lexsort(np.round(p, 6).T)]

    np.testing.assert_allclose(
        in_order(depth_edges(points).points), in_order(depth_edges(mixed).points)
    )


def test_floors_and_walls_have_no_edges() -> None:
    for lines in (16, 64):
        assert len(depth_edges(scan(floor, lines))) == 0
        assert len(depth_edges(scan(lambda rays: 4 / rays[:, 0], lines))) == 0


def test_points_in_the_cameras_frame_give_the_same_edges() -> None:
    to_camera = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    points = scan(box_before_wall)
    expected = depth_edges(points, to_camera).points @ to_camera.T
    found = depth_edges(points @ to_camera.T, np.eye(3)).points
    assert len(found) == len(expected)
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), atol=1e-6)


def test_bad_points_are_left_out_and_an_empty_scan_has_no_edges() -> None:
    points = scan(box_before_wall)
    bad = np.array([[np.nan, 0, 1], [np.inf, 1, 1], [0, 0, 0]])
    assert len(depth_edges(np.concatenate([bad, points]))) == 32
    assert len(depth_edges(np.empty((0, 3), np.float32))) == 0
    turned = points @ Rotation.from_euler("z", 90, degrees=True).as_matrix().T
    assert len(depth_edges(turned)) == 32
