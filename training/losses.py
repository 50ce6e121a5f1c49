# SPDX-License-Identifier: Apache-2.0
"""Losses on maps (N, 1, H, W) with a boolean mask; 0 with a gradient where nothing is valid."""

from __future__ import annotations

import torch
from torch import Tensor

from training.normalization import LEVELS, contexts, normalise


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


def normalised_l1(
    student: Tensor, teacher: Tensor, mask: Tensor, norm: str, weight: Tensor | None = None
) -> Tensor:
    """Mean |N(student) - N(teacher)|, averaged over the contexts that a pixel lies in.

    `norm`: a key of normalization.LEVELS (the sets are the teacher's), or "none" (both as they
    are). Distill Any Depth, section 3.2.
    """
    if norm == "none":
        return masked_l1(student - teacher, mask, weight)
    total = torch.zeros_like(student)
    for context in contexts(teacher, mask, norm):
        total = total + (normalise(student, context) - normalise(teacher, context)).abs()
    return masked_l1(total / len(LEVELS[norm]), mask, weight)
