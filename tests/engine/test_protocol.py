# SPDX-License-Identifier: Apache-2.0
"""Models with several inputs and outputs, such as a prompt decoder, through the same protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.engine.manifest_writer import write_manifest
from depth_node.inference import open_engine

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import helper


def save_two(path: Path, rows: int | str = 4) -> Path:
    """`total` = points + offset and `half` = points / 2, of points (rows, 2) and an offset (1,)."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["points", "offset"], ["total"]),
            helper.make_node("Mul", ["points", "factor"], ["half"]),
        ],
        "two",
        [
            helper.make_tensor_value_info("points", onnx.TensorProto.FLOAT, [rows, 2]),
            helper.make_tensor_value_info("offset", onnx.TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [rows, 2])
            for name in ("total", "half")
        ],
        [helper.make_tensor("factor", onnx.TensorProto.FLOAT, [1], [0.5])],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def decoder(folder: Path, **options: Any) -> Path:
    path = save_two(folder / "two.onnx")
    given = {"height": 64, "width": 80, "outputs": ("total", "half"), **options}
    write_manifest(path, "prompt_masks", **given)
    return path


def test_named_tensors_in_and_out(tmp_path: Path) -> None:
    path = decoder(tmp_path)
    facts = Manifest.load(manifest_path(path))
    assert facts.input_shapes == {"points": (4, 2), "offset": (1,)}
    assert facts.output_names == ("total", "half")
    assert facts.input.shape == (1, 3, 64, 80)
    points = np.arange(8, dtype=np.float32).reshape(4, 2)
    with open_engine(path, threads=1) as engine:
        found = engine.run_named({"points": points, "offset": np.ones(1, np.float32)})
    assert list(found) == ["total", "half"]
    np.testing.assert_array_equal(found["total"], points + 1)
    np.testing.assert_array_equal(found["half"], points / 2)


def test_one_output_of_several_is_enough(tmp_path: Path) -> None:
    path = decoder(tmp_path, outputs=("half",))
    tensors = {"points": np.ones((4, 2), np.float32), "offset": np.ones(1, np.float32)}
    with open_engine(path) as engine:
        assert list(engine.run_named(tensors)) == ["half"]


def test_wrong_tensors_are_told(tmp_path: Path) -> None:
    offset = np.ones(1, np.float32)
    with open_engine(decoder(tmp_path)) as engine:
        with pytest.raises(EngineError, match="takes points, offset, not points"):
            engine.run_named({"points": np.ones((4, 2), np.float32)})
        with pytest.raises(EngineError, match=r"points .* \(5, 2\).* asks for \(4, 2\)"):
            engine.run_named({"points": np.ones((5, 2), np.float32), "offset": offset})
        with pytest.raises(EngineError, match="manifest asks for"):
            engine.run(np.ones((4, 2), np.float32))
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.run_named({"points": np.ones((4, 2), np.float32), "offset": offset})


def test_file_and_manifest_that_contradict_each_other(tmp_path: Path) -> None:
    path = decoder(tmp_path)
    values = yaml.safe_load(manifest_path(path).read_text())
    values["inputs"]["points"] = [8, 2]
    manifest_path(path).write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(EngineError, match=r"has the inputs .*\(4, 2\).*manifest says .*\(8, 2\)"):
        open_engine(path)
    values["inputs"] = {"points": "eight"}
    manifest_path(path).write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(EngineError, match="inputs must map names"):
        open_engine(path)


def test_open_shapes_and_wrong_first_names_are_refused(tmp_path: Path) -> None:
    path = save_two(tmp_path / "open.onnx", rows="n")
    with pytest.raises(EngineError, match=r"points of shape \(None, 2\).*fixed shapes"):
        write_manifest(path, "prompt_masks", height=8, width=8, outputs=("total",))
    with pytest.raises(EngineError, match=r"output_name is 'half' and not the first"):
        decoder(tmp_path, output_name="half")


def test_decoder_belongs_to_prompts_alone(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="region_prompts, and only it, needs"):
        decoder(tmp_path, decoder="other.onnx")
