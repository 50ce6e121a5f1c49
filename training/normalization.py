# SPDX-License-Identifier: Apache-2.0
"""What is left of a map without scale and shift: (d - median) / mean absolute deviation.

Tensors are (N, H, W) or (N, 1, H, W) float32 with a boolean mask of the same shape; statistics are
per image and over valid pixels only. The median is torch's (the lower middle of an even count); the
deviation is the MEAN absolute one (Distill Any Depth, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6


def median_and_deviation(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Median and mean absolute deviation (N,) of each image's valid pixels; NaN for an image with
    none.
    """
    flat = values.detach().flatten(1).masked_fill(~mask.flatten(1), float("nan"))
    middle = flat.nanmedian(dim=1).values
    spread = (flat - middle[:, None]).abs().nanmean(dim=1)
    return middle, spread


def normalise(values: Tensor, mask: Tensor) -> Tensor:
    """Median 0 and mean absolute deviation 1 over each image's valid pixels; 0 where the mask is
    False.
    """
    flat, valid = values.flatten(1), mask.flatten(1)
    safe = flat.masked_fill(~valid, float("nan"))
    middle = safe.nanmedian(dim=1, keepdim=True).values
    spread = (safe - middle).abs().nanmean(dim=1, keepdim=True)
    out = torch.where(valid, (flat - middle) / (spread + EPS), torch.zeros_like(flat))
    return out.view_as(values)
