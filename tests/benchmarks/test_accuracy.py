# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.benchmarks import accuracy
from depth_node.benchmarks.accuracy import (
    AccuracyReport,
    AccuracyRow,
    Interpolation,
    averaged,
    default_methods,
    disturbed,
    fit_config,
    known_methods,
    run_accuracy,
    tables,
)
from depth_node.benchmarks.tables import markdown
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from depth_node.recordings.frames import FrameError, read_frame, split_uniform

HEIGHT, WIDTH = 60, 80


def surface(kind: int) -> np.ndarray:
    """Return the depth of a smooth room, 2 to 6 m, another for every kind."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] / (HEIGHT, WIDTH)[0]
    return (3 + np.sin(3 * x + kind) + 1.5 * y).astype(np.float32)


def write_frame(folder: Path, depth: np.ndarray, **prediction: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    grey = np.nan_to_num(depth * 30).astype(np.uint8)
    cv2.imwrite(str(folder / "rgb.png"), cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR))
    np.savez(folder / "depth.npz", depth=depth)
    height, width = depth.shape
    intrinsics = {"fx": 60, "fy": 60, "cx": 40, "cy": 30, "width": width, "height": height}
    (folder / "intrinsics.json").write_text(json.dumps(intrinsics))
    for name, values in prediction.items():
        np.savez(
            folder / f"prediction_{name}.npz", prediction=values, kind="depth_affine_invariant"
        )
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sources, of two frames and of one; the stored prediction `exact` lacks scale and shift.

    The prediction `warped` is off by a different scale at every place.
    """
    x = np.linspace(0.7, 1.3, WIDTH, dtype=np.float32)
    for source, count in (("a", 2), ("b", 1)):
        for number in range(count):
            depth = surface(number + 3 * (source == "b"))
            holes = depth.copy()
            holes[:3] = np.nan
            write_frame(
                tmp_path / source / f"f{number}", holes, exact=(depth - 1) / 7, warped=depth * x
            )
    return tmp_path


class Exact:
    """A network that knows the depth up to scale and shift, and counts its calls."""

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, image: np.ndarray) -> Prediction:
        self.asked += 1
        return Prediction(image[..., 0].astype(np.float32) / 100, "depth_affine_invariant")


def test_an_exact_prediction_is_recovered_and_the_points_alone_are_not(data: Path) -> None:
    report = run_accuracy([data], "exact", methods=["global_depth", "ssf", "idw", "constant"])
    scores = averaged(report.rows, "abs_rel")
    for points in ("50", "250", "1000"):
        assert scores["global_depth", points] < 1e-5
        assert scores["ssf", points] < 1e-3
        assert 1e-3 < scores["idw", points] < scores["constant", points]
    assert scores["idw", "1000"] < scores["idw", "250"] < scores["idw", "50"]


def test_regions_beat_the_picture_where_the_error_depends_on_the_place(data: Path) -> None:
    report = run_accuracy([data], "warped", methods=["global_depth", "ssf"], points=[1000])
    scores = averaged(report.rows, "abs_rel")
    assert scores["ssf", "1000"] < 0.5 * scores["global_depth", "1000"]


def test_there_is_one_row_for_every_combination(data: Path) -> None:
    network, seen = Exact(), []
    report = run_accuracy(
        [data],
        network,
        methods=["constant", "slf"],
        points=[20, 40],
        lines=4,
        noise=["clean", "noisy"],
        seeds=[0, 1],
        on_frame=seen.append,
    )
    keys = {
        (row.source, row.frame, row.method, row.points, row.pattern, row.noise, row.seed)
        for row in report.rows
    }
    assert len(report.rows) == len(keys) == 3 * 2 * (2 + 1) * 2 * 2
    assert network.asked == 3, "an image is predicted once"
    assert seen == ["a/f0", "a/f1", "b/f0"]
    assert {row.pattern for row in report.rows} == {"uniform", "lines_4"}
    assert report.segmentation_ms > 0


def test_the_benchmark_repeats(data: Path) -> None:
    def scores() -> list[tuple[float, float]]:
        rows = run_accuracy([data], "warped", methods=["ssf"], noise=["noisy"], lines=4).rows
        return [(row.abs_rel, row.coverage95) for row in rows]

    assert scores() == scores()


