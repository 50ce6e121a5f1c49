# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the model zoo's tests: a hub, a registry, and a small network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.model_zoo import registry
from tests.helpers import hub_server


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    """A server that answers as the hub does."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    with hub_server.serve() as running:
        yield running


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder, and no token or proxy of the machine."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data" / "depth_node" / "models"


@pytest.fixture
def net(
    hub: hub_server.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, Any]]:
    """A registry with the network `net`, on the local hub; change it before fetching."""
    from tests.helpers.networks import entry_facts, model_bytes

    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    open_size = {"pixel_values": ["n", 3, "h", "w"]}
    hub.files["somebody/net/onnx/model.onnx"] = model_bytes(tmp_path, inputs=open_size)
    return {"net": entry_facts()}


@pytest.fixture
def ready(
    net: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> registry.RegistryEntry:
    """The network `net`, registered and not yet fetched."""
    from tests.helpers.networks import install

    install(net, tmp_path, monkeypatch)
    return registry.find("net")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Two convolutions with a manifest."""
    from tests.helpers.onnx_graphs import f32, graph, saved

    weights = {
        "w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
        "v": np.random.default_rng(1).normal(size=(1, 4, 1, 1)).astype(np.float32),
        "ten": f32(10),
    }
    nodes = [
        ("Conv", ["image", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c"], ["r"]),
        ("Conv", ["r", "v"], ["d"]),
        ("Add", ["d", "ten"], ["out"]),
    ]
    folder = tmp_path / "network"
    folder.mkdir()
    return saved(graph(nodes, weights), folder / "network.onnx")
