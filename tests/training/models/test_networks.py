# SPDX-License-Identifier: Apache-2.0
"""Networks of every kind from random weights and folders; LoRA under all naming schemes."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from torch import nn

from depth_node import config
from depth_node.engine.manifest import manifest_path
from depth_node.inference import DepthModel, ModelConfig
from depth_node.model_zoo.registry import locate
from training import checkpoints
from training.checkpoints import TrainingError
from training.losses.depth import product_norm
from training.models.hub import DepthAnything
from training.models.lora import (
    TuneConfig,
    hold_statistics,
    low_rank,
    merged,
    parameter_count,
    tune,
)
from training.models.networks import NetworkConfig, open_dino, open_network
from training.models.unet import SmallUNet, StudentConfig

SMALL_UNET = StudentConfig((8, 8, 16, 16, 16), (0, 1, 1, 1, 1), (16, 8, 8, 8))


def debug() -> DepthAnything:
    torch.manual_seed(0)
    network = open_network(NetworkConfig(kind="debug"))
    assert isinstance(network, DepthAnything)
    return network.eval()


def awake(model: nn.Module) -> nn.Module:
    """With low-rank updates that are not zero, as they are after some learning."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


def images(height: int = 56, width: int = 84) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("kind", "millions"), [("small", 24.8), ("base", 97.5), ("large", 335.3), ("vit_tiny", 6.7)]
)
def test_sizes_are_the_published_ones(kind: str, millions: float) -> None:
    with torch.device("meta"):
        network = open_network(NetworkConfig(kind))
    assert parameter_count(network) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("kind", ["debug", "unet"])
def test_every_network_answers_disparity_of_the_pictures_size(kind: str) -> None:
    network = open_network(NetworkConfig(kind, unet=SMALL_UNET)).eval()
    height, width = network.spec.fitting(60, 90)
    x = network.spec.normalise(images(height, width))
    answer = network.answer(x)
    assert answer.disparity.shape == (2, 1, height, width)
    assert answer.disparity.dtype == torch.float32
    assert torch.equal(network(x), answer.disparity)
    assert answer.features.shape[:2] == (2, network.channels)


def test_the_relu_can_be_looked_behind_and_the_answer_is_the_librarys() -> None:
    network = debug()
    x = network.spec.normalise(images())
    library = copy.deepcopy(network.network)
    library.head.activation2 = nn.ReLU()
    answer = network.answer(x)
    assert answer.before is not None
    assert torch.equal(answer.disparity, answer.before.clamp_min(0))
    torch.testing.assert_close(answer.disparity[:, 0], library(x).predicted_depth)


def test_features_are_the_patches_in_their_places() -> None:
    """An image changed in one corner changes the features of that corner most."""
    network = debug()
    x = images()
    other = x.clone()
    other[..., :14, -14:] = 0
    with torch.no_grad():
        change = (network.answer(x).features - network.answer(other).features).abs().sum(1)
    assert change.shape == (2, 4, 6)
    assert change.flatten(1).argmax(1).tolist() == [5, 5]


def test_sides_that_are_no_multiple_of_a_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples"):
        debug()(torch.zeros(1, 3, 56, 60))


def test_saved_and_opened_is_the_same(tmp_path: Path) -> None:
    network = debug()
    network.network.save_pretrained(tmp_path)
    again = open_network(NetworkConfig(kind="small", source=str(tmp_path))).eval()
    assert isinstance(again, DepthAnything)
    torch.testing.assert_close(again(images()), network(images()))
    empty = open_network(NetworkConfig(source=str(tmp_path), kind="small"), weights=False)
    assert parameter_count(empty) == parameter_count(network)


def test_what_is_not_there_is_said_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def no_network(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    name = "somebody/a-network-that-is-not-here"
    with pytest.raises(TrainingError, match="allow_download"):
        open_network(NetworkConfig(kind="small", source=name))
    with pytest.raises(TrainingError, match=r"config\.json"):
        open_network(NetworkConfig(kind="small", source=str(tmp_path)))
    with pytest.raises(TrainingError, match="no checkpoint of ours"):
        open_network(NetworkConfig(kind="unet", source=str(tmp_path)))
    with pytest.raises(TrainingError, match="cannot be opened"):
        open_dino(NetworkConfig(kind="small", source=name))
    with pytest.raises(TrainingError, match="DINOv2"):
        open_dino(NetworkConfig(kind="unet"))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    network = debug().network
    network.config.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(TrainingError, match="safetensors"):
        open_network(NetworkConfig(kind="small", source=str(tmp_path)))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    open_dino(NetworkConfig(kind="debug")).network.save_pretrained(tmp_path)
    debug().network.config.save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="do not fit"):
        open_network(NetworkConfig(kind="small", source=str(tmp_path)))


