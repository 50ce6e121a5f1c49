# SPDX-License-Identifier: Apache-2.0
"""Windows and views of images, the pool of rendered rooms, the cache of maps and masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node import config
from depth_node.geometry.camera import Camera
from training.data import augmentation
from training.data import pool as pool_module
from training.data.augmentation import ViewConfig, Window
from training.data.cache import Cache, Key, digest
from training.data.samples import DataError


def coordinates(height: int, width: int) -> NDArray[np.float32]:
    """An image whose first two channels say where each pixel lies (column, row)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x, y, 0 * x], axis=2)


def smooth(height: int = 60, width: int = 80) -> NDArray[np.float32]:
    grid = coordinates(height, width)
    return (grid / [width, height, 1] * 0.8 + [0.1, 0.1, 0.4]).astype(np.float32)


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(30, 60), (24, 30), (57, 133)])
def test_a_window_moves_picture_and_points_alike(flip: bool, size: tuple[int, int]) -> None:
    """The image says at each of its pixels where it came from; points must agree."""
    window = Window(5, 11, 24, 30, *size, flip)
    moved = window.image(coordinates(50, 70))
    inner = [(r, c) for r in range(4, size[0] - 4, 3) for c in range(4, size[1] - 4, 3)]
    came_from = np.array([moved[r, c, :2] for r, c in inner], np.float64)
    here = np.array([(c, r) for r, c in inner], np.float64)
    np.testing.assert_allclose(window.points(came_from), here, atol=0.02 * max(size) / 24)


def test_maps_are_taken_from_the_nearest_pixel() -> None:
    grid = coordinates(50, 70)[..., 0]
    window = Window(5, 11, 24, 30, 48, 90, flip=True)
    moved = window.nearest(grid)
    assert set(np.unique(moved)) == set(range(11, 41))
    columns = window.points(np.stack([moved[7], np.full(90, 9.0)], axis=1))[:, 0]
    assert np.abs(columns - np.arange(90)).max() <= 1.0  # a third of a source pixel's three
    masks = grid > 20
    assert window.nearest(masks).dtype == np.bool_
    np.testing.assert_array_equal(window.nearest(masks), moved > 20)
    labels = grid.astype(np.int32)
    np.testing.assert_array_equal(window.nearest(labels), moved.astype(np.int32))


def test_the_camera_of_a_window_sees_points_where_they_are() -> None:
    camera = Camera(70, 50, 60.0, 61.0, 33.0, 26.0)
    window = Window(5, 11, 24, 30, 48, 90)
    inside = window.camera(camera)
    assert (inside.width, inside.height) == (90, 48)
    ray = np.array([0.05, -0.1])
    before = np.array([[camera.fx * ray[0] + camera.cx, camera.fy * ray[1] + camera.cy]])
    after = [inside.fx * ray[0] + inside.cx, inside.fy * ray[1] + inside.cy]
    np.testing.assert_allclose(window.points(before)[0], after)
    with pytest.raises(ValueError, match="mirrored"):
        Window(0, 0, 9, 9, 9, 9, flip=True).camera(camera)


def test_random_windows_stay_inside_and_vary() -> None:
    cfg = ViewConfig(smallest_crop=0.5, aspect=0.2, flip=0.5)
    rng = np.random.default_rng(0)
    windows = [augmentation.random_window((40, 60, 3), 20, 30, cfg, rng) for _ in range(200)]
    for window in windows:
        assert 0 <= window.top <= window.top + window.rows <= 40
        assert 0 <= window.left <= window.left + window.columns <= 60
        assert window.rows >= 0.4 * 40 - 1
    assert len({(w.top, w.left, w.rows) for w in windows}) > 100
    assert 60 < sum(window.flip for window in windows) < 140
    whole = augmentation.random_window((40, 60, 3), 20, 30, ViewConfig(), rng)
    assert whole == Window.whole((40, 60, 3), 20, 30)


