# SPDX-License-Identifier: Apache-2.0
"""Networks of random weights, small enough to be made in a test; need torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from torch import nn

from depth_node import config
from training.models.diffusion import DiffusionConfig, SingleStep, open_diffusion
from training.models.hub import DepthAnything
from training.models.networks import NetworkConfig, open_network
from training.models.unet import StudentConfig

SMALL_UNET = StudentConfig((8, 8, 16, 16, 16), (0, 1, 1, 1, 1), (16, 8, 8, 8))
SMALL_DIFFUSION = DiffusionConfig(unet_widths=(8, 16), vae_widths=(8, 8), prompt_width=8)


def debug() -> DepthAnything:
    torch.manual_seed(0)
    network = open_network(NetworkConfig(kind="debug"))
    assert isinstance(network, DepthAnything)
    return network.eval()


def awake(model: nn.Module) -> nn.Module:
    """Set the low-rank updates to random values, as after some training, and return the model."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def images(height: int = 56, width: int = 84) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def parameter_count(model: nn.Module, learnt: bool = False) -> int:
    """Return the number of parameters; with `learnt`, of those with a gradient."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not learnt)


def tiny_sam(folder: Path, kind: str) -> Path:
    """Save a Segment Anything of random weights into a folder by save_pretrained; return it."""
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
    for weight in network.mask_decoder.parameters():  # with smaller weights there is no mask
        torch.nn.init.normal_(weight, std=2.0)
    network.mask_decoder.iou_prediction_head.proj_out.bias.data.fill_(50.0)
    network.save_pretrained(folder)
    return folder


def small_diffusion(**more: object) -> SingleStep:
    torch.manual_seed(0)
    return open_diffusion(config.replace(SMALL_DIFFUSION, more)).eval()


def add_text_encoder(folder: Path) -> None:
    """Save a text encoder of a few parameters and a tokenizer of three words."""
    transformers = pytest.importorskip("transformers")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    shape = transformers.CLIPTextConfig(
        vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=7, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModel(shape).save_pretrained(folder / "text_encoder")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps(words))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 7})
    )


def add_index(folder: Path, pipeline: str = "StableDiffusionPipeline") -> None:
    """Write a pipeline's model_index.json, which names its parts."""
    parts = {
        "_class_name": pipeline,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(parts))
