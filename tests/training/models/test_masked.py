# SPDX-License-Identifier: Apache-2.0
"""Masked image modelling: what is hidden, what is predicted."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("transformers", reason="the encoder comes with transformers")
from training.checkpoints import TrainingError
from training.models import masked as models_masked
from training.models.masked import MaskingConfig
from training.models.networks import NetworkConfig, open_network

DEPTH_ANYTHING = NetworkConfig(kind="debug")


def test_simmims_masks_hide_their_share_in_units() -> None:
    torch.manual_seed(0)
    mask = models_masked.random_mask(5, 192, 192, 32, 0.6)
    units = mask[:, :, ::32, ::32]
    assert units.shape == (5, 1, 6, 6)
    assert (units.sum(dim=(1, 2, 3)) == round(0.6 * 36)).all()
    assert torch.equal(mask, units.repeat_interleave(32, 2).repeat_interleave(32, 3))
    assert not torch.equal(mask[0], mask[1])
    torch.manual_seed(0)
    assert torch.equal(mask, models_masked.random_mask(5, 192, 192, 32, 0.6))
    assert models_masked.cells(mask, 16).shape == (5, 1, 12, 12)
    with pytest.raises(TrainingError, match=r"masking\.unit_px"):
        models_masked.random_mask(1, 190, 192, 32, 0.6)


def test_only_what_is_hidden_counts() -> None:
    images = torch.rand(2, 3, 8, 8)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[:, :, :4] = True
    predicted = images.clone()
    predicted[:, :, 4:] += 9.0
    assert float(models_masked.hidden_l1(predicted, images, mask)) == pytest.approx(0, abs=1e-6)
    predicted[:, :, :4] += 0.5
    assert float(models_masked.hidden_l1(predicted, images, mask)) == pytest.approx(0.5, rel=1e-5)
    # MAE's target is normalised per patch: a patch of another brightness costs the same.
    patches = models_masked.patch_pixels(images, 4)
    assert patches.shape == (2, 4, 48)
    truth = (patches - patches.mean(2, keepdim=True)) / patches.var(2, keepdim=True).sqrt()
    hidden = torch.tensor([[True, True, False, False]] * 2)
    wrong = truth.clone()
    wrong[:, 2:] += 5.0
    for x in (images, 0.5 * images + 0.2):
        assert float(models_masked.hidden_mse(wrong, x, hidden, 4)) < 1e-4


@pytest.mark.parametrize("variant", models_masked.VARIANTS)
def test_what_is_hidden_does_not_reach_the_encoder(variant: str) -> None:
    """The prediction depends on the visible squares and not on the hidden ones."""
    torch.manual_seed(0)
    network = open_network(DEPTH_ANYTHING).eval()
    pixel_head = models_masked.PixelHead(network, MaskingConfig(variant, 28, 0.5), 56, 84).eval()
    images = torch.randn(2, 3, 56, 84)
    torch.manual_seed(1)
    mask = models_masked.random_mask(2, 56, 84, 28, 0.5)
    predictions: list[torch.Tensor] = []
    head = pixel_head.head if variant == "simmim" else pixel_head.head_patches
    head.register_forward_hook(lambda _m, _i, out: predictions.append(out.detach()))
    noise = torch.randn_like(images)
    for x in (images, torch.where(mask, noise, images), torch.where(mask, images, noise)):
        torch.manual_seed(1)
        with torch.no_grad():
            assert torch.isfinite(pixel_head.loss(network, x))
    torch.testing.assert_close(predictions[0], predictions[1])
    assert float((predictions[0] - predictions[2]).abs().max()) > 1e-4


def test_masked_modelling_learns_and_the_unet_has_its_own_way() -> None:
    torch.manual_seed(0)
    for kind, unit, side in (("debug", 28, 56), ("unet", 32, 64), ("unet", 16, 64)):
        network = open_network(NetworkConfig(kind=kind))
        pixel_head = models_masked.PixelHead(network, MaskingConfig(unit_px=unit), side, side)
        flat = torch.ones(4, 3, side, side)
        parameters = [*network.parameters(), *pixel_head.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=0.01)
        costs = []
        for _ in range(12):
            cost = pixel_head.loss(network, flat)
            gradients = torch.autograd.grad(cost, parameters, allow_unused=True)
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g
            optimiser.step()
            costs.append(float(cost.detach()))
        assert costs[-1] < 0.5 * costs[0]
    with pytest.raises(TrainingError, match="MAE needs an encoder of tokens"):
        models_masked.PixelHead(network, MaskingConfig("mae", 32), 64, 64)
    with pytest.raises(TrainingError, match="no multiple of the encoder's patch"):
        models_masked.PixelHead(open_network(DEPTH_ANYTHING), MaskingConfig(unit_px=32), 64, 64)


def test_drop_path_is_whole_branches_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = models_masked.DropPath(0.25).train()
    x = torch.ones(4000, 2, 3)
    dropped = drop(x)
    passed = dropped[:, 0, 0] > 0
    assert torch.equal(dropped, passed[:, None, None] * torch.full_like(x, 4 / 3))
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    network = open_network(DEPTH_ANYTHING)
    models_masked.drop_paths(network, 0.3)
    probabilities = [
        layer.drop_path.probability for layer in network.network.backbone.encoder.layer
    ]
    assert probabilities == pytest.approx([0, 0.1, 0.2, 0.3])
    with pytest.raises(TrainingError, match="drop_path"):
        models_masked.drop_paths(open_network(NetworkConfig()), 0.3)
