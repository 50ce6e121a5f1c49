# SPDX-License-Identifier: Apache-2.0
"""The residual field: known truth recovered, symmetries kept, evidence honest."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.benchmarks.accuracy import Interpolation
from depth_node.config import ConfigError, replace
from depth_node.fitting import FitConfig, FitResult, FitStatus, fit
from depth_node.fitting.field import kernels, solve
from depth_node.fitting.numba_support import find_numba
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from depth_node.recordings.frames import find_frames, read_frame, split_lines, split_uniform
from depth_node.regions.segmentation import segment
from tests.helpers import REPO

HEIGHT, WIDTH = 240, 320
FIELD = FitConfig(method="field")


@dataclass(frozen=True)
class Room:
    """A floor, a wall and two boxes. image uint8 RGB, depth float32 m, labels int32."""

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    labels: NDArray[np.int32]


@pytest.fixture(scope="module")
def room() -> Room:
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    floor = 1.2 / np.maximum((rows - 0.4 * HEIGHT) / HEIGHT, 1e-3)
    depth = np.minimum(floor, 5.0 + 0.8 * cols / WIDTH)
    labels = np.where(floor < 5.0 + 0.8 * cols / WIDTH, 1, 2)
    colours = np.array([[0, 0, 0], [120, 90, 60], [180, 180, 170], [40, 60, 150], [60, 140, 50]])
    for label, (top, left, size, z) in enumerate([(70, 50, 60, 2.0), (110, 200, 75, 1.6)], start=3):
        depth[top : top + size, left : left + size] = z
        labels[top : top + size, left : left + size] = label
    shade = colours[labels] + np.random.default_rng(5).normal(0, 4, (HEIGHT, WIDTH, 1))
    image = np.clip(shade, 0, 255).astype(np.uint8)
    return Room(image, depth.astype(np.float32), labels.astype(np.int32))


def warp(seed: int, amplitude: float) -> NDArray[np.float64]:
    """A smooth factor over the image, as networks err."""
    coarse = np.random.default_rng(seed).normal(0, amplitude, (5, 6))
    return np.exp(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def network(room: Room, seed: int = 0, amplitude: float = 0.1) -> Prediction:
    """Disparity without scale and shift, smoothly wrong."""
    disparity = 3.0 / (room.depth * warp(seed, amplitude)) + 0.4
    return Prediction(disparity.astype(np.float32), "disparity_affine_invariant")


def measure(room: Room, count: int, seed: int = 1, area: Any = None) -> SparseDepth:
    """`count` pixels of the truth, at random, of `area` (H, W) bool if given."""
    allowed = np.ones(room.depth.shape, bool) if area is None else area
    rows, cols = np.nonzero(allowed)
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    rows, cols = rows[chosen], cols[chosen]
    return SparseDepth.from_arrays(rows, cols, room.depth[rows, cols])


def with_depth(points: SparseDepth, depth: NDArray[np.floating]) -> SparseDepth:
    return dataclasses.replace(points, depth=depth.astype(np.float32))


def error(result: FitResult, truth: NDArray[np.float32]) -> float:
    return float(np.nanmean(np.abs(result.depth - truth) / truth))


def solved(room: Room, points: SparseDepth, config: FitConfig = FIELD, **kind: Any) -> FitResult:
    prediction = kind.pop("prediction", None) or network(room)
    return fit(prediction, points, room.labels, image=room.image, config=config)


# --- the right answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("depth_affine_invariant", lambda z: 0.3 * z + 0.7),
        ("disparity_affine_invariant", lambda z: 5.0 / z + 2.0),
        ("log_depth_affine_invariant", lambda z: 1.5 * np.log(z) - 0.4),
        ("depth_metric", lambda z: z),
        ("disparity_metric", lambda z: 1 / z),
    ],
)
def test_perfect_network_gives_the_truth(room: Room, kind: str, values: Any) -> None:
    prediction = Prediction(values(room.depth.astype(np.float64)).astype(np.float32), kind)
    result = solved(room, measure(room, 60), prediction=prediction)
    assert result.status is FitStatus.OK
    np.testing.assert_allclose(result.depth, room.depth, rtol=2e-3)
    assert result.point_inlier.all()
    assert result.details["base"] == kind.split("_")[0]


def test_smooth_errors_of_the_network_vanish(room: Room) -> None:
    points = measure(room, 300)
    alone = solved(room, points, replace(FIELD, {"field.residual": False}))
    full = solved(room, points)
    assert error(full, room.depth) < 0.25 * error(alone, room.depth)


def test_answer_tends_to_the_points_as_they_grow_dense(room: Room) -> None:
    """Even where the network says nothing."""
    flat = Prediction(np.full(room.depth.shape, 2, np.float32), "depth_affine_invariant")
    errors = [
        error(solved(room, measure(room, n), prediction=flat), room.depth)
        for n in (100, 1000, 10000)
    ]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_upside_down_network_is_not_believed(room: Room) -> None:
    wrong = Prediction(room.depth, "disparity_affine_invariant")
    result = solved(room, measure(room, 300), prediction=wrong)
    assert result.details["scale"] == 0
    assert error(result, room.depth) < 0.1


def test_base_withstands_three_outliers_in_ten(room: Room) -> None:
    points = measure(room, 400)
    rng = np.random.default_rng(3)
    wrong = rng.random(400) < 0.3
    depth = np.where(wrong, points.depth * rng.uniform(0.4, 2, 400), points.depth)
    exact = Prediction((3.0 / room.depth + 0.4).astype(np.float32), "disparity_affine_invariant")
    config = replace(FIELD, {"field.residual": False})
    clean = solved(room, points, config, prediction=exact)
    dirty = solved(room, with_depth(points, depth), config, prediction=exact)
    assert dirty.details["scale"] == pytest.approx(clean.details["scale"], rel=0.02)
    assert np.median(np.abs(dirty.depth / clean.depth - 1)) < 0.01


def test_outliers_are_found_and_do_no_harm(room: Room) -> None:
    points = measure(room, 500)
    rng = np.random.default_rng(4)
    wrong = rng.random(500) < 0.1
    factor = np.where(rng.random(500) < 0.5, 0.5, 1.8)
    result = solved(room, with_depth(points, np.where(wrong, points.depth * factor, points.depth)))
    rejected = ~result.point_inlier
    assert (rejected & wrong).sum() >= 0.8 * wrong.sum()
    assert (rejected & ~wrong).sum() <= 0.02 * 500
    assert error(result, room.depth) < 0.01
    blind = solved(
        room,
        with_depth(points, np.where(wrong, points.depth * factor, points.depth)),
        replace(FIELD, {"field.outliers": False}),
    )
    assert error(result, room.depth) < 0.6 * error(blind, room.depth)


def test_range_noise_is_smoothed(room: Room) -> None:
    points = measure(room, 1500)
    noisy = points.depth * (1 + 0.03 * np.random.default_rng(0).standard_normal(1500))
    result = solved(room, with_depth(points, noisy), prediction=network(room, amplitude=0.05))
    assert error(result, room.depth) < 0.02


# --- symmetries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [7, 250, 2500])
def test_scaling_the_points_scales_the_answer(room: Room, count: int) -> None:
    points = measure(room, count)
    one = solved(room, points)
    three = solved(room, with_depth(points, points.depth * 3))
    np.testing.assert_allclose(three.depth, 3 * one.depth, rtol=2e-4)
    np.testing.assert_allclose(three.std, 3 * one.std, rtol=2e-3)


def test_order_of_the_points_changes_nothing(room: Room) -> None:
    points = measure(room, 700)
    order = np.random.default_rng(9).permutation(700)
    one, other = solved(room, points), solved(room, points.subset(order))
    np.testing.assert_array_equal(one.depth, other.depth)
    np.testing.assert_array_equal(one.std, other.std)
    np.testing.assert_array_equal(one.point_inlier[order], other.point_inlier)


def test_points_given_twice_change_nothing(room: Room) -> None:
    points = measure(room, 300)
    twice = points.subset(np.concatenate([np.arange(300), np.arange(0, 300, 3)]))
    one, other = solved(room, points), solved(room, twice)
    np.testing.assert_array_equal(one.depth, other.depth)
    np.testing.assert_array_equal(one.point_inlier[::3], other.point_inlier[300:])


def test_numbers_of_the_regions_change_nothing(room: Room) -> None:
    points = measure(room, 300)
    other_labels = np.array([0, 17, 4, 9, 2], np.int32)[room.labels]
    heeded = replace(FIELD, {"field.regions": True})
    one = fit(network(room), points, room.labels, image=room.image, config=heeded)
    other = fit(network(room), points, other_labels, image=room.image, config=heeded)
    np.testing.assert_array_equal(one.depth, other.depth)
    without = fit(network(room), points, room.labels, image=room.image, config=FIELD)
    assert not np.allclose(one.depth, without.depth)


def test_mirrored_picture_has_the_mirrored_answer(room: Room) -> None:
    points = measure(room, 250)
    prediction = network(room)
    one = fit(prediction, points, None, image=room.image, config=FIELD)
    mirrored = SparseDepth.from_arrays(points.rows, WIDTH - 1 - points.cols, points.depth)
    other = fit(
        Prediction(np.ascontiguousarray(prediction.values[:, ::-1]), prediction.kind),
        mirrored,
        None,
        image=np.ascontiguousarray(room.image[:, ::-1]),
        config=FIELD,
    )
    np.testing.assert_allclose(other.depth[:, ::-1], one.depth, rtol=1e-3)
    np.testing.assert_allclose(other.std[:, ::-1], one.std, rtol=1e-2)


# --- few points, missing things ------------------------------------------------------------------


def test_few_points_degrade_step_by_step(room: Room) -> None:
    status = {n: solved(room, measure(room, n)).status for n in (0, 1, 3, 4, 10)}
    assert status == {
        0: FitStatus.NO_POINTS,
        1: FitStatus.MEDIAN_SCALE,
        3: FitStatus.MEDIAN_SCALE,
        4: FitStatus.OK,
        10: FitStatus.OK,
    }


@pytest.mark.parametrize("count", [4, 5, 6, 8, 10])
def test_few_points_are_not_worse_than_the_global_fit(room: Room, count: int) -> None:
    own, plain = [], []
    for seed in range(8):
        points = measure(room, count, seed)
        prediction = network(room, seed)
        own.append(error(solved(room, points, prediction=prediction), room.depth))
        config = FitConfig(method="global_disparity")
        plain.append(error(solved(room, points, config, prediction=prediction), room.depth))
    assert np.mean(own) <= 1.03 * np.mean(plain)


def test_without_picture_and_regions(room: Room) -> None:
    points = measure(room, 300)
    result = fit(network(room), points, config=FIELD)
    assert np.isfinite(result.depth).all()
    assert error(result, room.depth) < 0.05


def test_silent_network_stays_unknown(room: Room) -> None:
    prediction = network(room)
    values = prediction.values.copy()
    values[:40] = np.nan
    points = measure(room, 200)
    result = solved(room, points, prediction=Prediction(values, prediction.kind))
    assert np.isnan(result.depth[:40]).all()
    assert np.isnan(result.std[:40]).all()
    assert np.isfinite(result.depth[40:]).all()
    assert not result.point_inlier[points.rows < 40].any()


def test_infinite_numbers_of_a_network_are_unknown_and_huge_ones_are_not(room: Room) -> None:
    prediction = network(room)
    values = prediction.values.copy()
    values[:20], values[20:40] = np.inf, -np.inf
    result = solved(room, measure(room, 200), prediction=Prediction(values, prediction.kind))
    np.testing.assert_array_equal(np.isnan(result.depth), ~np.isfinite(values))
    huge = Prediction(room.depth * np.float32(1e34), "depth_affine_invariant")
    result = solved(room, measure(room, 200), prediction=huge)
    np.testing.assert_allclose(result.depth, room.depth, rtol=2e-3)


def test_one_pixel_wide_and_tiny_pictures() -> None:
    for shape in ((1, 40), (40, 1), (3, 3)):
        rows, cols = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
        values = np.linspace(1, 2, shape[0] * shape[1], dtype=np.float32).reshape(shape)
        points = SparseDepth.from_arrays(rows, cols, 2 * values.ravel() + 1)
        image = np.zeros((*shape, 3), np.uint8)
        prediction = Prediction(values, "depth_affine_invariant")
        result = fit(prediction, points, image=image, config=FIELD)
        np.testing.assert_allclose(result.depth, 2 * values + 1, rtol=5e-2)


def test_older_points_weigh_less(room: Room) -> None:
    """Two scans that contradict each other by 6 %: the answer leans to the fresh one."""
    points = measure(room, 800)
    old = np.arange(800) % 2 == 0
    depth = np.where(old, points.depth * 1.06, points.depth)
    age = np.where(old, 3.0, 0.0).astype(np.float32)
    aged = dataclasses.replace(with_depth(points, depth), age_s=age)
    exact = Prediction((3.0 / room.depth + 0.4).astype(np.float32), "disparity_affine_invariant")
    fresh_share = []
    for each in (aged, with_depth(points, depth)):
        ratio = np.median(solved(room, each, prediction=exact).depth / room.depth)
        fresh_share.append(abs(ratio - 1))
    assert fresh_share[0] < 0.85 * fresh_share[1]


# --- interval ------------------------------------------------------------------------------------


def inside(result: FitResult, truth: NDArray[np.float32], area: Any = None) -> float:
    within = np.abs(result.depth - truth) <= 1.96 * result.std
    return float(within.mean() if area is None else within[area].mean())


@pytest.mark.parametrize("count", [50, 250, 1000])
def test_interval_holds_the_truth(room: Room, count: int) -> None:
    shares = [
        inside(solved(room, measure(room, count, seed), prediction=network(room, seed)), room.depth)
        for seed in range(4)
    ]
    assert 0.90 <= np.mean(shares) <= 0.995


def test_interval_holds_between_scan_lines(room: Room) -> None:
    """Points of a line are close to each other; the pixels between lines are not."""
    on_line = np.zeros(room.depth.shape, bool)
    on_line[6::24] = True
    result = solved(room, measure(room, 1500, area=on_line))
    assert inside(result, room.depth, ~on_line) >= 0.82


def test_extrapolation_is_admitted(room: Room) -> None:
    left = np.zeros(room.depth.shape, bool)
    left[:, : WIDTH // 2] = True
    own, plain, shares = [], [], []
    for seed in range(6):
        points = measure(room, 250, seed, left)
        prediction = network(room, seed)
        result = solved(room, points, prediction=prediction)
        config = FitConfig(method="global_disparity", mode="sensor")
        other = solved(room, points, config, prediction=prediction)
        own.append(np.mean(np.abs(result.depth - room.depth)[~left] / room.depth[~left]))
        plain.append(np.mean(np.abs(other.depth - room.depth)[~left] / room.depth[~left]))
        shares.append(inside(result, room.depth, ~left))
        relative = result.std / result.depth
        assert np.median(relative[:, -40:]) > 1.5 * np.median(relative[left])
    assert np.mean(own) <= 1.03 * np.mean(plain)
    assert np.mean(shares) >= 0.9


def test_beyond_the_limit_the_interval_is_unknown(room: Room) -> None:
    left = np.zeros(room.depth.shape, bool)
    left[:, :100] = True
    points = measure(room, 300, area=left)
    result = solved(room, points, replace(FIELD, {"field.max_extrapolation": 0.25}))
    assert np.isnan(result.std[:, 200:]).all()
    assert np.isfinite(result.depth).all()
    assert np.isfinite(result.std[:, :150]).all()


def test_dense_scan_lines_are_joined_better_than_by_interpolation(room: Room) -> None:
    """Points every pixel along lines 12 pixels apart, and a network that says nothing."""
    blind = Prediction(np.full(room.depth.shape, 2, np.float32), "depth_affine_invariant")
    on_line = np.zeros(room.depth.shape, bool)
    for row in range(3):
        on_line[row::12] = True
    points = measure(room, np.count_nonzero(on_line), area=on_line)
    result = solved(room, points, prediction=blind)
    rows, cols = np.nonzero(~on_line)
    plain = Interpolation.of(points, rows, cols)(points.depth)
    truth = room.depth[rows, cols]
    assert error(result, room.depth) <= 0.75 * np.mean(np.abs(plain - truth) / truth)


# --- loops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 60, 600, 2500])
def test_numpy_form_gives_the_same_numbers(room: Room, count: int) -> None:
    pytest.importorskip("numba")
    points = measure(room, count)
    one = solved(room, points, replace(FIELD, {"field.compiler": "numba"}))
    other = solved(room, points, replace(FIELD, {"field.compiler": "numpy"}))
    assert one.details["compiler"] == "numba"
    assert other.details["compiler"] == "numpy"
    np.testing.assert_allclose(one.depth, other.depth, rtol=1e-5)
    np.testing.assert_allclose(one.std, other.std, rtol=1e-4)
    np.testing.assert_array_equal(one.point_inlier, other.point_inlier)


@pytest.mark.parametrize("seed", range(4))
def test_numpy_form_gives_the_same_numbers_where_neighbours_are_equally_near(seed: int) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(seed)
    height, width, count = 48, 115, 600
    rows, cols = rng.integers(0, height // 3, count), rng.integers(0, width // 4, count)
    depth = 2 + np.sin(rows / 5) + rng.normal(0, 0.02, count)
    flat = Prediction(np.ones((height, width), np.float32), "disparity_affine_invariant")
    found = [
        solve.solve(
            flat, rows, cols, depth, np.zeros(count), None, None, solve.FieldConfig(compiler=name)
        )
        for name in ("numba", "numpy")
    ]
    np.testing.assert_allclose(found[0].depth, found[1].depth, rtol=1e-5)
    np.testing.assert_allclose(found[0].std, found[1].std, rtol=1e-4)


def test_kriging_agrees_with_a_dense_solution() -> None:
    rng = np.random.default_rng(0)
    point, query = rng.uniform(0, 2, (12, 6)), rng.uniform(0, 2, (5, 6))
    value, noise = rng.normal(size=12), rng.uniform(1, 3, 12)
    doubt = rng.uniform(0, 0.2, 12)
    label: NDArray[np.int32] = rng.integers(0, 2, 12).astype(np.int32)

    def correlation(a: NDArray[Any], b: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        full = ((a[:, None] - b[None]) ** 2).sum(axis=2) + 0.3 * other
        place = ((a[:, None, :2] - b[None, :, :2]) ** 2).sum(axis=2)
        return 0.4 / (1 + full) + 0.6 / (1 + 0.05 * place)

    square = ((query[:, None] - point[None]) ** 2).sum(axis=2)
    index = np.argsort(square, axis=1)
    square = np.take_along_axis(square, index, axis=1)
    matrix = correlation(point, point, label[:, None] != label[None])
    matrix += np.diag(0.1 * noise + doubt)
    towards = correlation(query, point, np.zeros((5, 12)))
    weights = np.linalg.solve(matrix, towards.T)
    for name in ("numba", "numpy"):
        if name == "numba":
            pytest.importorskip("numba")
        mean, variance, sill = (np.empty((1, 5)) for _ in range(3))
        kernels.kernels(name).krige(
            query, index, square, point, label, value, noise, doubt, np.array([0.1]),
            0.6, 0.05, 0.3, mean, variance, sill,
        )  # fmt: skip
        np.testing.assert_allclose(mean[0], weights.T @ value, rtol=1e-9)
        np.testing.assert_allclose(variance[0], 1 - (weights * towards.T).sum(axis=0), rtol=1e-9)
        np.testing.assert_allclose(sill[0], value @ np.linalg.solve(matrix, value) / 12, rtol=1e-9)


@pytest.mark.parametrize(
    ("height", "width", "radius"), [(60, 80, 3.3), (5, 6, 9.0), (40, 300, 120.0)]
)
def test_details_are_spread_alike(height: int, width: int, radius: float) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(4)
    count = 50

    def drawn(*shape: int) -> NDArray[np.float32]:
        return rng.random(shape, np.float32)

    rows, cols = drawn(count) * (height - 1), drawn(count) * (width - 1)
    points = (rows, cols, drawn(count), drawn(count), drawn(count, 3), drawn(count))
    maps = (drawn(height, width), drawn(3, height, width))
    found = []
    for name in ("numba", "numpy"):
        total: NDArray[np.float32] = np.zeros((height, width), np.float32)
        given: NDArray[np.float32] = np.zeros((height, width), np.float32)
        kernels.kernels(name).spread(*points, *maps, radius, 0.5, 100.0, 5.0, 0.06, total, given)
        found.append((total, given))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


def test_neighbours_are_found_alike_however_many_there_are() -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(5)
    rows, cols, count = 3, 4, 900  # 75 points a cell: more than are ordered by counting
    cell = np.sort(rng.integers(0, rows * cols, count))
    start = np.searchsorted(cell, np.arange(rows * cols + 1)).astype(np.int64)
    point, query = rng.normal(size=(count, 6)), rng.normal(size=(40, 6))
    point[1::7] = point[::7][: len(point[1::7])]  # equally near: the first one counts
    label: NDArray[np.int32] = rng.integers(0, 3, count).astype(np.int32)
    hole = np.where(rng.random(40) < 0.3, 0.5, 0.0)
    shape = np.array([1.0, 0.1, 0.7])
    cell_of_query = rng.integers(0, rows * cols, 40)
    found = []
    for name in ("numba", "numpy"):
        index: NDArray[np.int64] = np.empty((40, 10), np.int64)
        square = np.empty((40, 10))
        kernels.kernels(name).nearest(
            query, label[:40], cell_of_query, hole, shape,
            point, label, start, rows, cols, 15, 0.1, index, square,
        )  # fmt: skip
        found.append((index, square))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without it."""
    monkeypatch.setitem(sys.modules, "numba", None)
    find_numba.cache_clear()
    kernels.kernels.cache_clear()
    yield
    find_numba.cache_clear()
    kernels.kernels.cache_clear()


