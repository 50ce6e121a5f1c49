# SPDX-License-Identifier: Apache-2.0
"""Files that are not a network or incomplete: one sentence with the true cause and a cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.cli.main import main
from depth_node.engine import EngineError
from depth_node.engine.manifest import model_sha256
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.model_file import external_weights, fault_of, is_beside
from depth_node.inference import open_engine
from depth_node.model_zoo import convert

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from tests.helpers.onnx_graphs import FEW, graph
from tests.helpers.refusals import refusal


def with_weights(path: Path, location: str = "net.onnx.data") -> Path:
    """A model whose weights are in a separate file."""
    made = graph(
        [("MatMul", ["image", "w"], ["out"])], {"w": np.ones((12, 200), np.float32)}, opset=18
    )
    onnx.save(made, str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


def renamed_weights(path: Path, location: str) -> Path:
    """The same, but the model names another place for its weights."""
    made = onnx.load(str(with_weights(path)), load_external_data=False)
    made.graph.initializer[0].external_data[0].value = location
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["net.onnx.data", "weights.bin"])
def test_model_without_its_file_of_weights(tmp_path: Path, location: str) -> None:
    """The tool, the node and the converter give the same message, and it is not "wrong hash"."""
    path = with_weights(tmp_path / "net.onnx", location)
    assert external_weights(path) == {location: 12 * 200 * 4}
    write_manifest(path, "depth_metric")
    (tmp_path / location).unlink()
    for call in (
        lambda: write_manifest(path, "depth_metric"),
        lambda: open_engine(path),
        lambda: convert.convert(path, FEW),
    ):
        sentence = refusal(call)
        assert f"keeps its weights in {location}, which is not beside it" in sentence
        assert "copy both files into one folder" in sentence


def test_weights_that_were_cut_off(tmp_path: Path) -> None:
    path = with_weights(tmp_path / "net.onnx")
    data = tmp_path / "net.onnx.data"
    data.write_bytes(data.read_bytes()[:4000])
    sentence = refusal(lambda: write_manifest(path, "depth_metric"))
    assert "holds 4000 bytes of the 9600 of weights of net.onnx" in sentence
    assert "fetch or export both files again" in sentence


@pytest.mark.parametrize("place", ["../w.data", "/etc/hostname", "a/../../w", "C:\\w", "..\\w"])
def test_weights_from_outside_the_folder_are_refused(tmp_path: Path, place: str) -> None:
    path = renamed_weights(tmp_path / "net.onnx", place)
    assert not is_beside(place)
    assert "outside its own folder" in refusal(lambda: write_manifest(path, "depth_metric"))


def test_hash_covers_weights_of_any_name(tmp_path: Path) -> None:
    path = with_weights(tmp_path / "net.onnx", "weights.bin")
    write_manifest(path, "depth_metric")
    before = model_sha256(path)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "weights.bin").write_bytes(bytes(data))
    assert model_sha256(path) != before
    assert "is not the file its manifest describes" in refusal(lambda: open_engine(path))


def test_folder_of_weights_and_names_of_two_words_are_fine(tmp_path: Path) -> None:
    (tmp_path / "the weights").mkdir()
    path = with_weights(tmp_path / "net.onnx", "the weights/w 1.bin")
    write_manifest(path, "depth_metric")
    with open_engine(path) as engine:
        answer = engine.run(np.ones((1, 3, 8, 12), np.float32))
    assert np.all(answer == 12)


def _edited(change: Callable[[Any], None], nodes: Any = None) -> bytes:
    made = graph(nodes or [("Relu", ["image"], ["out"])], opset=18)
    change(made)
    content: bytes = made.SerializeToString()
    return content


def _opset(version: int) -> Callable[[Any], None]:
    def change(made: Any) -> None:
        made.opset_import[0].version = version

    return change


def _same(made: Any) -> None:
    pass


def _ir(made: Any) -> None:
    made.ir_version = 99


def _domain(made: Any) -> None:
    made.graph.node[0].domain = "com.example"


def _graphless(made: Any) -> None:
    made.ClearField("graph")


BLUR = [("Blur", ["image"], ["out"])]
OLD = [("Upsample", ["image", "image"], ["out"])]
BFLOAT = [
    ("Cast", ["image"], ["h"], {"to": 16}),
    ("Selu", ["h"], ["o"]),
    ("Cast", ["o"], ["out"], {"to": 1}),
]
DOUBLE = [
    ("Cast", ["image"], ["h"], {"to": 11}),
    ("Conv", ["h", "h"], ["o"]),
    ("Cast", ["o"], ["out"], {"to": 1}),
]
REFUSALS = {
    "unknown operator": (_edited(_same, BLUR), ["operator Blur,", "opset 18", "opset 17 to 20"]),
    "removed operator": (_edited(_same, OLD), ["operator Upsample,", "opset 18"]),
    "custom operator": (
        _edited(_domain, BLUR),
        ["operator Blur of com.example", "without plug-ins or custom"],
    ),
    "opset": (_edited(_opset(99)), ["is of ONNX opset 99", "reads up to", "opset 17 to 20"]),
    "ir version": (_edited(_ir), ["IR version 99", "reads up to", "install a newer version"]),
    "no graph": (_edited(_graphless), ["holds no network", "cut off"]),
    "type of an operator": (_edited(_same, BFLOAT), ["Selu a tensor(bfloat16)", "in float32"]),
    "no kernel": (_edited(_same, DOUBLE), ["operator Conv with a type", "in float32"]),
    "loose end": (
        _edited(_same, [("Relu", ["nowhere"], ["out"])]),
        ["is no valid ONNX network (Node input 'nowhere'", "export it again"],
    ),
    "checkpoint": (b"PK\x03\x04" + bytes(600), ["a ZIP archive, as PyTorch", "export"]),
    "pickle": (b"\x80\x02}q" + bytes(600), ["a Python pickle", "export"]),
    "lite": (b"\x1c\0\0\0TFL3" + bytes(600), ["TensorFlow Lite", "export"]),
    "safetensors": (b'\x40\0\0\0\0\0\0\0{"a": 1}', ["safetensors", "export"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_manifest_tool_names_cause_and_cure(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, wanted = REFUSALS[name]
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    sentence = refusal(lambda: write_manifest(path, "depth_metric"))
    assert sentence.startswith(str(path))
    for part in wanted:
        assert part in sentence
    assert main(["models", "manifest", str(path), "--meaning", "depth_metric"]) != 0
    told = " ".join(capsys.readouterr().err.split())
    assert wanted[0] in told and "Traceback" not in told


def test_a_whole_network_has_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(_edited(_same))
    assert fault_of(path) == "" and external_weights(path) == {}


def test_any_cut_of_a_file_is_told_and_not_raised(tmp_path: Path) -> None:
    whole = with_weights(tmp_path / "net.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        assert isinstance(fault_of(path), str)
        if size % 16 == 0:
            with pytest.raises(EngineError, match=r"fetch|export|install|copy"):
                write_manifest(path, "depth_metric")
