# SPDX-License-Identifier: Apache-2.0
"""Networks of every kind from random weights and folders; LoRA under all naming schemes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")


from depth_node import config
from depth_node.engine.manifest import manifest_path
from depth_node.inference import DepthModel, ModelConfig
from depth_node.model_zoo.registry import locate
from tests.helpers.torch_networks import SMALL_UNET, awake, debug, images, parameter_count
from training import checkpoints
from training.checkpoints import TrainingError
from training.models.hub import DepthAnything
from training.models.lora import (
    TuneConfig,
    low_rank,
    tune,
)
from training.models.networks import NetworkConfig, open_dino, open_network


@pytest.mark.parametrize("kind", ["debug", "unet"])
def test_every_network_answers_disparity_of_the_pictures_size(kind: str) -> None:
    network = open_network(NetworkConfig(kind=kind, unet=SMALL_UNET)).eval()
    height, width = network.spec.fitting(60, 90)
    x = network.spec.normalise(images(height, width))
    answer = network.answer(x)
    assert answer.disparity.shape == (2, 1, height, width)
    assert answer.disparity.dtype == torch.float32
    assert torch.equal(network(x), answer.disparity)
    assert answer.features.shape[:2] == (2, network.channels)


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


@pytest.mark.parametrize(
    ("name", "size"), [("embedded", (192, 256)), ("embedded-small", (96, 128))]
)
def test_the_shipped_networks_open_in_torch_as_they_run_on_the_robot(
    name: str, size: tuple[int, int]
) -> None:
    network = open_network(NetworkConfig(source=name)).eval()
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    x = network.spec.normalise(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    with DepthModel.open(ModelConfig(name, threads=1)) as model:
        expected = model.predict(image).values
    with torch.no_grad():
        values = network(x)[0, 0].numpy()
    np.testing.assert_allclose(values, expected, atol=1e-3 * expected.std())


def test_a_shipped_file_that_is_not_there_or_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="does not exist"):
        open_network(NetworkConfig(source=str(tmp_path / "no.onnx")))
    path, manifest = locate("embedded")
    alone = tmp_path / path.name
    alone.write_bytes(path.read_bytes())
    dataclasses.replace(manifest, training={}).save(manifest_path(alone))  # says no shape
    with pytest.raises(TrainingError, match="another network"):
        open_network(NetworkConfig(source=str(alone), unet=SMALL_UNET))


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
