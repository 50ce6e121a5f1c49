# SPDX-License-Identifier: Apache-2.0
"""DepthMaster's parts: target, losses with golden values, Fourier block, the one-step network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")

from safetensors.torch import save_file

from depth_node import config
from training.checkpoints import TrainingError
from training.losses import diffusion as diffusion_losses
from training.models import assistants, diffusion
from training.models.diffusion import DiffusionConfig, SingleStep, open_diffusion

SMALL = DiffusionConfig(unet_widths=(8, 16), vae_widths=(8, 8), prompt_width=8)


def small(**more: object) -> SingleStep:
    torch.manual_seed(0)
    return open_diffusion(config.replace(SMALL, more)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like Stable Diffusion 2, with small networks and a finished prompt."""
    place = tmp_path_factory.mktemp("sd2")
    network = small()
    network.unet.save_pretrained(place / "unet")
    network.vae.save_pretrained(place / "vae")
    save_file({"prompt": torch.full((1, 5, 8), 0.5)}, str(place / diffusion.PROMPT_FILE))
    return place


def opened(place: Path, **more: object) -> SingleStep:
    return open_diffusion(DiffusionConfig(source=str(place), **more)).eval()


def add_text_encoder(place: Path) -> None:
    """A text encoder of a few numbers, and a tokenizer of three words."""
    transformers = pytest.importorskip("transformers")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    shape = transformers.CLIPTextConfig(
        vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=7, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModel(shape).save_pretrained(place / "text_encoder")
    tokenizer = place / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps(words))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 7})
    )


def add_index(place: Path, pipeline: str = "StableDiffusionPipeline") -> None:
    """What a pipeline's folder says of its parts."""
    parts = {
        "_class_name": pipeline,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (place / "model_index.json").write_text(json.dumps(parts))


# --- target and losses ---------------------------------------------------------------------------


def test_the_target_spans_its_quantiles() -> None:
    depth = torch.linspace(1, 16, 64).view(1, 1, 8, 8)
    everywhere = torch.ones_like(depth, dtype=torch.bool)
    found = diffusion.target(depth, everywhere)
    y = depth.rsqrt()
    low, high = torch.quantile(y, 0.02), torch.quantile(y, 0.98)
    assert float(found.low) == pytest.approx(float(low))
    torch.testing.assert_close(found.values, (2 * (y - low) / (high - low) - 1).clamp(-1, 1))
    assert float(found.values.max()) == 1 and float(found.values.min()) == -1
    # A scale of the depth is nothing to the target, in every space.
    for space in diffusion.SPACES:
        a, b = (diffusion.target(s * depth, everywhere, space).values for s in (1, 7))
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)
    near = diffusion.target(depth, everywhere, "depth").values
    assert float(near[0, 0, 0, 0]) == -1 and float(found.values[0, 0, 0, 0]) == 1


def test_what_is_not_known_is_not_in_the_target() -> None:
    depth = torch.linspace(1, 16, 64).view(1, 1, 8, 8)
    mask = torch.ones_like(depth, dtype=torch.bool)
    clean = diffusion.target(depth[:, :, :7], mask[:, :, :7]).values
    for poison in (torch.nan, torch.inf, 0.0, -1.0):
        bad = depth.clone()
        bad[:, :, 7] = poison
        found = diffusion.target(bad, mask)
        assert not found.mask[:, :, 7].any() and found.mask[:, :, :7].all()
        torch.testing.assert_close(found.values[:, :, :7], clean)
        assert (found.values[:, :, 7] == -1).all()
    flat = diffusion.target(torch.ones(2, 1, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool))
    assert not flat.mask.any() and torch.isfinite(flat.values).all()


