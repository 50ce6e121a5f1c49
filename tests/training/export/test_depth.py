# SPDX-License-Identifier: Apache-2.0
"""Exported files open in depth_node without changes and give the output of torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from depth_node.frame import FrameInput
from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

import onnx
from rich.console import Console

from depth_node import config
from depth_node.engine import preprocess
from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import DepthModel, ModelConfig, open_engine
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training import checkpoints
from training.__main__ import main
from training.evaluation import predict, score
from training.export import depth
from training.export import exportable as exportable_module
from training.export.exportable import PATCHED_SIZE, Exportable, open_checkpoint
from training.export.graph import OPSET
from training.models import hub, lora, network_io, networks
from training.models import unet as unet_model

UNET = unet_model.StudentConfig(
    widths=(4, 6, 8, 8, 8), depths=(0, 1, 1, 1, 1), decoder=(8, 6, 6, 4)
)
QUIET = Console(quiet=True)


def run_of(folder: Path, network: torch.nn.Module, settings: dict, recipe: str) -> Path:
    """Write a run folder as the loop does."""
    about = {"recipe": recipe, "settings": settings}
    checkpoints.write(folder, 3, about, {"averaged": network.state_dict()}, {})
    return folder


def unet_run(folder: Path, cfg: unet_model.StudentConfig = UNET) -> Path:
    height, width = 64, 96
    torch.manual_seed(0)
    network = unet_model.SmallUNet(cfg)
    network.train()
    with torch.no_grad():  # so that batch statistics differ from those of a fresh layer
        for _ in range(3):
            network(torch.randn(2, 3, height, width) + 0.5)
    settings = {
        "height": height,
        "width": width,
        "student": config.to_dict(cfg),
        "loop": {"seed": 4, "batch": 2},
        "pool": {"seed": 9, "folder": "/secret/place"},
    }
    return run_of(folder, network, settings, "supervised")


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a run and the file to which the command line exported it."""
    folder = tmp_path_factory.mktemp("unet")
    run, out = unet_run(folder / "run"), folder / "student.onnx"
    assert main(["export", str(run), "--out", str(out)]) == 0
    return run, out


def sample_image(height: int = 90, width: int = 120) -> np.ndarray:
    rng = np.random.default_rng(2)
    scene = Scene.random(rng)
    return scene.render(*random_view(scene, rng, width, height)).image


def agrees(path: Path, opened: Exportable, limit: float) -> Manifest:
    """Assert that depth_node predicts with the file what torch predicts; return the manifest."""
    image = sample_image()
    expected = opened.predict(image).values
    with DepthModel.open(ModelConfig(path=str(path), threads=1)) as model:
        values = model.predict(image).values
        manifest = model.engine.manifest
    assert np.abs(values - expected).max() <= limit * np.ptp(expected)
    return manifest


# --- the students --------------------------------------------------------------------------------


def test_the_unet_is_exported_folded_and_shifted(unet: tuple[Path, Path]) -> None:
    run, out = unet
    manifest = agrees(out, open_checkpoint(run), 5e-3)
    assert (manifest.input.height, manifest.input.width) == (64, 96)
    assert (manifest.input.interpolation, manifest.licence) == ("area", "Apache-2.0")
    assert dict(manifest.training) == {
        "recipe": "supervised",
        "steps": 3,
        "batch": 2,
        "seed": 4,
        "pool_seed": 9,
        "data": "procedural rooms of depth_node.simulation.renderer, no photographs",
        "student": config.to_dict(UNET),
    }
    plain = networks.open_run(run)
    x = torch.from_numpy(preprocess.to_tensor(sample_image(), manifest.input))
    with torch.no_grad(), open_engine(out, threads=1) as engine:
        shift = engine.run(x.numpy()) - plain(x).numpy()
    assert np.median(shift) == pytest.approx(unet_model.OFFSET, abs=1e-2)
    graph = onnx.load(str(out))
    assert not [node for node in graph.graph.node if node.op_type == "BatchNormalization"]
    assert graph.opset_import[0].version == OPSET


