# SPDX-License-Identifier: Apache-2.0
"""A spinning LiDAR on a driving robot: the gain from the times of the points."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.benchmarks import deskew
from depth_node.metrics import evaluate
from depth_node.pipeline import DepthPipeline, PipelineConfig


@pytest.mark.slow
def test_a_drive_is_measured_like_standing_still() -> None:
    """At 10 m/s and 1 rad/s the error is within 5 % of standing still; without times, threefold."""
    with DepthPipeline(PipelineConfig()) as pipeline:
        table = deskew.accuracy(pipeline, deskew.SEEDS[:3])
    rows = {row[0]: float(row[2]) for row in table.rows}
    assert rows["driving, each point by its time"] < 1.05
    assert rows["driving, a scan as one"] > 2


@pytest.mark.slow
def test_one_view_of_a_drive() -> None:
    (view,) = deskew.spinning_views(31, 1)
    whole = view.moving._replace(offset_s=None)
    with DepthPipeline(PipelineConfig()) as pipeline:
        still, one, each = (
            evaluate(pipeline.process(frame).depth, view.truth).abs_rel
            for frame in (
                view.frame(view.still._replace(offset_s=None), lambda then_ns: np.eye(4)),
                view.frame(whole, view.since),
                view.frame(view.moving, view.since),
            )
        )
    assert each < 1.3 * still < one


@pytest.mark.slow
def test_a_rolling_shutter_on_a_drive_is_measured_like_standing_still() -> None:
    """At 10 m/s and 1 rad/s the error is within 5 % of standing still; otherwise it is far off."""
    with DepthPipeline(PipelineConfig()) as pipeline:
        table = deskew.rolling_accuracy(pipeline, deskew.SEEDS[:2])
    rows = {row[0]: float(row[2]) for row in table.rows}
    assert rows["driving, each row at its time"] < 1.05
    assert rows["driving, rows at once"] > 1.4


def test_the_cost_is_shown_side_by_side() -> None:
    table = deskew.speed(2)
    names = ["as one", "each by its time", "each by its time, and its row's"]
    assert [row[0] for row in table.rows] == names
    assert table.rows[0][2:] == ["+0.0", "1.00"]
    assert "130000 points" in table.notes[0]
