# SPDX-License-Identifier: Apache-2.0
"""The study of MeSa: its variants, and errors in metres."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("transformers", reason="the encoder is transformers' Depth Anything")

from depth_node import config
from tests.training.models.test_mobilenet import Theirs
from training import checkpoints
from training.data.samples import Sample
from training.models import mobilenet
from training.recipes import mesa
from training.studies import common
from training.studies import mesa as study


def test_every_variant_resolves_and_changes_something() -> None:
    base = config.build(mesa.Config, study.MESA_BASE)
    trained = [config.replace(base, v.settings) for v in study.MESA if v.settings is not None]
    assert len({config.dump(cfg) for cfg in trained}) == len(trained)
    assert sum(variant.settings is None for variant in study.MESA) == 1, "nothing before it"
    assert config.replace(base, study.SUPERVISED).loss.supervised > 0


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> study.Setting:
    """Make runs of one step on three images, with random weights in place of ImageNet's."""
    for name, value in (("batch", 2), ("warmup", 0)):
        monkeypatch.setitem(study.MESA_BASE["loop"], name, value)
    monkeypatch.setitem(study.MESA_BASE["sequences"], "scenes", 1)
    monkeypatch.setattr(mobilenet, "SHA256", "")
    torch.manual_seed(5)
    torch.save(Theirs().state_dict(), tmp_path / "net.pth")
    few = common.pool(tmp_path, "few", 3, "room", 1, study.POOLED)
    return study.Setting(tmp_path, few, few, tmp_path / "net.pth", steps=1)


def row(name: str) -> common.Variant:
    return next(variant for variant in study.ROWS if variant.name == name)


def test_every_row_starts_from_the_file_and_goes_on_from_its_own_pre_training(
    setting: study.Setting,
) -> None:
    """But for the control, whose encoder is random; the geometric term alone is judged as it was
    pre-trained, its decoder too.
    """
    kept = "encoder.blocks.0.0.weight"  # of the blocks that stay as they start
    given = mobilenet.imagenet_weights(setting.imagenet)[kept.removeprefix("encoder.")]
    judge = common.samples(setting.few)
    for name in ("masked", "fine-tuning alone", study.ALONE.name, study.RANDOM.name):
        run = study.pretrained(setting, row(name), 1)
        content = checkpoints.read(run)
        loss = content["settings"]["loss"]
        assert (loss["supervised"] > 0) == (name != study.ALONE.name)
        assert (content["settings"]["start"] != "") == (name == "masked")
        assert torch.equal(content["averaged"][kept], given) == (name != study.RANDOM.name)
        errors = study.metre_errors(run, judge)
        assert errors.shape == (3, 3) and np.isfinite(errors).all()
    first = checkpoints.read(setting.folder / "runs" / "masked-1-pretrained")
    assert first["settings"]["loss"] == {**loss, "geometric": 0, "supervised": 0, "masked": 1}
    far = [Sample(s.name, s.image, s.depth + 100) for s in judge if s.depth is not None]
    assert (study.metre_errors(run, far)[:, 0] > 90).all(), "RMSE grows with the offset, m"


def test_without_a_file_rows_start_from_scratch(setting: study.Setting) -> None:
    scratch = dataclasses.replace(setting, imagenet=None, tuned=2)
    content = checkpoints.read(study.pretrained(scratch, row("fine-tuning alone"), 1))
    assert content["settings"]["imagenet"] == "" and content["settings"]["loop"]["steps"] == 2
    assert content["settings"]["frozen_blocks"] == 0, "random blocks must learn"


def test_what_no_recipe_learnt_is_judged_as_networks_are(tmp_path: Path) -> None:
    """The mean map of the views themselves has their deviation as RMSE; scale costs nothing after
    the medians are taken.
    """
    few = common.samples(common.pool(tmp_path, "few", 6, "room", 1, (60, 88)))
    errors = study.reference_errors(study.MEAN_MAP, few, few)
    depth = np.stack([s.depth for s in few if s.depth is not None]).astype(np.float64)
    expected = np.sqrt(((depth - depth.mean(axis=0)) ** 2).mean(axis=(1, 2)))
    np.testing.assert_allclose(errors[:, 0], expected, rtol=1e-2)
    shape = study.reference_errors(study.SHAPE, few, few)
    assert (shape[:, 0] > 0).all() and shape[:, 2] == pytest.approx(0, abs=1e-2), "scale is all"
    embedded = study.reference_errors(study.EMBEDDED_ROW, few, few)
    assert embedded[:, 0].mean() < 0.8 * errors[:, 2].mean(), "it sees the image"
    twice = [Sample(s.name, s.image, 2 * s.depth) for s in few if s.depth is not None]
    scaled = study.reference_errors(study.MEAN_MAP, few, twice)[:, 2]
    np.testing.assert_allclose(scaled, 2 * errors[:, 2], rtol=1e-2)
