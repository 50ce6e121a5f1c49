# SPDX-License-Identifier: Apache-2.0
"""Losses on maps (N, 1, H, W) with a boolean mask of the valid pixels.

Without any valid pixel a loss is 0 and still has a gradient. Where the sign matters the maps are
disparities (large = near). The formulas are those of Distill Any Depth (arXiv 2502.19204) and
WeSTAR (arXiv 2511.14238); a docstring says "ours" where their texts leave a choice open.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from depth_node import config
from training.losses.normalization import (
    EPS,
    NORMS,
    exact,
    layers,
    normalise,
    standardise,
    statistics,
)


def masked_l1(residual: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean (scalar) of |residual| over the valid pixels of the batch.

    residual, mask and weight (N, 1, H, W); with `weight` the mean is weighted.
    """
    weights = mask.to(residual.dtype) if weight is None else weight * mask
    size = torch.where(mask, residual, torch.zeros_like(residual)).abs()
    return (size * weights).sum() / weights.sum().clamp_min(1e-6)


def gradient_matching(residual: Tensor, mask: Tensor, scales: int = 4) -> Tensor:
    """Compute MiDaS's multi-scale gradient term (scalar) of a residual map (Ranftl et al. 2020).

    It sums |horizontal| and |vertical| differences at the strides 1, 2, 4, ..., one stride per
    scale. At every stride the sum over pairs of valid neighbours is divided by the number of valid
    pixels of the batch at that stride.
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


def gradient_preservation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Compute gradient_matching of N(student) - N(teacher), both normalised over the whole image.

    Distill Any Depth names the term and cites MiDaS without a formula; normalising the maps first
    is what Depth Anything V2 does.
    """
    return gradient_matching(normalise(student, mask) - normalise(teacher, mask), mask)


def context_l1(
    student: Tensor,
    teacher: Tensor,
    contexts: Tensor,
    mask: Tensor,
    weight: Tensor | None = None,
    deviation: str = "mean",
) -> Tensor:
    """Return the mean |N_c(student) - N_c(teacher)| over a pixel's contexts c, then over pixels.

    contexts (N, L, H, W): per layer the number of the context that a pixel lies in, from 1; 0 means
    none. Pixels that lie in no context do not count. A context in which the teacher has no spread
    counts with a difference of 0. WeSTAR's semantically-aware hierarchical normalisation and
    Distill Any Depth's hybrid normalisation are both this loss, with different contexts.
    """
    student, teacher = exact(student), exact(teacher.detach())
    total, number = torch.zeros_like(student), torch.zeros_like(student)
    for layer in contexts.split(1, dim=1):
        layer = torch.where(mask, layer.long(), torch.zeros_like(layer, dtype=torch.long))
        target, spread = standardise(teacher, layer, deviation)
        difference = (normalise(student, layer, deviation) - target).abs()
        total = total + torch.where(spread > 0, difference, torch.zeros_like(difference))
        number = number + (layer > 0)
    covered = mask & (number > 0)
    return masked_l1(total / number.clamp_min(1), covered, weight)


# The largest depth that is scored: of a room, and of an outdoor image, which is an image with a
# depth beyond ROOM_M.
FARTHEST_M, FARTHEST_OUTDOORS_M, ROOM_M = 20.0, 80.0, 50.0
BEYOND = 2.0  # ratio of depths above which relative_error grows only with the logarithm
EDGE_RATIO, EDGE_WEIGHT = (
    1.05,
    1.5,
)  # boundary_error: the ratio of depths that makes an edge, and the weight added to that of an edge
DEAD_ALLOWED = 0.05  # fraction of an image's pixels that may be 0, as the sky is
LARGEST_STEP = 1.0  # boundary_error clips differences of log depth between neighbours to this


def farthest(depth: Tensor, mask: Tensor) -> Tensor:
    """Return the largest depth (N, 1, 1, 1), m, that is scored in each image.

    Beyond it a pixel is only known to be far, as the sky is. depth and mask are (N, 1, H, W).
    """
    deep = torch.where(mask, depth, torch.zeros_like(depth)).amax(dim=(1, 2, 3), keepdim=True)
    rooms = torch.full_like(deep, FARTHEST_M)
    return torch.where(deep > ROOM_M, torch.full_like(deep, FARTHEST_OUTDOORS_M), rooms)


