# SPDX-License-Identifier: Apache-2.0
"""Segment Anything as a maker of masks."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from training.checkpoints import TrainingError
from training.data.region_masks import MaskConfig
from training.models.segment_anything import open_sam


def tiny_sam(folder: Path, kind: str) -> Path:
    """A Segment Anything of random weights in a folder, as save_pretrained leaves it."""
    import transformers as t

    torch.manual_seed(0)
    if kind == "sam":
        vision = t.SamVisionConfig(
            hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2,
            image_size=64, patch_size=8, window_size=4, global_attn_indexes=[1], mlp_dim=32,
            num_pos_feats=8,
        )  # fmt: skip
        decoder = t.SamMaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2,
            iou_head_depth=2, iou_head_hidden_dim=16,
        )  # fmt: skip
        prompt = t.SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8)
        parts = {"mask_decoder_config": decoder, "prompt_encoder_config": prompt}
        network = t.SamModel(t.SamConfig(vision_config=vision, **parts))
    else:
        backbone = t.Sam2HieraDetConfig(
            hidden_size=8, num_attention_heads=1, image_size=[128, 128],
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
            window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[3],
            window_positional_embedding_background_size=[2, 2],
        )  # fmt: skip
        vision = t.Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], fpn_hidden_size=16,
        )  # fmt: skip
        decoder = t.Sam2MaskDecoderConfig(
            hidden_size=16, mlp_dim=32, num_hidden_layers=2, num_attention_heads=2,
            iou_head_depth=2, iou_head_hidden_dim=16,
        )  # fmt: skip
        prompt = t.Sam2PromptEncoderConfig(hidden_size=16, image_size=128, patch_size=16)
        parts = {"mask_decoder_config": decoder, "prompt_encoder_config": prompt}
        network = t.Sam2Model(t.Sam2Config(vision_config=vision, **parts))
    for weight in network.mask_decoder.parameters():  # so small otherwise that no mask comes out
        torch.nn.init.normal_(weight, std=2.0)
    network.mask_decoder.iou_prediction_head.proj_out.bias.data.fill_(50.0)
    network.save_pretrained(folder)
    return folder


def test_points_land_where_they_are_meant(tmp_path: Path) -> None:
    """The network is told the same place for the same share of the image, whatever its size."""
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
