# SPDX-License-Identifier: Apache-2.0
"""The study of upsampling, on one rendered room and networks made from its truth."""

from __future__ import annotations

import numpy as np
import pytest

from training.studies import upsampling as study


def test_holes_take_the_nearest_depth() -> None:
    depth = np.array([[1, np.nan, np.nan, 4], [1, np.nan, np.nan, 4]], np.float32)
    np.testing.assert_array_equal(study.without_holes(depth), [[1, 1, 4, 4]] * 2)


def test_a_sharp_network_gains_and_the_full_size_is_the_ceiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(study, "NETWORKS", (study.FromTruth(0, 2, averaged=True),))
    monkeypatch.setattr(study, "COUNTS", (250,))
    scores, by_source = study.simulated(study.rendered(1), [0])
    (row,) = scores.rows
    cells = dict(zip(scores.head, row, strict=True))
    full, kept, plain = (
        float(cells[f"{name}, 250"]) for name in (study.FULL, study.KEPT, study.BILINEAR)
    )
    assert full < kept < 0.9 * plain
    assert float(cells["F1 edges kept"]) > float(cells["F1 bilinear"])
    assert by_source.head == ["network", "points", "rendered"]
