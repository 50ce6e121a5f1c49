# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.fitting import FitConfig
from depth_node.geometry.camera import Camera
from depth_node.prediction import Prediction
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.studies import regions


class Flat:
    """A network that predicts a wall."""

    def predict(self, image: np.ndarray) -> Prediction:
        return Prediction(np.ones(image.shape[:2], np.float32), "depth_affine_invariant")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "ROOMS", (3,))
    monkeypatch.setattr(regions, "WALK_FRAMES", 5)
    monkeypatch.setattr(regions, "STEPS", (1, 4))
    monkeypatch.setattr(regions, "CAMERA", Camera(96, 72, 72.0, 72.0, 47.5, 35.5))
    monkeypatch.setattr(regions, "METHODS", {"slf": FitConfig(method="slf"), "field": FitConfig()})


def run(case: str, *sources: Path) -> list[Any]:
    return regions.CASES[case](sources, Flat(), [0], lambda name: None)


def test_stand_in_of_a_network_gives_back_the_regions_it_knows() -> None:
    scene = Scene.random(3)
    camera, pose = random_view(scene, np.random.default_rng(3), 320, 240)
    view = scene.render(camera, pose, antialias=False)
    model = regions.prompted_model(view.labels, 16)
    labels = model.predict(view.image)
    assert model.message == ""
    assert labels.shape == (240, 320)
    # Pixels of one found region are mostly of one true region.
    pure = sum(np.bincount(view.labels[labels == k]).max() for k in range(1, labels.max() + 1))
    assert pure / labels.size > 0.75
    assert labels.max() >= 8
    np.testing.assert_array_equal(model.predict(view.image), labels)


def test_motion_and_reuse_give_a_row_each(small: None) -> None:
    (table,) = run("motion")
    assert [row[0] for row in table.rows] == list(regions.WAYS)
    wrong = {row[0]: float(row[1].rstrip("%")) for row in table.rows}
    assert wrong["DIS ultrafast, 320 px (chosen)"] < 0.7 * wrong["regions stay where they are"]
    for table in run("reuse"):
        rows = {row[0]: row for row in table.rows}
        assert list(rows) == list(regions.EVERY)
        assert rows["every image"][1] == "100%"
        assert rows["every 4th"][1] == "40%"
        assert rows["once"][1] == "20%"


def test_real_masks_against_none(shared: Path, small: None) -> None:
    (table,) = run("masks", shared / "data" / "opencalib_road" / "ours_1")
    assert [row[:2] for row in table.rows] == [
        ["slf", "stored masks"],
        ["slf", "own regions"],
        ["slf", "none"],
        ["field", "none"],
    ]
    with pytest.raises(ValueError, match="no frame of these sources has stored masks"):
        run("masks", shared / "data" / "opencalib_road" / "manual_0")
