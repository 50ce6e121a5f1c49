# SPDX-License-Identifier: Apache-2.0
"""Corruptions grow with severity; their scores agree with values computed by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.__main__ import main
from training.data.corruptions import (
    CORRUPTIONS,
    INDOOR,
    corrupt,
    depth_error,
    mean_corruption_error,
    mean_resilience_rate,
    named,
    sheet,
)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rooms = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        scene = Scene.random(rng)
        rooms.append(scene.render(*random_view(scene, rng, 200, 150)).image)
    return rooms


def test_the_sets_are_those_of_robodepth() -> None:
    assert len(CORRUPTIONS) == 18 and len(INDOOR) == 15
    assert set(CORRUPTIONS) - set(INDOOR) == {"fog", "frost", "snow"}


def test_a_set_has_a_name() -> None:
    assert named(["all"]) == CORRUPTIONS
    assert named(["westar"]) == ("gaussian", "motion", "defocus", "brightness", "contrast", "jpeg")
    assert named(["jpeg", "westar_outdoors", "fog"])[:3] == ("jpeg", "gaussian", "motion")
    assert len(named(["jpeg", "westar_outdoors", "fog"])) == 6, "each once"
    with pytest.raises(ValueError, match=r"No corruption is called 'rain'.*westar_outdoors"):
        named(["rain"])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_is_farther_from_the_clean_picture(
    name: str, images: list[np.ndarray]
) -> None:
    for seed, image in enumerate(images):
        before = image.copy()
        corrupted = [corrupt(image, name, k, seed) for k in range(6)]
        np.testing.assert_array_equal(image, before)
        np.testing.assert_array_equal(corrupted[0], image)
        distances = [float(np.mean((w.astype(float) - image) ** 2)) for w in corrupted]
        assert np.all(np.diff(distances) > 0), distances


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_repeats_itself(name: str, images: list[np.ndarray]) -> None:
    once, again = (corrupt(images[0], name, 3, seed=7) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    other = corrupt(images[0], name, 3, seed=8)
    drawn = name not in (
        "brightness",
        "contrast",
        "defocus",
        "zoom",
        "colour_quant",
        "pixelate",
        "jpeg",
    )
    assert np.array_equal(once, other) != drawn


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (8, 90), (101, 33)])
def test_any_size_stays_what_it_is(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for name in CORRUPTIONS:
        for severity in (1, 5):
            corrupted = corrupt(image, name, severity)
            assert corrupted.shape == image.shape and corrupted.dtype == np.uint8, name


def test_values_by_hand() -> None:
    """Grey 100 and 200 become what follows from the table by hand."""
    image = np.full((4, 6, 3), 100, np.uint8)
    image[:, 3:] = 200
    # Mean 150, factor 0.4: 150 -+ 20.
    assert np.unique(corrupt(image, "contrast", 1)).tolist() == [130, 170]
    # The value of HSV increases by 0.2 * 255 = 51.
    assert np.unique(corrupt(image, "brightness", 2)).tolist() == [151, 251]
    # Stretched to 0 and 1, then 0 and 0.6 * 255 = 153, with sigma 0.08 / 10 and 600 photons.
    dark = corrupt(np.repeat(np.repeat(image, 50, 0), 50, 1), "dark", 1).astype(float)
    assert np.median(dark[:, 150:]) == pytest.approx(153, abs=1)
    bright = np.sqrt(0.6 / 600 + 0.008**2) * 255
    assert dark[:, 150:].std() == pytest.approx(bright, rel=0.05)
    assert dark[:, :150].max() < 15
    # Two bits: 01 and 11.
    assert np.unique(corrupt(image, "colour_quant", 4)).tolist() == [64, 192]


def test_noise_has_the_size_the_table_says() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    level = 128 / 255

    def spread(name: str) -> float:
        return float((corrupt(grey, name, 1).astype(float) / 255).std())

    assert spread("gaussian") == pytest.approx(0.08, rel=0.02)
    assert spread("shot") == pytest.approx(np.sqrt(level / 60), rel=0.03)
    assert spread("iso") == pytest.approx(np.hypot(np.sqrt(level / 25), 0.7 * 0.08), rel=0.05)
    changed = (corrupt(grey, "impulse", 1) != 128).mean()
    assert changed == pytest.approx(0.03, rel=0.05)
    assert corrupt(grey, "shot", 1).mean() == pytest.approx(128, abs=0.5)


@pytest.mark.parametrize("name", ["defocus", "glass", "motion", "zoom", "pixelate", "elastic"])
def test_what_moves_light_makes_none(name: str) -> None:
    flat = np.full((40, 50, 3), 77, np.uint8)
    np.testing.assert_allclose(corrupt(flat, name, 4).astype(int), 77, atol=1)


def test_refusals() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="fogg"):
        corrupt(image, "fogg", 1)
    with pytest.raises(ValueError, match="severity is 6"):
        corrupt(image, "fog", 6)
    with pytest.raises(ValueError, match="uint8 RGB"):
        corrupt(image[..., 0], "fog", 1)
    with pytest.raises(ValueError, match="uint8 RGB"):
        corrupt(image.astype(np.float32), "fog", 1)


def test_a_sheet_shows_them_all(
    images: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = sheet(images[0], columns_px=40)
    assert made.shape == (18 * (14 + 30), 6 * 40, 3)
    source, out = tmp_path / "in.png", tmp_path / "out" / "sheet.png"
    cv2.imwrite(str(source), images[0][:60, :80])
    assert main(["corrupt", str(source), "--out", str(out)]) == 0
    assert cv2.imread(str(out)).shape[1] == 6 * 160
    assert main(["corrupt", str(tmp_path / "absent.png"), "--out", str(out)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["corrupt", str(source), "--out", str(tmp_path / "x.txt")]) == 1
    assert "ends in .png" in capsys.readouterr().err


def test_depth_errors_by_hand() -> None:
    assert depth_error(0.2, 0.7, kind=1) == pytest.approx(0.5)
    assert depth_error(0.2, 0.7) == pytest.approx(0.25)
    assert depth_error(0.21, 0.7, kind=3) == pytest.approx(0.3)
    assert depth_error(0.2, 0.0, kind=3) == float("inf")
    with pytest.raises(ValueError, match="1, 2 and 3"):
        depth_error(0.2, 0.7, kind=4)


def test_mce_and_mrr_by_hand() -> None:
    """fog: (.2+.2+.3+.3+.5)/(.3+.3+.4+.5+.5) = 1.5/2; jpeg: .5/.4 five times. Mean 1.

    Resilience: fog 1 - .3, jpeg 1 - .5; the mean .6 over 1 - .2.
    """
    errors = {"fog": [0.2, 0.2, 0.3, 0.3, 0.5], "jpeg": [0.5] * 5}
    base = {"fog": [0.3, 0.3, 0.4, 0.5, 0.5], "jpeg": [0.4] * 5}
    assert mean_corruption_error(errors, base) == pytest.approx(100 * (0.75 + 1.25) / 2)
    assert mean_corruption_error(base, base) == pytest.approx(100)
    assert mean_resilience_rate(errors, clean=0.2) == pytest.approx(100 * 0.6 / 0.8)
    with pytest.raises(ValueError, match="same corruptions"):
        mean_corruption_error(errors, {"fog": [0.1] * 5})
    with pytest.raises(ValueError, match="five severities"):
        mean_resilience_rate({"fog": [0.1] * 4}, clean=0.2)
