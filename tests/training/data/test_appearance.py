# SPDX-License-Identifier: Apache-2.0
"""Transfer of a look: images get the light, contrast, sharpness and noise of another place."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.data.appearance import Appearance
from training.data.corruptions import corrupt


@pytest.fixture(scope="module")
def rooms() -> np.ndarray:
    """Return images (20, 60, 81, 3); the width is odd, as a camera's may be."""
    views = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = Scene.random(rng)
        views.append(scene.render(*random_view(scene, rng, 81, 60)).image)
    return np.stack(views)


def real(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / np.float32(255)


def steps(image: np.ndarray) -> float:
    """Return the mean difference of neighbours, which a blur reduces and noise increases."""
    return float(np.abs(np.diff(image, axis=1)).mean())


def test_a_place_that_looks_the_same_changes_nothing(rooms: np.ndarray) -> None:
    same = Appearance(to=real(rooms), of=real(rooms))
    changed = same(real(rooms)[3], np.random.default_rng(0))
    np.testing.assert_allclose(changed, real(rooms)[3], atol=1e-4)
    assert changed.dtype == np.float32


@pytest.mark.parametrize("name", ["defocus", "contrast", "gaussian", "brightness"])
def test_other_rooms_are_shown_as_that_camera_would(name: str, rooms: np.ndarray) -> None:
    """The corruption is measured on ten rooms and then applied to ten others."""
    there = np.stack([corrupt(image, name, 3, seed) for seed, image in enumerate(rooms[:10])])
    look = Appearance(to=real(there), of=real(rooms[10:]))
    rng = np.random.default_rng(1)
    ratios = []
    for seed, image in enumerate(rooms[10:]):
        shown, true = look(real(image), rng), real(corrupt(image, name, 3, seed))
        assert shown.min() >= 0 and shown.max() <= 1
        far = [abs(np.log(steps(x) / steps(true))) for x in (shown, real(image))]
        far += [float(np.abs(x.std() / true.std() - 1)) for x in (shown, real(image))]
        far += [float(abs(x.mean() - true.mean())) for x in (shown, real(image))]
        ratios.append(far)
    steep, steep0, spread, spread0, light, light0 = np.mean(ratios, axis=0)
    if name != "brightness":
        assert steep < 0.4 * steep0
    if name == "contrast":
        assert spread < 0.2 * spread0
    if name == "brightness":
        assert light < 0.3 * light0


def test_blur_crosses_no_border(rooms: np.ndarray) -> None:
    """A dark left half and a bright right half keep their values at the two borders."""
    there = np.stack([corrupt(image, "defocus", 5, seed) for seed, image in enumerate(rooms)])
    look = Appearance(to=real(there), of=real(rooms))
    image = np.zeros((60, 81, 3), np.float32)
    image[:, 40:] = 1
    shown = look(image, np.random.default_rng(0))
    assert shown[:, 80].mean() - shown[:, 0].mean() > 0.7


def test_noise_is_drawn_anew(rooms: np.ndarray) -> None:
    there = np.stack([corrupt(image, "gaussian", 5, seed) for seed, image in enumerate(rooms)])
    look = Appearance(to=real(there), of=real(rooms))
    image = real(rooms)[0]
    one, other = (look(image, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.abs(one - other).mean() > 0.1
    np.testing.assert_array_equal(one, look(image, np.random.default_rng(0)))


def test_one_image_and_images_of_one_colour_say_little_and_break_nothing(
    rooms: np.ndarray,
) -> None:
    flat = np.full((1, 60, 81, 3), 0.25, np.float32)
    rng = np.random.default_rng(0)
    for to, of in ((flat, real(rooms)[:1]), (real(rooms)[:1], flat), (flat, flat)):
        shown = Appearance(to=to, of=of)(of[0], rng)
        assert np.isfinite(shown).all()
        assert abs(float(shown.mean()) - float(to.mean())) < 0.05, "its noise has a mean too"
