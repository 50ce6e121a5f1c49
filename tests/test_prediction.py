# SPDX-License-Identifier: Apache-2.0
"""The meaning of a network's output: five kinds, their spaces, and values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.prediction import KINDS, Prediction

DEPTH = np.array([[1.0, 2.0, 4.0], [8.0, 0.5, 10.0]], dtype=np.float32)


def _encoded(kind: str) -> np.ndarray:
    if kind.startswith("disparity"):
        return 1 / DEPTH
    return np.log(DEPTH) if kind.startswith("log") else DEPTH


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes_to_the_same_depth_and_disparity(kind: str) -> None:
    prediction = Prediction(_encoded(kind), kind)
    np.testing.assert_allclose(prediction.relative_depth(), DEPTH, rtol=1e-6)
    np.testing.assert_allclose(prediction.disparity(), 1 / DEPTH, rtol=1e-6)
    assert prediction.relative_depth().dtype == np.float32
    assert prediction.is_metric == kind.endswith("metric")


def test_zero_and_negative_disparity_are_floored_at_two_percent_of_the_median() -> None:
    values = np.array([[0.0, -3.0, 1.0, 2.0, 3.0]], dtype=np.float32)
    depth = Prediction(values, "disparity_affine_invariant").relative_depth()
    np.testing.assert_allclose(depth, [[25.0, 25.0, 1.0, 0.5, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("lowest", [1e-40, 1e-6, 0.017, 0.0199999, 0.02, 0.0200001, 0.03, 0.9])
def test_the_floor_is_the_same_for_every_range_of_values(lowest: float) -> None:
    values = np.random.default_rng(0).uniform(0.9, 1.1, (9, 11)).astype(np.float32)
    values.flat[np.argsort(values, axis=None)[49]] = 1  # the median
    values[0, 0] = lowest
    depth = Prediction(values, "disparity_affine_invariant").relative_depth()
    floor = np.float32(0.02) * np.sort(values, axis=None)[49]
    np.testing.assert_allclose(depth, 1 / np.maximum(values, floor), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_stays_unknown_and_spoils_nothing_else(kind: str) -> None:
    values = _encoded(kind).copy()
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    prediction = Prediction(values, kind)
    for space in (prediction.relative_depth(), prediction.disparity()):
        assert np.isnan(space[0]).all()
        assert np.isfinite(space[1]).all()


def test_a_prediction_without_a_positive_disparity_is_unknown_everywhere() -> None:
    for values in (np.zeros((2, 3)), -np.ones((2, 3)), np.full((2, 3), np.nan)):
        assert np.isnan(Prediction(values, "disparity_affine_invariant").relative_depth()).all()


def test_log_depth_that_overflows_is_unknown() -> None:
    values = np.array([[0.0, 200.0]], dtype=np.float32)
    depth = Prediction(values, "log_depth_affine_invariant").relative_depth()
    assert depth[0, 0] == 1
    assert np.isnan(depth[0, 1])


def test_metres_are_only_given_by_metric_networks_and_only_above_zero() -> None:
    values = np.array([[2.0, 0.0, -1.0, np.nan]], dtype=np.float32)
    np.testing.assert_array_equal(
        Prediction(values, "depth_metric").metric_depth(), [[2, np.nan, np.nan, np.nan]]
    )
    np.testing.assert_array_equal(
        Prediction(values, "disparity_metric").metric_depth(), [[0.5, np.nan, np.nan, np.nan]]
    )
    with pytest.raises(ValueError, match="no metres"):
        Prediction(values, "depth_affine_invariant").metric_depth()


def test_spaces_are_computed_once_and_cannot_be_written() -> None:
    prediction = Prediction(DEPTH, "disparity_affine_invariant")
    assert prediction.relative_depth() is prediction.relative_depth()
    with pytest.raises(ValueError, match="read-only"):
        prediction.relative_depth()[0, 0] = 1
    Prediction(DEPTH, "depth_metric").values[0, 0] += 0  # the caller's own array stays writable


def test_construction_refuses_unknown_kinds_and_shapes() -> None:
    with pytest.raises(ValueError, match="use one of disparity_affine_invariant"):
        Prediction(DEPTH, "inverse")
    with pytest.raises(ValueError, match="batch and channel"):
        Prediction(DEPTH[None], "depth_metric")
    assert Prediction(DEPTH.astype(np.float64), "depth_metric").values.dtype == np.float32
