# SPDX-License-Identifier: Apache-2.0
"""Surfaces of regions: flat regions, borrowed rings, neighbours looked up only where needed."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node import fitting
from depth_node.benchmarks import speed
from depth_node.fitting import FitConfig, FitStatus, RegionStatus, region_groups
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from tests.helpers.fits import fit
from tests.helpers.region_scenes import CLASSIC, SSF, bumpy, cells, sample, truth_of


def test_nearly_flat_regions_are_solved_as_well_as_by_lstsq() -> None:
    """A relative depth that is a plane but for one part in a thousand: columns nearly dependent."""
    labels = cells(2, 2)
    x, y = speed.unit_grid(*labels.shape)
    relative = (3 + x + 2 * y + 1e-3 * bumpy()).astype(np.float32)
    truth, _ = truth_of(relative, labels)
    points = sample(truth, 200)
    result = fit(
        Prediction(relative, "depth_affine_invariant"),
        points,
        labels,
        config=FitConfig(method="ssf", mode="paper"),
    )
    expected = speed.plain_fit(relative, points.to_map(*labels.shape), labels).depth
    np.testing.assert_allclose(result.depth, expected, rtol=1e-5)


def test_exactly_flat_regions_drop_columns_and_still_fit() -> None:
    labels = cells(2, 2)
    x, y = speed.unit_grid(*labels.shape)
    truth = 4 + 0.5 * x - 0.25 * y
    config = FitConfig(method="ssf", mode="paper")
    plane = Prediction((3 + x + 2 * y).astype(np.float32), "depth_affine_invariant")
    result = fit(plane, sample(truth, 200), labels, config=config)
    assert set(result.regions["status"]) == {RegionStatus.REDUCED}
    np.testing.assert_array_equal(result.regions["slope_y"], 0)
    np.testing.assert_allclose(result.depth, truth, rtol=1e-5)  # x and d still span the plane

    constant = Prediction(np.full(labels.shape, 3.0, np.float32), "depth_affine_invariant")
    points = sample(truth, 200)
    result = fit(constant, points, labels, config=config)
    assert set(result.regions["status"]) == {RegionStatus.REDUCED}
    for label in range(1, 5):
        own = points.depth[labels[points.rows, points.cols] == label]
        np.testing.assert_allclose(result.depth[labels == label], np.median(own), rtol=1e-6)
    for method in CLASSIC:
        for mode in fitting.MODES:
            other = fit(constant, points, labels, config=FitConfig(method=method, mode=mode))
            assert np.isfinite(other.depth).all()
            assert np.abs(np.median(other.depth) - 4) < 0.5


def ring_map() -> np.ndarray:
    """A strip of 3x3 pixel regions 1 2 3 4 5 and, apart from it behind unassigned pixels, 6."""
    labels = np.zeros((3, 21), np.int32)
    labels[:, :15] = np.repeat(np.arange(1, 6), 3)
    labels[:, 18:] = 6
    return labels


@pytest.mark.parametrize(
    ("own", "expected_rings", "expected_points"),
    [
        # points per region 1..6 -> rings and points used; SLF wants three
        ([3, 0, 0, 0, 0, 0], {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: -1}, {2: 3, 3: 3, 6: 3}),
        ([2, 0, 1, 0, 2, 0], {1: 2, 2: 1, 3: 2, 4: 1, 5: 2, 6: -1}, {1: 3, 2: 3, 3: 5, 5: 3}),
        ([2, 2, 2, 2, 2, 2], {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: -1}, {1: 4, 2: 6, 6: 12}),
    ],
)
def test_a_region_borrows_exactly_the_rings_it_needs(
    own: list[int], expected_rings: dict[int, int], expected_points: dict[int, int]
) -> None:
    labels = ring_map()
    relative = bumpy(*labels.shape)
    truth, _ = truth_of(relative, labels)
    rows, cols = [], []
    for label, count in enumerate(own, start=1):
        r, c = np.nonzero(labels == label)
        rows += r[:count].tolist()
        cols += c[:count].tolist()
    points = SparseDepth.from_arrays(rows, cols, truth[rows, cols])
    result = fit(
        Prediction(relative, "depth_affine_invariant"),
        points,
        labels,
        config=FitConfig(method="slf", mode="paper"),
    )
    table = {int(row["label"]): row for row in result.regions}
    assert {label: int(table[label]["rings"]) for label in expected_rings} == expected_rings
    for label, used in expected_points.items():
        assert table[label]["inliers"] == used
        assert table[label]["points"] == own[label - 1]
    status = {0: RegionStatus.OK, -1: RegionStatus.GLOBAL}
    for label, rings in expected_rings.items():
        assert table[label]["status"] == status.get(rings, RegionStatus.EXPANDED)
    assert table[0]["status"] == RegionStatus.GLOBAL  # unassigned pixels
    # the parameters come from the borrowed points, but are applied to the region alone
    links = speed.neighbours(labels)
    known = np.isfinite(points.to_map(*labels.shape))
    for label, rings in expected_rings.items():
        if rings > 0:
            assert speed.borrow(label, links, labels, known, 3)[1] == rings
    expected = speed.plain_fit(relative, points.to_map(*labels.shape), labels, "slf").depth
    np.testing.assert_allclose(result.depth, expected, rtol=1e-5)


def test_neighbours_are_looked_up_only_when_somebody_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(labels: np.ndarray) -> None:
        raise AssertionError("nobody needs to borrow")

    monkeypatch.setattr(region_groups, "adjacency", refuse)
    relative, labels = bumpy(), cells(2, 2)
    points = sample(truth_of(relative, labels)[0], 200)
    prediction = Prediction(relative, "depth_affine_invariant")
    assert fit(prediction, points, labels, config=SSF).status is FitStatus.OK
    with pytest.raises(AssertionError, match="nobody"):
        fit(prediction, points, labels, config=FitConfig(method="ssf", min_points=150))


def test_a_region_that_turns_around_takes_the_scale_of_the_picture() -> None:
    relative, labels = bumpy(), cells(2, 2)
    truth = 2 * relative.astype(np.float64) + 1
    truth[labels == 4] = 9 - relative[labels == 4]
    prediction = Prediction(relative, "depth_affine_invariant")
    points = sample(truth, 300)
    for method in ("slf", "ssf"):
        config = FitConfig(method=method)
        guarded = fit(prediction, points, labels, config=config, polarity_guard=True)
        assert guarded.regions["scale"][3] == pytest.approx(2, rel=0.3)
        assert guarded.regions["status"][3] == RegionStatus.REDUCED
        middle = np.median(guarded.depth[labels == 4]) - np.median(truth[labels == 4])
        assert abs(middle) < 0.5
        free = fit(prediction, points, labels, config=FitConfig(method=method))
        np.testing.assert_allclose(free.depth, truth, rtol=1e-4)
