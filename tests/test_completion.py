# SPDX-License-Identifier: Apache-2.0
"""Networks that are given the points: manifest, inputs, and their answer with an interval.

The network is a real one: normalised convolutions over the points, in ONNX.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node import config as settings
from depth_node.cli.main import main
from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, SparseSpec, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.sparse_input import sparse_tensors
from depth_node.fitting import FitConfig, FitStatus
from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import CompletionModel, DepthModel, ModelConfig
from depth_node.model_zoo import compare, convert
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.prediction import Prediction
from depth_node.simulation.renderer import Rendered, Scene
from depth_node.simulation.viewpoints import random_view

pytest.importorskip("onnxruntime")
pytest.importorskip("rich", reason="rich is not installed")
pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.refusals import refusal
from tests.helpers.role_models import save_channels, save_completion

HEIGHT, WIDTH = 120, 160
CAMERA = Camera(WIDTH, HEIGHT, 130.0, 130.0, 79.5, 59.5)
SPARSE = SparseSpec("points", "mask")


def model(folder: Path, sparse: SparseSpec = SPARSE, **facts: Any) -> Path:
    path = save_completion(folder / "net.onnx", HEIGHT, WIDTH, with_mask=bool(sparse.mask))
    write_manifest(path, "depth_metric", sparse=sparse, **facts)
    return path


def pipeline(path: Path, method: str = "network") -> DepthPipeline:
    config = PipelineConfig(model=ModelConfig(str(path), threads=1), fit=FitConfig(method=method))
    return DepthPipeline(config)


@functools.cache
def rendered(seed: int) -> Rendered:
    rng = np.random.default_rng(seed)
    room = Scene.random(rng, "room", shadow_px=64)
    return room.render(*random_view(room, rng, WIDTH, HEIGHT), antialias=False)


def scene(seed: int, count: int, noise: float = 0.0) -> tuple[FrameInput, np.ndarray]:
    """A rendered room with (count,) points; its true depth (H, W)."""
    view = rendered(seed)
    rng = np.random.default_rng(100 + seed)
    chosen = rng.choice(HEIGHT * WIDTH, count, replace=False)
    rows, cols = np.divmod(chosen, WIDTH)
    depth = view.depth[rows, cols] * np.exp(rng.normal(0, noise, count))
    points = SparseDepth.from_arrays(rows, cols, depth)
    return FrameInput(view.image, CAMERA, sparse=points), view.depth


# --- the answer


def test_the_networks_metres_are_published(tmp_path: Path) -> None:
    """They are those of one run with all points, untouched."""
    frame, _ = scene(0, 800)
    path = model(tmp_path)
    with pipeline(path) as running:
        result = running.process(frame)
        engine = running.depth_model.engine
        tensors = {
            "image": np.ascontiguousarray(frame.image.transpose(2, 0, 1)[None] / np.float32(255)),
            **sparse_tensors(
                engine.manifest, frame.sparse.rows, frame.sparse.cols, frame.sparse.depth,
                (HEIGHT, WIDTH),
            ),
        }  # fmt: skip
        expected = engine.run_named(tensors)["depth"][0, 0]
    assert result.fit.status is FitStatus.OK
    np.testing.assert_allclose(result.depth, expected, rtol=1e-5)
    assert "own metres, judged by" in result.fit.message
    assert {"total", "engine", "fit"} <= set(result.stage_ms)


@pytest.mark.parametrize("count", [pytest.param(200, marks=pytest.mark.slow), 1500])
def test_interval_holds_the_truth(tmp_path: Path, count: int) -> None:
    """Over rooms and densities about 95 % of the pixels lie inside: never far fewer."""
    path = model(tmp_path)
    inside, errors = [], []
    with pipeline(path) as running:
        for seed in range(6):
            frame, truth = scene(seed, count)
            result = running.process(frame)
            known = np.isfinite(result.std) & np.isfinite(truth)
            assert known.mean() > 0.5
            error = np.abs(result.depth - truth)[known]
            inside.append(float((error <= 1.96 * result.std[known]).mean()))
            errors.append(float((error / truth[known]).mean()))
    assert np.mean(errors) < 0.2  # it completes
    assert 0.90 < np.mean(inside) < 0.995, inside


def test_interval_is_wider_where_points_are_missing(tmp_path: Path) -> None:
    frame, _ = scene(3, 1200)
    points = frame.sparse
    left = points.cols < WIDTH // 2
    kept = SparseDepth.from_arrays(points.rows[left], points.cols[left], points.depth[left])
    with pipeline(model(tmp_path)) as running:
        result = running.process(dataclasses.replace(frame, sparse=kept))
    relative = result.std / result.depth
    near, far = relative[:, : WIDTH // 2 - 5], relative[:, WIDTH // 2 + 10 : WIDTH // 2 + 30]
    assert np.nanmedian(far) > 2 * np.nanmedian(near)


def test_scaling_the_points_scales_the_answer(tmp_path: Path) -> None:
    frame, _ = scene(1, 600)
    points = frame.sparse
    double = SparseDepth.from_arrays(points.rows, points.cols, 2 * points.depth)
    with pipeline(model(tmp_path)) as running:
        one = running.process(frame)
        two = running.process(dataclasses.replace(frame, sparse=double))
    np.testing.assert_allclose(two.depth, 2 * one.depth, rtol=1e-4)
    np.testing.assert_allclose(two.std, 2 * one.std, rtol=1e-3)


# --- too few points


@pytest.mark.parametrize("count", [0, 1, 15])
def test_too_few_points_are_refused(tmp_path: Path, count: int) -> None:
    frame, _ = scene(0, 400)
    points = frame.sparse
    few = SparseDepth.from_arrays(points.rows[:count], points.cols[:count], points.depth[:count])
    with pipeline(model(tmp_path)) as running:
        result = running.process(dataclasses.replace(frame, sparse=few))
    assert result.fit.status is FitStatus.TOO_FEW_POINTS
    assert np.isnan(result.depth).all() and np.isnan(result.std).all()
    assert "fewer than the 16 pixels" in result.fit.message
    assert "so there is no depth" in result.fit.message


def test_points_out_of_range_or_outside_are_not_given(tmp_path: Path) -> None:
    frame, _ = scene(0, 400)
    p = frame.sparse
    more = SparseDepth.from_arrays(
        np.concatenate([p.rows, [-5, 10, 60]]),
        np.concatenate([p.cols, [10, 900, 80]]),
        np.concatenate([p.depth, [3.0, 3.0, 5000.0]]),
    )
    with pipeline(model(tmp_path)) as running:
        one = running.process(frame)
        two = running.process(dataclasses.replace(frame, sparse=more))
    np.testing.assert_array_equal(one.depth, two.depth)


# --- the inputs


def tensors_of(sparse: SparseSpec, **changes: Any) -> dict[str, np.ndarray]:
    shape = changes.pop("shape", (1, 1, HEIGHT, WIDTH))
    names = [name for name in (sparse.depth, sparse.mask) if name]
    from depth_node.engine.preprocess import InputSpec

    manifest = Manifest(
        "net", "net.onnx", "0", "image", InputSpec(HEIGHT, WIDTH, **changes), "depth",
        "depth_metric", inputs={"image": (1, 3, HEIGHT, WIDTH), **dict.fromkeys(names, shape)},
        sparse=sparse,
    )  # fmt: skip
    rows, cols = np.array([10, 10, 100]), np.array([20, 20, 150])
    return sparse_tensors(manifest, rows, cols, np.array([4.0, 2.0, 5.0]), (HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("unit", "expected"), [("m", 2.0), ("mm", 2000.0), ("1/m", 0.5), ("log m", np.log(2.0))]
)
def test_units_empty_pixels_and_mask(unit: str, expected: float) -> None:
    found = tensors_of(SparseSpec("points", "mask", unit, -1.0))
    assert found["points"].dtype == found["mask"].dtype == np.float32
    assert found["points"][0, 0, 10, 20] == pytest.approx(expected)  # the nearer of the two
    assert found["mask"].sum() == 2 and found["mask"][0, 0, 100, 150] == 1
    assert (found["points"][found["mask"] == 0] == -1).all()


def test_points_lie_where_the_tensor_shows_them() -> None:
    whole = tensors_of(SparseSpec("points"))
    small = tensors_of(SparseSpec("points"), shape=(1, 1, HEIGHT // 4, WIDTH // 4))
    assert [*zip(*np.nonzero(small["points"][0, 0]), strict=True)] == [(2, 5), (25, 37)]
    boxed = tensors_of(SparseSpec("points"), resize="letterbox")
    np.testing.assert_array_equal(whole["points"], boxed["points"])  # the aspect is the same


# --- what cannot be


def test_manifest_of_a_completion_network(tmp_path: Path) -> None:
    path = model(tmp_path)
    loaded = Manifest.load(manifest_path(path))
    assert loaded.sparse == SPARSE
    assert loaded.input_shapes == {
        "image": (1, 3, HEIGHT, WIDTH),
        "points": (1, 1, HEIGHT, WIDTH),
        "mask": (1, 1, HEIGHT, WIDTH),
    }
    with DepthModel.open(ModelConfig(str(path), threads=1)) as opened:
        assert isinstance(opened, CompletionModel) and opened.gives_metres
        with pytest.raises(EngineError, match="completes measured points"):
            opened.predict(np.zeros((HEIGHT, WIDTH, 3), np.uint8))


@pytest.mark.parametrize(
    ("sparse", "meaning", "told"),
    [
        (SparseSpec("points", "mask"), "depth_affine_invariant", "gives metres, not"),
        (SparseSpec("lidar", "mask"), "depth_metric", "has one image beside lidar, mask"),
        (SparseSpec("points"), "depth_metric", "has one image beside points"),
    ],
)
def test_manifests_that_cannot_be(
    sparse: SparseSpec, meaning: str, told: str, tmp_path: Path
) -> None:
    path = save_completion(tmp_path / "net.onnx", HEIGHT, WIDTH)
    assert told in refusal(lambda: write_manifest(path, meaning, sparse=sparse))


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"depth": ""}, "must name an input"),
        ({"depth": "a", "mask": "a"}, "must name an input"),
        ({"depth": "a", "unit": "feet"}, "sparse.unit is 'feet': use one of m, mm"),
        ({"depth": "a", "unit": ["m"]}, "sparse.unit is ['m']: use one of m, mm"),
        ({"depth": "a", "empty": float("nan")}, "sparse.empty is nan"),
        ({"depth": "a", "min_points": 0}, "sparse.min_points is 0"),
    ],
)
def test_sparse_sections_that_cannot_be(facts: dict[str, Any], told: str) -> None:
    assert told in refusal(lambda: SparseSpec(**facts))


def test_no_other_method_is_judged_by_points_that_the_network_saw(tmp_path: Path) -> None:
    path = model(tmp_path)
    assert "set fit.method: network" in refusal(lambda: pipeline(path, "field"))
    with pipeline(path) as running, pytest.raises(ValueError, match=r"set fit\.method: network"):
        running.reconfigure(settings.replace(running.config, {"fit.method": "slf"}))


def test_a_network_without_metres_cannot_publish_them(tmp_path: Path) -> None:
    path = save_channels(tmp_path / "net.onnx", HEIGHT, WIDTH)
    write_manifest(path, "disparity_affine_invariant", output_name="red")
    told = refusal(lambda: pipeline(path))
    assert "net gives disparity_affine_invariant" in told and "a metric network" in told


# --- metric networks that see no point


def test_a_metric_network_is_judged_by_all_points() -> None:
    truth = np.tile(np.linspace(1, 6, WIDTH, dtype=np.float32), (HEIGHT, 1))
    rng = np.random.default_rng(0)
    said = truth * np.exp(rng.normal(0, 0.05, truth.shape)).astype(np.float32)
    rows, cols = rng.integers(0, HEIGHT, 500), rng.integers(0, WIDTH, 500)
    frame = FrameInput(
        np.zeros((HEIGHT, WIDTH, 3), np.uint8), CAMERA,
        sparse=SparseDepth.from_arrays(rows, cols, truth[rows, cols]),
        prediction=Prediction(said, "depth_metric"),
    )  # fmt: skip
    config = PipelineConfig(model=ModelConfig(path=""), fit=FitConfig(method="network"))
    with DepthPipeline(config) as running:
        result = running.process(frame)
        few = running.process(
            dataclasses.replace(
                frame, sparse=SparseDepth.from_arrays(rows[:3], cols[:3], truth[rows[:3], cols[:3]])
            )
        )
        wide = 1.96 * few.std / few.depth
        running.reconfigure(settings.replace(running.config, {"fit.unanchored_s": 0.0}))
        off = running.process(
            dataclasses.replace(frame, sparse=SparseDepth.from_arrays([], [], []))
        )
        relative = dataclasses.replace(frame, prediction=Prediction(said, "depth_affine_invariant"))
        none = running.process(relative)
    np.testing.assert_array_equal(result.depth, said)
    inside = np.abs(result.depth - truth) <= 1.96 * result.std
    assert result.fit.status is FitStatus.OK and 0.9 < inside.mean() < 0.995
    assert few.fit.status is FitStatus.NETWORK_METRES
    np.testing.assert_allclose(wide, 1.25**3 - 1, rtol=1e-3)
    assert off.fit.status is FitStatus.NETWORK_METRES and np.isnan(off.std).all()
    assert "too few for an interval" in few.fit.message
    assert none.fit.status is FitStatus.NO_PREDICTION and np.isnan(none.depth).all()
    assert "no metres, so there is no depth" in none.fit.message


# --- tools


@pytest.mark.slow
def test_fp16_copy_and_comparison(tmp_path: Path) -> None:
    path = model(tmp_path)
    images = compare.ComparisonImages(2, height=HEIGHT, width=WIDTH)
    done = convert.convert(path, images, keep=["Div", "Add", "Conv"])
    assert done.manifest.sparse == SPARSE and not done.comparison.failures


def test_the_manifest_tool_describes_both_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_completion(tmp_path / "net.onnx", HEIGHT, WIDTH)
    command = ["models", "manifest", str(path), "--meaning", "depth_metric"]
    assert main(command) != 0  # the points are not named
    assert "--sparse-depth" in " ".join(capsys.readouterr().err.split())
    more = ["--sparse-depth", "points", "--sparse-mask", "mask", "--sparse-unit", "mm"]
    assert main([*command, *more, "--sparse-empty", "-1"]) == 0
    assert Manifest.load(manifest_path(path)).sparse == SparseSpec("points", "mask", "mm", -1.0)
