# SPDX-License-Identifier: Apache-2.0
"""Scores of predictions and of the baselines."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from tests.helpers.scored_samples import Counting, H, W, samples
from training.data.samples import DataError, Sample
from training.evaluation import score


@pytest.fixture
def truth() -> np.ndarray:
    depth = np.random.default_rng(0).uniform(1, 5, (H, W)).astype(np.float32)
    depth[:3] = np.nan
    return depth


def test_pictures_without_a_scored_pixel_give_no_row() -> None:
    blind = Sample("0", samples()[0].image, np.full((H, W), 30.0, np.float32), source="s")
    assert score.score([blind], {"m": Counting()}) == []
    with pytest.raises(DataError, match="no depth to be judged by"):
        score.score([Sample("0", blind.image)], {"m": Counting()})


def test_the_plane_fits_a_slanted_floor() -> None:
    terms = score.plane_terms(H, W)
    truth = (1 / (terms @ [0.2, 0.1, 0.5])).astype(np.float32)
    np.testing.assert_allclose(score.baseline("plane", truth), truth, rtol=1e-5)
    spread = np.abs(score.baseline("constant", truth) - truth) / truth
    assert spread.mean() > 0.1
