# SPDX-License-Identifier: Apache-2.0
"""MeSa: masks, the three terms, staged and joint runs, fine-tuning, its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("transformers", reason="the encoder comes with transformers")

from depth_node import config
from depth_node.inference import DepthModel, ModelConfig
from tests.training.data.test_sequences import make_scannet
from tests.training.models.test_mobilenet import Theirs
from training import checkpoints, loop
from training.__main__ import main
from training.checkpoints import TrainingError
from training.data.mixed import Mixture
from training.data.open import DataConfig, open_samples
from training.data.samples import DataError
from training.data.sequences import Triplets, open_triplets
from training.models import mobilenet
from training.models.networks import open_network, open_run
from training.models.unet import SmallUNet
from training.recipes import mesa

CONFIGS = REPO / "training" / "configs"
DEBUG = CONFIGS / "mesa_debug.yaml"
ONLY = {name: [f"loss.{other}=0" for other in mesa.TERMS if other != name] for name in mesa.TERMS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mixture, Triplets]:
    folder = tmp_path_factory.mktemp("pool")
    cfg = settings(f"images.pool.folder={folder}")
    return Mixture(cfg.images), open_triplets(cfg.sequences, cfg.height, cfg.width, True)


def settings(*overrides: str) -> mesa.Config:
    return config.load(mesa.Config, DEBUG, list(overrides))


def train(data: tuple[Mixture, Triplets], folder: Path, *overrides: str) -> loop.State:
    cfg = settings(*overrides)
    return loop.run(mesa.Mesa(cfg, *data), cfg.loop, folder, config.to_dict(cfg))


def started(
    data: tuple[Mixture, Triplets], *overrides: str
) -> tuple[mesa.Mesa, torch.nn.Module, dict[str, Any]]:
    """Return the recipe, a fresh network and the terms of the first step."""
    recipe = mesa.Mesa(settings(*overrides), *data)
    torch.manual_seed(0)
    model = recipe.model().train()
    recipe.extra()
    return recipe, model, recipe.loss(model, recipe.batch(0, (0, 1)), None)


MOBILENET = ("network.kind=unet", "network.unet.encoder=mobilenet", "height=64", "width=64",
             "scales=1", "masking.unit_px=16", "layer_decay=0.5")  # fmt: skip


def test_the_pre_training_of_imagenets_encoder_goes_on(
    data: tuple[Mixture, Triplets], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each term trains the encoder of torchvision's file, its first blocks more slowly.

    Fine-tuning starts from the result.
    """
    monkeypatch.setattr(mobilenet, "SHA256", "")
    torch.manual_seed(5)
    torch.save(Theirs().state_dict(), tmp_path / "net.pth")
    cfg = settings(*MOBILENET)
    data = data[0], open_triplets(cfg.sequences, cfg.height, cfg.width, True)
    learnt: dict[str, Any] = {}
    for name in mesa.TERMS:
        own = (f"imagenet={tmp_path / 'net.pth'}", *MOBILENET, *ONLY[name])
        recipe, model, scalars = started(data, *own)
        scalars["loss"].backward()
        moved = {n: p.grad for n, p in model.named_parameters() if mesa.ENCODER.match(n)}
        assert sum(n.startswith("encoder.blocks.") for n in moved) > 100
        assert all(grad is not None and grad.any() for grad in moved.values()), name
        rates = [recipe.rate(f"encoder.blocks.{k}.depthwise.0.weight") for k in (17, 16, 1)]
        assert rates == [0.5, 0.25, 0.5**17] and recipe.rate("up.0.narrow.0.weight") == 1
        train(data, tmp_path / name, "loop.steps=1", *own)
        learnt[name] = checkpoints.read(tmp_path / name)["averaged"]
        later = started(data, f"start={tmp_path / name}", *MOBILENET, *ONLY["supervised"])[1]
        for key, value in later.named_parameters():  # statistics have seen one more batch
            if key.startswith("encoder."):
                assert torch.equal(value, learnt[name][key]), key
    frozen = started(data, "frozen_blocks=4", *MOBILENET, *ONLY["masked"])[1]
    for name, parameter in frozen.encoder.named_parameters():
        assert parameter.requires_grad == (int(name.split(".")[1]) >= 4), name
    assert [block.training for block in frozen.encoder.blocks[3:5]] == [False, True]
    weight = "encoder.blocks.17.project.0.weight"
    assert not torch.equal(learnt["masked"][weight], learnt["geometric"][weight])