def test_the_mask_of_latents_is_pooled() -> None:
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 3, 12] = False
    expected = torch.tensor([[True, False], [True, True]])
    assert torch.equal(diffusion_losses.pooled_mask(mask, 8)[0, 0], expected)
    a, b = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    b[0, :, 0, 1] = 100.0
    assert float(diffusion_losses.masked_mse(a, b, diffusion_losses.pooled_mask(mask, 8))) == 1
    x = a.clone().requires_grad_(True)
    nothing = diffusion_losses.masked_mse(x, b, torch.zeros(1, 1, 2, 2, dtype=torch.bool))
    (slope,) = torch.autograd.grad(nothing, x)
    assert float(nothing.detach()) == 0 and float(slope.abs().max()) == 0


@pytest.mark.parametrize(
    ("error", "paper", "code"),
    [(0, 0, 0.02), (0.1, 0.02, 0.04), (0.2, 0.04, 0.06), (0.5, 0.145, 0.125), (1, 0.52, 0.5)],
)
def test_inverse_huber_golden_values(error: float, paper: float, code: float) -> None:
    for sign in (1, -1):
        e = torch.tensor(sign * error, dtype=torch.float64)
        assert float(diffusion_losses.inverse_huber(e, 0.2)) == pytest.approx(paper, abs=1e-12)
        assert float(diffusion_losses.inverse_huber(e, 0.2, "code")) == pytest.approx(
            code, abs=1e-12
        )


def test_both_forms_teach_the_same_and_only_the_papers_is_continuous() -> None:
    e = torch.linspace(-1, 1, 401, dtype=torch.float64).requires_grad_(True)
    slopes = [
        torch.autograd.grad(diffusion_losses.inverse_huber(e, 0.2, form).sum(), e)[0]
        for form in diffusion_losses.FORMS
    ]
    torch.testing.assert_close(slopes[0], slopes[1])
    expected = e.detach().sign() * e.detach().abs().clamp_min(0.2)
    torch.testing.assert_close(slopes[0], expected)
    for form, jump in (("paper", 0.0), ("code", -0.04)):
        below, above = (
            float(diffusion_losses.inverse_huber(torch.tensor(x, dtype=torch.float64), 0.2, form))
            for x in (0.2 - 1e-9, 0.2 + 1e-9)
        )
        assert above - below == pytest.approx(jump, abs=1e-7)
    with pytest.raises(ValueError, match="paper, code"):
        diffusion_losses.inverse_huber(e, 0.2, "mean")


def test_directions_of_the_gradient_loss() -> None:
    """A ramp of slope 1 against flatness: 1 across, 0 down, 1 on each diagonal."""
    ramp = torch.arange(5.0).double().expand(1, 1, 4, 5)
    flat, mask = torch.zeros_like(ramp), torch.ones(1, 1, 4, 5, dtype=torch.bool)
    cost = 0.52  # of a difference of 1
    assert float(diffusion_losses.directional_gradient(flat, ramp, mask)) == pytest.approx(
        3 * cost / 4
    )
    assert float(diffusion_losses.directional_gradient(ramp + 3, ramp, mask)) == 0
    assert float(
        diffusion_losses.directional_gradient(ramp, ramp, mask, form="code")
    ) == pytest.approx(0.02)
    sideways = diffusion_losses.directional_gradient(flat.mT, ramp.mT, mask.mT)
    assert float(sideways) == pytest.approx(3 * cost / 4)
    # An invalid pixel takes its differences with it, whatever stands there.
    hole = mask.clone()
    hole[0, 0, 1, 2] = False
    wild = ramp.clone()
    wild[0, 0, 1, 2] = 100.0
    assert float(diffusion_losses.directional_gradient(wild, ramp, hole)) == 0
    assert float(diffusion_losses.directional_gradient(wild, ramp, ~mask)) == 0


