# SPDX-License-Identifier: Apache-2.0
"""Textures: no seam, mip levels keep the mean."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.simulation.textures import (
    TEXTURE_LEVELS,
    TEXTURE_NAMES,
    TEXTURE_SIZE_PX,
    make_texture,
    texture_set,
)


@pytest.mark.parametrize("name", TEXTURE_NAMES)
def test_textures_repeat_without_a_seam(name: str) -> None:
    tile = make_texture(name, np.random.default_rng(5))
    assert tile.shape == (TEXTURE_SIZE_PX, TEXTURE_SIZE_PX)
    assert tile.min() >= -0.01 and tile.max() <= 1.01
    for rows in (tile, tile.T):
        seam = np.abs(rows[0] - rows[-1]).mean()
        steps = np.abs(np.diff(rows, axis=0)).mean(axis=1)
        assert seam <= 1.1 * steps.max() + 0.02


def test_mip_levels_keep_the_mean() -> None:
    flat = texture_set(3)
    size, start = TEXTURE_SIZE_PX, 0
    means = []
    for _ in range(TEXTURE_LEVELS):
        means.append(flat[start : start + size * size].mean())
        start, size = start + size * size, size // 2
    np.testing.assert_allclose(means, means[0], atol=1.0)
