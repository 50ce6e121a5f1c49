# SPDX-License-Identifier: Apache-2.0
"""Passes over whole images: as OpenCV averages them, whatever the sizes, and NaN stays unknown."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from depth_node.fitting.field.image_loops import UNCHANGED, MetresLine, reduced, reduced_colour
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
    np.testing.assert_allclose(reduced(values, size, loops.mean_metres, line), expected, rtol=2e-6)


@pytest.mark.parametrize(("image", "size"), SIZES)
def test_colours_are_averaged_and_rounded_as_opencv_does(
    loops: FieldKernels, image: tuple[int, int], size: tuple[int, int]
) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (*image, 3), np.uint8)
    seen = colours[:, :, ::-1]  # as a driver's BGR is looked at
    seen.flags.writeable = False
    expected = cv2.resize(seen.copy(), size, interpolation=cv2.INTER_AREA)
    found = reduced_colour(seen, size, loops.mean_colour)
    assert (found != expected).mean() < 1e-3  # ties that only rounding tells apart
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_one_unknown_value_makes_its_cell_unknown_and_no_other(loops: FieldKernels) -> None:
    values: np.ndarray = np.ones((60, 80), np.float32)
    values[31, 47] = np.nan
    found = reduced(values, (20, 15), loops.mean_metres)
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
    loops.answer(values, line, depth, std)
    np.testing.assert_allclose(depth, factor * line.metres(values), rtol=1e-6)
    np.testing.assert_allclose(std, relative * depth, rtol=1e-6)
