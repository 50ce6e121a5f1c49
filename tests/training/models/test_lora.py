# SPDX-License-Identifier: Apache-2.0
"""Which part of a network learns; low-rank updates."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from torch import nn

from depth_node import config
from tests.helpers.torch_networks import SMALL_UNET, awake, debug, images, parameter_count
from training.checkpoints import TrainingError
from training.losses.depth import product_norm
from training.models.lora import (
    TuneConfig,
    hold_statistics,
    low_rank,
    merged,
    tune,
)
from training.models.networks import NetworkConfig, open_network
from training.models.unet import SmallUNet


class Attention4(nn.Module):
    """An attention layer with the names of transformers 4."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))


class Attention(nn.Module):
    """An attention layer with one matrix for query, key and value, as in DINOv2 and timm."""

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


@pytest.mark.parametrize("mode", ["full", "encoder", "decoder"])
def test_parts_learn_as_told(mode: str) -> None:
    network = tune(debug(), TuneConfig(mode=mode))
    learnt = {n.split(".")[1] for n, p in network.named_parameters() if p.requires_grad}
    expected = {"full": {"backbone", "neck", "head"}, "encoder": {"backbone"}}
    assert learnt == expected.get(mode, {"neck", "head"})
    unet = tune(SmallUNet(SMALL_UNET), TuneConfig(mode=mode))
    learnt = {n.split(".")[0] for n, p in unet.named_parameters() if p.requires_grad}
    encoder, decoder = {"stem", "stages", "context"}, {"up", "head"}
    both = encoder | decoder
    assert learnt == {"full": both, "encoder": encoder, "decoder": decoder}[mode]


@pytest.mark.parametrize(
    ("changes", "pattern", "updated"),
    [
        ({}, "", {"stem", "stages", "context"}),
        ({"encoder": "mobilenet"}, "", {"encoder", "context"}),
        # A MobileNetV2 is in the detail.
        ({"detail": (8, 8)}, ".*", {"stem", "stages", "context", "up", "head", "detail"}),
    ],
)
def test_convolutions_get_low_rank_updates_too(
    changes: dict[str, Any], pattern: str, updated: set[str]
) -> None:
    source = SmallUNet(dataclasses.replace(SMALL_UNET, **changes)).eval()
    before = {name: weight.clone() for name, weight in source.state_dict().items()}
    network = awake(tune(source, TuneConfig(rank=2, alpha=1, pattern=pattern)))
    names = {n.split(".")[0] for n, p in network.named_parameters() if p.requires_grad}
    assert names == updated
    x = images(64, 128)
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


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_statistics_are_held(mode: str) -> None:
    network = tune(SmallUNet(SMALL_UNET), TuneConfig(mode=mode, rank=2))
    network.train()
    hold_statistics(network)
    before = {name: weight.clone() for name, weight in network.named_buffers()}
    network(images(64, 96))
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name])


def test_lora_where_no_layer_fits_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"tune\.pattern"):
        tune(SmallUNet(SMALL_UNET), TuneConfig(pattern="nothing"))
    chosen = tune(SmallUNet(SMALL_UNET), TuneConfig(pattern=r"context\.body\.\d"))
    assert len(list(low_rank(chosen))) == 2
    with pytest.raises(config.ConfigError, match="regular expression"):
        TuneConfig(pattern="(")
