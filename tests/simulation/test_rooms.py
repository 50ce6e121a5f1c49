# SPDX-License-Identifier: Apache-2.0
"""Random rooms: every style follows from its seed."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.simulation.renderer import Scene
from depth_node.simulation.rooms import (
    STYLES,
)
from depth_node.simulation.viewpoints import random_view


@pytest.mark.parametrize("style", STYLES)
def test_every_style_follows_from_its_seed(style: str) -> None:
    def look(seed: int) -> tuple:
        scene = Scene.random(seed, style)
        camera, pose = random_view(scene, np.random.default_rng(seed), 64, 48)
        seen = scene.render(camera, pose)
        return seen.image, seen.depth, seen.labels

    first, again, other = look(3), look(3), look(4)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[1], other[1])
