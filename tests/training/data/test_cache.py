# SPDX-License-Identifier: Apache-2.0
"""The cache of maps and masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.data.augmentation import Window
from training.data.cache import Cache, Key, digest
from training.data.samples import DataError

KEY = Key("abc", "teacher-small", "r1", Window(0, 0, 30, 40, 30, 40))


def test_maps_come_back_within_half_a_step(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((30, 40)) * 700 - 50).astype(np.float32)
    values[3:6] = np.nan
    values[0, 0] = np.inf
    cache = Cache(tmp_path)
    assert KEY not in cache
    cache.write_map(KEY, values, meaning="disparity_affine_invariant", processing_px=518)
    assert KEY in cache
    stored = cache.read_map(KEY)
    known = np.isfinite(values)
    np.testing.assert_array_equal(np.isfinite(stored), known)
    spread = float(np.ptp(values[known]))
    assert np.abs(stored[known] - values[known]).max() <= spread / 131068 * 1.01
    about = cache.about(KEY)
    assert (about["meaning"], about["processing_px"]) == ("disparity_affine_invariant", 518)
    assert about["key"]["maker"] == "teacher-small"
    cache.write_map(KEY, np.full((3, 4), 2.5, np.float32))  # a constant has no range
    np.testing.assert_array_equal(cache.read_map(KEY), np.full((3, 4), 2.5, np.float32))


def test_every_part_of_the_key_makes_another_file(tmp_path: Path) -> None:
    others = [
        Key("abd", KEY.maker, KEY.revision, KEY.window),
        Key("abc", "teacher-large", KEY.revision, KEY.window),
        Key("abc", KEY.maker, "r2", KEY.window),
        Key("abc", KEY.maker, KEY.revision),
        Key("abc", KEY.maker, KEY.revision, Window(0, 0, 30, 40, 30, 40, flip=True)),
        Key("abc", KEY.maker, KEY.revision, Window(1, 0, 30, 40, 30, 40)),
    ]
    assert len({key.name for key in [KEY, *others]}) == 7
    cache = Cache(tmp_path)
    cache.write_map(KEY, np.eye(4, dtype=np.float32))
    assert not any(key in cache for key in others)


def test_pictures_are_told_apart_by_their_pixels() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    other = image.copy()
    other[2, 3, 1] = 1
    names = {digest(image), digest(other), digest(image.reshape(6, 4, 3))}
    assert len(names) == 3
    assert digest(image) == digest(image.copy())


@pytest.mark.parametrize("count", [0, 1, 16, 17, 40])
def test_masks_may_overlap(tmp_path: Path, count: int) -> None:
    masks = np.random.default_rng(count).random((count, 9, 7)) < 0.4
    Cache(tmp_path).write_masks(KEY, masks)
    stored = Cache(tmp_path).read_masks(KEY)
    assert stored.shape == masks.shape
    np.testing.assert_array_equal(stored, masks)


def test_what_is_missing_or_damaged_is_a_sentence(tmp_path: Path) -> None:
    cache = Cache(tmp_path, cure="python -m training teach --config distill.yaml")
    with pytest.raises(
        DataError, match=r"nothing of teacher-small .*run `python -m training teach"
    ):
        cache.read_map(KEY)
    with pytest.raises(DataError, match="no finite value"):
        cache.write_map(KEY, np.full((3, 4), np.nan, np.float32))
    assert list(tmp_path.iterdir()) == []
    cache.write_map(KEY, np.eye(40, dtype=np.float32))
    with pytest.raises(DataError, match="holds no masks"):
        cache.read_masks(KEY)
    (png,) = tmp_path.glob("*/*.png")
    png.write_bytes(png.read_bytes()[:60])
    with pytest.raises(DataError, match=r"is damaged .*delete it"):
        cache.read_map(KEY)
    (about,) = tmp_path.glob("*/*.json")
    about.write_text(about.read_text()[:20])
    with pytest.raises(DataError, match="is damaged"):
        cache.read_map(KEY)


def test_a_write_that_fails_leaves_the_old_map(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write_map(KEY, np.eye(4, dtype=np.float32))
    (png,) = tmp_path.glob("*/*.png")
    stored = cv2.imread(str(png), cv2.IMREAD_UNCHANGED)
    assert stored is not None and stored.dtype == np.uint16
    assert json.loads(next(iter(tmp_path.glob("*/*.json"))).read_text())["high"] == 1.0
    assert not list(tmp_path.glob("*/*.partial"))
    blocked = Cache(png)  # a file where the folder should be
    with pytest.raises(DataError, match="cannot be written"):
        blocked.write_map(KEY, np.eye(4, dtype=np.float32))
    np.testing.assert_allclose(cache.read_map(KEY), np.eye(4))


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "{}", '{"kind": "map"}', '{"kind": "map", "low": NaN, "high": 1}',
     '{"kind": "map", "low": 2, "high": 1}', '{"kind": "map", "low": true, "high": 2}',
     '{"kind": "map", "low": 0, "high": 1' + "0" * 400 + "}",
     '{"kind": "map", "low": "0", "high": "1"}', '{"kind": "map", "low": 0, "high": Infinity}',
     "[" * 100_000, "\xff"],
)  # fmt: skip
def test_what_stands_beside_a_map_is_checked(tmp_path: Path, text: str) -> None:
    cache = Cache(tmp_path)
    cache.write_map(KEY, np.eye(4, dtype=np.float32))
    next(iter(tmp_path.glob("*/*.json"))).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"is damaged .*delete it"):
        cache.read_map(KEY)


@pytest.mark.parametrize("values", [{"count": 17}, {"count": -1}, {"count": 2.0}, {"height": 0},
                                    {"height": 3}, {"count": None}, {"count": True}])  # fmt: skip
def test_the_number_of_masks_is_that_of_their_pages(
    tmp_path: Path, values: dict[str, object]
) -> None:
    cache = Cache(tmp_path)
    cache.write_masks(KEY, np.ones((2, 4, 6), bool))
    (about,) = tmp_path.glob("*/*.json")
    about.write_text(json.dumps({**json.loads(about.read_text()), **values}))
    with pytest.raises(DataError, match="is damaged"):
        cache.read_masks(KEY)
