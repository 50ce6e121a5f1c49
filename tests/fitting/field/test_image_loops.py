# SPDX-License-Identifier: Apache-2.0
"""Passes over whole images: as OpenCV averages them, whatever the sizes, and NaN stays unknown."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from depth_node.fitting.field.image_loops import (
    UNCHANGED,
    MetresLine,
    reduced,
    reduced_colour,
)
from depth_node.fitting.field.kernels import FieldKernels, kernels

SIZES = [
    ((720, 1280), (320, 180)),
    ((375, 1242), (320, 97)),
    ((61, 47), (47, 61)),
    ((61, 47), (13, 7)),
    ((30, 40), (80, 60)),
    ((40, 30), (60, 20)),
]


@pytest.fixture(params=["numba", "numpy"])
def loops(request: pytest.FixtureRequest) -> FieldKernels:
    if request.param == "numba":
        pytest.importorskip("numba")
    return kernels(request.param)


def _line(*, inverse: bool) -> MetresLine:
    return MetresLine(*np.array([0.5, 0.1, 0.4, 1.2], np.float32), inverse=inverse)


@pytest.mark.parametrize(("image", "size"), SIZES)
@pytest.mark.parametrize("line", [UNCHANGED, _line(inverse=False), _line(inverse=True)])
def test_metres_are_averaged_as_opencv_averages_them(
    loops: FieldKernels, image: tuple[int, int], size: tuple[int, int], line: MetresLine
) -> None:
    values = np.random.default_rng(0).uniform(0, 3, image).astype(np.float32)
    values.flags.writeable = False
    expected = cv2.resize(line.metres(values), size, interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(reduced(values, size, loops.mean, line), expected, rtol=2e-6)


@pytest.mark.parametrize(("image", "size"), SIZES)
def test_colours_are_averaged_and_rounded_as_opencv_does(
    loops: FieldKernels, image: tuple[int, int], size: tuple[int, int]
) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (*image, 3), np.uint8)
    seen = colours[:, :, ::-1]  # as a driver's BGR is looked at
    seen.flags.writeable = False
    expected = cv2.resize(seen.copy(), size, interpolation=cv2.INTER_AREA)
    found = reduced_colour(seen, size, loops.mean)
    assert (found != expected).mean() < 1e-3  # ties that only rounding tells apart
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_one_unknown_value_makes_its_cell_unknown_and_no_other(loops: FieldKernels) -> None:
    values: np.ndarray = np.ones((60, 80), np.float32)
    values[31, 47] = np.nan
    found = reduced(values, (20, 15), loops.mean)
    unknown = np.zeros((15, 20), bool)
    unknown[31 // 4, 47 // 4] = True
    np.testing.assert_array_equal(np.isnan(found), unknown)
    assert (found[~unknown] == 1).all()


@pytest.mark.parametrize("inverse", [False, True])
def test_answer_is_factor_times_metres_and_std_times_that(
    loops: FieldKernels, inverse: bool
) -> None:
    rng = np.random.default_rng(2)
    values, factor, relative = rng.uniform(0, 3, (3, 70, 50)).astype(np.float32)
    line = _line(inverse=inverse)
    depth, std = factor.copy(), relative.copy()
    loops.answer(values, line, np.float32(0.5), np.float32(1.5), depth, std)
    expected = factor * line.metres(values)
    assert expected.min() < 0.5 and expected.max() > 1.5
    np.testing.assert_allclose(depth, expected.clip(0.5, 1.5), rtol=1e-6)
    np.testing.assert_allclose(std, relative * expected, rtol=1e-6)


@pytest.mark.parametrize(("shape", "points"), [((40, 61), 9), ((1, 30), 2), ((25, 2), 1)])
def test_distances_are_opencvs(loops: FieldKernels, shape: tuple[int, int], points: int) -> None:
    near: np.ndarray = np.zeros(shape, np.uint8)
    near.flat[np.random.default_rng(3).permutation(near.size)[:points]] = 1
    found = np.empty(shape, np.float32)
    loops.distances(near, found)
    expected = cv2.distanceTransform(1 - near, cv2.DIST_L2, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_extremes_are_those_of_the_cells_about_a_place(loops: FieldKernels) -> None:
    plane = np.random.default_rng(4).normal(size=(20, 30)).astype(np.float32)
    rows, cols = np.array([0, 9, 19]), np.array([29, 11, 0])
    low, high = np.empty((2, 3), np.float32)
    loops.extremes(plane, rows, cols, 2, low, high)
    about = [plane[:3, 27:], plane[7:12, 9:14], plane[17:, :3]]
    np.testing.assert_array_equal(low, [each.min() for each in about])
    np.testing.assert_array_equal(high, [each.max() for each in about])


@pytest.mark.parametrize("shape", [(33, 50), (5, 5)])
def test_motion_is_the_same_in_both_forms(shape: tuple[int, int]) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(5)
    light = rng.normal(size=shape).astype(np.float32)
    changed = rng.normal(0, 0.1, shape).astype(np.float32)
    changed[:, 3] = 1
    found = []
    for name in ("numba", "numpy"):
        moved: np.ndarray = np.empty(shape, np.float32)
        kernels(name).motion(changed, light, moved)
        found.append(moved)
    assert found[0].max() > 0.2
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_new_depth_is_drawn_towards_old_no_farther_than_is_allowed(loops: FieldKernels) -> None:
    old, new = np.array([[0.1, 0.5, -0.5, np.nan]], np.float32), np.zeros((1, 4), np.float32)
    largest, weight = np.full((1, 4), 0.3, np.float32), np.full((1, 4), 0.5, np.float32)
    out = np.empty_like(new)
    loops.drawn(old, new, np.float32(0.1), largest, weight, out)
    np.testing.assert_allclose(out, [[0.1, 0.15, -0.15, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 7, 300, 5000])
def test_nearest_points_are_those_that_opencv_finds(count: int) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(count)
    rows, cols = rng.integers(0, 61, count), rng.integers(0, 83, count)
    values = rng.random(count, np.float32)
    found = []
    for name in ("numba", "numpy"):
        nearest, cells = np.empty((2, 61, 83), np.float32)
        kernels(name).nearest_point(rows, cols, values, nearest, cells)
        found.append((nearest, np.minimum(cells, 1000)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("shape", [(48, 64), (45, 61), (33, 48)])
def test_cells_of_two_by_two_are_beside_each_other_and_the_border_goes_on(
    loops: FieldKernels, shape: tuple[int, int]
) -> None:
    plane, less = np.random.default_rng(0).random((2, *shape), np.float32)
    out: np.ndarray = np.empty((4, 24, 32), np.float32)
    loops.differences(plane, less, np.float32(0.4), out)
    rows, cols = np.minimum(np.mgrid[:48, :64], np.array(shape)[:, None, None] - 1)
    expected = np.clip(plane - less, -0.4, 0.4)[rows, cols]
    for k in range(4):
        np.testing.assert_array_equal(out[k], expected[k // 2 :: 2, k % 2 :: 2])


def test_edges_are_steps_within_a_cell_up_to_a_cap(loops: FieldKernels) -> None:
    plane = np.random.default_rng(7).normal(size=(20, 31)).astype(np.float32)
    out = np.empty_like(plane)
    loops.edges(plane, np.float32(12), np.float32(2.5), out)
    padded = np.pad(plane, 1, "edge")
    about = np.stack([padded[i : i + 20, j : j + 31] for i in range(3) for j in range(3)])
    expected = 1 + 12 * np.minimum(about.max(axis=0) - about.min(axis=0), 2.5)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert out.max() == 31
