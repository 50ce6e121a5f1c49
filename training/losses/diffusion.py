# SPDX-License-Identifier: Apache-2.0
"""Losses of DepthMaster (arXiv 2501.02576): on latents, maps, their gradients and features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.losses.normalization import exact

FORMS = ("paper", "code")


def pooled_mask(mask: Tensor, factor: int) -> Tensor:
    """Return the valid cells (N, 1, h, w) of a latent: all their factor x factor pixels are valid.

    mask: (N, 1, H, W) bool.
    """
    return functional.max_pool2d((~mask).float(), factor) < 0.5


def masked_mse(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared difference (scalar) over the valid pixels and all channels.

    a and b (N, C, H, W), mask (N, 1, H, W). Without a valid pixel it is 0 and still has a gradient.
    """
    square = (exact(a) - exact(b)) ** 2 * mask
    return square.sum() / (mask.sum() * a.shape[1]).clamp_min(1)


def inverse_huber(error: Tensor, delta: float = 0.2, form: str = "paper") -> Tensor:
    """Return delta |e| for |e| <= delta and e^2/2 + delta^2/2 beyond (equation 8 of the paper).

    It is the reverse of Huber's loss: linear inside, quadratic outside. The published code (form
    "code") adds delta^2/2 to the linear branch instead, which makes a jump at delta; the slopes are
    the same. Has the shape of `error`. Raises ValueError for an unknown form.
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
    """Compute the weighted multi-directional gradient loss (scalar).

    It is the mean inverse_huber of the differences between the two maps' gradients: horizontal,
    vertical and along both diagonals. Maps and mask are (N, 1, H, W). Form "paper" leaves out
    differences with an invalid pixel (ours: otherwise the border of the known area would count as
    an edge). Form "code" sets invalid pixels to 0 in both maps and counts everything, as published.
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
    """Return KL(softmax(tokens) || softmax(features)) over channels, the mean (scalar) of N h w D.

    Both are (N, D, h, w). The published code divides by the number of channels D as well.
    """
    p = functional.log_softmax(exact(tokens.detach()), dim=1)
    q = functional.log_softmax(exact(features), dim=1)
    return (p.exp() * (p - q)).mean()
