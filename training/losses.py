# SPDX-License-Identifier: Apache-2.0
"""Losses on maps (N, 1, H, W) with a boolean mask; 0 with a gradient where nothing is valid."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_l1(residual: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean |residual| over the valid pixels of the batch; with `weight` the weighted mean."""
    share = mask.to(residual.dtype) if weight is None else weight * mask
    size = torch.where(mask, residual, torch.zeros_like(residual)).abs()
    return (size * share).sum() / share.sum().clamp_min(1e-6)


def gradient_matching(residual: Tensor, mask: Tensor, scales: int = 4) -> Tensor:
    """Multi-scale gradient term of MiDaS on a residual map (Ranftl et al. 2020).

    Horizontal and vertical steps at strides 1, 2, 4, ... At every stride the sum over pairs of
    valid neighbours is divided by the number of valid pixels of the batch.
    """
    total = residual.new_zeros(())
    for k in range(scales):
        step = 2**k
        r = residual[..., ::step, ::step]
        m = mask[..., ::step, ::step]
        r = torch.where(m, r, torch.zeros_like(r))
        across = ((r[..., :, 1:] - r[..., :, :-1]).abs() * (m[..., :, 1:] & m[..., :, :-1])).sum()
        down = ((r[..., 1:, :] - r[..., :-1, :]).abs() * (m[..., 1:, :] & m[..., :-1, :])).sum()
        total = total + (across + down) / m.sum().clamp_min(1)
    return total
