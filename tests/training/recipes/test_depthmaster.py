# SPDX-License-Identifier: Apache-2.0
"""The recipe depthmaster: its stages one after the other, its switches, its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")

from rich.console import Console
from safetensors.torch import save_file

from depth_node import config
from training import checkpoints, loop
from training.__main__ import main
from training.checkpoints import TrainingError
from training.data.mixed import Mixture
from training.data.open import open_samples
from training.losses import diffusion as diffusion_losses
from training.losses import targets
from training.models import alignment, diffusion, stable_diffusion
from training.models.networks import NetworkConfig, open_dino
from training.recipe import BatchPart
from training.recipes import depthmaster, distill, supervised

CONFIGS = REPO / "training" / "configs"
DEBUG = CONFIGS / "depthmaster_debug.yaml"
STAGE_2 = [
    "loss.latent=0", "loss.align=0", "loss.pixel=1", "loss.gradient=0.001",
    "diffusion.fourier=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    folder = tmp_path_factory.mktemp("pool")
    return Mixture(settings(f"images.pool.folder={folder}").images)


def settings(*overrides: str) -> depthmaster.Config:
    return config.load(depthmaster.Config, DEBUG, list(overrides))


def train(pool: Mixture, folder: Path, *overrides: str) -> loop.State:
    cfg = settings(*overrides)
    check = open_samples(cfg.check) if cfg.check.limit else ()
    recipe = depthmaster.DepthMaster(cfg, pool, check)
    return loop.run(recipe, cfg.loop, folder, config.to_dict(cfg))


def terms(pool: Mixture, *overrides: str) -> dict[str, Any]:
    """Return the terms of the first step of a fresh network."""
    cfg = settings(*overrides)
    recipe = depthmaster.DepthMaster(cfg, pool)
    torch.manual_seed(0)
    model = recipe.model().train()
    recipe.extra()
    return recipe.loss(model, recipe.batch(0, (0, 1)), None)


def same(a: dict[str, Any], b: dict[str, Any], prefix: str) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a if name.startswith(prefix))


def test_autoencoder_then_structure_then_detail(pool: Mixture, tmp_path: Path) -> None:
    """Each stage starts from the one before and changes only its own part."""
    first, second, third = (tmp_path / name for name in ("vae", "one", "two"))
    train(pool, first, "learn=autoencoder", "loop.steps=1")
    check = ["check.limit=1", "check.seed=7", "check.height=32", "check.width=48"]
    train(pool, second, f"start={first}", *check)
    row = json.loads((second / "log.jsonl").read_text().splitlines()[-1])
    assert {
        "autoencoder_abs_rel",
        "autoencoder_boundary_f1",
        "abs_rel",
        "delta1",
        "boundary_f1",
        "score",
    } <= set(row)
    train(pool, third, f"start={second}", *STAGE_2)
    a, b, c = (checkpoints.read(path)["averaged"] for path in (first, second, third))
    assert same(a, b, "vae.") and same(b, c, "vae.")
    assert not same(a, b, "unet.") and not same(b, c, "unet.")
    assert any(name.startswith("fourier.") for name in c.keys() - b.keys())
    assert (second / "last" / "extra.safetensors").is_file()  # the projector, not exported
    teacher = diffusion.open_run(third)
    assert torch.equal(teacher.prompt, c["prompt"])
    with torch.no_grad():
        answer = teacher(teacher.spec.normalise(torch.rand(1, 3, 32, 48)))
    assert answer.shape == (1, 1, 32, 48) and torch.isfinite(answer).all()


def test_latents_have_a_deviation_of_one_whatever_the_autoencoder(
    pool: Mixture, tmp_path: Path
) -> None:
    """Otherwise the paper's weights of latents and alignment would have another effect here."""
    run = tmp_path / "vae"
    train(pool, run, "learn=autoencoder", "loop.steps=300", "loop.learning_rate=0.0003")
    network = diffusion.open_run(run)
    images = pool.batch([np.random.default_rng(k) for k in range(16)], 32, 48, settings().augment)
    with torch.no_grad():
        latents = network.encode(network.spec.normalise(images["image"]))
        assert float(network.latent_scale) != 1
        assert float(latents.std()) == pytest.approx(1, rel=0.25)
        raw = network.vae.encode(network.spec.normalise(images["image"])).latent_dist.mean
        again = network.decode(latents)
        torch.testing.assert_close(again, network.vae.decode(raw).sample.mean(1, keepdim=True))
    # The next stage takes the factor over; a run from before it had one.
    later = tmp_path / "unet"
    train(pool, later, f"start={run}", "loop.steps=1")
    assert torch.equal(diffusion.open_run(later).latent_scale, network.latent_scale)
    old = checkpoints.read(run)
    del old["averaged"]["latent_scale"]
    assert float(diffusion.from_checkpoint(old).latent_scale) == 1


