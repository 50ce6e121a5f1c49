# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels: source, NumPy twins, and the code on the CPU that does the same.

Every test of a kernel runs twice: its source compiled for this CPU, through the whole of
engine/cuda.py (tests/helpers/gpu_on_cpu.py), and on the GPU where there is one.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

import depth_node.fitting.field.solve
from depth_node.engine import gpu_kernels
from depth_node.engine.gpu_kernels import Line, Resampling, Taps
from depth_node.engine.preprocess import INTERPOLATIONS, RESIZES, InputSpec, to_tensor
from depth_node.fitting import surface_maps
from depth_node.fitting.field.settings import FieldConfig
from depth_node.fitting.region_surfaces import SurfaceTable
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import KINDS, Prediction

pytest.importorskip("onnxruntime")
from tests.helpers.views import sample_image

SIZES = [(60, 80), (97, 131), (120, 168), (201, 320), (270, 480)]


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", SIZES)
def test_the_twin_is_to_tensor(interpolation: str, resize: str, size: tuple[int, int]) -> None:
    """The pixels are equal, except for a few that OpenCV rounds differently by one grey level."""
    spec = InputSpec(120, 168, resize=resize, interpolation=interpolation, scale=1.0)
    image = sample_image(*size)
    step = np.abs(
        gpu_kernels.image_to_tensor(image, Resampling.of(*size, spec)) - to_tensor(image, spec)
    )
    if interpolation != "nearest":
        assert step.max() <= 1.001
    elif not cv2.__version__.startswith("4."):  # 5 takes the other one of two that are as near
        assert np.count_nonzero(step) < 0.15 * step.size
    if cv2.__version__.startswith("4."):  # how it rounds is no promise of OpenCV's
        assert interpolation != "nearest" or step.max() == 0
        assert step.mean() < (0.05 if interpolation == "area" else 0.01)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_the_twin_scales_and_orders_channels_as_to_tensor(order: str, dtype: str) -> None:
    plain = dtype == "uint8"
    values: dict[str, Any] = {} if plain else {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    scale = 1.0 if plain else 1 / 255
    spec = InputSpec(60, 80, channel_order=order, scale=scale, dtype=dtype, **values)
    image = sample_image(60, 80)
    expected = to_tensor(image, spec)
    found = gpu_kernels.image_to_tensor(image, Resampling.of(60, 80, spec))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)  # nothing is resized, so nothing is rounded
    turned = gpu_kernels.image_to_tensor(image[..., ::-1], Resampling.of(60, 80, spec, "bgr"))
    np.testing.assert_array_equal(turned, expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_weights_sum_to_one_and_stay_inside(interpolation: str) -> None:
    for source, target in ((10, 3), (3, 10), (7, 7), (640, 518), (1, 4), (5, 1)):
        if interpolation == "area" and target > source:
            continue
        taps = Taps.of(source, target, interpolation, start=2)
        np.testing.assert_allclose(taps.weight.sum(axis=1), 1, atol=1e-5)
        assert taps.index.min() >= 2 and taps.index.max() < source + 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", RESIZES)
def test_the_kernel_is_its_twin(cuda: Any, dtype: str, interpolation: str, resize: str) -> None:
    plain = dtype == "uint8"
    values: dict[str, Any] = {} if plain else {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    spec = InputSpec(
        45, 70, "bgr", 1.0 if plain else 1 / 255, dtype=dtype, resize=resize,
        interpolation=interpolation, **values,
    )  # fmt: skip
    with cuda.Gpu() as gpu:
        loaded = cuda.CompiledKernels(gpu)
        pinned = gpu.pinned(spec.shape, dtype, "the tensor")
        place = gpu.allocate(pinned.nbytes, "the tensor")
        for height, width in ((61, 83), (30, 41)):
            how = Resampling.of(height, width, spec)
            image = sample_image(height, width)
            entry = cuda.ImageInput(loaded, height, width, how, place)
            entry.enqueue(image)
            gpu.download(pinned, place)
            gpu.wait()
            expected = gpu_kernels.image_to_tensor(image, how)
            # Sums in another order may round one grey level in a few places elsewhere.
            level = 1.0 if plain else float(how.gains.max())
            step = np.abs(pinned.astype(np.float32) - expected.astype(np.float32))
            ulp = 2e-3 if dtype == "float16" else 0.0  # of numbers between 2 and 4
            assert (step > 1e-3 * level + ulp).mean() < 2e-3
            assert step.max() <= 1.01 * level + ulp
            entry.close()


def test_half_precision_is_rounded_as_numpy_does(cuda: Any) -> None:
    """Covers all kinds of numbers: pixels of one channel are multiplied by gains of all sizes."""
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    for gain in (1.0, 1e-3, 1e-7, 1e-9, 255.9, 257.1, 65504 / 255, 1e3, 1e38):
        spec = InputSpec(1, 256, scale=gain, dtype="float16", mean=(0.3 * gain, 0.0, -gain))
        how = Resampling.of(1, 256, spec)
        with cuda.Gpu() as gpu, np.errstate(over="ignore"):
            pinned = gpu.pinned(spec.shape, "float16", "the tensor")
            place = gpu.allocate(pinned.nbytes, "the tensor")
            entry = cuda.ImageInput(cuda.CompiledKernels(gpu), 1, 256, how, place)
            entry.enqueue(image)
            gpu.download(pinned, place)
            gpu.wait()
            expected = gpu_kernels.image_to_tensor(image, how)
            # A GPU multiplies and adds in one step, so the value before rounding can differ.
            bits = pinned.view(np.int16).astype(int) - expected.view(np.int16).astype(int)
        assert np.abs(bits).max() <= 1
        assert (bits != 0).mean() < 0.02


def surfaces(labels: int, rng: np.random.Generator) -> SurfaceTable:
    """Random table of the shape that a fit of regions has; one label has no surface."""
    parameters = rng.uniform(-0.2, 0.2, (labels, 4))
    parameters[:, 0] += 1
    parameters[:, 3] += 2
    parameters[-1] = np.nan
    limits = np.stack([np.full(labels, 0.5), rng.uniform(2.5, 9, labels)], axis=1)
    found = object.__new__(SurfaceTable)
    for name, value in (("parameters", parameters), ("limits", limits), ("rows", parameters)):
        object.__setattr__(found, name, value)
    return found


@pytest.mark.parametrize("in_disparity", [False, True])
@pytest.mark.parametrize("labelled", [True, False])
def test_regions_twin_is_the_fits_own_map(in_disparity: bool, labelled: bool) -> None:
    rng = np.random.default_rng(1)
    relative = rng.uniform(0.1, 3, (47, 65)).astype(np.float32)
    relative[3, 4] = np.nan
    labels = rng.integers(0, 6, relative.shape).astype(np.int32) if labelled else None
    table = surfaces(6, rng)
    expected = surface_maps.depth_map(
        surface_maps.ImageGrid.of(relative), labels, table,
        in_disparity=in_disparity, max_depth_m=50.0,
    )  # fmt: skip
    rows = np.concatenate([table.parameters, table.limits], axis=1)
    found = gpu_kernels.apply_table(relative, labels, rows, 1 / 50.0 if in_disparity else 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isnan(found[3, 4])


@pytest.mark.parametrize("least", [0.0, 0.02])
@pytest.mark.parametrize("labelled", [True, False])
def test_regions_kernel_is_its_twin(cuda: Any, least: float, labelled: bool) -> None:
    rng = np.random.default_rng(2)
    relative = rng.uniform(0.1, 3, (47, 65)).astype(np.float32)
    relative[3, 4] = np.nan
    labels = rng.integers(-1, 8, relative.shape).astype(np.int32) if labelled else None
    table = surfaces(6, rng)
    rows = np.concatenate([table.parameters, table.limits], axis=1)
    expected = gpu_kernels.apply_table(relative, labels, rows, least)
    with cuda.Gpu() as gpu:
        applied = cuda.prepare_table(cuda.CompiledKernels(gpu), relative, labels, rows, least)
        applied.launch()
        found = applied.result()
        applied.close()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isnan(found[3, 4])
    if labelled:  # a label that the table does not have gives NaN, not another label's depth
        assert labels is not None and np.isnan(found[(labels < 0) | (labels >= 6)]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_field_twin_is_the_fields_own_depth(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin computes the depth of field.solve from the grid that it enlarges at its end."""
    rng = np.random.default_rng(3)
    rows, cols = np.mgrid[0:60, 0:80]
    truth = (2 + np.sin(cols / 9) * np.cos(rows / 7)).astype(np.float32)
    values = {"disparity": 1 / truth, "log": np.log(truth)}.get(kind.split("_")[0], truth)
    values = (values + rng.normal(0, 0.01, truth.shape)).astype(np.float32)
    values[5, 6] = np.nan
    points = rng.permutation(truth.size)[:150]
    points = points[points != 5 * 80 + 6]
    row, col = np.divmod(points, 80)
    grids: list[np.ndarray] = []
    resized = depth_node.fitting.field.base.resized

    def caught(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        grids.append(image)
        return resized(image, size)

    bases: list[Any] = []
    fit_base = depth_node.fitting.field.solve.fit_base

    def noted(*given: Any) -> Any:
        bases.append(fit_base(*given))
        return bases[-1]

    monkeypatch.setattr(depth_node.fitting.field.base, "resized", caught)
    monkeypatch.setattr(depth_node.fitting.field.solve, "fit_base", noted)
    found = depth_node.fitting.field.solve.solve(
        Prediction(values, kind),
        SparseDepth.from_arrays(row, col, truth[row, col]),
        None,
        None,
        FieldConfig(compiler="numpy"),
    )
    (base,) = bases
    fitted = base.line
    line = Line(
        fitted.kind, fitted.scale, fitted.shift, fitted.nearest, fitted.farthest, 0.05, 200.0
    )
    close = [
        np.allclose(
            gpu_kernels.apply_grid(values, grid, line), found.depth, rtol=2e-5, equal_nan=True
        )
        for grid in grids
        if grid.min() > 0
    ]
    assert any(close), "no grid that the field enlarged gives its depth"
    assert np.isnan(found.depth[5, 6])


@pytest.mark.parametrize("space", gpu_kernels.SPACES)
@pytest.mark.parametrize("cells", [(30, 40), (1, 1), (60, 80), (2, 90)])
def test_field_kernel_is_its_twin(cuda: Any, space: str, cells: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    values = rng.uniform(-1, 2, (60, 80)).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    factor = np.exp(rng.normal(0, 0.3, cells)).astype(np.float32)
    line = Line(space, 0.9, 0.4, 0.3, 12.0, 0.5, 9.0)
    expected = gpu_kernels.apply_grid(values, factor, line)
    with cuda.Gpu() as gpu:
        applied = cuda.prepare_grid(cuda.CompiledKernels(gpu), values, factor, line)
        applied.launch()
        found = applied.result()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(found[0, :3]).all() and np.isfinite(found[1:]).all()
    assert found[1:].min() >= 0.5 and np.nanmax(found) <= 9.0
