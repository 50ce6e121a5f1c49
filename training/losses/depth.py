# SPDX-License-Identifier: Apache-2.0
"""Losses on maps (N, 1, H, W) with a boolean mask; 0 with a gradient where nothing is valid.

Disparities throughout (large = near) where a sign matters. Formulas of Distill Any Depth
(arXiv 2502.19204) and WeSTAR (arXiv 2511.14238); what their texts leave open is ours and said so.
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
    """Mean |residual| over the valid pixels of the batch; with `weight` the weighted mean."""
    weights = mask.to(residual.dtype) if weight is None else weight * mask
    size = torch.where(mask, residual, torch.zeros_like(residual)).abs()
    return (size * weights).sum() / weights.sum().clamp_min(1e-6)


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


def gradient_preservation(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """gradient_matching of N(student) - N(teacher), normalised over the whole image.

    Distill Any Depth names the term and cites MiDaS; that it works on normalised maps is the usage
    of Depth Anything V2.
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
    """Mean |N_c(student) - N_c(teacher)| over the contexts c of a pixel, then over the pixels.

    contexts (N, L, H, W): numbers from 1 of the context that a pixel lies in, per layer, 0 = none.
    A context in which the teacher has no spread counts as one of difference 0. WeSTAR's
    semantically-aware hierarchical normalisation and Distill Any Depth's hybrid one are both this.
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


# The far end of depth in rooms, and outdoors, where it is deeper than a room.
FARTHEST_M, FARTHEST_OUTDOORS_M, ROOM_M = 20.0, 80.0, 50.0
BEYOND = 2.0  # the ratio above which relative_error counts the logarithm
EDGE_RATIO, EDGE_WEIGHT = (
    1.05,
    1.5,
)  # of boundary_error: what is an edge, and how much more it weighs
DEAD_ALLOWED = 0.05  # of an image's pixels, those of the sky
LARGEST_STEP = 1.0  # of the logarithm of depth between neighbours that boundary_error tells apart


def farthest(depth: Tensor, mask: Tensor) -> Tensor:
    """The depth (N, 1, 1, 1) in m behind which an image is only far: sky is known to be no more."""
    deep = torch.where(mask, depth, torch.zeros_like(depth)).amax(dim=(1, 2, 3), keepdim=True)
    rooms = torch.full_like(deep, FARTHEST_M)
    return torch.where(deep > ROOM_M, torch.full_like(deep, FARTHEST_OUTDOORS_M), rooms)


def _fitted(prediction: Tensor, depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Disparity after least squares of scale and shift to 1 / depth, true disparity, and the pixels
    that count, all (N, 1, H, W) float32; both disparities end at 1 / farthest.
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
    """Mean |z - depth| / depth (scalar), where 1 / z is the prediction after least squares of scale
    and shift to 1 / depth: the score of a disparity, with the fit in the gradient.

    prediction, depth (m, above 0 everywhere) and mask are (N, 1, H, W); the mean over an image,
    then over images. z and the pixels that count end at `farthest`; a depth too far by more than a
    factor BEYOND counts with its logarithm, or a few pixels of a wall would be all that counts.
    Ours.
    """
    fitted, truth, valid = _fitted(prediction, depth, mask)
    ratio = truth / fitted
    far = BEYOND - 1.0 + BEYOND * torch.log(ratio.clamp_min(BEYOND) / BEYOND)
    error = torch.where(ratio < BEYOND, (ratio - 1.0).abs(), far) * valid
    return (error.sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp_min(1.0)).mean()


def boundary_error(prediction: Tensor, depth: Tensor, mask: Tensor) -> Tensor:
    """Mean difference (scalar) of log depth's steps between 4-neighbours, after relative_error's
    fit: what Depth Pro's boundary F1 counts, with a gradient.

    prediction, depth (m, above 0 everywhere) and mask (N, 1, H, W). Steps end at LARGEST_STEP; a
    pair whose true depths differ by more than EDGE_RATIO weighs EDGE_WEIGHT more than 1. Ours.
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
    """The index of `size` places from `start` along one dimension, all of those before it."""
    return (*(slice(None),) * dim, slice(start, start + size))


