# SPDX-License-Identifier: Apache-2.0
"""`depth_tools models`: list, and the manifest of a user's model."""

from __future__ import annotations

from pathlib import Path

import pytest

from depth_node.cli import main
from depth_node.engine.manifest import Manifest

pytest.importorskip("rich", reason="rich is not installed")
# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


def test_manifest_of_a_users_model(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shared / "models" / "fastdepth_nyu_224.onnx"
    place = tmp_path / "fastdepth.manifest.yaml"
    arguments = ["models", "manifest", str(model), "--meaning", "depth_metric", "--out", str(place)]
    assert main.main([*arguments, "--licence", "MIT", "--mean", "0.5", "0.4", "0.3"]) == 0
    manifest = Manifest.load(place)
    assert manifest.meaning == "depth_metric" and manifest.licence == "MIT"
    assert manifest.input.mean == (0.5, 0.4, 0.3)
    assert (manifest.input.height, manifest.input.width) == (224, 224)
    assert f"--model {model} --manifest {place}" in capsys.readouterr().out
    assert main.main([*arguments[:4], "depth_metrc", *arguments[5:]]) == 2
    assert "did you mean depth_metric?" in capsys.readouterr().err


def test_list_shows_the_packages_network_and_those_to_fetch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main.main(["models", "list"]) == 0
    shown = capsys.readouterr().out
    for word in ("embedded", "whole", "To fetch", "licence", "fetched networks lie in"):
        assert word in shown
