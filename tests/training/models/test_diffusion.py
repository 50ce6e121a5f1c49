# SPDX-License-Identifier: Apache-2.0
"""DepthMaster's parts: target, losses with golden values, Fourier block, the one-step network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")

from safetensors.torch import save_file

from depth_node import config
from tests.helpers.torch_networks import (
    add_index,
    add_text_encoder,
    small_diffusion,
)
from training.checkpoints import TrainingError
from training.losses import targets
from training.models import alignment, diffusion, stable_diffusion
from training.models.diffusion import DiffusionConfig, SingleStep, open_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like Stable Diffusion 2, with small networks and a finished prompt."""
    made = tmp_path_factory.mktemp("sd2")
    network = small_diffusion()
    network.unet.save_pretrained(made / "unet")
    network.vae.save_pretrained(made / "vae")
    save_file({"prompt": torch.full((1, 5, 8), 0.5)}, str(made / stable_diffusion.PROMPT_FILE))
    return made


def opened(source: Path, **more: object) -> SingleStep:
    return open_diffusion(DiffusionConfig(source=str(source), **more)).eval()


# --- target ---------------------------------------------------------------------------


def test_the_target_spans_its_quantiles() -> None:
    depth = torch.linspace(1, 16, 64).view(1, 1, 8, 8)
    everywhere = torch.ones_like(depth, dtype=torch.bool)
    scaled = targets.target(depth, everywhere)
    y = depth.rsqrt()
    low, high = torch.quantile(y, 0.02), torch.quantile(y, 0.98)
    assert float(scaled.low) == pytest.approx(float(low))
    torch.testing.assert_close(scaled.values, (2 * (y - low) / (high - low) - 1).clamp(-1, 1))
    assert float(scaled.values.max()) == 1 and float(scaled.values.min()) == -1
    # A scale of the depth is nothing to the target, in every space.
    for space in targets.SPACES:
        a, b = (targets.target(s * depth, everywhere, space).values for s in (1, 7))
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)
    near = targets.target(depth, everywhere, "depth").values
    assert float(near[0, 0, 0, 0]) == -1 and float(scaled.values[0, 0, 0, 0]) == 1


def test_what_is_not_known_is_not_in_the_target() -> None:
    depth = torch.linspace(1, 16, 64).view(1, 1, 8, 8)
    mask = torch.ones_like(depth, dtype=torch.bool)
    clean = targets.target(depth[:, :, :7], mask[:, :, :7]).values
    for poison in (torch.nan, torch.inf, 0.0, -1.0):
        bad = depth.clone()
        bad[:, :, 7] = poison
        scaled = targets.target(bad, mask)
        assert not scaled.mask[:, :, 7].any() and scaled.mask[:, :, :7].all()
        torch.testing.assert_close(scaled.values[:, :, :7], clean)
        assert (scaled.values[:, :, 7] == -1).all()
    flat = targets.target(torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool))
    assert not flat.mask.any() and torch.isfinite(flat.values).all()


def test_a_picture_smaller_than_a_patch_of_the_external_encoder() -> None:
    assert alignment.external_size(480, 640, 14) == (420, 560)
    with pytest.raises(TrainingError, match=r"smaller than a patch.*loss\.align=0"):
        alignment.external_size(7, 64, 14)


# --- the network ---------------------------------------------------------------------------------


