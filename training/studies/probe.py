# SPDX-License-Identifier: Apache-2.0
"""Positive control of studies of pre-training: a ridge regression of log depth on the features of a
frozen MobileNetV2, with ImageNet's weights or random ones.

It learns in seconds from a hundred images. A recipe's networks that do not beat it have not learnt
what its images allow, and a set-up in which ImageNet's features do not beat random ones cannot
judge pre-training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional

from training.data.augmentation import Window
from training.data.samples import F32, F64, U8, Sample
from training.models.mobilenet import MobileNetV2, imagenet_weights
from training.models.network_io import IMAGENET_MEAN, IMAGENET_STD, PATCH_PX, NetworkInput

SIZE = (128, 192)  # of the images that the encoder sees
GRID = (16, 24)  # of the depth that is regressed: stride 8
PENALTIES = (1e2, 1e3, 1e4, 1e5)
HELD = 4  # every fourth scene chooses the penalty
SPEC = NetworkInput(IMAGENET_MEAN, IMAGENET_STD, PATCH_PX)


def encoder(weights: Path | None, seed: int) -> MobileNetV2:
    """A frozen MobileNetV2: of torchvision's file, or random by the seed."""
    torch.manual_seed(seed)
    network = MobileNetV2(SPEC).eval().requires_grad_(False)
    if weights is not None:
        network.load_state_dict(imagenet_weights(weights))
    return network


@torch.no_grad()
def features(image: U8, network: MobileNetV2 | None) -> F64:
    """(cells, channels) of an image (H, W, 3): features at strides 4 to 32 on GRID, and the cell's
    row and column; without a network these alone.
    """
    rows, columns = GRID
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    place = np.stack([x, y, x * x, y * y, x * y], axis=-1).reshape(rows * columns, -1)
    if network is None:
        return place
    small = Window.whole(image.shape, *SIZE).image(image)
    tensor = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
    taps = network(SPEC.normalise(tensor))[1:]
    same = [functional.interpolate(tap, GRID, mode="bilinear") for tap in taps]
    deep = torch.cat(same, dim=1)[0].flatten(1).T.numpy()
    return np.concatenate([place, deep], axis=1).astype(np.float64)


@dataclass(frozen=True)
class FeatureRegression:
    """A regression: features standardised by (mean, deviation), weights, the mean log depth."""

    network: MobileNetV2 | None
    mean: F64
    deviation: F64
    weights: F64
    level: float

    def depth(self, image: U8) -> F32:
        """Depth (H, W) m of an image (H, W, 3)."""
        standard = (features(image, self.network) - self.mean) / self.deviation
        log_depth = (standard @ self.weights + self.level).reshape(GRID).astype(np.float32)
        size = (image.shape[1], image.shape[0])
        full = cv2.resize(log_depth, size, interpolation=cv2.INTER_LINEAR)
        return np.exp(full.astype(np.float32))


def _ridge(x: F64, y: F64, penalty: float) -> F64:
    gram = x.T @ x + penalty * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(gram, x.T @ y), np.float64)


def fit(
    network: MobileNetV2 | None, samples: Sequence[Sample], views_per_scene: int
) -> FeatureRegression:
    """A probe fitted to samples with depth, its penalty chosen by every HELD-th scene of them."""
    rows, targets, held = [], [], []
    for k, sample in enumerate(samples):
        assert sample.depth is not None
        grid = Window.whole(sample.image.shape, *GRID).nearest(sample.depth)
        known = (np.isfinite(grid) & (grid > 0)).reshape(-1)
        rows.append(features(sample.image, network)[known])
        targets.append(np.log(grid.reshape(-1)[known].astype(np.float64)))
        held.append(np.full(int(known.sum()), (k // views_per_scene) % HELD == 0))
    x, y, judged = np.concatenate(rows), np.concatenate(targets), np.concatenate(held)
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
    level = float(y.mean())
    x, y = (x - mean) / deviation, y - level

    def error(penalty: float) -> float:
        weights = _ridge(x[~judged], y[~judged], penalty)
        return float(np.mean((x[judged] @ weights - y[judged]) ** 2))

    penalty = min(PENALTIES, key=error) if judged.any() and not judged.all() else PENALTIES[-1]
    return FeatureRegression(network, mean, deviation, _ridge(x, y, penalty), level)
