# SPDX-License-Identifier: Apache-2.0
"""`depth_tools models`: list, and the manifest of a user's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from depth_node.cli import main
from depth_node.engine.manifest import Manifest, manifest_path

pytest.importorskip("rich", reason="rich is not installed")
# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")

MEAN = ("ReduceMean", ["b", "channels"], ["output"])


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


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([("Identity", ["image"], ["output"])], "needs (height, width)"),
        ([("Sub", ["image", "image"], ["a"]), ("Div", ["a", "a"], ["b"]), MEAN], "finite number"),
        ([("Sub", ["image", "image"], ["a"]), ("Add", ["a", "two"], ["b"]), MEAN], "2 everywhere"),
        ([("Abs", ["image"], ["a"]), ("Neg", ["a"], ["b"]), MEAN], "below 0 in half of the image"),
        ([("Exp", ["image"], ["b"]), MEAN], ""),
    ],
    ids=["shape", "nan", "constant", "negative", "right"],
)
def test_a_networks_answer_is_looked_at_before_its_manifest_is_written(
    nodes: list[Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx", reason="onnx builds the models of this test")
    from tests.helpers.tiny_models import save_nodes

    model = save_nodes(
        tmp_path / "net.onnx", nodes, constants={"two": [2.0]}, whole={"channels": [1]}
    )
    arguments = ["models", "manifest", str(model), "--meaning", "depth_metric"]
    assert main.main(arguments) == (2 if told else 0)
    said = capsys.readouterr().err
    assert told in said and len(said.strip().splitlines()) == (1 if told else 0)
    assert manifest_path(model).exists() == (not told)
    # The check can be left out; names, shapes and types are compared all the same.
    assert main.main([*arguments, "--no-run"]) == 0
    assert Manifest.load(manifest_path(model)).meaning == "depth_metric"
    assert main.main([*arguments, "--no-run", "--output-name", "nothing"]) == 2
