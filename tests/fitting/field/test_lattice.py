# SPDX-License-Identifier: Apache-2.0
"""Lattices: cells that divide an image evenly, and maps on them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.fitting.field.lattice import Lattice, resized, rounded, sample


@pytest.mark.parametrize("image", [(48, 64), (37, 101), (1, 40)])
def test_every_pixel_lies_in_the_cell_whose_middle_is_nearest(image: tuple[int, int]) -> None:
    lattice = Lattice.of(image, 7.0)
    rows, cols = (each.ravel() for each in np.mgrid[: image[0], : image[1]])
    cell = lattice.cell(rows, cols)
    assert cell.min() >= 0 and cell.max() < lattice.shape[0] * lattice.shape[1]
    middle_rows, middle_cols = lattice.centres()
    half_height, half_width = (0.5 * n / m for n, m in zip(image, lattice.shape, strict=True))
    assert np.abs(rows - middle_rows[cell]).max() <= half_height + 1e-9
    assert np.abs(cols - middle_cols[cell]).max() <= half_width + 1e-9


def test_middles_of_cells_have_whole_coordinates_and_are_mirrored() -> None:
    lattice = Lattice.of((50, 90), 8.0)
    rows, cols = lattice.centres()
    row, col = lattice.coordinates(rows, cols)
    np.testing.assert_allclose(row, np.round(row), atol=1e-12)
    np.testing.assert_allclose(col, np.round(col), atol=1e-12)
    number = rounded(row) * lattice.shape[1] + rounded(col)
    np.testing.assert_array_equal(number, np.arange(len(row)))
    np.testing.assert_allclose(np.sort(89 - cols), np.sort(cols))
    assert lattice.cell_px == pytest.approx(90 / lattice.shape[1])


def test_linear_map_is_sampled_exactly_and_continued_at_the_border() -> None:
    rows, cols = np.mgrid[:6, :9].astype(np.float32)
    plane: NDArray[np.float32] = 2 * rows - 3 * cols
    at_row, at_col = np.array([0.0, 2.25, 5.0, -0.4]), np.array([0.0, 7.5, 8.0, 3.0])
    expected = 2 * np.clip(at_row, 0, 5) - 3 * at_col
    np.testing.assert_allclose(sample(plane, at_row, at_col), expected, rtol=1e-6)


def test_resized_map_keeps_a_plane_inside() -> None:
    lattice = Lattice.of((40, 60), 4.0)
    rows, cols = (each.reshape(lattice.shape) for each in lattice.centres())
    large = resized((0.5 * rows + 0.25 * cols).astype(np.float32), (60, 40))
    row, col = np.mgrid[:40, :60]
    inner = (slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(large[inner], (0.5 * row + 0.25 * col)[inner], atol=1e-4)
