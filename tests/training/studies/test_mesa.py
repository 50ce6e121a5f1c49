# SPDX-License-Identifier: Apache-2.0
"""The study of MeSa: its variants, and errors in metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("transformers", reason="the encoder is transformers' Depth Anything")

from depth_node import config
from training import checkpoints
from training.checkpoints import TrainingError
from training.data.samples import Sample
from training.recipes import mesa
from training.studies import common
from training.studies import mesa as study


def test_every_variant_resolves_and_changes_something() -> None:
    base = config.build(mesa.Config, study.MESA_BASE)
    trained = [config.replace(base, v.settings) for v in study.MESA if v.settings is not None]
    assert len({config.dump(cfg) for cfg in trained}) == len(trained)
    assert sum(variant.settings is None for variant in study.MESA) == 1, "from scratch"
    assert config.replace(base, study.MESA_TUNE).loss.supervised > 0


def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("batch", 2), ("steps", 1)):
        monkeypatch.setitem(study.MESA_BASE["loop"], name, value)
    monkeypatch.setitem(study.MESA_BASE["sequences"], "scenes", 1)
    monkeypatch.setitem(study.MESA_TUNE, "loop.steps", 1)


def test_rows_that_are_pre_trained_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The geometric term alone is judged as it was pre-trained; a MobileNetV2 is only fine-tuned,
    at a size of its own.
    """
    one_step(monkeypatch)
    few = common.pool(tmp_path, "few", 3, "room", 1, study.POOLED)
    alone = study.pretrained(tmp_path, study.ALONE, 1, few, few)
    settings = checkpoints.read(alone)["settings"]
    assert settings["loss"]["geometric"] > 0 == settings["loss"]["supervised"]
    control = common.Variant(study.TUNED_IMAGENET, {**study.DETAIL, "loop.steps": 1})
    run = study.pretrained(tmp_path, control, 1, few, few, tuned=2)
    settings = checkpoints.read(run)["settings"]
    assert settings["loop"]["steps"] == 2
    assert settings["loss"]["supervised"] > 0 and settings["start"] == ""
    for path in (alone, run):
        assert np.isfinite(study.metre_errors(path, common.samples(few))).all()


def test_errors_are_in_metres_and_nothing_is_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step(monkeypatch)
    few = common.pool(tmp_path, "few", 3, "room", 1, study.POOLED)
    scratch = next(variant for variant in study.MESA if variant.settings is None)
    run = study.pretrained(tmp_path, scratch, 1, few, few)
    judge = common.samples(few)
    errors = study.metre_errors(run, judge)
    assert errors.shape == (3, 3) and np.isfinite(errors).all()
    far = [Sample(s.name, s.image, s.depth + 100) for s in judge if s.depth is not None]
    assert (study.metre_errors(run, far)[:, 0] > 90).all(), "RMSE grows with the offset, m"


def test_what_no_recipe_learnt_is_judged_as_networks_are(tmp_path: Path) -> None:
    """The mean map of the views themselves has their deviation as RMSE; scale costs nothing after
    the medians are taken; ImageNet's weights are asked for by name.
    """
    few = common.samples(common.pool(tmp_path, "few", 6, "room", 1, (60, 88)))
    errors = study.reference_errors(study.MEAN_MAP, 1, few, few, None)
    depth = np.stack([s.depth for s in few if s.depth is not None]).astype(np.float64)
    expected = np.sqrt(((depth - depth.mean(axis=0)) ** 2).mean(axis=(1, 2)))
    np.testing.assert_allclose(errors[:, 0], expected, rtol=1e-2)
    shape = study.reference_errors(study.SHAPE, 1, few, few, None)
    assert (shape[:, 0] > 0).all() and shape[:, 2] == pytest.approx(0, abs=1e-2), "scale is all"
    embedded = study.reference_errors(study.EMBEDDED_ROW, 1, few, few, None)
    assert embedded[:, 0].mean() < 0.8 * errors[:, 2].mean(), "it sees the image"
    twice = [Sample(s.name, s.image, 2 * s.depth) for s in few if s.depth is not None]
    scaled = study.reference_errors(study.MEAN_MAP, 1, few, twice, None)[:, 2]
    np.testing.assert_allclose(scaled, 2 * errors[:, 2], rtol=1e-2)
    bright = [
        Sample(str(v), np.full((60, 88, 3), v, np.uint8), np.full((60, 88), 1 + v / 50, np.float32))
        for v in range(20, 240, 10)
    ]
    blind, learnt = (
        study.reference_errors(name, 1, bright, bright, None)[:, 0].mean()
        for name in (study.MEAN_MAP, study.RANDOM)
    )
    assert learnt < 0.5 * blind, "what the image says is learnt"
    with pytest.raises(TrainingError, match="give it with --imagenet"):
        study.reference_errors(study.IMAGENET, 1, few, few, None)