def test_a_method_s_score_does_not_depend_on_its_company(data: Path) -> None:
    alone = run_accuracy([data], "warped", methods=["idw"], noise=["noisy"]).rows
    together = run_accuracy(
        [data], "warped", methods=["ssf_robust", "idw"], noise=["clean", "noisy"]
    ).rows
    assert [row.abs_rel for row in alone] == [
        row.abs_rel for row in together if row.method == "idw" and row.noise == "noisy"
    ]


def test_measured_pixels_are_not_scored(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def watched(depth: np.ndarray, truth: np.ndarray) -> object:
        counts.append(len(truth))
        return evaluate(depth, truth)

    evaluate = accuracy.evaluate
    monkeypatch.setattr(accuracy, "evaluate", watched)
    run_accuracy([data / "a" / "f0"], "exact", methods=["constant"], points=[100])
    assert counts == [(HEIGHT - 3) * WIDTH - 100]


def test_robust_fits_stand_noise_better(data: Path) -> None:
    rows = run_accuracy(
        [data],
        "exact",
        methods=["ssf", "ssf_robust"],
        noise=["noisy"],
        points=[1000],
        seeds=[0, 1],
    ).rows
    scores = averaged(rows, "abs_rel")
    assert scores["ssf_robust", "1000n"] < 0.8 * scores["ssf", "1000n"]


def test_noise_is_two_percent_with_outliers_and_moves_nothing(tmp_path: Path) -> None:
    frame = read_frame(write_frame(tmp_path / "s" / "f", surface(0)))
    points = split_uniform(frame, 4000, 0).points
    noisy = disturbed(frame, points, "noisy", 0.0, 0)
    assert np.array_equal(noisy.rows, points.rows) and np.array_equal(noisy.cols, points.cols)
    ratio = noisy.depth / points.depth
    outlier = np.abs(ratio - 1) > 0.1
    assert 0.035 < outlier.mean() < 0.055  # 5 %, some of which are changed too little to count
    assert 0.35 < ratio.min() < 0.5 and 1.8 < ratio.max() < 2.2
    assert 0.018 < ratio[~outlier].std() < 0.022
    assert abs(np.median(ratio) - 1) < 0.002
    clean = disturbed(frame, points, "clean", 0.0, 0)
    assert np.array_equal(clean.depth, points.depth)
    assert not np.array_equal(disturbed(frame, points, "noisy", 0.0, 1).depth, noisy.depth)


def test_a_calibration_error_moves_all_points_alike(tmp_path: Path) -> None:
    frame = read_frame(write_frame(tmp_path / "s" / "f", surface(0)))
    inner = SparseDepth.from_arrays([30, 31, 20], [40, 11, 60], [1.0, 2.0, 3.0])
    moved = disturbed(frame, inner, "clean", 3.0, 0)
    rows, cols = moved.rows - inner.rows, moved.cols - inner.cols
    assert len(set(rows.tolist())) == len(set(cols.tolist())) == 1
    assert 2 < math.hypot(rows[0], cols[0]) < 4
    assert np.array_equal(moved.depth, inner.depth)
    corners = SparseDepth.from_arrays([0, 0, 59, 59], [0, 79, 0, 79], [1.0, 1.0, 1.0, 1.0])
    kept = disturbed(frame, corners, "clean", 3.0, 0)
    assert 0 < len(kept) < 4
    assert (kept.rows >= 0).all() and (kept.rows < HEIGHT).all()
    assert (kept.cols >= 0).all() and (kept.cols < WIDTH).all()


def test_interpolation_by_hand() -> None:
    points = SparseDepth.from_arrays([0, 0, 0], [0, 3, 9], [1.0, 2.0, 50.0])
    two = Interpolation.of(points, np.array([0, 0, 0]), np.array([0, 1, 9]), neighbours=2)
    # Pixel 1 is 1 px from depth 1 and 2 px from depth 2: weights 1 and 1/4.
    assert two(points.depth) == pytest.approx([1.0, (1 + 2 / 4) / (1 + 1 / 4), 50.0], rel=1e-6)
    one = SparseDepth.from_arrays([5], [5], [3.0])
    assert Interpolation.of(one, np.array([0]), np.array([9]))(one.depth).tolist() == [3.0]


def row(source: str, abs_rel: float, **changes: object) -> AccuracyRow:
    values: dict = {
        "source": source, "frame": "f", "method": "ssf", "points": 50, "pattern": "uniform",
        "noise": "clean", "seed": 0, "abs_rel": abs_rel, "delta1": 1.0, "rmse": 0.1,
        "coverage95": math.nan, "answered": 1.0, "ms": 1.0,
    }  # fmt: skip
    return AccuracyRow(**{**values, **changes})


def test_averages_weigh_sources_not_frames() -> None:
    rows = [row("a", 0.1), row("a", 0.1), row("a", 0.4), row("b", 1.0)]
    assert averaged(rows, "abs_rel") == {("ssf", "50"): pytest.approx((0.2 + 1.0) / 2)}
    assert math.isnan(averaged(rows, "coverage95")["ssf", "50"])


def test_tables_show_averages_and_ratios() -> None:
    rows = [
        row("a", 0.2),
        row("a", 0.1, method="field"),
        row("a", 0.3, noise="noisy", points=1000),
        row("a", 0.5, pattern="lines_4", points=321),
        row("b", 0.4),
        row("b", 0.1, method="field", answered=0.5),
    ]
    found = tables(AccuracyReport(rows))
    assert found[0].head == ["method", "50", "1000n", "lines_4"]
    assert found[0].rows == [["ssf", "0.3000", "0.3000", "0.5000"], ["field", "0.1000", "", ""]]
    assert found[1].rows[1][:2] == ["field", "0.33"]
    titles = [table.title for table in found]
    assert any("fraction of scored pixels with a depth" in title for title in titles) and any(
        "a (1 frames)" in t for t in titles
    )
    text = markdown(found)
    assert "| ssf | 0.3000 | 0.3000 | 0.5000 |" in text
    assert text.count("|---|---|---|---|") == len(found) - 1  # source b has one condition


def test_rows_become_json(data: Path) -> None:
    report = run_accuracy([data / "b"], "exact", methods=["idw", "ssf"], points=[50])
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert set(content["rows"][0]) == {
        *("source", "frame", "method", "points", "pattern", "noise", "seed"),
        *("abs_rel", "delta1", "rmse", "coverage95", "answered", "ms"),
    }
    assert content["rows"][0]["coverage95"] is None
    assert 0 <= content["rows"][1]["coverage95"] <= 1


def test_a_frame_with_too_few_depths_is_left_out_and_told(data: Path) -> None:
    report = run_accuracy([data], "exact", methods=["constant"], points=[50, 4500])
    assert {row.points for row in report.rows} == {50}
    assert any("f0 is left out at 4500 points" in note for note in report.notes)


def test_masks_are_used_where_there_are_some(data: Path) -> None:
    ids = np.ones((HEIGHT, WIDTH), np.uint16)
    ids[:, WIDTH // 2 :] = 2
    cv2.imwrite(str(data / "a" / "f0" / "segmentation_objects.png"), ids)

    def scores(labels: str) -> list[float]:
        report = run_accuracy([data / "a"], "warped", methods=["slf"], labels=labels, points=[250])
        assert ("a/f1 has no masks: classical regions." in report.notes) == (labels == "masks")
        return [row.abs_rel for row in report.rows]

    classical, masks, none = scores("classical"), scores("masks"), scores("none")
    assert masks[0] not in (classical[0], none[0])
    assert masks[1] == classical[1] != none[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ["sfs"]}, "did you mean s"),
        ({"noise": ["loud"]}, "noise 'loud' is unknown"),
        ({"noise": []}, "no noise is given"),
        ({"labels": "sam"}, "use one of classical, masks, none|did you mean"),
        ({"points": []}, "nothing to measure"),
        ({"lines": 1}, "2 or more"),
    ],
)
def test_wrong_arguments_are_refused(data: Path, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run_accuracy([data], "exact", **arguments)


def test_a_prediction_that_is_not_there_is_refused(data: Path) -> None:
    with pytest.raises(FrameError, match="here: exact, warped"):
        run_accuracy([data], "other")


def test_every_method_has_a_name_and_a_fit() -> None:
    assert set(default_methods()) <= set(known_methods())
    for method in known_methods():
        if method not in accuracy.OWN_METHODS:
            assert fit_config(method).method in method
    assert (fit_config("ssf").mode, fit_config("ssf_robust").mode) == ("paper", "sensor")


def test_every_method_runs(data: Path) -> None:
    report = run_accuracy([data / "b"], "warped", methods=known_methods(), points=[250])
    assert {row.method for row in report.rows} == set(known_methods())
    assert all(row.answered > 0.99 and row.abs_rel < 0.5 for row in report.rows)