def test_dino_gives_frozen_features(tmp_path: Path) -> None:
    dino = open_dino(NetworkConfig(kind="debug"))
    assert dino(images()).shape == (2, dino.channels, 4, 6)
    assert parameter_count(dino, learnt=True) == 0
    dino.network.save_pretrained(tmp_path)
    again = open_dino(NetworkConfig(kind="debug", source=str(tmp_path)))
    torch.testing.assert_close(again(images()), dino(images()))


class Attention4(nn.Module):
    """The names of transformers 4."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))


class Attention(nn.Module):
    """One matrix for query, key and value, as in the original DINOv2 and timm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)


def nested(**parts: nn.Module) -> nn.Module:
    out = nn.Module()
    for name, part in parts.items():
        out.add_module(name, part)
    return out


@pytest.mark.parametrize(
    ("targets", "layers", "numbers"),
    [(("q", "v"), 24, 147_456), (("q", "k", "v", "o"), 48, 294_912)],
)
def test_low_rank_updates_of_the_small_depth_anything(
    targets: tuple[str, ...], layers: int, numbers: int
) -> None:
    with torch.device("meta"):
        network = tune(open_network(NetworkConfig(kind="small")), TuneConfig(targets=targets))
    assert len(list(low_rank(network))) == layers
    assert parameter_count(network, learnt=True) == numbers


def test_low_rank_updates_under_the_other_names() -> None:
    layer = nested(attention=nested(attention=Attention4(), output=nested(dense=nn.Linear(8, 8))))
    old = nested(backbone=nested(encoder=nested(layer=nn.ModuleList([layer]))), head=Attention4())
    tune(old, TuneConfig(targets=("q", "v", "o")))
    names = sorted(n for n, m in old.named_modules() if hasattr(m, "lora_A"))
    stem = "backbone.encoder.layer.0.attention."
    assert names == [stem + n for n in ("attention.query", "attention.value", "output.dense")]
    fused = nested(blocks=nn.ModuleList([nested(attn=Attention())]), head=Attention())
    tune(fused, TuneConfig(targets=("q", "v")))
    assert [n for n, m in fused.named_modules() if hasattr(m, "lora_A")] == ["blocks.0.attn.qkv"]


def test_merging_changes_nothing() -> None:
    network = awake(tune(debug(), TuneConfig(rank=4)))
    x = network.spec.normalise(images())  # type: ignore[union-attr, operator]
    with torch.no_grad():
        before, plain = network(x), debug()(x)
        names = {name for name, _ in debug().named_parameters()}
        after = merged(network)(x)
    assert float((before - plain).abs().max()) > 1e-3, "the updates must do something"
    assert float((before - after).abs().max()) < 1e-5
    assert {name for name, _ in network.named_parameters()} == names


def test_the_cheap_norm_is_that_of_the_change_of_the_weights() -> None:
    source = dict(debug().named_parameters())
    network = awake(tune(debug(), TuneConfig(rank=4, alpha=6)))
    cheap = float(product_norm(low_rank(network)).detach())
    dense = sum(
        float(((weight - source[name]) ** 2).sum().detach())
        for name, weight in merged(network).named_parameters()
    )
    assert cheap == pytest.approx(dense, rel=1e-4)


@pytest.mark.parametrize("what", ["full", "encoder", "decoder"])
def test_parts_learn_as_told(what: str) -> None:
    network = tune(debug(), TuneConfig(mode=what))
    learnt = {n.split(".")[1] for n, p in network.named_parameters() if p.requires_grad}
    expected = {"full": {"backbone", "neck", "head"}, "encoder": {"backbone"}}
    assert learnt == expected.get(what, {"neck", "head"})
    unet = tune(SmallUNet(SMALL_UNET), TuneConfig(mode=what))
    learnt = {n.split(".")[0] for n, p in unet.named_parameters() if p.requires_grad}
    encoder, decoder = {"stem", "stages", "context"}, {"up", "head"}
    both = encoder | decoder
    assert learnt == {"full": both, "encoder": encoder, "decoder": decoder}[what]


