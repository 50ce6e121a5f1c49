# SPDX-License-Identifier: Apache-2.0
"""Constants with a meaning of their own, each where nothing else decides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.fitting import FitConfig, FitStatus
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from tests.helpers.fits import fit

HEIGHT, WIDTH = 48, 64


def depth_network(values: NDArray[np.floating]) -> Prediction:
    return Prediction(values.astype(np.float32), "depth_affine_invariant")


def on_lattice(shape: tuple[int, int], step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of every step-th pixel both ways."""
    rows, cols = np.mgrid[step // 2 : shape[0] : step, step // 2 : shape[1] : step]
    return rows.ravel(), cols.ravel()


# --- intervals of the region methods -------------------------------------------------------------


def strips(count: int, width: int = 6) -> NDArray[np.int32]:
    """Regions 1 to count beside each other."""
    return np.tile(np.repeat(np.arange(1, count + 1), width), (24, 1)).astype(np.int32)


def test_the_interval_grows_by_a_third_with_each_borrowed_ring_up_to_four() -> None:
    """Every region takes the scale of the first one, from ever farther away, and the same spread:
    only the rings differ, and that the others have no point of their own."""
    labels = strips(9)
    rng = np.random.default_rng(0)
    rows, cols = rng.permutation(24)[:20], rng.integers(0, 6, 20)
    points = SparseDepth.from_arrays(rows, cols, 2 + 0.1 * rng.standard_normal(20))
    result = fit(
        depth_network(np.ones(labels.shape)),
        points,
        labels,
        config=FitConfig(method="region_median"),
    )
    assert result.regions["rings"].tolist() == list(range(9))
    relative = (result.std / result.depth)[12, ::6]
    growth = np.array([1 + 0.3 * min(rings, 4) for rings in range(9)])
    growth[1:] *= 1.7
    np.testing.assert_allclose(relative / relative[0], growth, rtol=1e-4)


def test_no_interval_is_narrower_than_a_ten_thousandth() -> None:
    rows, cols = on_lattice((HEIGHT, WIDTH), 8)
    points = SparseDepth.from_arrays(rows, cols, np.full(len(rows), 3.0))
    result = fit(depth_network(np.ones((HEIGHT, WIDTH))), points, config=FitConfig(method="median"))
    expected = 1e-4 * math.sqrt(1 + 1 / len(rows))
    np.testing.assert_allclose(result.std / result.depth, expected, rtol=1e-4)


@pytest.mark.parametrize(("width", "every_pixel"), [(330, True), (340, False)])
def test_the_interval_of_images_above_100_000_pixels_is_worked_out_at_every_second(
    width: int, every_pixel: bool
) -> None:
    values = 1 + np.random.default_rng(0).random((300, width))
    rows, cols = on_lattice(values.shape, 40)
    z = 2 * values[rows, cols] + 0.1 * (np.arange(len(rows)) % 3)
    points = SparseDepth.from_arrays(rows, cols, z)
    result = fit(depth_network(values), points, config=FitConfig(method="global_depth"))
    pairs_differ = (result.std[:, ::2] != result.std[:, 1::2]).mean() > 0.9
    assert pairs_differ == every_pixel


# --- guards of the region methods ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("spread_m", "room_m"),
    [(1.0, 0.5), (0.02, 0.5 * 0.1 * 2.0)],
    ids=["half the range", "half of a tenth of the depth where the range is small"],
)
def test_depth_leaves_the_range_of_its_points_by_a_stated_room(
    spread_m: float, room_m: float
) -> None:
    values = np.ones((HEIGHT, WIDTH))
    values[:, 20:40] = np.linspace(1, 2, 20)
    values[:, 40:50], values[:, 50:] = 100, -100
    rows, cols = on_lattice((HEIGHT, 40), 4)
    z = 2 - spread_m / 2 + spread_m * (values[rows, cols] - 1) / (values[rows, cols].max() - 1)
    z = np.where(np.arange(len(z)) % 2, z, 2.0) if spread_m < 0.1 else z
    points = SparseDepth.from_arrays(rows, cols, z)
    result = fit(
        depth_network(values), points, config=FitConfig(method="global_depth", mode="sensor")
    )
    used = points.depth[result.point_inlier]
    span = float(used.max() - used.min())
    floor = 0.1 * float(np.median(points.depth))
    room = 0.5 * max(span, floor)
    assert room == pytest.approx(room_m, rel=0.05)
    assert result.depth[:, 40:50].max() == pytest.approx(float(used.max()) + room, rel=1e-3)
    assert result.depth[:, 50:].min() == pytest.approx(float(used.min()) - room, rel=1e-3)


