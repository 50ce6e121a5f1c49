# SPDX-License-Identifier: Apache-2.0
"""The parts of a Stable Diffusion 2, from a folder or the hub: U-Net, autoencoder, empty prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.checkpoints import TrainingError
from training.models.hub import HubSource

PROMPT_FILE = "empty_prompt.safetensors"


def stable_diffusion_parts(cfg: HubSource) -> tuple[Any, Any, Tensor]:
    """Open U-Net, autoencoder and empty prompt of a Stable Diffusion 2, each in its subfolder.

    The prompt is its embedding (1, 77, width). Raises TrainingError for parts that are missing or
    do not fit each other.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = Path(cfg.source)
    if not folder.is_dir() and not cfg.allow_download:
        raise TrainingError(
            f"There is no folder {cfg.source}: give one that holds a Stable Diffusion 2 (unet/,"
            " vae/, text_encoder/, tokenizer/), or say diffusion.allow_download=true to fetch it."
        )
    unet = _part(UNet2DConditionModel, "unet", cfg)
    vae = _part(AutoencoderKL, "vae", cfg)
    channels = vae.config.latent_channels
    unet_channels = (unet.config.in_channels, unet.config.out_channels)
    if unet_channels != (channels, channels):
        raise TrainingError(
            f"The U-Net in {cfg.source} takes {unet_channels[0]} and gives {unet_channels[1]}"
            f" channels, the latents here have {channels}: give the U-Net of a plain Stable"
            " Diffusion 2, not one changed for another task (Marigold's takes 8)."
        )
    prompt = _empty_prompt(cfg)
    width = unet.config.cross_attention_dim
    if prompt.shape[-1] != width:
        raise TrainingError(
            f"The empty prompt of {cfg.source} is {prompt.shape[-1]} wide and its U-Net takes"
            f" {width}: U-Net and text encoder are of different models, take both from one."
        )
    return unet, vae, prompt


def _part(cls: Any, name: str, cfg: HubSource) -> Any:
    local = Path(cfg.source).is_dir()
    if local and not (Path(cfg.source) / name / "config.json").is_file():
        part = {"unet": "U-Net", "vae": "autoencoder"}[name]
        raise TrainingError(
            f"The {part} is missing: {cfg.source}/{name} has no config.json; copy the folder"
            f" {name}/ of a Stable Diffusion 2 there."
        )
    arguments: dict[str, Any] = {
        "subfolder": name,
        "local_files_only": local or not cfg.allow_download,
        "use_safetensors": True,
        "low_cpu_mem_usage": False,  # True raises on missing keys without naming them
        "torch_dtype": torch.float32,
    }
    if not local:
        arguments["revision"] = cfg.revision
    try:
        model, info = cls.from_pretrained(cfg.source, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise TrainingError(
            f"{cfg.source}/{name} cannot be opened ({first}): it must hold config.json and"
            " diffusion_pytorch_model.safetensors of one network."
        ) from error
    lacks = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    lacks += [str(key) for key in info["mismatched_keys"]]
    if lacks:
        raise TrainingError(
            f"The weights in {cfg.source}/{name} are of another network than its config.json:"
            f" {lacks[0]} and {len(lacks) - 1} more do not fit; take both from one place."
        )
    return model


def _empty_prompt(cfg: HubSource) -> Tensor:
    """Return the embedding (1, 77, 1024) of "", from PROMPT_FILE or by the text encoder.

    It is stored in every checkpoint, so the text encoder is needed once only. Raises TrainingError
    without either.
    """
    folder = Path(cfg.source)
    if (folder / PROMPT_FILE).is_file():
        return next(iter(load_file(str(folder / PROMPT_FILE)).values())).float()
    from diffusers import StableDiffusionPipeline

    local = folder.is_dir()
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            cfg.source,
            local_files_only=local or not cfg.allow_download,
            **({} if local else {"revision": cfg.revision}),
            **dict.fromkeys(
                ("unet", "vae", "scheduler", "safety_checker", "feature_extractor", "image_encoder")
            ),
            requires_safety_checker=False,
        )
        with torch.no_grad():
            prompt, _ = pipe.encode_prompt("", "cpu", 1, False)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"The empty prompt of {cfg.source} cannot be made ({first}): it needs text_encoder/,"
            f" tokenizer/ and model_index.json, or the finished embedding in {PROMPT_FILE}."
        ) from error
    return prompt.detach().float()
