# SPDX-License-Identifier: Apache-2.0
"""ONNX models of a few nodes, whose output is known by hand; needs the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper

FLOAT = onnx.TensorProto.FLOAT


def save_model(
    path: Path,
    *,
    inputs: dict[str, list] | None = None,
    output: str = "depth",
    dtype: int = FLOAT,
    extra_output: bool = False,
) -> Path:
    """Save a model whose output (1, h, w) is twice the mean over its input's channels."""
    inputs = inputs or {"image": [1, 3, 8, 12]}
    image = next(iter(inputs))
    nodes = [
        helper.make_node("Cast", [image], ["cast"], to=FLOAT),
        helper.make_node("ReduceMean", ["cast", "axes"], ["mean"], keepdims=0),
        helper.make_node("Add", ["mean", "mean"], [output]),
    ]
    outputs = [helper.make_tensor_value_info(output, FLOAT, None)]
    if extra_output:
        nodes.append(helper.make_node("Identity", ["mean"], ["features"]))
        outputs.insert(0, helper.make_tensor_value_info("features", FLOAT, None))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        outputs,
        [helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, str(path))
    return path


def save_nodes(
    path: Path,
    nodes: Sequence[tuple[str, list[str], list[str]]],
    *,
    shape: Sequence[int | str] = (1, 3, 8, 12),
    constants: dict[str, list[float]] | None = None,
    whole: dict[str, list[int]] | None = None,
) -> Path:
    """Save a model `image` -> `output` of nodes (operator, inputs, outputs) and constants.

    constants: vectors of float. whole: vectors of int64.
    """
    floats = [
        helper.make_tensor(name, FLOAT, [len(values)], values)
        for name, values in (constants or {}).items()
    ]
    integers = [
        helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values)
        for name, values in (whole or {}).items()
    ]
    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "tiny",
        [helper.make_tensor_value_info("image", FLOAT, shape)],
        [helper.make_tensor_value_info("output", FLOAT, None)],
        floats + integers,
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path
