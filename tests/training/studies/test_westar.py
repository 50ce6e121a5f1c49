# SPDX-License-Identifier: Apache-2.0
"""The study of WeSTAR: its judgement by hand, and at toy scale through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node import config
from training.__main__ import main
from training.recipes import westar
from training.studies import common
from training.studies import westar as study


def test_rooms_repeat_and_the_three_kinds_differ(tmp_path: Path) -> None:
    learn = study.rooms(tmp_path, "learn", 3)
    again = study.rooms(tmp_path / "again", "learn", 3)
    judge = study.rooms(tmp_path, "judge", 3)
    for one, same, other in zip(learn, again, judge, strict=True):
        np.testing.assert_array_equal(one.image, same.image)
        assert not np.array_equal(one.image, other.image)
    fog = study.corrupted_images(learn, "fog", 5)
    assert not np.array_equal(fog[0].image, learn[0].image)
    assert fog[0].depth is learn[0].depth


@pytest.mark.parametrize("variant", [v for v in study.WESTAR if v.settings], ids=lambda v: v.name)
def test_every_variant_is_a_setting_of_the_recipe(variant: common.Variant) -> None:
    cfg = config.replace(config.build(westar.Config, study.WESTAR_BASE), variant.settings or {})
    assert cfg != config.build(westar.Config, study.WESTAR_BASE)


def test_the_published_config_is_what_the_study_judged() -> None:
    path = REPO / "training" / "configs" / "westar_embedded.yaml"
    published = config.load(westar.Config, path)
    changes = next(v.settings or {} for v in study.WESTAR if v.name == study.PUBLISHED)
    judged = config.replace(config.build(westar.Config, study.WESTAR_BASE), changes)
    judged = config.replace(judged, {"loop.seed": published.loop.seed, "loop.tensorboard": True})
    judged = config.replace(
        judged, {"loop.log_every": published.loop.log_every, "loop.steps": published.loop.steps}
    )
    assert (published.loss, published.tune, published.loop) == (
        judged.loss,
        judged.tune,
        judged.loop,
    )


def test_the_config_without_labels_is_what_the_study_judged() -> None:
    path = REPO / "training" / "configs" / "westar_camera.yaml"
    published = config.load(westar.Config, path)
    changes = next(v.settings or {} for v in study.WESTAR if v.name == study.NO_LABELS)
    base = config.build(westar.Config, study.WESTAR_BASE)
    judged = config.replace(base, {**changes, "loss.mask_px": published.loss.mask_px})
    judged = config.replace(judged, {"loss.margin": published.loss.margin, "loop.seed": 1})
    judged = config.replace(judged, {"loop.tensorboard": True})
    assert published.network.source == judged.network.source
    own = ("tune", "appearance", "loss", "strong", "weak", "height", "width")
    for name in own:
        assert getattr(published, name) == getattr(judged, name), name
    assert config.to_dict(published.loop) == config.to_dict(
        config.replace(judged, {"loop.log_every": published.loop.log_every}).loop
    )


def test_a_study_runs_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["study", "westar", "--out", str(tmp_path), "--steps", "2", "--images", "3"]
    command += ["--rooms", "1", "--target", "contrast", "fog", "--only", "source", "WeSTAR"]
    command += [study.STRETCHED, study.MEASURED, study.CEILING]
    small = ["--set", "network.source=embedded-small", "height=96", "width=128"]
    command[2:2] = small  # a seventh of the work
    assert main(command) == 0
    printed = capsys.readouterr().out
    for name in ("contrast", "fog"):
        assert f"1 - delta1 on {name} of {study.CEILING!r} is at most 0.45 of 'source'" in printed
    folder = tmp_path / "westar" / f"contrast-fog-5-3-2{study.named_by(small[1:])}"
    assert (folder / "table.md").read_text() == printed
    stored = json.loads((folder / "scores" / "WeSTAR-1-1.json").read_text())
    measured = json.loads(
        (folder / "scores" / f"{common.slug(study.MEASURED)}-1-1.json").read_text()
    )
    source = json.loads((folder / "scores" / "source-1-1.json").read_text())
    assert measured["contrast"] != source["contrast"] and len(measured["contrast"]) == 3
    assert {part: len(errors) for part, errors in stored.items()} == {
        "contrast": 3, "fog": 3, "corrupted": 6, "clear": 6,
    }  # fmt: skip
    assert stored["corrupted"] == stored["contrast"] + stored["fog"]
    runs = list((tmp_path / "westar").rglob("about.json"))
    assert len({path.parents[2].name for path in runs}) == 2, "WeSTAR and the ceiling"
    longer = [path for path in runs if "ceiling" in str(path)]
    assert all("8" in path.parent.name for path in longer), "four times two steps"
    before = [path.stat().st_mtime_ns for path in runs]
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    assert [path.stat().st_mtime_ns for path in runs] == before
    assert main([*command[:-9], "--target", "rain"]) == 1
    assert capsys.readouterr().err.startswith("No corruption is called 'rain'")


def test_a_stretch_undoes_what_only_lacks_contrast(tmp_path: Path) -> None:
    rooms = study.rooms(tmp_path, "judge", 3)
    dull = study.corrupted_images(rooms, "contrast", 5)
    away = [
        np.abs(
            np.stack([s.image for s in images]).astype(float) - np.stack([s.image for s in rooms])
        )
        for images in (dull, study.stretched(dull, like=rooms))
    ]
    assert away[1].mean() < 0.6 * away[0].mean()
