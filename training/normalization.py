# SPDX-License-Identifier: Apache-2.0
"""What is left of a map without scale and shift: (d - median) / mean absolute deviation.

Maps are (N, 1, H, W) float with a boolean mask of the same shape; statistics are per picture and
over a context, a set of pixels: all valid ones, or those of a range of depth (hierarchical depth
normalisation; Distill Any Depth, section 3.2). The median is torch's, the lower middle of an even
count; the deviation is the MEAN absolute one. Contexts of fewer than two pixels or without any
spread normalise to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
# Equal-width bins that the teacher's range is cut into; every pixel lies in one bin of each level.
LEVELS = {"global": (1,), "hybrid": (1, 2, 4), "local": (4,)}


def normalise(values: Tensor, context: Tensor) -> Tensor:
    """Median 0 and mean absolute deviation 1 over the context of each picture; 0 outside it."""
    flat, inside = values.flatten(1), context.flatten(1)
    marked = flat.detach().masked_fill(~inside, float("nan"))
    middle_of = marked.nan_to_num(torch.inf).sort(dim=1)
    last = (inside.sum(dim=1, keepdim=True) - 1).clamp_min(0)
    position = middle_of.indices.gather(1, torch.div(last, 2, rounding_mode="floor"))
    # Taken out of the map itself, so that the gradient knows of the median.
    centred = torch.where(inside, flat - flat.gather(1, position), torch.zeros_like(flat))
    spread = centred.abs().sum(dim=1, keepdim=True) / inside.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(spread > 0, centred / (spread + EPS), centred).view_as(values)


def contexts(teacher: Tensor, mask: Tensor, norm: str) -> list[Tensor]:
    """Boolean maps (N, 1, H, W): the sets of pixels over which `norm` (a key of LEVELS) works.

    The bins' upper edge is open but for the last, or the farthest pixel would be in none.
    """
    if norm not in LEVELS:
        raise ValueError(f"No normalisation is called {norm!r}: use one of {', '.join(LEVELS)}.")
    flat, valid = teacher.flatten(1), mask.flatten(1)
    low = flat.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    high = flat.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    share = (flat - low) / (high - low).clamp_min(1e-12)
    sets = []
    for bins in LEVELS[norm]:
        index = (share * bins).clamp(0, bins - 1).floor()
        sets += [((index == k) & valid).view_as(mask) for k in range(bins)]
    return sets
