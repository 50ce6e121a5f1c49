# SPDX-License-Identifier: Apache-2.0
"""The GPU's kernels: source, NumPy twins, and the code on the CPU that does the same.

Every test of a kernel runs twice: its source compiled for this CPU, through the whole of
engine/cuda.py (gpu_on_cpu.py), and on the GPU where there is one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import depth_node.fitting.field.solve
from depth_node.engine import EngineError, gpu_kernels
from depth_node.engine.gpu_kernels import Line, Resampling, Taps
from depth_node.engine.preprocess import INTERPOLATIONS, RESIZES, InputSpec, to_tensor
from depth_node.fitting import surface_maps
from depth_node.fitting.field.settings import FieldConfig
from depth_node.fitting.region_surfaces import SurfaceTable
from depth_node.prediction import KINDS, Prediction

pytest.importorskip("onnxruntime")
from tests.helpers.gpu_on_cpu import Error, Machine

SIZES = [(60, 80), (97, 131), (120, 168), (201, 320), (270, 480)]


def sample_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth image with noise, as a camera gives it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int64)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module depth_node.engine.cuda on a played machine, and on a real one."""
    if request.param == "cpu":
        Machine().install(monkeypatch)
        yield importlib.import_module("depth_node.engine.cuda")
        return
    try:
        module = importlib.import_module("depth_node.engine.cuda")
        reason = module.missing()
    except ImportError as error:
        reason = str(error)
    if reason and os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail(f"no GPU: {reason} (REQUIRE_GPU=1 promises it)")
    if reason:
        pytest.skip(f"no GPU: {reason}")
    yield module


# --- image to tensor


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", SIZES)
def test_the_twin_is_to_tensor(interpolation: str, resize: str, size: tuple[int, int]) -> None:
    """The same pixels, but for a few that OpenCV rounds otherwise by one grey level."""
    spec = InputSpec(120, 168, resize=resize, interpolation=interpolation, scale=1.0)
    image = sample_image(*size)
    step = np.abs(
        gpu_kernels.image_to_tensor(image, Resampling.of(*size, spec)) - to_tensor(image, spec)
    )
    assert step.max() <= (0 if interpolation == "nearest" else 1.001)
    if cv2.__version__.startswith("4."):  # how it rounds is no promise of OpenCV's
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
        loaded = cuda.Kernels(gpu)
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
    """Every kind of number: pixels of one channel run through gains of all sizes."""
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    for gain in (1.0, 1e-3, 1e-7, 1e-9, 255.9, 257.1, 65504 / 255, 1e3, 1e38):
        spec = InputSpec(1, 256, scale=gain, dtype="float16", mean=(0.3 * gain, 0.0, -gain))
        how = Resampling.of(1, 256, spec)
        with cuda.Gpu() as gpu, np.errstate(over="ignore"):
            pinned = gpu.pinned(spec.shape, "float16", "the tensor")
            place = gpu.allocate(pinned.nbytes, "the tensor")
            entry = cuda.ImageInput(cuda.Kernels(gpu), 1, 256, how, place)
            entry.enqueue(image)
            gpu.download(pinned, place)
            gpu.wait()
            expected = gpu_kernels.image_to_tensor(image, how)
            # A GPU multiplies and adds in one step, so the number before rounding may differ.
            bits = pinned.view(np.int16).astype(int) - expected.view(np.int16).astype(int)
        assert np.abs(bits).max() <= 1
        assert (bits != 0).mean() < 0.02


# --- regions applied


def surfaces(labels: int, rng: np.random.Generator) -> SurfaceTable:
    """Random rows of the shape that a fit of regions makes; one label without an answer."""
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
        surface_maps.Image.of(relative), labels, table,
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
        applied = cuda.table_applied(cuda.Kernels(gpu), relative, labels, rows, least)
        applied.launch()
        found = applied.result()
        applied.close()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isnan(found[3, 4])
    if labelled:  # a label that the table has not is unknown, not another's depth
        assert labels is not None and np.isnan(found[(labels < 0) | (labels >= 6)]).all()


# --- the field applied


