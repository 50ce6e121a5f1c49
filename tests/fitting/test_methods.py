# SPDX-License-Identifier: Apache-2.0
"""Fits of metres to relative depth: known truth, invariances, an independent solver, bad input."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node import fitting
from depth_node.benchmarks import speed
from depth_node.config import ConfigError
from depth_node.fitting import FitConfig, FitStatus, RegionStatus
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import coverage, evaluate
from depth_node.prediction import Prediction
from depth_node.regions import label_maps
from tests.helpers.fits import fit
from tests.helpers.region_scenes import (
    CLASSIC,
    HEIGHT,
    REGION_METHODS,
    SSF,
    WIDTH,
    bumpy,
    cells,
    connected,
    sample,
    truth_of,
)


def scaled(points: SparseDepth, factor: float) -> SparseDepth:
    return SparseDepth.from_arrays(points.rows, points.cols, points.depth * np.float32(factor))


@pytest.mark.parametrize("mode", fitting.MODES)
@pytest.mark.parametrize("method", ["slf", "ssf"])
def test_exact_parameters_of_every_region_are_recovered(method: str, mode: str) -> None:
    relative, labels = bumpy(), cells()
    truth, table = truth_of(relative, labels, slopes=method == "ssf")
    result = fit(
        Prediction(relative, "depth_affine_invariant"),
        sample(truth, 600),
        labels,
        config=FitConfig(method=method, mode=mode, range_guard=100.0),
    )
    np.testing.assert_allclose(result.depth, truth, rtol=2e-5)
    rows = result.regions
    np.testing.assert_array_equal(rows["label"], np.arange(1, 21))
    assert set(rows["status"]) == {RegionStatus.OK}
    for column, name in enumerate(("scale", "slope_x", "slope_y", "shift")):
        np.testing.assert_allclose(rows[name], table[1:, column], atol=2e-4)
    assert result.status is FitStatus.OK
    assert result.point_inlier.all()
    assert np.abs(result.point_residual).max() < 1e-4
    assert "20 regions fitted to 600 points: 20 on their own" in result.message


@pytest.mark.parametrize("mode", fitting.MODES)
def test_global_methods_recover_their_own_models(mode: str) -> None:
    inverse = bumpy()
    points = [
        ("global_depth", 2 / inverse + 0.5, "disparity_affine_invariant"),
        ("global_disparity", 1 / (0.1 * inverse + 0.05), "disparity_affine_invariant"),
        ("median", 3 / inverse, "disparity_affine_invariant"),
        ("global_depth", 2 * inverse + 0.5, "depth_affine_invariant"),
    ]
    for method, truth, kind in points:
        result = fit(
            Prediction(inverse, kind),
            sample(truth, 100),
            config=FitConfig(method=method, mode=mode, range_guard=0.0),
        )
        np.testing.assert_allclose(result.depth, truth, rtol=1e-4)
        assert len(result.regions) == 1
        assert result.regions["rings"][0] == 0


@pytest.mark.parametrize("kind", ["disparity_affine_invariant", "log_depth_affine_invariant"])
def test_the_prediction_is_fitted_as_depth_whatever_the_network_gives(kind: str) -> None:
    relative, labels = bumpy(), cells()
    truth, _ = truth_of(relative, labels)
    encoded = np.log(relative) if kind.startswith("log") else 1 / relative
    result = fit(Prediction(encoded, kind), sample(truth, 600), labels, config=SSF)
    assert evaluate(result.depth, truth).abs_rel < 1e-3


def test_region_median_is_the_ratio_of_medians() -> None:
    labels = cells(1, 2, 4, 8)
    relative = np.full((4, 8), 2.0, np.float32)
    points = SparseDepth.from_arrays([0, 1, 2, 0, 1], [0, 1, 2, 5, 6], [4.0, 6.0, 20.0, 1.0, 3.0])
    result = fit(
        Prediction(relative, "depth_affine_invariant"),
        points,
        labels,
        config=FitConfig(method="region_median", mode="paper"),
    )
    np.testing.assert_allclose(result.depth[:, :4], 6.0)
    np.testing.assert_allclose(result.depth[:, 4:], 2.0)


@pytest.mark.parametrize("method", ["slf", "ssf"])
@pytest.mark.parametrize("count", [7, 25, 90, 500])
def test_paper_mode_equals_a_plain_loop_over_masks_with_lstsq(method: str, count: int) -> None:
    rng = np.random.default_rng(count)
    labels = cells(6, 7)
    labels[30:50, 40:70] = 0
    labels[100:104, 100:120] = 43
    labels[0, 0] = 44  # one pixel
    relative = bumpy() + rng.normal(0, 0.01, labels.shape).astype(np.float32)
    truth = truth_of(relative, labels)[0] + rng.normal(0, 0.05, labels.shape)
    points = sample(truth, count, seed=count)
    result = fit(
        Prediction(relative, "depth_affine_invariant"),
        points,
        labels,
        config=FitConfig(method=method, mode="paper"),
    )
    expected = speed.plain_fit(relative, points.to_map(*labels.shape), labels, method).depth
    np.testing.assert_allclose(result.depth, expected, rtol=1e-5)


@pytest.mark.parametrize("mode", fitting.MODES)
@pytest.mark.parametrize("method", CLASSIC)
def test_scaling_the_lidar_scales_the_depth(method: str, mode: str) -> None:
    relative, labels = bumpy(), cells()
    truth, _ = truth_of(relative, labels)
    points = sample(truth * np.random.default_rng(0).normal(1, 0.02, truth.shape), 150)
    prediction = Prediction(relative, "depth_affine_invariant")
    config = FitConfig(method=method, mode=mode)
    once, twice = (fit(prediction, scaled(points, f), labels, config=config) for f in (1, 2))
    np.testing.assert_allclose(twice.depth, 2 * once.depth, rtol=1e-4)
    np.testing.assert_allclose(twice.std, 2 * once.std, rtol=1e-3)
    np.testing.assert_array_equal(twice.point_inlier, once.point_inlier)


@pytest.mark.parametrize("mode", fitting.MODES)
@pytest.mark.parametrize("method", REGION_METHODS)
def test_renaming_the_regions_changes_nothing(method: str, mode: str) -> None:
    relative, labels = bumpy(), cells()
    points = sample(truth_of(relative, labels)[0] + bumpy() * 0.05, 120)
    prediction = Prediction(relative, "depth_affine_invariant")
    config = FitConfig(method=method, mode=mode)
    once = fit(prediction, points, labels, config=config)
    names = np.append(0, 1 + 3 * np.random.default_rng(1).permutation(20))  # with gaps
    renamed = fit(prediction, points, names[labels].astype(np.int64), config=config)
    np.testing.assert_allclose(renamed.depth, once.depth, rtol=1e-6)
    np.testing.assert_allclose(renamed.std, once.std, rtol=1e-5)
    assert len(renamed.regions) == 20  # no rows for labels without pixels
    many = fit(prediction, points, (20 * names)[labels], config=config)  # past one byte
    np.testing.assert_allclose(many.depth, once.depth, rtol=1e-6)
    np.testing.assert_allclose(many.std, once.std, rtol=1e-5)


def test_the_order_of_the_points_changes_nothing() -> None:
    relative, labels = bumpy(), cells()
    points = sample(truth_of(relative, labels)[0] + bumpy() * 0.05, 120)
    shuffle = np.random.default_rng(0).permutation(len(points))
    prediction = Prediction(relative, "depth_affine_invariant")
    once = fit(prediction, points, labels, config=SSF)
    again = fit(prediction, points.subset(shuffle), labels, config=SSF)
    np.testing.assert_allclose(again.depth, once.depth, rtol=1e-5)
    np.testing.assert_allclose(again.point_residual, once.point_residual[shuffle], atol=1e-5)


@pytest.mark.parametrize("method", ["slf", "ssf", "global_depth"])
def test_thirty_percent_outliers_move_the_robust_fit_by_less_than_one_percent(method: str) -> None:
    rng = np.random.default_rng(2)
    relative, labels = bumpy(), cells(2, 2)
    labels = np.ones_like(labels) if method == "global_depth" else labels
    truth, _ = truth_of(relative, labels, slopes=method == "ssf")
    points = sample(truth, 800)
    depth = points.depth * rng.normal(1, 0.002, 800).astype(np.float32)
    hit = rng.random(800) < 0.3
    depth[hit] *= rng.uniform(0.4, 2, hit.sum()).astype(np.float32)
    noisy = SparseDepth.from_arrays(points.rows, points.cols, depth)
    prediction = Prediction(relative, "depth_affine_invariant")
    robust = fit(prediction, noisy, labels, config=FitConfig(method=method))
    plain = fit(prediction, noisy, labels, config=FitConfig(method=method, mode="paper"))
    assert np.median(np.abs(robust.depth / truth - 1)) < 0.01
    assert evaluate(robust.depth, truth).abs_rel < 0.01
    assert evaluate(plain.depth, truth).abs_rel > 0.03
    gross = np.abs(depth / points.depth - 1) > 0.15
    assert robust.point_inlier[gross].mean() < 0.1
    assert robust.point_inlier[~hit].mean() > 0.95


def test_the_range_guard_limits_extrapolation_and_can_be_turned_off() -> None:
    labels = np.ones((HEIGHT, WIDTH), np.int32)
    relative = np.tile(np.linspace(1, 2, WIDTH, dtype=np.float32), (HEIGHT, 1))
    relative[:, -40:] = 60  # sky
    relative += 0.01 * bumpy()
    truth = 3 * relative
    seen = truth.copy()
    seen[:, -40:] = np.nan
    prediction = Prediction(relative, "depth_affine_invariant")
    points = sample(seen, 100)
    span = points.depth.max() - points.depth.min()
    guarded = fit(prediction, points, labels, config=FitConfig(method="slf"))
    assert guarded.depth.max() == pytest.approx(points.depth.max() + span / 2, rel=1e-5)
    free = fit(prediction, points, labels, config=FitConfig(method="slf", range_guard=0.0))
    np.testing.assert_allclose(free.depth, truth, rtol=1e-3)


@pytest.mark.parametrize("method", CLASSIC)
@pytest.mark.parametrize("count", [60, 600])
def test_the_interval_holds_the_truth_in_about_95_percent(method: str, count: int) -> None:
    """Misfit that is smooth within regions plus sensor noise, with held-out pixels as judges."""
    shares = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        labels = cells(4, 5)
        relative = bumpy()
        truth, _ = truth_of(relative, labels, seed)
        small = rng.normal(0, 0.4, (9, 12)).astype(np.float32)
        truth += cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        noisy = truth * rng.normal(1, 0.005, truth.shape)
        result = fit(
            Prediction(relative, "depth_affine_invariant"),
            sample(noisy, count, seed),
            labels,
            config=FitConfig(method=method),
        )
        np.testing.assert_array_equal(np.isnan(result.std), np.isnan(result.depth))
        shares.append(coverage(result.depth, result.std, truth))
    assert 0.90 <= np.mean(shares) <= 0.99


def empty() -> SparseDepth:
    return SparseDepth.from_arrays([], [], [])


@pytest.mark.parametrize("method", CLASSIC)
def test_no_points_and_a_relative_network_give_no_depth(method: str) -> None:
    prediction = Prediction(bumpy(), "disparity_affine_invariant")
    result = fit(prediction, empty(), cells(), config=FitConfig(method=method))
    assert result.status is FitStatus.NO_POINTS
    assert np.isnan(result.depth).all()
    assert np.isnan(result.std).all()
    assert set(result.regions["status"]) == {RegionStatus.UNKNOWN}
    assert result.message == (
        "No point was measured and the network gives no metres, so there is no depth; "
        "check the points' topic, time stamps and calibration."
    )


@pytest.mark.parametrize("kind", ["depth_metric", "disparity_metric"])
def test_no_points_and_a_metric_network_pass_its_metres_through(kind: str) -> None:
    values = bumpy()
    values[0, 0] = np.nan
    expected = values if kind == "depth_metric" else 1 / values
    result = fit(Prediction(values, kind), empty(), cells(), config=SSF)
    assert result.status is FitStatus.UNANCHORED
    np.testing.assert_allclose(result.depth, expected, rtol=1e-6)
    np.testing.assert_allclose(1.96 * result.std, (1.25**3 - 1) * expected, rtol=1e-3)
    assert "the network's own" in result.message
    off = dataclasses.replace(SSF, unanchored_s=0.0)
    result = fit(Prediction(values, kind), empty(), cells(), config=off)
    assert result.status is FitStatus.NETWORK_METRES
    np.testing.assert_allclose(result.depth, expected, rtol=1e-6)
    assert np.isnan(result.std).all()  # nothing to judge by
    assert "own metres, unchecked" in result.message


def test_unchecked_metres_stay_in_the_depth_range() -> None:
    values = np.array([[0.5, 3.0], [np.nan, 1000.0]], np.float32)
    config = dataclasses.replace(SSF, unanchored_s=0.0)
    prediction = Prediction(values, "depth_metric")
    result = fit(prediction, empty(), config=config, depth_range_m=(1.0, 80.0))
    assert result.status is FitStatus.NETWORK_METRES
    np.testing.assert_array_equal(result.depth, [[1.0, 3.0], [np.nan, 80.0]])


@pytest.mark.parametrize("mode", fitting.MODES)
@pytest.mark.parametrize("method", CLASSIC)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
def test_few_points_never_crash_and_never_pretend(method: str, mode: str, count: int) -> None:
    relative, labels = bumpy(), cells()
    config = FitConfig(method=method, mode=mode)
    points = sample(3.0 * relative, count)
    result = fit(Prediction(relative, "depth_affine_invariant"), points, labels, config=config)
    few = count < config.enough_points()
    assert result.status is (FitStatus.MEDIAN_SCALE if few else FitStatus.OK)
    if few:
        np.testing.assert_allclose(result.depth, 3.0 * relative, rtol=1e-5)
        assert set(result.regions["status"]) == {RegionStatus.MEDIAN_SCALE}
        assert np.isfinite(result.std).all() == (count > 1)  # one point tells nothing of errors
        assert "too few" in result.message
    assert np.isfinite(result.depth).all()
    assert (result.depth > 0).all()


def test_points_that_cannot_be_used_are_counted_and_change_nothing() -> None:
    relative, labels = bumpy(), cells()
    relative[60, 80] = np.nan
    good = sample(truth_of(bumpy(), labels)[0], 300)
    bad = SparseDepth(
        rows=np.array([-1, HEIGHT, 5, 5, 60, 7], np.int32),
        cols=np.array([5, 5, -3, WIDTH, 80, 7], np.int32),
        depth=np.array([3, 3, 3, 3, 3, 500], np.float32),
        age_s=np.zeros(6, np.float32),
    )
    both = SparseDepth(
        *(
            np.concatenate([getattr(good, name), getattr(bad, name)])
            for name in ("rows", "cols", "depth", "age_s")
        )
    )
    prediction = Prediction(relative, "depth_affine_invariant")
    once, again = (
        fit(prediction, good, labels, config=SSF),
        fit(prediction, both, labels, config=SSF),
    )
    np.testing.assert_array_equal(again.depth, once.depth)
    assert np.isnan(again.point_residual[-6:]).all()
    assert not again.point_inlier[-6:].any()
    assert "300 of 306 points" in again.message
    assert np.isnan(again.depth[60, 80])
    assert np.isnan(again.std[60, 80])
    assert np.isnan(again.depth).sum() == 1
    none = fit(prediction, bad, labels, config=SSF)
    assert none.status is FitStatus.NO_POINTS
    assert "None of 6 points could be used" in none.message


@pytest.mark.parametrize("method", CLASSIC)
def test_a_silent_network_is_told_apart_from_silent_lidar(method: str) -> None:
    points = sample(bumpy(), 50)
    nothing = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    for values, kind in ((nothing, "depth_metric"), (nothing, "disparity_affine_invariant")):
        result = fit(Prediction(values, kind), points, cells(), config=FitConfig(method=method))
        assert result.status is FitStatus.NO_PREDICTION
        assert np.isnan(result.depth).all()
        assert "network gave no number" in result.message


@pytest.mark.parametrize("method", ["median", "region_median"])
def test_a_scale_needs_relative_depth_above_zero(method: str) -> None:
    points = sample(bumpy(), 50)
    prediction = Prediction(-bumpy(), "depth_affine_invariant")
    result = fit(prediction, points, cells(), config=FitConfig(method=method))
    assert result.status is FitStatus.NO_PREDICTION
    assert np.isnan(result.depth).all()
    assert np.isnan(result.std).all()
    labels = cells(1, 2)
    half = np.where(labels == 1, bumpy(), -bumpy())
    result = fit(
        Prediction(half, "depth_affine_invariant"), sample(bumpy() + 3, 50), labels, config=SSF
    )
    assert result.status is FitStatus.OK


@pytest.mark.parametrize("mode", fitting.MODES)
@pytest.mark.parametrize("method", REGION_METHODS)
def test_label_maps_of_every_sort(method: str, mode: str) -> None:
    relative = bumpy()
    truth, _ = truth_of(relative, cells())
    points = sample(truth, 200)
    prediction = Prediction(relative, "depth_affine_invariant")
    config = FitConfig(method=method, mode=mode)
    whole = fit(prediction, points, None, config=config)
    zeros = fit(prediction, points, np.zeros((HEIGHT, WIDTH), np.int32), config=config)
    np.testing.assert_allclose(zeros.depth, whole.depth, rtol=1e-6)
    assert zeros.regions["status"][0] == RegionStatus.GLOBAL
    assert whole.regions["status"][0] == RegionStatus.OK
    # every pixel its own region: all of them borrow
    single = np.arange(1, 24 * 32 + 1, dtype=np.int32).reshape(24, 32)
    small = Prediction(relative[:24, :32], "depth_affine_invariant")
    result = fit(small, sample(truth[:24, :32], 80), single, config=config)
    assert np.isfinite(result.depth).all()
    assert len(result.regions) == 24 * 32


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    relative = np.linspace(1, 2, shape[0] * shape[1], dtype=np.float32).reshape(shape)
    count = min(relative.size, 12)
    for method in CLASSIC:
        for mode in fitting.MODES:
            result = fit(
                Prediction(relative, "depth_affine_invariant"),
                sample(2.0 * relative, count),
                np.ones(shape, np.int32),
                config=FitConfig(method=method, mode=mode),
            )
            assert np.isfinite(result.depth).all()
            assert result.depth.shape == shape


def test_output_is_clamped_to_the_configured_depths() -> None:
    relative, labels = bumpy(), cells()
    truth, _ = truth_of(relative, labels)
    config = FitConfig(method="ssf", mode="paper")
    points = sample(truth, 600)
    prediction = Prediction(relative, "depth_affine_invariant")
    result = fit(prediction, points, labels, config=config, depth_range_m=(4.0, 6.0))
    assert result.depth.min() == 4
    assert result.depth.max() == 6
    outside = (points.depth < 4) | (points.depth > 6)
    assert np.isnan(result.point_residual[outside]).all()


def test_programming_errors_raise_sentences() -> None:
    prediction = Prediction(bumpy(), "depth_affine_invariant")
    points = sample(bumpy(), 50)
    with pytest.raises(ValueError, match="segment the image"):
        fit(prediction, points, cells()[1:], config=SSF)
    with pytest.raises(ValueError, match="below 0"):
        fit(prediction, points, cells() - 5, config=SSF)
    with pytest.raises(ConfigError, match="did you mean"):
        FitConfig(method="ssff")
    with pytest.raises(ValueError, match="is not below"):
        fit(prediction, points, config=SSF, depth_range_m=(5.0, 4.0))


def test_a_frame_costs_far_less_than_the_plain_loop() -> None:
    """The benchmark measures the ratio; here only that nobody has put a loop over pixels back."""
    labels = cells(10, 10, 480, 640)
    relative = bumpy(480, 640)
    truth = truth_of(relative, labels)[0]
    points = sample(truth * np.random.default_rng(0).normal(1, 0.01, truth.shape), 1000)
    sparse = points.to_map(480, 640)
    prediction = Prediction(relative, "depth_affine_invariant")

    def shortest(repeats: int, work) -> float:
        times = []
        for _ in range(repeats):
            start = time.thread_time()
            work()
            times.append(time.thread_time() - start)
        return min(times)

    ours = shortest(
        5, lambda: fit(prediction, points, labels, config=FitConfig(method="ssf", mode="paper"))
    )
    plain = shortest(2, lambda: speed.plain_fit(relative, sparse, labels))
    assert plain > 6 * ours


def simple_regions(image: np.ndarray) -> np.ndarray:
    """Connected pieces of similar colour; the real segmentation has its own tests."""
    smooth = cv2.pyrMeanShiftFiltering(image, 10, 22)
    lab = cv2.cvtColor(smooth, cv2.COLOR_RGB2LAB).astype(np.int64)
    ids = (lab[..., 0] // 26) * 4096 + (lab[..., 1] // 12) * 64 + lab[..., 2] // 12 + 1
    return label_maps.merge_small(connected(label_maps.relabel(ids)), 700)


def real_frame(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    image = cv2.imread(str(folder / "rgb.jpg"))[:, :, ::-1].copy()
    if (folder / "depth.npz").exists():
        depth = np.load(folder / "depth.npz")["depth"].astype(np.float32)
    else:
        depth = (
            cv2.imread(str(folder / "depth.png"), cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000
        )
    return image, np.where(depth > 0, depth, np.nan)


@pytest.mark.parametrize(
    "frame", ["tum_rgbd/open3d_tum_office", "rtabmap_lab/rgbd_17", "opencalib_road/ours_1"]
)
def test_on_real_frames_regions_beat_global_fits_and_the_interval_is_honest(
    shared: Path, frame: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    image, truth = real_frame(shared / "data" / frame)
    height, width = truth.shape
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(shared / "models" / "fastdepth_nyu_224.onnx"), options, ["CPUExecutionProvider"]
    )
    small = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    metres = session.run(None, {"image": small.transpose(2, 0, 1)[None]})[0][0]
    prediction = Prediction(cv2.resize(metres, (width, height)), "depth_metric")
    labels = simple_regions(image)
    points = sample(truth, 250)
    held_out = np.isfinite(truth)
    held_out[points.rows, points.cols] = False
    error = {}
    for method in CLASSIC:
        result = fit(prediction, points, labels, config=FitConfig(method=method))
        error[method] = evaluate(result.depth, truth, held_out).abs_rel
        assert 0.90 <= coverage(result.depth, result.std, truth, held_out) <= 0.99, method
    best_global = min(error["global_depth"], error["global_disparity"])
    assert error["slf"] < 0.85 * best_global
    assert error["ssf"] < 0.75 * best_global


def test_shared_frames_have_the_layout_these_tests_expect(shared: Path) -> None:
    folder = shared / "data" / "tum_rgbd" / "open3d_tum_office"
    intrinsics = json.loads((folder / "intrinsics.json").read_text())
    assert real_frame(folder)[1].shape == (intrinsics["height"], intrinsics["width"])