def test_convolutions_get_low_rank_updates_too() -> None:
    source = SmallUNet(SMALL_UNET).eval()
    before = {name: weight.clone() for name, weight in source.state_dict().items()}
    network = awake(tune(source, TuneConfig(rank=2, alpha=1)))
    names = {n.split(".")[0] for n, p in network.named_parameters() if p.requires_grad}
    assert names == {"stem", "stages", "context"}
    x = images(64, 96)
    cheap = float(product_norm(low_rank(network)).detach())
    with torch.no_grad():
        answer = network(x)
        after = merged(network)
        torch.testing.assert_close(after(x), answer, atol=1e-4, rtol=1e-4)
    dense = sum(
        float(((weight - before[name]).float() ** 2).sum())
        for name, weight in after.state_dict().items()
    )
    assert cheap == pytest.approx(dense, rel=1e-4)


def test_statistics_of_what_does_not_learn_are_held() -> None:
    network = tune(SmallUNet(SMALL_UNET), TuneConfig(rank=2))
    network.train()
    hold_statistics(network)
    before = {name: weight.clone() for name, weight in network.named_buffers()}
    network(images(64, 96))
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name])
    whole = tune(SmallUNet(SMALL_UNET), TuneConfig(mode="full")).train()
    hold_statistics(whole)
    assert all(layer.training for layer in whole.modules())


def test_the_shipped_network_opens_in_torch_as_it_runs_on_the_robot() -> None:
    network = open_network(NetworkConfig(source="embedded")).eval()
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    x = network.spec.normalise(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    with DepthModel.open(ModelConfig(threads=1)) as model:
        expected = model.predict(image).values
    with torch.no_grad():
        found = network(x)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.std())


def test_a_shipped_file_that_is_not_there_or_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="does not exist"):
        open_network(NetworkConfig(source=str(tmp_path / "no.onnx")))
    path, facts = locate("embedded")
    alone = tmp_path / path.name
    alone.write_bytes(path.read_bytes())
    dataclasses.replace(facts, training={}).save(manifest_path(alone))  # says no shape
    with pytest.raises(TrainingError, match="another network"):
        open_network(NetworkConfig(source=str(alone), unet=SMALL_UNET))


def test_a_mirroring_unet_answers_alike_from_both_sides_once_trained() -> None:
    torch.manual_seed(0)
    network = SmallUNet(dataclasses.replace(SMALL_UNET, mirror=True)).eval()
    plain = SmallUNet(SMALL_UNET).eval()
    plain.load_state_dict(network.state_dict())
    x = images(64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(x.flip(3)).flip(3), network(x))
        assert not torch.allclose(plain(x.flip(3)).flip(3), plain(x))
        torch.testing.assert_close(network(x), (plain(x) + plain(x.flip(3)).flip(3)) / 2)
        network.train(), plain.train()
        torch.testing.assert_close(network(x), plain(x))


def test_lora_where_no_layer_fits_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"tune\.pattern"):
        tune(SmallUNet(SMALL_UNET), TuneConfig(pattern="nothing"))
    chosen = tune(SmallUNet(SMALL_UNET), TuneConfig(pattern=r"context\.body\.\d"))
    assert len(list(low_rank(chosen))) == 2
    with pytest.raises(config.ConfigError, match="regular expression"):
        TuneConfig(pattern="(")


@pytest.mark.parametrize("lora", [True, False])
def test_a_run_of_ours_opens_as_a_source(tmp_path: Path, lora: bool) -> None:
    network = tune(debug(), TuneConfig(mode="lora" if lora else "full"))
    awake(network)
    settings = {
        "network": config.to_dict(NetworkConfig(kind="debug")),
        "tune": config.to_dict(TuneConfig(mode="lora" if lora else "full")),
    }
    about = {"recipe": "westar", "settings": settings}
    checkpoints.write(tmp_path, 3, about, {"averaged": network.state_dict()}, {})
    again = open_network(NetworkConfig(source=str(tmp_path)))
    assert not list(low_rank(again))
    torch.testing.assert_close(again(images()), network(images()), atol=1e-5, rtol=1e-5)
    other = {"recipe": "other", "settings": {}}
    checkpoints.write(tmp_path / "o", 3, other, {"averaged": network.state_dict()}, {})
    with pytest.raises(TrainingError, match="other"):
        open_network(NetworkConfig(source=str(tmp_path / "o")))
