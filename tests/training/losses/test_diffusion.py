# SPDX-License-Identifier: Apache-2.0
"""DepthMaster's losses against values computed by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")
from training.losses import diffusion as diffusion_losses


def test_the_mask_of_latents_is_pooled() -> None:
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 3, 12] = False
    expected = torch.tensor([[True, False], [True, True]])
    assert torch.equal(diffusion_losses.pooled_mask(mask, 8)[0, 0], expected)
    a, b = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    b[0, :, 0, 1] = 100.0
    assert float(diffusion_losses.masked_mse(a, b, diffusion_losses.pooled_mask(mask, 8))) == 1
    x = a.clone().requires_grad_(True)
    nothing = diffusion_losses.masked_mse(x, b, torch.zeros(1, 1, 2, 2, dtype=torch.bool))
    (slope,) = torch.autograd.grad(nothing, x)
    assert float(nothing.detach()) == 0 and float(slope.abs().max()) == 0


@pytest.mark.parametrize(
    ("error", "paper", "code"),
    [(0, 0, 0.02), (0.1, 0.02, 0.04), (0.2, 0.04, 0.06), (0.5, 0.145, 0.125), (1, 0.52, 0.5)],
)
def test_inverse_huber_golden_values(error: float, paper: float, code: float) -> None:
    for sign in (1, -1):
        e = torch.tensor(sign * error, dtype=torch.float64)
        assert float(diffusion_losses.inverse_huber(e, 0.2)) == pytest.approx(paper, abs=1e-12)
        assert float(diffusion_losses.inverse_huber(e, 0.2, "code")) == pytest.approx(
            code, abs=1e-12
        )


def test_both_forms_teach_the_same_and_only_the_papers_is_continuous() -> None:
    e = torch.linspace(-1, 1, 401, dtype=torch.float64).requires_grad_(True)
    slopes = [
        torch.autograd.grad(diffusion_losses.inverse_huber(e, 0.2, form).sum(), e)[0]
        for form in diffusion_losses.FORMS
    ]
    torch.testing.assert_close(slopes[0], slopes[1])
    expected = e.detach().sign() * e.detach().abs().clamp_min(0.2)
    torch.testing.assert_close(slopes[0], expected)
    for form, jump in (("paper", 0.0), ("code", -0.04)):
        below, above = (
            float(diffusion_losses.inverse_huber(torch.tensor(x, dtype=torch.float64), 0.2, form))
            for x in (0.2 - 1e-9, 0.2 + 1e-9)
        )
        assert above - below == pytest.approx(jump, abs=1e-7)
    with pytest.raises(ValueError, match="paper, code"):
        diffusion_losses.inverse_huber(e, 0.2, "mean")


def test_directions_of_the_gradient_loss() -> None:
    """A ramp of slope 1 against a flat map differs by 1 across, 0 down, 1 on each diagonal."""
    ramp = torch.arange(5.0).double().expand(1, 1, 4, 5)
    flat, mask = torch.zeros_like(ramp), torch.ones(1, 1, 4, 5, dtype=torch.bool)
    cost = 0.52  # the cost of a difference of 1
    assert float(diffusion_losses.directional_gradient(flat, ramp, mask)) == pytest.approx(
        3 * cost / 4
    )
    assert float(diffusion_losses.directional_gradient(ramp + 3, ramp, mask)) == 0
    assert float(
        diffusion_losses.directional_gradient(ramp, ramp, mask, form="code")
    ) == pytest.approx(0.02)
    sideways = diffusion_losses.directional_gradient(flat.mT, ramp.mT, mask.mT)
    assert float(sideways) == pytest.approx(3 * cost / 4)
    # Differences with an invalid pixel do not count, whatever its value is.
    hole = mask.clone()
    hole[0, 0, 1, 2] = False
    wild = ramp.clone()
    wild[0, 0, 1, 2] = 100.0
    assert float(diffusion_losses.directional_gradient(wild, ramp, hole)) == 0
    assert float(diffusion_losses.directional_gradient(wild, ramp, ~mask)) == 0


def test_token_divergence_is_the_mean_over_channels_too() -> None:
    tokens = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    assert float(diffusion_losses.token_divergence(tokens, tokens)) == pytest.approx(0, abs=1e-7)
    assert float(diffusion_losses.token_divergence(tokens + 5, tokens)) == pytest.approx(
        0, abs=1e-6
    )
    # By hand: p = (3/4, 1/4) against q = (1/2, 1/2) over two channels.
    p = torch.tensor([3.0, 1.0]).log().view(1, 2, 1, 1)
    expected = (0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()) / 2
    torch.testing.assert_close(
        diffusion_losses.token_divergence(torch.zeros(1, 2, 1, 1), p), expected
    )
    library = torch.nn.functional.kl_div(
        torch.zeros_like(tokens).log_softmax(1), tokens.softmax(1), reduction="sum"
    )
    divergence = diffusion_losses.token_divergence(torch.zeros_like(tokens), tokens)
    torch.testing.assert_close(divergence, library / tokens.numel())
