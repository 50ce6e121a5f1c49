# SPDX-License-Identifier: Apache-2.0
"""Images with depth from a pool, a data set, or a mixture of both."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node import config
from training.data.augmentation import ViewConfig
from training.data.mixed import Mixture, MixtureConfig
from training.data.samples import DataError


def settings(folder: Path, **more: object) -> MixtureConfig:
    tree = {
        "pool": {
            "folder": str(folder), "samples": 6, "height": 24, "width": 32, "wait_for": 6,
            "fill": True, "style": "room", "seed": 3,
        },
        "data": {"kind": "procedural", "limit": 1, "seed": 5, "height": 40, "width": 60},
        "second": {"kind": "procedural", "limit": 1, "seed": 6, "height": 40, "width": 60},
        **more,
    }  # fmt: skip
    return config.build(MixtureConfig, tree)


def drawn(mixture: Mixture, count: int = 200) -> list[bytes]:
    rngs = [np.random.default_rng(k) for k in range(count)]
    return [mixture.draw(rng, 16, 16, ViewConfig())[1].tobytes() for rng in rngs]


def test_a_batch_follows_from_its_generators(tmp_path: Path) -> None:
    mixture = Mixture(settings(tmp_path))
    a, b = (
        mixture.batch([np.random.default_rng(k) for k in range(3)], 16, 24, ViewConfig(flip=0.5))
        for _ in range(2)
    )
    assert a["image"].shape == (3, 3, 16, 24) and a["depth"].shape == (3, 1, 16, 24)
    assert a["image"].equal(b["image"]) and a["depth"].equal(b["depth"])
    assert float(a["image"].min()) >= 0 and float(a["image"].max()) <= 1


def test_the_second_data_set_has_its_share(tmp_path: Path) -> None:
    first = Mixture(settings(tmp_path, first="data"))
    both = Mixture(settings(tmp_path, first="data", second_probability=0.25))
    only = set(drawn(first, 3))
    assert len(only) == 1
    fraction = np.mean([depth not in only for depth in drawn(both)])
    assert fraction == pytest.approx(0.25, abs=0.1)
    pooled = Mixture(settings(tmp_path, second_probability=0.5))
    assert len(set(drawn(pooled, 60))) == 6 + 1


def test_the_second_data_set_may_have_its_own_size(tmp_path: Path) -> None:
    cfg = settings(tmp_path, second_probability=0.5, second_height=8, second_width=32)
    mixture = Mixture(cfg)
    rngs = [np.random.default_rng(k) for k in range(20)]
    shapes = {tuple(mixture.batch([rng], 16, 16, ViewConfig())["depth"].shape) for rng in rngs}
    assert shapes == {(1, 1, 16, 16), (1, 1, 8, 32)}
    with pytest.raises(DataError, match=r"two sizes.*loop\.accumulate"):
        mixture.batch(rngs[:2], 16, 16, ViewConfig())
    with pytest.raises(config.ConfigError, match="both, or neither"):
        settings(tmp_path, second_height=8)


def test_pictures_without_depth_are_refused_when_they_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((40, 60, 3), np.uint8))
    data = {"kind": "images", "folder": str(tmp_path / "images")}
    mixture = Mixture(settings(tmp_path / "pool", first="data", data=data))
    with pytest.raises(DataError, match="has no depth"):
        drawn(mixture, 1)
    with pytest.raises(DataError, match="no folder"):
        Mixture(settings(tmp_path / "pool", first="data", data={"kind": "images"}))
