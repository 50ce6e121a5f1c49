# SPDX-License-Identifier: Apache-2.0
"""Windows and augmented views of images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node import config
from depth_node.geometry.camera import Camera
from training.data import augmentation
from training.data.augmentation import ViewConfig, Window


def coordinates(height: int, width: int) -> NDArray[np.float32]:
    """Return an image whose first two channels are the column and the row of each pixel."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x, y, 0 * x], axis=2)


def smooth(height: int = 60, width: int = 80) -> NDArray[np.float32]:
    grid = coordinates(height, width)
    return (grid / [width, height, 1] * 0.8 + [0.1, 0.1, 0.4]).astype(np.float32)


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(30, 60), (24, 30), (57, 133)])
def test_a_window_moves_picture_and_points_alike(flip: bool, size: tuple[int, int]) -> None:
    """Each pixel of the image holds its original position; the points must agree with it."""
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
    """The colours encode the depth: image and depth must agree after crop and flip."""
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
    views = [
        augmentation.augment(image, depth, 96, 128, cfg, np.random.default_rng(k))[0]
        for k in range(8)
    ]
    assert all(x.min() >= 0 and x.max() <= 1 for x in views)
    assert np.std([x.mean() for x in views]) > 0.01


STRONG_NAMES = ("posterize", "equalize", "sharpen", "solarize", "exposure", "shadow")


@pytest.mark.parametrize("name", STRONG_NAMES)
def test_each_strong_change_does_what_it_says(name: str) -> None:
    x = smooth()
    x[20:40, 30:50] = 0.95  # a bright area with edges
    y = augmentation.recolour(x, ViewConfig(**{name: 1.0}), np.random.default_rng(3))
    assert y.dtype == np.float32 and y.shape == x.shape
    assert y.min() >= 0 and y.max() <= 1
    assert np.abs(y - x).max() > 0.01
    if name == "posterize":
        assert len(np.unique(y)) <= 64
    elif name == "equalize":
        fractions = np.histogram(y[..., 0], bins=4, range=(0, 1))[0] / y[..., 0].size
        assert fractions.min() > 0.15
    elif name == "sharpen":
        assert np.abs(np.diff(y, axis=1)).max() > np.abs(np.diff(x, axis=1)).max()
    elif name == "solarize":
        assert y.max() <= 1 and (y[x > 0.94] < 0.1).all()
    elif name == "exposure":  # all pixels not clipped follow one line
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
    # A shadow may lie outside the image, and a dark image has nothing to solarize.
    assert sum(np.abs(y - x).max() > 0.003 for y in views) >= 26
    never = config.replace(cfg, {"at_least_one": False})
    plain = [augmentation.recolour(x, never, np.random.default_rng(seed)) for seed in range(30)]
    assert sum(np.array_equal(y, x) for y in plain) > sum(np.array_equal(y, x) for y in views)
    again = [augmentation.recolour(x, cfg, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*again)
