# SPDX-License-Identifier: Apache-2.0
"""What networks take: normalised images, sides that are a multiple of the patch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node.config import ConfigError
from training.models.network_io import IMAGENET_MEAN, IMAGENET_STD, NetworkInput

SPEC = NetworkInput(IMAGENET_MEAN, IMAGENET_STD, 14)


def test_normalising_is_undone() -> None:
    images = torch.rand(2, 3, 14, 28, generator=torch.Generator().manual_seed(0))
    normalised = SPEC.normalise(images)
    torch.testing.assert_close(SPEC.denormalise(normalised), images)
    pixel = (images[1, 2, 3, 4] - IMAGENET_MEAN[2]) / IMAGENET_STD[2]
    assert float(normalised[1, 2, 3, 4]) == pytest.approx(float(pixel), abs=1e-6)


def test_the_nearest_size_is_named() -> None:
    assert SPEC.fitting(20, 100) == (14, 98)
    assert SPEC.fitting(1, 21) == (14, 28)
    SPEC.require(28, 42)
    with pytest.raises(ConfigError, match="use 28x98"):
        SPEC.require(30, 100)