@pytest.mark.parametrize("changes", [{"detail": (8, 4)}, {"encoder": "mobilenet"}])
def test_a_unet_with_a_mobilenet_says_where_that_is_from_and_can_be_opened_again(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    cfg = dataclasses.replace(UNET, **changes)
    torch.manual_seed(0)
    network = unet_model.SmallUNet(cfg).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, 64, 128) + 0.5)
        if network.detail is not None:
            for layer in (*network.detail.into, network.detail.head):  # they start at 0
                layer.weight.normal_(0, 0.1)
            network.detail.head.bias.fill_(0.2)
    settings = {
        "height": 64,
        "width": 128,
        "student": config.to_dict(cfg),
        "imagenet": "/secret/mobilenet_v2-b0353104.pth",
        "start": "embedded",
        "pool": {"seed": 9},
        "outdoors_share": 0.3,
        "outdoors": {"seed": 8},
    }
    run = run_of(tmp_path / "run", network, settings, "supervised")
    out = tmp_path / "student.onnx"
    assert main(["export", str(run), "--out", str(out)]) == 0
    manifest = agrees(out, open_checkpoint(run), 5e-3)
    assert manifest.licence == "Apache-2.0 AND BSD-3-Clause"
    assert "BSD-3-Clause" in manifest.training["imagenet"]
    assert "/secret" not in str(manifest)
    assert manifest.training["data"].startswith("procedural rooms and outdoor scenes")
    plain = networks.open_run(run)
    again = networks.open_network(networks.NetworkConfig(source=str(out))).eval()
    x = torch.from_numpy(preprocess.to_tensor(sample_image(), manifest.input))
    with torch.no_grad():
        centred, shifted = plain(x), again(x)  # what `start` names is centred before it learns
    difference = (shifted - centred - unet_model.OFFSET).abs().max()
    assert difference <= 5e-3 * float(centred.max() - centred.min())


@pytest.mark.parametrize(("kind", "weights"), [("debug", "fp16"), ("vit_tiny", "fp32")])
def test_transformer_students_are_exported(
    kind: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = hub.SIZES[kind]
    monkeypatch.setitem(hub.SIZES, kind, dataclasses.replace(size, depth=4, taps=(1, 2, 3, 4)))
    torch.manual_seed(1)
    cfg = networks.NetworkConfig(kind=kind)
    settings = {"network": config.to_dict(cfg)}
    run = run_of(tmp_path / "run", networks.open_network(cfg), settings, "distill")
    out = tmp_path / "student.onnx"
    words = ["--height", "70", "--width", "98", "--weights", weights]
    assert main(["export", str(run), "--out", str(out), *words]) == 0
    opened = open_checkpoint(run, 70, 98)
    manifest = agrees(out, opened, 5e-3 if weights == "fp16" else 1e-4)
    assert (manifest.patch_size, manifest.input.mean) == (14, network_io.IMAGENET_MEAN)


def test_a_mirroring_student_is_exported_and_opens_again_as_one(tmp_path: Path) -> None:
    run = unet_run(tmp_path / "run", dataclasses.replace(UNET, mirror=True))
    out = tmp_path / "student.onnx"
    depth.export_checkpoint(run, out, None, QUIET)
    manifest = agrees(out, open_checkpoint(run), 5e-3)
    x = preprocess.to_tensor(sample_image(), manifest.input)
    with open_engine(out, threads=1) as engine:
        plain, turned = engine.run(x), engine.run(np.ascontiguousarray(x[..., ::-1]))
    np.testing.assert_allclose(turned[..., ::-1], plain, atol=1e-4)
    again = networks.open_network(networks.NetworkConfig(source=str(out))).eval()
    assert again.cfg.mirror
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.from_numpy(x)).numpy(), plain, atol=1e-3)


def test_what_began_as_an_exported_file_is_not_shifted_again(tmp_path: Path) -> None:
    cfg = networks.NetworkConfig(source="embedded-small")
    settings = {"network": config.to_dict(cfg), "height": 96, "width": 128}
    run = run_of(tmp_path / "run", networks.open_network(cfg), settings, "westar")
    again = {"network": {"source": str(run)}, "height": 96, "width": 128}
    second = run_of(tmp_path / "second", networks.open_run(run), again, "westar")
    image = sample_image()
    with DepthModel.open(ModelConfig("embedded-small", threads=1)) as model:
        expected = model.predict(image).values
    for path in (run, second):
        values = open_checkpoint(path).predict(image).values
        assert np.abs(values - expected).max() <= 1e-2 * np.ptp(expected)


def test_the_start_of_a_run_is_found_where_the_run_found_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below ~, through a file in the place of a link; the current folder is not an empty name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = {"network": {"source": "embedded-small"}}
    run = run_of(tmp_path / "run", torch.nn.Linear(1, 1), settings, "westar")
    (run / "last").unlink()
    (run / "last").write_text("checkpoints/step_0000003\n")  # a disk without links
    for start in ("~/run", str(run / "last")):
        assert exportable_module._has_offset({"start": start}), start
    monkeypatch.chdir(run)
    assert not exportable_module._has_offset({"network": {"source": ""}, "start": ""})


