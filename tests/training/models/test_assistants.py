# SPDX-License-Identifier: Apache-2.0
"""Diffusion networks as teachers: Marigold, GenPercept, runs of DepthMaster."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")
from depth_node import config
from tests.helpers.torch_networks import (
    SMALL_DIFFUSION,
    add_index,
    add_text_encoder,
    small_diffusion,
)
from training.checkpoints import TrainingError
from training.models import assistants
from training.models.diffusion import DiffusionConfig


def test_a_marigold_teaches_through_the_same_door(tmp_path: Path) -> None:
    """Affine depth is converted to disparity with a mask, and the result is reproducible."""
    import diffusers
    import transformers

    from training.models import teachers

    add_text_encoder(tmp_path)
    network = small_diffusion(paradigm="denoising")
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
    """Compare with the authors' pipeline: one DDIM step with their schedule, from the image."""
    import diffusers
    import transformers

    from training.models import teachers

    add_text_encoder(tmp_path)
    network = small_diffusion()
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
        velocity = network.unet(latent, scheduler.timesteps[0], encoder_hidden_states=prompt).sample
        clean = scheduler.step(velocity, scheduler.timesteps[0], latent).pred_original_sample
        expected = (network.vae.decode(clean).sample.mean(1, True).clip(-1, 1) + 1) / 2
    assert float(expected.std()) > 1e-3

    add_index(tmp_path, "GenPerceptPipeline")
    cfg = teachers.TeacherConfig(source="diffusion", path=str(tmp_path), genpercept=gives)
    teacher = teachers.open_teacher(cfg)
    assert teacher.kind == f"{gives}_affine_invariant"
    torch.testing.assert_close(teacher(images), expected + shift, atol=1e-5, rtol=1e-5)
    disparity, known = teachers.ask(teacher, images)
    assert known.all()
    inverted = expected if gives == "disparity" else 1 / (expected + shift)
    torch.testing.assert_close(disparity, inverted, atol=1e-4, rtol=1e-4)
    (tmp_path / "dpt_head_identity").mkdir()
    with pytest.raises(TrainingError, match="DPT head"):
        teachers.open_teacher(cfg)


def test_a_run_teaches_through_the_same_door(tmp_path: Path) -> None:
    from training import checkpoints
    from training.models import teachers

    network = small_diffusion()
    about = {"recipe": "depthmaster", "settings": {"diffusion": config.to_dict(SMALL_DIFFUSION)}}
    checkpoints.write(tmp_path, 1, about, {"averaged": network.state_dict()}, {})
    for wrong, message in (({"recipe": "mesa"}, "of the recipe mesa"),
                        ({"settings": {"diffusion": config.to_dict(DiffusionConfig())}},
                         "of another network")):  # fmt: skip
        run = tmp_path / message.split()[-1]
        checkpoints.write(run, 1, {**about, **wrong}, {"averaged": network.state_dict()}, {})
        with pytest.raises(TrainingError, match=message):
            assistants.open_assistant(str(run))
    teacher = teachers.open_teacher(teachers.TeacherConfig(source="diffusion", path=str(tmp_path)))
    images = torch.rand(1, 3, 17, 23)  # brought to what the network takes, and back
    disparity, known = teachers.ask(teacher, images)
    assert disparity.shape == (1, 1, 17, 23) and known.all()
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), network(2 * x - 1))
    other = small_diffusion()
    torch.nn.init.zeros_(other.unet.conv_out.weight)
    checkpoints.write(tmp_path / "b", 1, about, {"averaged": other.state_dict()}, {})
    cfg = teachers.TeacherConfig(source="diffusion", path=str(tmp_path / "b"))
    assert teachers.open_teacher(cfg).revision != teacher.revision  # so that no cache mixes them