UNET_WITH_DETAIL = ("network.kind=unet", "network.unet.detail=[8, 4]", "height=64", "width=64",
                    "scales=1", *ONLY["supervised"])  # fmt: skip


def test_imagenets_encoder_is_fine_tuned_for_comparison(
    data: tuple[Mixture, Triplets], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of torchvision's file, learning on, and kept by a run that starts from them."""
    monkeypatch.setattr(mobilenet, "SHA256", "")
    torch.manual_seed(5)
    torch.save(Theirs().state_dict(), tmp_path / "net.pth")
    expected = mobilenet.imagenet_weights(tmp_path / "net.pth")
    recipe, model, scalars = started(data, f"imagenet={tmp_path / 'net.pth'}", *UNET_WITH_DETAIL)
    own = model.detail.encoder.state_dict()
    weights = [name for name in own if name.endswith(".0.weight")]
    assert len(weights) > 50 and all(torch.equal(own[name], expected[name]) for name in weights)
    scalars["loss"].backward()
    assert all(recipe.rate(f"detail.encoder.{name}") == 1 for name in own)
    run = tmp_path / "run"
    train(data, run, "loop.steps=1", *UNET_WITH_DETAIL)
    later = started(data, f"start={run}", *UNET_WITH_DETAIL)[1].detail.encoder.state_dict()
    learnt = checkpoints.read(run)["averaged"]
    assert all(torch.equal(later[n], learnt[f"detail.encoder.{n}"]) for n in weights)


# --- the recipe ----------------------------------------------------------------------------------


def test_each_term_alone_and_all_together(data: tuple[Mixture, Triplets]) -> None:
    alone = {name: started(data, *only)[2] for name, only in ONLY.items()}
    for name, scalars in alone.items():
        assert set(scalars) - {"smooth"} == {"loss", name}
        assert scalars["loss"].requires_grad and torch.isfinite(scalars["loss"])
    _, masked, _ = started(data, *ONLY["masked"])
    for name, parameter in masked.named_parameters():
        assert parameter.requires_grad == bool(mesa.ENCODER.match(name)), name
    together = started(data)[2]
    assert set(together) == {"loss", "smooth", *mesa.TERMS}
    torch.testing.assert_close(together["loss"], sum(together[name] for name in mesa.TERMS))
    hidden = started(data, "loss.hide=true", *ONLY["supervised"])[2]
    assert float(hidden["loss"].detach()) != float(alone["supervised"]["loss"].detach())


def test_a_batch_offers_what_its_step_needs(data: tuple[Mixture, Triplets]) -> None:
    recipe, model, _ = started(data, "loss.alternate=true")
    offered = [recipe.batch(step, (0, 1)) for step in range(3)]
    assert ["depth" in batch for batch in offered] == [True, False, True]
    assert ["target" in batch for batch in offered] == [False, True, False]
    for batch, name in zip(offered, mesa.TERMS, strict=True):
        assert set(recipe.loss(model, batch, None)) - {"smooth"} == {"loss", name}


def test_the_geometric_term_is_least_at_the_truth(data: tuple[Mixture, Triplets]) -> None:
    """With the true depth the term is lower than with any wrong depth."""
    recipe, model, _ = started(data, *ONLY["geometric"], "scales=1", "geometric.smooth=0")
    batch = recipe.batch(0, (0, 1))
    triplet = data[1][0]
    truth = torch.from_numpy(triplet.target.depth)[None, None].expand(2, -1, -1, -1)
    costs = {}
    for factor in (0.6, 1.0, 1.6):
        recipe.depths = lambda *_args, s=factor, **_more: [truth * s]
        costs[factor] = float(recipe.loss(model, batch, None)["geometric"])
    assert costs[1.0] < 0.5 * min(costs[0.6], costs[1.6])


def test_poses_are_learnt_where_none_are_given(data: tuple[Mixture, Triplets]) -> None:
    recipe, _, scalars = started(data, *ONLY["geometric"], "poses=network")
    assert "T_sources_target" not in recipe.batch(0, (0, 1))
    weight = recipe._beside.pose.head.weight
    (slope,) = torch.autograd.grad(scalars["loss"], weight)
    assert float(slope.abs().max()) > 0


def test_scales_of_depth_and_both_heads(data: tuple[Mixture, Triplets]) -> None:
    recipe, model, _ = started(data)
    x = torch.rand(1, 3, 56, 84)
    depths = recipe.depths(model, x, coarse=True)
    assert [tuple(m.shape[-2:]) for m in depths] == [(56, 84), (28, 42), (14, 21), (7, 10)]
    assert all(float(m.detach().min()) >= 0.1 and float(m.detach().max()) <= 100 for m in depths)
    inverse, model, _ = started(data, "head=inverse", *ONLY["supervised"])
    model.eval()
    with torch.no_grad():
        depth, disparity = inverse.depths(model, x)[0], model(model.spec.normalise(x))
    torch.testing.assert_close(depth, 1 / disparity.clamp(0.01, 10))


def test_staged_then_fine_tuned(data: tuple[Mixture, Triplets], tmp_path: Path) -> None:
    """Masked alone; then all terms, from all its weights; then supervised, from the encoder."""
    one, two, three = (tmp_path / name for name in ("masked", "joint", "tuned"))
    train(data, one, *ONLY["masked"])
    train(data, two, f"start={one}", "take=all", "masking.variant=mae")
    tune = [*ONLY["supervised"], f"start={two}", "layer_decay=0.5", "drop_path=0.2"]
    recipe, model, _ = started(data, *tune, "head=inverse")
    before = checkpoints.read(two)["averaged"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == bool(mesa.ENCODER.match(name)) or (
            not tensor.is_floating_point() or tensor.unique().numel() <= 2
        ), name
    rates = [recipe.rate(f"network.backbone.encoder.layer.{k}.norm1.weight") for k in range(4)]
    assert rates == pytest.approx([0.0625, 0.125, 0.25, 0.5])
    assert recipe.rate("network.head.conv1.weight") == 1
    assert recipe.rate("network.backbone.layernorm.weight") == 1
    assert recipe.rate("network.backbone.embeddings.cls_token") == pytest.approx(0.5**5)
    train(data, three, *tune, "head=inverse")
    network = open_run(three)  # as any student: exported and compared like one
    assert torch.isfinite(network(torch.rand(1, 3, 56, 84))).all()


def test_each_encoder_decays_by_its_own_layers() -> None:
    """The MobileNetV2 of the detail stands beside the U-Net's stages, not before them."""
    cfg = settings("network.kind=unet", "network.unet.detail=[8,4]", "layer_decay=0.5")
    recipe = mesa.Mesa(cfg, None, None)
    recipe._network = SmallUNet(cfg.network.unet)
    rates = [recipe.rate(f"detail.encoder.blocks.{k}.project.0.weight") for k in (17, 16, 1)]
    assert rates == [0.5, 0.25, 0.5**17]
    rates = [recipe.rate(f"stages.{k}.0.body.0.0.weight") for k in (4, 3, 1)]
    assert rates == [0.5, 0.25, 0.5**4] and recipe.rate("stem.0.weight") == 0.5**6
    assert recipe.rate("detail.up.0.narrow.0.weight") == 1


def test_the_command_judges_in_metres(data: tuple[Mixture, Triplets], tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = f"images.pool.folder={data[0].cfg.pool.folder}"
    more = [*ONLY["supervised"], "check.inside.limit=1", "check.inside.seed=5",
            "check.inside.height=64", "check.inside.width=96", "loop.steps=1"]  # fmt: skip
    assert main(["mesa", "--config", str(DEBUG), "--run", str(run), folder, *more]) == 0
    text = (run / "log.jsonl").read_text()
    assert '"inside_rmse"' in text and '"score"' in text


def test_resumed_equals_uninterrupted(data: tuple[Mixture, Triplets], tmp_path: Path) -> None:
    more = ["loop.checkpoint_every=1", "drop_path=0.2", "poses=network"]
    whole = train(data, tmp_path / "whole", *more)
    cfg = settings(*more)
    for stop in (lambda step: step == 1, lambda step: False):
        parts = loop.run(
            mesa.Mesa(cfg, *data), cfg.loop, tmp_path / "parts", config.to_dict(cfg), stop=stop
        )
    for a, b in ((whole.product, parts.product), (whole.extra, parts.extra)):
        resumed, expected = a.state_dict(), b.state_dict()
        assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_run_is_exported_with_its_metres(data: tuple[Mixture, Triplets], tmp_path: Path) -> None:
    train(data, tmp_path / "run", *ONLY["supervised"], "loop.steps=1")
    out = tmp_path / "x.onnx"
    assert main(["export", str(tmp_path / "run"), "--out", str(out)]) == 0
    image = np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8)
    with DepthModel.open(ModelConfig(path=str(out), threads=1)) as model:
        prediction = model.predict(image)
    assert prediction.kind == "depth_metric"
    recipe, network, _ = started(data, *ONLY["supervised"])
    checkpoints.load(network, checkpoints.read(tmp_path / "run")["averaged"], "x")
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = recipe.depths(network.eval(), x)[0][0, 0].numpy()
    np.testing.assert_allclose(prediction.values, expected, rtol=2e-3)


def test_the_published_settings_are_the_sources() -> None:
    """SimMIM's ratio, Monodepth2's terms, MIM-Depth's fine-tuning; the rest is ours."""
    joint, tuned = (
        config.load(mesa.Config, CONFIGS / f"{name}.yaml", []) for name in ("mesa", "mesa_finetune")
    )
    for cfg in (joint, tuned):
        assert cfg.height % 14 == 0 and cfg.width % 14 == 0
    assert (joint.loss.masked, joint.loss.geometric, joint.loss.supervised) == (1, 1, 1)
    assert (joint.masking.ratio, joint.loss.variance_focus, joint.scales) == (0.6, 0.5, 4)
    # Squares of 28 px, two patches, stand for SimMIM's 32, two cells of a Swin.
    assert joint.masking.unit_px == 28 and joint.height % 28 == joint.width % 28 == 0
    pixels = joint.geometric
    assert (pixels.ssim, pixels.smooth, pixels.near, pixels.far) == (0.85, 1e-3, 0.1, 100)
    assert pixels.minimum and pixels.automask and joint.loop.learning_rate == 1e-4
    assert (tuned.loss.masked, tuned.loss.geometric, tuned.loss.supervised) == (0, 0, 1)
    assert (tuned.layer_decay, tuned.drop_path) == (0.9, 0.3)
    # Up to 5e-4 for half of the run, then down to 3e-5.
    assert (tuned.loop.batch, tuned.loop.weight_decay, tuned.loop.power) == (24, 0.05, 0.9)
    assert loop.learning_rate(tuned.loop, tuned.loop.steps // 2) == pytest.approx(5e-4, rel=1e-3)
    assert loop.learning_rate(tuned.loop, tuned.loop.steps) == pytest.approx(3e-5, rel=1e-2)


def test_the_published_settings_run_on_folders_of_their_kind(tmp_path: Path) -> None:
    """The three commands of the docs on the layouts of NYUv2 and ScanNet; smaller, for one step."""
    rng = np.random.default_rng(0)
    rooms = tmp_path / "nyuv2" / "train" / "bathroom"
    rooms.mkdir(parents=True)
    for k in range(4):
        image = cv2.resize(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8), (96, 72))
        cv2.imwrite(str(rooms / f"rgb_{k:04d}.jpg"), image)
        cv2.imwrite(str(rooms / f"sync_depth_{k:04d}.png"), np.full((72, 96), 2500, np.uint16))
    make_scannet(tmp_path / "scannet", frames=21)
    first, tuned = tmp_path / "mesa", tmp_path / "tuned"
    common = ["network.kind=debug", "height=56", "width=84", "loop.seed=0", "loop.steps=1",
              "loop.batch=2", "loop.tensorboard=false", "check.inside.limit=0",
              "check.outside.limit=0", f"images.data.folder={tmp_path / 'nyuv2'}"]  # fmt: skip
    for run, name, more in (
        (first, "mesa", f"sequences.folder={tmp_path / 'scannet'}"),
        (tuned, "mesa_finetune", f"start={first}"),
    ):
        settings_file = str(CONFIGS / f"{name}.yaml")
        assert main(["mesa", "--config", settings_file, "--run", str(run), *common, more]) == 0
    out = ["--data", str(rooms), "--out", str(tmp_path / "cka"), "--height", "56", "--width", "84"]
    assert main(["cka", str(first), str(tuned), *out]) == 0
    similarities = json.loads((tmp_path / "cka" / "cka.json").read_text())["layer_by_layer"]
    assert len(similarities) == 4 and all(0 < value <= 1 + 1e-9 for value in similarities)


@pytest.mark.parametrize(
    ("frames", "gone", "message"),
    [
        (1, "", "has 1 frame and a triplet with spacing 1 needs 3"),
        (4, "pose/2.txt", "poses: network"),
        (4, "intrinsic/intrinsic_color.txt", "intrinsics is missing"),
    ],
)
def test_a_sequence_that_cannot_be_used_ends_the_command_with_a_sentence(
    frames: int, gone: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scannet(tmp_path / "scannet", frames=frames)
    if gone:
        (scene / gone).unlink()
    videos = ["sequences.layout=scannet", f"sequences.folder={tmp_path / 'scannet'}"]
    run = ["mesa", "--config", str(DEBUG), "--run", str(tmp_path / "run")]
    assert main([*run, *ONLY["geometric"], *videos]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused_with_a_sentence(
    data: tuple[Mixture, Triplets], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="smaller than a patch"):
        started(data, "network.kind=unet", "height=14", "width=28", "scales=1")
    with pytest.raises(TrainingError, match="does not fit the patches"):
        started(data, "height=60")
    with pytest.raises(config.ConfigError, match="set scales to 1"):
        started(data, "network.kind=unet", "height=64", "width=64", "masking.unit_px=32")
    with pytest.raises(TrainingError, match="no tokens to hide"):
        started(data, "network.kind=unet", "height=64", "width=64", "loss.hide=true", "scales=1")
    with pytest.raises(TrainingError, match=r"set network\.kind to unet, or leave imagenet empty"):
        started(data, "imagenet=mobilenet_v2-b0353104.pth")
    with pytest.raises(TrainingError, match="set its encoder to mobilenet, or detail"):
        started(data, "imagenet=x.pth", "network.kind=unet", "height=64", "width=64", "scales=1")
    with pytest.raises(TrainingError, match=r"network\.unet\.encoder to mobilenet, or frozen_"):
        started(data, "frozen_blocks=4")
    with pytest.raises(TrainingError, match="no multiple"):
        started(data, "loss.hide=true", "masking.unit_px=20", *ONLY["supervised"])
    with pytest.raises(config.ConfigError, match="nothing would be learnt"):
        settings("loss.masked=0", "loss.geometric=0", "loss.supervised=0")
    with pytest.raises(config.ConfigError, match="typical"):
        settings("typical=200")
    with pytest.raises(TrainingError, match="no checkpoint"):
        started(data, f"start={tmp_path / 'absent'}")
    image = tmp_path / "images"
    image.mkdir()
    cv2.imwrite(str(image / "a.png"), torch.zeros(70, 90, 3).byte().numpy())
    cfg = settings("images.first=data", f"images.data.folder={image}")
    assert len(open_samples(DataConfig(folder=str(image)))) == 1
    with pytest.raises(DataError, match="has no depth"):
        mesa.Mesa(cfg, Mixture(cfg.images), data[1]).batch(0, (0, 1))


def test_a_network_of_an_exported_file_begins_as_that_network(
    data: tuple[Mixture, Triplets],
) -> None:
    # Its normalisations are folded: the statistics of a batch would change its output completely.
    changes = ("network.kind=unet", "network.source=embedded-small", "height=64", "width=96")
    videos = open_triplets(settings().sequences, 64, 96, True)
    for images in (data[0], None):  # from images, or from videos alone
        made = mesa.Mesa(settings(*changes), images, videos)
        network: Any = made.model()
        rngs = [np.random.default_rng(100 + k) for k in range(16)]
        x = data[0].batch(rngs, made.cfg.height, made.cfg.width, made.cfg.augment)["image"]
        x = network.spec.normalise(x)
        with torch.no_grad():
            packaged = open_network(made.cfg.network).eval()(x)
            begun, learning = network.eval()(x), network.train()(x)
        spread = float(packaged.std())
        assert float((begun - packaged).abs().max()) < 1e-3 * spread
        assert float((learning - packaged).abs().mean()) < 0.5 * spread  # scrambled: more than 1
