# SPDX-License-Identifier: Apache-2.0
"""The figures of the self-check: how close an output is to the reference's."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.engine import EngineError
from depth_node.engine.self_check import Limits, OutputDifference, output_difference


def test_parity_of_equal_scaled_noisy_and_flat_maps() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 5, (30, 40)).astype(np.float32)
    assert output_difference(truth, truth, "depth_metric") == OutputDifference(
        1.0, pytest.approx(1.0), 0.0
    )
    assert output_difference(1.1 * truth, truth, "depth_metric").relative_error == pytest.approx(
        0.1, rel=1e-5
    )
    assert output_difference(1.1 * truth + 3, truth, "depth_affine_invariant").relative_error < 1e-6
    logs = output_difference(np.log(truth) + 0.01, np.log(truth), "log_depth_metric")
    assert logs.relative_error == pytest.approx(0.01, rel=1e-3)
    noisy = output_difference(truth + rng.normal(0, 0.5, truth.shape), truth, "depth_metric")
    assert 0.8 < noisy.correlation < 0.99
    flat = np.ones_like(truth)
    assert output_difference(flat, truth, "depth_metric").correlation == 0
    assert output_difference(flat, flat, "depth_metric") == OutputDifference(1.0, 1.0, 0.0)
    nothing = output_difference(np.full_like(truth, np.nan), truth, "depth_metric")
    assert (nothing.finite, nothing.correlation) == (0.0, 0.0)
    assert nothing.failures(Limits())
    with pytest.raises(EngineError, match="not of one model"):
        output_difference(truth, truth[1:], "depth_metric")


def test_what_the_reference_leaves_open_is_not_asked_for() -> None:
    truth = np.linspace(1, 2, 100, dtype=np.float32).reshape(10, 10)
    reference = truth.copy()
    reference[0] = np.nan
    assert output_difference(truth, reference, "depth_metric").finite == 1.0
    assert output_difference(reference, truth, "depth_metric").finite == pytest.approx(0.9)