def test_token_divergence_is_the_mean_over_channels_too() -> None:
    tokens = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    assert float(diffusion_losses.token_divergence(tokens, tokens)) == pytest.approx(0, abs=1e-7)
    assert float(diffusion_losses.token_divergence(tokens + 5, tokens)) == pytest.approx(
        0, abs=1e-6
    )
    # By hand: p = (3/4, 1/4) against q = (1/2, 1/2) over two channels.
    p = torch.tensor([3.0, 1.0]).log().view(1, 2, 1, 1)
    expected = (0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()) / 2
    torch.testing.assert_close(
        diffusion_losses.token_divergence(torch.zeros(1, 2, 1, 1), p), expected
    )
    library = torch.nn.functional.kl_div(
        torch.zeros_like(tokens).log_softmax(1), tokens.softmax(1), reduction="sum"
    )
    found = diffusion_losses.token_divergence(torch.zeros_like(tokens), tokens)
    torch.testing.assert_close(found, library / tokens.numel())


def test_a_picture_smaller_than_a_patch_of_the_external_encoder() -> None:
    assert diffusion.external_size(480, 640, 14) == (420, 560)
    with pytest.raises(TrainingError, match=r"smaller than a patch.*loss\.align=0"):
        diffusion.external_size(7, 64, 14)


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
    plain, enhanced = small(), small(fourier=True)
    enhanced.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(plain.map(images), enhanced.map(images))


def test_one_step_is_deterministic_frozen_outside_the_unet_and_of_the_right_shapes() -> None:
    network = small()
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
    for place, channels in (("mid", 16), ("down1", 8), ("down2", 16)):
        assert network.step(latent, place).features.shape[1] == channels
    with pytest.raises(TrainingError, match="multiples"):
        network(torch.zeros(1, 3, 15, 24))


def test_gradients_reach_the_unet_through_the_decoder_and_checkpointing_changes_nothing() -> None:
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    found = []
    for checkpointing in (False, True):
        network = small(checkpointing=checkpointing, fourier=True).train()
        cost = network.decode(network.predict(network.encode(images)).latent).square().mean()
        found.append(torch.autograd.grad(cost, network.unet.conv_in.weight)[0])
    assert float(found[0].abs().max()) > 0
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("space", diffusion.SPACES)
def test_disparity_undoes_the_space(space: str) -> None:
    network = small(space=space)
    depth = 1 + 4 * torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = diffusion.target(depth, torch.ones_like(depth, dtype=torch.bool), space)
    for _ in range(400):
        network.observe(seen)
    inner = seen.values.abs() < 1
    found, truth = network.disparity(seen.values)[inner], (1 / depth)[inner]
    terms = torch.stack([torch.ones_like(found), found], 1)
    fit = torch.linalg.lstsq(terms, truth).solution
    torch.testing.assert_close(terms @ fit, truth, atol=2e-3, rtol=0)
    assert float(fit[1]) > 0  # large = near


def test_overflow_of_the_decoder_in_half_precision_is_named_with_its_cure() -> None:
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    for switch in (False, True):
        network = small(decoder_fp32=switch)
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
        small().decode(torch.full((1, 4, 8, 8), torch.nan))


def test_other_paradigms() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    once, four = small(), small(paradigm="iterative")
    with torch.no_grad():
        latent = once.encode(images)
        for _ in range(diffusion.ITERATIONS):
            latent = once.step(latent).latent
        torch.testing.assert_close(four.predict(four.encode(images)).latent, latent)
    denoising = small(paradigm="denoising", denoise_steps=2)
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
    with torch.device("meta"):
        unet = diffusion.stable_diffusion_2()
    assert sum(p.numel() for p in unet.parameters()) == 865_910_724
    assert unet.config.block_out_channels[-1] == 1280
    found = diffusion.memory(unet)
    assert found["total"] == pytest.approx(4 * found["weights"])
    assert found["total"] < 13.0


# --- opening -------------------------------------------------------------------------------------


def test_a_folder_opens_with_its_weights_and_its_prompt(folder: Path) -> None:
    network, same = opened(folder), small()
    assert torch.equal(network.unet.conv_in.weight, same.unet.conv_in.weight)
    assert torch.equal(network.prompt, torch.full((1, 5, 8), 0.5))
    assert "prompt" in network.state_dict()  # so that checkpoints need no text encoder


