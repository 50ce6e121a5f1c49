# SPDX-License-Identifier: Apache-2.0
"""Training targets of DepthMaster (arXiv 2501.02576): depth scaled to -1..1 in a chosen space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.losses.normalization import exact

SPACES = ("sqrt_disparity", "disparity", "depth")


@dataclass(frozen=True)
class Target:
    """Target of the network: map (N, 1, H, W) in -1..1, mask of the known pixels, and range.

    low and high (N,) are the values that became -1 and 1, in the unit of the space.
    """

    values: Tensor
    mask: Tensor
    low: Tensor
    high: Tensor


def target(
    depth: Tensor, mask: Tensor, space: str = "sqrt_disparity", tails: float = 0.02
) -> Target:
    """Return clip(2 (y - q_low) / (q_high - q_low) - 1, -1, 1) of depth (N, 1, H, W), m.

    y is sqrt(1 / depth), 1 / depth or depth, as `space` says. q_low and q_high are the `tails` and
    1 - `tails` quantiles of y over an image's valid pixels. An image without spread has no valid
    pixel. Invalid pixels get the farthest value, so that they add no near edge to the input of the
    autoencoder. Raises ValueError for an unknown space.
    """
    if space not in SPACES:
        raise ValueError(f"No target space is called {space!r}: use one of {', '.join(SPACES)}.")
    depth = exact(depth)
    mask = mask & torch.isfinite(depth) & (depth > 0)
    safe = torch.where(mask, depth, torch.ones_like(depth))
    y = {"sqrt_disparity": safe.rsqrt(), "disparity": 1.0 / safe, "depth": safe}[space]
    # This is torch.quantile over each image's valid pixels, without a copy of their number from
    # the GPU.
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


# The square root of a student's disparity where the target is -1; the target's range has the length
# 1 there. It is not 0, as the far end of a room is not at infinity (ours).
STUDENT_OFFSET = 0.5
LEAST_ROOTED = 1e-2


def root(disparity: Tensor) -> Tensor:
    """Return the square root of a student's disparity, and its tangent below LEAST_ROOTED.

    With the tangent the slope stays finite at 0, and negative values have a gradient too.
    """
    x, least = exact(disparity), LEAST_ROOTED
    tangent = (x + least) / (2 * least**0.5)
    return torch.where(x > least, x.clamp_min(least).sqrt(), tangent)


def student_target(depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target for `root` of a student's disparity, and its mask, both (N, 1, H, W).

    The paper's target in -1..1 is moved to STUDENT_OFFSET..STUDENT_OFFSET + 1. depth is
    (N, 1, H, W) m, mask the known pixels.
    """
    scaled = target(depth, mask)
    return (scaled.values + 1) / 2 + STUDENT_OFFSET, scaled.mask
