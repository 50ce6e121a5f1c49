# SPDX-License-Identifier: Apache-2.0
"""The interval without a LiDAR holds on a rendered walk that no constant was chosen on."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.benchmarks import unanchored
from depth_node.pipeline import DepthPipeline, PipelineConfig


@pytest.mark.slow
def test_the_interval_holds_without_a_lidar() -> None:
    with DepthPipeline(PipelineConfig()) as pipeline:
        table = unanchored.walks(pipeline, (120,))
    rows = np.array(table.rows)
    assert set(rows[:, 0]) == {"0", "1", "3", "5"}
    silent = rows[rows[:, 0] == "0"]
    assert silent[:, 1].tolist() == [f"{age:g}" for age in unanchored.AGES_S]
    assert silent[:, 3].astype(float).min() > 0.9
    bounds = [float(bound.rstrip("%")) for bound in silent[:, 4]]
    assert bounds == sorted(bounds) and bounds[-1] > 1.5 * bounds[0]
