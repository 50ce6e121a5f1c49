# SPDX-License-Identifier: Apache-2.0
"""Masks of the objects in an image, the contexts of WeSTAR's normalisation.

They come from a Segment Anything network if the settings name one, else from depth_node's classical
segmentation, and can be stored in a cache. Masks may overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from depth_node import config
from depth_node.regions.segmentation import segment
from depth_node.regions.settings import SegmentationConfig
from training.checkpoints import TrainingError
from training.data.cache import Cache, Key, digest
from training.data.samples import U8
from training.models.hub import HubSource
from training.models.segment_anything import Sam, open_sam

Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class MaskConfig(HubSource):
    """Settings of the masks: the network that makes them, limits, and where they are stored.

    Number, order and limits are ours: WeSTAR's text only says that the masks are those of SAM 2.
    """

    source: str = config.option(
        "",
        "Folder or id on the Hugging Face hub of a Segment Anything (1, 2, 2.1); empty: classical"
        " regions.",
    )
    given: bool = config.option(
        False, "Take the masks that come with the images (data sets, pool.labels) instead."
    )
    folder: str = config.option("", "Folder that stores the masks; empty: they are not stored.")
    longest_px: int = config.option(
        1024,
        "Masks are found and stored on the image reduced to this longest side, as Segment Anything"
        " itself works in 1024; 0: on the image as it is.",
        unit="px",
        minimum=0,
    )
    most: int = config.option(64, "Most masks of an image; the largest stay.", minimum=1)
    grid: int = config.option(
        16, "Segment Anything is prompted at grid x grid points.", minimum=1, maximum=128
    )
    overlap: float = config.option(
        0.8, "Smallest IoU that the network predicts for a mask.", minimum=0
    )
    stability: float = config.option(
        0.9, "Smallest IoU of the masks at logits above +1 and -1.", minimum=0, maximum=1
    )
    same: float = config.option(
        0.8, "Masks with a larger IoU are duplicates; the better one stays.", minimum=0, maximum=1
    )
    regions: SegmentationConfig = config.section(SegmentationConfig, "The classical regions.")

    @property
    def maker(self) -> str:
        """The settings that the masks depend on, as part of their key in the cache."""
        if not self.source:
            return f"regions {config.flatten(self.regions)} most={self.most}"
        limits = (self.most, self.grid, self.overlap, self.stability, self.same)
        return f"sam {self.source} {limits}"


class MaskMaker:
    """Maker of masks (K, H, W) bool, the largest first. It opens its network when first needed."""

    def __init__(self, cfg: MaskConfig) -> None:
        self.cfg = cfg
        self._cache = Cache(Path(cfg.folder).expanduser()) if cfg.folder else None
        self._sam: Sam | None = None

    def __call__(self, image: U8) -> Masks:
        """Return the masks of an image (H, W, 3) uint8 RGB, from the cache if they are there.

        If the image is larger than cfg.longest_px, the masks have the size of the reduced image.
        """
        image = self._reduced(image)
        if self._cache is None:
            return self._made(image)
        key = Key(digest(image), self.cfg.maker, self.cfg.revision)
        if key not in self._cache:
            self._cache.write_masks(key, self._made(image))
        return self._cache.read_masks(key)

    def _reduced(self, image: U8) -> U8:
        height, width = image.shape[:2]
        longest = self.cfg.longest_px
        if not longest or max(height, width) <= longest:
            return image
        scale = longest / max(height, width)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)

    def _made(self, image: U8) -> Masks:
        if self.cfg.source:
            self._sam = self._sam or open_sam(self.cfg)
            masks = sam_masks(self._sam, image, self.cfg)
        else:
            labels = segment(image, config=self.cfg.regions)
            masks = labels[None] == np.arange(1, labels.max() + 1)[:, None, None]
        size = masks.sum(axis=(1, 2))
        order = np.argsort(-size, kind="stable")[: self.cfg.most]
        return np.ascontiguousarray(masks[order[size[order] > 0]])


def sam_masks(sam: Sam, image: U8, cfg: MaskConfig) -> Masks:
    """Return masks (K, H, W) of an image (H, W, 3) uint8 RGB by Segment Anything.

    The network is prompted at a grid of points. Masks of low predicted IoU or low stability are
    left out, and so are duplicates.
    """
    device = next(sam.parameters()).device
    tensor = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[:2]
    ys = (torch.arange(cfg.grid, device=device) + 0.5) * height / cfg.grid - 0.5
    xs = (torch.arange(cfg.grid, device=device) + 0.5) * width / cfg.grid - 0.5
    points = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    accepted, scores = [], []
    for logits, score in sam(tensor, points):
        inner, outer = (logits > 1).sum(dim=(1, 2)), (logits > -1).sum(dim=(1, 2))
        good = (score >= cfg.overlap) & (inner >= cfg.stability * outer) & (inner > 0)
        accepted.append((logits[good] > 0).cpu().numpy())
        scores.append(score[good].cpu().numpy())
    masks, score = np.concatenate(accepted), np.concatenate(scores)
    if not len(masks):
        return masks
    return masks[distinct(masks, score, cfg.same)]


def distinct(masks: Masks, score: NDArray[np.floating], same: float) -> NDArray[np.intp]:
    """Return the indices of the masks (K, H, W) without duplicates; the better one of two stays.

    Masks are taken greedily by score (K,), larger is better. same: the IoU above which two masks
    are duplicates.
    """
    order = np.argsort(-score, kind="stable")
    # Every fourth pixel is enough to estimate the IoU.
    flat = masks[order].reshape(len(masks), -1)[:, ::4].astype(np.float32)
    both = flat @ flat.T
    size = np.diagonal(both)
    alike = both > same * np.maximum(size[:, None] + size[None] - both, 1)
    selected: list[int] = []
    for k in range(len(order)):
        if not alike[k, selected].any():
            selected.append(k)
    return order[selected]


def as_layers(masks: Masks) -> NDArray[np.int32]:
    """Return overlapping masks (K, H, W) as layers (L, H, W) of mask numbers 1..K; 0 is no mask.

    Each mask goes as a whole into the first layer in which it overlaps no other, so that there are
    few layers. There is at least one.
    """
    layers = [np.zeros(masks.shape[1:], np.int32)]
    for number, mask in enumerate(masks, start=1):
        for layer in layers:
            if not layer[mask].any():
                break
        else:
            layer = np.zeros(masks.shape[1:], np.int32)
            layers.append(layer)
        layer[mask] = number
    return np.stack(layers)


def stacked(images: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Return the layers (L_i, H, W) of several images as one array (N, max L, H, W), padded with 0.

    Raises TrainingError for images of different sizes.
    """
    if len({layers.shape[1:] for layers in images}) != 1:
        raise TrainingError("Masks of one batch have different sizes: resize them alike first.")
    most = max(len(layers) for layers in images)
    return np.stack([np.pad(part, ((0, most - len(part)), (0, 0), (0, 0))) for part in images])
