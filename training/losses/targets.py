# SPDX-License-Identifier: Apache-2.0
"""Targets of DepthMaster (arXiv 2501.02576): depth in a space that a network can learn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.losses.normalization import exact

SPACES = ("sqrt_disparity", "disparity", "depth")


@dataclass(frozen=True)
class Target:
    """Target of the network: map (N, 1, H, W) in -1..1, the mask of known pixels, and its range.

    low and high (N,) are the values of -1 and 1 before scaling, in the space's unit.
    """

    values: Tensor
    mask: Tensor
    low: Tensor
    high: Tensor


def target(
    depth: Tensor, mask: Tensor, space: str = "sqrt_disparity", tails: float = 0.02
) -> Target:
    """Depth (N, 1, H, W) m -> clip(2 (y - q_low) / (q_high - q_low) - 1, -1, 1).

    y is sqrt(1 / depth), 1 / depth or depth; q are the `tails` and 1 - `tails` quantiles of an
    image's valid pixels. Images without spread are not valid. Invalid pixels hold the farthest
    value, so that they add no near edge to the autoencoder's input. Raises ValueError for another
    space.
    """
    if space not in SPACES:
        raise ValueError(f"No target space is called {space!r}: use one of {', '.join(SPACES)}.")
    depth = exact(depth)
    mask = mask & torch.isfinite(depth) & (depth > 0)
    safe = torch.where(mask, depth, torch.ones_like(depth))
    y = {"sqrt_disparity": safe.rsqrt(), "disparity": 1.0 / safe, "depth": safe}[space]
    # torch.quantile of each image's valid pixels, without asking a GPU how many there are.
    ordered = torch.where(mask, y, torch.full_like(y, torch.inf)).flatten(1).sort(dim=1).values
    count = mask.flatten(1).sum(dim=1, keepdim=True)
    place = y.new_tensor([tails, 1 - tails]) * (count - 1).clamp_min(0)
    below, above = (ordered.gather(1, at.long()) for at in (place.floor(), place.ceil()))
    ends = torch.lerp(below, above, place - place.floor())
    low, high = torch.where(count > 0, ends, torch.zeros_like(ends)).unbind(1)
    spread = (high > low).view(-1, 1, 1, 1)
    span = torch.where(high > low, high - low, torch.ones_like(low)).view(-1, 1, 1, 1)
    scaled = (2 * (y - low.view(-1, 1, 1, 1)) / span - 1).clamp(-1, 1)
    far = 1.0 if space == "depth" else -1.0
    valid = mask & spread
    return Target(torch.where(valid, scaled, torch.full_like(scaled, far)), valid, low, high)


# What a student's root of disparity has at -1 of the target: half of the target's range (ours; the
# room's far end is not at infinity).
STUDENT_OFFSET = 0.5
LEAST_ROOTED = 1e-2


def root(disparity: Tensor) -> Tensor:
    """Square root of a student's disparity, below LEAST_ROOTED its tangent: no dead end at 0."""
    x, least = exact(disparity), LEAST_ROOTED
    tangent = (x + least) / (2 * least**0.5)
    return torch.where(x > least, x.clamp_min(least).sqrt(), tangent)


def student_target(depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Target of `root` of a student's disparity and its mask, (N, 1, H, W): the paper's, shifted.

    depth (N, 1, H, W) m, mask of known pixels.
    """
    scaled = target(depth, mask)
    return (scaled.values + 1) / 2 + STUDENT_OFFSET, scaled.mask