@pytest.mark.parametrize("method", ["field", "global_depth", "ssf", "median"])
def test_points_from_5_cm_to_200_m_are_used_by_default(method: str) -> None:
    rows, cols = on_lattice((HEIGHT, WIDTH), 6)
    depth = np.full(len(rows), 2.0)
    depth[:8] = [0.03, 0.045, 0.055, 0.09, 120.0, 190.0, 210.0, 390.0]
    result = fit(
        depth_network(np.ones((HEIGHT, WIDTH))),
        SparseDepth.from_arrays(rows, cols, depth),
        config=FitConfig(method=method),
    )
    used = np.isfinite(result.point_residual[:8])
    assert used.tolist() == [False, False, True, True, True, True, False, False]


@pytest.mark.parametrize(("step", "softened"), [(0.02, True), (0.035, True), (0.08, False)])
def test_seams_lower_than_a_twentieth_are_softened(step: float, softened: bool) -> None:
    """Half the step at most is what a blend moves: a seam of a tenth is an edge."""
    labels = strips(2, 32)
    truth = np.where(labels == 1, 2.0, 2.0 * (1 + 2 * step))
    rows, cols = on_lattice(labels.shape, 3)
    points = SparseDepth.from_arrays(rows, cols, truth[rows, cols])
    config = FitConfig(method="slf", mode="sensor", feather_px=4, range_guard=0)
    result = fit(depth_network(np.ones(labels.shape)), points, labels, config=config)
    at_seam = float(result.depth[12, 32] - result.depth[12, 31])
    assert (at_seam < step * 2.0) == softened


# --- the field -----------------------------------------------------------------------------------


def test_without_anything_to_choose_by_the_usual_detail_is_chosen() -> None:
    """Points farther apart than details reach: every choice predicts the left-out ones alike."""
    height, width = 480, 640
    rows, cols = on_lattice((height, width), 110)
    rng = np.random.default_rng(2)
    values = np.ones((height, width))
    z = 2 * np.exp(0.1 * rng.standard_normal(len(rows)))
    config = FitConfig(method="field")
    result = fit(depth_network(values), SparseDepth.from_arrays(rows, cols, z), None, config=config)
    assert (result.details["detail"], result.details["clip"]) == (0.5, 0.06)


def test_three_points_make_a_scale_and_four_a_field() -> None:
    network = depth_network(np.ones((HEIGHT, WIDTH)))
    rows, cols = on_lattice((HEIGHT, WIDTH), 16)
    for count, status in ((3, FitStatus.MEDIAN_SCALE), (4, FitStatus.OK)):
        points = SparseDepth.from_arrays(rows[:count], cols[:count], np.full(count, 2.0))
        assert fit(network, points, config=FitConfig(method="field")).status is status


def test_where_the_network_is_exact_the_interval_stays_in_proportion_to_where_it_is_not() -> None:
    """A spread of nothing is taken for a thousandth: no number of points proves a map exact."""
    rows, cols = np.mgrid[:120, :160]
    truth = 2 * np.exp(0.1 * np.exp(-((rows - 60) ** 2 + (cols - 130) ** 2) / (2 * 12**2)))
    pixel = np.random.default_rng(0).permutation(truth.size)[:200]
    row, col = np.divmod(pixel, 160)
    points = SparseDepth.from_arrays(row, col, truth[row, col])
    result = fit(depth_network(np.ones(truth.shape)), points, config=FitConfig(method="field"))
    relative = result.std / result.depth
    wrong, exact = np.median(relative[40:80, 115:145]), np.median(relative[:, :60])
    assert wrong / exact == pytest.approx(2.45, rel=0.1)