def _fitted(prediction: Tensor, depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fitted disparity, the true disparity and the pixels that count.

    All are (N, 1, H, W) float32. Scale and shift of the prediction are fitted to 1 / depth by least
    squares. Neither disparity is below 1 / farthest.
    """
    far = farthest(depth, mask)
    valid = (mask & (depth <= far)).float()
    p, truth = prediction.float(), 1.0 / depth.float()
    count = valid.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1.0)

    def mean(values: Tensor) -> Tensor:
        return (values * valid).sum(dim=(1, 2, 3), keepdim=True) / count

    centred, target = p - mean(p), truth - mean(truth)
    scale = mean(centred * target) / mean(centred * centred).clamp_min(EPS)
    fitted = (scale * centred + mean(truth)).clamp_min(1.0 / far)
    return fitted, torch.maximum(truth, 1.0 / far), valid


def relative_error(prediction: Tensor, depth: Tensor, mask: Tensor) -> Tensor:
    """Return the mean |z - depth| / depth (scalar) of a disparity that is fitted to 1 / depth.

    1 / z is the prediction after scale and shift are fitted to 1 / depth by least squares: the
    loss is the score of the disparity, and the gradient includes the fit. prediction, depth (m,
    above 0 everywhere) and mask are (N, 1, H, W). The mean is taken over each image, then over the
    images. z is limited to `farthest`, and pixels deeper than that do not count. If z / depth
    exceeds BEYOND the error grows only with the logarithm of this ratio; otherwise a few pixels of
    a wall would dominate the mean. Ours.
    """
    fitted, truth, valid = _fitted(prediction, depth, mask)
    ratio = truth / fitted
    far = BEYOND - 1.0 + BEYOND * torch.log(ratio.clamp_min(BEYOND) / BEYOND)
    error = torch.where(ratio < BEYOND, (ratio - 1.0).abs(), far) * valid
    return (error.sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp_min(1.0)).mean()


def boundary_error(prediction: Tensor, depth: Tensor, mask: Tensor) -> Tensor:
    """Return the mean error (scalar) of the steps of log depth between 4-neighbours.

    It is a differentiable counterpart of Depth Pro's boundary F1. The prediction is fitted as in
    relative_error. prediction, depth (m, above 0 everywhere) and mask are (N, 1, H, W). Steps are
    clipped to +-LARGEST_STEP. A pair has the weight 1, and 1 + EDGE_WEIGHT if the ratio of its true
    depths exceeds EDGE_RATIO; the sum is divided by the number of pairs. Ours.
    """
    fitted, truth, _ = _fitted(prediction, depth, mask)
    ours, theirs = torch.log(fitted), torch.log(truth)
    total, count = ours.new_zeros(()), ours.new_zeros(())
    for dim in (2, 3):
        size = ours.shape[dim] - 1
        first, second = (slice_along(dim, at, size) for at in (0, 1))
        step = (ours[second] - ours[first]).clamp(-LARGEST_STEP, LARGEST_STEP)
        true_step = (theirs[second] - theirs[first]).clamp(-LARGEST_STEP, LARGEST_STEP)
        judged = (mask[second] & mask[first]).float()
        weight = judged * (1.0 + EDGE_WEIGHT * (true_step.abs() > math.log(EDGE_RATIO)))
        total = total + ((step - true_step).abs() * weight).sum()
        count = count + judged.sum()
    return total / count.clamp_min(1.0)


def slice_along(dim: int, start: int, size: int) -> tuple[slice, ...]:
    """Return an index of `size` places from `start` along dimension `dim`, all of those before."""
    return (*(slice(None),) * dim, slice(start, start + size))


def normalised_l1(
    student: Tensor, teacher: Tensor, mask: Tensor, norm: str, weight: Tensor | None = None
) -> Tensor:
    """Compute context_l1 (scalar) over the contexts of `norm`, one of normalization.NORMS.

    "none" compares the maps without normalisation. Maps and mask are (N, 1, H, W). The contexts
    follow from the teacher's map (Distill Any Depth, section 3.2). Raises ValueError for an unknown
    norm.
    """
    if norm == "none":
        return masked_l1(student - teacher, mask, weight)
    if norm not in NORMS:
        raise ValueError(f"No normalisation is called {norm!r}: use one of {', '.join(NORMS)}.")
    return context_l1(student, teacher, layers(teacher, mask, norm), mask, weight)


def feature_alignment(student: Tensor, teacher: Tensor, tolerance: float = 0.85) -> Tensor:
    """Return the mean 1 - cos (scalar) over the tokens with cos <= tolerance (Depth Anything).

    Tokens (N, P, C) belong to the same patches. The mean is taken over such tokens of each image,
    then over the images; an image whose tokens are all above the tolerance counts as 0.
    """
    likeness = functional.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)
    unlike = likeness.detach() <= tolerance
    away = ((1 - likeness) * unlike).sum(dim=1) / unlike.sum(dim=1).clamp_min(1)
    return away.mean()


def scale_anchor(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Return the cost (scalar) of the student's median and deviation against the teacher's.

    (log s(student) - log s(teacher))^2 + ((med student - med teacher) / s(teacher))^2, the mean
    over the images; s is the mean absolute deviation about the median. Ours: with invariant losses
    alone scale and shift drift. Images in which the teacher has no spread count as 0. Maps and mask
    are (N, 1, H, W).
    """
    if not mask.any():
        return student.sum() * 0.0
    middle, spread, _ = (part[:, 1] for part in statistics(student, mask))
    target, size, _ = (part[:, 1] for part in statistics(teacher.detach(), mask))
    usable = size > 0
    safe = torch.where(usable, size, torch.ones_like(size))
    ratio = torch.log(spread + EPS) - torch.log(safe + EPS)
    shift = (middle - target) / (safe + EPS)
    return torch.where(usable, ratio**2 + shift**2, torch.zeros_like(ratio)).mean()


def dead_outputs(before: Tensor) -> Tensor:
    """Return the cost (scalar) of a final ReLU with zeros at more than DEAD_ALLOWED of the pixels.

    before (N, 1, H, W): the input of the ReLU. The cost is the mean of the negative values' size
    over the mean |before|; the most negative DEAD_ALLOWED of each image (sky) are left out. Ours:
    the fraction of zeros itself has no gradient.
    """
    below = functional.relu(-before.float().flatten(1))
    keep = int(DEAD_ALLOWED * below.shape[1])
    excess = below.sort(dim=1).values[:, : below.shape[1] - keep]
    size = before.detach().float().flatten(1).abs().mean().clamp_min(EPS)
    return excess.mean() / size


def dead_weight(default: float) -> float:
    """Return the setting for the weight of `dead_outputs` in a recipe."""
    weight: float = config.option(
        default, "Weight of the cost of outputs that a final ReLU cut off.", minimum=0
    )
    return weight


ORDINAL_FORMS = ("margin", "logistic")


def ordinal(
    difference: Tensor,
    relation: Tensor,
    form: str = "margin",
    margin: float = 0.05,
    owner: Tensor | None = None,
) -> Tensor:
    """Return the mean cost (scalar) of pairs whose disparities contradict their ordinal labels.

    difference (K,): x, the disparity of the first point minus that of the second. relation (K,): l,
    +1 if the first point is nearer, -1 if it is farther, 0 if they are equal. Form "margin":
    max(0, margin - l x), and |x| for equal points (WeSTAR). Form "logistic": log(1 + exp(-l x)),
    and x^2 for equal points (Chen et al. 2016). owner (K,): the number of each pair's image; then
    the mean is taken over the pairs of each image first, and over the images that have pairs
    second. Returns 0 without pairs. Raises ValueError for an unknown form.
    """
    if form not in ORDINAL_FORMS:
        raise ValueError(f"No ordinal loss is called {form!r}: use {', '.join(ORDINAL_FORMS)}.")
    x = exact(difference)
    sign = relation.to(x.dtype)
    if form == "margin":
        ordered, alike = functional.relu(margin - sign * x), x.abs()
    else:
        ordered, alike = functional.softplus(-sign * x), x**2
    costs = torch.where(relation == 0, alike, ordered)
    if owner is None or not x.numel():
        return costs.sum() / max(x.numel(), 1)
    both = torch.stack([costs, torch.ones_like(costs)])
    sums, counts = both.new_zeros(2, int(owner.max()) + 1).index_add(1, owner, both)
    return (sums / counts.clamp_min(1)).sum() / (counts > 0).sum()


def product_norm(pairs: Iterable[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Return the sum (scalar) over the layers of ||scale B A||_F^2 of low-rank updates.

    pairs: (A (r, in), B (out, r), scale) per layer. B A is not formed: its squared norm is
    trace((B^T B)(A A^T)), a product of two r x r matrices. The sum is the L2 penalty on the
    distance of the effective weights from the source's (WeSTAR). Raises ValueError without layers.
    """
    terms = []
    for a, b, scale in pairs:
        with torch.autocast(a.device.type, enabled=False):
            wide, tall = exact(a), exact(b)
            # trace(X Y) of symmetric X and Y equals the sum of the elements of X * Y.
            terms.append(scale**2 * ((tall.T @ tall) * (wide @ wide.T)).sum())
    if not terms:
        raise ValueError("There is no low-rank layer to hold back: switch LoRA on or the term off.")
    return torch.stack(terms).sum()


def drift(now: Iterable[Tensor], source: Iterable[Tensor]) -> Tensor:
    """Return the sum (scalar) over the weights of ||W - W_source||_F^2 (L2-SP).

    It replaces product_norm where a network is trained without LoRA.
    """
    terms = [((w - s.detach()) ** 2).sum() for w, s in zip(now, source, strict=True)]
    return torch.stack(terms).sum()
