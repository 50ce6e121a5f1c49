# SPDX-License-Identifier: Apache-2.0
"""The small U-Net."""

from __future__ import annotations

import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from training.models.unet import SmallUNet, StudentConfig

SMALL_UNET = StudentConfig((8, 8, 16, 16, 16), (0, 1, 1, 1, 1), (16, 8, 8, 8))


def images(height: int = 56, width: int = 84) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def test_a_mirroring_unet_answers_alike_from_both_sides_once_trained() -> None:
    torch.manual_seed(0)
    network = SmallUNet(dataclasses.replace(SMALL_UNET, mirror=True)).eval()
    plain = SmallUNet(SMALL_UNET).eval()
    plain.load_state_dict(network.state_dict())
    x = images(64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(x.flip(3)).flip(3), network(x))
        assert not torch.allclose(plain(x.flip(3)).flip(3), plain(x))
        torch.testing.assert_close(network(x), (plain(x) + plain(x.flip(3)).flip(3)) / 2)
        network.train(), plain.train()
        torch.testing.assert_close(network(x), plain(x))
