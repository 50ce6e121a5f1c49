# SPDX-License-Identifier: Apache-2.0
"""Surfaces made into maps: compiled or not, feathered, the interval away from points."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node import fitting
from depth_node.fitting import FitConfig, surface_maps
from depth_node.prediction import Prediction
from tests.helpers.fits import fit
from tests.helpers.region_scenes import (
    HEIGHT,
    REGION_METHODS,
    SSF,
    WIDTH,
    bumpy,
    cells,
    sample,
    truth_of,
)


@pytest.mark.parametrize("mode", fitting.MODES)
@pytest.mark.parametrize("method", REGION_METHODS)
def test_compiled_or_not_the_depth_is_the_same(
    method: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if surface_maps._compiled_paint() is None:
        pytest.skip("numba is not installed")
    relative, labels = bumpy(), cells()
    labels[:20, :30] = 0
    points = sample(truth_of(relative, labels)[0] + bumpy() * 0.05, 120)
    relative[50:60, 70:90] = np.nan
    prediction = Prediction(relative, "depth_affine_invariant")
    config = FitConfig(method=method, mode=mode)
    compiled = fit(prediction, points, labels, config=config)
    monkeypatch.setattr(surface_maps, "_compiled_paint", lambda: None)
    plain = fit(prediction, points, labels, config=config)
    np.testing.assert_allclose(compiled.depth, plain.depth, rtol=1e-6)
    assert np.isnan(plain.depth).any()


def test_feathering_softens_seams_of_one_surface_and_keeps_edges() -> None:
    labels = cells(1, 2)
    relative = bumpy()
    truth = 3 * relative.astype(np.float64)
    noise = np.random.default_rng(0).normal(1, 0.02, truth.shape)
    prediction = Prediction(relative, "depth_affine_invariant")

    def seam(step: float, feather: int) -> np.ndarray:
        stepped = truth + np.where(labels == 2, step, 0)
        config = FitConfig(method="slf", feather_px=feather)
        depth = fit(prediction, sample(stepped * noise, 60), labels, config=config).depth
        return depth[:, 80] - depth[:, 79] - (truth[:, 80] - truth[:, 79])

    assert np.abs(seam(0, 5)).mean() < 0.5 * np.abs(seam(0, 0)).mean()
    np.testing.assert_allclose(seam(8, 5), seam(8, 0), atol=0.02)


def test_the_interval_widens_away_from_the_points_and_with_borrowed_rings() -> None:
    labels = cells(1, 4)
    relative = bumpy()
    truth = (
        3 * relative.astype(np.float64) * np.random.default_rng(0).normal(1, 0.01, (HEIGHT, WIDTH))
    )
    seen = truth.copy()
    seen[:, 80:] = np.nan
    prediction = Prediction(relative, "depth_affine_invariant")
    result = fit(prediction, sample(seen, 200), labels, config=SSF)
    np.testing.assert_array_equal(result.regions["rings"], [0, 0, 1, 2])
    widths = [float(np.median(result.std[labels == label])) for label in (2, 3, 4)]
    assert widths[0] < widths[1] < widths[2]