def test_the_fourier_block_has_a_rate_of_its_own(pool: Mixture) -> None:
    recipe = depthmaster.DepthMaster(settings(*STAGE_2, "fourier_rate=10"), pool)
    rates = {name: recipe.rate(name) for name, _ in recipe.model().named_parameters()}
    assert {rate for name, rate in rates.items() if name.startswith("fourier.")} == {10}
    assert {rate for name, rate in rates.items() if not name.startswith("fourier.")} == {1}


def test_the_command_runs_the_debug_settings_and_refuses_to_export(
    pool: Mixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    common = ["depthmaster", "--config", str(DEBUG), "--run", str(run)]
    assert main([*common, f"images.pool.folder={pool.cfg.pool.folder}", "loop.images_every=2"]) == 0
    assert list(run.rglob("*.png"))
    assert "GiB of weights" in " ".join(capsys.readouterr().out.split())
    # A student is exported, never this network with its Fourier block.
    assert main(["export", str(run), "--out", str(tmp_path / "x.onnx")]) == 1
    assert "distil a student" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()
    # It is judged like one.
    rows = tmp_path / "rows.json"
    assert main(["evaluate", "--model", str(run), "--procedural", "1", "--seed", "9",
                 "--alignment", "sqrt_disp_ls", "--json", str(rows)]) == 0  # fmt: skip
    scored = [row for row in json.loads(rows.read_text())["rows"] if row["method"] == "run"]
    assert scored and all(row["alignment"] == "sqrt_disp_ls" for row in scored)
    assert all(row["abs_rel"] > 0 for row in scored)


def published(name: str) -> depthmaster.Config:
    return config.load(depthmaster.Config, CONFIGS / f"depthmaster_{name}.yaml", [])


def test_the_published_stages_are_the_papers() -> None:
    one, two = published("stage1"), published("stage2")
    for cfg, steps, rate in ((one, 20_000, 3e-5), (two, 10_000, 3e-6)):
        assert (cfg.height, cfg.width) == (480, 640)
        assert (cfg.loop.steps, cfg.loop.learning_rate, cfg.loop.batch) == (steps, rate, 32)
        assert cfg.loop.accumulate == 32 and cfg.loop.weight_decay == 0 and cfg.loop.warmup == 100
        assert (cfg.images.data.kind, cfg.images.second.kind) == ("hypersim", "vkitti2")
        assert (cfg.images.second_height, cfg.images.second_width) == (352, 1216)
        assert cfg.images.second_probability == 0.1 and cfg.augment.flip == 0.5
        assert cfg.diffusion.space == "sqrt_disparity" and cfg.loss.tails == 0.02
        assert cfg.diffusion.paradigm == "single" and cfg.diffusion.checkpointing
    assert (one.loss.latent, one.loss.align, one.loss.pixel, one.loss.gradient) == (1, 1, 0, 0)
    assert (two.loss.latent, two.loss.align, two.loss.pixel, two.loss.gradient) == (0, 0, 1, 0.001)
    assert one.loss.align_layer == "mid" and not one.diffusion.fourier
    assert two.diffusion.fourier and (two.loss.delta, two.loss.form) == (0.2, "paper")
    # IterExponential of the published code: 0.01^((it - 100) / 24900) at 20,000.
    expected = 3e-5 * 0.01 ** ((20_000 - 100) / (25_000 - 100))
    assert loop.learning_rate(one.loop, 20_000) == pytest.approx(expected, rel=0.01)
    assert loop.learning_rate(one.loop, 50) == pytest.approx(3e-5 / 2, rel=0.05)
    for name in ("small", "small_autoencoder"):
        assert published(name).loop.batch % published(name).loop.accumulate == 0


def write_data_sets(folder: Path) -> list[str]:
    """Two images as Hypersim's (depth prepared as PNG) and Virtual KITTI 2's; settings for them.

    The list names Hypersim's pairs, as Marigold's preparation does.
    """
    rng = np.random.default_rng(0)
    rows = []
    pair = {"rgb": "frames/rgb/Camera_0/rgb_00001.jpg",
            "depth": "frames/depth/Camera_0/depth_00001.png"}  # fmt: skip
    for k in range(2):
        image = cv2.resize(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8), (72, 54))
        depth = np.tile(np.linspace(1500, 6000, 72).astype(np.uint16), (54, 1))
        kitti = folder / "vkitti2" / "Scene01" / ("clone", "fog")[k]
        files = {folder / "hypersim" / f"{k}.png": image, kitti / pair["rgb"]: image,
                 folder / "hypersim" / f"{k}_depth.png": depth,
                 kitti / pair["depth"]: depth // 10}  # fmt: skip
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), content)
        rows.append(f"{k}.png {k}_depth.png")
    (folder / "list.txt").write_text("\n".join(rows))
    return [
        f"images.data.folder={folder / 'hypersim'}", f"images.data.list={folder / 'list.txt'}",
        "images.data.split=", f"images.second.folder={folder / 'vkitti2'}",
    ]  # fmt: skip


