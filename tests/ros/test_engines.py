# SPDX-License-Identifier: Apache-2.0
"""What a node says of the engine that runs its network, and of those that do not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray

from depth_node.engine.manifest import manifest_path
from tests.helpers.rig import IDENTITY, PATIENCE_S, Rig, until

no_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is here"
)


def rig(network: Path, *more: str) -> Rig:
    return Rig(f"model.path:={network}", f"T_camera_lidar:={IDENTITY}", *more)


@no_tensorrt
def test_a_back_end_that_is_not_here_is_told_in_log_and_diagnostics(network: Path) -> None:
    more = ("model.backend:=tensorrt", "engine.fallback:=[onnxruntime-cpu]")
    with rig(network, *more) as running:
        assert running.change("configure")
        running.said("back end tensorrt cannot be used here: no module tensorrt")
        arrays = running.listen(DiagnosticArray, "/diagnostics")
        until(lambda: arrays, PATIENCE_S, "diagnostics")
        values = {item.key: item.value for item in arrays[-1].status[0].values}
    assert values["engine not tensorrt"].startswith("no module tensorrt")
    assert values["engine check"] == "is the reference"
    assert "onnxruntime-cpu" in values["backend"]


@no_tensorrt
def test_without_a_fallback_it_is_not_configured(network: Path) -> None:
    with rig(network, "model.backend:=tensorrt") as running:
        assert not running.change("configure")
        running.said("cannot be configured: back end tensorrt cannot be used here")


def test_limits_that_cannot_be_read_refuse(network: Path, tmp_path: Path) -> None:
    facts = tmp_path / "facts.yaml"
    facts.write_text(manifest_path(network).read_text() + "limits: {corelation: 1}\n")
    with rig(network, f"model.manifest:={facts}") as running:
        assert not running.change("configure")
        running.said("did you mean limits.correlation?")