def test_augmentation_moves_picture_and_depth_together() -> None:
    """With colours that say the depth, image and depth still agree after crop and flip."""
    ramp = np.linspace(1.0, 2.0, 144, dtype=np.float32)[None, :] * np.ones((108, 1), np.float32)
    image = np.repeat(np.round((ramp - 1) * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    plain = ViewConfig(0.6, aspect=0.08, flip=0.5)
    directions = set()
    for seed in range(12):
        x, z = augmentation.augment(image, ramp, 96, 128, plain, np.random.default_rng(seed))
        assert x.shape == (96, 128, 3) and x.dtype == np.float32
        np.testing.assert_allclose(x.mean(axis=2), z - 1, atol=0.015)
        directions.add(bool(z[0, 0] < z[0, -1]))
    assert directions == {True, False}


# --- colours --------------------------------------------------------------------------------------


def test_by_default_nothing_changes() -> None:
    x = smooth()
    np.testing.assert_array_equal(
        augmentation.recolour(x, ViewConfig(), np.random.default_rng(0)), x
    )


def test_augmented_pictures_stay_in_range_and_differ() -> None:
    image = np.full((108, 144, 3), 128, np.uint8)
    depth = np.ones((108, 144), np.float32)
    cfg = ViewConfig(**augmentation.RENDERED)
    found = [
        augmentation.augment(image, depth, 96, 128, cfg, np.random.default_rng(k))[0]
        for k in range(8)
    ]
    assert all(x.min() >= 0 and x.max() <= 1 for x in found)
    assert np.std([x.mean() for x in found]) > 0.01


STRONG_NAMES = ("posterize", "equalize", "sharpen", "solarize", "exposure", "shadow")


@pytest.mark.parametrize("name", STRONG_NAMES)
def test_each_strong_change_does_what_it_says(name: str) -> None:
    x = smooth()
    x[20:40, 30:50] = 0.95  # something bright with edges
    y = augmentation.recolour(x, ViewConfig(**{name: 1.0}), np.random.default_rng(3))
    assert y.dtype == np.float32 and y.shape == x.shape
    assert y.min() >= 0 and y.max() <= 1
    assert np.abs(y - x).max() > 0.01
    if name == "posterize":
        assert len(np.unique(y)) <= 64
    elif name == "equalize":
        shares = np.histogram(y[..., 0], bins=4, range=(0, 1))[0] / y[..., 0].size
        assert shares.min() > 0.15
    elif name == "sharpen":
        assert np.abs(np.diff(y, axis=1)).max() > np.abs(np.diff(x, axis=1)).max()
    elif name == "solarize":
        assert y.max() <= 1 and (y[x > 0.94] < 0.1).all()
    elif name == "exposure":  # contrast and brightness: one line for all pixels not clipped
        free = (y > 0) & (y < 1)
        slope, offset = np.polyfit(x[free], y[free], 1)
        np.testing.assert_allclose(y[free], slope * x[free] + offset, atol=1e-5)
    else:
        ratio = y / x
        assert len(np.unique(np.round(ratio, 3))) == 2
        assert 0.3 <= ratio.min() <= 0.7


def test_a_strong_view_nearly_always_differs_and_moves_no_pixel() -> None:
    x = smooth()
    cfg = ViewConfig(**augmentation.STRONG)
    assert cfg.flip == 0 and cfg.smallest_crop == 1
    views = [augmentation.recolour(x, cfg, np.random.default_rng(seed)) for seed in range(30)]
    # A shadow may fall beside an image, and a dark one has nothing to solarize.
    assert sum(np.abs(y - x).max() > 0.003 for y in views) >= 26
    never = config.replace(cfg, {"at_least_one": False})
    plain = [augmentation.recolour(x, never, np.random.default_rng(seed)) for seed in range(30)]
    assert sum(np.array_equal(y, x) for y in plain) > sum(np.array_equal(y, x) for y in views)
    again = [augmentation.recolour(x, cfg, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


# --- the pool -------------------------------------------------------------------------------------


def pool_config(folder: Path, samples: int, views: int) -> pool_module.PoolConfig:
    return pool_module.PoolConfig(str(folder), samples, 24, 32, views_per_scene=views, seed=5)


def fill(cfg: pool_module.PoolConfig, until: int) -> pool_module.Pool:
    pool = pool_module.Pool(cfg, write=True)
    for _ in pool.fill(until):
        pass
    return pool


def test_the_pool_repeats_itself_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path / "a", 12, 3)
    fill(cfg, 9)
    fill(cfg, 12)
    whole = fill(config.replace(cfg, {"folder": str(tmp_path / "b")}), 12)
    parts = pool_module.Pool(cfg)
    assert len(parts) == len(whole) == 12
    np.testing.assert_array_equal(parts.image, whole.image)
    np.testing.assert_array_equal(parts.depth, whole.depth)
    assert np.unique(parts.image.reshape(12, -1), axis=0).shape[0] == 12


def test_a_full_pool_replaces_its_oldest(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path, 4, 2)
    before = fill(cfg, 4).image.copy()
    pool = fill(cfg, 6)
    assert (len(pool), pool.written) == (4, 6)
    np.testing.assert_array_equal(pool.image[2:], before[2:])
    assert not np.array_equal(pool.image[:2], before[:2])


def test_a_pool_of_other_settings_is_refused(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path / "p", 4, 6)
    with pytest.raises(DataError, match="no pool"):
        pool_module.Pool(cfg)
    pool_module.Pool(cfg, write=True)
    with pytest.raises(DataError, match="other settings"):
        pool_module.Pool(config.replace(cfg, {"seed": 6}))
    with pytest.raises(DataError, match=r"pool\.seed"):
        pool_module.Pool(config.replace(cfg, {"seed": -1}))


# --- the cache ------------------------------------------------------------------------------------

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
    found = cache.read_map(KEY)
    known = np.isfinite(values)
    np.testing.assert_array_equal(np.isfinite(found), known)
    spread = float(np.ptp(values[known]))
    assert np.abs(found[known] - values[known]).max() <= spread / 131068 * 1.01
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
    found = Cache(tmp_path).read_masks(KEY)
    assert found.shape == masks.shape
    np.testing.assert_array_equal(found, masks)


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