def test_the_fourier_block_starts_as_nothing_and_learns() -> None:
    torch.manual_seed(0)
    block = diffusion.FourierEnhancement(16)
    for size in ((6, 8), (5, 7), (1, 1)):
        x = torch.randn(2, 16, *size)
        torch.testing.assert_close(block(x), x)
    slopes = torch.autograd.grad(block(torch.randn(2, 16, 6, 8)).square().sum(), block.fuse.weight)
    assert float(slopes[0].abs().max()) > 0
    torch.nn.init.normal_(block.fuse.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(block(torch.randn(1, 16, 5, 7))).all()
    # A plain network and one with a fresh block answer alike.
    plain, enhanced = small_diffusion(), small_diffusion(fourier=True)
    enhanced.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(plain.map(images), enhanced.map(images))


def test_one_step_is_deterministic_frozen_outside_the_unet_and_of_the_right_shapes() -> None:
    network = small_diffusion()
    assert not any(p.requires_grad for p in network.vae.parameters())
    assert all(p.requires_grad for p in network.unet.parameters())
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        first, again = network(images), network(images)
        answer = network.answer(images)
    assert first.shape == (2, 1, 16, 24) and torch.equal(first, again)
    torch.testing.assert_close(answer.disparity, first)
    assert answer.features.shape == (2, network.channels, 4, 6)
    assert network.spec.multiple_px == 2
    latent = network.encode(images)
    for layer, channels in (("mid", 16), ("down1", 8), ("down2", 16)):
        assert network.step(latent, layer).features.shape[1] == channels
    with pytest.raises(TrainingError, match="multiples"):
        network(torch.zeros(1, 3, 15, 24))


def test_gradients_reach_the_unet_through_the_decoder_and_checkpointing_changes_nothing() -> None:
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    gradients = []
    for checkpointing in (False, True):
        network = small_diffusion(checkpointing=checkpointing, fourier=True).train()
        cost = network.decode(network.predict(network.encode(images)).latent).square().mean()
        gradients.append(torch.autograd.grad(cost, network.unet.conv_in.weight)[0])
    assert float(gradients[0].abs().max()) > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("space", targets.SPACES)
def test_disparity_undoes_the_space(space: str) -> None:
    network = small_diffusion(space=space)
    depth = 1 + 4 * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled = targets.target(depth, torch.ones_like(depth, dtype=torch.bool), space)
    for _ in range(400):
        network.observe(scaled)
    inner = scaled.values.abs() < 1
    disparity, truth = network.disparity(scaled.values)[inner], (1 / depth)[inner]
    terms = torch.stack([torch.ones_like(disparity), disparity], 1)
    fit = torch.linalg.lstsq(terms, truth).solution
    torch.testing.assert_close(terms @ fit, truth, atol=2e-3, rtol=0)
    assert float(fit[1]) > 0  # large = near


def test_overflow_of_the_decoder_in_half_precision_is_named_with_its_cure() -> None:
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    for switch in (False, True):
        network = small_diffusion(decoder_fp32=switch)
        with torch.no_grad():
            network.vae.post_quant_conv.weight.mul_(1e6)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
            latent = network.predict(network.encode(images)).latent
            assert torch.isfinite(latent).all()
            if switch:
                assert torch.isfinite(network.decode(latent)).all()
            else:
                with pytest.raises(TrainingError, match=r"float16.*decoder_fp32=true"):
                    network.decode(latent)
    with pytest.raises(TrainingError, match="U-Net"):
        small_diffusion().decode(torch.full((1, 4, 8, 8), torch.nan))


def test_other_paradigms() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    once, four = small_diffusion(), small_diffusion(paradigm="iterative")
    with torch.no_grad():
        latent = once.encode(images)
        for _ in range(diffusion.ITERATIONS):
            latent = once.step(latent).latent
        torch.testing.assert_close(four.predict(four.encode(images)).latent, latent)
    denoising = small_diffusion(paradigm="denoising", denoise_steps=2)
    assert denoising.unet.conv_in.in_channels == 8
    with torch.no_grad():
        a, b = denoising(images), denoising(images)
    assert torch.equal(a, b) and torch.isfinite(a).all()
    latent = denoising.encode(images)
    mask = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    cost = denoising.denoising_loss(latent, latent, mask)
    assert torch.isfinite(cost) and cost.requires_grad


def test_the_arithmetic_of_stable_diffusion_2() -> None:
    """865,910,724 parameters; with AdamW in float32 they leave 10 GiB of 24 for activations."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=96,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        )
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724
    assert unet.config.block_out_channels[-1] == 1280
    gib = diffusion.memory(unet)
    assert gib["total"] == pytest.approx(4 * gib["weights"])
    assert gib["total"] < 13.0


# --- opening -------------------------------------------------------------------------------------


def test_a_folder_opens_with_its_weights_and_its_prompt(folder: Path) -> None:
    network, same = opened(folder), small_diffusion()
    assert torch.equal(network.unet.conv_in.weight, same.unet.conv_in.weight)
    assert torch.equal(network.prompt, torch.full((1, 5, 8), 0.5))
    assert "prompt" in network.state_dict()  # so that checkpoints need no text encoder


def test_the_empty_prompt_comes_from_the_text_encoder(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "sd2"
    shutil.copytree(folder, copy)
    (copy / stable_diffusion.PROMPT_FILE).unlink()
    with pytest.raises(TrainingError, match=r"empty prompt.*text_encoder/"):
        opened(copy)
    add_text_encoder(copy)
    add_index(copy)
    prompt = opened(copy).prompt
    assert prompt.shape == (1, 7, 8) and torch.isfinite(prompt).all()


def test_the_empty_prompt_is_of_the_same_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the U-Net and the autoencoder, which are fetched beside it."""
    import diffusers

    given: dict[str, object] = {}

    def fetch(source: str, **arguments: object) -> None:
        given.update(arguments)
        raise OSError("no connection")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "from_pretrained", fetch)
    cfg = DiffusionConfig(source="someone/sd2", allow_download=True, revision="abc")
    with pytest.raises(TrainingError, match="empty prompt"):
        stable_diffusion._empty_prompt(cfg)
    assert given["revision"] == "abc"


@pytest.mark.parametrize(("part", "content"), [("unet", "U-Net"), ("vae", "autoencoder")])
def test_a_missing_part_is_named(folder: Path, tmp_path: Path, part: str, content: str) -> None:
    copy = tmp_path / "sd2"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / part)
    with pytest.raises(TrainingError, match=rf"{content} is missing.*{part}/"):
        opened(copy)
    # Described, but without its weights.
    (copy / part).mkdir()
    shutil.copy(folder / part / "config.json", copy / part)
    with pytest.raises(TrainingError, match=rf"{part} cannot be opened.*safetensors"):
        opened(copy)


def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="allow_download=true"):
        opened(tmp_path / "absent")


def test_the_unet_of_another_task_or_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "sd2"
    shutil.copytree(folder, copy)
    wide = small_diffusion(paradigm="denoising").unet  # eight channels in, as Marigold's
    wide.register_to_config(in_channels=8)
    wide.save_pretrained(copy / "unet")
    with pytest.raises(TrainingError, match="takes 8 and gives 4 channels"):
        opened(copy)
    small_diffusion(prompt_width=16).unet.save_pretrained(copy / "unet")
    with pytest.raises(TrainingError, match="8 wide and its U-Net takes 16"):
        opened(copy)
    # Weights that do not belong to the description beside them.
    shutil.copy(folder / "unet" / "config.json", copy / "unet" / "config.json")
    with pytest.raises(TrainingError, match="unet"):
        opened(copy)


def test_settings_that_contradict_themselves() -> None:
    with pytest.raises(config.ConfigError, match="multiples of 8"):
        DiffusionConfig(unet_widths=(12, 16))
    with pytest.raises(config.ConfigError, match="multiples of 8"):
        DiffusionConfig(vae_widths=(8,))