def test_the_empty_prompt_comes_from_the_text_encoder(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "sd2"
    shutil.copytree(folder, place)
    (place / diffusion.PROMPT_FILE).unlink()
    with pytest.raises(TrainingError, match=r"empty prompt.*text_encoder/"):
        opened(place)
    add_text_encoder(place)
    add_index(place)
    prompt = opened(place).prompt
    assert prompt.shape == (1, 7, 8) and torch.isfinite(prompt).all()


@pytest.mark.parametrize(("part", "what"), [("unet", "U-Net"), ("vae", "autoencoder")])
def test_a_missing_part_is_named(folder: Path, tmp_path: Path, part: str, what: str) -> None:
    place = tmp_path / "sd2"
    shutil.copytree(folder, place)
    shutil.rmtree(place / part)
    with pytest.raises(TrainingError, match=rf"{what} is missing.*{part}/"):
        opened(place)
    # Described, but without its weights.
    (place / part).mkdir()
    shutil.copy(folder / part / "config.json", place / part)
    with pytest.raises(TrainingError, match=rf"{part} cannot be opened.*safetensors"):
        opened(place)


def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="allow_download=true"):
        opened(tmp_path / "absent")


def test_the_unet_of_another_task_or_model_is_refused(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "sd2"
    shutil.copytree(folder, place)
    wide = small(paradigm="denoising").unet  # eight channels in, as Marigold's
    wide.register_to_config(in_channels=8)
    wide.save_pretrained(place / "unet")
    with pytest.raises(TrainingError, match="takes 8 and gives 4 channels"):
        opened(place)
    small(prompt_width=16).unet.save_pretrained(place / "unet")
    with pytest.raises(TrainingError, match="8 wide and its U-Net takes 16"):
        opened(place)
    # Weights that do not belong to the description beside them.
    shutil.copy(folder / "unet" / "config.json", place / "unet" / "config.json")
    with pytest.raises(TrainingError, match="unet"):
        opened(place)


def test_settings_that_contradict_themselves() -> None:
    with pytest.raises(config.ConfigError, match="multiples of 8"):
        DiffusionConfig(unet_widths=(12, 16))
    with pytest.raises(config.ConfigError, match="multiples of 8"):
        DiffusionConfig(vae_widths=(8,))


# --- as a teacher --------------------------------------------------------------------------------


def test_a_marigold_teaches_through_the_same_door(tmp_path: Path) -> None:
    """Affine depth comes out as disparity, the same every time, with what is known."""
    import diffusers
    import transformers

    from training.models import teachers

    add_text_encoder(tmp_path)
    network = small(paradigm="denoising")
    pipe = diffusers.MarigoldDepthPipeline(
        unet=network.unet,
        vae=network.vae,
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction"),
        text_encoder=transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"),
        prediction_type="depth",
        scale_invariant=True,
        shift_invariant=True,
        default_denoising_steps=1,
        default_processing_resolution=0,
    )
    network.unet.register_to_config(in_channels=8)
    pipe.save_pretrained(tmp_path / "marigold")
    cfg = teachers.TeacherConfig(source="diffusion", path=str(tmp_path / "marigold"))
    teacher = teachers.open_teacher(cfg)
    assert teacher.kind == "depth_affine_invariant"
    images = torch.rand(2, 3, 16, 24)
    depth = teacher(images)
    disparity, known = teachers.ask(teacher, images)
    assert disparity.shape == (2, 1, 16, 24) and known.any()
    torch.testing.assert_close(depth, teacher(images))
    for d, m in zip(disparity, depth, strict=True):  # large = near
        assert float(torch.corrcoef(torch.stack([d.flatten(), m.flatten()]))[0, 1]) < 0
    with pytest.raises(TrainingError, match=r"cannot be opened as a Marigold.*genpercept=depth"):
        assistants.open_assistant(str(tmp_path))
    with pytest.raises(TrainingError, match="run of depthmaster"):
        assistants.open_assistant(str(tmp_path / "absent"))


@pytest.mark.parametrize("gives", ["disparity", "depth"])
def test_a_genpercept_teaches_through_the_same_door(gives: str, tmp_path: Path) -> None:
    """Against the authors' way: one step of DDIM under their schedule, from the image itself."""
    import diffusers
    import transformers

    from training.models import teachers

    add_text_encoder(tmp_path)
    network = small()
    network.unet.save_pretrained(tmp_path / "unet")
    network.vae.save_pretrained(tmp_path / "vae")
    text = transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    words = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    shift = teachers.TeacherConfig().shift if gives == "depth" else 0.0
    scheduler = diffusers.DDIMScheduler(
        beta_start=1.0, beta_end=1.0, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1,
        timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(1)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ids = words("", padding="do_not_pad", return_tensors="pt").input_ids
        assert ids.shape == (1, 2)
        prompt = text(ids)[0].repeat(2, 1, 1)
        latent = network.vae.encode(2 * images - 1).latent_dist.mean
        said = network.unet(latent, scheduler.timesteps[0], encoder_hidden_states=prompt).sample
        clean = scheduler.step(said, scheduler.timesteps[0], latent).pred_original_sample
        expected = (network.vae.decode(clean).sample.mean(1, True).clip(-1, 1) + 1) / 2
    assert float(expected.std()) > 1e-3

    add_index(tmp_path, "GenPerceptPipeline")
    cfg = teachers.TeacherConfig(source="diffusion", path=str(tmp_path), genpercept=gives)
    teacher = teachers.open_teacher(cfg)
    assert teacher.kind == f"{gives}_affine_invariant"
    torch.testing.assert_close(teacher(images), expected + shift, atol=1e-5, rtol=1e-5)
    disparity, known = teachers.ask(teacher, images)
    assert known.all()
    wanted = expected if gives == "disparity" else 1 / (expected + shift)
    torch.testing.assert_close(disparity, wanted, atol=1e-4, rtol=1e-4)
    (tmp_path / "dpt_head_identity").mkdir()
    with pytest.raises(TrainingError, match="DPT head"):
        teachers.open_teacher(cfg)


def test_a_run_teaches_through_the_same_door(tmp_path: Path) -> None:
    from training import checkpoints
    from training.models import teachers

    network = small()
    about = {"recipe": "depthmaster", "settings": {"diffusion": config.to_dict(SMALL)}}
    checkpoints.write(tmp_path, 1, about, {"averaged": network.state_dict()}, {})
    for wrong, said in (({"recipe": "mesa"}, "of the recipe mesa"),
                        ({"settings": {"diffusion": config.to_dict(DiffusionConfig())}},
                         "of another network")):  # fmt: skip
        place = tmp_path / said.split()[-1]
        checkpoints.write(place, 1, {**about, **wrong}, {"averaged": network.state_dict()}, {})
        with pytest.raises(TrainingError, match=said):
            assistants.open_assistant(str(place))
    teacher = teachers.open_teacher(teachers.TeacherConfig(source="diffusion", path=str(tmp_path)))
    images = torch.rand(1, 3, 17, 23)  # brought to what the network takes, and back
    disparity, known = teachers.ask(teacher, images)
    assert disparity.shape == (1, 1, 17, 23) and known.all()
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), network(2 * x - 1))
    other = small()
    torch.nn.init.zeros_(other.unet.conv_out.weight)
    checkpoints.write(tmp_path / "b", 1, about, {"averaged": other.state_dict()}, {})
    cfg = teachers.TeacherConfig(source="diffusion", path=str(tmp_path / "b"))
    assert teachers.open_teacher(cfg).revision != teacher.revision  # so that no cache mixes them
