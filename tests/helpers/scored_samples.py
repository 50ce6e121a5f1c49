# SPDX-License-Identifier: Apache-2.0
"""Samples whose red channel holds the disparity, and a predictor that reads it."""

from __future__ import annotations

import numpy as np

from depth_node.prediction import Prediction
from training.data.samples import Sample

H, W = 24, 32


class Counting:
    """Predictor that returns the red channel as disparity and counts its calls."""

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, image: np.ndarray) -> Prediction:
        self.asked += 1
        return Prediction(image[..., 0].astype(np.float32) + 1, "disparity_affine_invariant")


def samples(count: int = 2) -> list[Sample]:
    rng = np.random.default_rng(3)
    made = []
    for k in range(count):
        depth = rng.uniform(1, 5, (H, W)).astype(np.float32)
        image = np.repeat((200 / depth).astype(np.uint8)[..., None], 3, axis=2)
        made.append(Sample(str(k), image, depth, source=f"s{k % 2}"))
    return made
