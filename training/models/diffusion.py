# SPDX-License-Identifier: Apache-2.0
"""DepthMaster (arXiv 2501.02576): a Stable Diffusion that predicts depth in one step.

The autoencoder is frozen; the U-Net, always at t = 1 and with the empty prompt, maps the latent of
an image to the latent of its depth. Images enter as (N, 3, H, W) in -1..1; the output is a map
(N, 1, H, W), nominally in -1..1, in one of SPACES. diffusers supplies the networks. Nothing is
downloaded unless `allow_download` is set. Comments say where the paper gives nothing or its
published code differs from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from training import checkpoints
from training.checkpoints import TrainingError
from training.losses.diffusion import masked_mse
from training.losses.targets import SPACES, Target
from training.models.hub import HubSource
from training.models.network_io import NetworkInput, NetworkOutput
from training.models.stable_diffusion import stable_diffusion_parts

FEATURE_LAYERS = ("mid", "down1", "down2")
PARADIGMS = ("single", "iterative", "denoising")
TIMESTEP = 1
ITERATIONS = 4  # passes of the iterative paradigm (table II)


@dataclass(frozen=True)
class DiffusionConfig(HubSource):
    """The diffusion model and how it is used."""

    source: str = config.option(
        "",
        "Folder of a Stable Diffusion 2 (unet/, vae/, text_encoder/, tokenizer/), or its id on the"
        " Hugging Face hub; empty: the small networks below, with random weights.",
    )
    unet_widths: tuple[int, ...] = config.option(
        (32, 64, 64), "Without source: channels of the U-Net's levels; multiples of 8.", minimum=8
    )
    vae_widths: tuple[int, ...] = config.option(
        (16, 32, 32), "Without source: channels of the autoencoder's levels; multiples of 8.",
        minimum=8,
    )  # fmt: skip
    prompt_width: int = config.option(
        32, "Without source: width of the empty prompt's embedding.", minimum=1
    )
    space: str = config.option("sqrt_disparity", "What is predicted (table III).", choices=SPACES)
    paradigm: str = config.option(
        "single",
        "One step; the U-Net's output fed back to it four times; or denoising (table II).",
        choices=PARADIGMS,
    )
    denoise_steps: int = config.option(10, "Steps of the denoising paradigm.", minimum=1)
    fourier: bool = config.option(False, "Fourier Enhancement behind the U-Net's middle block.")
    checkpointing: bool = config.option(
        False, "Save memory: compute activations of U-Net and decoder anew in the backward pass."
    )
    decoder_fp32: bool = config.option(
        False, "Run the autoencoder in float32 whatever loop.precision is."
    )

    def __post_init__(self) -> None:
        config.validate(self)
        for name in ("unet_widths", "vae_widths"):
            widths = getattr(self, name)
            if len(widths) < 2 or any(width % 8 for width in widths):
                raise config.ConfigError(f"{name} needs two or more multiples of 8, got {widths}")


class FourierEnhancement(nn.Module):
    """Fourier Enhancement: convolutions of amplitude and phase, beside a spatial branch.

    The published block has no outer residual. Ours adds its output to its input, through a last
    convolution that starts at zero, so that stage 2 starts with the function that stage 1 learnt.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

        def conv(inputs: int, size: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, channels, size, padding=size // 2)

        self.norm = nn.GroupNorm(8, channels)
        self.enter = conv(channels, 3)
        self.amplitude, self.phase = conv(channels, 3), conv(channels, 3)
        self.leave = conv(channels, 1)
        self.spatial = nn.Sequential(conv(channels, 3), nn.SiLU(), conv(channels, 3))
        self.fuse = conv(2 * channels, 1)
        nn.init.zeros_(self.fuse.weight)
        nn.init.zeros_(self.fuse.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return enhanced features of features (N, C, h, w), of the same shape."""
        x0 = self.norm(x)
        u = functional.silu(self.enter(x0))
        # An FFT in half precision exists only for some sizes and devices.
        spectrum = torch.fft.rfft2(u.float(), norm="ortho")
        amplitude = functional.silu(self.amplitude(spectrum.abs().to(u.dtype))).float()
        phase = functional.silu(self.phase(spectrum.angle().to(u.dtype))).float()
        turned = torch.complex(amplitude * phase.cos(), amplitude * phase.sin())
        v = torch.fft.irfft2(turned, s=u.shape[-2:], norm="ortho").to(u.dtype)
        frequency = self.leave(v + u)
        spatial = self.spatial(x0) + x0
        out: Tensor = x + self.fuse(torch.cat([spatial, frequency], dim=1))
        return out


@dataclass(frozen=True)
class Step:
    """Output of one pass of the U-Net: the latent of depth, and features if requested."""

    latent: Tensor
    features: Tensor | None


class SingleStep(nn.Module):
    """The network of DepthMaster: U-Net and autoencoder of diffusers, from image to map of `space`.

    Like every network here it has `spec`, `forward` (disparity, large = near) and `answer`.
    """

    teacher_only = True
    """Refused by `export`: 900 million parameters and Fourier transforms are not for a robot."""
    prompt: Tensor
    offset: Tensor
    latent_scale: Tensor

    def __init__(self, unet: Any, vae: Any, prompt: Tensor, cfg: DiffusionConfig) -> None:
        super().__init__()
        self.unet, self.vae, self.cfg = unet, vae.requires_grad_(False), cfg
        self.register_buffer("prompt", prompt)
        # Mean low / (high - low) of the targets seen in training. `disparity` needs it to undo the
        # scaling to -1..1 before it squares or inverts, as the network does not know that of an
        # image.
        self.register_buffer("offset", torch.tensor(0.5))
        # The factor that gives latents a variance of about 1, from Stable Diffusion's configuration
        # or, for our own autoencoder, measured by `observe_latents`. Without it the weight of the
        # latent loss could not be compared with the weights of other terms.
        self.register_buffer("latent_scale", torch.tensor(float(vae.config.scaling_factor)))
        self.channels: int = unet.config.block_out_channels[-1]
        self.latent_px = 2 ** (len(vae.config.block_out_channels) - 1)
        self.spec = NetworkInput((0.5,) * 3, (0.5,) * 3, self.latent_px)
        self.fourier = FourierEnhancement(self.channels) if cfg.fourier else None
        if cfg.checkpointing:
            unet.enable_gradient_checkpointing()
            vae.enable_gradient_checkpointing()

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W) in -1..1 to scaled latents (N, 4, h, w).

        The mean of the latent distribution is taken, no sample. Raises TrainingError if the sides
        are not multiples of a latent cell.
        """
        if min(images.shape[-2:]) < self.latent_px or any(
            side % self.latent_px for side in images.shape[-2:]
        ):
            height, width = images.shape[-2:]
            raise TrainingError(
                f"An image of {height}x{width} does not fit latent cells of {self.latent_px} px:"
                " give sides that are multiples of it."
            )
        with self._autoencoder_precision(images):
            mean: Tensor = self.vae.encode(self._wide(images)).latent_dist.mean
        return mean * self.latent_scale

    def decode(self, latent: Tensor) -> Tensor:
        """Decode scaled latents (N, 4, h, w) to maps (N, 1, H, W) float32, not clipped.

        A map is the mean of the three decoded channels. Raises TrainingError if it holds NaN or
        infinity, mostly because half precision overflowed.
        """
        with self._autoencoder_precision(latent):
            decoded: Tensor = self.vae.decode(self._wide(latent / self.latent_scale)).sample
        if not torch.isfinite(decoded).all():
            half = decoded.dtype in (torch.float16, torch.bfloat16)
            if half and torch.isfinite(latent).all():
                raise TrainingError(
                    f"The decoder overflowed in {str(decoded.dtype).removeprefix('torch.')} (its"
                    " answer holds NaN or infinity): set diffusion.decoder_fp32=true."
                )
            raise TrainingError(
                "The decoder's answer holds NaN or infinity, because the U-Net's does: lower"
                " loop.learning_rate, or use loop.precision=bf16 or fp32."
            )
        return decoded.float().mean(dim=1, keepdim=True)

    def _wide(self, x: Tensor) -> Tensor:
        return x.float() if self.cfg.decoder_fp32 else x

    def _autoencoder_precision(self, x: Tensor) -> Any:
        if not self.cfg.decoder_fp32:
            return nullcontext()
        return torch.autocast(x.device.type, enabled=False)

    def step(self, latent: Tensor, layer: str = "", timestep: Tensor | None = None) -> Step:
        """Run the U-Net once; with `layer`, one of FEATURE_LAYERS, also return its features."""
        captured: list[Tensor] = []

        def enhance(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if layer == "mid":
                captured.append(output)
            return output if self.fourier is None else self.fourier(output)

        def capture(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> None:
            captured.append(output[0])

        hooks = [self.unet.mid_block.register_forward_hook(enhance)]
        if layer in ("down1", "down2"):
            block = self.unet.down_blocks[int(layer[-1]) - 1]
            hooks.append(block.register_forward_hook(capture))
        try:
            t = latent.new_full((len(latent),), TIMESTEP).long() if timestep is None else timestep
            prompt = self.prompt.expand(len(latent), -1, -1)
            answer: Tensor = self.unet(latent, t, encoder_hidden_states=prompt).sample
        finally:
            for hook in hooks:
                hook.remove()
        return Step(answer, captured[-1] if captured else None)

    def predict(self, latent: Tensor, layer: str = "") -> Step:
        """Predict the latent of depth from the latent of the image, by the paradigm.

        The denoising paradigm returns no features.
        """
        if self.cfg.paradigm == "single":
            return self.step(latent, layer)
        if self.cfg.paradigm == "iterative":
            step = Step(latent, None)
            for _ in range(ITERATIONS):
                step = self.step(step.latent, layer)
            return step
        return Step(self._denoise(latent), None)

    def _denoise(self, latent: Tensor) -> Tensor:
        """Denoise to the latent of depth, conditioned on that of the image.

        The initial noise is the same at every call.
        """
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(_noise().config, timestep_spacing="trailing")
        scheduler.set_timesteps(self.cfg.denoise_steps, device=latent.device)
        drawn = torch.randn(
            latent.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float32
        )
        noisy = drawn.to(latent.device, latent.dtype).expand_as(latent)
        for t in scheduler.timesteps:
            now = t.expand(len(latent))
            velocity = self.step(torch.cat([latent, noisy], dim=1), timestep=now).latent
            noisy = scheduler.step(velocity, t, noisy).prev_sample
        return noisy

    def denoising_loss(self, latent: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of the denoising paradigm over the valid cells.

        The squared error of the velocity at a random timestep (Marigold).
        """
        scheduler = _noise()
        steps = scheduler.config["num_train_timesteps"]
        t = torch.randint(0, steps, (len(latent),), device=latent.device)
        noise = torch.randn_like(truth)
        noisy = scheduler.add_noise(truth, noise, t)
        velocity = self.step(torch.cat([latent, noisy.to(latent.dtype)], dim=1), timestep=t).latent
        return masked_mse(velocity, scheduler.get_velocity(truth, noise, t), mask)

    def map(self, images: Tensor) -> Tensor:
        """Predict the map (N, 1, H, W) of `space`, clipped to -1..1, of images in -1..1."""
        return self.decode(self.predict(self.encode(images)).latent).clamp(-1, 1)

    @torch.no_grad()
    def observe(self, target_map: Target) -> None:
        """Update `offset`, the running mean that `disparity` needs, from training targets."""
        span = target_map.high - target_map.low
        usable = span > 0
        if usable.any():
            ratio = (target_map.low / span.clamp_min(1e-6))[usable].mean()
            self.offset.lerp_(ratio.to(self.offset), 0.02)

    @torch.no_grad()
    def observe_latents(self, latents: Tensor) -> None:
        """Update `latent_scale`, which makes the standard deviation of latents 1.

        latents (N, 4, h, w): unscaled.
        """
        deviation = latents.float().std().clamp_min(1e-6)
        self.latent_scale.lerp_((1 / deviation).to(self.latent_scale), 0.02)

    def disparity(self, values: Tensor) -> Tensor:
        """Convert maps of `space` in -1..1 to relative disparity, large = near.

        Exact up to scale if the range of the image equals the mean range of training (`offset`).
        The paper aligns in its own space instead, which needs no mean (evaluation sqrt_disp_ls).
        """
        relative = (values + 1) / 2
        offset = self.offset.clamp_min(0)
        if self.cfg.space == "disparity":
            return relative
        if self.cfg.space == "sqrt_disparity":
            return (relative + offset) ** 2
        return 1.0 / (relative + offset.clamp_min(0.05))

    def forward(self, images: Tensor) -> Tensor:
        """Return relative disparity (N, 1, H, W) of images normalised by `spec` (-1..1)."""
        return self.disparity(self.map(images))

    def answer(self, images: Tensor) -> NetworkOutput:
        """Return disparity and the features of the U-Net's middle block.

        The denoising paradigm has none; the latent of depth is returned instead.
        """
        step = self.predict(self.encode(images), "mid")
        features = step.features if step.features is not None else step.latent
        return NetworkOutput(self.disparity(self.decode(step.latent).clamp(-1, 1)), None, features)

    def reconstruct(self, values: Tensor) -> Tensor:
        """Encode and decode maps (N, 1, H, W) in -1..1: what the autoencoder loses (table II)."""
        return self.decode(self.encode(values.expand(-1, 3, -1, -1)))


def _noise() -> Any:
    """Return Stable Diffusion 2's noise schedule with zero terminal SNR; it predicts velocity."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
    )


def open_diffusion(cfg: DiffusionConfig) -> SingleStep:
    """Open the network of the settings. Raises TrainingError if parts are missing or do not fit."""
    unet, vae, prompt = _random_parts(cfg) if not cfg.source else stable_diffusion_parts(cfg)
    if cfg.paradigm == "denoising":
        _widen(unet)
    return SingleStep(unet, vae, prompt, cfg)


def from_checkpoint(content: Mapping[str, Any], where: object = "the checkpoint") -> SingleStep:
    """Return the network of a run of depthmaster, in eval mode.

    content: from checkpoints.read. Raises TrainingError for a run of another recipe.
    """
    if content["recipe"] != "depthmaster":
        raise TrainingError(
            f"The run in {where} is of the recipe {content['recipe']}, not of depthmaster: give one"
            " that trained a diffusion network."
        )
    network = open_diffusion(config.build(DiffusionConfig, content["settings"]["diffusion"]))
    checkpoints.load(network, {**unscaled(network), **content["averaged"]}, where)
    return network.eval()


def unscaled(network: SingleStep) -> dict[str, Tensor]:
    """Return the `latent_scale` that runs lack which were written before latents were scaled.

    It is the fresh network's: 1 for the small networks, as those runs had.
    """
    return {"latent_scale": network.latent_scale}


def open_run(path: Path) -> SingleStep:
    """Return the network of a run folder of recipe depthmaster, in eval mode."""
    return from_checkpoint(checkpoints.read(path), path)


def _random_parts(cfg: DiffusionConfig) -> tuple[Any, Any, Tensor]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    levels = len(cfg.unet_widths)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=cfg.unet_widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=cfg.prompt_width,
        # Despite its name diffusers takes this as the number of heads.
        attention_head_dim=tuple(max(width // 16, 1) for width in cfg.unet_widths),
        norm_num_groups=8,
        use_linear_projection=True,
    )
    depth = len(cfg.vae_widths)
    vae = AutoencoderKL(
        block_out_channels=cfg.vae_widths,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    return unet, vae, torch.zeros(1, 1, cfg.prompt_width)


@torch.no_grad()
def _widen(unet: Any) -> None:
    """Double the input channels for image and noisy depth; each half gets half of the weights."""
    old = unet.conv_in
    wide = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, padding=old.padding)
    wide.weight.copy_(torch.cat([old.weight, old.weight], dim=1) / 2)
    wide.bias.copy_(old.bias)  # type: ignore[union-attr]
    unet.conv_in = wide


def memory(model: nn.Module) -> dict[str, float]:
    """Return the GiB that a model takes in training, without activations.

    Weights as they are stored, and float32 gradients and AdamW's two moments of those that learn.
    """
    gib = 2.0**30
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / gib
    learnt = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad) / gib
    return {
        "weights": weights,
        "gradients": learnt,
        "optimiser": 2 * learnt,
        "total": weights + 3 * learnt,
    }
