# SPDX-License-Identifier: Apache-2.0
"""Published diffusion networks as assistant teachers: Marigold, GenPercept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoints import TrainingError, is_run
from training.models.diffusion import DiffusionConfig, SingleStep, open_run
from training.models.network_io import NetworkInput
from training.models.stable_diffusion import stable_diffusion_parts


class Marigold(nn.Module):
    """A Marigold pipeline of diffusers as a teacher: images in 0..1 in, its maps out.

    One map is drawn, from noise that is the same for every image. `meaning` says whether it is
    depth or disparity. Raises TrainingError for a pipeline that gives anything else.
    """

    spec = NetworkInput((0.0,) * 3, (1.0,) * 3, 8)

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.unet, self.vae, self.text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
        self._pipe = (pipe,)  # in a tuple, because a pipeline is no module
        kind = pipe.config.get("prediction_type") or "depth"
        if kind not in ("depth", "disparity"):
            raise TrainingError(
                f"This Marigold gives {kind}, and a teacher gives depth or disparity: give another"
                " folder."
            )
        self.meaning = f"{kind}_affine_invariant"
        pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return maps (N, 1, H, W) in 0..1 of images (N, 3, H, W) in 0..1."""
        maps: Tensor = self._pipe[0](
            images,
            ensemble_size=1,
            processing_resolution=0,
            match_input_resolution=True,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).prediction
        return maps


class GenPercept(nn.Module):
    """A GenPercept as a teacher: images in -1..1 in, its maps in 0..1 out, one step, no noise.

    Its U-Net gets the latent of the image itself, at timestep 1 of a schedule of pure noise
    (beta 1), so that the predicted velocity is the negative of the map's latent. The prompt is
    empty and not padded (begin and end tokens). As in the authors' pipeline (aim-uofa/GenPercept
    afc1578b). Variants with a DPT head instead of the decoder are not supported.
    """

    def __init__(self, network: SingleStep, gives: str) -> None:
        super().__init__()
        self.network, self.spec = network, network.spec
        self.meaning = f"{gives}_affine_invariant"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return maps (N, 1, H, W) in 0..1: the nearest is 0 in depth, 1 in disparity."""
        velocity = self.network.step(self.network.encode(images)).latent
        return (self.network.decode(-velocity).clamp(-1, 1) + 1) / 2


def open_genpercept(cfg: DiffusionConfig, gives: str) -> GenPercept:
    """Open a folder of Stable Diffusion 2.1 whose unet/ is GenPercept's.

    gives: what its maps are, depth or disparity. Raises TrainingError for a variant with a DPT head
    and where parts are missing.
    """
    for head in ("dpt_head", "dpt_head_identity"):
        if (Path(cfg.source) / head).is_dir():
            raise TrainingError(
                f"{cfg.source} holds a GenPercept that answers through a DPT head ({head}/), which"
                " is not supported: take one that answers through the decoder (unet_depth_v2,"
                " unet_disparity_v2)."
            )
    unet, vae, prompt = stable_diffusion_parts(cfg)
    # The text encoder's attention is causal, so the padding after the end token does not change the
    # first two tokens.
    return GenPercept(SingleStep(unet, vae, prompt[:, :2], cfg), gives)


def open_assistant(
    source: str, allow_download: bool = False, revision: str = "main", gives: str = ""
) -> SingleStep | Marigold | GenPercept:
    """Open a diffusion network as a teacher: a run of depthmaster or a Marigold of diffusers.

    With `gives` (depth or disparity) `source` is a GenPercept. Raises TrainingError if it cannot be
    opened.
    """
    folder = Path(source)
    if gives:
        cfg = DiffusionConfig(source=source, allow_download=allow_download, revision=revision)
        return open_genpercept(cfg, gives)
    if is_run(folder):
        return open_run(folder)
    from diffusers import MarigoldDepthPipeline

    if not folder.is_dir() and not allow_download:
        raise TrainingError(
            f"There is no folder {source}: give a run of depthmaster or a folder that holds a"
            " Marigold (model_index.json), or allow the download."
        )
    try:
        pipe = MarigoldDepthPipeline.from_pretrained(
            source, local_files_only=folder.is_dir() or not allow_download, revision=revision
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise TrainingError(
            f"{source} cannot be opened as a Marigold ({first}): it must hold model_index.json,"
            " unet/, vae/, scheduler/, text_encoder/ and tokenizer/; of a GenPercept say what it"
            " gives (genpercept=depth or disparity)."
        ) from error
    return Marigold(pipe)