@pytest.mark.usefixtures("without_numba")
def test_numba_that_is_missing_costs_time_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert kernels.kernels("auto").name == "numpy"
    assert "numba is not installed: method field runs as NumPy code" in caplog.text
    caplog.clear()
    assert kernels.kernels("numpy").name == "numpy"
    assert not caplog.text
    with pytest.raises(RuntimeError, match="pip install --upgrade numba"):
        kernels.kernels("numba")


def test_without_a_folder_for_machine_code_it_is_compiled_anew_and_said_once() -> None:
    pytest.importorskip("numba")
    code = """
from numba.core import caching
caching.CacheImpl._locator_classes = []  # as where package, home and temporary folder are read-only
from depth_node.fitting.field import solve
solve.warm_up()
print(solve.kernels("auto").name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "numba"
    assert done.stderr.count("NUMBA_CACHE_DIR") == 1


def test_numba_that_cannot_be_loaded_is_as_good_as_missing(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.21 or less')\n")
    code = "from depth_node.fitting.field.kernels import kernels; print(kernels('auto').name)"
    path = os.pathsep.join([str(tmp_path), str(REPO)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "numpy"
    assert "cannot be loaded (ImportError: Numba needs NumPy 1.21 or less)" in done.stderr


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="compiler"):
        solve.FieldConfig(compiler="fortran")
    with pytest.raises(ConfigError, match="neighbours"):
        replace(FIELD, {"field.neighbours": 1})
    solve.warm_up()


# --- real frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [50, 250, 1000])
def test_real_frame_beats_the_papers_method(shared: Path, count: int) -> None:
    """A network's place is taken by the frame's blurred, bent truth: no weights are needed."""
    frame = read_frame(find_frames(shared / "data" / "tum_rgbd")[0])
    known = np.where(np.isfinite(frame.truth), frame.truth, np.nanmedian(frame.truth))
    blurred = cv2.GaussianBlur(known, (0, 0), 6).astype(np.float64)
    bent = blurred * np.linspace(0.9, 1.2, known.shape[1])
    prediction = Prediction((1 / bent + 0.2).astype(np.float32), "disparity_affine_invariant")
    labels = segment(frame.image, prediction.values)
    split = split_uniform(frame, count, 0)
    scores = {}
    for method, mode in (("field", "sensor"), ("ssf", "paper")):
        config = FitConfig(method=method, mode=mode)
        result = fit(prediction, split.points, labels, image=frame.image, config=config)
        wrong = np.abs(result.depth - frame.truth)[split.scored]
        scores[method] = float(np.mean(wrong / frame.truth[split.scored]))
    assert scores["field"] < {50: 1.05, 250: 0.95, 1000: 0.8}[count] * scores["ssf"]


def test_real_lidar_lines(shared: Path) -> None:
    frame = read_frame(find_frames(shared / "data" / "opencalib_road")[0])
    flat = Prediction(np.ones(frame.truth.shape, np.float32), "depth_affine_invariant")
    split = split_lines(frame, 4, 0)
    result = fit(flat, split.points, None, image=frame.image, config=FIELD)
    truth = frame.truth[split.scored]
    assert np.mean(np.abs(result.depth[split.scored] - truth) / truth) < 0.15
    within = np.abs(result.depth[split.scored] - truth) <= 1.96 * result.std[split.scored]
    assert 0.88 <= within.mean() <= 0.99
