# SPDX-License-Identifier: Apache-2.0
"""The loops: numba and NumPy agree, and a missing numba is announced."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.config import replace
from depth_node.fitting.field import kernels, solve
from depth_node.fitting.field.detail_loops import (
    DetailPoints,
    DetailWeights,
    LeftOutPoints,
    Predicted,
)
from depth_node.fitting.field.kernels import (
    Correlation,
    Kriged,
    Neighbours,
    Observations,
    Points,
    Queries,
)
from depth_node.fitting.field.settings import FieldConfig
from depth_node.fitting.numba_support import find_numba
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from tests.helpers import REPO
from tests.helpers.field_room import FIELD, Room, measure, solved


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
    points = SparseDepth.from_arrays(rows, cols, depth)
    flat = Prediction(np.ones((height, width), np.float32), "disparity_affine_invariant")
    found = [
        solve.solve(flat, points, None, None, FieldConfig(compiler=name))
        for name in ("numba", "numpy")
    ]
    np.testing.assert_allclose(found[0].depth, found[1].depth, rtol=1e-5)
    np.testing.assert_allclose(found[0].std, found[1].std, rtol=1e-4)


def test_kriging_agrees_with_a_dense_solution() -> None:
    rng = np.random.default_rng(0)
    point, query = rng.uniform(0, 2, (12, 6)), rng.uniform(0, 2, (5, 6))
    value, noise = rng.normal(size=12), rng.uniform(1, 3, 12)
    extra = rng.uniform(0, 0.2, 12)
    label: NDArray[np.int32] = rng.integers(0, 2, 12).astype(np.int32)

    def correlation(a: NDArray[Any], b: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
        full = ((a[:, None] - b[None]) ** 2).sum(axis=2) + 0.3 * other
        place = ((a[:, None, :2] - b[None, :, :2]) ** 2).sum(axis=2)
        return 0.4 / (1 + full) + 0.6 / (1 + 0.05 * place)

    square = ((query[:, None] - point[None]) ** 2).sum(axis=2)
    indices = np.argsort(square, axis=1)
    neighbours = Neighbours(indices, np.take_along_axis(square, indices, axis=1))
    points = Points.of(point, label, np.array([0, 12]), 1, 1)
    matrix = correlation(point, point, label[:, None] != label[None])
    matrix += np.diag(0.1 * noise + extra)
    towards = correlation(query, point, np.zeros((5, 12)))
    weights = np.linalg.solve(matrix, towards.T)
    for name in ("numba", "numpy"):
        if name == "numba":
            pytest.importorskip("numba")
        kriged = Kriged.empty(1, 5)
        observations = Observations(value, noise, extra)
        kernels.kernels(name).krige(
            query, neighbours, points, observations, np.array([0.1]),
            Correlation(long_weight=0.6, long_scale=0.05, label_gap=0.3), kriged,
        )  # fmt: skip
        mean, variance, sill = kriged
        np.testing.assert_allclose(mean[0], weights.T @ value, rtol=1e-9)
        np.testing.assert_allclose(variance[0], 1 - (weights * towards.T).sum(axis=0), rtol=1e-9)
        np.testing.assert_allclose(sill[0], value @ np.linalg.solve(matrix, value) / 12, rtol=1e-9)


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
        neighbours = Neighbours.empty(40, 10)
        kernels.kernels(name).nearest(
            Queries(query, label[:40], cell_of_query, hole, shape),
            Points.of(point, label, start, rows, cols), 15, 0.1, neighbours,
        )  # fmt: skip
        found.append(neighbours)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)


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
    points = DetailPoints(rows, cols, drawn(count), drawn(count), drawn(count, 3), drawn(count))
    weights = DetailWeights(radius, 0.5, 100.0, 5.0, 0.06)
    maps = (drawn(height, width), drawn(3, height, width))
    found = []
    for name in ("numba", "numpy"):
        correction: NDArray[np.float32] = np.empty((height, width), np.float32)
        kernels.kernels(name).spread(points, *maps, weights, 0.2, correction)
        found.append(correction)
    assert np.abs(found[0]).max() > 0.01
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_left_out_points_are_predicted_alike() -> None:
    """Neighbours of which some are missing, and one as far as a pixel is from its nearest."""
    pytest.importorskip("numba")
    rng = np.random.default_rng(6)
    count, tested = 40, 12

    def drawn(*shape: int) -> NDArray[np.float32]:
        return rng.random(shape, np.float32)

    points = DetailPoints(
        30 * drawn(count), 30 * drawn(count), drawn(count), drawn(count), drawn(count, 3),
        drawn(count),
    )  # fmt: skip
    which = rng.permutation(count)[:tested]
    indices = np.stack([rng.permutation(count)[:5] for _ in which])
    indices[:4, 3:] = -1
    rows, cols = 30 * rng.random((2, count))
    left_out = LeftOutPoints(which, rng.random(tested), rng.uniform(0.3, 5, tested), rows, cols)
    clips = np.array([0.02, 9.0])
    found = []
    for name in ("numba", "numpy"):
        total, rest, beside = np.empty((3, tested))
        predicted = Predicted(total, rest, beside, np.empty((2, tested)))
        kernels.kernels(name).predict(
            points, left_out, indices, DetailWeights(20.0, 0.5, 100.0, 5.0, np.inf), clips,
            predicted,
        )  # fmt: skip
        found.append(predicted)
    assert (found[0].total != found[0].beside).any()
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["numba", "numpy"])
def test_rounding_does_not_say_which_of_two_level_lines_is_near(name: str) -> None:
    """Of equally near points above and below, the first, which is the most similar, counts."""
    if name == "numba":
        pytest.importorskip("numba")
    rng = np.random.default_rng(4)
    value, colour, weight = 0.1 * rng.random((2, 3)), rng.random((3, 3)), rng.random(3)

    def copied(above: float, below: float, order: list[int]) -> NDArray[np.float64]:
        row, col = np.array([0.0, -above, below]), np.zeros(3)
        points = DetailPoints(*(np.float32(each) for each in (row, col, *value, colour, weight)))
        left_out = LeftOutPoints(np.array([0]), np.array([0.1]), np.array([1.5]), row, col)
        total, rest, beside = np.empty((3, 1))
        predicted = Predicted(total, rest, beside, np.empty((2, 1)))
        kernels.kernels(name).predict(
            points, left_out, np.array([order]), DetailWeights(20.0, 0.5, 100.0, 5.0, np.inf),
            np.array([0.02, 9.0]), predicted,
        )  # fmt: skip
        return predicted.copied

    for order in ([1, 2], [2, 1]):
        alike = copied(6, 6, order)
        for above, below in ((6, 6 + 1e-9), (6 + 1e-9, 6)):
            np.testing.assert_allclose(copied(above, below, order), alike, rtol=1e-5)
    assert not np.allclose(copied(6, 6, [1, 2]), copied(6, 6, [2, 1]), rtol=0.01)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate a machine without numba."""
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


@pytest.mark.slow
def test_without_a_folder_for_machine_code_it_is_compiled_anew_and_said_once() -> None:
    pytest.importorskip("numba")
    code = """
from numba.core import caching
caching.CacheImpl._locator_classes = []  # as where package, home and temporary folder are read-only
from depth_node.fitting.field.kernels import kernels
print(kernels("auto").name)
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


@pytest.mark.slow
def test_machine_code_is_kept_from_one_start_to_the_next(tmp_path: Path) -> None:
    """Named tuples among the arguments do not keep numba from finding what it compiled before."""
    pytest.importorskip("numba")
    code = """
from depth_node.fitting.field.kernels import kernels
for name in ("nearest", "krige", "agree", "spread", "mean", "answer"):
    stats = getattr(kernels("numba"), name).loop.stats
    print(name, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
    names = ("nearest", "krige", "agree", "spread", "mean", "answer")
    count = {name: 2 if name == "mean" else 1 for name in names}  # of metres and of colours
    for found in ("0 {}", "{} 0"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(REPO), "NUMBA_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split("\n")[:-1] == [
            f"{name} {found.format(count[name])}" for name in names
        ]
