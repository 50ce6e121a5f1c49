# SPDX-License-Identifier: Apache-2.0
"""Pools held on a device, and the augmentation of their images there."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from training.data.augmentation import ViewConfig, random_window
from training.data.on_device import UNIFORM, HeldPools, blur, recolour
from training.data.pool import Pool, PoolConfig


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> list[Pool]:
    found = []
    for seed, style in enumerate(("mixed", "outdoors")):
        folder = str(tmp_path_factory.mktemp(style))
        pool = Pool(PoolConfig(folder, 9, 48, 64, 3, style, seed), write=True)
        for _ in pool.fill(6):
            pass
        found.append(pool)
    return found


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng([3, k]) for k in range(count)]


@pytest.mark.parametrize("size", [(32, 32), (96, 128)])
def test_it_cuts_the_windows_that_the_cpu_cuts(pools: list[Pool], size: tuple[int, int]) -> None:
    view = ViewConfig(smallest_crop=0.7, aspect=0.1, flip=0.5)
    held = HeldPools(pools[:1])
    made = held.batch(held.draw(rngs(8), 0.0, view, *size), view)
    for k, rng in enumerate(rngs(8)):
        sample = pools[0][int(rng.integers(0, len(pools[0])))]
        assert sample.depth is not None
        window = random_window(sample.depth.shape, *size, view, rng)
        expected = window.image(sample.image).astype(np.float32) / 255
        image = made["image"][k].permute(1, 2, 0).numpy()
        assert np.abs(image - expected).max() < 1.5 / 255  # the CPU rounds to 8 bits
        np.testing.assert_array_equal(made["depth"][k, 0].numpy(), window.nearest(sample.depth))


def test_it_takes_a_share_from_the_second_pool_and_what_is_rendered_meanwhile(
    pools: list[Pool],
) -> None:
    view = ViewConfig()
    held = HeldPools(pools)
    first = held.draw(rngs(400), 0.25, view, 48, 64)
    assert 70 < len(first["places"][1]) < 130 and int(first["places"][0].max()) == 5
    held.batch(first, view)
    for _ in pools[0].fill(9):
        pass
    later = held.draw(rngs(400), 0.25, view, 48, 64)
    assert int(later["places"][0].max()) == 8
    depth = held.batch(later, view)["depth"]
    for k, place in enumerate(later["places"][0].tolist()):
        np.testing.assert_array_equal(depth[k, 0].numpy(), pools[0].depth[place])


def test_a_batch_is_a_function_of_its_generators(pools: list[Pool]) -> None:
    view = ViewConfig(smallest_crop=0.7, colour=0.4, gamma=0.4, shadow=0.5, equalize=0.5)
    pair = []
    for _ in range(2):
        held = HeldPools(pools)
        pair.append(held.batch(held.draw(rngs(8), 0.5, view, 32, 32), view)["image"])
    torch.testing.assert_close(*pair, rtol=0, atol=0)


def test_an_image_looks_the_same_whatever_else_is_in_its_part(pools: list[Pool]) -> None:
    """Training must not depend on how a step is divided among processes and parts."""
    view = ViewConfig(smallest_crop=0.7, colour=0.4, gamma=0.4, shadow=0.5, equalize=0.5)

    def images(some: list[np.random.Generator]) -> torch.Tensor:
        held = HeldPools(pools)
        return held.batch(held.draw(some, 0.5, view, 32, 32), view)["image"]

    from_second = [rng.random() < 0.5 for rng in rngs(8)]
    assert 0 < sum(from_second) < 8 and from_second != sorted(from_second)
    order = np.argsort(from_second, kind="stable")
    alone = torch.cat([images([rngs(8)[k]]) for k in order])
    torch.testing.assert_close(images(rngs(8)), alone, rtol=0, atol=1e-5)


def numbers(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(5)
    uniform = rng.random((count, UNIFORM), dtype=np.float32)
    return torch.from_numpy(uniform), torch.from_numpy(
        rng.standard_normal((count, 2), dtype=np.float32)
    )


def test_a_blur_and_an_even_histogram_are_opencvs(pools: list[Pool]) -> None:
    image = pools[0].image[0].astype(np.float32) / 255
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = cv2.GaussianBlur(image, (0, 0), 0.9, borderType=cv2.BORDER_REFLECT_101)
    blurred = blur(x, torch.tensor([0.9]))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(blurred, expected, atol=2e-3)
    even = recolour(x, ViewConfig(equalize=1.0), *numbers(1), [0])[0].permute(1, 2, 0).numpy()
    bands = [cv2.equalizeHist(np.ascontiguousarray(pools[0].image[0, ..., k])) for k in range(3)]
    np.testing.assert_allclose(even * 255, np.stack(bands, axis=2), atol=1.0)


def test_a_channel_of_one_value_has_an_even_histogram_already() -> None:
    image = np.full((8, 12, 3), (0, 90, 255), np.uint8)
    x = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    even = recolour(x, ViewConfig(equalize=1.0), *numbers(1), [0])[0].permute(1, 2, 0).numpy()
    bands = [cv2.equalizeHist(np.ascontiguousarray(image[..., k])) for k in range(3)]
    np.testing.assert_allclose(even * 255, np.stack(bands, axis=2), atol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"colour": 0.4}, {"gamma": 0.4}, {"blur": 1.0}, {"noise": 0.05}, {"grey": 1.0},
        {"posterize": 1.0}, {"sharpen": 1.0}, {"solarize": 1.0}, {"exposure": 1.0},
        {"shadow": 1.0},
    ],
)  # fmt: skip
def test_every_change_changes_and_stays_in_range(pools: list[Pool], change: dict[str, Any]) -> None:
    x = torch.from_numpy(pools[1].image[:4].astype(np.float32) / 255).permute(0, 3, 1, 2)
    same = recolour(x, ViewConfig(), *numbers(4), [])
    torch.testing.assert_close(same, x)
    changed = recolour(x, ViewConfig(**change), *numbers(4), [])
    assert changed.min() >= 0 and changed.max() <= 1
    assert (changed - x).abs().amax(dim=(1, 2, 3)).mean() > 0.02
    if "grey" in change:
        torch.testing.assert_close(changed[:, 0], changed[:, 2])


def test_at_least_one_strong_change_where_that_is_asked_for(pools: list[Pool]) -> None:
    rare = {"posterize": 1e-6, "equalize": 1e-6, "exposure": 1e-6}

    def changed(view: ViewConfig) -> torch.Tensor:
        held = HeldPools(pools[:1])
        drawn = held.draw(rngs(60), 0.0, view, 32, 32)
        plain = held.batch({**drawn, "equalized": []}, ViewConfig())["image"]
        return (held.batch(drawn, view)["image"] - plain).abs().amax(dim=(1, 2, 3)) > 1e-3

    assert not changed(ViewConfig(**rare)).any()
    view = ViewConfig(**rare, at_least_one=True)
    assert changed(view).all()
    drawn = HeldPools(pools[:1]).draw(rngs(60), 0.0, view, 32, 32)
    assert 10 < len(drawn["equalized"]) < 30  # each of three changes in about a third of the images
    assert not changed(ViewConfig(at_least_one=True)).any()


def test_a_shadow_is_a_part_of_the_image(pools: list[Pool]) -> None:
    x = torch.full((16, 3, 48, 64), 0.8)
    changed = recolour(x, ViewConfig(shadow=1.0), *numbers(16), [])
    dark = (changed < 0.79).float().mean(dim=(1, 2, 3))
    assert 0.05 < dark.mean() < 0.6 and dark.max() < 1
