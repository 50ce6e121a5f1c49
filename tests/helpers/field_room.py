# SPDX-License-Identifier: Apache-2.0
"""A room of known depth, a network with smooth errors, and points measured in the room."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.fitting import FitConfig, FitResult
from depth_node.fitting.field.base import fit_base
from depth_node.fitting.field.features import FieldFeatures
from depth_node.fitting.field.kernels import kernels
from depth_node.fitting.field.points import merge_points
from depth_node.fitting.field.settings import WHOLE_METHOD, FieldAblation
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.metrics import NORMAL_95
from depth_node.prediction import Prediction
from tests.helpers.fits import fit

HEIGHT, WIDTH = 240, 320
FIELD = FitConfig(method="field")


@dataclass(frozen=True)
class Room:
    """A floor, a wall and two boxes. image uint8 RGB, depth float32 m, labels int32."""

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    labels: NDArray[np.int32]


def make_room() -> Room:
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    floor = 1.2 / np.maximum((rows - 0.4 * HEIGHT) / HEIGHT, 1e-3)
    depth = np.minimum(floor, 5.0 + 0.8 * cols / WIDTH)
    labels = np.where(floor < 5.0 + 0.8 * cols / WIDTH, 1, 2)
    colours = np.array([[0, 0, 0], [120, 90, 60], [180, 180, 170], [40, 60, 150], [60, 140, 50]])
    for label, (top, left, size, z) in enumerate([(70, 50, 60, 2.0), (110, 200, 75, 1.6)], start=3):
        depth[top : top + size, left : left + size] = z
        labels[top : top + size, left : left + size] = label
    shade = colours[labels] + np.random.default_rng(5).normal(0, 4, (HEIGHT, WIDTH, 1))
    image = np.clip(shade, 0, 255).astype(np.uint8)
    return Room(image, depth.astype(np.float32), labels.astype(np.int32))


def warp(seed: int, amplitude: float) -> NDArray[np.float64]:
    """Return a smooth factor (HEIGHT, WIDTH) over the image, like the error of a network."""
    coarse = np.random.default_rng(seed).normal(0, amplitude, (5, 6))
    return np.exp(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))


def network(room: Room, seed: int = 0, amplitude: float = 0.1) -> Prediction:
    """Return disparity of unknown scale and shift with a smooth error."""
    disparity = 3.0 / (room.depth * warp(seed, amplitude)) + 0.4
    return Prediction(disparity.astype(np.float32), "disparity_affine_invariant")


def measure(room: Room, count: int, seed: int = 1, area: Any = None) -> SparseDepth:
    """Return `count` random pixels of the truth, inside `area` (H, W) bool if it is given."""
    allowed = np.ones(room.depth.shape, bool) if area is None else area
    rows, cols = np.nonzero(allowed)
    chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
    rows, cols = rows[chosen], cols[chosen]
    return SparseDepth.from_arrays(rows, cols, room.depth[rows, cols])


def with_depth(points: SparseDepth, depth: NDArray[np.floating]) -> SparseDepth:
    return dataclasses.replace(points, depth=depth.astype(np.float32))


def error(result: FitResult, truth: NDArray[np.float32]) -> float:
    return float(np.nanmean(np.abs(result.depth - truth) / truth))


def solved(
    room: Room,
    points: SparseDepth,
    config: FitConfig = FIELD,
    *,
    prediction: Prediction | None = None,
    ablation: FieldAblation = WHOLE_METHOD,
) -> FitResult:
    return fit(
        prediction or network(room),
        points,
        room.labels,
        image=room.image,
        config=config,
        ablation=ablation,
    )


def inside(result: FitResult, truth: NDArray[np.float32], area: Any = None) -> float:
    within = np.abs(result.depth - truth) <= NORMAL_95 * result.std
    return float(within.mean() if area is None else within[area].mean())


def room_features(room: Room, points: SparseDepth) -> FieldFeatures:
    """Return the field's features for a frame of the room."""
    merged, _ = merge_points(points, room.depth.shape)
    base = fit_base(network(room), merged)
    return FieldFeatures.of(base, merged, room.labels, room.image, 0.5, WHOLE_METHOD, kernels())


def measured_pixels(features: FieldFeatures) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns (N,) of the points of the features, in their order."""
    position = features.points.feature[:, :2] * features.length_px
    rows, cols = np.round(position).astype(np.int64).T
    return rows, cols
