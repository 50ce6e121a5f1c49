# SPDX-License-Identifier: Apache-2.0
"""Refinement of the blended field: the network's inputs, its output, and when it runs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from depth_node.fitting import FitResult, fit
from depth_node.fitting.field.lattice import Map
from depth_node.fitting.field.refine import (
    CANDIDATES,
    CHANNELS,
    MULTIPLE,
    WHOLE,
    Refiner,
    in_fours,
    in_rows,
)
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from tests.helpers.field_room import FIELD, Room, measure, network, with_depth


def brightness(image: np.ndarray) -> Prediction:
    """A weak network: it mistakes brightness for nearness."""
    disparity = image.mean(axis=2).astype(np.float32) / 255 + 0.2
    return Prediction(disparity, "disparity_affine_invariant")


class Watched:
    """A refiner that keeps what it was asked; `share` of a candidate is what it answers."""

    def __init__(self, candidate: int = 0, share: float = 0.0) -> None:
        self.asked: list[Map] = []
        self.candidate, self.share = candidate, np.float32(share)

    def __call__(self, maps: Map) -> Map:
        self.asked.append(maps.copy())
        return self.share * maps[4 * self.candidate : 4 * self.candidate + 4]


def refined(
    room: Room, points: SparseDepth, refiner: Refiner | None, given: Prediction | None = None
) -> FitResult:
    given = given or brightness(room.image)
    return fit(given, points, image=room.image, config=FIELD, refiner=refiner)


def test_cells_in_fours_and_back() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(in_rows(in_fours(values)), values)
    np.testing.assert_array_equal(in_fours(values)[:, 0, 0], [0, 1, 6, 7])


def test_it_is_asked_where_the_network_is_weak_and_points_are_enough(room: Room) -> None:
    weak, few, good = Watched(), Watched(), Watched()
    refined(room, measure(room, 250), weak)
    refined(room, measure(room, 60), few)
    refined(room, measure(room, 250), good, network(room, amplitude=0.03))
    assert [len(each.asked) for each in (weak, few, good)] == [1, 0, 0]


def test_what_it_sees_has_no_scale(room: Room) -> None:
    """Metres, feet or a wrong unit: the maps are the same, so the change is."""
    points, one, three = measure(room, 400), Watched(), Watched()
    refined(room, points, one)
    refined(room, with_depth(points, 3 * points.depth), three)
    np.testing.assert_allclose(one.asked[0], three.asked[0], atol=2e-4)


def test_candidates_are_differences_to_the_answer(room: Room) -> None:
    """With only the candidate `nearest point`, the result equals the points at their pixels."""
    points = measure(room, 400)
    nearest = CANDIDATES.index("nearest point")
    result = refined(room, points, Watched(nearest, 1.0))
    believed = result.point_inlier
    depth = result.depth[points.rows, points.cols]
    assert believed.mean() > 0.9
    np.testing.assert_allclose(depth[believed], points.depth[believed], rtol=1e-3)
    plain = refined(room, points, Watched())
    np.testing.assert_array_equal(plain.depth, refined(room, points, None).depth)


def test_point_and_distance_are_where_the_points_are(room: Room) -> None:
    points, watched = measure(room, 300), Watched()
    refined(room, points, watched)
    maps = watched.asked[0]
    assert maps.shape == (CHANNELS, room.depth.shape[0] // 2, room.depth.shape[1] // 2)
    start = 4 * WHOLE.index("point")
    marked = in_rows(maps[start : start + 4])
    assert (marked[points.rows, points.cols] > 0.5).mean() > 0.85
    assert np.count_nonzero(marked) <= len(points)
    at_points = in_rows(maps[4 * CANDIDATES.index("near low") :][:4])
    assert (at_points <= 0).all()


@pytest.mark.parametrize("shape", [(97, 320), (150, 211)])
def test_any_size_of_image(room: Room, shape: tuple[int, int]) -> None:
    """The maps are padded to the network's multiple, and the result is cropped to the grid."""
    size = shape[1], shape[0]
    small = Room(
        cv2.resize(room.image, size, interpolation=cv2.INTER_AREA),
        cv2.resize(room.depth, size, interpolation=cv2.INTER_NEAREST),
        np.zeros(shape, np.int32),
    )
    points, watched = measure(small, 250), Watched()
    depth = refined(small, points, watched).depth
    assert depth.shape == shape and np.isfinite(depth).all()
    assert all(size % MULTIPLE == 0 for size in watched.asked[0].shape[1:])