def test_what_began_with_imagenet_keeps_its_licence(tmp_path: Path) -> None:
    """Through a packaged network, and through a run that began with that one."""
    network = networks.open_network(networks.NetworkConfig(source="embedded"))
    source: dict[str, Any] = {"source": "embedded", "unet": config.to_dict(network.cfg)}
    for name in ("first", "second"):
        settings = {"network": source, "height": 64, "width": 64}
        run = run_of(tmp_path / name, network, settings, "westar")
        entries = open_checkpoint(run).entries
        assert entries["licence"] == "Apache-2.0 AND BSD-3-Clause", name
        assert "BSD-3-Clause" in entries["training"]["imagenet"], name
        source = {"source": str(run)}
    settings = {"network": {"source": "embedded-small"}, "height": 96, "width": 128}
    small = networks.open_network(networks.NetworkConfig(source="embedded-small"))
    run = run_of(tmp_path / "small", small, settings, "westar")
    assert open_checkpoint(run).entries["licence"] == "Apache-2.0"


def test_a_copy_in_fp16_is_compared_and_written_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = unet_run(tmp_path / "run"), tmp_path / "student.onnx"
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(3):
        cv2.imwrite(str(photos / f"{k}.png"), np.roll(sample_image(), 20 * k, axis=1))
    words = ["export", str(run), "--out", str(out), "--fp16", "--images", str(photos)]
    assert main(words) == 0
    half = tmp_path / "student.fp16.onnx"
    assert half.stat().st_size < out.stat().st_size
    agrees(half, open_checkpoint(run), 2e-2)
    assert main([*words, "--weights", "fp16"]) == 1
    assert "leave --weights fp16 out" in capsys.readouterr().err


def test_low_rank_updates_are_merged(tmp_path: Path) -> None:
    torch.manual_seed(2)
    cfg, tuned = networks.NetworkConfig(kind="debug"), lora.TuneConfig(rank=2)
    network = lora.tune(networks.open_network(cfg), tuned).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.3)
        x = torch.randn(1, 3, 70, 98)
        expected = network(x)
    settings = {"network": config.to_dict(cfg), "tune": config.to_dict(tuned)}
    run = run_of(tmp_path / "run", network, {**settings, "height": 70, "width": 98}, "westar")
    out = tmp_path / "adapted.onnx"
    depth.export_checkpoint(run, out, None, QUIET)
    with open_engine(out, threads=1) as engine:
        output = engine.run(x.numpy())
    assert np.abs(output - expected.numpy()).max() <= 1e-4 * np.ptp(expected.numpy())
    assert b"lora" not in out.read_bytes()
    # Without the updates it is another network: the comparison above can fail.
    with torch.no_grad():
        bare = networks.open_network(cfg)(x).numpy()
    assert np.abs(bare - expected.numpy()).max() > 1e-2 * np.ptp(expected.numpy())


