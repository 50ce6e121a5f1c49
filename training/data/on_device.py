# SPDX-License-Identifier: Apache-2.0
"""Pools in the memory of a device (GPU), whose images are cropped and augmented there, in batches.

A batch is augmented as training.data.augmentation does it for an image, with the same settings, for
a GPU that is faster than a few CPU cores can prepare images. The windows are the same; colours
change by the same rules, but with other random numbers and in a fixed order. Random numbers are
drawn on the CPU from one generator per image; only the pixel noise is drawn on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.data.augmentation import ViewConfig, random_window
from training.data.pool import Pool
from training.data.samples import F32

COPIED_AT_ONCE = 512  # images
UNIFORM, NORMAL = 29, 2  # numbers of random numbers per image; `recolour` shows the use of each
# The strong changes, with the random number that decides whether `recolour` applies each.
DECIDED_BY = {
    "equalize": 0, "posterize": 2, "sharpen": 4, "solarize": 5, "exposure": 9, "shadow": 19
}  # fmt: skip


class HeldPools:
    """Images of pools, each copied to a device once, before the first batch that may need it.

    An image that a full pool replaces later is not copied again.
    """

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.pools = pools
        self._stored: list[tuple[Tensor, Tensor]] = []
        self._copied = [0] * len(pools)

    def draw(
        self,
        rngs: Sequence[np.random.Generator],
        second_share: float,
        view: ViewConfig,
        height: int,
        width: int,
    ) -> dict[str, Any]:
        """Draw, on the CPU, what `batch` needs: image numbers and windows per pool, random numbers.

        One image is drawn per generator. second_share: the probability of the second pool, if there
        are two.
        """
        counts = [len(pool) for pool in self.pools]
        places: list[list[int]] = [[] for _ in counts]
        windows: list[list[tuple[float, ...]]] = [[] for _ in counts]
        # Sorted by pool, as `batch` concatenates the images: each image keeps the numbers of its
        # own generator.
        uniform: list[list[F32]] = [[] for _ in counts]
        normal: list[list[F32]] = [[] for _ in counts]
        for rng in rngs:
            which = int(len(counts) > 1 and rng.random() < second_share)
            cfg = self.pools[which].cfg
            places[which].append(int(rng.integers(0, counts[which])))
            cut = random_window((cfg.height, cfg.width), height, width, view, rng)
            windows[which].append((cut.top, cut.left, cut.rows, cut.columns, cut.flip))
            uniform[which].append(rng.random(UNIFORM, dtype=np.float32))
            normal[which].append(rng.standard_normal(NORMAL, dtype=np.float32))
            if view.at_least_one:
                _choose_one(uniform[which][-1], view, rng)
        numbers = torch.from_numpy(np.stack(list(chain.from_iterable(uniform))))
        return {
            "counts": counts,
            "size": (height, width),
            "places": [torch.tensor(some, dtype=torch.long) for some in places],
            "windows": [torch.tensor(some).reshape(-1, 5).float() for some in windows],
            "uniform": numbers,
            "normal": torch.from_numpy(np.stack(list(chain.from_iterable(normal)))),
            # As a list on the CPU: to find them on the device would wait for the device.
            "equalized": torch.nonzero(numbers[:, 0] < view.equalize).flatten().tolist(),
        }

    def batch(self, drawn: Mapping[str, Any], view: ViewConfig) -> dict[str, Tensor]:
        """Return `image` (N, 3, h, w) float32 in 0..1 and `depth` (N, 1, h, w) float32 m.

        They are on the device of the tensors in `drawn`.
        """
        self._copy(drawn["counts"], drawn["uniform"].device)
        height, width = drawn["size"]
        images, depths = [], []
        with torch.autocast(drawn["uniform"].device.type, enabled=False):
            for (image, depth), places, windows in zip(
                self._stored, drawn["places"], drawn["windows"], strict=True
            ):
                rows, columns = image.shape[1:3]
                across = (windows[:, 1], windows[:, 3], windows[:, 4] > 0)
                down = (windows[:, 0], windows[:, 2], torch.zeros_like(across[2]))
                shrinks = (across[1] >= width) & (down[1] >= height)
                down_by = resampling(*down, shrinks, height, rows)
                across_by = resampling(*across, shrinks, width, columns)
                taken = image[places].permute(0, 3, 1, 2).float() / 255.0
                taken = down_by[:, None] @ taken @ across_by[:, None].transpose(2, 3)
                images.append(taken)
                at = (nearest(*down, height, rows), nearest(*across, width, columns))
                known = depth[places[:, None, None], at[0][:, :, None], at[1][:, None, :]]
                depths.append(known[:, None].float())
            mixed = torch.cat(images)
            seen = recolour(mixed, view, drawn["uniform"], drawn["normal"], drawn["equalized"])
        return {"image": seen, "depth": torch.cat(depths)}

    def _copy(self, counts: Sequence[int], device: torch.device) -> None:
        if not self._stored:
            for pool in self.pools:
                size = (pool.cfg.samples, pool.cfg.height, pool.cfg.width)
                self._stored.append(
                    (
                        torch.empty((*size, 3), dtype=torch.uint8, device=device),
                        torch.empty(size, dtype=torch.float16, device=device),
                    )
                )
        for k, (pool, count) in enumerate(zip(self.pools, counts, strict=True)):
            for first in range(self._copied[k], count, COPIED_AT_ONCE):
                new = slice(first, min(first + COPIED_AT_ONCE, count))
                self._stored[k][0][new].copy_(torch.from_numpy(np.array(pool.image[new])))
                self._stored[k][1][new].copy_(torch.from_numpy(np.array(pool.depth[new])))
            self._copied[k] = max(self._copied[k], count)


def _choose_one(uniform: F32, view: ViewConfig, rng: np.random.Generator) -> None:
    """Let one of the strong changes happen, by its number in `uniform`, if chance chose none."""
    chances = {number: getattr(view, name) for name, number in DECIDED_BY.items()}
    possible = [number for number, chance in chances.items() if chance > 0]
    if possible and not any(uniform[number] < chances[number] for number in possible):
        uniform[possible[int(rng.integers(len(possible)))]] = 0.0


def resampling(
    first: Tensor, extent: Tensor, flip: Tensor, shrinks: Tensor, size: int, stored: int
) -> Tensor:
    """Return matrices (N, size, stored) that crop and resize one axis, as Window.image does.

    They take the `extent` pixels from `first` on, of `stored` pixels, and make `size` pixels of
    them: by means over areas where `shrinks`, linearly elsewhere. first, extent (N,) whole numbers;
    flip, shrinks (N,) bool.
    """
    scale = (extent / size)[:, None, None]
    out = torch.arange(size, device=first.device, dtype=torch.float32)[None, :, None]
    out = torch.where(flip[:, None, None], size - 1 - out, out)
    place = torch.arange(stored, device=first.device, dtype=torch.float32)[None, None, :]
    place = place - first[:, None, None]
    inside = (place >= 0) & (place < extent[:, None, None])
    overlap = torch.minimum((out + 1) * scale, place + 1) - torch.maximum(out * scale, place)
    # Beyond the window its outermost pixels are repeated.
    centre = ((out + 0.5) * scale - 0.5).clamp_min(0)
    centre = torch.minimum(centre, extent[:, None, None] - 1)
    weight = torch.where(shrinks[:, None, None], overlap, 1 - (centre - place).abs())
    weight = weight.clamp_min(0) * inside
    return weight / weight.sum(dim=2, keepdim=True)


def nearest(first: Tensor, extent: Tensor, flip: Tensor, size: int, stored: int) -> Tensor:
    """Return the stored pixels (N, size) along one axis that Window.nearest takes.

    They are the ones in which the centres of the new pixels lie. Arguments as for `resampling`.
    """
    out = torch.arange(size, device=first.device, dtype=torch.float32)[None]
    out = torch.where(flip[:, None], size - 1 - out, out)
    at = first[:, None] + torch.floor((out + 0.5) * (extent[:, None] / size))
    return at.long().clamp(0, stored - 1)


def recolour(
    x: Tensor, view: ViewConfig, uniform: Tensor, normal: Tensor, equalized: Sequence[int]
) -> Tensor:
    """Change the colours of images (N, 3, H, W) in 0..1 as augmentation.recolour; no pixel moves.

    uniform (N, UNIFORM) in 0..1, normal (N, NORMAL) and `equalized`, the numbers of the images
    whose histograms are equalised, come from HeldPools.draw.
    """

    def number(index: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return (low + (high - low) * uniform[:, index]).view(-1, 1, 1, 1)

    def sometimes(index: int, chance: float, changed: Tensor, x: Tensor) -> Tensor:
        return torch.where(number(index) < chance, changed, x)

    x = x.clamp(0, 1)
    if equalized:
        x = x.index_copy(0, torch.tensor(equalized, device=x.device), _equalize(x[equalized]))
    if view.posterize:
        levels = 2.0 ** torch.floor(number(1, 4, 7))
        coarse = torch.minimum(torch.floor(x * levels), levels - 1) / (levels - 1)
        x = sometimes(2, view.posterize, coarse, x)
    if view.sharpen:
        blurred = blur(x, torch.ones_like(uniform[:, 0]))
        sharp = (x + number(3, 0.5, 2.0) * (x - blurred)).clamp(0, 1)
        x = sometimes(4, view.sharpen, sharp, x)
    if view.solarize:
        x = sometimes(5, view.solarize, torch.where(x < number(6, 0.5, 1.0), x, 1 - x), x)
    if view.exposure:
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        moved = (x - mean) * number(7, 0.6, 1.4) + mean + number(8, -0.25, 0.25)
        x = sometimes(9, view.exposure, moved.clamp(0, 1), x)
    if view.shadow:
        dark = torch.where(_four_sided(x, uniform[:, 10:18]), number(18, 0.3, 0.7), 1.0)
        x = sometimes(19, view.shadow, x * dark, x)
    if view.gamma:
        x = x ** torch.exp(normal[:, 0].view(-1, 1, 1, 1) * view.gamma)
    if view.colour or view.grey:
        spread = view.colour
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (x - mean) * number(20, 1 - spread, 1 + spread) + mean
        grey = x.mean(dim=1, keepdim=True)
        saturation = number(21, 1 - 1.5 * spread, 1 + spread) * (number(22) >= view.grey)
        gain = (1 - spread / 2 + spread * uniform[:, 23:26]).view(-1, 3, 1, 1)
        shift = normal[:, 1].view(-1, 1, 1, 1) * (spread / 6)
        x = (grey + (x - grey) * saturation) * gain + shift
    if view.blur:
        x = sometimes(26, view.blur, blur(x, 0.3 + 0.7 * uniform[:, 27]), x)
    if view.noise:
        x = x + number(28, 0, view.noise) * torch.randn_like(x)
    return x.clamp(0, 1)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (N, 3, H, W) by a Gaussian of sigma (N,) px each, reflected at the border."""

    def matrix(size: int) -> Tensor:
        place = torch.arange(size, device=x.device, dtype=torch.float32)
        out, last = place[:, None], size - 1
        near = sigma[:, None, None] * 2**0.5
        weight = torch.exp(-(((out - place) / near) ** 2))
        weight = weight + torch.exp(-(((out + place) / near) ** 2)) * (place > 0)
        weight = weight + torch.exp(-(((2 * last - place - out) / near) ** 2)) * (place < last)
        return weight / weight.sum(dim=2, keepdim=True)

    return matrix(x.shape[2])[:, None] @ x @ matrix(x.shape[3])[:, None].transpose(2, 3)


