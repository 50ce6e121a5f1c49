# SPDX-License-Identifier: Apache-2.0
"""The study of MeSa: its variants, and errors in metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("transformers", reason="the encoder is transformers' Depth Anything")

from depth_node import config
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


def test_errors_are_in_metres_and_nothing_is_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("batch", 2), ("steps", 1)):
        monkeypatch.setitem(study.MESA_BASE["loop"], name, value)
    monkeypatch.setitem(study.MESA_TUNE, "loop.steps", 1)
    few = common.pool(tmp_path, "few", 3, "room", 1, (60, 88))
    scratch = next(variant for variant in study.MESA if variant.settings is None)
    run = study.pretrained(tmp_path, scratch, 1, few, few)
    judge = common.samples(few)
    errors = study.metre_errors(run, judge)
    assert errors.shape == (3, 2) and np.isfinite(errors).all()
    far = [Sample(s.name, s.image, s.depth + 100) for s in judge if s.depth is not None]
    assert (study.metre_errors(run, far)[:, 0] > 90).all(), "RMSE grows with the offset, m"
