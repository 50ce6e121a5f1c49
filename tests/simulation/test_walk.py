# SPDX-License-Identifier: Apache-2.0
"""The walk through a rendered room: frames whose LiDAR agrees with the depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from depth_node.geometry.sparse_depth import project_points
from depth_node.recordings.frames import find_frames, read_frame
from depth_node.simulation import walk


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[str], None]]:
    yield lambda word: None


@pytest.mark.slow
def test_rendered_views_are_frames_whose_lidar_agrees_with_the_depth(tmp_path: Path) -> None:
    steps: list[str] = []

    @contextmanager
    def counted(what: str, total: int) -> Iterator[Callable[[str], None]]:
        assert total == 2
        yield steps.append

    walk.render_walk(tmp_path, 2, 10, (96, 128), counted)
    assert len(steps) == 2
    folders = find_frames(tmp_path)
    assert [folder.name for folder in folders] == ["view_0000", "view_0001"]
    for folder in folders:
        frame = read_frame(folder)
        assert frame.image.shape == (96, 128, 3)
        assert frame.points_lidar is not None and frame.T_camera_lidar is not None
        sparse = project_points(frame.points_lidar, frame.T_camera_lidar, frame.camera)
        assert len(sparse) > 300
        # One centimetre of noise, and pixels whose centre sees past an edge that the point hit.
        error = np.abs(sparse.depth - frame.truth[sparse.rows, sparse.cols])
        assert np.median(error) < 0.02
    stamps = [folder.stat().st_mtime_ns for folder in folders]
    walk.render_walk(tmp_path, 2, 10, (96, 128), silent)  # what is there already stays
    assert [folder.stat().st_mtime_ns for folder in folders] == stamps


def test_extrinsics_turn_lidar_axes_into_optical_ones() -> None:
    ahead_left_up = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    turned = ahead_left_up @ walk.T_CAMERA_LIDAR[:3, :3].T
    assert turned.tolist() == [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    origin = walk.T_CAMERA_LIDAR[:3, 3]
    assert origin[1] < 0 and origin[2] < 0, "the LiDAR is above and behind the camera"
