# SPDX-License-Identifier: Apache-2.0
"""Centred kernel alignment: a known value, invariances, estimators, the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("transformers", reason="the encoders come with transformers")

from depth_node import config
from training import checkpoints
from training.__main__ import main
from training.checkpoints import TrainingError
from training.evaluation import cka
from training.models.networks import NetworkConfig, open_network


def features(rows: int = 40, columns: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)) + 2


def test_golden_value() -> None:
    x, y = np.array([[1, 0], [0, 1], [1, 1]]), np.array([[2, 1], [1, 0], [0, 2]])
    assert cka.linear_cka(x, y) == pytest.approx(0.6)
    assert cka.linear_cka(y, x) == pytest.approx(0.6)


def test_turning_scaling_and_moving_change_nothing() -> None:
    x, y = features(), features(seed=1)
    turn, _ = np.linalg.qr(features(6, 6, seed=2))
    plain = cka.linear_cka(x, y)
    assert 0 < plain < 0.9
    for moved in (x @ turn, 3.5 * x, x + 100, -x):
        assert cka.linear_cka(moved, y) == pytest.approx(plain, abs=1e-9)
        assert cka.linear_cka(moved, x) == pytest.approx(1)
    assert cka.linear_cka(x @ np.diag([9, 1, 1, 1, 1, 1]), x) < 0.9
    assert np.isnan(cka.linear_cka(np.ones((5, 3)), y[:5]))


@pytest.mark.parametrize("estimator", ["linear", "unbiased"])
@pytest.mark.parametrize("value", [0.1, 1.1, 7.7])
def test_a_layer_of_constant_output_is_like_none(estimator: str, value: float) -> None:
    """Its mean is rounded, so that the values minus their mean are not 0."""
    for rows in range(5, 40):
        parts = cka.LayerSimilarity(estimator)
        parts.add([np.full((rows, 3), value)], [features(rows)])
        assert np.isnan(parts.matrix()).all()


def test_unbiased_hsic_against_the_definition() -> None:
    """It is the mean of its kernel over all ordered quadruples of rows (Song et al. 2012)."""
    x, y = features(6, 2), features(6, 3, seed=1)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    rows = list(itertools.permutations(range(6), 4))
    expected = np.mean([k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in rows])
    assert cka.unbiased_hsic(cka.gram(x), cka.gram(y)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="4 or more rows"):
        cka.unbiased_hsic(np.zeros((3, 3)), np.zeros((3, 3)))


def test_batches_agree_with_the_whole_where_the_biased_number_does_not() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1200, 20))
    y = np.concatenate([x[:, :10], rng.standard_normal((1200, 10))], axis=1)
    whole = cka.linear_cka(x, y)
    values = {}
    for size in (24, 120):
        parts = cka.LayerSimilarity("unbiased")
        for first in range(0, 1200, size):
            now = slice(first, first + size)
            parts.add([x[now]], [y[now], x[now]])
        values[size] = parts.matrix()[0]
        assert values[size][1] == pytest.approx(1)
        assert values[size][0] == pytest.approx(whole, abs=0.03)
    biased = np.mean([cka.linear_cka(x[k : k + 24], y[k : k + 24]) for k in range(0, 1200, 24)])
    assert abs(biased - whole) > 0.1
    lines = cka.LayerSimilarity("linear")
    for first in range(0, 1200, 120):
        lines.add([x[first : first + 120]], [y[first : first + 120]])
    assert lines.matrix()[0, 0] == pytest.approx(whole)
    for bad, message in ((lambda: cka.LayerSimilarity("mean"), "linear or unbiased"),
                      (lambda: cka.LayerSimilarity().matrix(), "no features")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            bad()


def test_layers_and_their_rows() -> None:
    network = open_network(NetworkConfig(kind="debug"))
    chosen = cka.layers(network)
    assert list(chosen) == [f"network.backbone.encoder.layer.{k}" for k in range(4)]
    probe = cka.Probe(network, chosen)
    x = torch.rand(3, 3, 28, 42)
    assert [f.shape for f in probe(x)] == [(3, 32)] * 4
    # 2 x 3 patches and the token of the whole image.
    assert [f.shape for f in probe(x, "tokens")] == [(3 * 7, 32)] * 4
    unet = open_network(NetworkConfig())
    assert set(cka.layers(unet)) == {"stem", "context", *(f"stages.{k}" for k in range(5))}
    with pytest.raises(TrainingError, match="--layers"):
        cka.layers(unet, "nothing")


def write_run(folder: Path, kind: str, seed: int) -> Path:
    """Write a checkpoint as the training loop does."""
    torch.manual_seed(seed)
    cfg = NetworkConfig(kind=kind)
    about = {"recipe": "mesa", "settings": {"network": config.to_dict(cfg)}}
    weights = {"averaged": open_network(cfg).state_dict()}
    checkpoints.write(folder, 1, about, weights, {})
    return folder


def test_the_command_compares_any_two_checkpoints(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", "debug", 0), write_run(tmp_path / "b", "debug", 1)
    unet = write_run(tmp_path / "unet", "unet", 0)
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        image = cv2.resize(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8), (60, 44))
        cv2.imwrite(str(images / f"{k}.png"), image)
    size = ["--height", "42", "--width", "56", "--data", str(images)]
    for second, columns in ((a, 4), (b, 4), (unet, 7)):
        out = tmp_path / f"out_{second.name}"
        assert main(["cka", str(a), str(second), *size, "--out", str(out)]) == 0
        result = json.loads((out / "cka.json").read_text())
        matrix = np.array(result["matrix"], float)
        assert matrix.shape == (4, columns) and result["images"] == 6
        if second is a:
            np.testing.assert_allclose(result["layer_by_layer"], 1)
            np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
        if second is b:
            assert result["layer_by_layer"][-1] < 0.999
        sample_image = cv2.imread(str(out / "cka.png"))
        assert sample_image is not None and sample_image.std() > 5
    out = tmp_path / "tokens"
    more = ["--rows", "tokens", "--estimator", "unbiased", "--batch", "3"]
    assert main(["cka", str(a), str(b), *size, *more, "--out", str(out)]) == 0
    assert json.loads((out / "cka.json").read_text())["estimator"] == "unbiased"


def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write_run(tmp_path / "a", "debug", 0)
    empty = tmp_path / "empty"
    empty.mkdir()
    out = ["--out", str(tmp_path / "out")]
    assert main(["cka", str(a), str(a), "--data", str(empty), *out]) == 1
    assert "holds 0 images" in capsys.readouterr().err
    assert main(["cka", str(a), str(empty), "--data", str(empty), *out]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    for k in range(4):
        (empty / f"{k}.png").write_bytes(b"cut")
    assert main(["cka", str(a), str(a), "--data", str(empty), *out]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_depthmasters_runs_open_too(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from training.models import diffusion

    cfg = diffusion.DiffusionConfig(unet_widths=(8, 16), vae_widths=(8, 8), prompt_width=8)
    about = {"recipe": "depthmaster", "settings": {"diffusion": config.to_dict(cfg)}}
    weights = {"averaged": diffusion.open_diffusion(cfg).state_dict()}
    checkpoints.write(tmp_path, 1, about, weights, {})
    network, spec = cka.open_checkpoint(tmp_path)
    assert spec.multiple_px == 2
    names = list(cka.layers(network))
    assert names == ["unet.down_blocks.0", "unet.down_blocks.1", "unet.mid_block"]
    probe = cka.Probe(network, cka.layers(network))
    assert [f.shape for f in probe(torch.rand(2, 3, 16, 16))] == [(2, 8), (2, 16), (2, 16)]


def test_independent_features_are_not_alike_by_default() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    cka.arguments(parser)
    args = parser.parse_args(["a", "b", "--data", "d", "--out", "o"])
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(64, 96)) for _ in range(2)]
    similarity = cka.LayerSimilarity(args.estimator)
    similarity.add([features[0]], [features[1]])
    assert abs(float(similarity.matrix()[0, 0])) < 0.1
