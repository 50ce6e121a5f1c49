# SPDX-License-Identifier: Apache-2.0
"""How networks are judged, and that the embedded one passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from depth_node.inference import DepthModel, ModelConfig
from training import evaluate

H, W = 24, 32


def test_a_map_affine_in_disparity_scores_zero() -> None:
    truth = np.random.default_rng(0).uniform(1, 5, (H, W)).astype(np.float32)
    truth[:3] = np.nan
    found = evaluate.aligned_depth(7 / truth - 3, truth)
    np.testing.assert_allclose(found[3:], truth[3:], rtol=1e-4)


def test_the_plane_fits_a_slanted_floor() -> None:
    terms = evaluate.plane_terms(H, W)
    truth = (1 / (terms @ [0.2, 0.1, 0.5])).astype(np.float32)
    np.testing.assert_allclose(evaluate.baseline("plane", truth), truth, rtol=1e-5)
    spread = np.abs(evaluate.baseline("median", truth) - truth) / truth
    assert spread.mean() > 0.1


def test_means_are_over_frames_then_over_sources() -> None:
    rows = [
        evaluate.Row("a", "x", "1", 0.1, 1.0),
        evaluate.Row("a", "x", "2", 0.3, 0.0),
        evaluate.Row("a", "y", "3", 0.6, 0.5),
    ]
    assert evaluate.mean(rows, "a", "x") == pytest.approx((0.2, 0.5))
    assert evaluate.mean(rows, "a") == pytest.approx((0.4, 0.5))


def test_the_embedded_network_beats_the_plane_on_unseen_rooms() -> None:
    """The gate at a small scale; the full one is in docs/benchmarks.md."""
    with DepthModel.open(ModelConfig(threads=1)) as model:
        samples = evaluate.procedural(24, seed=77, height=120, width=160)
        rows = evaluate.score(samples, {"embedded": model})
    errors = {
        name: np.mean([row.abs_rel for row in rows if row.method == name])
        for name in ("embedded", "plane", "median")
    }
    assert errors["embedded"] <= 0.75 * errors["plane"] < errors["median"]


def test_the_embedded_network_beats_the_plane_on_real_rooms(shared: Path) -> None:
    rows = []
    with DepthModel.open(ModelConfig(threads=1)) as model:
        for source in ("apc_shelf", "arc_tote", "rtabmap_lab", "tum_rgbd"):
            samples = evaluate.recorded(shared / "data" / source)
            rows += evaluate.score(samples, {"embedded": model})
    network, plane = (evaluate.mean(rows, name)[0] for name in ("embedded", "plane"))
    assert network <= 0.85 * plane


def test_report_prints_and_writes_rows(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    console = Console(record=True, width=120, quiet=True)
    rows = evaluate.report(["embedded"], 2, 5, [], out, console)
    assert len(rows) == 2 * 3
    assert out.read_text().count('"method"') == 6
