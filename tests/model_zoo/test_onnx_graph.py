# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs: types, measured ranges, rounding, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depth_node.inference import open_engine
from depth_node.model_zoo import fp16, onnx_graph

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import TensorProto

from tests.helpers.onnx_graphs import (
    FLOAT,
    HALF,
    IMAGE,
    OVERFLOWS,
    SHAPE,
    blindly,
    branching,
    graph,
    near,
    saved,
)
from tests.helpers.refusals import refusal


def test_blind_cast_would_pass_on_onnxruntime_alone(tmp_path: Path) -> None:
    """FP16 is rounded by extra nodes because ONNX Runtime on the CPU does not show the overflow."""
    model = OVERFLOWS["squares of a normalisation"]
    plain, blind = tmp_path / "plain.onnx", tmp_path / "blind.onnx"
    cast = blindly(model)
    for path, content in ((plain, model), (blind, cast), (tmp_path / "r.onnx", cast)):
        if path.name == "r.onnx":
            content = onnx_graph.rounded(cast)
        saved(content, path)
    found = {}
    for path in (plain, blind, tmp_path / "r.onnx"):
        with open_engine(path, backend="onnxruntime-cpu") as engine:
            found[path.stem] = engine.run(IMAGE.astype(engine.manifest.input.dtype))
    assert near(found["blind"].astype(np.float32), found["plain"])
    assert not near(found["r"], found["plain"])


def test_mixed_types_are_found() -> None:
    model = graph(
        [("Cast", ["image"], ["h"], {"to": HALF}), ("Add", ["image", "h"], ["out"])], output=FLOAT
    )
    with pytest.raises(onnx_graph.ConvertError, match="not valid ONNX"):
        onnx_graph.mixed_types(model)
    where = graph(
        [
            ("Cast", ["image"], ["h"], {"to": HALF}),
            ("IsNaN", ["image"], ["bad"]),
            ("Where", ["bad", "image", "h"], ["out"]),
        ]
    )
    try:
        faults = onnx_graph.mixed_types(where)
    except onnx_graph.ConvertError:
        return  # this onnx checks it while inferring
    assert "Where" in faults[0] and "FLOAT16" in faults[0]


def test_control_flow_and_unknown_inputs() -> None:
    model = branching()
    assert "without control flow" in refusal(lambda: onnx_graph.prepared(model, {"image": SHAPE}))
    plain = graph([("Relu", ["image"], ["out"])])
    assert "does not name" in refusal(lambda: onnx_graph.prepared(plain, {"photo": SHAPE}))
    wrong = graph([("MatMul", ["image", "w"], ["out"])], {"w": np.ones((5, 5), np.float32)})
    assert "not valid ONNX" in refusal(
        lambda: fp16.to_fp16(onnx_graph.prepared(wrong, {"image": SHAPE}))
    )


def test_a_cast_of_weights_goes_to_its_type_whatever_else_it_says() -> None:
    """From opset 19 on a Cast can also have `saturate`, which comes before `to`."""
    model = graph(
        [
            ("Cast", ["one"], ["axes"], {"saturate": 1, "to": TensorProto.INT64}),
            ("ReduceMean", ["image", "axes"], ["out"], {"keepdims": 0}),
        ],
        {"one": np.array([1], np.int32)},
        opset=19,
    )
    ready = onnx_graph.prepared(model, {"image": SHAPE})
    (axes,) = ready.graph.initializer
    assert (axes.name, axes.data_type) == ("axes", TensorProto.INT64)
