# SPDX-License-Identifier: Apache-2.0
"""Predictions are computed once and stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from depth_node.engine import opening, options
from depth_node.engine.manifest_writer import write_manifest
from tests.helpers.scored_samples import Counting, samples
from training.__main__ import main
from training.evaluation import predict, score


def test_predictions_are_made_once_and_scored_often(tmp_path: Path) -> None:
    first, again = Counting(), Counting()
    plan = score.ScoringPlan(corruptions=("jpeg",))
    rows = score.score(samples(), {"m": predict.Cached(first, "a" * 30, tmp_path)}, plan)
    assert first.asked == 2 * 6
    other = score.ScoringPlan(("disp_ls", "sqrt_disp_ls", "median"), corruptions=("jpeg",))
    more = score.score(samples(), {"m": predict.Cached(again, "a" * 30, tmp_path)}, other)
    assert again.asked == 0
    same = [row for row in more if row.alignment in ("disp_ls", "-")]
    assert same == rows
    assert len(more) == 2 * (2 + 3 * 6)
    stranger = predict.Cached(again, "b" * 30, tmp_path)
    stranger.predict(samples()[0].image)
    assert again.asked == 1


def test_a_damaged_prediction_is_made_anew(tmp_path: Path) -> None:
    model = Counting()
    cached = predict.Cached(model, "a" * 30, tmp_path)
    image = samples()[0].image
    whole = cached.predict(image).values
    (entry,) = cached.folder.iterdir()
    entry.write_bytes(entry.read_bytes()[:50])
    np.testing.assert_array_equal(cached.predict(image).values, whole)
    assert model.asked == 2
    cached.predict(image)
    assert model.asked == 2


@pytest.mark.parametrize("changed", [{6: 255}, {8: 1}], ids=["version", "encrypted"])
def test_a_prediction_with_a_damaged_directory_is_made_anew(
    tmp_path: Path, changed: dict[int, int]
) -> None:
    """For a damaged directory of the archive zipfile raises other errors than BadZipFile."""
    model = Counting()
    cached = predict.Cached(model, "a" * 30, tmp_path)
    image = samples()[0].image
    whole = cached.predict(image).values
    (entry,) = cached.folder.iterdir()
    data = bytearray(entry.read_bytes())
    for offset, value in changed.items():
        data[data.index(b"PK\x01\x02") + offset] = value
    entry.write_bytes(bytes(data))
    np.testing.assert_array_equal(cached.predict(image).values, whole)
    assert model.asked == 2


def test_scores_are_of_the_reference_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "AUTO", ("tensorrt",))  # the choice on a machine with a GPU
    _, identity, model = predict.open_model("embedded")
    assert model.engine.backend == options.REFERENCE
    monkeypatch.setattr(opening, "AUTO", (options.REFERENCE,))
    assert predict.open_model("embedded", "auto")[1] == identity
    assert main(["evaluate", "--procedural", "1", "--seed", "1", "--backend", "cpu"]) == 1
    assert "back end 'cpu' is not known" in capsys.readouterr().err


def test_kept_predictions_are_those_of_the_manifest_as_it_is(tmp_path: Path) -> None:
    """A level decides which pixels are known, so predictions depend on it."""
    pytest.importorskip("onnx", reason="onnx builds the model of this test")
    from tests.helpers.tiny_models import save_model

    folder = tmp_path / "lr=1e-4"
    folder.mkdir()
    model = save_model(folder / "net.onnx", extra_output=True)
    identities = []
    for level in (0.4, 0.6, 0.4):
        more = {"output_name": "depth", "roles": {"mask": "features"}, "levels": {"mask": level}}
        write_manifest(model, "depth_metric", **more)
        identities.append(predict.open_model(str(model))[1])
    assert identities[0] == identities[2] != identities[1]


def test_a_corruption_wears_each_frame_in_its_own_way() -> None:
    a, b = samples()
    one = predict.corrupted(a, "gaussian", 2)
    np.testing.assert_array_equal(one.image, predict.corrupted(a, "gaussian", 2).image)
    renamed = replace(a, source=b.source, name=b.name)
    assert not np.array_equal(one.image, predict.corrupted(renamed, "gaussian", 2).image)