def normalised_l1(
    student: Tensor, teacher: Tensor, mask: Tensor, norm: str, weight: Tensor | None = None
) -> Tensor:
    """context_l1 over the contexts of `norm`, one of normalization.NORMS; "none": both as they are.

    Maps and mask (N, 1, H, W). Distill Any Depth, section 3.2; the sets of pixels are the
    teacher's. Raises ValueError for an unknown norm.
    """
    if norm == "none":
        return masked_l1(student - teacher, mask, weight)
    if norm not in NORMS:
        raise ValueError(f"No normalisation is called {norm!r}: use one of {', '.join(NORMS)}.")
    return context_l1(student, teacher, layers(teacher, mask, norm), mask, weight)


def feature_alignment(student: Tensor, teacher: Tensor, tolerance: float = 0.85) -> Tensor:
    """Mean 1 - cos over the tokens that are not yet alike: cos <= tolerance (Depth Anything).

    Tokens (N, P, C) of the same patches. Each image's mean is over its own unlike tokens; one
    whose tokens are all alike counts 0.
    """
    likeness = functional.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)
    unlike = likeness.detach() <= tolerance
    away = ((1 - likeness) * unlike).sum(dim=1) / unlike.sum(dim=1).clamp_min(1)
    return away.mean()


def scale_anchor(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Pull of the student's median and deviation to the teacher's: mean over images.

    (log s(student) - log s(teacher))^2 + ((med student - med teacher) / s(teacher))^2; ours, for
    invariant losses let scale and shift drift. Images in which the teacher has
    no spread count 0.
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
    """Cost of a final ReLU that outputs 0 at more than DEAD_ALLOWED of an image's pixels.

    before (N, 1, H, W): what enters the ReLU. Negative values are pulled up, but for the allowed
    fraction of the most negative ones (sky). Ours: the fraction of zeros itself has no gradient.
    """
    below = functional.relu(-before.float().flatten(1))
    keep = int(DEAD_ALLOWED * below.shape[1])
    excess = below.sort(dim=1).values[:, : below.shape[1] - keep]
    size = before.detach().float().flatten(1).abs().mean().clamp_min(EPS)
    return excess.mean() / size


def dead_weight(default: float) -> float:
    """The setting of a recipe that weighs `dead_outputs`."""
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
    """Mean cost (scalar) of pairs whose disparities disagree with their ordinal labels.

    difference (K,): disparity of the first point minus that of the second. relation (K,): +1 the
    first is nearer, -1 it is farther, 0 they are alike. "margin": max(0, margin - l x), |x| for
    alike (WeSTAR); "logistic": log(1 + exp(-l x)), x^2 for alike (Chen et al. 2016). owner
    (K,): numbers of the images; each image's mean is taken first, then that of the images that have
    pairs. 0 without pairs. Raises ValueError for another form.
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
    """Sum over layers of ||scale B A||_F^2 for (A (r, in), B (out, r), scale) of low-rank updates.

    Without forming B A: its squared norm is trace((B^T B)(A A^T)), products of r x r. It is the L2
    pull of the effective weight to its source (WeSTAR). Raises ValueError without layers.
    """
    terms = []
    for a, b, scale in pairs:
        with torch.autocast(a.device.type, enabled=False):
            wide, tall = exact(a), exact(b)
            # trace(X Y) of symmetric X, Y is the sum of X * Y.
            terms.append(scale**2 * ((tall.T @ tall) * (wide @ wide.T)).sum())
    if not terms:
        raise ValueError("There is no low-rank layer to hold back: switch LoRA on or the term off.")
    return torch.stack(terms).sum()


def drift(now: Iterable[Tensor], source: Iterable[Tensor]) -> Tensor:
    """Sum over weights of ||W - W_source||_F^2: product_norm's counterpart without LoRA (L2-SP)."""
    terms = [((w - s.detach()) ** 2).sum() for w, s in zip(now, source, strict=True)]
    return torch.stack(terms).sum()
