# SPDX-License-Identifier: Apache-2.0
"""The walk through a rendered room: frames whose LiDAR agrees with the depth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Views are folders that name their room, made in this process; the list names them too."""
    views: list[str] = []

    class Here:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, _: object, folder: Path, seed: int, size: object, index: int) -> Future:
            done: Future = Future()
            view = folder / f"view_{index:04d}"
            view.mkdir(parents=True, exist_ok=True)
            (view / "room").write_text(str(seed))
            views.append(f"{seed}/{index}")
            done.set_result(None)
            return done

        def shutdown(self, **_: object) -> None:
            pass

    monkeypatch.setattr(walk, "ProcessPoolExecutor", Here)
    return views


def rooms(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in sorted(folder.glob("*/room"))}


def test_a_folder_keeps_no_view_of_an_earlier_walk(tmp_path: Path, drawn: list[str]) -> None:
    """All views of a folder are played: those of another room must not be among them."""
    (tmp_path / "view_of_mine").mkdir()
    walk.render_walk(tmp_path, 4, 10, (96, 128), silent)
    walk.render_walk(tmp_path, 2, 11, (96, 128), silent)
    assert rooms(tmp_path) == {"view_0000": "11", "view_0001": "11"}
    assert (tmp_path / "view_of_mine").is_dir()
    drawn.clear()
    walk.render_walk(tmp_path, 2, 11, (96, 128), silent)
    assert drawn == []


def test_an_interrupted_walk_is_not_taken_for_the_one_before(
    tmp_path: Path, drawn: list[str]
) -> None:
    @contextmanager
    def interrupted(what: str, total: int) -> Iterator[Callable[[str], None]]:
        def advance(word: str) -> None:
            raise KeyboardInterrupt

        yield advance

    walk.render_walk(tmp_path, 2, 10, (96, 128), silent)
    with pytest.raises(KeyboardInterrupt):
        walk.render_walk(tmp_path, 3, 11, (96, 128), interrupted)
    walk.render_walk(tmp_path, 2, 10, (96, 128), silent)
    assert rooms(tmp_path) == {"view_0000": "10", "view_0001": "10"}


def test_a_folder_that_does_not_exist_is_made(tmp_path: Path, drawn: list[str]) -> None:
    walk.render_walk(tmp_path / "new" / "frames", 1, 10, (96, 128), silent)
    assert rooms(tmp_path / "new" / "frames") == {"view_0000": "10"}


def test_extrinsics_turn_lidar_axes_into_optical_ones() -> None:
    ahead_left_up = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    turned = ahead_left_up @ walk.T_CAMERA_LIDAR[:3, :3].T
    assert turned.tolist() == [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    origin = walk.T_CAMERA_LIDAR[:3, 3]
    assert origin[1] < 0 and origin[2] < 0, "the LiDAR is above and behind the camera"