@pytest.mark.parametrize("kind", KINDS)
def test_field_twin_is_the_fields_own_depth(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid that field.solve enlarges at its end, caught, gives its depth by the twin."""
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
    resized = depth_node.fitting.field.solve.resized

    def caught(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        grids.append(image)
        return resized(image, size)

    bases: list[Any] = []
    fit_base = depth_node.fitting.field.solve.fit_base

    def noted(*given: Any) -> Any:
        bases.append(fit_base(*given))
        return bases[-1]

    monkeypatch.setattr(depth_node.fitting.field.solve, "resized", caught)
    monkeypatch.setattr(depth_node.fitting.field.solve, "fit_base", noted)
    found = depth_node.fitting.field.solve.solve(
        Prediction(values, kind), row, col, truth[row, col].astype(np.float64),
        np.zeros(len(row)), None, None, FieldConfig(compiler="numpy"),
    )  # fmt: skip
    (base,) = bases
    line = Line(base.kind, base.scale, base.shift, base.nearest, base.farthest, 0.05, 200.0)
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
        applied = cuda.grid_applied(cuda.Kernels(gpu), values, factor, line)
        applied.launch()
        found = applied.result()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(found[0, :3]).all() and np.isfinite(found[1:]).all()
    assert found[1:].min() >= 0.5 and np.nanmax(found) <= 9.0


# --- the device: what is given back, and the sentences


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    played = Machine()
    played.install(monkeypatch)
    return played


def played(machine: Machine) -> Any:
    return importlib.import_module("depth_node.engine.cuda")


def test_all_is_given_back(machine: Machine) -> None:
    cuda = played(machine)
    for _ in range(10):
        with cuda.Gpu() as gpu:
            loaded = cuda.Kernels(gpu)
            array = gpu.pinned((4, 5), "float32", "numbers")
            place = gpu.allocate(array.nbytes, "numbers")
            launch = gpu.capture(lambda gpu=gpu, a=array, p=place: gpu.upload(p, a))
            launch()
            values = np.ones((8, 9), np.float32)
            line = Line("depth", 1, 0, 0.1, 9, 0.1, 9)
            cuda.grid_applied(loaded, values, values, line)
        gpu.close()
        assert machine.leaks == {}


def test_a_failure_half_way_gives_back_what_was_taken(machine: Machine) -> None:
    cuda = played(machine)
    spec = InputSpec(8, 12)
    how = Resampling.of(20, 30, spec)
    with cuda.Gpu() as gpu:
        loaded = cuda.Kernels(gpu)
        place = gpu.allocate(4 * 3 * 8 * 12, "the tensor")
        before = {kind: len(held) for kind, held in machine.live.items()}
        machine.memory = machine.used() + 2000  # enough for the image, not for the tables
        with pytest.raises(EngineError, match=r"resizing tables|the image"):
            cuda.ImageInput(loaded, 20, 30, how, place)
        assert {kind: len(held) for kind, held in machine.live.items()} == before
        machine.memory = 10**9
        cuda.ImageInput(loaded, 20, 30, how, place).close()
        assert {kind: len(held) for kind, held in machine.live.items()} == before
    assert machine.leaks == {}


def test_a_graph_replays_and_a_failed_capture_ends(machine: Machine) -> None:
    cuda = played(machine)
    with cuda.Gpu() as gpu:
        array = gpu.pinned((3,), "float32", "numbers")
        back = gpu.pinned((3,), "float32", "numbers")
        place = gpu.allocate(array.nbytes, "numbers")

        def work() -> None:
            gpu.upload(place, array)
            gpu.download(back, place)

        array[...], back[...] = 1, 0
        launch = gpu.capture(work)
        np.testing.assert_array_equal(back, 0)  # recorded, not done
        array[...] = 2
        launch()
        np.testing.assert_array_equal(back, 2)
        machine.fail["cudaGraphInstantiate"] = Error.cudaErrorStreamCaptureUnsupported
        with pytest.raises(EngineError, match="making a graph failed"):
            gpu.capture(work)
        assert machine.recording is None and not machine.live["graph"]

        def broken() -> None:
            work()
            raise EngineError("it failed while it was recorded")

        with pytest.raises(EngineError, match="while it was recorded"):
            gpu.capture(broken)
        assert machine.recording is None and not machine.live["graph"]
    assert machine.leaks == {}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"driver_version": 0}, "no NVIDIA driver: install one"),
        ({"driver_version": 12040}, "knows CUDA 12.4, too old for the CUDA 13.0 of cuda-python"),
        ({"driver_version": 12040}, r"pip install 'cuda-python==12.\*'"),
        ({"devices": 0}, "finds no GPU: check CUDA_VISIBLE_DEVICES"),
    ],
)
def test_why_there_is_no_gpu(machine: Machine, changes: dict, told: str) -> None:
    for name, value in changes.items():
        setattr(machine, name, value)
    cuda = played(machine)
    with pytest.raises(EngineError, match=told):
        cuda.Gpu()
    assert machine.leaks == {}


def test_out_of_memory_says_how_much(machine: Machine) -> None:
    machine.memory = 100_000_000
    cuda = played(machine)
    with cuda.Gpu() as gpu:
        gpu.allocate(60_000_000, "the first")
        with pytest.raises(EngineError, match=r"the second .GPU memory. needs 60 MB and 40 of the"):
            gpu.allocate(60_000_000, "the second")
        gpu.allocate(30_000_000, "a third")  # the error did not stay


def test_an_error_of_the_device_has_its_name(machine: Machine) -> None:
    cuda = played(machine)
    with cuda.Gpu() as gpu:
        machine.fail["cudaStreamSynchronize"] = Error.cudaErrorIllegalAddress
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress: words for 700"):
            gpu.wait()
        machine.fail.clear()
    with pytest.raises(EngineError, match="given back"):
        gpu.begin()


def test_a_gpu_newer_than_nvrtc_and_one_too_old(machine: Machine) -> None:
    cuda = played(machine)
    cuda.compile_source("12.0")
    assert "nvrtcGetPTX" in machine.calls and "nvrtcGetCUBIN" not in machine.calls
    with pytest.raises(EngineError, match=r"capability 7.5 and later, not 5.0"):
        cuda.compile_source("5.0")


def test_the_played_machine_is_as_large_as_the_tables(machine: Machine) -> None:
    """It has what USED names, and nothing that the tables do not allow is needed."""
    import ast

    source = Path(gpu_kernels.__file__).with_name("cuda.py").read_text()
    used = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "USED"
    )
    for module, entries in used.items():
        real = sys.modules[f"cuda.bindings.{module}"]
        for entry in entries:
            place: Any = real
            for part in entry.split("(")[0].split("."):
                assert hasattr(place, part), entry
                place = getattr(place, part)


# --- make gpu-check


def test_gpu_check_writes_its_json_and_row(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logic, on the played machine: the times mean nothing here, the agreement does."""
    from depth_node.benchmarks import gpu as gpu_benchmark

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_benchmark, "_COPY_BYTES", 4_000_000)
    assert gpu_benchmark.main(["--repeats", "2", "--out", str(tmp_path)]) == 0
    facts = json.loads((tmp_path / "gpu_check.json").read_text())
    assert facts["gpu"] == "Played GPU" and facts["failures"] == []
    assert set(facts["kernels"]) == {"image_vga", "image_1080p", "regions", "field"}
    assert all(found["agrees"] for found in facts["kernels"].values())
    assert facts["cycles"]["lost_bytes"] == 0
    assert "correlation 1.000000" in facts["engines"]["tensorrt"]["check"]
    head, line, row = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert head.count("|") == line.count("|") == row.count("|")
    assert machine.leaks == {}


def test_gpu_check_fails_where_a_kernel_does(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from depth_node.benchmarks import gpu as gpu_benchmark

    twin = gpu_kernels.apply_grid
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_benchmark, "_COPY_BYTES", 4_000_000)
    monkeypatch.setattr(gpu_kernels, "apply_grid", lambda *given: twin(*given) + np.float32(0.01))
    assert gpu_benchmark.main(["--repeats", "1", "--out", str(tmp_path)]) == 1
    facts = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [text for text in facts["failures"] if text.startswith("kernel field")]


def test_gpu_check_without_a_gpu_says_so(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from depth_node.benchmarks import gpu as gpu_benchmark

    machine.driver_version = 0
    assert gpu_benchmark.main(["--out", str(tmp_path)]) == 2
    assert "no NVIDIA driver" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