@pytest.mark.slow
def test_depth_anything_v2_small_at_392x518(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real widths, decoder and input size, but four layers instead of twelve to save time."""
    small = dataclasses.replace(hub.SIZES["small"], depth=4, taps=(1, 2, 3, 4))
    monkeypatch.setitem(hub.SIZES, "small", small)
    torch.manual_seed(3)
    network = networks.open_network(networks.NetworkConfig(kind="small"))
    folder, out = tmp_path / "hub", tmp_path / "da.onnx"
    network.network.save_pretrained(folder)
    assert main(["export", str(folder), "--out", str(out), "--licence", "its own"]) == 0
    manifest = Manifest.load(manifest_path(out))
    assert (manifest.input.height, manifest.input.width) == PATCHED_SIZE
    assert (manifest.licence, manifest.input.interpolation) == ("its own", "cubic")
    nodes = onnx.load(str(out)).graph.node
    modes = [a.s for n in nodes if n.op_type == "Resize" for a in n.attribute if a.name == "mode"]
    assert modes == [b"linear"] * 5  # those of the decoder; none of the positional embedding
    assert sum(n.op_type == "LayerNormalization" for n in nodes) == 2 * 4 + 1


# --- comparison with torch ------------------------------------------------------------------------


def test_a_wrong_export_is_not_written(tmp_path: Path) -> None:
    """A graph that is not the network, because it mirrors the image."""

    class Mirrored(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mix(x.flip(3) if torch.compiler.is_exporting() else x)

    spec = preprocess.InputSpec(height=56, width=84)
    opened = Exportable(Mirrored().eval(), spec, "disparity_affine_invariant")
    with pytest.raises(checkpoints.TrainingError, match=r"differ by .* at 56x84"):
        depth.to_onnx(opened, tmp_path / "x.onnx", fp16_weights=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("diverged", [True, False])
def test_a_network_that_answers_nan_is_not_written(tmp_path: Path, diverged: bool) -> None:
    """NaN in the weights, as after divergence, and a division by zero in the graph alone."""

    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Conv2d(3, 1, 1)
            if diverged:
                torch.nn.init.constant_(self.mix.bias, float("nan"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.mix(x)
            return (y - y) / (y - y) if torch.compiler.is_exporting() and not diverged else y

    spec = preprocess.InputSpec(height=56, width=84)
    opened = Exportable(Broken().eval(), spec, "disparity_affine_invariant")
    with pytest.raises(checkpoints.TrainingError, match="was not written"):
        depth.to_onnx(opened, tmp_path / "x.onnx", fp16_weights=False)
    assert list(tmp_path.iterdir()) == []


def test_a_square_network_is_also_compared_at_another_size(tmp_path: Path) -> None:
    """With a square input of noise, swapped rows and columns in the graph would not be noticed."""

    class Swapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Conv2d(3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.mix(x)
            if x.shape[2] != x.shape[3] and torch.compiler.is_exporting():
                y = y.transpose(2, 3).reshape(y.shape)
            return y

    def exportable(height: int, width: int) -> Exportable:
        spec = preprocess.InputSpec(height=height, width=width, mean=(0.5,) * 3, std=(0.25,) * 3)
        return Exportable(Swapped().eval(), spec, "disparity_affine_invariant")

    with pytest.raises(checkpoints.TrainingError, match="at 64x32"):
        depth.to_onnx(exportable(64, 64), tmp_path / "x.onnx", fp16_weights=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_this_machine_is_in_the_file(unet: tuple[Path, Path]) -> None:
    run, out = unet
    content = out.read_bytes() + manifest_path(out).read_bytes()
    for word in (str(REPO), "site-packages", "/secret", str(run.parent), ".py"):
        assert word.encode() not in content, word
    graph = onnx.load(str(out))
    assert not graph.metadata_props and not graph.doc_string
    assert all(not node.metadata_props and not node.doc_string for node in graph.graph.node)


def test_a_size_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = networks.NetworkConfig(kind="debug")
    settings = {"network": config.to_dict(cfg)}
    run = run_of(tmp_path / "run", networks.open_network(cfg), settings, "distill")
    out = tmp_path / "x.onnx"
    words = ["export", str(run), "--out", str(out), "--height", "100", "--width", "98"]
    assert main(words) == 1
    assert "multiples of 14; 98x98 is near" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--out", str(out)]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert not out.exists()


def test_a_recipe_may_bring_its_own_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`exportable(payload)` in the recipe's module: another meaning, another normalisation."""
    torch.manual_seed(5)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, padding=1), torch.nn.Softplus())
    run = run_of(tmp_path / "run", network, {"height": 32, "width": 48}, "own")

    class Own:
        @staticmethod
        def exportable(payload: dict) -> tuple:
            fresh = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, padding=1), torch.nn.Softplus())
            fresh.load_state_dict(payload["averaged"])
            return (
                fresh.eval(),
                network_io.NetworkInput((0.1, 0.2, 0.3), (1.0,) * 3, 8),
                "depth_metric",
            )

    monkeypatch.setattr(exportable_module, "_recipe", lambda payload: Own)
    out = tmp_path / "own.onnx"
    depth.export_checkpoint(run, out, None, QUIET)
    manifest = agrees(out, open_checkpoint(run), 1e-4)
    assert (manifest.meaning, manifest.output_name) == ("depth_metric", "depth")
    assert manifest.input.mean == (0.1, 0.2, 0.3)


# --- what was written runs -----------------------------------------------------------------------


def test_an_exported_model_runs_in_the_pipeline_with_no_further_word(
    unet: tuple[Path, Path],
) -> None:
    _, out = unet
    image = sample_image()
    rows, cols = (grid.ravel() for grid in np.mgrid[5:85:10, 5:115:10])
    points = SparseDepth.from_arrays(rows, cols, np.linspace(1, 3, rows.size))
    camera = Camera(120, 90, 100.0, 100.0, 59.5, 44.5)
    with DepthPipeline(PipelineConfig(model=ModelConfig(path=str(out), threads=1))) as pipeline:
        result = pipeline.process(FrameInput(image, camera, None, None, sparse=points))
    assert result.depth.shape == image.shape[:2]
    assert np.isfinite(result.depth).mean() > 0.9


def test_a_checkpoint_is_judged_like_the_file_made_of_it(unet: tuple[Path, Path]) -> None:
    scores = []
    for text in map(str, unet):
        _, identity, model = predict.open_model(text)
        rows = score.score(predict.rendered_rooms(3, 1, 60, 80), {"m": model})
        scores.append([row.abs_rel for row in rows if row.method == "m"])
        assert len(identity) == 64
        model.close()
    assert scores[0] == pytest.approx(scores[1], rel=2e-3)
