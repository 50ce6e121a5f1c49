# SPDX-License-Identifier: Apache-2.0
"""The small U-Net."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from depth_node import config
from tests.training.models.test_mobilenet import Theirs
from training.checkpoints import TrainingError
from training.models import mobilenet
from training.models.unet import SmallUNet, StudentConfig, restore_statistics, unfold

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


DETAIL = dataclasses.replace(SMALL_UNET, detail=(8, 8))


def test_detail_begins_as_the_unet_at_half_the_size() -> None:
    torch.manual_seed(0)
    plain = SmallUNet(SMALL_UNET).eval()
    network = SmallUNet(DETAIL).eval()
    missing, unknown = network.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and all(name.startswith("detail.") for name in missing)
    x = images(128, 192)
    with torch.no_grad():
        half = plain(torch.nn.functional.avg_pool2d(x, 2))
        found = network(x)
    assert found.shape == (2, 1, 128, 192)
    # Both enlarge the same map, by 4 and by 2, so the means over cells of a coarser map are equal.
    coarse = torch.nn.functional.avg_pool2d(found, 8), torch.nn.functional.avg_pool2d(half, 4)
    inner = [c[..., 1:-1, 1:-1] for c in coarse]
    torch.testing.assert_close(*inner, rtol=0, atol=0.05 * float(half.std()))
    assert network.spec.multiple_px == 64 and SmallUNet.spec.multiple_px == 32


def test_every_level_of_the_detail_learns() -> None:
    torch.manual_seed(0)
    network = SmallUNet(DETAIL).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):  # the last layers start at 0, so those before them learn from step 2 on
        optimiser.zero_grad()
        network(images(64, 128)).square().mean().backward()
        optimiser.step()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_a_frozen_part_keeps_weights_and_statistics() -> None:
    torch.manual_seed(0)
    network = SmallUNet(DETAIL)
    network.freeze("stem", "detail.encoder")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    network(images(64, 128)).square().mean().backward()
    for name, value in network.state_dict().items():
        frozen = name.startswith(("stem.", "detail.encoder."))
        if frozen:
            assert torch.equal(value, before[name])
        elif name.endswith("running_mean"):
            assert not torch.equal(value, before[name]), name
    assert network.stem[0].weight.grad is None and network.head.weight.grad is not None


def test_restored_statistics_change_nothing_in_eval_mode() -> None:
    torch.manual_seed(0)
    network = SmallUNet(SMALL_UNET).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as they come back from an exported file
            torch.nn.init.constant_(layer.weight, (1 + layer.eps) ** 0.5)
            torch.nn.init.normal_(layer.bias, 0, 0.1)
    x = images(128, 192)
    with torch.no_grad():
        before = network(x)
        restore_statistics(network, x)
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.train()(x), before, rtol=1e-2, atol=1e-3)


def test_a_mobilenet_is_the_encoder_and_all_of_the_network_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaces the residual stages, with torchvision's weights if they are given."""
    monkeypatch.setattr(mobilenet, "SHA256", "")
    torch.manual_seed(5)
    torch.save(Theirs().state_dict(), tmp_path / "net.pth")
    network = SmallUNet(dataclasses.replace(SMALL_UNET, encoder="mobilenet")).train()
    network.start_from_imagenet(tmp_path / "net.pth")
    x = images(64, 96)
    answer = network.answer(x)
    assert answer.disparity.shape == (2, 1, 64, 96)
    assert answer.features.shape == (2, network.channels, 2, 3) == (2, 320, 2, 3)
    answer.disparity.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    alone = mobilenet.MobileNetV2(network.spec).train()
    alone.load_state_dict(mobilenet.imagenet_weights(tmp_path / "net.pth"))
    torch.testing.assert_close(network.encoder(x), alone(x))
    with pytest.raises(TrainingError, match="set its encoder to mobilenet"):
        SmallUNet(SMALL_UNET).start_from_imagenet(tmp_path / "net.pth")
    with pytest.raises(config.ConfigError, match="a MobileNetV2 of its own"):
        dataclasses.replace(DETAIL, encoder="mobilenet")


def test_detail_needs_two_widths() -> None:
    with pytest.raises(config.ConfigError, match="detail needs two values"):
        dataclasses.replace(SMALL_UNET, detail=(8,))


def test_a_fresh_network_is_not_taken_for_a_folded_one() -> None:
    """Weights measured on a fresh network would start its layers a hundred times smaller."""
    network = SmallUNet(SMALL_UNET)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    unfold(network, lambda count: torch.rand(count, 3, 64, 96))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], msg=name)
