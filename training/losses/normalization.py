# SPDX-License-Identifier: Apache-2.0
"""Maps normalised to no scale and shift: (d - median) / mean absolute deviation.

Maps are (N, 1, H, W) float. Statistics are taken over contexts: sets of pixels of one image,
written as a map (N, 1, H, W) of numbers from 1, where 0 lies in none (a boolean mask is one context
per image). Contexts that overlap stand in several such layers (N, L, H, W). The median is
torch's, the lower middle of an even count; the deviation is the MEAN absolute one about it. All is
computed in float32 or better, whatever the precision of the network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-6
FEW = 8  # contexts in a layer up to which their medians are selected one by one
# Equal-width bins that the teacher's range is cut into; every pixel lies in one bin of each level
# (hierarchical depth normalisation; Distill Any Depth, section 3.2).
LEVELS = {"global": (1,), "hybrid": (1, 2, 4), "local": (4,)}
NORMS = ("none", *LEVELS)


DEVIATIONS = ("mean", "median")


def statistics(
    values: Tensor, contexts: Tensor, deviation: str = "mean"
) -> tuple[Tensor, Tensor, Tensor]:
    """Median, mean (or median) absolute deviation and pixel count of each context, each (N, K + 1).

    values (N, 1, H, W), contexts (N, 1, H, W) bool or integers 0..K; column 0 says nothing. Median
    and deviation of an empty context are 0. The median is a member of the map, so gradients reach
    it.
    """
    flat = exact(values.flatten(1))
    label = contexts.flatten(1).long()
    rows, top = len(flat), int(label.max()) + 1 if label.numel() else 1
    context = label + torch.arange(rows, device=label.device)[:, None] * top
    inside = label > 0
    count = torch.bincount(context.flatten(), minlength=rows * top)
    clean = torch.where(inside, flat, torch.zeros_like(flat))
    median = _medians(clean, label, context, count)
    away = (clean.flatten() - median[context.flatten()]).abs() * inside.flatten()
    if deviation == "median":
        spread = _medians(away.view_as(clean), label, context, count)
    else:
        total = torch.zeros_like(median).index_add(0, context.flatten(), away)
        spread = total / count.clamp_min(1)
    shape = (rows, top)
    return median.view(shape), spread.view(shape), count.view(shape)


def _medians(clean: Tensor, label: Tensor, context: Tensor, count: Tensor) -> Tensor:
    """The median (N (K + 1),) of each context, 0 of an empty one.

    clean, label and context (N, pixels): values, numbers 0..K within a row, and over all rows.
    """
    rows, top = len(clean), len(count) // len(clean)
    if top <= FEW + 1 and clean.device.type == "cpu":
        # A selection for each is several times quicker than sorting; on a GPU sorting costs little.
        beyond = torch.full_like(clean, torch.nan)
        picked = [torch.where(label == k, clean.detach(), beyond) for k in range(1, top)]
        at = torch.stack([p.nanmedian(dim=1).indices for p in picked or [beyond]], dim=1)
        first = torch.arange(rows, device=label.device)[:, None] * clean.shape[1]
        medians = clean.flatten()[at + first]
        return functional.pad(medians, (1, 0))[:, :top].flatten() * (count > 0)
    # By value first, then stably by context: each context lies in one piece, in order.
    ordered = clean.detach().flatten().argsort()
    order = ordered[context.flatten()[ordered].int().argsort(stable=True)]
    begin = count.cumsum(0) - count
    middle = begin + torch.div((count - 1).clamp_min(0), 2, rounding_mode="floor")
    return clean.flatten()[order[middle.clamp_max(len(order) - 1)]] * (count > 0)


def normalise(values: Tensor, contexts: Tensor, deviation: str = "mean") -> Tensor:
    """Median 0 and mean (or median) absolute deviation 1 over each context; 0 outside of all.

    A context without spread (also one of a single pixel) becomes 0.
    """
    return standardise(values, contexts, deviation)[0]


def normalised_by(values: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """`normalise` over `mask`, by median and deviation of the pixels of `reference` alone, of mask
    where that is empty. All (N, 1, H, W).
    """
    use = torch.where(reference.flatten(1).any(1).view(-1, 1, 1, 1), reference, mask)
    median, deviation, _ = (part[:, -1].view(-1, 1, 1, 1) for part in statistics(values, use))
    centred = (exact(values) - median) / (deviation + EPS)
    return torch.where(mask & (deviation > 0), centred, torch.zeros_like(centred))


def standardise(values: Tensor, contexts: Tensor, deviation: str = "mean") -> tuple[Tensor, Tensor]:
    """`normalise`, and the deviation (N, 1, H, W) of the context that each pixel lies in."""
    median, each, _ = statistics(values, contexts, deviation)
    label = contexts.flatten(1).long()
    clean = torch.where(label > 0, exact(values.flatten(1)), torch.zeros((), device=label.device))
    centred = (clean - median.gather(1, label)) * (label > 0)
    spread = each.gather(1, label)
    # The difference in a context without spread is 0 already; dividing by EPS would make the
    # gradient of its pixels explode.
    divisor = torch.where(spread > 0, spread + EPS, torch.ones_like(spread))
    return (centred / divisor).view_as(values), spread.view_as(values)


def exact(values: Tensor) -> Tensor:
    """float32, or float64 where it is that: statistics of half precision would be noise."""
    return values if values.dtype == torch.float64 else values.float()


def bins(teacher: Tensor, mask: Tensor, count: int) -> Tensor:
    """(N, 1, H, W) integers 1..count: equal-width bins of the teacher's range; 0 where not valid.

    The upper edge of a bin is open but for the last, or the largest value would be in none.
    """
    flat, valid = teacher.flatten(1), mask.flatten(1)
    low = flat.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    high = flat.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    relative = (flat - low) / (high - low).clamp_min(1e-12)
    index = (relative * count).nan_to_num(0.0).clamp(0, count - 1).floor().long() + 1
    return torch.where(valid, index, torch.zeros_like(index)).view_as(mask)


def layers(teacher: Tensor, mask: Tensor, norm: str) -> Tensor:
    """(N, L, H, W) integers: the contexts over which `norm`, a key of LEVELS, normalises.

    teacher and mask (N, 1, H, W). Raises ValueError for an unknown norm.
    """
    if norm not in LEVELS:
        raise ValueError(f"No normalisation is called {norm!r}: use one of {', '.join(LEVELS)}.")
    return torch.cat([bins(teacher, mask, count) for count in LEVELS[norm]], dim=1)


def worthwhile(
    contexts: Tensor, teacher: Tensor, mask: Tensor, least_px: int = 256, least_share: float = 1e-3
) -> Tensor:
    """Contexts (N, L, H, W) without those that are too small or too flat.

    Dropped are contexts with fewer than `least_px` valid pixels, and those in which the teacher
    deviates by less than `least_share` of what it does in the whole image: a constant plane would
    amplify noise. Both limits are ours, WeSTAR's text does not give any.
    """
    _, overall, _ = statistics(teacher, mask)
    least = least_share * (overall[:, 1:2] if overall.shape[1] > 1 else overall[:, :1])
    filtered = []
    for layer in contexts.split(1, dim=1):
        layer = torch.where(mask, layer.long(), torch.zeros_like(layer, dtype=torch.long))
        _, deviation, count = statistics(teacher, layer)
        good = (count >= least_px) & (deviation > least)
        good[:, 0] = False
        flat = layer.flatten(1)
        filtered.append(
            torch.where(good.gather(1, flat), flat, torch.zeros_like(flat)).view_as(layer)
        )
    return torch.cat(filtered, dim=1)