def _equalize(x: Tensor) -> Tensor:
    """Equalise the histogram of every channel of (N, 3, H, W) in 0..1, as cv2.equalizeHist does."""
    values = torch.round(x.flatten(2) * 255).long()
    histogram = torch.zeros((*values.shape[:2], 256), device=x.device)
    histogram.scatter_add_(2, values, torch.ones_like(values, dtype=torch.float32))
    below = histogram.cumsum(dim=2)
    lowest = histogram.gather(2, (histogram > 0).float().argmax(dim=2, keepdim=True))
    rest = values.shape[2] - lowest
    even = ((below - lowest) / rest.clamp_min(1)).gather(2, values).clamp(0, 1)
    # A channel of one value has nothing to spread and stays as it is.
    return torch.where(rest > 0, even, values / 255.0).reshape(x.shape)


def _four_sided(x: Tensor, corners: Tensor) -> Tensor:
    """Return the mask (N, 1, H, W) of a quadrilateral with random corners in or near the image.

    corners (N, 8): x, y of the four corners in 0..1, which is a little more than the image.
    """
    rows, columns = x.shape[2:]
    points = (corners.view(-1, 4, 2) * 1.2 - 0.1) * corners.new_tensor([columns, rows])
    middle = points - points.mean(dim=1, keepdim=True)
    order = torch.atan2(middle[..., 1], middle[..., 0]).argsort(dim=1)
    points = points.gather(1, order[..., None].expand(-1, -1, 2))
    u = torch.arange(columns, device=x.device).view(1, 1, -1)
    v = torch.arange(rows, device=x.device).view(1, -1, 1)
    inside = torch.zeros((len(x), rows, columns), dtype=torch.bool, device=x.device)
    for k in range(4):
        (ax, ay), (bx, by) = (points[:, j].T[..., None, None] for j in (k, (k + 1) % 4))
        crosses = (ay > v) != (by > v)
        inside = inside ^ (crosses & (u < (bx - ax) * (v - ay) / (by - ay) + ax))
    return inside[:, None]