def test_the_published_stages_run_on_folders_of_their_kind(tmp_path: Path) -> None:
    """Both commands of the docs, from a folder like Stable Diffusion 2's, a DINOv2 and the layouts
    of the data sets; smaller, for four images and one step.
    """
    torch.manual_seed(0)
    source = diffusion.open_diffusion(
        diffusion.DiffusionConfig(unet_widths=(8, 16), vae_widths=(8, 8), prompt_width=8)
    )
    source.unet.save_pretrained(tmp_path / "sd2" / "unet")
    source.vae.save_pretrained(tmp_path / "sd2" / "vae")
    save_file(
        {"prompt": torch.zeros(1, 5, 8)}, str(tmp_path / "sd2" / stable_diffusion.PROMPT_FILE)
    )
    open_dino(NetworkConfig(kind="debug")).network.save_pretrained(tmp_path / "dinov2")
    small = ["height=48", "width=64", "images.second_height=32", "images.second_width=80",
             "images.second_probability=0.5", "loop.steps=1", "loop.batch=4", "loop.accumulate=4",
             "loop.seed=0", "loop.tensorboard=false", "check.limit=0"]  # fmt: skip
    common = [*small, *write_data_sets(tmp_path), f"diffusion.source={tmp_path / 'sd2'}"]
    one, two = tmp_path / "stage1", tmp_path / "stage2"
    for run, more in ((one, f"external.source={tmp_path / 'dinov2'}"), (two, f"start={one}")):
        settings_file = str(CONFIGS / f"depthmaster_{run.name}.yaml")
        words = ["depthmaster", "--config", settings_file, "--run", str(run), *common, more]
        assert main(words) == 0
    before, after = (checkpoints.read(run)["averaged"] for run in (one, two))
    assert not same(before, after, "unet.") and same(before, after, "vae.")
    assert after["fourier.fuse.weight"].abs().max() > 0


def test_every_switch_changes_what_is_minimised(pool: Mixture) -> None:
    """A term is computed only if its weight is not 0, and every computed term has a gradient."""
    assert set(terms(pool)) == {"loss", "latent_term", "align_term"}
    two = terms(pool, *STAGE_2)
    assert set(two) == {"loss", "pixel_term", "gradient_term"}
    torch.testing.assert_close(two["loss"], two["pixel_term"] + 0.001 * two["gradient_term"])
    paper, code = (float(terms(pool, *STAGE_2, f"loss.form={f}")["gradient_term"].detach())
                   for f in diffusion_losses.FORMS)  # fmt: skip
    assert paper != code
    losses = {
        space: float(terms(pool, "loss.align=0", f"diffusion.space={space}")["loss"].detach())
        for space in targets.SPACES
    }
    assert len(set(losses.values())) == 3
    by_layer = {
        layer: float(terms(pool, f"loss.align_layer={layer}")["align_term"].detach())
        for layer in diffusion.FEATURE_LAYERS
    }
    assert len(set(by_layer.values())) == 3
    assert set(terms(pool, "loss.align=0", "diffusion.paradigm=denoising")) == {"loss", "latent"}
    for minimised in (two, terms(pool, "loss.latent=0")):
        assert minimised["loss"].requires_grad


def test_accumulated_parts_have_the_gradient_of_the_whole(pool: Mixture) -> None:
    recipe = depthmaster.DepthMaster(settings("loss.align=0", "loss.pixel=1"), pool)
    torch.manual_seed(0)
    model = recipe.model().train()
    weight = model.unet.conv_in.weight

    def gradient(*parts: BatchPart) -> torch.Tensor:
        losses = [recipe.loss(model, recipe.batch(0, part), None)["loss"] for part in parts]
        return torch.autograd.grad(torch.stack(losses).mean(), weight)[0]

    torch.testing.assert_close(gradient((0, 1)), gradient((0, 2), (1, 2)), atol=5e-6, rtol=0)


def test_a_run_that_does_not_fit_is_refused(pool: Mixture, tmp_path: Path) -> None:
    train(pool, tmp_path / "run", "learn=autoencoder", "loop.steps=1")
    with pytest.raises(TrainingError, match="another network"):
        train(pool, tmp_path / "b", f"start={tmp_path / 'run'}", "diffusion.unet_widths=[16,16]")
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(pool, tmp_path / "c", f"start={tmp_path / 'absent'}")


