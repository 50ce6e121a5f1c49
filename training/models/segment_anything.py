# SPDX-License-Identifier: Apache-2.0
"""Segment Anything of transformers, which makes masks for training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoints import TrainingError
from training.models.hub import HubSource, from_pretrained
from training.models.network_io import IMAGENET_MEAN, IMAGENET_STD, NetworkInput

POINTS_AT_ONCE = 64


class Sam(nn.Module):
    """A Segment Anything (1, 2 or 2.1) of transformers: masks at points of an image."""

    spec = NetworkInput(IMAGENET_MEAN, IMAGENET_STD, 1)

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        # SAM keeps the image's aspect ratio and pads it below and right; SAM 2 stretches it.
        self.pads = network.config.model_type == "sam"
        self.side_px = int(network.prompt_encoder.input_image_size)

    @torch.no_grad()
    def forward(self, image: Tensor, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield candidate masks at points of an image, batch by batch of the points.

        image (1, 3, H, W) in 0..1; points (P, 2): (x, y) px. Yields logits (k, H, W), above 0
        inside, and the network's prediction (k,) of their IoU; three candidates per point.
        """
        height, width = image.shape[-2:]
        side = self.side_px
        if self.pads:
            factor = side / max(height, width)
            inner = (max(round(height * factor), 1), max(round(width * factor), 1))
        else:
            inner = (side, side)
        x = functional.interpolate(
            image, inner, mode="bilinear", align_corners=False, antialias=True
        )
        x = functional.pad(self.spec.normalise(x), (0, side - inner[1], 0, side - inner[0]))
        embeddings = self.network.get_image_embeddings(x)
        scale = points.new_tensor([inner[1] / width, inner[0] / height])
        for part in ((points + 0.5) * scale).split(POINTS_AT_ONCE):
            out = self.network(
                image_embeddings=embeddings,
                input_points=part[None, :, None].to(x.dtype),
                multimask_output=True,
            )
            logits = functional.interpolate(
                out.pred_masks[0], (side, side), mode="bilinear", align_corners=False
            )[..., : inner[0], : inner[1]]
            logits = functional.interpolate(
                logits, (height, width), mode="bilinear", align_corners=False
            )
            yield logits.flatten(0, 1), out.iou_scores[0].flatten()


def open_sam(cfg: HubSource) -> Sam:
    """Open a Segment Anything from a folder or the hub. Raises TrainingError if there is none."""
    from transformers import AutoConfig, Sam2Model, SamModel

    kind = from_pretrained(AutoConfig, cfg).model_type
    classes = {"sam": SamModel, "sam2": Sam2Model, "sam2_video": Sam2Model}
    if kind not in classes:
        raise TrainingError(
            f"The network in {cfg.source!r} is a {kind!r}, no Segment Anything; give one of"
            f" {', '.join(classes)}."
        )
    return Sam(from_pretrained(classes[kind], cfg))
