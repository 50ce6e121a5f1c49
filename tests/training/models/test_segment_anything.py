# SPDX-License-Identifier: Apache-2.0
"""Segment Anything, which makes masks."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from tests.helpers.torch_networks import tiny_sam
from training.checkpoints import TrainingError
from training.data.region_masks import MaskConfig
from training.models.segment_anything import open_sam


def test_points_land_where_they_are_meant(tmp_path: Path) -> None:
    """Points at the same relative place of images of two sizes give the network the same prompt."""
    sam = open_sam(MaskConfig(source=str(tiny_sam(tmp_path, "sam2"))))
    prompts = []
    real = sam.network.forward

    def listening(**inputs: torch.Tensor) -> object:
        prompts.append(inputs["input_points"].clone())
        return real(**inputs)

    sam.network.forward = listening
    for height, width in ((48, 64), (96, 32)):
        middle = torch.tensor([[(width - 1) / 2, (height - 1) / 2]])
        list(sam(torch.rand(1, 3, height, width), middle))
    assert [points.flatten().tolist() for points in prompts] == [[64, 64], [64, 64]]


def test_what_is_no_segment_anything_is_refused(tmp_path: Path) -> None:
    from training.models.networks import NetworkConfig, open_dino

    with pytest.raises(TrainingError, match="cannot be opened"):
        open_sam(MaskConfig(source=str(tmp_path / "nothing")))
    open_dino(NetworkConfig(kind="debug")).network.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="no Segment Anything"):
        open_sam(MaskConfig(source=str(tmp_path)))