def test_a_missing_external_encoder_is_named(pool: Mixture, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="absent"):
        terms(pool, f"external.source={tmp_path / 'absent'}")
    with pytest.raises(TrainingError, match="smaller than a patch"):
        terms(pool, "height=8", "width=8")


@pytest.mark.parametrize("space", targets.SPACES)
def test_it_is_judged_in_its_own_space(space: str) -> None:
    """The target itself, with no tails clipped, has no error; a constant map has a large one."""
    depth = 1 + 4 * torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(0))
    scaled = targets.target(depth, torch.ones_like(depth, dtype=torch.bool), space, tails=0.0)
    truth = depth[0, 0].numpy()
    abs_rel, delta1, f1 = depthmaster.scores_in_space(scaled.values, truth, space)
    assert abs_rel < 1e-4 and delta1 == 1 and f1 > 0.99
    assert depthmaster.scores_in_space(torch.zeros_like(depth), truth, space)[0] > 0.2


def test_settings_that_contradict_themselves() -> None:
    for bad, message in (
        (["learn=autoencoder", "diffusion.source=x"], "stays frozen"),
        (["diffusion.paradigm=denoising"], "latent loss only"),
        (["loss.latent=0", "loss.align=0"], "nothing would be learnt"),
    ):
        with pytest.raises(config.ConfigError, match=message):
            settings(*bad)


# --- its losses for a student --------------------------------------------------------------------


def test_a_students_disparity_that_is_the_square_of_the_target_costs_nothing() -> None:
    depth = 1 + 5 * torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    cfg = supervised.LossConfig(space="sqrt_disparity", directional=0.001)
    y, _ = targets.student_target(depth, torch.ones_like(depth, dtype=torch.bool))
    scalars = supervised.disparity_loss(y**2, depth, cfg)
    for name in ("level", "shape", "directional"):
        assert float(scalars[name]) == pytest.approx(0, abs=1e-5)
    assert float(supervised.disparity_loss(y**2 + 0.1, depth, cfg)["level"]) > 0.01
    x = torch.tensor([-3.0, -1.0, 0.0, 0.01, 4.0], requires_grad=True)
    (slope,) = torch.autograd.grad(targets.root(x).sum(), x)
    assert (slope > 0).all() and float(targets.root(x)[-1].detach()) == 2


def test_a_student_learns_with_them_in_two_stages(tmp_path: Path) -> None:
    """Structure with alignment, then detail at a tenth of the rate, as two runs of supervised."""
    debug = CONFIGS / "debug.yaml"
    common = [f"pool.folder={tmp_path / 'pool'}", "loop.steps=1", "loss.space=sqrt_disparity"]
    first = config.load(supervised.Config, debug, [*common, "loss.align=1", "external.kind=debug"])
    state = loop.run(supervised.build(first, Console(quiet=True)), first.loop, tmp_path / "one",
                     config.to_dict(first))  # fmt: skip
    assert isinstance(state.extra, alignment.Alignment)
    second = config.load(
        supervised.Config, debug,
        [*common, "loss.directional=0.001", f"start={tmp_path / 'one'}", "loop.learning_rate=2e-4"],
    )  # fmt: skip
    state = loop.run(supervised.build(second, Console(quiet=True)), second.loop, tmp_path / "two",
                     config.to_dict(second))  # fmt: skip
    # What was learnt beside the student is in neither of them.
    weights = checkpoints.read(tmp_path / "two")["averaged"]
    assert not any("projector" in name or "fourier" in name for name in weights)


def test_it_assists_a_distillation_and_its_answers_are_kept(pool: Mixture, tmp_path: Path) -> None:
    train(pool, tmp_path / "teacher", "loss.align=0", "loop.steps=1")
    cfg = config.load(
        distill.Config,
        CONFIGS / "distill_debug.yaml",
        ["teacher_choice=assistant", "assistant.source=diffusion",
         f"assistant.path={tmp_path / 'teacher'}", "crop.per_image=1",
         f"cache={tmp_path / 'cache'}", "images.limit=2", "loop.steps=1",
         "loss.root=true", "loss.directional=0.001", "loss.likeness=divergence"],
    )  # fmt: skip
    recipe = distill.build(cfg, Console(quiet=True))
    assert recipe.fill(Console(quiet=True)) == 0  # all was asked when it was built
    assert list((tmp_path / "cache").rglob("*.png"))
    state = loop.run(recipe, cfg.loop, tmp_path / "student", config.to_dict(cfg))
    assert not any("fourier" in name for name in state.product.state_dict())
