# SPDX-License-Identifier: Apache-2.0
"""Losses of DepthMaster (arXiv 2501.02576): in latents, in disparity, of gradients, of features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.losses.normalization import exact

FORMS = ("paper", "code")


def pooled_mask(mask: Tensor, factor: int) -> Tensor:
    """Valid cells (N, 1, h, w) of a latent: those all of whose factor x factor pixels are valid."""
    return functional.max_pool2d((~mask).float(), factor) < 0.5


def masked_mse(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference over valid pixels and all channels; 0 with a gradient without any."""
    square = (exact(a) - exact(b)) ** 2 * mask
    return square.sum() / (mask.sum() * a.shape[1]).clamp_min(1)


def inverse_huber(error: Tensor, delta: float = 0.2, form: str = "paper") -> Tensor:
    """delta |e| up to delta, beyond it e^2/2 + delta^2/2 (equation 8 of the paper).

    The published code adds delta^2/2 to the other branch, which makes a jump at delta; the slope is
    the same. It is the reverse of Huber's: linear inside, square outside. Raises ValueError for
    another form.
    """
    if form not in FORMS:
        raise ValueError(f"No form is called {form!r}: use one of {', '.join(FORMS)}.")
    size = error.abs()
    inside, outside = delta * size, error**2 / 2
    if form == "paper":
        outside = outside + delta**2 / 2
    else:
        inside = inside + delta**2 / 2
    return torch.where(size <= delta, inside, outside)


def directional_gradient(
    prediction: Tensor, truth: Tensor, mask: Tensor, delta: float = 0.2, form: str = "paper"
) -> Tensor:
    """Weighted multi-directional gradient loss: differences to the right, below, on both diagonals.

    form "paper": differences with an invalid pixel are left out (ours, or the border of what is
    known would count as an edge). form "code": invalid pixels are 0 in both maps and everything
    counts, as published.
    """
    p, t = exact(prediction), exact(truth)
    if form == "code":
        p, t = p * mask, t * mask
    total, count = p.new_zeros(()), p.new_zeros(())
    a, b = slice(None, -1), slice(1, None)  # the first and the last rows or columns
    here, left, above, beyond = (..., b, b), (..., b, a), (..., a, b), (..., a, a)
    for first, second in ((here, left), (here, above), (above, left), (here, beyond)):
        error = (t[first] - t[second]) - (p[first] - p[second])
        cost = inverse_huber(error, delta, form)
        known = mask[first] & mask[second]
        if form == "code":
            known = torch.ones_like(known)
        total = total + torch.where(known, cost, torch.zeros_like(cost)).sum()
        count = count + known.sum()
    return total / count.clamp_min(1)


def token_divergence(features: Tensor, tokens: Tensor) -> Tensor:
    """KL(softmax(tokens) || softmax(features)) over channels (N, D, h, w), mean over all N h w D.

    Dividing by D as well is the published code's reduction.
    """
    p = functional.log_softmax(exact(tokens.detach()), dim=1)
    q = functional.log_softmax(exact(features), dim=1)
    return (p.exp() * (p - q)).mean()
