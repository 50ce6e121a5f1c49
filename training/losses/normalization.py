# SPDX-License-Identifier: Apache-2.0
"""Normalisation that removes scale and shift of a map: (d - median) / mean absolute deviation.

Maps are (N, 1, H, W) float. Statistics are taken over contexts: sets of pixels of one image, given
as a map (N, 1, H, W) of context numbers from 1; 0 means that the pixel lies in none. A boolean mask
is one context per image. Contexts that overlap are given as several such layers (N, L, H, W). The
median is torch's, the lower of the two middle values of an even count; the deviation is by default
the MEAN absolute deviation about it. All is computed in float32 or better, whatever the precision
of the network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-6
FEW = 8  # a layer with at most this many contexts has their medians selected one by one
# Numbers of equal-width bins that the teacher's range is cut into, one number per level; every
# pixel lies in one bin of each level (hierarchical depth normalisation; Distill Any Depth,
# section 3.2).
LEVELS = {"global": (1,), "hybrid": (1, 2, 4), "local": (4,)}
NORMS = ("none", *LEVELS)


DEVIATIONS = ("mean", "median")


def statistics(
    values: Tensor, contexts: Tensor, deviation: str = "mean"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return median, mean (or median) absolute deviation and pixel count of each context.

    Each is (N, K + 1); column k is context k, and column 0 has no meaning. values (N, 1, H, W),
    contexts (N, 1, H, W) bool or integers 0..K. Median and deviation of an empty context are 0. The
    median is a value of the map, so that gradients pass through it.
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
    """Return the median of each context, (N (K + 1),); 0 for an empty one.

    clean, label and context are (N, pixels): the values, the context numbers 0..K within a row, and
    context numbers that differ between the rows.
    """
    rows, top = len(clean), len(count) // len(clean)
    if top <= FEW + 1 and clean.device.type == "cpu":
        # Selecting each median is several times faster than sorting on a CPU; on a GPU sorting is
        # cheap.
        beyond = torch.full_like(clean, torch.nan)
        picked = [torch.where(label == k, clean.detach(), beyond) for k in range(1, top)]
        at = torch.stack([p.nanmedian(dim=1).indices for p in picked or [beyond]], dim=1)
        first = torch.arange(rows, device=label.device)[:, None] * clean.shape[1]
        medians = clean.flatten()[at + first]
        return functional.pad(medians, (1, 0))[:, :top].flatten() * (count > 0)
    # Sorted by value, then stably by context: the values of each context are adjacent and in order.
    ordered = clean.detach().flatten().argsort()
    order = ordered[context.flatten()[ordered].int().argsort(stable=True)]
    begin = count.cumsum(0) - count
    middle = begin + torch.div((count - 1).clamp_min(0), 2, rounding_mode="floor")
    return clean.flatten()[order[middle.clamp_max(len(order) - 1)]] * (count > 0)


def normalise(values: Tensor, contexts: Tensor, deviation: str = "mean") -> Tensor:
    """Return the map with median 0 and mean (or median) absolute deviation 1 over each context.

    values and contexts (N, 1, H, W). Pixels outside all contexts are 0, and so are those of a
    context without spread (also one of a single pixel).
    """
    return standardise(values, contexts, deviation)[0]


def normalised_by(values: Tensor, mask: Tensor, reference: Tensor) -> Tensor:
    """Return the map normalised over `mask` by the median and deviation of the `reference` pixels.

    All are (N, 1, H, W). An image without a reference pixel takes those of its mask. Pixels outside
    the mask are 0, and so is an image whose deviation is 0.
    """
    use = torch.where(reference.flatten(1).any(1).view(-1, 1, 1, 1), reference, mask)
    median, deviation, _ = (part[:, -1].view(-1, 1, 1, 1) for part in statistics(values, use))
    centred = (exact(values) - median) / (deviation + EPS)
    return torch.where(mask & (deviation > 0), centred, torch.zeros_like(centred))


def standardise(values: Tensor, contexts: Tensor, deviation: str = "mean") -> tuple[Tensor, Tensor]:
    """Return `normalise` and the deviation of each pixel's context, both (N, 1, H, W)."""
    median, each, _ = statistics(values, contexts, deviation)
    label = contexts.flatten(1).long()
    clean = torch.where(label > 0, exact(values.flatten(1)), torch.zeros((), device=label.device))
    centred = (clean - median.gather(1, label)) * (label > 0)
    spread = each.gather(1, label)
    # In a context without spread `centred` is 0 already; dividing by EPS would make the gradient of
    # its pixels explode.
    divisor = torch.where(spread > 0, spread + EPS, torch.ones_like(spread))
    return (centred / divisor).view_as(values), spread.view_as(values)


def exact(values: Tensor) -> Tensor:
    """Return the values as float32, or as float64 if they are; half precision is too coarse."""
    return values if values.dtype == torch.float64 else values.float()


def bins(teacher: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return the equal-width bin of the teacher's range that each pixel lies in.

    (N, 1, H, W) integers 1..count, 0 where a pixel is not valid. A bin does not contain its upper
    edge, but the last one does: otherwise the largest value would lie in none.
    """
    flat, valid = teacher.flatten(1), mask.flatten(1)
    low = flat.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    high = flat.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    relative = (flat - low) / (high - low).clamp_min(1e-12)
    index = (relative * count).nan_to_num(0.0).clamp(0, count - 1).floor().long() + 1
    return torch.where(valid, index, torch.zeros_like(index)).view_as(mask)


def layers(teacher: Tensor, mask: Tensor, norm: str) -> Tensor:
    """Return the contexts (N, L, H, W), integers, of the normalisation `norm`, a key of LEVELS.

    teacher and mask (N, 1, H, W). Raises ValueError for an unknown norm.
    """
    if norm not in LEVELS:
        raise ValueError(f"No normalisation is called {norm!r}: use one of {', '.join(LEVELS)}.")
    return torch.cat([bins(teacher, mask, count) for count in LEVELS[norm]], dim=1)


def worthwhile(
    contexts: Tensor, teacher: Tensor, mask: Tensor, least_px: int = 256, least_share: float = 1e-3
) -> Tensor:
    """Return the contexts (N, L, H, W) without those that are too small or too flat.

    A context is removed (0) if it has fewer than `least_px` valid pixels, or if the teacher's mean
    absolute deviation in it is at most `least_share` of that over the whole image: dividing a flat
    surface by its deviation would amplify noise. Both limits are ours, WeSTAR's text gives none.
    teacher and mask (N, 1, H, W).
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
