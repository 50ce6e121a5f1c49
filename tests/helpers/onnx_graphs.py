# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs that overflow in FP16, and their blind casts to FP16; needs the onnx package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.engine.manifest_writer import write_manifest
from depth_node.model_zoo import compare, fp16, onnx_graph

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT

SHAPE = (1, 3, 8, 12)

Node = tuple[Any, ...]


def graph(
    nodes: Sequence[Node],
    weights: dict[str, Any] | None = None,
    *,
    shape: Sequence[int | str] = SHAPE,
    opset: int = 17,
    kind: int = FLOAT,
    output: int = FLOAT,
) -> Any:
    """Return a model `image` -> `out` of nodes (operator, inputs, outputs[, attributes])."""
    made = [helper.make_node(n[0], n[1], n[2], **(n[3] if len(n) > 3 else {})) for n in nodes]
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    content = helper.make_graph(
        made,
        "tiny",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("out", output, None)],
        stored,
    )
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    return helper.make_model(content, opset_imports=versions, ir_version=8)


def f32(*values: float) -> np.ndarray:
    return np.asarray(values if len(values) > 1 else values[0], np.float32)


def saved(
    model: Any, path: Path, meaning: str = "disparity_affine_invariant", **facts: Any
) -> Path:
    onnx.save(model, str(path))
    write_manifest(path, meaning, **facts)
    return path


def halved(model: Any, **options: Any) -> fp16.Fp16Model:
    half = fp16.to_fp16(onnx_graph.prepared(model, {"image": SHAPE}), **options)
    assert onnx_graph.mixed_types(half.model) == []
    return half


def answer(model: Any, image: np.ndarray) -> np.ndarray:
    """Run the model by onnx's reference: NumPy, each operator in the type that the graph states."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: np.ndarray = ReferenceEvaluator(model).run(None, {"image": image})[0]
    return found.astype(np.float32)


def blindly(model: Any) -> Any:
    """Cast everything to FP16, as a converter does that knows nothing of the network."""
    cast = onnx.ModelProto()
    cast.CopyFrom(onnx_graph.prepared(model, {"image": SHAPE}))
    for index, item in enumerate(cast.graph.initializer):
        if item.data_type == FLOAT:
            values = numpy_helper.to_array(item).astype(np.float16)
            cast.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, item.name))
    for item in (*cast.graph.input, *cast.graph.output):
        item.type.tensor_type.elem_type = HALF
    return cast


def near(found: np.ndarray, wanted: np.ndarray) -> bool:
    good = np.isfinite(found)
    return bool(good.all()) and float(np.abs(found - wanted).max()) < 0.01 * float(wanted.std())


def normalised(square: Sequence[Node], gain: float) -> Any:
    """Return a graph of x * gain, a layer normalisation written out, an offset and a product.

    square: nodes that square its deviations.
    """
    return graph(
        [
            ("Mul", ["image", "gain"], ["x"]),
            ("ReduceMean", ["x"], ["mean"], {"axes": [-1]}),
            ("Sub", ["x", "mean"], ["d"]),
            *square,
            ("ReduceMean", ["square"], ["variance"], {"axes": [-1]}),
            ("Add", ["variance", "epsilon"], ["safe"]),
            ("Sqrt", ["safe"], ["deviation"]),
            ("Div", ["d", "deviation"], ["normal"]),
            ("Mul", ["normal", "two"], ["scaled"]),
            ("Add", ["scaled", "two"], ["shifted"]),
            ("MatMul", ["shifted", "last"], ["out"]),
        ],
        {
            "gain": f32(gain),
            "two": f32(2),
            "epsilon": f32(1e-6),
            "last": np.eye(12, dtype=np.float32),
        },
    )


SQUARES = {
    "power": [("Pow", ["d", "two"], ["square"])],
    "product": [("Mul", ["d", "d"], ["square"])],
}


def attention(gain: float) -> Any:
    """Return a graph of softmax(Q K^T / gain^2 + mask) V, a ReLU and a last product."""
    return graph(
        [
            ("Mul", ["image", "gain"], ["q"]),
            ("Transpose", ["q"], ["kt"], {"perm": [0, 1, 3, 2]}),
            ("MatMul", ["q", "kt"], ["product"]),
            ("Mul", ["product", "scale"], ["scores"]),
            ("Add", ["scores", "mask"], ["masked"]),
            ("Softmax", ["masked"], ["weights"]),
            ("MatMul", ["weights", "image"], ["mixed"]),
            ("Relu", ["mixed"], ["positive"]),
            ("MatMul", ["positive", "last"], ["out"]),
        ],
        {
            "gain": f32(gain),
            "scale": f32(1 / gain**2),
            "mask": np.zeros((8, 8), np.float32),
            "last": np.eye(12, dtype=np.float32),
        },
    )


IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)

OVERFLOWS = {
    "squares of a normalisation": normalised(SQUARES["power"], 900),
    "squares by a product": normalised(SQUARES["product"], 900),
    "scores of an attention": attention(300),
}

FEW = compare.ComparisonImages(2, height=32, width=48)


def branching() -> Any:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", FLOAT, SHAPE)],
    )
    nodes = [("If", ["yes"], ["out"], {"then_branch": branch, "else_branch": branch})]
    return graph(nodes, {"yes": np.asarray(True)})
