# SPDX-License-Identifier: Apache-2.0
"""Depth Anything and DINOv2 of the library, from local folders."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from torch import nn

from tests.helpers.torch_networks import parameter_count
from training.models.hub import DepthAnything
from training.models.networks import NetworkConfig, open_dino, open_network


def debug() -> DepthAnything:
    torch.manual_seed(0)
    network = open_network(NetworkConfig(kind="debug"))
    assert isinstance(network, DepthAnything)
    return network.eval()


def images(height: int = 56, width: int = 84) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("kind", "millions"), [("small", 24.8), ("base", 97.5), ("large", 335.3), ("vit_tiny", 6.7)]
)
def test_sizes_are_the_published_ones(kind: str, millions: float) -> None:
    with torch.device("meta"):
        network = open_network(NetworkConfig(kind=kind))
    assert parameter_count(network) / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_relu_can_be_looked_behind_and_the_answer_is_the_librarys() -> None:
    network = debug()
    x = network.spec.normalise(images())
    library = copy.deepcopy(network.network)
    library.head.activation2 = nn.ReLU()
    answer = network.answer(x)
    assert answer.before is not None
    assert torch.equal(answer.disparity, answer.before.clamp_min(0))
    torch.testing.assert_close(answer.disparity[:, 0], library(x).predicted_depth)


def test_features_are_the_patches_in_their_places() -> None:
    """A change in one corner of the image changes the features of that corner most."""
    network = debug()
    x = images()
    other = x.clone()
    other[..., :14, -14:] = 0
    with torch.no_grad():
        change = (network.answer(x).features - network.answer(other).features).abs().sum(1)
    assert change.shape == (2, 4, 6)
    assert change.flatten(1).argmax(1).tolist() == [5, 5]


def test_sides_that_are_no_multiple_of_a_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples"):
        debug()(torch.zeros(1, 3, 56, 60))


def test_dino_gives_frozen_features(tmp_path: Path) -> None:
    dino = open_dino(NetworkConfig(kind="debug"))
    assert dino(images()).shape == (2, dino.channels, 4, 6)
    assert parameter_count(dino, learnt=True) == 0
    dino.network.save_pretrained(tmp_path)
    again = open_dino(NetworkConfig(kind="debug", source=str(tmp_path)))
    torch.testing.assert_close(again(images()), dino(images()))
