# SPDX-License-Identifier: Apache-2.0
"""The refinement's examples, its network, a run of it and the exported file."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

import numpy as np

from depth_node import config
from depth_node.engine.refinement import FieldRefiner
from depth_node.fitting.field.refine import CANDIDATES, CHANNELS, WHOLE, in_rows
from depth_node.prediction import Prediction
from training.__main__ import main
from training.data.field_problems import (
    Example,
    Examples,
    ExamplesConfig,
    depth_of,
    example,
    view_of,
)
from training.data.samples import U8, DataError
from training.export.refiner import open_refiner_run
from training.models.refiner import RefinerNet, convex_mix
from training.recipes.refine import Config, errors, mirrored

SMALL = {"widths": "[8,8,8,8]", "blocks": "[1,1,1,1]"}


def brightness(image: U8) -> Prediction:
    values = image.mean(axis=2).astype(np.float32) / 255 + 0.2
    return Prediction(values, "disparity_affine_invariant")


@pytest.fixture(scope="module")
def made() -> list[Example]:
    view = view_of(5, 0)
    rng = np.random.default_rng(3)
    tried = [example(view.image, view.depth, brightness, rng) for _ in range(6)]
    return [each for each in tried if each is not None]


@pytest.mark.parametrize("size", ["rows=100", "columns=36", "rows=128", "columns=168"])
def test_a_crop_that_does_not_fit_is_refused(size: str) -> None:
    """The network halves it three times; examples have 120 x 160 cells."""
    with pytest.raises(config.ConfigError, match="multiples of 8, at most 120 and 160"):
        config.override(Config(), [size])


def test_depth_without_its_image_is_the_same() -> None:
    np.testing.assert_array_equal(view_of(5, 4).depth, depth_of(5, 4))


def test_examples_tell_what_the_field_missed(made: list[Example]) -> None:
    """In cells with a point the candidate "nearest point" equals the target, except for noise."""
    assert len(made) >= 4
    start = 4 * CANDIDATES.index("nearest point")
    agreement = []
    for each in made:
        maps, target = each.maps.astype(np.float32), in_rows(each.target.astype(np.float32))
        assert maps.shape[0] == CHANNELS and np.isfinite(maps).all()
        point = in_rows(maps[4 * WHOLE.index("point") :][:4]) > 0.5
        nearest = in_rows(maps[start : start + 4])
        assert np.isfinite(target[point]).all()
        agreement.append(np.median(np.abs(nearest - target)[point]))
    assert np.median(agreement) < 0.003


def test_the_mix_is_convex() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 4 * (len(CANDIDATES) + 1), 8, 8)
    candidates = torch.randn(2, 4 * len(CANDIDATES), 8, 8)
    each = candidates.reshape(2, len(CANDIDATES), 4, 8, 8)
    mixed = convex_mix(logits, candidates)
    assert (mixed <= each.amax(1).clamp_min(0) + 1e-5).all()
    assert (mixed >= each.amin(1).clamp_max(0) - 1e-5).all()
    torch.testing.assert_close(convex_mix(logits, torch.ones_like(candidates)).max(),
                               torch.tensor(1.0), atol=1e-2, rtol=0)  # fmt: skip


def test_a_fresh_network_keeps_what_needs_no_change() -> None:
    network = RefinerNet((8, 8, 8, 8), (1, 1, 1, 1)).eval()
    maps = torch.randn(1, CHANNELS, 16, 24)
    maps[:, : 4 * len(CANDIDATES)] = 0
    assert (network(maps) == 0).all()


def test_mirrored_maps_are_those_of_the_mirrored_image() -> None:
    maps = torch.randn(1, CHANNELS, 6, 10)
    turned = mirrored(maps)
    torch.testing.assert_close(mirrored(turned), maps)
    first = in_rows(maps[0, 4:8].numpy())
    np.testing.assert_array_equal(in_rows(turned[0, 4:8].numpy()), first[:, ::-1])
    torch.testing.assert_close(turned[0, -1], maps[0, -1].flip(-1))


def test_unknown_truth_does_not_count() -> None:
    target = torch.full((1, 4, 2, 2), torch.nan)
    target[0, 0, 0, 0] = 0.1
    missed, own = errors(torch.zeros(1, 4, 2, 2), target)
    torch.testing.assert_close(missed, torch.tensor([0.1]))
    torch.testing.assert_close(own, torch.tensor([0.1]))


def test_examples_need_a_seed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no seed"):
        Examples(ExamplesConfig(str(tmp_path)))


@pytest.mark.parametrize("name", ["maps.f16", "target.f16", "done.u8"])
def test_examples_of_which_a_file_is_cut_are_refused(tmp_path: Path, name: str) -> None:
    cfg = ExamplesConfig(str(tmp_path), views=2, per_view=1, seed=4)
    Examples(cfg)
    path = tmp_path / f"{name}-4-2x1"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{name}-4-2x1 has .* needs {len(content)}: copy"):
        Examples(cfg)
    (tmp_path / "done.u8-4-2x1").unlink()  # the cure
    assert Examples(cfg).missing() == [0, 1]


def test_a_run_and_its_file(tmp_path: Path) -> None:
    """The command makes examples, learns, resumes without making them again, and exports."""
    settings = [
        f"examples.folder={tmp_path}", "examples.views=2", "examples.per_view=1",
        f"judged.folder={tmp_path}", "judged.views=1", "judged.per_view=1",
        "loop.steps=4", "loop.batch=2", "loop.warmup=1", "loop.checkpoint_every=2",
        *(f"{name}={value}" for name, value in SMALL.items()),
    ]  # fmt: skip
    run, file = tmp_path / "run", tmp_path / "refine.onnx"
    words = ["refine", "--config", "training/configs/refine.yaml", "--run", str(run), *settings]
    assert main(words) == 0
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.f16-*")}
    assert main([*words, "loop.steps=6"]) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.f16-*")}
    assert main(["refiner", str(run), "--out", str(file)]) == 0
    network, refiner = open_refiner_run(run), FieldRefiner(file)
    for shape in ((32, 48), (120, 160)):
        maps = np.random.default_rng(1).normal(0, 0.2, (CHANNELS, *shape)).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(maps)[None])[0].numpy()
        np.testing.assert_allclose(refiner(maps), expected, atol=1e-4)


def test_another_recipes_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["refiner", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err
